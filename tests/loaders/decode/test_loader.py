"""Spans that serve several clips: the same batches after a resume, on any ranks and beside damage, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import clips
import numpy as np
import pytest
from numpy.typing import NDArray

from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.decode.loader import BaseClipLoader
from trocar.loaders.decode.plan import Span
from trocar.loaders.decode.span import SpanReader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.sampler import Sampler

pytestmark = pytest.mark.timeout(120)

FRAMES, BATCH, DAMAGED = 4, 6, 1
VIDEOS: list[tuple[str, dict[str, Any]]] = [
    ("0.mp4", {"gop": 12, "b_frames": 3, "open_gop": True}),
    ("1.mp4", {"gop": 6}),
    ("2.webm", {"gop": 30, "codec": "libvpx-vp9"}),
    ("3.mkv", {"gop": 12, "codec": "libx265", "b_frames": 2}),
]
ORDERS = [
    ClipOrder(views_per_span=4, pool_spans=12, lanes=6, seed=1),
    ClipOrder(views_per_span=3, pool_spans=18, lanes=6, seed=1),
    ClipOrder(views_per_span=4),
    ClipOrder(views_per_span=1),
]
AUGMENTED = CropRecipe((0.3, 1), (0.75, 1.33), 0.5)
WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Four videos; one GOP in three of the second one is damaged, so that some views of its spans can be read and some cannot."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "videos").mkdir()
    for row, (name, encoding) in enumerate(VIDEOS):
        clips.write_numbered(folder / "videos" / name, 150, video_id=row, first_number=100, **encoding)
    index_corpus([folder / "videos"], folder / "index", workers=1, progress=False)
    corpus = Corpus.open(folder / "index")
    clips.damage_gops(corpus, DAMAGED)
    return corpus


def sampler_of(corpus: Corpus) -> Sampler:
    return Sampler(corpus.frames, num_frames=FRAMES, stride=2, seed=7)


def batches(first: int, stop: int, order: ClipOrder, rank: int = 0, ranks: int = 1) -> list[NDArray[np.int64]]:
    """The clip numbers of whole batches between two numbers; the first one may be cut short, as after an interruption."""
    starts = range(first - first % BATCH, stop, BATCH)
    whole = [np.arange(max(start, first), start + BATCH) for start in starts]
    return [order.share(numbers, rank, ranks) for numbers in whole]


def load(corpus: Corpus, numbers: list[NDArray[np.int64]], order: ClipOrder | None, **options: Any) -> ClipLoader:
    options = {"crops": AUGMENTED, "resolution": 32, "threads": 2, "failure_budget": 1.0, **options}
    return ClipLoader(corpus, sampler_of(corpus), draws=numbers, order=order, **options)


Row = tuple[int, int, int, bytes, bytes, bytes]


def rows(batch: ClipBatch) -> Iterator[Row]:
    """Everything that a batch says of each of its clips, by number."""
    for row, number in enumerate(batch.numbers.tolist()):
        yield (
            number,
            int(batch.draws[row]),
            int(batch.views[row]),
            batch.frame_numbers[row].tobytes(),
            batch.pts_seconds[row].tobytes(),
            batch.frames[row].numpy().tobytes(),
        )


def all_rows(loader: ClipLoader) -> list[Row]:
    with loader:
        return [row for batch in loader for row in rows(batch)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_run_resumed_at_any_clip_goes_on_bit_by_bit(corpus, order):
    """Also in the middle of a round or a span, and where damage fails some views of a span and not others."""
    stop = 96
    loader = load(corpus, batches(0, stop, order), order)
    reference = all_rows(loader)
    assert [row[0] for row in reference] == list(range(stop))
    draws, views = order.clips(np.arange(stop))
    assert [row[1:3] for row in reference] == list(zip(draws.tolist(), views.tolist(), strict=True))
    failed = {failure.draw for failure in loader.total.failures}
    assert failed
    for first in (1, 17, 40, 83):
        resumed = load(corpus, batches(first, stop, order), order, threads=1 + first % 3, prefetch=1 + first % 4)
        assert all_rows(resumed) == reference[first:]


@pytest.mark.parametrize("order", ORDERS[:3], ids=str)
def test_a_replacement_does_not_depend_on_where_the_run_was_interrupted(corpus, order):
    """Resumed before a view that could be read by itself, while the span it belongs to could not."""
    stop = 96
    loader = load(corpus, batches(0, stop, order), order)
    reference = all_rows(loader)
    failed = {failure.draw for failure in loader.total.failures}
    reader, resumed_at = SpanReader(loader.recipe), []
    for number, draw, view, *_ in reference:
        later = tuple(range(view, order.views_per_span))
        if draw in failed and view:
            result = reader.read(draw, later, np.zeros((len(later), FRAMES, 32, 32, 3), np.uint8))
            if not result.count.failures:
                resumed_at.append(number)
    reader.close()
    assert resumed_at
    for first in resumed_at[:4]:
        assert all_rows(load(corpus, batches(first, stop, order), order)) == reference[first:]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_read_their_share_of_the_same_batches(corpus, order, ranks):
    reference = {row[0]: row for row in all_rows(load(corpus, batches(0, 72, order), order))}
    read = []
    for rank in range(ranks):
        with load(corpus, batches(0, 72, order, rank, ranks), order) as loader:
            for batch, numbers in zip(loader, batches(0, 72, order, rank, ranks), strict=True):
                assert batch.numbers.tolist() == numbers.tolist()
                read += list(rows(batch))
    assert len(read) == len(reference) == 72
    assert all(row == reference[row[0]] for row in read)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_view_is_the_same_whether_its_span_serves_one_clip_or_many(corpus, order):
    reader, compared = SpanReader(load(corpus, [], None).recipe), 0
    with load(corpus, batches(0, 60, order), order) as loader:
        served = [(batch, row) for batch in loader for row in range(len(batch.numbers))]
    failed = {failure.draw for failure in loader.total.failures}
    for batch, row in served:
        draw, view = int(batch.draws[row]), int(batch.views[row])
        if draw in failed:
            continue
        alone = np.zeros((1, FRAMES, 32, 32, 3), np.uint8)
        result = reader.read(draw, (view,), alone)
        assert np.array_equal(alone[0], batch.frames[row].numpy())
        assert np.array_equal(result.pts_seconds[0], batch.pts_seconds[row])
        compared += 1
    reader.close()
    assert compared > 30


def test_every_picture_of_every_view_is_the_right_one(corpus):
    checked = 0
    with load(corpus, batches(0, 96, ORDERS[0]), ORDERS[0], crops=WHOLE, resolution=64) as loader:
        for batch in loader:
            for clip, video, numbers in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
                assert [clips.read_number(picture) for picture in clip] == [(video, 100 + number) for number in numbers]
                checked += 1
    assert checked == 96


def test_the_views_of_a_span_are_of_one_span_and_differ(corpus):
    sampler = sampler_of(corpus)
    drawn = [sampler.clips(np.arange(40), view=view) for view in range(4)]
    crops = load(corpus, [], None).recipe
    starts, boxes = [], []
    for of_one_draw in zip(*drawn, strict=True):
        assert {clip.video for clip in of_one_draw} == {of_one_draw[0].video}
        first = [int(clip.frames[0]) for clip in of_one_draw]
        assert max(first) - min(first) < sampler.span_frames[of_one_draw[0].video]
        starts.append(len(set(first)))
        facts = corpus.video(of_one_draw[0].video).facts
        boxes.append(len({crops.crop(clip, facts) for clip in of_one_draw}))
    assert np.mean(starts) > 2.5
    assert np.mean(boxes) > 3.5
    spares = [sampler.clips(np.arange(40), view=view, spare=2) for view in range(4)]
    assert all(len({clip.video for clip in of_one}) == 1 for of_one in zip(*spares, strict=True))


def test_view_0_is_what_it_was_before_there_were_views():
    """Pinned: the order of runs and their checkpoints rests on it."""
    sampler = Sampler([100, 61, 300], num_frames=4, stride=3, seed=9)

    def pinned(**options: int) -> list[tuple[int, int]]:
        return [(clip.video, int(clip.frames[0])) for clip in sampler.clips(range(8), **options)]

    assert pinned() == [(0, 36), (2, 85), (2, 251), (1, 51), (0, 66), (2, 217), (0, 47), (0, 55)]
    assert pinned(spare=2) == [(1, 25), (2, 95), (2, 156), (2, 241), (2, 277), (1, 24), (0, 8), (2, 268)]
    assert pinned(view=1) == [(0, 39), (2, 89), (2, 258), (1, 51), (0, 66), (2, 213), (0, 41), (0, 52)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_count_tells_spans_from_clips_and_counts_the_widened_window(corpus, order):
    sampler = sampler_of(corpus)
    with load(corpus, batches(0, 72, order), order) as loader:
        for _ in loader:
            pass
    total = loader.total
    draws = np.unique(order.clips(np.arange(72))[0])
    assert (total.clips, total.spans) == (72, len(draws))
    spare = dict.fromkeys(draws.tolist(), 0)
    for failure in total.failures:
        spare[failure.draw] = max(spare[failure.draw], failure.spare + 1)
    used = 0
    for draw in draws.tolist():
        views = [sampler.clips([draw], view=view, spare=spare[draw])[0] for view in range(order.views_per_span)]
        used += len(np.unique(np.concatenate([clip.frames for clip in views])))
    assert total.frames_used == used
    assert total.amplification == total.packets_decoded / used


def spans_ahead(loader: BaseClipLoader[Any]) -> list[Span]:
    """All that the loader keeps."""
    spans = {id(span): span for span in loader._due.values()}
    for plan in loader._ahead:
        spans |= {id(span): span for span, _ in plan.clips}
    return list(spans.values())


@pytest.mark.parametrize("first", [0, 44])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_few_clips_wait(corpus, order, first):
    """None that was served before, here or before the run was interrupted, and none that holds the memory of others."""
    most = 0
    served = set(zip(*(column.tolist() for column in order.clips(np.arange(first))), strict=True))
    with load(corpus, batches(first, 150, order), order, prefetch=1) as loader:
        for batch in loader:
            served |= set(zip(batch.draws.tolist(), batch.views.tolist(), strict=True))
            waiting = [
                (span.draw, view, frames) for span in spans_ahead(loader) for view, frames in span.frames.items()
            ]
            assert served.isdisjoint((draw, view) for draw, view, _ in waiting)
            assert all(frames.untyped_storage().nbytes() == frames.nbytes for _, _, frames in waiting)
            most = max(most, len(waiting))
            assert len(loader._due) <= max(order.pool_spans, BATCH) + BATCH
    bound = max(order.pool_spans, 2) * (order.views_per_span - 1)
    assert most <= bound
    assert (most > 0) == (order.views_per_span > 1 and (order.pool_spans > 0 or BATCH % order.views_per_span > 0))
