"""Videos for `make gpu` where none are given: three of 750 frames, 1080p H.264, moving noise, a keyframe every 250 frames."""

from __future__ import annotations

import sys
from pathlib import Path

from ..loading.decode import Scale, write_corpus

SCALE = Scale(frames=750, videos=3)


def make_videos(work: Path) -> None:
    """Into work/videos; made once."""
    if not (work / "corpus").exists():  # written last
        write_corpus(work, "h264", (1920, 1080), 250, SCALE)


if __name__ == "__main__":
    make_videos(Path(sys.argv[1]))
