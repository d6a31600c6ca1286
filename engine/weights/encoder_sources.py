"""A video encoder from wherever its weights are: a run, a file of `trocar convert` or `trocar export`, or published weights.

Shapes: T frames, R x R pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...loaders.corpus.whole_file import check_readable
from ...ssl.choices import Kind, Positions
from ...ssl.encoder import VideoEncoder, position_table
from ..config.error import ConfigError
from ..config.file import CONFIG_FILE
from ..inputs.folders import MINIMUM, WHOLE_MODEL, encoder_source
from .convert import FRAMES, RESOLUTION, TABLE, Conversion, EncoderSettings, conversion_encoder, convert, read_encoder
from .files import WeightsError
from .kinds import POSITIONS, TITLES
from .run_encoder import load_exported_encoder, load_run_encoder

STRIDE = 4  # the paper's, where the weights bring none of their own


@dataclass(frozen=True)
class ClipShape:
    """What clips an encoder wants: T frames, one of `stride` of the video's or `sample_fps` a second, of R x R pixels."""

    frames: int
    stride: int | None
    sample_fps: float | None
    resolution: int


@dataclass(frozen=True)
class FoundEncoder:
    """encoder: on the CPU. clips: that it was trained with, as far as its weights say. family: whose objective it was trained by.
    account: what it is, and what matched."""

    encoder: VideoEncoder
    clips: ClipShape
    family: Kind
    account: str


def load_encoder(path: str | os.PathLike[str], **options: Any) -> VideoEncoder:
    """The encoder in `path`, ready to be used: on the CPU, in evaluation mode, its weights float32 and frozen.

        encoder = load_encoder("runs/first")
        tokens = encoder(frames)           # (B, T, H, W, 3) uint8 -> (B, N, D), N = T / tubelet x H / patch x W / patch
        vectors = encoder.pooled(frames)   # -> (B, D) float32, the mean of the tokens

    path: a run, one of its checkpoints, a file of weights; options: as of `find_encoder`, which says besides what clips the
    encoder was trained with. Frames are RGB as `clip_loader` has them, 0 .. 255: ImageNet's mean and deviation are taken off
    inside. T, and H and W, are multiples of `encoder.tubelet` and `encoder.patch`; other sizes than those of its training change
    the positions. Tokens come in time, rows, columns, float32, or as autocast has them; of a JEPA they are the target encoder's.
    To train it, `encoder.requires_grad_(True).train()`. Raises what `find_encoder` raises.
    """
    return find_encoder(Path(path), **options).encoder.requires_grad_(False).eval()


def find_encoder(
    path: Path,
    *,
    frames: int | None = None,
    resolution: int | None = None,
    kind: Kind | None = None,
    positions: Positions | None = None,
    part: str | None = None,
    minimum: float = MINIMUM,
) -> FoundEncoder:
    """Reads the encoder that is in `path`.

    path: a run's folder or one of its checkpoints; a file of `trocar convert` or `trocar export`; a file of published weights, or a
    folder with model.safetensors, converted on the way. frames, resolution: of its clips, where its own are not wanted. kind,
    positions: of published weights that do not tell, part: where in their file the encoder stands, see `convert`. minimum: share
    of the tensors that has to match. Raises ConfigError where there is nothing, WeightsError or CheckpointError where it cannot
    be used.
    """
    own = _own_encoder(path, frames, resolution)
    if own is None:
        shape = ClipShape(frames or FRAMES, STRIDE, None, resolution or RESOLUTION)
        told: dict[str, Any] = {"kind": kind, "positions": positions, "part": part, "minimum": minimum}
        found = convert(_file(path), frames=shape.frames, resolution=shape.resolution, **told)
        return FoundEncoder(conversion_encoder(found), shape, found.kind, found.lines()[0])
    for name, wanted, is_its in (
        ("kind", kind, own.family),
        ("positions", positions, own.encoder.position_kind),
        ("part", part, None),
    ):
        if wanted not in (None, is_its):
            raise WeightsError(
                f"{path}: {own.account} says that its {name} is {is_its}, not {wanted}; leave --{name} out"
            )
    return own


def convert_encoder(
    path: Path, *, frames: int | None = None, resolution: int | None = None, **options: Any
) -> Conversion:
    """What `find_encoder` finds, as `save_encoder` takes it. options: of `convert`, for published weights alone."""
    own = _own_encoder(path, frames, resolution)
    if own is None:
        return convert(_file(path), frames=frames or FRAMES, resolution=resolution or RESOLUTION, **options)
    given = [name for name, value in options.items() if value is not None and name != "minimum"]
    if given:
        raise WeightsError(f"{path}: {own.account} needs no --{given[0]}: it says itself what it is; leave it out")
    encoder = own.encoder
    encoder.fit(torch.empty(1, own.clips.frames, own.clips.resolution, own.clips.resolution, 3, device="meta"))
    tensors = {name: value.float().contiguous() for name, value in encoder.state_dict().items()}
    if not torch.equal(encoder.positions, position_table(encoder.position_kind, encoder.grid, encoder.width)):
        tensors[TABLE] = encoder.positions
    settings = EncoderSettings(
        encoder.width,
        len(encoder.blocks),
        encoder.heads,
        own.clips.frames,
        own.clips.resolution,
        encoder.tubelet,
        encoder.patch,
        encoder.position_kind,
        encoder.mlp_width,
        encoder.last_norm,
    )
    matched = len(encoder.state_dict())
    return Conversion(own.family, f"{TITLES[own.family]}, {own.account}", settings, tensors, matched, [], [], [], [])


def _own_encoder(path: Path, frames: int | None, resolution: int | None) -> FoundEncoder | None:
    """The encoder of a run, or of a file that says that it is ours; None: whoever else's weights."""
    encoder_source(path)
    header = _header(path) if path.suffix == ".safetensors" else {}
    is_run = path.is_dir() and ((path / CONFIG_FILE).is_file() or path.parent.name == "checkpoints")
    if is_run or "config" in header:
        encoder, config = load_run_encoder(path) if is_run else load_exported_encoder(path)
        data = config.data
        shape = ClipShape(frames or data.frames, data.stride, data.sample_fps, resolution or data.resolution)
        is_jepa = config.objective.kind == "jepa"
        of_jepa: Kind = "vjepa2" if encoder.position_kind == "rope" else "vjepa1"
        family: Kind = of_jepa if is_jepa else "videomae"
        return FoundEncoder(encoder, shape, family, "a run's encoder" if is_run else "an exported encoder")
    if "trocar_encoder" not in header:
        return None
    encoder = read_encoder(path)
    own = (encoder.grid[0] * encoder.tubelet, encoder.grid[1] * encoder.patch)
    shape = ClipShape(frames or own[0], STRIDE, None, resolution or own[1])
    layout = header.get("kind", "an encoder")
    kinds: list[Kind] = [kind for kind, title in TITLES.items() if layout.startswith(title)]
    kinds.extend(kind for kind, positions in POSITIONS.items() if positions == encoder.position_kind)
    family = kinds[0]
    if family == "image" and (shape.frames, shape.resolution) != own:
        raise ConfigError(
            f"{path}: its positions were made for {own[0]} frames of {own[1]} px; convert the weights again: trocar convert "
            f"--frames {shape.frames} --resolution {shape.resolution}"
        )
    return FoundEncoder(encoder, shape, family, f"{layout}, converted")


def _file(path: Path) -> Path:
    return path / WHOLE_MODEL if path.is_dir() else path


def _header(path: Path) -> dict[str, str]:
    check_readable(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
