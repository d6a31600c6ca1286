"""Tables of measured rows, and the cells that several of them write alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...engine.console.table import Table

Row = Mapping[str, Any]


def table_of(columns: Mapping[str, str | Callable[[Any], str]]) -> Callable[[Iterable[Row]], str]:
    """What writes rows as Markdown, with these columns of `Table.of`."""
    return lambda rows: Table.of(rows, columns).markdown()


def spread_cell(key: str, digits: int = 2, to: str = "..") -> str:
    """The format of a median with its low and high, or of a ratio with its interval: 1.23 (1.20 .. 1.25)."""
    return f"{{{key}[median]:.{digits}f}} ({{{key}[low]:.{digits}f}} {to} {{{key}[high]:.{digits}f}})"


def spread_text(values: Mapping[str, float]) -> str:
    """The same of such values themselves."""
    return spread_cell("0").format(values)


def share_cell(key: str) -> Callable[[Row], str]:
    """A share in percent; of a spread its median."""

    def cell(row: Row) -> str:
        value = row[key]
        return f"{100 * (value['median'] if isinstance(value, Mapping) else value):.0f} %"

    return cell


def known_cell(key: str, form: str, unknown: str = "-") -> Callable[[Row], str]:
    """form: of the value, as "{:.2f}"; `unknown` where it is None or the row does not have it."""
    return lambda row: unknown if row.get(key) is None else form.format(row[key])


def conditions(row: Row, with_cores: str) -> str:
    """On what, with what and when a row was measured. with_cores: how many it had, in words."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(row["versions"].items()))
    return f"{row['machine']['device']}, {with_cores}; {versions}; commit {row['commit']}; {row['time']}."
