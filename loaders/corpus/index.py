"""Many video files -> a corpus folder: `videos.parquet`, `gops.parquet` and `quarantine.csv`.

The list of files is sorted by path and streamed: probers (`probe_video`, in a process pool) work a bounded distance ahead, and
their results are written in order, so that memory stays flat and the tables are the same for any number of workers. An
existing index is walked in step with the list; the rows of unchanged files are copied, and what the sources do not name stays
(`earlier.py`). A file that cannot be used, even one that kills its prober, becomes a row of the quarantine with the reason.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

from ..video.storage import stored_version
from ..video.video import GopTable, VideoFacts
from .copies import copies_lines, identical_videos
from .corpus import Corpus
from .earlier import plan_index
from .folder import GOPS_NAME, QUARANTINE_NAME, VIDEOS_NAME, CorpusError
from .left_out import LeftOut
from .probers import ProbeResult, Probers, Probing
from .progress import FileProgress
from .sources import SourceFile, list_videos
from .writer import CorpusWriter

FILES_PER_WORKER = 8
NAMED = 50  # videos on the console


@dataclass(frozen=True)
class IndexSummary:
    """What an index holds and what it took; `reused` of the `videos` were copied from the index before.

    kept: how many are not among the sources, but were there before. unreachable: those of them that cannot be found now. left:
    videos that were there before and are no more. left_out: files beside videos. copies: groups of videos that are one file. note:
    what else is to be known.
    """

    videos: int
    frames: int
    hours: float
    reused: int
    quarantined: int
    seconds: float
    videos_path: Path
    gops_path: Path
    quarantine_path: Path
    kept: int = 0
    unreachable: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    copies: tuple[tuple[str, ...], ...] = ()
    note: str = ""

    def lines(self) -> list[str]:
        """The summary in a few lines of plain text."""
        lines = [
            f"{self.videos:,} videos, {self.frames:,} frames, {self.hours:,.2f} hours in {self.seconds:.1f} seconds "
            f"({self.reused:,} unchanged since the last index)",
            f"wrote {self.videos_path} and {self.gops_path}",
        ]
        if self.quarantined:
            lines.append(f"{self.quarantined:,} files cannot be used; the reasons are in {self.quarantine_path}")
        if self.kept:
            lines.append(
                f"{self.kept:,} of the videos are not among these sources and stay from before (--replace leaves them out)"
            )
        if self.unreachable:
            lines.append(f"{len(self.unreachable):,} of those cannot be found now: {_named(self.unreachable)}")
        if self.left:
            lines.append(f"{len(self.left):,} videos left the index: {_named(self.left)}")
        if self.note:
            lines.append(self.note)
        return [*lines, *self.left_out.lines(), *copies_lines([*self.copies])]


def index_corpus(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    content_box: bool = True,
    checksum: bool = False,
    verify: bool | None = None,
    track: int | None = None,
    replace: bool = False,
    progress: bool = True,
) -> IndexSummary:
    """Indexes the videos of `sources` into the folder `out`.

    Args:
        sources: folders (searched with their subfolders for known video suffixes, hidden files left out), files of any
            suffix, glob patterns (`**` reaches into subfolders), and CSV files with a column `path` (relative ones from
            the CSV's folder) and, optional, source, domain, procedure, subject, centre, origin (web, clinical or
            institutional) and licence; each a local path or a URL that fsspec knows.
        out: made if missing; an index in it is added to and brought up to date: files of the same size and modification time are
            not probed again unless they lack a checksum, content box or comparison asked for, or are of another track. Videos that
            the sources do not name stay; those that are gone from the sources' folders, or from their own, leave.
        workers: probing processes; 1 probes in this process; None takes as many as there are cores, if the files are many.
        content_box: look for the picture inside the black border, which decodes up to 8 keyframes a video.
        checksum: take a CRC-32 of every GOP.
        verify: compare random pictures with plain decoding, and quarantine a video where they differ: all over every video; None:
            near the beginning of those whose codec and container the tests do not compare; False: never.
        track: which video track of every file, counted from 0; None: the one with the largest pictures.
        replace: leave out what the sources do not name.
        progress: tell the progress on stderr.

    Raises:
        CorpusError: a source does not exist, matches nothing or is a CSV without `path`; or no video can be used.
    """
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise CorpusError(f"workers={workers}: at least 1 is needed")
    left_out = LeftOut()
    entries = list_videos(sources, left_out)
    out = Path(out)
    plan = plan_index(entries, sources, out, replace=replace)
    left = [*plan.left]
    out.mkdir(parents=True, exist_ok=True)
    count = _Count()
    with CorpusWriter(out, checksum) as writer, FileProgress(len(plan.entries), progress, "indexing") as report:
        old = _OldIndex(out, plan.kept, content_box, checksum, bool(verify), track)
        for entry, result, is_reused in _results(plan.entries, old, workers, content_box, checksum, verify, track):
            if isinstance(result, str):
                left += [entry.path] if entry.path in plan.before else []
                writer.quarantine(entry.path, result)
            else:
                writer.add(*result, entry, content_box, bool(verify), track)
            count.add(result, is_reused)
            report.advance(f"{count.videos:,} videos, {count.quarantined:,} refused")
        writer.commit(has_videos=count.videos > 0)
    if not count.videos:
        reasons = "\n  ".join(count.first_reasons)
        raise CorpusError(
            f"{out}: none of {len(plan.entries)} files can be used, so there is no index; the reasons are in "
            f"{out / QUARANTINE_NAME}, first of them:\n  {reasons}"
        )
    paths = (out / VIDEOS_NAME, out / GOPS_NAME, out / QUARANTINE_NAME)
    copies = tuple(identical_videos(Corpus.open(out)))
    return IndexSummary(
        count.videos,
        count.frames,
        count.seconds / 3600,
        count.reused,
        count.quarantined,
        time.monotonic() - started,
        *paths,
        kept=len(plan.kept - {*left}),
        unreachable=tuple(old.unreachable),
        left=tuple(left),
        left_out=left_out,
        copies=copies,
        note=plan.note,
    )


@dataclass
class _Count:
    """Of what was indexed; first_reasons: why the first few files were refused."""

    videos: int = 0
    frames: int = 0
    seconds: float = 0.0
    reused: int = 0
    quarantined: int = 0
    first_reasons: list[str] = field(default_factory=list)

    def add(self, result: ProbeResult, is_reused: bool) -> None:
        if isinstance(result, str):
            self.quarantined += 1
            self.first_reasons += [result] if len(self.first_reasons) < 3 else []
            return
        facts, _ = result
        self.videos += 1
        self.frames += facts.frames
        self.seconds += facts.duration_seconds
        self.reused += is_reused


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - NAMED:,} more" if len(paths) > NAMED else ""
    return f"{', '.join(paths[:NAMED])}{more}"


def _results(
    entries: list[SourceFile],
    old: _OldIndex,
    workers: int | None,
    content_box: bool,
    checksum: bool,
    verify: bool | None,
    track: int | None,
) -> Iterator[tuple[SourceFile, ProbeResult, bool]]:
    """Yields (entry, reason or facts and GOPs, whether reused) in the order of `entries`."""
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, min(cores, len(entries) // FILES_PER_WORKER))
    with Probers(workers, content_box, checksum, verify, track) as probers:
        ahead: deque[tuple[SourceFile, int | str | Probing]] = deque()
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
    ahead: deque[tuple[SourceFile, int | str | Probing]], old: _OldIndex, probers: Probers
) -> tuple[SourceFile, ProbeResult, bool]:
    entry, state = ahead.popleft()
    if isinstance(state, str):
        return entry, state, False
    if isinstance(state, int):
        return entry, old.read(state), True
    return entry, probers.result(entry.path, state), False


class _OldIndex:
    """The index that stands in the folder already, walked once in path order. kept: videos that stay as they are where they cannot
    be found."""

    def __init__(
        self,
        out: Path,
        kept: frozenset[str],
        content_box: bool,
        checksum: bool,
        verify: bool,
        track: int | None,
    ) -> None:
        self._kept, self._content_box, self._checksum, self._verify = kept, content_box, checksum, verify
        self._track = track
        self.unreachable: list[str] = []
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
                self._rows = enumerate(corpus.scan("path", "size_bytes", "mtime_ns", "boxed", "verified", "track"))
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
            version = stored_version(path)
        except OSError:
            if path not in self._kept:
                return None
            self.unreachable.append(path)
            return row
        found = (known["size_bytes"], known["mtime_ns"], known["boxed"], known["track"])
        same = (*version, self._content_box, self._track) == found
        return row if same and (known["verified"] or not self._verify) else None

    def read(self, row: int) -> tuple[VideoFacts, GopTable]:
        assert self._corpus is not None
        gops = self._corpus.gops(row)
        return self._corpus.video(row).facts, gops if self._checksum else with_changes(gops, crc32=None)
