"""What a test split's predictions are worth, as one JSON row: all metrics, how sure they are, what a guess would reach, and what
speaks against them.

Shapes: N rows, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import METRICS, Predictions, measure
from .task import Task

RESAMPLES = 1000
RANDOM_DRAWS = 20
# Two-sided 5 %, and found in 80 % of the cases.
QUANTILES = 1.959964 + 0.841621


def judge(task: Task, predictions: Predictions, *, seed: int = 0) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """The row, and the resamples of its score. seed: of the bootstrap and of random scores. What is not known is None."""
    metric = METRICS[task.main_metric]
    drawn = resampled(predictions, metric, seed=seed)
    interval = interval_of(metric(predictions), drawn)
    guess = majority(predictions, task.train.truth)
    majority_score = metric(guess)
    found = flags(predictions, interval, majority_score)
    row = {
        "metric": task.main_metric,
        "score": interval.score,
        "low": interval.low,
        "high": interval.high,
        "detectable": interval.detectable,
        "majority": majority_score,
        "random": random_baseline(predictions, metric, seed=seed),
        "flags": found,
        "metrics": measure(predictions, task.main_metric),
        "majority_metrics": measure(guess, task.main_metric),
        "rows": {"train": len(task.train.rows), "val": len(task.val.rows), "test": len(predictions.scores)},
        "subjects": len(np.unique(predictions.subjects)),
        "left_out": task.left_out,
        "audit": list(task.findings),
        "domain": task.card.domain,
        "classes": list(task.classes),
        "classes_without_rows": {split: list(names) for split, names in task.missing_classes.items()},
    }
    if not task.several:
        labels = np.arange(task.num_classes)
        from sklearn.metrics import confusion_matrix  # slow to import

        row["confusion"] = confusion_matrix(predictions.truth, predictions.predicted, labels=labels).tolist()
    return known(row), drawn


def classes_covered(row: dict[str, Any]) -> str:
    """How many classes the metrics of a row are means over, where the test split lacks some; else ""."""
    count, lacking = len(row["classes"]), len(row.get("classes_without_rows", {}).get("test", ()))
    return f"{count - lacking} of {count} classes" if lacking else ""


def missing_classes(row: dict[str, Any]) -> str:
    """Which splits lack which classes, in words."""
    lacking = {split: names for split, names in row.get("classes_without_rows", {}).items() if names}
    return "; ".join(f"{split} lacks {', '.join(names)}" for split, names in lacking.items())


def known(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Interval:
    """A score, its bootstrap 95 % interval, and the smallest difference to another model that would be found in 80 % of the cases.

    That difference takes the two models' errors as independent. They share the test split, so it is an upper bound.
    """

    score: float
    low: float
    high: float
    detectable: float


def resampled(
    p: Predictions, metric: Callable[[Predictions], float], *, seed: int = 0, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """(resamples,) the metric of each resample of the subjects, drawn with replacement, all rows of one together; none with one
    subject alone. The same subjects and seed give the same resamples, whatever was predicted, so that those of several models can
    be averaged or subtracted one by one."""
    names, index = np.unique(p.subjects, return_inverse=True)
    if len(names) < 2:
        return np.empty(0)
    rows_of = [np.flatnonzero(index == name) for name in range(len(names))]
    videos = np.unique(p.videos, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for sample in range(resamples):
        groups = [rows_of[name] for name in generator.integers(len(names), size=len(names))]
        rows = np.concatenate(groups)
        # A subject that is drawn twice counts as two, and so do its videos.
        times = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        drawn[sample] = metric(p.rows(rows, videos=times * len(p.videos) + videos[rows]))
    return drawn


def interval_of(score: float, drawn: NDArray[np.float64]) -> Interval:
    """The interval of a score whose resamples are `drawn`; NaN where there are none, or all alike: those tell of no spread."""
    known = drawn[np.isfinite(drawn)]
    if not len(known) or np.ptp(known) == 0:
        return Interval(score, float("nan"), float("nan"), float("nan"))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(score, float(low), float(high), float(QUANTILES * np.sqrt(2) * np.nanstd(drawn, ddof=1)))


def majority(p: Predictions, training_truth: ArrayLike) -> Predictions:
    """What a model would say that knows the classes' shares of the training split and nothing else."""
    shares = _shares(np.asarray(training_truth), p.scores.shape[1])
    return _with_scores(p, np.tile(shares, (len(p.scores), 1)))


def random_baseline(p: Predictions, metric: Callable[[Predictions], float], *, seed: int = 0) -> float:
    """The metric of scores drawn at random, on average."""
    generator = np.random.default_rng(seed)
    return float(np.mean([metric(_with_scores(p, generator.random(p.scores.shape))) for _ in range(RANDOM_DRAWS)]))


def flags(p: Predictions, interval: Interval, majority_score: float) -> list[str]:
    """What speaks against a score.

    "one class": the same class is predicted for every row. "a class's share": the accuracy is exactly the share of one class.
    "unstable": the interval is wider than the distance to the majority baseline, or unknown. "as majority": the interval, or the
    score where that is unknown, does not lie above that baseline.
    """
    found = []
    if not p.several:
        hits = int((p.truth == p.predicted).sum())
        if len(np.unique(p.predicted)) == 1:
            found.append("one class")
        if hits in np.unique(p.truth, return_counts=True)[1]:
            found.append("a class's share")
    elif len(np.unique(p.scores, axis=0)) == 1:
        found.append("one class")
    if not interval.high - interval.low <= abs(interval.score - majority_score):
        found.append("unstable")
    least = interval.low if np.isfinite(interval.low) else interval.score
    if not least > majority_score:
        found.append("as majority")
    return found


def _shares(truth: NDArray, num_classes: int) -> NDArray[np.float64]:
    if truth.ndim == 2:
        return truth.mean(axis=0)
    return np.bincount(truth, minlength=num_classes) / len(truth)


def _with_scores(p: Predictions, scores: NDArray[np.float64]) -> Predictions:
    return Predictions(p.truth, scores, p.subjects, p.videos, p.starts, p.ends)
