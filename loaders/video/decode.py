"""A window's packets -> exactly the wanted frames, by FFmpeg's decoders on the CPU."""

from __future__ import annotations

import io
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import PacketSideData
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .codec_traits import SETS_IN_THE_HEADER, SKIPPING, TOLD_BY_A_HEADER
from .nal import holds_parameter_sets
from .video import VideoError, VideoFacts, open_video
from .window import Window, padded_packet

NAL_LENGTH_BYTES = 4  # as all who write such files have it


@dataclass
class DecodeCount:
    """What the decoder did: packets it was fed, frames it returned."""

    packets: int = 0
    frames: int = 0


def first_palette(container: InputContainer, stream: VideoStream) -> PacketSideData | None:
    """The colours that a container hands out with a stream's first packet, as far as it has a palette."""
    packet = next((packet for packet in container.demux(stream) if packet.size), None)
    return packet.get_sidedata("palette") if packet is not None and packet.has_sidedata("palette") else None


def decoder_key(window: Window) -> Hashable:
    """Windows of equal keys may go through one decoder, in turns: those of one video, and of videos whose equal headers, as proxies
    have them, say all that decoding depends on. Parameter sets among the packets would stay in a decoder for other videos."""
    video = window.video
    if (
        not video.header
        or video.codec_tag not in SETS_IN_THE_HEADER
        or holds_parameter_sets(video.codec, window.payloads[0], NAL_LENGTH_BYTES)
    ):
        return video.path, window.video.stream_index
    return video.codec_tag, video.header


class WindowDecoder:
    """A decoder for one video, and for windows of others with the same `decoder_key`. Not thread-safe: one thread at a time.

    Raises VideoError where FFmpeg cannot open it.
    """

    def __init__(self, video: VideoFacts) -> None:
        self.video = video
        self._containers: dict[bool, InputContainer] = {}
        self._palette: PacketSideData | None = None

    def close(self) -> None:
        while self._containers:
            self._containers.popitem()[1].close()

    def _codec(self, idr: bool) -> VideoCodecContext:
        """The decoder for windows that begin with an IDR picture, or for others."""
        if idr not in self._containers:
            self._containers[idr] = self._open()
        streams = self._containers[idr].streams.video
        streams = [stream for stream in streams if self.video.header or stream.index == self.video.stream_index]
        if not streams:
            raise VideoError(
                f"{self.video.path}: no video in stream {self.video.stream_index}; run `trocar index` again"
            )
        codec = streams[0].codec_context
        if not codec.is_open:
            codec.thread_count, codec.thread_type = 1, "NONE"
            # explode: report damage rather than conceal it; where only the keyframe itself is clean, pictures are missing that
            # are named, not used. strict: where a stream does not say how far its pictures are reordered, as many recorders
            # leave it, hold them back as long as its size and level allow; else the first ones may come out of order.
            codec.options = {"err_detect": "explode"} if idr else {}
            if self.video.codec == "h264":
                codec.options = {**codec.options, "strict": "1"}
            if self.video.header:
                codec.codec_tag = self.video.codec_tag.to_bytes(4, "little").decode("ascii")
            else:
                self._palette = first_palette(self._containers[idr], streams[0])
        return codec

    def _open(self) -> InputContainer:
        try:
            # A header says what the stream is; without one only the file does.
            return av.open(io.BytesIO(self.video.header), "r") if self.video.header else open_video(self.video.path)
        except (FFmpegError, OSError) as error:
            reason = error.strerror or str(error)
            raise VideoError(
                f"{self.video.path}: cannot be opened ({reason}); copy it again or leave it out"
            ) from error

    def frames(self, window: Window, count: DecodeCount) -> Iterator[tuple[int, VideoFrame]]:
        """Yields (index of the wanted frame, decoded frame) in display order.

        Adds to `count`. Raises VideoError where a wanted frame does not come out of the decoder, or comes out damaged or of another
        size. The decoder may be used again after an error, and after a caller that stopped half-way.
        """
        video, numbers, codec = window.video, window.frames, self._codec(window.idr)
        places = window.order.tolist()
        wanted = {places[packet]: index for index, packet in enumerate(window.packet_of.tolist())}
        is_skipping, skipped = video.codec in SKIPPING, ""
        returned = 0
        try:
            packets = zip(window.payloads, places, window.keys.tolist(), strict=True)
            for index, (payload, place, is_key) in enumerate(packets):
                packet = padded_packet(payload)
                packet.pts, packet.dts, packet.is_keyframe = place, index, is_key
                if index == 0 and self._palette is not None:
                    packet.set_sidedata(self._palette)
                if is_skipping and skipped != (skip := "DEFAULT" if place in wanted else "NONREF"):
                    # A picture nobody wants and nobody refers to costs a parse, not a decode.
                    codec.skip_frame = skipped = skip
                count.packets += 1
                for frame in codec.decode(packet):
                    returned += 1
                    if (found := wanted.pop(frame.pts, None)) is not None:
                        _check(frame, window, found)
                        yield found, frame
            for frame in codec.decode(None):
                returned += 1
                if (found := wanted.pop(frame.pts, None)) is not None:
                    _check(frame, window, found)
                    yield found, frame
        except FFmpegError as error:
            self.close()  # some decoders do not recover
            reason = error.strerror or str(error)
            raise VideoError(
                f"{video.path}: frames {numbers[0]} to {numbers[-1]} do not decode ({reason}); re-encode it or leave it out"
            ) from error
        finally:
            count.frames += returned
            if video.codec in TOLD_BY_A_HEADER or codec.codec.intra_only:
                if self._containers:
                    codec.flush_buffers()
            else:
                self.close()  # many decoders keep the last picture when they are flushed
        if wanted:
            missing = numbers[min(wanted.values())]
            raise VideoError(
                f"{video.path}: the decoder did not return frame {missing} ({len(wanted)} are missing of {len(numbers)}); "
                "re-encode it or leave it out"
            )


def _check(frame: VideoFrame, window: Window, index: int) -> None:
    """Raises VideoError where a wanted frame is not as it should be."""
    video = window.video
    if frame.is_corrupt:
        raise VideoError(f"{video.path}: frame {window.frames[index]} is damaged; copy the file again or re-encode it")
    if (frame.width, frame.height) != (video.width, video.height):
        raise VideoError(
            f"{video.path}: frame {window.frames[index]} is {frame.width}x{frame.height}, not {video.width}x"
            f"{video.height} as the first; re-encode it to one size"
        )
