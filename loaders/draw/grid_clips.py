"""All base spans of a corpus, one clip each from the span's first frame: what is embedded and clustered.

Shapes: N spans, V videos, T frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..corpus.corpus import Corpus
from ..corpus.folder import CorpusError
from .augment import Box, Crop, even
from .clip_list import check_proxies
from .sampler import Clip, Sampler


class GridClips:
    """Draw n is span n of the corpus, a `ClipSource`; a span that cannot be read has no replacement.

    num_frames: T. stride: of the originals, or sample_fps, as in `Sampler`. Raises CorpusError where proxies lack such frames,
    and ValueError as `Sampler`.
    """

    max_spares = 0

    def __init__(self, corpus: Corpus, *, num_frames: int, stride: int | None, sample_fps: float | None) -> None:
        try:
            check_proxies(corpus, slice(None), stride=stride, sample_fps=sample_fps)
        except ValueError as error:
            raise CorpusError(str(error)) from error
        self.num_frames, self.seed = num_frames, 0
        self._packed = corpus.packed_stride
        self._sampler = Sampler.of(corpus, num_frames=num_frames, stride=stride, sample_fps=sample_fps)
        self._grid = self._sampler.grid()

    @property
    def num_videos(self) -> int:
        return self._sampler.num_videos

    def __len__(self) -> int:
        """N."""
        return self._sampler.num_spans

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]:
        """The clips of spans `draws`, (B,) in 0 .. N - 1."""
        span = np.asarray(draws, dtype=np.int64)
        video, first, _ = (column[span] for column in self._grid)
        frames, repeated = self._sampler.frames_from(video, first)
        rows = zip(span.tolist(), video.tolist(), frames, repeated.tolist(), strict=True)
        return [Clip(number, view, spare, row, numbers, beyond) for number, row, numbers, beyond in rows]

    def spans(self) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
        """(N,) the video, the first frame and the frames of every span, in frames of the originals."""
        video, first, frames = self._grid
        packed = self._packed[video]
        return video.astype(np.int32), first * packed, (frames * packed).astype(np.int32)


class WholePicture:
    """The whole picture inside the black border, squeezed to a square: a `CropSource`."""

    def crop(self, content: Box, *, seed: int = 0, draw: int = 0, view: int = 0) -> Crop:
        left, top = even(content.left), even(content.top)
        return Crop(Box(left, top, max(even(content.width), 2), max(even(content.height), 2)), flip=False)
