"""Tiny videos whose every frame carries its number, so that a test knows which frame of which video it was handed.

A frame is a grid of 4 x 6 black or white blocks over the whole upright picture: 16 bits of the frame number, then 8 bits of
the video id, highest bit first. The blocks survive lossy coding and resizing to any shape of about 64 pixels or more.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

if TYPE_CHECKING:
    from trocar.loaders.corpus.corpus import Corpus

ROWS, COLUMNS = 4, 6
DARK, LIGHT = 24, 232
PIX_FMTS = {"mjpeg": "yuvj420p"}


def number_picture(video_id: int, number: int, width: int = 128, height: int = 96) -> np.ndarray:
    """The upright picture (height, width, 3) uint8 of a frame; `number` in 0..65535, `video_id` in 0..255."""
    assert 0 <= number < 1 << 16
    assert 0 <= video_id < 1 << 8
    word = number << 8 | video_id
    bits = np.array([word >> 23 - i & 1 for i in range(ROWS * COLUMNS)]).reshape(ROWS, COLUMNS)
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    luma = np.where(bits[rows[:, None], columns], LIGHT, DARK).astype(np.uint8)
    return np.repeat(luma[:, :, None], 3, axis=2)


def read_number(frame: np.ndarray) -> tuple[int, int]:
    """(video_id, number) of a whole upright frame (H, W, 3) or (H, W), 0..255, resized or not.

    Raises:
        ValueError: a block is neither dark nor light, as in a mixture of frames.
    """
    luma = np.asarray(frame, np.float32)
    luma = luma.mean(axis=2) if luma.ndim == 3 else luma
    height, width = luma.shape
    word = 0
    for row in range(ROWS):
        for column in range(COLUMNS):
            top, bottom = (round((row + edge) * height / ROWS) for edge in (0.3, 0.7))
            left, right = (round((column + edge) * width / COLUMNS) for edge in (0.3, 0.7))
            value = float(luma[top:bottom, left:right].mean())
            if 88 < value < 168:
                raise ValueError(f"block ({row}, {column}) of the frame has value {value:.0f}, neither dark nor light")
            word = word << 1 | (value >= 168)
    return word & 255, word >> 8


def write_pictures(
    path: str | os.PathLike[str],
    pictures: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    gop: int = 30,
    b_frames: int = 0,
    open_gop: bool = False,
    fps: int | Fraction = 25,
    variable_rate: bool = False,
    gaps: Sequence[int] = (),
    pix_fmt: str | None = None,
    pixel_aspect: Fraction | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    first_tick: int = 0,
    hidden_frames: bool = False,
    audio: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> None:
    """Encodes upright RGB pictures (H, W, 3) uint8; the suffix of `path` names the container.

    Args:
        gop: frames from keyframe to keyframe; there are no others (scene cuts are off).
        b_frames: consecutive B-frames, always used (H.264, HEVC, MPEG-4).
        open_gop: keyframes that leading pictures reach across (H.264, HEVC).
        variable_rate: gaps between frames cycle through 1, 1, 2 and 4 ticks of 1/fps.
        gaps: through these ticks instead.
        pixel_aspect: width / height of a pixel; the pictures are those of the file, not of the screen.
        rotation: degrees counter-clockwise by which a player has to turn the coded pictures; 0, 90, 180 or 270, for codecs that
            MP4 can hold.
        mirrored: a player has to mirror them left to right after that.
        first_tick: time of the first frame in units of 1/fps; below 0 an MP4 hides the frames before 0 by an edit list.
        hidden_frames: let libvpx write alternate reference frames, which are never shown.
        audio: add a stream of silence.
        options: further options of the encoder.
        container_options: options of the muxer.
    """
    target = Path(path)
    if rotation or mirrored:
        path = target.with_suffix(".unturned.mp4")
    gaps = gaps or ([1, 1, 2, 4] if variable_rate else [1])
    muxer = {"avoid_negative_ts": "disabled"} if first_tick < 0 else {}
    with av.open(os.fspath(path), "w", container_options={**muxer, **(container_options or {})}) as container:
        stream = None
        sound = container.add_stream("aac", rate=8000, layout="mono") if audio else None
        tick = first_tick
        for index, picture in enumerate(pictures):
            picture = picture[:, ::-1] if mirrored else picture
            coded = np.ascontiguousarray(np.rot90(picture, -rotation // 90))
            if stream is None:
                encoder = _encoder_options(codec, gop, b_frames, open_gop, hidden_frames)
                stream = container.add_stream(codec, rate=fps, options={**encoder, **(options or {})})
                stream.height, stream.width = coded.shape[:2]
                stream.pix_fmt = pix_fmt or PIX_FMTS.get(codec, "yuv420p")
                stream.codec_context.thread_count = 1
                if pixel_aspect:
                    stream.codec_context.sample_aspect_ratio = pixel_aspect
                stream.codec_context.gop_size = gop
            frame = av.VideoFrame.from_ndarray(coded, "rgb24")
            frame.pts, frame.time_base = tick, 1 / Fraction(fps)
            tick += gaps[index % len(gaps)]
            container.mux(stream.encode(frame))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 8000, 0, Fraction(1, 8000)
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
        if stream is not None:
            container.mux(stream.encode(None))
    if rotation or mirrored:
        # PyAV sets a display matrix from 17.1 on only; the other muxers take it over from an MP4's track header.
        turn_mp4(path, rotation, mirrored)
        remux(path, target, container_options)
        os.unlink(path)


def ruin(path: str | os.PathLike[str], frame: int) -> None:
    """Overwrites a frame's slice behind its header; neither container nor index can tell."""
    with av.open(os.fspath(path)) as container:
        positions = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = positions[frame]
    with open(path, "r+b") as file:
        assert position is not None
        file.seek(position + 12)
        file.write(bytes(size - 12))


def turn_mp4(path: str | os.PathLike[str], rotation: int, mirrored: bool = False) -> None:
    """Writes `rotation` (degrees counter-clockwise), and whether the picture is then mirrored left to right, into the track
    headers of an MP4's pictures (ISO/IEC 14496-12, 8.3.2)."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[rotation]
    across = -1 if mirrored else 1
    write_matrix(path, (across * cosine, -sine, across * sine, cosine))


def write_matrix(path: str | os.PathLike[str], turned: tuple[float, float, float, float]) -> None:
    """Writes a, b, c, d of the display matrix into the track headers of an MP4's pictures."""
    data = bytearray(Path(path).read_bytes())
    start = -1
    while (start := data.find(b"tkhd", start + 1)) >= 0:
        matrix = start + (52 if data[start + 4] else 40) + 4
        if any(data[matrix + 36 : matrix + 44]):  # sound has no width and height
            a, b, c, d = (round(value * (1 << 16)) for value in turned)
            data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    Path(path).write_bytes(data)


def remux(
    source_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    container_options: dict[str, str] | None = None,
    change: Callable[[int, av.Packet], Any] = lambda index, packet: None,
) -> None:
    """Copies all packets; `change(index, packet)` may edit each one, and leaves it out by returning False."""
    with (
        av.open(os.fspath(source_path)) as source,
        av.open(os.fspath(path), "w", container_options=container_options or {}) as target,
    ):
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for index, packet in enumerate(packet for packet in source.demux() if packet.size):
            packet.stream = streams[packet.stream_index]
            if change(index, packet) is not False:
                target.mux(packet)


def _encoder_options(codec: str, gop: int, b_frames: int, open_gop: bool, hidden_frames: bool) -> dict[str, str]:
    common = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={b_frames}:b-adapt=0:open-gop={int(open_gop)}"
    if codec == "libx264":
        return {"preset": "ultrafast", "threads": "1", "x264-params": f"{common}:b-pyramid=none"}
    if codec == "libx265":
        quiet = "log-level=none:pools=none:frame-threads=1:no-info=1"
        return {"preset": "ultrafast", "x265-params": f"{common}:b-pyramid=0:{quiet}"}
    if codec.startswith("libvpx"):
        lag = (
            {"auto-alt-ref": "1", "lag-in-frames": "16"}
            if hidden_frames
            else {"auto-alt-ref": "0", "lag-in-frames": "0"}
        )
        return {
            "deadline": "realtime",
            "cpu-used": "8",
            "threads": "1",
            "g": str(gop),
            "keyint_min": str(gop),
            "b": "400k",
            **lag,
        }
    return {"bf": str(b_frames), "sc_threshold": "1000000000", "qmin": "2", "qmax": "5", "threads": "1"}


def damage_gops(corpus: Corpus, row: int) -> None:
    """Overwrites one GOP in three of a corpus's video with noise, behind the index's back."""
    facts, gops = corpus.video(row).facts, corpus.gops(row)
    data = bytearray(Path(facts.path).read_bytes())
    for gop in range(2, len(gops), 3):
        start, length = int(gops.byte_offset[gop]), int(gops.num_bytes[gop])
        data[start + 4 : start + length] = np.random.default_rng(gop).bytes(length - 4)
    Path(facts.path).write_bytes(data)
    os.utime(facts.path, ns=(0, facts.mtime_ns))


def write_numbered(
    path: str | os.PathLike[str],
    frames: int,
    *,
    video_id: int = 0,
    first_number: int = 0,
    width: int = 128,
    height: int = 96,
    rotation: int = 0,
    **encoding: Any,
) -> None:
    """Writes `frames` frames numbered from `first_number`; `width` and `height` are those of the coded picture, in pixels.

    Everything else goes to `write_pictures`.
    """
    upright = (height, width) if rotation % 180 else (width, height)
    numbers = range(first_number, first_number + frames)
    pictures = (number_picture(video_id, number, *upright) for number in numbers)
    write_pictures(path, pictures, rotation=rotation, **encoding)
