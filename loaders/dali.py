"""ClipLoader on DALI: windows are cut on the CPU, decoded by NVDEC, cropped and resized on the GPU; batches come in order.

Reading threads turn spans into windows, which DALI decodes ahead of the training loop (`dali_decoder.py`), with many decoder
sessions in one process, by a graph that anyone may extend (`dali_pipeline.py`). The clips stay in DALI's memory, which PyTorch
uses uncopied. With device "cpu" the same graph runs without a GPU, for VP8, VP9 and Motion JPEG.

What DALI cannot decode, the CPU does, in the reading threads; it enters the graph behind the decoder. Where DALI fails unforeseen,
the CPU takes over; no clip is lost or changes its place. Every such rescue builds the graph anew, several times: after a few videos
of a kind, all of that kind are the CPU's.

Shapes: S spans of a block, V views, T frames, R x R pixels; frames are uint8, RGB.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .decode.batch import LoaderCount
from .decode.dali_codecs import DECODABLE, can_decode, is_refusal
from .decode.dali_decoder import AheadDecoder, Clips, DecodingPipeline
from .decode.dali_images import ImagePipeline, MixedPipeline, jpegs_of
from .decode.dali_pipeline import Sample, ViewCut, clip_pipeline, color_correction, view_cut
from .decode.loader import BaseClipLoader, LoaderOptions
from .decode.plan import Span
from .decode.recipe import ClipSource, CropSource, VideoSource
from .decode.span import Cut, SpanReader, SpanResult
from .decode.threads import Threads, stand_back
from .decode.uploads import numbered
from .draw.sampler import Clip
from .video.video import Kind, VideoError

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Decoder sessions on a GPU: about two for each of its engines, as a session waits for the end of every picture.
SESSIONS = 16
RESCUES_PER_KIND = 3
log = logging.getLogger("trocar.loaders")


@dataclass(eq=False)
class _Prepared:
    """A span on its way through DALI. sample: its window, or its clips if they are decoded already."""

    span: Span
    result: SpanResult
    sample: Sample


@dataclass(frozen=True)
class _Block:
    spans: list[Future[_Prepared]]
    clips: Future[list[Clips]]


class ClipLoader(BaseClipLoader[_Block]):
    """Iterates over batches of clips, `ClipBatch`.

    device: where spans are decoded and batches are. resize: how the CPU resizes what it has to decode; DALI's way is "exact".
    pipeline: the graph, `clip_pipeline` or one of one's own; inputs: what that is fed besides for a clip, by name. decoders: spans
    decoded at the same time, each by a decoder session of its own; None: 16 on a GPU, else as many as threads. spans_per_run: how
    many DALI is given at once; its memory grows with this, by 8 pictures of full size for each and one more for each frame.
    on_cpu: kinds of video that the CPU is to decode. is_uncropped: windows of H.264 and HEVC show whole coded pictures, of which
    the graph cuts what the video shows, so that DALI keeps its decoders (`video/uncrop.py`). For everything else, options too, see
    BaseClipLoader.
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
        pipeline: Callable[..., Any] = clip_pipeline,
        inputs: Callable[[Clip], Mapping[str, ArrayLike]] | None = None,
        decoders: int | None = None,
        spans_per_run: int = 32,
        on_cpu: Iterable[Kind] = (),
        is_uncropped: bool = True,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(
            corpus, sampler, crops, draws, resolution=resolution, device=numbered(torch.device(device)), **options
        )
        if decoders is None:
            decoders = SESSIONS if self.device.type == "cuda" else self.threads
        if decoders < 1 or spans_per_run < 1:
            raise ValueError(f"decoders and spans_per_run must be at least 1, got {decoders} and {spans_per_run}")
        if self.device.type not in DECODABLE:
            raise ValueError(f"DALI decodes on {' or '.join(DECODABLE)}, not on {self.device}")
        self._is_uncropped = is_uncropped
        # A graph of one's own knows windows only.
        self._takes_images = pipeline is clip_pipeline and inputs is None
        self._inputs = inputs or (lambda clip: {})
        # Rows of the corpus and kinds of video that DALI has failed at.
        self._unfit: set[int | Kind] = set(on_cpu)
        self._rescues: Counter[Kind] = Counter()
        # Clips are freed in the order of the stream of the thread that takes them, which is this one.
        self._stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        priority = stand_back if self.background else None
        self._pool = Threads(self.threads, "window", priority)
        views = self.order.views_per_span
        distinct = views * sampler.num_frames  # frames of a span at most
        how: dict[str, Any] = {
            "views": views,
            "resolution": resolution,
            "device": self.device,
            "threads": decoders,
            "stream": self._stream,
        }
        self._crews = [self._pool]
        try:
            self._decoder = AheadDecoder(
                lambda: MixedPipeline(
                    DecodingPipeline(pipeline, largest_run=spans_per_run, **how),
                    lambda: ImagePipeline(largest_run=spans_per_run * distinct, **how),
                ),
                self._take_over,
                self._is_given_up,
                jobs_per_run=spans_per_run,
                initializer=priority,
                decoding_range=lambda: self.decoding_range(),
            )
        except BaseException:
            super().close()
            raise
        self._crews.append(self._decoder.threads)

    def _start(self, spans: list[Span]) -> _Block:
        prepared = [self._pool.submit(self._account, self._prepare, span) for span in spans]
        draws = f"DALI decodes draws {spans[0].draw} to {spans[-1].draw}" if spans else "DALI decodes nothing"
        return _Block(prepared, self._decoder.decode(prepared, lambda thread: draws))

    def _finish(self, block: _Block) -> tuple[torch.Tensor, list[SpanResult]]:
        parts = self._wait(block.clips)
        prepared = [self._wait(future) for future in block.spans]
        results = [span.result for span in prepared]
        current = None if self._stream is None else torch.cuda.current_stream(self.device)
        if current is not None and self._stream is not None and current != self._stream:
            current.wait_stream(self._stream)
        if not parts:
            return torch.empty((0, *self._clip_shape), dtype=torch.uint8, device=self.device), results
        views = parts[0] if len(parts) == 1 else [torch.cat(part) for part in zip(*parts, strict=True)]
        clips = views[0] if len(views) == 1 else torch.stack(views, dim=1).flatten(0, 1)
        if current is not None and self._stream is not None and current != self._stream:
            clips = clips.clone()
            self._stream.wait_stream(current)  # DALI's clips, which are freed in the order of that one, have been read
        return clips, results

    def close(self) -> None:
        super().close()
        self._decoder.close()

    def _prepare(self, span: Span) -> _Prepared:
        """Reads a span, or its first replacement that can be read; in a reading thread."""
        reader = self._reader()
        result = SpanResult([], np.zeros((len(span.views), 0)), LoaderCount(spans=1))
        for spare in range(self.recipe.sampler.max_spares + 1):
            result.clips = self.recipe.clips(span.draw, span.views, spare)
            try:
                cut = reader.cut(result.clips, result.count)
                sample = self._sample(cut, reader, result.count)
            except VideoError as error:
                reader.note_failure(result.clips[0], error, result.count)
            else:
                result.pts_seconds = cut.pts_seconds()
                return _Prepared(span, result, sample)
        result.is_lost = True
        pictures = np.zeros((len(span.views), *self._clip_shape), np.uint8)
        return _Prepared(span, result, self._ready(result.clips, pictures))

    def _sample(self, cut: Cut, reader: SpanReader, count: LoaderCount) -> Sample:
        """A span for DALI, or decoded, if that is not for DALI. Raises VideoError."""
        window, video = cut.window, cut.window.video
        images = jpegs_of(window) if self._takes_images and not self._is_unfit(cut) else None
        file = self._file(cut) if images is None else None
        if file is None and images is None:
            pictures = np.empty((len(cut.clips), *self._clip_shape), np.uint8)
            reader.decode(cut, pictures, count)
            return self._ready(cut.clips, pictures)
        cut.count_whole(count)
        colors = color_correction(video.colorspace)
        views = [
            view_cut(crop, video.rotation, video.width, video.height, places, colors, self._inputs(clip))
            for clip, crop, places in zip(cut.clips, cut.crops, cut.places.astype(np.int32), strict=True)
        ]
        return Sample(views, images=images) if images else Sample(views, window=file, ranks=window.ranks)

    def _file(self, cut: Cut) -> NDArray[np.uint8] | None:
        """The window as a video for DALI; None: the CPU has to decode it."""
        if self._is_unfit(cut) or not can_decode(cut.window, self.device):
            return None
        try:
            return cut.window.mux(is_uncropped=self._is_uncropped)
        except VideoError:  # a stream that no container takes may decode all the same
            return None

    def _is_unfit(self, cut: Cut) -> bool:
        return self._has_failed(cut.clips[0].video, Kind.of(cut.window.video))

    def _has_failed(self, video: int, kind: Kind) -> bool:
        return not self._unfit.isdisjoint((video, kind))

    def _is_given_up(self, prepared: _Prepared) -> bool:
        video = prepared.result.clips[0].video
        return self._has_failed(video, Kind.of(self.recipe.videos.video(video).facts))

    def _ready(self, clips: list[Clip], pictures: NDArray[np.uint8]) -> Sample:
        """pictures: (V, T, R, R, 3)."""
        num_frames, resolution, *_ = self._clip_shape
        orders = np.arange(len(clips) * num_frames, dtype=np.int32).reshape(len(clips), num_frames)
        views = [
            ViewCut(0, 0, resolution, resolution, order, inputs=self._inputs(clip))
            for clip, order in zip(clips, orders, strict=True)
        ]
        return Sample(views, pictures=pictures.reshape(-1, resolution, resolution, 3))

    def _take_over(self, prepared: _Prepared, error: RuntimeError) -> None:
        """Decodes a span on the CPU, or its first replacement that can be read, and leaves such videos to the CPU from now on."""
        clip, span, failed = prepared.result.clips[0], prepared.span, prepared.result.count
        video = self.recipe.videos.video(clip.video).facts
        kind = Kind.of(video)
        if not self._is_given_up(prepared):
            self._rescues[kind] += 1
            is_of_kind = is_refusal(error) or self._rescues[kind] == RESCUES_PER_KIND
            self._unfit.add(kind if is_of_kind else clip.video)
            whole = f"and all other videos that are {kind}, " if is_of_kind else ""
            log.warning("%s: %sdecoded on the CPU from now on, as DALI does not: %s", video.path, whole, _reason(error))
        self.taken_over[video.path] = _reason(error)
        pictures = np.zeros((len(span.views), *self._clip_shape), np.uint8)
        result = self._reader().read(span.draw, span.views, pictures, first_spare=clip.spare)
        result.count.failures[:0] = failed.failures
        result.count.bytes_read += failed.bytes_read
        result.count.packets_decoded += failed.packets_decoded
        result.count.frames_decoded += failed.frames_decoded
        prepared.result, prepared.sample = result, self._ready(result.clips, pictures)


def _reason(error: RuntimeError) -> str:
    """What DALI reports, without the account of its graph."""
    _, _, report = str(error).partition("encountered:")
    return (report.strip() or str(error)).splitlines()[0]
