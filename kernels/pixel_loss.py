"""Mean squared error against the pixels of the masked patches.

Targets of a patch, from pixels scaled to 0 .. 1:
    "channel"  (x - mean) / (sqrt(variance) + 1e-6), per channel of the patch, unbiased variance (VideoMAE, arXiv 2203.12602)
    "patch"    the same over all values of the patch (MAE, arXiv 2111.06377, without its epsilon under the root)
    "none"     x itself
The loss of a clip is the mean over its masked patches and their values; the loss of a batch is the mean over its clips. With
`counted` (VideoMAE V2, arXiv 2303.16727: the decoder predicts tokens that the encoder may have seen) only the patches counted enter
a clip's mean; a clip that counts none has loss 0.

The kernel builds each target in registers from uint8 pixels and writes loss and gradient in the same pass: the prediction is read
once, the gradient written once, and no target or pixel is stored as a float. The gradient of the mean, about 3e-8 an element,
underflows float16: bfloat16 and float32 alone. `loss_scale` is applied in the forward pass, so the backward pass of
`loss.backward()` has nothing to multiply: one small kernel sees that the upstream gradient is 1 and leaves the buffer as it is.

Shapes: B clips, T frames, H W pixels, N_masked predicted tokens, P = t * p * p * 3 values a patch in the order (t, p, p, 3).

Over 300 lines: an operator is one file, with its reference, kernels, gradient and checks.
"""

from __future__ import annotations

import torch

from .choices import NORMALIZATIONS, Normalization
from .launch import (
    INDEX_DTYPES,
    by_layout,
    ceil_div,
    differentiable,
    directly,
    jit,
    launch,
    power_of_two,
    require,
    require_frames,
    require_range,
    takes_triton,
    tl,
)
from .patch_embed import _geometry, gather_patches, patch_starts, value_offsets

PREDICTION_DTYPES = (torch.bfloat16, torch.float32, torch.float64)
SCALE_BLOCK, SCALE_PROGRAMS = 1024, 528


def patch_targets(
    frames: torch.Tensor,
    indices: torch.Tensor,
    tubelet: int,
    patch: int,
    normalization: Normalization,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Targets of the patches at `indices`: (B, N_chosen, P) in `dtype`."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}")
    # In place: on a CPU fresh memory for every intermediate costs more than the arithmetic.
    pixels = gather_patches(frames, indices, tubelet, patch).flatten(2, 4).to(dtype)
    if normalization == "none":
        return pixels.div_(255).flatten(2)
    over, count = ((-2,), pixels.shape[-2]) if normalization == "channel" else ((-2, -1), pixels[0, 0].numel())
    # In units of 255, and not by var_mean, which takes a CPU four times as long as these two passes.
    pixels.sub_(pixels.mean(dim=over, keepdim=True))
    deviation = pixels.square().sum(dim=over, keepdim=True).div_(count - 1).sqrt_()
    return pixels.div_(deviation.add_(255e-6)).flatten(2)


def pixel_loss_reference(
    prediction: torch.Tensor,
    frames: torch.Tensor,
    masked: torch.Tensor,
    tubelet: int,
    patch: int,
    normalization: Normalization,
    counted: torch.Tensor | None = None,
    loss_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch version of `pixel_loss`."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    with torch.no_grad():
        target = patch_targets(frames, masked, tubelet, patch, normalization, dtype)
    squares = (prediction.to(dtype) - target).square()
    if counted is None:
        clip_loss = squares.mean(dim=(1, 2))
    else:
        clip_loss = (squares.mean(dim=2) * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    loss = clip_loss.mean()
    return (loss if loss_scale == 1 else loss * loss_scale), clip_loss.detach()


def _counted_weights(counted: torch.Tensor, values: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, N_masked), what a squared error weighs in its clip's loss, where only the patches counted enter it."""
    return counted / (counted.sum(dim=1, keepdim=True).clamp(min=1) * values).to(dtype)


class _InPlacePixelLoss(torch.autograd.Function):
    """The reference's formulas for a CPU: one buffer is pixels, target, difference and gradient in turn."""

    @staticmethod
    def forward(ctx, prediction, frames, masked, tubelet, patch, normalization, counted, loss_scale):
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        difference = patch_targets(frames, masked, tubelet, patch, normalization, dtype)
        torch.sub(prediction, difference, out=difference)
        clips, per_clip, values = difference.shape
        weights = difference.new_full((clips, per_clip), 1 / (per_clip * values))
        if counted is not None:
            weights = _counted_weights(counted, values, dtype)
        clip_loss = (torch.linalg.vector_norm(difference, dim=2).square_() * weights).sum(dim=1)
        if ctx.needs_input_grad[0]:
            slope = difference.mul_((weights * (2 * loss_scale / clips))[..., None])
            ctx.save_for_backward(slope.to(prediction.dtype))
        ctx.mark_non_differentiable(clip_loss)
        return clip_loss.mean() * loss_scale, clip_loss

    @staticmethod
    def backward(ctx, *upstream):
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream[0]), None, None, None, None, None, None, None


@jit
def _standardize(pixels, chosen, count):
    """(x - mean) / (sqrt(variance) + 1e-6) of the chosen values, in units of 255: a pixel's own.

    The sum is exact, and so must the mean of a patch without variance be: `/` is a product with a rounded reciprocal on a GPU, and
    the epsilon below makes a thousandth of a unit of its error.
    """
    mean = tl.div_rn(tl.sum(tl.where(chosen, pixels, 0.0), axis=0), count * 1.0)
    centred = tl.where(chosen, pixels - mean, 0.0)
    variance = tl.div_rn(tl.sum(centred * centred, axis=0), count - 1.0)
    return centred * tl.div_rn(1.0, tl.sqrt_rn(variance) + 255e-6)


@jit
def _pixel_loss_kernel(
    prediction,
    frames,
    masked,
    weights,
    row_loss,
    gradient,
    uniform_weight,
    gradient_scale,
    per_clip,
    num_tokens,
    clip_stride,
    frame_stride,
    line_stride,
    cells,
    columns,
    T: tl.constexpr,
    P: tl.constexpr,
    NORMALIZATION: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    VALUES: tl.constexpr = T * P * P * 3
    row = tl.program_id(0)
    value = tl.arange(0, BLOCK)
    inside = value < VALUES
    token = tl.load(masked + row)
    valid = (token >= 0) & (token < num_tokens)
    start = patch_starts(row, token, per_clip, clip_stride, frame_stride, line_stride, cells, columns, T, P)
    place = start + value_offsets(value, frame_stride, line_stride, P)
    pixels = tl.load(frames + place, mask=value < tl.where(valid, VALUES, 0), other=0).to(tl.float32)
    if NORMALIZATION == "channel":
        channel = value % 3
        target = _standardize(pixels, inside & (channel == 0), VALUES // 3)
        target += _standardize(pixels, inside & (channel == 1), VALUES // 3)
        target += _standardize(pixels, inside & (channel == 2), VALUES // 3)
    elif NORMALIZATION == "patch":
        target = _standardize(pixels, inside, VALUES)
    else:
        target = tl.div_rn(pixels, 255.0)
    place = row.to(tl.int64) * VALUES + value
    difference = tl.load(prediction + place, mask=inside, other=0.0).to(tl.float32) - target
    difference = tl.where(inside, difference, 0.0)
    weight = tl.load(weights + row) if WEIGHTED else uniform_weight
    loss = tl.sum(difference * difference, axis=0) * weight
    tl.store(row_loss + row, tl.where(valid, loss, float("nan")))
    if WITH_GRADIENT:
        slope = difference * (2 * weight * gradient_scale)
        slope = tl.where(valid, slope, float("nan"))
        tl.store(gradient + place, slope.to(gradient.dtype.element_ty), mask=inside)


@jit
def _clip_loss_kernel(row_loss, clip_loss, per_clip, BLOCK: tl.constexpr):
    clip = tl.program_id(0)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, per_clip, BLOCK):
        row = first + tl.arange(0, BLOCK)
        total += tl.load(row_loss + clip.to(tl.int64) * per_clip + row, mask=row < per_clip, other=0.0)
    tl.store(clip_loss + clip, tl.sum(total, axis=0))


@jit
def _scale_kernel(values, scale, count, programs, BLOCK: tl.constexpr):
    factor = tl.load(scale).to(tl.float32)
    if factor != 1.0:
        for first in range(tl.program_id(0).to(tl.int64) * BLOCK, count, programs * BLOCK):
            place = first + tl.arange(0, BLOCK)
            value = tl.load(values + place, mask=place < count, other=0.0).to(tl.float32)
            tl.store(values + place, (value * factor).to(values.dtype.element_ty), mask=place < count)


@torch.library.custom_op("trocar::pixel_loss", mutates_args=())
def _pixel_loss(
    prediction: torch.Tensor,
    frames: torch.Tensor,
    masked: torch.Tensor,
    counted: torch.Tensor | None,
    tubelet: int,
    patch: int,
    normalization: str,
    loss_scale: float,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, loss of each clip, and the gradient of the loss (empty unless asked for)."""
    clips, per_clip, values = prediction.shape
    row_loss = prediction.new_empty(clips, per_clip, dtype=torch.float32)
    gradient = torch.empty_like(prediction) if with_gradient else prediction.new_empty(0)
    weights = row_loss if counted is None else _counted_weights(counted, values, torch.float32)
    _, num_frames, height, width, _ = frames.shape
    launch(
        _pixel_loss_kernel,
        (clips * per_clip,),
        *(prediction, frames, masked.contiguous(), weights, row_loss, gradient),
        *(1.0 / (per_clip * values), loss_scale / clips, per_clip),
        *(num_frames // tubelet * (height // patch) * (width // patch), *_geometry(frames, patch)),
        T=tubelet,
        P=patch,
        NORMALIZATION=normalization,
        WEIGHTED=counted is not None,
        WITH_GRADIENT=with_gradient,
        BLOCK=power_of_two(values),
        num_warps=4,
    )
    clip_loss = row_loss.new_empty(clips)
    launch(_clip_loss_kernel, (clips,), row_loss, clip_loss, per_clip, BLOCK=1024)
    loss = clip_loss.mean()
    return (loss if loss_scale == 1 else loss * loss_scale), clip_loss, gradient


@_pixel_loss.register_fake
def _(prediction, frames, masked, counted, tubelet, patch, normalization, loss_scale, with_gradient):
    clip_loss = prediction.new_empty(prediction.shape[0], dtype=torch.float32)
    gradient = torch.empty_like(prediction) if with_gradient else prediction.new_empty(0)
    return clip_loss.new_empty(()), clip_loss, gradient


@torch.library.custom_op("trocar::scale_", mutates_args=("values",))
def _scale(values: torch.Tensor, scale: torch.Tensor) -> None:
    """Multiplies in place by a scalar that lies on the device; reads and writes nothing else where that is 1."""
    programs = min(SCALE_PROGRAMS, ceil_div(values.numel(), SCALE_BLOCK))
    launch(_scale_kernel, (programs,), values, scale, values.numel(), programs, BLOCK=SCALE_BLOCK)


@_scale.register_fake
def _(values, scale):
    return None


def scale_gradient(gradient: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """A stored gradient times the upstream one, in place: differentiated once."""
    directly(_scale, gradient, upstream, changed=(gradient,))
    return gradient


def _setup_context(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # else zeros as large as the gradient are written as what comes from above for it
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(output[2])
    ctx.with_gradient = inputs[-1]


def _backward(ctx, upstream: torch.Tensor, clip_upstream: torch.Tensor, gradient_upstream: torch.Tensor):
    if not ctx.with_gradient:
        raise RuntimeError("pixel_loss was called without its gradient")
    (gradient,) = ctx.saved_tensors
    return scale_gradient(gradient, upstream), None, None, None, None, None, None, None, None


_differentiable_pixel_loss = differentiable(_pixel_loss, _backward, _setup_context)


@by_layout
def _check(
    prediction: torch.Tensor,
    frames: torch.Tensor,
    masked: torch.Tensor,
    counted: torch.Tensor | None,
    tubelet: int,
    patch: int,
    normalization: Normalization,
) -> int:
    """Raises as `pixel_loss` does for what does not depend on values. Returns the tokens of a clip."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}")
    if prediction.dtype == torch.float16:
        raise ValueError("prediction must be bfloat16, float32 or float64: the loss gradient underflows in float16")
    steps, rows, columns = require_frames(frames, tubelet, patch)
    require("masked", masked, dtypes=INDEX_DTYPES, shape=(len(frames), None), like=frames, contiguous=False)
    values = tubelet * patch * patch * 3
    require("prediction", prediction, dtypes=PREDICTION_DTYPES, shape=(*masked.shape, values), like=frames)
    if counted is not None:
        require("counted", counted, dtypes=(torch.bool,), shape=tuple(masked.shape), like=frames)
    return steps * rows * columns


def pixel_loss(
    prediction: torch.Tensor,
    frames: torch.Tensor,
    masked: torch.Tensor,
    tubelet: int,
    patch: int,
    normalization: Normalization,
    counted: torch.Tensor | None = None,
    loss_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reconstruction loss.

    prediction: (B, N_masked, P) bfloat16, float32 or float64. frames: (B, T, H, W, 3) uint8. masked: (B, N_masked) int32 or int64.
    counted: (B, N_masked) bool, the patches that enter the loss; all where None. loss_scale: factor of the loss and its gradient,
    for example 1 / the number of accumulated batches.
    Returns the scaled loss, a scalar, and the detached, unscaled loss of each clip, (B,); float32 at least. The gradient is
    computed with the loss, not at all under no_grad; it can be used once (no retain_graph). Raises ValueError on float16 (the
    gradient of the mean underflows there), on arguments of another dtype, shape, device or layout, on an unknown normalization and,
    on the CPU, on indices out of range (NaN on a device).
    """
    num_tokens = _check(prediction, frames, masked, counted, tubelet, patch, normalization)
    require_range("masked", masked, num_tokens)
    if not takes_triton(prediction):
        arguments = (prediction, frames, masked.long(), tubelet, patch, normalization, counted, loss_scale)
        loss, clip_loss = _InPlacePixelLoss.apply(*arguments)
        return loss, clip_loss.detach()
    with_gradient = torch.is_grad_enabled() and prediction.requires_grad
    loss, clip_loss, _ = _differentiable_pixel_loss(
        prediction, frames, masked, counted, tubelet, patch, normalization, loss_scale, with_gradient
    )
    return loss, clip_loss.detach()
