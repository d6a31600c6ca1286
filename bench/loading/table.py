"""The rows of `trocar bench loading` as Markdown: ratios first, then speeds, then what was not measured and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.console.table import Table


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As docs/performance.md has it. rows: of one run of `bench_loading`, at least one."""
    parts = [ratio_table(rows), speed_table(rows), _absent(rows), _conditions(rows)]
    return "\n\n".join(part for part in parts if part)


def ratio_table(rows: Sequence[dict[str, Any]]) -> str:
    """Ours against every peer; "" where there is none."""
    measured = [entry for entry in rows if "clips_per_second" in entry]
    peers = [entry for entry in measured if entry["ours_against_it"]]
    names = list(dict.fromkeys(name for entry in peers for name in entry["ours_against_it"]))
    if not peers:
        return ""
    lines = []
    for entry in peers:
        ratios = [entry["ours_against_it"].get(name) for name in names]
        cells = ["" if r is None else f"{r['median']:.2f} ({r['low']:.2f} .. {r['high']:.2f})" for r in ratios]
        lines.append((entry["arm"], *cells))
    return Table(("times as many clips/s as", *names), lines).markdown()


def speed_table(rows: Sequence[dict[str, Any]]) -> str:
    """What every arm reached and cost; "" where none was measured."""
    measured = [entry for entry in rows if "clips_per_second" in entry]
    if not measured:
        return ""
    header = (
        "arm",
        "clips/s",
        "core seconds a clip",
        "amplification",
        "MB read a clip",
        "difference (to neighbours)",
        "used as",
    )
    lines = []
    for entry in measured:
        bytes_per_clip = entry["bytes_per_clip"]
        lines.append(
            (
                entry["arm"],
                f"{entry['clips_per_second']:.2f}",
                f"{entry['cpu_seconds_per_clip']:.3f}",
                _or_unknown(entry["amplification"]),
                _or_unknown(None if bytes_per_clip is None else bytes_per_clip / 1e6),
                f"{entry['difference']:.2f} ({entry['to_neighbours']:.2f})",
                f"{entry['library']}{'; ' + entry['way'] if entry['way'] else ''}",
            )
        )
    return Table(header, lines).markdown()


def _or_unknown(value: float | None) -> str:
    return "not reported" if value is None else f"{value:.2f}"


def _absent(rows: Sequence[dict[str, Any]]) -> str:
    return "\n".join(f"- {entry['arm']}: {entry['reason']}" for entry in rows if entry["reason"])


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
    machine = f"{entry['machine']['device']}, {entry['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(entry["versions"].items()))
    lines.append(f"{machine}; {versions}; commit {entry['commit']}; {entry['time']}.")
    return "\n".join(lines)
