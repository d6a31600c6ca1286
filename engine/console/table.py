"""Tables: the one place where rows become Markdown, HTML or text. A row with more or fewer cells than the header is refused."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


class Table:
    """header: names of columns. rows: of as many cells; "" is an empty one. Raises ValueError on a row of another length."""

    def __init__(self, header: Iterable[str], rows: Iterable[Sequence[str]] = ()) -> None:
        self.header, self.rows = tuple(header), [tuple(row) for row in rows]
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{len(self.header)} columns {self.header} and a row of {len(row)} cells: {row}")

    @classmethod
    def of(cls, rows: Iterable[Any], columns: Mapping[str, str | Callable[[Any], str]]) -> Table:
        """A row for each of `rows`. columns: names, and what stands below: a format of a row's keys, as "{seconds:.1f} s" or
        "{clips_per_second[median]:.2f}", or a function of the row."""
        cells = columns.values()
        return cls(columns, [[c.format_map(row) if isinstance(c, str) else c(row) for c in cells] for row in rows])

    def markdown(self) -> str:
        """GitHub's; bars and ends of lines in a cell are escaped."""
        lines = [
            "".join(["|", *(f" {_escaped(cell)} |" if cell else " |" for cell in row)])
            for row in (self.header, *self.rows)
        ]
        return "\n".join([lines[0], "|---" * len(self.header) + "|", *lines[1:]])

    def html(self, shades: Sequence[Sequence[float]] | None = None) -> str:
        """shades: of every row's cells behind the first one, 0 (none) .. 1."""
        lines = ["".join(f"<th>{html.escape(name)}</th>" for name in self.header)]
        for row, strengths in zip(self.rows, shades or [()] * len(self.rows), strict=True):
            styles = [f' style="background:rgba(30,90,200,{strength:.2f})"' for strength in strengths]
            styles = styles or [""] * (len(row) - 1)
            cells = zip(row, ["", *styles], strict=True)
            lines.append("".join(f"<td{style}>{html.escape(cell)}</td>" for cell, style in cells))
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

    def text(self) -> str:
        """For a terminal: the first column to the left, the others to the right."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in (self.header, *self.rows)
        ]
        return "\n".join(line.rstrip() for line in lines)


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").splitlines())


def hours(value: float) -> str:
    """A cell of hours: two digits behind the point, or, of minutes and seconds, two that say something."""
    return f"{value:,.2f}" if value >= 0.1 or not value else f"{value:.2g}"
