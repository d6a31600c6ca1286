"""The order of clips is a pure function that serves every view once, spreads the views of a span and splits among ranks."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from trocar.loaders.draw.order import ClipOrder

POOLS = [
    ClipOrder(views_per_span=4, pool_spans=48, lanes=12, seed=1),
    ClipOrder(views_per_span=3, pool_spans=24, lanes=24, seed=2),
    ClipOrder(views_per_span=5, pool_spans=24 * 70, lanes=24, seed=3),
    ClipOrder(views_per_span=1, pool_spans=60, lanes=6, seed=4),
    ClipOrder(views_per_span=8, pool_spans=40, lanes=1, seed=5),
]
NO_POOL = [ClipOrder(views_per_span=views) for views in (1, 2, 5)]


def rounds(order: ClipOrder, count: int) -> np.ndarray:
    return np.arange(count * (order.pool_spans or 40))


@pytest.mark.parametrize("order", [*POOLS, *NO_POOL], ids=str)
def test_a_number_means_the_same_however_it_is_asked_for(order):
    numbers = rounds(order, 6)
    draws, views = order.clips(numbers)
    shuffled = np.random.default_rng(0).permutation(numbers)
    for part in np.array_split(shuffled, 7):
        assert np.array_equal(order.clips(part)[0], draws[part])
        assert np.array_equal(order.clips(part)[1], views[part])


@pytest.mark.parametrize("order", [*POOLS, *NO_POOL], ids=str)
def test_how_many_draws_there_are_before_a_clip(order):
    numbers = rounds(order, 6)
    before = np.maximum.accumulate(order.clips(numbers)[0]) + 1
    for number in range(1, len(numbers), 1 + len(numbers) // 300):
        assert order.draws_before(number) == before[number - 1]


@pytest.mark.parametrize("order", [*POOLS, *NO_POOL], ids=str)
def test_every_view_is_served_once_and_none_of_a_whole_span_is_left_out(order):
    views_per_span, count = order.views_per_span, 7 * order.views_per_span
    draws, views = order.clips(rounds(order, count))
    served = defaultdict(list)
    for draw, view in zip(draws.tolist(), views.tolist(), strict=True):
        served[draw].append(view)
    # Those that fill the pool at the start lack their first views, those still in it at the end their last ones.
    first_spans, last_spans = order.pool_spans, max(served) + 1 - 2 * order.pool_spans
    whole = [draw for draw in served if first_spans <= draw < last_spans]
    assert sorted(served)[:last_spans] == list(range(last_spans))
    assert all(served[draw] == list(range(views_per_span)) for draw in whole)
    assert len(whole) >= 4 * order.pool_spans
    for draw, seen in served.items():
        assert seen == list(range(seen[0], seen[0] + len(seen))), draw
        assert seen[-1] == views_per_span - 1 or draw >= last_spans


@pytest.mark.parametrize("order", POOLS, ids=str)
def test_the_views_of_a_span_lie_a_round_apart(order):
    draws, _ = order.clips(rounds(order, 40))
    places: dict[int, list[int]] = defaultdict(list)
    for number, draw in enumerate(draws.tolist()):
        places[draw].append(number)
    distances = np.concatenate([np.diff(numbers) for numbers in places.values()])
    if order.views_per_span == 1:
        assert not len(distances)
        return
    slots = order.pool_spans // order.lanes
    assert (distances % order.lanes == 0).all()
    assert distances.min() >= order.lanes
    assert distances.max() <= (2 * slots - 1) * order.lanes
    assert distances.mean() == pytest.approx(order.pool_spans, rel=0.05)


@pytest.mark.parametrize("order", POOLS, ids=str)
def test_the_same_share_of_spans_is_new_every_round(order):
    draws, _ = order.clips(rounds(order, 30))
    _, first = np.unique(draws, return_index=True)
    new = np.bincount(first // order.pool_spans, minlength=30)
    assert new[0] == order.pool_spans  # the pool is filled
    slots = order.pool_spans // order.lanes
    fewest, most = slots // order.views_per_span, -(-slots // order.views_per_span)
    assert new[1:].min() >= fewest * order.lanes
    assert new[1:].max() <= most * order.lanes
    assert new[1:].mean() == pytest.approx(order.pool_spans / order.views_per_span, rel=0.1)


@pytest.mark.parametrize("order", POOLS, ids=str)
def test_the_pool_never_holds_more_than_it_may(order):
    draws, views = order.clips(rounds(order, 25))
    waiting: dict[int, int] = {}
    most = 0
    for draw, view in zip(draws.tolist(), views.tolist(), strict=True):
        waiting[draw] = order.views_per_span - 1 - view
        if not waiting[draw]:
            del waiting[draw]
        most = max(most, len(waiting))
        assert sum(waiting.values()) <= order.pool_spans * order.views_per_span
    assert most <= order.pool_spans
    assert most > order.pool_spans / 2 or order.views_per_span == 1


@pytest.mark.parametrize("order", [*POOLS[:3], *NO_POOL], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 24])
def test_ranks_share_the_draws(order, ranks):
    if order.pool_spans and order.lanes % ranks:
        with pytest.raises(ValueError, match=f"{ranks} ranks do not divide the pool's {order.lanes} lanes"):
            order.share(np.arange(8), 0, ranks)
        return
    numbers = rounds(order, 10)
    shares = [order.share(numbers, rank, ranks) for rank in range(ranks)]
    assert sorted(np.concatenate(shares).tolist()) == numbers.tolist()
    draws = [set(order.clips(share)[0].tolist()) for share in shares]
    assert sum(map(len, draws)) == len(set.union(*draws))
    assert all((np.diff(share) > 0).all() for share in shares)
    if order.pool_spans:
        assert {len(share) for share in shares} == {len(numbers) // ranks}


@pytest.mark.parametrize("order", [*POOLS, *NO_POOL], ids=str)
def test_how_various_its_clips_are(order):
    """Against a count of what was served when, from the first clip on; half a batch, a pool that is filling, a window."""
    last_served: dict[int, int] = {}
    apart, draws = {}, order.clips(rounds(order, 9))[0].tolist()
    for number, draw in enumerate(draws):
        if draw in last_served:
            apart[number] = number - last_served[draw]
        last_served[draw] = number
    for stop, clips in ((1, 1000), (40, 16), (len(draws), 100), (len(draws), 1000), (len(draws) // 2, 1000)):
        seen = range(max(0, stop - clips), stop)
        distinct, distance = order.diversity(stop, clips)
        assert distinct == pytest.approx(1000 * len({draws[number] for number in seen}) / len(seen))
        again = [apart[number] for number in seen if number in apart]
        assert distance == pytest.approx(np.mean(again) if again else 0)
    if order.pool_spans and order.views_per_span > 1:
        assert order.diversity(len(draws), 4 * order.pool_spans)[1] == pytest.approx(order.pool_spans, rel=0.1)


def test_the_seed_keys_the_order():
    first, second = (ClipOrder(4, 48, 12, seed).clips(np.arange(480))[0] for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert np.array_equal(np.unique(first[:48]), np.unique(second[:48]))


def test_what_cannot_be_is_refused():
    for options, reason in [
        ({"views_per_span": 0}, "views_per_span must lie in 1 .. 64, got 0"),
        ({"views_per_span": 65}, "views_per_span must lie in 1 .. 64, got 65"),
        ({"lanes": 0}, "lanes must be at least 1, got 0"),
        ({"pool_spans": 7, "lanes": 3}, r"pool_spans must be a multiple of lanes \(3\) or 0, got 7"),
        ({"pool_spans": -24}, "pool_spans must be a multiple of lanes"),
    ]:
        with pytest.raises(ValueError, match=reason):
            ClipOrder(**options)
    with pytest.raises(ValueError, match=r"rank 2 is not in 0 \.\. 1"):
        ClipOrder().share(np.arange(4), 2, 2)
