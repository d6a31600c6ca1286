"""Options: every number has its range from one place, and what lies outside is refused by one line, never by a traceback."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from trocar.engine.cli import build_parser, main
from trocar.engine.config.error import ConfigError
from trocar.engine.step.device import choose_device
from trocar.judge.downstream.backbones import load_backbone
from trocar.loaders.options import COUNT, POSITIVE, SHARE, VIEWS, Number


def commands(parser: argparse.ArgumentParser, name: str = "trocar") -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child, part in action.choices.items():
                yield from commands(part, f"{name} {child}")
        else:
            yield name, action


ACTIONS = list(commands(build_parser()))
NUMBERS = [
    (f"{name} {(action.option_strings or [action.dest])[0]}", action)
    for name, action in ACTIONS
    if isinstance(action.type, Number)
]


def test_every_number_has_a_range_from_one_place() -> None:
    assert not [(name, action.dest) for name, action in ACTIONS if action.type in (int, float)]
    assert len(NUMBERS) >= 50
    numeric = (int, float)
    assert not [
        (name, action.dest)
        for name, action in ACTIONS
        if isinstance(action.default, numeric)
        and not isinstance(action.default, bool)
        and not isinstance(action.type, Number)
    ]


@pytest.mark.parametrize(("name", "action"), NUMBERS, ids=[name for name, _ in NUMBERS])
def test_what_lies_outside_is_refused(name: str, action: argparse.Action) -> None:
    kind = action.type
    assert isinstance(kind, Number)
    below = kind.least if kind.is_open else kind.least - 1
    for text in (f"{below:g}", "-inf", "nan", "1e999", "many", "", "9" * 400):
        with pytest.raises(argparse.ArgumentTypeError, match="is not accepted; give a"):
            kind(text)
    if action.default is not None:
        for value in action.default if isinstance(action.default, list) else [action.default]:
            assert kind(str(value)) == value


def test_what_lies_inside_is_taken_and_said() -> None:
    assert (COUNT("1"), VIEWS("64"), SHARE("1"), POSITIVE("1e-9")) == (1, 64, 1.0, 1e-9)
    assert str(VIEWS) == "a whole number, 1 .. 64"
    assert str(SHARE) == "a number above 0, at most 1"
    assert str(POSITIVE) == "a number above 0"


@pytest.mark.parametrize(
    "command",
    [
        ["view", "recon", "run", "--clips", "0"],
        ["embed", "corpus", "--out", "out", "--frames", "0"],
        ["plan", "demo_cpu", "--views", "0"],
        ["pretrain", "demo_cpu", "--dry-run", "0"],
        ["finetune", "cholec80", "data", "random:small", "--out", "out", "--minimum", "1.5"],
    ],
)
def test_a_refusal_names_the_option_and_what_is_accepted(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command)
    said = capsys.readouterr().err
    assert f"argument {command[-2]}: {command[-1]} is not accepted; give a" in said


def test_clips_that_no_patches_fit_into_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"random:small: 15 frames at 224 px .* --frames that are a multiple of 2"):
        load_backbone("random:small", frames=15)
    with pytest.raises(ConfigError, match=r"16 frames at 220 px .* --resolution that is one of 16"):
        load_backbone("random:small", resolution=220)
    with pytest.raises(ConfigError, match=r"16 frames at 225 px .* --resolution that is one of 16"):
        load_backbone("random:timm:vit_tiny_patch16_224", resolution=225)


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "cuda:-1", "meta", "cuda:99"])
def test_devices_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {name}"):
        choose_device(name)


def test_texts_of_numbers_are_refused_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["embed", str(tmp_path), "--out", str(tmp_path), "--part", "1/1"],
        ["embed", str(tmp_path), "--out", str(tmp_path), "--part", "0/0"],
        ["cluster", str(tmp_path), "--out", str(tmp_path), "--levels", "2,x"],
        ["cluster", str(tmp_path), "--out", str(tmp_path), "--levels", "0"],
        ["cluster", str(tmp_path), "--out", str(tmp_path), "--levels", ""],
        ["profile", "demo_cpu", "--steps", "5:5"],
        ["profile", "demo_cpu", "--steps=-1:2"],
        ["profile", "demo_cpu", "--ranks", "x"],
        ["bench", "training", "--ranks", "0"],
    ):
        assert main(command) in (1, 2), command
        said = capsys.readouterr().err
        assert said.startswith("trocar: "), command
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["pretrian"], "pretrain"),
        (["bench", "adit"], "audit"),
        (["view", "recom"], "recon"),
        (["--print-completion", "bsh"], "bash"),
    ],
)
def test_the_nearest_choice_is_named(typed: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(typed)
    assert ended.value.code == 2
    assert f"no such choice {typed[-1]!r}; did you mean {meant}? (choose from " in capsys.readouterr().err


def test_nothing_is_guessed_where_nothing_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["NONSENSE"])
    assert "no such choice 'NONSENSE' (choose from " in capsys.readouterr().err
