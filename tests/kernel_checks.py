"""What the kernel tests share: the dtypes, the error rule, memory that is NaN before it is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

FLOAT32 = pytest.param(torch.float32, id="float32")
FLOAT16 = pytest.param(torch.float16, id="float16")
BFLOAT16 = pytest.param(torch.bfloat16, id="bfloat16", marks=pytest.mark.gpu)  # the interpreter's bfloat16 is wrong
DTYPES = [FLOAT32, FLOAT16, BFLOAT16]


def assert_accurate(
    actual: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    name: str = "output",
    dtype: torch.dtype | None = None,
) -> None:
    """The error against a float64 oracle is at most twice the reference's own plus one ulp of the output dtype."""
    assert actual.shape == reference.shape == oracle.shape, name
    assert oracle.dtype == torch.float64, name
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    actual, reference, oracle = actual.detach().cpu(), reference.detach().cpu(), oracle.detach().cpu()
    ulp = torch.finfo(dtype or actual.dtype).eps * oracle.abs()
    allowed = 2 * (reference.double() - oracle).abs().max() + ulp
    excess = ((actual.double() - oracle).abs() - allowed).max().item()
    assert excess <= 0, f"{name}: {excess:.3g} above the allowed {allowed.max().item():.3g}"


@contextmanager
def nan_memory() -> Iterator[None]:
    """torch.empty and its kin hand out NaN (integers: their largest), so that what a kernel fails to write shows."""
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory, too
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(previous)


@contextmanager
def only_program(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Program 0 takes itself for this one: the far end of a tensor without the hours that the rest would take.

    Programs can be renumbered in the interpreter alone: for tests that are marked `interpreter`.
    """
    from triton.runtime.interpreter import interpreter_builder

    set_index = interpreter_builder.set_grid_idx
    with monkeypatch.context() as patch:
        patch.setattr(interpreter_builder, "set_grid_dim", lambda x, y, z: None)
        interpreter_builder.grid_dim = (number + 1, 1, 1)
        patch.setattr(interpreter_builder, "set_grid_idx", lambda x, y, z: set_index(x + number, y, z))
        yield


def indices(batch: int, chosen: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """(B, N_chosen) distinct, ascending int64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(tokens, generator=generator)[:chosen].sort().values for _ in range(batch)]
    return torch.stack(drawn)
