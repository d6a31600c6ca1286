"""Mean squared error against the pixels of the masked patches.

Targets of a patch, from pixels scaled to 0 .. 1:
    "channel"  (x - mean) / (sqrt(variance) + 1e-6), per channel of the patch, unbiased variance (VideoMAE, arXiv 2203.12602)
    "patch"    the same over all values of the patch (MAE, arXiv 2111.06377, without its epsilon under the root)
    "none"     x itself
The loss of a clip is the mean over its masked patches and their values; the loss of a batch is the mean over its clips.

Shapes: B clips, T frames, H W pixels, N_masked predicted tokens, P = t * p * p * 3 values a patch in the order (t, p, p, 3).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from .patch_embed import gather_patches

Normalization = Literal["channel", "patch", "none"]


def patch_targets(
    frames: torch.Tensor,
    indices: torch.Tensor,
    tubelet: int,
    patch: int,
    normalization: Normalization,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Targets of the patches at `indices`: (B, N_chosen, P) in `dtype`."""
    if normalization not in get_args(Normalization):
        raise ValueError(f"normalization must be one of {get_args(Normalization)}, got {normalization!r}")
    pixels = gather_patches(frames, indices, tubelet, patch).flatten(2, 4).to(dtype) / 255
    if normalization == "none":
        return pixels.flatten(2)
    over = -2 if normalization == "channel" else (-2, -1)
    variance, mean = torch.var_mean(pixels, dim=over, keepdim=True, correction=1)
    return ((pixels - mean) / (variance.sqrt() + 1e-6)).flatten(2)


def pixel_loss_reference(
    prediction: torch.Tensor,
    frames: torch.Tensor,
    masked: torch.Tensor,
    tubelet: int,
    patch: int,
    normalization: Normalization,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch version of `pixel_loss`."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    with torch.no_grad():
        target = patch_targets(frames, masked, tubelet, patch, normalization, dtype)
    clip_loss = (prediction.to(dtype) - target).square().mean(dim=(1, 2))
    return clip_loss.mean(), clip_loss.detach()


def pixel_loss(
    prediction: torch.Tensor,
    frames: torch.Tensor,
    masked: torch.Tensor,
    tubelet: int,
    patch: int,
    normalization: Normalization,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reconstruction loss.

    prediction: (B, N_masked, P) bfloat16, float32 or float64. frames: (B, T, H, W, 3) uint8. masked: (B, N_masked) int64.
    Returns the loss, a scalar, and the detached loss of each clip, (B,); float32 at least. Raises ValueError on float16 (the
    gradient of the mean, about 3e-8 an element, underflows there), on shapes that disagree and on an unknown normalization.
    """
    values = tubelet * patch * patch * frames.shape[-1]
    if prediction.dtype == torch.float16:
        raise ValueError("prediction must be bfloat16, float32 or float64: the loss gradient underflows in float16")
    if prediction.shape != (*masked.shape, values):
        raise ValueError(
            f"prediction must be {(*masked.shape, values)} for these masks and patches, got {tuple(prediction.shape)}"
        )
    return pixel_loss_reference(prediction, frames, masked, tubelet, patch, normalization)
