"""The clips of a whole video at even moments, decoded in order: each GOP once, and no more pictures kept than a clip reaches over.

Shapes: N moments, T frames of a clip, R x R pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...engine.weights.encoder_sources import ClipShape
from ...loaders.corpus.corpus import Video
from ...loaders.corpus.video_files import VideoFiles
from ...loaders.decode.recipe import Recipe
from ...loaders.decode.resize import Resizer
from ...loaders.draw.clip_list import ClipList
from ...loaders.draw.evaluation_crops import EvaluationCrops
from ...loaders.draw.sampler import Clip
from ...loaders.video.decode import DecodeCount
from ...loaders.video.sequence import read_frames
from ...loaders.video.timeline import TOLERANCE_SECONDS, Timeline
from .choices import FeatureChoices


def num_moments(timeline: Timeline, rate: float) -> int:
    """How many moments k / rate seconds a player shows of the video, at least 1."""
    return max(int(np.ceil((timeline.end - TOLERANCE_SECONDS) * rate)), 1)


def clip_frames(
    timeline: Timeline, moments: NDArray[np.float64], shape: ClipShape, choices: FeatureChoices
) -> NDArray[np.int64]:
    """(N, T) the frames of each moment's clip. Causal clips end with the frame that is on screen at the moment; what reaches beyond
    the video repeats its first or last frame. moments: (N,) seconds."""
    behind = np.arange(shape.frames - 1, -1, -1)  # steps before the clip's last frame
    if choices.clips == "centred":
        behind = behind - (shape.frames - 1) // 2
    if shape.stride is not None:
        frames = timeline.shown_at(moments)[:, None] - behind * shape.stride
    else:
        assert shape.sample_fps is not None
        times = moments[:, None] - behind / shape.sample_fps
        frames = timeline.shown_at(times.ravel()).reshape(times.shape)
    return frames.clip(0, timeline.last)


def read_clips(
    videos: VideoFiles, row: int, frames: NDArray[np.int64], resolution: int, count: DecodeCount
) -> Iterator[NDArray[np.uint8]]:
    """Yields (T, R, R, 3) uint8 RGB, the centre of the picture, for each row of `frames` (N, T), which begin and end in order.

    Adds to `count`. Raises VideoError where a frame cannot be had.
    """
    video, gops = videos.video(row), videos.gops(row)
    resizer = _resizer(videos, video, resolution)
    last, first = frames.max(axis=1), frames.min(axis=1)
    kept: dict[int, NDArray[np.uint8]] = {}
    place = 0
    for number, _, frame in read_frames(video.facts, gops, np.unique(frames), count):
        kept[number] = resizer(frame)
        while place < len(frames) and last[place] <= number:
            yield np.stack([kept[wanted] for wanted in frames[place].tolist()])
            place += 1
            oldest = first[place] if place < len(frames) else number + 1
            for gone in [other for other in kept if other < oldest]:
                del kept[gone]
    assert place == len(frames)


def _resizer(videos: VideoFiles, video: Video, resolution: int) -> Resizer:
    """Cuts what evaluation clips of the loaders show."""
    one = ClipList([(video.facts.path, 0.0, 0)], videos, num_frames=1, stride=1)
    recipe = Recipe(videos, one, EvaluationCrops(), resolution)
    crop = recipe.crop(Clip(0, 0, 0, video.row, np.zeros(1, np.int64), 0), video.facts)
    return Resizer(crop, video.facts.rotation, resolution)
