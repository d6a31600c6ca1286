"""What is judged: an encoder of videos, or one of images whose tokens are averaged over a clip's frames.

| `load_backbone("...")` | is |
|---|---|
| RUN or RUN/checkpoints/step_... | what `trocar pretrain` has trained (of a JEPA the target encoder) |
| FILE.safetensors | what `trocar convert` or `trocar export` wrote |
| FILE, or a folder with model.safetensors | published weights, converted on the way; refused where too little matches |
| timm:MODEL, timm:MODEL@FILE | an image model of timm with its published weights, or those of a file; it sees no motion |
| random:ANY OF THESE | the same without its weights: what they are worth |
| random:base | a video ViT of that size, also tiny, small, large, huge |

Shapes: B clips, T frames, R x R pixels, N tokens, D width.
"""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...engine.config.error import ConfigError
from ...engine.curate.embedders import ImageModel, image_model
from ...engine.inputs.folders import MINIMUM, RANDOM, TIMM
from ...engine.weights.encoder_sources import FRAMES, RESOLUTION, STRIDE, ClipShape, find_encoder
from ...engine.weights.files import WeightsError, read_weights
from ...engine.weights.run_encoder import weights_digest
from ...ssl.choices import SIZES, Kind, Positions
from ...ssl.encoder import VideoEncoder, initialize
from .protocol import Protocol


@dataclass(frozen=True)
class Backbone:
    """model: (B, T, R, R, 3) uint8 -> (B, N, D). name: as it was asked for. digest: of the weights. depth: of its blocks, which are
    named blocks.0 on. family: whose objective or layout it is of. account: what matched, in words. options: what else
    `load_backbone` was told, but for clips."""

    name: str
    model: VideoEncoder | FrameAverage
    family: Kind
    width: int
    depth: int
    clips: ClipShape
    digest: str
    account: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def copy(self) -> VideoEncoder | FrameAverage:
        """The model as loaded, for training that must not touch what others use."""
        return copy.deepcopy(self.model)


class FrameAverage(nn.Module):
    """An image model over clips: the tokens of every frame, averaged over the frames. Their order makes no difference."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, found: ImageModel) -> None:
        super().__init__()
        self.image_model, self.width = found.model, found.width
        self.register_buffer("mean", found.mean, persistent=False)
        self.register_buffer("deviation", found.deviation, persistent=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, R, R, 3) uint8 -> (B, N, D); N is 1 for models without tokens."""
        images = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        tokens = self.image_model.forward_features((images - self.mean) / self.deviation)  # pyright: ignore[reportCallIssue]
        if tokens.ndim == 4:
            # Convolutions give (B T, D, h, w), Swin and its like (B T, h, w, D), and timm says so.
            is_last = getattr(self.image_model, "output_fmt", "NCHW") == "NHWC"
            tokens = tokens.flatten(1, 2) if is_last else tokens.flatten(2).mT
        return tokens.unflatten(0, frames.shape[:2]).mean(dim=1)

    def pooled(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, R, R, 3) uint8 -> (B, D) float32"""
        return self(frames).float().mean(dim=1)


def load_backbone(
    name: str,
    *,
    frames: int | None = None,
    resolution: int | None = None,
    stride: int | None = None,
    sample_fps: float | None = None,
    kind: Kind | None = None,
    positions: Positions | None = None,
    part: str | None = None,
    minimum: float = MINIMUM,
    seed: int = 0,
) -> Backbone:
    """The encoder that `name` means, on the CPU, in evaluation mode.

    frames, resolution, stride or sample_fps: of clips, where the weights' own are not wanted. kind, positions: of published weights
    of videos that do not tell, part: where in their file the encoder stands, see `trocar convert`. minimum: share of the tensors
    that has to match. seed: of random weights. Raises ConfigError where there is no such encoder, WeightsError or CheckpointError
    where its weights cannot be used.
    """
    if stride and sample_fps:
        raise ConfigError(f"stride={stride} and sample_fps={sample_fps} exclude each other; give one of them")
    is_random = name.startswith(RANDOM)
    source = name.removeprefix(RANDOM)
    if source.startswith(TIMM):
        if kind not in (None, "image") or positions or part:
            raise ConfigError(f"{name}: models of timm need no kind, no positions and no part; leave them out")
        found = _image_backbone(source, frames, resolution, minimum, is_random)
    else:
        told: dict[str, Any] = {"kind": kind, "positions": positions, "part": part, "minimum": minimum}
        found = _video_backbone(source, frames, resolution, is_random, told)
    model, clips, family, account = found
    tubelet, patch = _patch_size(model)
    if clips.frames % tubelet or clips.resolution % patch:
        raise ConfigError(
            f"{name}: {clips.frames} frames at {clips.resolution} px are not divisible into its patches of {tubelet} x {patch} x "
            f"{patch}; give --frames that are a multiple of {tubelet}, and a --resolution that is one of {patch}"
        )
    if stride or sample_fps:
        clips = replace(clips, stride=stride, sample_fps=sample_fps)
    if is_random:
        _forget(model, seed)
        account = f"{type(model).__name__}: random weights"
    model.requires_grad_(False).eval()
    depth = len(getattr(model.image_model if isinstance(model, FrameAverage) else model, "blocks", ()))
    options = {"kind": kind, "positions": positions, "part": part, "minimum": minimum, "seed": seed}
    return Backbone(name, model, family, model.width, depth, clips, weights_digest(model), account, options)


def pooled_as(backbone: Backbone, protocol: Protocol) -> Backbone:
    """The backbone with its last norm where the protocol wants it: see `Protocol.pooling`.

    VideoMAE's fine-tuning drops the norm of its pretraining and puts a fresh one behind the mean of the tokens (its fc_norm); so
    does SurgRec, which freezes it. A file of a fine-tuned model brings its own.
    """
    model = backbone.model
    pooling = (
        ("mean" if backbone.family == "videomae" else "tokens") if protocol.pooling == "family" else protocol.pooling
    )
    if "attentive" in protocol.heads or not isinstance(model, VideoEncoder) or model.last_norm == pooling:
        return backbone
    if pooling == "tokens":
        raise ConfigError(
            f"protocol.pooling: {backbone.name} was fine-tuned with its last norm behind the mean; give pooling=mean or family"
        )
    model = copy.deepcopy(model)
    model.last_norm = "mean"
    model.norm.reset_parameters()
    account = f"{backbone.account}; a fresh norm behind the mean of the tokens"
    return replace(backbone, model=model, digest=f"{backbone.digest}, fresh norm of the mean", account=account)


def _patch_size(model: nn.Module) -> tuple[int, int]:
    """Frames and pixels that the clips' have to be multiples of; 1 for models that take any."""
    if isinstance(model, VideoEncoder):
        return model.tubelet, model.patch
    embedding = getattr(getattr(model, "image_model", None), "patch_embed", None)
    sides = getattr(embedding, "patch_size", None)
    return 1, int(sides[0]) if isinstance(sides, tuple) else 1


def _video_backbone(
    source: str, frames: int | None, resolution: int | None, is_random: bool, told: dict[str, Any]
) -> tuple[VideoEncoder, ClipShape, Kind, str]:
    if is_random and source in SIZES:
        size, shape = SIZES[source], ClipShape(frames or FRAMES, STRIDE, None, resolution or RESOLUTION)
        encoder = VideoEncoder(size.width, size.depth, size.heads, frames=FRAMES, resolution=RESOLUTION)
        return encoder, shape, "videomae", ""
    found = find_encoder(Path(source), frames=frames, resolution=resolution, **told)
    return found.encoder, found.clips, found.family, found.account


def _image_backbone(
    source: str, frames: int | None, resolution: int | None, minimum: float, is_random: bool
) -> tuple[FrameAverage, ClipShape, Kind, str]:
    architecture, _, file = source.removeprefix(TIMM).partition("@")
    is_published = not file and not is_random
    size = {"img_size": resolution} if resolution else {}
    try:
        found = image_model(source, pretrained=is_published, **size)
    except TypeError:  # of convolutions, which take any size
        found = image_model(source, pretrained=is_published)
    account = f"{architecture}: timm's published weights"
    if file and not is_random:
        account = _put_image_weights(found.model, architecture, Path(file), minimum)
    shape = ClipShape(frames or FRAMES, STRIDE, None, resolution or found.resolution)
    return FrameAverage(found), shape, "image", account


def _put_image_weights(model: nn.Module, architecture: str, path: Path, minimum: float) -> str:
    """Puts the weights of a file into a timm model, renamed and resized by timm's own rules. Raises WeightsError."""
    state = read_weights(path)
    rules = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    try:
        renamed = dict(rules(dict(state), model)) if rules else state
    except (KeyError, RuntimeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path}: not weights of timm's {architecture} ({error!r})") from error
    wanted = model.state_dict()
    kept = {name: value for name, value in renamed.items() if name in wanted and value.shape == wanted[name].shape}
    missing = [f"missing: {name}" for name in wanted if name not in kept]
    stray = [f"stray:   {name}" for name in renamed if name not in kept and re.match(r"blocks\.", name)]
    # timm's DINOv3 models without "qkvb" leave these out before anything is counted.
    stray += [f"stray:   {name}" for name in _lost_biases(state, wanted)]
    share = len(kept) / (len(wanted) + len(stray))
    account = f"{architecture}: {len(kept)} of {len(wanted)} tensors matched ({share:.1%})"
    if share < minimum:
        raise WeightsError(
            "\n  ".join([f"{path}: {account}, {minimum:.1%} are asked for; name another model", *missing, *stray])
        )
    model.load_state_dict(kept, strict=False)
    return account


def _lost_biases(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """The biases of queries, keys and values that the file has, the model has not, and that are not zero."""
    pattern = r"\.(qkv\.bias|[qv]_bias)$"
    if any(re.search(pattern, name) for name in wanted):
        return []
    return [name for name, value in state.items() if re.search(pattern, name) and value.any()]


def _forget(model: nn.Module, seed: int) -> None:
    """Draws all weights again, as a training would begin; norms and biases as they begin too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        model.apply(initialize)
        for name, parameter in model.named_parameters():
            if name.endswith("patch_embed.weight"):
                nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
            elif name.endswith("patch_embed.bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("cls_token", "reg_token", "pos_embed")):
                nn.init.trunc_normal_(parameter, std=0.02)
