"""Loaders that share the draws: the batches of one alone, whoever is faster, whoever fails."""

from __future__ import annotations

import threading
import time
from typing import Any

import clips
import numpy as np
import pytest
from corpora import damaged_corpus

from trocar.loaders.both import ClipLoader, open_both
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader as CpuLoader
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.decode.plan import Span
from trocar.loaders.decode.span import SpanResult
from trocar.loaders.decode.threads import LoaderError
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.sampler import Sampler

pytestmark = pytest.mark.timeout(120)

FRAMES, BATCH, DAMAGED = 4, 6, 1
ORDERS = [ClipOrder(1), ClipOrder(views_per_span=3, pool_spans=18, lanes=6, seed=1)]
CROPS = CropRecipe((0.3, 1), (0.75, 1.33), 0.5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three videos; one GOP in three of the second one is damaged."""
    return damaged_corpus(tmp_path_factory.mktemp("both"), DAMAGED)


class Planted(CpuLoader):
    """One thread that takes `seconds` more for a span, and fails at its span number `fails_at`."""

    def __init__(self, *arguments: Any, seconds: float = 0.0, fails_at: int = -1, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds, self.fails_at, self.seen = seconds, fails_at, 0

    def _read(self, span: Span, output: Any) -> SpanResult:
        time.sleep(self.seconds)
        self.seen += 1
        if self.seen > self.fails_at >= 0:
            raise OSError(f"planted at draw {span.draw}")
        return super()._read(span, output)


def options_of(corpus: Corpus) -> tuple[Corpus, Sampler, CropRecipe]:
    return corpus, Sampler(corpus.frames, num_frames=FRAMES, stride=2, seed=7), CROPS


def numbers_of(batches: int, first: int = 0) -> list[np.ndarray]:
    return [np.arange(n * BATCH, (n + 1) * BATCH) for n in range(first, batches)]


def load(corpus: Corpus, numbers: Any, *members: dict[str, Any], order: ClipOrder = ORDERS[0]) -> ClipLoader:
    what = options_of(corpus)
    shared: dict[str, Any] = {"resolution": 32, "order": order, "failure_budget": 1.0, "prefetch": 1}
    loaders = [Planted(*what, (), **{"threads": 1, **shared, **member}) for member in members]
    return ClipLoader(loaders, numbers)


def alone(corpus: Corpus, numbers: Any, order: ClipOrder = ORDERS[0]) -> CpuLoader:
    return CpuLoader(*options_of(corpus), numbers, resolution=32, order=order, failure_budget=1.0)


def told(batch: ClipBatch) -> list[Any]:
    """All that a batch says."""
    arrays = (batch.numbers, batch.draws, batch.views, batch.videos, batch.frame_numbers, batch.pts_seconds)
    return [batch.frames.numpy().tobytes(), *(array.tobytes() for array in arrays), batch.labels, repr(batch.count)]


def all_told(loader: Any) -> list[list[Any]]:
    with loader:
        return [told(batch) for batch in loader]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_batches_are_those_of_one_loader(corpus: Corpus, order: ClipOrder) -> None:
    """Pictures, numbers, times, replacements and costs, from a fast and a slow one; resumed as well."""
    expected = alone(corpus, numbers_of(8), order)
    reference = all_told(expected)
    assert expected.total.failures
    loader = load(corpus, numbers_of(8), {}, {"seconds": 0.02}, order=order)
    assert all_told(loader) == reference
    assert repr(loader.total) == repr(expected.total)
    assert sum(loader.spans_by_loader) == loader.total.spans
    assert min(loader.spans_by_loader) > 0
    resumed = [batch[:7] for batch in all_told(load(corpus, numbers_of(8, 3), {"seconds": 0.01}, {}, order=order))]
    assert resumed == [batch[:7] for batch in reference[3:]]


@pytest.mark.slow  # what else the machine does takes from the faster one
def test_who_is_faster_decodes_more(corpus: Corpus) -> None:
    """In proportion to how fast they are."""
    loader = load(corpus, numbers_of(7), {"seconds": 0.05}, {"seconds": 0.2})
    assert all_told(loader) == all_told(alone(corpus, numbers_of(7)))
    fast, slow = loader.spans_by_loader
    assert 2 < fast / slow < 6


@pytest.mark.parametrize("fails_at", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_the_others_do_what_a_loader_that_fails_leaves(
    corpus: Corpus, fails_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = load(corpus, numbers_of(8), {"seconds": 0.005}, {"fails_at": fails_at})
    assert all_told(loader) == all_told(alone(corpus, numbers_of(8)))
    assert loader.spans_by_loader[1] <= fails_at
    assert "has failed, the others go on without it: planted at draw" in caplog.text


def test_an_error_of_all_of_them_is_raised(corpus: Corpus) -> None:
    with (
        load(corpus, numbers_of(8), {"fails_at": 9}, {"fails_at": 2}) as loader,
        pytest.raises(OSError, match="planted at draw"),
    ):
        list(loader)
    with pytest.raises(StopIteration):
        next(loader)


def test_nothing_is_left_of_one_that_is_closed_or_dropped(corpus: Corpus) -> None:
    before = set(threading.enumerate())
    loader = load(corpus, numbers_of(50), {}, {"workers": 1, "threads": 1})
    next(loader)
    loader.close()
    assert set(threading.enumerate()) == before
    loader = load(corpus, numbers_of(50), {}, {"seconds": 0.01})
    next(loader)
    del loader
    until = time.monotonic() + 20
    while set(threading.enumerate()) != before and time.monotonic() < until:
        time.sleep(0.02)
    assert set(threading.enumerate()) == before


def test_loaders_of_different_clips_are_refused(corpus: Corpus) -> None:
    what = options_of(corpus)
    loaders = [CpuLoader(*what, (), resolution=side, threads=1) for side in (32, 48)]
    with pytest.raises(ValueError, match="that share draws must have the same videos"):
        ClipLoader(loaders, ())
    for loader in loaders:
        loader.close()


def test_a_clip_that_hangs_is_named(corpus: Corpus) -> None:
    slow = {"seconds": 3, "clip_timeout": 0.5}
    with (
        load(corpus, numbers_of(3), slow, slow) as loader,
        pytest.raises(LoaderError, match=r"thread decode_0 does not come on for 0.5 s \(clip_timeout\)"),
    ):
        next(loader)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dali_and_the_cpu_share_draws(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The real pair, DALI on its CPU backend: the right frames of the right videos in the right order, resumed as well."""
    pytest.importorskip("nvidia.dali")
    folder = tmp_path_factory.mktemp("pair")
    for row, codec in enumerate(("libvpx-vp9", "libvpx", "libvpx-vp9")):
        clips.write_numbered(folder / f"{row}.webm", 120, video_id=row, gop=12, codec=codec)
    index_corpus([folder], folder / "index", workers=1, content_box=False, progress=False)
    corpus = Corpus.open(folder / "index")
    wanted: dict[str, Any] = {"batch": 6, "num_frames": 4, "stride": 2, "resolution": 96, "epochs": 8, "seed": 3}
    wanted |= {"crops": CropRecipe((1, 1), (4 / 3, 4 / 3), 0), "resize": "exact", "device": "cpu"}
    reference = list(clip_loader(corpus, loader="cpu", **wanted))
    assert len(reference) > 6
    both = clip_loader(corpus, loader="both", threads=2, **wanted)
    assert str(both.choice) == "both, as asked for"
    found = list(both)
    resumed = list(clip_loader(corpus, loader="both", threads=1, first_number=18, **wanted))
    for batches, expected in ((found, reference), (resumed, reference[3:])):
        for batch, other in zip(batches, expected, strict=True):
            assert told(batch)[1:7] == told(other)[1:7]
            assert np.abs(batch.frames.numpy().astype(int) - other.frames.numpy()).max() <= 2
            for clip, video, frames in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
                assert [clips.read_number(picture) for picture in clip] == [(video, frame) for frame in frames]
    cpu = CpuLoader(*options_of(corpus), (), resolution=32, threads=1)
    made = iter([cpu, RuntimeError("DALI does not start")])

    def make(*_: Any, **__: Any) -> Any:
        one = next(made)
        if isinstance(one, Exception):
            raise one
        return one

    with pytest.raises(RuntimeError, match="does not start"):
        open_both(make, 0, {}, ())
    assert not cpu._pool._workers[0].thread.is_alive()
