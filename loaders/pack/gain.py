"""What packing would bring: bytes and time from a short trial on a few videos, amplification from the GOP tables.

Shapes: V videos, T frames of a clip.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..corpus.corpus import Corpus
from ..video.decode import DecodeCount
from ..video.sequence import read_frames
from ..video.video import GopTable, VideoError
from .isolated import ProcessDied, run_isolated
from .proxy_encoder import ProxyEncoder
from .settings import PackSettings

CLIP_FRAMES = 16
TRIED_VIDEOS = 4
TRIED_GOPS = 3
COUNTED_VIDEOS = 256


@dataclass(frozen=True)
class Gain:
    """What is expected. Amplification is for clips of `CLIP_FRAMES` frames at the proxies' stride; of the originals it is the most
    that the GOPs can cost: pictures that nothing refers to are left out when a clip is read. `tried` videos gave the bytes and
    the core hours, which are None where none of them could be read."""

    videos: int
    frames: int
    bytes: int
    packed_frames: int
    packed_bytes: int | None
    core_hours: float | None
    amplification: float
    packed_amplification: float
    tried: int

    def lines(self) -> list[str]:
        lines = [f"to pack: {self.videos:,} videos, {self.frames:,} frames, {_size(self.bytes)}"]
        if self.packed_bytes is not None and self.core_hours is not None:
            lines.append(
                f"expected: {self.packed_frames:,} frames of {self.packed_bytes / self.packed_frames / 1024:.1f} KiB, "
                f"{_size(self.packed_bytes)}, in {_work(self.core_hours)} (by a trial on {self.tried} videos)"
            )
        lines.append(
            f"decoded frames per used frame, {CLIP_FRAMES} frames a clip: up to {self.amplification:.1f} from the originals, "
            f"{self.packed_amplification:.2f} from proxies"
        )
        return lines


def _size(count: int) -> str:
    """As "12.3 MB" of 12,345,678."""
    unit, name = next((pair for pair in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if count >= pair[0]), (1e3, "kB"))
    return f"{count / unit:,.1f} {name}"


def _work(hours: float) -> str:
    """Of one core, as "1.2 core minutes" of 0.02 hours."""
    if hours >= 0.1:
        return f"{hours:,.2f} core hours"
    return f"{3600 * hours:.2g} core seconds" if hours < 0.01 else f"{60 * hours:.1f} core minutes"


def expected_gain(corpus: Corpus, rows: Sequence[int], settings: PackSettings, workers: int) -> Gain:
    """The gain of packing the videos `rows`, at least one. workers: processes that try."""
    chosen = np.asarray(rows, dtype=np.int64)
    frames = corpus.frames[chosen]
    packed_frames = int(np.sum(-(-frames // settings.stride)))
    tried = chosen[np.linspace(0, len(chosen) - 1, min(TRIED_VIDEOS, len(chosen))).round().astype(int)].tolist()
    jobs = [(str(corpus.path), row, settings) for row in tried]
    trials: list[tuple[float, float]] = []
    with closing(run_isolated(try_video, jobs, min(workers, len(jobs)))) as results:
        for _, result in results:
            if isinstance(result, tuple):
                trials.append(result)
            elif not isinstance(result, (VideoError, ProcessDied)):  # packing will say what is wrong with these
                raise result
    bytes_per_frame, seconds_per_frame = np.mean(trials, axis=0) if trials else (None, None)
    span = (CLIP_FRAMES - 1) * settings.stride + 1
    counted = chosen[np.linspace(0, len(chosen) - 1, min(COUNTED_VIDEOS, len(chosen))).round().astype(int)].tolist()
    # Clips are drawn by frames, so long videos count for more.
    lead = np.average(
        [mean_lead(corpus.gops(row), int(corpus.frames[row]), span) for row in counted], weights=corpus.frames[counted]
    )
    return Gain(
        videos=len(chosen),
        frames=int(frames.sum()),
        bytes=sum(corpus.video(row).facts.size_bytes for row in chosen.tolist()),
        packed_frames=packed_frames,
        packed_bytes=None if bytes_per_frame is None else round(float(bytes_per_frame) * packed_frames),
        core_hours=None if seconds_per_frame is None else float(seconds_per_frame) * int(frames.sum()) / 3600,
        amplification=(float(lead) + span) / CLIP_FRAMES,
        packed_amplification=((settings.keyframe_interval - 1) / 2 + CLIP_FRAMES) / CLIP_FRAMES,
        tried=len(trials),
    )


def mean_lead(gops: GopTable, num_frames: int, span: int) -> float:
    """How many frames on average have to be decoded before a clip of `span` frames that starts anywhere in the video."""
    clean = gops.clean | (np.arange(len(gops)) == 0)
    starts = gops.first_frame[clean].astype(np.int64)
    num_starts = max(num_frames - span + 1, 1)
    lengths = np.diff(np.minimum(np.append(starts, num_starts), num_starts))
    return float(np.sum(lengths * (lengths - 1) / 2) / num_starts)


def try_video(corpus_path: str, row: int, settings: PackSettings) -> tuple[float, float]:
    """Encodes a few GOPs from the middle of a video: (bytes a proxy frame, CPU seconds a frame of the original)."""
    corpus = Corpus.open(corpus_path)
    video, gops = corpus.video(row).facts, corpus.gops(row)
    starts = gops.first_frame[gops.clean]
    wanted = TRIED_GOPS * settings.keyframe_interval
    latest = max(video.frames - wanted * settings.stride, 0)
    early = starts[starts <= min(latest, video.frames // 2)]
    start = int(early[-1]) if len(early) else 0
    frames = np.arange(start, video.frames, settings.stride)[:wanted]
    began = time.process_time()
    with ProxyEncoder(io.BytesIO(), video, settings, Fraction(1, 25)) as encoder:
        for index, (_, _, frame) in enumerate(read_frames(video, gops, frames, DecodeCount())):
            encoder.write(frame, index, 1)
    seconds = time.process_time() - began
    return encoder.encoded_bytes / len(frames), seconds / (len(frames) * settings.stride)
