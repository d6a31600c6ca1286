"""Our own arms of `trocar bench loading`, and the clips and crops that make them do exactly what the peers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ...loaders.corpus.corpus import Corpus
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


class TrocarCpu(Arm):
    """ClipLoader on the CPU. It opens its files anew for every delivery, within the time."""

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
        self.library = f"trocar.loaders.{self.loader}"

    def batches(self, way: str, requests: Sequence[Request]) -> Iterator[torch.Tensor]:
        draws = [np.array(part) for part in self.job.split(range(len(requests)))]
        loader = self._loader(
            self._corpus,
            ListedClips(self._corpus, requests),
            WholePicture(),
            draws,
            resolution=self.job.resolution,
            content_box=False,
            threads=self.job.cores,
            device=self.device,
            failure_budget=0.0,
            failure_floor=0,
        )
        return self._deliver(loader)

    def _deliver(self, loader: Any) -> Iterator[torch.Tensor]:
        with loader:
            for batch in loader:
                yield batch.frames
            total = loader.total
        self.cost = {"amplification": total.amplification, "bytes_per_clip": total.bytes_read / total.clips}


class TrocarDali(TrocarCpu):
    """ClipLoader on NVDEC, by DALI."""

    loader = "dali"
    device = "cuda"
