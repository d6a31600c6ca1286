"""Counter-based random integers: Philox 4x32-10 in NumPy.

A number depends on (seed, draw, view, stream, index) alone, never on what was drawn before it. That is what makes a run the same
on any number of ranks, after any interruption and on host and device alike: whoever needs the number computes it.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Integers throughout, so hosts and devices agree bit
for bit.

Counter words: 0 block of four numbers, 1 low half of the draw, 2 high half of the draw (16 bits) and the view (16 bits), 3
stream. Key words: the two halves of the seed.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW_32_BITS = np.uint64(0xFFFFFFFF)
# Up to so many counters Python's integers are faster than as many calls of NumPy as one takes: a clip asks for few numbers.
FEW = 8
MAX_DRAW = 2**48
MAX_VIEW = 2**16


class Stream(IntEnum):
    """What a number is for. The values are part of every run's identity: append, never renumber."""

    PERMUTATION = 1
    JITTER = 2
    SPARE = 3
    CROP = 4
    MASK = 5
    DECODER_MASK = 6
    POOL = 7
    BLOCK_MASK = 8
    QUOTA = 16
    EPOCH = 17
    LEAF = 18


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox 4x32-10.

    counter: (..., 4), each word below 2**32. key: two words below 2**32. Returns (..., 4) uint32.
    """
    c0, c1, c2, c3 = (counter[..., word] for word in range(4))
    return np.stack(philox_words(c0, c1, c2, c3, key), axis=-1).astype(np.uint32)


def philox_words(
    c0: NDArray[np.uint64], c1: NDArray[np.uint64], c2: NDArray[np.uint64], c3: NDArray[np.uint64], key: tuple[int, int]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """`philox` with the counter's words, and the result's, apart; they may broadcast."""
    counters = np.broadcast(c0, c1, c2, c3)
    if counters.size <= FEW:
        words = [philox_integers(int(w0), int(w1), int(w2), int(w3), *key) for w0, w1, w2, w3 in counters]
        table = np.array(words, np.uint64).reshape(*counters.shape, 4)
        return table[..., 0], table[..., 1], table[..., 2], table[..., 3]
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & LOW_32_BITS,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & LOW_32_BITS,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


@lru_cache(8)
def _round_keys(k0: int, k1: int) -> list[tuple[int, ...]]:
    return [
        tuple((word + n * step) & 0xFFFFFFFF for word, step in zip((k0, k1), KEY_STEPS, strict=True))
        for n in range(ROUNDS)
    ]


def philox_integers(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]:
    """`philox` of one counter."""
    for key0, key1 in _round_keys(k0, k1):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (product1 >> 32) ^ c1 ^ key0, product1 & 0xFFFFFFFF
        c2, c3 = (product0 >> 32) ^ c3 ^ key1, product0 & 0xFFFFFFFF
    return c0, c1, c2, c3


def random_words(seed: int, draws: ArrayLike, views: ArrayLike, stream: int, count: int) -> NDArray[np.uint32]:
    """The first `count` 32-bit numbers of each (seed, draw, view, stream).

    seed: 0 .. 2**64 - 1. draws: (B,) in 0 .. 2**48 - 1. views: (B,) or a scalar in 0 .. 2**16 - 1. Returns (B, count) uint32.
    Raises ValueError where a value is out of its range.
    """
    draw = np.asarray(draws, dtype=np.int64)
    view = np.broadcast_to(np.asarray(views, dtype=np.int64), draw.shape)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0 .. 2**64 - 1, got {seed}")
    if draw.size and not (0 <= draw.min() and draw.max() < MAX_DRAW):
        raise ValueError(f"draws must lie in 0 .. 2**48 - 1, got {draw.min()} .. {draw.max()}")
    if view.size and not (0 <= view.min() and view.max() < MAX_VIEW):
        raise ValueError(f"views must lie in 0 .. 2**16 - 1, got {view.min()} .. {view.max()}")
    blocks = -(-count // 4)
    if draw.size == 1:
        number, key = int(draw.flat[0]), (seed & 0xFFFFFFFF, seed >> 32)
        low, high = number & 0xFFFFFFFF, number >> 32 | int(view.flat[0]) << 16
        found = [word for block in range(blocks) for word in philox_integers(block, low, high, stream, *key)]
        return np.array(found[:count], np.uint32).reshape(*draw.shape, count)
    counter = np.empty((*draw.shape, blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks, dtype=np.uint64)
    counter[..., 1] = (draw & 0xFFFFFFFF)[..., None]
    counter[..., 2] = ((draw >> 32) | (view << 16))[..., None]
    counter[..., 3] = stream
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return words.reshape(*draw.shape, blocks * 4)[..., :count]


def below(words: NDArray[np.uint32], bound: ArrayLike) -> NDArray[np.int64]:
    """Maps 32-bit numbers to 0 .. bound - 1 by the high half of a product (Lemire 2019); bias below bound / 2**32."""
    return ((words.astype(np.uint64) * np.asarray(bound, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def unit(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Maps 32-bit numbers to the open interval (0, 1): exact in float64, hence equal on every machine."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32
