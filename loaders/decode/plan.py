"""What a loader plans: spans, and the batches that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .span import SpanResult

Block = TypeVar("Block")


@dataclass(eq=False)
class Span:
    """A draw whose views are decoded together. due: how many are not planned yet. frames: those that wait for their batch.

    All views are decoded, also where a run that resumes serves only some of them: what is replaced, and by what, must not depend
    on where a run was interrupted.
    """

    draw: int
    views: tuple[int, ...]
    due: int
    result: SpanResult | None = None
    frames: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass
class Plan(Generic[Block]):
    """A batch to come: the spans that are decoded for it, how far that is, and (span, view) of its clips."""

    numbers: NDArray[np.int64]
    spans: list[Span]
    block: Block
    clips: list[tuple[Span, int]]


def clip_numbers(batch: int, first: int = 0) -> Iterator[NDArray[Any]]:
    """Endless batches of consecutive clip numbers, from `first` on."""
    while True:
        yield np.arange(first, first + batch)
        first += batch
