"""What turns clips into vectors: a run's encoder, an image model of timm, or the descriptor without weights.

Shapes: B clips, T frames, R x R pixels, D values a clip.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ...ssl.encoder import IMAGENET_MEAN, IMAGENET_STD
from ..config.error import ConfigError
from ..inputs.folders import DESCRIPTOR, TIMM, embedder_source
from ..weights.files import read_weights
from ..weights.run_encoder import load_run_encoder, weights_digest
from .descriptor import RESOLUTION, WIDTH, describe_clips

Model = TypeVar("Model", bound=nn.Module)

IMAGES_PER_CLIP = 4


@dataclass(frozen=True)
class Embedder:
    """embed: (B, T, R, R, 3) uint8 on its device -> (B, D) float32. digest: of the weights. frames, stride, sample_fps,
    resolution: what it wants clips to be. squeeze: the whole picture squeezed to a square, else the largest centred square."""

    name: str
    digest: str
    width: int
    frames: int
    stride: int | None
    sample_fps: float | None
    resolution: int
    squeeze: bool
    embed: Callable[[torch.Tensor], torch.Tensor]


def load_embedder(name: str, device: torch.device, *, frames: int = 16, stride: int = 4) -> Embedder:
    """The embedder `name`.

    name: "descriptor"; "timm:MODEL" for an image model with its published weights, or "timm:MODEL@FILE" with those of a local
    file; else a run's folder or one of its checkpoints, which bring their own frames and stride. frames, stride: for the others.
    Raises ConfigError, CheckpointError, or WeightsError where a file does not hold weights.
    """
    if name == DESCRIPTOR:
        return Embedder(name, "2", WIDTH, frames, stride, None, RESOLUTION, True, describe_clips)
    if name.startswith(TIMM):
        return _image_embedder(name, device, frames, stride)
    return _run_embedder(embedder_source(name), device)


def _run_embedder(name: str, device: torch.device) -> Embedder:
    encoder, config = load_run_encoder(Path(name))
    width, data = encoder.width, config.data
    encoder = frozen(encoder, device)

    def embed(frames: torch.Tensor) -> torch.Tensor:
        with half_precision(device):
            return encoder.pooled(frames)

    path = str(Path(name).resolve())
    return Embedder(
        path,
        weights_digest(encoder),
        width,
        data.frames,
        data.stride,
        data.sample_fps,
        data.resolution,
        False,
        embed,
    )


def _image_embedder(name: str, device: torch.device, frames: int, stride: int) -> Embedder:
    _, _, file = name.partition("@")
    if file:
        read_weights(Path(file))  # what timm makes of a broken file is one of many errors
    found = image_model(name, pretrained=not file, checkpoint_path=file)
    mean, deviation = found.mean.to(device), found.deviation.to(device)
    model = frozen(found.model, device)

    def embed(clips: torch.Tensor) -> torch.Tensor:
        shown = torch.linspace(0, clips.shape[1] - 1, min(IMAGES_PER_CLIP, clips.shape[1])).round().long()
        images = clips[:, shown].permute(0, 1, 4, 2, 3).float() / 255
        with half_precision(device):
            features = model((images.flatten(0, 1) - mean) / deviation)
        return features.float().unflatten(0, images.shape[:2]).mean(dim=1)

    return Embedder(name, weights_digest(model), found.width, frames, stride, None, found.resolution, False, embed)


@dataclass(frozen=True)
class ImageModel:
    """A model of timm without its classifier, D = width. mean, deviation: of the pictures that it takes, (3, 1, 1), of values in
    0 .. 1. resolution: their side, pixels."""

    model: Any
    width: int
    mean: torch.Tensor
    deviation: torch.Tensor
    resolution: int


def image_model(name: str, **options: Any) -> ImageModel:
    """name: "timm:MODEL" or "timm:MODEL@FILE", whose file is not read here. options: of timm's `create_model`. Raises ConfigError
    where there is no such model."""
    import timm
    from timm.data.config import resolve_model_data_config

    try:
        model = timm.create_model(name.removeprefix(TIMM).partition("@")[0], num_classes=0, **options)
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: cannot be made ({error}); name a model that timm.list_models() lists, or its weights as timm:MODEL@FILE"
        ) from error
    wanted = resolve_model_data_config(model)
    mean, deviation = (
        torch.tensor(wanted.get(key, default)).view(3, 1, 1)
        for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    width: Any = model.num_features
    return ImageModel(model, int(width), mean, deviation, int(wanted["input_size"][-1]))


def half_precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 for matrix products on a GPU, whose units are made for it; the CPU stays at float32."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def frozen(model: Model, device: torch.device) -> Model:
    return model.requires_grad_(False).eval().to(device)
