"""A transformer block over whole clips, chosen tokens, or packed sequences of unequal length.

Parameters, names and arithmetic are those of timm's block, so that weights travel between objectives.

Shapes: B clips, N tokens a clip, L tokens of all sequences together, S sequences, H heads, E values a head, D = H E.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block

from ..kernels.rope3d import rope3d

if TYPE_CHECKING:
    from timm.layers.attention import Attention  # older versions of timm keep it elsewhere

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before PyTorch 2.10
    varlen_attn = None


class Layout(NamedTuple):
    """What attends to what, and where tokens lie.

    indices: (B, N), or (L,) packed, int64: each token's place in the grid. grid: (T', H', W'). rotary: turn queries and keys by it.
    offsets: (S + 1,) int32, where packed sequences begin and the last ends, L; None where tokens are (B, N, D). longest: bound of a
    sequence's length, known to the host.
    """

    indices: torch.Tensor
    grid: tuple[int, int, int]
    rotary: bool
    offsets: torch.Tensor | None = None
    longest: int = 0


class VideoBlock(Block):
    """timm's block. Without a layout it is just that, for (B, N, D)."""

    attn: Attention

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: torch.Tensor, layout: Layout | None = None, first: int | None = None
    ) -> torch.Tensor:
        """tokens: (B, N, D), or (L, D) packed. Returns the same shape.

        first: of (B, N, D) without a layout, tokens from there on are all that is wanted: (B, N - first, D). The others give keys
        and values alone.
        """
        if layout is None and first is None and not _is_bfloat16_on_cpu(tokens):
            return super().forward(tokens)
        mixed = self._attend(self.norm1(tokens), layout, first)
        tokens = (tokens if first is None else tokens[:, first:]) + self.drop_path1(mixed)
        return tokens + self.drop_path2(self.mlp(self.norm2(tokens)))

    def _attend(self, tokens: torch.Tensor, layout: Layout | None, first: int | None) -> torch.Tensor:
        queries, keys, values = self.attn.qkv(tokens).unflatten(-1, (3, self.attn.num_heads, -1)).unbind(-3)
        if layout is not None and layout.rotary:
            queries, keys = rope3d(queries, keys, layout.indices, layout.grid)
        if layout is None or layout.offsets is None:
            queries = queries if first is None else queries[:, first:]
            queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
            mixed = attention(queries, keys, values).transpose(1, 2)
        else:
            mixed = packed_attention(queries, keys, values, layout.offsets, layout.longest)
        return self.attn.proj(mixed.flatten(-2))


def attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of (B, H, N, E) each, all to all.

    By SDPA, but on a CPU in bfloat16 and with gradients as products: there the backward pass of PyTorch's flash attention takes
    twice their time (docs/performance.md, "Training"), for N^2 scores that are kept.
    """
    if queries.requires_grad and _is_bfloat16_on_cpu(queries):
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
        return scores.softmax(dim=-1) @ values
    return F.scaled_dot_product_attention(queries, keys, values)


def _is_bfloat16_on_cpu(tokens: torch.Tensor) -> bool:
    if tokens.device.type != "cpu":
        return False
    return tokens.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def packed_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor, longest: int
) -> torch.Tensor:
    """Attention inside each packed sequence.

    queries, keys, values: (L, H, E). offsets: (S + 1,) int32. longest: bound of a sequence's length. Returns (L, H, E).
    On GPUs in half precision by `torch.nn.attention.varlen` (PyTorch 2.10 or later), else sequence by sequence, for which the host
    waits. SDPA on a jagged tensor is no way round: it pads where a sequence may be empty, and refuses what is not contiguous,
    as queries, keys and values of one product are not; on a CPU it was 6 to 10 times slower.
    """
    if varlen_attn is not None and queries.is_cuda and queries.dtype in (torch.float16, torch.bfloat16):
        queries, keys, values = (part.contiguous() for part in (queries, keys, values))
        mixed = varlen_attn(queries, keys, values, offsets, offsets, longest, longest)
        assert isinstance(mixed, torch.Tensor)
        return mixed
    return attention_by_sequence(queries, keys, values, offsets)


def attention_by_sequence(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """As `packed_attention`, one call a sequence; reads the lengths on the host."""
    lengths = offsets.diff().tolist()
    sequences = zip(*(part.split(lengths) for part in (queries, keys, values)), strict=True)
    mixed = [F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in parts)) for parts in sequences]
    return torch.cat([part.transpose(0, 1) for part in mixed])
