"""One video -> one proxy: every n-th frame, upright, without black border, small, in short closed GOPs; then read again.

Nothing but pictures and their times is carried over: no sound, no subtitles, no metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ..corpus.whole_file import write_whole
from ..video.decode import DecodeCount
from ..video.sequence import read_frames
from ..video.storage import StoredFile
from ..video.video import GopTable, VideoError, VideoFacts
from .proxy_check import Expected, check_proxy, thumbnail
from .proxy_encoder import ProxyEncoder
from .settings import PackSettings


@dataclass(frozen=True)
class Proxy:
    """A finished proxy. `damage` says why it ends before its original does, empty where it holds all of it; `core_seconds` what
    making it took just now, 0 where it was there before."""

    frames: int
    width: int
    height: int
    size_bytes: int
    damage: str
    core_seconds: float = field(default=0.0, compare=False)


# First frames of what is not to be seen, in frames of the original, and those behind the last.
Hidden = tuple[tuple[int, int], ...]


def write_proxy(video: VideoFacts, gops: GopTable, path: Path, settings: PackSettings, hidden: Hidden = ()) -> Proxy:
    """Makes `path` (MP4) from an indexed video. Frame k of the proxy is frame k * stride of the original, or
    black where that is hidden.

    The file appears under its name only when it has been read again and found right. Where the original stops decoding on the way,
    the proxy holds the whole frames before that, if they fill a GOP: a clip is never cut from both sides of a gap.

    Raises VideoError where the original cannot be read, has changed since it was indexed or while it was read, or has too few
    frames, and where the proxy is not what went into it; OSError where it cannot be written.
    """

    def write(unfinished: Path) -> tuple[Expected, str]:
        expected, damage = _encode(video, gops, unfinished, settings, hidden)
        check_proxy(unfinished, expected, settings)
        return expected, damage

    expected, damage = write_whole(path, write)
    return Proxy(len(expected.ticks), expected.width, expected.height, path.stat().st_size, damage)


def _encode(
    video: VideoFacts, gops: GopTable, path: Path, settings: PackSettings, hidden: Hidden
) -> tuple[Expected, str]:
    """Writes the file. Returns what it has to hold, and why it ends early."""
    ticks, time_base = display_times(video, gops, settings.stride)
    if len(ticks) < 2:
        raise VideoError(
            f"{video.path}: of {video.frames} frames a stride of {settings.stride} keeps {len(ticks)}, at least 2 are "
            "needed; pack with a smaller stride or leave it out"
        )
    durations = np.diff(ticks, append=2 * ticks[-1] - ticks[-2])
    wanted = np.arange(0, video.frames, settings.stride)
    thumbnails: list[NDArray[np.uint8]] = []
    errors: list[VideoError] = []
    with ProxyEncoder(str(path), video, settings, time_base) as encoder:
        for frame in _until_damage(video, gops, wanted, errors):
            index = len(thumbnails)
            is_hidden = any(first <= wanted[index] < stop for first, stop in hidden)
            picture = encoder.write(frame, int(ticks[index]), int(durations[index]), is_hidden=is_hidden)
            thumbnails.append(thumbnail(picture))
        if errors and len(thumbnails) < max(2, settings.keyframe_interval):
            raise errors[0]
    StoredFile(video).close()  # it may have changed on the way
    damage = "".join(
        f"only the first {len(thumbnails) * settings.stride} of its {video.frames} frames are packed: {error}"
        for error in errors
    )
    kept = ticks[: len(thumbnails)]
    return Expected(encoder.scaler.width, encoder.scaler.height, kept, time_base, np.stack(thumbnails)), damage


def _until_damage(
    video: VideoFacts, gops: GopTable, wanted: NDArray[np.int64], errors: list[VideoError]
) -> Iterator[VideoFrame]:
    """The wanted frames before the first that cannot be had; why is added to `errors`."""
    try:
        for expected, (number, _, frame) in zip(wanted, read_frames(video, gops, wanted, DecodeCount()), strict=True):
            if number != expected:
                raise VideoError(f"{video.path}: the decoder did not return frame {expected}")
            yield frame
    except VideoError as error:
        errors.append(error)


def display_times(video: VideoFacts, gops: GopTable, stride: int) -> tuple[NDArray[np.int64], Fraction]:
    """When the kept frames are shown: (F,) ticks from the first one, and the tick in seconds.

    Evenly at fps / stride where that is never half a frame off; else as the original has it, in its own ticks.
    """
    packets = gops.packets[0 : int(gops.first_packet[-1] + gops.num_packets[-1])]
    shown = packets.frame >= 0
    pts = np.empty(video.frames, np.int64)
    pts[packets.frame[shown]] = packets.pts[shown]
    kept = pts[::stride] - pts[0]
    tick = Fraction(video.time_base_numerator, video.time_base_denominator)
    fps = Fraction(video.fps_numerator, video.fps_denominator)
    off = np.abs(kept * float(tick) - np.arange(len(kept)) * float(stride / fps))
    if not video.variable_rate and off.max() <= 0.5 / fps:
        return np.arange(len(kept)), stride / fps
    return kept, tick
