"""Candidates are measured on the run's own clips, within a given time, and what is slower, differs or fails is not taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from corpora import corpus_of_two_kinds

from trocar.loaders import cpu, measure
from trocar.loaders.choice import Choice
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.measure import Candidate, measure_loaders
from trocar.loaders.video.video import Kind, VideoError

PREFETCH = 3
CROPS = CropRecipe((1, 1), (1, 1), 0)
H264, VP9 = Kind("h264", "yuv420p", 128, 96), Kind("vp9", "yuv420p", 128, 96)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_of_two_kinds(tmp_path_factory.mktemp("measure"))


def sampler_of(corpus: Corpus) -> Sampler:
    return Sampler(corpus.frames, num_frames=4, stride=2, seed=0)


class Clock:
    """Stands for the module `time`: it goes on when a stand-in works."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


class StandIn:
    """A loader that decodes nothing. Pictures are as bright as their video's number, unless they are `off`.

    clips_per_second: of a kind, or of numbers of decoders. start: seconds that it takes to start. refused: why it decodes no H.264.
    """

    def __init__(
        self,
        corpus: Corpus,
        clock: Clock,
        batches: Iterable[np.ndarray],
        *,
        clips_per_second: dict[Any, float],
        start: float = 0.0,
        off: int = 0,
        refused: str = "",
        error: Exception | None = None,
        decoders: int | None = None,
    ) -> None:
        self._sampler, self._corpus, self._clock, self._batches = sampler_of(corpus), corpus, clock, iter(batches)
        self._rates, self._start, self._off, self._error, self._decoders = clips_per_second, start, off, error, decoders
        self.taken_over = {corpus.video_path(0): refused} if refused else {}

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def wait_until_ready(self) -> None:
        self._clock.now += self._start

    def __iter__(self) -> Iterator[Any]:
        self._ahead: list[np.ndarray] = list(itertools.islice(self._batches, PREFETCH))
        while self._ahead:
            if self._error is not None:
                raise self._error
            batch = self._ahead.pop(0)
            videos = [clip.video for clip in self._sampler.clips(batch)]
            kind = Kind.of(self._corpus.video(videos[0]).facts)
            self._clock.now += len(batch) / self._rates.get(self._decoders, self._rates.get(kind, 100.0))
            frames = torch.tensor(videos, dtype=torch.uint8).reshape(-1, 1, 1, 1, 1) * 10
            yield SimpleNamespace(frames=frames + (self._off if kind == H264 else 0))
            self._ahead += itertools.islice(self._batches, 1)


def measured(
    corpus: Corpus, clock: Clock, cpu_rates: dict[Any, float], *others: dict[str, Any], **how: Any
) -> list[Choice]:
    """others: what `StandIn` is told of each other candidate, and its `tried` numbers of decoders. how: for `measure_loaders`."""
    stand_in: Any = partial(StandIn, corpus, clock)
    candidates = [Candidate("cpu", partial(stand_in, clips_per_second=cpu_rates))]
    for number, other in enumerate(others):
        told = dict(other)
        tried = told.pop("tried", ())
        candidates.append(Candidate(f"other {number}", partial(stand_in, **told), tried))
    return measure_loaders(corpus, sampler_of(corpus), candidates, **how)


def test_every_kind_is_compared(corpus: Corpus, clock: Clock) -> None:
    """Frequent kinds first; rates are exact, as starting and the first batches are left out."""
    found = measured(
        corpus, clock, {VP9: 100, H264: 40}, {"clips_per_second": {VP9: 80, H264: 50}, "start": 1.5}, repeats=3
    )
    assert [(choice.kind, choice.loader) for choice in found] == [(VP9, "cpu"), (H264, "other 0")]
    assert [choice.reason for choice in found] == [
        "80 clips/s by other 0, 100 by cpu",
        "50 clips/s by other 0, 40 by cpu",
    ]
    assert sum(choice.share for choice in found) == pytest.approx(1)
    assert [choice.decoders for choice in found] == [None, None]


@pytest.mark.parametrize(
    ("rates", "number"),
    [
        ({4: 200, 8: 300, 16: 320}, 8),  # a tenth more is not worth twice the memory
        ({4: 200, 8: 300, 16: 400}, 16),
        ({4: 200, 8: 210, 2: 190, 1: 100}, 2),
        ({4: 200, 8: 210, 2: 100, 1: 200}, 4),
    ],
)
def test_decoders_are_as_many_as_bring_more_clips(
    corpus: Corpus, clock: Clock, rates: dict[Any, float], number: int
) -> None:
    other = {"clips_per_second": rates, "tried": (4, 8, 16, 2, 1)}
    found = measured(corpus, clock, {VP9: 50, H264: 250}, other)
    assert [(choice.loader, choice.decoders) for choice in found] == [("other 0", number), ("cpu", None)]


def test_what_differs_or_fails_is_the_cpus(corpus: Corpus, clock: Clock) -> None:
    fast: dict[str, Any] = {"clips_per_second": {VP9: 500, H264: 500}}
    different = measured(corpus, clock, {}, {**fast, "off": 5})
    assert [choice.loader for choice in different] == ["other 0", "cpu"]
    assert different[1].reason == "as the clips of other 0 differ from the CPU's by 5.0 of 255 on average"
    assert [choice.loader for choice in measured(corpus, clock, {}, {**fast, "off": 4})] == ["other 0"] * 2
    refusing = measured(corpus, clock, {}, {**fast, "refused": "no such codec"})
    assert [choice.loader for choice in refusing] == ["other 0", "cpu"]
    assert refusing[1].reason == "as other 0 fails: no such codec"
    for error, reason in (
        (RuntimeError("out of decoders"), "as other 0 fails: out of decoders"),
        (VideoError("too many failures"), "not measured: too many failures"),
    ):
        broken = measured(corpus, clock, {}, {**fast, "error": error})
        assert {(choice.loader, choice.reason) for choice in broken} == {("cpu", reason)}


def test_the_best_of_several_serves_all_that_it_is_faster_at(corpus: Corpus, clock: Clock) -> None:
    """One loader beside the CPU's, as a run has one: that which shortens the run most."""
    some, most = {"clips_per_second": {VP9: 90, H264: 900}}, {"clips_per_second": {VP9: 300, H264: 20}}
    found = measured(corpus, clock, {VP9: 80, H264: 80}, some, most)
    assert [choice.loader for choice in found] == ["other 1", "cpu"]
    assert found[0].reason == "90 clips/s by other 0, 80 by cpu; 300 clips/s by other 1, 80 by cpu"


def test_one_that_does_not_start_is_no_reason_to_stop(corpus: Corpus) -> None:
    """As in a container without NVIDIA's video libraries: said, tried once, and the CPU does all."""
    tried = []

    def make_broken(batches: Any) -> Any:
        tried.append(batches)
        raise RuntimeError("Failed to load libnvcuvid.so\nstack of C++")

    unused = partial(pytest.fail, "the CPU is not measured against nothing")
    both = [Candidate("cpu", unused), Candidate("other", make_broken)]  # pyright: ignore[reportArgumentType]
    found = measure_loaders(corpus, sampler_of(corpus), both)
    assert {(choice.loader, choice.reason) for choice in found} == {
        ("cpu", "as other does not start: Failed to load libnvcuvid.so")
    }
    assert len(tried) == 1


@pytest.mark.parametrize("rate", [2.5, 20.0, 150.0])
@pytest.mark.parametrize("others", [1, 2])
def test_it_ends_in_time(rate: float, others: int, corpus: Corpus, clock: Clock) -> None:
    """However slow the loaders are, and however many there are to be measured; a batch that is under way is waited for."""
    began = clock.now
    other = {"clips_per_second": {VP9: rate, H264: rate}, "start": 1.0, "tried": (8, 16, 32, 4)}
    found = measured(corpus, clock, {VP9: rate, H264: rate}, *[other] * others, seconds=10.0, repeats=50)
    assert clock.now - began <= 10 + PREFETCH * 8 / rate
    assert len(found) == 2


def test_what_came_too_late_is_the_cpus(corpus: Corpus, clock: Clock) -> None:
    late = measured(corpus, clock, {}, {"clips_per_second": {}, "start": 1.0}, seconds=0.5)
    assert {(choice.loader, choice.reason) for choice in late} == {
        ("cpu", "as the time was up before other 0 was measured")
    }


def test_rare_kinds_stay_on_the_cpu_unmeasured(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MEASURED_KINDS", 0)
    refused = partial(pytest.fail, "nothing is measured, nothing is even started")
    both = [Candidate("cpu", refused), Candidate("other", refused)]  # pyright: ignore[reportArgumentType]
    found = measure_loaders(corpus, sampler_of(corpus), both)
    assert [choice.reason for choice in found] == ["too few clips to measure it"] * 2


def test_measuring_with_dali_itself(corpus: Corpus) -> None:
    """VP9 is decoded by DALI's CPU backend, H.264 is left to the CPU's own loader: equal frames both ways."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from trocar.loaders import dali

    both = [
        Candidate(name, partial(loader, corpus, sampler_of(corpus), CROPS, resolution=64, threads=1, device="cpu"))
        for name, loader in (("cpu", cpu.ClipLoader), ("dali", dali.ClipLoader))
    ]
    both[1] = Candidate("dali", both[1].make, (2, 1))
    found = measure_loaders(corpus, sampler_of(corpus), both, repeats=1)
    assert len(found) == 2
    assert all("clips/s by dali" in choice.reason for choice in found)
