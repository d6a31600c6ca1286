"""What a report shows of a data set: ribbons of every test video, confusion, boundary errors, transitions, pictures at boundaries.

Shapes: T frames, K classes.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...engine.console.table import Table
from ...loaders.video.video import VideoError
from ..downstream.matrix import folder_name
from ..downstream.predict import LIKELY
from .cell import read_predictions
from .frame_metrics import VideoResult
from .labels import DenseVideo
from .pictures import Row, embedded, pictures_at, ribbons_png, write_png
from .results import WorkflowResult

PICTURES_A_VIDEO = 12
SIDE = 128


@dataclass(frozen=True)
class Boundary:
    """A change of phase at frame `frame`, its first one. error_frames: from it to the nearest change into the same phase that is
    predicted, later is above 0; None where there is none in the video."""

    frame: int
    before: int
    after: int
    error_frames: int | None


def changes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The frames that begin another phase than the one before."""
    return np.flatnonzero(np.diff(labels)) + 1


def boundaries(video: VideoResult) -> list[Boundary]:
    """Of the truth, in order of time."""
    said = changes(video.predicted)
    found = []
    for frame in changes(video.truth).tolist():
        after = int(video.truth[frame])
        same = said[video.predicted[said] == after]
        error = None if not len(same) else int(same[np.abs(same - frame).argmin()]) - frame
        found.append(Boundary(frame, int(video.truth[frame - 1]), after, error))
    return found


def transitions(labels: Sequence[NDArray[np.int64]], phases: int) -> NDArray[np.int64]:
    """(K, K) how often a phase (row) is followed by another (column)."""
    table = np.zeros((phases, phases), np.int64)
    for row in labels:
        places = changes(row)
        np.add.at(table, (row[places - 1], row[places]), 1)
    return table


def dataset_pictures(own: Sequence[WorkflowResult], folder: Path) -> list[str]:
    """HTML of one data set; of each result the first seed's predictions. PNG files of ribbons are left in `folder` too."""
    parts: list[str] = []
    for model in dict.fromkeys(result.model.name for result in own):
        results = [result for result in own if result.model.name == model]
        videos, _ = read_predictions(results[0].folders[0])
        said = {result.head.name: read_predictions(result.folders[0])[1] for result in results}
        parts.append(f"<h3>{html.escape(model)}</h3>")
        for number, video in enumerate(videos):
            rows: list[Row] = [("truth", video.truth, video.known)]
            for result in results:
                scores = said[result.head.name][number]
                labels = scores >= LIKELY if video.truth.ndim == 2 else scores.argmax(axis=1)
                rows.append((f"{result.head.name}\n{result.head.head.mode}", labels, np.ones(len(labels), bool)))
            row = results[0].rows[0]
            png = ribbons_png(video.name, rows, row["rate"], row["classes"])
            write_png(folder / folder_name(model) / f"{folder_name(video.name)}.png", png)
            parts.append(f'<img alt="{html.escape(video.name)}" src="{embedded(png, "png")}">')
            if video.truth.ndim == 1:
                parts.append(_at_boundaries(results[0], video, said[results[0].head.name][number]))
        if videos[0].truth.ndim == 1:
            parts += [_tables(result, videos, said[result.head.name]) for result in results]
    return parts


def known_result(video: DenseVideo, scores: np.ndarray) -> VideoResult:
    """The frames with a label."""
    return VideoResult(video.name, video.subject, video.truth[video.known], scores[video.known])


def _tables(result: WorkflowResult, videos: Sequence[DenseVideo], scores: Sequence[np.ndarray]) -> str:
    row, classes = result.rows[0], result.rows[0]["classes"]
    found = [known_result(video, score) for video, score in zip(videos, scores, strict=True) if video.known.any()]
    truth, said = (np.concatenate([getattr(video, name) for video in found]) for name in ("truth", "predicted"))
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (truth, said), 1)
    shades = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).tolist()
    lines = [(name, *(str(n or "") for n in line)) for name, line in zip(classes, counts.tolist(), strict=True)]
    confusion = Table(("truth \\ predicted", *classes), lines).html(shades)
    true, predicted = (transitions([getattr(v, name) for v in found], len(classes)) for name in ("truth", "predicted"))
    steps = [
        (name, *("" if not a and not b else f"{a} / {b}" for a, b in zip(first, second, strict=True)))
        for name, first, second in zip(classes, true.tolist(), predicted.tolist(), strict=True)
    ]
    follows = Table(("from \\ to: truth / predicted", *classes), steps).html()
    title = html.escape(f"{result.head.name}, {result.head.head.mode}, seed {row['seed']}")
    return (
        f"<details open><summary>{title}: confusion in frames, errors at boundaries, transitions</summary>{confusion}"
        f"{boundary_table(found, classes, row['rate']).html()}{follows}</details>"
    )


def boundary_table(videos: Sequence[VideoResult], classes: Sequence[str], rate: float) -> Table:
    """For each phase that begins somewhere: how often, how often its beginning is not said at all, and how far off it is else."""
    by_phase: dict[int, list[Boundary]] = {}
    for video in videos:
        for boundary in boundaries(video):
            by_phase.setdefault(boundary.after, []).append(boundary)
    rows = []
    for phase in sorted(by_phase):
        errors = np.array([b.error_frames for b in by_phase[phase] if b.error_frames is not None], float) / rate
        cells = (f"{np.median(np.abs(errors)):.0f} s", f"{round(errors.mean()):+d} s") if len(errors) else ("", "")
        rows.append((classes[phase], str(len(by_phase[phase])), str(len(by_phase[phase]) - len(errors)), *cells))
    extra = sum(max(len(changes(video.predicted)) - len(changes(video.truth)), 0) for video in videos)
    rows.append(("changes predicted beyond the true ones", str(extra), "", "", ""))
    return Table(("beginning of", "times", "never predicted", "median error", "mean, later is +"), rows)


def _at_boundaries(result: WorkflowResult, video: DenseVideo, scores: np.ndarray) -> str:
    """The video's own pictures where phases change, evenly chosen where there are many."""
    row = result.rows[0]
    places, rate, classes = np.flatnonzero(video.known), row["rate"], row["classes"]
    found = boundaries(known_result(video, scores)) if len(places) else []
    if not found:
        return ""
    chosen = np.unique(np.linspace(0, len(found) - 1, min(len(found), PICTURES_A_VIDEO)).round().astype(int))
    seconds = [float(places[found[n].frame]) / rate for n in chosen.tolist()]
    try:
        pictures = pictures_at(row["test_paths"][video.name], seconds, SIDE)
    except (VideoError, OSError) as error:
        return f"<p>No pictures of {html.escape(video.name)}: {html.escape(str(error))}</p>"
    figures = []
    for number, moment, picture in zip(chosen.tolist(), seconds, pictures, strict=True):
        boundary = found[number]
        error = "never predicted" if boundary.error_frames is None else f"{round(boundary.error_frames / rate):+d} s"
        minutes, rest = divmod(int(moment), 60)
        caption = f"{minutes}:{rest:02} {classes[boundary.before]} > {classes[boundary.after]} ({error})"
        figures.append(
            f'<figure><img src="{embedded(picture, "jpeg")}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        )
    more = f"{len(chosen)} of {len(found)} changes; errors are those of {result.head.name}"
    return f"<details><summary>{html.escape(more)}</summary>{''.join(figures)}</details>"
