"""Packets out of a file by way of its container, for what cannot be read by its place in the file.

Every packet is compared with its row in the index, so a file that differs is noticed, not misread.
"""

from __future__ import annotations

from collections.abc import Iterator

from av.error import FFmpegError
from av.packet import Packet

from .storage import StoredFile
from .video import GopTable, PacketTable, VideoError, VideoFacts, open_video


class DemuxReader:
    """An open video. Not thread-safe: one thread at a time.

    Raises VideoError where the file is gone, has changed since it was indexed, or cannot be opened.
    """

    def __init__(self, video: VideoFacts) -> None:
        self.video = video
        StoredFile(video).close()
        try:
            self.container = open_video(video.path)
        except (FFmpegError, OSError) as error:
            reason = error.strerror or str(error)
            raise VideoError(f"{video.path}: cannot be opened ({reason}); copy it again or leave it out") from error
        self.stream = next(stream for stream in self.container.streams.video if stream.index == video.stream_index)

    def close(self) -> None:
        self.container.close()

    def payloads(self, gop: int, gops: GopTable, table: PacketTable) -> list[bytes]:
        """The payloads of the packets in `table`, which begins with the keyframe of row `gop`.

        Raises VideoError where the file does not decode to those packets.
        """
        payloads: list[bytes] = []
        try:
            for packet, pts, size in zip(
                self._packets_from(gop, gops), table.pts.tolist(), table.size.tolist(), strict=False
            ):
                if (packet.pts, packet.size) != (pts, size):
                    break
                payloads.append(bytes(packet))
        except FFmpegError as error:
            reason = error.strerror or str(error)
            raise VideoError(f"{self.video.path}: cannot be read ({reason}); copy it again or leave it out") from error
        if len(payloads) < len(table):
            pts, size = table.pts[len(payloads)], table.size[len(payloads)]
            raise VideoError(
                f"{self.video.path}: no packet of {size} bytes at timestamp {pts}; the file differs from its index, "
                "run `trocar index` again"
            )
        return payloads

    def _packets_from(self, gop: int, gops: GopTable) -> Iterator[Packet]:
        """The packets that an index counts, in decode order, starting with the keyframe of `gop`."""
        key_pts = int(gops.pts[gop])
        for _ in self._seeks(gop, gops):
            for packet in self.container.demux(self.stream):
                if packet.pts is not None and packet.size and packet.is_keyframe and packet.pts >= key_pts:
                    break
            else:
                continue
            if packet.pts == key_pts:
                yield packet
                for packet in self.container.demux(self.stream):
                    if packet.pts is not None and packet.size:
                        yield packet
                return
        raise VideoError(
            f"{self.video.path}: no keyframe at timestamp {key_pts}; the file differs from its index, run `trocar index` again"
        )

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
