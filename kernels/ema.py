"""Exponential moving average of many tensors in one launch: the target encoder's update.

    target = target + (1 - momentum) (source - target),  copy = round(target)

The momentum is a scalar on the device: a schedule, or a step that is skipped (momentum 1: then even a source that is not finite
leaves the target as it is), costs no host sync. The optional copies are the targets in a lower precision, for the forward pass.

One launch serves all tensors: a table on the device gives each program a chunk of one of them. Checks and tables are made once for
a set of tensors, and anew where one of them has moved to other memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .launch import (
    FLOAT_DTYPES,
    by_layout,
    is_watched,
    jit,
    launch,
    note_changed,
    require,
    takes_triton,
    tl,
)

CHUNK, BLOCK = 8192, 2048
MAX_SETS = 16


class _Prepared(NamedTuple):
    """A set of tensors that has passed the checks. launches: of `_launches`, none where the reference computes."""

    alive: list[weakref.ref]
    addresses: tuple[int, ...]
    launches: list[tuple]
    takes_triton: bool


# By the tensors' identities. One that ends takes its set along, so that no other can be taken for it.
_sets: dict[tuple, _Prepared] = {}


def ema_reference(
    targets: Sequence[torch.Tensor],
    sources: Sequence[torch.Tensor],
    momentum: torch.Tensor,
    copies: Sequence[torch.Tensor] = (),
) -> None:
    """PyTorch version of `ema`."""
    for target, source in zip(targets, sources, strict=True):
        weight = 1 - momentum.to(target.dtype)
        target.copy_(torch.where(weight == 0, target, target + weight * (source.to(target.dtype) - target)))
    for target, copy in zip(targets, copies, strict=False):
        copy.copy_(target)


@jit
def _ema_kernel(
    targets,
    sources,
    copies,
    sizes,
    chunk_tensors,
    chunk_starts,
    momentum,
    TARGET: tl.constexpr,
    SOURCE: tl.constexpr,
    COPY: tl.constexpr,
    HAS_COPY: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number = tl.load(chunk_tensors + tl.program_id(0))
    start = tl.multiple_of(tl.load(chunk_starts + tl.program_id(0)), 16)
    size = tl.load(sizes + number)
    target = tl.load(targets + number).to(tl.pointer_type(TARGET))  # pyright: ignore[reportArgumentType]
    source = tl.load(sources + number).to(tl.pointer_type(SOURCE))  # pyright: ignore[reportArgumentType]
    copy = tl.load(copies + number).to(tl.pointer_type(COPY))  # pyright: ignore[reportArgumentType]
    if ALIGNED:
        target, source, copy = tl.multiple_of(target, 16), tl.multiple_of(source, 16), tl.multiple_of(copy, 16)
    weight = 1.0 - tl.load(momentum)
    if start + CHUNK <= size:  # a full chunk needs no mask, and without one loads are 16 bytes wide
        for first in range(0, CHUNK, BLOCK):
            place = start + first + tl.arange(0, BLOCK)
            old = tl.load(target + place).to(tl.float32)
            new = old + weight * (tl.load(source + place).to(tl.float32) - old)
            new = tl.where(weight == 0.0, old, new)
            tl.store(target + place, new.to(TARGET))
            if HAS_COPY:
                tl.store(copy + place, new.to(COPY))
    else:
        for first in range(0, CHUNK, BLOCK):
            place = start + first + tl.arange(0, BLOCK)
            inside = place < size
            old = tl.load(target + place, mask=inside, other=0.0).to(tl.float32)
            new = old + weight * (tl.load(source + place, mask=inside, other=0.0).to(tl.float32) - old)
            new = tl.where(weight == 0.0, old, new)
            tl.store(target + place, new.to(TARGET), mask=inside)
            if HAS_COPY:
                tl.store(copy + place, new.to(COPY), mask=inside)


def _triton_type(dtype: torch.dtype):
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]


def _launches(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], copies: Sequence[torch.Tensor]):
    """[(device tables, compile-time settings)]: one entry for all tensors of the same dtypes and alignment."""
    triples = list(zip(targets, sources, copies or targets, strict=True))
    groups: dict[tuple, list[tuple[torch.Tensor, ...]]] = {}
    for triple in triples:
        aligned = all(part.data_ptr() % 16 == 0 for part in triple)
        groups.setdefault((*(part.dtype for part in triple), aligned), []).append(triple)
    entries = []
    for (*dtypes, aligned), members in groups.items():
        sizes = [target.numel() for target, _, _ in members]
        chunks = [(number, start) for number, size in enumerate(sizes) for start in range(0, size, CHUNK)]
        pointers = [[member[role].data_ptr() for member in members] for role in range(3)]
        numbers, starts = zip(*chunks, strict=True)
        tables = [torch.tensor(column, device=targets[0].device) for column in (*pointers, sizes, numbers, starts)]
        names = dict(zip(("TARGET", "SOURCE", "COPY"), map(_triton_type, dtypes), strict=True))
        entries.append((tables, {**names, "HAS_COPY": bool(copies), "ALIGNED": aligned}))
    return entries


def _start(launches: Sequence[tuple], momentum: torch.Tensor) -> None:
    for tables, settings in launches:
        launch(_ema_kernel, (len(tables[-1]),), *tables, momentum, **settings, CHUNK=CHUNK, BLOCK=BLOCK)


@torch.library.custom_op("trocar::ema_", mutates_args=("targets", "copies"))
def _ema(
    targets: Sequence[torch.Tensor],
    sources: Sequence[torch.Tensor],
    momentum: torch.Tensor,
    copies: Sequence[torch.Tensor],
) -> None:
    _start(_launches(targets, sources, copies), momentum)


@_ema.register_fake
def _(targets, sources, momentum, copies):
    return None


def _check(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], copies: Sequence[torch.Tensor]) -> None:
    """Raises as `ema` does, for all but the momentum."""
    for name, others in (("sources", sources), ("copies", copies or targets)):
        if len(others) != len(targets):
            raise ValueError(f"{name} must be as many as the {len(targets)} targets, got {len(others)}")
    for number, target in enumerate(targets):
        require(f"targets[{number}]", target, dtypes=FLOAT_DTYPES, shape=tuple(target.shape), like=targets[0])
        for name, others in (("sources", sources), ("copies", copies)):
            if others:
                shape = tuple(target.shape)
                require(f"{name}[{number}]", others[number], dtypes=FLOAT_DTYPES, shape=shape, like=target)


@by_layout
def _check_momentum(momentum: torch.Tensor, target: torch.Tensor) -> None:
    require("momentum", momentum, dtypes=(torch.float32,), shape=(), like=target)


def _prepared(
    targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], copies: Sequence[torch.Tensor]
) -> _Prepared:
    """Looks at each tensor only where the set is new, or one of its tensors has moved."""
    parts = (*targets, *sources, *copies)
    triton = takes_triton(targets[0])
    key = (triton, len(targets), len(sources), tuple(map(id, parts)))
    addresses = tuple(map(torch.Tensor.data_ptr, parts))
    found = _sets.get(key)
    if found is not None and found.addresses == addresses:
        return found
    _check(targets, sources, copies)
    of_triton = takes_triton(*parts)
    while len(_sets) >= MAX_SETS:
        _sets.pop(next(iter(_sets)))
    alive = [weakref.ref(part, lambda _: _sets.pop(key, None)) for part in parts]
    _sets[key] = _Prepared(alive, addresses, _launches(targets, sources, copies) if of_triton else [], of_triton)
    return _sets[key]


@torch.no_grad()
def ema(
    targets: Sequence[torch.Tensor],
    sources: Sequence[torch.Tensor],
    momentum: torch.Tensor,
    copies: Sequence[torch.Tensor] = (),
) -> None:
    """Moves each target towards its source, in place, and writes its rounded copy.

    targets, sources: as many tensors, equal in shape one by one, contiguous. momentum: () float32 on their device, 0 .. 1; 1
    changes nothing. copies: none, or one a target, in any precision. Hand in the same tensors each time, not new views of them:
    they are looked at once, and a captured graph needs their tables. Raises ValueError on lists of other lengths and on tensors of
    another dtype, shape, device or layout.
    """
    if not targets:
        raise ValueError("targets must not be empty")
    if is_watched():
        _check(targets, sources, copies)
        _check_momentum(momentum, targets[0])
        if takes_triton(*targets, *sources, *copies):
            _ema(list(targets), list(sources), momentum, list(copies))
        else:
            ema_reference(targets, sources, momentum, copies)
        return
    prepared = _prepared(targets, sources, copies)
    _check_momentum(momentum, targets[0])
    if not prepared.takes_triton:
        ema_reference(targets, sources, momentum, copies)
        return
    _start(prepared.launches, momentum)
    note_changed((*targets, *copies))
