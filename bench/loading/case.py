"""The standard case of `trocar bench loading`: 1080p H.264, GOP 250, x264's medium preset with its B-frames, a minute long.

Made of a 1080p clip of one's own, repeated: what a camera sees is neither as easy nor as hard to decode as what a program draws.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import PictureType

from ...loaders.corpus.index import index_corpus
from ...loaders.video.error import TrocarError
from ...loaders.video.pyav import as_fraction
from ...loaders.video.video import open_video

HEIGHT = 1080
GOP = 250
SECONDS = 60


class CaseError(TrocarError):
    """A clip of which the case cannot be made."""


def make_1080p(folder: Path, source: Path, *, seconds: float = SECONDS, height: int = HEIGHT) -> Path:
    """Writes `folder`/videos/<name>_gop250.mp4 and indexes it. Returns the corpus, `folder`/corpus. A video made before is kept.

    source: a video of that height, of constant frame rate; repeated whole until `seconds` are full. Raises CaseError where it has
    another height, and FFmpegError or OSError where it cannot be read.
    """
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    path = videos / f"{source.stem}_gop{GOP}.mp4"
    if not path.exists():
        temporary = path.with_suffix(".unfinished")
        _encode(source, temporary, seconds, height)
        os.replace(temporary, path)
    index_corpus([videos], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


def _encode(source: Path, path: Path, seconds: float, height: int) -> None:
    with open_video(os.fspath(source.absolute())) as probe:
        stream = probe.streams.video[0]
        size, fps = (stream.width, stream.height), as_fraction(stream.average_rate) or Fraction(25)
    if size[1] != height:
        raise CaseError(f"{source}: {size[0]}x{size[1]} pixels; the case needs a video {height} pixels high")
    options = {"preset": "medium", "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0"}
    with av.open(os.fspath(path), "w", format="mp4") as target:
        encoder = target.add_stream("libx264", rate=fps, options=options)
        encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
        written = 0
        while written < seconds * fps:
            with open_video(os.fspath(source.absolute())) as container:
                for frame in container.decode(video=0):
                    # The decoder's picture type would force the encoder's, and with it keyframes where the source had them.
                    frame.pict_type = PictureType.NONE
                    frame.pts, frame.time_base = written, 1 / fps
                    target.mux(encoder.encode(frame))
                    written += 1
        target.mux(encoder.encode(None))
