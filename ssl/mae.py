"""Masked autoencoder for video, equal to VideoMAE (Tong et al., arXiv 2203.12602).

The encoder sees the visible tokens; a narrow decoder predicts the pixels of the masked ones.

Shapes: B clips, T frames, N = N_visible + N_masked tokens, P = t * p * p * 3 values a patch.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..kernels.choices import Normalization
from ..kernels.decoder_tokens import decoder_tokens
from ..kernels.pixel_loss import pixel_loss
from .encoder import LayerNorm, VideoEncoder, initialize, position_table, transformer_blocks
from .masks import Masks
from .objective import Objective, ObjectiveOutput


class MaskedAutoencoder(Objective):
    """Encoder, decoder and pixel loss. Its prediction is (B, N_masked, P).

    normalization: what `pixel_loss` does to its targets: "channel" is VideoMAE's, "none" predicts the pixels themselves.
    starts_as_videomae: patch embedding, encoder_to_decoder and mask token too, see `start_as_videomae`.
    """

    decoder_positions: torch.Tensor

    def __init__(
        self,
        encoder: VideoEncoder,
        *,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        normalization: Normalization = "channel",
        starts_as_videomae: bool = False,
    ) -> None:
        super().__init__()
        if decoder_width % decoder_heads:
            raise ValueError(f"decoder width {decoder_width} is not divisible by {decoder_heads} heads")
        self.encoder = encoder
        self.normalization: Normalization = normalization
        self.encoder_to_decoder = nn.Linear(encoder.width, decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(decoder_width))
        positions = position_table(encoder.position_kind, encoder.grid, decoder_width)
        self.decoder_grid = encoder.grid
        self.register_buffer("decoder_positions", positions, persistent=False)
        self.decoder_blocks = transformer_blocks(decoder_depth, decoder_width, decoder_heads)
        self.decoder_norm = LayerNorm(decoder_width)
        self.decoder_head = nn.Linear(decoder_width, encoder.tubelet * encoder.patch**2 * 3)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for part in (self.encoder_to_decoder, self.decoder_blocks, self.decoder_head):
            part.apply(initialize)
        if starts_as_videomae:
            start_as_videomae(self)

    def decode(self, visible_tokens: torch.Tensor, masks: Masks) -> torch.Tensor:
        """visible_tokens: (B, N_visible, D). Returns the prediction at the masked places, (B, N_masked, P)."""
        if self.decoder_grid != self.encoder.grid:
            self.decoder_grid = self.encoder.grid
            table = position_table(self.encoder.position_kind, self.encoder.grid, self.decoder_positions.shape[1])
            self.decoder_positions = table.to(self.decoder_positions)
        projected = self.encoder_to_decoder(visible_tokens)
        tokens = decoder_tokens(projected, self.mask_token, self.decoder_positions, masks.visible, masks.masked)
        # The last block computes the masked tokens alone, as the head reads no others. None, not 0, for the rest: torch.compile
        # would take a number that changes from block to block for a dynamic shape.
        first = masks.visible.shape[1]
        for number, block in enumerate(self.decoder_blocks, start=1):
            tokens = block(tokens, first=first if number == len(self.decoder_blocks) else None)
        return self.decoder_head(self.decoder_norm(tokens[:, -masks.masked.shape[1] :]))

    def forward(self, frames: torch.Tensor, masks: Masks, loss_scale: float = 1.0) -> ObjectiveOutput:
        """frames: (B, T, H, W, 3) uint8. loss_scale: factor of the loss, for example 1 / the number of accumulated batches."""
        prediction = self.decode(self.encoder(frames, masks.visible), masks)
        loss, clip_loss = pixel_loss(
            prediction,
            frames,
            masks.masked,
            self.encoder.tubelet,
            self.encoder.patch,
            self.normalization,
            masks.counted,
            loss_scale,
        )
        return ObjectiveOutput(loss, clip_loss, prediction)


@torch.no_grad()
def start_as_videomae(model: MaskedAutoencoder) -> None:
    """Draws again what VideoMAE's code does not reach with its Xavier initialisation (MCG-NJU/VideoMAE, modeling_pretrain.py).

    Patch embedding, with its bias, and encoder_to_decoder are PyTorch's default, uniform within 1 / sqrt(inputs); the mask token is
    a normal of deviation 0.02 cut at one deviation.
    """
    embedding = model.encoder.patch_embed
    for weights, inputs in (
        (embedding.weight, embedding.weight[0].numel()),
        (embedding.bias, embedding.weight[0].numel()),
        (model.encoder_to_decoder.weight, model.encoder.width),
    ):
        nn.init.uniform_(weights, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
    nn.init.trunc_normal_(model.mask_token, std=0.02, a=-0.02, b=0.02)
