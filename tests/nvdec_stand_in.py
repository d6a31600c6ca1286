"""A stand-in with the interface of PyNvVideoCodec, on FFmpeg's decoders: it delays pictures, hands them out in memory that it
writes again at the next call, scales what nobody told it has another size, and fails as it is told to.

Behaviour as NVIDIA's NvDecoder.cpp has it (Video Codec SDK 13).
"""

# ruff: noqa: N802, N803, N815  (the library's names)
from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Fault = Literal["error", "missing", "endless", "dead", "blocked"]
DELAY = 3  # pictures that are held back until more come, or the end


class PacketData:
    def __init__(self) -> None:
        self.bsl, self.bsl_data, self.pts = 0, 0, 0


class _Codecs:
    H264, HEVC, MPEG4, VP8, VP9 = "h264", "hevc", "mpeg4", "vp8", "vp9"


@dataclass
class Picture:
    memory: NDArray[np.uint8]
    pts: int

    def getPTS(self) -> int:
        return self.pts

    def GetPtrToPlane(self, planeIdx: int) -> int:
        assert planeIdx == 0
        return self.memory.ctypes.data


@dataclass
class StandIn:
    """faults: what becomes of the n-th window, counted over all decoders. decoders: how many were created."""

    faults: dict[int, Fault] = field(default_factory=dict)
    decoders: int = 0
    windows: int = 0
    calls: int = 0
    unblocked: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    PacketData: Any = PacketData
    cudaVideoCodec: Any = _Codecs

    def CreateDecoder(self, **settings: Any) -> Decoder:
        with self.lock:
            self.decoders += 1
        return Decoder(self, settings["codec"], settings["maxwidth"], settings["maxheight"])

    def next_fault(self) -> Fault | None:
        with self.lock:
            self.windows += 1
            return self.faults.get(self.windows - 1)


class Decoder:
    def __init__(self, library: StandIn, codec: str, maxwidth: int, maxheight: int) -> None:
        self._library, self._codec, self._most = library, codec, (maxwidth, maxheight)
        self._told: tuple[int, int] | None = None
        self._coded: tuple[int, int] | None = None
        self._target = (0, 0)
        self._handed_out: list[Picture] = []
        self._held: list[Picture] = []
        self._context: VideoCodecContext | None = None
        self._fault: Fault | None = None

    def setReconfigParams(self, width: int, height: int) -> int:
        assert width <= self._most[0]
        assert height <= self._most[1]
        self._told = width, height
        return 1

    def Decode(self, packet: PacketData) -> list[Picture]:
        self._library.calls += 1
        for picture in self._handed_out:
            picture.memory[:] = 170
        if self._fault == "dead":
            raise RuntimeError("CUDA_ERROR_INVALID_HANDLE\nat NvDecoder.cpp:1")
        if self._context is None:
            fault = self._library.next_fault()
            self._fault = fault
            context = CodecContext.create(self._codec, "r")
            assert isinstance(context, VideoCodecContext)
            context.thread_count = 1
            self._context = context
        if self._fault == "blocked":
            self._library.unblocked.wait()
        is_end = packet.bsl == 0
        if is_end and self._fault in ("error", "dead"):
            raise RuntimeError("Decode Error occurred\nat NvDecoder.cpp:2")
        found = [self._picture(frame) for frame in self._decoded(packet, is_end)]
        if is_end:
            self._context = None
            if self._fault == "endless":
                found = [*self._held, *found] * 50
        self._held += found
        if is_end and self._fault == "missing":
            self._held.pop()
        count = len(self._held) if is_end else max(0, len(self._held) - DELAY)
        self._handed_out, self._held = self._held[:count], self._held[count:]
        return self._handed_out

    def _decoded(self, packet: PacketData, is_end: bool) -> list[VideoFrame]:
        assert self._context is not None
        if is_end:
            return self._context.decode(None)
        data = ctypes.string_at(packet.bsl_data, packet.bsl)
        if self._codec in ("vp8", "vp9"):
            packets = [Packet(data)]
        else:  # one picture or many
            parser = CodecContext.create(self._codec, "r")
            packets = [*parser.parse(data), *parser.parse(b"")]
        frames: list[VideoFrame] = []
        for number, part in enumerate(packets):
            part.pts = packet.pts if number == 0 else None
            frames += self._context.decode(part)
        return frames

    def _picture(self, frame: VideoFrame) -> Picture:
        coded, shown = (-(-frame.width // 16), -(-frame.height // 16)), (frame.width, frame.height)
        if 16 * coded[0] > self._most[0] or 16 * coded[1] > self._most[1]:
            raise RuntimeError("Reconfigure Not supported when width/height > maxwidth/maxheight")
        if self._coded is None:
            self._target = self._told or shown
        elif coded != self._coded:
            self._target = self._told or self._target
        elif shown != self._target:
            raise AssertionError(f"{shown} would be read from a surface of {self._target}")
        if coded != self._coded:
            self._coded, self._told = coded, None
        if shown != self._target:
            frame = frame.reformat(width=self._target[0], height=self._target[1])
        item = 2 if frame.format.name.endswith("10le") else 1
        luma, blue, red = (
            np.frombuffer(memoryview(plane), np.uint8)
            .reshape(plane.height, -1)[:, : plane.width * item]
            .view(f"<u{item}")
            for plane in frame.planes
        )
        chroma = np.stack([blue, red], axis=-1).reshape(blue.shape[0], -1)
        planes = np.concatenate([luma, chroma])
        if item == 2:
            planes = planes << 6
        return Picture(np.ascontiguousarray(planes).view(np.uint8).reshape(-1), frame.pts or 0)
