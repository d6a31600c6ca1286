"""What predictions on the test videos are worth: every metric with its deviation, its interval by video, what could be detected;
and what needs no encoder, beside which a table of phases has to be read.

Shapes: V videos, T frames of one, K classes or phases, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..downstream.judgement import RESAMPLES, interval_of, known
from .choices import MetricChoices
from .frame_metrics import Statistic, VideoResult, averaged, deviation, frame_statistics
from .labels import DenseVideo
from .relaxed import Jumps

BINS = 100  # of relative time
BASELINES = {
    "majority": "the commonest class of the training videos",
    "prior by time": "its commonest class at the same share of a video's length, which is known at a video's end alone",
    "copy last frame": "the truth of the frame before: what is reached without seeing a change of phase",
}


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
    jumps: Jumps | None,
    *,
    groups: Mapping[str, NDArray[np.int64]] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Judgement:
    """scores: (T, K) of each video, of which frames without a label are left out. rate: frames a second. groups: of
    `presence_statistics`. Raises ValueError where no video has a label, or a score is not finite."""
    kept = [(video, score) for video, score in zip(videos, scores, strict=True) if video.known.any()]
    if not kept:
        raise ValueError("no video has a labelled frame")
    results = [VideoResult(v.name, v.subject, v.truth[v.known], np.asarray(s, float)[v.known]) for v, s in kept]
    if not all(np.isfinite(result.scores).all() for result in results):
        raise ValueError("a score is not finite")
    if results[0].truth.ndim == 2:
        statistics, spread, left_out = presence_statistics(results, choices, groups)
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
    if len(names) < 2 or not resamples:
        return np.empty((0, len(index)))
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    times = np.stack([np.bincount(row, minlength=len(names)) for row in drawn])
    return times[:, index].astype(float)


def presence_statistics(
    videos: Sequence[VideoResult], choices: MetricChoices, groups: Mapping[str, NDArray[np.int64]] | None = None
) -> tuple[dict[str, Statistic], dict[str, float], int]:
    """Average precisions where frames may have several labels: of each class in each video that has it, averaged over these
    videos, then over classes, as ivtmetrics' video-wise AP; and over all frames of all videos together, as its global one, for
    which nothing is drawn anew. truth of videos: (T, K) bool. groups: of `component_groups`, whose classes are judged as well: a
    group is there where one of its classes is, and is as likely as the likeliest of them."""
    found: dict[str, Statistic] = {}
    spread: dict[str, float] = {}
    left_out = 0
    by_class = replace(choices, order="videos_then_phases")
    for suffix, group in {"": None, **(groups or {})}.items():
        shown = videos if group is None else [_grouped(video, group) for video in videos]
        table, value = _average_precisions(shown)
        found[f"video_mean_average_precision{suffix}"] = partial(averaged, table, by_class.order)
        spread[f"video_mean_average_precision{suffix}"] = deviation(table, by_class)
        found[f"mean_average_precision{suffix}"] = partial(_of_all_videos, value)
        left_out = left_out or int(np.isnan(table).sum())
    return found, spread, left_out


def component_groups(classes: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """{"_instrument", "_verb", "_target", and of pairs: (K,) which of its groups each class belongs to} of classes that are
    triplets, "instrument,verb,target"; nothing of others."""
    parts = [name.split(",") for name in classes]
    if any(len(part) != 3 for part in parts):
        return {}
    chosen = {
        "_instrument": (0,),
        "_verb": (1,),
        "_target": (2,),
        "_instrument_verb": (0, 1),
        "_instrument_target": (0, 2),
    }
    return {
        name: np.unique([",".join(part[place] for place in places) for part in parts], return_inverse=True)[1]
        for name, places in chosen.items()
    }


def _grouped(video: VideoResult, group: NDArray[np.int64]) -> VideoResult:
    count = int(group.max()) + 1
    truth, scores = np.zeros((len(video.truth), count), bool), np.zeros((len(video.truth), count))
    for label, place in enumerate(group.tolist()):
        truth[:, place] |= video.truth[:, label].astype(bool)
        scores[:, place] = np.maximum(scores[:, place], video.scores[:, label])
    return VideoResult(video.name, video.subject, truth, scores)  # pyright: ignore[reportArgumentType]


def _average_precisions(videos: Sequence[VideoResult]) -> tuple[NDArray[np.float64], float]:
    """((V, K) of each class in each video that has it, NaN elsewhere; the mean over classes of that of all frames together)"""
    from sklearn.metrics import average_precision_score  # slow to import

    table = np.full((len(videos), videos[0].scores.shape[1]), np.nan)
    for row, video in enumerate(videos):
        for label in np.flatnonzero(video.truth.any(axis=0)):
            table[row, label] = average_precision_score(video.truth[:, label], video.scores[:, label])
    truth, scores = (np.concatenate([getattr(video, name) for video in videos]) for name in ("truth", "scores"))
    present = np.flatnonzero(truth.any(axis=0))
    pooled = [float(average_precision_score(truth[:, label], scores[:, label])) for label in present]
    return table, float(np.mean(pooled)) if pooled else float("nan")


def _of_all_videos(value: float, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) `value` where each video counts once, NaN of resamples."""
    return np.where((weights == 1).all(axis=1), value, np.nan)


def baseline_scores(
    name: str, train: Sequence[NDArray], truth: NDArray, known: NDArray[np.bool_], phases: int
) -> NDArray[np.float64]:
    """(T, K) what a baseline says of a video. name: of BASELINES. train: (T', K) bool of training frames that have a label, a video
    each, with the share of its length at which each stands, as `at_shares` has them. truth: (T, K) bool, known: (T,)."""
    if name == "copy last frame":
        found = np.tile(_shares(train), (len(truth), 1))
        last = np.maximum.accumulate(np.where(known, np.arange(len(truth)), -1))
        before = np.concatenate([[-1], last[:-1]]) if len(last) else last
        found[before >= 0] = truth[before[before >= 0]]
        return found
    if name == "majority":
        return np.tile(_shares(train), (len(truth), 1))
    table = prior_by_time(train, phases)
    return table[np.minimum((relative_times(len(truth)) * BINS).astype(int), BINS - 1)]


def at_shares(truth: NDArray, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(T', 1 + K) the share of the video's length at which each frame with a label stands, and its labels."""
    return np.concatenate([relative_times(len(truth))[:, None], truth.astype(float)], axis=1)[known]


def relative_times(frames: int) -> NDArray[np.float64]:
    """(T,) the middle of each frame as a share of the video."""
    return (np.arange(frames) + 0.5) / max(frames, 1)


def prior_by_time(train: Sequence[NDArray], phases: int) -> NDArray[np.float64]:
    """(BINS, K) shares of the classes at relative times; of the whole split where no frame stands."""
    rows = np.concatenate(list(train))
    bins = np.minimum((rows[:, 0] * BINS).astype(int), BINS - 1)
    sums = np.zeros((BINS, phases))
    np.add.at(sums, bins, rows[:, 1:])
    counts = np.bincount(bins, minlength=BINS)[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), _shares(train))


def _shares(train: Sequence[NDArray]) -> NDArray[np.float64]:
    return np.concatenate(list(train))[:, 1:].mean(axis=0)
