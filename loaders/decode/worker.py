"""A decoding process: takes spans from the board, decodes them into the batches that it shares with its loader, says what became
of them. It imports no PyTorch, unless the resize or somebody's own classes do.

Its loader starts it (`workers.py`) with descriptors for all that they share, and it ends with its loader's process, however that
ends. Only what is left to be said travels in messages: frame numbers, times, counts.

Shapes: V views, T frames, R x R pixels.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..draw.sampler import Clip
from .job_board import NOTHING, JobBoard, Place
from .messages import NOBODY, packed, packed_error
from .recipe import Recipe
from .shared_recipe import load_recipe
from .span import SpanReader
from .threads import stand_back

# Those that end a run in order reach all of its processes.
LEFT_TO_THE_LOADER = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
LOOK_FOR_THE_LOADER_MS = 2000


@dataclass(frozen=True)
class Task:
    """What a process is started with. number: its place on the board; owner: its name there, never used again. jobs, wake, told,
    buffers, recipe: descriptors of the board, of a pipe with a byte for every job, of the one for its messages, of the batches,
    and of the recipe, of so many bytes. first: a job that it takes over; deadly: the spares of that which ended the processes
    before it, and how. parent: the loader's process."""

    number: int
    owner: int
    processes: int
    jobs: int
    wake: int
    told: int
    buffers: Sequence[int]
    recipe: int
    recipe_bytes: Sequence[int]
    views: int
    is_background: bool
    parent: int
    first: int = NOTHING
    deadly: Sequence[tuple[int, int]] = ()


class _Followed:
    """A source of clips that writes down which one is being read, and refuses those that end processes."""

    def __init__(self, task: Task, recipe: Recipe, board: JobBoard) -> None:
        self._task, self._source, self._videos, self._board = task, recipe.sampler, recipe.videos, board
        self.num_frames, self.seed, self.max_spares = (
            self._source.num_frames,
            self._source.seed,
            self._source.max_spares,
        )
        self.job, self.begun, self.deadly = NOTHING, 0, dict[int, int]()

    @property
    def num_videos(self) -> int:
        return self._source.num_videos

    def begin(self, job: int, deadly: dict[int, int]) -> None:
        self.job, self.begun, self.deadly = job, self.begun + 1, deadly
        self._board.come_to(self._task.number, Place(job, NOTHING, NOTHING, 0, self.begun))

    def end(self) -> None:
        self._board.come_to(self._task.number, Place(NOTHING, 0, 0, 0, self.begun))

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]:
        clips = self._source.clips(draws, view=view, spare=spare)
        place = Place(self.job, spare, clips[0].video, int(clips[0].frames[0]), self.begun)
        self._board.come_to(self._task.number, place)
        if spare in self.deadly:
            problem = _cause(self._videos.video_path(clips[0].video), self.deadly[spare])
            return [replace(clip, problem=problem) for clip in clips]
        return clips


def _cause(path: str, status: int) -> str:
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    return f"{path}: ends the process that decodes it ({ended}, twice); re-encode it or leave it out"


class _Buffers:
    """The batches, mapped as far as they are asked for."""

    def __init__(self, descriptors: Sequence[int], clip_shape: tuple[int, ...]) -> None:
        self._descriptors, self._shape = descriptors, clip_shape
        self._mapped: dict[int, NDArray[np.uint8]] = {}

    def clips(self, buffer: int, clips: int) -> NDArray[np.uint8]:
        """(clips, T, R, R, 3), or more."""
        found = self._mapped.get(buffer)
        if found is None or len(found) < clips:
            size = clips * int(np.prod(self._shape))
            memory = mmap.mmap(self._descriptors[buffer], size)
            found = self._mapped[buffer] = np.frombuffer(memory, np.uint8).reshape(clips, *self._shape)
        return found


def run(task: str) -> None:
    """Works until its loader's process, or its loader, is gone. task: a `Task` as JSON."""
    _work(Task(**json.loads(task)))


def _work(task: Task) -> None:
    for number in LEFT_TO_THE_LOADER:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_loader, args=(task,), daemon=True).start()
    if task.is_background:
        stand_back()
    try:
        recipe = load_recipe(task.recipe, task.recipe_bytes)
    except Exception:  # noqa: BLE001  (whatever it is, the loader has to say it)
        _tell(task, packed_error(NOBODY, traceback.format_exc()))
        return
    _tell(task, packed_error(NOBODY, None))
    board = JobBoard(task.processes, task.jobs)
    followed = _Followed(task, recipe, board)
    reader = SpanReader(replace(recipe, sampler=followed))
    buffers = _Buffers(task.buffers, (followed.num_frames, recipe.resolution, recipe.resolution, 3))
    views, decoding_range = tuple(range(task.views)), _decoding_range()
    number, deadly = task.first, dict(task.deadly)
    while True:
        if number != NOTHING:
            job = board.job(number)
            followed.begin(number, deadly)
            output = buffers.clips(job.buffer, job.clips)[job.first : job.first + task.views]
            try:
                with decoding_range():
                    message = packed(number, reader.read(job.draw, views, output))
            except Exception as error:  # noqa: BLE001  (raised where the result is asked for)
                message = packed_error(number, _portable(error))
            _tell(task, message)
            followed.end()
        if not os.read(task.wake, 1):
            return
        taken = board.take(task.owner)
        number, deadly = NOTHING if taken is None else taken, {}


def _tell(task: Task, message: bytes) -> None:
    left = memoryview(message)
    try:
        while left:
            left = left[os.write(task.told, left) :]
    except BrokenPipeError:  # its loader is gone
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, or one of its words, where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  (our own)
    except Exception:  # noqa: BLE001  (a class of somebody's own may fail in any way)
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _end_with_the_loader(task: Task) -> None:
    """A process that is in the middle of a file, or hangs in it, ends as well."""
    gone = select.poll()
    gone.register(task.told, select.POLLERR)  # comes when nobody reads its messages any more
    # Somebody who was forked may hold the other end, so the parent is looked at as well.
    while os.getppid() == task.parent and not gone.poll(LOOK_FOR_THE_LOADER_MS):
        pass
    os._exit(1)


def _decoding_range() -> Callable[[], AbstractContextManager[Any]]:
    """As `engine/record/profiler.py` names it; whatever else records, records one process."""
    if os.environ.get("TROCAR_NVTX") != "1":
        return nullcontext
    import nvtx

    return partial(nvtx.annotate, "trocar/decode", domain="trocar")
