"""Where decoding of one video may start, proved by decoding it twice: once as a player does, once afresh from every keyframe.

For codecs whose own headers nobody reads here: those videos are rare, and flags alone have been wrong.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right

from av.codec.context import CodecContext
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .codec_traits import codec_tag
from .pyav import TOLD


def picture_digest(frame: VideoFrame) -> int:
    """A number that tells a decoded picture from others, however its rows are padded."""
    return zlib.crc32(frame.to_ndarray(format="rgb24").tobytes())


class DecodingProof:
    """Both decoders of one stream. Takes every packet in decode order, then tells which keyframes stand on their own."""

    def __init__(self, stream: VideoStream) -> None:
        self._plain = stream.codec_context
        # What the container said; a decoder changes it.
        self._told = {name: getattr(self._plain, name) for name in ("width", "height", *TOLD)}
        self._tag = codec_tag(self._plain)
        self._plain.thread_count, self._plain.thread_type = 1, "NONE"
        self._afresh = self._new_decoder()
        # Digests that wait for the other decoder's, by pts.
        self._shown: dict[int, int] = {}
        self._claimed: dict[int, tuple[int, int]] = {}
        self._leading: set[int] = set()
        self._key_pts: list[int] = []
        self._wrong: set[int] = set()

    def _new_decoder(self) -> VideoCodecContext:
        """One that has seen nothing: many decoders keep the last picture when they are flushed."""
        context = CodecContext.create(self._plain.codec.name, "r")
        assert isinstance(context, VideoCodecContext)
        for name, value in self._told.items():
            if value is not None:
                setattr(context, name, value)
        if self._tag is not None:
            context.codec_tag = self._tag
        context.thread_count, context.thread_type = 1, "NONE"
        return context

    def add(self, packet: Packet) -> None:
        assert packet.pts is not None
        if packet.is_keyframe:
            self._claim(None)
            self._afresh = self._new_decoder()
            self._key_pts.append(packet.pts)
        elif self._key_pts and packet.pts < self._key_pts[-1]:
            self._leading.add(packet.pts)  # refers to the GOP before, and is shown with it
        self._show(packet)
        if self._key_pts:
            self._claim(packet)

    def _show(self, packet: Packet | None) -> None:
        for pts, digest in self._decoded(self._plain, packet):
            if pts not in self._leading:
                self._shown[pts] = digest
        self._compare()

    def _claim(self, packet: Packet | None) -> None:
        row = len(self._key_pts) - 1
        for pts, digest in self._decoded(self._afresh, packet):
            if pts not in self._leading:
                self._claimed[pts] = (digest, row)
        self._compare()

    def _decoded(self, context: VideoCodecContext, packet: Packet | None) -> list[tuple[int, int]]:
        if packet is None and not context.is_open:
            return []
        try:
            frames = context.decode(packet)
            return [(-1 if frame.pts is None else frame.pts, picture_digest(frame)) for frame in frames]
        except (FFmpegError, ValueError):  # a picture that one decoder shows and the other does not is found at the end
            return []

    def _compare(self) -> None:
        for pts in [pts for pts in self._claimed if pts in self._shown]:
            digest, row = self._claimed.pop(pts)
            if self._shown.pop(pts) != digest:
                self._wrong.add(row)

    def clean_starts(self) -> list[bool]:
        """For every keyframe whether each picture from it to the next one came out as a player shows it."""
        self._show(None)
        self._claim(None)
        self._wrong.update(row for _, row in self._claimed.values())
        self._wrong.update(bisect_right(self._key_pts, pts) - 1 for pts in self._shown)
        return [row not in self._wrong for row in range(len(self._key_pts))]
