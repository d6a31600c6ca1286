"""`trocar bench training`: which parts are measured here and how large, their rows, and what is told of it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...engine.config.file import load_config
from ...engine.config.settings import ConfigError
from ...engine.step.device import choose_device
from ..loading.corpora import make_corpora
from ..rows.row import row, write_rows
from .end_to_end import bench_end_to_end
from .peer_models import Attention
from .peers import OURS, PEERS, bench_peers
from .ranks import bench_ranks
from .training import EFFORT, SWEEPS, Effort, bench_steps, describe

PARTS = ("peers", "decoder-mask", "end-to-end", "steps", "ranks")
CPU_PARTS = tuple(part for part in PARTS if part != "decoder-mask")  # within three minutes of two cores
DECODER_MASK, EAGER = "objective.decoder_mask_ratio=0.5", "Hugging Face, SDPA"
MAE, JEPA = "surgrec_mae_unbalanced", "vjepa2_vitl"
# One part of an accumulated batch is a step here. V-JEPA 2's longer clips are another shape, and its activations fit.
# Of the recipes, which leave it to the GPU: what was measured first, so that rows stay comparable.
PART_CLIPS, OTHER_PART_CLIPS = {MAE: 32, JEPA: 192}, 32
COMMON = ("optim.accumulation=1", "run.tensorboard=false", "data.content_box=true")
JEPA_AS_MEASURED = ("data.sizes=[]", "data.sample_fps=null", "data.stride=4", "run.checkpoint_activations=false")
SMALL_MAE = ("model.encoder=small", "optim.batch=2")
SMALL_JEPA = (
    *SMALL_MAE,
    "optim.batch=1",
    "data.frames=8",
    "data.resolution=112",
    "model.predictor_depth=4",
    "objective.bucket=64",
)

CPU_EFFORT = Effort(sets=2, steps=1, warmup=1)
# What a CPU compares in minutes; the others on request.
CPU_PEERS = ("Hugging Face, SDPA", "Hugging Face, eager attention")


@dataclass(frozen=True)
class Case:
    """A config under measurement: its source and the settings that make it fit here."""

    source: str
    settings: tuple[str, ...]


def bench_training(
    device: str,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    corpora: dict[str, Path] | None = None,
    parts: Sequence[str] | None = None,
    sweep: Sequence[str] | None = None,
    ranks: Sequence[int] = (),
    peers: Sequence[str] | None = None,
    rounds: int = 7,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Measures the named parts and writes their rows to `out` as they come.

    device: "cpu" or "cuda". parts: of PARTS; where None all, on a CPU CPU_PARTS. config: None measures an MAE and a JEPA, small
    ones on a CPU. corpora: "originals" and perhaps "proxies"; made where None. sweep: "key=value,value" each; empty is the standard
    sweep, None is none. ranks: numbers of ranks; where empty, 1, 2, 4 .. as many as there are GPUs. peers: names of peers.PEERS;
    where None all, on a CPU CPU_PEERS. Raises ConfigError and what the parts raise.
    """
    is_cpu = choose_device(device).type == "cpu"  # refused where it is not here
    parts = parts or (CPU_PARTS if is_cpu else PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError(f"--parts: {', '.join(unknown)} is not accepted; there are {', '.join(PARTS)}")
    if unknown := [name for name in peers or () if name not in PEERS]:
        raise ConfigError(f"--peers: {', '.join(unknown)} is not accepted; there are {', '.join(PEERS)}")
    cases = _cases(is_cpu, config, overrides)
    if is_cpu and config is None:
        _say("on a CPU: small models, 1 or 2 clips a step; this says nothing about a GPU")
    kept, effort = _Kept(out), CPU_EFFORT if is_cpu else EFFORT
    peers = peers or (CPU_PEERS if is_cpu else tuple(PEERS))
    timing: dict[str, Any] = {"rounds": rounds, "keep": kept.for_now, "steps_a_round": 1 if is_cpu else 5}
    with tempfile.TemporaryDirectory(prefix="trocar_training_") as folder:
        if corpora is None and {"end-to-end", "steps"} & {*parts}:
            _say("making 1080p videos and their proxies")
            stride = load_config(cases[0].source, cases[0].settings).data.stride or 4
            corpora = make_corpora(Path(folder), stride=stride)
        for number, case in enumerate(cases):
            loaded = load_config(case.source, case.settings)
            if "peers" in parts:
                kept.keep(bench_peers(loaded, names=peers, **timing))
                kept.keep([_left_out(loaded, name) for name in PEERS if name not in peers])
            if "decoder-mask" in parts and loaded.objective.kind == "mae":
                dropping = load_config(case.source, [*case.settings, DECODER_MASK])
                kept.keep(bench_peers(dropping, part="decoder mask", names=[EAGER], **timing))
            if "end-to-end" in parts and number == 0 and corpora is not None:
                seconds = _resident_seconds(kept.rows, loaded.optim.batch)
                steps = {**timing, "steps_a_round": 2 if is_cpu else 8}
                more = {"step_seconds": seconds, "attention": _best_attention(kept.rows)}
                kept.keep(bench_end_to_end(loaded, corpora["originals"], corpora.get("proxies"), **steps, **more))
            if "steps" in parts and corpora is not None:
                # A CPU decodes originals for minutes; what they cost it stands in the end to end.
                read = corpora if not is_cpu or "proxies" not in corpora else {"proxies": corpora["proxies"]}
                points = sweep_points(sweep, loaded.objective.kind)
                read = read if number == 0 else {}
                kept.keep(bench_steps(case.source, case.settings, read, effort=effort, sweep=points))
            if "ranks" in parts and (sizes := ranks or gpu_ranks()):
                kept.keep(bench_ranks(case.source, case.settings, sizes, effort=effort))
    if "ranks" in parts and not ranks and not gpu_ranks():
        _say("scaling over ranks was not measured: there are no GPUs; --ranks 1,2 measures it with gloo on the CPU")
    return kept.rows


@dataclass
class _Kept:
    """Rows as they are measured, written to `out` as they come."""

    out: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, more: list[dict[str, Any]]) -> None:
        self.rows += more
        self.for_now([])

    def for_now(self, more: list[dict[str, Any]]) -> None:
        """Rows of a part that goes on: the next ones take their place."""
        if self.out is not None:
            write_rows(self.out, [*self.rows, *more])


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it; elsewhere they are imitated, many times slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def gpu_ranks() -> list[int]:
    """1, 2, 4 .. up to the number of GPUs, and that number; nothing without two."""
    count = torch.cuda.device_count()
    return sorted({*(2**power for power in range(count.bit_length())), count}) if count > 1 else []


def sweep_points(sweep: Sequence[str] | None, objective: str) -> list[tuple[str, str]]:
    """(key, value) one after another. Raises ConfigError on what is no "section.key=value,value"."""
    if sweep is None:
        return []
    if not sweep:
        own = {key: values for key, values in SWEEPS.items() if objective == "mae" or key != "objective.mask_ratio"}
        return [(key, value) for key, values in own.items() for value in values]
    points = []
    for text in sweep:
        key, _, values = text.partition("=")
        if "." not in key or not values:
            raise ConfigError(f"--sweep {text}: give it as section.key=value,value")
        points += [(key, value) for value in values.split(",")]
    return points


def _cases(is_cpu: bool, config: str | None, overrides: Sequence[str]) -> list[Case]:
    device = f"run.device={'cpu' if is_cpu else 'cuda'}"
    if config is not None:
        return [Case(config, (*COMMON, device, *_one_part(config), *overrides))]
    small_mae, small_jepa = (SMALL_MAE, SMALL_JEPA) if is_cpu else ((), ())
    if is_cpu and not multiplies_bfloat16():
        small_mae, small_jepa = ((*small, "run.precision=float32") for small in (SMALL_MAE, SMALL_JEPA))
    mae = (*COMMON, device, *_one_part(MAE), *small_mae, *overrides)
    jepa = (*COMMON, device, *_one_part(JEPA), *JEPA_AS_MEASURED, *small_jepa, *overrides)
    return [Case(MAE, mae), Case(JEPA, jepa)]


def _one_part(config: str) -> list[str]:
    """The batch that a step of one accumulated part has."""
    found = load_config(config).optim
    is_open = found.accumulation == "auto"
    clips = min(found.batch, PART_CLIPS.get(config, OTHER_PART_CLIPS)) if is_open else found.clips_at_once
    return [f"optim.batch={clips}"]


def _resident_seconds(rows: Sequence[dict[str, Any]], batch: int) -> dict[str, float]:
    """Seconds of a step on resident data, as the comparison with peers has just measured them; of the fastest peer."""
    seconds = {
        entry["arm"]: batch / entry["clips_per_second"]["median"]
        for entry in rows
        if entry["part"] == "peers" and "clips_per_second" in entry and not entry["reason"]
    }
    theirs = {name: value for name, value in seconds.items() if name != OURS and not PEERS[name][1]}
    found = {"trocar": seconds[OURS]} if OURS in seconds else {}
    return {**found, "peer": min(theirs.values())} if theirs else found


def _best_attention(rows: Sequence[dict[str, Any]]) -> Attention:
    """That of the fastest peer measured; SDPA where none was."""
    speeds: dict[Attention, float] = {
        PEERS[entry["arm"]][0]: entry["clips_per_second"]["median"]
        for entry in rows
        if entry["part"] == "peers" and entry["arm"] in PEERS and "clips_per_second" in entry and not entry["reason"]
    }
    return max(speeds, key=lambda attention: speeds[attention]) if speeds else "sdpa"


def _left_out(config: Any, name: str) -> dict[str, Any]:
    facts = {"part": "peers", **describe(config), "arm": name, "reason": "not measured here unless --peers names it"}
    return row("training", torch.device(config.run.device), facts)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
