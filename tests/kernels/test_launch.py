"""Where kernels run: without Triton, on the CPU, and what is refused before they do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from trocar.kernels import launch
from trocar.kernels.launch import compute_dtype, power_of_two, require_indices, takes_triton

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from pathlib import Path
import importlib
import torch
import trocar.kernels.launch as launch
names = sorted(path.stem for path in Path(launch.__file__).parent.glob("*.py"))
for name in names:
    importlib.import_module(f"trocar.kernels.{name}")
from trocar.kernels.patch_embed import patch_embed
from trocar.kernels.mask_sampler import tube_mask
launch.interpret_on_cpu = True
visible, _ = tube_mask(0, [0], [0], (1, 2, 2), 0.5)
frames = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
weight, bias, positions = torch.zeros(5, 3, 2, 2, 2), torch.ones(5), torch.zeros(4, 5)
assert (patch_embed(frames, visible, weight, bias, positions, [0.5] * 3, [0.5] * 3) == 1).all()
print(len(names))
"""


def test_everything_imports_and_runs_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 11


def test_cpu_tensors_and_float64_take_the_reference(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    single, double = torch.zeros(1, device=kernels), torch.zeros(1, device=kernels, dtype=torch.float64)
    assert takes_triton(single)
    assert not takes_triton(single, double)
    monkeypatch.setattr(launch, "interpret_on_cpu", False)
    assert not takes_triton(torch.zeros(1))


def test_dtype_follows_autocast() -> None:
    tensor = torch.zeros(1)
    assert compute_dtype(tensor) == torch.float32
    assert compute_dtype(tensor, torch.float16) == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_dtype(tensor) == torch.bfloat16


def test_powers_of_two() -> None:
    assert [power_of_two(number, 2) for number in (1, 2, 3, 4, 5, 1536)] == [2, 2, 4, 4, 8, 2048]


@pytest.mark.gpu
def test_device_indices_are_checked_only_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = torch.tensor([[5]], device="cuda")
    require_indices("indices", indices, (1, 1), 5, indices)
    monkeypatch.setattr(launch, "check_indices_on_device", True)
    with pytest.raises(ValueError, match=r"indices must lie in 0 .. 4, got 5 .. 5"):
        require_indices("indices", indices, (1, 1), 5, indices)
