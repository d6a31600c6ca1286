"""The model card of an exported encoder, in Hugging Face's format. What nobody wrote down is said to be unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ...ssl.encoder import VideoEncoder
from ..config.settings import Config
from ..console.table import Table, hours
from ..inputs.folders import PROBE_FILE
from ..record.metrics import read_metrics
from ..record.run_record import last_folder, read_starts
from .card_corpus import UNKNOWN, corpus_section

CURVES = ("loss", "validation_loss", "feature_std", "rankme")
RECIPE = {
    "model": ("encoder", "width", "depth", "heads", "tubelet", "patch", "positions"),
    "objective": ("kind", "mask_ratio", "decoder_mask_ratio", "targets", "masks", "distance"),
    "data": (
        *(
            "frames",
            "stride",
            "sample_fps",
            "resolution",
            "sizes",
            "crop_scale",
            "crop_ratio",
            "flip",
            "views_per_span",
        ),
        *("balance", "max_repeats", "thin", "source_caps"),
    ),
    "optim": ("batch", "base_learning_rate", "warmup", "schedule", "weight_decay", "betas", "ema", "clip_gradient"),
    "run": ("seed", "precision"),
}
# What other objectives set, and what only draws from a tree do.
OF_OTHERS = {
    "mae": ("objective.masks", "objective.distance", "optim.ema"),
    "jepa": ("objective.mask_ratio", "objective.decoder_mask_ratio", "objective.targets"),
}
OF_TREES = ("data.balance", "data.thin")
JUDGED = """Unknown: no judgement is recorded with a run. `trocar bench downstream` makes one, with intervals, and compares the test
videos with this corpus; `trocar export --judged` writes it here."""
INTERVALS = """In percent of the metric; intervals of 95 %, bootstrapped over subjects of the test split. A flagged score says
nothing of the encoder. All encoders of that benchmark are listed; whoever publishes this one says which of them it is."""
LIMITS = """- Not a medical device; nobody has tested it for clinical use.
- The corpus is what stands above: operations, devices, centres and complications that it lacks were never seen.
- Whether the videos identify people was not examined."""


def model_card(
    run_dir: Path,
    config: Config,
    encoder: VideoEncoder,
    step: int,
    to: str,
    usage: str,
    notes: list[str],
    judged: Table | None = None,
    audited: list[str] | None = None,
) -> str:
    """Markdown behind a YAML header, without a path of this machine. usage: code that loads the folder. notes: what is other
    there. judged: of `judged_table`. audited: of `audited_lines`."""
    header = {
        "library_name": "pytorch" if to == "torch" else to,
        "tags": ["video", "surgery", "trocar"],
        "pipeline_tag": "feature-extraction",
    }
    steps, side, _ = encoder.grid
    shape = f"{steps * encoder.tubelet} frames of {side * encoder.patch} x {side * encoder.patch} pixels"
    objective = "feature prediction (V-JEPA)" if config.objective.kind == "jepa" else "masked autoencoding (VideoMAE)"
    rows = read_metrics(run_dir)
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        f"# A video encoder for surgery, pretrained by {objective}\n",
        f"It takes clips of {shape} and gives {encoder.num_tokens} tokens of {encoder.width} values.",
        f"Trained with Trocar; step {step:,}.\n",
        f"```python\n{usage}\n```\n",
        *(f"- {note}\n" for note in notes),
        f"## Recipe\n\n{_recipe(config, encoder)}\n",
        f"## Corpus\n\n{corpus_section(last_folder(run_dir), config, audited)}\n",
        f"## Training\n\n{_training(read_starts(run_dir), rows)}\n",
        f"## Curves\n\n{_curves(run_dir, rows)}\n",
        f"## Judged on labelled videos\n\n{_judged(judged)}\n",
        f"## Limits\n\n{LIMITS}\n",
    ]
    return "\n".join(parts)


def _recipe(config: Config, encoder: VideoEncoder) -> str:
    """Settings that took part; null and empty ones did not."""
    sizes = {"model.width": encoder.width, "model.depth": len(encoder.blocks), "model.heads": encoder.heads}
    left_out = {*OF_OTHERS[config.objective.kind], *(() if config.data.tree else OF_TREES)}
    if config.objective.teacher is not None:
        left_out.add("optim.ema")
    cells = []
    for section, names in RECIPE.items():
        for name in names:
            key = f"{section}.{name}"
            value = sizes.get(key, getattr(getattr(config, section), name))
            if key not in left_out and value not in (None, (), {}):
                cells.append((key, _shown(value)))
    return Table(("setting", "value"), cells).markdown()


def _training(starts: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    last: Mapping[str, Any] = starts[-1] if starts else {}
    git, machine = last.get("git") or {}, last.get("machine", {})
    versions = ", ".join(f"{name} {version}" for name, version in last.get("versions", {}).items() if version)
    seconds = sum(
        (after["first_clip"] - row["first_clip"]) / row["clips_per_second"]
        for row, after in pairwise(rows)
        if row.get("clips_per_second")
    )
    cells = [
        ("processes", str(last.get("ranks", UNKNOWN))),
        ("each on", machine.get("gpu") or machine.get("device", UNKNOWN)),
        ("hours of steps, by the log", hours(seconds / 3600) if seconds else UNKNOWN),
        ("GPU-hours", _gpu_hours(starts, seconds)),
        ("energy of the GPUs' boards", _energy(rows)),
        ("commit of Trocar", git.get("commit", UNKNOWN) + (" (changed since)" if git.get("changed") else "")),
        ("versions", versions or UNKNOWN),
    ]
    return Table(("what", "as recorded"), cells).markdown()


def _gpu_hours(starts: list[dict[str, Any]], seconds: float) -> str:
    """Of steps, by the log; not known where the run was started with other numbers of processes, or the log has no clock."""
    ranks = {start.get("ranks") for start in starts}
    if not starts or not seconds or len(ranks) > 1:
        return UNKNOWN
    if not all(start.get("machine", {}).get("gpu") for start in starts):
        return "none" if not any(start.get("machine", {}).get("gpu") for start in starts) else UNKNOWN
    return hours(seconds / 3600 * (ranks.pop() or 0))


def _energy(rows: list[dict[str, Any]]) -> str:
    """By the cards' counters, as far as steps have them; of steps that a killed run did again it is the last time."""
    known = [row["joules"] for row in rows if "joules" in row]
    if not known:
        return UNKNOWN
    counted = "" if len(known) == len(rows) else f" in {len(known):,} of {len(rows):,} steps, of the others {UNKNOWN}"
    return f"{sum(known) / 3.6e6:.3g} kWh{counted}"


def _judged(judged: Table | None) -> str:
    if judged is None:
        return JUDGED
    return f"{judged.markdown()}\n\n{INTERVALS}"


def _curves(run_dir: Path, rows: list[dict[str, Any]]) -> str:
    """How losses, signals of collapse and probes went: their first value, that of half way, the last."""
    file = run_dir / PROBE_FILE
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    probes = [json.loads(line) for line in lines]
    found = {name: [row[name] for row in rows if row.get(name) is not None] for name in CURVES}
    for name in dict.fromkeys(name for row in probes for name in row if name != "step"):
        values = [row[name] for row in probes if isinstance(row.get(name), (int, float))]
        found[f"probe: {name}"] = values
    cells = [
        (name, *(_shown(values[place]) for place in (0, len(values) // 2, -1)), f"{len(values):,}")
        for name, values in found.items()
        if values
    ]
    if not cells:
        return UNKNOWN
    header = ("curve", "first", "half way", "last", "values")
    return f"{Table(header, cells).markdown()}\n\n{_steps(rows, probes)}"


def _steps(rows: list[dict[str, Any]], probes: list[dict[str, Any]]) -> str:
    watched = [row["collapse"] for row in rows if "collapse" in row]
    collapsed = (
        f"{sum(value > 0 for value in watched):,} of {len(watched):,} said that features collapse" if watched else ""
    )
    said = [
        f"{len(rows):,} recorded steps",
        f"{sum(row.get('skipped', 0) for row in rows):,} of them were left out",
        collapsed or f"whether features collapse: {UNKNOWN}",
        "" if probes else f"probe: {UNKNOWN}, the run had none",
    ]
    return "; ".join(text for text in said if text) + "."


def _shown(value: Any) -> str:
    """As a reader of settings would write it: a recipe's parts by their names, lists with commas."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if is_dataclass(value):
        return " ".join(f"{name} {_shown(part)}" for name, part in vars(value).items() if part is not None)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ("; " if any(map(is_dataclass, value)) else ", ").join(map(_shown, value))
    return str(value)
