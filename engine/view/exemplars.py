"""The spans that show best what a cluster is, as pictures: the middle frame of each, its largest centred square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.cpu import ClipLoader
from ...loaders.draw.augment import CropRecipe
from ...loaders.draw.sampler import Clip
from ...loaders.draw.tree import ClusterTree


@dataclass(frozen=True)
class Exemplar:
    """picture: (side, side, 3) uint8. file: its name. seconds: when the picture is shown."""

    picture: NDArray[np.uint8]
    file: str
    seconds: float

    @property
    def caption(self) -> str:
        minutes, seconds = divmod(int(self.seconds), 60)
        return f"{self.file} {minutes // 60}:{minutes % 60:02}:{seconds:02}"


@dataclass(frozen=True)
class Spans:
    """Where spans are: video_ids, and for each span the row there, its first frame and its frames, of the original; (N,) each."""

    video_ids: list[str]
    video: NDArray
    first_frame: NDArray
    span_frames: NDArray


@dataclass
class _Chosen:
    """A few spans' middle frames, a `ClipSource`."""

    chosen: list[Clip]
    num_videos: int
    num_frames: int = 1
    seed: int = 0
    max_spares: int = 0

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]:
        return [self.chosen[draw] for draw in np.asarray(draws).tolist()]


def exemplar_pictures(
    tree: ClusterTree | Spans, corpus: Corpus, spans: Sequence[int], side: int
) -> dict[int, Exemplar]:
    """By span, a row of the tree or of the table of spans; those that are not in the corpus or cannot be read are missing."""
    rows = {row["id"]: index for index, row in enumerate(corpus.scan("id"))}
    clips: list[Clip] = []
    shown = []
    for span in dict.fromkeys(spans):
        video = rows.get(tree.video_ids[tree.video[span]])
        if video is not None:
            middle = (tree.first_frame[span] + tree.span_frames[span] // 2) // corpus.packed_stride[video]
            frame = np.minimum([middle], corpus.frames[video] - 1).astype(np.int64)
            clips.append(Clip(len(clips), 0, 0, video, frame, 0))
            shown.append(span)
    if not clips:
        return {}
    source = _Chosen(clips, len(corpus))
    with ClipLoader(
        corpus,
        source,
        CropRecipe(scale=(1, 1), ratio=(1, 1), flip_probability=0),
        [np.arange(len(clips))],
        resolution=side,
        device=torch.device("cpu"),
        failure_budget=1.0,
    ) as loader:
        batch = next(loader)
    frames = batch.frames[:, 0].numpy()
    found = {}
    for place, number in enumerate(batch.numbers.tolist()):
        name = PurePath(corpus.video_path(clips[number].video)).name
        found[shown[number]] = Exemplar(frames[place], name, float(batch.pts_seconds[place, 0]))
    return found
