"""Metrics of whole videos, frame by frame: of each phase in each video, averaged by named rules; all of them as functions of how
often each video counts, so that a score and its bootstrap are one computation.

Shapes: V videos, T frames of one (those with a label alone), K phases, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..downstream.metrics import Predictions, edit_score, segment_matches
from .choices import Absent, MetricChoices, Order
from .relaxed import Jumps, relaxed_scores

OF_PHASES = ("precision", "recall", "jaccard", "f1")
OVERLAPS = {"f1_at_10": 0.1, "f1_at_25": 0.25, "f1_at_50": 0.5}
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class VideoResult:
    """What is said of one video. truth, predicted: (T,) class numbers. scores: (T, K)."""

    name: str
    subject: str
    truth: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        return self.scores.argmax(axis=1)


def phase_counts(truth: NDArray[np.int64], predicted: NDArray[np.int64], phases: int) -> NDArray[np.int64]:
    """(3, K): frames that are right, that are said to be, and that are of each phase."""
    right = np.bincount(truth[truth == predicted], minlength=phases)
    return np.stack([right, np.bincount(predicted, minlength=phases), np.bincount(truth, minlength=phases)])


def phase_scores(counts: NDArray, absent: Absent) -> dict[str, NDArray[np.float64]]:
    """Scores of OF_PHASES from (..., 3, K) counts, each (..., K); NaN where `absent` leaves one out."""
    right, said, true = (np.asarray(counts, float)[..., row, :] for row in range(3))
    parts = {
        "precision": (right, said),
        "recall": (right, true),
        "jaccard": (right, said + true - right),
        "f1": (2 * right, said + true),
    }
    found = {}
    for name, (above, below) in parts.items():
        score = np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)
        if absent == "absent_left_out":
            score = np.where(true > 0, np.nan_to_num(score), np.nan)
        elif absent == "zero":
            score = np.nan_to_num(score)
        elif absent == "one":
            score = np.where((true == 0) & (said == 0), 1.0, np.nan_to_num(score))
        found[name] = score
    return found


def weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """values: (V,) or (V, K), NaN where left out. weights: (R, V). Returns (R,) or (R, K), NaN where nothing is left."""
    known = np.isfinite(values)
    below = weights @ known.astype(float)
    return np.divide(weights @ np.where(known, values, 0.0), below, out=np.full(below.shape, np.nan), where=below > 0)


def averaged(table: NDArray[np.float64], order: Order, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) a table of (V, K) scores, averaged in that order."""
    if order == "phases_then_videos":
        return weighted_mean(_mean(table), weights)
    return _mean(weighted_mean(table, weights))


def deviation(table: NDArray[np.float64], choices: MetricChoices) -> float:
    """Over videos, or over phases, as the order has it; NaN where one alone is known. table: (V, K), or (V,)."""
    ones = np.ones((1, len(table)))
    if table.ndim == 1:
        values = table
    else:
        values = _mean(table) if choices.order == "phases_then_videos" else weighted_mean(table, ones)[0]
    values = values[np.isfinite(values)]
    degrees = 1 if choices.deviation == "sample" else 0
    return float(np.std(values, ddof=degrees)) if len(values) > degrees else float("nan")


def frame_statistics(
    videos: Sequence[VideoResult], rate: float, choices: MetricChoices, jumps: Jumps | None
) -> tuple[dict[str, Statistic], dict[str, float], int]:
    """({metric: its score from (R, V) weights}, {metric: deviation}, how many scores of a phase in a video were left out).

    rate: frames a second. jumps: of `relaxed_scores`; None leaves the relaxed metrics out.
    """
    phases = videos[0].scores.shape[1]
    counts = np.stack([phase_counts(video.truth, video.predicted, phases) for video in videos])
    tables = phase_scores(counts, choices.absent)
    accuracy = counts[:, 0].sum(axis=1) / counts[:, 2].sum(axis=1)
    found: dict[str, Statistic] = {"accuracy": partial(weighted_mean, accuracy)}
    spread = {"accuracy": deviation(accuracy, choices)}
    for name, table in tables.items():
        found[name] = partial(averaged, table, choices.order)
        spread[name] = deviation(table, choices)
    found["f1_of_means"] = lambda weights: _harmonic(found["precision"](weights), found["recall"](weights))
    found["pooled_accuracy"] = lambda weights: (
        (weights @ counts[:, 0].sum(axis=1)) / (weights @ counts[:, 2].sum(axis=1))
    )
    for name in OF_PHASES:
        found[f"pooled_{name}"] = partial(_pooled, counts, name, choices.absent)
    if jumps is not None:
        relaxed = [relaxed_scores(video.truth, video.predicted, phases, rate, choices, jumps) for video in videos]
        for name in ("accuracy", "precision", "recall", "jaccard"):
            table = np.stack([scores[name] for scores in relaxed])
            whole = name == "accuracy"
            found[f"relaxed_{name}"] = (
                partial(weighted_mean, table) if whole else partial(averaged, table, choices.order)
            )
            spread[f"relaxed_{name}"] = deviation(table, choices)
    for name, table, pooled in _segmental(videos, rate):
        found[name] = partial(weighted_mean, table)
        spread[name] = deviation(table, choices)
        if pooled is not None:
            found[f"pooled_{name}"] = partial(_ratio, pooled)
    # What SAR-RARP50's challenge ranks by.
    found["sar_rarp50_score"] = lambda weights: np.sqrt(found["accuracy"](weights) * found["f1_at_10"](weights))
    left_out = int(np.isnan(tables["jaccard"]).sum())
    return found, spread, left_out


def as_predictions(video: VideoResult, rate: float) -> Predictions:
    """A row a frame, as the metrics of segments take them."""
    starts = np.arange(len(video.truth)) / rate
    names = np.full(len(starts), video.name)
    return Predictions(video.truth, video.scores, names, names, starts, starts + 1 / rate)


def _segmental(
    videos: Sequence[VideoResult], rate: float
) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64] | None]]:
    """(name, (V,) of each video, (V, 2) counts that are pooled) of the edit score and of segmental F1."""
    rows = [as_predictions(video, rate) for video in videos]
    found: list[tuple[str, NDArray[np.float64], NDArray[np.float64] | None]] = [
        ("edit_score", np.array([edit_score(row) for row in rows]), None)
    ]
    for name, overlap in OVERLAPS.items():
        counted = np.array([segment_matches(row, np.arange(len(row.truth)), overlap) for row in rows], float)
        pooled = counted * [2.0, 1.0]
        found.append((name, pooled[:, 0] / pooled[:, 1], pooled))
    return found


def _pooled(counts: NDArray, name: str, absent: Absent, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return _mean(phase_scores(np.einsum("rv,vck->rck", weights, counts), absent)[name])


def _ratio(counted: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    above, below = (weights @ counted).T
    return above / below


def _harmonic(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    total = first + second
    return np.divide(2 * first * second, total, out=np.zeros_like(total), where=total > 0)


def _mean(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis, what is NaN left out."""
    known = np.isfinite(table)
    below = known.sum(axis=-1)
    total = np.where(known, table, 0.0).sum(axis=-1)
    return np.divide(total, below, out=np.full(total.shape, np.nan), where=below > 0)
