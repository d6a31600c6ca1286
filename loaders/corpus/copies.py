"""Videos of a corpus that are one file twice: every copy is drawn like a video of its own, and may stand in another split."""

from __future__ import annotations

import hashlib

import numpy as np

from ..video.storage import StoredFile
from ..video.video import VideoError
from .corpus import Corpus

PIECES, PIECE_BYTES = 16, 1 << 16
NAMED = 10


def identical_videos(corpus: Corpus) -> list[tuple[str, ...]]:
    """Groups of paths with the same bytes, as far as that is looked at: the size, all packets' places and times, and 16 pieces of
    64 KiB from the first to the last byte. Of files that are alike so far only the pieces are read; one that cannot be is left out.
    """
    # A number a video, so that a large corpus takes little memory; chance meetings are told apart below.
    rows = corpus.scan("size_bytes", "gops_digest")
    keys = np.fromiter((int(row["gops_digest"], 16) ^ row["size_bytes"] for row in rows), np.uint64, len(corpus))
    _, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
    groups: dict[tuple[int, str, bytes], list[str]] = {}
    for row in np.flatnonzero(counts[which] > 1).tolist():
        video = corpus.video(row)
        size = video.facts.size_bytes
        try:
            found = _sampled(StoredFile(video.facts, video.remedy), size)
        except VideoError:
            continue
        groups.setdefault((size, video.gops_digest, found), []).append(video.facts.path)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def copies_lines(groups: list[tuple[str, ...]]) -> list[str]:
    """What there is to say of them, nothing where there are none."""
    if not groups:
        return []
    count = sum(map(len, groups)) - len(groups)
    lines = [f"{count:,} videos are copies of others, byte for byte, and are drawn like videos of their own:"]
    lines += [f"  {' = '.join(group)}" for group in groups[:NAMED]]
    return [*lines, f"  and {len(groups) - NAMED:,} more"] if len(groups) > NAMED else lines


def _sampled(file: StoredFile, size: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    length = min(PIECE_BYTES, size)
    try:
        for piece in range(PIECES):
            start = (size - length) * piece // (PIECES - 1)
            digest.update(file.read(start, start + length))
    finally:
        file.close()
    return digest.digest()
