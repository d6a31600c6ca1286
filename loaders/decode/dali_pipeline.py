"""The DALI graph, from encoded windows to clips, and what it is fed.

A *window* is a small video file in memory that holds what one sample needs of a long video. `clip_pipeline` is the graph that
ClipLoader runs; read it top to bottom. A graph of your own takes the same three arguments and is built from the same blocks:

    @pipeline_def(enable_conditionals=True)
    def with_hue(device: str, views: int, resolution: int) -> tuple[DataNode, ...]:
        video = decode_windows(device)
        hues = [view_input("hue", view, types.FLOAT, 0) for view in range(views)]
        return tuple(fn.hue(cut_view(video, view, resolution), hue=hues[view]) for view in range(views))

`fn.random` would make clips depend on what ran before. Such an operator takes an input of its own, as here, which ClipLoader feeds
from a pure function of the clip.

Shapes: B samples, U distinct frames of one sample (another number in each), H W pixels of a decoded picture; T frames and R x R
pixels of a clip.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..draw.augment import Box, Crop

try:
    # By name, as DALI's stubs refuse what its conditionals are written with: a node as a condition.
    dali: Any = importlib.import_module("nvidia.dali")
except ImportError as error:
    raise ImportError(
        "DALI is not installed: in a checkout, pip install '.[dali]', or '.[cuda12]' or '.[cuda13]' for GPUs; "
        "trocar.loaders.cpu does without it"
    ) from error
fn, types, pipeline_def = dali.fn, dali.types, dali.pipeline_def
DataNode: TypeAlias = Any


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
    corner, size = view_input("corner", view, types.INT32, 1), view_input("size", view, types.INT32, 1)
    # A region of interest inside `resize` would let the filter look beyond the crop.
    clip = fn.slice(video, corner, size, axes=(1, 2))
    is_recolored, colors = view_input("is_recolored", view, types.BOOL, 0), view_input("colors", view, types.FLOAT, 2)
    if is_recolored:  # before the filter, as it mixes what has been cut off at 0 and 255
        clip = fn.coord_transform(clip, M=colors, dtype=types.UINT8)
    clip = fn.resize(clip, size=(resolution, resolution), interp_type=types.INTERP_LINEAR, antialias=True)
    clip = fn.sequence_rearrange(clip, new_order=view_input("order", view, types.INT32, 1))
    is_transposed = view_input("is_transposed", view, types.BOOL, 0)
    if is_transposed:
        clip = fn.transpose(clip, perm=(0, 2, 1, 3), transpose_layout=False, output_layout="FHWC")
    is_mirrored, is_upended = (view_input(name, view, types.INT32, 0) for name in ("is_mirrored", "is_upended"))
    return fn.flip(clip, horizontal=is_mirrored, vertical=is_upended)


def view_input(name: str, view: int, dtype: Any, ndim: int) -> DataNode:
    """What every sample is fed for one view by this name, an array of `ndim` dimensions; see `ViewCut.inputs`."""
    return fn.external_source(name=f"{name}_{view}", dtype=dtype, ndim=ndim)


@dataclass(frozen=True)
class ViewCut:
    """What `cut_view` is fed for one sample, in pixels of the decoded picture, before rotation.

    top, left, height, width: the crop. order: (T,) which decoded frame each frame of the clip is, 0 .. U - 1. After resizing, the
    clip is transposed, then mirrored left to right, then upended. colors: (3, 3), what a pixel's RGB is multiplied by; None: as is.
    inputs: what else a graph of one's own is fed for this view, by name.
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
    inputs: Mapping[str, ArrayLike] = field(default_factory=dict)


def view_cut(
    crop: Crop,
    rotation: int,
    width: int,
    height: int,
    order: NDArray[np.int32],
    colors: NDArray[np.float32] | None = None,
    inputs: Mapping[str, ArrayLike] | None = None,
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
        inputs=inputs or {},
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
    """What the graph is fed for one sample: one cut for each view, and what they are cut from.

    window: (bytes,) uint8, and ranks: (U,) int32, ascending and distinct, the places of the frames to decode among those it shows.
    Or images: U of them, each a JPEG, (bytes,) uint8. Or pictures: (U, H, W, 3) uint8, decoded already. All C-contiguous.
    """

    views: Sequence[ViewCut]
    window: NDArray[np.uint8] | None = None
    ranks: NDArray[np.int32] | None = None
    pictures: NDArray[np.uint8] | None = None
    images: Sequence[NDArray[np.uint8]] | None = None

    @property
    def is_encoded(self) -> bool:
        """Whether it is still to be decoded."""
        return self.pictures is None
