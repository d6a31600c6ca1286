"""What the index knows of one video: its facts and its GOPs.

A *frame number* is the rank of a frame's pts among the distinct pts of the packets that are shown, counted from the first
keyframe: what a decoder hands out, in display order. GOP g is displayed from its keyframe's pts to the next keyframe's;
its bytes are those of the packets from its keyframe to the next one *in decode order*. So the leading pictures of an open
GOP count as frames of the GOP before, while their bytes lie behind the next keyframe (`GopTable.leading` says how many).

Shapes: G GOPs, P packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Protocol

import av
import fsspec.core
import numpy as np
from av.container import InputContainer

from .error import TrocarError
from .pyav import LENIENT_METADATA

NEARLY_SQUARE = 0.01
# FFmpeg's AVColorSpace; all others are taken for BT.601, as swscale takes them.
MATRICES = {1: "bt709", 7: "smpte240", 9: "bt2020"}


class VideoError(TrocarError):
    """A video that cannot be used; the message names the path, what was found and the fix."""


def is_remote(path: str) -> bool:
    """Whether `path` is a URL such as s3://bucket/name rather than a local path."""
    return "://" in path


def open_url(url: str, **options: Any) -> Any:
    """The file at a URL, for reading; raises what its store raises."""
    system, name = fsspec.core.url_to_fs(url)
    file = system.open(name, "rb", **options)
    # An archive closes its files when it is forgotten, and nothing else remembers it.
    file.kept_system = system
    return file


def open_video(path: str, file: Any = None) -> InputContainer:
    """Opens the file at an absolute path or a URL that fsspec knows; raises FFmpegError or OSError.

    file: the file itself, if it is open already. Whoever goes by an index has to open a file as the prober did, or its timestamps
    differ.
    """
    if file is not None or is_remote(path):
        if file is None:
            file = open_url(path)
        # The list keeps playlists from reaching beyond the file.
        options = {"fflags": "+genpts", "protocol_whitelist": ""}
        container = av.open(file, "r", container_options=options, **LENIENT_METADATA)
        assert isinstance(container, InputContainer)
        return container
    # As above, and for names with colons.
    options = {"fflags": "+genpts", "protocol_whitelist": "file"}
    return av.open(path, "r", container_options=options, **LENIENT_METADATA)


@dataclass(frozen=True)
class VideoFacts:
    """What one file says about its video stream.

    `width` and `height` are those of a decoded picture before rotation, in pixels. `colorspace` is FFmpeg's AVColorSpace: 1 is
    BT.709, 2 unspecified. `rotation` (0, 90, 180 or 270) is how many degrees counter-clockwise the decoded picture has to be
    turned to stand upright, `numpy.rot90(picture, rotation // 90)`, and `mirrored` whether it is then mirrored left to right: the
    eight ways in which a display matrix may set it upright. `pixel_aspect_*` is the width of a decoded pixel by its height. The
    content box is in upright pixels, all four numbers even unless it is the whole picture. `fps_*` is the average rate, pauses
    left out. `start_pts` is the pts of frame 0, `zero_pts` what a player shows as 0 (`timeline.py`), both in ticks of the time
    base. `pauses` are the frames that begin a stretch behind a pause, ascending. After `reorder_depth` further packets in decode
    order no packet with a smaller pts can come. `header` is a NUT file of the stream's parameters and one dummy packet, which
    tells decoders and muxers what the stream is without opening the video; empty where a decoder needs more than NUT can hold, so
    that only the video itself can tell. `codec_tag` is the container's code for the codec, little-endian, which some decoders go
    by. `health` is "ok" or notes.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    container: str
    codec: str
    codec_tag: int
    pix_fmt: str
    colorspace: int
    width: int
    height: int
    rotation: int
    mirrored: bool
    pixel_aspect_numerator: int
    pixel_aspect_denominator: int
    fps_numerator: int
    fps_denominator: int
    time_base_numerator: int
    time_base_denominator: int
    start_pts: int
    zero_pts: int
    frames: int
    duration_seconds: float
    variable_rate: bool
    pauses: tuple[int, ...]
    reorder_depth: int
    stream_index: int
    box_left: int
    box_top: int
    box_width: int
    box_height: int
    header: bytes
    health: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) in pixels after rotation."""
        return (self.height, self.width) if self.rotation % 180 else (self.width, self.height)

    @property
    def pixel_aspect(self) -> float:
        """Width / height of a pixel of the upright picture; 1 where that is no more than a hundredth off."""
        aspect = self.pixel_aspect_numerator / self.pixel_aspect_denominator
        aspect = 1 / aspect if self.rotation % 180 else aspect
        return aspect if abs(aspect - 1) > NEARLY_SQUARE else 1.0

    @property
    def start_seconds(self) -> float:
        """When frame 0 begins, as a player shows it."""
        return (self.start_pts - self.zero_pts) * self.time_base_numerator / self.time_base_denominator


class PacketFlag(IntFlag):
    """What the index notes of a packet. `DISPOSABLE`: no other picture refers to its picture."""

    KEY = 1
    DISCARD = 2
    CORRUPT = 4
    HIDDEN = 8
    DISPOSABLE = 16


@dataclass(frozen=True)
class PacketTable:
    """Packets in decode order, each field an array of shape (P,).

    `offset` is where the payload stands in the file, byte for byte and in one piece, -1 where it does not; `size` its length.
    `frame` is the number of the frame that the packet shows, -1 where it shows none that counts. `flags` are PacketFlags.
    """

    offset: np.ndarray
    size: np.ndarray
    pts: np.ndarray
    frame: np.ndarray
    flags: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, rows: slice | np.ndarray) -> PacketTable:
        """The packets of some rows, as NumPy indexes its arrays."""
        return PacketTable(self.offset[rows], self.size[rows], self.pts[rows], self.frame[rows], self.flags[rows])


class PacketSource(Protocol):
    """The packets of one video, by row."""

    def __getitem__(self, rows: slice, /) -> PacketTable: ...


@dataclass(frozen=True)
class GopTable:
    """The GOPs of one video in order, each field an array of shape (G,).

    `pts` and `dts` are the keyframe packet's, in ticks. `byte_offset` is the lowest position of the GOP's packets in the file
    (-1: the container gives none) and `num_bytes` their extent (without positions: the sum of their sizes); in MP4 and MOV
    that range is the packets' payload, in other containers it holds headers as well. `leading` counts the packets behind
    the keyframe that are displayed before it. `idr`: nothing crosses this keyframe. `clean`: exact decoding of everything
    displayed from this keyframe on may start here. `crc32` is over the payloads in decode order, None if not asked for. A GOP
    that an edit list hides has 0 frames, as has one that damage makes unusable, which is neither `idr` nor `clean`. Its packets
    are rows first_packet .. first_packet + num_packets - 1 of `packets`.
    """

    first_frame: np.ndarray
    frames: np.ndarray
    pts: np.ndarray
    dts: np.ndarray
    byte_offset: np.ndarray
    num_bytes: np.ndarray
    leading: np.ndarray
    idr: np.ndarray
    clean: np.ndarray
    first_packet: np.ndarray
    num_packets: np.ndarray
    packets: PacketSource
    crc32: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first_frame)

    def __getitem__(self, rows: slice | np.ndarray) -> GopTable:
        """The GOPs of some rows, as NumPy indexes its arrays."""
        columns = vars(self)
        taken: dict[str, Any] = {name: columns[name][rows] for name in columns if name not in ("packets", "crc32")}
        return GopTable(**taken, packets=self.packets, crc32=None if self.crc32 is None else self.crc32[rows])

    def locate(self, frame: int) -> int:
        """The row of the GOP that displays `frame` (0-based).

        Raises:
            IndexError: `frame` is negative or behind the last one.
        """
        num_frames = int(self.first_frame[-1] + self.frames[-1])
        if not 0 <= frame < num_frames:
            raise IndexError(f"frame {frame} is not in 0..{num_frames - 1}")
        return int(np.searchsorted(self.first_frame, frame, side="right")) - 1

    def clean_start(self, frame: int) -> int:
        """The last clean GOP at or before `frame`'s, where its exact decoding may start; row 0 when there is none."""
        return self.start(self.locate(frame), self.clean)

    def start(self, row: int, fit: np.ndarray) -> int:
        """The last row at or before `row` that `fit` (G,) marks; row 0 when there is none."""
        while row > 0 and not fit[row]:
            row -= 1
        return row


@dataclass(frozen=True)
class Kind:
    """What decides where a video can be decoded, and how fast."""

    codec: str
    pix_fmt: str
    width: int
    height: int

    @classmethod
    def of(cls, video: VideoFacts) -> Kind:
        return cls(video.codec, video.pix_fmt, video.width, video.height)

    def __str__(self) -> str:
        return f"{self.codec} {self.pix_fmt} {self.width}x{self.height}"
