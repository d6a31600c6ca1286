"""Which videos of a corpus may be drawn: ids, paths, glob patterns, and files that list them, such as a benchmark's test videos.

An entry with a slash is matched with whole paths and, where it is relative, with their ends; one without with a video's id, its
file name, and that without its suffix; `*`, `?` and `[...]` are wild in both. What matches nothing as it stands is tried in another
case. A proxy is also known by its original's path. An entry `@FILE` stands for the lines of FILE: entries themselves, with or
without a label behind them, or a CSV with a column `path`, `id` or `video`.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .corpus import Corpus
from .folder import CorpusError
from .names import cleaned, folded
from .sources import VIDEO_SUFFIXES
from .text_file import other_separator, unreadable_text

NAMED = 5  # entries without a video that a note names
COLUMNS = ("path", "id", "video")
# What stands before a relative path: here, above, and the placeholder of published lists.
LEADING = re.compile(r"^(?:file://|\./|\.\./|__DATA_ROOT__/)+")


@dataclass(frozen=True)
class Selection:
    """wanted: (V,) which videos. notes: what every entry came to, for the log."""

    wanted: NDArray[np.bool_]
    notes: list[str] = field(default_factory=list)


def select_videos(corpus: Corpus, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> Selection:
    """The videos that an entry of `include` matches (all where there is none) and none of `exclude` does.

    Raises CorpusError where an entry, or a whole list, matches no video, a file cannot be read, or nothing is left.
    """
    known, notes = _Known(corpus), []
    included, excluded = (
        _matches(known, entries, key, notes) for entries, key in ((include, "data.include"), (exclude, "data.exclude"))
    )
    wanted = (np.ones(len(corpus), dtype=bool) if included is None else included) & ~(
        np.zeros(len(corpus), dtype=bool) if excluded is None else excluded
    )
    if not wanted.any():
        raise CorpusError(f"{corpus.path}: data.include and data.exclude leave none of its {len(corpus):,} videos")
    return Selection(wanted, notes)


def hold_out(
    corpus: Corpus, among: NDArray[np.bool_], videos: Iterable[str] = (), fraction: float = 0.0, seed: int = 0
) -> Selection:
    """Which videos are kept from training: those that an entry of `videos` matches, and a fraction of those in `among` (V,).

    Of the latter each decides by itself, by a hash of its id that `seed` keys (0 .. 2**64 - 1): more videos in a corpus, another
    order or proxies change nothing for those that were there. Raises CorpusError where none is held out, or none is left.
    """
    notes: list[str] = []
    named = _matches(_Known(corpus), videos, "validation.videos", notes)
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
    return Selection(held, notes)


def below_fraction(name: str, fraction: float, seed: int) -> bool:
    """Whether the hash of `name` that `seed` keys, as a number in 0 .. 1, lies below `fraction`."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little"), person=b"held-out").digest()
    return int.from_bytes(digest, "little") < fraction * 2.0**64


class _Known:
    """The names of a corpus's videos, to be asked for those that an entry means."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.paths: list[tuple[str, ...]] = []
        self.names: list[frozenset[str]] = []
        self._by_name: dict[str, list[int]] = {}
        self._by_folded: dict[str, list[int]] = {}
        for row, video in enumerate(corpus.scan("id", "path", "original")):
            paths = tuple(cleaned(path) for path in (video["path"], video["original"]) if path)
            files = [_file_name(path) for path in paths]
            self.paths.append(paths)
            self.names.append(frozenset([video["id"], *files, *map(_stem, files)]))
            for name in (*self.names[-1], *paths):
                self._by_name.setdefault(name, []).append(row)
                self._by_folded.setdefault(folded(name), []).append(row)

    def rows(self, text: str) -> list[int]:
        """Of the videos that an entry means; as it is, then relative, then in another case, then as a pattern."""
        name = cleaned(text)
        tail = LEADING.sub("", name.replace("\\", "/"))
        if found := self._by_name.get(name) or self._by_name.get(_stem(name)) or self._ending(tail):
            return found
        low = folded(tail)
        if found := self._by_folded.get(low) or self._by_folded.get(_stem(low)) or self._ending(low, fold=True):
            return found
        return self._matching(name) if any(letter in name for letter in "*?[") else []

    def near(self, text: str) -> list[int]:
        """Of the videos that have an entry's file name, in whatever folder."""
        name = folded(_file_name(cleaned(text).replace("\\", "/")))
        return self._by_folded.get(name) or self._by_folded.get(_stem(name)) or []

    def _ending(self, tail: str, *, fold: bool = False) -> list[int]:
        """Of the videos whose paths end with the relative path `tail`."""
        if "/" not in tail or tail.startswith("/") or "://" in tail:
            return []
        same = folded if fold else str
        rows = (self._by_folded if fold else self._by_name).get(_file_name(tail), [])
        return [row for row in rows if any(same(path).endswith(f"/{tail}") for path in self.paths[row])]

    def _matching(self, text: str) -> list[int]:
        pattern = re.compile(translate(text))
        whole = self.paths if "/" in text else self.names
        return [row for row, known in enumerate(whole) if any(map(pattern.match, known))]


def _file_name(path: str) -> str:
    """Of tar://NAME::ARCHIVE it is NAME's."""
    return path.partition("::")[0].rpartition("/")[2]


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in VIDEO_SUFFIXES else name


def _matches(known: _Known, entries: Iterable[str], key: str, notes: list[str]) -> NDArray[np.bool_] | None:
    result: NDArray[np.bool_] | None = None
    for entry in entries:
        result = np.zeros(len(known.paths), dtype=bool) if result is None else result
        is_list = entry.startswith("@")
        listed = read_list(Path(entry[1:])) if is_list else [entry]
        found = [_meant(line, known) if is_list else known.rows(line) for line in listed]
        missed = [line for line, rows in zip(listed, found, strict=True) if not rows]
        if len(missed) == len(listed):
            what = f"none of the {len(listed):,} entries of {entry[1:]}" if is_list else f"{entry!r}"
            raise CorpusError(
                f"{key}: {what} matches {'a' if is_list else 'no'} video of {known.corpus.path}{_looked_for(missed, known)}; give "
                "ids, file names, paths as the corpus has them or their ends, or patterns of whole paths such as '*/test/*'"
                f"{'; leave the list out where the corpus holds none of its videos' if is_list else ''}"
            )
        rows = sorted({row for part in found for row in part})
        result[rows] = True
        of = ""
        if is_list:
            of = f" ({len(listed) - len(missed):,} of {len(listed):,} entries are in the corpus)"
            of += f"; without a video{_looked_for(missed, known)}" if missed else ""
        notes.append(f"{key.rpartition('.')[2]} {entry}: {len(rows):,} videos{of}")
    return result


def _meant(line: str, known: _Known) -> list[int]:
    """Of the videos that a line of a list means: the whole of it or, where labels stand behind a path, the path."""
    return next((rows for text in _readings(line) if (rows := known.rows(text))), [])


def _readings(line: str) -> Iterator[str]:
    yield line
    if quoted := re.match(r'"((?:[^"]|"")*)"', line):
        yield quoted[1].replace('""', '"')
        return
    for gap in reversed([*re.finditer(r"\s*[\s,;]\s*", line)]):
        path, label = line[: gap.start()], line[gap.end() :]
        if "/" in path or _stem(path) != path or re.fullmatch(r"[+-]?[\d.]+", label):
            yield path


def _looked_for(missed: list[str], known: _Known) -> str:
    """Entries without a video and, where there are files of their names, these."""
    more = f" and {len(missed) - NAMED:,} more" if len(missed) > NAMED else ""
    near = [known.paths[row][0] for line in missed for text in _readings(line) for row in known.near(text)[:1]]
    like = f" (files of such names are {', '.join(dict.fromkeys(near[:2]))})" if near else ""
    return f": {', '.join(map(repr, missed[:NAMED]))}{more}{like}"


def read_list(path: Path) -> list[str]:
    """The entries of a list file; blank lines and those that begin with # are left out. Raises CorpusError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(unreadable_text(path, error, "list of videos")) from error
    lines = [line for line in text.splitlines() if cleaned(line) and not line.startswith("#")]
    reader = csv.DictReader(lines) if path.suffix.lower() == ".csv" else None
    names = {cleaned(name): name for name in (reader and reader.fieldnames) or []}
    # Published split files are named .csv and hold "path label" lines, without a header.
    is_headed = not any(_stem(text) != text for text in (lines and [*_readings(lines[0])]) or [])
    if reader is not None and is_headed:
        if said := other_separator(reader.fieldnames or ()):
            raise CorpusError(f"{path}: {said}")
        column = next((names[name] for name in COLUMNS if name in names), None)
        if column is None:
            raise CorpusError(f"{path}: no column `path` or `id` or `video` among {reader.fieldnames}; name one so")
        entries = [cleaned(row[column] or "") for row in reader]
    else:
        entries = [cleaned(line) for line in lines]
    if not all(entries) or not entries:
        raise CorpusError(f"{path}: names no video, or an empty one; fill it in")
    return entries
