"""decoder_tokens: the kernel against a float64 oracle, forward and backward."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_accurate, indices, nan_memory

from trocar.kernels.decoder_tokens import (
    _decoder_tokens,
    _mask_token_gradient,
    decoder_tokens,
    decoder_tokens_reference,
)

LEAVES = ("projected", "mask_token", "positions")


def problem(batch: int, visible: int, masked: int, tokens: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(width)
    chosen = [indices(batch, count, tokens, count) for count in (visible, masked)]
    shapes = ((batch, visible, width), (width,), (tokens, width))
    return (*(torch.randn(shape, generator=generator) for shape in shapes), *chosen)


def run(function, arguments: tuple[torch.Tensor, ...], dtype: torch.dtype, held: torch.dtype, device) -> dict:
    """`projected` in `dtype`, mask token and positions in `held`."""
    arguments = tuple(argument.to(device) for argument in arguments)
    kinds = (dtype, held, held)
    leaves = [part.half().to(kind, copy=True).requires_grad_() for part, kind in zip(arguments[:3], kinds, strict=True)]
    output = function(*leaves, *arguments[3:])
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).half()
    output.backward(upstream.to(device, output.dtype))
    return {"output": output.detach(), **{name: leaf.grad for name, leaf in zip(LEAVES, leaves, strict=True)}}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 11, 16, 40), (3, 1, 9, 30, 17), (1, 20, 20, 24, 600)])
def test_forward_and_backward(shape, dtype: torch.dtype, kernels: torch.device) -> None:
    arguments = problem(*shape)
    oracle = run(decoder_tokens_reference, arguments, torch.float64, torch.float64, kernels)
    reference = run(decoder_tokens_reference, arguments, dtype, torch.float32, kernels)
    with nan_memory():
        actual = run(decoder_tokens, arguments, dtype, torch.float32, kernels)
    for name in oracle:
        assert_accurate(actual[name], reference[name], oracle[name], name)
        assert actual[name].dtype == reference[name].dtype


def test_the_cpu_takes_the_reference() -> None:
    arguments = problem(2, 5, 11, 16, 40)
    assert torch.equal(decoder_tokens(*arguments), decoder_tokens_reference(*arguments))


def test_offsets_are_64_bit(kernels: torch.device) -> None:
    """Positions of more than 2**31 elements, touched in their last row alone."""
    width, tokens = 1024, 2**21 + 1
    positions = torch.empty(tokens, width, dtype=torch.float16, device=kernels)
    positions[-1] = 1
    projected = torch.ones(1, 1, width, device=kernels)
    last = torch.full((1, 1), tokens - 1, device=kernels)
    assert (decoder_tokens(projected, projected[0, 0], positions, last, last) == 2).all()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck(kernels: torch.device) -> None:
    arguments = [part.to(kernels) for part in problem(2, 2, 3, 8, 6)]
    torch.library.opcheck(_decoder_tokens, [part.requires_grad_() for part in arguments[:3]] + arguments[3:])
    torch.library.opcheck(_mask_token_gradient, (torch.randn(2, 5, 6, device=kernels), 2))


def test_compiles_without_a_graph_break(kernels: torch.device) -> None:
    arguments = problem(2, 5, 11, 16, 40)
    compiled = torch.compile(decoder_tokens, fullgraph=True, backend="aot_eager")
    actual = run(compiled, arguments, torch.float32, torch.float32, kernels)
    expected = run(decoder_tokens, arguments, torch.float32, torch.float32, kernels)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def bad(name: str):
    projected, mask_token, positions, visible, masked = problem(2, 5, 11, 16, 40)
    arguments = dict(projected=projected, mask_token=mask_token, positions=positions, visible=visible, masked=masked)
    changed = {
        "projected: strided": dict(projected=projected.transpose(0, 1).contiguous().transpose(0, 1)),
        "projected: integer": dict(projected=projected.long()),
        "projected: empty": dict(projected=projected[:0], visible=visible[:0], masked=masked[:0]),
        "mask_token: short": dict(mask_token=mask_token[:-1]),
        "mask_token: device": dict(mask_token=mask_token.to("meta")),
        "positions: strided": dict(positions=positions.T.contiguous().T),
        "positions: narrow": dict(positions=positions[:, :-1].contiguous()),
        "visible: count": dict(visible=visible[:, :-1]),
        "visible: negative": dict(visible=visible - 16),
        "masked: large": dict(masked=masked + 16),
        "masked: float": dict(masked=masked.float()),
        "masked: empty": dict(masked=masked[:, :0]),
    }
    return arguments, changed


@pytest.mark.parametrize("case", bad("")[1])
def test_refuses(case: str, kernels: torch.device) -> None:
    arguments, changes = bad(case)
    with pytest.raises(ValueError, match=rf"^{case.split(':')[0]} "):
        decoder_tokens(**{**arguments, **changes[case]})


def test_a_bad_index_on_a_device_gives_nan(kernels: torch.device) -> None:
    projected, mask_token, positions, visible, masked = (part.to(kernels) for part in problem(1, 2, 2, 8, 20))
    visible, masked = torch.tensor([[0, -1]], device=kernels), torch.tensor([[8, 1]], device=kernels)
    output = _decoder_tokens(projected, mask_token, positions, visible, masked)
    assert torch.isnan(output).all(2).tolist() == [[False, True, True, False]]
    assert torch.isfinite(output[0, [0, 3]]).all()
