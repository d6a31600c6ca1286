"""`trocar bench proxies`: what a proxy's codec, GOP length and quality cost in bytes, decoding time and likeness.

Every variant is packed as `trocar pack` does, hence verified frame by frame. Then random 16-frame clips are read from it, cropped
and resized to 224 pixels by the CPU loader's own reader on one core, and all its frames are compared with the original's as
training sees both (`likeness.py`). The last variant keeps uncompressed RGB in a memory-mapped file: the ceiling of likeness.

Shapes: F frames of the proxy, R = 224 pixels; pictures are uint8 RGB, (F, R, R, 3).
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...engine.console.table import Table
from ...loaders.corpus.video_files import VideoFiles
from ...loaders.decode.batch import LoaderCount
from ...loaders.decode.recipe import Recipe
from ...loaders.decode.resize import Resizer
from ...loaders.decode.span import SpanReader
from ...loaders.draw.augment import Box, Crop, CropRecipe
from ...loaders.draw.sampler import Clip
from ...loaders.pack.proxy import write_proxy
from ...loaders.pack.proxy_encoder import PictureScaler
from ...loaders.pack.settings import PackSettings
from ...loaders.video.decode import DecodeCount
from ...loaders.video.probe import probe_video
from ...loaders.video.sequence import read_frames
from ...loaders.video.video import GopTable, VideoError, VideoFacts
from ..rows.row import row, write_rows
from .likeness import RESOLUTION, Pictures, likeness, pictures

CLIP_FRAMES, MOST_CLIPS, ROUNDS = 16, 64, 5


@dataclass(frozen=True)
class Variant(PackSettings):
    """Settings of a proxy, and options that its encoder gets beside those of `trocar pack`."""

    more: str = ""

    def encoder_options(self) -> dict[str, str]:
        options = super().encoder_options()
        if self.more:
            options["x264-params"] += f":{self.more}"
        return options

    @property
    def label(self) -> str:
        more = f" {self.more.replace(':', ' ')}" if self.more else ""
        return f"{self.codec} gop {self.keyframe_interval} quality {self.encoder_quality:g}{more}"


def variants(short_side: int, stride: int) -> list[Variant]:
    """What is compared."""
    common: dict[str, Any] = {"short_side": short_side, "stride": stride}
    rows = [Variant(gop=gop, **common) for gop in (1, 4, 8, 12, 16)]
    rows += [Variant(quality=quality, **common) for quality in (17, 20, 26, 29)]
    rows += [Variant(gop=1, quality=20, **common)]
    rows += [Variant(more=more, **common) for more in ("no-deblock=0", "cabac=1", "cabac=1:no-deblock=0")]
    rows += [Variant(codec="hevc", quality=quality, **common) for quality in (20, 23, 26)]
    rows += [Variant(codec="vp9", quality=quality, **common) for quality in (16, 24, 32)]
    rows += [Variant(codec="mjpeg", quality=quality, **common) for quality in (2, 3, 5, 8)]
    return rows


@dataclass
class _RandomClips:
    """Clips of consecutive frames that start anywhere in a video, each start at most once."""

    num_video_frames: int
    num_frames: int = CLIP_FRAMES
    seed: int = 0
    max_spares: int = 0
    num_videos: int = 1

    @property
    def starts(self) -> NDArray[np.int64]:
        last = self.num_video_frames - self.num_frames
        return np.random.default_rng(self.seed).permutation(last + 1)[:MOST_CLIPS]

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]:
        frames = np.arange(self.num_frames)
        return [Clip(int(n), view, spare, 0, self.starts[int(n)] + frames, 0) for n in np.asarray(draws)]


@dataclass(frozen=True)
class StoredVideo:
    """One way to store a video: what is known of it, its number of clips, and what reads all of these once."""

    figures: dict[str, Any]
    clips: int
    read_all: Callable[[], object]


def bench_proxies(
    paths: Sequence[str | Path],
    *,
    short_side: int = 256,
    stride: int = 4,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measures all variants on each video and writes the rows to `out`. tell: called with each line of the table.

    Raises VideoError where a video cannot be read or is too short for a clip, ValueError on settings out of range.
    """
    rows = []
    chosen = variants(short_side, stride)
    for path in paths:
        video, gops = probe_video(path)
        if -(-video.frames // stride) < CLIP_FRAMES:
            raise VideoError(
                f"{path}: {video.frames} frames at stride {stride} hold no clip of {CLIP_FRAMES}; name a longer video"
            )
        original = pictures(video, gops, stride)
        named = {"video": Path(path).name, "width": video.width, "height": video.height, "stride": stride}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
            arms = [
                proxy_arm(video, gops, original, variant, Path(folder) / f"{number}.mp4", opened)
                for number, variant in enumerate(chosen)
            ]
            arms.append(uncompressed_arm(video, gops, original, chosen[0], Path(folder) / "uncompressed"))
            for arm, speed in zip(arms, measure_speeds(arms), strict=True):
                rows.append(row("proxies", torch.device("cpu"), {**named, **arm.figures, **speed}))
                tell(table_line(rows[-1]))
    if out is not None:
        write_rows(out, rows)
    return rows


def proxy_arm(
    video: VideoFacts, gops: GopTable, original: Pictures, variant: Variant, path: Path, opened: ExitStack
) -> StoredVideo:
    """Packs one variant into `path` and compares it with `original`, (F, R, R, 3). opened: closes its reader."""
    began = time.process_time()
    proxy = write_proxy(video, gops, path, variant)
    packing_seconds = time.process_time() - began
    files = VideoFiles([path], content_box=False)
    clips = _RandomClips(proxy.frames)
    reader = opened.enter_context(closing(SpanReader(Recipe(files, clips, CropRecipe(), RESOLUTION))))
    output = np.empty((1, CLIP_FRAMES, RESOLUTION, RESOLUTION, 3), np.uint8)

    def read_all() -> LoaderCount:
        count = LoaderCount()
        for draw in range(len(clips.starts)):
            result = reader.read(draw, (0,), output)
            if result.is_lost:
                raise VideoError(result.count.failures[0].reason)
            count.add(result.count)
        return count

    figures = {
        "variant": variant.label,
        "bytes_per_frame": proxy.size_bytes / proxy.frames,
        "amplification": read_all().amplification,
        "packing_cpu_seconds_per_original_frame": packing_seconds / video.frames,
        **likeness(original, pictures(files.video(0).facts, files.gops(0), 1)),
    }
    return StoredVideo(figures, len(clips.starts), read_all)


def uncompressed_arm(
    video: VideoFacts, gops: GopTable, original: Pictures, settings: PackSettings, path: Path
) -> StoredVideo:
    """RGB frames at the proxy's size in a memory-mapped file, cropped and resized by the same filters."""
    scaler = PictureScaler(video, settings)
    wanted = np.arange(0, video.frames, settings.stride)
    stored = np.memmap(path, np.uint8, "w+", shape=(len(wanted), scaler.height, scaler.width, 3))
    for index, (_, _, frame) in enumerate(read_frames(video, gops, wanted, DecodeCount())):
        stored[index] = scaler(frame).to_ndarray(format="rgb24")
    content = Box(0, 0, scaler.width, scaler.height)
    starts = _RandomClips(len(wanted)).starts

    def resized(first: int, stop: int, crop: Crop) -> Pictures:
        resizer = Resizer(crop, 0, RESOLUTION)
        frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24") for picture in stored[first:stop])
        return np.stack([resizer(frame) for frame in frames])

    def read_all() -> None:
        for draw, start in enumerate(starts.tolist()):
            resized(start, start + CLIP_FRAMES, CropRecipe().crop(content, seed=0, draw=draw))

    figures = {
        "variant": "uncompressed RGB",
        "bytes_per_frame": math.prod(stored.shape[1:]),
        "amplification": 1.0,
        "packing_cpu_seconds_per_original_frame": None,
        **likeness(original, resized(0, len(stored), Crop(content, False))),
    }
    return StoredVideo(figures, len(starts), read_all)


def measure_speeds(arms: Sequence[StoredVideo]) -> list[dict[str, Any]]:
    """CPU time of reading all clips of each arm. They take turns, so that whatever else the machine does meets all of them."""
    seconds: list[list[float]] = [[] for _ in arms]
    for _ in range(ROUNDS):
        for arm, measured in zip(arms, seconds, strict=True):
            began = time.process_time()
            arm.read_all()
            measured.append(time.process_time() - began)
    return [_speed(arm, measured) for arm, measured in zip(arms, seconds, strict=True)]


def _speed(arm: StoredVideo, seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "clips": arm.clips,
        "rounds": len(seconds),
        "clips_per_core_second": arm.clips / median,
        "frames_per_core_second": arm.clips * CLIP_FRAMES / median,
        "spread_percent": 100 * (max(seconds) - min(seconds)) / median,
    }


MEANS = ("bytes_per_frame", "amplification", "frames_per_core_second", "psnr_db", "ssim")
FIGURES: dict[str, str | Callable[[Any], str]] = {
    "KiB a frame": lambda row: f"{row['bytes_per_frame'] / 1024:.1f}",
    "decoded per used": "{amplification:.2f}",
    "frames/s a core": "{frames_per_core_second:.0f}",
    "PSNR": "{psnr_db:.1f} dB",
    "SSIM": "{ssim:.3f}",
}
MEASURED = {
    "video": "{video}",
    "proxy": "{variant}",
    **{name: FIGURES[name] for name in ("KiB a frame", "decoded per used", "frames/s a core")},
    "clips/s a core": lambda row: f"{row['clips_per_core_second']:.0f} +- {row['spread_percent'] / 2:.0f} %",
    **{name: FIGURES[name] for name in ("PSNR", "SSIM")},
}
HEADER = Table(MEASURED).markdown()


def table_line(entry: dict[str, Any]) -> str:
    """The row below HEADER, for a table that grows while it is measured."""
    return Table.of([entry], MEASURED).markdown().splitlines()[-1]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As docs/performance.md has it: each variant's means over the videos, and what they were measured on."""
    videos = list(dict.fromkeys(f"{entry['video']} ({entry['width']} x {entry['height']})" for entry in rows))
    means = []
    for variant in dict.fromkeys(entry["variant"] for entry in rows):
        found = [entry for entry in rows if entry["variant"] == variant]
        means.append({"variant": variant, **{key: statistics.mean(entry[key] for entry in found) for key in MEANS}})
    entry, spread = rows[0], statistics.median(entry["spread_percent"] for entry in rows)
    versions = ", ".join(f"{name} {entry['versions'][name]}" for name in ("av", "python"))
    return (
        f"{Table.of(means, {'proxy': '{variant}', **FIGURES}).markdown()}\n\n"
        f"Means over {', '.join(videos)}, every {entry['stride']}th frame; {entry['rounds']} rounds, which lie "
        f"{spread:.0f} % apart (median); {entry['machine']['device']}, {versions}, commit {entry['commit']}."
    )
