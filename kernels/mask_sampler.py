"""Masks of a fixed count, drawn from integers: which tokens are visible and which are to be predicted.

Tube mask (VideoMAE, arXiv 2203.12602): one spatial mask for all time steps. Of the S spatial cells, the S - int(ratio * S) with the
smallest (Philox key, index) stay visible; the same cells at every step.

Running cell mask (VideoMAE V2, arXiv 2303.16727): which tokens the decoder predicts. In every square of 2 x 2 cells, D = int(4 *
ratio) of the four are dropped, and the dropped ones move on by one cell at every step. Cell i = 2 (row % 2) + column % 2 of step t
is dropped where (i + start + t + 1) % 4 < D; the clip's draw is its start, 0 .. 3.

The kernels draw on the device, from the same integers: equal to the NumPy version bit for bit, without a host sync. Multi-block
masks, whose counts vary, are the loaders' business.

Shapes: B clips, T' time steps, H' x W' cells, S = H' * W', N = T' * S tokens; token n = t * S + s.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from . import launch as switches
from .launch import INDEX_DTYPES, directly, jit, launch, power_of_two, require, tl, triton
from .philox import MAX_DRAW, MAX_VIEW, Stream, below, random_words

Numbers: TypeAlias = "ArrayLike | torch.Tensor"
MAX_CELLS = 2**14  # a sort in one program


def visible_cells(num_cells: int, ratio: float) -> int:
    """Cells of one time step that stay visible. Raises ValueError where nothing or everything would be masked."""
    masked = int(ratio * num_cells)
    if not 0 < masked < num_cells:
        raise ValueError(f"mask ratio {ratio} masks {masked} of {num_cells} cells; 1 .. {num_cells - 1} can be masked")
    return num_cells - masked


def dropped_cells(grid: tuple[int, int, int], ratio: float) -> int:
    """Cells of each 2 x 2 that the decoder drops. Raises ValueError where that is none or all, or where rows or columns are odd."""
    dropped = int(4 * ratio)
    if not 0 < dropped < 4:
        raise ValueError(f"decoder mask ratio {ratio} drops {dropped} of 4 cells; 1 .. 3 can be dropped (0.25 .. 0.75)")
    if grid[1] % 2 or grid[2] % 2:
        raise ValueError(f"grid must have even rows and columns for a running cell mask, got {grid[1]} x {grid[2]}")
    return dropped


def tube_mask_reference(
    seed: int, draws: ArrayLike, views: ArrayLike, grid: tuple[int, int, int], ratio: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """NumPy version of `tube_mask`: (B, N_visible) and (B, N_masked) int64, ascending."""
    steps, rows, columns = grid
    num_cells = rows * columns
    keep = visible_cells(num_cells, ratio)
    keys = random_words(seed, draws, views, Stream.MASK, num_cells)
    order = np.argsort(keys, axis=-1, kind="stable")
    starts = np.arange(steps, dtype=np.int64)[:, None] * num_cells

    def tokens(cells: NDArray[np.int64]) -> NDArray[np.int64]:
        cells = np.sort(cells, axis=-1)
        return (starts + cells[:, None, :]).reshape(len(cells), -1)

    return tokens(order[:, :keep]), tokens(order[:, keep:])


def running_cell_mask_reference(
    seed: int, draws: ArrayLike, views: ArrayLike, grid: tuple[int, int, int], ratio: float
) -> NDArray[np.int64]:
    """NumPy version of `running_cell_mask`: (B, N_kept) int64, ascending."""
    dropped = dropped_cells(grid, ratio)
    start = below(random_words(seed, draws, views, Stream.DECODER_MASK, 1), 4)
    step, row, column = np.indices(grid).reshape(3, -1)
    phase = 2 * (row % 2) + column % 2 + step + 1
    kept = (phase + start) % 4 >= dropped
    return np.nonzero(kept)[1].reshape(len(start), -1)


@jit
def philox_words(seed, draw, view, index, STREAM: tl.constexpr):
    """The numbers that `random_words` gives at `index`, for one draw and view."""
    block = (index // 4).to(tl.uint32)
    low = (draw & 0xFFFFFFFF).to(tl.uint32)
    high = ((draw >> 32) | (view << 16)).to(tl.uint32)
    zero = tl.zeros_like(block)
    word0, word1, word2, word3 = tl.philox(seed, block, zero + low, zero + high, zero + STREAM)
    lane = index % 4
    return tl.where(lane == 0, word0, tl.where(lane == 1, word1, tl.where(lane == 2, word2, word3)))


@jit
def _tube_mask_kernel(
    draws, views, visible, masked, seed, steps, cells, keep, STREAM: tl.constexpr, BLOCK: tl.constexpr
):
    clip = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    draw, view = tl.load(draws + clip).to(tl.int64), tl.load(views + clip).to(tl.int64)
    keys = philox_words(seed, draw, view, cell, STREAM).to(tl.int64)
    ranked = tl.where(cell < cells, (keys << 31) + cell, 0x7FFFFFFFFFFFFFFF)  # (key, index) as one number
    last = tl.sum(tl.where(cell == keep - 1, tl.sort(ranked), 0), axis=0)
    seen, hidden = ranked <= last, (ranked > last) & (cell < cells)
    seen_place, hidden_place = tl.cumsum(seen.to(tl.int32), 0) - 1, tl.cumsum(hidden.to(tl.int32), 0) - 1
    for step in range(steps):
        token = (step * cells + cell).to(tl.int64)
        tl.store(visible + (clip * steps + step) * keep + seen_place, token, mask=seen)
        tl.store(masked + (clip * steps + step) * (cells - keep) + hidden_place, token, mask=hidden)


@jit
def _running_cell_kernel(
    draws, views, kept, seed, steps, cells, columns, dropped, STREAM: tl.constexpr, BLOCK: tl.constexpr
):
    clip = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    draw, view = tl.load(draws + clip).to(tl.int64), tl.load(views + clip).to(tl.int64)
    word = philox_words(seed, draw, view, cell * 0, STREAM).to(tl.int64)
    start = (word * 4) >> 32  # `below` of 4; the same in every lane
    place_in_square = 2 * (cell // columns % 2) + cell % columns % 2
    per_step = cells // 4 * (4 - dropped)
    for step in range(steps):
        keep = ((place_in_square + start + step + 1) % 4 >= dropped) & (cell < cells)
        place = tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(kept + (clip * steps + step) * per_step + place, (step * cells + cell).to(tl.int64), mask=keep)


@torch.library.custom_op("trocar::tube_mask", mutates_args=())
def _tube_mask(
    draws: torch.Tensor, views: torch.Tensor, seed: int, steps: int, cells: int, keep: int
) -> tuple[torch.Tensor, torch.Tensor]:
    visible = draws.new_empty(len(draws), steps * keep, dtype=torch.int64)
    masked = draws.new_empty(len(draws), steps * (cells - keep), dtype=torch.int64)
    sizes = dict(STREAM=int(Stream.MASK), BLOCK=power_of_two(cells))
    launch(_tube_mask_kernel, (len(draws),), draws, views, visible, masked, seed, steps, cells, keep, **sizes)
    return visible, masked


@_tube_mask.register_fake
def _(draws, views, seed, steps, cells, keep):
    counts = steps * keep, steps * (cells - keep)
    visible, masked = (draws.new_empty(draws.shape[0], count, dtype=torch.int64) for count in counts)
    return visible, masked


@torch.library.custom_op("trocar::running_cell_mask", mutates_args=())
def _running_cell_mask(
    draws: torch.Tensor, views: torch.Tensor, seed: int, steps: int, rows: int, columns: int, dropped: int
) -> torch.Tensor:
    cells = rows * columns
    kept = draws.new_empty(len(draws), steps * (cells // 4) * (4 - dropped), dtype=torch.int64)
    sizes = dict(STREAM=int(Stream.DECODER_MASK), BLOCK=power_of_two(cells))
    launch(_running_cell_kernel, (len(draws),), draws, views, kept, seed, steps, cells, columns, dropped, **sizes)
    return kept


@_running_cell_mask.register_fake
def _(draws, views, seed, steps, rows, columns, dropped):
    return draws.new_empty(draws.shape[0], steps * (rows * columns // 4) * (4 - dropped), dtype=torch.int64)


def _on_device(
    draws: Numbers, views: Numbers, seed: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """draws and views (B,) on the device, the seed as a signed 64-bit integer. Host numbers are checked, device ones are not."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0 .. 2**64 - 1, got {seed}")
    found = []
    for name, values, bound in (("draws", draws, MAX_DRAW), ("views", views, MAX_VIEW)):
        tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values, dtype=np.int64))
        if tensor.ndim == 0 and name == "views":
            tensor = tensor.expand(len(found[0]))
        require(
            name, tensor, dtypes=INDEX_DTYPES, shape=(len(found[0]) if found else None,), like=tensor, contiguous=False
        )
        if tensor.device.type == "cpu" and not torch.compiler.is_compiling():
            smallest, largest = tensor.min().item(), tensor.max().item()
            if smallest < 0 or largest >= bound:
                raise ValueError(f"{name} must lie in 0 .. {bound - 1}, got {smallest} .. {largest}")
        found.append(tensor.to(device, non_blocking=True).contiguous())
    return found[0], found[1], seed - 2**64 if seed >= 2**63 else seed


def _takes_triton(device: torch.device, num_cells: int) -> bool:
    if triton is None or num_cells > MAX_CELLS:
        return False
    return device.type == "cuda" or switches.interpret_on_cpu


def _host(values: Numbers) -> ArrayLike:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def tube_mask(
    seed: int,
    draws: Numbers,
    views: Numbers,
    grid: tuple[int, int, int],
    ratio: float,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tube masks of a batch.

    seed: 0 .. 2**64 - 1. draws, views: (B,) integers, in host memory or on `device`. grid: (T', H', W') in tokens. ratio: share of
    the cells to mask, 0 < ratio < 1. Returns visible (B, N_visible) and masked (B, N_masked), int64, ascending, on `device`. Raises
    ValueError as `visible_cells` does, and where a seed, draw or view is out of range (device tensors are not looked into).
    """
    steps, num_cells = grid[0], grid[1] * grid[2]
    keep = visible_cells(num_cells, ratio)
    if _takes_triton(torch.device(device), num_cells):
        draws, views, seed = _on_device(draws, views, seed, torch.device(device))
        return directly(_tube_mask, draws, views, seed, steps, num_cells, keep)
    visible, masked = tube_mask_reference(seed, _host(draws), _host(views), grid, ratio)
    return torch.from_numpy(visible).to(device), torch.from_numpy(masked).to(device)


def running_cell_mask(
    seed: int,
    draws: Numbers,
    views: Numbers,
    grid: tuple[int, int, int],
    ratio: float,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Which tokens the decoder predicts.

    As `tube_mask`; ratio: share of the tokens to drop, 0.25, 0.5 or 0.75. Returns the kept tokens (B, (1 - ratio) N), int64,
    ascending, on `device`. Raises ValueError as `dropped_cells` and `tube_mask` do.
    """
    dropped = dropped_cells(grid, ratio)
    if _takes_triton(torch.device(device), grid[1] * grid[2]):
        draws, views, seed = _on_device(draws, views, seed, torch.device(device))
        return directly(_running_cell_mask, draws, views, seed, *grid, dropped)
    kept = running_cell_mask_reference(seed, _host(draws), _host(views), grid, ratio)
    return torch.from_numpy(kept).to(device)
