"""Tube and running cell masks: count, order, purity, uniformity; the kernels against NumPy, bit for bit."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_checks import nan_memory

from trocar.kernels.mask_sampler import (
    _running_cell_mask,
    _tube_mask,
    running_cell_mask,
    running_cell_mask_reference,
    tube_mask,
    tube_mask_reference,
)
from trocar.ssl.masks import TubeMask


def test_a_mask_is_a_partition_into_tubes() -> None:
    visible, masked = tube_mask(3, np.arange(5), 0, (8, 14, 14), 0.9)
    assert visible.shape == (5, 8 * 20)
    assert masked.shape == (5, 8 * 176)  # VideoMAE masks int(0.9 * 196) cells
    for seen, hidden in zip(visible, masked, strict=True):
        assert torch.equal(torch.cat([seen, hidden]).sort().values, torch.arange(8 * 196))
        assert torch.equal(seen, seen.sort().values)
        cells = seen.reshape(8, 20) - torch.arange(8)[:, None] * 196
        assert (cells == cells[0]).all()


def test_a_mask_belongs_to_its_draw_and_view() -> None:
    grid = (4, 6, 6)
    together, _ = tube_mask(3, [5, 9, 9], [0, 0, 1], grid, 0.75)
    alone, _ = tube_mask(3, [9], [0], grid, 0.75)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[1], together[0])
    assert not torch.equal(together[1], together[2])
    assert not torch.equal(alone, tube_mask(4, [9], [0], grid, 0.75)[0])


def test_every_cell_is_masked_equally_often() -> None:
    visible, _ = tube_mask(0, np.arange(20_000), 0, (1, 4, 4), 0.75)
    counts = np.bincount(visible.numpy().ravel(), minlength=16)
    assert ((counts - 5000) ** 2 / (5000 * 0.75)).sum() * 15 / 16 < 37.7  # chi-square, 15 degrees of freedom, 0.1 %


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.0, -1.0])
def test_refuses_a_mask_of_nothing_or_everything(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask ratio"):
        TubeMask((2, 4, 4), ratio)


def running_cells_of_videomae_v2(grid: tuple[int, int, int], dropped: int, start: int) -> np.ndarray:
    """Its generator: a queue of `dropped` ones and zeros, advanced before each step, tiled over 2 x 2 cells."""
    queue = np.array([1] * dropped + [0] * (4 - dropped))
    frames = []
    for step in range(grid[0]):
        square = queue[(np.arange(4) + start + step + 1) % 4].reshape(2, 2)
        frames.append(np.tile(square, (grid[1] // 2, grid[2] // 2)))
    return np.stack(frames)


@pytest.mark.parametrize(("ratio", "dropped"), [(0.25, 1), (0.5, 2), (0.75, 3)])
def test_running_cells_are_those_of_videomae_v2(ratio: float, dropped: int) -> None:
    grid = (5, 4, 6)
    kept = running_cell_mask(7, np.arange(64), 0, grid, ratio)
    assert kept.shape == (64, 120 * (4 - dropped) // 4)
    patterns = [np.flatnonzero(1 - running_cells_of_videomae_v2(grid, dropped, start)) for start in range(4)]
    drawn = [next(i for i, pattern in enumerate(patterns) if np.array_equal(pattern, row)) for row in kept.numpy()]
    assert set(drawn) == {0, 1, 2, 3}


def test_the_decoder_mask_counts_what_the_encoder_did_not_see() -> None:
    masks = TubeMask((4, 4, 6), 0.75, 0.5)(3, [0, 1, 2], 0)
    assert masks.counted is not None
    assert masks.masked.shape == masks.counted.shape == (3, 48)
    for visible, kept, counted in zip(masks.visible, masks.masked, masks.counted, strict=True):
        assert torch.equal(counted, ~torch.isin(kept, visible))
        assert counted.any()
        assert not counted.all()


DRAWS = np.array([0, 1, 2**33 + 1, 2**48 - 1])
VIEWS = np.array([0, 1, 7, 2**16 - 1])


@pytest.mark.parametrize(
    ("seed", "grid", "ratio"),
    [(0, (8, 14, 14), 0.9), (2**32 + 5, (2, 3, 5), 0.5), (2**63, (2, 3, 5), 0.8), (2**64 - 1, (1, 4, 8), 0.75)],
)
def test_the_kernel_draws_numpys_tube_masks(
    seed: int, grid: tuple[int, int, int], ratio: float, kernels: torch.device
) -> None:
    with nan_memory():
        actual = tube_mask(seed, DRAWS, VIEWS, grid, ratio, kernels)
    for mask, expected in zip(actual, tube_mask_reference(seed, DRAWS, VIEWS, grid, ratio), strict=True):
        assert np.array_equal(mask.cpu().numpy(), expected)


def test_equal_keys_are_ordered_by_their_cell(kernels: torch.device) -> None:
    """In draw 33683 of seed 0 cells 68 and 74 have the same key, at ranks 146 and 147: the lower one is seen, the other hidden."""
    visible, masked = tube_mask(0, [33683], [0], (1, 14, 14), 0.25, kernels)
    assert visible.shape == (1, 147)
    assert 68 in visible
    assert 74 in masked
    assert 74 not in visible


@pytest.mark.parametrize("seed", [0, 2**63])
@pytest.mark.parametrize(("grid", "ratio"), [((8, 14, 14), 0.5), ((3, 2, 6), 0.25), ((2, 6, 4), 0.75)])
def test_the_kernel_draws_numpys_running_cells(
    grid: tuple[int, int, int], ratio: float, seed: int, kernels: torch.device
) -> None:
    with nan_memory():
        actual = running_cell_mask(seed, DRAWS, VIEWS, grid, ratio, kernels)
    assert np.array_equal(actual.cpu().numpy(), running_cell_mask_reference(seed, DRAWS, VIEWS, grid, ratio))


def test_device_draws_and_one_view(kernels: torch.device) -> None:
    expected = tube_mask_reference(1, DRAWS, 3, (2, 4, 4), 0.5)
    actual = tube_mask(1, torch.from_numpy(DRAWS).to(kernels), 3, (2, 4, 4), 0.5, kernels)
    assert all(np.array_equal(mask.cpu().numpy(), wanted) for mask, wanted in zip(actual, expected, strict=True))


def test_opcheck(kernels: torch.device) -> None:
    draws = torch.arange(2, device=kernels)
    torch.library.opcheck(_tube_mask, (draws, draws, 5, 2, 16, 4))
    torch.library.opcheck(_running_cell_mask, (draws, draws, 5, 2, 4, 4, 2))


def test_compiles_without_a_graph_break(kernels: torch.device) -> None:
    draws = torch.arange(3, device=kernels)

    def both(draws: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tubes = tube_mask(5, draws, draws, (2, 4, 4), 0.75, kernels)
        return *tubes, running_cell_mask(5, draws, draws, (2, 4, 4), 0.5, kernels)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(draws)
    assert all(torch.equal(actual, expected) for actual, expected in zip(compiled, both(draws), strict=True))


BAD = {
    "seed": dict(seed=2**64),
    "draws: large": dict(draws=[0, 2**48]),
    "draws: negative": dict(draws=[-1, 0]),
    "draws: empty": dict(draws=[]),
    "draws: float": dict(draws=torch.zeros(2)),
    "views: large": dict(views=[0, 2**16]),
    "views: few": dict(views=[0]),
    "mask ratio": dict(ratio=1.0),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(case: str, kernels: torch.device) -> None:
    arguments = {**dict(seed=0, draws=[0, 1], views=[0, 1], grid=(2, 4, 4), ratio=0.5, device=kernels), **BAD[case]}
    with pytest.raises(ValueError, match=rf"{case.split(':')[0]} "):
        tube_mask(**arguments)


@pytest.mark.parametrize(("grid", "ratio"), [((2, 4, 4), 0.1), ((2, 4, 4), 1.0), ((2, 3, 4), 0.5), ((2, 4, 5), 0.5)])
def test_refuses_a_decoder_mask_that_does_not_fit(grid: tuple[int, int, int], ratio: float) -> None:
    with pytest.raises(ValueError, match=r"decoder mask ratio|grid must have even"):
        running_cell_mask(0, [0], [0], grid, ratio)
