"""What segments look like, in a few pixels or by an embedder of `trocar embed`: for finding clips that are the same.

Shapes: N segments, T frames, R x R pixels, D values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.curate.embedders import load_embedder
from ...loaders.clip_loader import clip_loader
from ...loaders.draw.evaluation_crops import EvaluationCrops
from ...loaders.draw.grid_clips import WholePicture
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


def embeddings(
    table: Sequence[Segment], model: str, card: Card | None = None, cache: Path | None = None
) -> NDArray[np.float32]:
    """(N, D) of a clip in the middle of each segment, by an embedder: "descriptor", a run, or an image model (`load_embedder`).

    Raises ConfigError or CheckpointError where there is no such embedder, VideoError and DatasetError as `thumbnails` does.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = load_embedder(model, device)
    timing = {"num_frames": embedder.frames, "stride": embedder.stride, "sample_fps": embedder.sample_fps}
    crops = WholePicture() if embedder.squeeze else EvaluationCrops()
    options = {"resolution": embedder.resolution, "crops": crops, "device": device, "loader": "cpu"}
    vectors = np.empty((len(table), embedder.width), np.float32)
    with torch.inference_mode():
        for batch in clip_loader(clip_rows(table, card, cache), batch=16, training=False, **timing, **options):
            vectors[batch.labels] = embedder.embed(batch.frames).float().cpu().numpy()
    return vectors
