"""Steps that were left out: which clip was to blame, and when there are too many of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.whole_file import write_text_whole
from ...loaders.decode.recipe import ClipSource
from ...loaders.draw.order import ClipOrder
from ...loaders.video.error import TrocarError
from .readback import StepReport

SKIPPED_FILE = "skipped.csv"
WINDOW_STEPS = 1000
NAMED_CLIPS = 8


class SkipError(TrocarError):
    """More steps were left out than optim.skip_budget allows; the message names the latest and their clips."""


class SkipLog:
    """Follows a run's steps.

    sampler_at: of a clip's number, the sampler that draws it. budget: optim.skip_budget. write: whether to append to
    RUN/skipped.csv, whose rows of steps after `last_step` are cut off first. state: of the checkpoint, where there is one.
    """

    def __init__(
        self,
        run_dir: Path,
        corpus: Corpus,
        sampler_at: Callable[[int], ClipSource],
        order: ClipOrder,
        budget: int,
        write: bool,
        last_step: int,
        state: dict[str, Any],
    ) -> None:
        self.path, self.corpus, self.sampler_at, self.order = run_dir / SKIPPED_FILE, corpus, sampler_at, order
        self.budget, self.write = budget, write
        self.steps: list[int] = state.get("skipped", [])
        self._latest: list[str] = []
        if write and self.path.exists():
            header, *rows = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if int(row.partition(",")[0]) <= last_step]
            write_text_whole(self.path, "".join([header, *kept]))

    def __enter__(self) -> SkipLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Every row is on the disk already."""

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"skipped": self.steps}

    def update(self, report: StepReport) -> None:
        """Takes in a step that has arrived. Raises SkipError where it is one too many."""
        if not report.row["skipped"]:
            return
        step = report.row["step"]
        rows = self._blame(report)
        if self.write:
            self._append(rows)
        self._latest = [*self._latest, *(f"step {row[0]}, clip {row[1]} of {row[3]}: {row[5]}" for row in rows)][
            -NAMED_CLIPS:
        ]
        self.steps = [*(earlier for earlier in self.steps if earlier > step - WINDOW_STEPS), step]
        if len(self.steps) > self.budget:
            listed = "\n".join(f"  {text}" for text in self._latest)
            raise SkipError(
                f"{len(self.steps)} of the last {min(step, WINDOW_STEPS):,} steps were left out, above optim.skip_budget="
                f"{self.budget}; the latest:\n{listed}\n({self.path} has all.) Leave out what is broken (data.exclude), lower "
                "optim.base_learning_rate, or, where sound steps are refused, raise optim.outlier_sigmas or optim.skip_budget"
            )

    def _blame(self, report: StepReport) -> list[list[object]]:
        """A row for each clip whose loss is not finite; where all are finite, for the one with the largest."""
        losses = report.sums.clip_loss.numpy()
        norm = report.row["gradient_norm"]
        places = np.flatnonzero(~np.isfinite(losses))[:NAMED_CLIPS]
        reason = "loss is not finite"
        if not places.size:
            places = np.array([int(losses.argmax())])
            kind = "is not finite" if not math.isfinite(norm) else "or loss is far beyond the run's"
            reason = f"gradient norm {norm:.4g} {kind}; this clip has the largest loss"
        numbers = report.row["first_clip"] + places
        draws, views = self.order.clips(numbers)
        rows = []
        for place, number, draw, view in zip(places, numbers, draws, views, strict=True):
            (clip,) = self.sampler_at(int(number)).clips([draw], view=int(view))
            path = self.corpus.video_path(clip.video)
            rows.append([report.row["step"], int(number), int(draw), path, float(losses[place]), reason])
        return rows

    def _append(self, rows: list[list[object]]) -> None:
        is_new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["step", "clip", "draw", "path", "loss", "reason"])
            writer.writerows(rows)
