"""Temporal heads: vectors of a whole video to classes at every moment.

| kind | online | offline |
|---|---|---|
| linear | looks at one moment | the same |
| tcn | TeCNO: causal dilated convolutions in stages (arXiv 2003.10751) | MS-TCN: the same to both sides (arXiv 1903.01945) |
| transformer | each layer attends to the last `memory` moments | to all of them |

Nothing is normalised over time: that would show an online head what comes after.

Shapes: T moments, D values a vector, W width of the head, K classes, M memory, H attention heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .choices import HeadChoices

ROTARY_BASE = 10_000.0
SMOOTHING_LIMIT = 4.0  # MS-TCN's tau


class TemporalHead(nn.Module):
    """(T, D) vectors -> (S, T, K) logits, one for each stage, the last of which counts.

    mean, deviation: (D,) of the training vectors, taken off inside.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, choices: HeadChoices, values: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("deviation", torch.ones(values))
        causal = choices.mode == "online"
        if choices.kind == "linear":
            self.body: nn.Module = LinearHead(values, classes)
        elif choices.kind == "tcn":
            self.body = StagedConvolutions(choices, values, classes, causal)
        else:
            self.body = MemoryTransformer(choices, values, classes, causal)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.body((vectors.float() - self.mean) / self.deviation)


class LinearHead(nn.Module):
    def __init__(self, values: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(values, classes)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(T, D) -> (1, T, K)"""
        return self.layer(vectors)[None]


class DilatedLayer(nn.Module):
    """A residual layer of MS-TCN: a convolution of three moments at a distance of `dilation`, the last ones of them if causal."""

    def __init__(self, width: int, dilation: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.padding = (2 * dilation, 0) if causal else (dilation, dilation)
        self.spread = nn.Conv1d(width, width, 3, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, W, T) -> (1, W, T)"""
        return x + self.dropout(self.mix(F.relu(self.spread(F.pad(x, self.padding)))))


class StagedConvolutions(nn.Module):
    """Stages of dilated layers; each behind the first one sees the probabilities of the one before."""

    def __init__(self, choices: HeadChoices, values: int, classes: int, causal: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in range(choices.stages):
            layers = [DilatedLayer(choices.width, 2**n, choices.dropout, causal) for n in range(choices.layers)]
            first = nn.Conv1d(classes if stage else values, choices.width, 1)
            self.stages.append(nn.Sequential(first, *layers, nn.Conv1d(choices.width, classes, 1)))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(T, D) -> (S, T, K)"""
        x, found = vectors.T[None], []
        for stage in self.stages:
            logits = stage(x)
            found.append(logits[0].T)
            x = logits.softmax(dim=1)
        return torch.stack(found)


class MemoryTransformer(nn.Module):
    """Layers of attention with rotary positions, so that distances in time count and places do not."""

    def __init__(self, choices: HeadChoices, values: int, classes: int, causal: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(values, choices.width)
        self.layers = nn.ModuleList(AttentionLayer(choices, causal) for _ in range(choices.layers))
        self.leave = nn.Sequential(nn.LayerNorm(choices.width), nn.Linear(choices.width, classes))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(T, D) -> (1, T, K)"""
        x = self.enter(vectors)
        for layer in self.layers:
            x = layer(x)
        return self.leave(x)[None]


class AttentionLayer(nn.Module):
    def __init__(self, choices: HeadChoices, causal: bool) -> None:
        super().__init__()
        width, self.heads = choices.width, choices.attention_heads
        self.memory = choices.memory if causal else None
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(choices.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(T, W) -> (T, W)"""
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        q, k = rotated(q), rotated(k)
        if self.memory is None:
            found = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        else:
            found = banded_attention(q, k, v, self.memory)
        x = x + self.dropout(self.out(found.transpose(0, 1).flatten(1)))
        return x + self.dropout(self.mlp(self.between(x)))


def rotated(x: torch.Tensor) -> torch.Tensor:
    """(H, T, d) with its pairs of values turned by angles that grow with the moment (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    rates = ROTARY_BASE ** -(torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    first, second = x.chunk(2, dim=-1)
    sine, cosine = angles.sin(), angles.cos()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


def banded_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: int) -> torch.Tensor:
    """(H, T, d): moment t attends to t - M + 1 .. t. In blocks of M, so that time and memory grow with T M, not with T T."""
    moments = q.shape[1]
    if moments <= memory:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    blocks = -(-moments // memory)
    q, k, v = (F.pad(x, (0, 0, 0, blocks * memory - moments)).unflatten(1, (blocks, memory)) for x in (q, k, v))
    # Of each block its own moments and those of the one before.
    k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1], x], dim=2) for x in (k, v))
    asks, keys = torch.arange(memory, 2 * memory, device=q.device), torch.arange(2 * memory, device=q.device)
    seen = (keys <= asks[:, None]) & (keys > asks[:, None] - memory)
    first = seen & (keys >= memory)
    mask = seen.expand(blocks, -1, -1).clone()
    mask[0] = first
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1, 2)[:, :moments]


def head_loss(
    logits: torch.Tensor, truth: torch.Tensor, known: torch.Tensor, weights: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """logits: (S, T, K). truth: (T,) class numbers, or (T, K) 0 or 1. known: (T,) where a label is. weights: (K,) of the classes,
    or of their positive labels.

    Cross-entropy of the moments with a label, of each stage, and MS-TCN's error of neighbours: their log probabilities' squared
    difference, cut at SMOOTHING_LIMIT squared. Of several labels the binary cross-entropy alone.
    """
    if truth.ndim == 2:
        wanted = truth[known].expand(len(logits), -1, -1)
        return F.binary_cross_entropy_with_logits(logits[:, known], wanted, pos_weight=weights)
    total = logits.new_zeros(())
    for stage in logits:
        total = total + F.cross_entropy(stage[known], truth[known], weights)
        if smoothing and len(stage) > 1:
            logs = stage.log_softmax(dim=-1)
            steps = (logs[1:] - logs[:-1].detach()).square().clamp(max=SMOOTHING_LIMIT**2)
            total = total + smoothing * steps.mean()
    return total


@torch.no_grad()
def leak(head: nn.Module, vectors: torch.Tensor, moments: int = 3) -> float:
    """By how much the largest logit up to a moment changes when all vectors behind it do; 0 of a head that is online.

    vectors: (T, D), T of 2 or more. moments: at how many, spread over the video, this is looked at.
    """
    head.eval()
    as_it_is, worst = head(vectors), 0.0
    for number in range(moments):
        last = min(len(vectors) * (number + 1) // (moments + 1), len(vectors) - 2)
        changed = vectors.clone()
        changed[last + 1 :] = changed[last + 1 :].flip(0) * -3 + 1
        worst = max(worst, float((head(changed) - as_it_is)[:, : last + 1].abs().max()))
    return worst
