"""Windows through decoder sessions that stay open: NVDEC by way of PyNvVideoCodec.

Opening a session takes as long as decoding many windows, so a thread keeps the sessions it has opened. A window's packets go to
one of them after another, then the end of the stream, which brings out what the decoder holds back; the next window, which begins
with a clean start, goes to the same session. Which one: that of its codec, its depth and its class of sizes, whose largest the
session is opened with. Pictures of another size than the last window's have to be told beforehand (`setReconfigParams`), or they
come out scaled to that one; and this has an effect only where the *coded* size changes. So a session takes only sizes that leave
the same remainder modulo 32: of these, two that differ differ in coded size as well, whatever multiple the codec rounds to.

A decoder hands out its pictures in memory that it writes again at the next call. They are copied on the stream it works on.

Shapes: P packets of a window, F wanted frames, H x W pixels.
"""

# ruff: noqa: N802, N803, N815  (the library's names)
from __future__ import annotations

import ctypes
import io
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError

from ..video.nal import nal_length_size
from ..video.video import VideoFacts
from ..video.window import Window, padded_packet

# What one call of the decoder is given: a packet, or the whole window, where its codec marks the beginnings of pictures.
Calls = Literal["packet", "window"]
SESSIONS_PER_THREAD = 8
SMALLEST_CLASS = 512  # pixels of a side; each class has twice those of the one before
KEPT_STREAMS = 32
NAMES = {"h264": "H264", "hevc": "HEVC", "mpeg4": "MPEG4", "vp8": "VP8", "vp9": "VP9"}
WITH_START_CODES = ("h264", "hevc", "mpeg4")
TEN_BITS = "yuv420p10le"


class SessionError(RuntimeError):
    """A session that failed at a window, or did not return exactly its pictures; it is not used again."""


class Picture(Protocol):
    """What a decoder returns: the address of its luma, behind which its chroma stands, NV12 or P016, without gaps."""

    def getPTS(self) -> int: ...
    def GetPtrToPlane(self, planeIdx: int) -> int: ...


class Decoder(Protocol):
    def Decode(self, packet: Any) -> list[Any]: ...
    def setReconfigParams(self, width: int, height: int) -> Any: ...


class Library(Protocol):
    """What is used of the module PyNvVideoCodec."""

    PacketData: Any
    cudaVideoCodec: Any

    def CreateDecoder(self, **settings: Any) -> Any: ...


@dataclass(frozen=True)
class SessionKind:
    """Videos that one session can decode. side: of the largest picture, in pixels. across, down: what their width and height lack
    to multiples of 32."""

    codec: str
    ten_bits: bool
    side: int
    across: int
    down: int

    @classmethod
    def of(cls, video: VideoFacts) -> SessionKind:
        side = max(SMALLEST_CLASS, 1 << (max(video.width, video.height) - 1).bit_length())
        return cls(video.codec, video.pix_fmt == TEN_BITS, side, -video.width % 32, -video.height % 32)


class Bitstream:
    """A video's packets as a decoder takes them that knows no container: H.264 and HEVC with start codes in place of lengths, and
    with the parameters that the container keeps for itself."""

    def __init__(self, video: VideoFacts) -> None:
        with av.open(io.BytesIO(video.header)) as container:
            stream = container.streams.video[0]
            extradata = stream.codec_context.extradata or b""
            has_lengths = bool(nal_length_size(video.codec, extradata))
            self._filter = BitStreamFilterContext(f"{video.codec}_mp4toannexb", stream) if has_lengths else None
        self._parameters = extradata if not has_lengths and video.codec in WITH_START_CODES else b""

    def parts(self, window: Window, calls: Calls) -> Iterator[bytes]:
        """What each call is given, all of the window. Raises SessionError where its packets cannot be read."""
        payloads = [bytes(payload) for payload in window.payloads]
        payloads[0] = self._parameters + payloads[0]
        if calls == "window" and window.video.codec in WITH_START_CODES:
            payloads = [b"".join(payloads)]
        if self._filter is None:
            yield from payloads
            return
        self._filter.flush()
        try:
            for payload in payloads:
                yield b"".join(bytes(packet) for packet in self._filter.filter(padded_packet(memoryview(payload))))
        except FFmpegError as error:
            raise SessionError(f"its packets cannot be read: {error}") from error


class Session:
    """One open decoder. Not thread-safe. After an error it is not to be used again."""

    def __init__(self, library: Library, kind: SessionKind, device: torch.device) -> None:
        self._library, self._device = library, device
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        self._decoder: Decoder = library.CreateDecoder(
            gpuid=device.index or 0,
            codec=getattr(library.cudaVideoCodec, NAMES[kind.codec]),
            cudacontext=0,
            cudastream=stream,
            usedevicememory=device.type == "cuda",
            maxwidth=kind.side,
            maxheight=kind.side,
        )
        self._size: tuple[int, int] | None = None
        self._item = 2 if kind.ten_bits else 1

    def pictures(self, window: Window, bitstream: Bitstream, calls: Calls) -> torch.Tensor:
        """(F, 3 H / 2, W) uint8 or uint16 on the device: the wanted frames, luma above chroma. Raises SessionError."""
        width, height = window.video.width, window.video.height
        wanted = {rank: index for index, rank in enumerate(window.ranks.tolist())}
        shown = np.sort(window.order[window.shows]).tolist()
        shape = (len(window.frames), height * 3 // 2, width * self._item)
        pictures = torch.empty(shape, dtype=torch.uint8, device=self._device)
        returned = 0
        try:
            if (width, height) != self._size:
                self._decoder.setReconfigParams(width, height)
                self._size = width, height
            parts = bitstream.parts(window, calls)
            places = window.order.tolist()
            for number, part in enumerate((*parts, b"")):
                for picture in self._decode(part, places[number] if number < len(places) else 0):
                    if returned == len(shown):
                        raise SessionError(f"it has more than the {len(shown)} pictures of its packets")
                    if calls == "packet" and picture.getPTS() != shown[returned]:
                        raise SessionError(
                            f"picture {returned} is that of packet {picture.getPTS()}, not {shown[returned]}"
                        )
                    if returned in wanted:
                        pictures[wanted[returned]].copy_(self._bytes(picture, shape[1:]))
                    returned += 1
        except SessionError:
            raise
        except Exception as error:
            raise SessionError(next(iter(str(error).strip().splitlines()), type(error).__name__)) from error
        if returned < len(shown):
            raise SessionError(f"{len(shown) - returned} of its {len(shown)} pictures did not come out")
        return pictures if self._item == 1 else pictures.view(torch.uint16)

    def _decode(self, data: bytes, place: int) -> list[Picture]:
        """data: empty at the end of a window."""
        memory = np.frombuffer(data, np.uint8)
        packet = self._library.PacketData()
        packet.bsl, packet.bsl_data, packet.pts = len(data), memory.ctypes.data if data else 0, place
        return self._decoder.Decode(packet)

    def _bytes(self, picture: Picture, shape: tuple[int, ...]) -> torch.Tensor:
        """A picture's memory, not copied."""
        address, size = picture.GetPtrToPlane(0), shape[0] * shape[1]
        if self._device.type == "cpu":
            return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8).view(shape)
        return torch.as_tensor(_DeviceMemory(address, shape), device=self._device)


class _DeviceMemory:
    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {"version": 3, "shape": shape, "typestr": "|u1", "data": (address, False)}


class Sessions:
    """A thread's sessions; the one that was not used for the longest time is closed for another."""

    def __init__(self, library: Library, device: torch.device, calls: Calls, limit: int = SESSIONS_PER_THREAD) -> None:
        self._library, self._device, self._limit = library, device, limit
        self._calls: Calls = calls
        self._sessions: OrderedDict[SessionKind, Session] = OrderedDict()
        self._bitstreams: OrderedDict[str, Bitstream] = OrderedDict()
        self.opened = 0

    def pictures(self, window: Window) -> torch.Tensor:
        """As `Session.pictures`. A session that fails is closed, and the next window of its kind opens another."""
        video, kind = window.video, SessionKind.of(window.video)
        session = self._sessions.pop(kind, None)
        if session is None:
            if len(self._sessions) == self._limit:
                self._sessions.popitem(last=False)
            try:
                session = Session(self._library, kind, self._device)
            except Exception as error:
                raise SessionError(f"no session could be opened: {error}") from error
            self.opened += 1
        try:
            pictures = session.pictures(window, self._bitstream(video), self._calls)
        except SessionError:
            self._bitstreams.pop(video.path, None)
            raise
        self._sessions[kind] = session
        return pictures

    def _bitstream(self, video: VideoFacts) -> Bitstream:
        bitstream = self._bitstreams.pop(video.path, None) or Bitstream(video)
        self._bitstreams[video.path] = bitstream
        if len(self._bitstreams) > KEPT_STREAMS:
            self._bitstreams.popitem(last=False)
        return bitstream

    def close(self) -> None:
        self._sessions.clear()
        self._bitstreams.clear()


def can_decode(window: Window) -> bool:
    """Whether a session returns exactly the window's pictures, as far as that is known beforehand.

    Left to the CPU: other codecs and formats, odd sides, whose chroma the library cuts short, H.264 that begins without an IDR
    picture, and VP8 and VP9 with pictures that are not shown.
    """
    video = window.video
    if video.codec not in NAMES or not video.header or video.width % 2 or video.height % 2:
        return False
    if video.pix_fmt not in ("yuv420p", "yuvj420p") and (video.codec, video.pix_fmt) != ("hevc", TEN_BITS):
        return False
    if video.codec == "h264":
        return window.idr
    return video.codec not in ("vp8", "vp9") or not hides_pictures(window)


def hides_pictures(window: Window) -> bool:
    """Whether a VP8 or VP9 window holds pictures that are not shown, by themselves or several in a packet (VP9 bitstream
    specification, annex B)."""
    superframes = window.video.codec == "vp9" and any(payload[-1] & 0xE0 == 0xC0 for payload in window.payloads)
    return superframes or not bool(window.shows.all())


def is_full_range(window: Window) -> bool:
    """Whether luma reaches from 0 to 255. Of VP9 its first picture says it (bitstream specification, 7.2.2), no container does."""
    if window.video.codec == "vp9" and window.video.pix_fmt == "yuv420p":
        return bool(window.payloads[0][4] >> 4 & 1)
    return window.video.pix_fmt.startswith("yuvj")
