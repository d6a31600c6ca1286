"""What `trocar bench downstream` is asked for, as its YAML says: encoders x data sets x protocols x seeds, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...engine.config.error import require
from ...engine.config.file import CONFIGS, load_settings
from ...engine.inputs.folders import MINIMUM
from ...ssl.choices import Kind, Positions
from ..labels.table import Unlabelled
from .protocol import Protocol, read_protocol

CELLS = "cells"
SHIPPED = CONFIGS / "downstream"


@dataclass(frozen=True)
class ModelEntry:
    """name: in the report. weights: as of `load_backbone`; a file's path is relative to the folder of weights. frames, resolution,
    stride or sample_fps: of clips, the weights' own where null. kind, positions: of published weights that do not
    tell. part: where in the file the encoder stands. minimum: share of tensors that must match. corpus: an index of what they
    were pretrained on, where the weights do not say it, relative to the folder of weights. column: of the paper's table that it
    is compared with. paper_set: what deviates for it in the paper's protocol, as "batch=32". as_paper, differs: what of it is as
    in the paper, and what is not, in words."""

    name: str
    weights: str
    frames: int | None = None
    resolution: int | None = None
    stride: int | None = None
    sample_fps: float | None = None
    kind: Kind | None = None
    positions: Positions | None = None
    part: str | None = None
    minimum: float = MINIMUM
    corpus: str | None = None
    column: str = ""
    paper_set: tuple[str, ...] = ()
    as_paper: str = ""
    differs: str = ""


@dataclass(frozen=True)
class DatasetEntry:
    """name: a data set of trocar, or a path of a card or table. root: its folder, relative to that of the data. split, split_seed,
    csv, table, pieces, unlabelled: as of `open_task`. paper: scores that the paper reports, in percent, by column; paper_majority:
    what the largest class of its training split reaches on its test split, as our majority baseline does on ours."""

    name: str
    root: str
    split: str = "leak-free"
    split_seed: int = 0
    csv: str | None = None
    table: str | None = None
    pieces: float | None = None
    unlabelled: Unlabelled = "refuse"
    paper: dict[str, float] = field(default_factory=dict)
    paper_majority: float | None = None


@dataclass(frozen=True)
class ProtocolEntry:
    """name: in the report. kind: linear, attentive or full. set: what deviates, as "epochs=20". is_papers: the paper's scores stand
    beside its own."""

    name: str
    kind: str
    set: tuple[str, ...] = ()
    is_papers: bool = False

    def read(self, model: ModelEntry) -> Protocol:
        """For an encoder."""
        return read_protocol(self.kind, (*self.set, *(model.paper_set if self.is_papers else ())))


@dataclass(frozen=True)
class Matrix:
    """note: printed above the report."""

    models: tuple[ModelEntry, ...]
    datasets: tuple[DatasetEntry, ...]
    protocols: tuple[ProtocolEntry, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    note: str = ""

    def __post_init__(self) -> None:
        for key in ("models", "datasets", "protocols"):
            names = [entry.name for entry in getattr(self, key)]
            require(0 < len(names) == len({*names}), key, names, "one or more, each name once")
        require(0 < len(self.seeds) == len({*self.seeds}), "seeds", self.seeds, "one or more, each once")
        for entry in self.protocols:
            for model in self.models:
                entry.read(model)


@dataclass(frozen=True)
class Places:
    """out: of cells and report. data, weights: what relative paths begin at."""

    out: Path
    data: Path
    weights: Path

    def table(self, dataset: DatasetEntry) -> str:
        """The name by which `open_task` finds the data set: that of one of ours, or the path of a card or table."""
        return str(self.data / dataset.name) if Path(dataset.name).suffix else dataset.name

    def cell(self, dataset: DatasetEntry, model: ModelEntry, protocol: ProtocolEntry, seed: int) -> Path:
        return (
            self.out
            / CELLS
            / Path(dataset.name).stem
            / folder_name(model.name)
            / folder_name(protocol.name)
            / f"seed{seed}"
        )


def load_matrix(source: str | Path) -> Matrix:
    """A YAML's path, or the name of one that ships with trocar. Raises ConfigError."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        require(str(source) in shipped, "CONFIG", str(source), f"a YAML's path, or one of {', '.join(shipped)}")
        path = SHIPPED / f"{source}.yaml"
    return load_settings(Matrix, path)


def folder_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
