"""The rows of `trocar bench training` as Markdown. Within a table the fastest stands first, whoever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.console.table import Table

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> str:
    """As docs/performance.md has it: a paragraph and a table for every part and config, then machine and versions."""
    parts = []
    for kind, render in (
        ("peers", peers),
        ("decoder mask", peers),
        ("end to end", end_to_end),
        ("steps", steps),
        ("ranks", ranks),
    ):
        for group in grouped([entry for entry in rows if entry["part"] == kind]):
            text = render(group) + absent(group)
            parts += [f"**{title(kind, group[0])}**", text]
    return "\n\n".join([*parts, conditions(rows)]) if rows else "nothing was measured"


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one config at a time, ranks of all sizes together."""
    groups: dict[str, list[Row]] = {}
    for entry in rows:
        keys = (
            "objective",
            "encoder",
            "precision",
            "frames",
            "resolution",
            "mask_ratio",
            "decoder_mask_ratio",
            "views_per_span",
            "changed",
            "videos",
        )
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


def peers(rows: Sequence[Row]) -> str:
    header = (
        "step",
        "clips/s",
        "core seconds a clip",
        "ours is so many times as fast",
        "in core seconds",
        "loss differs by at most",
    )
    lines = []
    for entry in by_speed(rows):
        cells = [entry["arm"], _range(entry["clips_per_second"]), f"{entry['core_seconds_per_clip']['median']:.3f}"]
        if ratio := entry.get("ours_against_it"):
            cells += [_interval(ratio), _interval(entry["ours_against_it_in_core_seconds"])]
            cells += [f"{entry['largest_loss_difference']:.1e}"]
        else:
            cells += ["1", "1", "-"]
        lines.append(cells)
    first = rows[0]
    return Table(header, lines).markdown() + (
        f"\n\n{first['rounds']} rounds in turns, medians; losses of all steps are equal to {first['tolerance']:g}, relative."
    )


def end_to_end(rows: Sequence[Row]) -> str:
    header = (
        "from videos to trained clips",
        "clips/s",
        "decoding's share",
        "waits for data",
        "reads by",
        "ours is so many times as fast",
    )
    lines = []
    for entry in by_speed(rows):
        ratios = entry.get("ours_against_it", {})
        told = "; ".join(f"{name.removeprefix('trocar, ')} {_interval(ratio)}" for name, ratio in ratios.items())
        decode = entry.get("decode_percent")
        waits = _percent(entry["data_wait_percent"])
        lines.append(
            (entry["arm"], _range(entry["clips_per_second"]), _percent(decode), waits, entry["input"], told or "-")
        )
    first = rows[0]
    return (
        Table(header, lines).markdown()
        + f"\n\n{first['rounds']} rounds of {first['clips_a_round']} clips in turns, medians."
    )


def steps(rows: Sequence[Row]) -> str:
    header = (
        "data",
        "clips/s",
        "visible tokens/s",
        "TFLOP/s",
        "of the ceiling",
        "of resident",
        "waits for data",
        "amplification",
        "memory",
    )
    lines = []
    for entry in by_speed(rows):
        amplification = entry["amplification"]
        lines.append(
            (
                entry["arm"],
                _range(entry["clips_per_second"]),
                f"{entry['visible_tokens_per_second']['median']:,.0f}",
                f"{entry['flops_per_second']['median'] / 1e12:.3g}",
                f"{100 * entry['of_matrix_ceiling']['median']:.0f} %",
                f"{100 * entry['of_resident']['median']:.0f} %",
                _percent(entry["data_wait_percent"]),
                "-" if amplification is None else f"{amplification:.2f}",
                f"{entry['peak_memory_bytes'] / 1e9:.2f} GB",
            )
        )
    ceiling = rows[0]["matrix_flops_per_second"] / 1e12
    sets = len(rows[0]["clips_per_second_by_set"])
    return Table(header, lines).markdown() + (
        f"\n\nMedians of {sets} sets of inputs; ceiling: {ceiling:.3g} TFLOP/s of a large {rows[0]['ceiling_dtype']} product."
    )


def ranks(rows: Sequence[Row]) -> str:
    lines = []
    for entry in sorted(rows, key=lambda entry: entry["world_size"]):
        rates = [rate for ranks in entry["clips_per_second_by_rank"] for rate in ranks]
        least_to_most = f"{min(rates):.2f} .. {max(rates):.2f}"
        efficiency = f"{100 * entry['efficiency']:.0f} %"
        lines.append((str(entry["world_size"]), _range(entry["clips_per_second"]), least_to_most, efficiency))
    return Table(("ranks", "clips/s", "a rank's clips/s, least to most", "efficiency"), lines).markdown()


def absent(rows: Sequence[Row]) -> str:
    """Arms without a ratio, and why."""
    lines = [f"- {entry['arm']}: {entry['reason']}" for entry in rows if entry.get("reason")]
    return "\n\n" + "\n".join(lines) if lines else ""


def conditions(rows: Sequence[Row]) -> str:
    entry = rows[0]
    intervals = [entry["ours_against_it"] for entry in rows if entry.get("ours_against_it")]
    flat = [ratio for found in intervals for ratio in (found.values() if "median" not in found else [found])]
    said = f"Intervals hold the median with {flat[0]['confidence']:.1%}. " if flat else ""
    machine = f"{entry['machine']['device']}, {entry['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(entry["versions"].items()))
    return f"{said}{machine}; {versions}; commit {entry['commit']}; {entry['time']}."


def _range(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['low']:.2f} .. {values['high']:.2f})"


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} .. {ratio['high']:.2f})"


def _percent(values: dict[str, float] | None) -> str:
    return "-" if values is None else f"{values['median']:.0f} %"
