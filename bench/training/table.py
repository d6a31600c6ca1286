"""The rows of `trocar bench training` as Markdown. Within a table the fastest stands first, whoever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.console.table import Table
from ..rows.cells import conditions, known_cell, share_cell, spread_cell, spread_text

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> str:
    """As docs/performance.md has it: a paragraph and a table for every part and config, then machine and versions."""
    parts = {"peers": peers, "decoder mask": peers, "end to end": end_to_end, "steps": steps, "ranks": ranks}
    told = [
        f"**{title(kind, group[0])}**\n\n{render(group)}{absent(group)}"
        for kind, render in parts.items()
        for group in grouped([entry for entry in rows if entry["part"] == kind])
    ]
    return "\n\n".join([*told, _conditions(rows)]) if rows else "nothing was measured"


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one config at a time, ranks of all sizes together."""
    groups: dict[str, list[Row]] = {}
    for entry in rows:
        keys = ("objective", "encoder", "precision", "frames", "resolution", "mask_ratio", "decoder_mask_ratio")
        keys += ("views_per_span", "changed", "videos")
        batch = None if entry["part"] == "ranks" else entry["batch"]
        groups.setdefault(repr([*(entry.get(key) for key in keys), batch]), []).append(entry)
    return list(groups.values())


def title(kind: str, entry: Row) -> str:
    names = {
        "peers": "The step against peers",
        "decoder mask": "The step with a decoder mask against the same tokens dropped eagerly",
        "end to end": "From videos to trained clips",
        "steps": "The step and its data",
    }
    ratio = f", mask {entry['mask_ratio']}" if entry["mask_ratio"] else ""
    ratio += f", decoder mask {entry['decoder_mask_ratio']}" if entry.get("decoder_mask_ratio") else ""
    changed = f" ({entry['changed']})" if entry.get("changed") else ""
    clips = f", {entry['batch']} clips a step" if kind != "ranks" else ""
    clips += f"; {', '.join(entry['videos'])}" if "videos" in entry else ""
    return (
        f"{names.get(kind, 'Ranks')}{changed}: {entry['objective'].upper()}, {entry['encoder']}, {entry['frames']} x "
        f"{entry['resolution']} px{ratio}, {entry['precision']}{clips}"
    )


def by_speed(rows: Sequence[Row]) -> list[Row]:
    """Those that have a speed, the fastest first."""
    measured = [entry for entry in rows if "clips_per_second" in entry and not entry.get("reason")]
    return sorted(measured, key=lambda entry: -entry["clips_per_second"]["median"])


PEERS = {
    "step": "{arm}",
    "clips/s": spread_cell("clips_per_second"),
    "core seconds a clip": "{core_seconds_per_clip[median]:.3f}",
    "ours is so many times as fast": lambda row: _ratio(row, "ours_against_it"),
    "in core seconds": lambda row: _ratio(row, "ours_against_it_in_core_seconds"),
    "loss differs by at most": known_cell("largest_loss_difference", "{:.1e}"),
}


def peers(rows: Sequence[Row]) -> str:
    first = rows[0]
    return Table.of(by_speed(rows), PEERS).markdown() + (
        f"\n\n{first['rounds']} rounds in turns, medians; losses of all steps are equal to {first['tolerance']:g}, relative."
    )


def _ratio(row: Row, key: str) -> str:
    return spread_text(row[key]) if row.get(key) else "1"


def _ratios(row: Row) -> str:
    found = row.get("ours_against_it", {})
    return "; ".join(f"{name.removeprefix('trocar, ')} {spread_text(ratio)}" for name, ratio in found.items()) or "-"


END_TO_END = {
    "from videos to trained clips": "{arm}",
    "clips/s": spread_cell("clips_per_second"),
    "decoding's share": known_cell("decode_percent", "{[median]:.0f} %"),
    "waits for data": "{data_wait_percent[median]:.0f} %",
    "reads by": "{input}",
    "ours is so many times as fast": _ratios,
}


def end_to_end(rows: Sequence[Row]) -> str:
    first = rows[0]
    told = f"{first['rounds']} rounds of {first['clips_a_round']} clips in turns, medians."
    return f"{Table.of(by_speed(rows), END_TO_END).markdown()}\n\n{told}"


STEPS = {
    "data": "{arm}",
    "clips/s": spread_cell("clips_per_second"),
    "visible tokens/s": "{visible_tokens_per_second[median]:,.0f}",
    "TFLOP/s": lambda row: f"{row['flops_per_second']['median'] / 1e12:.3g}",
    "of the ceiling": share_cell("of_matrix_ceiling"),
    "of resident": share_cell("of_resident"),
    "waits for data": "{data_wait_percent[median]:.0f} %",
    "amplification": known_cell("amplification", "{:.2f}"),
    "memory": lambda row: f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
}


def steps(rows: Sequence[Row]) -> str:
    ceiling = rows[0]["matrix_flops_per_second"] / 1e12
    sets = len(rows[0]["clips_per_second_by_set"])
    return Table.of(by_speed(rows), STEPS).markdown() + (
        f"\n\nMedians of {sets} sets of inputs; ceiling: {ceiling:.3g} TFLOP/s of a large {rows[0]['ceiling_dtype']} product."
    )


def _least_to_most(row: Row) -> str:
    rates = [rate for ranks in row["clips_per_second_by_rank"] for rate in ranks]
    return f"{min(rates):.2f} .. {max(rates):.2f}"


RANKS = {
    "ranks": "{world_size}",
    "clips/s": spread_cell("clips_per_second"),
    "a rank's clips/s, least to most": _least_to_most,
    "efficiency": share_cell("efficiency"),
}


def ranks(rows: Sequence[Row]) -> str:
    return Table.of(sorted(rows, key=lambda entry: entry["world_size"]), RANKS).markdown()


def absent(rows: Sequence[Row]) -> str:
    """Arms without a ratio, and why."""
    lines = [f"- {entry['arm']}: {entry['reason']}" for entry in rows if entry.get("reason")]
    return "\n\n" + "\n".join(lines) if lines else ""


def _conditions(rows: Sequence[Row]) -> str:
    entry = rows[0]
    intervals = [entry["ours_against_it"] for entry in rows if entry.get("ours_against_it")]
    flat = [ratio for found in intervals for ratio in (found.values() if "median" not in found else [found])]
    said = f"Intervals hold the median with {flat[0]['confidence']:.1%}. " if flat else ""
    return said + conditions(entry, f"{entry['threads']} threads")
