"""What `trocar bench workflow` is asked for, as its YAML says: encoders x data sets x heads x seeds, and by which rules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ...engine.config.error import require
from ...engine.config.file import load_settings
from ..downstream.matrix import SHIPPED, DatasetEntry, ModelEntry, Places, folder_name
from .choices import FeatureChoices, HeadChoices, MetricChoices

CELLS, FEATURES = "cells", "features"
DEFAULT = "workflow"


@dataclass(frozen=True)
class WorkflowDataset(DatasetEntry):
    """folds: names of splits that are judged one after the other instead of `split`, and averaged."""

    folds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        accepted = "none, or two or more, each once"
        require(len(self.folds) != 1 and len(self.folds) == len({*self.folds}), "datasets.folds", self.folds, accepted)

    @property
    def title(self) -> str:
        return Path(self.name).stem + (f" {self.split}" if self.folds else "")

    def parts(self) -> tuple[WorkflowDataset, ...]:
        """Itself, or one for each fold, whose `split` that is."""
        return tuple(replace(self, split=fold) for fold in self.folds) or (self,)


@dataclass(frozen=True)
class HeadEntry:
    """name: in the report. head: its settings."""

    name: str
    head: HeadChoices = field(default_factory=HeadChoices)


@dataclass(frozen=True)
class Published:
    """A score that somebody reports. dataset: of the matrix. name: of the method. metric: as ours is called. score: in percent.
    source: where it stands. differs: what of split, rate or metric is not as here; "" where all are the same."""

    dataset: str
    name: str
    metric: str
    score: float
    source: str
    differs: str = ""


@dataclass(frozen=True)
class WorkflowMatrix:
    """features, metrics: of all cells. metric: that the tables are about. note: printed above the report."""

    models: tuple[ModelEntry, ...]
    datasets: tuple[WorkflowDataset, ...]
    heads: tuple[HeadEntry, ...]
    features: FeatureChoices = field(default_factory=FeatureChoices)
    metrics: MetricChoices = field(default_factory=MetricChoices)
    seeds: tuple[int, ...] = (0, 1, 2)
    published: tuple[Published, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for key in ("models", "datasets", "heads"):
            names = [entry.name for entry in getattr(self, key)]
            require(0 < len(names) == len({*names}), key, names, "one or more, each name once")
        require(0 < len(self.seeds) == len({*self.seeds}), "seeds", self.seeds, "one or more, each once")
        for entry in self.heads:
            entry.head.check_clips(self.features)
        for dataset in self.datasets:
            pieces = dataset.pieces is None and dataset.csv is None
            require(pieces, f"datasets.{dataset.name}", "pieces or csv", "neither: whole videos are judged")
        known = {Path(dataset.name).stem for dataset in self.datasets}
        for score in self.published:
            require(score.dataset in known, "published.dataset", score.dataset, f"one of {', '.join(sorted(known))}")

    @property
    def judged(self) -> tuple[WorkflowDataset, ...]:
        """The data sets, of those with folds each fold."""
        return tuple(part for dataset in self.datasets for part in dataset.parts())


def load_workflow(source: str | Path) -> WorkflowMatrix:
    """A YAML's path, or "workflow", which ships with trocar. Raises ConfigError."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        require(str(source) == DEFAULT, "CONFIG", str(source), f"a YAML's path, or {DEFAULT}")
        path = SHIPPED / f"{DEFAULT}.yaml"
    return load_settings(WorkflowMatrix, path)


def cell_folder(places: Places, dataset: WorkflowDataset, model: ModelEntry, head: HeadEntry, seed: int) -> Path:
    data = Path(dataset.name).stem + (f"_{folder_name(dataset.split)}" if dataset.folds else "")
    names = (data, folder_name(model.name), folder_name(head.name), f"seed{seed}")
    return places.out.joinpath(CELLS, *names)
