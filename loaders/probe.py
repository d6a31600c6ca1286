"""One video file -> its facts and its GOPs, from the packets alone; only the content box decodes, at most 8 keyframes.

A *frame number* is the rank of a frame's pts among the distinct pts of the packets that are shown, counted from the first
keyframe: what a decoder hands out, in display order. GOP g is displayed from its keyframe's pts to the next keyframe's;
its bytes are those of the packets from its keyframe to the next one *in decode order*. So the leading pictures of an open
GOP count as frames of the GOP before, while their bytes lie behind the next keyframe (`GopTable.leading` says how many).

Shapes: G GOPs.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

KEY, DISCARD, CORRUPT, HIDDEN = 1, 2, 4, 8
MAX_BOX_KEYFRAMES = 8


class VideoError(Exception):
    """A video that cannot be used; the message names the path, what was found and the fix."""


@dataclass(frozen=True)
class VideoFacts:
    """What one file says about its video stream.

    `width` and `height` are those of a decoded picture before rotation, in pixels. `rotation` (0, 90, 180 or 270) is how many
    degrees counter-clockwise the decoded picture has to be turned to stand upright: `numpy.rot90(picture, rotation // 90)`;
    it is PyAV's `VideoFrame.rotation` modulo 360. The content box is in upright pixels, all four numbers even unless it is the
    whole picture. `fps_*` is the average rate. `start_pts` is the pts of frame 0, in ticks of the time base. After
    `reorder_depth` further packets in decode order no packet with a smaller pts can come. `health` is "ok" or notes.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    rotation: int
    fps_numerator: int
    fps_denominator: int
    time_base_numerator: int
    time_base_denominator: int
    start_pts: int
    frames: int
    duration_seconds: float
    variable_rate: bool
    reorder_depth: int
    stream_index: int
    box_left: int
    box_top: int
    box_width: int
    box_height: int
    health: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) in pixels after rotation."""
        return (self.height, self.width) if self.rotation % 180 else (self.width, self.height)


@dataclass(frozen=True)
class GopTable:
    """The GOPs of one video in order, each field an array of shape (G,).

    `pts` and `dts` are the keyframe packet's, in ticks. `byte_offset` is the lowest position of the GOP's packets in the file
    (-1: the container gives none) and `num_bytes` their extent (without positions: the sum of their sizes); in MP4 and MOV
    that range is the packets' payload, in other containers it holds headers as well. `leading` counts the packets behind
    the keyframe that are displayed before it. `idr`: nothing crosses this keyframe. `clean`: exact decoding of everything
    displayed from this keyframe on may start here. `crc32` is over the payloads in decode order, None if not asked for. A GOP
    that an edit list hides has 0 frames.
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
    crc32: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first_frame)

    def __getitem__(self, rows: slice | np.ndarray) -> GopTable:
        """The GOPs of some rows, as NumPy indexes its arrays."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        taken: dict[str, Any] = {name: None if column is None else column[rows] for name, column in columns.items()}
        return GopTable(**taken)

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
        clean = np.flatnonzero(self.clean[: self.locate(frame) + 1])
        return int(clean[-1]) if len(clean) else 0


def probe_video(
    path: str | os.PathLike[str], *, content_box: bool = True, checksum: bool = False
) -> tuple[VideoFacts, GopTable]:
    """Reads every packet of the file's main video stream once.

    Args:
        path: a local file.
        content_box: look for the picture inside the black border, which decodes up to 8 keyframes; else the whole picture.
        checksum: take each GOP's CRC-32, to tell silent damage later.

    Raises:
        VideoError: there is no such file, or no video in it from which at least two frames can be read.
    """
    path = os.path.abspath(os.fspath(path))
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror}); correct the path or its permissions") from error
    if status.st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); copy it again or leave it out")
    try:
        # Absolute paths and this list keep names with colons and playlists from reaching beyond local files.
        options = {"fflags": "+genpts", "protocol_whitelist": "file"}
        with av.open(path, container_options=options, metadata_errors="replace") as container:
            return _probe(path, status, container, content_box, checksum)
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path}: cannot be opened as a video ({reason}); copy it again or leave it out") from error


def _probe(
    path: str, status: os.stat_result, container: InputContainer, content_box: bool, checksum: bool
) -> tuple[VideoFacts, GopTable]:
    stream = _main_stream(path, container)
    context = stream.codec_context
    if context is None or not context.is_decoder:
        raise VideoError(f"{path}: this FFmpeg has no decoder for its codec; convert it to H.264 or HEVC")
    if context.width <= 0 or context.height <= 0:
        raise VideoError(f"{path}: its picture size is {context.width}x{context.height}; convert or leave it out")
    packets = _read_packets(path, container, stream, checksum)
    notes = packets.notes
    gops, frame_pts, reorder_depth = _number_frames(path, packets, checksum)
    num_frames = len(frame_pts)
    if container.format.name == "avi" and context.has_b_frames and not reorder_depth:
        raise VideoError(
            f"{path}: AVI keeps no display times for its {context.name} B-frames; re-encode, e.g. ffmpeg -i IN OUT.mp4"
        )
    # MP4 and MOV declare every sample, also those that an edit list takes out; their index has only what is left.
    is_mov = container.format.name.startswith("mov")
    missing = (len(stream.index_entries) if is_mov else stream.frames) - len(packets.pts) - packets.empty
    if missing > 0:
        missing += sum(flags & CORRUPT != 0 for flags in packets.flags)
        notes.insert(0, f"truncated: {num_frames} of {num_frames + missing} frames are readable")
    elif packets.error:
        notes.insert(0, f"truncated: reading stopped after {num_frames} frames ({packets.error})")

    time_base = stream.time_base or Fraction(1, 1)
    gaps = np.diff(frame_pts)
    typical_gap = float(np.median(gaps))
    duration_seconds = float((frame_pts[-1] - frame_pts[0] + typical_gap) * time_base)
    tolerance_ticks = max(1.5, 0.0015 / float(time_base))
    uneven = int(np.count_nonzero(np.abs(gaps - typical_gap) > tolerance_ticks))
    declared_seconds = (container.duration or 0) / av.time_base
    if not stream.frames and declared_seconds > 1.02 * duration_seconds + 1 and not notes:
        notes.append(f"truncated: {duration_seconds:.1f} of {declared_seconds:.1f} seconds are readable")
    if not gops.clean[0]:
        notes.append("the first keyframe is not a clean start: its first frames may be damaged")
    fps = Fraction(num_frames - 1) / (Fraction(int(frame_pts[-1] - frame_pts[0])) * time_base)
    declared_fps = stream.average_rate
    if declared_fps and abs(float(declared_fps / fps) - 1) < 0.01:
        fps = declared_fps
    fps = fps.limit_denominator(1_000_000)

    rotation = _rotation(container, stream.index)
    upright = (context.height, context.width) if rotation % 180 else (context.width, context.height)
    box = (0, 0, *upright)
    if content_box:
        half = find_content_box(_keyframe_lumas(container, stream, gops), rotation)
        if half is None:
            notes.append("content box: no keyframe could be decoded")
        elif half != (0, 0, (upright[0] + 1) // 2, (upright[1] + 1) // 2):
            left, top = 2 * half[0], 2 * half[1]
            box = (left, top, min(2 * half[2], (upright[0] - left) & ~1), min(2 * half[3], (upright[1] - top) & ~1))
    facts = VideoFacts(
        path=path,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        container=container.format.name,
        codec=context.codec.canonical_name,
        pix_fmt=context.pix_fmt or "",
        width=context.width,
        height=context.height,
        rotation=rotation,
        fps_numerator=fps.numerator,
        fps_denominator=fps.denominator,
        time_base_numerator=time_base.numerator,
        time_base_denominator=time_base.denominator,
        start_pts=int(frame_pts[0]),
        frames=num_frames,
        duration_seconds=duration_seconds,
        variable_rate=uneven > max(3, num_frames // 1000),
        reorder_depth=reorder_depth,
        stream_index=stream.index,
        box_left=box[0],
        box_top=box[1],
        box_width=box[2],
        box_height=box[3],
        health="; ".join(notes) or "ok",
    )
    return facts, gops


def _main_stream(path: str, container: InputContainer) -> VideoStream:
    # Cover art is a video stream of one picture.
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{path}: it has no video stream (it holds {found}); leave it out")
    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


def _rotation(container: InputContainer, stream_index: int) -> int:
    # PyAV hands out a stream's display matrix only with decoded frames; FFmpeg's description of the file names it as well.
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        description = container.dumps_format()  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        av.logging.set_level(level)
    for section in description.split("Stream #0:")[1:]:
        angle = re.search(r"rotation of (-?[\d.]+) degrees", section)
        if angle and re.match(rf"{stream_index}\b", section):
            return round(float(angle[1]) / 90) * 90 % 360
    return 0


@dataclass
class _Packets:
    """The packets of one stream in decode order; `crc32`, `idr` and `clean` have one entry a keyframe."""

    pts: array[int]
    dts: array[int]
    pos: array[int]
    size: array[int]
    flags: array[int]
    idr: array[int]
    clean: array[int]
    crc32: array[int]
    notes: list[str]
    empty: int = 0
    error: str = ""


def _read_packets(path: str, container: InputContainer, stream: VideoStream, checksum: bool) -> _Packets:
    q = "q"
    packets = _Packets(array(q), array(q), array(q), array(q), array("b"), array("b"), array("b"), array(q), [])
    codec = stream.codec_context.codec.canonical_name
    nal_codec = codec if codec in ("h264", "hevc") else ""
    length_size = nal_length_size(nal_codec, stream.codec_context.extradata or b"")
    is_vp8 = codec == "vp8"
    all_pts, all_dts, all_pos, all_size, all_flags = packets.pts, packets.dts, packets.pos, packets.size, packets.flags
    try:
        for packet in container.demux(stream):
            size = packet.size
            if not size:
                packets.empty += 1
                continue
            pts = packet.pts
            if pts is None:
                raise VideoError(
                    f"{path}: packet {len(all_pts)} has no timestamp; remux it, e.g. ffmpeg -fflags +genpts -i IN -c copy OUT.mp4"
                )
            dts, pos = packet.dts, packet.pos
            flags = 0
            if packet.is_keyframe:
                flags = KEY
                idr, clean = keyframe_kind(nal_codec, memoryview(packet), length_size) if nal_codec else (True, True)
                packets.idr.append(idr)
                packets.clean.append(clean)
                packets.crc32.append(0)
            if packet.is_discard:
                flags |= DISCARD
            if packet.is_corrupt:
                flags |= CORRUPT
            if is_vp8 and not memoryview(packet)[0] >> 4 & 1:
                flags |= HIDDEN
            if checksum and packets.crc32:
                packets.crc32[-1] = zlib.crc32(packet, packets.crc32[-1])
            all_pts.append(pts)
            all_dts.append(pts if dts is None else dts)
            all_pos.append(-1 if pos is None else pos)
            all_size.append(size)
            all_flags.append(flags)
    except FFmpegError as error:
        packets.error = error.strerror or str(error)
    # PyAV ends every stream with one empty packet that flushes the decoder.
    packets.empty -= not packets.error
    if not packets.idr:
        raise VideoError(f"{path}: none of its {len(all_pts)} packets is a keyframe; re-encode or leave it out")
    return packets


def _number_frames(path: str, packets: _Packets, checksum: bool) -> tuple[GopTable, np.ndarray, int]:
    """The GOP table, the frames' pts in display order (F,) and the reorder depth; adds to the packets' notes."""
    flags = np.array(packets.flags, np.int8)
    keys = np.flatnonzero(flags & KEY)
    end = len(flags)
    backward = np.flatnonzero(np.diff(np.array(packets.pts, np.int64)[keys]) <= 0)
    if len(backward):
        end = int(keys[backward[0] + 1])
        keys = keys[: backward[0] + 1]
        packets.notes.append(f"timestamps jump back: the last {len(flags) - end} of {len(flags)} packets are left out")
    run = slice(keys[0], end)
    pts, dts, pos, size = (
        np.array(column, np.int64)[run] for column in (packets.pts, packets.dts, packets.pos, packets.size)
    )
    flags = flags[run]
    keys = keys - keys[0]
    key_pts = pts[keys]
    lengths = np.diff(np.append(keys, len(pts)))

    corrupt = flags & CORRUPT != 0
    usable = ~np.repeat(corrupt[keys], lengths) & ~corrupt
    shown_pts = pts[usable & (flags & (DISCARD | HIDDEN) == 0) & (pts >= key_pts[0])]
    frame_pts = np.unique(shown_pts)
    num_frames = len(frame_pts)
    if num_frames < 2:
        raise VideoError(f"{path}: it shows {num_frames} frame(s), at least 2 are needed; leave it out")
    if len(shown_pts) > num_frames:
        packets.notes.append(f"repeated timestamps, not counted as frames: {len(shown_pts) - num_frames}")
    if not usable.all():
        packets.notes.append(f"corrupt packets: {np.count_nonzero(~usable)}")

    first_frame = np.searchsorted(frame_pts, key_pts)
    no_position = np.minimum.reduceat(pos, keys) < 0
    extent = np.maximum.reduceat(pos + size, keys) - np.minimum.reduceat(pos, keys)
    gops = GopTable(
        first_frame=first_frame.astype(np.int32),
        frames=np.diff(np.append(first_frame, num_frames)).astype(np.int32),
        pts=key_pts,
        dts=dts[keys],
        byte_offset=np.where(no_position, -1, np.minimum.reduceat(pos, keys)),
        num_bytes=np.where(no_position, np.add.reduceat(size, keys), extent),
        leading=np.add.reduceat(pts < np.repeat(key_pts, lengths), keys).astype(np.int32),
        idr=np.array(packets.idr[: len(keys)], bool),
        clean=np.array(packets.clean[: len(keys)], bool),
        crc32=np.array(packets.crc32[: len(keys)], np.uint32) if checksum else None,
    )
    kept = ~corrupt[keys]
    if not kept.all():
        gops = gops[np.flatnonzero(kept)]

    # The latest packet with a smaller pts than packet i's is the last one whose suffix minimum is smaller.
    suffix_minimum = np.minimum.accumulate(pts[::-1])[::-1]
    lag = np.searchsorted(suffix_minimum, pts) - 1 - np.arange(len(pts))
    return gops, frame_pts, max(0, int(lag.max()))


def nal_length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit as the avcC or hvcC record says, or 0 for Annex B start codes."""
    if codec == "h264" and len(extradata) >= 7 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) >= 23 and (extradata[0] or extradata[1] or extradata[2] > 1):
        return (extradata[21] & 3) + 1
    return 0


def _nal_units(data: memoryview, length_size: int) -> Iterator[bytes]:
    """Yields the first 4 KiB of each NAL unit, found only when asked for: slices are long, and nobody wants them."""
    start = 0
    if length_size:
        while start + length_size < len(data):
            length = int.from_bytes(data[start : start + length_size], "big")
            start += length_size
            yield bytes(data[start : start + min(length, 4096)])
            start += length
    else:
        start_code = re.compile(rb"\x00\x00\x01")
        while found := start_code.search(data, start):
            start = found.end()
            yield start_code.split(bytes(data[start : start + 4096]), maxsplit=1)[0]


def keyframe_kind(codec: str, data: memoryview, length_size: int) -> tuple[bool, bool]:
    """(idr, clean) of an H.264 or HEVC keyframe packet, from the NAL units up to its first slice.

    Clean are IDR, CRA and BLA pictures of HEVC (ITU-T H.265, table 7-1), IDR pictures of H.264, and those whose recovery
    point SEI says 0 frames (ITU-T H.264, D.1.8).
    """
    recovers_at_once = False
    for unit in _nal_units(data, length_size):
        if not unit:
            continue
        if codec == "hevc":
            kind = unit[0] >> 1 & 63
            if kind < 32:
                return kind in (19, 20), 16 <= kind <= 21
        else:
            kind = unit[0] & 31
            if kind == 6:
                recovers_at_once |= _recovers_at_once(unit[1:])
            elif 1 <= kind <= 5:
                return kind == 5, kind == 5 or recovers_at_once
    return False, False


def _recovers_at_once(sei: bytes) -> bool:
    sei = sei.replace(b"\x00\x00\x03", b"\x00\x00")
    position = 0
    while position + 2 < len(sei):
        header = []
        for _ in ("payload type", "payload size"):
            value = 0
            while position < len(sei) and sei[position] == 255:
                value += 255
                position += 1
            header.append(value + (sei[position] if position < len(sei) else 0))
            position += 1
        if header[0] == 6 and position < len(sei):
            # recovery_frame_cnt is Exp-Golomb coded: a leading 1 bit is the value 0.
            return bool(sei[position] & 0x80)
        position += header[1]
    return False


def _keyframe_lumas(container: InputContainer, stream: VideoStream, gops: GopTable) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (luma (H, W) uint8 at half size, value of black) of evenly spaced keyframes; skips those that do not decode."""
    rows = np.flatnonzero(gops.clean) if gops.clean.any() else np.arange(len(gops))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_BOX_KEYFRAMES)).round().astype(int)]
    stream.codec_context.thread_count = 1
    for pts in gops.pts[rows]:
        frame = None
        with contextlib.suppress(FFmpegError, OSError):
            container.seek(int(pts), stream=stream)
            packet = next((packet for packet in container.demux(stream) if packet.size and packet.is_keyframe), None)
            if packet is not None:
                frame = next(iter(packet.decode() or stream.codec_context.decode(None)), None)
        if frame is not None:
            yield _luma(frame)


def _luma(frame: VideoFrame) -> tuple[np.ndarray, int]:
    planar_8_bit = frame.format.name.startswith(("yuv", "nv12", "gray")) and frame.format.components[0].bits == 8
    if not planar_8_bit or frame.format.name in ("yuyv422", "yvyu422"):
        frame = frame.reformat(format="gray")
    plane = frame.planes[0]
    luma = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
        : frame.height : 2, : frame.width : 2
    ]
    full_range = frame.format.name.startswith(("yuvj", "gray")) or frame.color_range == 2
    return luma, 0 if full_range else 16


def find_content_box(
    lumas: Iterable[tuple[np.ndarray, int]], rotation: int, margin: int = 16, fraction: float = 0.1
) -> tuple[int, int, int, int] | None:
    """The picture inside a black border: (left, top, width, height) in the upright half-size pixels of `lumas`.

    Args:
        lumas: pictures (H, W) uint8, each with its value of black; the brightest value of every pixel over time counts.
        rotation: degrees counter-clockwise that turn them upright.
        margin: how far above black a pixel is lit.
        fraction: a row or column is part of the picture if it has this share of the lit pixels of the fullest one. It lets
            small text in the border go, and costs a disc half a percent of its radius.

    Returns:
        None without any picture; all of it if nothing is lit or a side would shrink below a quarter.
    """
    brightest: np.ndarray | None = None
    for luma, black in lumas:
        above = luma.astype(np.int16) - black
        if brightest is None or brightest.shape == above.shape:
            brightest = above if brightest is None else np.maximum(brightest, above)
    if brightest is None:
        return None
    lit = np.rot90(brightest > margin, rotation // 90)
    rows, columns = slice(0, lit.shape[0]), slice(0, lit.shape[1])
    for _ in range(2):
        rows = _filled_range(lit[:, columns].sum(axis=1), fraction)
        columns = _filled_range(lit[rows].sum(axis=0), fraction)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if 4 * height < lit.shape[0] or 4 * width < lit.shape[1]:
        return 0, 0, lit.shape[1], lit.shape[0]
    return columns.start, rows.start, width, height


def _filled_range(counts: np.ndarray, fraction: float) -> slice:
    """From the first to the last run of well-filled lines, runs that hold less than 5 % of the lit pixels left out."""
    filled = counts > fraction * counts.max()
    edges = np.flatnonzero(np.diff(filled, prepend=False, append=False))
    lit_so_far = np.append(0, np.cumsum(counts))
    runs = [(a, b) for a, b in edges.reshape(-1, 2) if lit_so_far[b] - lit_so_far[a] >= 0.05 * lit_so_far[-1]]
    return slice(int(runs[0][0]), int(runs[-1][1])) if runs else slice(0, len(counts))
