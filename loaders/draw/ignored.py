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

    overlay: (H, W), over the whole upright picture, whose (width, height) is upright_size. crop: in pixels of that picture, so
    mirrored where the picture is (`Crop.unmirrored` goes both ways). resolution: R, a multiple of side: S.
    """
    width, height = upright_size
    centres = (np.arange(resolution) + 0.5) / resolution
    across = crop.box.left + (centres[::-1] if crop.flip else centres) * crop.box.width
    down = crop.box.top + centres * crop.box.height
    rows = (down * overlay.shape[0] / height).astype(np.int64)
    columns = (across * overlay.shape[1] / width).astype(np.int64)
    inside_across = (across >= content.left) & (across < content.left + content.width)
    inside_down = (down >= content.top) & (down < content.top + content.height)
    hidden = overlay[np.ix_(rows, columns)] | ~(inside_down[:, None] & inside_across)
    patch = resolution // side
    return hidden.reshape(side, patch, side, patch).mean(axis=(1, 3)) > MOST
