"""Joint-embedding prediction for video: V-JEPA (arXiv 2404.08471), V-JEPA 2 (2506.09985), and a frozen teacher (SALT, 2509.24317).

The encoder sees what several masks leave of a clip; a predictor says what features a target encoder has at the hidden places. The
target encoder sees the whole clip and is a moving average of the encoder, or frozen. The distance is taken to its layer-normalised
features. No mask is cut: sequences of unequal length are packed.

Shapes: B clips, M masks a clip, N tokens of the grid, D the encoder's width, L packed tokens of all masks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..kernels.choices import Distance
from ..kernels.ema import ema
from ..kernels.feature_loss import feature_loss
from .encoder import PatchEmbedding, VideoEncoder
from .objective import Objective, ObjectiveOutput
from .packing import BlockMasks
from .predictor import MeanOfContext, Predictor

INITIAL_STD = 0.02


class JointEmbedding(Objective):
    """Encoder, predictor, target encoder and feature loss. Its prediction is (L, D), the hidden tokens of all masks and padding.

    predictor: its out_width is the target's width. teacher: a frozen target encoder, of any size that has the encoder's patches; it
    is no part of the state dict. Where None, the target is a copy of the encoder that `update_target` moves. Weights start as
    V-JEPA's do.
    """

    target_encoder: VideoEncoder

    def __init__(
        self,
        encoder: VideoEncoder,
        predictor: Predictor | MeanOfContext,
        *,
        distance: Distance = "l1",
        teacher: VideoEncoder | None = None,
    ) -> None:
        super().__init__()
        if teacher is not None and (teacher.tubelet, teacher.patch) != (encoder.tubelet, encoder.patch):
            raise ValueError(
                f"the teacher's patches are {teacher.tubelet} x {teacher.patch} x {teacher.patch}, the encoder's "
                f"{encoder.tubelet} x {encoder.patch} x {encoder.patch}: their tokens do not correspond"
            )
        self.encoder, self.predictor = encoder, predictor
        self.distance: Distance = distance
        rescaled = encoder.position_kind == "rope"
        initialize(encoder, rescaled)
        initialize(predictor, rescaled)
        self.follows = teacher is None
        target = copy.deepcopy(encoder) if teacher is None else teacher
        target.requires_grad_(False)
        if self.follows:
            self.target_encoder = target
        else:
            # Not a submodule: a teacher is named by its path and not saved again.
            object.__setattr__(self, "target_encoder", target)

    def _apply(self, fn, recurse=True):
        if not self.follows:
            self.target_encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, frames: torch.Tensor, masks: BlockMasks, loss_scale: float = 1.0) -> ObjectiveOutput:
        context = self.encoder(frames, masks.context, per_clip=masks.per_clip)
        prediction = self.predictor(context, masks, self.encoder.grid)
        with torch.no_grad():
            tokens = self.target_encoder(frames, normalized=False)
            features = self.target_encoder.norm(tokens)
            self._observe(tokens, masks)
        rows, tokens = prediction, masks.target.tokens
        offsets = masks.target.offsets[:-1]  # what follows the last sequence is padding
        if masks.counted is not None:
            # Not prediction[rows], whose backward pass sorts: these are a permutation.
            rows = prediction.index_select(0, masks.counted.rows)
            tokens, offsets = masks.counted.tokens, masks.counted.offsets
        loss, sequence_loss = feature_loss(rows, features, tokens, self.distance, offsets, loss_scale)
        return ObjectiveOutput(loss, sequence_loss.unflatten(0, (-1, masks.per_clip)).mean(dim=1), prediction)

    @torch.no_grad()
    def update_target(self, momentum: float | torch.Tensor, skip: torch.Tensor | None = None) -> None:
        if not self.follows:
            return
        pairs = zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True)
        # The parameters themselves, which are the same tensors in every step: `ema` looks at them once.
        local = [tuple(_local(part) for part in pair) for pair in pairs]
        targets, sources = zip(*(pair for pair in local if pair[0].numel()), strict=True)  # a rank's shard may be empty
        held = momentum
        if not isinstance(held, torch.Tensor):
            held = torch.full((), held, dtype=torch.float32, device=targets[0].device)
        if skip is not None:
            held = torch.where(skip != 0, torch.ones_like(held), held)
        ema(targets, sources, held)

    def frozen_models(self) -> Iterable[nn.Module]:
        return () if self.follows else (self.target_encoder,)

    def signals(self) -> dict[str, torch.Tensor]:
        """feature_std: deviation over the batch's clips of the target's mean-pooled features before its last norm, the mean over
        their width (from two clips on). padding_percent: of the packed tokens."""
        return {name: value for name, value in self.observed.items() if name != "pooled"}

    def _observe(self, tokens: torch.Tensor, masks: BlockMasks) -> None:
        pooled = tokens.mean(dim=1, dtype=torch.float32)
        context, target = masks.context, masks.target
        padding = (context.padding() + target.padding()) / (len(context.tokens) + len(target.tokens))
        self.observed = {"pooled": pooled, "padding_percent": 100.0 * padding}
        if len(tokens) > 1:
            self.observed["feature_std"] = pooled.std(dim=0).mean()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def initialize(module: nn.Module, rescaled: bool) -> None:
    """Truncated normal weights of deviation 0.02 and zero biases, as V-JEPA starts.

    rescaled: divides the last linear layers of block i by sqrt(2 i), as V-JEPA 2 does; V-JEPA 1's code does so too, and then draws
    the weights again.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, PatchEmbedding)):
            nn.init.trunc_normal_(part.weight, std=INITIAL_STD)
            nn.init.zeros_(part.bias)
    if rescaled:
        for number, block in enumerate(getattr(module, "blocks", ()), start=1):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.data.div_(math.sqrt(2.0 * number))
