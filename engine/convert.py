"""`trocar convert`: published weights -> an encoder's file of ours, with an account of what found its place and what did not.

The file is safetensors; its header holds the encoder's settings, so that nothing else is needed to build it again.

Shapes: D width, N tokens of the grid.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..ssl.encoder import SIZES, VideoEncoder, position_table
from .weight_files import Tensors, WeightsError, read_weights
from .weight_names import image_positions, inflated, rename

MINIMUM = 0.99
TABLE = "positions"  # of image weights, which do not follow from the settings


@dataclass(frozen=True)
class EncoderSettings:
    """What `VideoEncoder` takes."""

    width: int
    depth: int
    heads: int
    frames: int
    resolution: int
    tubelet: int
    patch: int
    positions: str

    def build(self) -> VideoEncoder:
        settings: dict[str, Any] = asdict(self)
        return VideoEncoder(**settings)


@dataclass(frozen=True)
class Conversion:
    """kind: whose weights. tensors: the encoder's state, and `positions` for image weights. matched: how many of the encoder's
    tensors the file has. missing: names of ours that it has not; they start afresh. stray: names of its blocks without a place in
    ours. unused: its other names without a place."""

    kind: str
    settings: EncoderSettings
    tensors: Tensors
    matched: int
    missing: list[str]
    stray: list[str]
    unused: list[str]

    @property
    def share(self) -> float:
        """Of the tensors that the encoder or the file's blocks have, the share that both have."""
        return self.matched / (self.matched + len(self.missing) + len(self.stray))

    def lines(self) -> list[str]:
        size = ", ".join(f"{name} {value}" for name, value in asdict(self.settings).items())
        lines = [
            f"{self.kind}: {self.matched} of {self.matched + len(self.missing)} tensors matched ({self.share:.1%})",
            size,
        ]
        lines += [f"  missing: {name}" for name in self.missing]
        lines += [f"  stray:   {name}" for name in self.stray]
        return lines + [f"  unused:  {name}" for name in self.unused]


def convert(
    path: Path,
    *,
    part: str | None = None,
    frames: int = 16,
    resolution: int = 224,
    heads: int | None = None,
    positions: str | None = None,
    minimum: float = MINIMUM,
) -> Conversion:
    """The encoder in a file of weights.

    part: where in the file, see `read_weights`. frames, resolution: of the clips that it will see; positions follow from them,
    those of image weights are resized. heads: by the width where None. positions: "flat", "axes" or "rope", where the names do
    not tell. minimum: share of the encoder's tensors that have to be there. Raises WeightsError, with the lists, below it or where
    shapes differ.
    """
    state = read_weights(path, part)
    try:
        renamed = rename(state)
    except KeyError as error:
        names = ", ".join(list(state)[:10])
        raise WeightsError(
            f"{path}: no patch embedding among its {len(state)} tensors ({names}, ...); it is of no ViT that is known"
        ) from error
    tensors, is_image = dict(renamed.tensors), renamed.tensors["patch_embed.weight"].ndim == 4
    if is_image and renamed.table is None and positions is None:
        raise WeightsError(
            f"{path}: image weights without a table of positions; rotary ones, as DINOv3's, are not ours. "
            "--positions flat or axes takes fixed ones in their place, which makes it another model"
        )
    if is_image:
        tensors["patch_embed.weight"] = inflated(tensors["patch_embed.weight"])
    settings = _settings(path, tensors, frames, resolution, heads, positions or renamed.positions)
    try:
        encoder = settings.build()
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; give other frames, resolution or heads") from error
    wanted = encoder.state_dict()
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        raise WeightsError(f"{path}: shapes differ: {'; '.join(wrong)}")
    _check_table(path, renamed.table, settings, is_image)
    kept = {name: tensors[name].float().contiguous() for name in wanted if name in tensors}
    missing = [name for name in wanted if name not in tensors]
    if is_image and renamed.table is not None:
        square = int((renamed.table.shape[1]) ** 0.5) ** 2
        kept[TABLE] = image_positions(renamed.table, renamed.table.shape[1] - square, encoder.grid).contiguous()
    stray, unused = [*renamed.stray, *(name for name in tensors if name not in wanted)], renamed.unused
    found = Conversion(renamed.kind, settings, kept, len(wanted) - len(missing), missing, stray, unused)
    if found.share < minimum:
        text = "\n".join(found.lines())
        raise WeightsError(
            f"{path}: only {found.share:.1%} of the encoder's tensors match, {minimum:.1%} are asked for\n{text}"
        )
    return found


def save_encoder(found: Conversion, path: Path) -> None:
    """Writes a file that `load_encoder` reads; replaces it as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished_{path.name}")
    header = {"trocar_encoder": json.dumps(asdict(found.settings)), "kind": found.kind}
    save_file(found.tensors, unfinished, metadata=header)
    unfinished.rename(path)


def load_encoder(path: Path) -> VideoEncoder:
    """The encoder of a file that `save_encoder` wrote; tensors that it lacks are initialised from PyTorch's generator.

    Raises WeightsError.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        encoder = EncoderSettings(**json.loads(header["trocar_encoder"])).build()
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not an encoder of ours ({error!r}); make one with trocar convert") from error
    return _filled(encoder, tensors, path)


def conversion_encoder(found: Conversion) -> VideoEncoder:
    """The encoder of a conversion, without the way over a file; tensors that it lacks are initialised from PyTorch's generator."""
    return _filled(found.settings.build(), dict(found.tensors), Path(found.kind))


def _filled(encoder: VideoEncoder, tensors: Tensors, path: Path) -> VideoEncoder:
    table = tensors.pop(TABLE, None)
    if table is not None:
        encoder.positions = table
    missing, unexpected = encoder.load_state_dict(tensors, strict=False)
    if unexpected:
        raise WeightsError(f"{path}: tensors without a place in its encoder: {', '.join(unexpected)}")
    assert set(missing) == set(encoder.state_dict()) - set(tensors)
    return encoder


def _settings(
    path: Path, tensors: Tensors, frames: int, resolution: int, heads: int | None, positions: str
) -> EncoderSettings:
    """As the shapes say."""
    width, _, tubelet, patch = tensors["patch_embed.weight"].shape[:4]
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not blocks:
        raise WeightsError(f"{path}: no transformer block in it")
    known = {size.width: size.heads for size in SIZES.values()}
    if heads is None and width not in known:
        raise WeightsError(f"{path}: the number of heads does not follow from the width {width}; give --heads")
    return EncoderSettings(width, max(blocks) + 1, heads or known[width], frames, resolution, tubelet, patch, positions)


def _check_table(path: Path, table: torch.Tensor | None, settings: EncoderSettings, is_image: bool) -> None:
    """Tables of videos follow from the settings; where the grid is the same, they have to be the same."""
    if table is None or is_image:
        return
    grid = (settings.frames // settings.tubelet, *[settings.resolution // settings.patch] * 2)
    ours = position_table(settings.positions, grid, settings.width)  # pyright: ignore[reportArgumentType]
    if table.shape[1:] == ours.shape and not torch.allclose(table[0].float(), ours, atol=1e-4):
        raise WeightsError(
            f"{path}: its table of positions is not {settings.positions!r}; give --positions flat, axes or rope"
        )
