"""The objectives as they are built today, from Hugging Face's VideoMAE and V-JEPA 2.

They get what the usual input pipeline hands over, normalised float pixels, and masks that are ready: neither is charged to them,
while our step starts from uint8 and draws its masks. Layer norms get the published epsilon, 1e-6, without which outputs differ.

Shapes: B clips, T frames, R x R pixels, N tokens of the grid, n of them seen, D the encoder's width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..engine.weights import from_huggingface_videomae, from_huggingface_vjepa2
from ..ssl.encoder import IMAGENET_MEAN, IMAGENET_STD
from ..ssl.jepa import JointEmbedding
from ..ssl.mae import MaskedAutoencoder
from ..ssl.masks import Masks
from ..ssl.objective import Objective
from ..ssl.packing import BlockMasks, Packed
from ..ssl.predictor import Predictor

Attention = Literal["eager", "sdpa"]


class PeerError(Exception):
    """A peer that cannot stand in for an objective; the message says why."""


def normalized(frames: torch.Tensor) -> torch.Tensor:
    """(B, T, R, R, 3) uint8 to (B, T, 3, R, R) float32 by ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values, device=frames.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3).contiguous()


class HuggingFaceMAE(nn.Module):
    """VideoMAEForPreTraining of our model's shape."""

    def __init__(self, model: MaskedAutoencoder, attention: Attention) -> None:
        super().__init__()
        from transformers import VideoMAEConfig, VideoMAEForPreTraining

        encoder, decoder = model.encoder, model.decoder_blocks
        _require(model.normalization in ("channel", "none"), f"objective.targets={model.normalization}")
        width = model.mask_token.numel()
        config = VideoMAEConfig(
            image_size=encoder.grid[1] * encoder.patch,
            patch_size=encoder.patch,
            num_frames=encoder.grid[0] * encoder.tubelet,
            tubelet_size=encoder.tubelet,
            hidden_size=encoder.width,
            num_hidden_layers=len(encoder.blocks),
            num_attention_heads=_heads(encoder.blocks),
            intermediate_size=4 * encoder.width,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=len(decoder),
            decoder_num_attention_heads=_heads(decoder),
            decoder_intermediate_size=4 * width,
            use_mean_pooling=False,
            norm_pix_loss=model.normalization == "channel",
        )
        config._attn_implementation = attention
        self.model = VideoMAEForPreTraining(config)
        for module in self.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6

    def give_weights(self, model: MaskedAutoencoder) -> None:
        """Puts its weights into ours. Raises KeyError or ValueError where a tensor has no counterpart."""
        depth, decoder_depth = len(model.encoder.blocks), len(model.decoder_blocks)
        model.load_state_dict(from_huggingface_videomae(self.model.state_dict(), depth, decoder_depth))

    def prepare(self, masks: Masks) -> torch.Tensor:
        """(B, N) bool, true where masked."""
        clips, seen = masks.visible.shape
        tokens = seen + masks.masked.shape[1]
        hidden = torch.ones(clips, tokens, dtype=torch.bool, device=masks.visible.device)
        return hidden.scatter_(1, masks.visible, False)

    def forward(self, pixels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return self.model(pixels, bool_masked_pos=masks).loss

    def update_target(self, momentum: float) -> None:
        """There is none."""


class HuggingFaceJEPA(nn.Module):
    """V-JEPA 2's objective written with VJEPA2's blocks, as V-JEPA trains: a batch's clips are masked alike, kind by kind of mask,
    so that every pass is over (B, n) tokens. Its predictor skips the sort of its tokens, which attention does not ask for."""

    def __init__(self, model: JointEmbedding, attention: Attention) -> None:
        super().__init__()
        from transformers import VJEPA2Config, VJEPA2Model

        encoder, predictor = model.encoder, model.predictor
        _require(encoder.position_kind == "rope", f"model.positions={encoder.position_kind}")
        _require(isinstance(predictor, Predictor), "model.predictor_depth=0")
        _require(model.follows, "objective.teacher")
        _require(model.distance == "l1", f"objective.distance={model.distance}")
        assert isinstance(predictor, Predictor)
        config = VJEPA2Config(
            patch_size=encoder.patch,
            tubelet_size=encoder.tubelet,
            crop_size=encoder.grid[1] * encoder.patch,
            frames_per_clip=encoder.grid[0] * encoder.tubelet,
            hidden_size=encoder.width,
            num_attention_heads=_heads(encoder.blocks),
            num_hidden_layers=len(encoder.blocks),
            pred_hidden_size=predictor.width,
            pred_num_attention_heads=_heads(predictor.blocks),
            pred_num_hidden_layers=len(predictor.blocks),
            pred_num_mask_tokens=len(predictor.mask_tokens),
        )
        config._attn_implementation = attention
        self.model = VJEPA2Model(config)
        self.target = copy.deepcopy(self.model.encoder).requires_grad_(False)

    def give_weights(self, model: JointEmbedding) -> None:
        """Puts its weights into ours. Raises KeyError or ValueError where a tensor has no counterpart."""
        predictor = model.predictor
        assert isinstance(predictor, Predictor)
        depth, predictor_depth = len(model.encoder.blocks), len(predictor.blocks)
        renamed = from_huggingface_vjepa2(self.model.state_dict(), depth, predictor_depth)
        targets = {name: value for name, value in model.state_dict().items() if name.startswith("target_encoder.")}
        model.load_state_dict({**targets, **renamed})
        model.update_target(0.0)

    def prepare(self, masks: BlockMasks) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(seen, hidden) of every kind of mask, (B, n) each. Raises PeerError where clips are masked unequally."""
        sequences = zip(_sequences(masks.context), _sequences(masks.target), strict=True)
        pairs = list(sequences)
        kinds = [pairs[kind :: masks.per_clip] for kind in range(masks.per_clip)]
        for kind in kinds:
            _require(len({len(seen) for seen, _ in kind}) == 1, "masks of unequal length in a batch")
        return [tuple(torch.stack(part) for part in zip(*kind, strict=True)) for kind in kinds]  # pyright: ignore

    def forward(self, pixels: torch.Tensor, masks: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        with torch.no_grad():
            features = self.target(pixels).last_hidden_state
            features = F.layer_norm(features, features.shape[-1:])
        encoder = self.model.encoder
        embedded = encoder.embeddings(pixels)
        losses = []
        for kind, (seen, hidden) in enumerate(masks):
            context = embedded.gather(1, _wide(seen, embedded))
            for layer in encoder.layer:
                context = layer(context, seen)[0]
            predicted = self._predict(encoder.layernorm(context), seen, hidden, kind)
            losses.append((predicted - features.gather(1, _wide(hidden, features))).abs().mean())
        return torch.stack(losses).mean()

    def _predict(self, context: torch.Tensor, seen: torch.Tensor, hidden: torch.Tensor, kind: int) -> torch.Tensor:
        predictor = self.model.predictor
        tokens, places = predictor.embeddings(context, [seen], [hidden], mask_index=kind)
        for layer in predictor.layer:
            tokens = layer(tokens, places)[0]
        return predictor.proj(predictor.layernorm(tokens)[:, seen.shape[1] :])

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Moves the target encoder, all tensors in one call."""
        pair = (self.target, self.model.encoder)
        targets, sources = ([part.detach() for part in encoder.parameters()] for encoder in pair)
        torch._foreach_lerp_(targets, sources, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]


Peer = HuggingFaceMAE | HuggingFaceJEPA


def build_peer(model: Objective, attention: Attention) -> Peer:
    """The peer of an objective, on its device, with weights of its own. Raises PeerError where there is none."""
    kinds: dict[type[Objective], Callable[..., Peer]] = {
        MaskedAutoencoder: HuggingFaceMAE,
        JointEmbedding: HuggingFaceJEPA,
    }
    _require(type(model) in kinds, f"an objective of type {type(model).__name__}")
    try:
        peer = kinds[type(model)](model, attention)
    except ImportError as error:
        raise PeerError(f"transformers cannot be used: {error}") from error
    return peer.to(next(model.parameters()).device)


def _sequences(packed: Packed) -> list[torch.Tensor]:
    ends = packed.offsets.tolist()
    return [packed.tokens[start:stop] for start, stop in pairwise(ends[:-1])]  # the padding stands behind the last


def _wide(places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return places[..., None].expand(-1, -1, tokens.shape[-1])


def _heads(blocks: nn.ModuleList) -> int:
    return blocks[0].attn.num_heads  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise PeerError(f"Hugging Face's model has no {what}")
