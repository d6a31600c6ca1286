"""A corpus of originals -> a corpus of proxies, whose videos keep the originals' ids and descriptions.

    OUT/videos/ab/abcd....mp4, .json    a proxy, named by its id, and what it was made of
    OUT/proxies.csv                     what `trocar index` is told about them
    OUT/packing.json                    core seconds that packing took
    OUT/videos.parquet, gops.parquet, packets.arrow    their index
    OUT/quarantine.csv                  originals that could not be packed, or not to their end, with the reason

A proxy and its record appear under their names when they are whole, and the record last. So whatever ends a pack, at any moment,
the same command goes on: what is recorded as made with the same settings from the same file is not made again.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path

from ..corpus.corpus import Corpus, Video
from ..corpus.folder import DESCRIPTION, QUARANTINE_NAME, CorpusError
from ..corpus.index import index_corpus
from ..corpus.progress import FileProgress
from ..corpus.whole_file import write_text_whole, write_whole
from ..video.storage import stored_version
from ..video.video import VideoError
from .gain import expected_gain
from .isolated import ProcessDied, run_isolated
from .proxy import Hidden, Proxy, write_proxy
from .pseudonyms import Named, Names
from .record import (
    VIDEOS_FOLDER,
    check_names,
    finished_proxy,
    other_settings,
    proxy_path,
    remove_record,
    remove_unrecorded,
    write_record,
)
from .settings import PackSettings

PROXIES_NAME, LOCK_NAME, PACKING_NAME = "proxies.csv", ".pack.lock", "packing.json"


@dataclass(frozen=True)
class PackSummary:
    """What a pack holds and what it took. `reused` of the `videos` were there before; `shortened` end before their originals do.
    `original_bytes` are those of the packed originals."""

    videos: int
    reused: int
    shortened: int
    quarantined: int
    frames: int
    packed_bytes: int
    original_bytes: int
    seconds: float
    path: Path

    def lines(self) -> list[str]:
        """The summary in a few lines of plain text."""
        lines = [
            f"{self.videos:,} proxies of {self.frames:,} frames in {self.seconds:.1f} seconds ({self.reused:,} were there before)",
            f"{self.packed_bytes / 1e6:,.1f} MB from {self.original_bytes / 1e6:,.1f} MB, "
            f"{self.packed_bytes / self.frames / 1024:.1f} KiB a frame; the corpus is {self.path}",
        ]
        if self.quarantined or self.shortened:
            lines.append(
                f"{self.quarantined:,} videos could not be packed and {self.shortened:,} not to their end; the reasons are in "
                f"{self.path / QUARANTINE_NAME}"
            )
        return lines


def pack_corpus(
    corpus_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: PackSettings | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    hidden: Mapping[int, Hidden] | None = None,
    replace: bool = False,
    names: Names | None = None,
) -> PackSummary:
    """Makes a proxy of every video of a corpus, and indexes them.

    Args:
        corpus_path: folder that `trocar index` wrote, of originals.
        out: made if missing; proxies in it that are as they would come out are kept.
        settings: of the proxies; the defaults where None.
        workers: processes, each at one video; None takes as many as there are cores.
        progress: tell the expected gain and the progress on stderr.
        hidden: by row of the corpus, the frames that are black in a proxy; None where nothing was screened.
        replace: make proxies anew that were made with other settings.
        names: what originals are called in `out`; their own names where None.

    Raises:
        CorpusError: the corpus cannot be read or holds proxies, `out` is that corpus, another pack writes to it or it holds
            proxies of other settings or under other names, or no video can be packed.
        OSError: `out` cannot be written, for instance because the disk is full.
    """
    started = time.monotonic()
    settings, names = settings or PackSettings(), names or Names()
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise CorpusError(f"workers={workers}: at least 1 is needed")
    corpus, out = Corpus.open(corpus_path), Path(out)
    if any(values["original"] for values in corpus.scan("original")):
        raise CorpusError(
            f"{corpus.path}: holds proxies, which lose with every packing; pack the corpus of their originals"
        )
    if out.resolve() == corpus.path.resolve():
        raise CorpusError(f"{out}: is the corpus itself, whose tables would be replaced; give another folder")
    (out / VIDEOS_FOLDER).mkdir(parents=True, exist_ok=True)
    with _only_packer(out):
        for left in (out / VIDEOS_FOLDER).glob("*/*.tmp"):
            left.unlink(missing_ok=True)
        check_names(out, names)
        if names.key_digest:
            remove_unrecorded(out, {names.named(corpus.video(row)).id for row in range(len(corpus))})
        proxies, reused, problems = _pack_all(corpus, out, settings, workers, progress, hidden, replace, names)
        told = []
        for row, (path, reason) in problems.items():
            named = names.named(corpus.video(row))
            told.append((named.original, named.told(path, reason)))
        if not proxies:
            _write_csv(out / QUARANTINE_NAME, ["path", "reason"], told)
            reasons = "\n  ".join(reason for _, reason in [*problems.values()][:3])
            raise CorpusError(f"{out}: none of {len(corpus)} videos can be packed; the first reasons are:\n  {reasons}")
        _index(corpus, out, settings.stride, proxies, told, workers, progress, names)
        _write_packing(out, settings, proxies)
    shortened = sum(bool(proxy.damage) for proxy in proxies.values())
    return PackSummary(
        videos=len(proxies),
        reused=reused,
        shortened=shortened,
        quarantined=len(problems) - shortened,
        frames=sum(proxy.frames for proxy in proxies.values()),
        packed_bytes=sum(proxy.size_bytes for proxy in proxies.values()),
        original_bytes=sum(corpus.video(row).facts.size_bytes for row in proxies),
        seconds=time.monotonic() - started,
        path=out,
    )


def _pack_all(
    corpus: Corpus,
    out: Path,
    settings: PackSettings,
    workers: int,
    progress: bool,
    screened: Mapping[int, Hidden] | None,
    replace: bool,
    names: Names,
) -> tuple[dict[int, Proxy], int, dict[int, tuple[str, str]]]:
    """Row -> proxy, ascending; how many were there before; row -> (path, reason) of what went wrong, ascending."""
    proxies: dict[int, Proxy] = {}
    problems: dict[int, tuple[str, str]] = {}
    rows: list[int] = []
    hidden, others = screened or {}, []
    for row in range(len(corpus)):
        video = corpus.video(row)
        path = video.facts.path
        if _is_changed(video):
            problems[row] = (path, f"{path}: changed since it was indexed; run `trocar index` again")
        elif (proxy := finished_proxy(out, video, names.named(video), settings, hidden.get(row, ()))) is None:
            rows.append(row)
            of_row = None if screened is None else hidden.get(row, ())
            others += [found for found in [other_settings(out, names.named(video), settings, of_row)] if found]
        else:
            proxies[row] = proxy
    if others and not replace:
        changes = [
            f"{name} {old} -> {new}" for name, (old, new) in {k: v for each in others for k, v in each.items()}.items()
        ]
        raise CorpusError(
            f"{out}: holds {len(others):,} proxies made with other settings ({', '.join(changes)}); set that back, give another "
            "--out, or make them anew with --replace"
        )
    reused = len(proxies)
    if rows and progress:
        print("\n".join(expected_gain(corpus, rows, settings, workers).lines()), file=sys.stderr, flush=True)
    named = {row: names.named(corpus.video(row)) for row in rows}
    jobs = [(str(corpus.path), row, str(out), settings, hidden.get(row, ()), named[row]) for row in rows]
    results = run_isolated(pack_video, jobs, min(workers, len(rows)))
    with closing(results), FileProgress(len(rows), progress, "packing") as report:
        for (_, row, *_), result in results:
            if isinstance(result, Proxy):
                proxies[row] = result
            elif isinstance(result, OSError):
                raise result
            else:
                path = corpus.video(row).facts.path
                problems[row] = (path, _reason(path, result))
            report.advance(f"{len(proxies):,} proxies, {len(problems):,} refused")
    for row, proxy in proxies.items():
        if proxy.damage:
            path = corpus.video(row).facts.path
            problems[row] = (path, f"{path}: {proxy.damage}")
    return dict(sorted(proxies.items())), reused, dict(sorted(problems.items()))


def _write_packing(out: Path, settings: PackSettings, proxies: dict[int, Proxy]) -> None:
    """What packing took, for `trocar plan`, of the proxies that were made now; where none was, what stands there stays."""
    timed = [proxy for proxy in proxies.values() if proxy.core_seconds]
    if not timed:
        return
    told = {
        "core_seconds": sum(proxy.core_seconds for proxy in timed),
        "original_frames": settings.stride * sum(proxy.frames for proxy in timed),
        "processor": platform.processor() or platform.machine(),
    }
    write_text_whole(out / PACKING_NAME, json.dumps(told, indent=1))


def pack_video(corpus_path: str, row: int, out: str, settings: PackSettings, hidden: Hidden, named: Named) -> Proxy:
    """Makes the proxy of video `row`, and its record. Raises what `write_proxy` does."""
    corpus = Corpus.open(corpus_path)
    video, folder = corpus.video(row), Path(out)
    remove_record(folder, named)  # it would be of another proxy
    began = time.process_time()
    proxy = write_proxy(video.facts, corpus.gops(row), proxy_path(folder, named.id), settings, hidden)
    damage = named.told(video.facts.path, proxy.damage)
    proxy = with_changes(proxy, damage=damage, core_seconds=time.process_time() - began)
    write_record(folder, video, named, settings, proxy, hidden)
    return proxy


def _is_changed(video: Video) -> bool:
    """Whether the original is another file than the indexed one. One that is gone is not: its proxy may be what is left of it."""
    try:
        return stored_version(video.facts.path) != (video.facts.size_bytes, video.facts.mtime_ns)
    except OSError:
        return False


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, ProcessDied):
        return (
            f"{path}: packing it kills the process, or memory ran out; pack again, with fewer workers, or leave it out"
        )
    return str(error) if isinstance(error, VideoError) else f"{path}: {type(error).__name__}: {error}"


def _index(
    corpus: Corpus,
    out: Path,
    stride: int,
    proxies: dict[int, Proxy],
    problems: list[tuple[str, str]],
    workers: int,
    progress: bool,
    names: Names,
) -> None:
    rows = []
    for row in proxies:
        video = corpus.video(row)
        named = names.named(video)
        path = proxy_path(out, named.id).relative_to(out)
        rows.append([path, *named.description, named.id, named.original, stride, video.facts.start_seconds])
    _write_csv(
        out / PROXIES_NAME, ["path", *DESCRIPTION, "id", "original", "packed_stride", "packed_start_seconds"], rows
    )
    index_corpus([out / PROXIES_NAME], out, workers=workers, content_box=False, replace=True, progress=progress)
    with open(out / QUARANTINE_NAME, newline="", encoding="utf-8") as file:
        refused = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    _write_csv(out / QUARANTINE_NAME, ["path", "reason"], [*problems, *refused])


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    def write(unfinished: Path) -> None:
        with unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows([header, *rows])

    write_whole(path, write)


@contextmanager
def _only_packer(out: Path) -> Iterator[None]:
    """Holds a lock on the folder, which the system lets go when this process ends, however it ends."""
    with (out / LOCK_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(
                f"{out}: another `trocar pack` is writing to it; wait for it or give another folder"
            ) from None
        yield
