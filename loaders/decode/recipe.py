"""How clips are made of draws, before anything is read: which video, which clip, which crop.

Shapes: V views, R x R pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

from numpy.typing import ArrayLike

from ..corpus.corpus import Video
from ..draw.augment import Box, Crop, Resize, with_square_pixels, with_stored_pixels
from ..draw.sampler import Clip
from ..video.video import GopTable, Kind, VideoFacts


class VideoSource(Protocol):
    """Videos by row, as a `Corpus` has them."""

    def __len__(self) -> int: ...
    def video_path(self, row: int) -> str: ...
    def video(self, row: int) -> Video: ...
    def gops(self, row: int) -> GopTable: ...


class ClipSource(Protocol):
    """Clips by draw, as a `Sampler` draws them. max_spares: how many replacements a draw has."""

    num_frames: int
    seed: int
    max_spares: int

    @property
    def num_videos(self) -> int: ...

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]: ...


class CropSource(Protocol):
    """Crops by draw and view, as a `CropRecipe` draws them."""

    def crop(self, content: Box, *, seed: int, draw: int, view: int = 0) -> Crop: ...


def check_side(resolution: object) -> None:
    """Raises ValueError where `resolution` is not one number of pixels."""
    if not isinstance(resolution, Integral) or resolution < 1:
        raise ValueError(f"resolution must be one positive number of pixels, as clips are square; got {resolution!r}")


@dataclass(frozen=True)
class Recipe:
    """How a loader makes clips of draws. resolution: R. content_box: crop inside the black border. square_pixels: crops are drawn
    on the picture as players show it, whatever the aspect of its pixels. planes: leave what a crop needs of the decoded planes in
    the clip's memory, where that has room for it, for `kernels/yuv_clips.py`; not of videos of the kinds in rgb_kinds."""

    videos: VideoSource
    sampler: ClipSource
    crops: CropSource
    resolution: int
    resize: Resize = "fast"
    content_box: bool = True
    square_pixels: bool = True
    planes: bool = False
    rgb_kinds: frozenset[Kind] = frozenset()

    def __post_init__(self) -> None:
        check_side(self.resolution)

    def clips(self, draw: int, views: tuple[int, ...], spare: int) -> list[Clip]:
        """The clips of some views of a draw, or of its replacement `spare`; all of one video."""
        return [self.sampler.clips([draw], view=view, spare=spare)[0] for view in views]

    def crop(self, clip: Clip, video: VideoFacts) -> Crop:
        """The clip's crop, in pixels of the picture turned by `video.rotation` and not mirrored."""
        cut = self.content_box, self.square_pixels
        crop = upright_crop(self.crops, video, *cut, seed=self.sampler.seed, draw=clip.draw, view=clip.view)
        return crop.unmirrored(video.upright_size[0]) if video.mirrored else crop


def upright_crop(
    crops: CropSource, video: VideoFacts, content_box: bool, square_pixels: bool, *, seed: int, draw: int, view: int
) -> Crop:
    """The crop of the clip with this draw and view, in pixels of the picture as it is shown: turned and mirrored."""
    content = Box(video.box_left, video.box_top, video.box_width, video.box_height)
    if not content_box:
        content = Box(0, 0, *video.upright_size)
    aspect = video.pixel_aspect if square_pixels else 1.0
    shown = content if aspect == 1 else with_square_pixels(content, aspect)
    crop = crops.crop(shown, seed=seed, draw=draw, view=view)
    return crop if aspect == 1 else Crop(with_stored_pixels(crop.box, content, aspect), crop.flip)
