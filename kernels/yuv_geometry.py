"""Where the numbers of `yuv_clip` come from: what turns samples into RGB, which pixels a crop has, where they go.

Without PyTorch, so that decoding processes, which do without, can make them.

Shapes: H x W pixels of the stored picture, R x R of the clip.
"""

from __future__ import annotations

import math

# Shares of red and blue in luma: ITU-R BT.601, BT.709, BT.2020; SMPTE 240M.
LUMA_SHARES = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240": (0.212, 0.087),
}
Window = tuple[int, int, int, int]


def conversion(matrix: str, full_range: bool, bits: int) -> list[float]:
    """What turns samples into 0 .. 255: luma's factor and offset, V in red, U and V in green, U in blue, and chroma's zero.

    bits: 8, or 16 for samples that stand in the upper ten of them; in full range, too, 256 of their steps are one of eight bits, as
    FFmpeg has it.
    """
    red, blue = LUMA_SHARES[matrix]
    green, step = 1 - red - blue, 2 ** (bits - 8)
    luma, chroma = (1 / step, 1 / step) if full_range else (255 / 219 / step, 255 / 224 / step)
    in_red, in_blue = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    offset = 0.0 if full_range else -16 * 255 / 219
    return [luma, offset, in_red, -in_blue * blue / green, -in_red * red / green, in_blue, 128.0 * step]


def stored_box(box: Window, rotation: int, height: int, width: int) -> Window:
    """left, top, width, height of an upright picture's box in the stored picture."""
    left, top, across, down = box
    if rotation == 90:
        return width - top - down, left, down, across
    if rotation == 180:
        return width - left - across, height - top - down, across, down
    if rotation == 270:
        return top, height - left - across, down, across
    return box


def placement(resolution: int, rotation: int, flip: bool) -> tuple[int, int, int]:
    """Where the first pixel of the stored picture's crop goes in the clip's picture, and how far on its next row and column are."""
    size, last = resolution, resolution - 1
    first, row_step, column_step = {
        0: (0, size, 1),
        90: (last * size, 1, -size),
        180: (last * size + last, -size, -1),
        270: (last, -1, size),
    }[rotation]
    if flip:
        along, sideways = divmod(first, size)
        first = along * size + last - sideways
        row_step, column_step = (step if abs(step) == size and size > 1 else -step for step in (row_step, column_step))
    return first, row_step, column_step


def scales(across: int, down: int, resolution: int) -> tuple[float, float, float, float, float, float]:
    """Of rows and columns: old pixels for a new one, half the filter's width, and by how much a weight falls a pixel."""
    row_scale, column_scale = down / resolution, across / resolution
    row_support, column_support = max(row_scale, 1.0), max(column_scale, 1.0)
    return row_scale, column_scale, row_support, column_support, 1 / row_support, 1 / column_support


def row_taps(rows: int, filters: tuple[float, ...]) -> int:
    """How many rows of the crop so many rows of a clip need at most. filters: of `scales`."""
    return math.ceil((rows - 1) * filters[0] + 2 * filters[2]) + 1


def column_taps(filters: tuple[float, ...]) -> int:
    """How many columns a column of a clip needs at most, up to a power of two, at least 4."""
    return max(4, 1 << math.ceil(2 * filters[3]).bit_length())


# What the kernel of many clips is told of each.
CUT_INTEGERS = (
    "slot", "picture_bytes", "blue", "red", "row_bytes", "chroma_row_bytes", "chroma_height", "chroma_width", "left", "top",
    "width", "height", "row_taps", "first_place", "row_step", "column_step",
)  # fmt: skip
CUT_FLOATS = 13
TILE_ROWS, TILE_COLUMNS = 16, 32


def region(box: Window, rotation: int, height: int, width: int) -> tuple[Window, Window]:
    """What has to be kept of an H x W picture for a crop: (left, top, width and height of it, on whole chroma samples and with
    those that interpolation reaches for; the crop's place in there).

    box: in pixels of the picture that `rotation` sets upright.
    """
    left, top, across, down = stored_box(box, rotation, height, width)
    spans = []
    for first, count, size in ((left, across, width), (top, down, height)):
        start = max(0, 2 * (first // 2 - 1))
        spans.append((start, min(size, 2 * ((first + count - 1) // 2 + 2)) - start))
    (x, kept_width), (y, kept_height) = spans
    return (x, y, kept_width, kept_height), (left - x, top - y, across, down)


def region_bytes(width: int, height: int) -> int:
    """Of one picture's planes, 8 bits a sample, one after another."""
    return width * height + 2 * ((width + 1) // 2) * ((height + 1) // 2)


def cut_numbers(
    kept: Window, box: Window, resolution: int, matrix: str, full_range: bool, rotation: int, flip: bool
) -> tuple[list[int], list[float]]:
    """(CUT_INTEGERS but for the slot, which is 0; CUT_FLOATS) of a clip whose pictures lie as planes of `kept`, one picture after
    another. kept, box: as `region` has them."""
    _, _, width, height = kept
    chroma_width, chroma_height = (width + 1) // 2, (height + 1) // 2
    filters = scales(box[2], box[3], resolution)
    planes = [width * height, width * height + chroma_width * chroma_height]
    rows = min(TILE_ROWS, max(1, 1 << (resolution - 1).bit_length()))
    integers = [0, region_bytes(width, height), *planes, width, chroma_width, chroma_height, chroma_width, *box]
    integers += [row_taps(rows, filters), *placement(resolution, rotation, flip)]
    return integers, [*filters, *conversion(matrix, full_range, 8)]
