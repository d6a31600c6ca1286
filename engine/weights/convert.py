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

from ...loaders.corpus.whole_file import check_readable, write_whole
from ...ssl.choices import SIZES, Kind, Positions
from ...ssl.encoder import LastNorm, VideoEncoder
from ..inputs.folders import MINIMUM
from .files import Tensors, WeightsError, read_parts
from .kinds import POSITIONS, fixed_table
from .names import Renamed, image_positions, image_resizing, inflated, rename

FRAMES, RESOLUTION = 16, 224  # the paper's, where the weights bring none of their own
TABLE = "positions"  # of image weights, which do not follow from the settings
GIANT = 1408  # the one width that two families share: VideoMAE V2 cuts it into 16 heads, V-JEPA 2 into 22
GIANT_HEADS: dict[Kind, int] = {"videomae": 16, "vjepa2": 22}


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
    positions: Positions
    mlp_width: int | None = None
    last_norm: LastNorm = "tokens"

    def build(self) -> VideoEncoder:
        settings: dict[str, Any] = asdict(self)
        return VideoEncoder(**settings)


@dataclass(frozen=True)
class Conversion:
    """kind, layout: whose weights, in a word and in words. tensors: the encoder's state, and `positions` for image weights.
    matched: how many of the encoder's tensors the file has. missing: names of ours that it has not; they start afresh. stray: its
    names without a place in ours. unused: its names of heads, decoders and predictors. notes: what is to be known besides."""

    kind: Kind
    layout: str
    settings: EncoderSettings
    tensors: Tensors
    matched: int
    missing: list[str]
    stray: list[str]
    unused: list[str]
    notes: list[str]

    @property
    def share(self) -> float:
        """Of the tensors that our encoder or the file's has, the share that both have."""
        return self.matched / (self.matched + len(self.missing) + len(self.stray))

    def lines(self) -> list[str]:
        size = ", ".join(f"{name} {value}" for name, value in asdict(self.settings).items())
        lines = [
            f"{self.layout}: {self.matched} of {self.matched + len(self.missing)} tensors matched ({self.share:.1%})",
            size,
        ]
        lines += [f"  note:    {note}" for note in self.notes]
        lines += [f"  missing: {name}" for name in self.missing]
        lines += [f"  stray:   {name}" for name in self.stray]
        return lines + [f"  unused:  {name}" for name in self.unused]


def convert(
    path: Path,
    *,
    part: str | None = None,
    frames: int = FRAMES,
    resolution: int = RESOLUTION,
    heads: int | None = None,
    kind: Kind | None = None,
    positions: Positions | None = None,
    minimum: float = MINIMUM,
) -> Conversion:
    """The encoder in a file of weights.

    part: where in the file, see `read_parts`. frames, resolution: of the clips that it will see; positions follow from them,
    those of image weights are resized. heads: by the width where None. kind, positions: where the file does not tell, see
    `names`. minimum: share of the encoder's tensors that have to be there. Raises WeightsError, with the lists, below it,
    where shapes differ, or where it stays open what the file is.
    """
    state, beside = read_parts(path, part)
    renamed = _renamed(path, state, beside, kind, positions)
    is_image = renamed.kind == "image"
    tensors, notes = _completed(renamed)
    if is_image and renamed.table is None and positions is None:
        raise WeightsError(
            f"{path}: image weights without a table of positions; rotary ones, as DINOv3's, are not ours. "
            "--positions flat or axes takes fixed ones in their place, which makes it another model"
        )
    settings = _settings(path, renamed, tensors, frames, resolution, heads, positions or POSITIONS[renamed.kind])
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
    if not is_image and renamed.table is not None:
        notes += _table_notes(path, renamed.table, settings.positions, encoder.num_tokens)
    kept = {name: tensors[name].float().contiguous() for name in wanted if name in tensors}
    missing = [name for name in wanted if name not in tensors]
    if is_image and renamed.table is not None:
        prefix = renamed.table.shape[1] - int(renamed.table.shape[1] ** 0.5) ** 2
        kept[TABLE] = image_positions(renamed.table, prefix, encoder.grid, image_resizing(state)).contiguous()
    stray = [*renamed.stray, *(name for name in tensors if name not in wanted)]
    found = Conversion(
        renamed.kind,
        renamed.layout,
        settings,
        kept,
        len(wanted) - len(missing),
        missing,
        stray,
        renamed.unused,
        notes,
    )
    if found.share < minimum:
        text = "\n".join(found.lines())
        raise WeightsError(
            f"{path}: only {found.share:.1%} of the encoder's tensors match, {minimum:.1%} are asked for\n{text}"
        )
    return found


def _renamed(
    path: Path, state: Tensors, beside: dict[str, Tensors], kind: Kind | None, positions: Positions | None
) -> Renamed:
    try:
        return rename(state, kind=kind, positions=positions, beside=beside)
    except KeyError as error:
        names = ", ".join(list(state)[:10])
        raise WeightsError(
            f"{path}: no patch embedding among its {len(state)} tensors ({names}, ...); it is of no ViT that is known"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _completed(renamed: Renamed) -> tuple[Tensors, list[str]]:
    """Patches of images with time, and a last norm where VideoMAE has none; (tensors, notes)."""
    tensors, notes = dict(renamed.tensors), []
    if renamed.kind == "image":
        tensors["patch_embed.weight"] = inflated(tensors["patch_embed.weight"])
    if renamed.last_norm == "mean":
        notes.append(
            "the last norm stands behind the mean of the tokens, which leave the encoder without it (VideoMAE's fc_norm)"
        )
        if "norm.weight" not in tensors:
            width = len(tensors["patch_embed.weight"])
            tensors |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
            notes.append("the file has no last norm (mean pooling): it is a fresh one, as fine-tuning begins with")
    return tensors, notes


def save_encoder(found: Conversion, path: Path) -> None:
    """Writes a file that `read_encoder` reads; replaces it as a whole."""
    header = {"trocar_encoder": json.dumps(asdict(found.settings)), "kind": found.layout}
    write_whole(path, lambda target: save_file(found.tensors, target, metadata=header))


def read_encoder(path: Path) -> VideoEncoder:
    """The encoder of a file that `save_encoder` wrote; tensors that it lacks are initialised from PyTorch's generator.

    Raises WeightsError, or OSError where it may not be read.
    """
    check_readable(path)
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
    return _filled(found.settings.build(), dict(found.tensors), Path(found.layout))


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
    path: Path,
    renamed: Renamed,
    tensors: Tensors,
    frames: int,
    resolution: int,
    heads: int | None,
    positions: Positions,
) -> EncoderSettings:
    """As the shapes say."""
    width, _, tubelet, patch = tensors["patch_embed.weight"].shape[:4]
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not blocks:
        raise WeightsError(f"{path}: no transformer block in it")
    known = {size.width: size.heads for size in SIZES.values()}
    if renamed.kind in GIANT_HEADS:
        known[GIANT] = GIANT_HEADS[renamed.kind]
    if heads is None and width not in known:
        raise WeightsError(f"{path}: the number of heads does not follow from the width {width}; give --heads")
    fc1 = tensors.get(f"blocks.{min(blocks)}.mlp.fc1.weight")
    mlp_width = None if fc1 is None or len(fc1) == 4 * width else len(fc1)
    return EncoderSettings(
        width,
        max(blocks) + 1,
        heads or known[width],
        frames,
        resolution,
        tubelet,
        patch,
        positions,
        mlp_width,
        renamed.last_norm,
    )


def _table_notes(path: Path, table: torch.Tensor, positions: Positions, num_tokens: int) -> list[str]:
    """Tables of videos follow from the settings, over whatever grid; one that does not is learned, and has no place in ours."""
    if positions == "rope":
        return ["its table of positions is left out: V-JEPA 2 stores one and turns queries and keys instead"]
    found = fixed_table(table)
    if found != positions:
        what = "learned, or of a grid that is not square" if found is None else f"{found!r}"
        raise WeightsError(
            f"{path}: its table of positions is {what}, not {positions!r}; learned tables have no place in this encoder, for "
            "others give --positions flat, axes or rope"
        )
    if table.shape[1] != num_tokens:
        return [f"its {table.shape[1]} positions are computed anew for {num_tokens} tokens"]
    return []
