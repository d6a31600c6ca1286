"""Arms that take turns: whatever else the machine does meets all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Arm = TypeVar("Arm")


def in_turns(arms: Sequence[Arm], number: int) -> list[Arm]:
    """The arms in the order of round `number`: each is the first one in turn."""
    turn = number % max(len(arms), 1)
    return [*arms[turn:], *arms[:turn]]
