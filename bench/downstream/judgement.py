"""What a test split's predictions are worth, as one JSON row: all metrics, intervals by subject, baselines, flags.

Shapes: N rows, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import flags, interval_of, majority, random_baseline, resampled
from .metrics import METRICS, Predictions, measure
from .task import Task


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
        "metrics": measure(predictions),
        "majority_metrics": measure(guess),
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
