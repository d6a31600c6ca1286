"""Does our way to a video's pictures lead to what a player shows? Asked when a video is indexed.

`check_decodes` is for every video and costs a few pictures. `verify_pictures` compares random pictures, each asked for alone, with
plain decoding of the file from its beginning, by timestamp; `is_proved` says for which kinds of file the tests have done that.

Shapes: F frames.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from .clean_start import picture_digest
from .decode import DecodeCount, WindowDecoder
from .video import GopTable, PacketFlag, VideoError, VideoFacts, open_video
from .window import WindowReader

# Codecs and containers (FFmpeg's names) of which tests/loaders/video/test_formats.py compares every frame with plain decoding.
_USUAL = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "flv")
PROVED: dict[str, tuple[str, ...]] = {
    "h264": _USUAL,
    "hevc": ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"),
    "av1": ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"),
    "vp8": ("matroska,webm",),
    "vp9": ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"),
    "mpeg4": ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"),
    "mpeg1video": ("mpeg",),
    "mpeg2video": ("mpeg", "mpegts"),
    "mjpeg": ("avi", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"),
}
PLACES = 8
PICTURES = 4
# Plain decoding costs all the frames before the last one that is compared.
FRAMES_FROM_THE_START = 1000


def is_proved(facts: VideoFacts) -> bool:
    """Whether the tests have compared videos of this codec in this container with plain decoding."""
    return facts.container in PROVED.get(facts.codec, ())


def check_decodes(facts: VideoFacts, gops: GopTable, reorders: bool) -> None:
    """Decodes a few frames in a row and, where those fail, single ones all over the video.

    reorders: the codec may show pictures in another order than it codes them, though the timestamps do not.

    Raises VideoError where no frame decodes, as in encrypted files, and where pictures come out of the decoder in another order
    than their timestamps have, as in streams without timestamps that were remuxed.
    """
    starts = gops.first_frame[gops.clean & (gops.frames > 0)]
    if not len(starts):
        starts = np.arange(min(facts.frames, 250))
    with closing(WindowReader(facts)) as reader, closing(WindowDecoder(facts)) as decoder:

        def shown(frames: NDArray[np.int64]) -> list[int] | VideoError:
            try:
                return [index for index, _ in decoder.frames(reader.window(frames, gops), DecodeCount())]
            except VideoError as error:
                return error

        places = [(int(start), 24 if reorders else 8) for start in _spread(starts, 3 if reorders else 1)]
        if reorders:
            # Most B-frames are referred to by nothing.
            packets = gops.packets[0 : int(gops.num_packets.sum())]
            unreferenced = packets.frame[(packets.flags & PacketFlag.DISPOSABLE != 0) & (packets.frame >= 0)]
            places += [(max(int(frame) - 6, 0), 12) for frame in _spread(unreferenced, 3)] if len(unreferenced) else []
        found = [shown(np.arange(start, min(start + count, facts.frames))) for start, count in places]
        orders = [order for order in found if not isinstance(order, VideoError)]
        if any(order != sorted(order) for order in orders):
            raise VideoError(
                f"{facts.path}: its pictures come in another order than their timestamps, as after remuxing a stream that has "
                "none; re-encode what it was made of, e.g. ffmpeg -i IN -c:v libx264 OUT.mp4"
            )
        if orders:
            return
        for start in _spread(starts, PLACES):
            found.append(shown(np.array([start])))
            if not isinstance(found[-1], VideoError):
                return
    reason = str(found[-1]).removeprefix(f"{facts.path}: ")
    raise VideoError(
        f"{facts.path}: no picture of it decodes, as in encrypted files ({reason}); decrypt it, copy it again or leave it out"
    )


def _spread(rows: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).round().astype(int)].astype(np.int64)


def verify_pictures(facts: VideoFacts, gops: GopTable, everywhere: bool) -> str:
    """Compares random frames, asked for one at a time from one reader, with plain decoding from the file's beginning.

    everywhere: among all frames, which decodes most of the video, rather than the first FRAMES_FROM_THE_START. Returns a note on
    those that do not decode, "" without such.

    Raises VideoError where a picture differs from that of plain decoding, where plain decoding has none at its time, and where no
    picture can be had.
    """
    limit = facts.frames if everywhere else min(facts.frames, FRAMES_FROM_THE_START)
    chosen = np.random.default_rng(facts.size_bytes).permutation(limit)[:PICTURES].astype(np.int64)
    ours: dict[int, tuple[int, int]] = {}
    failure: VideoError | None = None
    with closing(WindowReader(facts)) as reader, closing(WindowDecoder(facts)) as decoder:
        for number in chosen.tolist():
            try:
                window = reader.window(np.array([number]), gops)
                ((_, frame),) = decoder.frames(window, DecodeCount())
                ours[int(window.pts[0])] = (number, picture_digest(frame))
            except VideoError as error:
                failure = error
    if not ours:
        raise VideoError(
            f"{facts.path}: none of {len(chosen)} pictures asked for decodes ({failure}); re-encode it or leave it out"
        )
    plain = _plain_digests(facts, set(ours))
    for pts, (number, digest) in ours.items():
        if plain.get(pts) != digest:
            seconds = (pts - facts.start_pts) * facts.time_base_numerator / facts.time_base_denominator
            what = "is another picture than" if pts in plain else "has no picture in"
            raise VideoError(
                f"{facts.path}: frame {number}, {seconds:.3f} seconds after the first one, {what} plain decoding from the "
                "beginning; re-encode it, e.g. ffmpeg -i IN -c:v libx264 OUT.mp4"
            )
    return "" if failure is None else f"verify: {len(chosen) - len(ours)} of {len(chosen)} pictures do not decode"


def _plain_digests(facts: VideoFacts, wanted: set[int]) -> dict[int, int]:
    """By pts, the pictures that decoding the file from its beginning shows, as far as they come."""
    digests: dict[int, int] = {}
    with open_video(facts.path) as container:
        stream = next(stream for stream in container.streams.video if stream.index == facts.stream_index)
        if not stream.codec_context.is_open:
            stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except FFmpegError:  # a player goes on as well
                continue
            for frame in frames:
                if frame.pts in wanted:
                    digests.setdefault(frame.pts, picture_digest(frame))
            if len(digests) == len(wanted):
                break
    return digests
