"""The rows of `trocar bench loading` as Markdown: ratios first, then speeds, then what was not measured and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.console.table import Table
from ..rows.cells import conditions, known_cell, spread_text


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As docs/performance.md has it. rows: of one run of `bench_loading`, at least one."""
    absent = "\n".join(f"- {entry['arm']}: {entry['reason']}" for entry in rows if entry["reason"])
    parts = [ratio_table(rows), speed_table(rows), absent, _conditions(rows)]
    return "\n\n".join(part for part in parts if part)


def ratio_table(rows: Sequence[dict[str, Any]]) -> str:
    """Ours against every peer; "" where there is none."""
    peers = [entry for entry in _measured(rows) if entry["ours_against_it"]]
    names = list(dict.fromkeys(name for entry in peers for name in entry["ours_against_it"]))
    lines = [
        (entry["arm"], *(spread_text(ratios[name]) if name in ratios else "" for name in names))
        for entry in peers
        for ratios in [entry["ours_against_it"]]
    ]
    return Table(("times as many clips/s as", *names), lines).markdown() if peers else ""


SPEEDS = {
    "arm": "{arm}",
    "clips/s": "{clips_per_second:.2f}",
    "core seconds a clip": "{cpu_seconds_per_clip:.3f}",
    "amplification": known_cell("amplification", "{:.2f}", "not reported"),
    "MB read a clip": lambda row: (
        f"{row['bytes_per_clip'] / 1e6:.2f}" if row["bytes_per_clip"] is not None else "not reported"
    ),
    "difference (to neighbours)": "{difference:.2f} ({to_neighbours:.2f})",
    "used as": lambda row: "; ".join(filter(None, (row["library"], row["way"]))),
}


def speed_table(rows: Sequence[dict[str, Any]]) -> str:
    """What every arm reached and cost; "" where none was measured."""
    measured = _measured(rows)
    return Table.of(measured, SPEEDS).markdown() if measured else ""


def _measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in rows if "clips_per_second" in entry]


def _conditions(rows: Sequence[dict[str, Any]]) -> str:
    entry = rows[0]
    intervals = [ratio for row in rows for ratio in row.get("ours_against_it", {}).values()]
    moving = [row["moving_share"] for row in rows if "moving_share" in row]
    lines = [
        f"{entry['clips']} clips of {entry['frames_a_clip']} frames, stride {entry['stride']}, to {entry['resolution']} px, "
        f"batches of {entry['batch']}, from {'; '.join(entry['videos'])}.",
        f"{entry['rounds']} rounds; medians"
        + (f", intervals at {intervals[0]['confidence']:.1%}." if intervals else "."),
    ]
    if moving:
        lines.append(f"{min(moving):.0%} of the frames move enough to be told from their neighbours.")
    lines.append(conditions(entry, f"{entry['cores']} cores"))
    return "\n".join(lines)
