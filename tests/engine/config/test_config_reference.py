"""The reference of config keys: whole, and what it says of ranges and defaults is what the settings do."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from trocar.engine.config.reference import LISTED, SECTIONS, accepted, meanings, section_table

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "config.md").read_text(encoding="utf-8")
KINDS: dict[str, Any] = {**SECTIONS, **LISTED}


def rows(section: str) -> list[list[str]]:
    lines = section_table(section).splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("section", KINDS)
def test_every_key_has_its_meaning_type_and_default(section: str) -> None:
    found = rows(section)
    assert [row[0] for row in found] == [f"`{field.name}`" for field in dataclasses.fields(KINDS[section])]
    for key, meaning, words, limits, default in found:
        assert len(meaning) > 5, key
        assert words, key
        assert default, key
        if "number" in words and key not in ("`first_draw`", "`aspect`", "`scale`", "`temporal_scale`", "`blocks`"):
            assert limits, f"{section}.{key}: a number without a range"


@pytest.mark.parametrize("section", KINDS)
def test_the_page_has_these_tables(section: str) -> None:
    name = section.replace(".", "-")
    assert f"<!-- rows: config-{name} -->\n{section_table(section)}\n<!-- end of rows -->" in PAGE, (
        "run trocar bench report"
    )


def test_texts_are_those_of_their_keys() -> None:
    run = meanings(SECTIONS["run"])
    assert run["seed"] == "of weights, draws, crops and masks"
    assert run["log_every"] == run["checkpoint_every"] == "in optimizer steps"
    assert "GPU" in run["device"]
    assert "precision" not in run["device"]
    assert meanings(SECTIONS["objective"])["mask_ratio"] == "share of the cells hidden by the tube mask"


def test_ranges_are_what_a_refusal_says() -> None:
    assert accepted(SECTIONS["data"], "views_per_span") == "1 .. 64"
    assert accepted(SECTIONS["data"], "sample_fps") == "a positive rate"
    assert accepted(SECTIONS["data"], "source_caps") == "shares between 0 and 1"
    assert accepted(SECTIONS["data"], "balance").startswith("0 (the corpus as it is) .. 1")
    assert accepted(SECTIONS["optim"], "ema") == "[first, last], each 0 .. 1"
    assert accepted(SECTIONS["run"], "dir") == ""
