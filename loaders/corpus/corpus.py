"""The index of a corpus, read back: `videos.parquet` (a row a video), `gops.parquet` (a row a GOP, in video order) and
`packets.arrow` (a row a packet, in decode order).

Opening reads a few numbers a video; everything else is read when asked for: of the first two a row group at a time, and few of
them are kept; the last lies on disk as it would in memory and is mapped. So a corpus of any length costs little memory in every
process that opens it. The tables carry the id of the build that wrote them; what does not match is refused.
"""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..video.storage import INDEX_AGAIN
from ..video.timeline import Timeline
from ..video.video import GopTable, PacketTable, VideoFacts
from .folder import DESCRIPTION, GOPS_NAME, PACKETS_NAME, VIDEOS_NAME, CorpusError, corpus_folder
from .whole_file import set_aside, unreadable

FORMAT_VERSION = "4"
CACHED_PARTS = 16
PACKETS_PER_BATCH = 65_536

_ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
    "tuple[int, ...]": pa.list_(pa.int32()),
}
FACT_FIELDS = [pa.field(field.name, _ARROW_TYPES[str(field.type)], nullable=False) for field in fields(VideoFacts)]
VIDEO_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        *FACT_FIELDS,
        *(pa.field(name, pa.string(), nullable=False) for name in DESCRIPTION),
        pa.field("original", pa.string(), nullable=False),
        pa.field("packed_stride", pa.int32(), nullable=False),
        pa.field("packed_start_seconds", pa.float64()),
        pa.field("boxed", pa.bool_(), nullable=False),
        pa.field("verified", pa.bool_(), nullable=False),
        pa.field("track", pa.int32()),
        pa.field("first_gop", pa.int64(), nullable=False),
        pa.field("num_gops", pa.int64(), nullable=False),
        pa.field("first_packet", pa.int64(), nullable=False),
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
        pa.field("num_packets", pa.int32(), nullable=False),
        pa.field("crc32", pa.uint32()),
    ]
)
PACKET_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("flags", pa.uint8(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Video:
    """One row of `videos.parquet`.

    `id` is 16 hex digits of the absolute path's hash; a proxy that `trocar pack` made has its original's, the original's path as
    `original` and, as `packed_stride`, how many of the original's frames one of its own stands for (1 otherwise), as
    `packed_start_seconds` when its first frame is shown (None otherwise). `boxed`: the content box was looked for. `verified`:
    pictures from all over it were compared with plain decoding. `track`: the video track asked for, None: the largest. source ..
    licence: as a CSV described it, "" where it did not. The video's GOPs are rows first_gop .. first_gop + num_gops - 1 of
    `gops.parquet`, and `gops_digest` their hash without checksums; its packets begin at row first_packet of `packets.arrow`.
    """

    row: int
    id: str
    facts: VideoFacts
    source: str
    domain: str
    procedure: str
    subject: str
    centre: str
    origin: str
    licence: str
    original: str
    packed_stride: int
    packed_start_seconds: float | None
    boxed: bool
    verified: bool
    track: int | None
    first_gop: int
    num_gops: int
    first_packet: int
    gops_digest: str

    @property
    def remedy(self) -> str:
        """What makes the file and the index agree again, in words: proxies are made of what is lost with them."""
        if not self.original:
            return INDEX_AGAIN
        return f"make the proxy anew from {self.original}: run `trocar pack ORIGINALS --out THERE` again"


Part = TypeVar("Part")


class _Parts(ABC, Generic[Part]):
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


class _RowGroups(_Parts[dict[str, pa.Array]]):
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


class _Packets(_Parts[PacketTable]):
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
class _VideoPackets:
    """The packets of the video whose first one is row `first`."""

    packets: _Packets
    first: int

    def __getitem__(self, rows: slice) -> PacketTable:
        return self.packets.rows(self.first + rows.start, self.first + rows.stop)


class Corpus:
    """An opened index. Safe to share between threads; cheap to open again in another process.

    Attributes:
        path: the folder that holds the tables.
        frames: (V,) int64, the frames of each video.
        fps: (V,) float64, the average frames per second of each video, pauses left out.
        variable_rate: (V,) bool.
        pauses: (N, 2) int64, (video, frame) of the frames that begin a stretch behind a pause, ascending.
        packed_stride: (V,) int32, how many frames of its original one frame of a proxy stands for; 1 for other videos.
        has_checksums: whether every GOP has a CRC-32.
    """

    def __init__(self, path: Path, videos: _RowGroups, gops: _RowGroups, packets: _Packets) -> None:
        self.path = path
        self._videos, self._gops, self._packets = videos, gops, packets
        names = ["frames", "fps_numerator", "fps_denominator", "variable_rate", "packed_stride"]
        names += ["first_gop", "num_gops", "first_packet"]
        table = videos.file.read([*names, "pauses"], use_threads=False)
        columns = {name: table.column(name).to_numpy() for name in names}
        self.frames: np.ndarray = columns["frames"]
        self.variable_rate: np.ndarray = columns["variable_rate"]
        self.fps: np.ndarray = columns["fps_numerator"] / columns["fps_denominator"]
        pauses = table.column("pauses").combine_chunks()
        counts = pauses.value_lengths().to_numpy()
        self.pauses: np.ndarray = np.column_stack(
            [np.repeat(np.arange(len(counts)), counts), pauses.flatten().to_numpy()]
        ).astype(np.int64)
        self.packed_stride: np.ndarray = columns["packed_stride"]
        self._first_gop, self._num_gops = columns["first_gop"], columns["num_gops"]
        self._first_packet = columns["first_packet"]
        self.has_checksums = _metadata(videos.file, "checksum") == "true"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Corpus:
        """Opens the index in folder `path`.

        Raises:
            CorpusError: the folder or a table is missing, damaged, of another version, or the two are of different builds.
        """
        path = corpus_folder(path)
        again = f"build it again with `trocar index SOURCE --out {path}`"
        videos = _open(_RowGroups, path / VIDEOS_NAME, again)
        gops = _open(_RowGroups, path / GOPS_NAME, again)
        packets = _open(_Packets, path / PACKETS_NAME, again)
        builds = [_metadata(file, "build") for file in (videos.file, gops.file, packets)]
        if len(set(builds)) > 1:
            raise CorpusError(f"{path}: its tables are of different builds ({builds}); {again}")
        return cls(path, videos, gops, packets)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (os.path.abspath(self.path), _metadata(self._videos.file, "build"))

    def __len__(self) -> int:
        return len(self.frames)

    def video_path(self, row: int) -> str:
        """Where video `row` is: an absolute path or a URL. Raises IndexError where there is no such row."""
        return self.video(row).facts.path

    def video(self, row: int) -> Video:
        """What is known of video `row`.

        Raises:
            IndexError: there is no such row.
        """
        self._check_row(row)
        part, place = self._videos.place(row)
        values = {name: column[place].as_py() for name, column in part.items()}
        values["pauses"] = tuple(values["pauses"])
        facts = VideoFacts(**{field.name: values.pop(field.name) for field in FACT_FIELDS})
        return Video(row=row, facts=facts, **values)

    def gops(self, row: int) -> GopTable:
        """The GOPs of video `row`; reads only the row groups that hold them.

        Raises:
            IndexError: there is no such row.
        """
        self._check_row(row)
        start = int(self._first_gop[row])
        table = self._gops.columns(start, start + int(self._num_gops[row]))
        crc32 = table.pop("crc32")
        columns = {name: column.to_numpy(zero_copy_only=False) for name, column in table.items() if name != "video"}
        return GopTable(
            **columns,
            first_packet=np.cumsum(columns["num_packets"], dtype=np.int64) - columns["num_packets"],
            packets=_VideoPackets(self._packets, int(self._first_packet[row])),
            crc32=None if crc32.null_count else crc32.to_numpy(),
        )

    def timeline(self, row: int) -> Timeline:
        """When the frames of video `row` are shown. Raises IndexError where there is no such row."""
        return Timeline(self.video(row).facts, self.gops(row))

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path}: video {row} is not in 0..{len(self) - 1}")

    def scan(self, *columns: str) -> Iterator[dict[str, Any]]:
        """Yields one dictionary of the named columns of `videos.parquet` per video, in row order."""
        file = pq.ParquetFile(self._videos.path, memory_map=True, pre_buffer=False)  # its own: others read meanwhile
        for batch in file.iter_batches(batch_size=1024, columns=list(columns), use_threads=False):
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


def _open_again(path: str, build: str) -> Corpus:
    """A corpus that another process has opened. Raises CorpusError where it has been indexed again since."""
    corpus = Corpus.open(path)
    if _metadata(corpus._videos.file, "build") != build:
        raise CorpusError(f"{path}: was indexed again while it was read; start again, a run goes on where it was")
    return corpus


_Table = TypeVar("_Table", _RowGroups, _Packets)


def _open(kind: type[_Table], path: Path, again: str) -> _Table:
    try:
        table = kind(path)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(unreadable(path, error, again)) from error
    version = _metadata(table.file if isinstance(table, _RowGroups) else table, "version")
    if version != FORMAT_VERSION:
        raise CorpusError(f"{path}: format version {version!r}, expected {FORMAT_VERSION!r}; {again}")
    return table


def _metadata(file: pq.ParquetFile | _Packets, key: str) -> str | None:
    value = (file.schema_arrow.metadata or {}).get(key.encode())
    return None if value is None else value.decode()
