"""Files beside videos that an index leaves out for their names: how many of which suffix, and which of them look like videos."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

HEAD_BYTES = 400
LOOKED_INTO = 100  # files of each suffix
NAMED = 10
PICTURES_AND_SOUND = (b"avif", b"heic", b"heix", b"mif1", b"M4A ", b"M4B ")
FIRST_BYTES = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3",  # MPEG program stream, MPEG video
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"FLV\x01", b".RMF", b"\x06\x0e\x2b\x34\x02\x05", b"DKIF", b"YUV4MPEG2",
    b"\x00\x00\x00\x01\x67", b"\x00\x00\x00\x01\x09", b"\x00\x00\x00\x01\x40", b"\x00\x00\x00\x01\x46",  # H.264, HEVC
)  # fmt: skip


@dataclass
class LeftOut:
    """suffixes: how many files of each, "" without one. likely: paths of those that look like videos, of at most 100 files of each
    suffix that were looked into."""

    suffixes: Counter[str] = field(default_factory=Counter)
    likely: list[str] = field(default_factory=list)

    def add(self, path: str, *, look: bool = True) -> None:
        suffix = os.path.splitext(path)[1].lower()
        self.suffixes[suffix] += 1
        if look and self.suffixes[suffix] <= LOOKED_INTO and looks_like_video(path):
            self.likely.append(os.path.abspath(path))

    def lines(self) -> list[str]:
        """In a few lines; none where nothing was left out."""
        if not self.suffixes:
            return []
        counts = [f"{count:,} {suffix or 'without one'}" for suffix, count in self.suffixes.most_common()]
        lines = [f"{self.suffixes.total():,} files left out for their suffix: {', '.join(counts)}"]
        if self.likely:
            named = ", ".join(self.likely[:NAMED])
            more = f" and {len(self.likely) - NAMED:,} more" if len(self.likely) > NAMED else ""
            suffix = os.path.splitext(self.likely[0])[1]
            lines.append(
                f"of these {len(self.likely):,} look like videos: {named}{more}; to index them name them, or a pattern such as "
                f"'*{suffix}'"
            )
        return lines


def looks_like_video(path: str) -> bool:
    """By its first bytes; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    if head.startswith(FIRST_BYTES) or (head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"CDXA")):
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] not in PICTURES_AND_SOUND
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return True
    # Transport streams: a byte of synchronisation every 188 bytes, or every 192 behind a time stamp.
    return any(head[at : at + 2 * step + 1 : step] == b"GGG" for at, step in ((0, 188), (4, 192)))
