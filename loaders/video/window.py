"""The packets that a clip needs, read from the file by their places in the index, and nothing else.

A window holds, for every wanted frame, the packets from the last keyframe at which decoding may start to the frame itself, in
decode order; leading pictures of that keyframe and pictures that nothing refers to and nobody wants are left out. It is read with
one `pread` (one ranged request where the file is remote), unless whole GOPs between wanted frames can be skipped. Where a container
scatters its payloads (MPEG-TS) or wraps them (Matroska's compressed tracks), the index has no places, and the file is demuxed.

A window goes to a decoder as packets (`decode.py`) or, remuxed in memory, as a file of its own (`Window.mux`).

Shapes: P packets of the window, F wanted frames.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from numpy.typing import NDArray

from .reader import DemuxReader
from .storage import INDEX_AGAIN, StoredFile
from .uncrop import can_be_cropped, uncropped
from .video import GopTable, PacketFlag, PacketTable, VideoError, VideoFacts

# Bytes that are read for nothing rather than asking the storage twice.
LARGEST_GAP = 1 << 18
TICKS_PER_FRAME = 40


@dataclass(frozen=True)
class Window:
    """What a decoder needs for some frames of one video.

    payloads: P packets in decode order. idr: nothing crosses the keyframe they begin with. keys: (P,) bool. order: (P,) the
    place of each packet's picture in display order, 0 .. P - 1; hidden ones have a place as well. shows: (P,) bool, whether a
    picture comes out for it. frames: (F,) the wanted frame numbers, ascending and distinct; packet_of: (F,) the packet that
    shows each. pts: (F,) ticks of the video's time base. bytes_read: what the storage was asked for.
    """

    video: VideoFacts
    payloads: list[memoryview]
    idr: bool
    keys: NDArray[np.bool_]
    order: NDArray[np.int64]
    shows: NDArray[np.bool_]
    frames: NDArray[np.int64]
    packet_of: NDArray[np.int64]
    pts: NDArray[np.int64]
    bytes_read: int

    @property
    def ranks(self) -> NDArray[np.int32]:
        """(F,) the places of the wanted frames among the pictures that a decoder returns for the whole window."""
        shown = np.sort(self.order[self.shows])
        return np.searchsorted(shown, self.order[self.packet_of]).astype(np.int32)

    def mux(self, *, is_uncropped: bool = False) -> NDArray[np.uint8]:
        """The window as a file in memory, (bytes,) uint8: MP4, or WebM for VP8, which MP4 cannot hold, and VP9,
        whose MP4 header would need what only its pictures tell.

        The file's clock is synthetic: one frame lasts 40 ms, and decoding begins as late as display order allows. is_uncropped: its
        pictures are whole coded ones, with what the video shows in their upper left corner (H.264 and HEVC; see `uncrop.py`).
        Raises VideoError where the codec fits neither container.
        """
        if not self.video.header:
            raise VideoError(f"{self.video.path}: {self.video.codec} cannot be remuxed; convert it with `trocar pack`")
        file = io.BytesIO()
        delay = int((np.arange(len(self.order)) - self.order).max())
        try:
            with (
                av.open(io.BytesIO(self.video.header)) as source,
                av.open(file, "w", format="webm" if self.video.codec in ("vp8", "vp9") else "mp4") as target,
            ):
                stream = target.add_stream_from_template(source.streams.video[0])
                packets = self._packets(delay)
                if is_uncropped and can_be_cropped(self.video):
                    packets = uncropped(self.video, source.streams.video[0], stream, packets)
                for packet in packets:
                    packet.stream = stream
                    target.mux(packet)
        except (FFmpegError, ValueError) as error:
            named = f"{self.video.path}: frames {self.frames[0]} to {self.frames[-1]}"
            raise VideoError(f"{named} cannot be remuxed ({error}); convert it with `trocar pack`") from error
        return np.frombuffer(file.getbuffer(), np.uint8)

    def _packets(self, delay: int) -> list[Packet]:
        """With the times of a file of their own; shown `delay` frames after display order would have it."""
        packets = []
        for index, payload in enumerate(self.payloads):
            packet = padded_packet(payload)
            packet.time_base = Fraction(1, 1000)
            packet.dts = index * TICKS_PER_FRAME
            packet.pts = (int(self.order[index]) + delay) * TICKS_PER_FRAME
            # Without durations a muxer writes an edit list that hides the last frame.
            packet.duration = TICKS_PER_FRAME
            packet.is_keyframe = bool(self.keys[index])
            packets.append(packet)
        return packets


def padded_packet(payload: memoryview) -> Packet:
    """A packet with a copy of `payload` and the zeros behind it that decoders, which read beyond the end, rely on;
    `Packet(payload)` has none."""
    packet = Packet(len(payload))
    packet.update(payload)  # pyright: ignore[reportArgumentType]: takes any buffer
    return packet


class WindowReader:
    """Cuts windows out of one video. Not thread-safe: one thread at a time.

    remedy: what messages say mends the file. Raises VideoError where it is gone or has changed since it was indexed.
    """

    def __init__(self, video: VideoFacts, remedy: str = INDEX_AGAIN) -> None:
        self.video = video
        self._file = StoredFile(video, remedy)
        self._demuxer: DemuxReader | None = None

    def close(self) -> None:
        self._file.close()
        if self._demuxer is not None:
            self._demuxer.close()

    def window(self, frames: NDArray[np.int64], gops: GopTable) -> Window:
        """The window of these frames.

        frames: (F,) ascending, distinct, 0 .. frames - 1. Raises VideoError where the bytes cannot be read, are not what the index
        says, or fail their checksum, and where a needed packet is damaged.
        """
        first_gop, stop_gop = gops.clean_start(int(frames[0])), _stop_gop(gops, int(frames[-1]))
        first_packet = int(gops.first_packet[first_gop])
        table = gops.packets[first_packet : int(gops.first_packet[stop_gop - 1] + gops.num_packets[stop_gop - 1])]
        rows = gops[first_gop:stop_gop]
        starts = rows.first_packet - first_packet
        if not np.array_equal(table.pts[starts], rows.pts) or not (table.flags[starts] & PacketFlag.KEY).all():
            raise VideoError(f"{self.video.path}: its GOPs and packets contradict each other; {self._file.remedy}")
        packet_of = _packets_of(self.video, table, frames)
        needed = _needed(rows, starts, table, frames, packet_of)
        chosen = np.flatnonzero(needed)
        if (table.flags[chosen] & PacketFlag.CORRUPT).any():
            # Decoders conceal what is missing, here and in all that refers to it, and say nothing.
            raise VideoError(
                f"{self.video.path}: frames {frames[0]} to {frames[-1]} need a damaged packet; copy the file again or re-encode it"
            )
        # A checksum is over a whole GOP.
        read = needed if rows.crc32 is None else np.repeat(np.logical_or.reduceat(needed, starts), rows.num_packets)
        if (table.offset[read] >= 0).all():
            payloads, bytes_read = self._read(table, np.flatnonzero(read))
        else:
            payloads, bytes_read = self._demux(first_gop, gops, table[: np.flatnonzero(read)[-1] + 1])
        self._check(rows, starts, table, payloads)
        picked = table[chosen]
        order = np.empty(len(chosen), np.int64)
        order[np.argsort(picked.pts, kind="stable")] = np.arange(len(chosen))
        return Window(
            video=self.video,
            payloads=[payloads[index] for index in chosen.tolist()],
            idr=bool(rows.idr[0]),
            keys=picked.flags & PacketFlag.KEY != 0,
            order=order,
            shows=picked.flags & PacketFlag.HIDDEN == 0,
            frames=frames,
            packet_of=np.searchsorted(chosen, packet_of),
            pts=table.pts[packet_of],
            bytes_read=bytes_read,
        )

    def _read(self, table: PacketTable, rows: NDArray[np.int64]) -> tuple[dict[int, memoryview], int]:
        """The payloads of some rows of the table, and how many bytes were read for them."""
        rows = rows[np.argsort(table.offset[rows], kind="stable")]
        begins, ends = table.offset[rows], table.offset[rows] + table.size[rows]
        last_end = np.maximum.accumulate(ends)
        cuts = np.flatnonzero(begins[1:] - last_end[:-1] > LARGEST_GAP) + 1
        places = list(zip(rows.tolist(), begins.tolist(), ends.tolist(), strict=True))
        payloads: dict[int, memoryview] = {}
        bytes_read = 0
        for first, behind in pairwise([0, *cuts.tolist(), len(rows)]):
            start = places[first][1]
            data = memoryview(self._file.read(start, int(last_end[behind - 1])))
            bytes_read += len(data)
            payloads.update((row, data[begin - start : end - start]) for row, begin, end in places[first:behind])
        return payloads, bytes_read

    def _demux(self, gop: int, gops: GopTable, table: PacketTable) -> tuple[dict[int, memoryview], int]:
        if self._demuxer is None:
            self._demuxer = DemuxReader(self.video)
        payloads = self._demuxer.payloads(gop, gops, table)
        return dict(enumerate(map(memoryview, payloads))), sum(map(len, payloads))

    def _check(
        self, rows: GopTable, starts: NDArray[np.int64], table: PacketTable, payloads: dict[int, memoryview]
    ) -> None:
        """Compares the checksums of those GOPs of which all packets were read."""
        if rows.crc32 is None:
            return
        for row, (start, count) in enumerate(zip(starts.tolist(), rows.num_packets.tolist(), strict=True)):
            if start not in payloads:
                continue
            checksum = 0
            for index in range(start, start + count):
                checksum = zlib.crc32(payloads[index], checksum)
            if checksum != rows.crc32[row]:
                raise VideoError(
                    f"{self.video.path}: the GOP of frame {rows.first_frame[row]} fails its checksum; copy the file "
                    "again, or index it again if it was replaced"
                )


def _stop_gop(gops: GopTable, last_frame: int) -> int:
    """The row behind the last one that holds a packet of the frames up to `last_frame`."""
    last = gops.locate(last_frame)
    # Leading pictures stand behind the next keyframe.
    return last + 2 if last + 1 < len(gops) and gops.leading[last + 1] else last + 1


def _packets_of(video: VideoFacts, table: PacketTable, frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """(F,) the rows of the table that show the frames."""
    by_frame = np.argsort(table.frame, kind="stable")
    places = np.searchsorted(table.frame[by_frame], frames)
    found = by_frame[np.minimum(places, len(by_frame) - 1)]
    missing = frames[table.frame[found] != frames]
    if len(missing):
        raise VideoError(f"{video.path}: frame {missing[0]} is not in the index; run `trocar index` again")
    return found


def _needed(
    rows: GopTable,
    starts: NDArray[np.int64],
    table: PacketTable,
    frames: NDArray[np.int64],
    packet_of: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """(packets of the table,) whether a decoder needs them. rows: the window's GOPs, which begin at `starts` in the table."""
    needed, leading = np.zeros(len(table), bool), np.zeros(len(table), bool)
    # Only where nothing crosses a keyframe may a decoder jump to it.
    last_idr = np.maximum.accumulate(np.where(rows.idr, np.arange(len(rows)), 0))
    jump_to = last_idr[np.searchsorted(rows.first_frame, frames, side="right") - 1]
    stop = 0
    for row, packet in zip(jump_to.tolist(), packet_of.tolist(), strict=True):
        row = row if stop else 0
        start = int(starts[row])
        if start >= stop:
            needed[start : packet + 1] = True
            behind = np.arange(start, int(start + rows.num_packets[row]))
            leading[behind[table.pts[behind] < table.pts[start]]] = True
        else:
            needed[stop : packet + 1] = True
        stop = max(stop, packet + 1)
    # Pictures that are shown before the keyframe where decoding starts cannot be decoded, and a decoder shows none for them.
    needed &= ~leading & (table.flags & PacketFlag.DISPOSABLE == 0)
    needed[packet_of] = True
    return needed
