"""Runs DALI's graph ahead of its caller, in order, and gets over what DALI fails at.

Shapes: B samples of a run, U decoded frames of one sample, T frames, R x R pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from .dali_pipeline import Sample
from .threads import Account, Threads

POLL_SECONDS = 0.2
# What the graph is fed where a sample has nothing of the kind.
NOTHING, NO_RANK, IDENTITY = np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int32), np.eye(3, dtype=np.float32)


class DecodingPipeline:
    """A built DALI pipeline. Runs are queued by `submit` and decode one after the other, while the caller does something else;
    `result` hands out the oldest one's clips.

    definition: `clip_pipeline` or a graph of one's own. views, resolution: its arguments. device: where windows are decoded and
    clips wanted. largest_run: samples of one run at most; memory grows with it: DALI opens all windows of a run at once, each
    with eight pictures of its own besides the U decoded ones. threads: samples that are decoded at the same time, each by a
    decoder session of its own. stream: in which the clips will be used; None on a CPU.
    """

    def __init__(
        self,
        definition: Callable[..., Any],
        *,
        views: int,
        resolution: int,
        device: torch.device,
        largest_run: int,
        threads: int,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self.views, self.stream = views, stream
        # The caller decides how far to run ahead: DALI queues runs without limit. A deeper queue of DALI's own would start
        # several runs at the first submit, without inputs for them.
        self._pipeline: Any = definition(
            device="mixed" if device.type == "cuda" else "cpu",
            views=views,
            resolution=resolution,
            batch_size=largest_run,
            num_threads=threads,
            device_id=device.index,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        self._pipeline.build()

    def submit(self, samples: Sequence[Sample]) -> None:
        """Queues a run. Returns at once; the samples' arrays must not change before its result is out."""
        for name, batch in self._inputs(samples).items():
            self._pipeline.feed_input(name, batch)
        self._pipeline.schedule_run()

    def result(self) -> list[torch.Tensor]:
        """The clips of the oldest run, for each view uint8 (B, T, R, R, 3) on the device; waits until they are there.

        They are DALI's own memory, uncopied, which stays theirs as long as a tensor refers to it, and on a GPU until what was
        queued in `stream` by then is done: DALI frees in the order of the stream that its outputs are bound to. Without one it
        would write into clips that a step, which the host is ahead of, has still to read. Raises RuntimeError where a window of
        the run does not decode; DALI then has this pipeline given up, with all that is queued in it.
        """
        outputs = self._pipeline.share_outputs(cuda_stream=self.stream)
        clips = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        self._pipeline.release_outputs()
        return clips

    def close(self) -> None:
        """Ends its threads, after what is queued; what was handed out stays."""
        self._pipeline = None

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """What each external source of the graph is fed: an array with one row for each sample, or a list of arrays."""
        inputs: dict[str, Any] = {
            "window": [NOTHING[0, 0, 0] if sample.window is None else sample.window for sample in samples],
            "ranks": [NO_RANK if sample.ranks is None else sample.ranks for sample in samples],
            "pictures": [NOTHING if sample.pictures is None else sample.pictures for sample in samples],
            "is_window": np.array([sample.window is not None for sample in samples]),
        }
        for view in range(self.views):
            cuts = [sample.views[view] for sample in samples]
            colors = [IDENTITY if cut.colors is None else cut.colors for cut in cuts]
            of_view: dict[str, Any] = {
                "corner": np.array([(cut.top, cut.left) for cut in cuts], np.int32),
                "size": np.array([(cut.height, cut.width) for cut in cuts], np.int32),
                "order": np.stack([cut.order for cut in cuts]),
                "is_transposed": np.array([cut.is_transposed for cut in cuts]),
                "is_mirrored": np.array([cut.is_mirrored for cut in cuts], np.int32),
                "is_upended": np.array([cut.is_upended for cut in cuts], np.int32),
                "is_recolored": np.array([cut.colors is not None for cut in cuts]),
                "colors": np.stack(colors),
            }
            of_view.update({name: [np.asarray(cut.inputs[name]) for cut in cuts] for name in cuts[0].inputs})
            inputs.update({f"{name}_{view}": batch for name, batch in of_view.items()})
        return inputs


class Pipeline(Protocol):
    """What a `DecodingPipeline` does."""

    def submit(self, samples: Sequence[Sample]) -> None: ...
    def result(self) -> list[torch.Tensor]: ...
    def close(self) -> None: ...


class Job(Protocol):
    """What is to be decoded."""

    sample: Sample


AnyJob = TypeVar("AnyJob", bound=Job)
# The clips of consecutive jobs, one tensor for each view.
Clips = list[torch.Tensor]


class AheadDecoder(Generic[AnyJob]):
    """Decodes jobs in the order in which they are handed in, in a thread of its own, as soon as they are ready.

    build: makes a pipeline; called in that thread, so that DALI's threads take over the priority that `initializer` gives it.
    take_over: called there with a job whose window DALI fails at, and the error; has to give the job a sample of decoded pictures.
    is_given_up: whether DALI is not to try a job, since its like have failed; asked after a failure, as each one costs a pipeline.
    decoding_range: makes the context around the wait for DALI's clips, for profilers. threads: that thread, to be closed first.
    """

    def __init__(
        self,
        build: Callable[[], Pipeline],
        take_over: Callable[[AnyJob, RuntimeError], None],
        is_given_up: Callable[[AnyJob], bool],
        *,
        jobs_per_run: int,
        initializer: Callable[[], None] | None = None,
        decoding_range: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._build, self._take_over, self._is_given_up = build, take_over, is_given_up
        self._jobs_per_run = jobs_per_run
        self._waiting: deque[list[Future[AnyJob]]] = deque()
        self._queued: deque[list[AnyJob]] = deque()
        self._decoding_range, self._is_closed = decoding_range, False
        self.threads = Threads(1, "decode", initializer)
        try:
            self._pipeline = self.threads.submit(lambda thread: "DALI builds its graph", build).result()
        except BaseException:
            self.threads.close()
            raise

    def decode(self, jobs: list[Future[AnyJob]], account: Account) -> Future[list[Clips]]:
        """The clips of these jobs, in parts that follow one another. account: which ones, for errors."""
        self._waiting.append(jobs)
        return self.threads.submit(account, self._decode, jobs)

    def close(self) -> None:
        """Drops what is not decoded yet. To be called when no job is being made ready any more, and the thread is closed."""
        self._is_closed = True
        self._waiting.clear()
        self._queued.clear()
        self._pipeline.close()

    def _decode(self, jobs: list[Future[AnyJob]]) -> list[Clips]:
        for job in jobs:
            self._wait(job)
        parts: list[Clips] = []
        for _ in range(0, len(jobs), self._jobs_per_run):
            self._queue_what_is_ready()
            parts += self._collect()
        return parts

    def _wait(self, job: Future[AnyJob]) -> None:
        """Until a job is ready. The thread that makes it so is watched itself: waiting for it is not this thread's fault."""
        while not job.done() and not self._is_closed:
            wait([job], timeout=POLL_SECONDS)
            self.threads.come_on()
        job.result(timeout=0)

    def _queue_what_is_ready(self) -> None:
        """Queues later jobs as well, so that DALI goes on while nobody waits for it."""
        while self._waiting and all(map(_is_ready, self._waiting[0])):
            jobs = [future.result() for future in self._waiting.popleft()]
            for first in range(0, len(jobs), self._jobs_per_run):
                self._queued.append(jobs[first : first + self._jobs_per_run])
                self._submit(self._queued[-1])

    def _submit(self, run: list[AnyJob]) -> None:
        self._pipeline.submit([job.sample for job in run])

    def _collect(self) -> list[Clips]:
        """The clips of the run that was queued first."""
        run = self._queued.popleft()
        try:
            return [self._result()]
        except RuntimeError as error:
            parts = self._rescue(run, error)
            for later in self._queued:
                self._submit_again(later, error)
            return parts

    def _result(self) -> Clips:
        with self._decoding_range():
            return self._pipeline.result()

    def _rescue(self, run: list[AnyJob], error: RuntimeError) -> list[Clips]:
        """Decodes a run that DALI failed at, half by half, down to the job at fault: DALI does not say which one it is."""
        self._pipeline.close()
        self._pipeline = self._build()
        if len(run) == 1:
            if not run[0].sample.is_encoded:
                raise error
            self._take_over(run[0], error)
        half = (len(run) + 1) // 2
        parts: list[Clips] = []
        for rest in filter(None, (run[:half], run[half:])):
            self._submit_again(rest, error)
            try:
                parts.append(self._result())
            except RuntimeError as again:
                parts += self._rescue(rest, again)
        return parts

    def _submit_again(self, run: list[AnyJob], error: RuntimeError) -> None:
        for job in run:
            if job.sample.is_encoded and self._is_given_up(job):
                self._take_over(job, error)
        self._submit(run)


def _is_ready(job: Future[Any]) -> bool:
    return job.done() and not job.cancelled() and job.exception() is None
