"""The usual input pipeline: a DataLoader whose worker processes decode whole pictures, cut, scale, mirror and normalise on the CPU.

Workers are started anew and import a decoder, PyTorch and torchvision alone: torchcodec, decord and PyAV bring an FFmpeg each.

Shapes: B clips, T frames, R x R pixels.
"""

from __future__ import annotations

import itertools
import multiprocessing
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

OPEN_DECODERS = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LIBRARIES = ("torchcodec", "decord")


class UnusableError(Exception):
    """A pipeline that cannot run here; the message says why."""


@dataclass(frozen=True)
class WantedClip:
    """frames: (T,) numbers in display order. box: left, top, width, height in pixels; flip: mirrored left to right."""

    path: str
    frames: NDArray[np.int64]
    box: tuple[int, int, int, int]
    flip: bool


class VideoClips(Dataset[torch.Tensor]):
    """Item n is clip n as VideoMAE's training code makes it: (T, 3, R, R) float32, normalised. library: one of LIBRARIES."""

    def __init__(self, clips: Sequence[WantedClip], resolution: int, library: str) -> None:
        self.clips, self.resolution, self.library = list(clips), resolution, library
        self._decoders: OrderedDict[str, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> torch.Tensor:
        from torchvision.transforms.v2 import functional as transforms

        clip = self.clips[number]
        pictures = self._decode(clip)
        left, top, width, height = clip.box
        size = [self.resolution, self.resolution]
        pictures = transforms.resized_crop(pictures, top, left, height, width, size, antialias=True)
        if clip.flip:
            pictures = transforms.horizontal_flip(pictures)
        return transforms.normalize(transforms.to_dtype(pictures, torch.float32, scale=True), list(MEAN), list(STD))

    def _decode(self, clip: WantedClip) -> torch.Tensor:
        """(T, 3, H, W) uint8. Decoders stay open for later clips of their video."""
        if clip.path not in self._decoders:
            self._decoders[clip.path] = _open(self.library, clip.path)
            if len(self._decoders) > OPEN_DECODERS:
                self._decoders.popitem(last=False)
        decoder = self._decoders[clip.path]
        if self.library == "torchcodec":
            return decoder.get_frames_at(clip.frames.tolist()).data
        return torch.from_numpy(decoder.get_batch(clip.frames.tolist()).asnumpy()).permute(0, 3, 1, 2)


def _open(library: str, path: str) -> Any:
    if library == "torchcodec":
        decoders: Any = import_module("torchcodec.decoders")
        return decoders.VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate")
    decord: Any = import_module("decord")
    return decord.VideoReader(path, num_threads=1)


class UsualPipeline:
    """Batches of B clips, (B, T, 3, R, R) float32 on the host, in order; workers live from pass to pass.

    Raises UnusableError on construction where a worker cannot decode the first clip: a missing library, or one without its FFmpeg.
    """

    def __init__(self, clips: Sequence[WantedClip], *, batch: int, resolution: int, library: str, workers: int) -> None:
        self.library, self.workers = library, workers
        context = multiprocessing.get_context("spawn")
        order = _Order(batch)
        self._order = order
        self._loader: DataLoader[torch.Tensor] = DataLoader(
            VideoClips(clips, resolution, library),
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context=context,
            pin_memory=torch.cuda.is_available(),
        )
        try:
            list(self.passage([0] * min(workers, len(clips))))
        except Exception as error:  # whatever a worker raised arrives as its own type, or as a RuntimeError
            self.close()
            last = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
            raise UnusableError(f"{library} cannot be used: {last[-1].strip()}") from error

    def passage(self, numbers: Sequence[int]) -> Iterator[torch.Tensor]:
        """The clips of these numbers, in batches; nothing is decoded before."""
        self._order.numbers = list(numbers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            yield from self._loader

    def close(self) -> None:
        """Ends the workers."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            self._loader._iterator = None


class _Order:
    """What a DataLoader asks for batches: those of the numbers that are set at the moment."""

    def __init__(self, batch: int) -> None:
        self.batch, self.numbers = batch, list[int]()

    def __iter__(self) -> Iterator[list[int]]:
        numbers = iter(self.numbers)
        while part := list(itertools.islice(numbers, self.batch)):
            yield part

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.batch)
