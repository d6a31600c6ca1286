"""feature_loss: loss, per-clip loss and gradient against a float64 oracle, rows in batches and packed."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from kernel_checks import BFLOAT16, FLOAT16, FLOAT32, assert_accurate, indices, nan_memory

from trocar.kernels.feature_loss import _feature_loss, feature_loss, feature_loss_reference

DISTANCES = ["l1", "smooth_l1", "l2", "half_l2"]


def problem(batch: int, rows: int, tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """prediction, features, indices."""
    generator = torch.Generator().manual_seed(width)
    features = (
        torch.randn(batch, tokens, width, generator=generator) * 3 + 50
    )  # far from zero: a one-pass variance would lose it
    prediction = torch.randn(batch, rows, width, generator=generator)
    return prediction.half().bfloat16().float(), features.half().bfloat16().float(), indices(batch, rows, tokens)


def packed(arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clips of 4, 0 and 5 rows, then 3 rows of padding."""
    prediction, features, chosen = arguments
    width = features.shape[-1]
    rows = torch.cat([prediction[0, :4], prediction[2, :5], torch.full((3, width), 9.0)])
    places = torch.cat([chosen[0, :4], chosen[2, :5], torch.zeros(3, dtype=torch.int64)])
    return rows, features, places, torch.tensor([0, 4, 4, 9])


def two_masks(arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three clips with two masks each, of 1, 3, 2, 2, 4 and 1 rows, then a row of padding."""
    prediction, features, chosen = arguments
    rows, places = prediction.flatten(0, 1)[:14], chosen.flatten()[:14]
    return rows, features, places, torch.tensor([0, 1, 4, 6, 8, 12, 13])


def run(function, arguments, distance: str, dtype, feature_dtype, device, **options) -> dict[str, torch.Tensor]:
    prediction, features, chosen, *offsets = (argument.to(device) for argument in arguments)
    leaf = prediction.to(dtype, copy=True).requires_grad_()
    options.update(offsets=offsets[0] if offsets else None, loss_scale=0.5)
    loss, clip_loss = function(leaf, features.to(feature_dtype), chosen, distance, **options)
    loss.backward()
    assert not clip_loss.requires_grad
    return {"loss": loss.detach(), "clip_loss": clip_loss, "gradient": leaf.grad}


def test_several_masks_a_clip(kernels: torch.device) -> None:
    """Sequence s compares with the features of clip s // 2; the loss is the mean over clips of the mean over their masks."""
    arguments = two_masks(problem(3, 6, 11, 40))
    oracle = run(feature_loss_reference, arguments, "l1", torch.float64, torch.float64, kernels)
    reference = run(feature_loss_reference, arguments, "l1", torch.float32, torch.float32, kernels)
    with nan_memory():
        actual = run(feature_loss, arguments, "l1", torch.float32, torch.float32, kernels)
    for name in oracle:
        assert_accurate(actual[name], reference[name], oracle[name], name)
    rows, features, places, offsets = (part.double() if part.is_floating_point() else part for part in arguments)
    for sequence, (start, end) in enumerate(pairwise(offsets.tolist())):
        target = torch.nn.functional.layer_norm(features[sequence // 2, places[start:end]], (40,))
        expected = (rows[start:end] - target).abs().mean()
        assert oracle["clip_loss"][sequence].item() == pytest.approx(float(expected))
    assert oracle["loss"].item() == pytest.approx(0.5 * float(oracle["clip_loss"].mean()))


@pytest.mark.parametrize("feature_dtype", [FLOAT32, FLOAT16])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("shape", [(3, 6, 11, 40), (3, 5, 7, 33)])
@pytest.mark.parametrize("pack", [False, True])
def test_loss_and_gradient(shape, distance: str, dtype, feature_dtype, pack: bool, kernels: torch.device) -> None:
    if pack and (shape[3] == 33 or feature_dtype == torch.float16):
        return
    arguments = packed(problem(*shape)) if pack else problem(*shape)
    oracle = run(feature_loss_reference, arguments, distance, torch.float64, torch.float64, kernels)
    reference = run(feature_loss_reference, arguments, distance, dtype, feature_dtype, kernels)
    with nan_memory():
        actual = run(feature_loss, arguments, distance, dtype, feature_dtype, kernels)
    for name in oracle:
        assert_accurate(actual[name], reference[name], oracle[name], name)
    if pack:
        assert (actual["gradient"][9:] == 0).all()
        assert actual["clip_loss"][1] == 0


def test_a_loss_is_the_mean_over_clips_however_they_are_packed(kernels: torch.device) -> None:
    prediction, features, chosen = (part.to(kernels) for part in problem(3, 6, 11, 40))
    whole, clips = feature_loss(prediction, features, chosen)
    offsets = torch.arange(4, device=kernels, dtype=torch.int32) * 6
    flat, flat_clips = feature_loss(prediction.flatten(0, 1), features, chosen.flatten().int(), offsets=offsets)
    assert torch.equal(whole, flat)
    assert torch.equal(clips, flat_clips)
    alone = [feature_loss(prediction[b : b + 1], features[b : b + 1], chosen[b : b + 1])[0] for b in range(3)]
    assert torch.allclose(torch.stack(alone), clips)


def test_equals_v_jepa(kernels: torch.device) -> None:
    """Its training loop: layer_norm of the target, gather, mean absolute difference."""
    prediction, features, chosen = (part.to(kernels) for part in problem(2, 4, 9, 24))
    normalized = torch.nn.functional.layer_norm(features, (24,))
    target = normalized.gather(1, chosen[..., None].expand(-1, -1, 24))
    assert torch.allclose(feature_loss(prediction, features, chosen)[0], (prediction - target).abs().mean(), rtol=1e-5)


def test_upstream_gradient_and_no_grad(kernels: torch.device) -> None:
    prediction, features, chosen = (part.to(kernels) for part in problem(2, 4, 9, 24))
    leaves = [prediction.clone().requires_grad_() for _ in range(2)]
    feature_loss(leaves[0], features, chosen, "l2")[0].backward()
    (feature_loss(leaves[1], features, chosen, "l2")[0] * 4).backward()
    assert torch.equal(leaves[1].grad, 4 * leaves[0].grad)
    with torch.no_grad():
        assert not feature_loss(leaves[0], features, chosen)[0].requires_grad
    flat = (prediction.flatten(0, 1), features, chosen.flatten(), torch.tensor([0, 4, 8], device=kernels))
    assert _feature_loss(*flat, "l1", 1.0, 1e-5, False)[2].numel() == 0


def test_many_rows_a_clip(kernels: torch.device) -> None:
    from trocar.kernels.feature_loss import _clip_sums_kernel
    from trocar.kernels.launch import launch

    rows = torch.rand(2500, device=kernels)
    total = rows.new_full((2,), float("nan"))
    launch(_clip_sums_kernel, (2,), rows, torch.tensor([0, 100, 2500], device=kernels), total, BLOCK=1024)
    expected = [torch.stack([part[:100].sum(), part[100:].sum()]) for part in (rows, rows.double())]
    assert_accurate(total, *expected)


def test_offsets_are_64_bit(kernels: torch.device) -> None:
    """Features of more than 2**31 elements, touched in their last row alone."""
    width, tokens = 1024, 2**20 + 1
    features = torch.empty(2, tokens, width, dtype=torch.float16, device=kernels)
    features[-1, -1] = torch.arange(width, device=kernels) % 2
    last = torch.full((2, 1), tokens - 1, device=kernels)
    features[0, -1] = features[-1, -1]
    target = (torch.arange(width, device=kernels) % 2 * 2 - 1).float().expand(2, 1, -1).contiguous()
    assert feature_loss(target, features, last, eps=0.0)[0] < 1e-6


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck(kernels: torch.device) -> None:
    prediction, features, chosen = (part.to(kernels) for part in problem(1, 3, 5, 8))
    settings = (features, chosen.flatten(), torch.tensor([0, 3], device=kernels), "l1", 1.0, 1e-5)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # the rest: see test_pixel_loss.py
    leaf = prediction[0].clone().requires_grad_()
    torch.library.opcheck(_feature_loss, (leaf, *settings, True), test_utils=checks)
    torch.library.opcheck(_feature_loss, (prediction[0], *settings, False))


def test_compiles_without_a_graph_break(kernels: torch.device) -> None:
    for arguments, dynamic in ((problem(3, 6, 11, 40), False), (packed(problem(3, 6, 11, 40)), True)):
        compiled = torch.compile(feature_loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        actual = run(compiled, arguments, "l1", torch.float32, torch.float32, kernels)
        expected = run(feature_loss, arguments, "l1", torch.float32, torch.float32, kernels)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


def bad(name: str):
    prediction, features, chosen, offsets = packed(problem(3, 6, 11, 16))
    arguments = dict(prediction=prediction, features=features, indices=chosen, offsets=offsets, distance="l1")
    batch = dict(prediction=prediction[None], indices=chosen[None], offsets=None)
    changed = {
        "prediction: float16": dict(prediction=prediction.half()),
        "prediction: narrow": dict(prediction=prediction[:, :-1].contiguous()),
        "prediction: strided": dict(prediction=prediction.T.contiguous().T),
        "prediction: device": dict(prediction=prediction.to("meta")),
        "prediction: clips": batch,
        "features: strided": dict(features=features.transpose(0, 1)),
        "features: integer": dict(features=features.long()),
        "features: empty": dict(features=features[:, :0]),
        "indices: large": dict(indices=chosen + 11),
        "indices: negative": dict(indices=chosen - 11),
        "indices: few": dict(indices=chosen[:-1]),
        "indices: float": dict(indices=chosen.float()),
        "offsets: few": dict(offsets=offsets[1:]),
        "offsets: beyond": dict(offsets=offsets * 2),
        "offsets: descending": dict(offsets=offsets.flip(0) * 0 + torch.tensor([0, 4, 3, 9])),
        "distance: unknown": dict(distance="l3"),
    }
    return arguments, changed


@pytest.mark.parametrize("case", bad("")[1])
def test_refuses(case: str, kernels: torch.device) -> None:
    arguments, changes = bad(case)
    with pytest.raises(ValueError, match=rf"^{case.split(':')[0]} "):
        feature_loss(**{**arguments, **changes[case]})


def test_a_bad_index_on_a_device_gives_nan(kernels: torch.device) -> None:
    prediction, features, _ = (part.to(kernels) for part in problem(1, 3, 5, 8))
    offsets = torch.tensor([0, 3], device=kernels)
    settings = (prediction[0], features, torch.tensor([0, 5, -1], device=kernels), offsets, "l1", 1.0, 1e-5)
    loss, _, gradient = _feature_loss(*settings, True)
    assert torch.isnan(loss)
    assert torch.isnan(gradient).all(1).tolist() == [False, True, True]
