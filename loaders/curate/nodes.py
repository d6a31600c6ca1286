"""`nodes.parquet`: every cluster of a tree, with its size and the spans that show best what it is.

Columns: level (1 for the leaves), node, parent (-1 on the top level), spans, exemplars (rows of `tree.parquet`: of a leaf those
nearest to its centroid; of a node above, the nearest of the leaves that are nearest to its own).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..corpus.whole_file import write_whole
from .kmeans import Fit, nearest_of_each

NODES_NAME = "nodes.parquet"
EXEMPLARS = 8


def write_nodes(out: Path, fits: list[Fit], labels: NDArray[np.int32], distances: NDArray[np.float32]) -> Path:
    """Writes the table. fits: of each level, the leaves' first. labels, distances: (N,) of the spans. Returns its path."""
    known = np.flatnonzero(labels >= 0)
    nearest = known[nearest_of_each(labels[known].astype(np.int64), distances[known], EXEMPLARS)]
    exemplars: list[list[int]] = [[] for _ in fits[0].centroids]
    for row in nearest.tolist():
        exemplars[labels[row]].append(row)
    sizes = np.bincount(labels[known], minlength=len(exemplars))
    columns: dict[str, list] = {name: [] for name in ("level", "node", "parent", "spans", "exemplars")}
    for level, fit in enumerate(fits, 1):
        parents = fits[level].labels.tolist() if level < len(fits) else [-1] * len(fit.centroids)
        columns["level"] += [level] * len(fit.centroids)
        columns["node"] += range(len(fit.centroids))
        columns["parent"] += parents
        columns["spans"] += sizes.tolist()
        columns["exemplars"] += exemplars
        if level < len(fits):
            above = fits[level]
            gaps = ((fit.centroids - above.centroids[above.labels]) ** 2).sum(axis=1)
            children = nearest_of_each(above.labels, gaps, len(gaps))
            exemplars = _of_children(exemplars, children.tolist(), above.labels, len(above.centroids))
            sizes = np.bincount(above.labels, weights=sizes, minlength=len(above.centroids)).astype(np.int64)
    types = [pa.int32(), pa.int32(), pa.int32(), pa.int64(), pa.list_(pa.int64())]
    table = pa.table(
        {name: pa.array(values, kind) for (name, values), kind in zip(columns.items(), types, strict=True)}
    )
    write_whole(out / NODES_NAME, lambda unfinished: pq.write_table(table, unfinished, compression="zstd"))
    return out / NODES_NAME


def _of_children(
    exemplars: list[list[int]], children: list[int], parents: NDArray[np.int64], nodes: int
) -> list[list[int]]:
    """Each node's exemplars: the first of every child in turn, the nearest child first, then the second of each, and so on."""
    below: list[list[list[int]]] = [[] for _ in range(nodes)]
    for child in children:
        below[parents[child]].append(exemplars[child])
    chosen = []
    for lists in below:
        turns = [rows[place] for place in range(EXEMPLARS) for rows in lists if place < len(rows)]
        chosen.append(turns[:EXEMPLARS])
    return chosen
