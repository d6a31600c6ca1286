"""ClipLoader on decoder sessions that stay open: windows are cut on the CPU and decoded by NVDEC through PyNvVideoCodec; one kernel
makes the clips of its pictures.

A thread reads a span's window, hands it to a session of its own (`decode/nvdec_session.py`) and launches the kernel
(`kernels/yuv_clip.py`) on a stream of its own; batches come in order. What NVDEC cannot decode the CPU does, in the same threads. A
window at which a session fails is decoded on the CPU as well, and replaced only where that fails too: so clips, spares and failures
are those of the other loaders. After a few such windows of a kind, all of that kind are the CPU's.

Shapes: S spans of a block, V views, T frames, R x R pixels; frames are uint8, RGB.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..kernels.yuv_clip import yuv_clip
from .choose import NVDEC_PACKAGE, require_nvdec
from .decode.batch import LoaderCount
from .decode.loader import BaseClipLoader, LoaderOptions
from .decode.nvdec_session import Calls, Library, SessionError, Sessions, can_decode, is_full_range
from .decode.plan import Span
from .decode.recipe import ClipSource, CropSource, VideoSource
from .decode.span import Cut, SpanReader, SpanResult
from .decode.threads import Threads, stand_back
from .decode.uploads import Upload, numbered
from .video.video import MATRICES, Kind, VideoError

if TYPE_CHECKING:
    from typing_extensions import Unpack

RESCUES_PER_KIND = 3
log = logging.getLogger("trocar.loaders")


def nvdec_library(device: torch.device) -> Library:
    """The module PyNvVideoCodec. Raises what `require_nvdec` raises, and ImportError where it finds no driver."""
    require_nvdec(device)
    try:
        return import_module(NVDEC_PACKAGE)  # pyright: ignore[reportReturnType]: its names are not known before
    except (ImportError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ImportError(
            f"'nvdec' is asked for, but {NVDEC_PACKAGE} cannot be used here: {reason}; give the container the driver's video "
            f"libraries (NVIDIA_DRIVER_CAPABILITIES=compute,utility,video), or take another loader"
        ) from error


@dataclass(frozen=True)
class _Decoded:
    """clips: (V, T, R, R, 3) of a span."""

    result: SpanResult
    clips: Upload


@dataclass(frozen=True)
class _Block:
    spans: list[Future[_Decoded]]


class ClipLoader(BaseClipLoader[_Block]):
    """Iterates over batches of clips, `ClipBatch`.

    device: where spans are decoded and batches are. threads: each with sessions of its own; all cores where None. resize: how the
    CPU resizes what it has to decode; the kernel's way is "exact". calls: what a call of the decoder is given, "packet" or, of
    H.264, HEVC and MPEG-4, the whole "window": fewer calls, and more device memory, for all the pictures of a window. on_cpu: kinds
    of video that the CPU is to decode. library: in place of PyNvVideoCodec. For everything else, options too, see BaseClipLoader.
    Raises ImportError where PyNvVideoCodec is missing, ValueError where the device is no GPU.
    """

    def __init__(
        self,
        corpus: VideoSource,
        sampler: ClipSource,
        crops: CropSource,
        draws: Iterable[ArrayLike],
        *,
        resolution: int,
        device: torch.device | str = "cuda",
        calls: Calls = "packet",
        on_cpu: Iterable[Kind] = (),
        library: Library | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        device = torch.device(device)
        if library is None:
            library = nvdec_library(device)
        device = numbered(device)
        super().__init__(corpus, sampler, crops, draws, resolution=resolution, device=device, **options)
        self._library = library
        self._calls: Calls = calls
        # Rows of the corpus and kinds of video that sessions have failed at.
        self._unfit: set[int | Kind] = set(on_cpu)
        self._rescues: Counter[Kind] = Counter()
        self._opened: list[Sessions] = []
        self._pool = Threads(self.threads, "nvdec", stand_back if self.background else None)
        self._crews = [self._pool]

    @property
    def sessions_opened(self) -> int:
        """How many decoders were created: few, or windows wait for them."""
        return sum(sessions.opened for sessions in self._opened)

    def _start(self, spans: list[Span]) -> _Block:
        return _Block([self._pool.submit(self._account, self._read, span) for span in spans])

    def _finish(self, block: _Block) -> tuple[torch.Tensor, list[SpanResult]]:
        decoded = [self._wait(future) for future in block.spans]
        if not decoded:
            return torch.empty((0, *self._clip_shape), dtype=torch.uint8, device=self.device), []
        return torch.cat([span.clips.arrived() for span in decoded]), [span.result for span in decoded]

    def close(self) -> None:
        super().close()
        for sessions in self._opened:
            sessions.close()

    def _read(self, span: Span) -> _Decoded:
        """Reads a span, or its first replacement that can be read; in a thread of the pool."""
        if self.device.type != "cuda":
            result, clips = self._decoded(span)
            return _Decoded(result, Upload(clips, None))
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(self._local.stream):
            result, clips = self._decoded(span)
            done = torch.cuda.Event()
            done.record()
        return _Decoded(result, Upload(clips, done))

    def _decoded(self, span: Span) -> tuple[SpanResult, torch.Tensor]:
        reader = self._reader()
        result = SpanResult([], np.zeros((len(span.views), 0)), LoaderCount(spans=1))
        for spare in range(self.recipe.sampler.max_spares + 1):
            result.clips = self.recipe.clips(span.draw, span.views, spare)
            try:
                cut = reader.cut(result.clips, result.count)
                with self.decoding_range():
                    clips = self._clips(cut, reader, result.count)
            except VideoError as error:
                reader.note_failure(result.clips[0], error, result.count)
            else:
                result.pts_seconds = cut.pts_seconds()
                return result, clips
        result.is_lost = True
        clips = torch.zeros((len(span.views), *self._clip_shape), dtype=torch.uint8, device=self.device)
        return result, clips

    def _clips(self, cut: Cut, reader: SpanReader, count: LoaderCount) -> torch.Tensor:
        """(V, T, R, R, 3) on the device. Raises VideoError."""
        window, kind, failed = cut.window, Kind.of(cut.window.video), None
        if self._unfit.isdisjoint((cut.clips[0].video, kind)) and can_decode(window):
            try:
                pictures = self._sessions().pictures(window)
            except SessionError as error:
                failed = error
            else:
                cut.count_whole(count)
                return torch.stack([self._cut(pictures, cut, view) for view in range(len(cut.clips))])
        clips = np.empty((len(cut.clips), *self._clip_shape), np.uint8)
        reader.decode(cut, clips, count)
        if failed is not None:
            self._note_rescue(cut, kind, failed)
        return torch.from_numpy(clips).to(self.device)

    def _cut(self, pictures: torch.Tensor, cut: Cut, view: int) -> torch.Tensor:
        """(T, R, R, 3): one view. pictures: (F, 3 H / 2, W), NV12 or P016."""
        video, crop, places = cut.window.video, cut.crops[view], cut.places[view]
        chroma = pictures[:, video.height :].unflatten(2, (-1, 2))
        clip = yuv_clip(
            pictures[:, : video.height],
            chroma[..., 0],
            chroma[..., 1],
            (crop.box.left, crop.box.top, crop.box.width, crop.box.height),
            self.recipe.resolution,
            matrix=MATRICES.get(video.colorspace, "bt601"),
            full_range=is_full_range(cut.window),
            rotation=video.rotation,
            flip=crop.flip,
        )
        if np.array_equal(places, np.arange(len(pictures))):
            return clip
        return clip[torch.from_numpy(places).to(self.device)]

    def _sessions(self) -> Sessions:
        """This thread's."""
        if not hasattr(self._local, "sessions"):
            self._local.sessions = Sessions(self._library, self.device, self._calls)
            self._opened.append(self._local.sessions)
        return self._local.sessions

    def _note_rescue(self, cut: Cut, kind: Kind, error: SessionError) -> None:
        """A window that the CPU could decode: its video is the CPU's from now on, after a few of them all of its kind."""
        self._rescues[kind] += 1
        is_of_kind = self._rescues[kind] >= RESCUES_PER_KIND
        self._unfit.add(kind if is_of_kind else cut.clips[0].video)
        whole = f"and all other videos that are {kind}, " if is_of_kind else ""
        path = cut.window.video.path
        log.warning("%s: %sdecoded on the CPU from now on, as NVDEC does not: %s", path, whole, error)
        self.taken_over[path] = str(error)
