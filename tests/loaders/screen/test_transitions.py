"""Fades and wipes by their colours alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trocar.loaders.screen.transitions import SCANNED, transitions_in

FPS = 25.0
FRAMES = np.arange(0, 400, SCANNED)


def roots_of(shares_of_other: NDArray[np.float64], *, drift: float = 0.0) -> NDArray[np.float32]:
    """(F, 64) of pictures in which colours of one scene give way to another's, by a share of each frame; half of what lies between
    has colours of neither. drift: how much the colours of both go to others over all frames."""
    chance = np.random.default_rng(0)
    one, other, between, later = (chance.dirichlet(np.ones(64) * 0.2) for _ in range(4))
    share = shares_of_other[:, None]
    mixed = share * (1 - share) * 2
    shares = (1 - share) * one + share * other
    shares = (1 - mixed) * shares + mixed * between
    moved = np.linspace(0, drift, len(shares))[:, None]
    shares = (1 - moved) * shares + moved * later + chance.uniform(0, 1e-4, shares.shape)
    return np.sqrt(shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def ramp(first: int, stop: int) -> NDArray[np.float64]:
    """Share of the second scene in each scanned frame: none before `first`, all from `stop` on."""
    return np.clip((FRAMES - first + 1) / (stop - first + 1), 0, 1)


@pytest.mark.parametrize("length", [8, 20, 40, 60])
@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_a_transition_is_found_with_its_ends(length: int, drift: float) -> None:
    first = 170
    found = transitions_in(roots_of(ramp(first, first + length), drift=drift), FRAMES, FPS)
    assert len(found) == 1
    assert np.abs(found[0] - (first, first + length)).max() <= 2 + length // 10


def test_a_long_one_is_told_in_parts() -> None:
    found = transitions_in(roots_of(ramp(170, 270)), FRAMES, FPS)
    assert len(found) == 2
    assert np.abs(found[[0, 1], [0, 1]] - (170, 270)).max() <= 2


def test_two_close_transitions_stay_two() -> None:
    there_and_back = ramp(120, 140) - ramp(190, 214)
    found = transitions_in(roots_of(there_and_back), FRAMES, FPS)
    assert np.abs(found - np.array([[120, 140], [190, 214]])).max() <= 4


@pytest.mark.parametrize(
    "shares",
    [ramp(170, 170), ramp(-50, 450), np.zeros(len(FRAMES)), ramp(170, 172) - ramp(180, 182)],
    ids=["a cut", "all of it", "nothing", "a flash"],
)
def test_what_is_no_transition(shares: NDArray[np.float64]) -> None:
    assert transitions_in(roots_of(shares), FRAMES, FPS).shape == (0, 2)


def test_slow_change_of_colours_is_none() -> None:
    assert len(transitions_in(roots_of(np.zeros(len(FRAMES)), drift=0.6), FRAMES, FPS)) == 0
    assert len(transitions_in(np.zeros((0, 64), np.float32), np.zeros(0, np.int64), FPS)) == 0
