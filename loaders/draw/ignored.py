"""Which tokens of a clip show overlays, or what lies outside the content box: a crop's own geometry, applied to a video's mask.

Shapes: H W cells of an overlay mask, R x R pixels of a clip, S x S tokens of R / S pixels a side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .augment import Box, Crop

MOST = 0.5  # share of a token's pixels above which it is ignored


def ignored_tokens(
    overlay: NDArray[np.bool_], content: Box, upright_size: tuple[int, int], crop: Crop, resolution: int, side: int
) -> NDArray[np.bool_]:
    """(S, S): tokens of which more than half lies under the overlay or outside the content box.

    overlay: (H, W), over the whole picture as it is shown, whose (width, height) is upright_size. content, crop: in pixels of that
    picture. resolution: R, a multiple of side: S. A pixel of the clip lies where its centre does.
    """
    width, height = upright_size
    centres, patch = (np.arange(resolution) + 0.5) / resolution, resolution // side
    across = crop.box.left + (centres[::-1] if crop.flip else centres) * crop.box.width
    down = crop.box.top + centres * crop.box.height
    rows = _pixels_by_cell(down, overlay.shape[0] / height, content.top, content.height, overlay.shape[0], side)
    columns = _pixels_by_cell(across, overlay.shape[1] / width, content.left, content.width, overlay.shape[1], side)
    shown = rows @ (~overlay).astype(np.float32) @ columns.T  # whole numbers, far below where float32 rounds them
    return shown < (1 - MOST) * patch**2


def _pixels_by_cell(
    places: NDArray[np.float64], scale: float, first: int, length: int, cells: int, side: int
) -> NDArray[np.float32]:
    """(S, cells): how many pixels of each token lie in each cell of the mask, along one axis, of those inside the content.

    places: (R,) in pixels of the picture. scale: cells a pixel. first, length: of the content.
    """
    token = np.arange(len(places)) * side // len(places)
    inside = (places >= first) & (places < first + length)
    cell = (places[inside] * scale).astype(np.int64)
    counts = np.bincount(token[inside] * cells + cell, minlength=side * cells)
    return counts.reshape(side, cells).astype(np.float32)
