"""Metrics: equal to scikit-learn's, to examples worked by hand, and honest about guesses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike
from sklearn import metrics as sk

from trocar.judge.downstream import metrics
from trocar.judge.downstream.judgement import Interval, flags, interval_of, majority, random_baseline, resampled
from trocar.judge.downstream.metrics import METRICS, Predictions, measure


def bootstrap(p: Predictions, metric: Callable[[Predictions], float], resamples: int = 1000) -> Interval:
    return interval_of(metric(p), resampled(p, metric, resamples=resamples))


def predictions(
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    videos: ArrayLike | None = None,
    subjects: ArrayLike | None = None,
    k: int = 0,
) -> Predictions:
    wanted, said = np.asarray(truth), np.asarray(predicted)
    scores = said if said.ndim == 2 else np.eye(k or int(max(wanted.max(), said.max())) + 1)[said]
    names = np.zeros(len(wanted)) if videos is None else np.asarray(videos)
    starts = np.arange(len(wanted), dtype=float)
    whose = names if subjects is None else np.asarray(subjects)
    return Predictions(wanted, scores.astype(float), whose, names, starts, starts + 1)


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(5), generator.integers(5, size=195)])
    scores = generator.random((200, 5)) + 0.5 * np.eye(5)[truth]
    scores /= scores.sum(axis=1, keepdims=True)
    p = predictions(truth, scores)
    predicted = scores.argmax(axis=1)
    found = measure(p)
    assert found["accuracy"] == sk.accuracy_score(truth, predicted)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"), abs=1e-12)
    wanted = sk.roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(wanted, abs=1e-12)
    one_hot = np.eye(5)[truth]
    assert found["mean_average_precision"] == pytest.approx(sk.average_precision_score(one_hot, scores), abs=1e-12)
    # One video: the macro average over its phases.
    assert found["phase_jaccard"] == pytest.approx(sk.jaccard_score(truth, predicted, average="macro"), abs=1e-12)


def test_whole_clips_have_no_metrics_of_sequences() -> None:
    truth, said = [0, 1, 0, 1], [0, 1, 1, 1]
    whole = measure(predictions(truth, said, videos=[0, 1, 2, 3]))
    assert {*whole} == {
        "accuracy",
        "accuracy_over_seconds",
        "balanced_accuracy",
        "macro_f1",
        "mean_average_precision",
        "auroc",
    }
    assert "edit_score" in measure(predictions(truth, said, videos=[0, 1, 2, 3]), "edit_score"), "what a card asks for"
    of_sequences = measure(predictions(truth, said, videos=[0, 1, 2, 2]))
    assert {*of_sequences} == {*METRICS}
    assert whole.items() <= of_sequences.items()
    several = predictions(np.eye(2)[truth] > 0, np.eye(2)[said], videos=[0, 1, 2, 3])
    assert {*measure(several)} == {"mean_average_precision", "auroc"}


def test_several_labels_have_their_metrics_alone() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((50, 4)) < 0.3
    truth[:, 3] = False  # a class that does not occur
    scores = generator.random((50, 4))
    found = measure(predictions(truth, scores))
    assert set(found) == {"mean_average_precision", "video_mean_average_precision", "auroc"}
    assert found["mean_average_precision"] == pytest.approx(sk.average_precision_score(truth[:, :3], scores[:, :3]))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth[:, :3], scores[:, :3]))


def test_classes_that_do_not_occur_count_neither_for_nor_against() -> None:
    p = predictions([0, 0, 1, 1], [0, 2, 1, 1], k=4)
    assert metrics.balanced_accuracy(p) == 0.75
    # F1 of class 0: precision 1, recall 1/2; of class 1: 1.
    assert metrics.macro_f1(p) == pytest.approx((2 / 3 + 1) / 2)


def test_phase_jaccard_in_cholec80s_order() -> None:
    """Video a: phase 0 in rows 1-4, said in rows 1-3: 3/4; phase 1 in rows 5-6, said in rows 4-6: 2/3.

    Video b: phase 1 in a row, said there: 1; phase 2 in two rows, said in one: 1/2; phase 0, which it does not have and which is
    said once, counts as an error of phase 2 alone. Phases first: 3/4, (2/3 + 1)/2, 1/2, whose mean is 25/36. Videos first it would
    be 35/48, over all rows together another figure.
    """
    p = predictions([0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 1, 2, 0], videos=list("aaaaaabbb"))
    assert metrics.phase_jaccard(p) == pytest.approx(25 / 36)
    assert metrics.phase_jaccard(p) != pytest.approx(sk.jaccard_score(p.truth, p.predicted, average="macro"))


def test_seconds_count_not_rows() -> None:
    """A row of 9 seconds that is right and one of 1 second that is wrong: by frames 9 of 10 are right, whatever the rows."""
    starts, names = np.array([0.0, 9.0]), np.zeros(2)
    p = Predictions(np.array([0, 0]), np.eye(2)[[0, 1]], names, names, starts, np.array([9.0, 10.0]))
    assert metrics.accuracy(p) == 0.5
    assert metrics.accuracy_over_seconds(p) == pytest.approx(0.9)
    assert metrics.phase_jaccard(p) == pytest.approx(0.9)
    frames = predictions([0] * 10, [0] * 9 + [1])
    assert metrics.accuracy(frames) == metrics.accuracy_over_seconds(frames) == pytest.approx(0.9)


def test_average_precision_is_ivtmetrics_global_and_video_wise() -> None:
    """Made data; numbers from ivtmetrics 0.1.5 with scikit-learn 1.2.2, whose `-0.0` of an absent class it takes for NaN."""
    generator = np.random.default_rng(50)
    truth = generator.random((90, 6)) < np.array([0.3, 0.1, 0.05, 0.02, 0.3, 0.0])
    scores = generator.random((90, 6)) * 0.7 + 0.5 * truth * generator.random((90, 6))
    p = predictions(truth, scores, videos=np.repeat([0, 1, 2], [20, 30, 40]))
    assert metrics.mean_average_precision(p) == pytest.approx(0.5866478831523559, abs=1e-12)
    assert metrics.video_mean_average_precision(p) == pytest.approx(0.6190498302607776, abs=1e-12)


def test_segmental_f1_worked_by_hand() -> None:
    """Seconds 0-4 are A, 4-20 B, 20-22 A. Said: A, then B from 3 on, with a second of A at 10, B to the end.

    Found: A 0-3 (overlap 3/4 with A 0-4), B 3-10 (6/17 with B), A 10-11 (none left that it meets), B 11-22 (B is taken): 2 of 4
    found and 2 of 3 wanted are matched: F1 = 2 x 2 / (4 + 3).
    """
    truth = [0] * 4 + [1] * 16 + [0] * 2
    said = [0] * 3 + [1] * 7 + [0] + [1] * 11
    assert metrics.segmental_f1(predictions(truth, said)) == pytest.approx(4 / 7)
    # Below a tenth of overlap nothing is found: 1 second of 11.
    assert metrics.segmental_f1(predictions([0] + [1] * 10, [1] + [0] * 10)) == 0.0
    assert metrics.segmental_f1(predictions([0] * 11, [0] + [1] * 10)) == 0.0
    assert metrics.segmental_f1(predictions([0] * 10, [0] + [1] * 9)) == pytest.approx(2 / 3)
    # Two videos, one perfect: their mean. The rows' order is that of time, not of the list.
    p = predictions([*truth, 0, 1], [*said, 0, 1], videos=list("a" * 22 + "bb"))
    assert metrics.segmental_f1(p) == pytest.approx((4 / 7 + 1) / 2)
    # Their segments together: 2 + 2 matched, 7 + 4 in all.
    assert metrics.segmental_f1_pooled(p) == pytest.approx(2 * 4 / 11)
    assert metrics.segmental_f1(p.rows(np.random.default_rng(0).permutation(24))) == pytest.approx((4 / 7 + 1) / 2)


def test_segment_whose_best_match_is_taken_finds_nothing() -> None:
    """As SAR-RARP50's challenge counts: a found segment is held against the wanted one it overlaps most, taken or not.

    Seconds 0-10 are A, 10-11 B, 11-20 A. Said: A, a second of B at 5, then A up to 14, then B. A 0-5 takes A 0-10. A 6-14 overlaps
    A 0-10 most (4/14, against 3/14 with A 11-20), which is taken; it does not go on to the second best. B meets no B. One of 3
    wanted and of 4 found is matched.
    """
    truth = [0] * 10 + [1] + [0] * 9
    said = [0] * 5 + [1] + [0] * 8 + [1] * 6
    assert metrics.segmental_f1(predictions(truth, said)) == pytest.approx(2 / 7)


@pytest.mark.parametrize("first", range(0, 600, 7))
def test_a_tenth_of_overlap_is_enough_wherever_it_lies(first: int) -> None:
    """Ten times a second, as SAR-RARP50 is labelled: 3 of 30 rows, whose times are no exact fractions."""
    starts = (first + np.arange(30)) / 10
    names = np.zeros(30)
    p = Predictions(np.zeros(30, int), np.eye(2)[[0] * 3 + [1] * 27], names, names, starts, starts + 0.1)
    assert metrics.segmental_f1(p) == pytest.approx(2 / 3)


def test_other_counts_as_an_action() -> None:
    """The challenge names no class as background: class 0, `other`, is matched, missed and wrongly found like the rest.

    Other 0-4, action 4-8, other 8-12; said: the action throughout. Without `other` it would be 1 of 1 and 1 of 1.
    """
    p = predictions([0] * 4 + [1] * 4 + [0] * 4, [1] * 12)
    assert metrics.segmental_f1(p) == pytest.approx(2 / 4)
    assert metrics.segmental_f1(predictions([0] * 4, [0] * 4)) == 1.0


def test_interval_is_by_subject() -> None:
    """Rows of a subject go together: with ten subjects that are right or wrong as a whole, the interval is that of ten throws."""
    truth = np.zeros(1000, int)
    right = np.repeat(np.arange(10) < 6, 100)
    by_subject = bootstrap(
        predictions(truth, 1 - right.astype(int), subjects=np.repeat(np.arange(10), 100)), metrics.accuracy
    )
    by_row = bootstrap(
        predictions(truth, 1 - right.astype(int), subjects=np.arange(1000)), metrics.accuracy, resamples=200
    )
    assert by_subject.score == by_row.score == 0.6
    # The standard error of ten throws is sqrt(0.6 x 0.4 / 10) = 0.155.
    assert by_subject.high - by_subject.low == pytest.approx(2 * 1.96 * 0.155, rel=0.1)
    assert by_row.high - by_row.low < 0.1
    assert by_subject.detectable == pytest.approx(2.8016 * 2**0.5 * 0.155, rel=0.1)
    again = bootstrap(
        predictions(truth, 1 - right.astype(int), subjects=np.repeat(np.arange(10), 100)), metrics.accuracy
    )
    assert again == by_subject
    alone = bootstrap(predictions([0, 1], [0, 0], subjects=["a", "a"]), metrics.accuracy)
    assert alone.score == 0.5
    assert np.isnan([alone.low, alone.high, alone.detectable]).all()


def test_subject_drawn_twice_counts_as_two_videos() -> None:
    p = predictions([0, 1, 0, 1], [0, 1, 1, 0], videos=list("aabb"))
    interval = bootstrap(p, metrics.phase_jaccard, resamples=200)
    assert (interval.low, interval.score, interval.high) == (0.0, 0.5, 1.0)


def test_baselines() -> None:
    p = predictions([0, 1, 1, 2], [2, 2, 2, 2])
    guess = majority(p, [1, 1, 1, 0])
    assert guess.predicted.tolist() == [1, 1, 1, 1]
    assert metrics.accuracy(guess) == 0.5
    assert metrics.auroc(guess) == 0.5
    p = predictions(np.arange(400) % 4, np.zeros(400, int), k=4)
    assert random_baseline(p, metrics.accuracy) == pytest.approx(0.25, abs=0.02)
    several = majority(predictions(np.eye(3, dtype=bool), np.ones((3, 3))), [[1, 1, 0], [1, 0, 0]])
    assert several.scores[0].tolist() == [1.0, 0.5, 0.0]


def test_flags() -> None:
    truth = [0] * 18 + [1] * 19 + [2] * 9  # AIxSuture's test split, of which 39.13 % is one class
    narrow = Interval(0.9, 0.85, 0.95, 0.1)
    assert flags(predictions(truth, [0] * 46, k=3), Interval(18 / 46, 0.3, 0.5, 0.1), 19 / 46) == [
        "one class",
        "a class's share",
        "unstable",
        "as majority",
    ]
    # 18 right rows of all classes: as many as one class has.
    mixed = np.where(np.arange(46) % 46 < 18, truth, (np.asarray(truth) + 1) % 3)
    mixed[0], mixed[20] = 1, 1
    assert flags(predictions(truth, mixed), narrow, 0.4) == ["a class's share"]
    assert flags(predictions(truth, truth), narrow, 0.4) == []
    assert flags(predictions(truth, truth), Interval(0.5, 0.42, 0.58, 0.1), 0.4) == ["unstable"]
    unknown = Interval(0.5, float("nan"), float("nan"), float("nan"))
    assert flags(predictions(truth, truth), unknown, 0.4) == ["unstable"]
    assert flags(predictions(truth, truth), unknown, 0.5) == ["unstable", "as majority"]
    assert flags(predictions(np.eye(3, dtype=bool), np.ones((3, 3))), narrow, 0.4) == ["one class"]


@pytest.mark.parametrize("right", [False, True])
def test_no_interval_from_no_variation(right: bool) -> None:
    """All rows wrong, or all right: every resample says the same, which tells nothing of others."""
    truth = np.arange(12) % 3
    p = predictions(truth, truth if right else (truth + 1) % 3, subjects=np.arange(12))
    interval = bootstrap(p, metrics.accuracy, resamples=50)
    assert interval.score == right
    assert np.isnan([interval.low, interval.high, interval.detectable]).all()
    assert ("as majority" in flags(p, interval, 1 / 3)) is not right


def test_every_metric_has_its_meaning() -> None:
    assert set(metrics.MEANING) == set(METRICS)
    assert set(metrics.OVER_CLASSES) < set(METRICS)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows of scores beside columns"):
        predictions([0, 1], np.ones((3, 2)))
    with pytest.raises(ValueError, match="not finite"):
        predictions([0, 1], np.array([[0.0, np.nan], [1, 2]]))
    assert set(METRICS) >= {"accuracy", "f1_at_10"}
