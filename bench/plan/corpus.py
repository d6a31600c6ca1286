"""What the spans of a corpus that is there cost: bytes and pictures by its index, core seconds by decoding some of them here.

Shapes: T frames, V views, R x R pixels.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.config.settings import Config, ConfigError
from ...loaders.corpus.corpus import Corpus
from ...loaders.decode.recipe import Recipe
from ...loaders.decode.span import SpanReader
from ...loaders.draw.augment import CropRecipe
from ...loaders.draw.sampler import Sampler
from ...loaders.pack.pack import PACKING_NAME
from ...loaders.video.video import GopTable, PacketFlag
from ..rows.row import machine
from .model import Rate
from .rates import fit_line

COUNTED_SPANS = 256
TIMED_SPANS, TIMED_SECONDS = 16, 4.0
TIMED_VIEWS = (1, 4)


@dataclass(frozen=True)
class Measured:
    """Of originals and proxies, where they are there: their rates by the names of `Videos`. packing: core seconds a frame of the
    originals, and bytes a frame of the proxies."""

    spans: dict[str, dict[str, Rate]]
    packing: tuple[Rate, Rate] | None = None


def measure_corpora(originals: Corpus | None, proxies: Corpus | None, config: Config) -> Measured:
    """Raises ConfigError where clips of the config cannot be drawn from one of them."""
    found = {"originals": originals, "proxies": proxies}
    spans = {name: span_rates(corpus, config) for name, corpus in found.items() if corpus is not None}
    return Measured(spans, None if proxies is None else packing_of(proxies))


def span_rates(corpus: Corpus, config: Config) -> dict[str, Rate]:
    """Bytes, pictures, core seconds a span and a view of it, in means over spans drawn from all videos alike. Seconds are left out
    where no span can be read. Raises ConfigError."""
    data = config.data
    stride = None if data.stride is None else data.stride // corpus.packed_stride
    if stride is not None and not np.all(stride * corpus.packed_stride == data.stride):
        raise ConfigError(
            f"data.stride: {data.stride} is no multiple of the stride with which {corpus.path} was packed"
        )
    clip = {"num_frames": data.frames, "stride": stride, "sample_fps": data.sample_fps}
    sampler = Sampler(corpus.frames, **clip, video_fps=corpus.fps)
    draws = np.arange(min(COUNTED_SPANS, sampler.num_spans))
    counted = [span_cost(corpus.gops(c.video), np.unique(c.frames)) for c in sampler.clips(draws)]
    size, pictures = np.mean(counted, axis=0)
    source = f"{len(draws):,} spans of {corpus.path}, by its index"
    rates = {"bytes_per_span": Rate(float(size), source), "pictures_per_span": Rate(float(pictures), source)}
    by_views = _core_seconds(corpus, sampler, config)
    if by_views:
        span, view = fit_line(by_views)
        source = f"spans of {corpus.path} decoded here, {machine(torch.device('cpu'))['device']}"
        rates |= {"core_seconds_per_span": Rate(span, source), "core_seconds_per_view": Rate(view, source)}
    return rates


def span_cost(gops: GopTable, frames: NDArray[np.int64]) -> tuple[int, int]:
    """(bytes, pictures) of a window: from the keyframe where decoding may start to the last of `frames` (F,), ascending; pictures
    that nothing refers to are read and not decoded. What a decoder can jump over counts, so it is an upper bound."""
    first, last = gops.clean_start(int(frames[0])), gops.locate(int(frames[-1]))
    begin = int(gops.first_packet[first])
    table = gops.packets[begin : int(gops.first_packet[last] + gops.num_packets[last])]
    wanted = np.isin(table.frame, frames)
    table = table[slice(0, int(np.flatnonzero(wanted)[-1]) + 1)]
    needed = (table.flags & PacketFlag.DISPOSABLE == 0) | wanted[: len(table)]
    return int(table.size.sum()), int(needed.sum())


def _core_seconds(corpus: Corpus, sampler: Sampler, config: Config) -> dict[float, float]:
    """A span's by its number of views: means over the same spans, as many as are read within a few seconds; none where one cannot
    be read."""
    data = config.data
    crops = CropRecipe(data.crop_scale, data.crop_ratio, data.flip)
    reader = SpanReader(Recipe(corpus, sampler, crops, data.resolution, data.resize, data.content_box))
    output = np.empty((max(TIMED_VIEWS), data.frames, data.resolution, data.resolution, 3), np.uint8)
    began, spent = time.monotonic(), []
    try:
        for draw in range(min(TIMED_SPANS, sampler.num_spans)):
            if spent and time.monotonic() - began > TIMED_SECONDS:
                break
            spent.append([])
            for views in TIMED_VIEWS:
                start = time.thread_time()
                if reader.read(draw, tuple(range(views)), output[:views]).is_lost:
                    return {}
                spent[-1].append(time.thread_time() - start)
    finally:
        reader.close()
    return dict(zip(map(float, TIMED_VIEWS), np.mean(spent, axis=0).tolist(), strict=True))


def packing_of(proxies: Corpus) -> tuple[Rate, Rate] | None:
    """What `trocar pack` took and made when it wrote these proxies; None where it did not write that down."""
    path = Path(proxies.path) / PACKING_NAME
    if not path.is_file():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    if not told["core_seconds"]:
        return None
    size = sum(values["size_bytes"] for values in proxies.scan("size_bytes")) / int(proxies.frames.sum())
    source = f"trocar pack into {proxies.path}, {told['processor']}"
    return Rate(told["core_seconds"] / told["original_frames"], source), Rate(size, f"files of {proxies.path}")
