"""Where in its file a packet's payload stands, so that it can be read again without the container.

MP4 and MOV say so themselves. Matroska, WebM and AVI name the block or chunk, whose header is a few bytes long; MPEG-TS scatters
payloads over packets of 188 bytes. So the claim is checked against the bytes of the file, whatever the container.
"""

from __future__ import annotations

import mmap
from typing import BinaryIO

LONGEST_HEADER = 40
SAMPLE_BYTES = 32


class PayloadFinder:
    """Finds the payloads of one file's packets.

    Every distance between a packet's claimed position and its payload is proven by comparing one whole packet; from then on the
    ends of a payload have to be where that distance puts them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._proven: list[int] = []

    def close(self) -> None:
        self._bytes.close()

    def offset(self, position: int | None, payload: memoryview) -> int:
        """The offset of `payload` in the file, -1 where it does not stand there in one piece.

        position: where the container says that the packet is, None or negative where it does not.
        """
        if position is None or position < 0:
            return -1
        size = len(payload)
        head, tail = bytes(payload[:SAMPLE_BYTES]), bytes(payload[-SAMPLE_BYTES:])
        for distance in self._proven:
            start = position + distance
            if (
                self._bytes[start : start + len(head)] == head
                and self._bytes[start + size - len(tail) : start + size] == tail
            ):
                return start
        near = self._bytes[position : position + LONGEST_HEADER + len(head)]
        distance = near.find(head)
        while distance >= 0:
            start = position + distance
            if self._bytes[start : start + size] == payload:
                self._proven.insert(0, distance)
                return start
            distance = near.find(head, distance + 1)
        return -1
