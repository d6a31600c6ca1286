"""docs/recipes.md's tables: every shipped config beside the published recipe that it is of, key by key, with sources.

Theirs are in configs/published/recipes.yaml. A key that trains nothing else (where files lie, threads, what is logged) has no
row, and neither has one that says nothing beside the others, as a predictor's of an MAE.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from .config.file import CONFIGS, load_config
from .config.settings import Config, plain
from .console.table import Table
from .draws.changes import FREE

PUBLISHED = CONFIGS / "published" / "recipes.yaml"
# Of the data, which clips come and not how; model.start and model.init are free for a run that goes on, not for one that begins.
NOT_OF_A_RECIPE = FREE - {"model.start", "model.init"} | {"data.lanes", "data.loader"}
OF_MAE = ("model.decoder_", "model.start", "objective.mask_ratio", "objective.decoder_", "objective.targets")
OF_JEPA = (
    "model.predictor_", "objective.masks", "objective.truncate", "objective.bucket", "objective.distance", "objective.teacher",
    "optim.ema",
)  # fmt: skip
OF_A_TREE = ("data.balance", "data.max_repeats", "data.thin")


class RecipeError(Exception):
    """What the published side does not say, or says without need; the message names config and key."""


@cache  # a second to parse, and asked for once a config
def published() -> dict[str, Any]:
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))


def keys_of(config: Config) -> dict[str, Any]:
    """The keys that say what is learned from what, and how, with their values."""
    moot = OF_JEPA if config.objective.kind == "mae" else OF_MAE
    if config.data.tree is None:
        moot += OF_A_TREE
    if config.objective.truncate == "none":
        moot += ("objective.truncate_batch",)
    if not config.optim.cooldown:
        moot += ("optim.cooldown",)
    moot += ("data.stride",) if config.data.stride is None else ("data.sample_fps",)
    if config.optim.steps is not None:
        moot += ("optim.epochs",)
    found = {
        f"{section}.{key}": value
        for section, keys in plain(config).items()
        for key, value in keys.items()
        if section in ("data", "model", "objective", "optim") or (section, key) == ("run", "precision")
    }
    return {key: value for key, value in found.items() if key not in NOT_OF_A_RECIPE and not key.startswith(moot)}


def recipe(name: str) -> str:
    """The Markdown of one config: what is as published in a sentence, then a table of what is not. Raises RecipeError."""
    tree = published()
    entry, ours = tree["recipes"][name], keys_of(load_config(name))
    theirs, reasons = entry["keys"], entry.get("reasons", {})
    if unsaid := [key for key in ours if key not in theirs]:
        raise RecipeError(f"{name}: {', '.join(unsaid)}: add theirs to {PUBLISHED}")
    source = tree["sources"][entry["source"]]
    same, rows = [], []
    for key, value in ours.items():
        published_value, where, *reason = theirs[key]
        if published_value == _given(value):
            same.append(f"`{key}` {_shown(_given(value))}")
            continue
        why = reasons.get(key) or (reason[0] if reason else entry.get("reason"))
        if not why:
            raise RecipeError(
                f"{name}: {key}: {_given(value)} is not theirs, {published_value}; say why in {PUBLISHED}"
            )
        rows.append((f"`{key}`", _shown(_given(value)), _shown(published_value), _file(where, tree), why))
    rows += [(what, own, other, _file(where, tree), why) for what, own, other, where, why in entry.get("beside", ())]
    table = Table(("", "ours", "theirs", "theirs is in", "why"), rows).markdown()
    return (
        f"Theirs: {source['repository']}, commit {source['commit'][:7]}.\n\nAs published: {'; '.join(same)}.\n\n{table}"
    )


def _given(value: Any) -> Any:
    """Without what a part of a list leaves as it is."""
    if isinstance(value, list):
        return [_given(item) for item in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return value


def _file(where: str, tree: dict[str, Any]) -> str:
    for short, path in tree["files"].items():
        where = where.replace(short, path)
    return where


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "; ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(item) for item in value)}]" if value else "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
