"""Metrics of whole videos against values worked out by hand, scikit-learn, and programs written here from the definitions."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, precision_score, recall_score

from trocar.judge.workflow.choices import ABSENT_IN_WORDS, Absent, MetricChoices
from trocar.judge.workflow.frame_metrics import VideoResult, frame_statistics, phase_counts, phase_scores
from trocar.judge.workflow.labels import DenseVideo
from trocar.judge.workflow.relaxed import jumps_of, relaxed_scores
from trocar.judge.workflow.scores import (
    BASELINES,
    at_shares,
    baseline_scores,
    component_groups,
    judge_videos,
    resampled_weights,
)

ONE = np.ones((1, 1))
CHOLEC80 = (
    "Preparation",
    "CalotTriangleDissection",
    "ClippingCutting",
    "GallbladderDissection",
    "GallbladderPackaging",
    "CleaningCoagulation",
    "GallbladderRetraction",
)


def result(truth: list[int], said: list[int], phases: int, name: str = "a") -> VideoResult:
    return VideoResult(name, name, np.array(truth), np.eye(phases)[said])


def scores_of(videos: list[VideoResult], **choices: object) -> dict[str, float]:
    found, _, _ = frame_statistics(videos, 1.0, MetricChoices(**choices), {})  # type: ignore[arg-type]
    return {name: float(statistic(np.ones((1, len(videos))))[0]) for name, statistic in found.items()}


# Phase 0: 3 frames, 2 right, said 3 times. Phase 1: 1 frame, never said. Phase 2: absent, said once. Phase 3: neither.
COUNTS = phase_counts(np.array([0, 0, 0, 1]), np.array([0, 0, 2, 0]), 4)
NAN = float("nan")


# precision, recall, jaccard, f1
BY_RULE = {
    "absent_left_out": ([2 / 3, 0, NAN, NAN], [2 / 3, 0, NAN, NAN], [1 / 2, 0, NAN, NAN], [2 / 3, 0, NAN, NAN]),
    "undefined_left_out": ([2 / 3, NAN, 0, NAN], [2 / 3, 0, NAN, NAN], [1 / 2, 0, 0, NAN], [2 / 3, 0, 0, NAN]),
    "zero": ([2 / 3, 0, 0, 0], [2 / 3, 0, 0, 0], [1 / 2, 0, 0, 0], [2 / 3, 0, 0, 0]),
    "one": ([2 / 3, 0, 0, 1], [2 / 3, 0, 0, 1], [1 / 2, 0, 0, 1], [2 / 3, 0, 0, 1]),
}


@pytest.mark.parametrize("absent", ABSENT_IN_WORDS)
def test_each_rule_for_absent_phases(absent: Absent) -> None:
    for (name, found), wanted in zip(phase_scores(COUNTS, absent).items(), BY_RULE[absent], strict=True):
        np.testing.assert_allclose(found, wanted, err_msg=name)


def test_orders_of_averaging_by_hand() -> None:
    """Video a has both phases, half of 0 and all of 1 found; video b phase 0 alone, all of it found."""
    videos = [result([0, 0, 1, 1], [0, 1, 1, 1], 2, "a"), result([0, 0], [0, 0], 2, "b")]
    recall = scores_of(videos)["recall"]
    assert recall == pytest.approx((0.75 + 1.0) / 2)
    other = scores_of(videos, order="videos_then_phases")["recall"]
    assert other == pytest.approx(((0.5 + 1.0) / 2 + 1.0) / 2)
    assert other != scores_of(videos, order="videos_then_phases", absent="zero")["recall"]
    assert scores_of(videos)["pooled_recall"] == pytest.approx((3 / 4 + 1.0) / 2)
    assert scores_of(videos)["accuracy"] == pytest.approx((3 / 4 + 1) / 2)
    assert scores_of(videos)["pooled_accuracy"] == pytest.approx(5 / 6)
    precision, recalls = (2 / 3 + 1) / 2, 0.75  # of video a; of video b both are 1
    mean_precision, mean_recall = ((precision + 1) / 2, (recalls + 1) / 2)
    wanted = 2 * mean_precision * mean_recall / (mean_precision + mean_recall)
    assert scores_of(videos)["f1_of_means"] == pytest.approx(wanted)
    _, sample, left_out = frame_statistics(videos, 1.0, MetricChoices(), {})
    _, population, _ = frame_statistics(videos, 1.0, MetricChoices(deviation="population"), {})
    assert (sample["accuracy"], population["accuracy"]) == pytest.approx((0.25 / np.sqrt(2), 0.125))
    assert left_out == 1


@pytest.mark.parametrize("seed", range(4))
def test_pooled_scores_are_scikit_learns(seed: int) -> None:
    chance = np.random.default_rng(seed)
    phases = 5
    videos = []
    for number in range(4):
        truth = np.sort(chance.integers(0, phases - (seed == 1), chance.integers(20, 80)))
        said = np.where(chance.random(len(truth)) < 0.6, truth, chance.integers(0, phases, len(truth)))
        videos.append(result(truth.tolist(), said.tolist(), phases, str(number)))
    truth = np.concatenate([video.truth for video in videos])
    said = np.concatenate([video.predicted for video in videos])
    known = np.unique(truth)
    found, zero = scores_of(videos), scores_of(videos, absent="zero")
    common: dict[str, Any] = {"average": "macro", "zero_division": 0}
    by_phase: dict[str, Any] = {"average": None, "zero_division": 0}
    functions = {"precision": precision_score, "recall": recall_score, "jaccard": jaccard_score, "f1": f1_score}
    for name, function in functions.items():
        assert found[f"pooled_{name}"] == pytest.approx(function(truth, said, labels=known, **common)), name
        whole = [function(v.truth, v.predicted, labels=np.arange(phases), **by_phase) for v in videos]
        assert zero[name] == pytest.approx(np.mean(whole)), name


def relaxed_by_the_script(true: np.ndarray, found: np.ndarray, rate: int, phases: int, third: bool) -> dict:
    """The challenge's program, statement by statement, phases counted from 1, in plain lists."""
    truth, said = [int(x) + 1 for x in true], [int(x) + 1 for x in found]
    difference = [b - a for a, b in zip(truth, said, strict=True)]
    last_four = range(phases - 3, phases + 1)
    place = 0
    for phase, run in groupby(truth):
        length = len(list(run))
        piece = difference[place : place + length]
        t = min(10 * rate, length)
        late, early = {-1}, {1}
        if third and phase in last_four:
            early = {1, 2}
            late = {-1, -2} if phase in last_four[2:] else {-1}
        for index in [i for i in range(t) if piece[i] in late]:
            piece[index] = 0
        flags = [piece[length - t + i] in early for i in range(t)]
        for index in [i for i in range(t) if flags[i]]:
            piece[index] = 0
        difference[place : place + length] = piece
        place += length
    scores: dict = {"accuracy": difference.count(0) / len(truth), "jaccard": [], "precision": [], "recall": []}
    for phase in range(1, phases + 1):
        of_phase = {i for i, x in enumerate(truth) if x == phase}
        predicted = {i for i, x in enumerate(said) if x == phase}
        if not of_phase:
            for name in ("jaccard", "precision", "recall"):
                scores[name].append(NAN)
            continue
        hits = sum(difference[i] == 0 for i in of_phase | predicted)
        scores["jaccard"].append(hits / len(of_phase | predicted))
        scores["precision"].append(min(hits / len(predicted), 1) if predicted else 0)
        scores["recall"].append(min(hits / len(of_phase), 1))
    return scores


@pytest.mark.parametrize("seed", range(6))
def test_relaxed_scores_are_those_of_the_m2cai16_script(seed: int) -> None:
    chance = np.random.default_rng(seed)
    lengths = chance.integers(3, 60, 9)
    truth = np.repeat(chance.integers(0, 7, 9), lengths)
    said = np.roll(truth, chance.integers(-12, 13))
    said = np.where(chance.random(len(truth)) < 0.1, chance.integers(0, 7, len(truth)), said)
    for third in (False, True):
        jumps = jumps_of(CHOLEC80) if third else {}
        found = relaxed_scores(truth, said, 7, 1.0, MetricChoices(), jumps)
        wanted = relaxed_by_the_script(truth, said, 1, 7, third)
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, err_msg=f"{name} {third}")


def test_phases_without_an_order_have_no_relaxed_scores() -> None:
    video = result([0, 1], [0, 1], 2)
    assert not [name for name in frame_statistics([video], 1.0, MetricChoices(), None)[0] if "relaxed" in name]
    assert "relaxed_jaccard" in scores_of([video])


def test_relaxed_boundaries_by_hand() -> None:
    """Two phases of 30 frames; the change is seen 10 frames too late: forgiven. Too early: by the intended rule alone."""
    truth = np.repeat([0, 1], 30)
    late, early = np.repeat([0, 1], [40, 20]), np.repeat([0, 1], [20, 40])
    intended = MetricChoices(relaxed_rule="m2cai16_intended")
    found = relaxed_scores(truth, late, 2, 1.0, MetricChoices(), {})
    assert found["accuracy"] == 1
    np.testing.assert_allclose(found["jaccard"], [1, 1])
    assert relaxed_scores(truth, early, 2, 1.0, intended, {})["accuracy"] == 1
    # The script looks at the last ten frames of the phase and forgives the first ten, which were right anyway.
    assert relaxed_scores(truth, early, 2, 1.0, MetricChoices(), {})["accuracy"] == pytest.approx(50 / 60)
    # A second earlier than may be forgiven.
    sooner = np.repeat([0, 1], [41, 19])
    assert relaxed_scores(truth, sooner, 2, 1.0, MetricChoices(), {})["accuracy"] == pytest.approx(59 / 60)


def edit_by_definition(truth: list[int], said: list[int]) -> float:
    first, second = [k for k, _ in groupby(truth)], [k for k, _ in groupby(said)]
    table = np.zeros((len(first) + 1, len(second) + 1))
    table[:, 0], table[0] = np.arange(len(first) + 1), np.arange(len(second) + 1)
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            change = table[i - 1, j - 1] + (first[i - 1] != second[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, change)
    return 1 - table[-1, -1] / max(len(first), len(second))


def f1_by_definition(truth: list[int], said: list[int], overlap: float) -> tuple[int, int, int]:
    """(true, false positives, missed) as MS-TCN's evaluation counts them, on sets of frames."""

    def segments(labels: list[int]) -> list[tuple[int, set[int]]]:
        found, place = [], 0
        for label, run in groupby(labels):
            length = len(list(run))
            found.append((label, set(range(place, place + length))))
            place += length
        return found

    wanted, hit = segments(truth), set()
    positives = negatives = 0
    for label, frames in segments(said):
        # MS-TCN's union is from the first to the last frame of both.
        likeness = [
            len(frames & other) / (max(frames | other) - min(frames | other) + 1) if label == name else 0.0
            for name, other in wanted
        ]
        best = int(np.argmax(likeness))
        if likeness[best] >= overlap and best not in hit:
            positives += 1
            hit.add(best)
        else:
            negatives += 1
    return positives, negatives, len(wanted) - len(hit)


def test_edit_score_and_segmental_f1_are_ms_tcns() -> None:
    chance = np.random.default_rng(5)
    videos = []
    for number in range(6):
        truth = np.repeat(chance.integers(0, 4, 8), chance.integers(1, 12, 8)).tolist()
        said = np.where(chance.random(len(truth)) < 0.75, np.roll(truth, 1), chance.integers(0, 4, len(truth))).tolist()
        videos.append((truth, said, result(truth, said, 4, str(number))))
    found = scores_of([video for *_, video in videos])
    assert found["edit_score"] == pytest.approx(np.mean([edit_by_definition(a, b) for a, b, _ in videos]))
    for name, overlap in (("f1_at_10", 0.1), ("f1_at_25", 0.25), ("f1_at_50", 0.5)):
        counted = [f1_by_definition(a, b, overlap) for a, b, _ in videos]
        of_videos = [2 * hits / (2 * hits + wrong + missed) for hits, wrong, missed in counted]
        assert found[name] == pytest.approx(np.mean(of_videos)), name
        hits, wrong, missed = np.sum(counted, axis=0)
        assert found[f"pooled_{name}"] == pytest.approx(2 * hits / (2 * hits + wrong + missed)), name
    assert found["f1_at_10"] > found["f1_at_50"] > 0
    assert found["sar_rarp50_score"] == pytest.approx((found["accuracy"] * found["f1_at_10"]) ** 0.5)


def test_presence_of_tools_as_average_precision() -> None:
    chance = np.random.default_rng(0)
    videos, scores = [], []
    for number in range(3):
        truth = chance.random((40, 3)) < [0.5, 0.2, 0.4]
        truth[:, 2] &= number != 1  # that tool is not in every video
        known = np.arange(40) % 8 != 0
        videos.append(DenseVideo(str(number), str(number), truth, known))
        scores.append(chance.random((40, 3)) + 0.5 * truth)
    found = judge_videos(videos, scores, 1.0, MetricChoices(), {}, resamples=50).row["metrics"]
    kept = [(video.truth[video.known], score[video.known]) for video, score in zip(videos, scores, strict=True)]
    pooled_truth, pooled = (np.concatenate([pair[place] for pair in kept]) for place in (0, 1))
    wanted = np.mean([average_precision_score(pooled_truth[:, k], pooled[:, k]) for k in range(3)])
    assert found["mean_average_precision"]["score"] == pytest.approx(wanted)
    of_tools = [
        np.mean([average_precision_score(t[:, k], s[:, k]) for t, s in kept if t[:, k].any()]) for k in range(3)
    ]
    assert found["video_mean_average_precision"]["score"] == pytest.approx(np.mean(of_tools))


def test_parts_of_triplets_as_ivtmetrics_has_them() -> None:
    """By its definition: a part's score is the largest of its triplets', AP of a part in a video, videos first, then parts."""
    names = ["hook,cut,liver", "hook,cut,duct", "hook,grasp,duct", "clipper,clip,duct"]
    chance = np.random.default_rng(3)
    videos, scores = [], []
    for number in range(3):
        videos.append(DenseVideo(str(number), str(number), chance.random((50, 4)) < 0.3, np.ones(50, bool)))
        scores.append(chance.random((50, 4)))
    videos[0].truth[:, 3] = False
    groups = component_groups(names)
    found = judge_videos(videos, scores, 1.0, MetricChoices(), {}, groups=groups, resamples=0).row["metrics"]
    for suffix, places in {"_instrument": (0,), "_target": (2,), "_instrument_verb": (0, 1)}.items():
        parts: dict[tuple[str, ...], list[int]] = {}
        for place, name in enumerate(names):
            parts.setdefault(tuple(name.split(",")[p] for p in places), []).append(place)
        of_parts = []
        for members in parts.values():
            pairs = [
                (v.truth[:, members].any(axis=1), s[:, members].max(axis=1))
                for v, s in zip(videos, scores, strict=True)
            ]
            of_parts.append(np.mean([average_precision_score(t, s) for t, s in pairs if t.any()]))
        assert found[f"video_mean_average_precision{suffix}"]["score"] == pytest.approx(np.mean(of_parts)), suffix
    assert component_groups(["Grasper", "Hook"]) == {}


def test_intervals_draw_videos_and_all_of_a_subject() -> None:
    weights = resampled_weights(["x", "x", "y", "z"], 200, 0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert len(resampled_weights(["x", "x"], 10, 0)) == len(resampled_weights(["x", "y"], 0, 0)) == 0
    chance = np.random.default_rng(0)
    videos, scores = [], []
    for number in range(8):
        truth = np.repeat([0, 1, 2], 10)
        said = np.where(chance.random(30) < 0.1 * number, 0, truth)
        videos.append(DenseVideo(str(number), str(number), truth, np.ones(30, bool)))
        scores.append(np.eye(3)[said])
    judged = judge_videos(videos, scores, 1.0, MetricChoices(), {}, resamples=500)
    found = judged.row["metrics"]["accuracy"]
    assert found["low"] < found["score"] < found["high"]
    # By hand for one resample: the mean of the accuracies of the videos that were drawn.
    drawn = resampled_weights([video.name for video in videos], 500, 0)[7]
    accuracies = [(s.argmax(axis=1) == v.truth).mean() for v, s in zip(videos, scores, strict=True)]
    assert judged.drawn["accuracy"][7] == pytest.approx(np.average(accuracies, weights=drawn))
    assert found["detectable"] == pytest.approx(
        (1.959964 + 0.841621) * np.sqrt(2) * judged.drawn["accuracy"].std(ddof=1)
    )


def test_baselines_by_hand() -> None:
    """Two training videos: phase 0 until 40 % of one, until half of the other, then phase 1."""
    train = [at_shares(np.eye(2)[np.repeat([0, 1], [n, 200 - n])], np.ones(200, bool)) for n in (80, 100)]
    truth, known = np.eye(2)[np.repeat([0, 1], [8, 12])], np.ones(20, bool)
    found = {name: baseline_scores(name, train, truth, known, 2) for name in BASELINES}
    assert found["majority"][0] == pytest.approx([0.45, 0.55])
    assert (found["majority"] == found["majority"][0]).all()
    np.testing.assert_allclose(found["prior by time"][:, 0], [1] * 8 + [0.5] * 2 + [0] * 10)
    assert found["copy last frame"][0] == pytest.approx([0.45, 0.55])
    assert (found["copy last frame"][1:] == truth[:-1]).all()
    known[5] = False  # the last label that is known is copied
    truth[4] = [0, 1]
    assert baseline_scores("copy last frame", train, truth, known, 2)[6].tolist() == [0, 1]
