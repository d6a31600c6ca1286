"""One span -> its clips, on the CPU: window, decoder, crop and resize, for one thread.

A span is what one draw of the sampler asks for: the frames of one or several views, read with one window and decoded once.

Shapes: V views, T frames, R x R pixels; F distinct frames of the window.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ..draw.augment import Crop
from ..draw.sampler import Clip
from ..video.decode import DecodeCount, WindowDecoder, decoder_key
from ..video.video import GopTable, Kind, VideoError, VideoFacts
from ..video.window import Window, WindowReader
from .batch import Failure, LoaderCount
from .planes import NotPlanesError, PlaneCuts, PlaneWriter
from .recipe import Recipe
from .resize import Resizer

OPEN_VIDEOS_PER_THREAD = 8


@dataclass(frozen=True)
class Cut:
    """A span read, not yet decoded. clips, crops: V of them, as `Recipe.crop` has them. places: (V, T), where each clip's frames
    stand in window.frames."""

    clips: list[Clip]
    crops: list[Crop]
    window: Window
    places: NDArray[np.int64]

    def pts_seconds(self) -> NDArray[np.float64]:
        """(V, T) seconds as a player shows them; see `timeline.py`."""
        video = self.window.video
        ticks = (self.window.pts - video.zero_pts).astype(np.float64)
        return (ticks * (video.time_base_numerator / video.time_base_denominator))[self.places]

    def count_whole(self, count: LoaderCount) -> None:
        """Adds to `count` what a decoder does that is given the whole window."""
        count.packets_decoded += len(self.window.payloads)
        count.frames_decoded += int(self.window.shows.sum())
        count.frames_used += len(self.window.frames)
        count.repeated_frames += sum(clip.repeated for clip in self.clips)


@dataclass
class SpanResult:
    """What became of a span.

    clips: the V clips that were read, in the end. pts_seconds: (V, T). is_lost: it and all its replacements failed. cuts: of V
    clips that lie as planes, None where they are RGB.
    """

    clips: list[Clip]
    pts_seconds: NDArray[np.float64]
    count: LoaderCount = field(default_factory=LoaderCount)
    is_lost: bool = False
    cuts: PlaneCuts | None = None


class Closable(Protocol):
    def close(self) -> None: ...


Opened = TypeVar("Opened", bound=Closable)


@dataclass(frozen=True)
class _OpenVideo:
    """What is kept of a video while it is among the latest: looking it up in the index takes as long as reading a clip's bytes."""

    facts: VideoFacts
    gops: GopTable
    windows: WindowReader

    def close(self) -> None:
        self.windows.close()


class _Latest(Generic[Opened]):
    """Opened things by what they are for; the least recently used is closed."""

    def __init__(self) -> None:
        self._opened: OrderedDict[Hashable, Opened] = OrderedDict()

    def get(self, key: Hashable) -> Opened | None:
        opened = self._opened.get(key)
        if opened is not None:
            self._opened.move_to_end(key)
        return opened

    def add(self, key: Hashable, opened: Opened) -> Opened:
        self._opened[key] = opened
        if len(self._opened) > OPEN_VIDEOS_PER_THREAD:
            self._opened.popitem(last=False)[1].close()
        return opened

    def drop(self, key: Hashable) -> None:
        opened = self._opened.pop(key, None)
        if opened is not None:
            opened.close()

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()


class SpanReader:
    """Reads spans. Keeps a few videos open. Not thread-safe: one thread at a time.

    reading: the path of the video that is being read right now, "" between two. clip: the one it is at. thread: the name of the
    one that made it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.reading, self.thread = "", threading.current_thread().name
        self.clip: Clip | None = None
        self._videos: _Latest[_OpenVideo] = _Latest()
        self._decoders: _Latest[WindowDecoder] = _Latest()
        self._resizers: list[Resizer] = []  # by view
        self._not_planes = set(recipe.rgb_kinds)

    def close(self) -> None:
        self._videos.close()
        self._decoders.close()

    def read(self, draw: int, views: tuple[int, ...], output: NDArray[np.uint8], first_spare: int = 0) -> SpanResult:
        """Reads a span, or its first replacement that can be read, into output, (V, T, R, R, 3)."""
        result = SpanResult([], np.zeros((len(views), 0)), LoaderCount(spans=1))
        for spare in range(first_spare, self.recipe.sampler.max_spares + 1):
            result.clips = self.recipe.clips(draw, views, spare)
            try:
                cut = self.cut(result.clips, result.count)
                result.cuts = self._decode_planes(cut, output, result.count) if self.recipe.planes else None
                if result.cuts is None:
                    self.decode(cut, output, result.count)
            except VideoError as error:
                self.note_failure(result.clips[0], error, result.count)
            else:
                result.pts_seconds = cut.pts_seconds()
                return result
        result.is_lost = True
        return result

    def cut(self, clips: list[Clip], count: LoaderCount) -> Cut:
        """The window of some clips of one video, with their crops. Raises VideoError."""
        self.clip = clips[0]
        for clip in clips:
            if clip.problem:
                raise VideoError(clip.problem)
        numbers, places = _distinct(clips)
        try:
            video = self._videos.get(clips[0].video) or self._open(clips[0].video)
            self.reading = video.facts.path
            window = video.windows.window(numbers, video.gops)
        finally:
            self.reading = ""
        count.bytes_read += window.bytes_read
        crops = [self.recipe.crop(clip, video.facts) for clip in clips]
        return Cut(clips, crops, window, places)

    def _open(self, row: int) -> _OpenVideo:
        video = self.recipe.videos.video(row)
        facts = video.facts
        self.reading = facts.path
        return self._videos.add(row, _OpenVideo(facts, self.recipe.videos.gops(row), WindowReader(facts, video.remedy)))

    def decode(self, cut: Cut, output: NDArray[np.uint8], count: LoaderCount) -> None:
        """Decodes a window and cuts its views into output, (V, T, R, R, 3). Adds to the count. Raises VideoError."""
        resizers = self._resizers_for(cut.crops, cut.window.video.rotation)

        def write(view: int, first: int, stop: int, frame: VideoFrame) -> None:
            output[view, first:stop] = resizers[view](frame)

        self._decode(cut, write, count)

    def _decode_planes(self, cut: Cut, output: NDArray[np.uint8], count: LoaderCount) -> PlaneCuts | None:
        """As `decode`, but what the crops need of the planes; None where the pictures are not such as can be left so."""
        video = cut.window.video
        if Kind.of(video) in self._not_planes:
            return None
        writer = PlaneWriter(video, cut.crops, output)
        if not writer.has_room:
            return None
        try:
            self._decode(cut, writer.write, count)
        except NotPlanesError:
            self._decoders.close()  # it stands in the middle of a window
            self._not_planes.add(Kind.of(video))
            return None
        return writer.cuts()

    def _decode(self, cut: Cut, write: Callable[[int, int, int, VideoFrame], None], count: LoaderCount) -> None:
        """Decodes a window. write: is given a view, the first of its places and the one behind the last, and their picture."""
        video, window = cut.window.video, cut.window
        key = decoder_key(window)
        decoder = self._decoders.get(key) or self._decoders.add(key, WindowDecoder(video))
        bounds = np.arange(len(window.frames) + 1)
        first_places = [np.searchsorted(places, bounds).tolist() for places in cut.places]
        decoded = DecodeCount()
        try:
            for index, frame in decoder.frames(window, decoded):
                for view, places in enumerate(first_places):
                    if places[index] < places[index + 1]:
                        write(view, places[index], places[index + 1], frame)
        except FFmpegError as error:
            raise VideoError(
                f"{video.path}: frame {window.frames[0]} cannot be cropped to {cut.crops[0].box}: {error}"
            ) from error
        finally:
            count.packets_decoded += decoded.packets
            count.frames_decoded += decoded.frames
        count.frames_used += len(window.frames)
        count.repeated_frames += sum(clip.repeated for clip in cut.clips)

    def note_failure(self, clip: Clip, error: VideoError, count: LoaderCount) -> None:
        """Adds a failure to the count, closes the video, for the file may have changed under it, and all decoders."""
        path = self.recipe.videos.video_path(clip.video)
        count.failures.append(Failure(clip.draw, clip.spare, path, str(error)))
        self._videos.drop(clip.video)
        self._decoders.close()

    def _resizers_for(self, crops: list[Crop], rotation: int) -> list[Resizer]:
        """One for each view: crops differ from view to view, frames come to all of them in turn."""
        for view, crop in enumerate(crops):
            if view == len(self._resizers):
                self._resizers.append(Resizer(crop, rotation, self.recipe.resolution, self.recipe.resize))
            self._resizers[view].crop, self._resizers[view].rotation = crop, rotation
        return self._resizers[: len(crops)]


def _distinct(clips: list[Clip]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """((F,) the distinct frames of V clips, ascending; (V, T) where in there each clip's frames stand)."""
    if len(clips) == 1 and (np.diff(clips[0].frames) > 0).all():  # what sorting would find out
        return clips[0].frames, np.arange(len(clips[0].frames))[None]
    numbers, places = np.unique(np.stack([clip.frames for clip in clips]), return_inverse=True)
    return numbers, places.reshape(len(clips), -1)
