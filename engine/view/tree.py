"""`trocar view tree`: the clusters of a tree, level under level, with their exemplars; PNG, or one self-contained HTML page.

A page shows all clusters, a picture of every cluster the largest below it; what is left out is counted.

Shapes: N spans.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.curate.nodes import NODES_NAME
from ...loaders.draw.tree import ClusterTree
from ..config.error import ConfigError
from .exemplars import Exemplar, exemplar_pictures
from .numbers import write_numbers

PICTURES, SIDE, NAMED_SOURCES = 4, 96, 3
LETTER_WIDTH = 0.085  # of the text beside a picture's exemplars, in the sides of these
PICTURED, DRAWN_BELOW = 1000, 4  # clusters of a page that have pictures, and of a picture that stand below one
UNNAMED = "(not given)"
STYLE = (
    "body{font:14px sans-serif;margin:2em}details,.leaf{margin:.3em 0 .3em 1.2em}summary{cursor:pointer}"
    f"figure{{display:inline-block;margin:2px;width:{SIDE}px;vertical-align:top}}"
    "figcaption{font-size:9px;overflow-wrap:anywhere}small{color:#666}"
)
LEGEND = (
    "Level.number of a cluster (level 1: the leaves), its spans, their share of all spans, and the most common sources where "
    f"videos have any. Pictures: up to {PICTURES} spans nearest to the centre of a leaf, or of leaves below a cluster; the "
    "largest centred square of the span's middle frame, with its file and when a player shows it. A triangle opens what is below."
)

Pictures = Mapping[int, Exemplar]


@dataclass(frozen=True)
class ShownCluster:
    """A cluster and what is shown of those below it. name: "level.number". share: of all spans. sources: the most common ones.
    left_out, left_out_spans: clusters below that are not shown."""

    name: str
    spans: int
    share: float
    sources: str
    exemplars: list[int]
    below: list[ShownCluster]
    left_out: int
    left_out_spans: int

    def walk(self, depth: int = 0) -> Iterator[tuple[int, ShownCluster]]:
        """(levels below the top, cluster), this one first."""
        yield depth, self
        for cluster in self.below:
            yield from cluster.walk(depth + 1)

    @property
    def title(self) -> str:
        return f"{self.name}: {self.spans:,} spans ({self.share:.1%})"

    @property
    def rest(self) -> str:
        """How much of what is below it is not shown; nothing where all is."""
        return f"{self.left_out:,} smaller left out, {self.left_out_spans:,} spans" if self.left_out else ""


def view_tree(
    folder: Path, corpus: Corpus | None, out: Path, most: int | None = None, numbers: Path | None = None
) -> list[str]:
    """Draws the tree in `folder`, a .png or .html file; with a corpus pictures and sources too. most: clusters shown of every one
    above, and on the top level; where None all on a page, DRAWN_BELOW in a picture. numbers: a JSON file of the clusters. Returns
    lines for the terminal. Raises ConfigError on another suffix, CorpusError."""
    if out.suffix not in (".png", ".html") or (most is not None and most < 1):
        raise ConfigError(f"--out {out}: give a file that ends in .png or .html, and --most at least one cluster")
    tree = ClusterTree.read(folder)
    most = DRAWN_BELOW if most is None and out.suffix == ".png" else most
    top = shown_clusters(folder, tree, corpus, most)
    rows = [row for cluster in top.below for row in cluster.walk()]
    pictures: Pictures = {}
    if corpus is not None:
        pictured = sorted((cluster for _, cluster in rows), key=lambda cluster: -cluster.spans)[:PICTURED]
        pictures = exemplar_pictures(tree, corpus, [span for cluster in pictured for span in cluster.exemplars], SIDE)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".html":
        out.write_text(_page(top, pictures), encoding="utf-8")
    else:
        _draw("\n".join(filter(None, (top.title, top.rest))), rows, pictures, out)
    if numbers is not None:
        write_numbers(numbers, asdict(top))
    all_clusters = pq.read_table(folder / NODES_NAME, columns=["spans"])["spans"].to_numpy()
    lines = [f"{len(rows):,} of {np.count_nonzero(all_clusters):,} clusters, {len(pictures):,} pictures: {out}"]
    if corpus is None:
        lines.append("no pictures and no names of files without the corpus that was embedded: add --corpus CORPUS")
    elif not pictures:
        lines.append(f"none of the tree's videos can be read from {corpus.path}: is it the corpus that was embedded?")
    return lines


def shown_clusters(folder: Path, tree: ClusterTree, corpus: Corpus | None, most: int | None) -> ShownCluster:
    """The whole tree as one cluster, those of the top level below it. most: below one; all where None."""
    below: dict[tuple[int, int], list[dict]] = {}
    for node in pq.read_table(folder / NODES_NAME).to_pylist():
        if node["spans"]:
            below.setdefault((node["level"], node["parent"]), []).append(node)
    depth, total = tree.paths.shape[1], int((tree.leaf >= 0).sum())
    sources = None if corpus is None else _sources(tree, corpus)

    def make(level: int, number: int, name: str, spans: int, exemplars: list[int]) -> ShownCluster:
        children = sorted(below.get((level - 1, number), []), key=lambda node: -node["spans"])
        named = "" if sources is None or level > depth else sources(level, number)
        shown = [
            make(level - 1, node["node"], f"{level - 1}.{node['node']}", node["spans"], node["exemplars"][:PICTURES])
            for node in children[:most]
        ]
        rest = [] if most is None else children[most:]
        left_out_spans = sum(node["spans"] for node in rest)
        return ShownCluster(name, spans, spans / total, named, exemplars, shown, len(rest), left_out_spans)

    return make(depth + 1, -1, str(folder), total, [])


def _sources(tree: ClusterTree, corpus: Corpus):
    """A function (level, node) -> the most common sources among its spans, with their shares."""
    described = {row["id"]: row["source"] or UNNAMED for row in corpus.scan("id", "source")}
    if {*described.values()} == {UNNAMED}:
        return lambda level, node: ""
    names, of_video = np.unique(
        [described.get(name, "(not in the corpus)") for name in tree.video_ids], return_inverse=True
    )
    known = tree.leaf >= 0
    source, paths, depth = of_video[tree.video[known]], tree.paths[tree.leaf[known]], tree.paths.shape[1]
    tables = {}
    for level in range(1, depth + 1):
        codes = paths[:, depth - level].astype(np.int64) * len(names) + source
        tables[level] = np.bincount(codes, minlength=(int(paths[:, depth - level].max()) + 1) * len(names))

    def of(level: int, node: int) -> str:
        counts = tables[level][node * len(names) : (node + 1) * len(names)]
        common = np.argsort(-counts, kind="stable")[:NAMED_SOURCES]
        return ", ".join(f"{names[place]} {counts[place] / counts.sum():.0%}" for place in common if counts[place])

    return of


def _page(top: ShownCluster, pictures: Pictures) -> str:
    title = html.escape(top.title)
    lines = [
        f"<!doctype html><html><head><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style></head><body>"
    ]
    lines.append(f"<h1>{title}</h1><p><small>{html.escape(LEGEND)}</small></p>")
    lines += [line for cluster in top.below for line in _nested(cluster, pictures, is_open=True)]
    return "\n".join([*lines, _left_out(top), "</body></html>"]) + "\n"


def _nested(cluster: ShownCluster, pictures: Pictures, is_open: bool = False) -> list[str]:
    images = "".join(_figure(span, pictures[span]) for span in cluster.exemplars if span in pictures)
    head = f"{html.escape(cluster.title)} <small>{html.escape(cluster.sources)}</small><br>{images}"
    if not cluster.below:
        return [f"<div class='leaf'>{head}</div>"]
    inner = [line for child in cluster.below for line in _nested(child, pictures)]
    return [f"<details{' open' if is_open else ''}><summary>{head}</summary>", *inner, _left_out(cluster), "</details>"]


def _figure(span: int, exemplar: Exemplar) -> str:
    return (
        f"<figure><img width='{SIDE}' alt='span {span}' src='data:image/png;base64,{_png(exemplar.picture)}'>"
        f"<figcaption>{html.escape(exemplar.caption)}</figcaption></figure>"
    )


def _left_out(cluster: ShownCluster) -> str:
    return f"<p><small>{cluster.rest}</small></p>" if cluster.rest else ""


def _png(picture: NDArray[np.uint8]) -> str:
    from matplotlib.image import imsave  # slow to import: only where something is drawn

    buffer = io.BytesIO()
    imsave(buffer, picture, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _draw(title: str, rows: list[tuple[int, ShownCluster]], pictures: Pictures, out: Path) -> None:
    """A row a cluster, children under and to the right of their parent, then its exemplars."""
    from matplotlib.figure import Figure

    texts = [(depth, [cluster.title, *filter(None, (cluster.sources, cluster.rest))]) for depth, cluster in rows]
    first_picture = max(depth + LETTER_WIDTH * len(line) for depth, lines in texts for line in lines) + 0.3
    width = first_picture + PICTURES
    figure = Figure(figsize=(0.6 * width, 0.6 * len(rows) + 0.5), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(-0.2, width), ylim=(len(rows), 0), aspect="equal", title=title)
    axis.set_axis_off()
    above: dict[int, int] = {}  # by depth, the row of the latest cluster there
    for row, (depth, cluster) in enumerate(rows):
        above[depth] = row
        if depth:
            axis.plot(
                [depth - 0.8, depth - 0.8, depth - 0.1], [above[depth - 1] + 0.75, row + 0.5, row + 0.5], color="0.7"
            )
        axis.text(depth, row + 0.5, "\n".join(texts[row][1]), va="center", fontsize=6)
        for place, span in enumerate(span for span in cluster.exemplars if span in pictures):
            left = first_picture + place
            axis.imshow(pictures[span].picture, extent=(left, left + 0.95, row + 0.95, row), aspect="equal")
    axis.set(xlim=(-0.2, width), ylim=(len(rows), 0))
    figure.savefig(out, dpi=120)
