"""yuv_clip: the kernel against a float64 oracle, and against the CPU loader's exact resize of the same decoded pictures."""

# Argument tuples are unpacked into calls here: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from kernel_checks import nan_memory, only_program
from yuv_planes import Planes, planes

from trocar.kernels import launch
from trocar.kernels.yuv_clip import _yuv_clip, yuv_clip, yuv_clip_reference, yuv_clip_values
from trocar.kernels.yuv_geometry import LUMA_SHARES
from trocar.loaders.decode.resize import Resizer
from trocar.loaders.draw.augment import Box, Crop

COLORSPACES = {"bt709": 1, "bt601": 5, "smpte240": 7, "bt2020": 9}  # FFmpeg's AVColorSpace


def oracle(parts: Planes, *arguments: Any) -> torch.Tensor:
    return yuv_clip_values(*(part.cpu() for part in parts), *arguments, torch.float64)


@pytest.mark.parametrize(
    ("size", "box", "resolution", "matrix", "full_range", "rotation", "flip", "options"),
    [
        ((2, 22, 26), (4, 2, 20, 15), 7, "bt709", False, 0, False, {}),
        ((1, 20, 24), (0, 0, 24, 20), 8, "bt601", True, 0, True, {"nv12": True}),
        ((1, 21, 31), (3, 1, 17, 29), 7, "bt2020", False, 90, False, {"nv12": True}),  # odd sides, and an odd crop
        ((1, 20, 24), (1, 2, 21, 17), 34, "bt709", True, 180, True, {}),  # larger than the crop, more than one tile
        ((1, 26, 20), (2, 1, 22, 18), 8, "smpte240", False, 270, True, {"nv12": True, "bits": 10}),
        ((1, 18, 16), (0, 0, 16, 18), 8, "bt2020", True, 0, False, {"bits": 10}),
        ((1, 5, 3), (1, 0, 4, 2), 1, "bt601", False, 90, True, {}),
    ],
)
def test_against_the_oracle(size, box, resolution, matrix, full_range, rotation, flip, options, kernels) -> None:
    parts = planes(*size, kernels, **options)
    settings = {"matrix": matrix, "full_range": full_range, "rotation": rotation, "flip": flip}
    wanted = oracle(parts, box, resolution, matrix, full_range, rotation, flip)
    with nan_memory():
        clip = yuv_clip(*parts, box, resolution, **settings)
    assert (clip.shape, clip.dtype) == ((size[0], resolution, resolution, 3), torch.uint8)
    arguments = (box, resolution, matrix, full_range, rotation, flip)
    reference = yuv_clip_reference(*(part.cpu() for part in parts), *arguments)
    for found in (clip.cpu(), reference):
        assert (found.double() - wanted).abs().max() <= 0.5 + 2e-3  # rounded once


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [False, True])
def test_turned_and_mirrored_as_told(rotation: int, flip: bool, kernels: torch.device) -> None:
    """At the size of the crop nothing is filtered: the very pixels."""
    parts = planes(1, 14, 20, kernels)
    pixels = yuv_clip_values(*(part.cpu() for part in parts), (4, 2, 8, 8), 8, "bt709", True, 0, False, torch.float64)
    turned = torch.rot90(pixels, rotation // 90, (1, 2))
    turned = turned.flip(2) if flip else turned
    box = {0: (4, 2, 8, 8), 90: (2, 8, 8, 8), 180: (8, 4, 8, 8), 270: (4, 4, 8, 8)}[rotation]
    clip = yuv_clip(*parts, box, 8, matrix="bt709", full_range=True, rotation=rotation, flip=flip)
    assert (clip.cpu().double() - turned).abs().max() <= 0.5 + 1e-3


def frame(parts: Planes, pix_fmt: str, colorspace: int, full_range: bool) -> VideoFrame:
    made = VideoFrame(parts[0].shape[2], parts[0].shape[1], pix_fmt)
    for plane, part in zip(made.planes, parts, strict=True):
        values = part[0].numpy() if pix_fmt == "yuv420p" else part[0].numpy() >> 6
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width * values.itemsize] = values.view(np.uint8).reshape(plane.height, -1)
        plane.update(rows.tobytes())
    made.colorspace, made.color_range = colorspace, 2 if full_range else 1
    return made


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", LUMA_SHARES)
def test_at_most_one_of_255_from_the_exact_resize(matrix: str, full_range: bool, bits: int) -> None:
    """The reference, which the kernel agrees with: over crops, sizes, turns and flips."""
    parts = planes(1, 90, 134, torch.device("cpu"), bits=bits)
    # swscale overflows beyond what colours can have; a video's samples stay within them but for noise.
    picture = frame(parts, "yuv420p" if bits == 8 else "yuv420p10le", COLORSPACES[matrix], full_range)
    for rotation, box, resolution in [
        (0, Box(0, 0, 134, 90), 32),
        (90, Box(10, 20, 64, 100), 48),
        (180, Box(34, 6, 80, 60), 96),
        (270, Box(0, 0, 90, 134), 20),
        (0, Box(2, 4, 60, 60), 60),
    ]:
        for flip in (False, True):
            exact = Resizer(Crop(box, flip), rotation, resolution, "exact")(picture)
            cut = (box.left, box.top, box.width, box.height)
            clip = yuv_clip(*parts, cut, resolution, matrix=matrix, full_range=full_range, rotation=rotation, flip=flip)
            difference = np.abs(clip[0].numpy().astype(int) - exact)
            assert difference.max() <= 1, (rotation, box, flip)
            assert difference.mean() < 0.35


def test_a_decoded_picture_as_the_exact_resize_has_it(tmp_path, kernels: torch.device) -> None:
    """Kernel against the CPU loader's cut, on what a decoder returns."""
    path = tmp_path / "a.mp4"
    rows, columns = np.mgrid[:32, :48]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=48, height=32, pix_fmt="yuv420p")
        for number in range(2):
            waves = [np.sin((rows + 3 * number) / 9 + part) + np.cos(columns / 11) for part in range(3)]
            picture = (120 + 50 * np.stack(waves, axis=-1)).astype(np.uint8)
            for packet in stream.encode(VideoFrame.from_ndarray(picture)):
                container.mux(packet)
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    found = [
        torch.stack(
            [torch.from_numpy(np.frombuffer(picture.planes[index], np.uint8).copy()) for picture in decoded]
        ).reshape(2, decoded[0].planes[index].height, -1)[:, :, : decoded[0].planes[index].width]
        for index in range(3)
    ]
    parts = [part.contiguous().to(kernels) for part in found]
    clip = yuv_clip(*parts, (8, 2, 36, 28), 8, flip=True)
    resizer = Resizer(Crop(Box(8, 2, 36, 28), True), 0, 8, "exact")
    exact = np.stack([resizer(picture) for picture in decoded])
    assert np.abs(clip.cpu().numpy().astype(int) - exact).max() <= 1


def test_reads_the_crop_alone(kernels: torch.device) -> None:
    parts = planes(1, 40, 40, kernels)
    expected = yuv_clip(*parts, (10, 12, 16, 14), 4)
    other = [part.clone() for part in parts]
    for part, near in zip(other, (0, 1, 1), strict=True):  # chroma one sample further
        size, step = part.shape[1], 2 if near else 1
        for first, stop, axis in ((12, 26, 1), (10, 26, 2)):
            keep = torch.zeros(size, dtype=torch.bool)
            keep[first // step - near : (stop - 1) // step + 1 + near] = True
            part.index_fill_(axis, (~keep).nonzero()[:, 0].to(kernels), 255)
    assert torch.equal(yuv_clip(*other, (10, 12, 16, 14), 4), expected)


@pytest.mark.interpreter
def test_offsets_are_64_bit(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that lie far apart, in memory that is touched where they are alone; the last of very many pictures."""
    luma, blue, red = planes(2, 8, 8, kernels)
    expected = yuv_clip(luma, blue, red, (0, 0, 8, 8), 4)
    apart = 2**31 + 64
    memory = torch.empty(apart + 192, dtype=torch.uint8)
    far = [
        memory.as_strided(part.shape, (apart, *part.stride()[1:]), 64 * number)
        for number, part in enumerate((luma, blue, red))
    ]
    for there, here in zip(far, (luma, blue, red), strict=True):
        there.copy_(here)
    assert torch.equal(yuv_clip(*far, (0, 0, 8, 8), 4), expected)
    many = 2**31 // 48 + 2
    launches = []
    with monkeypatch.context() as patch:
        patch.setattr(launch, "record", lambda *call: launches.append(call))
        yuv_clip(*(part[:1].expand(many, -1, -1) for part in (luma, blue, red)), (0, 0, 8, 8), 4)
    ((kernel, arguments, options),) = launches
    with only_program(many - 1, monkeypatch):
        launch.launch(kernel, (1,), *arguments, **options)
    assert torch.equal(arguments[3][-1], expected[0])


def test_refuses_what_it_cannot_read(kernels: torch.device) -> None:
    luma, blue, red = planes(1, 8, 12, kernels)
    for arguments, settings, words in [
        ((luma.float(), blue, red, (0, 0, 8, 8), 4), {}, "luma must be uint8"),
        ((luma, blue[:, :3], red, (0, 0, 8, 8), 4), {}, "blue must have the shape"),
        ((luma, blue, red.mT.contiguous().mT, (0, 0, 8, 8), 4), {}, "laid out alike"),
        ((luma, blue, red, (6, 0, 8, 8), 4), {}, "does not lie within an upright picture of 12 x 8"),
        ((luma, blue, red, (0, 0, 12, 8), 4), {"rotation": 90}, "does not lie within an upright picture of 8 x 12"),
        ((luma, blue, red, (0, 0, 8, 8), 4), {"rotation": 45}, "rotation 0, 90"),
        ((luma, blue, red, (0, 0, 8, 8), 4), {"matrix": "rgb"}, "matrix must be one of bt601"),
        ((luma, blue, red, (0, 0, 8, 8), 0), {}, "resolution at least 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            yuv_clip(*arguments, **settings)


def test_opcheck(kernels: torch.device) -> None:
    parts = planes(1, 4, 6, kernels, nv12=True)
    arguments = (*parts, [0, 0, 4, 4], 2, "bt709", False, 0, True)
    torch.library.opcheck(_yuv_clip, arguments, test_utils=("test_schema", "test_faketensor"))
