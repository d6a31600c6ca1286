"""The CPU peers of `trocar bench loading`: torchcodec, decord and PyAV, each as its documentation would have it used.

Each imports its library when it is made, in its own process.

Shapes: T frames, R x R pixels.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arms import Job, PooledArm, UnavailableError


class TorchcodecExact(PooledArm):
    """torchcodec's VideoDecoder, which resizes inside the decoder; seek mode exact: it scans the file when it opens it."""

    seek_mode = "exact"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        try:
            torchcodec: Any = import_module("torchcodec")  # it marks no name as public, to the type checker
            decoders: Any = import_module("torchcodec.decoders")
            transforms: Any = import_module("torchcodec.transforms")
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: none of its builds finds its FFmpeg
            raise UnavailableError(f"torchcodec cannot be used: {_first_line(error)}") from error
        self._decoder = decoders.VideoDecoder
        self._transforms = [transforms.Resize((job.resolution, job.resolution))]
        self.library = f"torchcodec {torchcodec.__version__}, FFmpeg {torchcodec.ffmpeg_major_version}"

    def open(self, path: str, threads: int) -> Any:
        return self._decoder(
            path,
            dimension_order="NHWC",
            num_ffmpeg_threads=threads,
            seek_mode=self.seek_mode,
            transforms=self._transforms,
        )

    def read(self, decoder: Any, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        return decoder.get_frames_at(frames.tolist()).data.numpy()


class TorchcodecApproximate(TorchcodecExact):
    """The same without the scan: it computes where a frame is from the file's metadata."""

    seek_mode = "approximate"


class Decord(PooledArm):
    """decord's VideoReader at the wanted size, `get_batch`."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        try:
            import decord  # pyright: ignore[reportMissingImports]: an extra
        except (ImportError, OSError, RuntimeError) as error:
            raise UnavailableError(f"decord cannot be used: {_first_line(error)}") from error
        self._reader: Any = decord.VideoReader
        self.library = f"decord {decord.__version__}"

    def open(self, path: str, threads: int) -> Any:
        return self._reader(path, width=self.job.resolution, height=self.job.resolution, num_threads=threads)

    def read(self, decoder: Any, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        return decoder.get_batch(frames.tolist()).asnumpy()


class Pyav(PooledArm):
    """PyAV by hand: seek to the keyframe before, decode up to the last wanted frame, resize the wanted ones with swscale.

    Frame n is taken to stand at n / fps, which a constant frame rate makes true.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        try:
            import av
            from av.video.reformatter import VideoReformatter

            from ...loaders.video.pyav import as_fraction
        except (ImportError, OSError) as error:
            raise UnavailableError(f"PyAV cannot be used: {_first_line(error)}") from error
        self._open: Any = av.open
        self._reformatter: Any = VideoReformatter
        self._as_fraction: Any = as_fraction
        codec = ".".join(map(str, av.library_versions["libavcodec"]))
        self.library = f"PyAV {av.__version__}, libavcodec {codec}"
        self._decoded = self._used = 0

    def open(self, path: str, threads: int) -> Any:
        container = self._open(path)
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.thread_count = threads
        return container, stream, self._reformatter(), threads

    def read(self, decoder: Any, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        container, stream, reformatter, threads = decoder
        side = self.job.resolution
        ticks_a_frame = 1 / (self._as_fraction(stream.average_rate) * self._as_fraction(stream.time_base))
        wanted = [round((stream.start_time or 0) + int(number) * ticks_a_frame) for number in frames]
        clip = np.empty((len(frames), side, side, 3), np.uint8)
        container.seek(wanted[0], stream=stream)
        filled = 0
        for frame in container.decode(stream):
            self._decoded += 1
            if frame.pts + ticks_a_frame / 2 < wanted[filled]:
                continue
            small = reformatter.reformat(frame, side, side, "rgb24", interpolation="BILINEAR", threads=threads)
            clip[filled] = small.to_ndarray()
            filled += 1
            if filled == len(wanted):
                break
        self._used += filled
        self.cost = {"amplification": self._decoded / self._used}
        return clip


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
