"""`trocar bench plan`: the plan's model against the clock. Some settings give the rates, others are predicted and then measured.

Everything is a real pretraining run on the CPU, timed by the stage clock: one decoding thread beside one computing thread. Settings
take turns, so that whatever else the machine does meets all of them. The held-out ones differ in batch, span reuse, and in how slow
the loader is: a known sleep in every span. The model knows no other work on the machine: from what was measured, the time is taken
in which the thread that holds up the step was ready to run and had no core. Both figures stand in the row.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...engine.config.file import load_config
from ...engine.config.settings import Config
from ...engine.console.table import Table
from ...engine.record.metrics import read_metrics
from ...loaders.decode.span import SpanReader
from ..loading.decode import Scale, write_corpus
from ..profile.row import figures
from ..profile.stage_clock import clock_stages
from ..rows.row import row, select_rows
from ..rows.turns import in_turns
from .cluster import Cluster
from .model import COMPUTE, Demand, Rate, Share, Step, plan_step
from .rates import compute_rates, video_rates

SIZE, GOP = (854, 480), 30
CORPUS = Scale(frames=300, videos=3)
CONFIG = [
    "data.frames=16",
    "data.stride=4",
    "data.resolution=64",
    "data.threads=1",
    "run.threads=1",
    "model.patch=8",
    "model.depth=2",
    "run.tensorboard=false",
    "run.checkpoint_every=100000",
]
QUEUES = ("training_queue_seconds_per_step", "decode_threads_queue_seconds_per_step")
WARMUP = 4  # steps until what was decoded before the first one is used up


@dataclass(frozen=True)
class Setting:
    """sleep: seconds added to the decoding of every span. is_held_out: predicted; the others give the rates."""

    batch: int
    views: int
    sleep: float = 0.0
    is_held_out: bool = False

    @property
    def name(self) -> str:
        slowed = f", {1000 * self.sleep:.0f} ms of sleep a span" if self.sleep else ""
        return f"{self.batch} clips, {self.views} view{'s' * (self.views > 1)} a span{slowed}"


# Far from where both sides take equally long: there neither is the bottleneck.
SETTINGS = (
    Setting(4, 1),
    Setting(12, 4),
    Setting(8, 2),
    Setting(6, 1, is_held_out=True),
    Setting(6, 6, is_held_out=True),
    Setting(16, 8, is_held_out=True),
    Setting(4, 2, 0.3, is_held_out=True),
    Setting(8, 4, 0.6, is_held_out=True),
)


@contextmanager
def slowed(seconds: float) -> Iterator[None]:
    """Inside, the CPU loader's threads sleep so long for every span."""
    read = SpanReader.read

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return read(*arguments)

    SpanReader.read = slow  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        SpanReader.read = read


def bench_plan(
    settings: Sequence[Setting] = SETTINGS,
    *,
    rounds: int = 3,
    steps: int = 12,
    overrides: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Rows of the settings that give rates ("profile") and of those that were predicted ("plan"), medians over the rounds."""
    measured: dict[Setting, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="trocar_plan_") as name:
        corpus = write_corpus(Path(name) / "made", "h264", SIZE, GOP, CORPUS).path
        for number in range(rounds):
            for setting in in_turns(settings, number):
                config = _config(setting, corpus, Path(name) / f"run_{setting.batch}_{setting.views}", steps, overrides)
                measured[setting].append(_measure(setting, config, steps))
                tell(
                    f"round {number + 1}: {setting.name}: {1000 * measured[setting][-1]['seconds_per_step']:.1f} ms a step"
                )
        config = _config(settings[0], corpus, Path(name) / "none", steps, overrides)
        device = torch.device("cpu")
        rates = [
            row("profile", device, {"config": "demo_cpu", "overrides": [*CONFIG, *overrides], **figures_})
            for setting in settings
            if not setting.is_held_out
            for figures_ in measured[setting]
        ]
        predicted = [
            row("plan", device, _compare(setting, config, rates, measured[setting]))
            for setting in settings
            if setting.is_held_out
        ]
    return [*rates, *predicted]


def _config(setting: Setting, corpus: Path, run_dir: Path, steps: int, overrides: Sequence[str]) -> Config:
    own = [f"data.corpus={corpus}", f"run.dir={run_dir}", f"optim.batch={setting.batch}"]
    own += [f"data.views_per_span={setting.views}", f"optim.steps={WARMUP + steps + 4}"]
    return load_config("demo_cpu", [*CONFIG, *own, *overrides])


def _measure(setting: Setting, config: Config, steps: int) -> dict[str, Any]:
    run_dir = Path(config.run.dir)
    with slowed(setting.sleep) if setting.sleep else nullcontext():
        profile, processor = clock_stages(config, WARMUP, WARMUP + steps)
    late = [entry for entry in read_metrics(run_dir) if WARMUP < entry["step"] <= WARMUP + steps]
    found = figures(config, profile, late, processor)
    run_dir.rename(run_dir.with_name(f"{run_dir.name}_{time.monotonic_ns()}"))  # the next round starts anew
    return found


def predict(setting: Setting, config: Config, rows: Sequence[dict[str, Any]], cluster: Cluster) -> Step:
    """The step of a setting by the rates of `rows`."""
    videos = video_rates(rows, config, cluster, "originals")
    assert videos is not None
    idle = Rate(videos.idle_seconds_per_span.value + setting.sleep, "known")
    share = Share(1, cluster.cores_per_node, config.data.threads or cluster.cores_per_node, 1e9, 1e9, has_nvdec=False)
    demand = Demand(setting.batch, setting.views, config.data.prefetch, 0.0)
    return plan_step(compute_rates(rows, config, cluster), replace(videos, idle_seconds_per_span=idle), share, demand)


def _compare(
    setting: Setting, config: Config, rows: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    cluster = Cluster("this machine", rows[0]["machine"]["device"], 1, 0, 0, rows[0]["cores"], 1.0)
    step = predict(setting, config, rows, cluster)
    seconds = [entry["seconds_per_step"] for entry in measured]
    without_others = [_without_other_work(entry, step.bottleneck) for entry in measured]
    waits = [entry["stages"].get("wait", {}).get("critical", 0.0) / entry["seconds_per_step"] for entry in measured]
    return {
        "setting": setting.name,
        "batch": setting.batch,
        "views_per_span": setting.views,
        "sleep_seconds_per_span": setting.sleep,
        "predicted_clips_per_second": step.clips_per_second,
        "measured_clips_per_second": setting.batch / statistics.median(without_others),
        "clips_per_second_with_other_work": setting.batch / statistics.median(seconds),
        "seconds_per_step": seconds,
        **{name: [entry[name] for entry in measured] for name in QUEUES},
        "bottleneck": step.bottleneck,
        "load_average": os.getloadavg()[1],
        "measured_data_wait_percent": 100 * statistics.median(waits),
    }


def _without_other_work(entry: dict[str, Any], bottleneck: str) -> float:
    """Seconds of a step, less those in which what holds it up was ready and had no core.

    Where that is the training thread, it may also have waited for decoding that had no core.
    """
    decode = entry["decode_threads_queue_seconds_per_step"] / entry["loader_threads"]
    if bottleneck != COMPUTE:
        return entry["seconds_per_step"] - decode
    wait = entry["stages"].get("wait", {}).get("critical", 0.0)
    return entry["seconds_per_step"] - entry["training_queue_seconds_per_step"] - min(wait, decode)


COLUMNS = {
    "setting": "{setting}",
    "clips/s, predicted": "{predicted_clips_per_second:.1f}",
    "measured": "{measured_clips_per_second:.1f}",
    "off by": lambda row: f"{100 * (row['predicted_clips_per_second'] / row['measured_clips_per_second'] - 1):+.0f} %",
    "with the other work": "{clips_per_second_with_other_work:.1f}",
    "bottleneck, predicted": "{bottleneck}",
    "data wait, measured": "{measured_data_wait_percent:.0f} %",
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, of the predicted settings."""
    return Table.of(select_rows(rows, "plan"), COLUMNS).markdown()
