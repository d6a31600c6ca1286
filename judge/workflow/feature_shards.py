"""One shard of vectors: a frozen encoder over some moments of one video, decoded in order, ahead of the encoder.

Batches are cut anew in each video, in the same places whoever makes a shard: its vectors are the same bits.

Shapes: N moments of a video, T frames of a clip, R x R pixels, D values a vector.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from queue import Full, Queue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.config.error import ConfigError
from ...engine.inputs.folders import RANDOM, TIMM
from ...engine.step.device import choose_device
from ...loaders.corpus.folder import MANIFEST_NAME
from ...loaders.corpus.video_files import VideoFiles
from ...loaders.curate.embeddings import Manifest, shard_path, write_shard, write_spans
from ...loaders.pack.isolated import worker_number
from ...loaders.video.decode import DecodeCount
from ...loaders.video.timeline import Timeline
from ..downstream.backbones import Backbone, load_backbone, pooled_as
from ..downstream.features import encode
from ..downstream.protocol import read_protocol
from ..downstream.task import claim
from .choices import FeatureChoices
from .feature_clips import clip_frames, num_moments, read_clips

SETTINGS = "features.json"
BATCH = 16
WAITING_BATCHES = 2
POLL_SECONDS = 0.1


@dataclass
class ShardCost:
    """What making shards took. video_seconds: of the videos. decode_seconds, encode_seconds: of the two, which run beside each
    other. decoded: frames that came out of decoders; used: of those wanted, each once; shown: that the videos have there."""

    video_seconds: float = 0.0
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    decoded: int = 0
    used: int = 0
    shown: int = 0

    def add(self, other: ShardCost) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Extractor:
    """One encoder on one device, and the videos that it has looked at."""

    def __init__(
        self, out: Path, backbone: Backbone, choices: FeatureChoices, device: torch.device, rows_per_shard: int
    ) -> None:
        self.out, self.backbone, self.choices = out, backbone, choices
        self.device, self.rows_per_shard = device, rows_per_shard
        self.videos = VideoFiles()
        self.model = backbone.model.to(device)
        claim(
            out / SETTINGS,
            {"encoder": backbone.digest, "clip_shape": asdict(backbone.clips), **asdict(choices)},
            "features",
        )

    def prepare(self, path: str) -> tuple[Path, Manifest]:
        """The folder of a video, with its manifest and spans. Raises VideoError."""
        row = self.videos.add(path)
        video, timeline = self.videos.video(row), self.videos.timeline(row)
        shape, count = self.backbone.clips, num_moments(timeline, self.choices.rate)
        stem = re.sub(r"[^\w.-]", "_", Path(path).stem)[:80]
        folder = self.out / f"{stem}_{video.gops_digest}"
        manifest = Manifest(
            rows=count,
            width=self.backbone.width,
            rows_per_shard=self.rows_per_shard,
            corpus=video.gops_digest,
            model=self.backbone.name,
            model_digest=self.backbone.digest,
            frames=shape.frames,
            stride=shape.stride,
            sample_fps=shape.sample_fps,
            resolution=shape.resolution,
        )
        if (folder / MANIFEST_NAME).exists():
            known = Manifest.read(folder)
            if known.rows_per_shard == self.rows_per_shard and known.rows == count:
                return folder, known
            if known.rows != count or any(shard_path(folder, shard).exists() for shard in range(known.num_shards)):
                raise ConfigError(
                    f"{folder}: holds {known.rows} vectors in shards of {known.rows_per_shard}, {count} in shards of "
                    f"{self.rows_per_shard} are asked for; choose another --out"
                )
        frames = clip_frames(timeline, np.arange(count) / self.choices.rate, shape, self.choices)
        first = frames.min(axis=1)
        spans = (frames.max(axis=1) - first + 1).astype(np.int32)
        write_spans(folder, [path], np.zeros(count, np.int32), first, spans)
        manifest.write(folder)
        return folder, manifest

    def make(self, path: str, shard: int) -> ShardCost:
        """Writes a shard. Raises VideoError."""
        folder, manifest = self.prepare(path)
        row = self.videos.add(path)
        timeline, shape = self.videos.timeline(row), self.backbone.clips
        begin = shard * self.rows_per_shard
        moments = (begin + np.arange(manifest.shard_rows(shard))) / self.choices.rate
        frames = clip_frames(timeline, moments, shape, self.choices)
        count, cost = DecodeCount(), ShardCost()
        found: list[torch.Tensor] = []
        clips = read_clips(self.videos, row, frames, shape.resolution, count)
        for batch in _ahead(_batches(clips, cost)):
            start = time.monotonic()
            vectors = encode(self.model, torch.from_numpy(batch), self.device, averaged=True)[:, 0]
            found.append(vectors.half())
            cost.encode_seconds += time.monotonic() - start
        start = time.monotonic()
        values = torch.cat(found).cpu().numpy()
        cost.encode_seconds += time.monotonic() - start
        if not np.isfinite(values).all():
            raise ConfigError(
                f"{path}: vectors of {self.backbone.name} are not finite; its weights are broken, or of another model"
            )
        write_shard(folder, shard, values)
        cost.video_seconds = len(moments) / self.choices.rate
        cost.decoded, cost.used = count.frames, len(np.unique(frames))
        cost.shown = _first_frame(timeline, moments[-1] + 1 / self.choices.rate) - _first_frame(timeline, moments[0])
        return cost


def make_shard(path: str, shard: int, *settings: Any) -> ShardCost:
    """Makes a shard in a worker. settings: of `extractor_of`, the device as it was asked for."""
    out, model, told, seed, choices, device, rows_per_shard = settings
    return extractor_of(out, model, told, seed, choices, own_device(device), rows_per_shard).make(path, shard)


@lru_cache(maxsize=1)
def extractor_of(
    out: str,
    model: str,
    told: tuple[tuple[str, Any], ...],
    seed: int,
    choices: FeatureChoices,
    device: str,
    rows_per_shard: int,
) -> Extractor:
    """This process's, which ends with another one's."""
    return Extractor(Path(out), loaded(model, told, seed), choices, torch.device(device), rows_per_shard)


@lru_cache(maxsize=1)
def loaded(model: str, told: tuple[tuple[str, Any], ...], seed: int) -> Backbone:
    """The latest encoder, which several folders of features may want, pooled as a linear probe has it. told: of `as_told`. An image
    model sees one picture a moment, where no other number is asked for."""
    options = dict(told)
    if model.removeprefix(RANDOM).startswith(TIMM):
        options["frames"] = options.get("frames") or 1
    return pooled_as(load_backbone(model, seed=seed, **options), read_protocol("linear"))


def own_device(wanted: str) -> str:
    """Of several GPUs, each process takes one in turn."""
    found = choose_device(wanted)
    if found.type == "cuda" and found.index is None:
        return f"cuda:{worker_number() % torch.cuda.device_count()}"
    return str(found)


def as_told(options: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """Options of `load_backbone` in an order of their own."""
    return tuple(sorted((options or {}).items()))


def _first_frame(timeline: Timeline, seconds: float) -> int:
    """The frame on screen at a moment; the number of frames behind the end."""
    return timeline.last + 1 if seconds >= timeline.end else timeline.shown(float(seconds))


def _batches(clips: Iterator[NDArray[np.uint8]], cost: ShardCost) -> Iterator[NDArray[np.uint8]]:
    """Batches of clips; what making them took is added to `cost`."""
    waiting: list[NDArray[np.uint8]] = []
    start = time.monotonic()
    for clip in clips:
        waiting.append(clip)
        if len(waiting) == BATCH:
            batch = np.stack(waiting)
            cost.decode_seconds += time.monotonic() - start
            yield batch
            waiting, start = [], time.monotonic()
    cost.decode_seconds += time.monotonic() - start
    if waiting:
        yield np.stack(waiting)


def _ahead(batches: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """The same, made in a thread while others are encoded; FFmpeg lets the interpreter go. What it raises is raised here."""
    ready: Queue[NDArray[np.uint8] | Exception | None] = Queue(WAITING_BATCHES)
    stop = threading.Event()

    def put(item: NDArray[np.uint8] | Exception | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=POLL_SECONDS)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stop.is_set():
                    return
            put(None)
        except Exception as error:  # noqa: BLE001  (raised where the batches are read)
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
