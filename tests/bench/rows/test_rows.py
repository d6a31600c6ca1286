"""Rows of measurements: picked, told in cells, and the turns in which they are measured."""

from __future__ import annotations

from pathlib import Path

from trocar.bench.rows.cells import known_cell, share_cell, spread_cell, spread_text
from trocar.bench.rows.ratios import ratio
from trocar.bench.rows.row import all_rows, select_rows, write_rows
from trocar.bench.rows.turns import in_turns


def test_every_arm_is_the_first_one_in_turn() -> None:
    assert [in_turns("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert in_turns([], 3) == []


def test_rows_are_picked_by_their_values(tmp_path: Path) -> None:
    rows = [{"benchmark": "a", "rows": 1}, {"benchmark": "a", "rows": 2}, {"benchmark": "b", "rows": 1}]
    assert select_rows(rows, "a") == rows[:2]
    assert select_rows(rows, "a", rows=2) == rows[1:2]
    assert select_rows(rows, "a", other=2) == []
    write_rows(tmp_path / "2.jsonl", rows[:1])
    write_rows(tmp_path / "1" / "gpu.jsonl", rows[1:])
    assert all_rows(tmp_path) == [*rows[1:], rows[0]]


def test_cells() -> None:
    speed = {"median": 1.234, "low": 1.0, "high": 12.5}
    row = {"speed": speed, "share": 0.256, "shares": {"median": 0.5}, "unknown": None}
    assert spread_cell("speed").format_map(row) == spread_text(speed) == "1.23 (1.00 .. 12.50)"
    assert spread_cell("speed", 1, "to").format_map(row) == "1.2 (1.0 to 12.5)"
    assert (share_cell("share")(row), share_cell("shares")(row)) == ("26 %", "50 %")
    assert (known_cell("share", "{:.1f} s")(row), known_cell("speed", "{[median]:.0f}")(row)) == ("0.3 s", "1")
    assert (known_cell("unknown", "{}")(row), known_cell("absent", "{}", "none")(row)) == ("-", "none")


def test_a_ratio_is_taken_round_by_round() -> None:
    found = ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0])
    assert (found["median"], found["low"], found["high"]) == (3.0, 2.0, 4.0)
