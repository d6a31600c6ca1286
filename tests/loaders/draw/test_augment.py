"""Crops: inside the picture, of the asked shape, pure, and what the resizer makes of them."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.error import FFmpegError
from av.filter import Graph

from trocar.loaders.decode.resize import Resizer, resize_exactly
from trocar.loaders.draw.augment import Box, Crop, CropRecipe


@pytest.mark.parametrize(
    "content", [Box(0, 0, 1920, 1080), Box(420, 0, 1080, 1080), Box(6, 8, 64, 48), Box(0, 0, 2000, 100)]
)
def test_crops_are_even_inside_and_of_the_asked_shape(content: Box) -> None:
    recipe = CropRecipe((0.3, 0.9), (0.75, 4 / 3), 0.5)
    crops = [recipe.crop(content, seed=1, draw=draw) for draw in range(500)]
    for crop in crops:
        box = crop.box
        assert not any(value % 2 for value in (box.left, box.top, box.width, box.height))
        assert content.left <= box.left
        assert content.top <= box.top
        assert box.left + box.width <= content.left + content.width
        assert box.top + box.height <= content.top + content.height
        assert 0.72 <= box.width / box.height <= 1.4
    assert 200 < sum(crop.flip for crop in crops) < 300
    if content.width < 1.5 * content.height:
        shares = [crop.box.width * crop.box.height / (content.width * content.height) for crop in crops]
        assert 0.27 < min(shares) < 0.35
        assert 0.75 < max(shares) < 0.9


def test_a_crop_belongs_to_its_draw() -> None:
    recipe, content = CropRecipe(), Box(0, 0, 640, 480)
    assert recipe.crop(content, seed=1, draw=5) == recipe.crop(content, seed=1, draw=5)
    assert recipe.crop(content, seed=1, draw=5) != recipe.crop(content, seed=1, draw=6)
    assert recipe.crop(content, seed=1, draw=5) != recipe.crop(content, seed=1, draw=5, view=1)
    assert recipe.crop(content, seed=1, draw=5) != recipe.crop(content, seed=2, draw=5)


def test_the_whole_centre() -> None:
    recipe = CropRecipe((1, 1), (1, 1), 0)
    assert recipe.crop(Box(0, 0, 640, 480), seed=0, draw=0) == Crop(Box(80, 0, 480, 480), False)


@pytest.mark.parametrize(
    "wrong", [dict(scale=(0, 1)), dict(scale=(0.5, 1.1)), dict(ratio=(2, 1)), dict(flip_probability=2)]
)
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        CropRecipe(**wrong)


def picture(rotation: int = 0) -> av.VideoFrame:
    """A gradient with a marked corner, stored so that turning it counter-clockwise by `rotation` sets it upright."""
    y, x = np.mgrid[0:120, 0:160]
    upright = np.stack([x, 2 * y, np.full_like(x, 128)], axis=-1).astype(np.uint8)
    upright[:40, :40] = 255
    stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90))
    frame = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format="yuv420p")
    frame.time_base = Fraction(1, 25)
    return frame


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [False, True])
def test_fast_and_exact_resize_agree(rotation: int, flip: bool) -> None:
    crop = Crop(Box(20, 10, 120, 100), flip)
    fast, exact = (Resizer(crop, rotation, 56, mode)(picture(rotation)).astype(int) for mode in ("fast", "exact"))
    upright = Resizer(crop, 0, 56, "exact")(picture()).astype(int)
    assert fast.shape == (56, 56, 3)
    assert np.abs(fast - exact).mean() < 2.5
    assert np.abs(exact - upright).mean() < 2
    assert np.abs(exact - upright[:, ::-1]).mean() > 10


@pytest.mark.parametrize("colorspace", [1, 2, 5, 7, 9])
def test_fast_is_neither_darker_nor_tinted(colorspace: int) -> None:
    """Whatever the matrix: BT.709, none named, BT.601, SMPTE 240M, BT.2020."""
    frame = picture()
    frame.colorspace = colorspace
    crop = Crop(Box(0, 0, 160, 120), False)
    fast, exact = (Resizer(crop, 0, 56, mode)(frame).astype(float) for mode in ("fast", "exact"))
    assert np.abs((fast - exact).mean(axis=(0, 1))).max() < 0.3


@pytest.mark.parametrize(("height", "width"), [(300, 200), (60, 64), (57, 400), (40, 30), (120, 2)])
def test_exact_repeats_the_edge(height: int, width: int) -> None:
    """Against the filter's definition in float64."""

    def weights(size: int) -> np.ndarray:
        scale = size / 56
        places = np.arange(-2 * size, 3 * size)
        distances = np.abs(places + 0.5 - (np.arange(56)[:, None] + 0.5) * scale) / max(scale, 1)
        triangle = np.maximum(0, 1 - distances)
        matrix = np.zeros((56, size))
        rows = np.arange(56)[:, None]
        np.add.at(matrix, (rows, places.clip(0, size - 1)), triangle / triangle.sum(axis=1, keepdims=True))
        return matrix

    before = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = np.einsum("rh,hwc,sw->rsc", weights(height), before.astype(float), weights(width))
    off = np.abs(resize_exactly(before, 56) - wanted)
    assert off.max() <= 1.5  # rounded between the axes and at the end, with weights of 16 bits


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj422p", "yuv444p"])
@pytest.mark.parametrize("flip", [False, True])
def test_fast_has_the_bits_of_scaling_and_one_accurate_conversion(pix_fmt: str, flip: bool) -> None:
    """By way of planes and mirrored by FFmpeg, for speed: the same as in one step to RGB and mirrored by NumPy."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=pix_fmt)
    for box, size in ((Box(0, 0, 160, 120), 57), (Box(20, 10, 64, 100), 224)):
        graph = Graph()
        source = f"video_size=160x120:pix_fmt={pix_fmt}:time_base=1/25"
        steps = [("buffer", f"{source}:colorspace={frame.colorspace}:range={frame.color_range}")]
        steps += [("crop", f"w={box.width}:h={box.height}:x={box.left}:y={box.top}")]
        steps += [("scale", f"w={size}:h={size}:flags=bilinear")]
        if pix_fmt != "yuv444p":
            steps += [("format", "pix_fmts=yuv422p"), ("scale", "flags=bilinear+accurate_rnd+full_chroma_int")]
        steps += [("format", "pix_fmts=rgb24")]
        graph.link_nodes(*(graph.add(*step) for step in steps), graph.add("buffersink")).configure()
        graph.vpush(frame)
        wanted = graph.vpull().to_ndarray()
        assert np.array_equal(Resizer(Crop(box, flip), 0, size)(frame), wanted[:, ::-1] if flip else wanted)


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "rgb24"])
def test_a_resizer_that_is_told_its_next_crop_has_the_bits_of_a_new_one(pix_fmt: str, rotation: int) -> None:
    """Smaller, larger, mirrored, and after one that cannot be."""
    generator = np.random.default_rng(0)
    frames = [
        av.VideoFrame.from_ndarray(
            generator.integers(0, 256, (120, width, 3), dtype=np.uint8), format="rgb24"
        ).reformat(format=pix_fmt)
        for width in (160, 140)
    ]
    kept, recipe = Resizer(Crop(Box(0, 0, 60, 60), False), rotation, 56), CropRecipe((0.1, 1), (0.5, 2), 0.5)
    for draw in range(12):
        frame = frames[draw // 2 % 2]
        width, height = (frame.height, frame.width) if rotation else (frame.width, frame.height)
        if draw == 7:
            kept.crop = Crop(Box(0, 0, 60, 400), False)
            with pytest.raises(FFmpegError):
                kept(frame)
        kept.crop = recipe.crop(Box(0, 0, width, height), seed=3, draw=draw)
        assert np.array_equal(kept(frame), Resizer(kept.crop, rotation, 56)(frame))


def test_resizer_follows_a_change_of_size() -> None:
    resizer = Resizer(Crop(Box(0, 0, 64, 64), False), 0, 32)
    assert resizer(picture()).shape == resizer(picture(90)).shape == (32, 32, 3)


def test_resizer_refuses_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="resize must be one of"):
        Resizer(Crop(Box(0, 0, 64, 64), False), 0, 32, "quick")  # pyright: ignore[reportArgumentType]
