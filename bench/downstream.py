"""`trocar bench downstream`: encoders x data sets x protocols x seeds, each cell a folder that is done once, and their report.

Cells of one encoder and one data set are one job: they share features. Jobs run one after the other, or several at a time, each in
a process of its own, and job i takes GPU i in turn. What is missing or fails is a line of the report, not the end of the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..engine.checkpoint import CheckpointError
from ..engine.config_error import ConfigError, require
from ..engine.config_file import CONFIGS, load_settings
from ..engine.convert import MINIMUM
from ..engine.weight_files import WeightsError
from ..engine.weight_names import Kind
from ..loaders.corpus import CorpusError
from ..loaders.isolated import run_isolated, worker_number
from ..loaders.video import VideoError
from ..ssl.encoder import Positions
from .backbones import RANDOM, load_backbone
from .dataset import DatasetError, Unlabelled
from .finetune import ROW, finetune
from .finetune_command import choose_device, open_task
from .pretraining import compare_pretraining, find_pretraining
from .protocol import Protocol, read_protocol
from .task import write_json

CELLS, FEATURES, FAILURES = "cells", "features", "failures.json"
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


def bench_downstream(
    matrix: Matrix, places: Places, *, device: str = "auto", workers: int = 1, tell: Callable[[str], None]
) -> list[dict[str, str]]:
    """Runs what is not done yet. Returns what could not be done: data set, model and reason. Raises ConfigError."""
    jobs = [
        (dataset, model, matrix.protocols, matrix.seeds, places, device)
        for dataset in matrix.datasets
        for model in matrix.models
    ]
    failures = []
    told: set[tuple[str, str]] = set()
    for number, (job, result) in enumerate(_run(jobs, workers), start=1):
        named = {"dataset": Path(job[0].name).stem, "model": job[1].name}
        if isinstance(result, Exception):
            reason = f"{result or type(result).__name__}"
            failures.append({**named, "reason": reason})
            if (named["dataset"], reason) in told:  # what stops one encoder mostly stops them all
                continue
            told.add((named["dataset"], reason))
        tell(f"{number} of {len(jobs)}: {named['model']} on {named['dataset']}: {_outcome(result)}")
    places.out.mkdir(parents=True, exist_ok=True)
    write_json(places.out / FAILURES, failures)
    if len(failures) > len(told):
        tell(f"{len(failures)} of {len(jobs)} not done; each data set's reason is told once")
    return failures


def run_job(
    dataset: DatasetEntry,
    model: ModelEntry,
    protocols: tuple[ProtocolEntry, ...],
    seeds: tuple[int, ...],
    places: Places,
    device: str,
) -> int:
    """All cells of one encoder on one data set, in this process. Returns how many were not done before. Raises DatasetError,
    WeightsError, CheckpointError, VideoError or ConfigError."""
    cells = [(protocol, seed, places.cell(dataset, model, protocol, seed)) for protocol in protocols for seed in seeds]
    open_cells = [cell for cell in cells if not (cell[2] / ROW).exists()]
    if not open_cells:
        return 0
    paths: dict[str, Any] = {
        key: None if value is None else places.data / value
        for key, value in (("csv", dataset.csv), ("table", dataset.table))
    }
    name = str(places.data / dataset.name) if Path(dataset.name).suffix else dataset.name
    features = places.out / FEATURES / Path(dataset.name).stem
    task = open_task(
        name,
        places.data / dataset.root,
        split=dataset.split,
        split_seed=dataset.split_seed,
        pieces=dataset.pieces,
        unlabelled=dataset.unlabelled,
        cache=features / "videos",
        **paths,
    )
    names = ("frames", "resolution", "stride", "sample_fps", "kind", "positions", "part", "minimum")
    clips = {key: getattr(model, key) for key in names}
    weights = resolve_weights(model.weights, places.weights)
    # Random weights are drawn anew for each seed; all others are the same for all.
    backbones: dict[int, Any] = {}
    corpus = None if model.corpus is None else str(places.weights / model.corpus)
    pretraining = None
    for protocol, seed, folder in open_cells:
        drawn = seed if weights.startswith(RANDOM) else 0
        if drawn not in backbones:
            backbones = {drawn: load_backbone(weights, seed=drawn, **clips)}
        pretraining = pretraining or compare_pretraining(task, find_pretraining(weights, corpus))
        finetune(
            task,
            backbones[drawn],
            protocol.read(model),
            folder,
            seed=seed,
            device=choose_device(_device(device)),
            features=features / folder_name(model.name),
            extras={"model": model.name, "protocol_name": protocol.name, "split": dataset.split},
            pretraining=pretraining,
            tell=_whisper,
        )
    return len(open_cells)


def resolve_weights(weights: str, folder: Path) -> str:
    """The path in `weights` made to begin at `folder`, where it is relative."""
    prefix = RANDOM if weights.startswith(RANDOM) else ""
    rest = weights.removeprefix(prefix)
    if rest.startswith("timm:"):
        architecture, at, file = rest.partition("@")
        return f"{prefix}{architecture}{at}{folder / file if file else ''}"
    from ..ssl.encoder import SIZES

    return f"{prefix}{rest}" if prefix and rest in SIZES else f"{prefix}{folder / rest}"


def folder_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _run(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if workers > 1:
        yield from run_isolated(run_job, jobs, workers)
        return
    for job in jobs:
        try:
            yield job, run_job(*job)
        except (DatasetError, WeightsError, CheckpointError, CorpusError, VideoError, ConfigError, OSError) as error:
            yield job, error


def _outcome(result: Any) -> str:
    if isinstance(result, Exception):
        return f"not done: {result or type(result).__name__}"
    return f"{result} cells done now" if result else "was done"


def _device(wanted: str) -> str:
    """Of this process: all its cells are computed on one GPU."""
    if wanted == "auto" and torch.cuda.is_available():
        return f"cuda:{worker_number() % torch.cuda.device_count()}"
    return "cpu" if wanted == "auto" else wanted


def _whisper(text: str) -> None:
    """Epochs are told where they take a while: full fine-tuning."""
    if ": epoch" in text:
        print(f"  {text}", file=sys.stderr, flush=True)
