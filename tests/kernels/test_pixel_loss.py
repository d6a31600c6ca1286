"""pixel_loss: loss, per-clip loss and gradient of the kernel against a float64 oracle."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import pytest
import torch
from kernel_checks import BFLOAT16, FLOAT32, assert_accurate, indices, nan_memory, only_program

from trocar.kernels.pixel_loss import (
    _pixel_loss,
    _pixel_loss_kernel,
    _scale,
    patch_targets,
    pixel_loss,
    pixel_loss_reference,
)

NORMALIZATIONS = ["channel", "patch", "none"]


def problem(
    batch: int, frames: tuple[int, int, int], tubelet: int, patch: int, chosen: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """prediction, frames, masked, counted."""
    generator = torch.Generator().manual_seed(seed)
    tokens = frames[0] // tubelet * (frames[1] // patch) * (frames[2] // patch)
    pixels = torch.randint(0, 256, (batch, *frames, 3), dtype=torch.uint8, generator=generator)
    pixels[0] = pixels[0] // 64 + 190  # bright and nearly flat: a one-pass variance would lose it
    pixels[-1, :tubelet, :patch, :patch] = 7  # a patch without any variance
    prediction = torch.randn(batch, chosen, tubelet * patch * patch * 3, generator=generator)
    counted = torch.rand(batch, chosen, generator=generator) < 0.6
    return prediction.bfloat16().float(), pixels, indices(batch, chosen, tokens, seed), counted


def run(function, arguments, tubelet: int, patch: int, normalization: str, dtype, device, **options) -> dict:
    prediction, frames, masked, counted = (argument.to(device) for argument in arguments)
    if options.pop("weighted", False):
        options["counted"] = counted
    leaf = prediction.to(dtype, copy=True).requires_grad_()
    loss, clip_loss = function(leaf, frames, masked, tubelet, patch, normalization, **options)
    loss.backward()
    assert not clip_loss.requires_grad
    return {"loss": loss.detach(), "clip_loss": clip_loss, "gradient": leaf.grad}


SHAPES = [
    pytest.param((2, (4, 12, 20), 2, 4, 7), id="non-square"),
    pytest.param((3, (2, 14, 28), 2, 14, 2), id="patch-14"),
    pytest.param((2, (3, 8, 8), 1, 2, 40), id="tubelet-1"),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient(shape, dtype, normalization: str, weighted: bool, kernels: torch.device) -> None:
    if weighted and shape[2] == 1:
        return
    arguments = problem(*shape)
    settings = (arguments, *shape[2:4], normalization)
    options = dict(weighted=weighted, loss_scale=0.25)
    oracle = run(pixel_loss_reference, *settings, torch.float64, kernels, **options)
    reference = run(pixel_loss_reference, *settings, dtype, kernels, **options)
    with nan_memory():
        actual = run(pixel_loss, *settings, dtype, kernels, **options)
    for name in oracle:
        assert_accurate(actual[name], reference[name], oracle[name], name)
    assert actual["gradient"].dtype == dtype
    assert actual["loss"].dtype == actual["clip_loss"].dtype == torch.float32


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_triton_one_buffer_is_target_difference_and_gradient(dtype, normalization: str, weighted: bool) -> None:
    settings = (problem(2, (4, 12, 20), 2, 4, 7), 2, 4, normalization)
    options = dict(weighted=weighted, loss_scale=0.25)
    oracle = run(pixel_loss_reference, *settings, torch.float64, "cpu", **options)
    reference = run(pixel_loss_reference, *settings, dtype, "cpu", **options)
    actual = run(pixel_loss, *settings, dtype, "cpu", **options)
    for name in oracle:
        if dtype == torch.float64:  # the reference is the oracle then
            assert torch.allclose(actual[name], oracle[name], rtol=1e-13, atol=0)
        else:
            assert_accurate(actual[name], reference[name], oracle[name], name)
    prediction, frames, masked, counted = settings[0]
    leaf = prediction.to(dtype, copy=True).requires_grad_()
    chosen = counted if weighted else None
    (2 * pixel_loss(leaf, frames, masked, 2, 4, normalization, chosen, 0.25)[0]).backward()
    assert torch.equal(leaf.grad, 2 * actual["gradient"]), "a gradient from above is passed on"
    with torch.no_grad():
        loss, _ = pixel_loss(prediction.to(dtype), frames, masked, 2, 4, normalization, chosen, 0.25)
    assert torch.equal(loss, actual["loss"])


def test_upstream_gradient_and_reuse(kernels: torch.device) -> None:
    prediction, frames, masked, _ = (part.to(kernels) for part in problem(2, (2, 8, 8), 2, 4, 3))
    expected = run(pixel_loss, (prediction, frames, masked, masked), 2, 4, "channel", torch.float32, kernels)
    leaf = prediction.clone().requires_grad_()
    loss, _ = pixel_loss(leaf, frames, masked, 2, 4, "channel")
    (loss * 3).backward(retain_graph=True)
    assert torch.equal(leaf.grad, 3 * expected["gradient"])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss * 3).backward()


def test_a_scale_of_one_touches_nothing(kernels: torch.device) -> None:
    values = torch.randn(3000, device=kernels)
    before = values.clone()
    _scale(values, torch.ones((), device=kernels))
    assert torch.equal(values, before)
    _scale(values, torch.full((), 0.5, device=kernels))
    assert torch.equal(values, before * 0.5)


def test_no_gradient_is_computed_under_no_grad(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, frames, masked, _ = (part.to(kernels) for part in problem(2, (2, 8, 8), 2, 4, 3))
    options = (None, 2, 4, "channel", 1.0)
    loss, clip_loss, gradient = _pixel_loss(prediction, frames, masked, *options, False)
    assert gradient.numel() == 0
    with_gradient = []
    monkeypatch.setattr(
        _pixel_loss,
        "_init_fn",
        lambda *arguments: with_gradient.append(arguments[-1]) or tuple(map(torch.clone, (loss, clip_loss, gradient))),
    )
    leaf = prediction.requires_grad_()
    with torch.no_grad():
        pixel_loss(leaf, frames, masked, 2, 4, "channel")
    pixel_loss(leaf.detach(), frames, masked, 2, 4, "channel")
    pixel_loss(leaf, frames, masked, 2, 4, "channel")
    assert with_gradient == [False, False, True]


def test_a_clip_that_counts_nothing_has_no_loss(kernels: torch.device) -> None:
    prediction, frames, masked, counted = problem(2, (2, 8, 8), 2, 4, 3)
    counted[1] = False
    actual = run(
        pixel_loss, (prediction, frames, masked, counted), 2, 4, "channel", torch.float32, kernels, weighted=True
    )
    assert actual["clip_loss"][1] == 0
    assert (actual["gradient"][1] == 0).all()
    assert torch.isfinite(actual["gradient"]).all()


def test_many_patches_a_clip(kernels: torch.device) -> None:
    """More rows than one block of the second stage sums at once."""
    from trocar.kernels.launch import launch
    from trocar.kernels.pixel_loss import _clip_loss_kernel

    rows = torch.rand(2, 2500, device=kernels)
    total = rows.new_full((2,), float("nan"))
    launch(_clip_loss_kernel, (2,), rows, total, 2500, BLOCK=1024)
    assert_accurate(total, rows.sum(1), rows.double().sum(1))


def test_reads_crops_and_far_clips_in_place(kernels: torch.device) -> None:
    prediction, frames, masked, _ = (part.to(kernels) for part in problem(2, (2, 8, 12), 2, 4, 3))
    expected, _ = pixel_loss(prediction, frames, masked, 2, 4, "channel")
    larger = torch.full((2, 3, 11, 15, 3), 77, dtype=torch.uint8, device=kernels)
    crop = larger[:, 1:, 3:, 1:13]
    crop.copy_(frames)
    assert torch.equal(pixel_loss(prediction, crop, masked, 2, 4, "channel")[0], expected)
    apart = 2**31 + 48
    memory = torch.empty(apart + frames[0].numel(), dtype=torch.uint8, device=kernels)  # touched at both ends alone
    far = memory.as_strided(frames.shape, (apart, *frames.stride()[1:]))
    far.copy_(frames)
    assert torch.equal(pixel_loss(prediction, far, masked, 2, 4, "channel")[0], expected)


@pytest.mark.interpreter
def test_predictions_of_more_than_2_31_elements(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row alone is computed; nothing before it is touched."""
    from trocar.kernels.launch import launch

    rows = 2**31 // 12 + 2
    prediction, gradient = (torch.empty(rows, 12, device=kernels) for _ in range(2))
    masked = torch.empty(rows, dtype=torch.int64, device=kernels)
    row_loss = torch.empty(rows, device=kernels)
    prediction[-1], masked[-1] = 1, 3
    frames = torch.full((1, 1, 4, 4, 3), 255, dtype=torch.uint8, device=kernels)
    frames[:, :, 2:, 2:] = 0
    settings = dict(T=1, P=2, NORMALIZATION="none", WEIGHTED=False, WITH_GRADIENT=True, BLOCK=16)
    numbers = (1 / 12, 1.0, rows, 4, 48, 48, 12, 4, 2)
    with only_program(rows - 1, monkeypatch):
        launch(_pixel_loss_kernel, (1,), prediction, frames, masked, row_loss, row_loss, gradient, *numbers, **settings)
    assert row_loss[-1] == 1
    assert torch.allclose(gradient[-1], torch.full((12,), 1 / 6, device=kernels))


def test_targets_are_those_of_videomae(kernels: torch.device) -> None:
    """A prediction equal to the reference's targets has (nearly) no loss, whichever path computes it."""
    _, frames, masked, _ = (part.to(kernels) for part in problem(2, (4, 12, 20), 2, 4, 7))
    targets = patch_targets(frames, masked, 2, 4, "channel", torch.float32)
    assert pixel_loss(targets, frames, masked, 2, 4, "channel")[0] < 1e-9


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck(kernels: torch.device) -> None:
    prediction, frames, masked, counted = (part.to(kernels) for part in problem(1, (2, 4, 4), 2, 2, 3))
    settings = (2, 2, "channel", 1.0)
    # Not test_aot_dispatch_dynamic: it returns the gradient, which the backward pass may scale in place. fullgraph is tested below.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaf = prediction.clone().requires_grad_()
    torch.library.opcheck(_pixel_loss, (leaf, frames, masked, counted, *settings, True), test_utils=checks)
    torch.library.opcheck(_pixel_loss, (prediction, frames, masked, None, *settings, False))
    torch.library.opcheck(_scale, (torch.randn(5, device=kernels), torch.full((), 2.0, device=kernels)))


def test_compiles_without_a_graph_break(kernels: torch.device) -> None:
    arguments = problem(2, (2, 8, 8), 2, 4, 3)
    for weighted, dynamic in ((False, False), (True, True)):
        compiled = torch.compile(pixel_loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        settings = (arguments, 2, 4, "channel", torch.float32, kernels)
        actual = run(compiled, *settings, weighted=weighted, loss_scale=0.5)
        expected = run(pixel_loss, *settings, weighted=weighted, loss_scale=0.5)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


def bad(name: str):
    prediction, frames, masked, counted = problem(2, (4, 8, 8), 2, 4, 3)
    arguments = dict(prediction=prediction, frames=frames, masked=masked, counted=counted, normalization="channel")
    changed = {
        "prediction: float16": dict(prediction=prediction.half()),
        "prediction: few values": dict(prediction=prediction[..., :-1].contiguous()),
        "prediction: strided": dict(prediction=prediction.transpose(0, 1).contiguous().transpose(0, 1)),
        "prediction: device": dict(prediction=prediction.to("meta")),
        "frames: float": dict(frames=frames.float()),
        "frames: columns first": dict(frames=frames.transpose(2, 3)),
        "frames: odd": dict(frames=frames[:, :3].contiguous()),
        "masked: empty": dict(masked=masked[:, :0], prediction=prediction[:, :0]),
        "masked: large": dict(masked=masked + 8),
        "masked: negative": dict(masked=masked - 8),
        "counted: float": dict(counted=counted.float()),
        "counted: few": dict(counted=counted[:, :-1]),
        "normalization: unknown": dict(normalization="chanel"),
    }
    return arguments, changed


@pytest.mark.parametrize("case", bad("")[1])
def test_refuses(case: str, kernels: torch.device) -> None:
    arguments, changes = bad(case)
    with pytest.raises(ValueError, match=rf"^{case.split(':')[0]} "):
        pixel_loss(**{**arguments, **changes[case]}, tubelet=2, patch=4)


def test_a_bad_index_on_a_device_gives_nan(kernels: torch.device) -> None:
    prediction, frames, _, _ = (part.to(kernels) for part in problem(2, (2, 8, 8), 2, 4, 3))
    masked = torch.tensor([[0, 1, 4], [0, -1, 2]], device=kernels)
    loss, _, gradient = _pixel_loss(prediction, frames, masked, None, 2, 4, "none", 1.0, True)
    assert torch.isnan(loss)
    assert torch.equal(
        torch.isnan(gradient).all(2), torch.tensor([[False, False, True], [False, True, False]], device=kernels)
    )
