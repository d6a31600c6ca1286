"""How fast videos decode for training: the decoder's own ceiling first, then windows of random clips, then whole clips.

The ceiling is what independent sessions reach that decode pictures one after the other and hand out only the first and the last;
the number of sessions is that which is fastest. Windows are those that training cuts. On a CPU the same runs on DALI's CPU backend
with VP9 and few pictures, so that the command is tested; those figures say nothing about a GPU.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.stream import VideoStream

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.index import index_corpus
from ...loaders.decode.batch import LoaderCount
from ...loaders.decode.plan import clip_numbers
from ...loaders.decode.recipe import CropSource
from ...loaders.draw.augment import Box, Crop, CropRecipe
from ...loaders.draw.sampler import Sampler
from ..rows.cells import known_cell, share_cell, table_of
from ..rows.row import row
from ..rows.timing import wait

ENCODERS = {
    "h264": ("libx264", {"preset": "veryfast"}),
    "hevc": ("libx265", {"preset": "ultrafast"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "mjpeg": ("mjpeg", {"qmin": "3", "qmax": "3"}),
}
CORNER, RESOLUTION = 16, 224


@dataclass(frozen=True)
class Scale:
    """How much is measured. frames: of each video, one GOP for the ceiling. seconds: of each run. sessions: numbers tried."""

    codecs: Sequence[str] = ("h264", "hevc", "vp9")
    sizes: Sequence[tuple[int, int]] = ((456, 256), (1280, 720), (1920, 1080))
    gops: Sequence[int] = (12, 30, 250)
    frames: int = 500
    videos: int = 4
    seconds: float = 4.0
    sessions: Sequence[int] = (1, 2, 4, 8, 16)
    batch: int = 32
    clip_frames: int = 16
    stride: int = 4


QUICK = Scale(("h264", "hevc"), ((456, 256), (1920, 1080)), (12, 250), frames=250, seconds=2.0, sessions=(4, 8, 16))
ON_CPU = Scale(("vp9",), ((160, 96),), (12,), frames=40, videos=2, seconds=0.2, sessions=(1, 2), batch=2, clip_frames=4)


class CornerCrops:
    """The same few pixels of every picture, so that next to nothing is left to do behind the decoder."""

    def crop(self, content: Box, *, seed: int, draw: int, view: int = 0) -> Crop:
        return Crop(Box(content.left, content.top, CORNER, CORNER), flip=False)


def bench_decode(device: torch.device, scale: Scale | None = None) -> list[dict[str, Any]]:
    """Measures every codec, size and GOP on the device. One row each, the ceiling of that codec and size in it."""
    scale = scale or (Scale() if device.type == "cuda" else ON_CPU)
    rows = []
    for codec, size in itertools.product(scale.codecs, scale.sizes):
        with tempfile.TemporaryDirectory() as folder:
            whole = write_corpus(Path(folder) / "whole", codec, size, scale.frames, scale)
            ceiling, sessions = max((_ceiling(whole, device, scale, sessions), sessions) for sessions in scale.sessions)
            for gop in scale.gops:
                corpus = write_corpus(Path(folder) / f"gop{gop}", codec, size, gop, scale)
                measured = {"codec": codec, "width": size[0], "height": size[1], "gop": gop}
                measured |= {"ceiling_frames_per_second": ceiling, "sessions": sessions}
                measured |= _windows(corpus, device, scale, sessions, ceiling)
                rows.append(row("decode", device, measured))
    return rows


def write_corpus(folder: Path, codec: str, size: tuple[int, int], gop: int, scale: Scale) -> Corpus:
    """An index of some videos of moving noise of large grain, which costs about as much to decode as an endoscope's picture."""
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    encoder, options = ENCODERS[codec]
    for video in range(scale.videos):
        with av.open(str(videos / f"{video}.mp4"), "w") as target:
            stream = target.add_stream(
                encoder, rate=25, options={**options, "g": str(gop), "keyint_min": str(gop), "b:v": "4M"}
            )
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size = gop
            for number, picture in enumerate(_pictures(size, scale.frames, video)):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts = number
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
    index_corpus([videos], folder / "corpus", workers=1, content_box=False, progress=False)
    return Corpus.open(folder / "corpus")


def _pictures(size: tuple[int, int], frames: int, seed: int) -> Iterator[np.ndarray]:
    width, height = size
    grain = max(4, height // 64)
    coarse = (
        np.random.default_rng(seed).integers(20, 220, (height // grain + 60, width // grain + 120, 3)).astype(np.uint8)
    )
    scene = coarse.repeat(grain, 0).repeat(grain, 1)
    for number in range(frames):
        top, left = number % (40 * grain), 2 * number % (80 * grain)
        yield np.ascontiguousarray(scene[top : top + height, left : left + width])


def _ceiling(corpus: Corpus, device: torch.device, scale: Scale, sessions: int) -> float:
    """Pictures decoded per second by so many sessions at once."""
    shortest = int(corpus.frames.min())
    sampler = Sampler(corpus.frames, num_frames=2, stride=shortest - 1, seed=0)
    count, seconds = run_windows(corpus, sampler, device, scale, CornerCrops(), sessions, batch=sessions)
    return count.packets_decoded / seconds


def _windows(corpus: Corpus, device: torch.device, scale: Scale, sessions: int, ceiling: float) -> dict[str, Any]:
    sampler = Sampler(corpus.frames, num_frames=scale.clip_frames, stride=scale.stride, seed=0)
    decoded, decode_seconds = run_windows(corpus, sampler, device, scale, CornerCrops(), sessions, scale.batch)
    with Utilization(device) as utilization:
        clips, clip_seconds = run_windows(corpus, sampler, device, scale, CropRecipe(), sessions, scale.batch)
    decode_rate, clip_rate = decoded.packets_decoded / decode_seconds, clips.packets_decoded / clip_seconds
    return {
        "decoded_frames_per_second": decode_rate,
        "of_ceiling": decode_rate / ceiling,
        "decoded_clips_per_second": decoded.clips / decode_seconds,
        "clips_per_second": clips.clips / clip_seconds,
        "clips_of_ceiling": clip_rate / ceiling,
        "amplification": clips.amplification,
        "bytes_per_clip": clips.bytes_read / clips.clips,
        "nvdec_busy_percent": utilization.decoder_percent,
        # Nothing but colour conversion, crop and resize runs on the multiprocessors.
        "sm_busy_percent": utilization.sm_percent,
    }


def run_windows(
    corpus: Corpus,
    sampler: Sampler,
    device: torch.device,
    scale: Scale,
    crops: CropSource,
    sessions: int,
    batch: int,
    *,
    is_uncropped: bool = True,
) -> tuple[LoaderCount, float]:
    """What a loader did in the seconds after its first batches, and how long those were."""
    from ...loaders.dali import ClipLoader  # here, as the tables and the made videos of this module need no DALI

    count = LoaderCount()
    with ClipLoader(
        corpus,
        sampler,
        crops,
        clip_numbers(batch),
        resolution=CORNER if isinstance(crops, CornerCrops) else RESOLUTION,
        device=device,
        decoders=sessions,
        spans_per_run=batch,
        prefetch=3,
        is_uncropped=is_uncropped,
    ) as loader:
        for _ in range(4):
            next(loader)
        wait(device)
        started = time.perf_counter()
        while time.perf_counter() - started < scale.seconds:
            count.add(next(loader).count)
        wait(device)
        seconds = time.perf_counter() - started
        if loader.taken_over:
            raise RuntimeError(f"DALI left videos to the CPU: {next(iter(loader.taken_over.values()))}")
    return count, seconds


class Utilization:
    """How busy the GPU's decoders and multiprocessors were, in percent of the time, as its driver says; None elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.decoder_percent: float | None = None
        self.sm_percent: float | None = None
        self._device = device
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Utilization:
        if self._device.type == "cuda":
            command = ["nvidia-smi", "--query-gpu=utilization.decoder,utilization.gpu", "--format=csv,noheader,nounits"]
            command += ["-lms", "100", "-i", str(self._device.index or 0)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        output = self._process.communicate()[0]
        samples = [line.split(",") for line in output.splitlines() if line.count(",") == 1]
        values = np.array(
            [[float(value) for value in sample] for sample in samples if all(v.strip().isdecimal() for v in sample)]
        )
        # The driver averages over up to a second: the first samples still tell of before.
        if len(values) > 10:
            self.decoder_percent, self.sm_percent = (float(value) for value in values[10:].mean(axis=0))


table = table_of(
    {
        "video": "{codec} {width}x{height} GOP {gop}",
        "ceiling, frames/s (sessions)": "{ceiling_frames_per_second:.0f} ({sessions})",
        "windows, frames/s": "{decoded_frames_per_second:.0f}",
        "of the ceiling": share_cell("of_ceiling"),
        "clips/s": "{clips_per_second:.0f}",
        "amplification": "{amplification:.1f}",
        "NVDEC busy": known_cell("nvdec_busy_percent", "{:.0f} %"),
        "SM busy": known_cell("sm_busy_percent", "{:.0f} %"),
    }
)
