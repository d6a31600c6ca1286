"""The tables that README.md and docs/*.md have from rows, by the name in their markers. Each takes all rows and picks its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ...engine import recipes
from ...engine.config.file import load_config
from ...engine.config.reference import LISTED, SECTIONS, section_table
from ...engine.console.table import Table
from ..curation import balance, clustering
from ..gpu import table as gpu_table
from ..kernels import kernels
from ..loading import decode, proxies
from ..loading.loading import ON_PROXIES
from ..loading.table import ratio_table, speed_table
from ..plan import check as plan_check
from ..plan import table as plan_table
from ..plan.cluster import load_cluster
from ..plan.report import corpus_size, make_plan
from ..rows.row import select_rows
from ..training import collapse, feed
from ..training import table as training_table
from . import goals

Row = dict[str, Any]
UNMEASURED = "unmeasured"
RECIPES = ("demo_cpu", "demo_jepa_cpu", "surgrec_jepa", "surgrec_mae", "surgrec_mae_unbalanced", "vjepa2_vitl")
PAPER_VIDEOS, PAPER_FRAMES = 10_535, 214_500_000
OURS = "trocar"


def of(rows: Sequence[Row], benchmark: str, *, gpu: bool = False) -> list[Row]:
    """The rows of a benchmark that were measured on a GPU, or on a CPU."""
    return [row for row in select_rows(rows, benchmark) if ("capability" in row["machine"]) == gpu]


def loading_summary(rows: Sequence[Row]) -> str:
    """Our ratios to the fastest peer in one sentence."""
    mine = {row["arm"]: row for row in of(rows, "loading")}
    peers = [row for row in mine.values() if OURS in row.get("ours_against_it", {})]
    best = max(peers, key=lambda row: row["clips_per_second"])
    ratios = best["ours_against_it"]
    text = (
        f"From originals that is {ratios[OURS]['median']:.2f} times as many clips/s as the fastest peer, {best['arm']}"
    )
    text += f", and {best['cpu_seconds_per_clip'] / mine[OURS]['cpu_seconds_per_clip']:.2f} times fewer core seconds"
    if "trocar packed" in ratios:
        text += f"; from proxies {ratios['trocar packed']['median']:.0f} times as many"
    text += f". Amplification is {mine[OURS]['amplification']:.2f} from originals"
    if mine.get("PyAV", {}).get("amplification"):
        everything = mine["PyAV"]["amplification"]
        text += f", where the pictures of the GOP up to the clip's last frame would be {everything:.2f} (PyAV decodes them all)"
    if "trocar packed" in mine:
        text += f", and {mine['trocar packed']['amplification']:.2f} from proxies"
    return f"{text}."


def videos_of(arm: str) -> str:
    """A peer and what it reads."""
    name = arm.removesuffix(ON_PROXIES)
    return f"{name}, 1080p originals" if name == arm else f"{name}, the same proxies"


def loading_short(rows: Sequence[Row]) -> str:
    """README's: clips/s of everybody, the fastest first, and what a clip costs."""
    mine = [row for row in of(rows, "loading") if "clips_per_second" in row]
    names = {OURS: "**trocar**, 1080p originals", "trocar packed": "**trocar**, proxies"}
    columns = {
        "clips of 16 frames, two CPU cores": lambda row: names.get(row["arm"]) or videos_of(row["arm"]),
        "clips/s": "{clips_per_second:.2f}",
        "core seconds a clip": "{cpu_seconds_per_clip:.3f}",
    }
    return Table.of(sorted(mine, key=lambda row: -row["clips_per_second"]), columns).markdown()


def training_short(rows: Sequence[Row]) -> str:
    """README's: the MAE's step against the fastest peer, and both ends of training against the usual pipeline, on a CPU."""
    mine = [row for row in of(rows, "training") if row["objective"] == "mae" and row.get("ours_against_it")]
    peers = [row for row in mine if row["part"] == "peers" and row["precision"] == "bfloat16"]
    best = max(peers, key=lambda row: row["clips_per_second"]["median"])
    usual = [row for row in mine if row["part"] == "end to end"][-1]
    ratios = {name: f"{ratio['median']:.1f}" for name, ratio in usual["ours_against_it"].items()}
    times = f"{best['ours_against_it']['median']:.1f} times as fast as Hugging Face's"
    return (
        f"On such cores a step of VideoMAE (ViT-S, bfloat16, the same loss) is {times}, and from videos on a disk to trained clips "
        f"it is {ratios['trocar, originals']} times as fast as the usual pipeline ({usual['input'].partition(',')[0]}) from the "
        f"same originals, {ratios['trocar, proxies']} times from proxies."
    )


def kernel_speeds(rows: Sequence[Row]) -> str:
    mine = of(rows, "kernels", gpu=True)
    if mine:
        card = mine[0]["machine"]["device"]
        return f"{kernels.table(mine)}\n\n{card}, commit {mine[0]['commit']}."
    unknown = (UNMEASURED,) * (len(kernels.COLUMNS) - 1)
    return Table(kernels.COLUMNS, [(name, *unknown) for name in kernels.CASES]).markdown()


def decoding(rows: Sequence[Row]) -> str:
    mine = of(rows, "decode", gpu=True)
    return f"{decode.table(mine)}\n\n{mine[0]['machine']['device']}." if mine else f"Decoding on NVDEC: {UNMEASURED}."


def feeding(rows: Sequence[Row]) -> str:
    return feed.table(select_rows(rows, "feed")) or f"Decoding beside training: {UNMEASURED}."


def cluster_trees(rows: Sequence[Row]) -> str:
    """Whole trees on a CPU, and the rate of the passes over the most rows."""
    mine = of(rows, "clustering")
    largest = max(mine, key=lambda row: row["rows"])
    multiplying = [value for name, value in largest["steps"].items() if name.startswith(("refined", "assigned"))]
    flops = 2 * largest["levels"][0] * largest["width"]  # of a row in a pass
    rate = flops * largest["rows"] * len(multiplying) / sum(multiplying)
    told = f"A pass multiplies {flops / 1e6:.2f} MFLOP a row, over {largest['rows'] / 1e6:g} M rows at {rate / 1e9:.0f} GFLOP/s."
    return f"{clustering.table(mine)}\n\n{told}"


def plan_accuracy(rows: Sequence[Row]) -> str:
    mine = of(rows, "plan")
    if not mine:
        return f"The plan's model against the clock: {UNMEASURED}."
    errors = [abs(row["predicted_clips_per_second"] / row["measured_clips_per_second"] - 1) for row in mine]
    first = mine[0]
    facts = f"Off by {statistics.median(errors):.0%} in the median, {max(errors):.0%} at most; "
    facts += f"load average {first['load_average']:.1f} on {first['machine']['device']}, commit {first['commit']}."
    return f"{plan_check.table(mine)}\n\n{facts}"


def published(config: str) -> Callable[[Sequence[Row]], str]:
    """A shipped config beside the recipe that it is of; no measured rows."""
    return lambda rows: recipes.recipe(config)


def paper(config: str, accumulation: int) -> Callable[[Sequence[Row]], str]:
    """`trocar plan` on the paper's corpus and eight A100, by these rows."""

    def text(rows: Sequence[Row]) -> str:
        loaded, cluster = load_config(config, [f"optim.accumulation={accumulation}"]), load_cluster("a100_8")
        corpus = corpus_size(None, PAPER_VIDEOS, PAPER_FRAMES, loaded, cluster)
        return plan_table.table(make_plan(loaded, cluster, corpus, rows))

    return text


def section(name: str) -> Callable[[Sequence[Row]], str]:
    """The keys of a section of a config; they need no rows."""
    return lambda rows: section_table(name)


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "balance": lambda rows: balance.table(of(rows, "balance")),
    "clustering": cluster_trees,
    "collapse": lambda rows: collapse.table(of(rows, "jepa_collapse")),
    **{f"config-{name.replace('.', '-')}": section(name) for name in (*SECTIONS, *LISTED)},
    "decode": decoding,
    "feed": feeding,
    "goals": goals.table,
    "gpu-beside": gpu_table.beside,
    "gpu-kernels": gpu_table.kernels,
    "gpu-peers": gpu_table.peers,
    "gpu-short": gpu_table.short,
    "gpu-steps": gpu_table.steps,
    "gpu-videos": gpu_table.videos,
    "kernels": kernel_speeds,
    "loading-ratios": lambda rows: ratio_table(of(rows, "loading")),
    "loading-short": loading_short,
    "loading-speeds": lambda rows: speed_table(of(rows, "loading")),
    "loading-summary": loading_summary,
    "paper-jepa": paper("surgrec_jepa", 16),
    "paper-mae": paper("surgrec_mae_unbalanced", 4),
    "plan": plan_accuracy,
    "proxies": lambda rows: proxies.table(of(rows, "proxies")),
    **{f"recipe-{name.replace('_', '-')}": published(name) for name in RECIPES},
    "training-short": training_short,
    "training": lambda rows: training_table.table(of(rows, "training")),
}
