"""`trocar bench report`: the tables of README.md and docs/*.md, written from the rows in bench/results.

What stands between `<!-- rows: NAME -->` and `<!-- end of rows -->` is the table of that name (`tables.TABLES`) and nothing else: a
figure changed by hand is found by `--check`. A table outside such a pair that holds figures must say why it has no rows, by a
comment on the line before it, `<!-- no rows: REASON -->`, or name the test that prints it in its section. A measured figure in a
sentence has a row of benchmark "noted": the page, and the words that hold it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...loaders.video.error import TrocarError
from ..rows.row import all_rows
from .tables import TABLES

BLOCK = re.compile(r"<!-- rows: (?P<name>[a-z0-9-]+) -->\n(?P<body>.*?)<!-- end of rows -->", re.DOTALL)
NO_ROWS = re.compile(r"<!-- no rows: \S.* -->")
NAMES_A_TEST = re.compile(r"tests/(\w+/)*test_\w+\.py")
# A cell that is a number, perhaps with a unit, a spread or a second number.
FIGURE = re.compile(r"[~+-]?\d[\d,]*(\.\d+)?( ?(%|x|[a-zA-Z]{1,4}(/[a-z]+)?))?( ?(\(|\+-|/|to|\.\.|,).*)?")
MEASURED_CELLS = 3


class ReportError(TrocarError):
    """A page that cannot be rendered; the message names it."""


@dataclass(frozen=True)
class Page:
    path: Path
    before: str
    after: str

    @property
    def is_current(self) -> bool:
        return self.before == self.after


def render(text: str, rows: Sequence[dict[str, Any]], where: str) -> str:
    """A page with all its tables made anew. Raises ReportError on a name that is unknown or a pair that is not closed."""
    if text.count("<!-- rows: ") != len(BLOCK.findall(text)) or text.count("<!-- end of rows -->") != text.count(
        "<!-- rows: "
    ):
        raise ReportError(f"{where}: a `<!-- rows: NAME -->` without its `<!-- end of rows -->`, or the reverse")

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ReportError(f"{where}: no table is named {name}; there are {', '.join(TABLES)}")
        return f"<!-- rows: {name} -->\n{TABLES[name](rows)}\n<!-- end of rows -->"

    return BLOCK.sub(fill, text)


def render_pages(root: Path) -> list[Page]:
    """README.md and docs/*.md of a checkout. Raises ReportError."""
    rows = all_rows(root / "bench" / "results")
    pages = []
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        pages.append(Page(path, text, render(text, rows, str(path))))
    return pages


def misquoted(root: Path) -> list[dict[str, Any]]:
    """The "noted" rows of a checkout whose words do not stand in their page, however its lines are broken."""

    def flowing(text: str) -> str:
        return " ".join(text.split())

    noted = [row for row in all_rows(root / "bench" / "results") if row["benchmark"] == "noted"]
    pages = {page: flowing((root / page).read_text(encoding="utf-8")) for page in {row["page"] for row in noted}}
    return [row for row in noted if flowing(row["text"]) not in pages[row["page"]]]


def unbacked(text: str) -> list[str]:
    """The first lines of a page's tables that hold figures, are in no pair of markers, and do not say where these are from."""
    kept = BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text)
    lines = kept.split("\n")
    found, section_start = [], 0
    for number, line in enumerate(lines):
        if line.startswith("#"):
            section_start = number
        is_first = line.startswith("|") and not (number and lines[number - 1].startswith("|"))
        if not is_first:
            continue
        end = next((place for place in range(number, len(lines)) if not lines[place].startswith("|")), len(lines))
        section_end = next((place for place in range(end, len(lines)) if lines[place].startswith("#")), len(lines))
        cells = [cell.strip() for row in lines[number + 2 : end] for cell in row.strip("|").split("|")[1:]]
        if sum(FIGURE.fullmatch(cell) is not None for cell in cells) < MEASURED_CELLS:
            continue
        before = lines[number - 1] if number else ""
        if not (NO_ROWS.fullmatch(before) or NAMES_A_TEST.search("\n".join(lines[section_start:section_end]))):
            found.append(line)
    return found
