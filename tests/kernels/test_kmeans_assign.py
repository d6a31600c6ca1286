"""kmeans_assign: labels, distances, sums and counts against float64."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_accurate, nan_memory, only_program

from trocar.kernels import kmeans_assign as module
from trocar.kernels.kmeans_assign import _kmeans_assign, kmeans_assign, kmeans_assign_reference


def problem(rows: int, centroids: int, width: int, device: torch.device, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(rows)
    drawn = [torch.randn(number, width, generator=generator) for number in (rows, centroids)]
    return [part.to(device, dtype) for part in drawn]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(150, 7, 40), (33, 300, 100), (1, 1, 5), (20, 130, 300)])
def test_labels_and_distances(shape, dtype: torch.dtype, kernels: torch.device) -> None:
    rows, centroids = problem(*shape, kernels, dtype)
    wanted, oracle = kmeans_assign_reference(rows.double(), centroids.double())
    _, reference = kmeans_assign_reference(rows, centroids)
    with nan_memory():
        labels, distances = kmeans_assign(rows, centroids)
    assert torch.equal(labels, wanted)  # these rows have no near ties
    assert_accurate(distances, reference, oracle, "distances", torch.float32)
    assert labels.dtype == torch.int64
    assert distances.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_counts_accumulate_over_chunks(dtype: torch.dtype, kernels: torch.device) -> None:
    rows, centroids = problem(150, 9, 70, kernels, dtype)
    centroids[4] = 100  # an empty cluster
    sums, counts = torch.full((9, 70), 2.0, device=kernels), torch.full((9,), 5, device=kernels)
    chunks = [kmeans_assign(chunk, centroids, sums, counts)[0] for chunk in rows.split([100, 50])]
    labels = torch.cat(chunks)
    totals = [torch.full((9, 70), 2.0, device=kernels, dtype=kind) for kind in (torch.float32, torch.float64)]
    expected = [total.index_add(0, labels, rows.to(total.dtype)) for total in totals]
    assert_accurate(sums, *expected, "sums")
    assert torch.equal(counts, 5 + torch.bincount(labels, minlength=9))
    assert counts[4] == 5


def test_equal_centroids_go_to_the_lowest(kernels: torch.device) -> None:
    rows, centroids = problem(20, 200, 16, kernels, torch.float32)
    doubled = torch.cat([centroids, centroids, centroids[:1]])
    assert torch.equal(kmeans_assign(rows, doubled)[0], kmeans_assign(rows, centroids)[0])


def test_a_row_on_its_centroid_is_no_negative_distance_away(kernels: torch.device) -> None:
    rows, _ = problem(64, 1, 48, kernels, torch.float32)
    labels, distances = kmeans_assign(rows, rows)
    assert torch.equal(labels, torch.arange(64, device=kernels))
    assert (distances >= 0).all()
    assert (distances < 1e-3).all()


@pytest.mark.interpreter
def test_offsets_are_64_bit(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of rows of more than 2**31 elements; nothing before it is touched."""
    tile, width = module.HALF_TILE, 64
    blocks = 2**31 // (width * tile["ROWS"]) + 1
    number = blocks * tile["ROWS"]
    rows = torch.empty(number, width, dtype=torch.float16, device=kernels)
    assert rows[: -tile["ROWS"]].numel() == 2**31
    labels = torch.empty(number, dtype=torch.int64, device=kernels)
    distances, squares = (torch.empty(number, device=kernels) for _ in range(2))
    last, centroids = problem(tile["ROWS"], 5, width, kernels, torch.float16)
    rows[-tile["ROWS"] :] = last
    with only_program(blocks - 1, monkeypatch):
        module.launch(
            module._assign_kernel,
            (1,),
            *(rows, centroids, squares, centroids.float().square().sum(1), labels, distances, number, 5, width),
            **tile,
        )
    with only_program(number // 16 - 1, monkeypatch):
        module.launch(module._row_squares_kernel, (1,), rows, squares, number, width, ROWS=16, VALUES=128)
    assert torch.equal(labels[-tile["ROWS"] :], kmeans_assign_reference(last.double(), centroids.double())[0])
    assert torch.allclose(squares[-16:], last[-16:].float().square().sum(1))


def test_opcheck(kernels: torch.device) -> None:
    torch.library.opcheck(_kmeans_assign, tuple(problem(6, 3, 8, kernels, torch.float32)))


def test_compiles_without_a_graph_break(kernels: torch.device) -> None:
    rows, centroids = problem(20, 5, 16, kernels, torch.float32)
    totals = [(torch.zeros(5, 16, device=kernels), torch.zeros(5, dtype=torch.int64, device=kernels)) for _ in range(2)]
    expected = kmeans_assign(rows, centroids, *totals[0])
    actual = torch.compile(kmeans_assign, fullgraph=True, backend="aot_eager")(rows, centroids, *totals[1])
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
    assert all(torch.equal(*pair) for pair in zip(*totals, strict=True))


def bad(name: str):
    rows, centroids = problem(20, 5, 16, torch.device("cpu"), torch.float32)
    sums, counts = torch.zeros(5, 16), torch.zeros(5, dtype=torch.int64)
    arguments = dict(rows=rows, centroids=centroids, sums=sums, counts=counts)
    changed = {
        "rows: integer": dict(rows=rows.long()),
        "rows: strided": dict(rows=rows.T.contiguous().T),
        "rows: empty": dict(rows=rows[:0]),
        "centroids: empty": dict(centroids=centroids[:0]),
        "centroids: narrow": dict(centroids=centroids[:, :-1].contiguous()),
        "centroids: dtype": dict(centroids=centroids.half()),
        "centroids: device": dict(centroids=centroids.to("meta")),
        "sums: dtype": dict(sums=sums.half()),
        "sums: shape": dict(sums=sums[:-1]),
        "sums and counts": dict(sums=None),
        "counts: dtype": dict(counts=counts.float()),
        "counts: shape": dict(counts=counts[:-1]),
    }
    return arguments, changed


@pytest.mark.parametrize("case", bad("")[1])
def test_refuses(case: str, kernels: torch.device) -> None:
    arguments, changes = bad(case)
    with pytest.raises(ValueError, match=rf"^{case.split(':')[0]} "):
        kmeans_assign(**{**arguments, **changes[case]})
