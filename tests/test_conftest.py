"""Tests that mean the CPU find no GPU on a machine that has one: shown on a machine that claims to have one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CLAIMS = """
import torch

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
"""
TESTS = """
import os
import pytest
import torch
from trocar.engine.step.device import choose_device
from trocar.engine.config.file import load_config

@pytest.fixture(scope="module")
def of_the_module():
    return torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")

def test_means_the_cpu(of_the_module):
    assert of_the_module == (False, "")
    assert choose_device(load_config("demo_cpu", ["run.device=auto"]).run.device).type == "cpu"
    assert torch.cuda.device_count() == 0

@pytest.mark.gpu
def test_means_the_gpu():
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != ""

def test_means_the_kernels(kernels):
    assert kernels.type == "cuda" and torch.cuda.is_available()

@pytest.mark.interpreter
def test_means_the_interpreter():
    pass
"""


def test_a_gpu_in_the_machine_changes_nothing_for_tests_that_mean_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "claims_a_gpu.py").write_text(CLAIMS)
    (tmp_path / "test_made.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    interpreter\n")
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "claims_a_gpu", "-p", "no:cacheprovider", "test_made.py"],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "3 passed, 1 deselected" in done.stdout, done.stdout + done.stderr
