"""`trocar predict CELL VIDEO...`: what a fine-tuned encoder, or a probe, says of videos that have no labels, as a CSV.

A video is cut into pieces, each a row, and a row is seen in the clips in which `trocar finetune` sees those of its test split.
Their probabilities are averaged, so the same rows have the same scores. One video is read at a time and nothing of its pictures is
kept: its length does not matter. One that cannot be read is named, and the others are done.

Shapes: B clips, T frames, R x R pixels, N rows, K classes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...engine.config.error import ConfigError
from ...loaders.corpus.video_files import VideoFiles
from ...loaders.corpus.whole_file import write_whole
from ...loaders.video.video import VideoError
from ..labels.dataset import MANY, Segment
from ..labels.segment_clips import clip_rows
from .backbones import Backbone, load_backbone, pooled_as
from .features import encode
from .heads import build_head
from .predictor import WEIGHTS, PredictorRecord, Problem, listed_videos, read_record
from .protocol import Protocol
from .training_state import restore_state
from .tuning import build_tuned, clip_scores

COLUMNS = ("file", "start_seconds", "end_seconds", "label")
LIKELY = 0.5  # from here on a label counts, where a row may have several


class Probe(nn.Module):
    """A frozen encoder and a head on its features, which are kept in half precision when the head is trained: here too."""

    def __init__(self, backbone: Backbone, head: nn.Module, device: torch.device, *, averaged: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.device, self.averaged = backbone.model, head, device, averaged

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, R, R, 3) uint8 -> (B, K)"""
        return self.head(encode(self.encoder, frames, self.device, averaged=self.averaged).half().float())


@dataclass(frozen=True)
class Predictor:
    """model: (B, T, R, R, 3) uint8 -> (B, K)."""

    record: PredictorRecord
    protocol: Protocol
    backbone: Backbone
    model: nn.Module
    device: torch.device

    def scores(
        self, rows: Sequence[Segment], videos: VideoFiles | None = None, *, task: str = ""
    ) -> NDArray[np.float64]:
        """(N, K) probabilities of pieces of videos, each the mean over its clips. task: as in `clip_scores`. Raises VideoError."""
        rows_of_clips = clip_rows(rows)
        more = {"several": self.record.several, "device": self.device, "task": task}
        sizes = (len(self.record.classes), self.protocol, self.backbone.clips)
        return clip_scores(self.model, rows_of_clips, videos or VideoFiles(), *sizes, **more)


def load_predictor(folder: Path, device: torch.device, model: str | None = None) -> Predictor:
    """What `trocar finetune` has trained in `folder`.

    model: where its encoder is now, if not where it was. Raises ConfigError where the folder holds no such thing or the encoder's
    weights are others, and what `load_backbone` raises.
    """
    record = read_record(folder)
    protocol = record.read_protocol()
    rate = {"stride": record.stride, "sample_fps": record.sample_fps}
    size = {"frames": record.frames, "resolution": record.resolution}
    loaded = load_backbone(model or record.model, **size, **record.options)
    backbone = pooled_as(replace(loaded, clips=replace(loaded.clips, **rate)), protocol)
    points = {point.name: point for point in protocol.grid()}
    point, classes = points[record.point], len(record.classes)
    if protocol.kind == "full":  # brings all weights of the encoder
        trained = whole = build_tuned(backbone, classes, point, protocol, 0)
    else:
        if backbone.digest != record.encoder:
            raise ConfigError(
                f"{loaded.name}: its weights are others than those that the head in {folder} was trained on; name those, for "
                "example --model RUN/checkpoints/step_..."
            )
        trained = build_head(point.head, backbone.width, classes, protocol)
        whole = Probe(backbone, trained, device, averaged="attentive" not in protocol.heads)
    restore_state(folder / WEIGHTS, [trained], None)
    return Predictor(record, protocol, backbone, whole.to(device).eval(), device)


def predict(
    predictor: Predictor,
    sources: Sequence[str],
    out: Path,
    *,
    rows: Sequence[Segment] = (),
    every: float | None = None,
    tell: Callable[[str], None],
) -> list[Problem]:
    """Writes `out`, a CSV with a row for every piece, whole or not at all. Returns what could not be predicted.

    sources: videos, folders, glob patterns, CSV files with a column path, or corpora. rows: pieces of videos besides. every:
    seconds of a piece; None: the median of the rows it was trained on, or whole videos where those were such. Raises ConfigError
    where nothing at all could be predicted.
    """
    problems: list[Problem] = []
    every = every or predictor.record.row_seconds

    def write(target: Path) -> None:
        done = 0
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, *(f"p({name})" for name in predictor.record.classes)])
            for path, pieces in [*_by_video(rows), *((path, None) for path in listed_videos(sources, problems))]:
                try:
                    videos = VideoFiles()
                    found = pieces_of_video(videos, path, every) if pieces is None else pieces
                    writer.writerows(_lines(predictor, found, predictor.scores(found, videos, task=path)))
                    done += 1
                    tell(f"{path}: {len(found)} row{'s' if len(found) > 1 else ''}")
                except (VideoError, OSError) as error:
                    problems.append(Problem(path, str(error)))
        if not done:
            raise ConfigError("\n".join(["nothing could be predicted", *map(str, problems)]))

    write_whole(out, write)
    return problems


def pieces_of_video(videos: VideoFiles, path: str, every: float | None) -> list[Segment]:
    """Consecutive pieces of a video, by a player's clock, from its first picture on: the first begins at a multiple of `every`
    seconds. The rest of the video is a piece too, where it is as long as a frame. Raises VideoError."""
    row = videos.add(path)
    timeline, facts = videos.timeline(row), videos.video(row).facts
    first, end = facts.start_seconds, timeline.end
    frame = facts.fps_denominator / facts.fps_numerator
    if every is None:
        return [Segment(path, round(first, 3), round(end, 3), "", path)]
    number = math.floor(first / every)
    starts = [number * every]
    while starts[-1] + every < end - frame / 2:
        number += 1
        starts.append(number * every)
    ends = [*starts[1:], end]
    return [Segment(path, round(start, 3), round(stop, 3), "", path) for start, stop in zip(starts, ends, strict=True)]


def _lines(predictor: Predictor, rows: Sequence[Segment], scores: NDArray[np.float64]) -> Iterator[list[str]]:
    classes = np.array(predictor.record.classes)
    for row, probabilities in zip(rows, scores, strict=True):
        if predictor.record.several:
            label = MANY.join(classes[probabilities >= LIKELY])
        else:
            label = str(classes[probabilities.argmax()])
        times = ["" if moment is None else f"{moment:g}" for moment in (row.start, row.end)]
        yield [row.video, *times, label, *(f"{value:.8g}" for value in probabilities)]


def _by_video(rows: Iterable[Segment]) -> Iterator[tuple[str, list[Segment]]]:
    found: dict[str, list[Segment]] = {}
    for row in rows:
        found.setdefault(row.video, []).append(row)
    yield from found.items()
