"""DALI's graph makes the same pixels of a decoded frame as the CPU's resizer: "exact" to a rounding, "fast" nearly.

With TROCAR_TEST_VIDEOS the same is held on frames of surgical clips.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import clips
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")

from trocar.loaders.decode.dali_decoder import DecodingPipeline
from trocar.loaders.decode.dali_pipeline import Sample, clip_pipeline, color_correction, view_cut
from trocar.loaders.decode.resize import Resizer, resize_exactly
from trocar.loaders.draw.augment import Box, Crop, CropRecipe

pytestmark = pytest.mark.timeout(120)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROTATIONS = (0, 90, 180, 270)
BT709, UNSPECIFIED, BT2020 = 1, 2, 9
# How DALI converts on the CPU: FFmpeg's SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND.
ACCURATE = 0x2 | 0x2000 | 0x40000
Cut = tuple[Crop, int]


def scene(number: int, width: int, height: int) -> np.ndarray:
    """A picture with smooth areas and hard edges, in muted colours."""
    rows, columns = np.mgrid[:height, :width]
    light = 110 + 40 * np.sin((rows + 3 * number) / 9) * np.cos((columns - 2 * number) / 17)
    tints = [14 * np.sin((rows + columns) / (25 + 10 * channel)) for channel in range(3)]
    picture = light[:, :, None] + (30, 0, -10) + np.stack(tints, axis=-1)
    picture[height // 5 : height // 3, width // 4 : width // 2] += 40
    return picture.astype(np.uint8)


def hard_scene(number: int, width: int, height: int) -> np.ndarray:
    """Saturated patches, black and white beside each other, lines of one pixel; also along the edges of the picture."""
    generator = np.random.default_rng(number)
    patches = generator.choice([0, 0, 128, 255, 255], (height // 16 + 1, width // 16 + 1, 3)).astype(np.uint8)
    picture = patches.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].copy()
    picture[height // 4 : height // 2 : 2] = 255 - picture[height // 4 : height // 2 : 2]
    picture[:, width // 2 : 3 * width // 4 : 2] = (255, 0, 0)
    return picture


def write(path: Path, pictures: Sequence[np.ndarray], codec: str, pix_fmt: str, tag: str = "") -> list[VideoFrame]:
    """Encodes the pictures and returns what PyAV decodes of them. tag: the matrix that the stream is to name."""
    options = {"crf": "6", "b": "20M"} if "vpx" in codec else {}
    clips.write_pictures(
        path, pictures, codec=codec, pix_fmt=pix_fmt, options={**options, **({"colorspace": tag} if tag else {})}
    )
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def decoded_by_dali(
    path: Path, count: int, cuts: Sequence[Cut], size: tuple[int, int], resolution: int, tag: int, device: torch.device
) -> Iterator[tuple[Cut, np.ndarray]]:
    """Each cut of a video's first frames, (count, R, R, 3). size: width, height."""
    pipeline = DecodingPipeline(
        clip_pipeline, views=1, resolution=resolution, device=device, largest_run=len(cuts), threads=2
    )
    window, order = np.fromfile(path, np.uint8), np.arange(count, dtype=np.int32)
    views = [view_cut(crop, rotation, *size, order, color_correction(tag)) for crop, rotation in cuts]
    pipeline.submit([Sample([view], window=window, ranks=order) for view in views])
    yield from zip(cuts, pipeline.result()[0].cpu().numpy(), strict=True)


def random_cuts(count: int, width: int, height: int) -> list[Cut]:
    """From a twentieth of the picture to all of it, in every rotation, mirrored or not."""
    recipe, cuts = CropRecipe((0.05, 1), (3 / 4, 4 / 3), 0.5), []
    for draw in range(count):
        rotation = ROTATIONS[draw % 4]
        content = Box(0, 0, *((height, width) if rotation % 180 else (width, height)))
        cuts.append((recipe.crop(content, seed=3, draw=draw), rotation))
    assert {crop.flip for crop, _ in cuts} == {True, False}
    return cuts


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(int) - second.astype(int))


def is_cut_off(frame: VideoFrame, cut: Cut, resolution: int) -> np.ndarray:
    """(R, R): whether a pixel has a share of one that BT.601, which DALI takes for granted, holds at 0 or 255 (R, G or B)."""
    crop, rotation = cut
    colors, frame.colorspace = frame.colorspace, UNSPECIFIED
    upright = np.rot90(frame.to_ndarray(format="rgb24", interpolation=ACCURATE), rotation // 90)
    frame.colorspace = colors
    box = crop.box
    part = upright[box.top : box.top + box.height, box.left : box.left + box.width]
    held = np.where(np.isin(part, (0, 255)).any(axis=2, keepdims=True), 255, 0).astype(np.uint8).repeat(3, axis=2)
    # Of a lone pixel a resized one may hold less than half of 1 / 255; the neighbours are counted in for it.
    grown = np.maximum.reduce([np.roll(held, step, axis) for axis in (0, 1) for step in (-1, 0, 1)])
    resized = resize_exactly(grown, resolution)[:, :, 0] > 0
    return resized[:, ::-1] if crop.flip else resized


SCENES = [
    ("libvpx-vp9", "mp4", "yuv420p", 320, 240),
    ("libvpx-vp9", "mp4", "yuv420p", 319, 239),  # a width that is no multiple of 32 takes another way in DALI
    ("libvpx-vp9", "mp4", "yuv444p", 322, 180),
    ("libvpx", "webm", "yuv420p", 320, 240),
    ("mjpeg", "mp4", "yuvj420p", 320, 240),
    ("mjpeg", "mp4", "yuvj422p", 322, 180),
]


@pytest.mark.parametrize("resolution", [24, 56, 160])
@pytest.mark.parametrize(
    ("device", "codec", "suffix", "pix_fmt", "width", "height"),
    [(CPU, *scene) for scene in SCENES]
    + [pytest.param(CUDA, "libx264", "mp4", "yuv420p", 320, 240, marks=pytest.mark.gpu)],
)
def test_cut_as_the_cpu_loader_cuts(tmp_path, device, codec, suffix, pix_fmt, width, height, resolution):
    path = tmp_path / f"scene.{suffix}"
    frames = write(path, [scene(number, width, height) for number in range(2)], codec, pix_fmt)
    cuts, fast = random_cuts(24, width, height), []
    for cut, clip in decoded_by_dali(path, 2, cuts, (width, height), resolution, UNSPECIFIED, device):
        for picture, frame in zip(clip, frames, strict=True):
            exact = Resizer(*cut, resolution, "exact")(frame)
            # A GPU has a conversion to RGB of its own.
            assert difference(picture, exact).max() <= (1 if device == CPU else 8), cut
            fast.append(difference(picture, Resizer(*cut, resolution, "fast")(frame)))
    assert len(fast) == 2 * len(cuts)
    assert np.mean(fast) <= 1.5
    assert np.percentile(fast, 99) <= 8


@pytest.mark.parametrize("resolution", [24, 56, 160])
@pytest.mark.parametrize(("tag", "name"), [(UNSPECIFIED, ""), (BT709, "bt709"), (BT2020, "bt2020nc")])
def test_hard_edges_and_saturated_colours(tmp_path, tag, name, resolution):
    """With another matrix than BT.601's, all but what that cuts off: DALI hands out 8 bits, so it is lost."""
    width, height, path = 320, 240, tmp_path / "scene.mp4"
    frames = write(path, [hard_scene(number, width, height) for number in range(2)], "libvpx-vp9", "yuv420p", name)
    assert [frame.colorspace for frame in frames] == [tag] * 2
    kept, lost = [], []
    for cut, clip in decoded_by_dali(path, 2, random_cuts(24, width, height), (width, height), resolution, tag, CPU):
        for picture, frame in zip(clip, frames, strict=True):
            off = difference(picture, Resizer(*cut, resolution, "exact")(frame)).max(axis=2)
            cut_off = is_cut_off(frame, cut, resolution) if tag != UNSPECIFIED else np.zeros_like(off, bool)
            kept += off[~cut_off].tolist()
            lost += off[cut_off].tolist()
    print(
        f"\n{name or 'untagged'}, {resolution} px: at most {max(kept)}; where colours are cut off {max(lost, default=0)}"
    )
    assert len(kept) > 1000
    assert max(kept) <= (1 if tag == UNSPECIFIED else 2)
    assert max(lost, default=0) <= 32


def test_what_needs_no_correction():
    assert [color_correction(colorspace) for colorspace in (UNSPECIFIED, 5, 6)] == [None] * 3


@pytest.mark.skipif("TROCAR_TEST_VIDEOS" not in os.environ, reason="TROCAR_TEST_VIDEOS names no folder of real videos")
@pytest.mark.parametrize("videos", [3, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("tag", "name"), [(UNSPECIFIED, ""), (BT709, "bt709")])
def test_surgical_clips(tmp_path, videos, tag, name):
    kept, lost, fast, count = [0], [0], [], 0
    for number, source in enumerate(sorted(Path(os.environ["TROCAR_TEST_VIDEOS"]).glob("*.mp4"))[-(videos or 0) :]):
        with av.open(str(source)) as container:
            originals = [next(container.decode(video=0)) for _ in range(2)]
        for frame in originals:
            frame.colorspace = UNSPECIFIED if not name else BT709
        path = tmp_path / f"{number}.mp4"
        frames = write(path, [frame.to_ndarray(format="rgb24") for frame in originals], "libvpx-vp9", "yuv420p", name)
        size = (frames[0].width, frames[0].height)
        for cut, clip in decoded_by_dali(path, 2, random_cuts(8, *size), size, 224, tag, CPU):
            for picture, frame in zip(clip, frames, strict=True):
                off = difference(picture, Resizer(*cut, 224, "exact")(frame)).max(axis=2)
                cut_off = is_cut_off(frame, cut, 224) if name else np.zeros_like(off, bool)
                kept.append(int(off[~cut_off].max(initial=0)))
                lost.append(int(off[cut_off].max(initial=0)))
                count += int((off > 2).sum())
                fast.append(difference(picture, Resizer(*cut, 224, "fast")(frame)))
    share = count / len(fast) / 224**2
    print(
        f"\n{name or 'untagged'}, {len(fast)} pictures: exact at most {max(kept)}, where colours are cut off {max(lost)}"
    )
    print(f"above 2 in {share:.1e} of the pixels; fast {np.mean(fast):.2f}, 99 % within {np.percentile(fast, 99):g}")
    assert len(fast) >= 16
    assert max(kept) <= (2 if name else 1)
    assert max(np.mean(of_video) for of_video in np.array_split(np.array(fast), len(fast) // 16)) <= 1.5
    assert np.percentile(fast, 99) <= 8
