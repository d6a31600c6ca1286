"""Multi-block masks: the published recipe's statistics, and the same mask whoever draws it."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from trocar.kernels.philox import Stream, random_words
from trocar.ssl.ahead import DrawnAhead
from trocar.ssl.block_masks import MultiBlockMask, block_sizes, hidden_tokens
from trocar.ssl.choices import LONG_RANGE, SHORT_RANGE, BlockRecipe
from trocar.ssl.packing import pack

GRID = (8, 14, 14)
DRAWS = 10_000


def published(recipe: BlockRecipe, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """As facebookresearch/jepa's multiblock3d.py draws, from NumPy's generator: sizes (draws, 2) and share kept (draws,)."""
    chance = np.random.default_rng(0)
    sizes, kept = [], []
    _, rows, columns = GRID
    while len(kept) < draws:
        cells = int(rows * columns * recipe.scale[0])
        aspect = chance.uniform(*recipe.aspect)
        height = min(round(math.sqrt(cells * aspect)), rows)
        width = min(round(math.sqrt(cells / aspect)), columns)
        seen = np.zeros((rows, columns), dtype=bool)
        while not seen.any():
            seen[:] = True
            for _ in range(recipe.blocks):
                top, left = chance.integers(0, rows - height + 1), chance.integers(0, columns - width + 1)
                seen[top : top + height, left : left + width] = False
        sizes.append((height, width))
        kept.append(seen.mean())
    return np.array(sizes), np.array(kept)


@pytest.mark.parametrize(("recipe", "blocks", "scale"), [(SHORT_RANGE, 8, 0.15), (LONG_RANGE, 2, 0.7)])
def test_statistics_are_the_published_recipes(recipe: BlockRecipe, blocks: int, scale: float) -> None:
    assert recipe == BlockRecipe(blocks, (scale, scale), (0.75, 1.5), (1.0, 1.0))
    sizes = block_sizes(random_words(3, np.arange(DRAWS), 0, Stream.BLOCK_MASK, 3), recipe, GRID)
    hidden = hidden_tokens(3, np.arange(DRAWS), 0, 0, recipe, GRID).reshape(DRAWS, *GRID)
    assert (hidden == hidden[:, :1]).all(), "the same cells at all times"
    assert (sizes[:, 0] == GRID[0]).all()
    kept = 1 - hidden[:, 0].mean(axis=(1, 2))
    expected_sizes, expected_kept = published(recipe, DRAWS)
    for ours, theirs in (
        (sizes[:, 1], expected_sizes[:, 0]),
        (sizes[:, 2], expected_sizes[:, 1]),
        (kept, expected_kept),
    ):
        standard_error = math.hypot(ours.std(), theirs.std()) / math.sqrt(DRAWS)
        assert abs(ours.mean() - theirs.mean()) < 4 * standard_error
        assert abs(ours.std() / theirs.std() - 1) < 0.05
        ours, theirs = np.round(ours, 9), np.round(theirs, 9)  # one minus a mean and a mean differ in the last bit
        values = np.union1d(ours, theirs)
        shares = [np.searchsorted(np.sort(drawn), values, side="right") / DRAWS for drawn in (ours, theirs)]
        assert (
            np.abs(shares[0] - shares[1]).max() < 0.03
        )  # Kolmogorov-Smirnov: passed by chance but once in 3,000 times
    aspect = sizes[:, 1] / sizes[:, 2]
    expected_aspect = expected_sizes[:, 0] / expected_sizes[:, 1]
    assert set(np.unique(aspect)) == set(np.unique(expected_aspect))
    print(f"\n{blocks} blocks of {scale:.0%}: kept {kept.mean():.4f} (published {expected_kept.mean():.4f})")


def digest(numbers: list[int]) -> str:
    masks = MultiBlockMask(GRID).draw(11, numbers, 0)
    parts = (part for packed in (masks.context, masks.target) for part in packed[:3])
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def test_the_same_in_every_process_thread_and_share() -> None:
    code = f"from test_block_masks import digest; print(digest({list(range(6))}))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == digest(list(range(6)))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(digest, [list(range(6))] * 8)) == {digest(list(range(6)))}
    whole = hidden_tokens(11, np.arange(12), 0, 1, LONG_RANGE, GRID)
    for ranks in (2, 4):
        for rank in range(ranks):
            share = hidden_tokens(11, np.arange(rank, 12, ranks), 0, 1, LONG_RANGE, GRID)
            assert np.array_equal(share, whole[rank::ranks])
    assert not np.array_equal(whole, hidden_tokens(11, np.arange(12), 1, 1, LONG_RANGE, GRID)), (
        "another view, another mask"
    )
    assert not np.array_equal(whole, hidden_tokens(12, np.arange(12), 0, 1, LONG_RANGE, GRID)), (
        "another seed, another mask"
    )
    assert not np.array_equal(whole, hidden_tokens(11, np.arange(12), 0, 0, LONG_RANGE, GRID)), (
        "another kind, another mask"
    )


def test_masks_drawn_ahead_are_the_same() -> None:
    source = MultiBlockMask((2, 4, 4), bucket=8)
    ahead = DrawnAhead(source)
    batches = [np.arange(4), np.arange(4, 8)]
    for numbers in ahead.ahead(5, batches, torch.device("cpu")):
        assert (5, numbers.tobytes()) in ahead._drawn
        drawn, expected = ahead(5, numbers, 0), source(5, numbers, 0)
        for ours, theirs in zip((drawn.context, drawn.target), (expected.context, expected.target), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
    assert not ahead._drawn
    late = ahead(5, np.arange(8, 10), 0)
    assert torch.equal(late.target.tokens, source(5, np.arange(8, 10), 0).target.tokens)


def test_packing_keeps_every_token() -> None:
    hidden = np.array([[True, False, False], [True, True, False]])
    context, target = pack(hidden, bucket=4)
    assert context.tokens.tolist() == [1, 2, 2, 0]
    assert context.sequences.tolist() == [0, 0, 1, 2]
    assert context.offsets.tolist() == [0, 2, 3, 4]
    assert target.tokens.tolist() == [0, 0, 1, 0]
    assert target.offsets.tolist() == [0, 1, 3, 4]
    assert int(target.padding()) == 1
    assert target.num_sequences == 2


def test_refuses_what_hides_everything() -> None:
    with pytest.raises(ValueError, match="hides all of a grid"):
        MultiBlockMask((2, 2, 2), (BlockRecipe(1, (1.0, 1.0), (1.0, 1.0)),))
    with pytest.raises(ValueError, match="at least one block"):
        BlockRecipe(0, (0.1, 0.2))
    with pytest.raises(ValueError, match="scale must be"):
        BlockRecipe(1, (0.0, 0.2))
    with pytest.raises(ValueError, match="aspect must be"):
        BlockRecipe(1, (0.1, 0.2), (0.0, 1.0))
    with pytest.raises(ValueError, match="views must lie below 4096"):
        hidden_tokens(0, [0], 4096, 0, SHORT_RANGE, GRID)
