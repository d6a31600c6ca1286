"""Philox against the published test vectors, and its use as a source of numbers."""

from __future__ import annotations

import numpy as np
import pytest

from trocar.kernels.philox import Stream, below, philox, random_words, unit


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of the authors' Random123 library, philox4x32 with 10 rounds
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_published_vectors(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    for copies in (1, 8, 9, 40):  # few are computed otherwise than many
        many = np.tile(np.array(counter, dtype=np.uint64), (copies, 1))
        assert philox(many, key).tolist() == [expected] * copies
    assert philox(np.array(counter, dtype=np.uint64), key).tolist() == expected


def test_numbers_depend_on_their_own_coordinates_alone() -> None:
    together = random_words(7, [3, 2**40, 5], [0, 1, 2], Stream.CROP, 6)
    alone = random_words(7, [2**40], 1, Stream.CROP, 9)
    assert np.array_equal(together[1], alone[0, :6])


def test_every_coordinate_matters() -> None:
    base = dict(seed=1, draws=[1], views=1, stream=Stream.CROP, count=4)
    changes = [
        dict(seed=1 + 2**32),
        dict(seed=2),
        dict(draws=[2]),
        dict(draws=[1 + 2**32]),
        dict(views=2),
        dict(stream=Stream.MASK),
    ]
    results = [random_words(**{**base, **change}).tobytes() for change in ({}, *changes)]
    assert len(set(results)) == len(changes) + 1


@pytest.mark.parametrize(
    ("seed", "draw", "view"), [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 2**48, 0), (0, 0, 2**16)]
)
def test_refuses_what_its_counter_cannot_hold(seed: int, draw: int, view: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        random_words(seed, [draw], view, Stream.CROP, 4)


def test_ranges() -> None:
    edges = np.array([0, 2**32 - 1], dtype=np.uint32)
    assert below(edges, 7).tolist() == [0, 6]
    assert 0 < unit(edges)[0] < unit(edges)[1] < 1
    counts = np.bincount(below(random_words(0, np.arange(10_000), 0, Stream.JITTER, 7), 10).ravel(), minlength=10)
    assert ((counts - 7000) ** 2 / 7000).sum() < 27.9  # chi-square, 9 degrees of freedom, 0.1 %
