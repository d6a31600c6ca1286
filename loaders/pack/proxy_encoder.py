"""Decoded frames of one video -> the packets of its proxy: turned upright, mirrored, cropped, scaled to square pixels, encoded.

Colours keep their matrix, primaries and transfer, and their tags; RGB gets BT.709's matrix. The range becomes limited, which every
decoder takes for granted. MJPEG has full range and BT.601's matrix by definition. An original that does not name its matrix
yields a proxy that does not either, with the same numbers in it, so that a decoder makes the same RGB of both.
"""

from __future__ import annotations

import errno
from fractions import Fraction
from typing import IO

import av
from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from ..draw.augment import TURNS, Box, with_square_pixels
from ..video.video import NEARLY_SQUARE, VideoError, VideoFacts
from .settings import PackSettings

UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
# Without accurate_rnd swscale's bicubic kernel darkens: 39.6 instead of 45.3 dB against scaling to 224 pixels in one step.
SCALING = "bicubic+accurate_rnd+full_chroma_int"


class PictureScaler:
    """Turns frames of one video upright, cuts its content out and scales that to the proxy's size."""

    def __init__(self, video: VideoFacts, settings: PackSettings) -> None:
        self.video, self.pix_fmt = video, settings.encoder.pix_fmt
        content = Box(video.box_left, video.box_top, video.box_width, video.box_height)
        shown = content if video.pixel_aspect == 1 else with_square_pixels(content, video.pixel_aspect)
        self.width, self.height = settings.proxy_size(shown.width, shown.height)
        self.pixel_aspect = _pixel_aspect(Fraction(shown.width, shown.height), Fraction(self.width, self.height))
        self._graph: Graph | None = None
        self._graph_input: tuple[str, int, int] | None = None

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        described = (frame.format.name, frame.colorspace, frame.color_range)
        if self._graph is None or described != self._graph_input:  # a stream may change them on the way
            self._graph, self._graph_input = self._build_graph(frame), described
        self._graph.vpush(frame)
        picture = self._graph.vpull()
        # Encoders would take the original's picture types and keyframes for orders.
        picture.pict_type = PictureType.NONE
        return picture

    def _build_graph(self, frame: VideoFrame) -> Graph:
        video, graph = self.video, Graph()
        graph.threads = 1
        # A container may name the matrix where the stream does not.
        space = video.colorspace if frame.colorspace == UNSPECIFIED else frame.colorspace
        colours = f"colorspace={space}:range={frame.color_range}"
        source = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:{colours}"
        # JPEG has no place for a matrix: it is BT.601's.
        is_jpeg = self.pix_fmt == "yuvj420p"
        matrix = ":out_color_matrix=bt601" if is_jpeg else ":out_color_matrix=bt709" if frame.format.is_rgb else ""
        steps = [graph.add("buffer", source)]
        steps += [graph.add("transpose", f"dir={turn}") for turn in TURNS[video.rotation]]
        steps += [graph.add("hflip")] if video.mirrored else []
        box = f"w={video.box_width}:h={video.box_height}:x={video.box_left}:y={video.box_top}"
        steps.append(graph.add("crop", box))
        out_range = "pc" if is_jpeg else "tv"
        scaled = f"w={self.width}:h={self.height}:flags={SCALING}:out_range={out_range}{matrix}"
        steps.append(graph.add("scale", scaled))
        steps.append(graph.add("format", f"pix_fmts={self.pix_fmt}"))
        steps.append(graph.add("buffersink"))
        graph.link_nodes(*steps).configure()
        return graph


class ProxyEncoder:
    """Writes a proxy, MP4, into a path or a file object. Leaving it without an error finishes the file.

    encoded_bytes: those of the pictures, so far; the last of them come out when it is left.

    Raises VideoError where a frame cannot be converted or encoded, OSError where the file cannot be written.
    """

    def __init__(self, target: str | IO[bytes], video: VideoFacts, settings: PackSettings, time_base: Fraction) -> None:
        self.video, self.settings, self.time_base = video, settings, time_base
        self.scaler = PictureScaler(video, settings)
        self.encoded_bytes = 0
        self._durations: dict[int, int] = {}
        # The table of the samples in front lets a remote file be opened with one request. FFmpeg moves it there by name.
        options = {"movflags": "+faststart"} if isinstance(target, str) else {}
        self._container = av.open(target, "w", format="mp4", container_options=options)
        self._stream: VideoStream | None = None

    def __enter__(self) -> ProxyEncoder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self._stream is not None:
                self._mux(None)
        finally:
            try:
                self._container.close()
            except FFmpegError as error:
                raise self._failure(error) from error

    def write(self, frame: VideoFrame, ticks: int, duration: int, *, is_hidden: bool = False) -> VideoFrame:
        """Encodes a decoded frame to be shown at `ticks` for `duration`, both of the time base; a black one in its place where
        it is hidden. Returns the picture encoded."""
        try:
            picture = self.scaler(frame)
        except FFmpegError as error:
            raise VideoError(
                f"{self.video.path}: the frame at {ticks * self.time_base} s cannot be scaled ({error})"
            ) from error
        if is_hidden:
            black = 0 if self.settings.codec == "mjpeg" else 16
            for number, plane in enumerate(picture.planes):
                plane.update(bytes([128 if number else black]) * plane.buffer_size)
        picture.pts, picture.time_base = ticks, self.time_base
        if self._stream is None:
            self._stream = self._open_stream(picture, frame)
        self._durations[ticks] = duration
        self._mux(picture)
        return picture

    def _mux(self, picture: VideoFrame | None) -> None:
        assert self._stream is not None
        try:
            for packet in self._stream.encode(picture):
                # Without durations a muxer guesses the last one, and an edit list may then hide the last frame.
                assert packet.pts is not None
                packet.duration = self._durations.pop(packet.pts)
                self.encoded_bytes += packet.size
                self._container.mux(packet)
        except FFmpegError as error:
            raise self._failure(error) from error

    def _failure(self, error: FFmpegError) -> Exception:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            return OSError(error.errno, f"{error.strerror}, while the proxy of {self.video.path} was written")
        return VideoError(f"{self.video.path}: cannot be encoded as {self.settings.codec} ({error})")

    def _open_stream(self, picture: VideoFrame, original: VideoFrame) -> VideoStream:
        settings, video = self.settings, self.video
        rate = Fraction(video.fps_numerator, video.fps_denominator) / settings.stride
        stream = self._container.add_stream(settings.encoder.name, rate=rate, options=settings.encoder_options())
        assert isinstance(stream, VideoStream)
        codec = stream.codec_context
        codec.width, codec.height, codec.pix_fmt = picture.width, picture.height, settings.encoder.pix_fmt
        codec.time_base = stream.time_base = self.time_base
        codec.gop_size, codec.max_b_frames, codec.thread_count = settings.keyframe_interval, 0, 1
        codec.colorspace, codec.color_range = picture.colorspace, picture.color_range
        codec.color_primaries, codec.color_trc = original.color_primaries, original.color_trc
        codec.sample_aspect_ratio = self.scaler.pixel_aspect
        if settings.codec == "hevc":
            codec.codec_tag = "hvc1"  # what Apple's players ask for
        return stream


def _pixel_aspect(shown: Fraction, kept: Fraction) -> Fraction:
    """Width / height of the proxy's pixels, by that of the picture as it is shown and of its pixels in number; 1 where they are
    nearly square."""
    exact = shown / kept
    return exact.limit_denominator(255) if abs(exact - 1) > NEARLY_SQUARE else Fraction(1)
