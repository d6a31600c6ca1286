"""One video file -> its facts and its GOPs, from the packets alone.

Decoded are one keyframe, which says how the picture is set upright, and up to 7 more for the content box.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from itertools import chain

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .codec_traits import codec_tag, is_told_by_a_header
from .content_box import find_content_box, half_size_luma, keyframes
from .orientation import orientation
from .packets import CORRUPT, Packets, number_frames, read_packets
from .payload import PayloadFinder
from .pyav import as_fraction
from .rate import frame_rate
from .storage import open_remote, stored_version
from .verify import check_decodes, is_proved, verify_pictures
from .video import GopTable, VideoError, VideoFacts, is_remote, open_video

# Packets before a random frame, on average. GOPs of 250 pictures, x264's longest by default, have 125.
RARE_CLEAN_STARTS = 200


def probe_video(
    path: str | os.PathLike[str],
    *,
    content_box: bool = True,
    checksum: bool = False,
    verify: bool | None = None,
    track: int | None = None,
) -> tuple[VideoFacts, GopTable]:
    """Reads every packet of one of the file's video tracks once.

    Args:
        path: a local file, or a URL that fsspec knows.
        content_box: look for the picture inside the black border, which decodes up to 8 keyframes; else the whole picture.
        checksum: take each GOP's CRC-32, to tell silent damage later.
        verify: compare random frames with plain decoding (`verify_pictures`), all over the video; None: near its beginning, where
            its codec and container are not among those that the tests compare; False: never.
        track: which of its video tracks, counted from 0; None: the one with the largest pictures.

    Raises:
        VideoError: there is no such file, or no video in it from which at least two frames can be read; no picture of it
            decodes; or a picture is another one than plain decoding shows.
    """
    path = os.fspath(path)
    path = path if is_remote(path) else os.path.abspath(path)
    try:
        version = stored_version(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise VideoError(f"{path}: cannot be read ({reason}); correct the path or its permissions") from error
    if version[0] == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); copy it again or leave it out")
    try:
        with (
            open_remote(path) if is_remote(path) else open(path, "rb") as file,
            closing(PayloadFinder(path, file)) as finder,
            open_video(path, file if is_remote(path) else None) as container,
        ):
            facts, gops = _probe(path, version, container, finder, content_box, checksum, track)
        note = (
            ""
            if verify is False or (verify is None and is_proved(facts))
            else verify_pictures(facts, gops, everywhere=bool(verify))
        )
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path}: cannot be opened as a video ({reason}); copy it again or leave it out") from error
    return (replace(facts, health=note if facts.health == "ok" else f"{facts.health}; {note}") if note else facts), gops


def _probe(
    path: str,
    version: tuple[int, int],
    container: InputContainer,
    finder: PayloadFinder,
    content_box: bool,
    checksum: bool,
    track: int | None,
) -> tuple[VideoFacts, GopTable]:
    stream, others = choose_track(path, container, track)
    context = stream.codec_context
    if context is None or not context.is_decoder:
        raise VideoError(f"{path}: this FFmpeg has no decoder for its codec; convert it to H.264 or HEVC")
    if context.width <= 0 or context.height <= 0:
        raise VideoError(f"{path}: its picture size is {context.width}x{context.height}; convert or leave it out")
    # Decoding would change what the context says, and with PyAV 19 damage that packets show can take its codec away.
    width, height, has_b_frames = context.width, context.height, bool(context.has_b_frames)
    pixel_aspect = as_fraction(stream.sample_aspect_ratio) or Fraction(1)
    codec, reorders, wants_header = context.codec.canonical_name, context.codec.reorder, is_told_by_a_header(context)
    packets = read_packets(path, container, stream, finder, checksum)
    notes = packets.notes
    gops, frame_pts, reorder_depth = number_frames(path, packets, checksum)
    disposable = any(layer >= 0 for layer in packets.layer)
    num_frames = len(frame_pts)
    _note_missing(container, stream, packets, num_frames)
    time_base = as_fraction(stream.time_base) or Fraction(1, 1)
    rate = frame_rate(frame_pts, time_base, as_fraction(stream.average_rate))
    declared_seconds = (container.duration or 0) / av.time_base
    is_short = not stream.frames and declared_seconds > 1.02 * rate.duration_seconds + 1
    if is_short and not notes and not _other_stream_reaches(container, declared_seconds):
        notes.append(f"truncated: {rate.duration_seconds:.1f} of {declared_seconds:.1f} seconds are readable")
    notes += [others] if others else []
    if not gops.clean[0]:
        notes.append("the first keyframe is not a clean start: its first frames may be damaged")
    packets_before = _mean_packets_before(gops)
    if packets_before > RARE_CLEAN_STARTS:
        notes.append(
            f"rare clean starts: {packets_before:.0f} packets are decoded before a random frame; convert it with `trocar pack`"
        )
    rotation, mirrored, box = _look(path, keyframes(container, stream, gops), (width, height), content_box, notes)
    facts = VideoFacts(
        path=path,
        size_bytes=version[0],
        mtime_ns=version[1],
        container=container.format.name,
        codec=codec,
        codec_tag=int.from_bytes((codec_tag(context) or "").encode().ljust(4, b"\0"), "little"),
        # PyAV 17 crashes on `context.pix_fmt` where damaged headers leave it unknown.
        pix_fmt=context.format.name if context.format else "",
        colorspace=int(context.colorspace),
        width=width,
        height=height,
        rotation=rotation,
        mirrored=mirrored,
        pixel_aspect_numerator=pixel_aspect.numerator,
        pixel_aspect_denominator=pixel_aspect.denominator,
        fps_numerator=rate.fps.numerator,
        fps_denominator=rate.fps.denominator,
        time_base_numerator=time_base.numerator,
        time_base_denominator=time_base.denominator,
        start_pts=int(frame_pts[0]),
        zero_pts=_zero_pts(container, time_base, int(frame_pts[0])),
        frames=num_frames,
        duration_seconds=rate.duration_seconds,
        variable_rate=rate.is_variable,
        pauses=rate.pauses,
        reorder_depth=reorder_depth,
        stream_index=stream.index,
        box_left=box[0],
        box_top=box[1],
        box_width=box[2],
        box_height=box[3],
        header=_header(stream) if wants_header else b"",
        health="; ".join(notes) or "ok",
    )
    may_reorder = not reorder_depth and reorders and (has_b_frames or disposable)
    check_decodes(facts, gops, bool(may_reorder))
    return facts, gops


def _note_missing(container: InputContainer, stream: VideoStream, packets: Packets, num_frames: int) -> None:
    """Adds to the packets' notes how many frames the file declares and does not hold."""
    # MP4 and MOV declare every sample, also those that an edit list takes out; their index has only what is left.
    is_mov = container.format.name.startswith("mov")
    missing = (len(stream.index_entries) if is_mov else stream.frames) - len(packets.pts) - packets.empty
    if missing > 0:
        missing += sum(flags & CORRUPT != 0 for flags in packets.flags)
        packets.notes.insert(0, f"truncated: {num_frames} of {num_frames + missing} frames are readable")
    elif packets.error:
        packets.notes.insert(0, f"truncated: reading stopped after {num_frames} frames ({packets.error})")


def _look(
    path: str, pictures: Iterator[VideoFrame], size: tuple[int, int], content_box: bool, notes: list[str]
) -> tuple[int, bool, tuple[int, int, int, int]]:
    """Of keyframes: (rotation, mirrored?, content box as it is shown). size: (width, height) as stored."""
    first = next(pictures, None)
    try:
        rotation, mirrored = (0, False) if first is None else orientation(first)
    except ValueError as error:
        raise VideoError(
            f"{path}: its display matrix {error} neither turns by quarters nor mirrors; re-encode it, e.g. ffmpeg -i IN OUT.mp4"
        ) from error
    upright = size[::-1] if rotation % 180 else size
    whole = (0, 0, upright[0], upright[1])
    if first is None:
        notes.append("orientation and content box: no keyframe could be decoded")
    if first is None or not content_box:
        return rotation, mirrored, whole
    half = find_content_box((half_size_luma(picture) for picture in chain([first], pictures)), rotation, mirrored)
    if half is None or half == (0, 0, (upright[0] + 1) // 2, (upright[1] + 1) // 2):
        return rotation, mirrored, whole
    left, top = 2 * half[0], 2 * half[1]
    width, height = (
        min(2 * side, (room - edge) & ~1) for side, room, edge in zip(half[2:], upright, (left, top), strict=True)
    )
    return rotation, mirrored, (left, top, width, height)


def _mean_packets_before(gops: GopTable) -> float:
    """How many packets decoding has to go through before it comes to a random frame, from the clean start before it."""
    starts = gops.first_packet[gops.clean]
    lengths = np.diff(np.concatenate([[0], starts[starts > 0], [int(gops.num_packets.sum())]])).astype(np.float64)
    return float((lengths**2).sum() / (2 * lengths.sum()))


def _other_stream_reaches(container: InputContainer, seconds: float) -> bool:
    """Whether packets, of sound for example, come up to the declared end, in seconds, so that the pictures merely end before."""
    begin = (container.start_time or 0) / av.time_base
    try:
        container.seek(int((begin + max(seconds - 5, 0)) * av.time_base))
        for packet in container.demux():
            if packet.pts is None or not packet.size or packet.time_base is None:
                continue
            if float((packet.pts + (packet.duration or 0)) * packet.time_base) - begin > seconds - 1:
                return True
    except (FFmpegError, OSError):
        pass
    return False


def choose_track(path: str, container: InputContainer, track: int | None = None) -> tuple[VideoStream, str]:
    """One of the file's video tracks, and a note on the others, "" where there are none.

    track: its place among them; None: the largest pictures, of equal ones the default track, then the first. Raises VideoError
    where there is none, or no such.
    """
    # Cover art is a video stream of one picture.
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{path}: it has no video stream (it holds {found}); leave it out")
    sizes = [(stream.width, stream.height) if stream.codec_context else (0, 0) for stream in streams]
    if track is None:
        areas = [width * height for width, height in sizes]
        defaults = [bool(stream.disposition & Disposition.default) for stream in streams]
        track = max(range(len(streams)), key=lambda place: (areas[place], defaults[place], -place))
    elif not 0 <= track < len(streams):
        raise VideoError(
            f"{path}: it has {len(streams)} video track(s), track {track} is asked for; give one of 0 .. {len(streams) - 1}"
        )
    if len(streams) == 1:
        return streams[0], ""
    listed = ", ".join(f"{place} ({width}x{height})" for place, (width, height) in enumerate(sizes))
    return streams[track], f"several video tracks: {track} is taken of {listed}"


def _zero_pts(container: InputContainer, time_base: Fraction, start_pts: int) -> int:
    """`VideoFacts.zero_pts`: where the first of the file's streams starts, in ticks of this one."""
    if container.start_time is None:  # as of B-frames in WMV and NUT; players then take timestamps as they are
        return min(start_pts, 0)
    microtick = Fraction(1, av.time_base) / time_base
    zero = round(container.start_time * microtick)
    # FFmpeg rounds to microseconds, in which this stream's own start may not be whole.
    return zero if start_pts - zero > microtick else start_pts


def _header(stream: VideoStream) -> bytes:
    """`VideoFacts.header`."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format="nut", container_options={"fflags": "bitexact"}) as target:
            written = target.add_stream_from_template(stream)
            assert isinstance(written, VideoStream)
            dummy = av.Packet(bytes(8))
            dummy.stream, dummy.is_keyframe = written, True
            dummy.pts = dummy.dts = 0
            dummy.time_base = Fraction(1, 1000)
            target.mux(dummy)
    except (FFmpegError, ValueError):  # the codec has no place in NUT
        return b""
    return file.getvalue()
