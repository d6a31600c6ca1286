"""A tree of clusters over the spans of a corpus, as `trocar cluster` writes it: `tree.parquet`, a row a span.

Columns: video (id), first_frame and span_frames (in frames of the original, also where a proxy was embedded), leaf, path (the
clusters from the top level down to the leaf, "3/17/204"), distance (Euclidean, to the leaf's centroid), duplicate_distance (to
the nearest span of the leaf that is farther from its centroid; see `curate/duplicates.py`; missing where not measured). A span
that could not be clustered has neither leaf nor path.

Shapes: N spans, V videos, L leaves, K levels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..corpus.corpus import Corpus
from ..corpus.folder import TREE_NAME, CorpusError, tree_file
from ..corpus.whole_file import unreadable, write_whole

TREE_VERSION = "1"
TREE_SCHEMA = pa.schema(
    [
        pa.field("video", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("first_frame", pa.int64(), nullable=False),
        pa.field("span_frames", pa.int32(), nullable=False),
        pa.field("leaf", pa.int32()),
        pa.field("path", pa.dictionary(pa.int32(), pa.string())),
        pa.field("distance", pa.float32()),
        pa.field("duplicate_distance", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ClusterTree:
    """video_ids: V. video: (N,) int32, places in video_ids. first_frame: (N,) int64, span_frames: (N,) int32. leaf: (N,) int32,
    -1 for spans without one. distance, duplicate_distance: (N,) float32, NaN where unknown. paths: (L, K) int32, the clusters of
    each leaf, top first."""

    video_ids: list[str]
    video: NDArray[np.int32]
    first_frame: NDArray[np.int64]
    span_frames: NDArray[np.int32]
    leaf: NDArray[np.int32]
    distance: NDArray[np.float32]
    duplicate_distance: NDArray[np.float32]
    paths: NDArray[np.int32]

    @cached_property
    def digest(self) -> str:
        """32 hex digits over spans, leaves and paths."""
        digest = hashlib.blake2b(repr(self.video_ids).encode(), digest_size=16)
        for array in (self.video, self.first_frame, self.span_frames, self.leaf, self.paths):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def write(self, folder: Path) -> Path:
        """Writes `tree.parquet` into `folder`, whole or not at all. Returns its path."""
        names = ["/".join(map(str, path)) for path in self.paths.tolist()]
        known = self.leaf >= 0
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(self.video, pa.int32()), pa.array(self.video_ids, pa.string())),
            pa.array(self.first_frame),
            pa.array(self.span_frames),
            pa.array(self.leaf, mask=~known),
            pa.DictionaryArray.from_arrays(pa.array(self.leaf, pa.int32(), mask=~known), pa.array(names, pa.string())),
            pa.array(self.distance, mask=~known),
            pa.array(self.duplicate_distance, mask=np.isnan(self.duplicate_distance)),
        ]
        schema = TREE_SCHEMA.with_metadata({"version": TREE_VERSION})
        path, table = folder / TREE_NAME, pa.Table.from_arrays(columns, schema=schema)
        write_whole(path, lambda unfinished: pq.write_table(table, unfinished, compression="zstd"))
        return path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ClusterTree:
        """Reads a folder that `trocar cluster` wrote, or its `tree.parquet`. Raises CorpusError."""
        file = tree_file(path)
        again = "make it again with trocar cluster"
        try:
            table = pq.read_table(file, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(unreadable(file, error, again)) from error
        version = (table.schema.metadata or {}).get(b"version", b"").decode()
        if version != TREE_VERSION or table.schema.names != TREE_SCHEMA.names:
            raise CorpusError(f"{file}: version {version!r}, expected {TREE_VERSION!r}; {again}")
        video, names = _codes(table.column("video"))
        codes, paths = _codes(table.column("path"))
        leaf = table.column("leaf").fill_null(-1).to_numpy().astype(np.int32)
        places = np.array([[int(part) for part in path.split("/")] for path in paths], dtype=np.int32).reshape(
            len(paths), -1
        )
        # Leaf l is row l of the paths; those that no span belongs to may be missing from the file.
        by_leaf = np.full((int(leaf.max(initial=-1)) + 1, places.shape[1]), -1, dtype=np.int32)
        by_leaf[leaf[codes >= 0]] = places[codes[codes >= 0]]
        return cls(
            names,
            video,
            table.column("first_frame").to_numpy(),
            table.column("span_frames").to_numpy(),
            leaf,
            table.column("distance").to_numpy(),
            table.column("duplicate_distance").to_numpy(),
            by_leaf,
        )


@dataclass(frozen=True)
class TreeSpans:
    """The spans of a tree that are in a corpus and wanted, in depth-first order of their leaves.

    video: (N,) int32, rows of the corpus. first_frame: (N,) int64, in its frames. span_frames: (N,) int32. offsets: (L + 1,)
    where each leaf's spans begin. leaf, paths: (L,) and (L, K) of the leaves that have any.
    """

    video: NDArray[np.int32]
    first_frame: NDArray[np.int64]
    span_frames: NDArray[np.int32]
    offsets: NDArray[np.int64]
    leaf: NDArray[np.int32]
    paths: NDArray[np.int32]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(L,) spans of each leaf."""
        return np.diff(self.offsets)


def place_tree(
    tree: ClusterTree,
    corpus: Corpus,
    wanted: NDArray[np.bool_],
    groups: NDArray[np.int64] | None = None,
    thin: float | None = None,
    within: Callable[..., tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]] | None = None,
) -> TreeSpans:
    """The spans of `tree` in `corpus`. wanted: (V,) which videos may be drawn. groups: (V,) splits every leaf by its videos'
    group. thin: leave out spans whose duplicate distance is below this. within: `Stretches.within`, which says what a screen leaves
    of each.

    A proxy takes its original's place. Raises CorpusError where a wanted video is not in the tree, duplicate distances are
    wanted and were not measured, or no span is left.
    """
    rows = {identity["id"]: row for row, identity in enumerate(corpus.scan("id"))}
    row_of = np.array([rows.get(identity, -1) for identity in tree.video_ids], dtype=np.int64)
    covered = np.zeros(len(corpus), dtype=bool)
    covered[row_of[row_of >= 0]] = True
    if (missing := np.flatnonzero(wanted & ~covered)).size:
        raise CorpusError(
            f"{corpus.path}: {missing.size:,} of its videos are not in the tree, the first of them "
            f"{corpus.video_path(int(missing[0]))}; embed and cluster this corpus again, or leave them out with data.exclude"
        )
    video = row_of[tree.video]
    drawn = (tree.leaf >= 0) & (video >= 0) & wanted[video]
    if thin is not None:
        if np.isnan(tree.duplicate_distance[tree.leaf >= 0]).any():
            raise CorpusError(
                "data.thin: the tree has no duplicate distances; make it again with trocar cluster --duplicates"
            )
        drawn &= ~(tree.duplicate_distance < thin)
    kept = np.flatnonzero(drawn)
    if not kept.size:
        raise CorpusError(f"{corpus.path}: no span is left to draw; widen data.include or shorten data.exclude")
    packed = corpus.packed_stride[video[kept]]
    first = tree.first_frame[kept] // packed
    frames = np.maximum(-(-tree.span_frames[kept] // packed), 1).astype(np.int64)
    if within is not None:
        is_left, first, frames = within(video[kept], first, frames)
        kept, first, frames = kept[is_left], first[is_left], frames[is_left]
        if not kept.size:
            raise CorpusError(
                f"{corpus.path}: data.where and data.within_shots leave half of no span of the tree; ask for less"
            )
    video, leaf = video[kept], tree.leaf[kept]
    rank = np.empty(len(tree.paths), dtype=np.int64)
    rank[np.lexsort(tree.paths.T[::-1])] = np.arange(len(tree.paths))
    keys: Sequence[NDArray] = (rank[leaf],) if groups is None else (groups[video], rank[leaf])
    order = np.lexsort(keys)  # stable: inside a leaf, spans stay as the tree lists them
    first, frames, video, leaf = first[order], frames[order], video[order], leaf[order]
    changes = np.diff(leaf) != 0
    paths = tree.paths
    if groups is not None:
        changes |= np.diff(groups[video]) != 0
    starts = np.flatnonzero(np.concatenate([[True], changes]))
    leaf_paths = paths[leaf[starts]]
    if groups is not None:
        leaf_paths = np.column_stack([leaf_paths, groups[video[starts]]]).astype(np.int32)
    return TreeSpans(
        video.astype(np.int32),
        first,
        frames.astype(np.int32),
        np.append(starts, len(video)).astype(np.int64),
        leaf[starts],
        leaf_paths,
    )


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """A dictionary column as (codes (N,), -1 for null; its values)."""
    combined = column.unify_dictionaries().combine_chunks()
    array = combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
    return array.indices.fill_null(-1).to_numpy().astype(np.int32), array.dictionary.to_pylist()
