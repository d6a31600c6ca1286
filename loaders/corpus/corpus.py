"""The index of a corpus, read back: `videos.parquet` (a row a video), `gops.parquet` (a row a GOP, in video order) and
`packets.arrow` (a row a packet, in decode order).

Opening reads a few numbers a video; everything else is read when asked for: of the first two a row group at a time, and few of
them are kept; the last lies on disk as it would in memory and is mapped. So a corpus of any length costs little memory in every
process that opens it. The tables carry the id of the build that wrote them; what does not match is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..video.storage import INDEX_AGAIN
from ..video.timeline import Timeline
from ..video.video import GopTable, VideoFacts
from .folder import GOPS_NAME, PACKETS_NAME, VIDEOS_NAME, CorpusError, corpus_folder
from .parts import Packets, RowGroups, VideoPackets
from .schema import FACT_FIELDS, FORMAT_VERSION
from .whole_file import unreadable


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

    def __init__(self, path: Path, videos: RowGroups, gops: RowGroups, packets: Packets) -> None:
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
        videos = _open(RowGroups, path / VIDEOS_NAME, again)
        gops = _open(RowGroups, path / GOPS_NAME, again)
        packets = _open(Packets, path / PACKETS_NAME, again)
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
            packets=VideoPackets(self._packets, int(self._first_packet[row])),
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


def _open_again(path: str, build: str) -> Corpus:
    """A corpus that another process has opened. Raises CorpusError where it has been indexed again since."""
    corpus = Corpus.open(path)
    if _metadata(corpus._videos.file, "build") != build:
        raise CorpusError(f"{path}: was indexed again while it was read; start again, a run goes on where it was")
    return corpus


_Table = TypeVar("_Table", RowGroups, Packets)


def _open(kind: type[_Table], path: Path, again: str) -> _Table:
    try:
        table = kind(path)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(unreadable(path, error, again)) from error
    version = _metadata(table.file if isinstance(table, RowGroups) else table, "version")
    if version != FORMAT_VERSION:
        raise CorpusError(f"{path}: format version {version!r}, expected {FORMAT_VERSION!r}; {again}")
    return table


def _metadata(file: pq.ParquetFile | Packets, key: str) -> str | None:
    value = (file.schema_arrow.metadata or {}).get(key.encode())
    return None if value is None else value.decode()
