"""Exact frames out of one long video: seek to a clean keyframe, decode as little as possible, stop.

Frames are numbered in display order. Which packet holds which number follows from the timestamps alone, before anything is decoded,
so nothing is fed to the decoder that the wanted frames do not need, and pictures that no other picture refers to are skipped.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .packets import shows_vp8_frame
from .video import GopTable, VideoError, VideoFacts, open_video


@dataclass
class DecodeCount:
    """What the decoder did: packets it was fed, frames it returned, bytes in those packets."""

    packets: int = 0
    frames: int = 0
    bytes: int = 0


class VideoReader:
    """An open video. Not thread-safe: one thread at a time.

    Raises VideoError where the file is gone, has changed since it was indexed, or cannot be opened.
    """

    def __init__(self, video: VideoFacts) -> None:
        self.video = video
        try:
            status = os.stat(video.path)
        except OSError as error:
            raise VideoError(f"{video.path}: {error.strerror}; restore the file or run `trocar index` again") from error
        if (status.st_size, status.st_mtime_ns) != (video.size_bytes, video.mtime_ns):
            raise VideoError(f"{video.path}: changed since it was indexed; run `trocar index` again")
        try:
            self.container = open_video(video.path)
        except (FFmpegError, OSError) as error:
            reason = error.strerror or str(error)
            raise VideoError(f"{video.path}: cannot be opened ({reason}); copy it again or leave it out") from error
        stream = self.container.streams[video.stream_index]
        assert isinstance(stream, VideoStream)
        self.stream = stream
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1
        self.codec.thread_type = "NONE"
        self._hides_packets = video.codec == "vp8"

    def close(self) -> None:
        self.container.close()

    def frames(
        self, numbers: NDArray[np.int64], gops: GopTable, count: DecodeCount
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yields (frame number, decoded frame) for the wanted numbers, in display order.

        numbers: ascending, distinct, 0 .. frames - 1. Adds to `count`. Raises VideoError where a wanted frame does not come out
        of the decoder, or comes out damaged or of another size. The reader may be used again after an error, and after a caller
        that stopped half-way.
        """
        wanted: dict[int, int] = {}
        try:
            for packet, number in self._numbered_packets(numbers, gops):
                # A picture nobody wants and nobody refers to costs a parse, not a decode.
                self.codec.skip_frame = "NONREF" if number is None else "DEFAULT"
                if number is not None:
                    assert packet.pts is not None
                    wanted[packet.pts] = number
                count.packets += 1
                count.bytes += packet.size
                yield from self._wanted_frames(packet, wanted, count)
            yield from self._wanted_frames(None, wanted, count)
        except FFmpegError as error:
            reason = error.strerror or str(error)
            raise VideoError(
                f"{self.video.path}: frames {numbers[0]} to {numbers[-1]} do not decode ({reason}); re-encode it or leave it out"
            ) from error
        if wanted:
            raise VideoError(
                f"{self.video.path}: the decoder did not return frame {min(wanted.values())} ({len(wanted)} are missing of "
                f"{len(numbers)}); re-encode it or leave it out"
            )

    def _wanted_frames(
        self, packet: Packet | None, wanted: dict[int, int], count: DecodeCount
    ) -> Iterator[tuple[int, VideoFrame]]:
        for frame in self.codec.decode(packet):
            count.frames += 1
            number = None if frame.pts is None else wanted.pop(frame.pts, None)
            if number is None:
                continue
            if frame.is_corrupt:
                raise VideoError(f"{self.video.path}: frame {number} is damaged; copy the file again or re-encode it")
            if (frame.width, frame.height) != (self.video.width, self.video.height):
                raise VideoError(
                    f"{self.video.path}: frame {number} is {frame.width}x{frame.height}, not {self.video.width}x"
                    f"{self.video.height} as the first; re-encode it to one size"
                )
            yield number, frame

    def _numbered_packets(self, numbers: NDArray[np.int64], gops: GopTable) -> Iterator[tuple[Packet, int | None]]:
        """Packets in decode order, from a clean keyframe to the last one needed, with the frame number where it is wanted."""
        gop = gops.clean_start(int(numbers[0]))
        first_number, key_pts = int(gops.first_frame[gop]), int(gops.pts[gop])
        remaining = set(numbers.tolist())
        timestamps: list[int] = []
        undecided: deque[tuple[int, Packet]] = deque()

        def decide(pts: int, packet: Packet) -> tuple[Packet, int | None]:
            if packet.is_corrupt:
                # Decoders conceal what is missing, here and in all that refers to it, and say nothing.
                raise VideoError(
                    f"{self.video.path}: frames {numbers[0]} to {numbers[-1]} need a damaged packet; copy the file again or "
                    "re-encode it"
                )
            if not self._is_shown(packet):
                return packet, None
            number = first_number + bisect_left(timestamps, pts)
            if number in remaining:
                remaining.discard(number)
                return packet, number
            return packet, None

        latest_key_pts: int | None = None
        for pts, packet in self._packets_from(gop, gops):
            if packet.is_keyframe:
                if latest_key_pts is not None and pts <= latest_key_pts:
                    break  # where timestamps jump back, the index ends
                latest_key_pts = pts
            if pts < key_pts:
                continue  # a leading picture: it refers to the GOP before, which was not decoded
            if self._is_shown(packet):
                place = bisect_left(timestamps, pts)
                if place == len(timestamps) or timestamps[place] != pts:
                    timestamps.insert(place, pts)
            undecided.append((pts, packet))
            # After reorder_depth further packets no earlier timestamp can come: the number is final.
            if len(undecided) > self.video.reorder_depth:
                yield decide(*undecided.popleft())
                if not remaining:
                    return
        while undecided and remaining:
            yield decide(*undecided.popleft())
        if remaining:
            raise VideoError(f"{self.video.path}: frame {min(remaining)} is not in the file; run `trocar index` again")

    def _is_shown(self, packet: Packet) -> bool:
        """Whether the packet's picture counts as a frame: the rule `probe_video` numbers by."""
        if packet.is_discard or packet.is_corrupt:
            return False
        return not self._hides_packets or shows_vp8_frame(memoryview(packet))

    def _seeks(self, gop: int, gops: GopTable) -> Iterator[None]:
        """Goes to `gop`, then, while the caller has not found it, further and further before it."""
        if self.video.container == "mpegts":
            # FFmpeg finds a time in such a stream by bisection over decode times, which lands late or, where recordings are
            # joined, in the wrong one. The byte is known.
            self.container.seek(int(gops.byte_offset[gop]), stream=self.stream, unsupported_byte_offset=True)
            yield
            return
        for earlier in dict.fromkeys(max(gop - steps, 0) for steps in (0, 1, 4, 16, 64, gop)):
            self.container.seek(int(gops.pts[earlier]), stream=self.stream)
            yield

    def _packets_from(self, gop: int, gops: GopTable) -> Iterator[tuple[int, Packet]]:
        """(pts, packet) in decode order, starting with the keyframe of `gop`."""
        key_pts = int(gops.pts[gop])
        for _ in self._seeks(gop, gops):
            for packet in self.container.demux(self.stream):
                if packet.pts is None or not packet.size:
                    continue
                if packet.is_keyframe and packet.pts >= key_pts:
                    break
            else:
                continue
            if packet.pts == key_pts:
                yield packet.pts, packet
                for packet in self.container.demux(self.stream):
                    if packet.pts is not None and packet.size:
                        yield packet.pts, packet
                return
        raise VideoError(
            f"{self.video.path}: no keyframe at timestamp {key_pts}; the file differs from its index, run `trocar index` again"
        )
