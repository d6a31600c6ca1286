"""The index of a corpus, read back: `videos.parquet` (a row a video) and `gops.parquet` (a row a GOP, in video order).

Opening reads a few numbers a video; everything else is read when asked for, a row group at a time, and few of them are kept.
So a corpus of any length costs little memory in every process that opens it. Both tables carry the id of the build that
wrote them; a pair that does not match is refused.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .video import GopTable, VideoFacts

FORMAT_VERSION = "1"
VIDEOS_NAME, GOPS_NAME, QUARANTINE_NAME = "videos.parquet", "gops.parquet", "quarantine.csv"
CACHED_ROW_GROUPS = 16

_ARROW_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
FACT_FIELDS = [pa.field(field.name, _ARROW_TYPES[str(field.type)], nullable=False) for field in fields(VideoFacts)]
VIDEO_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        *FACT_FIELDS,
        pa.field("source", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("boxed", pa.bool_(), nullable=False),
        pa.field("first_gop", pa.int64(), nullable=False),
        pa.field("num_gops", pa.int64(), nullable=False),
        pa.field("gops_digest", pa.string(), nullable=False),
    ]
)
GOP_SCHEMA = pa.schema(
    [
        pa.field("video", pa.int32(), nullable=False),
        pa.field("first_frame", pa.int32(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("dts", pa.int64(), nullable=False),
        pa.field("byte_offset", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("leading", pa.int32(), nullable=False),
        pa.field("idr", pa.bool_(), nullable=False),
        pa.field("clean", pa.bool_(), nullable=False),
        pa.field("crc32", pa.uint32()),
    ]
)


class CorpusError(Exception):
    """A corpus that cannot be built or opened; the message names the path and the fix."""


@dataclass(frozen=True)
class Video:
    """One row of `videos.parquet`.

    `id` is 16 hex digits of the absolute path's hash. `boxed`: the content box was looked for. The video's GOPs are rows
    first_gop .. first_gop + num_gops - 1 of `gops.parquet`, and `gops_digest` their hash without checksums.
    """

    row: int
    id: str
    facts: VideoFacts
    source: str
    domain: str
    boxed: bool
    first_gop: int
    num_gops: int
    gops_digest: str


class _RowGroups:
    """Random access to a Parquet file by row group; keeps the latest few. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = pq.ParquetFile(path, memory_map=True)
        metadata = self.file.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = np.append(0, np.cumsum(rows)).astype(np.int64)
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def group(self, index: int) -> pa.Table:
        with self._lock:
            if index not in self._cache:
                try:
                    self._cache[index] = self.file.read_row_group(index, use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    raise CorpusError(f"{self.path}: damaged ({error}); delete its folder and index again") from error
                if len(self._cache) > CACHED_ROW_GROUPS:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(index)
            return self._cache[index]

    def rows(self, start: int, stop: int) -> pa.Table:
        first, last = np.searchsorted(self.starts, [start, stop - 1], side="right") - 1
        tables = [self.group(index) for index in range(int(first), int(last) + 1)]
        base = int(self.starts[first])
        return pa.concat_tables(tables).slice(start - base, stop - start)


class Corpus:
    """An opened index. Safe to share between threads; cheap to open again in another process.

    Attributes:
        path: the folder that holds the tables.
        frames: (V,) int64, the frames of each video.
        fps: (V,) float64, the average frames per second of each video.
        has_checksums: whether every GOP has a CRC-32.
    """

    def __init__(self, path: Path, videos: _RowGroups, gops: _RowGroups) -> None:
        self.path = path
        self._videos, self._gops = videos, gops
        columns = ["frames", "fps_numerator", "fps_denominator", "first_gop", "num_gops"]
        table = videos.file.read(columns, use_threads=False)
        frames, numerators, denominators, first_gop, num_gops = (table.column(name).to_numpy() for name in columns)
        self.frames: np.ndarray = frames
        self.fps: np.ndarray = numerators / denominators
        self._first_gop, self._num_gops = first_gop, num_gops
        self.has_checksums = _metadata(videos.file, "checksum") == "true"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Corpus:
        """Opens the index in folder `path`.

        Raises:
            CorpusError: the folder or a table is missing, damaged, of another version, or the two are of different builds.
        """
        path = Path(path)
        if not path.is_dir():
            raise CorpusError(f"{path}: no such folder; build it with `trocar index SOURCE --out {path}`")
        tables = []
        for name in (VIDEOS_NAME, GOPS_NAME):
            again = f"build it again with `trocar index SOURCE --out {path}`"
            try:
                tables.append(_RowGroups(path / name))
            except FileNotFoundError as error:
                raise CorpusError(f"{path / name}: missing; {again}") from error
            except (pa.ArrowException, OSError) as error:
                raise CorpusError(f"{path / name}: not a readable Parquet file ({error}); {again}") from error
            version = _metadata(tables[-1].file, "version")
            if version != FORMAT_VERSION:
                raise CorpusError(f"{path / name}: format version {version!r}, expected {FORMAT_VERSION!r}; {again}")
        builds = [_metadata(table.file, "build") for table in tables]
        if builds[0] != builds[1]:
            raise CorpusError(f"{path}: {VIDEOS_NAME} and {GOPS_NAME} are of different builds ({builds}); {again}")
        return cls(path, *tables)

    def __len__(self) -> int:
        return len(self.frames)

    def video(self, row: int) -> Video:
        """What is known of video `row`.

        Raises:
            IndexError: there is no such row.
        """
        self._check_row(row)
        values = self._videos.rows(row, row + 1).to_pylist()[0]
        facts = VideoFacts(**{field.name: values.pop(field.name) for field in FACT_FIELDS})
        return Video(row=row, facts=facts, **values)

    def gops(self, row: int) -> GopTable:
        """The GOPs of video `row`; reads only the row groups that hold them.

        Raises:
            IndexError: there is no such row.
        """
        self._check_row(row)
        start = int(self._first_gop[row])
        table = self._gops.rows(start, start + int(self._num_gops[row]))
        arrays = {name: table.column(name) for name in table.column_names if name not in ("video", "crc32")}
        columns = {name: column.to_numpy() for name, column in arrays.items()}
        crc32 = table.column("crc32")
        return GopTable(**columns, crc32=None if crc32.null_count else crc32.to_numpy())

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path}: video {row} is not in 0..{len(self) - 1}")

    def scan(self, *columns: str) -> Iterator[dict[str, Any]]:
        """Yields one dictionary of the named columns of `videos.parquet` per video, in row order."""
        for batch in self._videos.file.iter_batches(batch_size=1024, columns=list(columns), use_threads=False):
            yield from batch.to_pylist()

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change when any video's path, size, frames or GOPs do, not when the index is merely rebuilt."""
        digest = hashlib.blake2b(digest_size=16)
        columns = ("path", "size_bytes", "frames", "gops_digest")
        for values in self.scan(*columns):
            digest.update(repr([values[name] for name in columns]).encode())
        return digest.hexdigest()


def gops_digest(gops: GopTable) -> str:
    """16 hex digits over the columns of a GOP table, checksums left out."""
    digest = hashlib.blake2b(digest_size=8)
    for field in GOP_SCHEMA:
        if field.name not in ("video", "crc32"):
            digest.update(np.ascontiguousarray(getattr(gops, field.name)).tobytes())
    return digest.hexdigest()


def _metadata(file: pq.ParquetFile, key: str) -> str | None:
    value = (file.schema_arrow.metadata or {}).get(key.encode())
    return None if value is None else value.decode()
