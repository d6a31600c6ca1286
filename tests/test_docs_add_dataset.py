"""docs/add_dataset.md, executed: its reader and its card, its commands and its Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from dataset_fixtures import text, video

from trocar.engine.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "add_dataset.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    reader, example = blocks("python")
    (card,) = blocks("yaml")
    (commands,) = blocks("sh")
    Path("knots.py").write_text(reader)
    Path("knots.yaml").write_text(card)
    for number in range(1, 6):
        video(Path(f"knots/videos/tie_{number:02d}.mp4"), 3)
        hands = ("left", "right", "both") if number % 2 else ("right", "left", "left")
        text(
            Path(f"knots/labels/tie_{number:02d}.csv"), "second,hand", *(f"{s},{hand}" for s, hand in enumerate(hands))
        )
    ran = [main(shlex.split(command)[1:]) for command in commands.splitlines()]
    assert ran == [0, 0]
    assert "no fault found" in capsys.readouterr().out
    assert Path("table.csv").read_text().count("\n") == 11
    exec(compile(example, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == "10 Knots\n"
    Path("knots/videos/tie_03.mp4").unlink()
    assert main(["bench", "audit", "knots.yaml", "knots"]) == 1
    message = capsys.readouterr().err
    assert "tie_03.mp4; it comes from https://example.org/knots" in message
