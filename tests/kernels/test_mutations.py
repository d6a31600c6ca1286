"""The kernels' tests notice seeded faults: at least five a kernel, each caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import FAULTS

from trocar.kernels import launch

NOT_OPERATORS = {"choices", "launch", "philox"}


def test_every_kernel_has_five_faults() -> None:
    files = {path.stem for path in Path(launch.__file__).parent.glob("*.py")} - NOT_OPERATORS
    assert set(FAULTS) == files
    assert all(len(faults) >= 5 for faults in FAULTS.values())


@pytest.mark.parametrize("kernel", FAULTS)
def test_every_fault_stands_in_the_source(kernel: str) -> None:
    source = Path(launch.__file__).with_name(f"{kernel}.py").read_text(encoding="utf-8")
    assert {old: source.count(old) for old, _ in FAULTS[kernel]} == {old: 1 for old, _ in FAULTS[kernel]}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", FAULTS)
def test_every_fault_is_caught(kernel: str) -> None:
    pytest.importorskip("triton")
    script = Path(__file__).parents[1] / "mutations.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(script), kernel], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout)
    assert statuses.pop("(no fault)") == 0
    assert len(statuses) == len(FAULTS[kernel])
    assert [fault for fault, status in statuses.items() if status != 1 and status >= 0] == []
