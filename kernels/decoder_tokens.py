"""The decoder's input: projected visible tokens, then a mask token per predicted place, each with its position.

    output[b] = [projected[b] + positions[visible[b]], mask_token + positions[masked[b]]]

Written once; eager code writes the repeated mask token, both sums and their concatenation. Backward: the gradient of `projected` is
the upstream gradient of the first rows, that of the mask token the sum over the others, that of the positions a sum by index.

Shapes: B clips, N tokens of the whole grid, D decoder width, R = N_visible + N_masked rows a clip.
"""

from __future__ import annotations

import torch

from .launch import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    by_layout,
    ceil_div,
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
from .row_sums import sum_rows, sum_rows_by_index

ROWS, COLUMNS = 8, 512


def decoder_tokens_reference(
    projected: torch.Tensor,
    mask_token: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor,
    masked: torch.Tensor,
) -> torch.Tensor:
    """PyTorch version of `decoder_tokens`."""
    positions = positions.to(projected.dtype)
    return torch.cat([projected + positions[visible], mask_token.to(projected.dtype) + positions[masked]], dim=1)


@jit
def _decoder_tokens_kernel(
    projected,
    mask_token,
    positions,
    visible,
    masked,
    tokens,
    num_visible,
    num_masked,
    num_tokens,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    clip = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    rows = num_visible + num_masked
    seen, hidden = row < num_visible, (row >= num_visible) & (row < rows)
    token = tl.load(visible + clip * num_visible + row, mask=seen, other=0).to(tl.int64)
    token += tl.load(masked + clip * num_masked + row - num_visible, mask=hidden, other=0).to(tl.int64)
    valid = (token >= 0) & (token < num_tokens)
    inside = (column < width)[None, :]
    place = (clip * num_visible + row)[:, None] * width + column[None, :]
    value = tl.load(projected + place, mask=seen[:, None] & inside, other=0.0).to(tl.float32)
    filler = tl.load(mask_token + column, mask=column < width, other=0.0).to(tl.float32)
    value = tl.where(seen[:, None], value, filler[None, :])
    place = token[:, None] * width + column[None, :]
    value += tl.load(positions + place, mask=valid[:, None] & inside, other=float("nan")).to(tl.float32)
    place = (clip * rows + row)[:, None] * width + column[None, :]
    tl.store(tokens + place, value.to(tokens.dtype.element_ty), mask=(row < rows)[:, None] & inside)


@torch.library.custom_op("trocar::decoder_tokens", mutates_args=())
def _decoder_tokens(
    projected: torch.Tensor,
    mask_token: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor,
    masked: torch.Tensor,
) -> torch.Tensor:
    clips, num_visible, width = projected.shape
    num_masked = masked.shape[1]
    tokens = projected.new_empty(clips, num_visible + num_masked, width)
    columns = min(COLUMNS, power_of_two(width))
    launch(
        _decoder_tokens_kernel,
        (clips, ceil_div(num_visible + num_masked, ROWS), ceil_div(width, columns)),
        *(projected, mask_token, positions, visible.contiguous(), masked.contiguous(), tokens),
        *(num_visible, num_masked, len(positions), width),
        ROWS=ROWS,
        COLUMNS=columns,
    )
    return tokens


@_decoder_tokens.register_fake
def _(projected, mask_token, positions, visible, masked):
    return projected.new_empty(projected.shape[0], projected.shape[1] + masked.shape[1], projected.shape[2])


@torch.library.custom_op("trocar::mask_token_gradient", mutates_args=())
def _mask_token_gradient(gradient: torch.Tensor, num_visible: int) -> torch.Tensor:
    """gradient: (B, R, D). Returns the sum over the masked rows, (D,) float32."""
    return sum_rows(gradient[:, num_visible:])


@_mask_token_gradient.register_fake
def _(gradient, num_visible):
    return gradient.new_empty(gradient.shape[2], dtype=torch.float32)


def _setup_context(ctx, inputs, output) -> None:
    projected, mask_token, positions, visible, masked = inputs
    ctx.save_for_backward(visible, masked)
    ctx.num_visible, ctx.num_tokens = projected.shape[1], len(positions)
    ctx.mask_token_dtype, ctx.positions_dtype = mask_token.dtype, positions.dtype


def _backward(ctx, gradient: torch.Tensor):
    visible, masked = ctx.saved_tensors
    gradient = gradient.contiguous()
    mask_token_gradient = positions_gradient = None
    if ctx.needs_input_grad[1]:
        mask_token_gradient = directly(_mask_token_gradient, gradient, ctx.num_visible).to(ctx.mask_token_dtype)
    if ctx.needs_input_grad[2]:
        indices = torch.cat([visible.long(), masked.long()], dim=1).flatten()
        totals = sum_rows_by_index(gradient.flatten(0, 1), indices, ctx.num_tokens)
        positions_gradient = totals.to(ctx.positions_dtype)
    return gradient[:, : ctx.num_visible], mask_token_gradient, positions_gradient, None, None


_differentiable_decoder_tokens = differentiable(_decoder_tokens, _backward, _setup_context)


@by_layout
def _check(
    projected: torch.Tensor,
    mask_token: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor,
    masked: torch.Tensor,
) -> None:
    """Raises as `decoder_tokens` does for what does not depend on values."""
    require("projected", projected, dtypes=FLOAT_DTYPES, shape=(None, None, None), like=projected)
    clips, num_visible, width = projected.shape
    require("mask_token", mask_token, dtypes=FLOAT_DTYPES, shape=(width,), like=projected)
    require("positions", positions, dtypes=FLOAT_DTYPES, shape=(None, width), like=projected)
    for name, indices, count in (("visible", visible, num_visible), ("masked", masked, None)):
        require(name, indices, dtypes=INDEX_DTYPES, shape=(clips, count), like=projected, contiguous=False)


def decoder_tokens(
    projected: torch.Tensor,
    mask_token: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor,
    masked: torch.Tensor,
) -> torch.Tensor:
    """Builds the decoder's input.

    projected: (B, N_visible, D). mask_token: (D,). positions: (N, D). visible: (B, N_visible), masked: (B, N_masked), int32 or
    int64. Returns (B, N_visible + N_masked, D) in the dtype of `projected`. Gradients reach projected, mask_token and positions.
    Raises ValueError on arguments of another dtype, shape, device or layout and, on the CPU, on indices out of range (NaN on a
    device).
    """
    _check(projected, mask_token, positions, visible, masked)
    require_range("visible", visible, len(positions))
    require_range("masked", masked, len(positions))
    if not takes_triton(projected, mask_token, positions):
        return decoder_tokens_reference(projected, mask_token, positions, visible.long(), masked.long())
    return _differentiable_decoder_tokens(projected, mask_token, positions, visible, masked)
