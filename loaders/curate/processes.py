"""The processes that cluster together: those of torch.distributed, where a launch has started it, else this one alone."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import distributed as dist

Value = TypeVar("Value")


def rank_and_size() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first() -> bool:
    return rank_and_size()[0] == 0


def from_first(value: Value) -> Value:
    """The first process's value, in all of them."""
    if rank_and_size()[1] == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def wait_for_all() -> None:
    if rank_and_size()[1] > 1:
        dist.all_reduce(torch.zeros(1))  # in host memory: a barrier would take the GPUs'


def add_up(total: torch.Tensor) -> None:
    """The sum over all processes, in place."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(total)


def greatest(values: torch.Tensor) -> None:
    """The greatest of all processes' values, in place."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(values, dist.ReduceOp.MAX)
