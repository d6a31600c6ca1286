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

from ...engine.weights.objectives import from_huggingface_videomae, from_huggingface_vjepa2
from ...ssl.encoder import IMAGENET_MEAN, IMAGENET_STD
from ...ssl.jepa import JointEmbedding
from ...ssl.mae import MaskedAutoencoder
from ...ssl.masks import Masks
from ...ssl.objective import Objective
from ...ssl.packing import BlockMasks, Packed
from ...ssl.predictor import Predictor

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

    def prepare(self, masks: Masks) -> tuple[torch.Tensor, Masks | None]:
        """(B, N) bool, true where the encoder does not see; and the masks where a decoder mask drops tokens."""
        tokens = self.model.videomae.embeddings.num_patches
        hidden = torch.ones(len(masks.visible), tokens, dtype=torch.bool, device=masks.visible.device)
        return hidden.scatter_(1, masks.visible, False), None if masks.counted is None else masks

    def forward(self, pixels: torch.Tensor, masks: tuple[torch.Tensor, Masks | None]) -> torch.Tensor:
        hidden, dropping = masks
        if dropping is None:
            return self.model(pixels, bool_masked_pos=hidden).loss
        return self._decoder_masked(pixels, hidden, dropping)

    def _decoder_masked(self, pixels: torch.Tensor, hidden: torch.Tensor, masks: Masks) -> torch.Tensor:
        """VideoMAE V2's loss: the decoder gets what the encoder saw and the kept tokens alone, and is judged on those not seen."""
        assert masks.counted is not None
        seen = self.model.encoder_to_decoder(self.model.videomae(pixels, bool_masked_pos=hidden).last_hidden_state)
        table = self.model.position_embeddings.to(seen).expand(len(seen), -1, -1)
        asked = self.model.mask_token + table.gather(1, _wide(masks.masked, table))
        tokens = torch.cat([seen + table.gather(1, _wide(masks.visible, table)), asked], dim=1)
        predicted = self.model.decoder(tokens, masks.masked.shape[1]).logits
        with torch.no_grad():
            labels = self._labels(pixels).gather(1, _wide(masks.masked, predicted))
        errors = (predicted.float() - labels).square().mean(dim=2)
        return ((errors * masks.counted).sum(dim=1) / masks.counted.sum(dim=1).clamp(min=1)).mean()

    def _labels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Of all tokens, (B, N, P), as VideoMAEForPreTraining makes them: unnormalised, cut in patches, standardised by channel."""
        config = self.model.config
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        cut = (pixels * std + mean).unflatten(1, (-1, config.tubelet_size))
        cut = cut.unflatten(5, (-1, config.patch_size)).unflatten(4, (-1, config.patch_size))
        # (B, T', t, 3, H', p, W', p)
        values = cut.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4, 6).flatten(1, 3)
        if config.norm_pix_loss:
            variance, mean = torch.var_mean(values, dim=2, keepdim=True, correction=1)
            values = (values - mean) / (variance.sqrt() + 1e-6)
        return values.flatten(2)

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
            features = F.layer_norm(features.float(), features.shape[-1:])  # a CPU's autocast leaves it in bfloat16
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
