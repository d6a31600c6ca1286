"""A video encoder from wherever its weights are: a run, a file of `trocar convert` or `trocar export`, or published weights.

Shapes: T frames, R x R pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..ssl.encoder import VideoEncoder
from .config_error import ConfigError
from .config_file import CONFIG_FILE
from .convert import MINIMUM, conversion_encoder, convert, load_encoder
from .run_encoder import load_exported_encoder, load_run_encoder
from .weight_files import WeightsError

FRAMES, STRIDE, RESOLUTION = 16, 4, 224  # the paper's, where the weights bring none of their own
WHOLE_MODEL = "model.safetensors"  # in a folder of Hugging Face's
IMAGE_KIND = "image ViT"


@dataclass(frozen=True)
class ClipShape:
    """What clips an encoder wants: T frames, one of `stride` of the video's or `sample_fps` a second, of R x R pixels."""

    frames: int
    stride: int | None
    sample_fps: float | None
    resolution: int


@dataclass(frozen=True)
class FoundEncoder:
    """encoder: on the CPU. clips: that it was trained with, as far as its weights say. account: what it is, and what matched."""

    encoder: VideoEncoder
    clips: ClipShape
    account: str


def find_encoder(
    path: Path, *, frames: int | None = None, resolution: int | None = None, minimum: float = MINIMUM
) -> FoundEncoder:
    """Reads the encoder that is in `path`.

    path: a run's folder or one of its checkpoints; a file of `trocar convert` or `trocar export`; a file of published weights, or a
    folder with model.safetensors, converted on the way. frames, resolution: of its clips, where its own are not wanted. minimum:
    share of the tensors that has to match. Raises ConfigError where there is nothing, WeightsError or CheckpointError where it
    cannot be used.
    """
    if not path.exists():
        raise ConfigError(
            f"{path}: no such encoder; give a run of `trocar pretrain`, a file of weights, or a folder with {WHOLE_MODEL}"
        )
    shape = ClipShape(frames or FRAMES, STRIDE, None, resolution or RESOLUTION)
    header = _header(path) if path.suffix == ".safetensors" else {}
    is_run = path.is_dir() and ((path / CONFIG_FILE).is_file() or path.parent.name == "checkpoints")
    if is_run or "config" in header:
        encoder, config = load_run_encoder(path) if is_run else load_exported_encoder(path)
        data = config.data
        shape = ClipShape(frames or data.frames, data.stride, data.sample_fps, resolution or data.resolution)
        return FoundEncoder(encoder, shape, "a run's encoder" if is_run else "an exported encoder")
    if "trocar_encoder" in header:
        encoder = load_encoder(path)
        own = (encoder.grid[0] * encoder.tubelet, encoder.grid[1] * encoder.patch)
        shape = ClipShape(frames or own[0], STRIDE, None, resolution or own[1])
        if header.get("kind") == IMAGE_KIND and (shape.frames, shape.resolution) != own:
            raise ConfigError(
                f"{path}: its positions were made for {own[0]} frames of {own[1]} px; convert the weights again: trocar convert "
                f"--frames {shape.frames} --resolution {shape.resolution}"
            )
        return FoundEncoder(encoder, shape, f"{header.get('kind', 'an encoder')}, converted")
    file = path / WHOLE_MODEL if path.is_dir() else path
    found = convert(file, frames=shape.frames, resolution=shape.resolution, minimum=minimum)
    return FoundEncoder(conversion_encoder(found), shape, found.lines()[0])


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
