"""ClipLoader on the CPU: PyAV threads decode, crop and resize; batches come out in order.

The default where there is no GPU, and the fallback for what a GPU decoder cannot read.

Shapes: B clips, T frames, R x R pixels after the crop; frames are uint8 (B, T, R, R, 3), RGB.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from av.error import FFmpegError
from numpy.typing import ArrayLike, NDArray

from .augment import Box, CropRecipe
from .batch import ClipBatch, Failure, LoaderCount
from .corpus import Corpus
from .reader import DecodeCount, VideoReader
from .resize import Resize, Resizer
from .sampler import Clip, Sampler
from .video import VideoError

OPEN_READERS_PER_THREAD = 8
MAX_SPARES = 64


class ClipLoader:
    """Iterates over batches of clips.

    corpus, sampler, crops: where from, which, how cut; the sampler must be of this corpus. draws: one array of draw numbers per
    batch, in the order wanted; may be endless. resolution: R. resize: "fast" (swscale's bilinear, antialiased) or "exact"
    (PyTorch's antialiased bilinear). threads: decoding threads, all cores where None. prefetch: batches that are decoded while
    the caller works on one, at least 1. failure_budget: share of the draws that may fail; a failed draw is replaced by `spare` k
    of the sampler and reported in the batch's count. Raises VideoError, listing the failures, once the budget is exceeded (never
    before `failure_floor` failures), or where all replacements of a draw fail. It closes itself at the end and on any error.
    """

    def __init__(
        self,
        corpus: Corpus,
        sampler: Sampler,
        crops: CropRecipe,
        draws: Iterable[ArrayLike],
        *,
        resolution: int,
        resize: Resize = "fast",
        content_box: bool = True,
        threads: int | None = None,
        prefetch: int = 2,
        device: torch.device | str = "cpu",
        failure_budget: float = 0.1,
        failure_floor: int = 20,
    ) -> None:
        if len(sampler.video_frames) != len(corpus):
            raise ValueError(f"the sampler knows {len(sampler.video_frames)} videos, the corpus {len(corpus)}")
        if prefetch < 1 or (threads is not None and threads < 1):
            raise ValueError(f"prefetch and threads must be at least 1, got {prefetch} and {threads}")
        self.corpus, self.sampler, self.crops = corpus, sampler, crops
        self.resolution, self.content_box = resolution, content_box
        self.resize: Resize = resize
        self.prefetch, self.device = prefetch, torch.device(device)
        self.failure_budget, self.failure_floor = failure_budget, failure_floor
        self.total = LoaderCount()
        self._draws = iter(draws)
        self._local = threading.local()
        self._readers: list[OrderedDict[int, VideoReader]] = []
        threads = threads or len(os.sched_getaffinity(0))
        # On a CPU the training shares the cores: its steps are barriers of many threads, which one decoding thread in the way holds
        # up, while decoding runs ahead and can wait.
        behind = _lower_priority if self.device.type == "cpu" else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=behind)
        self._ahead: deque[_PendingBatch] = deque()

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        try:
            return self._next_batch()
        except BaseException:
            self.close()
            raise

    def _next_batch(self) -> ClipBatch:
        while len(self._ahead) <= self.prefetch and (draws := next(self._draws, None)) is not None:
            self._ahead.append(self._submit(np.asarray(draws, dtype=np.int64)))
        if not self._ahead:
            raise StopIteration
        batch = self._ahead.popleft()
        read = [future.result() for future in batch.work]
        count = LoaderCount()
        for item in read:
            count.add(item.count)
        self.total.add(count)
        self._check_budget(any_lost=any(item.is_lost for item in read))
        return ClipBatch(
            frames=batch.frames.to(self.device, non_blocking=True),
            draws=batch.draws,
            videos=np.array([item.clip.video for item in read], dtype=np.int64),
            frame_numbers=np.stack([item.clip.frames for item in read]),
            pts_seconds=np.stack([item.pts_seconds for item in read]),
            count=count,
        )

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads and closes the files. Batches decoded ahead are dropped, and there are no further ones."""
        self._draws = iter(())
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for readers in self._readers:
            while readers:
                readers.popitem()[1].close()

    def _check_budget(self, any_lost: bool) -> None:
        failures, draws = self.total.failures, self.total.clips
        if not any_lost and len(failures) <= max(self.failure_floor, self.failure_budget * draws):
            return
        videos = {failure.path: failure.reason for failure in failures}
        listed = "\n".join(f"  {reason}" for reason in list(videos.values())[:20])
        verdict = (
            f"a draw and its {MAX_SPARES} replacements failed"
            if any_lost
            else f"above the budget of {self.failure_budget:.0%}"
        )
        raise VideoError(
            f"{len(failures)} failures in {draws} draws, {verdict}, in {len(videos)} videos:\n"
            f"{listed}\nmend or remove them and run `trocar index` again, or raise data.failure_budget"
        )

    def _submit(self, draws: NDArray[np.int64]) -> _PendingBatch:
        shape = (len(draws), self.sampler.num_frames, self.resolution, self.resolution, 3)
        frames = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        outputs = frames.numpy()
        clips = self.sampler.clips(draws)
        work = [self._pool.submit(self._read, clip, output) for clip, output in zip(clips, outputs, strict=True)]
        return _PendingBatch(frames, draws, work)

    def _read(self, clip: Clip, output: NDArray[np.uint8]) -> _ReadClip:
        """Reads a clip or, where it fails, its first replacement that does not."""
        count = LoaderCount(clips=1)
        while True:
            try:
                pts_seconds = self._decode(clip, output, count)
            except VideoError as error:
                path = self.corpus.video(clip.video).facts.path
                count.failures.append(Failure(clip.draw, clip.spare, path, str(error)))
                self._drop_reader(clip.video)
                if clip.spare == MAX_SPARES:
                    return _ReadClip(clip, np.zeros(0), count, is_lost=True)
                (clip,) = self.sampler.clips([clip.draw], view=clip.view, spare=clip.spare + 1)
            else:
                return _ReadClip(clip, pts_seconds, count)

    def _decode(self, clip: Clip, output: NDArray[np.uint8], count: LoaderCount) -> NDArray[np.float64]:
        """Decodes, crops and resizes into output, (T, R, R, 3). Returns the timestamps, (T,) seconds."""
        video = self.corpus.video(clip.video).facts
        time_base = video.time_base_numerator / video.time_base_denominator
        reader = self._reader(clip.video)
        content = Box(video.box_left, video.box_top, video.box_width, video.box_height)
        if not self.content_box:
            content = Box(0, 0, *video.upright_size)
        crop = self.crops.crop(content, seed=self.sampler.seed, draw=clip.draw, view=clip.view)
        resizer = Resizer(crop, video.rotation, self.resolution, self.resize)
        numbers, inverse = np.unique(clip.frames, return_inverse=True)
        seconds = np.empty(len(numbers))
        decoded = DecodeCount()
        first = np.searchsorted(clip.frames, numbers)
        try:
            for number, frame in reader.frames(numbers, self.corpus.gops(clip.video), decoded):
                place = int(np.searchsorted(numbers, number))
                output[first[place]] = resizer(frame)
                assert frame.pts is not None
                seconds[place] = (frame.pts - video.start_pts) * time_base
        except FFmpegError as error:
            raise VideoError(f"{video.path}: frame {numbers[0]} cannot be cropped to {crop.box}: {error}") from error
        finally:
            count.packets_decoded += decoded.packets
            count.frames_decoded += decoded.frames
            count.bytes_read += decoded.bytes
        if len(numbers) < len(output):
            output[:] = output[first[inverse]]
        count.frames_used += len(numbers)
        count.repeated_frames += clip.repeated
        return seconds[inverse]

    def _reader(self, row: int) -> VideoReader:
        """This thread's open reader of a video; the least recently used is closed."""
        readers = self._open_readers()
        if row not in readers:
            readers[row] = VideoReader(self.corpus.video(row).facts)
            if len(readers) > OPEN_READERS_PER_THREAD:
                readers.popitem(last=False)[1].close()
        readers.move_to_end(row)
        return readers[row]

    def _drop_reader(self, row: int) -> None:
        """Closes this thread's reader of a video that failed: the file may have changed under it."""
        reader = self._open_readers().pop(row, None)
        if reader is not None:
            reader.close()

    def _open_readers(self) -> OrderedDict[int, VideoReader]:
        """This thread's, by row of the corpus, the least recently used first."""
        if not hasattr(self._local, "readers"):
            self._local.readers = OrderedDict()
            self._readers.append(self._local.readers)
        return self._local.readers


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere the call would mean the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


@dataclass(frozen=True)
class _ReadClip:
    clip: Clip
    pts_seconds: NDArray[np.float64]
    count: LoaderCount
    is_lost: bool = False


@dataclass(frozen=True)
class _PendingBatch:
    frames: torch.Tensor
    draws: NDArray[np.int64]
    work: list[Future[_ReadClip]]
