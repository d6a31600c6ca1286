"""Kernels run in Triton's interpreter where there is no GPU, as tests marked `interpreter` must; those marked `gpu` need one."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch loads OpenMP
import torch

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined, hence before the first import of one.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        interpreted = [item for item in items if item.get_closest_marker("interpreter")]
        config.hook.pytest_deselected(items=interpreted)
        items[:] = [item for item in items if item not in interpreted]
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device on which tensors take the Triton kernels: the GPU, or the CPU by way of the interpreter."""
    pytest.importorskip("triton")
    from trocar.kernels import launch

    monkeypatch.setattr(launch, "interpret_on_cpu", True)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
