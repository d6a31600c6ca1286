"""patch_embed: the kernel against a float64 oracle, in every dtype, forward and backward."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_accurate, indices, nan_memory, only_program

from trocar.kernels import patch_embed as module
from trocar.kernels.patch_embed import _patch_embed, patch_embed, patch_embed_reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def problem(
    batch: int, frames: tuple[int, int, int], tubelet: int, patch: int, width: int, chosen: int, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """frames, visible, weight, bias, positions."""
    generator = torch.Generator().manual_seed(seed)
    tokens = frames[0] // tubelet * (frames[1] // patch) * (frames[2] // patch)
    values = tubelet * patch * patch * 3
    return (
        torch.randint(0, 256, (batch, *frames, 3), dtype=torch.uint8, generator=generator),
        indices(batch, chosen, tokens, seed),
        torch.randn(width, 3, tubelet, patch, patch, generator=generator) / values**0.5,
        torch.randn(width, generator=generator),
        torch.randn(tokens, width, generator=generator),
    )


def run(function, arguments: tuple[torch.Tensor, ...], held: torch.dtype, device, **options) -> dict[str, torch.Tensor]:
    """Output and gradients, the parameters held in `held`."""
    frames, visible, *parameters = (argument.to(device) for argument in arguments)
    leaves = [parameter.to(held, copy=True).requires_grad_() for parameter in parameters]
    output = function(frames, visible, *leaves, MEAN, STD, **options)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).half()
    output.backward(upstream.to(device, output.dtype))
    gradients = {name: leaf.grad for name, leaf in zip(("weight", "bias", "positions"), leaves, strict=True)}
    return {"output": output.detach(), **gradients}


def usual(frames, visible, weight, bias, positions, mean, std, dtype) -> torch.Tensor:
    """The usual path at this precision: normalise in float32, multiply in `dtype` from float32 masters."""
    parameters = [parameter.to(dtype).to(torch.float64) for parameter in (weight, bias, positions)]
    pixels = (frames.float() / 255 - torch.tensor(mean, device=frames.device)) / torch.tensor(std, device=frames.device)
    return _conv(pixels.to(dtype).double(), visible, *parameters).to(dtype)


def _conv(pixels, visible, weight, bias, positions) -> torch.Tensor:
    stride = weight.shape[2:]
    tokens = torch.nn.functional.conv3d(pixels.permute(0, 4, 1, 2, 3), weight, bias, stride=stride).flatten(2).mT
    return torch.stack([token[chosen] for token, chosen in zip(tokens, visible, strict=True)]) + positions[visible]


SHAPES = [
    pytest.param((2, (4, 12, 20), 2, 4, 40, 7), id="non-square"),
    pytest.param((3, (2, 14, 28), 2, 14, 24, 2), id="patch-14"),
    pytest.param((1, (3, 8, 8), 1, 8, 130, 9), id="tubelet-1-wide"),
    pytest.param((2, (8, 8, 8), 4, 2, 17, 32), id="all-visible"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(shape, dtype: torch.dtype, kernels: torch.device) -> None:
    arguments = problem(*shape)
    oracle = run(patch_embed_reference, arguments, torch.float64, kernels)
    with nan_memory():
        actual = run(patch_embed, arguments, torch.float32, kernels, dtype=dtype)
    if dtype == torch.float32:
        reference = run(patch_embed_reference, arguments, dtype, kernels)
    else:
        reference = run(usual, arguments, torch.float32, kernels, dtype=dtype)
    for name in oracle:
        assert_accurate(actual[name], reference[name], oracle[name], name, dtype)
    assert actual["output"].dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_error_is_no_larger_than_the_usual_paths(dtype: torch.dtype, kernels: torch.device) -> None:
    """Folding rounds the weights once and the pixels never; the usual path rounds both."""
    frames, visible, *parameters = (part.to(kernels) for part in problem(2, (4, 32, 32), 2, 16, 64, 6))
    frames = (frames // 2 + 96).contiguous()  # bright, as surgical video is: the mean does not cancel
    oracle = patch_embed_reference(frames, visible, *(parameter.double() for parameter in parameters), MEAN, STD)
    ours = patch_embed(frames, visible, *parameters, MEAN, STD, dtype=dtype).double()
    theirs = usual(frames, visible, *parameters, MEAN, STD, dtype).double()
    assert (ours - oracle).norm() <= (theirs - oracle).norm()


def test_repeated_indices_add_up(kernels: torch.device) -> None:
    arguments = problem(2, (2, 8, 8), 2, 4, 16, 3)
    arguments = (arguments[0], torch.tensor([[1, 1, 0], [3, 1, 3]]), *arguments[2:])
    oracle = run(patch_embed_reference, arguments, torch.float64, kernels)
    reference = run(patch_embed_reference, arguments, torch.float32, kernels)
    actual = run(patch_embed, arguments, torch.float32, kernels)
    for name in oracle:
        assert_accurate(actual[name], reference[name], oracle[name], name)


def test_many_rows_are_summed_in_several_splits(kernels: torch.device) -> None:
    arguments = problem(3, (2, 20, 20), 2, 2, 16, 90)
    oracle = run(patch_embed_reference, arguments, torch.float64, kernels)
    reference = run(patch_embed_reference, arguments, torch.float32, kernels)
    actual = run(patch_embed, arguments, torch.float32, kernels)
    for name in oracle:
        assert_accurate(actual[name], reference[name], oracle[name], name)
    again = run(patch_embed, arguments, torch.float32, kernels)
    assert all(torch.equal(actual[name], again[name]) for name in actual)


def test_reads_crops_and_misaligned_frames_in_place(kernels: torch.device) -> None:
    frames, visible, *parameters = (part.to(kernels) for part in problem(2, (4, 12, 20), 2, 4, 40, 7))
    expected = patch_embed(frames, visible, *parameters, MEAN, STD)
    larger = torch.full((2, 5, 15, 23, 3), 77, dtype=torch.uint8, device=kernels)
    crop = larger[:, 1:, 2:14, 1:21]
    crop.copy_(frames)
    assert crop.data_ptr() % 16 != 0
    assert torch.equal(patch_embed(crop, visible, *parameters, MEAN, STD), expected)


def test_offsets_are_64_bit(kernels: torch.device) -> None:
    frames, visible, *parameters = (part.to(kernels) for part in problem(2, (2, 8, 8), 2, 4, 16, 3))
    apart = 2**31 + 48
    memory = torch.empty(apart + frames[0].numel(), dtype=torch.uint8, device=kernels)  # touched at both ends alone
    far = memory.as_strided(frames.shape, (apart, *frames.stride()[1:]))
    far.copy_(frames)
    assert torch.equal(
        patch_embed(far, visible, *parameters, MEAN, STD), patch_embed(frames, visible, *parameters, MEAN, STD)
    )


@pytest.mark.interpreter
def test_tokens_of_more_than_2_31_elements(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of rows alone is computed; nothing before it is touched."""
    frames, _, *parameters = (part.to(kernels) for part in problem(1, (2, 8, 8), 2, 4, 64, 3))
    tile = module.FLOAT_TILE
    blocks = 2**31 // (tile["ROWS"] * 64) + 1
    rows = blocks * tile["ROWS"]
    visible = torch.empty(rows, dtype=torch.int64, device=kernels)
    visible[-tile["ROWS"] :] = torch.arange(tile["ROWS"]) % 4
    tokens = torch.empty(rows, 64, device=kernels)
    folded = parameters[0].permute(0, 2, 3, 4, 1).flatten(1).contiguous()
    numbers = (rows, rows, 4, 4, 64, 384, 192, 24, 4, 2)
    arguments = (frames, visible, folded, parameters[1], parameters[2], tokens, *numbers)
    with only_program(blocks - 1, monkeypatch):
        module.launch(module._embed_kernel, (1,), *arguments, T=2, P=4, **tile)
    expected = patch_embed_reference(frames, torch.arange(4)[None], *parameters, (128 / 255,) * 3, (1.0,) * 3)
    assert torch.allclose(tokens[-4:], expected[0], atol=1e-4)


def test_clips_one_after_another_share_their_positions(kernels: torch.device) -> None:
    """Packed tokens: any number of each clip, with one table of positions; forward and backward as clip by clip."""
    frames, _, *parameters = (part.to(kernels) for part in problem(2, (4, 8, 8), 2, 4, 16, 3))
    chosen = [torch.tensor([0, 3, 5, 6]), torch.tensor([1, 7])]
    rows = torch.cat([chosen[1] + 8, chosen[0]])[None].to(kernels)
    results = []
    for stacked in (True, False):
        leaves = [parameter.clone().requires_grad_() for parameter in parameters]
        if stacked:
            tokens = patch_embed(frames.flatten(0, 1)[None], rows, *leaves, MEAN, STD)[0]
        else:
            parts = [patch_embed(frames[i : i + 1], chosen[i][None].to(kernels), *leaves, MEAN, STD)[0] for i in (1, 0)]
            tokens = torch.cat(parts)
        (tokens * torch.arange(6, device=kernels)[:, None]).sum().backward()
        results.append([tokens.detach(), *(leaf.grad for leaf in leaves)])
    for stacked, apart in zip(*results, strict=True):
        assert torch.allclose(stacked, apart, rtol=1e-5, atol=1e-5)


def test_the_cpu_takes_the_reference_and_agrees() -> None:
    arguments = problem(2, (4, 12, 20), 2, 4, 40, 7)
    output = patch_embed(*arguments, MEAN, STD)
    assert torch.equal(output, patch_embed_reference(*arguments, MEAN, STD))
    assert torch.allclose(output, usual(*arguments, MEAN, STD, torch.float32), atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck(kernels: torch.device) -> None:
    frames, visible, *parameters = (part.to(kernels) for part in problem(1, (2, 4, 4), 2, 2, 8, 3))
    leaves = [parameter.requires_grad_() for parameter in parameters]
    torch.library.opcheck(_patch_embed, (frames, visible, *leaves, list(MEAN), list(STD), torch.float32))


def test_compiles_without_a_graph_break(kernels: torch.device) -> None:
    arguments = problem(2, (2, 8, 8), 2, 4, 16, 3)
    compiled = torch.compile(patch_embed, fullgraph=True, backend="aot_eager")
    actual = run(compiled, arguments, torch.float32, kernels)
    expected = run(patch_embed, arguments, torch.float32, kernels)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def bad(name: str):
    frames, visible, weight, bias, positions = problem(2, (4, 8, 8), 2, 4, 16, 3)
    arguments = dict(frames=frames, visible=visible, weight=weight, bias=bias, positions=positions)
    changed = {
        "frames: float": dict(frames=frames.float()),
        "frames: channels first": dict(frames=frames.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)),
        "frames: empty": dict(frames=frames[:0], visible=visible[:0]),
        "frames: odd": dict(frames=frames[:, :3].contiguous()),
        "visible: empty": dict(visible=visible[:, :0]),
        "visible: float": dict(visible=visible.float()),
        "visible: large": dict(visible=visible + 8),
        "visible: negative": dict(visible=visible - 8),
        "visible: clips": dict(visible=visible[:1]),
        "weight: strided": dict(weight=weight.transpose(3, 4)),
        "weight: integer": dict(weight=weight.long()),
        "bias: long": dict(bias=torch.zeros(17)),
        "bias: device": dict(bias=bias.to("meta")),
        "positions: few": dict(positions=positions[:-1]),
        "positions: undivided": dict(positions=torch.zeros(3, positions.shape[1])),
        "positions: strided": dict(positions=positions.T.contiguous().T),
    }
    return arguments, changed


@pytest.mark.parametrize("case", bad("")[1])
def test_refuses(case: str, kernels: torch.device) -> None:
    arguments, changes = bad(case)
    with pytest.raises(ValueError, match=rf"^{case.split(':')[0]} "):
        patch_embed(**{**arguments, **changes[case]}, mean=MEAN, std=STD)


def test_a_bad_index_on_a_device_gives_nan_and_reads_nothing(kernels: torch.device) -> None:
    frames, visible, *parameters = (part.to(kernels) for part in problem(1, (2, 8, 8), 2, 4, 16, 3))
    visible = torch.tensor([[0, 4, -1]], device=kernels)
    output = _patch_embed(frames, visible, *parameters, list(MEAN), list(STD), torch.float32)
    assert torch.isfinite(output[0, 0]).all()
    assert torch.isnan(output[0, 1:]).all()
