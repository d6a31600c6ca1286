"""What stands in an index before it is written anew: which of its videos stay beside those of the sources, and which leave."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..video.video import is_remote
from .folder import DESCRIPTION, VIDEOS_NAME
from .sources import SourceFile, file_key, folders_among

COLUMNS = ("path", *DESCRIPTION, "id", "original", "packed_stride", "packed_start_seconds")


@dataclass(frozen=True)
class IndexPlan:
    """entries: the files to index, by path. before: those that the index holds already. kept: those of them that no source names.
    left: those that leave. note: what the user has to know of the index before."""

    entries: list[SourceFile]
    before: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    left: tuple[str, ...] = ()
    note: str = ""


def plan_index(
    entries: list[SourceFile], sources: Sequence[str | os.PathLike[str]], out: Path, *, replace: bool
) -> IndexPlan:
    """Puts the files that the sources name and the videos that `out` holds together.

    A video that a source names without describing it stays described as it was. One that no source names stays, unless `replace`;
    it leaves where a source is a folder around it that holds it no more, or where its own folder is there and it is not.
    """
    merged = {file_key(entry.path): entry for entry in entries}
    folders = folders_among(sources)
    before, kept, left = set(), [], []
    try:
        for video in _videos_before(out / VIDEOS_NAME):
            key = file_key(video.path)
            if entry := merged.get(key):
                if not replace:
                    merged[key] = entry = _described(entry, video)
                before.add(entry.path)
            elif replace or _is_gone(video.path, folders):
                left.append(video.path)
            else:
                merged[key] = video
                before.add(video.path)
                kept.append(video.path)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        note = f"the index before could not be read ({error}): what it held is not in this one, but for what the sources name"
        return IndexPlan(entries, note=note)
    ordered = sorted(merged.values(), key=lambda entry: os.fsencode(entry.path))
    return IndexPlan(ordered, frozenset(before), frozenset(kept), tuple(left))


def _videos_before(path: Path) -> Iterator[SourceFile]:
    """The videos of an index, also of an earlier version."""
    if not path.exists():
        return
    with pq.ParquetFile(path) as file:
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=1024, columns=columns, use_threads=False):
            yield from (SourceFile(**row) for row in batch.to_pylist())


def _described(entry: SourceFile, video: SourceFile) -> SourceFile:
    """A file that a source names and the index holds: under the path it has there, and not less described than before."""
    if entry.problem:
        return entry
    if not entry.is_described and not entry.id:
        is_bare = video.path == entry.path and not (video.is_described or video.original)
        return entry if is_bare else video
    packed = ("original", "packed_stride", "packed_start_seconds")
    identity = {} if entry.original else {name: getattr(video, name) for name in packed}
    return replace(entry, path=video.path, id=entry.id or video.id, **identity)


def _is_gone(path: str, folders: tuple[str, ...]) -> bool:
    if not is_remote(path) and os.path.exists(path):
        return False
    return path.startswith(folders) or (not is_remote(path) and os.path.isdir(os.path.dirname(path)))
