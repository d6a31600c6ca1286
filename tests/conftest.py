"""Kernels run in Triton's interpreter where there is no GPU, as tests marked `interpreter` must; those marked `gpu` need one.

A test takes a GPU where it is marked `gpu` or has the fixture `kernels`. From all others GPUs are hidden, from the processes that
they start as well: what they say of a CPU holds on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch loads OpenMP
import torch

# Asked before any test hides them; the driver reads CUDA_VISIBLE_DEVICES here, and not again in this process.
HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Triton reads it when a kernel is defined, hence before the first import of one.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """A machine without pytest-timeout runs the tests too; a setting that nobody knows would be an error."""
    if not pluginmanager.hasplugin("timeout") and not pluginmanager.hasplugin("pytest_timeout"):
        parser.addini("timeout", "seconds of a test; unused without pytest-timeout")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if HAS_GPU:
        interpreted = [item for item in items if item.get_closest_marker("interpreter")]
        config.hook.pytest_deselected(items=interpreted)
        items[:] = [item for item in items if item not in interpreted]
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around set-up as well: fixtures of a module come before those of a test."""
    if item.get_closest_marker("gpu") or "kernels" in getattr(item, "fixturenames", ()):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        return (yield)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device on which tensors take the Triton kernels: the GPU, or the CPU by way of the interpreter."""
    pytest.importorskip("triton")
    from trocar.kernels import launch

    monkeypatch.setattr(launch, "interpret_on_cpu", True)
    return torch.device("cuda" if HAS_GPU else "cpu")
