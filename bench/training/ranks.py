"""Training on 1 to N ranks of one machine: every rank has as many clips whatever their number, and each size is a run of its own.

The step waits for no data, so what is lost against one rank is the exchange of gradients and what the ranks share. A run's clips
are those of all ranks, its seconds those of the slowest. Efficiency: clips/s of N ranks over N times those of one.

    python -m torch.distributed.run --nproc-per-node N -m trocar.bench.training.ranks CONFIG --out FILE [--steps S] [key=value ...]

Shapes: N ranks, B clips a rank and step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.config.file import load_config
from ...engine.config.settings import Config, ConfigError
from ...engine.ranks.distributed import World
from ..rows.row import row
from .clock import StepTimes, peak_memory, time_steps
from .run import clip_numbers, made_clips, open_run, resident
from .training import EFFORT, Effort, describe

LAUNCH_SECONDS = 900


def bench_ranks(
    source: str | Path, overrides: Sequence[str], sizes: Sequence[int], *, effort: Effort = EFFORT
) -> list[dict[str, Any]]:
    """One row for every number of ranks in `sizes`, each started by torchrun, the smallest first.

    The config's batch is a rank's. Cores are shared out alike in all runs, as to the largest of them. Raises ConfigError where
    ranks cannot run, with the last that was said.
    """
    batch = load_config(source, overrides).optim.batch
    cores = max(1, len(os.sched_getaffinity(0)) // max(sizes))
    rows: list[dict[str, Any]] = []
    for size in sorted(sizes):
        settings = [*overrides, f"optim.batch={batch * size}", "optim.accumulation=1", f"run.threads={cores}"]
        entry = _launch(source, settings, size, effort)
        rows.append({**entry, "efficiency": efficiency(entry, rows[0] if rows else entry)})
    return rows


def efficiency(entry: dict[str, Any], smallest: dict[str, Any]) -> float:
    """Clips/s of a rank over those of a rank of the smallest world."""
    rates = [each["clips_per_second"]["median"] / each["world_size"] for each in (entry, smallest)]
    return rates[0] / rates[1]


def _launch(source: str | Path, settings: Sequence[str], size: int, effort: Effort) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="trocar_ranks_") as folder:
        out = Path(folder) / "row.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        options = ["--out", str(out), "--sets", str(effort.sets), "--steps", str(effort.steps)]
        command = [*launcher, "-m", __name__, str(source), *options, "--warmup", str(effort.warmup), *settings]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LAUNCH_SECONDS)
        if done.returncode or not out.exists():
            last = [line for line in done.stderr.splitlines() if line.strip()][-12:]
            raise ConfigError(f"{size} ranks did not run (status {done.returncode}):\n" + "\n".join(last))
        return json.loads(out.read_text(encoding="utf-8"))


def measure_rank(config: Config, effort: Effort, out: Path) -> None:
    """What one of the ranks does. The first writes the row of all to `out`."""
    with open_run(config) as run:
        world = run.world
        frames = made_clips(config, config.optim.batch, world.rank)
        sets = []
        for number in range(effort.sets):
            first_step = number * (effort.warmup + effort.steps)
            batches = resident(run, frames, clip_numbers(run, first_step=first_step))
            sets.append(time_steps(run, batches, effort.steps, warmup=effort.warmup, first_step=first_step))
        told = [gather(times, world) for times in sets]
        if world.is_first:
            facts = {"part": "ranks", **describe(config), "arm": "resident", "steps_timed": effort.sets * effort.steps}
            measured = account(told, config.optim.batch * effort.steps)
            entry = row("training", world.device, {**facts, **measured, "peak_memory_bytes": peak_memory(world.device)})
            out.write_text(json.dumps(entry), encoding="utf-8")


def gather(times: StepTimes, world: World) -> list[tuple[int, float]]:
    """(clips, seconds) of every rank, on all of them."""
    table = torch.zeros(world.size, 2, dtype=torch.float64, device=world.device)
    table[world.rank] = torch.tensor([times.count.clips, sum(times.seconds)], dtype=torch.float64)
    return [(int(clips), seconds) for clips, seconds in world.sum(table).tolist()]


def account(sets: Sequence[Sequence[tuple[int, float]]], clips: int) -> dict[str, Any]:
    """The figures of all ranks from (clips, seconds) of each, set by set. clips: what all ranks together must have trained on."""
    for ranks in sets:
        trained = sum(count for count, _ in ranks)
        assert trained == clips, f"{trained} clips were trained on by {len(ranks)} ranks, {clips} were due"
    speeds = sorted(clips / max(seconds for _, seconds in ranks) for ranks in sets)
    by_rank = [[count / seconds for count, seconds in ranks] for ranks in sets]
    return {
        "world_size": len(sets[0]),
        "clips": clips * len(sets),
        "seconds": sum(max(seconds for _, seconds in ranks) for ranks in sets),
        "clips_per_second": {"median": speeds[len(speeds) // 2], "low": speeds[0], "high": speeds[-1]},
        "clips_per_second_by_rank": by_rank,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """One rank, started by torchrun."""
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    for name, default in vars(EFFORT).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_intermixed_args(arguments)
    effort = Effort(options.sets, options.steps, options.warmup)
    measure_rank(load_config(options.config, options.overrides), effort, options.out)


if __name__ == "__main__":
    main()
