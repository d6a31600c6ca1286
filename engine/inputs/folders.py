"""What commands are given, looked at before PyTorch and other heavy packages are imported: a wrong path is told at once.

The same functions are called where things are read, so that there is one message for each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...loaders.corpus.folder import corpus_folder, tree_file
from ...ssl.choices import SIZES
from ..config.error import ConfigError
from ..config.file import CONFIG_FILE, load_config
from ..config.settings import Config
from .checkpoints import CheckpointError, checkpoints, newest_checkpoint

WHOLE_MODEL = "model.safetensors"  # in a folder of Hugging Face's
METRICS_FILE, PROBE_FILE = "metrics.jsonl", "probe.jsonl"
DESCRIPTOR, TIMM, RANDOM = "descriptor", "timm:", "random:"
MINIMUM = 1.0  # share of the tensors of weights that has to match


def checked_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """As `load_config`, where what the config reads is there: its corpus, trees, weights and probe's table.

    Raises ConfigError, CorpusError or CheckpointError.
    """
    config = load_config(source, overrides)
    corpus_folder(config.data.corpus)
    for tree in (config.data.tree, *(phase.tree for phase in config.data.phases)):
        if tree is not None:
            tree_file(tree)
    if not checkpoints(Path(config.run.dir)):  # a run that goes on has its weights
        if config.model.init is not None:
            encoder_source(Path(config.model.init))
        if config.objective.teacher is not None:
            run_with_checkpoint(Path(config.objective.teacher))
    if config.probe.table is not None and not os.path.exists(config.probe.table):
        raise ConfigError(f"probe.table: {config.probe.table}: no such file; correct the path, or set probe.table=null")
    return config


def encoder_source(path: Path) -> Path:
    """A run, a file or a folder of weights. Raises ConfigError where nothing is there."""
    if not path.exists():
        raise ConfigError(
            f"{path}: no such encoder; give a run of `trocar pretrain`, a file of weights, or a folder with {WHOLE_MODEL}"
        )
    return path


def backbone_source(name: str) -> str:
    """What `trocar finetune` takes for an encoder. Raises ConfigError where a path is meant and nothing is there."""
    is_random, source = name.startswith(RANDOM), name.removeprefix(RANDOM)
    if not source.startswith(TIMM) and not (is_random and source in SIZES):
        encoder_source(Path(source))
    return name


def embedder_source(name: str) -> str:
    """`descriptor`, `timm:MODEL[@FILE]` or a run. Raises ConfigError where a path is meant and nothing is there."""
    if name != DESCRIPTOR and not name.startswith(TIMM) and not Path(name).exists():
        raise ConfigError(f"{name}: neither {DESCRIPTOR!r}, '{TIMM}MODEL' nor a run's folder; correct --model")
    return name


def run_folder(path: Path) -> Path:
    """The folder of a run, of which `path` may be a checkpoint. Raises CheckpointError where it has no settings."""
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{path}: neither a run (no {CONFIG_FILE}) nor a checkpoint of one (RUN/checkpoints/step_...); name the run.dir "
            "of a `trocar pretrain`"
        )
    return folder


def run_with_checkpoint(path: Path) -> Path:
    """The newest checkpoint of a run, or `path` where it is one itself. Raises CheckpointError."""
    folder = run_folder(path)
    return path if folder != path else newest_checkpoint(folder)


def run_with_metrics(path: Path) -> Path:
    """A run's folder. Raises CheckpointError where it has written down no step."""
    file = path / METRICS_FILE
    if not (file.is_file() and file.stat().st_size):
        raise no_metrics(path)
    return path


def no_metrics(run_dir: Path) -> CheckpointError:
    return CheckpointError(f"{run_dir}: no metrics to show; run `trocar pretrain` with run.dir={run_dir} first")
