"""Folders, files, glob patterns and CSV files -> the sorted list of video files to index."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec.core

from ..video.storage import as_os_error
from ..video.video import is_remote
from .folder import DESCRIPTION, CorpusError
from .left_out import LeftOut
from .names import as_stored, cleaned
from .text_file import open_table

# fmt: off
VIDEO_SUFFIXES = frozenset([
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf", ".m1v",
    ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mod", ".mov", ".mp2v", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv",
    ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob", ".vro", ".webm", ".wmv", ".y4m",
])
# fmt: on

ORIGINS = ("web", "clinical", "institutional")
COLUMNS = ("path", *DESCRIPTION, "id", "original", "packed_stride", "packed_start_seconds")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to index, what it is described as, and what `corpus.Video` says of proxies; `packed_start_seconds`: when a proxy's
    first frame is shown, which its original says; `problem`: why it cannot be indexed."""

    path: str
    source: str = ""
    domain: str = ""
    procedure: str = ""
    subject: str = ""
    centre: str = ""
    origin: str = ""
    licence: str = ""
    problem: str = ""
    id: str = ""
    original: str = ""
    packed_stride: int = 1
    packed_start_seconds: float | None = None

    @property
    def is_described(self) -> bool:
        return any(getattr(self, name) for name in DESCRIPTION)


def list_videos(sources: Sequence[str | os.PathLike[str]], left_out: LeftOut | None = None) -> list[SourceFile]:
    """The files that `sources` name, each once, sorted by path; what cannot even be listed has a problem noted.

    left_out: is told of the files beside them in folders.
    Raises:
        CorpusError: a source does not exist or matches nothing, or a CSV has no column `path`.
    """
    entries: dict[str, SourceFile] = {}
    for source in sources:
        text = os.fspath(source)
        left = LeftOut() if left_out is None else left_out
        found = list(_expand(text, left))
        if not found:
            there = "".join(f"; {line}" for line in left.lines())
            raise CorpusError(
                f"{text}: no video found there; known suffixes are {' '.join(sorted(VIDEO_SUFFIXES))}{there}"
            )
        for entry in found:
            # Links may lead to one file twice; a described mention says more than a bare one.
            key = file_key(entry.path)
            known = entries.get(key)
            if known is None or (entry.is_described and not known.is_described):
                entries[key] = entry
    if not entries:
        raise CorpusError("no source given; name folders, files, glob patterns or CSV files")
    return sorted(entries.values(), key=lambda entry: os.fsencode(entry.path))


def check_sources(sources: Sequence[str | os.PathLike[str]]) -> None:
    """Raises CorpusError where one of them is absent: told before anything is listed."""
    if absent := absent_sources(sources):
        raise CorpusError(absent[0])


def absent_sources(sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """What is to be said of those that are a path, neither a pattern nor a URL, at which nothing is."""
    return [
        f"{source}: no such file or folder; correct the path"
        for source in (os.fspath(given) for given in sources)
        if not (is_remote(source) or glob.has_magic(source) or os.path.exists(source))
    ]


def file_key(path: str) -> str:
    """The same for all ways that lead to one file."""
    real = path if is_remote(path) else os.path.realpath(path)
    return path if real == path else real  # one string for many videos' two


def folders_among(sources: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """What the paths of all files in the folders among `sources` begin with."""
    found = []
    for source in [os.fspath(source) for source in sources]:
        if is_remote(source):
            with as_os_error():
                system, name = fsspec.core.url_to_fs(source)
                found += [f"{_url(source, system, name).rstrip('/')}/"] if system.isdir(name) else []
        elif os.path.isdir(source):
            found.append(os.path.join(os.path.abspath(source), ""))
    return tuple(found)


def _expand(source: str, left_out: LeftOut) -> Iterator[SourceFile]:
    if source.lower().endswith(".csv"):
        yield from _read_csv(source)
    elif is_remote(source):
        yield from _list_remote(source, left_out)
    elif os.path.isdir(source):
        yield from _walk(source, left_out)
    elif os.path.exists(source):
        yield _entry(source)
    elif glob.has_magic(source):
        any_suffix = glob.has_magic(os.path.splitext(source)[1] or "*")
        for path in sorted(glob.glob(source, recursive=True)):
            if os.path.isdir(path):
                # A pattern with ** reaches into subfolders itself.
                if "**" not in source:
                    yield from _walk(path, left_out)
            elif not any_suffix or _is_video(path):
                yield _entry(path)
    else:
        check_sources([source])


def _list_remote(url: str, left_out: LeftOut) -> Iterator[SourceFile]:
    try:
        with as_os_error():
            system, name = fsspec.core.url_to_fs(url)
            # Web servers have no folders, and asking for one would fetch the file.
            if "*" in name:
                names = [found for found in system.glob(name) if _is_video(found)]
            elif system.isfile(name):
                names = [name]
            elif system.isdir(name):
                names = []
                for found in system.find(name):
                    if _is_video(found):
                        names.append(found)
                    elif not os.path.basename(found).startswith("."):
                        left_out.add(found, look=False)
            else:
                raise CorpusError(f"{url}: no such file or folder; correct the URL")
            yield from (_entry(_url(url, system, found)) for found in names)
    except OSError as error:
        raise CorpusError(f"{url}: cannot be listed ({error}); correct the URL or your access to it") from error


def _url(source: str, system: Any, name: str) -> str:
    """Of a file that `source` led to. In tar://NAME::ARCHIVE the name is another, the archive the same, by its absolute path."""
    head, chained, rest = source.partition("::")
    if not chained or "://" not in head:
        return system.unstrip_protocol(name)
    return f"{head.partition('://')[0]}://{name}::{rest if is_remote(rest) else os.path.abspath(rest)}"


def _entry(path: str) -> SourceFile:
    path = path if is_remote(path) else os.path.abspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return SourceFile(path, problem=f"{path!r}: the name is not UTF-8; rename it")
    return SourceFile(path)


def _is_video(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _walk(root: str, left_out: LeftOut) -> Iterator[SourceFile]:
    problems: list[SourceFile] = []

    def note(error: OSError) -> None:
        folder = os.path.abspath(os.fspath(error.filename))
        problems.append(replace(_entry(folder), problem=f"{folder!r}: cannot be listed ({error.strerror})"))

    visited = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=note):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if _is_video(name):
                yield _entry(os.path.join(folder, name))
            elif not name.startswith("."):
                left_out.add(os.path.join(folder, name))
    yield from problems


@contextmanager
def _remote_text(path: str) -> Iterator[Any]:
    with as_os_error():
        system, name = fsspec.core.url_to_fs(path)
        file = system.open(name, "r", newline="", encoding="utf-8-sig")
    with file:
        yield file


def _read_csv(path: str) -> Iterator[SourceFile]:
    folder = os.path.dirname(path if is_remote(path) else os.path.abspath(path))
    with open_table(path, CorpusError, _remote_text(path) if is_remote(path) else None) as reader:
        if "path" not in (reader.fieldnames or []):
            raise CorpusError(
                f"{path}: no column `path` among {reader.fieldnames}; name the column of the files `path`"
            )
        _check_columns(path, reader.fieldnames or [])
        for row in reader:
            name = row["path"] or ""
            if not cleaned(name):
                raise CorpusError(f"{path}, line {reader.line_num}: `path` is empty; fill it in, or leave it out")
            entry = _entry(cleaned(name) if is_remote(name) else as_stored(name, folder))
            described = {column: cleaned(row.get(column) or "") for column in DESCRIPTION}
            if described["origin"] not in ("", *ORIGINS):
                raise CorpusError(
                    f"{path}, line {reader.line_num}: origin is {described['origin']!r}; give one of {', '.join(ORIGINS)}"
                )
            stride = row.get("packed_stride") or "1"
            if not stride.isdecimal() or int(stride) < 1:
                raise CorpusError(
                    f"{path}, line {reader.line_num}: packed_stride is {stride!r}; give a positive number of frames"
                )
            identity = {"id": row.get("id") or "", "original": row.get("original") or ""}
            start = row.get("packed_start_seconds")
            try:
                start_seconds = float(start) if start else None
            except ValueError as error:
                raise CorpusError(
                    f"{path}, line {reader.line_num}: packed_start_seconds is {start!r}; give seconds"
                ) from error
            packed = {"packed_stride": int(stride), "packed_start_seconds": start_seconds}
            yield replace(entry, **packed, **identity, **described)


def _check_columns(path: str, names: Sequence[str]) -> None:
    """A table may have columns of its own, but not one that is nearly one of ours: what it says would be lost unnoticed."""
    for name in names:
        close = difflib.get_close_matches((name or "").lower(), COLUMNS, n=1, cutoff=0.8)
        if name not in COLUMNS and close:
            raise CorpusError(
                f"{path}: column {name!r} is not known; did you mean {close[0]!r}? Known are {', '.join(COLUMNS)}"
            )
