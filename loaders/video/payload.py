"""Where in its file a packet's payload stands, so that it can be read again without the container.

MP4 and MOV say so themselves. Matroska, WebM and AVI name the block or chunk, whose header is a few bytes long; MPEG-TS scatters
payloads over packets of 188 bytes. So every claim is checked against the bytes of the file, whatever the container: all of them,
since pictures with long runs of equal bytes begin and end alike also where something else stands in the middle.
"""

from __future__ import annotations

import mmap
from typing import Any

from .video import is_remote

LONGEST_HEADER = 40
SAMPLE_BYTES = 32


class PayloadFinder:
    """Finds the payloads of one file's packets. file: open for reading at `path`; its position stays what it is."""

    def __init__(self, path: str, file: Any) -> None:
        self._file = file
        self._bytes = None if is_remote(path) else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._distances: list[int] = []

    def close(self) -> None:
        if self._bytes is not None:
            self._bytes.close()

    def offset(self, position: int | None, payload: memoryview) -> int:
        """The offset of `payload` in the file, -1 where it does not stand there in one piece.

        position: where the container says that the packet is, None or negative where it does not.
        """
        if position is None or position < 0:
            return -1
        whole = bytes(payload)  # compared at once; a memoryview byte by byte
        claimed = self._read(position, position + LONGEST_HEADER + len(whole))
        for distance in self._distances:
            if claimed.startswith(whole, distance):
                return position + distance
        head = whole[:SAMPLE_BYTES]
        distance = claimed.find(head, 0, LONGEST_HEADER + len(head))
        while distance >= 0:
            if claimed.startswith(whole, distance):
                self._distances.insert(0, distance)
                return position + distance
            distance = claimed.find(head, distance + 1, LONGEST_HEADER + len(head))
        return -1

    def _read(self, start: int, stop: int) -> bytes:
        if self._bytes is not None:
            return self._bytes[start:stop]
        position = self._file.tell()
        self._file.seek(start)
        data = self._file.read(stop - start)
        self._file.seek(position)
        return data
