"""Distance between predicted features and the layer-normalised features of a target encoder.

    target[b, m] = (f - mean(f)) / sqrt(variance(f) + eps),  f = features[b, indices[b, m]]   (no affine; biased variance)
    "l1"         |prediction - target|                      (V-JEPA, arXiv 2404.08471, and V-JEPA 2, arXiv 2506.09985)
    "smooth_l1"  0.5 d**2 where |d| < 1, |d| - 0.5 elsewhere
    "l2"         (prediction - target)**2
    "half_l2"    0.5 (prediction - target)**2               (V-JEPA's code with loss_exp 2)

The loss of a clip is the mean over its rows and their values; the loss of a batch is the mean over its clips. Multi-block masks
hide another number of tokens in each clip, so the rows may come packed: clip b owns rows offsets[b] .. offsets[b + 1] - 1; what
follows the last offset is padding, without loss or gradient. With several masks a clip, the rows part into S sequences, a multiple
of B, of which S / B in a row belong to one clip; then the loss is the mean over sequences.

The kernel gathers, normalises and compares a row in registers and writes its gradient in the same pass.

Shapes: B clips, N tokens a clip, M predicted rows a clip (or L rows of all clips), D width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

from .choices import DISTANCES, Distance
from .launch import (
    INDEX_DTYPES,
    TRITON_DTYPES,
    by_layout,
    differentiable,
    has_values,
    is_watched,
    jit,
    launch,
    power_of_two,
    require,
    require_range,
    takes_triton,
    tl,
)
from .pixel_loss import scale_gradient

PREDICTION_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def row_clips(offsets: torch.Tensor, rows: int) -> torch.Tensor:
    """(L,): the clip of each packed row; B for padding."""
    numbers = torch.arange(rows, device=offsets.device)
    return torch.searchsorted(offsets[1:].long().contiguous(), numbers, right=True)


def feature_loss_reference(
    prediction: torch.Tensor,
    features: torch.Tensor,
    indices: torch.Tensor,
    distance: Distance,
    offsets: torch.Tensor | None = None,
    loss_scale: float = 1.0,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch version of `feature_loss`."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    if offsets is None:
        offsets = torch.arange(len(features) + 1, device=indices.device) * indices.shape[1]
    clips = len(offsets) - 1
    per_clip = clips // len(features)
    prediction, indices = prediction.reshape(-1, prediction.shape[-1]).to(dtype), indices.flatten().long()
    clip = row_clips(offsets, len(indices))
    inside = clip < clips
    chosen = features[clip.where(inside, 0) // per_clip, indices.where(inside, 0)].detach().to(dtype)
    difference = prediction - F.layer_norm(chosen, chosen.shape[-1:], eps=eps)
    if distance == "l1":
        losses = difference.abs()
    elif distance == "smooth_l1":
        losses = F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")
    else:
        losses = difference.square() * (0.5 if distance == "half_l2" else 1.0)
    counts = offsets.diff().clamp(min=1)
    rows = losses.mean(dim=1)[inside]
    clip_loss = rows.new_zeros(clips).index_add(0, clip[inside], rows) / counts
    return clip_loss.mean() * loss_scale, clip_loss.detach()


@jit
def _feature_loss_kernel(
    prediction,
    features,
    indices,
    offsets,
    row_loss,
    gradient,
    gradient_scale,
    eps,
    num_clips,
    per_clip,
    num_tokens,
    width,
    CLIPS: tl.constexpr,
    DISTANCE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    token = tl.load(indices + row)
    number = tl.arange(0, CLIPS)
    ends = tl.load(offsets + 1 + number, mask=number < num_clips, other=0x7FFFFFFF)
    clip = tl.sum((ends <= row).to(tl.int32), axis=0)  # as many end before the row; all for padding
    counted = clip < num_clips
    valid = (token >= 0) & (token < num_tokens)
    values = tl.full((), 0.0, tl.float32) + width
    begin = tl.load(offsets + clip, mask=counted, other=0)
    end = tl.load(offsets + clip + 1, mask=counted, other=1)
    weight = tl.div_rn(1.0, (end - begin).to(tl.float32) * values)
    place = (tl.where(counted, clip // per_clip, 0).to(tl.int64) * num_tokens + token) * width + column
    feature = tl.load(features + place, mask=column < tl.where(counted & valid, width, 0), other=0.0).to(tl.float32)
    centred = tl.where(inside, feature - tl.div_rn(tl.sum(feature, axis=0), values), 0.0)
    variance = tl.div_rn(tl.sum(centred * centred, axis=0), values)
    target = centred * tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    place = row * width + column
    difference = tl.load(prediction + place, mask=inside, other=0.0).to(tl.float32) - target
    difference = tl.where(inside, difference, 0.0)
    size = tl.abs(difference)
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    if DISTANCE == "l1":
        loss, slope = size, sign
    elif DISTANCE == "smooth_l1":
        loss = tl.where(size < 1.0, 0.5 * size * size, size - 0.5)
        slope = tl.where(size < 1.0, difference, sign)
    elif DISTANCE == "half_l2":
        loss, slope = 0.5 * size * size, difference
    else:
        loss, slope = size * size, 2.0 * difference
    total = tl.where(valid, tl.sum(loss, axis=0) * weight, float("nan"))
    tl.store(row_loss + row, tl.where(counted, total, 0.0))
    if WITH_GRADIENT:
        slope = tl.where(valid, slope * (weight * gradient_scale), float("nan"))
        tl.store(gradient + place, tl.where(counted, slope, 0.0).to(gradient.dtype.element_ty), mask=inside)


@jit
def _clip_sums_kernel(row_loss, offsets, clip_loss, BLOCK: tl.constexpr):
    clip = tl.program_id(0)
    start, end = tl.load(offsets + clip), tl.load(offsets + clip + 1)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(start, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        total += tl.load(row_loss + row, mask=row < end, other=0.0)
    tl.store(clip_loss + clip, tl.sum(total, axis=0))


@torch.library.custom_op("trocar::feature_loss", mutates_args=())
def _feature_loss(
    prediction: torch.Tensor,
    features: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor,
    distance: str,
    loss_scale: float,
    eps: float,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """prediction: (L, D). indices: (L,). Loss, loss of each clip, and the gradient of the loss (empty unless asked for)."""
    rows, width = prediction.shape
    num_clips, num_tokens = len(offsets) - 1, features.shape[1]
    per_clip = num_clips // len(features)
    row_loss = prediction.new_empty(rows, dtype=torch.float32)
    gradient = torch.empty_like(prediction) if with_gradient else prediction.new_empty(0)
    launch(
        _feature_loss_kernel,
        (rows,),
        *(prediction, features, indices, offsets, row_loss, gradient),
        *(loss_scale / num_clips, eps, num_clips, per_clip, num_tokens, width),
        CLIPS=power_of_two(num_clips),
        DISTANCE=distance,
        WITH_GRADIENT=with_gradient,
        BLOCK=power_of_two(width),
        num_warps=4,
    )
    clip_loss = row_loss.new_empty(num_clips)
    launch(_clip_sums_kernel, (num_clips,), row_loss, offsets, clip_loss, BLOCK=1024)
    loss = clip_loss.mean()
    return (loss if loss_scale == 1 else loss * loss_scale), clip_loss, gradient


@_feature_loss.register_fake
def _(prediction, features, indices, offsets, distance, loss_scale, eps, with_gradient):
    clip_loss = prediction.new_empty(offsets.shape[0] - 1, dtype=torch.float32)
    gradient = torch.empty_like(prediction) if with_gradient else prediction.new_empty(0)
    return clip_loss.new_empty(()), clip_loss, gradient


def _setup_context(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(output[2])


def _backward(ctx, upstream: torch.Tensor, clip_upstream: torch.Tensor, gradient_upstream: torch.Tensor):
    (gradient,) = ctx.saved_tensors
    return scale_gradient(gradient, upstream), None, None, None, None, None, None, None


_differentiable_feature_loss = differentiable(_feature_loss, _backward, _setup_context)


@by_layout
def _check(
    prediction: torch.Tensor,
    features: torch.Tensor,
    indices: torch.Tensor,
    distance: Distance,
    offsets: torch.Tensor | None,
) -> None:
    """Raises as `feature_loss` does for what does not depend on values."""
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
    wanted = (*TRITON_DTYPES, torch.float64)
    require("features", features, dtypes=wanted, shape=(None, None, None), like=features)
    clips, _, width = features.shape
    of_rows = (clips, None) if offsets is None else (None,)
    require("prediction", prediction, dtypes=PREDICTION_DTYPES, shape=(*of_rows, width), like=features)
    shape = tuple(prediction.shape[:-1])
    require("indices", indices, dtypes=INDEX_DTYPES, shape=shape, like=features, contiguous=False)
    if offsets is not None:
        require("offsets", offsets, dtypes=INDEX_DTYPES, shape=(None,), like=features)
        if len(offsets) == 1 or (len(offsets) - 1) % clips:
            raise ValueError(f"offsets must be one more than a multiple of the {clips} clips, got {len(offsets)}")


@lru_cache(maxsize=16)
def _even_offsets(clips: int, rows: int, device: torch.device) -> torch.Tensor:
    return torch.arange(clips + 1, device=device) * rows


def feature_loss(
    prediction: torch.Tensor,
    features: torch.Tensor,
    indices: torch.Tensor,
    distance: Distance = "l1",
    offsets: torch.Tensor | None = None,
    loss_scale: float = 1.0,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of predicted features. No gradient reaches `features`.

    prediction: (B, M, D), or (L, D) packed; bfloat16, float32 or float64. features: (B, N, D), all tokens of the target encoder.
    indices: (B, M) or (L,), int32 or int64 in 0 .. N - 1, the token of each row in its clip. offsets: (B + 1,), or (S + 1,) for S
    sequences, int32 or int64, where each one's packed rows begin and the last ends; not with (B, M, D). loss_scale: factor of the
    loss and its gradient. Returns the scaled loss, a scalar, and the detached, unscaled loss of each clip, (B,), or sequence, (S,),
    0 for one without rows; float32 at least. The gradient is computed with the loss, not at all under no_grad; it can be used once
    (no retain_graph). Raises ValueError on float16 (the gradient of the mean underflows there), on arguments of another dtype,
    shape, device or layout, on an unknown distance and, on the CPU, on indices or offsets out of range (NaN on a device).
    """
    _check(prediction, features, indices, distance, offsets)
    clips, num_tokens, width = features.shape
    require_range("indices", indices, num_tokens)
    if offsets is not None:
        on_host = offsets.device.type == "cpu" and has_values(offsets)
        if on_host and not (offsets[0] == 0 and (offsets.diff() >= 0).all() and offsets[-1] <= len(prediction)):
            raise ValueError(f"offsets must ascend from 0 to at most {len(prediction)} rows, got {offsets.tolist()}")
    # The reference's shapes follow from the values of packed offsets; where there are none, the operator says what it returns.
    is_traced = offsets is not None and isinstance(prediction, FakeTensor)
    if not takes_triton(prediction, features) and not is_traced:
        return feature_loss_reference(prediction, features, indices, distance, offsets, loss_scale, eps)
    with_gradient = torch.is_grad_enabled() and prediction.requires_grad
    if offsets is None:
        offsets = (_even_offsets.__wrapped__ if is_watched() else _even_offsets)(
            clips, indices.shape[1], features.device
        )
    flat = prediction.reshape(-1, width), features.detach(), indices.flatten()
    loss, clip_loss, _ = _differentiable_feature_loss(*flat, offsets, distance, loss_scale, eps, with_gradient)
    return loss, clip_loss.detach()
