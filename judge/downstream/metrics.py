"""What predictions are worth: scikit-learn's metrics, and those of this field.

Shapes: N rows of a test split, K classes, V videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Of overlaps, whose seconds are sums of frames: 3 frames of 30 are a tenth, also where 0.3 / 3.0 is not.
ROUNDING = 1e-9
LEAST_SECONDS = 1e-6
# The mean over classes, which counts one that is never predicted as 0. (The library's annotations know only the text "warn".)
MACRO: dict[str, Any] = {"average": "macro", "zero_division": 0}


@dataclass(frozen=True)
class Predictions:
    """What a model says of a split.

    truth: (N,) class numbers, or (N, K) bool where a row may have several labels. scores: (N, K), larger is likelier. subjects,
    videos: (N,) names or numbers. starts, ends: (N,) seconds, for metrics of sequences. Raises ValueError where shapes differ.
    """

    truth: NDArray[np.int64] | NDArray[np.bool_]
    scores: NDArray[np.float64]
    subjects: NDArray
    videos: NDArray
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.scores)
        columns = (self.truth, self.subjects, self.videos, self.starts, self.ends)
        if not count or self.scores.ndim != 2 or any(len(column) != count for column in columns):
            raise ValueError(f"{count} rows of scores beside columns of {[len(column) for column in columns]}")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not finite")

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(N,), above 0, as a table may hold rows of no length."""
        return np.maximum(self.ends - self.starts, LEAST_SECONDS)

    @property
    def several(self) -> bool:
        return self.truth.ndim == 2

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) the likeliest classes, the lowest number of equal ones."""
        return self.scores.argmax(axis=1)

    def rows(self, rows: ArrayLike, *, videos: NDArray | None = None) -> Predictions:
        """Those of some rows, in that order; videos: other names for theirs."""
        chosen = np.asarray(rows)
        subjects, videos = self.subjects[chosen], self.videos[chosen] if videos is None else videos
        return Predictions(
            self.truth[chosen], self.scores[chosen], subjects, videos, self.starts[chosen], self.ends[chosen]
        )


def accuracy(p: Predictions, weights: NDArray[np.float64] | None = None) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(p.truth, p.predicted, sample_weight=weights))


def accuracy_over_seconds(p: Predictions) -> float:
    return accuracy(p, p.seconds)


def balanced_accuracy(p: Predictions) -> float:
    """The mean recall of the classes that occur."""
    from sklearn.metrics import recall_score

    return float(recall_score(p.truth, p.predicted, labels=np.unique(p.truth), **MACRO))


def macro_f1(p: Predictions) -> float:
    """The mean F1 of the classes that occur."""
    from sklearn.metrics import f1_score

    return float(f1_score(p.truth, p.predicted, labels=np.unique(p.truth), **MACRO))


def mean_average_precision(p: Predictions) -> float:
    """The mean, over the classes that occur, of the average precision of each against the rest."""
    from sklearn.metrics import average_precision_score

    truth = _one_hot(p)
    return _mean(float(average_precision_score(truth[:, k], p.scores[:, k])) for k in np.flatnonzero(truth.any(axis=0)))


def video_mean_average_precision(p: Predictions) -> float:
    """The average precision of each class in each video that has it, averaged over these videos, then over the classes.

    ivtmetrics' `compute_video_AP`, which CholecT50's papers report, where `mean_average_precision` is its `compute_global_AP`.
    """
    from sklearn.metrics import average_precision_score

    truth, groups = _one_hot(p), _rows_of_videos(p)
    return _mean(
        _mean(float(average_precision_score(truth[g, k], p.scores[g, k])) for g in groups if truth[g, k].any())
        for k in np.flatnonzero(truth.any(axis=0))
    )


def auroc(p: Predictions) -> float:
    """The mean area under the ROC curve of each class against the rest, over the classes that some rows have and some have not."""
    from sklearn.metrics import roc_auc_score

    truth = _one_hot(p)
    mixed = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    return _mean(float(roc_auc_score(truth[:, k], p.scores[:, k])) for k in mixed)


def phase_jaccard(p: Predictions) -> float:
    """The Jaccard index, in seconds, of each phase in each video that has it, averaged over these videos, then over the phases.

    The order of Cholec80's and M2CAI's evaluation, without their relaxed boundaries; their frames stand for equal times.
    """
    videos, names = np.unique(p.videos, return_inverse=True)[1], p.scores.shape[1]

    def seconds(labels: NDArray, weights: NDArray) -> NDArray[np.float64]:
        sums = np.zeros((int(videos.max()) + 1, names))
        np.add.at(sums, (videos, labels), weights)
        return sums

    wanted, found = seconds(p.truth, p.seconds), seconds(p.predicted, p.seconds)
    both = seconds(p.truth, p.seconds * (p.truth == p.predicted))
    present = seconds(p.truth, np.ones(len(p.truth))) > 0
    shares = np.where(present, both, 0) / np.where(present, wanted + found - both, 1)
    occurring = present.any(axis=0)
    return float((shares.sum(axis=0)[occurring] / present.sum(axis=0)[occurring]).mean())


def segmental_f1(p: Predictions, overlap: float = 0.1) -> float:
    """Segmental F1 at an overlap (Lea et al., arXiv 1611.05267), of each video, averaged over the videos.

    Every class counts, also "other", as in SAR-RARP50's challenge.
    """
    counts = [segment_matches(p, rows, overlap) for rows in _rows_of_videos(p)]
    return float(np.mean([2 * matched / segments for matched, segments in counts]))


def segmental_f1_pooled(p: Predictions, overlap: float = 0.1) -> float:
    """The same with the segments of all videos counted together, as MS-TCN's evaluation does (arXiv 1903.01945)."""
    counts = [segment_matches(p, rows, overlap) for rows in _rows_of_videos(p)]
    return 2 * sum(matched for matched, _ in counts) / sum(segments for _, segments in counts)


def edit_score(p: Predictions) -> float:
    """1 less the edits (Levenshtein) that turn the order of segments said into the true one, over the longer of both; the mean over
    videos (Lea et al., arXiv 1611.05267; MS-TCN's evaluation, which gives percent)."""
    return float(np.mean([_order_likeness(p, _in_time(p, rows)) for rows in _rows_of_videos(p)]))


METRICS: dict[str, Callable[[Predictions], float]] = {
    "accuracy": accuracy,
    "accuracy_over_seconds": accuracy_over_seconds,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "phase_jaccard": phase_jaccard,
    "mean_average_precision": mean_average_precision,
    "video_mean_average_precision": video_mean_average_precision,
    "auroc": auroc,
    "f1_at_10": segmental_f1,
    "f1_at_10_pooled": segmental_f1_pooled,
    "f1_at_25": partial(segmental_f1, overlap=0.25),
    "f1_at_25_pooled": partial(segmental_f1_pooled, overlap=0.25),
    "f1_at_50": partial(segmental_f1, overlap=0.5),
    "f1_at_50_pooled": partial(segmental_f1_pooled, overlap=0.5),
    "edit_score": edit_score,
}
OF_SEVERAL_LABELS = ("mean_average_precision", "video_mean_average_precision", "auroc")
# Of the order of a video's rows, or their share of it: without meaning where no video has more than one.
OF_SEQUENCES = tuple(
    name
    for name in METRICS
    if name in ("phase_jaccard", "video_mean_average_precision", "edit_score") or "f1_at" in name
)
MEANING = {
    "accuracy": "the share of rows that are right, however long they are",
    "accuracy_over_seconds": "the share of the rows' seconds that is right",
    "balanced_accuracy": "the recall of each class over rows, averaged over the classes that the test split has",
    "macro_f1": "the F1 of each class over rows, averaged over the classes that the test split has",
    "phase_jaccard": "the Jaccard index of seconds, of each phase averaged over the videos that have it, then over the phases",
    "mean_average_precision": "average precision of each class over all rows of all videos (ivtmetrics' global AP), then the mean",
    "video_mean_average_precision": "average precision of each class in each video that has it, averaged over these videos, then "
    "over the classes (ivtmetrics' video-wise AP)",
    "auroc": "the area under each class's ROC curve over all rows, averaged over the classes",
    **{
        f"f1_at_{percent}{kind}": f"segmental F1 at {percent} % overlap{how}"
        for percent in (10, 25, 50)
        for kind, how in (
            ("", " of each video, averaged over the videos"),
            ("_pooled", ", the segments of all videos counted together"),
        )
    },
    "edit_score": "the likeness of the order of segments to the true one (1 less the edits over the longer), averaged over videos",
}
# Means over the classes of the test split, which may lack some.
OVER_CLASSES = (
    "balanced_accuracy",
    "macro_f1",
    "phase_jaccard",
    "mean_average_precision",
    "video_mean_average_precision",
)


def measure(p: Predictions, ranked_by: str = "") -> dict[str, float]:
    """All metrics that suit, and `ranked_by`: rows of several labels have average precisions and AUROC alone, and where no video
    has more than one row there are none of sequences."""
    names = OF_SEVERAL_LABELS if p.several else tuple(METRICS)
    has_sequences = len(np.unique(p.videos)) < len(p.videos)
    return {name: METRICS[name](p) for name in names if has_sequences or name not in OF_SEQUENCES or name == ranked_by}


def _mean(values: Iterable[float]) -> float:
    """NaN where there are none."""
    found = list(values)
    return float(np.mean(found)) if found else float("nan")


def _one_hot(p: Predictions) -> NDArray[np.bool_]:
    return p.truth.astype(bool) if p.several else p.truth[:, None] == np.arange(p.scores.shape[1])


def _rows_of_videos(p: Predictions) -> list[NDArray[np.int64]]:
    index = np.unique(p.videos, return_inverse=True)[1]
    order = np.argsort(index, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(index[order])) + 1)


def _in_time(p: Predictions, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[np.argsort(p.starts[rows], kind="stable")]


def _order_likeness(p: Predictions, rows: NDArray[np.int64]) -> float:
    wanted, found = ([label for label, _ in groupby(labels[rows].tolist())] for labels in (p.truth, p.predicted))
    edits = list(range(len(wanted) + 1))
    for number, label in enumerate(found, start=1):
        before, edits[0] = edits[0], number
        for place, other in enumerate(wanted, start=1):
            least = min(edits[place] + 1, edits[place - 1] + 1, before + (label != other))
            before, edits[place] = edits[place], least
    return 1 - edits[-1] / max(len(wanted), len(found))


def segment_matches(p: Predictions, rows: NDArray[np.int64], overlap: float) -> tuple[int, int]:
    """Of a video: how many segments match, and how many there are in the truth and in what is said together."""
    rows = _in_time(p, rows)
    wanted, found = (_runs(p, rows, labels) for labels in (p.truth, p.predicted))
    matched: set[int] = set()
    for label, start, end in found:
        best, which = 0.0, -1
        for place, (other, first, last) in enumerate(wanted):
            shared = min(end, last) - max(start, first)
            union = max(end, last) - min(start, first)
            if other == label and shared > 0 and shared / union > best + ROUNDING:
                best, which = shared / union, place
        # One that is taken already makes a second find of the same segment: it matches nothing, not the next best either.
        if best >= overlap - ROUNDING:
            matched.add(which)
    return len(matched), len(wanted) + len(found)


def _runs(p: Predictions, rows: NDArray[np.int64], labels: NDArray) -> list[tuple[int, float, float]]:
    """(label, start, end) of the runs of one label among rows in order of time."""
    runs = []
    for label, group in groupby(rows.tolist(), key=lambda row: int(labels[row])):
        members = list(group)
        runs.append((label, float(p.starts[members[0]]), float(p.ends[members[-1]])))
    return runs
