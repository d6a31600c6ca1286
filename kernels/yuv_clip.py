"""Decoded YUV 4:2:0 pictures to a clip: conversion to RGB, crop, antialiased resize, rotation and flip in one pass.

Only the crop is read, and no RGB picture of full size is ever stored. A sample's luma y and chroma u, v, the latter interpolated
from the two nearest chroma samples along each axis (weights 3/4 and 1/4: chroma is sited in the middle of its four pixels, as
FFmpeg has it), become, with shares r and b of red and blue in luma and g = 1 - r - b (ITU-R BT.601, 709, 2020),

    R = Y + 2 (1 - r) V,   B = Y + 2 (1 - b) U,   G = Y - (2 r (1 - r) V + 2 b (1 - b) U) / g,   each cut to 0 .. 255
    Y = 255 (y - 16) / 219,  U = 255 (u - 128) / 224 in limited range,   Y = y,  U = u - 128 in full range,   V as U

and pixel i of R along an axis of n pixels of the crop, s = n / R of them for a new one, the weighted mean

    sum_j w_j p[min(max(j, 0), n - 1)] / sum_j w_j,   w_j = max(0, 1 - |j + 1/2 - (i + 1/2) s| / max(s, 1))

which is the CPU loader's "exact" resize: it rounds three times on the way, this once. A program makes a tile of the result. It goes
down the rows of the crop that the tile needs, filters each along the columns and adds it to every row of the tile.

Shapes: T pictures of H x W pixels, chroma (H + 1) // 2 x (W + 1) // 2, R x R pixels of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .launch import by_layout, ceil_div, directly, jit, launch, power_of_two, require, takes_triton, tl
from .yuv_geometry import (
    LUMA_SHARES,
    TILE_COLUMNS,
    TILE_ROWS,
    Window,
    column_taps,
    conversion,
    placement,
    row_taps,
    scales,
    stored_box,
)


def yuv_clip_values(
    luma: torch.Tensor,
    blue: torch.Tensor,
    red: torch.Tensor,
    box: Window,
    resolution: int,
    matrix: str,
    full_range: bool,
    rotation: int,
    flip: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(T, R, R, 3) as `yuv_clip`, in `dtype` and not rounded."""
    stored = stored_box(box, rotation, *luma.shape[1:])
    numbers = conversion(matrix, full_range, 8 * luma.element_size())
    upright = stored_values(luma, blue, red, stored, resolution, numbers, dtype).rot90(rotation // 90, (1, 2))
    return upright.flip(2) if flip else upright


def stored_values(
    luma: torch.Tensor,
    blue: torch.Tensor,
    red: torch.Tensor,
    box: Window,
    resolution: int,
    numbers: Sequence[float],
    dtype: torch.dtype,
) -> torch.Tensor:
    """(T, R, R, 3) of a box of the stored pictures, neither turned nor mirrored nor rounded. numbers: of `conversion`."""
    left, top, width, height = box
    factor, offset, red_v, green_u, green_v, blue_u, zero = numbers
    rows, columns = (torch.arange(first, first + count) for first, count in ((top, height), (left, width)))
    sampled = luma[:, top : top + height, left : left + width].to(dtype) * factor + offset
    shifted = [_interpolated(_interpolated(plane.to(dtype), rows, 1), columns, 2) - zero for plane in (blue, red)]
    channels = [
        sampled + red_v * shifted[1],
        sampled + green_u * shifted[0] + green_v * shifted[1],
        sampled + blue_u * shifted[0],
    ]
    pictures = torch.stack(channels, dim=1).clamp(0, 255)
    across, down = (_filter(count, resolution, dtype).to(luma.device) for count in (width, height))
    return (down @ pictures @ across.mT).permute(0, 2, 3, 1)


def yuv_clip_reference(*arguments) -> torch.Tensor:
    """PyTorch version of `yuv_clip`, of the same arguments in the same order; in float32."""
    return yuv_clip_values(*arguments, dtype=torch.float32).round().to(torch.uint8)


def _interpolated(plane: torch.Tensor, places: torch.Tensor, axis: int) -> torch.Tensor:
    """Chroma at some rows or columns of luma."""
    near = places // 2
    far = (near + 2 * (places % 2) - 1).clamp(0, plane.shape[axis] - 1)
    near, far = (index.to(plane.device) for index in (near, far))
    return 0.75 * plane.index_select(axis, near) + 0.25 * plane.index_select(axis, far)


def _filter(count: int, resolution: int, dtype: torch.dtype) -> torch.Tensor:
    """(R, n): the weights of n pixels in each new one; those beyond an edge are the edge's."""
    scale = count / resolution
    support = max(scale, 1.0)
    beyond = math.ceil(support)
    places = torch.arange(-beyond, count + beyond)
    centres = (torch.arange(resolution, dtype=torch.float64) + 0.5) * scale
    weights = (1 - (places + 0.5 - centres[:, None]).abs() / support).clamp(min=0)
    weights /= weights.sum(1, keepdim=True)
    return (
        torch.zeros(resolution, count, dtype=torch.float64).index_add_(1, places.clamp(0, count - 1), weights).to(dtype)
    )


@jit
def _chroma(plane, near_row, far_row, near, far):
    """Of one row of pixels, from the two rows of chroma and the two samples of each that are nearest."""
    upper = 0.75 * tl.load(plane + near_row + near).to(tl.float32) + 0.25 * tl.load(plane + near_row + far).to(
        tl.float32
    )
    lower = 0.75 * tl.load(plane + far_row + near).to(tl.float32) + 0.25 * tl.load(plane + far_row + far).to(tl.float32)
    return 0.75 * upper + 0.25 * lower


@jit
def _bytes(total, weight):
    return (tl.minimum(tl.maximum(tl.div_rn(total, weight), 0.0), 255.0) + 0.5).to(tl.int32).to(tl.uint8)


@jit
def yuv_tile(
    clip, first_row_written, first_column_written, luma, blue, red, luma_row_stride, chroma_row_stride,
    chroma_column_stride, chroma_height, chroma_width, left, top, width, height, resolution, row_taps, row_scale,
    column_scale, row_support, column_support, row_slope, column_slope, first_place, row_step, column_step, factor,
    offset, red_v, green_u, green_v, blue_u, zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """A tile of one picture of a clip. luma, blue, red, clip: that picture."""
    row = first_row_written + tl.arange(0, ROWS)
    column = first_column_written + tl.arange(0, COLUMNS)
    row_centre = (row.to(tl.float32) + 0.5) * row_scale
    column_centre = (column.to(tl.float32) + 0.5) * column_scale
    first_centre = (first_row_written.to(tl.float32) + 0.5) * row_scale
    first_row = tl.floor(first_centre - row_support).to(tl.int32)
    first_column = tl.floor(column_centre - column_support).to(tl.int32)
    reds = tl.zeros((ROWS, COLUMNS), tl.float32)
    greens = tl.zeros((ROWS, COLUMNS), tl.float32)
    blues = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    place = first_column[:, None] + tl.arange(0, TAPS)[None, :]
    along = tl.maximum(1.0 - tl.abs(place.to(tl.float32) + 0.5 - column_centre[:, None]) * column_slope, 0.0)
    x = left + tl.minimum(tl.maximum(place, 0), width - 1)
    near = x // 2 * chroma_column_stride
    far = tl.minimum(tl.maximum(x // 2 + 2 * (x % 2) - 1, 0), chroma_width - 1) * chroma_column_stride
    for row_tap in range(row_taps):
        source = first_row + row_tap
        down = tl.maximum(1.0 - tl.abs(source.to(tl.float32) + 0.5 - row_centre) * row_slope, 0.0)
        y = top + tl.minimum(tl.maximum(source, 0), height - 1)
        near_row = (y // 2).to(tl.int64) * chroma_row_stride
        far_row = (
            tl.minimum(tl.maximum(y // 2 + 2 * (y % 2) - 1, 0), chroma_height - 1).to(tl.int64) * chroma_row_stride
        )
        line = luma + y.to(tl.int64) * luma_row_stride
        light = tl.load(line + x).to(tl.float32) * factor + offset
        u = _chroma(blue, near_row, far_row, near, far) - zero
        v = _chroma(red, near_row, far_row, near, far) - zero
        line_red = tl.sum(along * tl.minimum(tl.maximum(light + red_v * v, 0.0), 255.0), axis=1)
        line_green = tl.sum(along * tl.minimum(tl.maximum(light + green_u * u + green_v * v, 0.0), 255.0), axis=1)
        line_blue = tl.sum(along * tl.minimum(tl.maximum(light + blue_u * u, 0.0), 255.0), axis=1)
        reds += down[:, None] * tl.expand_dims(line_red, 0)
        greens += down[:, None] * tl.expand_dims(line_green, 0)
        blues += down[:, None] * tl.expand_dims(line_blue, 0)
        total += down
    weights = total[:, None] * tl.expand_dims(tl.sum(along, axis=1), 0)
    inside = (row < resolution)[:, None] & (column < resolution)[None, :]
    written = (first_place + row[:, None] * row_step + column[None, :] * column_step) * 3
    tl.store(clip + written, _bytes(reds, weights), mask=inside)
    tl.store(clip + written + 1, _bytes(greens, weights), mask=inside)
    tl.store(clip + written + 2, _bytes(blues, weights), mask=inside)


@jit
def _yuv_clip_kernel(
    luma, blue, red, clip, luma_picture_stride, luma_row_stride, chroma_picture_stride, chroma_row_stride,
    chroma_column_stride, chroma_height, chroma_width, left, top, width, height, resolution, row_tiles, column_tiles,
    row_taps, row_scale, column_scale, row_support, column_support, row_slope, column_slope, first_place, row_step,
    column_step, factor, offset, red_v, green_u, green_v, blue_u, zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS:
    tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    picture = (number // (row_tiles * column_tiles)).to(tl.int64)
    yuv_tile(
        clip + picture * resolution * resolution * 3, number // column_tiles % row_tiles * ROWS, number % column_tiles *
        COLUMNS, luma + picture * luma_picture_stride, blue + picture * chroma_picture_stride, red + picture *
        chroma_picture_stride, luma_row_stride, chroma_row_stride, chroma_column_stride, chroma_height, chroma_width,
        left, top, width, height, resolution, row_taps, row_scale, column_scale, row_support, column_support, row_slope,
        column_slope, first_place, row_step, column_step, factor, offset, red_v, green_u, green_v, blue_u, zero, ROWS,
        COLUMNS, TAPS,
    )  # fmt: skip


@torch.library.custom_op("trocar::yuv_clip", mutates_args=())
def _yuv_clip(
    luma: torch.Tensor,
    blue: torch.Tensor,
    red: torch.Tensor,
    box: Sequence[int],
    resolution: int,
    matrix: str,
    full_range: bool,
    rotation: int,
    flip: bool,
) -> torch.Tensor:
    pictures, height, width = luma.shape
    left, top, across, down = stored_box((box[0], box[1], box[2], box[3]), rotation, height, width)
    clip = luma.new_empty((pictures, resolution, resolution, 3), dtype=torch.uint8)
    rows, columns = (min(most, power_of_two(resolution, 1)) for most in (TILE_ROWS, TILE_COLUMNS))
    row_tiles, column_tiles = ceil_div(resolution, rows), ceil_div(resolution, columns)
    filters = scales(across, down, resolution)
    first, row_step, column_step = placement(resolution, rotation, flip)
    launch(
        _yuv_clip_kernel,
        (pictures * row_tiles * column_tiles,),
        *(luma, blue, red, clip, *luma.stride()[:2], *blue.stride(), *blue.shape[1:]),
        *(left, top, across, down, resolution, row_tiles, column_tiles),
        row_taps(rows, filters),
        *filters,
        *(first, row_step, column_step, *conversion(matrix, full_range, 8 * luma.element_size())),
        ROWS=rows,
        COLUMNS=columns,
        TAPS=column_taps(filters),
        num_warps=4,
    )
    return clip


@_yuv_clip.register_fake
def _(luma, blue, red, box, resolution, matrix, full_range, rotation, flip):
    return luma.new_empty((luma.shape[0], resolution, resolution, 3), dtype=torch.uint8)


@by_layout
def _check_planes(luma: torch.Tensor, blue: torch.Tensor, red: torch.Tensor) -> None:
    """Raises as `yuv_clip` does for the planes."""
    require("luma", luma, dtypes=(torch.uint8, torch.uint16), shape=(None, None, None), like=luma, contiguous=False)
    pictures, height, width = luma.shape
    shape = (pictures, (height + 1) // 2, (width + 1) // 2)
    for name, plane in (("blue", blue), ("red", red)):
        require(name, plane, dtypes=(luma.dtype,), shape=shape, like=luma, contiguous=False)
    if luma.stride(2) != 1 or blue.stride() != red.stride():
        raise ValueError(
            "rows of luma must be dense and blue and red laid out alike, got strides "
            f"{luma.stride()}, {blue.stride()} and {red.stride()}"
        )


def yuv_clip(
    luma: torch.Tensor,
    blue: torch.Tensor,
    red: torch.Tensor,
    box: Window,
    resolution: int,
    *,
    matrix: str = "bt601",
    full_range: bool = False,
    rotation: int = 0,
    flip: bool = False,
) -> torch.Tensor:
    """(T, R, R, 3) uint8 RGB of T decoded pictures.

    luma: (T, H, W); blue, red: (T, (H + 1) // 2, (W + 1) // 2), Cb and Cr; uint8, or uint16 with ten bits above six zeros (P010).
    Rows of luma are dense, all else lies any stride apart, the same for blue and red: planes of their own, or views
    `chroma[..., 0]` and `chroma[..., 1]` of NV12's interleaved one. box: left, top, width and height of the crop in pixels of the
    picture that `rotation` (0, 90, 180 or 270 degrees counter-clockwise) sets upright. flip: mirrored left to right after
    that. matrix: one of LUMA_SHARES. Raises ValueError on other tensors, a box that reaches out of the picture, or other settings.
    """
    _check_planes(luma, blue, red)
    _, height, width = luma.shape
    if matrix not in LUMA_SHARES or rotation not in (0, 90, 180, 270) or resolution < 1:
        raise ValueError(
            f"matrix must be one of {', '.join(LUMA_SHARES)}, rotation 0, 90, 180 or 270 and resolution at least 1, "
            f"got {matrix!r}, {rotation} and {resolution}"
        )
    left, top, across, down = box
    upright = (height, width) if rotation in (0, 180) else (width, height)
    if left < 0 or top < 0 or across < 1 or down < 1 or left + across > upright[1] or top + down > upright[0]:
        raise ValueError(f"box {tuple(box)} does not lie within an upright picture of {upright[1]} x {upright[0]}")
    arguments = (luma, blue, red, box, resolution, matrix, full_range, rotation, flip)
    if not takes_triton(luma):
        return yuv_clip_reference(*arguments)
    return directly(_yuv_clip, luma, blue, red, list(box), *arguments[4:])
