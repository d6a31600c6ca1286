"""`trocar phases VIDEO RUN`: what a trained head says of a video that nobody labelled, as a table, a ribbon and chapters.

Shapes: T moments, K classes.
"""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.config.error import ConfigError
from ...loaders.corpus.whole_file import write_text_whole, write_whole
from ...loaders.video.video import VideoError
from ..downstream.predict import LIKELY
from ..labels.dataset import MANY
from .cell import load_head
from .cell_record import PhasePredictor, read_phase_predictor
from .feature_shards import as_told, loaded
from .features import extract_features, read_vectors
from .pictures import ribbons_png, write_png
from .training import probabilities

COLUMNS = ("second", "label")


def write_phases(video: str, cell: Path, out: Path, device: torch.device, *, model: str | None = None) -> list[Path]:
    """Writes OUT/NAME.csv, .png and .vtt, and the video's vectors, which another call finds there.

    cell: of `trocar bench workflow`. model: where its encoder is now, if not where it was. Raises ConfigError where the encoder's
    weights are others than the head was trained on, VideoError where the video cannot be read.
    """
    record = read_phase_predictor(cell)
    name, choices = model or record.model, record.feature_choices()
    shape = {key: getattr(record, key) for key in ("frames", "stride", "sample_fps", "resolution")}
    options = {**record.options, **shape}
    seed = int(options.pop("seed", 0))
    backbone = loaded(name, as_told(options), seed)
    if backbone.digest != record.encoder:
        raise ConfigError(
            f"{name}: its weights are others than those that the head in {cell} was trained on; name those, for example --model "
            "RUN/checkpoints/step_..."
        )
    vectors = extract_features(
        [video], out / f"vectors_{record.encoder[:8]}", name, choices, options=options, seed=seed, device=str(device)
    )
    if vectors.failed:
        raise VideoError(f"{video}: {vectors.failed[0][1]}")
    scores = probabilities(
        load_head(cell, record, device), read_vectors(vectors.folders[video]), record.several, device
    )
    stem = Path(video).stem
    targets = [out / f"{stem}.{kind}" for kind in ("csv", "png", "vtt")]
    write_csv(targets[0], scores, record)
    labels = scores >= LIKELY if record.several else scores.argmax(axis=1)
    rows = [(f"{record.head['kind']}, {record.head['mode']}", labels, np.ones(len(labels), bool))]
    write_png(targets[1], ribbons_png(stem, rows, choices.rate, record.classes))
    write_text_whole(targets[2], chapters(label_names(scores, record), choices.rate))
    return targets


def label_names(scores: NDArray[np.float64], record: PhasePredictor) -> list[str]:
    """What holds at each moment: the likeliest class, or all of at least LIKELY, joined by "|", where there may be several."""
    classes = np.array(record.classes)
    if record.several:
        return [MANY.join(classes[row >= LIKELY]) for row in scores]
    return classes[scores.argmax(axis=1)].tolist()


def write_csv(path: Path, scores: NDArray[np.float64], record: PhasePredictor) -> None:
    """A row a moment: its second, the label, the probability of each class."""
    rate = record.feature_choices().rate

    def write(unfinished: Path) -> None:
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, *(f"p({name})" for name in record.classes)])
            for number, (label, row) in enumerate(zip(label_names(scores, record), scores, strict=True)):
                writer.writerow([f"{number / rate:g}", label, *(f"{value:.6g}" for value in row)])

    write_whole(path, write)


def chapters(labels: list[str], rate: float) -> str:
    """A WebVTT track with a cue for each run of one label (https://www.w3.org/TR/webvtt1/), which players show as chapters."""
    cues, place, number = ["WEBVTT", ""], 0, 0
    for label, run in groupby(labels):
        length = len(list(run))
        if label:
            # No line of a cue may hold an arrow, and & and < begin something there.
            text = label.replace("&", "&amp;").replace("<", "&lt;").replace("-->", "to")
            number += 1
            cues += [str(number), f"{clock(place / rate)} --> {clock((place + length) / rate)}", text, ""]
        place += length
    return "\n".join(cues)


def clock(seconds: float) -> str:
    """3723.5 -> "01:02:03.500" """
    thousandths = round(seconds * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}.{rest:03}"
