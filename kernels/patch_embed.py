"""Patch embedding of the visible patches alone, straight from uint8 frames.

    tokens[b, n] = W . ((x[b, patch visible[b, n]] / 255 - mean) / std) + bias + positions[visible[b, n]]

Every public video trainer embeds all patches and drops 90 % of them afterwards; here the gather comes first. The kernel multiplies
centred pixels x - 128, exact in bfloat16 and float16, with weights that have the normalisation folded in:

    W'[k] = round(W[k] / std),  shift = mean - 128 / 255,  bias' = bias - sum_k W'[k] shift
    tokens = (sum_k W'[k] (x[k] - 128)) / 255 + bias' + positions

W' is rounded once, from the float32 masters. bias' is built from the rounded W' and stays float32: from unrounded weights, or
stored in bfloat16, it would double the error. 1/255 stays outside: it would push 14 % of float16 weights into subnormals.
Uncentred pixels would be as exact, but their sums twice as large and then cancelled by the bias: float32 loses a bit that way.
Backward, with S = sum_rows g (x - 128) and db = sum_rows g of the same upstream gradient g: dW = (S / 255 - shift db) / std.

Shapes: B clips, T frames, H W pixels, C = 3 channels; a patch is t x p x p pixels; grid T' = T/t, H' = H/p, W' = W/p;
N = T' H' W' tokens in that order, D width, K = t p p 3 values a patch in the order (t, p, p, 3), M = B N_visible rows.

Over 300 lines: an operator is one file, with its reference, kernels, gradient and checks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .launch import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    TRITON_DTYPES,
    by_layout,
    ceil_div,
    compute_dtype,
    differentiable,
    directly,
    jit,
    launch,
    power_of_two,
    require,
    require_frames,
    require_range,
    takes_triton,
    tl,
)
from .row_sums import sum_rows, sum_rows_by_index

# Tiles (rows, width, values), warps and stages, by whether the operands are float32 (IEEE dots: no matrix units) or half.
HALF_TILE = dict(ROWS=128, WIDTH=128, VALUES=64, num_warps=8, num_stages=3)
FLOAT_TILE = dict(ROWS=32, WIDTH=64, VALUES=32, num_warps=4, num_stages=2)
GRADIENT_PROGRAMS = 264  # two for each multiprocessor of an H100; a constant, so that sums do not depend on the card


def gather_patches(frames: torch.Tensor, indices: torch.Tensor, tubelet: int, patch: int) -> torch.Tensor:
    """The patches at `indices`, still uint8.

    frames: (B, T, H, W, C). indices: (B, N_chosen) int64 in 0 .. N - 1. Returns (B, N_chosen, t, p, p, C).
    Raises ValueError where the frames are not divisible into patches.
    """
    batch, num_frames, height, width, _ = frames.shape
    if num_frames % tubelet or height % patch or width % patch:
        raise ValueError(
            f"frames of {num_frames} x {height} x {width} are not divisible into patches of {tubelet} x {patch} x {patch}"
        )
    rows, columns = height // patch, width // patch
    cells = (
        frames.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).unflatten(1, (num_frames // tubelet, tubelet))
    )
    clip = torch.arange(batch, device=frames.device)[:, None]
    step, cell = indices // (rows * columns), indices % (rows * columns)
    return cells[clip, step, :, cell // columns, :, cell % columns]


def patch_embed_reference(
    frames: torch.Tensor,
    visible: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """PyTorch version of `patch_embed`."""
    tubelet, patch = weight.shape[2], weight.shape[3]
    pixels = gather_patches(frames, visible, tubelet, patch).to(weight.dtype) / 255
    normalized = (pixels - weight.new_tensor(mean)) / weight.new_tensor(std)
    kernel = weight.permute(0, 2, 3, 4, 1).flatten(1)
    return F.linear(normalized.flatten(2), kernel, bias) + positions.to(weight.dtype)[visible % len(positions)]


@jit
def by_channel(channel, value0, value1, value2):
    return tl.where(channel == 0, value0, tl.where(channel == 1, value1, value2))


@jit
def patch_starts(
    row, token, per_clip, clip_stride, frame_stride, line_stride, cells, columns, T: tl.constexpr, P: tl.constexpr
):
    """Offset of the first pixel of each patch: 64-bit, since a batch of clips passes 2**31 bytes."""
    step, cell = token // cells, token % cells
    start = (row // per_clip).to(tl.int64) * clip_stride + step.to(tl.int64) * T * frame_stride
    return start + (cell // columns).to(tl.int64) * P * line_stride + (cell % columns).to(tl.int64) * (P * 3)


@jit
def value_offsets(value, frame_stride, line_stride, P: tl.constexpr):
    """Offset of each value of a patch from its first pixel; written so that a patch line shows as contiguous bytes."""
    line = value // (P * 3)
    return (line // P) * frame_stride + (line % P) * line_stride + value % (P * 3)


@jit
def load_centred(frames, place, inside, dtype: tl.constexpr):
    """Pixels - 128, zero where there is none. Flipping the top bit of a byte subtracts 128 from it, read as signed."""
    return (tl.load(frames + place, mask=inside, other=128) ^ 128).to(tl.int8, bitcast=True).to(dtype)


@jit
def add_scaled_product(total, left, right):
    """total + left . right / 255 for float32; for half operands without the factor, which `scaled_total` brings at the end.

    IEEE products round after every addition: a block's sum of its own keeps a thousand roundings from following one another. Matrix
    units add a block at a time, and best where the total already is.
    """
    if left.dtype == tl.float32:
        total += tl.dot(left, right, input_precision="ieee") * (1 / 255)
    else:
        total = tl.dot(left, right, total)
    return total


@jit
def scaled_total(total, dtype: tl.constexpr):
    if dtype != tl.float32:
        total *= 1 / 255
    return total


@jit
def _fold_kernel(
    weight, bias, folded, shifted, shift0, shift1, shift2, std0, std1, std2, K: tl.constexpr, BLOCK: tl.constexpr
):
    output = tl.program_id(0)
    value = tl.arange(0, BLOCK)
    channel = value % 3
    inside = value < K
    master = tl.load(weight + output * K + channel * (K // 3) + value // 3, mask=inside, other=0.0).to(tl.float32)
    rounded = tl.div_rn(master, by_channel(channel, std0, std1, std2)).to(folded.dtype.element_ty)
    tl.store(folded + output * K + value, rounded, mask=inside)
    correction = tl.sum(rounded.to(tl.float32) * by_channel(channel, shift0, shift1, shift2), axis=0)
    tl.store(shifted + output, tl.load(bias + output).to(tl.float32) - correction)


@jit
def _embed_kernel(
    frames,
    visible,
    folded,
    shifted,
    positions,
    tokens,
    num_rows,
    per_clip,
    num_tokens,
    num_positions,
    width,
    clip_stride,
    frame_stride,
    line_stride,
    cells,
    columns,
    T: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
):
    K: tl.constexpr = T * P * P * 3
    blocks = tl.cdiv(width, WIDTH)  # neighbours share their rows, so that pixels come from the cache
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(0) % blocks * WIDTH + tl.arange(0, WIDTH)
    token = tl.load(visible + row, mask=row < num_rows, other=-1)
    valid = (token >= 0) & (token < num_tokens)
    start = patch_starts(row, token, per_clip, clip_stride, frame_stride, line_stride, cells, columns, T, P)
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for first in range(0, K, VALUES):
        value = first + tl.arange(0, VALUES)
        place = start[:, None] + value_offsets(value, frame_stride, line_stride, P)[None, :]
        pixels = load_centred(frames, place, valid[:, None] & (value < K)[None, :], folded.dtype.element_ty)
        inside = (value < K)[:, None] & (output < width)[None, :]
        weights = tl.load(folded + output[None, :] * K + value[:, None], mask=inside, other=0.0)
        total = add_scaled_product(total, pixels, weights)
    total = (
        scaled_total(total, folded.dtype.element_ty)
        + tl.load(shifted + output, mask=output < width, other=0.0)[None, :]
    )
    inside = valid[:, None] & (output < width)[None, :]
    place = (token % num_positions).to(tl.int64)[:, None] * width + output[None, :]
    total += tl.load(positions + place, mask=inside, other=0.0).to(tl.float32)
    total = tl.where(valid[:, None], total, float("nan"))
    place = row.to(tl.int64)[:, None] * width + output[None, :]
    inside = (row < num_rows)[:, None] & (output < width)[None, :]
    tl.store(tokens + place, total.to(tokens.dtype.element_ty), mask=inside)


@jit
def _weight_gradient_kernel(
    gradient,
    frames,
    visible,
    partial,
    num_rows,
    rows_per_split,
    per_clip,
    num_tokens,
    width,
    clip_stride,
    frame_stride,
    line_stride,
    cells,
    columns,
    T: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
):
    K: tl.constexpr = T * P * P * 3
    value = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    output = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    split = tl.program_id(2)
    offset = value_offsets(value, frame_stride, line_stride, P)
    total = tl.zeros((WIDTH, VALUES), dtype=tl.float32)
    begin = split * rows_per_split
    for first in range(begin, tl.minimum(begin + rows_per_split, num_rows), ROWS):
        row = first + tl.arange(0, ROWS)
        token = tl.load(visible + row, mask=row < num_rows, other=-1)
        valid = (token >= 0) & (token < num_tokens)
        start = patch_starts(row, token, per_clip, clip_stride, frame_stride, line_stride, cells, columns, T, P)
        inside = valid[:, None] & (value < K)[None, :]
        pixels = load_centred(frames, start[:, None] + offset[None, :], inside, gradient.dtype.element_ty)
        inside = (row < num_rows)[:, None] & (output < width)[None, :]
        place = row.to(tl.int64)[:, None] * width + output[None, :]
        upstream = tl.load(gradient + place, mask=inside, other=0.0)
        total = add_scaled_product(total, tl.trans(upstream), pixels)
    total = scaled_total(total, gradient.dtype.element_ty)
    place = (split * width + output).to(tl.int64)[:, None] * K + value[None, :]
    tl.store(partial + place, total, mask=(output < width)[:, None] & (value < K)[None, :])


@jit
def _finish_gradient_kernel(
    partial,
    bias_gradient,
    weight_gradient,
    splits,
    width,
    shift0,
    shift1,
    shift2,
    std0,
    std1,
    std2,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    output = tl.program_id(0)
    value = tl.arange(0, BLOCK)
    channel = value % 3
    inside = value < K
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(partial + (split * width + output).to(tl.int64) * K + value, mask=inside, other=0.0)
    shift, std = by_channel(channel, shift0, shift1, shift2), by_channel(channel, std0, std1, std2)
    result = tl.div_rn(total - shift * tl.load(bias_gradient + output), std)
    place = output * K + channel * (K // 3) + value // 3
    tl.store(weight_gradient + place, result.to(weight_gradient.dtype.element_ty), mask=inside)


def _shifts(mean: Sequence[float]) -> list[float]:
    return [value - 128 / 255 for value in mean]


def _tile(dtype: torch.dtype) -> dict[str, int]:
    return FLOAT_TILE if dtype == torch.float32 else HALF_TILE


def _geometry(frames: torch.Tensor, patch: int) -> tuple[int, ...]:
    """Strides of clip, frame and line in bytes; cells of a time step; columns of cells."""
    _, _, height, width, _ = frames.shape
    columns = width // patch
    return *frames.stride()[:3], height // patch * columns, columns


def _num_tokens(frames: torch.Tensor, tubelet: int, patch: int) -> int:
    _, num_frames, height, width, _ = frames.shape
    return (num_frames // tubelet) * (height // patch) * (width // patch)


@torch.library.custom_op("trocar::patch_embed", mutates_args=())
def _patch_embed(
    frames: torch.Tensor,
    visible: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> torch.Tensor:
    width, _, tubelet, patch, _ = weight.shape
    values = weight[0].numel()
    num_rows = visible.numel()
    folded = weight.new_empty(width, values, dtype=dtype)
    shifted = weight.new_empty(width, dtype=torch.float32)
    launch(
        _fold_kernel,
        (width,),
        *(weight, bias, folded, shifted, *_shifts(mean), *std),
        K=values,
        BLOCK=power_of_two(values),
    )
    tokens = weight.new_empty(*visible.shape, width, dtype=dtype)
    num_tokens = _num_tokens(frames, tubelet, patch)
    tile = _tile(dtype)
    launch(
        _embed_kernel,
        (ceil_div(num_rows, tile["ROWS"]) * ceil_div(width, tile["WIDTH"]),),
        *(frames, visible.contiguous(), folded, shifted, positions, tokens),
        *(num_rows, visible.shape[1], num_tokens, len(positions), width, *_geometry(frames, patch)),
        T=tubelet,
        P=patch,
        **tile,
    )
    return tokens


@_patch_embed.register_fake
def _(frames, visible, weight, bias, positions, mean, std, dtype):
    return weight.new_empty(*visible.shape, weight.shape[0], dtype=dtype)


@torch.library.custom_op("trocar::patch_embed_backward", mutates_args=())
def _patch_embed_backward(
    gradient: torch.Tensor,
    frames: torch.Tensor,
    visible: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of weight, in its dtype, and bias, float32."""
    width, _, tubelet, patch, _ = weight.shape
    values = weight[0].numel()
    num_rows = visible.numel()
    tile = _tile(gradient.dtype)
    value_blocks, width_blocks = ceil_div(values, tile["VALUES"]), ceil_div(width, tile["WIDTH"])
    splits = max(1, min(GRADIENT_PROGRAMS // (value_blocks * width_blocks), ceil_div(num_rows, 2 * tile["ROWS"])))
    rows_per_split = ceil_div(ceil_div(num_rows, splits), tile["ROWS"]) * tile["ROWS"]
    splits = ceil_div(num_rows, rows_per_split)
    partial = weight.new_empty(splits, width, values, dtype=torch.float32)
    launch(
        _weight_gradient_kernel,
        (value_blocks, width_blocks, splits),
        *(gradient, frames, visible.contiguous(), partial),
        *(num_rows, rows_per_split, visible.shape[1], num_tokens, width, *_geometry(frames, patch)),
        T=tubelet,
        P=patch,
        **tile,
    )
    bias_gradient = sum_rows(gradient)
    weight_gradient = torch.empty_like(weight)
    launch(
        _finish_gradient_kernel,
        (width,),
        *(partial, bias_gradient, weight_gradient, splits, width, *_shifts(mean), *std),
        K=values,
        BLOCK=power_of_two(values),
    )
    return weight_gradient, bias_gradient


@_patch_embed_backward.register_fake
def _(gradient, frames, visible, weight, num_tokens, mean, std):
    return torch.empty_like(weight), weight.new_empty(weight.shape[0], dtype=torch.float32)


def _setup_context(ctx, inputs, output) -> None:
    frames, visible, weight, bias, positions, mean, std, _ = inputs
    ctx.save_for_backward(frames, visible, weight)
    ctx.mean, ctx.std, ctx.bias_dtype = mean, std, bias.dtype
    ctx.num_tokens = _num_tokens(frames, weight.shape[2], weight.shape[3])
    ctx.num_positions, ctx.positions_dtype = len(positions), positions.dtype


def _backward(ctx, gradient: torch.Tensor):
    frames, visible, weight = ctx.saved_tensors
    gradient = gradient.contiguous()
    weight_gradient = bias_gradient = position_gradient = None
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        weight_gradient, bias_gradient = directly(
            _patch_embed_backward, gradient, frames, visible, weight, ctx.num_tokens, ctx.mean, ctx.std
        )
        bias_gradient = bias_gradient.to(ctx.bias_dtype)
    if ctx.needs_input_grad[4]:
        totals = sum_rows_by_index(gradient.flatten(0, 1), visible.flatten() % ctx.num_positions, ctx.num_positions)
        position_gradient = totals.to(ctx.positions_dtype)
    return None, None, weight_gradient, bias_gradient, position_gradient, None, None, None


_differentiable_patch_embed = differentiable(_patch_embed, _backward, _setup_context)


@by_layout
def _check(
    frames: torch.Tensor,
    visible: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> int:
    """Raises as `patch_embed` does for what does not depend on values. Returns the tokens of a clip."""
    require("weight", weight, dtypes=FLOAT_DTYPES, shape=(None, 3, None, None, None), like=weight)
    width, _, tubelet, patch, patch_width = weight.shape
    if patch != patch_width:
        raise ValueError(f"weight must have square patches, got {patch} x {patch_width}")
    steps, rows, columns = require_frames(frames, tubelet, patch)
    num_tokens = steps * rows * columns
    require("visible", visible, dtypes=INDEX_DTYPES, shape=(len(frames), None), like=frames, contiguous=False)
    require("weight", weight, dtypes=FLOAT_DTYPES, shape=tuple(weight.shape), like=frames)
    require("bias", bias, dtypes=FLOAT_DTYPES, shape=(width,), like=frames)
    require("positions", positions, dtypes=FLOAT_DTYPES, shape=(None, width), like=frames)
    if num_tokens % len(positions):
        raise ValueError(f"positions must be one a token, or divide the {num_tokens} tokens, got {len(positions)}")
    for name, constants in (("mean", mean), ("std", std)):
        if len(constants) != 3:
            raise ValueError(f"{name} must have 3 values, one a channel, got {len(constants)}")
    return num_tokens


def patch_embed(
    frames: torch.Tensor,
    visible: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Embeds the visible patches.

    frames: (B, T, H, W, 3) uint8; clips, frames and lines may be strided, as in a crop. visible: (B, N_visible) int32 or int64 in
    0 .. N - 1. weight: (D, 3, t, p, p), Conv3d's layout. bias: (D,). positions: (N, D), or (N / C, D) for C clips laid one after
    another in time, (1, C T, H, W, 3): token n has the position n % (N / C), so that the clips of a batch may give any number of
    tokens each. mean, std: per channel, in units of
    pixels / 255. dtype: bfloat16, float16 or float32 of the kernel's operands and result; by default autocast's, else the weight's
    (CPU tensors compute in the weight's own).
    Returns (B, N_visible, D). Gradients reach weight, bias and positions. Raises ValueError on arguments of another dtype, shape,
    device or layout, on frames that are not divisible into patches and, on the CPU, on indices out of range (NaN on a device).
    """
    num_tokens = _check(frames, visible, weight, bias, positions, tuple(mean), tuple(std))
    require_range("visible", visible, num_tokens)
    if not takes_triton(weight, bias, positions):
        return patch_embed_reference(frames, visible.long(), weight, bias, positions, mean, std)
    dtype = compute_dtype(weight, dtype)
    if dtype not in TRITON_DTYPES:
        raise ValueError(f"dtype must be bfloat16, float16 or float32, got {dtype}")
    return _differentiable_patch_embed(frames, visible, weight, bias, positions, list(mean), list(std), dtype)
