"""Where kernels run: without Triton, on the CPU, and what is refused before they do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trocar.kernels import launch
from trocar.kernels.decoder_tokens import decoder_tokens
from trocar.kernels.ema import ema
from trocar.kernels.feature_loss import feature_loss
from trocar.kernels.kmeans_assign import kmeans_assign
from trocar.kernels.launch import compute_dtype, power_of_two, require_indices, takes_triton
from trocar.kernels.mask_sampler import tube_mask
from trocar.kernels.patch_embed import patch_embed
from trocar.kernels.pixel_loss import pixel_loss
from trocar.kernels.rope3d import rope3d
from trocar.kernels.yuv_clip import yuv_clip

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


def calls(device: torch.device) -> dict[str, tuple[Callable, tuple]]:
    """Every operator with arguments; those with a gradient ask for it."""
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (2, 2, 8, 8, 3), dtype=torch.uint8, device=device)
    seen, hidden = torch.tensor([[0], [2]], device=device), torch.tensor([[1, 2, 3], [0, 1, 3]], device=device)
    weight, bias = torch.randn(6, 3, 2, 4, 4, device=device, requires_grad=True), torch.randn(6, device=device)
    positions = torch.randn(4, 6, device=device, requires_grad=True)
    prediction = torch.randn(2, 3, 96, device=device, requires_grad=True)
    projected, mask_token = prediction[:, :1, :6].detach().contiguous().requires_grad_(), bias.clone().requires_grad_()
    queries, keys = (torch.randn(2, 1, 2, 8, device=device, requires_grad=True) for _ in range(2))
    features = torch.randn(2, 4, 96, device=device)
    many = [tuple(torch.ones(3, device=device) for _ in range(100)) for _ in range(3)]
    draws = torch.arange(2, device=device)
    rows, sums = torch.randn(5, 4, device=device), torch.zeros(2, 4, device=device)
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    luma = torch.zeros(1, 8, 8, dtype=torch.uint8, device=device)
    half = (0.5, 0.5, 0.5)
    return {
        "patch_embed": (patch_embed, (frames, seen, weight, bias.requires_grad_(), positions, half, half)),
        "pixel_loss": (pixel_loss, (prediction, frames, hidden, 2, 4, "channel")),
        "decoder_tokens": (decoder_tokens, (projected, mask_token, positions, seen, hidden)),
        "feature_loss": (feature_loss, (prediction, features, hidden)),
        "rope3d": (rope3d, (queries, keys, seen, (1, 2, 2))),
        "ema": (ema, (many[0], many[1], torch.ones((), device=device), many[2])),
        "mask_sampler": (tube_mask, (0, draws, draws, (2, 2, 2), 0.5, device)),
        "kmeans_assign": (kmeans_assign, (rows, rows[:2], sums, counts)),
        "yuv_clip": (yuv_clip, (luma, luma[:, :4, :4], luma[:, :4, :4], (0, 0, 8, 8), 4)),
    }


# Functions of Python between a call and its launches, with some in reserve. With all checks at each call and through the
# dispatcher it was 77, 49, 57, 50, 47, 3,637 (of 600 tensors), 35, 93 and 48.
MOST_FUNCTIONS = dict(
    patch_embed=55,
    pixel_loss=42,
    decoder_tokens=48,
    feature_loss=48,
    rope3d=40,
    ema=45,
    mask_sampler=34,
    kmeans_assign=80,
    yuv_clip=42,
)


@pytest.mark.parametrize("name", MOST_FUNCTIONS)
def test_a_call_costs_the_host_little(name: str, kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed, with the launcher and the look into a CPU's indices left out."""
    function, arguments = calls(kernels)[name]
    monkeypatch.setattr(launch, "record", lambda *launched: None)
    monkeypatch.setattr(launch, "has_values", lambda tensor: False)
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    for _ in range(2):
        function(*arguments)
    sys.setprofile(counted)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    assert 0 < count <= MOST_FUNCTIONS[name]


class Onlooker(TorchDispatchMode):
    """The operators that are called while it is entered, with the elements of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen.append((str(func), result.numel() if isinstance(result, torch.Tensor) else 0))
        return result


def outcome(function: Callable, arguments: tuple) -> list[torch.Tensor]:
    outputs = function(*arguments)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    leaves = [part for part in arguments if isinstance(part, torch.Tensor) and part.requires_grad]
    wanted = [output for output in outputs if output.requires_grad]
    gradients = torch.autograd.grad(wanted, leaves, [torch.ones_like(output) for output in wanted])
    return [*outputs, *gradients]


@pytest.mark.parametrize("name", ["patch_embed", "pixel_loss", "decoder_tokens", "feature_loss", "rope3d"])
def test_past_the_dispatcher_and_through_it_is_the_same(name: str, kernels: torch.device) -> None:
    function, arguments = calls(kernels)[name]
    directly = outcome(function, arguments)
    with Onlooker() as onlooker:
        through = outcome(function, arguments)
    assert all(torch.equal(*pair) for pair in zip(directly, through, strict=True))
    assert f"trocar.{name}.default" in dict(onlooker.seen)
    if name.endswith("_loss"):  # of the gradient that is stored with the loss none is asked for
        filled = [size for called, size in onlooker.seen if "zeros" in called]
        assert max(filled, default=0) < arguments[0].numel()


def test_other_layouts_are_looked_at_again(kernels: torch.device) -> None:
    """What has passed once says nothing of another shape, dtype, stride or setting."""
    function, arguments = calls(kernels)["rope3d"]
    queries, keys, indices, grid = arguments
    function(*arguments)
    for changed in (keys[:1], keys.double(), keys.mT):
        for _ in range(2):
            with pytest.raises(ValueError, match="keys must"):
                function(queries, changed, indices, grid)


@pytest.mark.gpu
def test_device_indices_are_checked_only_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = torch.tensor([[5]], device="cuda")
    require_indices("indices", indices, (1, 1), 5, indices)
    monkeypatch.setattr(launch, "check_indices_on_device", True)
    with pytest.raises(ValueError, match=r"indices must lie in 0 .. 4, got 5 .. 5"):
        require_indices("indices", indices, (1, 1), 5, indices)
