"""The step on resident data with each of its switches apart, for `make gpu STAGE=step`: what each brings.

Every arm is a run of its own, one after another in one process; its row is written before the next begins, and an arm that cannot
run leaves its reason.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.config.error import ConfigError
from ...engine.config.file import load_config
from ..rows.row import row, write_rows
from .parts import COMMON, JEPA, JEPA_AS_MEASURED, MAE
from .run import open_run
from .training import RESIDENT, Effort, describe, device_ceilings, measure_steps

# Graphs are captured from the fourth time on that a shape comes; a JEPA has several.
EFFORT = Effort(sets=1, steps=20, warmup=12)
MODELS = {
    "mae-base": (MAE, "optim.batch=128"),
    "mae-large": (MAE, "model.encoder=large", "optim.batch=64"),
    "jepa-large": (JEPA, *JEPA_AS_MEASURED, "optim.batch=24"),
}
SWITCHES = {
    "launched one by one": ("run.compile=none", "run.cuda_graphs=false"),
    "graphs": ("run.compile=none", "run.cuda_graphs=true"),
    "compiled": ("run.compile=inductor", "run.cuda_graphs=false"),
    "compiled, graphs": ("run.compile=inductor", "run.cuda_graphs=true"),
    "defaults": (),
    "defaults, weights cast at every use": ("run.weight_copies=false",),
    "defaults, attention as PyTorch chooses": ("run.attention=torch",),
    "defaults, float8": ("run.fp8=true",),
}


def bench_switches(
    model: str, out: Path, overrides: Sequence[str] = ("run.device=cuda",), effort: Effort = EFFORT
) -> list[dict[str, Any]]:
    """A row for every entry of SWITCHES, written to `out` as it comes. model: of MODELS. Raises ConfigError on another."""
    if model not in MODELS:
        raise ConfigError(f"{model}: no such model; there are {', '.join(MODELS)}")
    source, *settings = MODELS[model]
    rows: list[dict[str, Any]] = []
    ceilings = None
    for name, switches in SWITCHES.items():
        config = load_config(source, [*COMMON, *settings, *overrides, *switches])
        torch._dynamo.reset()
        facts: dict[str, Any] = {"part": "switches", "model": model, "switches": name, **describe(config)}
        try:
            with open_run(config) as run:
                ceilings = ceilings or device_ceilings(run.world.device, config.run.precision)
                facts |= next(one for one in measure_steps(run, {}, effort, ceilings) if one["arm"] == RESIDENT)
                facts |= {"part": "switches", "reason": "", "attention": str(run.attention or "torch")}
        except (ConfigError, RuntimeError) as error:  # RuntimeError: what compilers, captures and full memory raise
            facts["reason"] = str(error)[-500:]
        rows.append(row("training", torch.device(config.run.device), facts))
        write_rows(out, rows)
        speed = facts["reason"] or f"{facts['clips_per_second']['median']:.1f} clips/s"
        print(f"{model}, {name}: {speed}", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    bench_switches(sys.argv[1], Path(sys.argv[2]))
