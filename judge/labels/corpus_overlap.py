"""Which rows of a benchmark come from videos that a model was, or is to be, pretrained on.

A video is the same where its path is, or its content, or the name under which the card says that others publish it, or what it
looks like (`fingerprint`): under another name, in another folder, encoded anew or packed. What `fingerprint` cannot tell is not
found, nor are videos of which the corpus holds a part, or that are a part of one of the corpus.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.video.probe import probe_video
from ...loaders.video.video import GopTable, VideoError, VideoFacts, is_remote
from .annotations import is_there
from .dataset import Card, DatasetError, Segment
from .fingerprint import Fingerprint, fingerprint
from .segment_clips import clip_rows

EXAMPLES = 5
READ_BYTES = 1 << 20
# Copies last as long, but for a few frames that encoders and a stride leave out.
LONGER_SECONDS, LONGER_SHARE = 1.0, 0.01


@dataclass(frozen=True)
class KnownVideo:
    """A video of a corpus. paths: its own, and of a proxy its original's. read: what `fingerprint` wants; raises VideoError."""

    paths: tuple[str, ...]
    seconds: float
    read: Callable[[], tuple[VideoFacts, GopTable]]


@dataclass(frozen=True)
class Overlap:
    """rows: of the table that come from videos of the corpus. same: their videos -> what the corpus calls them. unread: videos of
    the corpus that are as long as one of the table and could not be looked at."""

    rows: tuple[Segment, ...]
    same: Mapping[str, str]
    unread: tuple[str, ...]

    def names(self, rows: Sequence[Segment]) -> tuple[str, ...]:
        """Some of the corpus's videos that these of `rows` come from, and how many more there are."""
        found = tuple(dict.fromkeys(self.same[segment.video] for segment in rows))
        return (*found[:EXAMPLES], *([f"and {len(found) - EXAMPLES} more"] if len(found) > EXAMPLES else []))


def corpus_videos(corpus: Corpus, wanted: NDArray[np.bool_] | None = None) -> list[KnownVideo]:
    """The videos of a corpus. wanted: (V,) which of them; all where None."""
    rows = corpus.scan("path", "original", "duration_seconds")
    return [
        KnownVideo(
            tuple(path for path in (values["original"], values["path"]) if path),
            values["duration_seconds"],
            lambda row=row: (corpus.video(row).facts, corpus.gops(row)),
        )
        for row, values in enumerate(rows)
        if wanted is None or wanted[row]
    ]


def overlap(
    table: Sequence[Segment], known: Sequence[KnownVideo], card: Card | None = None, cache: Path | None = None
) -> Overlap:
    """Compares the videos of a table with those of a corpus.

    card: tells names of the same videos elsewhere, and the rate of folders of pictures, whose videos are kept in `cache`. Raises
    DatasetError where a video of the table is not there and no name tells of it, VideoError where it cannot be read.
    """
    paths = [path for video in known for path in video.paths]
    subjects = _published_subjects(paths, card)
    same = _same_files({segment.video for segment in table}, paths)
    named = {segment.video: subjects[segment.subject] for segment in table if segment.subject in subjects}
    open_rows = [segment for segment in table if segment.video not in same and segment.video not in named]
    same |= named
    absent = sorted({s.video for s in open_rows if not is_remote(s.video) and not is_there(s.video)})
    if absent:
        raise DatasetError(
            f"{absent[0]}: no such video ({len(absent)} of {len({s.video for s in table})} are missing), so it cannot be compared "
            "with the corpus; give as ROOT the folder in which relative paths of the table begin"
        )
    files = {s.video: row[0] for s, row in zip(open_rows, clip_rows(open_rows, card, cache), strict=True)}
    looks, unread = _same_looks(files, known)
    same |= looks
    found = [segment for segment in table if segment.video in same]
    return Overlap(tuple(found), same, unread)


def _same_files(videos: Iterable[str], paths: Sequence[str]) -> dict[str, str]:
    """Videos -> paths of the corpus that are the same file, or one with the same bytes."""
    real = {os.path.realpath(path): path for path in paths}
    sizes: dict[int, list[str]] = {}
    for path in paths:
        if os.path.isfile(path):
            sizes.setdefault(os.path.getsize(path), []).append(path)
    same: dict[str, str] = {}
    for video in videos:
        if path := real.get(os.path.realpath(video)):
            same[video] = path
        elif os.path.isfile(video):
            # Most files differ in length already; those alike are read.
            alike = [path for path in sizes.get(os.path.getsize(video), ()) if _digest(path) == _digest(video)]
            same |= {video: alike[0]} if alike else {}
    return same


def _same_looks(files: dict[str, str], known: Sequence[KnownVideo]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(videos -> paths of the corpus that look the same, paths that could not be looked at). files: of the videos."""
    if not files or not known:
        return {}, ()
    lengths = np.array([video.seconds for video in known])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        probed = dict(zip(files, pool.map(probe_video, files.values()), strict=True))
        near = {
            name: np.flatnonzero(
                np.abs(lengths - facts.duration_seconds) <= max(LONGER_SECONDS, LONGER_SHARE * facts.duration_seconds)
            ).tolist()
            for name, (facts, _) in probed.items()
        }
        wanted = sorted({row for rows in near.values() for row in rows})
        of_corpus = dict(zip(wanted, pool.map(lambda row: _looks(known[row]), wanted), strict=True))
        ours = [name for name, rows in near.items() if any(of_corpus[row] for row in rows)]
        of_table = dict(zip(ours, pool.map(lambda name: fingerprint(*probed[name]), ours), strict=True))
    same = {}
    for name, own in of_table.items():
        alike = [row for row in near[name] if (other := of_corpus[row]) and own.is_same(other)]
        if alike:
            same[name] = known[alike[0]].paths[0]
    open_rows = {row for name, rows in near.items() if name not in same for row in rows}
    return same, tuple(known[row].paths[-1] for row in sorted(open_rows) if of_corpus[row] is None)


def _looks(video: KnownVideo) -> Fingerprint | None:
    """None where it cannot be read."""
    try:
        return fingerprint(*video.read())
    except VideoError:
        return None


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
