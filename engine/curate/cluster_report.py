"""A tree's report: sizes and inertia of every level, how even it is before and after balancing, what lies where; with pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.curate.nodes import NODES_NAME
from ...loaders.curate.settings import ClusterSummary
from ...loaders.draw.shares import leaf_quotas
from ...loaders.draw.tree import ClusterTree
from ..console.table import Table
from ..inputs.finished import REPORT_NAME, report_mark
from ..view.exemplars import exemplar_pictures
from .draws import contact_sheet, effective_number

SIZES_NAME, SHEET_NAME = "sizes.png", "exemplars.png"
LISTED_NODES, SHEET_NODES, PER_NODE = 40, 12, 4


def write_report(summary: ClusterSummary, corpus: Corpus | None) -> Path:
    """Writes `report.md` and `sizes.png`, with a corpus also the contact sheet of exemplars. Returns the report's path."""
    out = summary.out
    tree = ClusterTree.read(out)
    lines = ["# Clusters", "", *summary.lines(), "", *_levels(summary, tree)]
    _plot_sizes(tree, out / SIZES_NAME)
    lines += ["", f"![sizes of the clusters]({SIZES_NAME})"]
    if corpus is not None:
        lines += ["", *_contents(tree, corpus)]
        if _exemplars(tree, corpus, out):
            lines += ["", f"![spans nearest to the centres of the largest clusters of the top level]({SHEET_NAME})"]
    lines += ["", report_mark(corpus)]
    (out / REPORT_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out / REPORT_NAME


def leaf_weights(tree: ClusterTree, balance: float) -> tuple[np.ndarray, np.ndarray]:
    """((L,) spans of every leaf, (L,) its share of the draws)."""
    sizes = np.bincount(tree.leaf[tree.leaf >= 0], minlength=len(tree.paths))
    used = np.flatnonzero(sizes)
    order = used[np.lexsort(tree.paths[used].T[::-1])]
    shares = np.zeros(len(sizes))
    free = np.full(len(order), np.inf)
    shares[order] = leaf_quotas(tree.paths[order], sizes[order], 1, [balance] * tree.paths.shape[1], free)
    return sizes, shares


def _levels(summary: ClusterSummary, tree: ClusterTree) -> list[str]:
    sizes, shares = leaf_weights(tree, 1)
    header = (
        "level",
        "clusters",
        "with spans",
        "least",
        "median",
        "largest",
        "inertia",
        "clusters in effect",
        "balanced",
    )
    lines = []
    depth = tree.paths.shape[1]
    for level in range(depth):
        node = tree.paths[:, depth - 1 - level]
        known = node >= 0
        spans = np.bincount(node[known], weights=sizes[known]).astype(np.int64)
        drawn = np.bincount(node[known], weights=shares[known])
        filled = spans[spans > 0]
        lines.append(
            (
                f"{level + 1}",
                f"{summary.levels[level]:,}",
                f"{len(filled):,}",
                f"{filled.min():,}",
                f"{np.median(filled):,.0f}",
                f"{filled.max():,}",
                f"{summary.inertia[level]:,.4g}",
                f"{effective_number(spans):,.1f}",
                f"{effective_number(drawn):,.1f}",
            )
        )
    return [Table(header, lines).markdown()]


def _contents(tree: ClusterTree, corpus: Corpus) -> list[str]:
    """Which sources and domains the clusters of the top level hold."""
    described = {row["id"]: row for row in corpus.scan("id", "source", "domain")}
    missing = {"source": "(not in the corpus)", "domain": "(not in the corpus)"}
    lines = []
    level = tree.paths.shape[1]
    top = np.where(tree.leaf >= 0, tree.paths[tree.leaf, 0], -1)
    for column in ("source", "domain"):
        given = [described.get(name, missing)[column] for name in tree.video_ids]
        if not any(given):
            lines += [f"No video has a {column}; name it in the table that `trocar index` reads.", ""]
            continue
        names = np.array([name or "(not given)" for name in given])[tree.video]
        cells = []
        nodes = Counter(top[top >= 0].tolist()).most_common()
        for node, spans in nodes[:LISTED_NODES]:
            shares = Counter(names[top == node].tolist()).most_common(4)
            held = ", ".join(f"{name} {count / spans:.0%}" for name, count in shares)
            cells.append((f"{level}.{node}", f"{spans:,}", held))
        lines += [Table(("cluster of the top level", "spans", f"{column}s"), cells).markdown(), ""]
    return lines


def _plot_sizes(tree: ClusterTree, out: Path) -> None:
    from matplotlib.figure import Figure

    sizes, shares = leaf_weights(tree, 1)
    order = np.argsort(-sizes)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(sizes[order] / sizes.sum(), label="the corpus as it is")
    axis.plot(np.sort(shares)[::-1], label="balanced")
    axis.set(yscale="log", xlabel="leaf, the largest first", ylabel="share of the draws")
    axis.legend(frameon=False)
    figure.savefig(out, dpi=120)


def _exemplars(tree: ClusterTree, corpus: Corpus, out: Path) -> bool:
    """Writes the contact sheet; False where no exemplar is in the corpus."""
    nodes = pq.read_table(out / NODES_NAME).to_pylist()
    top = max(node["level"] for node in nodes)
    largest = sorted((node for node in nodes if node["level"] == top), key=lambda node: -node["spans"])[:SHEET_NODES]
    wanted = [span for node in largest for span in node["exemplars"][:PER_NODE]]
    pictures = exemplar_pictures(tree, corpus, wanted, 128)
    if not pictures:
        return False
    titled: list[tuple[str, NDArray[np.uint8] | None]] = []
    for node in largest:  # a row each, or half of one
        found = [pictures[span].picture for span in node["exemplars"][:PER_NODE] if span in pictures]
        titled += [(f"{top}.{node['node']}", picture) for picture in found]
        titled += [("", None)] * (PER_NODE - len(found))
    contact_sheet([picture for _, picture in titled], [title for title, _ in titled], out / SHEET_NAME)
    return True
