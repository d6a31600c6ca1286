"""A display matrix -> how a decoded picture is set upright: turned by quarters, then perhaps mirrored.

Players draw the point (x, y) of a picture, y counted downwards, at (a x + c y, b x + d y) and move the whole into the window
(ISO/IEC 14496-12, 8.3.2; FFmpeg's libavutil/display.h).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

# Counter-clockwise degrees by the matrix's (a, c).
QUARTERS = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}
LARGEST_ERROR = 0.02  # about a degree


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """(degrees counter-clockwise, mirrored left to right after that), as `VideoFacts` has them, by the display matrix that came
    with a decoded frame.

    Raises ValueError where it turns by no quarters, or slants.
    """
    data = _display_matrix(frame)
    if not data:
        return 0, False
    a, b, _, c, d = struct.unpack("=9i", data)[:5]
    columns = np.array([[a, c], [b, d]], dtype=np.float64)
    lengths = np.hypot(*columns)
    if not lengths.all():  # players take no notice of such a one
        return 0, False
    exact = columns / lengths
    nearest = np.round(exact).astype(int)
    determinant = round(float(np.linalg.det(nearest)))
    if np.abs(exact - nearest).max() > LARGEST_ERROR or abs(determinant) != 1:
        raise ValueError(f"({a / 65536:g}, {b / 65536:g}, {c / 65536:g}, {d / 65536:g})")
    mirrored = determinant < 0
    across = -nearest[0] if mirrored else nearest[0]
    return QUARTERS[int(across[0]), int(across[1])], mirrored


def _display_matrix(frame: VideoFrame) -> bytes:
    try:
        held: Any = (
            frame.side_data
        )  # of which some versions give out keys, others values, but all of them items by number
    except ValueError as error:  # 18.1 gives out none where FFmpeg has a kind that it does not know, as EXIF
        if frame.rotation:
            raise ValueError("(which this version of PyAV cannot read)") from error
        return b""
    found = (held[place] for place in range(len(held)))
    return next((bytes(data) for data in found if data.type.name == "DISPLAYMATRIX"), b"")
