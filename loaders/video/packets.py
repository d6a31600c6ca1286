"""The packets of one video stream -> its GOP table, without decoding.

Shapes: F frames, G GOPs.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from .clean_start import DecodingProof
from .nal import discardable_layer, keyframe_kind, nal_length_size
from .payload import PayloadFinder
from .picture_type import intra_check, shows_picture
from .video import GopTable, PacketFlag, PacketTable, VideoError

KEY, DISCARD, CORRUPT, HIDDEN, DISPOSABLE = (int(flag) for flag in PacketFlag)


@dataclass
class Packets:
    """The packets of one stream in decode order; `crc32`, `idr` and `clean` have one entry a keyframe.

    `pos` is where the container says a packet is, `offset` where its payload stands (-1: nowhere in one piece). `layer` is the
    temporal layer of the packet's picture if no other in it refers to that, -1 - layer if some may. `disproved` counts packets that
    are flagged as keyframes and are none.
    """

    pts: array[int]
    dts: array[int]
    pos: array[int]
    size: array[int]
    flags: array[int]
    offset: array[int]
    layer: array[int]
    idr: array[int]
    clean: array[int]
    crc32: array[int]
    notes: list[str]
    empty: int = 0
    disproved: int = 0
    error: str = ""


def read_packets(
    path: str, container: InputContainer, stream: VideoStream, finder: PayloadFinder, checksum: bool
) -> Packets:
    packets = Packets(*(array(kind) for kind in "qqqqBqbbbq"), notes=[])
    codec = stream.codec_context.codec.canonical_name
    nal_codec = codec if codec in ("h264", "hevc") else ""
    extradata = stream.codec_context.extradata or b""
    length_size = nal_length_size(nal_codec, extradata)
    kind_of = _keyframe_check(codec, extradata, length_size)
    hides_pictures = codec in ("vp8", "vp9")
    is_proved = kind_of is not _as_flagged or stream.codec_context.codec.intra_only
    proof = None if is_proved else DecodingProof(stream)
    all_pts, all_dts, all_pos, all_size, all_flags = packets.pts, packets.dts, packets.pos, packets.size, packets.flags
    disposable_layer = _disposable_layer(codec)
    try:
        for packet in container.demux(stream):
            size = packet.size
            if not size:
                packets.empty += 1
                continue
            pts = packet.pts
            if pts is None:
                raise VideoError(
                    f"{path}: packet {len(all_pts)} has no timestamp, and a remux would guess it wrong; re-encode it, e.g. "
                    "ffmpeg -i IN -c:v libx264 OUT.mp4"
                )
            dts, pos, payload = packet.dts, packet.pos, memoryview(packet)
            flags, layer = 0, -1
            kind = kind_of(payload) if packet.is_keyframe else None
            if proof is not None:
                proof.add(packet)
            # Where no picture can be started at, the first one that is said to be is all there is.
            if kind is None and packet.is_keyframe and nal_codec and not packets.idr:
                kind = (False, False)
            if kind is not None:
                if packet.has_sidedata("new_extradata") and bytes(packet.get_sidedata("new_extradata")) != extradata:
                    raise VideoError(
                        f"{path}: its coding parameters change at packet {len(all_pts)}, outside of packets; split or re-encode it"
                    )
                if packet.has_sidedata("encryption_info"):
                    raise VideoError(f"{path}: it is encrypted; decrypt it or leave it out")
                flags = KEY
                packets.idr.append(kind[0])
                packets.clean.append(kind[1])
                packets.crc32.append(0)
            else:
                packets.disproved += packet.is_keyframe
                layer = disposable_layer(payload, length_size)
            if packet.is_discard:
                flags |= DISCARD
            if packet.is_corrupt:
                flags |= CORRUPT
            if hides_pictures and not shows_picture(codec, payload):
                flags |= HIDDEN
            if checksum and packets.crc32:
                packets.crc32[-1] = zlib.crc32(packet, packets.crc32[-1])
            all_pts.append(pts)
            all_dts.append(pts if dts is None else dts)
            all_pos.append(-1 if pos is None else pos)
            all_size.append(size)
            all_flags.append(flags)
            packets.offset.append(finder.offset(pos, payload))
            packets.layer.append(layer)
    except FFmpegError as error:
        packets.error = error.strerror or str(error)
    # PyAV ends every stream with one empty packet that flushes the decoder.
    packets.empty -= not packets.error
    if proof is not None:
        packets.clean = packets.idr = array("b", proof.clean_starts())
    if packets.disproved:
        packets.notes.append(f"flagged as keyframes, but predicted from others: {packets.disproved:,} packets")
    if not packets.idr:
        raise VideoError(f"{path}: none of its {len(all_pts)} packets is a keyframe; re-encode or leave it out")
    return packets


def _as_flagged(_: memoryview) -> tuple[bool, bool]:
    return True, True


def _keyframe_check(codec: str, extradata: bytes, length_size: int) -> Callable[[memoryview], tuple[bool, bool] | None]:
    """A function that tells (idr, clean) of the payload of a packet that is flagged as a keyframe; None: the flag is wrong."""
    if codec in ("h264", "hevc"):
        return lambda payload: keyframe_kind(codec, payload, length_size)
    is_intra = intra_check(codec, extradata)
    return _as_flagged if is_intra is None else lambda payload: (True, True) if is_intra(payload) else None


def _disposable_layer(codec: str) -> Callable[[memoryview, int], int]:
    """A function of (payload, NAL length size) that tells the layer as `Packets.layer` has it."""
    if codec in ("h264", "hevc"):
        return partial(discardable_layer, codec)
    if codec == "mpeg4":
        # The coding type behind the start code of a video object plane (ISO/IEC 14496-2, 6.2.5): 2 is a B-VOP.
        return lambda payload, _: _first_picture_is(payload, b"\x00\x00\x01\xb6", 0, 6, 3, 2)
    if codec == "mpeg2video":
        # The coding type behind the temporal reference in a picture header (ISO/IEC 13818-2, 6.2.3): 3 is a B-picture.
        return lambda payload, _: _first_picture_is(payload, b"\x00\x00\x01\x00", 1, 3, 7, 3)
    return lambda *_: -1


def _first_picture_is(payload: memoryview, start_code: bytes, byte: int, shift: int, mask: int, kind: int) -> int:
    header = bytes(payload[:256])
    at = header.find(start_code) + len(start_code) + byte
    return 0 if len(start_code) <= at < len(header) and header[at] >> shift & mask == kind else -1


def number_frames(path: str, packets: Packets, checksum: bool) -> tuple[GopTable, np.ndarray, int]:
    """The GOP table, the frames' pts in display order (F,) and the reorder depth; adds to the packets' notes."""
    flags, keys, end, first_gop = _one_recording(path, packets)
    run = slice(keys[0], end)
    pts, dts, pos, size, offset, layer = (
        np.array(column, np.int64)[run]
        for column in (packets.pts, packets.dts, packets.pos, packets.size, packets.offset, packets.layer)
    )
    # What nothing in its own layer refers to may still be referred to from above it.
    highest_layer = np.maximum(layer, -1 - layer).max()
    flags = flags[run] | np.where(layer == highest_layer, DISPOSABLE, 0).astype(np.uint8)
    keys = keys - keys[0]
    key_pts = pts[keys]
    lengths = np.diff(np.append(keys, len(pts)))

    corrupt = flags & CORRUPT != 0
    gop_rows = slice(first_gop, first_gop + len(keys))
    idr, clean = np.array(packets.idr[gop_rows], bool), np.array(packets.clean[gop_rows], bool)
    kept = _decodable_gops(corrupt[keys], clean)
    # Pictures that lead a keyframe refer to the GOP before.
    orphans = np.repeat(np.append(False, ~kept[:-1]), lengths) & (pts < np.repeat(key_pts, lengths))
    usable = np.repeat(kept, lengths) & ~corrupt & ~orphans
    shown = np.flatnonzero(usable & (flags & (DISCARD | HIDDEN) == 0) & (pts >= key_pts[0]))
    shown_pts = pts[shown]
    frame_pts, shows_first = np.unique(shown_pts, return_index=True)
    sure = ~np.isin(frame_pts, _claimed_twice(pts, flags, keys)) & ~_shown_behind(
        shown[shows_first], frame_pts, keys, key_pts
    )
    frame_pts, shows_first = frame_pts[sure], shows_first[sure]
    num_frames = len(frame_pts)
    if num_frames < 2:
        raise VideoError(f"{path}: it shows {num_frames} frame(s), at least 2 are needed; leave it out")
    if len(shown_pts) > num_frames:
        packets.notes.append(f"repeated timestamps, not counted as frames: {len(shown_pts) - num_frames}")
    if not usable.all():
        packets.notes.append(f"corrupt packets: {np.count_nonzero(~usable)}")

    frame = np.full(len(pts), -1)
    frame[shown[shows_first]] = np.arange(num_frames)
    table = PacketTable(offset, size.astype(np.int32), pts, frame.astype(np.int32), flags)
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
        idr=idr & kept,
        clean=clean & kept,
        first_packet=keys,
        num_packets=lengths.astype(np.int32),
        packets=table,
        crc32=np.array(packets.crc32[gop_rows], np.uint32) if checksum else None,
    )
    # The latest packet with a smaller pts than packet i's is the last one whose suffix minimum is smaller.
    suffix_minimum = np.minimum.accumulate(pts[::-1])[::-1]
    lag = np.searchsorted(suffix_minimum, pts) - 1 - np.arange(len(pts))
    return gops, frame_pts, max(0, int(lag.max()))


def _one_recording(path: str, packets: Packets) -> tuple[np.ndarray, np.ndarray, int, int]:
    """The packets' flags, the keyframes from the first undamaged one to where timestamps jump back, the packet behind the last one
    of those, and which GOP the first is."""
    flags = np.array(packets.flags, np.uint8)
    # FFmpeg's parsers hand out a picture when they see the next one, with the flag of what they see.
    flags[1:] |= flags[:-1] & CORRUPT
    keys = np.flatnonzero(flags & KEY)
    undamaged = np.flatnonzero(flags[keys] & CORRUPT == 0)
    if not len(undamaged):
        raise VideoError(f"{path}: its keyframes are damaged; copy the file again or leave it out")
    first_gop = int(undamaged[0])
    keys = keys[first_gop:]
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
    return flags, keys, end, first_gop


def _claimed_twice(pts: np.ndarray, flags: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The pts that packets of two GOPs have, as where recordings are joined: nobody knows which picture that moment means."""
    candidates = np.flatnonzero(flags & (DISCARD | HIDDEN) == 0)
    rows = np.searchsorted(keys, candidates, side="right")
    pairs = np.unique(np.stack([pts[candidates], rows]), axis=1)
    times, counts = np.unique(pairs[0], return_counts=True)
    return times[counts > 1]


def _shown_behind(packets: np.ndarray, frame_pts: np.ndarray, keys: np.ndarray, key_pts: np.ndarray) -> np.ndarray:
    """Which frames a packet of an earlier GOP shows than the one whose time it is: no window holds them."""
    return np.searchsorted(key_pts, frame_pts, side="right") > np.searchsorted(keys, packets, side="right")


def _decodable_gops(damaged: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """(G,) which GOPs decode: those with a damaged keyframe do not, nor, up to the next clean one, those behind them."""
    kept = ~damaged
    for row in np.flatnonzero(damaged):
        next_clean = np.flatnonzero(clean[row + 1 :])
        kept[row : row + 1 + next_clean[0] if len(next_clean) else None] = False
    return kept
