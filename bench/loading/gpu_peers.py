"""The GPU peers of `trocar bench loading`: torchcodec on CUDA and DALI's own video reader.

Written to their documentation (torchcodec 0.17, DALI 2.4).

Shapes: B clips, T frames, R x R pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .arms import Arm, Job, PooledArm, Request, UnavailableError


def require_gpu() -> None:
    if not torch.cuda.is_available():
        raise UnavailableError("no NVIDIA GPU")


class TorchcodecCuda(PooledArm):
    """VideoDecoder(device="cuda"): NVDEC decodes whole pictures, PyTorch resizes them on the GPU."""

    ways = ("a decoder per core", "one decoder")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        require_gpu()
        try:
            torchcodec: Any = import_module("torchcodec")  # it marks no name as public, to the type checker
            decoders: Any = import_module("torchcodec.decoders")
        except (ImportError, OSError, RuntimeError) as error:
            raise UnavailableError(f"torchcodec cannot be used: {error}") from error
        self._decoder = decoders.VideoDecoder
        self.library = f"torchcodec {torchcodec.__version__}, CUDA"

    def open(self, path: str, threads: int) -> Any:
        return self._decoder(path, device="cuda", seek_mode="exact")

    def read(self, decoder: Any, frames: NDArray[np.int64]) -> Any:
        pictures = decoder.get_frames_at(frames.tolist()).data.float()
        size = (self.job.resolution, self.job.resolution)
        small = F.interpolate(pictures, size=size, mode="bilinear", antialias=True)
        return small.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)

    def stack(self, clips: list[Any]) -> Any:
        batch = torch.stack(clips)
        torch.cuda.synchronize()
        return batch


class DaliReader(Arm):
    """DALI's stock readers, fed a file list with one frame range a clip: `readers.video` and `experimental.readers.video`.

    A pipeline is built anew for every delivery, before the time starts: a reader cannot go back to its first clip in order.
    """

    ways = ("readers.video", "experimental.readers.video")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        require_gpu()
        try:
            dali: Any = import_module("nvidia.dali")
        except (ImportError, OSError) as error:
            raise UnavailableError(f"DALI cannot be used: {error}") from error
        if any(" " in request.path for request in job.requests):
            raise UnavailableError("DALI's file lists cannot hold paths with spaces")
        self._dali = dali
        installed = [name for name in ("nvidia-dali-cuda120", "nvidia-dali-cuda130") if _version(name)]
        self.library = f"DALI {_version(installed[0]) if installed else 'of unknown version'}"

    def batches(self, way: str, requests: Sequence[Request]) -> Iterator[torch.Tensor]:
        pipeline = self._build(way, requests)
        return self._deliver(pipeline, len(self.job.split(requests)), len(requests))

    def _build(self, way: str, requests: Sequence[Request]) -> Any:
        fn, side, num_frames = self._dali.fn, self.job.resolution, len(requests[0].frames)
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file_list:
            ranges = [(request, int(request.frames[0]), int(request.frames[-1]) + 1) for request in requests]
            file_list.writelines(f"{request.path} 0 {start} {stop}\n" for request, start, stop in ranges)
            file_list.flush()
            common = dict(
                device="gpu",
                file_list=file_list.name,
                sequence_length=num_frames,
                stride=self.job.stride,
                name="reader",
                pad_last_batch=True,
            )

            def clips() -> Any:
                if way == "readers.video":
                    video, _ = fn.readers.video(**common, file_list_frame_num=True)
                else:
                    video, _ = fn.experimental.readers.video(
                        **common, file_list_format="frames", file_list_include_end=False
                    )
                return fn.resize(video, size=(side, side), interp_type=self._dali.types.INTERP_LINEAR, antialias=True)

            options = dict(batch_size=self.job.batch, num_threads=self.job.cores, device_id=0)
            pipeline = self._dali.pipeline_def(clips)(**options)
            pipeline.build()
            # A range that the reader dropped or split would shift all later clips.
            found = pipeline.epoch_size("reader")
            if found != len(requests):
                raise RuntimeError(f"{way} makes {found} sequences of {len(requests)} frame ranges")
        return pipeline

    def _deliver(self, pipeline: Any, num_batches: int, num_clips: int) -> Iterator[torch.Tensor]:
        for index in range(num_batches):
            (output,) = pipeline.run()
            batch = torch.from_dlpack(output.as_tensor()).clone()  # the pipeline writes into its buffer again
            torch.cuda.synchronize()
            yield batch[: num_clips - index * self.job.batch]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
