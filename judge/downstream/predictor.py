"""What `trocar finetune` leaves beside the weights it has trained, so that `trocar predict` can use them: CELL/predictor.json.
And which videos are meant by what somebody names; both without PyTorch.

Shapes: K classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...engine.config.error import ConfigError
from ...engine.config.file import apply_settings
from ...loaders.corpus.folder import VIDEOS_NAME, CorpusError
from ...loaders.corpus.sources import list_videos
from ...loaders.video.video import is_remote
from .protocol import Protocol

PREDICTOR = "predictor.json"
ROW, WEIGHTS = "row.json", "weights.safetensors"


@dataclass(frozen=True)
class PredictorRecord:
    """model: the encoder, as of `load_backbone`, its path absolute. options: what else `load_backbone` was told. frames, stride,
    sample_fps, resolution: of clips. encoder: digest of its weights. classes: (K,) names. several: a row may have several.
    protocol, point: how it was trained, and which point of the grid was chosen. row_seconds: median length of the training rows,
    None where most are whole videos."""

    model: str
    options: dict[str, Any]
    frames: int
    stride: int | None
    sample_fps: float | None
    resolution: int
    encoder: str
    classes: list[str]
    several: bool
    protocol: dict[str, Any]
    point: str
    row_seconds: float | None

    def read_protocol(self) -> Protocol:
        return apply_settings(Protocol, self.protocol, {}, f"{PREDICTOR}: protocol.")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_record(folder: Path) -> PredictorRecord:
    """Raises ConfigError where `folder` is not one that `trocar finetune` has finished."""
    path = folder / PREDICTOR
    if not path.is_file():
        fix = (
            "run the same `trocar finetune` again, which reads the cell and adds it"
            if (folder / ROW).is_file()
            else "name the --out of a `trocar finetune` that has finished"
        )
        raise ConfigError(f"{folder}: no fine-tuned encoder there (no {PREDICTOR}); {fix}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = PredictorRecord(**{field.name: values[field.name] for field in fields(PredictorRecord)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error!r}); take it away and run the same `trocar finetune` again"
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder / WEIGHTS}: missing; copy the whole folder of the cell, or fine-tune again elsewhere"
        )
    return record


@dataclass(frozen=True)
class Problem:
    """A video, or a source of them, of which nothing could be said."""

    path: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.path in self.reason else f"{self.path}: {self.reason}"


def listed_videos(sources: Iterable[str], problems: list[Problem]) -> Iterator[str]:
    """Paths of the videos, each once; what cannot be listed becomes a problem."""
    seen: set[str] = set()
    for source in sources:
        try:
            found = list(_listed(source))
        except (CorpusError, OSError) as error:
            problems.append(Problem(source, str(error)))
            continue
        for path, problem in found:
            if problem:
                problems.append(Problem(path, problem))
            elif path not in seen:
                seen.add(path)
                yield path


def _listed(source: str) -> Iterator[tuple[str, str]]:
    """(path, why it cannot be read or ""). Of a corpus of proxies the originals: clips count frames of these."""
    if os.path.exists(os.path.join(source, VIDEOS_NAME)):
        from ...loaders.corpus.corpus import Corpus  # slow to import: only where there is one

        for row in Corpus.open(source).scan("path", "original"):
            path = row["original"] or row["path"]
            is_path = os.path.isabs(path) or is_remote(path)
            yield (
                path,
                "" if is_path else f"{row['path']}: its original is known by a pseudonym alone; give the original",
            )
        return
    for file in list_videos([source]):
        yield file.path, file.problem
