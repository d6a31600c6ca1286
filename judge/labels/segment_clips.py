"""A table's segments as clips of the loaders: what `clip_loader` takes, labels as numbers, folders of pictures as videos.

Pictures are put into a container as they are, byte for byte, so that a folder of them is read like any other video.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

from .annotations import are_pictures, pictures
from .dataset import Card, DatasetError, Segment

CODECS = {".jpg": "mjpeg", ".jpeg": "mjpeg", ".png": "png"}
CONTAINERS = {"mjpeg": ".mkv", "png": ".mov"}  # Matroska has no name for PNG
# A segment ends where the next frame begins; the loaders take that frame for the last one, unless they are told a little less.
SHORTENED_SECONDS = 0.002

ClipRow = tuple[str, float | None, int, float | None]


def clip_rows(table: Sequence[Segment], card: Card | None = None, cache: Path | None = None) -> list[ClipRow]:
    """(video, start, row of the table, end) of each segment, for `clip_loader`.

    card, cache: the rate of folders of pictures, and where their videos are kept. Raises DatasetError where they are needed and
    missing.
    """
    videos: dict[str, str] = {}
    for segment in table:
        if segment.video not in videos:
            video = segment.video
            if are_pictures(video):
                if card is None or card.picture_fps is None or cache is None:
                    raise DatasetError(f"{video}: a folder of pictures needs a card with picture_fps, and a cache")
                video = str(picture_video(Path(video), card.picture_fps, cache))
            videos[segment.video] = video
    rows = []
    for row, segment in enumerate(table):
        start, end = segment.start, segment.end
        if end is not None:
            end = max(end - SHORTENED_SECONDS, start or 0.0)
        rows.append((videos[segment.video], start, row, end))
    return rows


def picture_video(folder: Path, fps: float, cache: Path) -> Path:
    """The video of the pictures of a folder or a pattern, in order of their numbers; made where it is not in `cache` yet.

    Raises DatasetError where the pictures differ in format or are of none that is known.
    """
    files = pictures(folder)
    kinds = {path.suffix.lower() for path in files}
    codecs = {CODECS.get(kind) for kind in kinds}
    codec = codecs.pop()
    if codecs or codec is None:
        raise DatasetError(f"{folder}: its pictures are {', '.join(sorted(kinds))}; all JPEG or all PNG is expected")
    identity = f"{folder.resolve()} {len(files)} {files[-1].stat().st_mtime_ns} {fps}"
    name = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    path = cache / f"{folder.name.partition('*')[0]}_{name}{CONTAINERS[codec]}"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished_{os.getpid()}_{path.name}")
    with av.open(str(files[0])) as picture:
        first = next(picture.decode(video=0))
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        for number, file in enumerate(files):
            packet = av.Packet(file.read_bytes())
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
    unfinished.rename(path)
    return path
