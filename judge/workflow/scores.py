"""What predictions on the test videos are worth: every metric with its deviation, its interval by video, what could be detected.

Shapes: V videos, T frames of one, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..downstream.judgement import RESAMPLES, interval_of, known
from .choices import MetricChoices
from .frame_metrics import Statistic, VideoResult, averaged, deviation, frame_statistics
from .labels import DenseVideo
from .relaxed import Jumps


@dataclass(frozen=True)
class Judgement:
    """row: as JSON. drawn: {metric: (R,) resamples}, of equal videos whatever was predicted, so that seeds can be averaged."""

    row: dict[str, Any]
    drawn: dict[str, NDArray[np.float64]]


def judge_videos(
    videos: Sequence[DenseVideo],
    scores: Sequence[NDArray[np.float64]],
    rate: float,
    choices: MetricChoices,
    jumps: Jumps,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Judgement:
    """scores: (T, K) of each video, of which frames without a label are left out. rate: frames a second. Raises ValueError where no
    video has a label, or a score is not finite."""
    kept = [(video, score) for video, score in zip(videos, scores, strict=True) if video.known.any()]
    if not kept:
        raise ValueError("no video has a labelled frame")
    results = [VideoResult(v.name, v.subject, v.truth[v.known], np.asarray(s, float)[v.known]) for v, s in kept]
    if not all(np.isfinite(result.scores).all() for result in results):
        raise ValueError("a score is not finite")
    if results[0].truth.ndim == 2:
        statistics, spread, left_out = presence_statistics(results, choices)
    else:
        statistics, spread, left_out = frame_statistics(results, rate, choices, jumps)
    weights = resampled_weights([result.subject for result in results], resamples, seed)
    whole = np.ones((1, len(results)))
    drawn = {name: statistic(weights) if len(weights) else np.empty(0) for name, statistic in statistics.items()}
    metrics = {}
    for name, statistic in statistics.items():
        interval = interval_of(float(statistic(whole)[0]), drawn[name])
        metrics[name] = {
            "score": interval.score,
            "deviation": spread.get(name, float("nan")),
            "low": interval.low,
            "high": interval.high,
            "detectable": interval.detectable,
        }
    row = {
        "metrics": metrics,
        "videos": len(results),
        "subjects": len({result.subject for result in results}),
        "frames": sum(len(result.truth) for result in results),
        "frames_without_label": int(sum((~video.known).sum() for video in videos)),
        "left_out": left_out,
        "of": len(results) * results[0].scores.shape[1],
    }
    return Judgement(known(row), drawn)


def resampled_weights(subjects: Sequence[str], resamples: int, seed: int) -> NDArray[np.float64]:
    """(R, V) how often each video counts in a bootstrap of subjects, all videos of one together; none where there is one alone."""
    names, index = np.unique(np.array(subjects), return_inverse=True)
    if len(names) < 2:
        return np.empty((0, len(index)))
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    times = np.stack([np.bincount(row, minlength=len(names)) for row in drawn])
    return times[:, index].astype(float)


def presence_statistics(
    videos: Sequence[VideoResult], choices: MetricChoices
) -> tuple[dict[str, Statistic], dict[str, float], int]:
    """Average precisions where frames may have several labels: of each class in each video that has it, averaged in the order of
    `choices`; and over all frames of all videos together, for which nothing is drawn anew. truth of videos: (T, K) bool."""
    from sklearn.metrics import average_precision_score  # slow to import

    classes = videos[0].scores.shape[1]
    table = np.full((len(videos), classes), np.nan)
    for row, video in enumerate(videos):
        for label in np.flatnonzero(video.truth.any(axis=0)):
            table[row, label] = average_precision_score(video.truth[:, label], video.scores[:, label])
    truth, scores = (np.concatenate([getattr(video, name) for video in videos]) for name in ("truth", "scores"))
    present = np.flatnonzero(truth.any(axis=0))
    pooled = [float(average_precision_score(truth[:, label], scores[:, label])) for label in present]
    value = float(np.mean(pooled)) if pooled else float("nan")
    found: dict[str, Statistic] = {
        "video_mean_average_precision": partial(averaged, table, choices.order),
        "mean_average_precision": lambda weights: np.where((weights == 1).all(axis=1), value, np.nan),
    }
    return found, {"video_mean_average_precision": deviation(table, choices)}, int(np.isnan(table).sum())
