"""Draws: pure, complete, inside the video."""

from __future__ import annotations

import numpy as np
import pytest

from trocar.loaders.draw.permutation import permute
from trocar.loaders.draw.sampler import Clip, Sampler


def same(a: Clip, b: Clip) -> bool:
    return (a.video, a.repeated) == (b.video, b.repeated) and np.array_equal(a.frames, b.frames)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 100, 1000])
def test_permute_is_a_permutation_for_every_cycle(size: int) -> None:
    positions = np.tile(np.arange(size), 3)
    cycles = np.repeat([0, 1, 2**40], size)
    places = permute(positions, size, 5, cycles).reshape(3, size)
    assert (np.sort(places, axis=1) == np.arange(size)).all()
    if size > 10:
        assert len({row.tobytes() for row in places}) == 3


@pytest.mark.parametrize("size", [2, 3, 5, 13, 64, 65, 200])
def test_permutations_are_uniform(size: int) -> None:
    """Where position 0 and the last one go, over many keys: chi-square against uniform at 0.01 %."""
    cycles = np.arange(40 * size)
    for position in (0, size - 1):
        places = permute(np.full_like(cycles, position), size, 11, cycles)
        counts = np.bincount(places, minlength=size)
        statistic = ((counts - 40) ** 2 / 40).sum()
        assert statistic < size - 1 + 3.8 * np.sqrt(2 * (size - 1)) + 10


def test_small_orders_are_uniform() -> None:
    """All 24 orders of four elements come equally often, not only the even ones a Feistel network can reach."""
    cycles = np.repeat(np.arange(24_000), 4)
    orders = permute(np.tile(np.arange(4), 24_000), 4, 0, cycles).reshape(-1, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 58.6  # 23 degrees of freedom, 0.005 %


def test_every_span_is_drawn_once_before_any_comes_again() -> None:
    frames = [61 * 100, 61 * 37 + 20, 500]
    sampler = Sampler(frames, num_frames=16, stride=4, seed=3)
    assert sampler.num_spans == 100 + 37 + 8
    for cycle in range(3):
        clips = sampler.clips(np.arange(cycle * 145, (cycle + 1) * 145))
        assert np.bincount([clip.video for clip in clips]).tolist() == [100, 37, 8]


def test_draws_do_not_depend_on_how_they_are_asked_for() -> None:
    sampler = Sampler([5000, 300, 61], num_frames=16, stride=4, seed=9)
    together = sampler.clips(np.arange(1000))
    for world_size in (2, 3, 7):
        for rank in range(world_size):
            mine = sampler.clips(np.arange(rank, 1000, world_size))
            assert all(same(a, b) for a, b in zip(mine, together[rank::world_size], strict=True))
    resumed = Sampler([5000, 300, 61], num_frames=16, stride=4, seed=9).clips(np.arange(777, 1000))
    assert all(same(a, b) for a, b in zip(resumed, together[777:], strict=True))


def test_clips_lie_inside_their_video_and_reach_every_frame() -> None:
    frames = np.array([61, 62, 130, 1000])
    sampler = Sampler(frames, num_frames=16, stride=4, seed=1)
    starts: dict[int, set[int]] = {video: set() for video in range(4)}
    for clip in sampler.clips(np.arange(30_000)):
        assert np.array_equal(np.diff(clip.frames), np.full(15, 4))
        assert clip.frames[0] >= 0
        assert clip.frames[-1] < frames[clip.video]
        assert clip.repeated == 0
        starts[clip.video].add(int(clip.frames[0]))
    for video, seen in starts.items():
        assert seen == set(range(frames[video] - 60)), video


def test_a_short_video_repeats_its_last_frame() -> None:
    (clip,) = Sampler([30], num_frames=16, stride=4).clips([0])
    assert clip.frames.tolist() == [0, 4, 8, 12, 16, 20, 24, 28] + [29] * 8
    assert clip.repeated == 8


def test_sample_fps_gives_equal_seconds_at_any_frame_rate() -> None:
    fps = np.array([25.0, 50.0, 30000 / 1001])
    sampler = Sampler([1000, 1000, 1000], num_frames=8, sample_fps=6.25, video_fps=fps)
    for clip in sampler.clips(np.arange(300)):
        seconds = (clip.frames - clip.frames[0]) / fps[clip.video]
        assert np.abs(seconds - np.arange(8) / 6.25).max() <= 0.5 / fps[clip.video] + 1e-9


def test_spares_are_pure_and_lead_elsewhere() -> None:
    sampler = Sampler([10_000, 10_000], num_frames=16, stride=4, seed=2)
    spares = [sampler.clips([17], spare=k)[0] for k in range(5)]
    again = [sampler.clips([16, 17], spare=k)[1] for k in range(5)]
    assert all(same(a, b) for a, b in zip(spares, again, strict=True))
    assert len({(clip.video, int(clip.frames[0])) for clip in spares}) == 5


def test_seeds_and_views_differ() -> None:
    frames, draws = [10_000], np.arange(50)
    one = Sampler(frames, num_frames=16, stride=4, seed=0).clips(draws)
    other_seed = Sampler(frames, num_frames=16, stride=4, seed=1).clips(draws)
    other_view = Sampler(frames, num_frames=16, stride=4, seed=0).clips(draws, view=1)
    assert sum(same(a, b) for a, b in zip(one, other_seed, strict=True)) < 5
    assert sum(same(a, b) for a, b in zip(one, other_view, strict=True)) < 5
    spans = [[int(clip.frames[0]) // 61 for clip in clips] for clips in (one, other_view)]
    assert np.abs(np.subtract(spans[0], spans[1])).max() <= 1, "views of a draw share its span"


@pytest.mark.parametrize(
    "wrong",
    [
        dict(video_frames=[]),
        dict(video_frames=[0]),
        dict(num_frames=0),
        dict(stride=0),
        dict(stride=None),
        dict(stride=4, sample_fps=5.0),
        dict(stride=None, sample_fps=5.0),
        dict(stride=None, sample_fps=-1.0, video_fps=[25.0]),
    ],
)
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"must|needs|exactly"):
        Sampler(**{"video_frames": [100], "num_frames": 16, "stride": 4, **wrong})
