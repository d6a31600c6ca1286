"""What segments look like, in a few pixels: a descriptor that needs no weights, for finding clips that are the same.

Shapes: N segments, T frames, R x R pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..loaders.clip_loader import clip_loader
from .dataset import Card, Segment
from .segment_clips import clip_rows

FRAMES, RESOLUTION = 3, 16


def thumbnails(table: Sequence[Segment], card: Card | None = None, cache: Path | None = None) -> NDArray[np.float32]:
    """(N, T x R x R x 3) of the middle of each segment, half a second from one frame to the next, less each clip's own mean.

    Raises VideoError at the first segment that cannot be read, DatasetError where a folder of pictures has no rate.
    """
    rows = clip_rows(table, card, cache)
    with_time = {"num_frames": FRAMES, "sample_fps": 2.0, "resolution": RESOLUTION}
    loader = clip_loader(rows, batch=16, training=False, device="cpu", loader="cpu", **with_time)
    vectors = np.empty((len(table), FRAMES * RESOLUTION * RESOLUTION * 3), np.float32)
    for batch in loader:
        flat = batch.frames.numpy().reshape(len(batch.labels), -1).astype(np.float32)
        vectors[batch.labels] = flat - flat.mean(axis=1, keepdims=True)
    return vectors
