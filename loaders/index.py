"""Many video files -> a corpus folder: `videos.parquet`, `gops.parquet` and `quarantine.csv`.

The list of files is sorted by path and streamed: probers (`probe_video`, in a process pool) work a bounded distance ahead, and
their results are written in order, so that memory stays flat and the tables are the same for any number of workers. An
existing index is walked in step with the list; the rows of unchanged files are copied. A file that cannot be used, even
one that kills its prober, becomes a row of the quarantine with the reason.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from .corpus import (
    FACT_FIELDS,
    FORMAT_VERSION,
    GOP_SCHEMA,
    GOPS_NAME,
    QUARANTINE_NAME,
    VIDEO_SCHEMA,
    VIDEOS_NAME,
    Corpus,
    CorpusError,
    gops_digest,
)
from .probe import GopTable, VideoError, VideoFacts, probe_video

# fmt: off
VIDEO_SUFFIXES = frozenset([
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv",
])
# fmt: on
GOPS_PER_ROW_GROUP = 16_384
VIDEOS_PER_ROW_GROUP = 512
FILES_PER_WORKER = 8
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class IndexSummary:
    """What an index holds and what it took; `reused` of the `videos` were copied from the index before."""

    videos: int
    frames: int
    hours: float
    reused: int
    quarantined: int
    seconds: float
    videos_path: Path
    gops_path: Path
    quarantine_path: Path

    def lines(self) -> list[str]:
        """The summary in a few lines of plain text."""
        lines = [
            f"{self.videos:,} videos, {self.frames:,} frames, {self.hours:,.2f} hours in {self.seconds:.1f} seconds "
            f"({self.reused:,} unchanged since the last index)",
            f"wrote {self.videos_path} and {self.gops_path}",
        ]
        if self.quarantined:
            lines.append(f"{self.quarantined:,} files cannot be used; the reasons are in {self.quarantine_path}")
        return lines


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    source: str = ""
    domain: str = ""
    problem: str = ""


def index_corpus(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    content_box: bool = True,
    checksum: bool = False,
    progress: bool = True,
) -> IndexSummary:
    """Indexes the videos of `sources` into the folder `out`.

    Args:
        sources: folders (searched with their subfolders for known video suffixes, hidden files left out), files of any
            suffix, glob patterns (`**` reaches into subfolders), and CSV files with a column `path` (relative ones from
            the CSV's folder) and optional columns `source` and `domain`.
        out: made if missing; an index in it is brought up to date: files of the same size and modification time are not
            probed again unless they lack a checksum or content box asked for.
        workers: probing processes; 1 probes in this process; None takes as many as there are cores, if the files are many.
        content_box: look for the picture inside the black border, which decodes up to 8 keyframes a video.
        checksum: take a CRC-32 of every GOP.
        progress: tell the progress on stderr.

    Raises:
        CorpusError: a source does not exist, matches nothing or is a CSV without `path`; or no video can be used.
    """
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise CorpusError(f"workers={workers}: at least 1 is needed")
    entries = list_videos(sources)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    videos = frames = reused = quarantined = 0
    seconds = 0.0
    first_reasons: list[str] = []
    with _Writer(out, checksum) as writer, _Progress(len(entries), progress) as report:
        for entry, result, is_reused in _results(entries, out, workers, content_box, checksum):
            if isinstance(result, str):
                quarantined += 1
                writer.quarantine(entry.path, result)
                if len(first_reasons) < 3:
                    first_reasons.append(result)
            else:
                facts, gops = result
                writer.add(facts, gops, entry, content_box)
                videos += 1
                reused += is_reused
                frames += facts.frames
                seconds += facts.duration_seconds
            report.advance(videos, quarantined)
        writer.commit(has_videos=videos > 0)
    if not videos:
        reasons = "\n  ".join(first_reasons)
        raise CorpusError(
            f"{out}: none of {len(entries)} files can be used, so there is no index; the reasons are in "
            f"{out / QUARANTINE_NAME}, first of them:\n  {reasons}"
        )
    paths = (out / VIDEOS_NAME, out / GOPS_NAME, out / QUARANTINE_NAME)
    return IndexSummary(videos, frames, seconds / 3600, reused, quarantined, time.monotonic() - started, *paths)


def list_videos(sources: Sequence[str | os.PathLike[str]]) -> list[_Entry]:
    """The files that `sources` name, each once, sorted by path; what cannot even be listed has a problem noted.

    Raises:
        CorpusError: a source does not exist or matches nothing, or a CSV has no column `path`.
    """
    entries: dict[str, _Entry] = {}
    for source in sources:
        text = os.fspath(source)
        found = list(_expand(text))
        if not found:
            raise CorpusError(f"{text}: no video found there; known suffixes are {' '.join(sorted(VIDEO_SUFFIXES))}")
        for entry in found:
            # Links may lead to one file twice; a tagged mention says more than an untagged one.
            key = os.path.realpath(entry.path)
            known = entries.get(key)
            if known is None or ((entry.source or entry.domain) and not (known.source or known.domain)):
                entries[key] = entry
    if not entries:
        raise CorpusError("no source given; name folders, files, glob patterns or CSV files")
    return sorted(entries.values(), key=lambda entry: os.fsencode(entry.path))


def _expand(source: str) -> Iterator[_Entry]:
    if os.path.isdir(source):
        yield from _walk(source)
    elif source.lower().endswith(".csv"):
        yield from _read_csv(source)
    elif os.path.exists(source):
        yield _entry(source)
    elif glob.has_magic(source):
        any_suffix = glob.has_magic(os.path.splitext(source)[1] or "*")
        for path in sorted(glob.glob(source, recursive=True)):
            if os.path.isdir(path):
                # A pattern with ** reaches into subfolders itself.
                if "**" not in source:
                    yield from _walk(path)
            elif not any_suffix or _is_video(path):
                yield _entry(path)
    else:
        raise CorpusError(f"{source}: no such file or folder; correct the path")


def _entry(path: str, source: str = "", domain: str = "") -> _Entry:
    path = os.path.abspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return _Entry(path, problem=f"{path!r}: the name is not UTF-8; rename it")
    return _Entry(path, source, domain)


def _is_video(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _walk(root: str) -> Iterator[_Entry]:
    problems: list[_Entry] = []

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
        yield from (_entry(os.path.join(folder, name)) for name in names if _is_video(name))
    yield from problems


def _read_csv(path: str) -> Iterator[_Entry]:
    folder = os.path.dirname(os.path.abspath(path))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or []):
                raise CorpusError(
                    f"{path}: no column `path` among {reader.fieldnames}; name the column of the files `path`"
                )
            for row in reader:
                if not row["path"]:
                    raise CorpusError(f"{path}, line {reader.line_num}: `path` is empty; fill it in or delete the line")
                yield _entry(os.path.join(folder, row["path"]), row.get("source") or "", row.get("domain") or "")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{path}: not a readable CSV file in UTF-8 ({error}); correct it") from error


_Result: TypeAlias = str | tuple[VideoFacts, GopTable]
_Probing: TypeAlias = Future[tuple[VideoFacts, GopTable]]


def _results(
    entries: list[_Entry], out: Path, workers: int | None, content_box: bool, checksum: bool
) -> Iterator[tuple[_Entry, _Result, bool]]:
    """Yields (entry, reason or facts and GOPs, whether reused) in the order of `entries`."""
    old = _OldIndex(out, content_box, checksum)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, min(cores, len(entries) // FILES_PER_WORKER))
    with _Probers(workers, content_box, checksum) as probers:
        ahead: deque[tuple[_Entry, int | str | _Probing]] = deque()
        for entry in entries:
            old_row = None if entry.problem else old.row(entry.path)
            ahead.append((entry, entry.problem or (probers.submit(entry.path) if old_row is None else old_row)))
            while ahead and (
                not isinstance(head := ahead[0][1], Future) or head.done() or probers.pending >= probers.limit
            ):
                yield _settle(ahead, old, probers)
        while ahead:
            yield _settle(ahead, old, probers)


def _settle(
    ahead: deque[tuple[_Entry, int | str | _Probing]], old: _OldIndex, probers: _Probers
) -> tuple[_Entry, _Result, bool]:
    entry, state = ahead.popleft()
    if isinstance(state, str):
        return entry, state, False
    if isinstance(state, int):
        return entry, old.read(state), True
    return entry, probers.result(entry.path, state), False


class _OldIndex:
    """The index that stands in the folder already, walked once in path order."""

    def __init__(self, out: Path, content_box: bool, checksum: bool) -> None:
        self._content_box, self._checksum = content_box, checksum
        self._corpus: Corpus | None = None
        self._next: tuple[int, dict[str, Any]] | None = None
        self._rows: Iterator[tuple[int, dict[str, Any]]] = iter(())
        if (out / VIDEOS_NAME).exists():
            try:
                corpus = Corpus.open(out)
            except CorpusError:
                return
            if corpus.has_checksums or not checksum:
                self._corpus = corpus
                self._rows = enumerate(corpus.scan("path", "size_bytes", "mtime_ns", "boxed"))
        self._next = next(self._rows, None)

    def row(self, path: str) -> int | None:
        """The old row of an unchanged file, else None; `path` must not come before that of the last call."""
        wanted = path.encode()
        while self._next is not None and self._next[1]["path"].encode() < wanted:
            self._next = next(self._rows, None)
        if self._next is None or self._next[1]["path"] != path:
            return None
        row, known = self._next
        try:
            status = os.stat(path)
        except OSError:
            return None
        same = (status.st_size, status.st_mtime_ns, self._content_box)
        return row if same == (known["size_bytes"], known["mtime_ns"], known["boxed"]) else None

    def read(self, row: int) -> tuple[VideoFacts, GopTable]:
        assert self._corpus is not None
        gops = self._corpus.gops(row)
        return self._corpus.video(row).facts, gops if self._checksum else replace(gops, crc32=None)


class _Probers:
    """Probes files ahead in a pool; survives the death of a prober, and finds out which file killed it."""

    def __init__(self, workers: int, content_box: bool, checksum: bool) -> None:
        self.limit = 4 * workers
        self.pending = 0
        self._workers = workers
        self._options = {"content_box": content_box, "checksum": checksum}
        self._pool: Executor | None = None
        self._alone: Executor | None = None

    def __enter__(self) -> _Probers:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._pool, self._alone):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def submit(self, path: str) -> _Probing:
        self.pending += 1
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1) if self._workers == 1 else _process_pool(self._workers)
        try:
            return self._pool.submit(probe_video, path, **self._options)
        except BrokenProcessPool:
            self._pool = _process_pool(self._workers)
            return self._pool.submit(probe_video, path, **self._options)

    def result(self, path: str, future: _Probing) -> _Result:
        """Waits for a probe; any failure of it becomes the reason why the file is left out."""
        self.pending -= 1
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            # The death of one process fails every file in flight: only alone does the guilty one show.
            self._alone = self._alone or _process_pool(1)
            future = self._alone.submit(probe_video, path, **self._options)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                self._alone = None
                return f"{path}: reading it kills the prober process; re-encode it elsewhere or leave it out"
        if error is None:
            return future.result()
        return str(error) if isinstance(error, VideoError) else f"{path}: {type(error).__name__}: {error}"


def _process_pool(workers: int) -> ProcessPoolExecutor:
    # Probers leave Ctrl-C to the parent, which ends them in order.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=signal.signal, initargs=ignore)


class _Writer:
    """Writes the three files under temporary names; `commit` puts them in place, leaving without it removes them."""

    def __init__(self, out: Path, checksum: bool) -> None:
        self._targets = [out / name for name in (QUARANTINE_NAME, GOPS_NAME, VIDEOS_NAME)]
        self._temporary = [path.with_name(path.name + ".tmp") for path in self._targets]
        # One id in both tables, so that a pair torn by a crash between two renames is never taken for an index.
        build = {"version": FORMAT_VERSION, "build": uuid.uuid4().hex, "checksum": str(checksum).lower()}
        self._files = ExitStack()
        quarantine = self._temporary[0].open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._csv = csv.writer(self._files.enter_context(quarantine))
        self._csv.writerow(["path", "reason"])
        plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        self._gops = self._files.enter_context(
            pq.ParquetWriter(self._temporary[1], GOP_SCHEMA.with_metadata(build), **plain)
        )
        self._videos = self._files.enter_context(
            pq.ParquetWriter(self._temporary[2], VIDEO_SCHEMA.with_metadata(build), compression="zstd")
        )
        self._video_rows: list[dict[str, Any]] = []
        self._gop_tables: list[tuple[int, GopTable]] = []
        self._buffered_gops = self._num_gops = self._num_videos = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def quarantine(self, path: str, reason: str) -> None:
        self._csv.writerow([path, reason])

    def add(self, facts: VideoFacts, gops: GopTable, entry: _Entry, content_box: bool) -> None:
        num_gops = len(gops)
        if self._buffered_gops + num_gops > GOPS_PER_ROW_GROUP:
            self._flush_gops()
        self._gop_tables.append((self._num_videos, gops))
        self._buffered_gops += num_gops
        self._video_rows.append(
            {
                **{field.name: getattr(facts, field.name) for field in FACT_FIELDS},
                "id": hashlib.blake2b(facts.path.encode(), digest_size=8).hexdigest(),
                "source": entry.source,
                "domain": entry.domain,
                "boxed": content_box,
                "first_gop": self._num_gops,
                "num_gops": num_gops,
                "gops_digest": gops_digest(gops),
            }
        )
        self._num_videos += 1
        self._num_gops += num_gops
        if len(self._video_rows) == VIDEOS_PER_ROW_GROUP:
            self._flush_videos()

    def _flush_gops(self) -> None:
        if self._gop_tables:
            self._gops.write_table(_join(self._gop_tables), row_group_size=4 * GOPS_PER_ROW_GROUP)
        self._gop_tables, self._buffered_gops = [], 0

    def _flush_videos(self) -> None:
        self._videos.write_table(pa.Table.from_pylist(self._video_rows, VIDEO_SCHEMA))
        self._video_rows = []

    def commit(self, has_videos: bool) -> None:
        """Puts the files in place; without any video only the quarantine, and the tables of before stay."""
        self._flush_gops()
        self._flush_videos()
        self._files.close()
        for temporary, target in list(zip(self._temporary, self._targets, strict=True))[: 3 if has_videos else 1]:
            os.replace(temporary, target)


def _join(tables: list[tuple[int, GopTable]]) -> pa.Table:
    """One Arrow table of the GOP tables of (row of the video, GOPs)."""
    columns: list[pa.Array] = []
    lengths = [len(gops) for _, gops in tables]
    for field in GOP_SCHEMA:
        if field.name == "video":
            columns.append(pa.array(np.repeat([video for video, _ in tables], lengths), field.type))
        elif tables[0][1].crc32 is None and field.name == "crc32":
            columns.append(pa.nulls(sum(lengths), field.type))
        else:
            columns.append(pa.array(np.concatenate([getattr(gops, field.name) for _, gops in tables]), field.type))
    return pa.Table.from_arrays(columns, schema=GOP_SCHEMA)


class _Progress:
    """A bar on a terminal, a line every few seconds elsewhere, nothing if not wanted; on stderr."""

    def __init__(self, total: int, wanted: bool) -> None:
        self._total, self._wanted, self._done = total, wanted, 0
        self._bar: Progress | None = Progress(console=Console(stderr=True)) if wanted and sys.stderr.isatty() else None
        self._task = self._bar.add_task("indexing", total=total) if self._bar else None
        self._last_line = time.monotonic()

    def __enter__(self) -> _Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, videos: int, quarantined: int) -> None:
        self._done += 1
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, completed=self._done, description=f"{videos:,} videos, {quarantined:,} refused"
            )
        elif self._wanted and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(
                f"{self._done:,} of {self._total:,} files: {videos:,} videos, {quarantined:,} refused", file=sys.stderr
            )
