"""`trocar bench downstream`: encoders x data sets x protocols x seeds, each cell a folder that is done once, and their report.

Cells of one encoder and one data set are one job: they share features. Jobs run one after the other, or several at a time, each in
a process of its own, and job i takes GPU i in turn. What is missing or fails is a line of the report, not the end of the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...engine.config.error import ConfigError
from ...engine.inputs.checkpoints import CheckpointError
from ...engine.inputs.folders import RANDOM, TIMM
from ...engine.step.device import choose_device
from ...engine.weights.files import WeightsError
from ...loaders.corpus.folder import CorpusError
from ...loaders.pack.isolated import run_isolated, worker_number
from ...loaders.video.video import VideoError
from ...ssl.choices import SIZES
from ..labels.dataset import DatasetError
from .backbones import load_backbone
from .finetune import ROW, finetune
from .finetune_command import open_task
from .matrix import DatasetEntry, Matrix, ModelEntry, Places, ProtocolEntry, folder_name
from .pretraining import compare_pretraining, find_pretraining
from .task import write_json

FEATURES, FAILURES = "features", "failures.json"


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
    features = places.out / FEATURES / Path(dataset.name).stem
    task = open_task(
        places.table(dataset),
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
    if rest.startswith(TIMM):
        architecture, at, file = rest.partition("@")
        return f"{prefix}{architecture}{at}{folder / file if file else ''}"
    return f"{prefix}{rest}" if prefix and rest in SIZES else f"{prefix}{folder / rest}"


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
