"""The packets of one video stream -> its GOP table, without decoding.

Shapes: F frames, G GOPs.
"""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from .nal import keyframe_kind, nal_length_size
from .video import GopTable, VideoError

KEY, DISCARD, CORRUPT, HIDDEN = 1, 2, 4, 8


@dataclass
class Packets:
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


def read_packets(path: str, container: InputContainer, stream: VideoStream, checksum: bool) -> Packets:
    q = "q"
    packets = Packets(array(q), array(q), array(q), array(q), array("b"), array("b"), array("b"), array(q), [])
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
            if is_vp8 and not shows_vp8_frame(memoryview(packet)):
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


def shows_vp8_frame(payload: memoryview) -> bool:
    """The show_frame bit of a VP8 packet (RFC 6386, 9.1)."""
    return bool(payload[0] >> 4 & 1)


def number_frames(path: str, packets: Packets, checksum: bool) -> tuple[GopTable, np.ndarray, int]:
    """The GOP table, the frames' pts in display order (F,) and the reorder depth; adds to the packets' notes."""
    flags = np.array(packets.flags, np.int8)
    keys = np.flatnonzero(flags & KEY)
    end = len(flags)
    backward = np.flatnonzero(np.diff(np.array(packets.pts, np.int64)[keys]) <= 0)
    if len(backward):
        if min(packets.pos) < 0:
            raise VideoError(
                f"{path}: its timestamps jump back, as in recordings joined without remuxing, and one time stands for two places; "
                "remux it, e.g. ffmpeg -i IN -c copy OUT.mkv"
            )
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
