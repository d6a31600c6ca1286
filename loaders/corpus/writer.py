"""Facts and GOPs, one video after the other -> the files of a corpus folder, all of them or none.

The tables are written row group by row group, so that memory stays flat.
"""

from __future__ import annotations

import csv
import hashlib
import os
import uuid
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..video.video import GopTable, PacketTable, VideoFacts
from .folder import DESCRIPTION, GOPS_NAME, PACKETS_NAME, QUARANTINE_NAME, VIDEOS_NAME
from .schema import FACT_FIELDS, FORMAT_VERSION, GOP_SCHEMA, PACKET_SCHEMA, PACKETS_PER_BATCH, VIDEO_SCHEMA, gops_digest
from .sources import SourceFile

GOPS_PER_ROW_GROUP = 16_384
VIDEOS_PER_ROW_GROUP = 512


class CorpusWriter:
    """Writes the files under temporary names; `commit` puts them in place, leaving without it removes them."""

    def __init__(self, out: Path, checksum: bool) -> None:
        self._targets = [out / name for name in (QUARANTINE_NAME, PACKETS_NAME, GOPS_NAME, VIDEOS_NAME)]
        self._temporary = [path.with_name(path.name + ".tmp") for path in self._targets]
        # One id in all tables, so that what a crash between two renames leaves is never taken for an index.
        build = {"version": FORMAT_VERSION, "build": uuid.uuid4().hex, "checksum": str(checksum).lower()}
        self._files = ExitStack()
        quarantine = self._temporary[0].open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._csv = csv.writer(self._files.enter_context(quarantine))
        self._csv.writerow(["path", "reason"])
        self._packets = self._files.enter_context(
            pa.ipc.new_file(str(self._temporary[1]), PACKET_SCHEMA.with_metadata(build))
        )
        plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        self._gops = self._files.enter_context(
            pq.ParquetWriter(self._temporary[2], GOP_SCHEMA.with_metadata(build), **plain)
        )
        self._videos = self._files.enter_context(
            pq.ParquetWriter(self._temporary[3], VIDEO_SCHEMA.with_metadata(build), compression="zstd")
        )
        self._columns: dict[str, list[Any]] = {name: [] for name in VIDEO_SCHEMA.names}
        self._gop_tables: list[tuple[int, GopTable]] = []
        self._packet_tables: list[PacketTable] = []
        self._buffered_gops = self._buffered_packets = 0
        self._num_packets = self._num_gops = self._num_videos = 0

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def quarantine(self, path: str, reason: str) -> None:
        self._csv.writerow([path, reason])

    def add(
        self,
        facts: VideoFacts,
        gops: GopTable,
        entry: SourceFile,
        content_box: bool,
        verified: bool,
        track: int | None,
    ) -> None:
        if entry.packed_start_seconds is not None:
            ticks = entry.packed_start_seconds * facts.time_base_denominator / facts.time_base_numerator
            facts = replace(facts, zero_pts=facts.start_pts - round(ticks))
        num_gops = len(gops)
        if self._buffered_gops + num_gops > GOPS_PER_ROW_GROUP:
            self._flush_gops()
        num_packets = int(gops.num_packets.sum())
        packets = gops.packets[0:num_packets]
        self._write_packets(packets)
        # Packets are many more than GOPs: they must not wait for the GOPs' turn.
        self._gop_tables.append((self._num_videos, replace(gops, packets=packets[np.arange(0)])))
        self._buffered_gops += num_gops
        row = {
            **{field.name: getattr(facts, field.name) for field in FACT_FIELDS},
            "id": entry.id or hashlib.blake2b(facts.path.encode(), digest_size=8).hexdigest(),
            **{name: getattr(entry, name) for name in DESCRIPTION},
            "original": entry.original,
            "packed_stride": entry.packed_stride,
            "packed_start_seconds": entry.packed_start_seconds,
            "boxed": content_box,
            "verified": verified,
            "track": track,
            "first_gop": self._num_gops,
            "num_gops": num_gops,
            "first_packet": self._num_packets,
            "gops_digest": gops_digest(gops),
        }
        for name, column in self._columns.items():
            column.append(row[name])
        self._num_videos += 1
        self._num_gops += num_gops
        self._num_packets += num_packets
        if len(self._columns["id"]) == VIDEOS_PER_ROW_GROUP:
            self._flush_videos()

    def _write_packets(self, packets: PacketTable) -> None:
        """Writes all whole batches; what is left waits for the next video, since a reader finds a row by its batch."""
        self._packet_tables.append(packets)
        self._buffered_packets += len(packets)
        if self._buffered_packets >= PACKETS_PER_BATCH:
            self._flush_packets(self._buffered_packets // PACKETS_PER_BATCH * PACKETS_PER_BATCH)

    def _flush_packets(self, count: int) -> None:
        """Writes the first `count` of the buffered packets."""
        tables = self._packet_tables
        whole = PacketTable(
            *(np.concatenate([getattr(table, name) for table in tables]) for name in PACKET_SCHEMA.names)
        )
        for start in range(0, count, PACKETS_PER_BATCH):
            part = whole[start : min(start + PACKETS_PER_BATCH, count)]
            columns = [pa.array(getattr(part, field.name), field.type) for field in PACKET_SCHEMA]
            self._packets.write_batch(pa.RecordBatch.from_arrays(columns, schema=PACKET_SCHEMA))
        rest = whole[np.arange(count, len(whole))]  # a copy, so that what is written can go
        self._packet_tables, self._buffered_packets = [rest], len(rest)

    def _flush_gops(self) -> None:
        if self._gop_tables:
            self._gops.write_table(_join(self._gop_tables), row_group_size=4 * GOPS_PER_ROW_GROUP)
        self._gop_tables, self._buffered_gops = [], 0

    def _flush_videos(self) -> None:
        self._videos.write_table(pa.table(self._columns, VIDEO_SCHEMA))
        self._columns = {name: [] for name in VIDEO_SCHEMA.names}

    def commit(self, has_videos: bool) -> None:
        """Puts the files in place; without any video only the quarantine, and the tables of before stay."""
        if self._buffered_packets:
            self._flush_packets(self._buffered_packets)
        self._flush_gops()
        self._flush_videos()
        self._files.close()
        for temporary, target in list(zip(self._temporary, self._targets, strict=True))[: None if has_videos else 1]:
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
