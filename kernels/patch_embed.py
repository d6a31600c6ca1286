"""Patch embedding of the visible patches alone, straight from uint8 frames.

    tokens[b, n] = W . ((x[b, patch visible[b, n]] / 255 - mean) / std) + bias + positions[visible[b, n]]

Every public video trainer embeds all patches and drops 90 % of them afterwards; here the gather comes first.

Shapes: B clips, T frames, H W pixels, C = 3 channels; a patch is t x p x p pixels; grid T' = T/t, H' = H/p, W' = W/p;
N = T' H' W' tokens in that order, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gather_patches(frames: torch.Tensor, indices: torch.Tensor, tubelet: int, patch: int) -> torch.Tensor:
    """The patches at `indices`, still uint8.

    frames: (B, T, H, W, C). indices: (B, N_chosen) int64 in 0 .. N - 1. Returns (B, N_chosen, t, p, p, C).
    Raises ValueError where the frames are not divisible into patches.
    """
    batch, num_frames, height, width, _ = frames.shape
    if num_frames % tubelet or height % patch or width % patch:
        raise ValueError(
            f"frames of {num_frames} x {height} x {width} are not divisible into patches of {tubelet} x {patch} x {patch}"
        )
    rows, columns = height // patch, width // patch
    cells = (
        frames.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).unflatten(1, (num_frames // tubelet, tubelet))
    )
    clip = torch.arange(batch, device=frames.device)[:, None]
    step, cell = indices // (rows * columns), indices % (rows * columns)
    return cells[clip, step, :, cell // columns, :, cell % columns]


def patch_embed_reference(
    frames: torch.Tensor,
    visible: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> torch.Tensor:
    """PyTorch version of `patch_embed`."""
    tubelet, patch = weight.shape[2], weight.shape[3]
    pixels = gather_patches(frames, visible, tubelet, patch).to(weight.dtype) / 255
    normalized = (pixels - weight.new_tensor(mean)) / weight.new_tensor(std)
    kernel = weight.permute(0, 2, 3, 4, 1).flatten(1)
    return F.linear(normalized.flatten(2), kernel, bias) + positions.to(weight.dtype)[visible]


def patch_embed(
    frames: torch.Tensor,
    visible: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> torch.Tensor:
    """Embeds the visible patches.

    frames: (B, T, H, W, 3) uint8. visible: (B, N_visible) int64 in 0 .. N - 1. weight: (D, 3, t, p, p), Conv3d's layout.
    bias: (D,). positions: (N, D). mean, std: per channel, in units of pixels / 255.
    Returns (B, N_visible, D). Gradients reach weight, bias and positions. Raises ValueError on frames that are not uint8 or not
    divisible into patches.
    """
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8, got {frames.dtype}")
    return patch_embed_reference(frames, visible, weight, bias, positions, mean, std)
