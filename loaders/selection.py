"""Which videos of a corpus may be drawn: ids, paths, glob patterns, and files that list them, such as a benchmark's test videos.

An entry with a slash is matched with whole paths, one without with a video's id, its file name, and that without its suffix;
`*`, `?` and `[...]` are wild in both. A proxy is also known by its original's path. An entry `@FILE` stands for the lines of
FILE: entries themselves, or a CSV with a column `path` or `id`.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .corpus import Corpus, CorpusError
from .sources import VIDEO_SUFFIXES


@dataclass(frozen=True)
class Selection:
    """wanted: (V,) which videos may be drawn. notes: what every entry came to, for the log."""

    wanted: NDArray[np.bool_]
    notes: list[str] = field(default_factory=list)


def select_videos(corpus: Corpus, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> Selection:
    """The videos that an entry of `include` matches (all where there is none) and none of `exclude` does.

    Raises CorpusError where an entry outside a file matches no video, a file cannot be read, or nothing is left.
    """
    names = [_Names.of(row) for row in corpus.scan("id", "path", "original")]
    notes: list[str] = []
    included, excluded = (
        _matches(corpus, names, entries, key, notes)
        for entries, key in ((include, "data.include"), (exclude, "data.exclude"))
    )
    wanted = (np.ones(len(names), dtype=bool) if included is None else included) & ~(
        np.zeros(len(names), dtype=bool) if excluded is None else excluded
    )
    if not wanted.any():
        raise CorpusError(f"{corpus.path}: data.include and data.exclude leave none of its {len(corpus):,} videos")
    return Selection(wanted, notes)


def hold_out(
    corpus: Corpus, among: NDArray[np.bool_], videos: Iterable[str] = (), fraction: float = 0.0, seed: int = 0
) -> NDArray[np.bool_]:
    """(V,) which videos are kept from training: those that an entry of `videos` matches, and a fraction of those in `among` (V,).

    Of the latter each decides by itself, by a hash of its id that `seed` keys (0 .. 2**64 - 1): more videos in a corpus, another
    order or proxies change nothing for those that were there. Raises CorpusError where none is held out, or none is left.
    """
    names = [_Names.of(row) for row in corpus.scan("id", "path", "original")]
    named = _matches(corpus, names, videos, "validation.videos", [])
    hashed = np.array([below_fraction(row["id"], fraction, seed) for row in corpus.scan("id")], dtype=bool) & among
    held = hashed if named is None else named | hashed
    if not held.any():
        raise CorpusError(
            f"validation.fraction: {fraction} of the {int(among.sum()):,} videos of {corpus.path} that may be drawn, and "
            "validation.videos, hold none out; give a larger fraction, or name some videos"
        )
    if not (among & ~held).any():
        raise CorpusError(
            f"{corpus.path}: validation.videos and validation.fraction leave none of its videos to train on"
        )
    return held


def below_fraction(name: str, fraction: float, seed: int) -> bool:
    """Whether the hash of `name` that `seed` keys, as a number in 0 .. 1, lies below `fraction`."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little"), person=b"held-out").digest()
    return int.from_bytes(digest, "little") < fraction * 2.0**64


@dataclass(frozen=True)
class _Names:
    paths: tuple[str, ...]
    names: frozenset[str]

    @classmethod
    def of(cls, row: dict[str, str]) -> _Names:
        paths = tuple(path for path in (row["path"], row["original"]) if path)
        files = [path.rpartition("/")[2] for path in paths]
        return cls(paths, frozenset([row["id"], *files, *map(_stem, files)]))


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in VIDEO_SUFFIXES else name


def _matches(
    corpus: Corpus, names: list[_Names], entries: Iterable[str], key: str, notes: list[str]
) -> NDArray[np.bool_] | None:
    result: NDArray[np.bool_] | None = None
    by_name: dict[str, list[int]] = {}
    for row, known in enumerate(names):
        for name in (*known.names, *known.paths):
            by_name.setdefault(name, []).append(row)
    for entry in entries:
        result = np.zeros(len(names), dtype=bool) if result is None else result
        listed = read_list(Path(entry[1:])) if entry.startswith("@") else [entry]
        found = [_rows(text, names, by_name) for text in listed]
        hit = sum(bool(rows) for rows in found)
        if not hit and not entry.startswith("@"):
            raise CorpusError(
                f"{key}: {entry!r} matches no video of {corpus.path}; give an id, a file name, or a pattern of whole paths "
                "such as '*/test/*'"
            )
        rows = sorted({row for part in found for row in part})
        result[rows] = True
        of = f" ({hit:,} of {len(listed):,} entries are in the corpus)" if entry.startswith("@") else ""
        notes.append(f"{key.rpartition('.')[2]} {entry}: {len(rows):,} videos{of}")
    return result


def _rows(text: str, names: list[_Names], by_name: dict[str, list[int]]) -> list[int]:
    if rows := by_name.get(text) or by_name.get(_stem(text)):
        return rows
    if not any(letter in text for letter in "*?["):
        return []
    pattern = re.compile(translate(text))
    if "/" in text:
        return [row for row, known in enumerate(names) if any(map(pattern.match, known.paths))]
    return [row for row, known in enumerate(names) if any(map(pattern.match, known.names))]


def read_list(path: Path) -> list[str]:
    """The entries of a list file; blank lines and those that begin with # are left out. Raises CorpusError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: not a readable list of videos in UTF-8 ({error}); correct it") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(lines)
        column = next((name for name in ("path", "id") if name in (reader.fieldnames or [])), None)
        if column is None:
            raise CorpusError(f"{path}: no column `path` or `id` among {reader.fieldnames}; name one so")
        entries = [(row[column] or "").strip() for row in reader]
    else:
        entries = [line.strip() for line in lines]
    if not all(entries) or not entries:
        raise CorpusError(f"{path}: names no video, or an empty one; fill it in")
    return entries
