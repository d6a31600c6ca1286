"""`trocar screen`: every video of a corpus screened once, in processes of their own.

    CORPUS/screen.parts/ID.npz          what is finished while it runs
    CORPUS/spans.parquet, screen.parquet    the whole, when all is done (`corpus/spans.py`)

Whatever ends a screen, the same command goes on with the videos that are missing; a video that is as it was when it was screened
with the same settings is not screened again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..corpus.corpus import Corpus
from ..corpus.folder import SPANS_NAME, CorpusError
from ..corpus.progress import FileProgress
from ..corpus.spans import SPAN_SCHEMA, ScreenedVideo, read_screen, write_screen
from ..corpus.whole_file import write_arrays_whole
from ..pack.isolated import ProcessDied, run_isolated
from ..video.video import VideoError
from .in_body import in_body
from .models import load_score, model_digest
from .overlays import HEIGHT, WIDTH
from .shots_model import ShotsNetwork, load_shots_model
from .video_screen import Score, ScreenSettings, made_of, screen_video

PARTS = "screen.parts"


@dataclass(frozen=True)
class ScreenSummary:
    """What a screen holds. reused: of the videos, screened before. unreadable: (path, reason). hours: of video. pictures:
    decoded now."""

    path: Path
    videos: int
    reused: int
    spans: int
    cuts: int
    hours: float
    new_hours: float
    pictures: int
    seconds: float
    core_seconds: float
    flagged_hours: dict[str, float]
    unreadable: list[tuple[str, str]]
    incomplete: list[tuple[str, str]]

    def lines(self) -> list[str]:
        """The summary in a few lines of plain text."""
        rate = (
            f", {self.new_hours * 3600 / self.core_seconds:,.0f} times as fast as a player on a core"
            if self.core_seconds
            else ""
        )
        lines = [
            f"{self.videos:,} videos of {self.hours:,.2f} hours in {self.spans:,} spans and {self.cuts + self.videos:,} shots, "
            f"{self.reused:,} screened before; {self.seconds:.1f} seconds{rate}, {self.pictures:,} pictures decoded",
            "hours: " + ", ".join(f"{name} {hours:,.2f}" for name, hours in self.flagged_hours.items()),
            f"written to {self.path}",
        ]
        for videos, what in (
            (self.unreadable, "could not be screened and count as blank"),
            (self.incomplete, "in part only"),
        ):
            if videos:
                lines.append(f"{len(videos):,} videos {what}; the first: {videos[0][0]}: {videos[0][1]}")
        return lines


def screen_corpus(
    corpus_path: str | os.PathLike[str],
    settings: ScreenSettings | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> ScreenSummary:
    """Screens what is not screened yet, and writes the tables beside the index.

    workers: processes, each at one video; None takes as many as there are cores, 1 works in this process.

    Raises CorpusError where the corpus or the model cannot be had.
    """
    started = time.monotonic()
    settings, corpus = settings or ScreenSettings(), Corpus.open(corpus_path)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise CorpusError(f"workers={workers}: at least 1 is needed")
    digest = model_digest(settings.model, settings.head, settings.shots_model)
    parts = corpus.path / PARTS
    wanted = {row: made_of(corpus, row, settings, digest) for row in range(len(corpus))}
    ids = [values["id"] for values in corpus.scan("id")]
    before = {video.video: video for video in read_screen(corpus.path)}
    found: dict[int, ScreenedVideo] = {}
    for row, name in wanted.items():
        earlier = before.get(ids[row])
        if earlier is None or earlier.made_of != name:
            earlier = _read_part(parts / f"{ids[row]}.npz", ids[row], name)
        if earlier is not None:
            found[row] = earlier
    reused, unreadable = len(found), []
    jobs = [(corpus, row, settings, wanted[row]) for row in wanted if row not in found]
    for loaded in (_score, _network):
        loaded.cache_clear()  # of files that may have changed since
    if jobs:  # what is wrong with a file is said once, here
        _score(settings.model, settings.head)
        _network(settings.shots_model)
    core_seconds = pictures = 0
    new_hours = 0.0
    with FileProgress(len(jobs), progress, "screening", "videos") as report:
        for row, result in _run(jobs, workers):
            if isinstance(result, Exception):
                if not isinstance(result, (VideoError, ProcessDied)):
                    raise result
                reason = str(result) or "screening it kills the process, or memory ran out"
                unreadable.append((corpus.video_path(row), reason))
                found[row] = _blank(ids[row], int(corpus.frames[row]), reason)
            else:
                found[row], seconds = result
                core_seconds += seconds
                pictures += found[row].pictures
                new_hours += corpus.frames[row] / corpus.fps[row] / 3600
            report.advance(f"{len(unreadable):,} unreadable")
    videos = [found[row] for row in sorted(found)]
    write_screen(corpus.path, videos, json.dumps(asdict(settings)))
    shutil.rmtree(parts, ignore_errors=True)
    return _summary(corpus, videos, reused, unreadable, time.monotonic() - started, core_seconds, pictures, new_hours)


def _run(
    jobs: list[tuple[Corpus, int, ScreenSettings, str]], workers: int
) -> Iterator[tuple[int, tuple[ScreenedVideo, float] | Exception]]:
    """Yields (row, (ScreenedVideo, core seconds) or what was raised) as they end."""
    if workers == 1:
        for job in jobs:
            try:
                yield job[1], screen_row(*job)
            except VideoError as error:
                yield job[1], error
        return
    with closing(run_isolated(screen_row, jobs, min(workers, len(jobs)))) as results:
        for (_, row, _, _), result in results:
            yield row, result


@lru_cache(maxsize=1)
def _score(model: str, head: str) -> Score:
    return load_score(model, head) if model else in_body


@lru_cache(maxsize=1)
def _network(shots_model: str) -> ShotsNetwork | None:
    return load_shots_model(shots_model) if shots_model else None


def screen_row(corpus: Corpus, row: int, settings: ScreenSettings, name: str) -> tuple[ScreenedVideo, float]:
    """Screens video `row`, in a worker, and writes its part. name: of `made_of`. Returns it with the core seconds it took."""
    video, began = corpus.video(row), time.process_time()
    score, network = _score(settings.model, settings.head), _network(settings.shots_model)
    screened = screen_video(video.id, video.facts, corpus.gops(row), settings, score, network)
    screened = replace(screened, made_of=name)
    about = json.dumps([screened.made_of, screened.pictures, screened.note])
    arrays = {**screened.spans, "overlay": np.packbits(screened.overlay), "about": np.array(about)}
    write_arrays_whole(corpus.path / PARTS / f"{video.id}.npz", arrays)
    return screened, time.process_time() - began


def _read_part(path: Path, identity: str, name: str) -> ScreenedVideo | None:
    """A part that is whole and of the same video and settings."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            made, pictures, note = json.loads(str(arrays["about"]))
            spans = {field.name: arrays[field.name] for field in list(SPAN_SCHEMA)[1:]}
            overlay = np.unpackbits(arrays["overlay"], count=HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(bool)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return ScreenedVideo(identity, made, spans, overlay, pictures, note) if made == name else None


def _blank(identity: str, frames: int, reason: str) -> ScreenedVideo:
    """Of a video that cannot be read: one blank span, and screened again the next time."""
    spans = {field.name: np.zeros(1, field.type.to_pandas_dtype()) for field in list(SPAN_SCHEMA)[1:]}
    spans["frames"][:], spans["blank"][:], spans["cut_seconds"][:] = frames, True, np.inf
    return ScreenedVideo(identity, "", spans, np.zeros((HEIGHT, WIDTH), bool), 0, reason)


def _summary(
    corpus: Corpus,
    videos: list[ScreenedVideo],
    reused: int,
    unreadable: list[tuple[str, str]],
    seconds: float,
    core_seconds: float,
    pictures: int,
    new_hours: float,
) -> ScreenSummary:
    flags: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {
        "out of body (in_body <= 0.5)": lambda spans: ~spans["blank"] & (spans["in_body"] <= 0.5),
        **{
            name: (lambda spans, name=name: spans[name])
            for name in ("blank", "frozen", "picture_in_picture", "transition")
        },
    }
    hours = dict.fromkeys(flags, 0.0)
    total, cuts = 0.0, 0
    for video, fps in zip(videos, corpus.fps.tolist(), strict=True):
        of_span = video.spans["frames"] / fps / 3600
        total += float(of_span.sum())
        cuts += int(video.spans["shot"].max(initial=0))
        for name, chosen in flags.items():
            hours[name] += float(of_span[chosen(video.spans)].sum())
    failed = {path for path, _ in unreadable}
    incomplete = [
        (corpus.video_path(row), video.note)
        for row, video in enumerate(videos)
        if video.note and corpus.video_path(row) not in failed
    ]
    return ScreenSummary(
        path=corpus.path / SPANS_NAME,
        videos=len(videos),
        reused=reused,
        spans=sum(len(video.spans["frames"]) for video in videos),
        cuts=cuts,
        hours=total,
        new_hours=new_hours,
        pictures=pictures,
        seconds=seconds,
        core_seconds=core_seconds,
        flagged_hours=hours,
        unreadable=unreadable,
        incomplete=incomplete,
    )
