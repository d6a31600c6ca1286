"""The project's speed goals, on one GPU, ratios in one run, and what was measured of each. No CPU's row counts for one.

A figure is looked up in the rows of bench/results; a goal without one is said to be unmeasured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine.console.table import Table
from ..rows.row import select_rows

Row = dict[str, Any]
Found = tuple[str, Row]  # the figure as text, and the row behind it


@dataclass(frozen=True)
class Goal:
    """what, goal: as the design has them. find: of the GPU's rows, the figures; () where there is none."""

    what: str
    goal: str
    find: Callable[[Sequence[Row]], list[Found]]


def kernel(operators: Sequence[str], *figures: str) -> Callable[[Sequence[Row]], list[Found]]:
    """Of `trocar bench kernels` in the shapes of ViT-B."""
    texts = {
        "times_eager": "{times_eager:.1f}x eager",
        "of_floor": "{of_floor:.0%} of the bound",
        "of_copy_bandwidth": "{of_copy_bandwidth:.0%} of copy bandwidth",
    }
    form = "{operator} " * (len(operators) > 1) + ", ".join(texts[figure] for figure in figures)

    def find(rows: Sequence[Row]) -> list[Found]:
        mine = select_rows(rows, "kernels", size="base")
        return [(form.format_map(row), row) for row in mine if row["operator"] in operators]

    return find


def training(part: str, objective: str, text: Callable[[Row], str | None]) -> Callable[[Sequence[Row]], list[Found]]:
    """Of `trocar bench training`, one of its parts. text: the figure of a row that has it."""

    def find(rows: Sequence[Row]) -> list[Found]:
        mine = select_rows(rows, "training", part=part, objective=objective)
        return [(found, row) for row in mine if not row.get("changed") and (found := text(row)) is not None]

    return find


def _against(name: str) -> Callable[[Row], str | None]:
    def text(row: Row) -> str | None:
        ratio = row.get("ours_against_it")
        is_it = row["arm"] == name and ratio and row["precision"] == "bfloat16"
        return f"{ratio['median']:.2f}x ({ratio['low']:.2f} .. {ratio['high']:.2f})" if is_it and ratio else None

    return text


def _usual_pipeline(row: Row) -> str | None:
    ratios = [(name, found) for name, found in (row.get("ours_against_it") or {}).items() if isinstance(found, dict)]
    return ", ".join(f"{name.removeprefix('trocar, ')} {found['median']:.1f}x" for name, found in ratios) or None


def _utilization(row: Row) -> str | None:
    if row["arm"] != "resident" or row["encoder"] != "large":
        return None
    return f"{row['of_matrix_ceiling']['median']:.0%}"


def _of_resident(row: Row) -> str | None:
    if "proxies" not in row["arm"]:
        return None
    return f"{row['encoder']}, {row['views_per_span']} views a span: {row['of_resident']['median']:.0%}"


def _amplification(rows: Sequence[Row]) -> list[Found]:
    mine = [row for row in select_rows(rows, "loading") if row["arm"] in ("trocar dali", "trocar packed")]
    return [(f"{row['arm']} {row['amplification']:.2f}", row) for row in mine if row.get("amplification")]


def _loader(rows: Sequence[Row]) -> list[Found]:
    peers = [row for row in select_rows(rows, "loading") if row.get("ours_against_it", {}).get("trocar dali")]
    best = sorted(peers, key=lambda row: row["ours_against_it"]["trocar dali"]["median"])[:1]
    return [(f"{row['ours_against_it']['trocar dali']['median']:.2f}x {row['arm']}", row) for row in best]


def _level(rows: Sequence[Row]) -> list[Found]:
    others = {"blocked_torch_seconds": "blocked torch", "cuml_seconds": "cuML"}
    return [
        (
            ", ".join(f"{row[key] / row['kernel_seconds']:.2f}x {name}" for key, name in others.items() if key in row),
            row,
        )
        for row in select_rows(rows, "clustering_level", rows=10_000_000, width=768)
    ]


GOALS = (
    Goal(
        "patch_embed fwd+bwd, ViT-B, 90 % masked, against normalise + Conv3d + position + gather",
        "15x, and 60 % of the bound (bytes or matrix units, whichever binds)",
        kernel(["patch_embed"], "times_eager", "of_floor"),
    ),
    Goal(
        "pixel_loss fwd+bwd against the eager VideoMAE loss",
        "15x, 80 % of copy bandwidth",
        kernel(["pixel_loss"], "times_eager", "of_copy_bandwidth"),
    ),
    Goal(
        "feature_loss, decoder_tokens, ema",
        "80 % of copy bandwidth",
        kernel(["feature_loss", "decoder_tokens", "ema"], "of_copy_bandwidth"),
    ),
    Goal(
        "MAE step against Hugging Face VideoMAEForPreTraining, same weights and masks, equal loss, bf16, SDPA",
        "2x",
        training("peers", "mae", _against("Hugging Face, SDPA")),
    ),
    Goal(
        "the same against it under torch.compile",
        "1.3x",
        training("peers", "mae", _against("Hugging Face, torch.compile")),
    ),
    Goal(
        "MAE step with VideoMAE V2's decoder mask against the same model dropping the same tokens eagerly",
        "2x",
        training("decoder mask", "mae", _against("Hugging Face, SDPA")),
    ),
    Goal(
        "JEPA step against the same objective built eagerly from Hugging Face VJEPA2 blocks",
        "2x",
        training("peers", "jepa", _against("Hugging Face, eager attention")),
    ),
    Goal(
        "end to end, original videos on disk to trained clips/s, against the usual pipeline (decord or torchcodec workers, CPU "
        "augmentation, that model) on the same machine",
        "5x from originals with span reuse (unique spans/s beside it), 10x from proxies",
        training("end to end", "mae", _usual_pipeline),
    ),
    Goal(
        "model FLOP utilisation (visible tokens only), ViT-L, of the measured matrix ceiling",
        "50 %",
        training("steps", "mae", _utilization),
    ),
    Goal(
        "trained clips/s with real video against the same step on resident data, from proxies",
        "95 % for ViT-L; for ViT-B with the span reuse that `trocar plan` names, or 95 % of NVDEC's measured ceiling",
        training("steps", "mae", _of_resident),
    ),
    Goal("amplification", "1.5 from proxies; the GOP bound from originals", _amplification),
    Goal(
        "ClipLoader against torchcodec, decord and stock DALI readers, same clips, same machine", "2x the best", _loader
    ),
    Goal(
        "one k-means level at 10 M x 768 in bounded device memory, against cuVS and against blocked torch assignment, same rows, "
        "centroids, iterations",
        "1x cuVS in float32, 2x the blocked torch version in fp16; equal inertia",
        _level,
    ),
    Goal("ema against torch._foreach_lerp_ plus a cast", "1.5x", kernel(["ema"], "times_eager")),
)


def table(rows: Sequence[Row]) -> str:
    """Markdown: every goal, measured with the card and the commit behind it, or unmeasured."""
    gpu = [row for row in rows if "capability" in row["machine"]]
    cells = []
    for goal in GOALS:
        found = goal.find(gpu)
        cell = "; ".join(text for text, _ in found)
        if found:
            row = found[0][1]
            cell = f"measured: {cell} ({row['machine']['device']}, commit {row['commit']})"
        cells.append((goal.what, goal.goal, cell or "unmeasured"))
    return Table(("what", "goal", "on a GPU"), cells).markdown()
