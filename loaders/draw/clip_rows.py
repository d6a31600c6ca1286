"""Rows of (video, start, label[, end]), as people write them -> checked columns.

Shapes: N rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus.corpus import Corpus
from ..corpus.video_files import VideoFiles
from ..video.video import is_remote


@dataclass(frozen=True)
class ClipRows:
    """Checked rows. videos: (N,) rows of the corpus or the files. starts, ends: (N,) seconds, NaN for None. labels: N."""

    videos: NDArray[np.int64]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    labels: list[Any]

    @classmethod
    def read(cls, clips: Iterable[Sequence[Any]], videos: Corpus | VideoFiles, *, need_ends: bool = False) -> ClipRows:
        """Reads the rows; paths are added to VideoFiles and looked up in a corpus.

        need_ends: refuse a start without an end. Raises ValueError, which names the item, on anything but such rows.
        """
        find_row = _row_finder(videos)
        rows: list[int] = []
        starts: list[float] = []
        ends: list[float] = []
        labels: list[Any] = []
        for item, clip in enumerate(clips):
            is_row = hasattr(clip, "__len__") and not isinstance(clip, (str, bytes, Mapping))
            if not is_row or len(clip) not in (3, 4):
                raise ValueError(f"item {item} is {clip!r}; give (video, start, label) or (video, start, label, end)")
            video, start, label, end = clip if len(clip) == 4 else (*clip, None)
            named = f"item {item} ({video})"
            start_seconds, end_seconds = _seconds(start, f"{named}: start"), _seconds(end, f"{named}: end")
            if end_seconds < (0.0 if start is None else start_seconds):
                raise ValueError(f"{named} ends at {end_seconds:g} s, before it starts; exchange start and end")
            if need_ends and start is not None and end is None:
                raise ValueError(
                    f"{named} has a start and no end, between which several segments could lie; give "
                    "(video, start, label, end), or None as its start for the whole video"
                )
            rows.append(find_row(video, named))
            starts.append(start_seconds)
            ends.append(end_seconds)
            labels.append(label)
        if not rows:
            raise ValueError("the list of clips is empty; give at least one (video, start, label)")
        return cls(np.array(rows, np.int64), np.array(starts), np.array(ends), labels)


def _seconds(value: Any, named: str) -> float:
    if value is None:
        return math.nan
    try:
        seconds = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{named} is {value!r}; give seconds as a player shows them, or None") from error
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{named} is {seconds:g}; give seconds as a player shows them, at least 0, or None")
    return seconds


def _row_finder(videos: Corpus | VideoFiles) -> Callable[[Any, str], int]:
    """A function of (video, the item's name) that tells the video's row."""
    if isinstance(videos, VideoFiles):

        def add(video: Any, named: str) -> int:
            if not isinstance(video, (str, os.PathLike)):
                raise ValueError(f"{named}: the video is {video!r}; give a path, or a corpus beside the list")
            return videos.add(video)

        return add
    rows: dict[str, int] = {}
    for name in ("original", "id", "path"):
        rows.update({known[name]: row for row, known in enumerate(videos.scan(name)) if known[name]})

    def find(video: Any, named: str) -> int:
        if isinstance(video, (int, np.integer)) and not isinstance(video, bool) and 0 <= video < len(videos):
            return int(video)
        if isinstance(video, (str, os.PathLike)):
            name = os.fspath(video)
            row = rows.get(name, rows.get(name if is_remote(name) else os.path.abspath(name)))
            if row is not None:
                return row
        raise ValueError(
            f"{named} is none of the {len(videos)} videos of {videos.path}; give one's path, id or row, or index it as well"
        )

    return find
