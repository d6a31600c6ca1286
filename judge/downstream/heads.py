"""What is trained on top of an encoder: a linear layer, or V-JEPA's attentive probe, or V-JEPA 2's.

Shapes: B clips, L tokens, D width, H heads of E values, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from ...engine.config.error import ConfigError
from .protocol import HeadKind, Protocol

HEAD_WIDTH = 64
INIT_STD = 0.02


class MeanHead(nn.Module):
    """A linear layer on the mean of the tokens, which are shifted and scaled by what `standardize` was told. std: of its weights at
    the start."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int, classes: int, std: float = INIT_STD) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = nn.Linear(width, classes)
        _initialize(self.linear)
        self.linear.weight.data.mul_(std / INIT_STD)

    def standardize(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Mean and standard deviation of the training clips, each (D,)."""
        self.shift.copy_(mean)
        self.scale.copy_(1 / (deviation + 1e-6))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, K)"""
        return self.linear((tokens.mean(dim=1) - self.shift) * self.scale)


class AttentiveHead(nn.Module):
    """The probe of V-JEPA (Bardes et al., arXiv 2404.08471) and, with four blocks, of V-JEPA 2 (Assran et al., arXiv 2506.09985).

    blocks - 1 transformer blocks over the tokens, then a learned query attends to them: q = query + attention(query,
    norm1(tokens)); q = q + mlp(norm2(q)), without a projection behind the attention; then a layer. Initialised as their code is:
    truncated normal, the last layers of block i divided by sqrt(2 i), the last layer as PyTorch does. heads: one for each 64 values
    where None.
    """

    def __init__(self, width: int, classes: int, heads: int | None = None, blocks: int = 1) -> None:
        super().__init__()
        self.heads = heads or max(width // HEAD_WIDTH, 1)
        if width % self.heads:
            raise ConfigError(f"protocol.attention_heads: {self.heads} do not divide the width {width}; give a divisor")
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.blocks = nn.Sequential(
            *(Block(width, self.heads, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(blocks - 1))
        )
        self.apply(_initialize)
        nn.init.trunc_normal_(self.query, std=INIT_STD)
        self.linear = nn.Linear(width, classes)
        with torch.no_grad():
            for name, weight in self.blocks.named_parameters():
                if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                    weight.div_(math.sqrt(2 * (int(name.split(".")[0]) + 1)))
            self.fc2.weight.div_(math.sqrt(2 * max(blocks - 1, 1)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, K)"""
        tokens = self.norm1(self.blocks(tokens))
        parts = (self.q(self.query.expand(len(tokens), -1, -1)), self.k(tokens), self.v(tokens))
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(-2)
        found = self.query + mixed
        found = found + self.fc2(F.gelu(self.fc1(self.norm2(found))))
        return self.linear(found[:, 0])


def build_head(kind: HeadKind, width: int, classes: int, protocol: Protocol) -> nn.Module:
    """Initialised from PyTorch's generator."""
    if kind == "attentive":
        return AttentiveHead(width, classes, protocol.attention_heads, protocol.attentive_blocks)
    return MeanHead(width, classes, protocol.head_std)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)
