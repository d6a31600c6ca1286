"""Every shipped config beside the published recipe: all keys compared, none twice, and the page as it is generated."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from yaml import safe_load

from trocar.bench.report.tables import RECIPES, TABLES
from trocar.engine import recipes
from trocar.engine.config.file import CONFIGS, load_config
from trocar.engine.recipes import RecipeError, keys_of, published, recipe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def test_every_shipped_config_is_compared() -> None:
    shipped = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert shipped == set(RECIPES) == set(published()["recipes"])
    text = PAGE.read_text(encoding="utf-8")
    for name in shipped:
        assert f"{recipe(name)}\n<!-- end of rows -->" in text, "run `trocar bench report`"
        assert f"recipe-{name.replace('_', '-')}" in TABLES


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_that_a_config_sets_is_in_its_table(name: str) -> None:
    text, keys = recipe(name), keys_of(load_config(name))
    tree = safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    given = {f"{section}.{key}" for section in ("data", "model", "objective", "optim") for key in tree[section]}
    # Of no effect on what is learned, or none beside the others: a stride that is null.
    left_out = {"data.corpus", "optim.accumulation", "data.stride" if tree["data"].get("stride", 0) is None else ""}
    assert given - left_out <= set(keys)
    assert all(text.count(f"`{key}`") == 1 for key in keys)


def test_nothing_is_said_of_keys_that_no_config_has() -> None:
    tree = published()
    used = {entry: set[str]() for entry in ("videomae", "jepa", "vjepa2")}
    for name in RECIPES:
        used[tree["recipes"][name]["source"]] |= set(keys_of(load_config(name)))
    for entry in tree["recipes"].values():
        assert set(entry["keys"]) <= used[entry["source"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["keys"].pop("optim.betas"), r"surgrec_mae: optim\.betas: add theirs"),
        (
            lambda entry: entry["keys"].update({"data.flip": [0.5, "f"]}),
            r"data\.flip: 0\.0 is not theirs, 0\.5; say why",
        ),
    ],
)
def test_what_is_unsaid_is_refused(change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = deepcopy(published())
    change(tree["recipes"]["surgrec_mae"])
    monkeypatch.setattr(recipes, "published", lambda: tree)
    with pytest.raises(RecipeError, match=message):
        recipe("surgrec_mae")
