"""The encoder that a run has trained, read from its newest checkpoint without building the rest of the objective.

Of a JEPA it is the target encoder, an average over steps, which V-JEPA evaluates. Where there is none (MAE, a frozen teacher) it
is the encoder itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ...loaders.corpus.whole_file import check_readable
from ...ssl.choices import SIZES
from ...ssl.encoder import VideoEncoder
from ..checkpoint.checkpoint import load_checkpoint
from ..config.file import CONFIG_FILE, load_config, parse_config
from ..config.settings import Config
from ..inputs.checkpoints import CheckpointError
from ..inputs.folders import run_folder, run_with_checkpoint


def build_encoder(config: Config) -> VideoEncoder:
    """The encoder that a config describes, freshly initialised. Raises ValueError where sizes do not fit."""
    choice, size = config.model, SIZES[config.model.encoder]
    return VideoEncoder(
        choice.width or size.width,
        choice.depth or size.depth,
        choice.heads or size.heads,
        frames=config.data.frames,
        resolution=config.data.resolution,
        tubelet=choice.tubelet,
        patch=choice.patch,
        positions=choice.positions,
    )


def encoder_tensors(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's part of an objective's state dict, named as in `VideoEncoder`."""
    part = "target_encoder." if any(name.startswith("target_encoder.") for name in model) else "encoder."
    return {name.removeprefix(part): tensor for name, tensor in model.items() if name.startswith(part)}


def load_run_encoder(path: Path) -> tuple[VideoEncoder, Config]:
    """A run's encoder, on the CPU, and the run's settings.

    path: a run's folder, whose newest checkpoint counts, or one of its checkpoints. Raises CheckpointError or ConfigError.
    """
    checkpoint = run_with_checkpoint(path)
    config = load_config(run_folder(path) / CONFIG_FILE)
    encoder = build_encoder(config)
    encoder.load_state_dict(encoder_tensors(load_checkpoint(checkpoint).model))
    return encoder, config


def load_exported_encoder(path: Path) -> tuple[VideoEncoder, Config]:
    """As `load_run_encoder`, of a file that `trocar export` wrote; its header holds the settings. Raises CheckpointError."""
    check_readable(path)
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {})["config"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = parse_config(text, str(path))
        encoder = build_encoder(config)
        encoder.load_state_dict(encoder_tensors(tensors) or tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a whole export of a run ({error!r}); make one with trocar export"
        ) from error
    return encoder, config


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names and values of all weights, 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
