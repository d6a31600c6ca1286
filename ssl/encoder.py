"""The video vision transformer, computed on visible tokens only.

Shapes: B clips, T frames, H W pixels, N tokens of the grid (T/t, H/p, W/p), D width.
The blocks are timm's; names of parameters follow timm and the original VideoMAE, so that weights travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import nn

from ..kernels.patch_embed import patch_embed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class Size:
    """One named transformer: encoder width, depth and heads, and VideoMAE's decoder for it."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


SIZES = {
    "tiny": Size(192, 12, 3, 96, 3),
    "small": Size(384, 12, 6, 192, 3),
    "base": Size(768, 12, 12, 384, 6),
    "large": Size(1024, 24, 16, 512, 8),
    "huge": Size(1280, 32, 16, 640, 8),
}


def sine_cosine_positions(num_tokens: int, width: int) -> torch.Tensor:
    """VideoMAE's fixed position table over the flattened grid (Vaswani et al. 2017, section 3.5).

    Returns (num_tokens, width) float32: sines in the even columns, cosines in the odd ones.
    """
    column = np.arange(width)
    angle = np.arange(num_tokens)[:, None] / np.power(10000.0, 2 * (column // 2) / width)
    return torch.from_numpy(np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32))


def transformer_blocks(depth: int, width: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(
        Block(width, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=LayerNorm)  # pyright: ignore[reportArgumentType]
        for _ in range(depth)
    )


def initialize(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero biases, as VideoMAE and MAE start; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PatchEmbedding(nn.Module):
    """The parameters of `patch_embed`: weight (D, 3, t, p, p), Conv3d's layout, and bias (D,)."""

    def __init__(self, width: int, tubelet: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, tubelet, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight.view(width, -1))

    def forward(self, frames: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return patch_embed(frames, visible, self.weight, self.bias, positions, IMAGENET_MEAN, IMAGENET_STD)


class VideoEncoder(nn.Module):
    """A video ViT with fixed sine-cosine positions.

    frames, resolution: the clip's T and H = W; divisible by tubelet and patch (ValueError). width must be divisible by heads.
    """

    positions: torch.Tensor

    def __init__(
        self, width: int, depth: int, heads: int, *, frames: int, resolution: int, tubelet: int = 2, patch: int = 16
    ) -> None:
        super().__init__()
        if frames % tubelet or resolution % patch:
            raise ValueError(
                f"{frames} frames at {resolution} px are not divisible into {tubelet} x {patch} x {patch} patches"
            )
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.width, self.tubelet, self.patch = width, tubelet, patch
        self.grid = (frames // tubelet, resolution // patch, resolution // patch)
        self.num_tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.patch_embed = PatchEmbedding(width, tubelet, patch)
        self.register_buffer("positions", sine_cosine_positions(self.num_tokens, width), persistent=False)
        self.blocks = transformer_blocks(depth, width, heads)
        self.norm = LayerNorm(width)
        self.blocks.apply(initialize)

    def forward(self, frames: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """frames: (B, T, H, W, 3) uint8. visible: (B, N_visible) int64, all tokens where None. Returns (B, N_visible, D)."""
        if visible is None:
            visible = torch.arange(self.num_tokens, device=frames.device).expand(len(frames), -1)
        tokens = self.patch_embed(frames, visible, self.positions)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
