"""V-JEPA's predictor: a narrow transformer that fills in the features of hidden tokens from those that are seen.

Context and hidden tokens of a mask are together all tokens of the grid, so every sequence is as long as every other: the predictor
needs no packing inside. Only what goes in (the context) and what comes out (the hidden tokens) is packed. Masks that were cut leave
tokens out, which the predictor must not see either: those that are kept are packed then.

Shapes: B clips, M masks a clip, S = B M sequences, N tokens of the grid, D the encoder's width, d the predictor's, L packed tokens.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .attention import Layout
from .choices import Positions
from .encoder import LayerNorm, position_table, require_rotary_width, transformer_blocks
from .packing import BlockMasks, Packed


class Predictor(nn.Module):
    """width: d. out_width: of the target encoder's features. mask_tokens: learned tokens, mask m of a clip takes token m, modulo
    their number. positions: as the encoder's. Raises ValueError where width and heads do not fit."""

    positions: torch.Tensor

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        *,
        grid: tuple[int, int, int],
        positions: Positions,
        mask_tokens: int = 2,
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"predictor width {width} is not divisible by {heads} heads")
        require_rotary_width(positions, width // heads)
        self.width, self.grid = width, grid
        self.position_kind: Positions = positions
        self.embed = nn.Linear(encoder_width, width)
        self.mask_tokens = nn.Parameter(torch.zeros(mask_tokens, width))
        self.register_buffer("positions", position_table(positions, grid, width), persistent=False)
        self.blocks = transformer_blocks(depth, width, heads)
        self.norm = LayerNorm(width)
        self.proj = nn.Linear(width, out_width or encoder_width)

    def fit(self, grid: tuple[int, int, int]) -> None:
        if grid != self.grid:
            self.grid = grid
            self.positions = position_table(self.position_kind, grid, self.width).to(self.positions)

    def forward(self, context: torch.Tensor, masks: BlockMasks, grid: tuple[int, int, int]) -> torch.Tensor:
        """context: (L_context, D), the encoder's output for masks.context. Returns (L_target, D), padding included."""
        self.fit(grid)
        num_sequences, num_tokens = masks.context.num_sequences, math.prod(grid)
        seen = self.embed(context)
        seen = seen + self.positions.to(seen.dtype)[masks.context.tokens]
        kinds = self.mask_tokens[torch.arange(masks.per_clip, device=seen.device) % len(self.mask_tokens)]
        hidden = (kinds[:, None] + self.positions.to(kinds.dtype)).to(seen.dtype)
        tokens = hidden.expand(num_sequences // masks.per_clip, -1, -1, -1).reshape(-1, self.width)
        # One more row takes the padding, whose sequence is numbered after the last.
        rows = torch.cat([tokens, tokens[:1]]).index_copy(0, _rows(masks.context, num_tokens), seen)
        rotary, layout = self.position_kind == "rope", None
        wanted = _rows(masks.target, num_tokens)
        if masks.kept is not None:
            places = _rows(masks.kept, num_tokens)
            layout = Layout(masks.kept.tokens, grid, rotary, masks.kept.offsets, masks.kept.longest)
            tokens, wanted = rows[places], torch.searchsorted(places, wanted)  # in order, padding last
        else:
            tokens = rows[:-1].unflatten(0, (num_sequences, num_tokens))
            if rotary:
                everything = torch.arange(num_tokens, device=seen.device).expand(num_sequences, -1)
                layout = Layout(everything, grid, rotary=True)
        for block in self.blocks:
            tokens = block(tokens, layout)
        tokens = tokens.reshape(-1, self.width)
        predicted = tokens[wanted.clamp(max=len(tokens) - 1)]
        return self.proj(self.norm(predicted))


class MeanOfContext(nn.Module):
    """No predictor: every hidden token is predicted to be the mean of what its sequence shows. With a target that follows at once
    nothing keeps features from becoming all the same; it is here so that the signals of collapse can be seen to work."""

    def forward(self, context: torch.Tensor, masks: BlockMasks, grid: tuple[int, int, int]) -> torch.Tensor:
        sums = context.new_zeros(masks.context.num_sequences + 1, context.shape[1])
        sums = sums.index_add(0, masks.context.sequences, context)
        means = sums / masks.context.offsets.diff().clamp(min=1)[:, None]
        return means[masks.target.sequences]


def _rows(chosen: Packed, num_tokens: int) -> torch.Tensor:
    """Where packed tokens stand in (S N + 1, d); the last row is the padding's."""
    return chosen.sequences * num_tokens + chosen.tokens
