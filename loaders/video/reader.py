"""Packets out of a file by way of its container, for what cannot be read by its place in the file.

Every packet is compared with its row in the index, so a file that differs is noticed, not misread.
"""

from __future__ import annotations

from collections.abc import Iterator

from av.error import FFmpegError

from .storage import StoredFile
from .video import GopTable, PacketTable, VideoError, VideoFacts, open_video


class DemuxReader:
    """An open video. Not thread-safe: one thread at a time.

    Raises VideoError where the file is gone, has changed since it was indexed, or cannot be opened.
    """

    def __init__(self, video: VideoFacts) -> None:
        self.video = video
        StoredFile(video).close()
        self._open()

    def _open(self) -> None:
        video = self.video
        try:
            self.container = open_video(video.path)
        except (FFmpegError, OSError) as error:
            reason = error.strerror or str(error)
            raise VideoError(f"{video.path}: cannot be opened ({reason}); copy it again or leave it out") from error
        streams = [stream for stream in self.container.streams.video if stream.index == video.stream_index]
        if not streams:
            self.container.close()
            raise VideoError(f"{video.path}: no video in stream {video.stream_index}; run `trocar index` again")
        self.stream = streams[0]

    def close(self) -> None:
        self.container.close()

    def payloads(self, gop: int, gops: GopTable, table: PacketTable) -> list[bytes]:
        """The payloads of the packets in `table`, which begins with the keyframe of row `gop`.

        Raises VideoError where the file does not demux to those packets.
        """
        wanted = list(zip(table.pts.tolist(), table.size.tolist(), strict=True))
        most = 0
        try:
            for _ in self._seeks(gop, gops):
                payloads = self._matching(wanted)
                if len(payloads) == len(wanted):
                    return payloads
                most = max(most, len(payloads))
        except (FFmpegError, OSError) as error:
            reason = error.strerror or str(error)
            raise VideoError(f"{self.video.path}: cannot be read ({reason}); copy it again or leave it out") from error
        pts, size = wanted[most]
        raise VideoError(
            f"{self.video.path}: no packet of {size} bytes at timestamp {pts}; the file differs from its index, "
            "run `trocar index` again"
        )

    def _matching(self, wanted: list[tuple[int, int]]) -> list[bytes]:
        """The payloads of the packets from here on that are (pts, size) of `wanted`, up to the first that is not there."""
        payloads: list[bytes] = []
        for packet in self.container.demux(self.stream):
            if packet.pts is None or not packet.size:
                continue
            pts, size = wanted[len(payloads)]
            if (packet.pts, packet.size) == (pts, size) and (payloads or packet.is_keyframe):
                payloads.append(bytes(packet))
            elif payloads or (packet.is_keyframe and packet.pts > pts):
                break
            if len(payloads) == len(wanted):
                break
        return payloads

    def _seeks(self, gop: int, gops: GopTable) -> Iterator[None]:
        """Goes to `gop`, then, while the caller does not find its packets, further and further before it.

        Where a packet of the container holds the end of one picture and the beginning of the next, as in MPEG-PS, what follows
        a seek has other sizes and times than it has in passing.
        """
        for earlier in dict.fromkeys(max(gop - steps, 0) for steps in (0, 1, 4, 16, 64, gop)):
            if self.video.container == "mpegts":
                # FFmpeg finds a time in such a stream by bisection over decode times, which lands late or, where recordings
                # are joined, in the wrong one. The byte is known.
                self.container.seek(int(gops.byte_offset[earlier]), stream=self.stream, unsupported_byte_offset=True)
            else:
                self.container.seek(int(gops.pts[earlier]), stream=self.stream)
            yield
        # Only from its beginning on, opened anew, is such a stream surely cut as the prober saw it.
        self.container.close()
        self._open()
        yield
