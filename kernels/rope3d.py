"""Rotary positions along time, rows and columns, applied to queries and keys in one pass (V-JEPA 2, arXiv 2506.09985).

A head of width E is cut into three segments of A = 2 ((E // 3) // 2) values, one an axis; what is left stays as it is. With the
position p of the token on the segment's axis and h = A / 2, value j of a segment becomes

    y[j] = x[j] cos(p w[j % h]) + s[j] x[j ^ 1] sin(p w[j % h]),   w[i] = 10000 ** (-i / h),   s = -1 for even j, +1 for odd j

As published, the two values of a pair (2i, 2i + 1) turn by different angles, w[2i % h] and w[2i + 1 % h]: it is no rotation, but
it is what the published weights were trained with. Backward is the transpose: dx[j] = g[j] cos(..[j]) - s[j] g[j ^ 1] sin(..[j ^
1]).

Positions are few (the longest side of the grid), so cosines and sines come from a table of a few KiB, made once in float64: more
exact than sines on the device, and without the stack that their reduction of large angles needs.

Shapes: B clips, N tokens a clip of any choice and order (visible ones, or packed: L tokens of all clips), H heads, E values a head.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from .launch import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    by_layout,
    differentiable,
    directly,
    jit,
    launch,
    power_of_two,
    require,
    require_range,
    takes_triton,
    tl,
)

BASE = 10000.0


def segment_width(head_width: int) -> int:
    """Values of a head that turn with each axis."""
    return 2 * (head_width // 3 // 2)


def frequencies(head_width: int) -> torch.Tensor:
    """(h,) float64."""
    half = segment_width(head_width) // 2
    return BASE ** -(torch.arange(half, dtype=torch.float64) / half)


@lru_cache(maxsize=16)
def _table(head_width: int, positions: int, device: torch.device) -> torch.Tensor:
    """(2, positions, h) float32: the cosines and the sines of every position."""
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies(head_width)
    return torch.stack([angles.cos(), angles.sin()]).float().to(device)


def rope3d_reference(
    queries: torch.Tensor, keys: torch.Tensor, indices: torch.Tensor, grid: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch version of `rope3d`, in float32 at least."""
    _, rows, columns = grid
    dtype = torch.promote_types(queries.dtype, torch.float32)
    axes = (indices // (rows * columns), indices // columns % rows, indices % columns)
    width = segment_width(queries.shape[-1])
    omega = frequencies(queries.shape[-1]).to(queries.device, dtype)
    angles = [torch.cat(2 * [axis[..., None].to(dtype) * omega], dim=-1) for axis in axes]
    angle = torch.cat(angles, dim=-1)[..., None, :]

    def turn(values: torch.Tensor) -> torch.Tensor:
        turned, rest = values[..., : 3 * width].to(dtype), values[..., 3 * width :]
        even, odd = turned[..., 0::2], turned[..., 1::2]
        partner = torch.stack([-odd, even], dim=-1).flatten(-2)
        return torch.cat([(turned * angle.cos() + partner * angle.sin()).to(values.dtype), rest], dim=-1)

    return turn(queries), turn(keys)


@jit
def _cosine_and_sine(value, step, row, column, valid, table, positions, A: tl.constexpr):
    """By which each value of a head turns: 1 and 0 beyond the three segments, NaN for a token outside the grid."""
    axis = value // A
    position = tl.where(axis == 0, step, tl.where(axis == 1, row, column))
    place = position * (A // 2) + value % A % (A // 2)
    inside = axis < tl.where(valid, 3, 0)
    poison = tl.where(valid, 0.0, float("nan"))
    cosine = tl.load(table + place, mask=inside, other=1.0) + poison
    sine = tl.load(table + positions * (A // 2) + place, mask=inside, other=0.0) + poison
    return cosine[None, :], sine[None, :]


@jit
def _turn(values, cos0, sin0, cos1, sin1, TRANSPOSED: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr):
    even, odd = tl.split(tl.reshape(values.to(tl.float32), (HEADS, HALF, 2)))
    if TRANSPOSED:
        new_even, new_odd = even * cos0 + odd * sin1, odd * cos1 - even * sin0
    else:
        new_even, new_odd = even * cos0 - odd * sin0, odd * cos1 + even * sin1
    return tl.reshape(tl.join(new_even, new_odd), (HEADS, 2 * HALF)).to(values.dtype)


@jit
def _rope3d_kernel(
    queries,
    keys,
    turned_queries,
    turned_keys,
    indices,
    table,
    per_clip,
    num_tokens,
    rows,
    columns,
    heads,
    positions,
    query_clip_stride,
    query_token_stride,
    query_head_stride,
    key_clip_stride,
    key_token_stride,
    key_head_stride,
    E: tl.constexpr,
    A: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    number = tl.program_id(0)
    clip, place = (number // per_clip).to(tl.int64), (number % per_clip).to(tl.int64)
    token = tl.load(indices + number)
    valid = (token >= 0) & (token < num_tokens)
    step, row, column = token // (rows * columns), token // columns % rows, token % columns
    pair = tl.arange(0, HALF)
    cos0, sin0 = _cosine_and_sine(2 * pair, step, row, column, valid, table, positions, A)
    cos1, sin1 = _cosine_and_sine(2 * pair + 1, step, row, column, valid, table, positions, A)
    head, value = tl.arange(0, HEADS)[:, None], tl.arange(0, 2 * HALF)[None, :]
    inside = (head < heads) & (value < E)
    written = (number.to(tl.int64) * heads + head) * E + value
    read = clip * query_clip_stride + place * query_token_stride + head * query_head_stride + value
    turned = _turn(tl.load(queries + read, mask=inside, other=0.0), cos0, sin0, cos1, sin1, TRANSPOSED, HALF, HEADS)
    tl.store(turned_queries + written, turned, mask=inside)
    read = clip * key_clip_stride + place * key_token_stride + head * key_head_stride + value
    turned = _turn(tl.load(keys + read, mask=inside, other=0.0), cos0, sin0, cos1, sin1, TRANSPOSED, HALF, HEADS)
    tl.store(turned_keys + written, turned, mask=inside)


@torch.library.custom_op("trocar::rope3d", mutates_args=())
def _rope3d(
    queries: torch.Tensor,
    keys: torch.Tensor,
    indices: torch.Tensor,
    steps: int,
    rows: int,
    columns: int,
    transposed: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    clips, per_clip, heads, head_width = queries.shape
    turned = [part.new_empty(part.shape) for part in (queries, keys)]
    positions = max(steps, rows, columns)
    launch(
        _rope3d_kernel,
        (clips * per_clip,),
        *(queries, keys, *turned, indices.contiguous(), _table(head_width, positions, queries.device)),
        *(per_clip, steps * rows * columns, rows, columns, heads, positions, *queries.stride()[:3], *keys.stride()[:3]),
        E=head_width,
        A=segment_width(head_width),
        TRANSPOSED=transposed,
        HEADS=power_of_two(heads, 1),
        HALF=power_of_two(head_width, 2) // 2,
        num_warps=4,
    )
    return turned[0], turned[1]


@_rope3d.register_fake
def _(queries, keys, indices, steps, rows, columns, transposed):
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape)


def _setup_context(ctx, inputs, output) -> None:
    _, _, indices, *grid, transposed = inputs
    ctx.save_for_backward(indices)
    ctx.grid, ctx.transposed = grid, transposed


def _backward(ctx, query_gradient: torch.Tensor, key_gradient: torch.Tensor):
    (indices,) = ctx.saved_tensors
    gradients = [part if part.stride(-1) == 1 else part.contiguous() for part in (query_gradient, key_gradient)]
    return *directly(_rope3d, *gradients, indices, *ctx.grid, not ctx.transposed), None, None, None, None, None


_differentiable_rope3d = differentiable(_rope3d, _backward, _setup_context)


@by_layout
def _check(queries: torch.Tensor, keys: torch.Tensor, indices: torch.Tensor) -> None:
    """Raises as `rope3d` does for what does not depend on values."""
    shape = (None, None, None, None)
    require("queries", queries, dtypes=FLOAT_DTYPES, shape=shape, like=queries, contiguous=False)
    require("keys", keys, dtypes=(queries.dtype,), shape=tuple(queries.shape), like=queries, contiguous=False)
    for name, part in (("queries", queries), ("keys", keys)):
        if part.stride(-1) != 1:
            raise ValueError(f"{name} must have dense heads, got strides {part.stride()}")
    if queries.shape[-1] < 6 or queries.shape[-1] % 2:
        raise ValueError(f"queries must have heads of an even width of at least 6, got {queries.shape[-1]}")
    require("indices", indices, dtypes=INDEX_DTYPES, shape=tuple(queries.shape[:2]), like=queries, contiguous=False)


def rope3d(
    queries: torch.Tensor, keys: torch.Tensor, indices: torch.Tensor, grid: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns queries and keys by the position of their tokens.

    queries, keys: (B, N, H, E), or (L, H, E) packed; the values of a head dense, all else of any stride, as in a fused projection.
    indices: (B, N) or (L,), int32 or int64, each token's place in the grid. grid: (T', H', W') in tokens. Returns both anew,
    contiguous, in their dtype; gradients reach both. Raises ValueError on arguments of another dtype, shape, device or layout, on
    heads too narrow to cut in three (E < 6) or of odd width and, on the CPU, on indices out of range (NaN on a device).
    """
    if queries.ndim == 3:
        turned = rope3d(queries.unsqueeze(0), keys.unsqueeze(0), indices.unsqueeze(0), grid)
        return turned[0].squeeze(0), turned[1].squeeze(0)
    _check(queries, keys, indices)
    steps, rows, columns = grid
    require_range("indices", indices, steps * rows * columns)
    if not takes_triton(queries, keys):
        return rope3d_reference(queries, keys, indices, grid)
    return _differentiable_rope3d(queries, keys, indices, steps, rows, columns, False)
