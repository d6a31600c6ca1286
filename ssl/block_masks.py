"""V-JEPA's multi-block masks (Bardes et al., arXiv 2404.08471, section 3.2 and appendix; facebookresearch/jepa, multiblock3d.py).

A mask is the union of blocks of one size at random places; what is left is the context. Each clip gets several masks of different
kinds: V-JEPA takes "short-range" masks of 8 blocks of 15 % of the frame and "long-range" ones of 2 blocks of 70 %, over all frames.

The published code draws one size for a whole batch and cuts all masks to the shortest of the batch. Here every clip has its own
size, and nothing is cut: masks are packed. `cut_batch` does as published. All numbers are Philox's, keyed by (seed, clip, view,
kind of mask).

Shapes: B clips, M masks a clip, K blocks a mask, grid (T', H', W').
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..kernels.philox import Stream, below, random_words, unit
from .choices import LONG_RANGE, MAX_KINDS, SHORT_RANGE, BlockRecipe
from .packing import BlockMasks, first_tokens, pack, pack_cut, to_device

ATTEMPTS = 100


def block_sizes(words: NDArray[np.uint32], recipe: BlockRecipe, grid: tuple[int, int, int]) -> NDArray[np.int64]:
    """Sizes (t, h, w) in tokens, (B, 3), from three random words each, (B, 3): time, area, aspect. Rounded as published."""
    steps, rows, columns = grid
    shares = unit(words)
    temporal, area, aspect = (
        low + shares[:, column] * (high - low)
        for column, (low, high) in enumerate((recipe.temporal_scale, recipe.scale, recipe.aspect))
    )
    cells = np.floor(rows * columns * area)
    duration = np.clip(np.floor(steps * temporal), 1, steps)
    height = np.clip(np.rint(np.sqrt(cells * aspect)), 1, rows)
    width = np.clip(np.rint(np.sqrt(cells / aspect)), 1, columns)
    return np.stack([duration, height, width], axis=1).astype(np.int64)


def hidden_tokens(
    seed: int,
    draws: ArrayLike,
    views: ArrayLike,
    kind: int,
    recipe: BlockRecipe,
    grid: tuple[int, int, int],
    sized_as: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """(B, T' H' W'): what one kind of mask hides of each clip. Places are drawn again where nothing would be left to see.

    sized_as: (B,) the clips whose block sizes these take, their own where None. Raises ValueError where that is so `ATTEMPTS`
    times, as for blocks that cover the whole grid.
    """
    draw, view = np.broadcast_arrays(np.asarray(draws, dtype=np.int64), np.asarray(views, dtype=np.int64))
    if view.size and view.max() >= 2**16 // MAX_KINDS:
        raise ValueError(f"views must lie below {2**16 // MAX_KINDS}, got {view.max()}")
    key = view * MAX_KINDS + kind
    sized = draw if sized_as is None else np.asarray(sized_as, dtype=np.int64)
    size = block_sizes(random_words(seed, sized, key, Stream.BLOCK_MASK, 3), recipe, grid)
    hidden = np.empty((len(draw), *grid), dtype=bool)
    left = np.arange(len(draw))
    per_attempt = 3 * recipe.blocks
    for attempt in range(ATTEMPTS):
        words = random_words(seed, draw[left], key[left], Stream.BLOCK_MASK, 4 + per_attempt * (attempt + 1))
        words = words[:, 4 + per_attempt * attempt :].reshape(len(left), recipe.blocks, 3)
        inside = []
        for axis, length in enumerate(grid):
            extent = size[left, axis, None]
            start = below(words[:, :, axis], length - extent + 1)[..., None]
            place = np.arange(length)
            inside.append((place >= start) & (place < start + extent[..., None]))
        in_time, in_rows, in_columns = inside
        union = np.zeros((len(left), *grid), dtype=bool)
        for block in range(recipe.blocks):
            cell = in_rows[:, block, :, None] & in_columns[:, block, None, :]
            union |= in_time[:, block, :, None, None] & cell[:, None]
        hidden[left] = union
        left = left[union.all(axis=(1, 2, 3))]
        if not left.size:
            return hidden.reshape(len(draw), -1)
    raise ValueError(f"{recipe} hides all of a grid of {grid} tokens; take fewer or smaller blocks, or a finer grid")


@dataclass(frozen=True)
class MultiBlockMask:
    """Several masks a clip, packed.

    grid: (T', H', W') in tokens. recipes: one a mask, at most MAX_KINDS. bucket: totals are padded to a multiple of it, so that
    shapes repeat from batch to batch. cut_batch: clips of a batch that is cut as V-JEPA's collate does: kind by kind its clips
    have blocks of one size, and contexts and targets are cut to its shortest, in the grid's order; 0 cuts nothing. Clip n belongs
    to batch n // cut_batch, whatever is drawn beside it. Raises ValueError where a recipe hides all of the grid.
    """

    grid: tuple[int, int, int]
    recipes: tuple[BlockRecipe, ...] = (SHORT_RANGE, LONG_RANGE)
    bucket: int = 1
    cut_batch: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.recipes) <= MAX_KINDS:
            raise ValueError(f"masks must be 1 to {MAX_KINDS} recipes, got {len(self.recipes)}")
        for kind, recipe in enumerate(self.recipes):
            hidden_tokens(0, range(16), 0, kind, recipe, self.grid)

    def __call__(self, seed: int, draws: ArrayLike, views: ArrayLike, device: torch.device | str = "cpu") -> BlockMasks:
        """The masks of these clips: a pure function, whatever the process, thread, batch or device."""
        return to_device(self.draw(seed, draws, views), torch.device(device))

    def draw(self, seed: int, draws: ArrayLike, views: ArrayLike) -> BlockMasks:
        """As a call, in host memory."""
        if self.cut_batch:
            return self._draw_cut(seed, *np.broadcast_arrays(np.asarray(draws, dtype=np.int64), views))
        kinds = [hidden_tokens(seed, draws, views, kind, recipe, self.grid) for kind, recipe in enumerate(self.recipes)]
        hidden = np.stack(kinds, axis=1).reshape(-1, kinds[0].shape[1])
        return BlockMasks(*pack(hidden, self.bucket), len(self.recipes))

    def _draw_cut(self, seed: int, draws: NDArray[np.int64], views: NDArray[np.int64]) -> BlockMasks:
        """Draws the whole batches that the clips belong to, and returns the clips' part."""
        (batches, batch_views), batch_of = np.unique(
            np.stack([draws // self.cut_batch, views]), axis=1, return_inverse=True
        )
        firsts = np.repeat(batches * self.cut_batch, self.cut_batch)
        members = firsts + np.tile(np.arange(self.cut_batch), len(batches))
        chosen = batch_of.reshape(-1) * self.cut_batch + draws % self.cut_batch
        seen, hidden = [], []
        for kind, recipe in enumerate(self.recipes):
            views_of = np.repeat(batch_views, self.cut_batch)
            mask = hidden_tokens(seed, members, views_of, kind, recipe, self.grid, sized_as=firsts)
            for parts, whole in ((seen, ~mask), (hidden, mask)):
                shortest = whole.sum(axis=1).reshape(-1, self.cut_batch).min(axis=1)
                parts.append(first_tokens(whole[chosen], shortest[batch_of.reshape(-1)]))
        flat_seen, flat_hidden = (np.stack(parts, axis=1).reshape(-1, parts[0].shape[1]) for parts in (seen, hidden))
        return pack_cut(flat_seen, flat_hidden, len(self.recipes), self.bucket)
