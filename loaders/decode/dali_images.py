"""Windows of Motion JPEG, whose frames are JPEGs each, through DALI's image decoder: hardware engines of A100 and later on a GPU.

`image_pipeline` is the graph; its samples are single frames, as DALI's image decoder takes one image a sample. `MixedPipeline` lets
it run beside the graph of windows, so that the rest of the loader does not know.

Shapes: B samples of a run, U distinct frames of one sample, I frames of all samples of a run; T frames, R x R pixels of a clip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..video.window import Window
from .dali_decoder import Clips, DecodingPipeline
from .dali_pipeline import LUMA_WEIGHTS, DataNode, Sample, ViewCut, fn, pipeline_def, types, view_input

# Full range and BT.601's matrix, as JPEG has it.
PIX_FMTS = ("yuvj420p", "yuvj422p", "yuvj444p")
START, END = b"\xff\xd8", b"\xff\xd9"
SEQUENTIAL, HUFFMAN_TABLES, SCAN = (0xC0, 0xC1), 0xC4, 0xDA


def jpegs_of(window: Window) -> list[NDArray[np.uint8]] | None:
    """The wanted frames as whole JPEGs, U of them; None where they are not such, or not coloured as JPEG has it.

    Cameras leave tables out that every decoder of Motion JPEG knows, and put two fields into a packet.
    """
    video = window.video
    if video.codec != "mjpeg" or video.pix_fmt not in PIX_FMTS or video.colorspace in LUMA_WEIGHTS:
        return None
    images = [np.frombuffer(window.payloads[packet], np.uint8) for packet in window.packet_of.tolist()]
    size = (video.width, video.height)
    return images if all(_size_of_jpeg(bytes(image)) == size for image in images) else None


def _size_of_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a whole sequential JPEG of three components that has its tables with it (ITU-T T.81, annex B)."""
    size, has_tables, place = None, False, 2
    if data[:2] != START or data[-2:] != END:
        return None
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != SCAN:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        has_tables |= marker == HUFFMAN_TABLES
        if marker in SEQUENTIAL and data[place + 9] == 3:
            size = (
                int.from_bytes(data[place + 7 : place + 9], "big"),
                int.from_bytes(data[place + 5 : place + 7], "big"),
            )
        place += 2 + length
    return size if has_tables else None


@pipeline_def(enable_conditionals=True)
def image_pipeline(device: str, views: int, resolution: int) -> tuple[DataNode, ...]:
    """One output per view, uint8 (I, R, R, 3), RGB. device, resolution: as `clip_pipeline` has them."""
    encoded = fn.external_source(name="image", dtype=types.UINT8, ndim=1, no_copy=True)
    # Chroma as the CPU scales it up; a picture stands as the container says, whatever a camera wrote into it.
    picture = fn.decoders.image(
        encoded,
        device=device,
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,
        adjust_orientation=False,
        affine=False,
    )
    return tuple(_cut(picture, view, resolution) for view in range(views))


def _cut(picture: DataNode, view: int, resolution: int) -> DataNode:
    corner, size = view_input("corner", view, types.INT32, 1), view_input("size", view, types.INT32, 1)
    picture = fn.slice(picture, corner, size, axes=(0, 1))
    picture = fn.resize(picture, size=(resolution, resolution), interp_type=types.INTERP_LINEAR, antialias=True)
    is_transposed = view_input("is_transposed", view, types.BOOL, 0)
    if is_transposed:
        picture = fn.transpose(picture, perm=(1, 0, 2), transpose_layout=False, output_layout="HWC")
    is_mirrored, is_upended = (view_input(name, view, types.INT32, 0) for name in ("is_mirrored", "is_upended"))
    return fn.flip(picture, horizontal=is_mirrored, vertical=is_upended)


class ImagePipeline(DecodingPipeline):
    """A built `image_pipeline`, for samples of images; largest_run: of frames."""

    def __init__(self, **how: object) -> None:
        super().__init__(image_pipeline, **how)  # pyright: ignore[reportArgumentType]: as `DecodingPipeline` has them
        self._orders: deque[list[torch.Tensor]] = deque()

    def submit(self, samples: Sequence[Sample]) -> None:
        firsts = np.cumsum([0, *(len(sample.images or ()) for sample in samples)])
        orders = [
            np.stack([first + sample.views[view].order for first, sample in zip(firsts, samples, strict=False)])
            for view in range(self.views)
        ]
        self._orders.append([torch.from_numpy(order).long() for order in orders])
        super().submit(samples)

    def result(self) -> Clips:
        frames, orders = super().result(), self._orders.popleft()
        with torch.cuda.stream(self.stream):  # in whose order DALI frees what is read here
            return [_in_order(of_view, order) for of_view, order in zip(frames, orders, strict=True)]

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, object]:
        inputs: dict[str, object] = {"image": [image for sample in samples for image in sample.images or ()]}
        for view in range(self.views):
            cuts = [sample.views[view] for sample in samples for _ in sample.images or ()]
            inputs |= {f"{name}_{view}": values for name, values in _fed(cuts).items()}
        return inputs


def _fed(cuts: Sequence[ViewCut]) -> dict[str, object]:
    return {
        "corner": np.array([(cut.top, cut.left) for cut in cuts], np.int32),
        "size": np.array([(cut.height, cut.width) for cut in cuts], np.int32),
        "is_transposed": np.array([cut.is_transposed for cut in cuts]),
        "is_mirrored": np.array([cut.is_mirrored for cut in cuts], np.int32),
        "is_upended": np.array([cut.is_upended for cut in cuts], np.int32),
    }


def _in_order(frames: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """(I, R, R, 3) to clips (B, T, R, R, 3); order: (B, T). Where every frame is shown once, in order, nothing is copied."""
    if torch.equal(order.flatten(), torch.arange(len(frames))):
        return frames.unflatten(0, order.shape)
    return frames[order.to(frames.device)]


class MixedPipeline:
    """Samples of images go through a graph of their own, built when the first one comes, all others through `windows`.

    build_images: makes an `ImagePipeline`.
    """

    def __init__(self, windows: DecodingPipeline, build_images: Callable[[], DecodingPipeline]) -> None:
        self._windows, self._build_images = windows, build_images
        self._images: DecodingPipeline | None = None
        # Of every run, the places of its samples in the one graph and in the other.
        self._runs: deque[tuple[list[int], list[int]]] = deque()

    def submit(self, samples: Sequence[Sample]) -> None:
        images = [place for place, sample in enumerate(samples) if sample.images is not None]
        others = [place for place, sample in enumerate(samples) if sample.images is None]
        if images:
            self._images = self._images or self._build_images()
            self._images.submit([samples[place] for place in images])
        if others:
            self._windows.submit([samples[place] for place in others])
        self._runs.append((images, others))

    def result(self) -> Clips:
        images, others = self._runs.popleft()
        parts = [self._images.result()] if images and self._images else []
        parts += [self._windows.result()] if others else []
        if len(parts) == 1:
            return parts[0]
        back = torch.from_numpy(np.argsort([*images, *others]))
        with torch.cuda.stream(self._windows.stream):
            return [torch.cat(views)[back.to(views[0].device)] for views in zip(*parts, strict=True)]

    def close(self) -> None:
        for pipeline in (self._windows, self._images):
            if pipeline is not None:
                pipeline.close()
