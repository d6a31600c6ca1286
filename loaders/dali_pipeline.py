"""The DALI graph, from encoded windows to clips, and what runs it ahead of its caller.

A *window* is a small video file in memory that holds what one sample needs of a long video. `clip_pipeline` is the graph that
ClipLoader runs; read it top to bottom. A graph of your own takes the same three arguments and is built from the same two blocks:

    @pipeline_def(enable_conditionals=True)
    def with_hue(device: str, views: int, resolution: int) -> tuple[DataNode, ...]:
        video = decode_windows(device)
        hue = fn.external_source(name="hue", dtype=types.FLOAT, ndim=0)
        return tuple(fn.hue(cut_view(video, view, resolution), hue=hue) for view in range(views))

`fn.random` would make clips depend on what ran before: feed such an operator by an input of its own, as here, from a pure function
of the draw.

Shapes: B samples, U distinct frames of one sample (another number in each), H W pixels of a decoded picture; T frames and R x R
pixels of a clip.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .augment import Box, Crop

try:
    # By name, as DALI's stubs refuse what its conditionals are written with: a node as a condition.
    dali: Any = importlib.import_module("nvidia.dali")
except ImportError as error:
    raise ImportError(
        "DALI is not installed: pip install 'trocar[dali]', or 'trocar[cuda12]' or 'trocar[cuda13]' for GPUs; "
        "trocar.loaders.cpu does without it"
    ) from error
fn, types, pipeline_def = dali.fn, dali.types, dali.pipeline_def
# Of a graph and of a built pipeline.
DataNode: TypeAlias = Any
Pipeline: TypeAlias = Any


@pipeline_def(enable_conditionals=True)
def clip_pipeline(device: str, views: int, resolution: int) -> tuple[DataNode, ...]:
    """One output per view, uint8 (B, T, R, R, 3), RGB.

    device: where windows are decoded, "cpu" or "mixed" (NVDEC). resolution: R. The arguments of any DALI pipeline go beside these.
    """
    video = decode_windows(device)
    return tuple(cut_view(video, view, resolution) for view in range(views))


def decode_windows(device: str) -> DataNode:
    """The pictures of every sample, uint8 (U, H, W, 3), RGB: decoded here, or handed over where another decoder had to do it."""
    window = fn.external_source(name="window", dtype=types.UINT8, ndim=1, no_copy=True)
    ranks = fn.external_source(name="ranks", dtype=types.INT32, ndim=1)
    pictures = fn.external_source(name="pictures", dtype=types.UINT8, ndim=4, layout="FHWC", no_copy=True)
    is_window = fn.external_source(name="is_window", dtype=types.BOOL, ndim=0)
    if is_window:
        # By default a rank behind the window's end would come out black, and each thread would be tied to one core, the same one
        # in every process of a machine.
        video = fn.decoders.video(window, device=device, frames=ranks, pad_mode="none", affine=False)
    elif device == "mixed":
        video = pictures.gpu()
    else:
        video = pictures
    return video


def cut_view(video: DataNode, view: int, resolution: int) -> DataNode:
    """One view of every sample, uint8 (T, R, R, 3): its frames, its crop, upright and mirrored where the crop says so."""

    def of_view(name: str, dtype: Any, ndim: int) -> DataNode:
        return fn.external_source(name=f"{name}_{view}", dtype=dtype, ndim=ndim)

    # A region of interest inside `resize` would let the filter look beyond the crop.
    cut = fn.slice(video, of_view("corner", types.INT32, 1), of_view("size", types.INT32, 1), axes=(1, 2))
    clip = fn.resize(cut, size=(resolution, resolution), interp_type=types.INTERP_LINEAR, antialias=True)
    clip = fn.sequence_rearrange(clip, new_order=of_view("order", types.INT32, 1))
    is_transposed = of_view("is_transposed", types.BOOL, 0)
    if is_transposed:
        clip = fn.transpose(clip, perm=(0, 2, 1, 3), transpose_layout=False, output_layout="FHWC")
    is_recolored, colors = of_view("is_recolored", types.BOOL, 0), of_view("colors", types.FLOAT, 2)
    if is_recolored:
        clip = fn.coord_transform(clip, M=colors, dtype=types.UINT8)
    return fn.flip(
        clip, horizontal=of_view("is_mirrored", types.INT32, 0), vertical=of_view("is_upended", types.INT32, 0)
    )


@dataclass(frozen=True)
class ViewCut:
    """What `cut_view` is fed for one sample, in pixels of the decoded picture, before rotation.

    top, left, height, width: the crop. order: (T,) which decoded frame each frame of the clip is, 0 .. U - 1. After resizing, the
    clip is transposed, then mirrored left to right, then upended. colors: (3, 3), what a pixel's RGB is multiplied by; None: as is.
    """

    top: int
    left: int
    height: int
    width: int
    order: NDArray[np.int32]
    is_transposed: bool = False
    is_mirrored: bool = False
    is_upended: bool = False
    colors: NDArray[np.float32] | None = None


def view_cut(
    crop: Crop,
    rotation: int,
    width: int,
    height: int,
    order: NDArray[np.int32],
    colors: NDArray[np.float32] | None = None,
) -> ViewCut:
    """The crop of an upright picture as one of the decoded picture, which has width x height pixels.

    rotation: degrees counter-clockwise that turn the decoded picture upright, 0, 90, 180 or 270.
    """
    box = crop.box
    if rotation == 90:
        box = Box(width - box.top - box.height, box.left, box.height, box.width)
    elif rotation == 180:
        box = Box(width - box.left - box.width, height - box.top - box.height, box.width, box.height)
    elif rotation == 270:
        box = Box(box.top, height - box.left - box.width, box.height, box.width)
    return ViewCut(
        top=box.top,
        left=box.left,
        height=box.height,
        width=box.width,
        order=order,
        is_transposed=rotation in (90, 270),
        is_mirrored=crop.flip != (rotation in (180, 270)),
        is_upended=rotation in (90, 180),
        colors=colors,
    )


# AVColorSpace to the shares of red and blue in luma (ITU-R BT.709, SMPTE 240M, ITU-R BT.2020).
LUMA_WEIGHTS = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def color_correction(colorspace: int) -> NDArray[np.float32] | None:
    """(3, 3), from the RGB that DALI makes of a video to what the video says; None: they agree.

    DALI's decoders take every video for BT.601, whatever it is tagged as. colorspace: FFmpeg's AVColorSpace.
    """
    if colorspace not in LUMA_WEIGHTS:
        return None
    return (_rgb_from_yuv(*LUMA_WEIGHTS[colorspace]) @ np.linalg.inv(_rgb_from_yuv(0.299, 0.114))).astype(np.float32)


def _rgb_from_yuv(red: float, blue: float) -> NDArray[np.float64]:
    """(3, 3), the inverse of Y = red R + (1 - red - blue) G + blue B, U = (B - Y) / (2 - 2 blue), V = (R - Y) / (2 - 2 red)."""
    luma = np.array([red, 1 - red - blue, blue])
    chroma_blue = (np.array([0, 0, 1]) - luma) / (2 - 2 * blue)
    chroma_red = (np.array([1, 0, 0]) - luma) / (2 - 2 * red)
    return np.linalg.inv(np.stack([luma, chroma_blue, chroma_red])).astype(np.float64)


@dataclass(frozen=True)
class Sample:
    """What the graph is fed for one sample.

    window: (bytes,) uint8, with ranks: (U,) int32, ascending and distinct, the places of the frames to decode among those it shows;
    or pictures: (U, H, W, 3) uint8 that are decoded already. views: one cut for each view. inputs: what further inputs of a graph
    of one's own are fed, by name.
    """

    views: Sequence[ViewCut]
    window: NDArray[np.uint8] | None = None
    ranks: NDArray[np.int32] | None = None
    pictures: NDArray[np.uint8] | None = None
    inputs: Mapping[str, ArrayLike] = field(default_factory=dict)


class DecodingPipeline:
    """A built DALI pipeline. Runs are queued by `submit` and decode one after the other, while the caller does something else;
    `result` hands out the oldest one's clips.

    definition: `clip_pipeline` or a graph of one's own. views, resolution: its arguments. device: where clips are wanted, and
    windows decoded. largest_run: samples of one run at most; memory grows with it: DALI opens all windows of a run at once, each
    with eight pictures of its own besides the U decoded ones. threads: samples that are decoded at the same time, each by a
    decoder session of its own.
    """

    def __init__(
        self,
        definition: Callable[..., Pipeline],
        *,
        views: int,
        resolution: int,
        device: torch.device,
        largest_run: int,
        threads: int,
    ) -> None:
        self.views, self.device = views, device
        on_gpu = device.type == "cuda"
        # The caller decides how far to run ahead: DALI queues runs without limit. A deeper queue of DALI's own would start
        # several runs at the first submit, without inputs for them.
        self._pipeline = definition(
            device="mixed" if on_gpu else "cpu",
            views=views,
            resolution=resolution,
            batch_size=largest_run,
            num_threads=threads,
            device_id=(device.index or 0) if on_gpu else None,
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
        """The clips of the oldest run, for each view uint8 (B, T, R, R, 3) on the device; waits for them.

        They are DALI's own memory, which stays theirs as long as a tensor refers to it, and on a GPU they are ordered after the
        work on PyTorch's current stream. Raises RuntimeError where a window of the run does not decode: then this pipeline,
        with all that is queued in it, has to be given up.
        """
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        outputs = self._pipeline.share_outputs(stream)
        clips = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        self._pipeline.release_outputs()
        return clips

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
            of_view = {
                "corner": np.array([(cut.top, cut.left) for cut in cuts], np.int32),
                "size": np.array([(cut.height, cut.width) for cut in cuts], np.int32),
                "order": np.stack([cut.order for cut in cuts]),
                "is_transposed": np.array([cut.is_transposed for cut in cuts]),
                "is_mirrored": np.array([cut.is_mirrored for cut in cuts], np.int32),
                "is_upended": np.array([cut.is_upended for cut in cuts], np.int32),
                "is_recolored": np.array([cut.colors is not None for cut in cuts]),
                "colors": np.stack(colors),
            }
            inputs.update({f"{name}_{view}": batch for name, batch in of_view.items()})
        for name in samples[0].inputs:
            inputs[name] = [np.asarray(sample.inputs[name]) for sample in samples]
        return inputs


# What the sources are fed that a sample does not use.
NOTHING, NO_RANK, IDENTITY = np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int32), np.eye(3, dtype=np.float32)
