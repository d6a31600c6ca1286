"""Who is told a run's numbers and pictures beside its own log: TensorBoard, Weights & Biases, MLflow.

Packages are imported where a run asks for them. The id of a run there stands in RUN/<name>_id.txt: folders of one name are no rare
thing among those who share a project, and theirs must not flow into each other.

Shapes: H W pixels of a picture.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.whole_file import write_text_whole
from ..config.error import ConfigError

WANDB_ID, MLFLOW_ID = "wandb_id.txt", "mlflow_id.txt"


class Tracker(Protocol):
    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """picture: (H, W, 3)."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_trackers(
    run_dir: Path, last_step: int, *, tensorboard: bool, wandb: str | None, mlflow: str | None
) -> list[Tracker]:
    """wandb: a project. mlflow: an experiment. Raises ConfigError where a package is missing."""
    trackers: list[Tracker] = []
    if wandb is not None:
        trackers.append(WeightsAndBiases(wandb, run_dir, last_step))
    if mlflow is not None:
        trackers.append(Mlflow(mlflow, run_dir))
    if tensorboard:
        trackers.append(TensorBoard(run_dir, last_step))
    return trackers


class TensorBoard:
    """RUN/tensorboard; what a run that died wrote of steps after `last_step` does not show."""

    def __init__(self, run_dir: Path, last_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import: only when asked for

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=last_step + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a project, which goes on where the run directory's went. Runs that began without a file of its id had their folder's
    name for one."""

    def __init__(self, project: str, run_dir: Path, last_step: int) -> None:
        self._package = _package("wandb", f"run.wandb: {project!r} needs Weights & Biases")
        name, known = run_dir.resolve().name, run_dir / WANDB_ID
        if not known.exists():
            write_text_whole(known, name if last_step else uuid4().hex[:12])
        identity = known.read_text(encoding="utf-8").strip()
        self._run = self._package.init(project=project, name=name, id=identity, dir=str(run_dir), resume="allow")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        self._run.log({name: self._package.Image(picture)}, step=step)

    def flush(self) -> None:
        """It sends in the background."""

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run of an experiment, at MLFLOW_TRACKING_URI or where MLflow keeps its files. Nobody waits for a server."""

    def __init__(self, experiment: str, run_dir: Path) -> None:
        self._package = _package("mlflow", f"run.mlflow: {experiment!r} needs MLflow")
        known = run_dir / MLFLOW_ID
        identity = known.read_text(encoding="utf-8").strip() if known.exists() else None
        self._package.set_experiment(experiment)
        run = self._package.start_run(run_id=identity, run_name=None if identity else run_dir.resolve().name)
        if identity is None:
            write_text_whole(known, run.info.run_id)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._package.log_metrics(dict(values), step=step, synchronous=False)

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        self._package.log_image(picture, key=name, step=step, synchronous=False)

    def flush(self) -> None:
        """It sends in the background."""

    def close(self) -> None:
        self._package.end_run()


def _package(name: str, needed: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{needed}; pip install {name}, or set run.{name}=null") from error
