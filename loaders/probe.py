"""One video file -> its facts and its GOPs, from the packets alone; only the content box decodes, at most 8 keyframes."""

from __future__ import annotations

import io
import os
import re
import threading
from contextlib import closing
from dataclasses import replace
from fractions import Fraction

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from .codec_traits import codec_tag, is_told_by_a_header
from .content_box import find_content_box, keyframe_lumas
from .packets import CORRUPT, number_frames, read_packets
from .payload import PayloadFinder
from .pyav import as_fraction
from .storage import open_remote, stored_version
from .verify import check_decodes, is_proved, verify_pictures
from .video import GopTable, VideoError, VideoFacts, is_remote, open_video

# FFmpeg's log level is the process's.
LOG_LEVEL_LOCK = threading.Lock()
# Packets before a random frame, on average. GOPs of 250 pictures, x264's longest by default, have 125.
RARE_CLEAN_STARTS = 200


def probe_video(
    path: str | os.PathLike[str], *, content_box: bool = True, checksum: bool = False, verify: bool | None = None
) -> tuple[VideoFacts, GopTable]:
    """Reads every packet of the file's main video stream once.

    Args:
        path: a local file, or a URL that fsspec knows.
        content_box: look for the picture inside the black border, which decodes up to 8 keyframes; else the whole picture.
        checksum: take each GOP's CRC-32, to tell silent damage later.
        verify: compare random frames with plain decoding (`verify_pictures`), all over the video; None: near its beginning, where
            its codec and container are not among those that the tests compare; False: never.

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
            facts, gops = _probe(path, version, container, finder, content_box, checksum)
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
) -> tuple[VideoFacts, GopTable]:
    stream = _main_stream(path, container)
    context = stream.codec_context
    if context is None or not context.is_decoder:
        raise VideoError(f"{path}: this FFmpeg has no decoder for its codec; convert it to H.264 or HEVC")
    if context.width <= 0 or context.height <= 0:
        raise VideoError(f"{path}: its picture size is {context.width}x{context.height}; convert or leave it out")
    # Decoding would change what the context says, and with PyAV 19 damage that packets show can take its codec away.
    width, height, has_b_frames = context.width, context.height, bool(context.has_b_frames)
    codec = context.codec.canonical_name
    packets = read_packets(path, container, stream, finder, checksum)
    notes = packets.notes
    gops, frame_pts, reorder_depth = number_frames(path, packets, checksum)
    disposable = any(layer >= 0 for layer in packets.layer)
    num_frames = len(frame_pts)
    # MP4 and MOV declare every sample, also those that an edit list takes out; their index has only what is left.
    is_mov = container.format.name.startswith("mov")
    missing = (len(stream.index_entries) if is_mov else stream.frames) - len(packets.pts) - packets.empty
    if missing > 0:
        missing += sum(flags & CORRUPT != 0 for flags in packets.flags)
        notes.insert(0, f"truncated: {num_frames} of {num_frames + missing} frames are readable")
    elif packets.error:
        notes.insert(0, f"truncated: reading stopped after {num_frames} frames ({packets.error})")

    time_base = as_fraction(stream.time_base) or Fraction(1, 1)
    gaps = np.diff(frame_pts)
    typical_gap = float(np.median(gaps))
    duration_seconds = float((frame_pts[-1] - frame_pts[0] + typical_gap) * time_base)
    tolerance_ticks = max(1.5, 0.0015 / float(time_base))
    uneven = int(np.count_nonzero(np.abs(gaps - typical_gap) > tolerance_ticks))
    declared_seconds = (container.duration or 0) / av.time_base
    is_short = not stream.frames and declared_seconds > 1.02 * duration_seconds + 1
    if is_short and not notes and not _other_stream_reaches(container, declared_seconds):
        notes.append(f"truncated: {duration_seconds:.1f} of {declared_seconds:.1f} seconds are readable")
    if not gops.clean[0]:
        notes.append("the first keyframe is not a clean start: its first frames may be damaged")
    packets_before = _mean_packets_before(gops)
    if packets_before > RARE_CLEAN_STARTS:
        notes.append(
            f"rare clean starts: {packets_before:.0f} packets are decoded before a random frame; convert it with `trocar pack`"
        )
    fps = Fraction(num_frames - 1) / (Fraction(int(frame_pts[-1] - frame_pts[0])) * time_base)
    declared_fps = as_fraction(stream.average_rate)
    if declared_fps and abs(float(declared_fps / fps) - 1) < 0.01:
        fps = declared_fps
    fps = fps.limit_denominator(1_000_000)

    rotation = _rotation(container, stream.index)
    upright = (height, width) if rotation % 180 else (width, height)
    box = (0, 0, *upright)
    if content_box:
        half = find_content_box(keyframe_lumas(container, stream, gops), rotation)
        if half is None:
            notes.append("content box: no keyframe could be decoded")
        elif half != (0, 0, (upright[0] + 1) // 2, (upright[1] + 1) // 2):
            left, top = 2 * half[0], 2 * half[1]
            box = (left, top, min(2 * half[2], (upright[0] - left) & ~1), min(2 * half[3], (upright[1] - top) & ~1))
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
        header=_header(stream) if is_told_by_a_header(context) else b"",
        health="; ".join(notes) or "ok",
    )
    may_reorder = not reorder_depth and context.codec.reorder and (has_b_frames or disposable)
    check_decodes(facts, gops, bool(may_reorder))
    return facts, gops


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


def _main_stream(path: str, container: InputContainer) -> VideoStream:
    # Cover art is a video stream of one picture.
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{path}: it has no video stream (it holds {found}); leave it out")
    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


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


def _rotation(container: InputContainer, stream_index: int) -> int:
    # PyAV hands out a stream's display matrix only with decoded frames; FFmpeg's description of the file names it as well.
    with LOG_LEVEL_LOCK:
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
