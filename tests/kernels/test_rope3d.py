"""rope3d: the kernel against a float64 oracle and against Hugging Face's V-JEPA 2, forward and backward."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_accurate, indices, nan_memory

from trocar.kernels.rope3d import _rope3d, rope3d, rope3d_reference

GRID = (3, 4, 5)


def problem(batch: int, tokens: int, heads: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    queries, keys = (torch.randn(batch, tokens, heads, width, generator=generator).half() for _ in range(2))
    return queries, keys, indices(batch, tokens, 60)


def run(function, arguments, dtype: torch.dtype, device) -> dict[str, torch.Tensor]:
    queries, keys, places = (argument.to(device) for argument in arguments)
    leaves = [part.to(dtype, copy=True).requires_grad_() for part in (queries, keys)]
    outputs = function(*leaves, places, GRID)
    generator = torch.Generator().manual_seed(9)
    upstream = [torch.randn(output.shape, generator=generator).half().to(device, dtype) for output in outputs]
    torch.autograd.backward(outputs, upstream)
    names = ("queries", "keys", "query gradient", "key gradient")
    return dict(zip(names, (*(output.detach() for output in outputs), *(leaf.grad for leaf in leaves)), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 7, 3, 64), (1, 5, 2, 20), (3, 2, 1, 6), (1, 3, 5, 80)])
def test_forward_and_backward(shape, dtype: torch.dtype, kernels: torch.device) -> None:
    arguments = problem(*shape)
    oracle = run(rope3d_reference, arguments, torch.float64, kernels)
    reference = run(rope3d_reference, arguments, dtype, kernels)
    with nan_memory():
        actual = run(rope3d, arguments, dtype, kernels)
    for name in oracle:
        assert_accurate(actual[name], reference[name], oracle[name], name)
        assert actual[name].dtype == dtype


def test_equals_hugging_face(kernels: torch.device) -> None:
    from transformers import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

    config = VJEPA2Config(
        patch_size=4, crop_size=16, frames_per_clip=6, tubelet_size=2, hidden_size=128, num_attention_heads=2
    )
    peer = VJEPA2RopeAttention(config, hidden_size=128, num_attention_heads=2)
    queries, keys, _ = (part.float() for part in problem(2, 9, 2, 64))
    places = indices(2, 9, 48)
    positions = peer.get_position_ids(torch.zeros(2, 9, 128), masks=places)
    actual = rope3d(queries.to(kernels), keys.to(kernels), places.to(kernels), (3, 4, 4))
    for turned, plain in zip(actual, (queries, keys), strict=True):
        expected = peer.apply_rotary_embeddings(plain.transpose(1, 2), positions).transpose(1, 2)
        assert torch.allclose(turned.cpu(), expected, atol=1e-5)


def test_reads_a_fused_projection_and_packed_tokens_in_place(kernels: torch.device) -> None:
    queries, keys, places = (part.to(kernels) for part in problem(2, 7, 3, 20))
    expected = rope3d(queries, keys, places, GRID)
    fused = torch.stack([queries, keys, keys], dim=2)
    assert not fused.unbind(2)[1].is_contiguous()
    heads_first = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in (queries, keys)]
    for strided in (fused.unbind(2)[:2], heads_first, [fused[:, :, 0], keys], [queries, heads_first[1]]):
        assert all(torch.equal(*pair) for pair in zip(rope3d(*strided, places, GRID), expected, strict=True))
    packed = rope3d(queries.flatten(0, 1), keys.flatten(0, 1), places.flatten().int(), GRID)
    assert all(torch.equal(part, wanted.flatten(0, 1)) for part, wanted in zip(packed, expected, strict=True))


def test_offsets_are_64_bit(kernels: torch.device) -> None:
    queries, keys, places = (part.to(kernels) for part in problem(2, 2, 1, 6))
    apart = 2**31 + 6
    memory = torch.empty(apart + 12, dtype=torch.float16, device=kernels)  # touched at both ends alone
    far = memory.as_strided(queries.shape, (apart, 6, 6, 1))
    for pair in ((far, keys), (queries, far)):
        plain = pair[0] if pair[1] is far else pair[1]
        far.copy_(queries)
        expected = rope3d(*(queries if part is far else plain for part in pair), places, GRID)
        assert all(torch.equal(*both) for both in zip(rope3d(*pair, places, GRID), expected, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck(kernels: torch.device) -> None:
    queries, keys, places = (part.to(kernels) for part in problem(1, 2, 1, 6))
    leaves = [part.float().requires_grad_() for part in (queries, keys)]
    torch.library.opcheck(_rope3d, (*leaves, places, *GRID, False))


def test_compiles_without_a_graph_break(kernels: torch.device) -> None:
    arguments = problem(2, 3, 2, 20)
    actual = run(torch.compile(rope3d, fullgraph=True, backend="aot_eager"), arguments, torch.float32, kernels)
    expected = run(rope3d, arguments, torch.float32, kernels)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def bad(name: str):
    queries, keys, places = problem(2, 3, 2, 20)
    arguments = dict(queries=queries, keys=keys, indices=places)
    changed = {
        "queries: integer": dict(queries=queries.long()),
        "queries: flat": dict(queries=queries.flatten(2)[..., None].squeeze(-1)[0, 0]),
        "queries: strided": dict(queries=queries.transpose(2, 3), keys=keys.transpose(2, 3)),
        "queries: narrow": dict(queries=queries[..., :4], keys=keys[..., :4]),
        "queries: empty": dict(queries=queries[:0], keys=keys[:0], indices=places[:0]),
        "keys: dtype": dict(keys=keys.float()),
        "keys: heads": dict(keys=keys[:, :, :1]),
        "keys: strided": dict(keys=keys.transpose(2, 3).contiguous().transpose(2, 3)),
        "keys: device": dict(keys=keys.to("meta")),
        "indices: large": dict(indices=places + 60),
        "indices: negative": dict(indices=places - 60),
        "indices: few": dict(indices=places[:, :-1]),
        "indices: float": dict(indices=places.float()),
    }
    return arguments, changed


@pytest.mark.parametrize("case", bad("")[1])
def test_refuses(case: str, kernels: torch.device) -> None:
    arguments, changes = bad(case)
    with pytest.raises(ValueError, match=rf"^{case.split(':')[0]} "):
        rope3d(**{**arguments, **changes[case]}, grid=GRID)


def test_a_bad_index_on_a_device_gives_nan(kernels: torch.device) -> None:
    queries, keys, _ = (part.to(kernels) for part in problem(1, 3, 1, 6))
    turned, _ = _rope3d(queries, keys, torch.tensor([[0, 60, -1]], device=kernels), *GRID, False)
    assert torch.isnan(turned).all(dim=(2, 3)).tolist() == [[False, True, True]]
