"""Keyed permutations: the order in which draws visit spans, places, clips; a pure function of seed, cycle and place.

Shapes: B values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...kernels.philox import FEW, Stream, philox_integers, philox_words, random_words

# Below this size a permutation is the argsort of random keys: a Feistel network of a few bits is far from uniform.
SORTED_PERMUTATION_LIMIT = 64
FEISTEL_ROUNDS = 6

Integers = NDArray[np.int64]


def feistel(
    values: Integers, bits: int | Integers, seed: int, cycles: Integers, stream: Stream, leaves: int | Integers = 0
) -> Integers:
    """A keyed permutation of 0 .. 2**bits - 1: a Feistel network whose round function is Philox (Luby and Rackoff 1988).

    values, cycles: (B,). bits: one number or (B,). leaves: below 2**24, part of the key. The halves have bits // 2 and
    bits - bits // 2 bits and change places every round.
    """
    if values.size <= FEW:  # as in `philox`, but all rounds at once
        table = np.broadcast(values, bits, cycles, leaves)
        found = [_feistel_integer(*map(int, row), seed=seed, stream=stream) for row in table]
        return np.array(found, np.int64).reshape(table.shape)
    low_bits = bits // 2
    left, right = values >> low_bits, values & ((1 << low_bits) - 1)
    left_bits, right_bits = bits - low_bits, low_bits
    cycle_low, cycle_high = (cycles & 0xFFFFFFFF).astype(np.uint64), cycles >> 32
    domain = np.asarray(stream | np.asarray(leaves, dtype=np.int64) << 8).astype(np.uint64)
    for round_number in range(FEISTEL_ROUNDS):
        second = (cycle_high | (round_number << 16)).astype(np.uint64)
        key = (seed & 0xFFFFFFFF, seed >> 32)
        mixed = philox_words(right.astype(np.uint64), cycle_low, second, domain, key)[0].astype(np.int64)
        left, right = right, left ^ (mixed & ((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return (left << right_bits) | right


def _feistel_integer(value: int, bits: int, cycle: int, leaf: int, *, seed: int, stream: int) -> int:
    low_bits = bits // 2
    left, right = value >> low_bits, value & ((1 << low_bits) - 1)
    left_bits, right_bits = bits - low_bits, low_bits
    cycle_low, cycle_high, domain = cycle & 0xFFFFFFFF, cycle >> 32, stream | leaf << 8
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for round_number in range(FEISTEL_ROUNDS):
        mixed = philox_integers(right, cycle_low, cycle_high | round_number << 16, domain, *key)[0]
        left, right = right, left ^ (mixed & ((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return left << right_bits | right


def permute(
    positions: Integers, size: int, seed: int, cycles: Integers, stream: Stream = Stream.PERMUTATION
) -> Integers:
    """Where `positions` go under the permutations of 0 .. size - 1 that (seed, cycle, stream) key.

    positions: (B,) in 0 .. size - 1. cycles: (B,), 0 .. 2**48 - 1. Returns (B,).
    """
    if size <= SORTED_PERMUTATION_LIMIT:
        distinct, which = np.unique(cycles, return_inverse=True)
        keys = random_words(seed, distinct, 0, stream, size)
        return np.argsort(keys, axis=-1, kind="stable")[which, positions]
    bits = (size - 1).bit_length()
    result = feistel(positions, bits, seed, cycles, stream)
    outside = np.flatnonzero(result >= size)
    while outside.size:  # cycle walking keeps it a permutation of the smaller set; two steps on average at most
        result[outside] = feistel(result[outside], bits, seed, cycles[outside], stream)
        outside = outside[result[outside] >= size]
    return result
