"""Video files without an index: each one is probed when it is first asked for, and what was found stays in memory.

Probing reads a file once from end to end, and its table takes some 25 bytes a packet: 2 MB for an hour at 25 frames a second. The
tables used last are kept, up to `kept_bytes`. For thousands of long videos, or many processes on the same ones, run `trocar
index` once and use the corpus instead.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from ..video.probe import probe_video
from ..video.timeline import Timeline
from ..video.video import GopTable, PacketTable, is_remote
from .corpus import Video
from .folder import DESCRIPTION
from .schema import gops_digest

KEPT_BYTES = 1 << 30


class VideoFiles:
    """Videos by row, as a `Corpus` has them, of files that nobody indexed. Threads may share it.

    paths: files or URLs that fsspec knows; more can be added, and a path keeps its row. content_box: look for the picture inside
    a black border, which decodes up to 8 keyframes a video; else the whole picture. track: which of a file's video tracks, counted
    from 0; None: the one with the largest pictures. kept_bytes: tables in memory; where they take
    more, the least recently used are dropped. What was dropped, and what could not be probed, is probed again when asked for.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]] = (),
        *,
        content_box: bool = True,
        track: int | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.content_box, self.track, self.kept_bytes = content_box, track, kept_bytes
        self._paths: list[str] = []
        self._rows: dict[str, int] = {}
        self._lock = threading.Lock()
        self._turns: list[threading.Lock] = []
        self._probed: OrderedDict[int, tuple[Video, GopTable]] = OrderedDict()
        self._bytes: dict[int, int] = {}
        for path in paths:
            self.add(path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process probes what it needs itself."""
        options = {"content_box": self.content_box, "track": self.track, "kept_bytes": self.kept_bytes}
        return partial(VideoFiles, **options), (self._paths,)

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, path: str | os.PathLike[str]) -> int:
        """The row of the file at `path`, a new one where it has none; looks at no file."""
        text = os.fspath(path)
        text = text if is_remote(text) else os.path.abspath(text)
        with self._lock:
            if text not in self._rows:
                self._rows[text] = len(self._paths)
                self._paths.append(text)
                self._turns.append(threading.Lock())
            return self._rows[text]

    def video_path(self, row: int) -> str:
        """Where video `row` is: an absolute path or a URL."""
        return self._paths[row]

    def video(self, row: int) -> Video:
        """What is known of video `row`. Raises VideoError, which names the path, where the file is missing or broken."""
        return self._tables(row)[0]

    def gops(self, row: int) -> GopTable:
        """The GOPs of video `row`. Raises VideoError as `video` does."""
        return self._tables(row)[1]

    def timeline(self, row: int) -> Timeline:
        """When the frames of video `row` are shown. Raises VideoError as `video` does."""
        return Timeline(self.video(row).facts, self.gops(row))

    def _tables(self, row: int) -> tuple[Video, GopTable]:
        # Threads that want the same file wait for the first of them.
        with self._turns[row]:
            with self._lock:
                if row in self._probed:
                    self._probed.move_to_end(row)
                    return self._probed[row]
            tables = self._probe(row)
            with self._lock:
                self._probed[row] = tables
                self._bytes[row] = _table_bytes(tables[1])
                while sum(self._bytes.values()) > self.kept_bytes and len(self._probed) > 1:
                    oldest, _ = self._probed.popitem(last=False)
                    del self._bytes[oldest]
            return tables

    def _probe(self, row: int) -> tuple[Video, GopTable]:
        path = self._paths[row]
        facts, gops = probe_video(path, content_box=self.content_box, track=self.track)
        video = Video(
            row=row,
            id=hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).hexdigest(),
            facts=facts,
            **dict.fromkeys(DESCRIPTION, ""),
            original="",
            packed_stride=1,
            packed_start_seconds=None,
            boxed=self.content_box,
            verified=False,
            track=self.track,
            first_gop=0,
            num_gops=len(gops),
            first_packet=0,
            gops_digest=gops_digest(gops),
        )
        return video, gops


def _table_bytes(gops: GopTable) -> int:
    packets = gops.packets[0 : int(gops.num_packets.sum())]
    columns = [getattr(packets, field.name) for field in fields(PacketTable)]
    columns += [getattr(gops, field.name) for field in fields(GopTable) if field.name != "packets"]
    return sum(column.nbytes for column in columns if isinstance(column, np.ndarray))
