"""Model FLOPs of a training step: the products that its objective asks for, whoever computes them and however.

    block of n tokens, width D     24 n D^2 (query, key, value, projection; an MLP four times as wide) + 4 n^2 D (attention)
    linear layer, n tokens         2 n D_in D_out
    patch embedding                2 n K D
    last decoder block             without 18 n D^2 + 4 n N D of the visible tokens, whose outputs nothing reads
    backward                       twice the forward; once for the patch embedding, as pixels take no gradient; none for a target

n counts what the objective looks at: the encoder's visible tokens, the decoder's tokens (the whole grid unless a decoder mask drops
some), the predictor's whole grid unless masks are cut, the tokens that the head predicts. Padding counts nothing, and neither do
norms, softmax, activations, losses and the optimizer (below 1 % of the products of ViT-B), nor what is computed twice (activation
checkpoints, attention's scores in the backward pass of flash attention).

Shapes: B clips, M masks a clip, N tokens of the grid, K values a patch, D the encoder's width, d the decoder's or predictor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...ssl.encoder import VideoEncoder
from ...ssl.jepa import JointEmbedding
from ...ssl.mae import MaskedAutoencoder
from ...ssl.masks import Masks
from ...ssl.objective import Objective
from ...ssl.packing import BlockMasks, Packed
from ...ssl.predictor import Predictor


@dataclass(frozen=True)
class StepFlops:
    """Of one batch. visible_tokens: those that the encoder sees with a gradient, padding left out."""

    forward: int
    backward: int
    visible_tokens: int

    @property
    def total(self) -> int:
        return self.forward + self.backward


def step_flops(model: Objective, masks: Masks | BlockMasks) -> StepFlops:
    """Forward and backward of one batch under these masks. Raises TypeError on an objective it does not know."""
    if isinstance(model, MaskedAutoencoder) and isinstance(masks, Masks):
        return _mae(model, masks)
    if isinstance(model, JointEmbedding) and isinstance(masks, BlockMasks):
        return _jepa(model, masks)
    raise TypeError(f"no formula for {type(model).__name__} with {type(masks).__name__}")


def _mae(model: MaskedAutoencoder, masks: Masks) -> StepFlops:
    (clips, visible), masked = masks.visible.shape, masks.masked.shape[1]
    encoder, narrow = model.encoder, model.mask_token.numel()
    seen, rows = [visible] * clips, [visible + masked] * clips
    patches = _patches(encoder, sum(seen))
    rest = _blocks(encoder.blocks, seen, encoder.width) + _linear(sum(seen), encoder.width, narrow)
    rest -= sum(18 * visible * narrow**2 + 4 * visible * length * narrow for length in rows)
    rest += _blocks(model.decoder_blocks, rows, narrow) + _linear(clips * masked, narrow, _values(encoder))
    return StepFlops(patches + rest, patches + 2 * rest, sum(seen))


def _jepa(model: JointEmbedding, masks: BlockMasks) -> StepFlops:
    encoder, target, predictor = model.encoder, model.target_encoder, model.predictor
    seen, hidden = _lengths(masks.context), _lengths(masks.target)
    patches = _patches(encoder, sum(seen))
    rest = _blocks(encoder.blocks, seen, encoder.width)
    if isinstance(predictor, Predictor):
        rest += _linear(sum(seen), encoder.width, predictor.width)
        rest += _blocks(predictor.blocks, [n + m for n, m in zip(seen, hidden, strict=True)], predictor.width)
        rest += _linear(sum(hidden), predictor.width, predictor.proj.out_features)
    everything = [encoder.num_tokens] * (len(seen) // masks.per_clip)
    fixed = _patches(target, sum(everything)) + _blocks(target.blocks, everything, target.width)
    return StepFlops(patches + rest + fixed, patches + 2 * rest, sum(seen))


def _blocks(blocks: nn.ModuleList, lengths: Sequence[int], width: int) -> int:
    return len(blocks) * sum(24 * length * width**2 + 4 * length**2 * width for length in lengths)


def _linear(tokens: int, wide: int, narrow: int) -> int:
    return 2 * tokens * wide * narrow


def _patches(encoder: VideoEncoder, tokens: int) -> int:
    return _linear(tokens, _values(encoder), encoder.width)


def _values(encoder: VideoEncoder) -> int:
    return encoder.tubelet * encoder.patch**2 * 3


def _lengths(packed: Packed) -> list[int]:
    """Of the sequences, without the padding behind them."""
    return packed.offsets.diff()[:-1].tolist()
