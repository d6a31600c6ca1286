"""Which rows of a benchmark come from videos that a model was, or is to be, pretrained on.

A video is the same where its path is, or its content, or the name under which the card says that others publish it. A video that
was encoded anew under another name is not found here; `trocar bench audit --duplicates` compares what clips look like.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .dataset import Card, Segment

EXAMPLES = 5
READ_BYTES = 1 << 20


def overlap(
    table: Sequence[Segment], corpus: Iterable[str], card: Card | None = None
) -> tuple[list[Segment], tuple[str, ...]]:
    """(the rows whose videos are in the corpus, some of those videos as the corpus calls them)."""
    paths = list(corpus)
    real = {os.path.realpath(path): path for path in paths}
    subjects = _published_subjects(paths, card)
    sizes: dict[int, list[str]] = {}
    for path in paths:
        if os.path.isfile(path):
            sizes.setdefault(os.path.getsize(path), []).append(path)
    same: dict[str, str] = {}
    for video in {segment.video for segment in table}:
        if known := real.get(os.path.realpath(video)):
            same[video] = known
        elif os.path.isfile(video):
            # Most files differ in length already; those alike are read.
            alike = [path for path in sizes.get(os.path.getsize(video), ()) if _digest(path) == _digest(video)]
            same |= {video: alike[0]} if alike else {}
    found = [(s, same.get(s.video) or subjects.get(s.subject, "")) for s in table]
    names = list(dict.fromkeys(name for _, name in found if name))
    return [segment for segment, name in found if name], tuple(names[:EXAMPLES])


def _published_subjects(paths: Sequence[str], card: Card | None) -> dict[str, str]:
    """Subjects of the card -> the corpus's path of their videos, told by names."""
    if card is None or not card.corpus_name:
        return {}
    found = {}
    for path in paths:
        match = re.search(card.corpus_name, path)
        if match and int(match["number"]) <= (card.corpus_last or int(match["number"])):
            found[card.corpus_subject.format(**{**match.groupdict(), "number": int(match["number"])})] = path
    return found


def _digest(path: str) -> bytes:
    """Of the first and the last MiB."""
    digest = hashlib.blake2b()
    with Path(path).open("rb") as file:
        digest.update(file.read(READ_BYTES))
        file.seek(max(os.path.getsize(path) - READ_BYTES, 0))
        digest.update(file.read())
    return digest.digest()
