"""Our own arms of `trocar bench loading`, and the clips and crops that make them do exactly what the peers do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.decode.batch import LoaderCount
from ...loaders.draw.augment import Box, Crop
from ...loaders.draw.sampler import Clip
from .arms import Arm, Job, Request, UnavailableError


class WholePicture:
    """Not a crop: all there is, squeezed to a square, never mirrored. The only view that every library can give."""

    def crop(self, content: Box, *, seed: int, draw: int, view: int = 0) -> Crop:
        return Crop(content, flip=False)


class ListedClips:
    """Draw n is the n-th of some requests, and nothing replaces it."""

    seed = 0
    max_spares = 0

    def __init__(self, corpus: Corpus, requests: Sequence[Request]) -> None:
        self.num_videos, self.num_frames = len(corpus), len(requests[0].frames)
        self._requests = requests

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]:
        chosen = [(int(draw), self._requests[draw]) for draw in np.asarray(draws)]
        return [Clip(draw, view, spare, request.row, request.frames, 0) for draw, request in chosen]


class _Due:
    """The batches of the delivery that is under way: at its end there are none until the next one."""

    def __init__(self) -> None:
        self.batches: deque[NDArray[np.int64]] = deque()

    def __iter__(self) -> _Due:
        return self

    def __next__(self) -> NDArray[np.int64]:
        if not self.batches:
            raise StopIteration
        return self.batches.popleft()


class TrocarCpu(Arm):
    """ClipLoader on the CPU. Like the peers' decoders it stays open from delivery to delivery, and nothing is decoded ahead of
    one."""

    loader = "cpu"
    device = "cpu"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UnavailableError("no NVIDIA GPU")
        try:
            # By name, so that a missing extra is a reason to be told and not an error.
            self._loader: Any = import_module(f"...loaders.{self.loader}", __package__).ClipLoader
        except ImportError as error:
            raise UnavailableError(f"trocar.loaders.{self.loader} cannot be used: {error}") from error
        self._corpus = Corpus.open(job.corpus)
        self._requests: Sequence[Request] = ()
        self._due = _Due()
        self._open: Any = None
        self.library = f"trocar.loaders.{self.loader}"

    def batches(self, way: str, requests: Sequence[Request]) -> Iterator[torch.Tensor]:
        if requests is not self._requests:
            self._requests, self._due = requests, _Due()
            if self._open is not None:
                self._open.close()
            self._open = self._loader(
                self._corpus,
                ListedClips(self._corpus, requests),
                WholePicture(),
                self._due,
                resolution=self.job.resolution,
                content_box=False,
                threads=self.job.cores,
                device=self.device,
                failure_budget=0.0,
                failure_floor=0,
            )
        self._due.batches.extend(np.array(part) for part in self.job.split(range(len(requests))))
        return self._deliver(len(self._due.batches))

    def _deliver(self, batches: int) -> Iterator[torch.Tensor]:
        total = LoaderCount()
        for _ in range(batches):
            batch = next(self._open)
            total.add(batch.count)
            yield batch.frames
        self.cost = {"amplification": total.amplification, "bytes_per_clip": total.bytes_read / total.clips}


class TrocarDali(TrocarCpu):
    """ClipLoader on NVDEC, by DALI."""

    loader = "dali"
    device = "cuda"
