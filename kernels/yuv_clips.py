"""Many clips at once from planes that decoding processes have left: `yuv_clip`, of a batch whose clips differ in crop and size.

A clip's place in a batch, made for T pictures of R x R RGB pixels, holds instead what its crop needs of each decoded picture: a
plane of luma, one of blue, one of red, 8 bits a sample, dense, one picture after another. So nothing is converted or resized on a
core, and for crops of small proxies fewer bytes are written there. One launch makes the whole batch.

Shapes: B clips, T pictures, R x R pixels; N of the clips lie as planes.
"""

from __future__ import annotations

import torch

from .launch import ceil_div, directly, jit, launch, power_of_two, require, takes_triton, tl
from .yuv_clip import stored_values, yuv_tile
from .yuv_geometry import CUT_FLOATS, CUT_INTEGERS, TILE_COLUMNS, TILE_ROWS, column_taps


def yuv_clips_reference(slots: torch.Tensor, cuts: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """PyTorch version of `yuv_clips`, of the same arguments."""
    return yuv_clips_values(slots, cuts, factors, torch.float32).round().to(torch.uint8)


def yuv_clips_values(
    slots: torch.Tensor, cuts: torch.Tensor, factors: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """As `yuv_clips`, in `dtype` and not rounded."""
    clips = slots.to(dtype)
    pictures, size = slots.shape[1:3]
    for row, numbers in zip(cuts.tolist(), factors.double().tolist(), strict=True):
        of = dict(zip(CUT_INTEGERS, row, strict=True))
        planes = slots[of["slot"]].flatten()[: pictures * of["picture_bytes"]].view(pictures, -1)
        luma = planes[:, : of["blue"]].unflatten(1, (-1, of["row_bytes"]))
        chroma = (of["chroma_height"], of["chroma_row_bytes"])
        blue, red = planes[:, of["blue"] : of["red"]].unflatten(1, chroma), planes[:, of["red"] :].unflatten(1, chroma)
        box = (of["left"], of["top"], of["width"], of["height"])
        stored = stored_values(luma, blue, red, box, size, numbers[6:], dtype)
        along, sideways = torch.arange(size)[:, None] * of["row_step"], torch.arange(size) * of["column_step"]
        places = (of["first_place"] + along + sideways).flatten().to(slots.device)
        clips[of["slot"]].view(pictures, size * size, 3)[:, places] = stored.reshape(pictures, size * size, 3)
    return clips


@jit
def _yuv_clips_kernel(
    slots, clips, cuts, factors, pictures, resolution, row_tiles, column_tiles,
    INTEGERS: tl.constexpr, FLOATS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    picture = number // (row_tiles * column_tiles)
    told = cuts + picture // pictures * INTEGERS
    by = factors + picture // pictures * FLOATS
    picture = (picture % pictures).to(tl.int64)
    slot = tl.load(told).to(tl.int64) * pictures * resolution * resolution * 3
    planes = slots + slot + picture * tl.load(told + 1)
    yuv_tile(
        clips + slot + picture * resolution * resolution * 3,
        number // column_tiles % row_tiles * ROWS, number % column_tiles * COLUMNS,
        planes, planes + tl.load(told + 2), planes + tl.load(told + 3),
        tl.load(told + 4), tl.load(told + 5), 1, tl.load(told + 6), tl.load(told + 7),
        tl.load(told + 8), tl.load(told + 9), tl.load(told + 10), tl.load(told + 11), resolution, tl.load(told + 12),
        tl.load(by), tl.load(by + 1), tl.load(by + 2), tl.load(by + 3), tl.load(by + 4), tl.load(by + 5),
        tl.load(told + 13), tl.load(told + 14), tl.load(told + 15),
        tl.load(by + 6), tl.load(by + 7), tl.load(by + 8), tl.load(by + 9), tl.load(by + 10), tl.load(by + 11),
        tl.load(by + 12),
        ROWS, COLUMNS, TAPS,
    )  # fmt: skip


@torch.library.custom_op("trocar::yuv_clips", mutates_args=())
def _yuv_clips(slots: torch.Tensor, cuts: torch.Tensor, factors: torch.Tensor, taps: int) -> torch.Tensor:
    pictures, resolution = slots.shape[1:3]
    clips = torch.empty_like(slots) if len(cuts) == len(slots) else slots.clone()
    rows, columns = (min(most, power_of_two(resolution, 1)) for most in (TILE_ROWS, TILE_COLUMNS))
    row_tiles, column_tiles = ceil_div(resolution, rows), ceil_div(resolution, columns)
    launch(
        _yuv_clips_kernel,
        (len(cuts) * pictures * row_tiles * column_tiles,),
        *(slots, clips, cuts, factors, pictures, resolution, row_tiles, column_tiles),
        INTEGERS=len(CUT_INTEGERS),
        FLOATS=CUT_FLOATS,
        ROWS=rows,
        COLUMNS=columns,
        TAPS=taps,
        num_warps=4,
    )
    return clips


@_yuv_clips.register_fake
def _(slots, cuts, factors, taps):
    return torch.empty_like(slots)


def yuv_clips(slots: torch.Tensor, cuts: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """(B, T, R, R, 3) uint8 RGB: clips made of planes, all others as they are.

    slots: (B, T, R, R, 3) uint8, the memory of clips. cuts: (N, 16) int32, factors: (N, 13) float32, both on the CPU: of
    `yuv_geometry.cut_numbers`, with the clip's row in `slots` in the first column, each row at most once. Raises ValueError on
    other tensors, or planes that reach out of a clip's memory.
    """
    require("slots", slots, dtypes=(torch.uint8,), shape=(None, None, None, None, 3), like=slots)
    if not len(cuts):
        return slots
    require("cuts", cuts, dtypes=(torch.int32,), shape=(None, len(CUT_INTEGERS)), like=cuts)
    require("factors", factors, dtypes=(torch.float32,), shape=(len(cuts), CUT_FLOATS), like=cuts)
    most, rows = cuts[:, 1].max().item(), cuts[:, 0]
    if most > slots[0, 0].numel() or rows.min() < 0 or rows.max() >= len(slots) or len(rows.unique()) < len(rows):
        raise ValueError(
            f"planes of {most} bytes a picture do not fit into {slots[0, 0].numel()}, or the rows {rows.tolist()} are not "
            f"different ones below {len(slots)}"
        )
    if not takes_triton(slots):
        return yuv_clips_reference(slots, cuts, factors)
    taps = column_taps(tuple(factors[:, :6].max(0).values.tolist()))
    if slots.is_cuda:  # pinned, so that the copy holds up nobody
        cuts, factors = (told.pin_memory().to(slots.device, non_blocking=True) for told in (cuts, factors))
    return directly(_yuv_clips, slots, cuts, factors, taps)
