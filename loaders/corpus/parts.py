"""The tables of a corpus read in parts, of which the latest are kept: row groups of Parquet, batches of an Arrow file."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..video.video import PacketTable
from .folder import CorpusError
from .schema import PACKET_SCHEMA, PACKETS_PER_BATCH
from .whole_file import set_aside, unreadable

CACHED_PARTS = 16


Part = TypeVar("Part")


class Parts(ABC, Generic[Part]):
    """The latest parts of a file that were asked for, by number. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: OrderedDict[int, Part] = OrderedDict()
        self._lock = threading.Lock()

    @abstractmethod
    def _read(self, number: int) -> Part: ...

    def part(self, number: int) -> Part:
        with self._lock:
            found = self._cache.get(number)
            if found is None:
                try:
                    found = self._cache[number] = self._read(number)
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise CorpusError(
                        unreadable(self.path, error, f"index again after {set_aside(self.path.parent)}")
                    ) from error
                if len(self._cache) > CACHED_PARTS:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(number)
            return found


class RowGroups(Parts[dict[str, pa.Array]]):
    """Random access to a Parquet file by row group: its columns."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Without buffers that pyarrow keeps for a file, which a second thread takes away: "ReadRangeCache did not find ...".
        self.file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        metadata = self.file.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = [0, *accumulate(rows)]

    def _read(self, number: int) -> dict[str, pa.Array]:
        table = self.file.read_row_group(number, use_threads=False)
        return {name: pa.concat_arrays(table.column(name).chunks) for name in table.column_names}

    def place(self, row: int) -> tuple[dict[str, pa.Array], int]:
        """The group that holds a row, and where in there it is."""
        group = bisect_right(self.starts, row) - 1
        return self.part(group), row - self.starts[group]

    def columns(self, start: int, stop: int) -> dict[str, pa.Array]:
        """Of some rows, at least one."""
        first, last = bisect_right(self.starts, start) - 1, bisect_right(self.starts, stop - 1) - 1
        base, count = self.starts[first], stop - start
        if first == last:
            return {name: column.slice(start - base, count) for name, column in self.part(first).items()}
        parts = [self.part(group) for group in range(first, last + 1)]
        return {name: pa.concat_arrays([part[name] for part in parts]).slice(start - base, count) for name in parts[0]}


class Packets(Parts[PacketTable]):
    """`packets.arrow`, mapped into memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.file = pa.ipc.open_file(pa.memory_map(str(path)))
        self.schema_arrow: pa.Schema = self.file.schema

    def _read(self, number: int) -> PacketTable:
        batch = self.file.get_batch(number)
        return PacketTable(*(batch.column(name).to_numpy() for name in PACKET_SCHEMA.names))

    def rows(self, start: int, stop: int) -> PacketTable:
        first, last = start // PACKETS_PER_BATCH, max(stop - 1, start) // PACKETS_PER_BATCH
        base = first * PACKETS_PER_BATCH
        if first == last:
            return self.part(first)[start - base : stop - base]
        parts = [self.part(index) for index in range(first, last + 1)]
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in PACKET_SCHEMA.names)
        return PacketTable(*(column[start - base : stop - base] for column in columns))


@dataclass(frozen=True)
class VideoPackets:
    """The packets of the video whose first one is row `first`."""

    packets: Packets
    first: int

    def __getitem__(self, rows: slice) -> PacketTable:
        return self.packets.rows(self.first + rows.start, self.first + rows.stop)
