"""Clips from a list of (video, start, label): for training on labelled pieces of videos, and for evaluation.

For training, draw n is an item of the list: each once a pass, shuffled anew in every pass or in the list's order. For evaluation
every item is seen in `segments` clips evenly spaced in time, and draw n is segment n % segments of item n // segments. Several
crops of one clip are views of its draw, so that it is decoded once (`evaluation_crops.py`, `order.py`).

Shapes: B draws, N items, T frames, S segments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels.philox import Stream, below, random_words
from ..corpus.corpus import Corpus
from ..corpus.video_files import VideoFiles
from ..video.timeline import TOLERANCE_SECONDS, Timeline
from ..video.video import VideoError
from .clip_rows import ClipRows
from .permutation import permute
from .sampler import Clip, repeats


class ClipList:
    """Draws clips from a list of (video, start, label) or (video, start, label, end).

    clips: any iterable of such rows; it is read once. A video is a path or, with a corpus, a path, an id or a row of it. start,
    end: seconds as a player shows them, see `timeline.py`. A start alone is where the clip starts, exactly. With an end the clip
    lies anywhere between the two; where it is longer, it starts at the start. A start of None is the video's first frame, and then
    an end of None is its last; so is an end behind it. A clip that reaches beyond the video repeats its last frame. label:
    anything.

    videos: a corpus, or VideoFiles that several lists share; None: the files are probed when they are first needed. In a corpus of
    proxies the originals' paths are known as well. num_frames: T. Exactly one of stride (frames from one clip frame to the next, of
    the original where a video is a proxy) and sample_fps (clip frames a second, each the frame nearest in time). segments: 0 for
    training, where a clip lies at random (keyed by seed, draw and view), else S; one lies in the middle, several reach from the
    start to the end. shuffle: items in another order in each pass. max_spares: how many other items, one after the other, stand in
    for one that cannot be read; 0 leaves it out. content_box, track: for files that are probed, see VideoFiles.

    Raises ValueError, which names the item, where a row is not such a one, and where proxies hold too few frames. What only the
    file can tell, as that it is missing or ends before the start, becomes the clip's `problem`, which loaders treat as they do a
    file that cannot be read.
    """

    def __init__(
        self,
        clips: Iterable[Sequence[Any]],
        videos: Corpus | VideoFiles | None = None,
        *,
        num_frames: int,
        stride: int | None = None,
        sample_fps: float | None = None,
        segments: int = 0,
        shuffle: bool = False,
        max_spares: int = 0,
        seed: int = 0,
        content_box: bool = True,
        track: int | None = None,
    ) -> None:
        for name, value, least in (
            ("num_frames", num_frames, 1),
            ("segments", segments, 0),
            ("max_spares", max_spares, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        # Frames, or seconds, from the clip's first frame.
        if stride is not None and sample_fps is None and stride >= 1:
            self._steps = np.arange(num_frames) * stride
        elif sample_fps is not None and stride is None and 0 < sample_fps < math.inf:
            self._steps = np.arange(num_frames) / sample_fps
        else:
            raise ValueError(
                f"give either stride, at least 1, or sample_fps, above 0; got stride={stride}, sample_fps={sample_fps}"
            )
        self._by_time = stride is None
        self.videos = VideoFiles(content_box=content_box, track=track) if videos is None else videos
        self.num_frames, self.segments, self.shuffle = num_frames, segments, shuffle
        self.max_spares, self.seed = max_spares, seed
        self._list = ClipRows.read(clips, self.videos, need_ends=segments > 1)
        if isinstance(videos, Corpus):
            check_proxies(videos, np.unique(self._list.videos), stride=stride, sample_fps=sample_fps)

    def __len__(self) -> int:
        """N, the items of the list."""
        return len(self._list.labels)

    @property
    def num_videos(self) -> int:
        return len(self.videos)

    @property
    def num_draws(self) -> int:
        """The draws of one pass: N, in evaluation N x S."""
        return len(self) * max(self.segments, 1)

    def items(self, draws: ArrayLike, *, spare: int = 0) -> NDArray[np.int64]:
        """(B,) the items, 0 .. N - 1, of which `draws` (B,) are clips, or the items that replace them, where spare is not 0."""
        draw = np.asarray(draws, dtype=np.int64)
        if spare:
            return below(random_words(self.seed, draw, spare, Stream.SPARE, 1)[:, 0], len(self))
        place = draw // max(self.segments, 1)
        if not self.shuffle:
            return place % len(self)
        return permute(place % len(self), len(self), self.seed, place // len(self))

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]:
        """The clips of these draws.

        draws: (B,) in 0 .. 2**48 - 1. view: in training another place between start and end, in evaluation the same clip. spare:
        0, or k for the k-th replacement.
        """
        draw = np.asarray(draws, dtype=np.int64)
        words = random_words(self.seed, draw, view, Stream.JITTER, 1)
        items = self.items(draw, spare=spare).tolist()
        return [
            self._clip(number, item, word, view, spare)
            for number, item, word in zip(draw.tolist(), items, words, strict=True)
        ]

    def _clip(self, draw: int, item: int, word: NDArray[np.uint32], view: int, spare: int) -> Clip:
        row, label = int(self._list.videos[item]), self._list.labels[item]
        try:
            video = self.videos.video(row)
            timeline = self.videos.timeline(row)
            steps = self._steps if self._by_time else self._steps // video.packed_stride
            first, latest = self._range(timeline, item, steps)
            begin = first + self._offset(max(latest - first, 0), draw, word)
            frames, repeated = self._frames(timeline, begin, steps)
        except VideoError as error:
            nothing = np.zeros(self.num_frames, np.int64)
            return Clip(draw, view, spare, row, nothing, 0, label, problem=f"{error} (item {item} of the list)")
        return Clip(draw, view, spare, row, frames, repeated, label)

    def _range(self, timeline: Timeline, item: int, steps: NDArray[Any]) -> tuple[int, int]:
        """The first and the last frame at which a clip of the item may start; the last is below the first where none fits."""
        start, end, video = self._list.starts[item], self._list.ends[item], timeline.video
        if start >= timeline.end:
            raise VideoError(
                f"{video.path}: a clip starts at {start:g} s, but the video ends at {timeline.end:g} s; correct its start"
            )
        if end + TOLERANCE_SECONDS < video.start_seconds:
            raise VideoError(
                f"{video.path}: a clip ends at {end:g} s, but the picture begins at {video.start_seconds:g} s, behind the sound; "
                "correct its end"
            )
        first = 0 if math.isnan(start) else timeline.shown(start)
        if math.isnan(end) and not math.isnan(start):
            return first, first
        last = timeline.last if math.isnan(end) else timeline.shown(end)
        if self._by_time:
            return first, int(timeline.latest_start(steps[-1], np.array([last]))[0])
        return first, last - int(steps[-1])

    def _offset(self, room: int, draw: int, word: NDArray[np.uint32]) -> int:
        """Where a clip starts that may start 0 .. room frames behind its first frame."""
        if not self.segments:
            return int(below(word, room + 1)[0])
        gaps = self.segments - 1
        return (2 * room * (draw % self.segments) + gaps) // (2 * gaps) if gaps else room // 2

    def _frames(self, timeline: Timeline, begin: int, steps: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
        """(T,) the frames of a clip that starts at frame `begin`, and how many places repeat the one before."""
        last = np.array([timeline.last])
        if self._by_time:
            frames, beyond = (rows[0] for rows in timeline.sample(np.array([begin]), steps, last))
        else:
            frames, beyond = np.minimum(begin + steps, last), begin + steps > last
        return frames, int(repeats(frames, beyond))


def check_proxies(
    corpus: Corpus, rows: NDArray[np.int64] | slice, *, stride: int | None, sample_fps: float | None
) -> None:
    """Raises ValueError where some of these videos are proxies that lack frames of a clip."""
    packed, fps = corpus.packed_stride[rows], corpus.fps[rows]
    if stride is not None and (unfit := packed[stride % packed != 0]).size:
        raise ValueError(
            f"stride {stride} is not a multiple of {unfit[0]}, the stride with which videos of {corpus.path} were packed; give a "
            f"multiple, or pack the originals again: trocar pack --stride {stride}"
        )
    if sample_fps is not None and (slow := fps[(packed > 1) & (fps < sample_fps * 0.999)]).size:
        raise ValueError(
            f"sample_fps {sample_fps:g} is more than the {slow.min():g} frames a second of proxies in {corpus.path}; give less, or "
            "pack the originals again with a smaller trocar pack --stride"
        )
