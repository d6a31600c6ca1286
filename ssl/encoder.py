"""The video vision transformer, computed on visible tokens only.

Shapes: B clips, T frames, H W pixels, N tokens of the grid (T/t, H/p, W/p), D width.
The blocks are timm's; names of parameters follow timm and the original VideoMAE, so that weights travel.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from ..kernels.patch_embed import patch_embed
from .attention import Layout, VideoBlock
from .choices import Positions
from .packing import Packed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LastNorm = Literal["tokens", "mean"]
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def position_table(kind: Positions, grid: tuple[int, int, int], width: int) -> torch.Tensor:
    """Positions of the tokens of a grid (T', H', W') that are added to them.

    "flat" counts the tokens through, as VideoMAE does: sines in the even columns, cosines in the odd ones (Vaswani et al. 2017,
    section 3.5). "axes" gives time, row and column a third of the width each, as V-JEPA 1 does (arXiv 2404.08471, uniform power).
    "rope" adds nothing: V-JEPA 2 turns queries and keys instead (`rope3d`).
    Returns (T' * H' * W', width) float32. Raises ValueError on another kind.
    """
    if kind == "flat":
        column = np.arange(width)
        angle = np.arange(math.prod(grid))[:, None] / np.power(10000.0, 2 * (column // 2) / width)
        table = np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
    elif kind == "axes":
        half = math.ceil(width / 6)
        frequency = np.power(10000.0, -np.arange(half) / half)
        angles = [place.reshape(-1, 1) * frequency for place in np.indices(grid)]
        table = np.concatenate([part for angle in angles for part in (np.sin(angle), np.cos(angle))], axis=1)[:, :width]
    elif kind == "rope":
        table = np.zeros((math.prod(grid), width))
    else:
        raise ValueError(f"positions must be one of {get_args(Positions)}, got {kind!r}")
    return torch.from_numpy(table.astype(np.float32))


def require_rotary_width(positions: Positions, head_width: int) -> None:
    if positions == "rope" and (head_width < 6 or head_width % 2):
        raise ValueError(f"rope needs heads of an even width of at least 6, got {head_width}")


def transformer_blocks(depth: int, width: int, heads: int, mlp_width: int | None = None) -> nn.ModuleList:
    """mlp_width: four times the width where None."""
    ratio = ((mlp_width or 4 * width) + 0.5) / width  # timm rounds their product down
    return nn.ModuleList(
        VideoBlock(width, heads, mlp_ratio=ratio, qkv_bias=True, norm_layer=LayerNorm)  # pyright: ignore[reportArgumentType]
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
    """A video ViT.

    frames, resolution: the clip's T and H = W; divisible by tubelet and patch (ValueError). Clips of another size change `grid` and
    the positions when they come. width must be divisible by heads. positions: see `position_table`. mlp_width: of the blocks' MLPs,
    four times the width where None. last_norm: of all "tokens"; or of their "mean" alone, as VideoMAE's fine-tuned models have it
    (their fc_norm), whose tokens leave the encoder without a norm.
    """

    positions: torch.Tensor

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        frames: int,
        resolution: int,
        tubelet: int = 2,
        patch: int = 16,
        positions: Positions = "flat",
        mlp_width: int | None = None,
        last_norm: LastNorm = "tokens",
    ) -> None:
        super().__init__()
        if not isinstance(resolution, int):
            raise ValueError(
                f"resolution must be one number of pixels, got {resolution!r}; clips of another height than width change the grid "
                "when they come"
            )
        if frames % tubelet or resolution % patch:
            raise ValueError(
                f"{frames} frames at {resolution} px are not divisible into {tubelet} x {patch} x {patch} patches"
            )
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        require_rotary_width(positions, width // heads)
        self.width, self.heads, self.tubelet, self.patch = width, heads, tubelet, patch
        self.mlp_width = mlp_width
        self.position_kind: Positions = positions
        self.last_norm: LastNorm = last_norm
        self.grid = (frames // tubelet, resolution // patch, resolution // patch)
        self.patch_embed = PatchEmbedding(width, tubelet, patch)
        self.register_buffer("positions", position_table(positions, self.grid, width), persistent=False)
        self.blocks = transformer_blocks(depth, width, heads, mlp_width)
        self.norm = LayerNorm(width)
        self.blocks.apply(initialize)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    def fit(self, frames: torch.Tensor) -> None:
        """Takes the grid of these frames, (B, T, H, W, 3), with its positions. Raises ValueError where they are not divisible."""
        _, num_frames, height, width, _ = frames.shape
        grid = (num_frames // self.tubelet, height // self.patch, width // self.patch)
        if grid == self.grid:
            return
        if num_frames % self.tubelet or height % self.patch or width % self.patch:
            patch = f"{self.tubelet} x {self.patch} x {self.patch}"
            raise ValueError(f"{num_frames} frames of {height} x {width} px are not divisible into {patch} patches")
        self.grid = grid
        self.positions = position_table(self.position_kind, grid, self.width).to(self.positions)

    def forward(
        self,
        frames: torch.Tensor,
        chosen: torch.Tensor | Packed | None = None,
        *,
        per_clip: int = 1,
        normalized: bool = True,
    ) -> torch.Tensor:
        """frames: (B, T, H, W, 3) uint8.

        chosen: all tokens where None; (B, N_visible) int64; or packed tokens of sequences, `per_clip` of them a clip, which attend
        inside their sequence alone. The frames are contiguous then: the clips are read in one pass, laid one after another in time.
        normalized: with the last layer norm, where it is one of all tokens. Returns (B, N_visible, D), or (L, D) packed.
        """
        self.fit(frames)
        rotary, layout = self.position_kind == "rope", None
        if isinstance(chosen, Packed):
            clips = (chosen.sequences // per_clip).clamp(max=len(frames) - 1)
            places = clips * self.num_tokens + chosen.tokens
            tokens = self.patch_embed(frames.flatten(0, 1)[None], places[None], self.positions)[0]
            layout = Layout(chosen.tokens, self.grid, rotary, chosen.offsets, chosen.longest)
        else:
            if chosen is None:
                chosen = torch.arange(self.num_tokens, device=frames.device).expand(len(frames), -1)
            tokens = self.patch_embed(frames, chosen, self.positions)
            layout = Layout(chosen, self.grid, rotary) if rotary else None
        for block in self.blocks:
            tokens = block(tokens, layout)
        return self.norm(tokens) if normalized and self.last_norm == "tokens" else tokens

    def pooled(self, frames: torch.Tensor) -> torch.Tensor:
        """frames: (B, T, H, W, 3) uint8. Returns (B, D) float32: the mean of all tokens, the last norm before or behind it."""
        mean = self(frames).float().mean(dim=1)
        return self.norm(mean).float() if self.last_norm == "mean" else mean
