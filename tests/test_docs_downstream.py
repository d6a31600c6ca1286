"""The commands of docs/downstream.md: all are understood, and the first one of fine-tuning and of the matrix run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from dataset_fixtures import FIXTURES

from trocar.engine.cli import build_parser, main
from trocar.judge.downstream.matrix import load_matrix
from trocar.judge.downstream.protocol import Protocol, read_protocol

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "downstream.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)[1:] for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_are_understood(command: list[str]) -> None:
    options, left = build_parser().parse_known_args(command)
    assert not [text for text in left if text.startswith("-")]
    if command[0] == "finetune":
        read_protocol(options.protocol, [*options.overrides, *left])
    if command[:2] == ["bench", "downstream"]:
        assert len(load_matrix(options.config).datasets) == 16


def test_settings_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`(\w+)`", TEXT)) & {
        "train_views",
        "segments",
        "crops",
        "balances",
        "mixup",
        "cutmix",
        "erasing",
    }
    assert len(named) == 7
    assert named <= {*Protocol.__dataclass_fields__}


def test_the_first_command_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FIXTURES["cholec80"](tmp_path / "cholec80")
    command = [text.replace("/data", str(tmp_path)).replace("runs/first", "random:tiny") for text in COMMANDS[0]]
    command = [str(tmp_path / text) if text.startswith("runs/") else text for text in command]
    small = [
        "--frames",
        "2",
        "--resolution",
        "32",
        "--device",
        "cpu",
        "epochs=1",
        "segments=1",
        "crops=1",
        "train_views=1",
    ]
    assert main([*command, *small]) == 0
    said = capsys.readouterr().out
    assert "no interval: one" in said  # the fixture has one test video
    assert "majority baseline" in said
    assert "flags: " in said
