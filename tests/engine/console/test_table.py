"""One writer for all tables: it refuses rows of another length, and what it writes reads back as it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trocar.engine.console.table import Table

ROOT = Path(__file__).resolve().parents[3]


def test_rows_of_another_length_are_refused() -> None:
    for row in (("x",), ("x", "y", "z")):
        with pytest.raises(ValueError, match=f"2 columns .* a row of {len(row)} cells"):
            Table(("a", "b"), [("1", "2"), row])


def test_markdown_html_and_text() -> None:
    table = Table(("name", "n"), [("a | b\nc", "1"), ("", "<2>")])
    assert table.markdown() == "| name | n |\n|---|---|\n| a \\| b c | 1 |\n| | <2> |"
    assert "<tr><th>name</th><th>n</th></tr>" in table.html()
    assert "<td>&lt;2&gt;</td>" in table.html()
    assert Table(("", "count"), [("first", "1"), ("x", "20")]).text() == "       count\nfirst      1\nx         20"


def test_columns_say_what_stands_in_them() -> None:
    rows = [{"name": "a", "seconds": {"median": 1.25}}, {"name": "b", "seconds": {"median": 20.0}}]
    columns = {"": "{name}", "s": "{seconds[median]:.1f}", "twice": lambda row: f"{2 * row['seconds']['median']:g}"}
    assert Table.of(rows, columns).rows == [("a", "1.2", "2.5"), ("b", "20.0", "40")]
    assert Table.of([], columns).markdown() == "| | s | twice |\n|---|---|---|"
    with pytest.raises(KeyError, match="name"):
        Table.of([{"seconds": {"median": 1.0}}], columns)


def test_nobody_writes_tables_by_hand() -> None:
    """The separator of a Markdown table, or a row's tag, in any other source is a table without the check."""
    sources = [
        path for folder in ("loaders", "ssl", "engine", "bench", "judge") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 100
    by_hand = []
    for path in sources:
        code = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        if path != ROOT / "engine/console/table.py" and re.search(r"\|---|<th>|['\"]\| ", code):
            by_hand.append(str(path.relative_to(ROOT)))
    assert by_hand == []
