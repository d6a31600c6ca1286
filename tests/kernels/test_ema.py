"""ema: many tensors of many sizes against float64, with copies, misaligned views and a skipped step."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import pytest
import torch
from kernel_checks import BFLOAT16, FLOAT16, assert_accurate

from trocar.kernels import ema as module
from trocar.kernels.ema import _ema, ema, ema_reference

SHAPES = [(3,), (7, 11), (1,), (8192,), (2, 4097), (20_000,)]


def problem(
    device: torch.device, source_dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(shape, generator=generator).to(device) for shape in SHAPES]
    sources = [torch.randn(shape, generator=generator).to(device, source_dtype) for shape in SHAPES]
    return targets, sources


def scalar(value: float, device: torch.device) -> torch.Tensor:
    return torch.full((), value, device=device)


def check(device, targets, sources, momentum: float, copies=()) -> None:
    oracle = [target.double() for target in targets]
    reference = [target.clone() for target in targets]
    ema_reference(oracle, [source.double() for source in sources], scalar(momentum, device).double())
    ema_reference(reference, sources, scalar(momentum, device))
    ema(targets, sources, scalar(momentum, device), copies)
    for number in range(len(targets)):
        assert_accurate(targets[number], reference[number], oracle[number], f"target {number}")
        if copies:
            assert torch.equal(copies[number], targets[number].to(copies[number].dtype))


@pytest.mark.parametrize("momentum", [0.996, 0.25, 0.0])
def test_update(momentum: float, kernels: torch.device) -> None:
    check(kernels, *problem(kernels), momentum)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
def test_low_precision_sources_and_copies(dtype: torch.dtype, kernels: torch.device) -> None:
    targets, sources = problem(kernels, dtype)
    copies = [torch.full_like(target, float("nan"), dtype=dtype) for target in targets]
    check(kernels, targets, sources, 0.9, copies)


def test_momentum_one_changes_nothing_even_if_the_source_is_not_finite(kernels: torch.device) -> None:
    targets, sources = problem(kernels)
    for source in sources:
        source[...] = float("nan")
    before = [target.clone() for target in targets]
    ema(targets, sources, scalar(1.0, kernels))
    assert all(torch.equal(old, new) for old, new in zip(before, targets, strict=True))


def test_misaligned_views_and_neighbours(kernels: torch.device) -> None:
    """Views one element off, packed side by side: nothing outside them changes."""
    memory = torch.full((17_003,), 5.0, device=kernels)
    views = [memory[1:8200], memory[8201:17_002]]
    sources = [torch.zeros_like(view) for view in views]
    assert all(view.data_ptr() % 16 for view in views)
    check(kernels, views, sources, 0.5)
    assert (memory[[0, 8200, 17_002]] == 5).all()
    assert (memory[1:8200] == 2.5).all()


def test_one_launch_for_hundreds_of_tensors(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [torch.ones(5, device=kernels) for _ in range(300)]
    sources = [torch.zeros(5, device=kernels) for _ in range(300)]
    launches, launch = [], module.launch
    monkeypatch.setattr(module, "launch", lambda *call, **options: launches.append(call) or launch(*call, **options))
    for _ in range(2):
        ema(targets, sources, scalar(0.5, kernels))
    assert len(launches) == 2
    assert all((target == 0.25).all() for target in targets)


def test_a_tensor_that_moves_is_found(kernels: torch.device) -> None:
    target, source = torch.ones(5, device=kernels), torch.zeros(5, device=kernels)
    ema([target], [source], scalar(0.5, kernels))
    before = target.data
    target.data = torch.full((5,), 8.0, device=kernels)
    ema([target], [source], scalar(0.5, kernels))
    assert (target == 4).all()
    assert (before == 0.5).all()


def test_nothing_is_kept_of_tensors_that_end(kernels: torch.device) -> None:
    known = dict(module._sets)
    targets, sources = problem(kernels)
    ema(targets, sources, scalar(0.5, kernels))
    assert len(module._sets) == len(known) + 1
    del targets, sources
    assert module._sets == known


def test_autograd_learns_of_the_change(kernels: torch.device) -> None:
    target, source = torch.ones(5, device=kernels), torch.zeros(5, device=kernels, requires_grad=True)
    copy = target.clone()
    product = (source * target).sum() + (source * copy).sum()
    ema([target], [source.detach()], scalar(0.5, kernels), [copy])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_mixed_dtypes(kernels: torch.device) -> None:
    targets = [torch.ones(9, device=kernels), torch.ones(9, device=kernels, dtype=torch.float16)]
    ema(targets, [torch.zeros(9, device=kernels)] * 2, scalar(0.5, kernels))
    assert all((target == 0.5).all() for target in targets)


def test_offsets_are_64_bit(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunk of a tensor of more than 2**31 elements; the rest is neither read nor written."""
    size = 2**31 + 40
    target, source = (torch.empty(size, dtype=torch.float16, device=kernels) for _ in range(2))
    target[-40:], source[-40:] = 1, 3
    entries = module._launches([target], [source], [])
    tables, settings = entries[0]
    last = [*tables[:4], tables[4][-1:], tables[5][-1:]]
    assert last[5].item() == 2**31
    module.launch(
        module._ema_kernel, (1,), *last, scalar(0.5, kernels), **settings, CHUNK=module.CHUNK, BLOCK=module.BLOCK
    )
    assert (target[-40:] == 2).all()


def test_opcheck(kernels: torch.device) -> None:
    targets, sources = [torch.ones(5, device=kernels)], [torch.zeros(5, device=kernels)]
    torch.library.opcheck(_ema, (targets, sources, scalar(0.5, kernels), [torch.zeros(5, device=kernels)]))


def test_compiles_without_a_graph_break(kernels: torch.device) -> None:
    targets, sources = problem(kernels)
    expected = [target.clone() for target in targets]
    ema(expected, sources, scalar(0.5, kernels))
    torch.compile(ema, fullgraph=True, backend="aot_eager")(targets, sources, scalar(0.5, kernels))
    assert all(torch.equal(old, new) for old, new in zip(expected, targets, strict=True))


def bad(name: str):
    target, source, momentum = torch.zeros(4, 6), torch.ones(4, 6), torch.tensor(0.5)
    arguments = dict(targets=[target], sources=[source], momentum=momentum, copies=[target.clone()])
    changed = {
        "targets: none": dict(targets=[], sources=[], copies=[]),
        "targets[0]: integer": dict(targets=[target.long()]),
        "targets[0]: strided": dict(targets=[target.T.contiguous().T]),
        "targets[0]: empty": dict(targets=[target[:0]], sources=[source[:0]], copies=[target[:0]]),
        "sources: too many": dict(sources=[source, source]),
        "sources[0]: shape": dict(sources=[source.flatten()]),
        "sources[0]: strided": dict(sources=[source.T.contiguous().T]),
        "sources[0]: device": dict(sources=[source.to("meta")]),
        "copies: too many": dict(copies=[target, target]),
        "copies[0]: integer": dict(copies=[target.int()]),
        "momentum: float64": dict(momentum=momentum.double()),
        "momentum: vector": dict(momentum=momentum[None]),
        "momentum: device": dict(momentum=momentum.to("meta")),
    }
    return arguments, changed


@pytest.mark.parametrize("case", bad("")[1])
def test_refuses(case: str, kernels: torch.device) -> None:
    arguments, changes = bad(case)
    name = case.split(":")[0].replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=rf"^{name} "):
        ema(**{**arguments, **changes[case]})
