"""The commands and names of docs/workflow.md: all are understood."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from trocar.engine.cli import build_parser
from trocar.judge.workflow.choices import FeatureChoices, HeadChoices, MetricChoices
from trocar.judge.workflow.matrix import load_workflow

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "workflow.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)[1:] for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_are_understood(command: list[str]) -> None:
    options, left = build_parser().parse_known_args(command)
    assert not left
    if command[0] == "bench":
        assert len(load_workflow(options.config).datasets) == 13


def test_every_choice_of_a_metric_is_told() -> None:
    hints = get_type_hints(MetricChoices)
    for field in fields(MetricChoices):
        for value in get_args(hints[field.name]):
            assert value in TEXT, (field.name, value)
    for name in ("stages", "layers", "memory", "patience"):
        assert name in HeadChoices.__dataclass_fields__
        assert f"`{name}`" in TEXT
    for value in get_args(get_type_hints(FeatureChoices)["clips"]):
        assert value in TEXT
