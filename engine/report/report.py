"""`trocar report RUN...`: runs on one HTML page that opens from a disk and asks nobody for anything.

While runs train it can be written anew again and again: of their logs only what is new is read, pictures and draws are made anew
when there is another checkpoint. A run that is killed leaves the page as it was; one that is resumed goes on in it.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ...loaders.corpus.whole_file import write_text_whole
from ...loaders.video.error import TrocarError
from ..config.error import ConfigError
from ..inputs.checkpoints import newest_step
from ..inputs.judged import judged_table
from ..view.unseen import run_config
from .curves import MetricsReader
from .page import Section, page, paragraph, table
from .pictures import run_pictures
from .sections import TRAINING, ShownRun, charts, drawn, failures, key, overview, speed

PAGE = "report.html"


@dataclass
class Followed:
    """A run, and what was made of its newest checkpoint. parts: HTML by the title of its section."""

    run_dir: Path
    label: str
    reader: MetricsReader
    step: int = -1
    parts: dict[str, str] = field(default_factory=dict)

    def shown(self) -> ShownRun:
        return ShownRun.of(self.run_dir, self.label, run_config(self.run_dir), self.reader.read())


class Report:
    """runs: folders of runs. downstream: tables of `trocar bench downstream`. pictures: decode clips and draw what the checkpoints
    make of them. refresh: seconds after which a browser is to load the page again; None for a page that stays.

    Raises CheckpointError where a folder is no run, ConfigError where one is named twice or a table cannot be read.
    """

    def __init__(
        self,
        runs: Sequence[Path],
        out: Path,
        *,
        downstream: Sequence[Path] = (),
        pictures: bool = True,
        refresh: float | None = None,
    ) -> None:
        if len({path.resolve() for path in runs}) < len(runs):
            raise ConfigError(f"a run is named twice among {', '.join(map(str, runs))}; name each once")
        for run_dir in runs:
            run_config(run_dir)
        self.out, self.downstream, self.pictures, self.refresh = out, downstream, pictures, refresh
        labels = _labels(runs)
        self.followed = [Followed(path, label, MetricsReader(path)) for path, label in zip(runs, labels, strict=True)]

    def write(self) -> Path:
        """Writes the page whole, and returns its path. What is missing for a part is said in its place and on stderr."""
        shown = [followed.shown() for followed in self.followed]
        for followed, run in zip(self.followed, shown, strict=True):
            step = newest_step(followed.run_dir)
            if step != followed.step:
                followed.step, followed.parts = step, self._parts(run)
        sections = [
            Section("Runs", overview(shown)),
            Section("Training", charts(shown, TRAINING)),
            Section("Speed", speed(shown)),
            *(Section(title, self._each(title)) for title in ("What was drawn", "Pictures")),
            Section(
                "What failed", "".join(f"<h3>{key(n, run.label)}</h3>{failures(run)}" for n, run in enumerate(shown))
            ),
            Section("Judged on labelled videos", self._judged()),
        ]
        written = time.strftime("%Y-%m-%d %H:%M:%S")
        lead = (
            paragraph(f"Written {written}.") + '<p class="keys">On a chart the arrow keys move from step to step.</p>'
        )
        title = ", ".join(run.label for run in shown)
        write_text_whole(self.out, page(title, lead, sections, self.refresh))
        return self.out

    def _parts(self, run: ShownRun) -> dict[str, str]:
        made: dict[str, Callable[[], str]] = {"What was drawn": lambda: drawn(run)}
        if self.pictures:
            made["Pictures"] = lambda: run_pictures(run.run_dir)
        parts = {}
        for title, make in made.items():
            try:
                parts[title] = make()
            except (OSError, TrocarError) as error:
                print(f"trocar: {run.label}: {title}: {error}", file=sys.stderr)
                parts[title] = paragraph(f"Could not be made: {error}")
        return parts

    def _each(self, title: str) -> str:
        found = [(n, followed.label, followed.parts.get(title, "")) for n, followed in enumerate(self.followed)]
        return "".join(f"<h3>{key(number, label)}</h3>{part}" for number, label, part in found if part)

    def _judged(self) -> str:
        return "".join(f"<p>{html.escape(path.name)}</p>{table(judged_table(path))}" for path in self.downstream)


def watch(report: Report, seconds: float, rounds: int | None = None) -> None:
    """Writes the page every so many seconds, endlessly where `rounds` is None. What cannot be read just now, as a run is writing
    it, is told, and the page stays as it was until the next time."""
    for number in count(1):
        try:
            report.write()
        except (OSError, TrocarError) as error:
            print(f"trocar: {report.out} stays as it was: {error}", file=sys.stderr)
        if number == rounds:
            return
        time.sleep(seconds)


def _labels(runs: Sequence[Path]) -> list[str]:
    """Folders' names; of those that are alike, paths."""
    names = [path.resolve().name for path in runs]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(runs, names, strict=True)]
