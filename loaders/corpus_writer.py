"""Facts and GOPs, one video after the other -> the files of a corpus folder, all of them or none.

The tables are written row group by row group, so that memory stays flat.
"""

from __future__ import annotations

import csv
import hashlib
import os
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .corpus import (
    FACT_FIELDS,
    FORMAT_VERSION,
    GOP_SCHEMA,
    GOPS_NAME,
    QUARANTINE_NAME,
    VIDEO_SCHEMA,
    VIDEOS_NAME,
    gops_digest,
)
from .sources import SourceFile
from .video import GopTable, VideoFacts

GOPS_PER_ROW_GROUP = 16_384
VIDEOS_PER_ROW_GROUP = 512


class CorpusWriter:
    """Writes the three files under temporary names; `commit` puts them in place, leaving without it removes them."""

    def __init__(self, out: Path, checksum: bool) -> None:
        self._targets = [out / name for name in (QUARANTINE_NAME, GOPS_NAME, VIDEOS_NAME)]
        self._temporary = [path.with_name(path.name + ".tmp") for path in self._targets]
        # One id in both tables, so that a pair torn by a crash between two renames is never taken for an index.
        build = {"version": FORMAT_VERSION, "build": uuid.uuid4().hex, "checksum": str(checksum).lower()}
        self._files = ExitStack()
        quarantine = self._temporary[0].open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._csv = csv.writer(self._files.enter_context(quarantine))
        self._csv.writerow(["path", "reason"])
        plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        self._gops = self._files.enter_context(
            pq.ParquetWriter(self._temporary[1], GOP_SCHEMA.with_metadata(build), **plain)
        )
        self._videos = self._files.enter_context(
            pq.ParquetWriter(self._temporary[2], VIDEO_SCHEMA.with_metadata(build), compression="zstd")
        )
        self._video_rows: list[dict[str, Any]] = []
        self._gop_tables: list[tuple[int, GopTable]] = []
        self._buffered_gops = self._num_gops = self._num_videos = 0

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def quarantine(self, path: str, reason: str) -> None:
        self._csv.writerow([path, reason])

    def add(self, facts: VideoFacts, gops: GopTable, entry: SourceFile, content_box: bool) -> None:
        num_gops = len(gops)
        if self._buffered_gops + num_gops > GOPS_PER_ROW_GROUP:
            self._flush_gops()
        self._gop_tables.append((self._num_videos, gops))
        self._buffered_gops += num_gops
        self._video_rows.append(
            {
                **{field.name: getattr(facts, field.name) for field in FACT_FIELDS},
                "id": hashlib.blake2b(facts.path.encode(), digest_size=8).hexdigest(),
                "source": entry.source,
                "domain": entry.domain,
                "boxed": content_box,
                "first_gop": self._num_gops,
                "num_gops": num_gops,
                "gops_digest": gops_digest(gops),
            }
        )
        self._num_videos += 1
        self._num_gops += num_gops
        if len(self._video_rows) == VIDEOS_PER_ROW_GROUP:
            self._flush_videos()

    def _flush_gops(self) -> None:
        if self._gop_tables:
            self._gops.write_table(_join(self._gop_tables), row_group_size=4 * GOPS_PER_ROW_GROUP)
        self._gop_tables, self._buffered_gops = [], 0

    def _flush_videos(self) -> None:
        self._videos.write_table(pa.Table.from_pylist(self._video_rows, VIDEO_SCHEMA))
        self._video_rows = []

    def commit(self, has_videos: bool) -> None:
        """Puts the files in place; without any video only the quarantine, and the tables of before stay."""
        self._flush_gops()
        self._flush_videos()
        self._files.close()
        for temporary, target in list(zip(self._temporary, self._targets, strict=True))[: 3 if has_videos else 1]:
            os.replace(temporary, target)


def _join(tables: list[tuple[int, GopTable]]) -> pa.Table:
    """One Arrow table of the GOP tables of (row of the video, GOPs)."""
    columns: list[pa.Array] = []
    lengths = [len(gops) for _, gops in tables]
    for field in GOP_SCHEMA:
        if field.name == "video":
            columns.append(pa.array(np.repeat([video for video, _ in tables], lengths), field.type))
        elif tables[0][1].crc32 is None and field.name == "crc32":
            columns.append(pa.nulls(sum(lengths), field.type))
        else:
            columns.append(pa.array(np.concatenate([getattr(gops, field.name) for _, gops in tables]), field.type))
    return pa.Table.from_arrays(columns, schema=GOP_SCHEMA)
