"""yuv_clips: clips of a batch that lie as planes of their crops, against a float64 oracle of the whole pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_checks import nan_memory
from yuv_planes import planes

from trocar.kernels.yuv_clip import yuv_clip_values
from trocar.kernels.yuv_clips import _yuv_clips, yuv_clips, yuv_clips_reference
from trocar.kernels.yuv_geometry import Window, cut_numbers, region, region_bytes

Cut = tuple[tuple[int, int], Window, str, bool, int, bool]
# Height and width of the picture, the crop, the colours, turned, mirrored.
CUTS: list[Cut] = [
    ((40, 60), (6, 4, 20, 22), "bt709", False, 0, False),
    ((21, 31), (3, 1, 17, 27), "bt601", True, 90, False),  # odd sides
    ((26, 20), (2, 3, 15, 18), "smpte240", False, 180, True),
    ((18, 24), (0, 0, 18, 24), "bt2020", True, 270, True),  # the whole of it
    ((50, 70), (31, 9, 6, 5), "bt601", False, 0, True),  # smaller than the clip
    ((20, 80), (2, 2, 66, 8), "bt709", False, 0, False),  # more columns to one of the clip than of the others
]


def slots(cuts: list[Cut], resolution: int, pictures: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list]:
    """(slots, cuts, factors, what float64 makes of the whole pictures): clips as planes, and a last one that is RGB already."""
    generator = torch.Generator().manual_seed(0)
    memory = torch.randint(0, 256, (len(cuts) + 1, pictures, resolution, resolution, 3), generator=generator)
    memory = memory.to(torch.uint8)
    integers, floats, wanted = [], [], []
    for row, (size, box, matrix, full_range, rotation, flip) in enumerate(cuts):
        parts = planes(pictures, *size, torch.device("cpu"))
        kept, inside = region(box, rotation, *size)
        left, top, width, height = kept
        for picture in range(pictures):
            values = [part[picture].numpy() for part in parts]
            of_chroma = np.s_[top // 2 : (top + height + 1) // 2, left // 2 : (left + width + 1) // 2]
            cut = [values[0][top : top + height, left : left + width], values[1][of_chroma], values[2][of_chroma]]
            packed = torch.from_numpy(np.concatenate([part.ravel() for part in cut]))
            assert len(packed) == region_bytes(width, height)
            memory[row].view(-1)[picture * len(packed) :][: len(packed)] = packed
        whole, factors = cut_numbers(kept, inside, resolution, matrix, full_range, rotation, flip)
        integers.append([row, *whole[1:]])
        floats.append(factors)
        wanted.append(yuv_clip_values(*parts, box, resolution, matrix, full_range, rotation, flip, dtype=torch.float64))
    return memory, torch.tensor(integers, dtype=torch.int32), torch.tensor(floats), wanted


@pytest.mark.parametrize("resolution", [24, pytest.param(35, marks=pytest.mark.slow)])
def test_as_of_whole_pictures(resolution: int, kernels: torch.device) -> None:
    memory, cuts, factors, wanted = slots(CUTS, resolution)
    with nan_memory():
        clips = yuv_clips(memory.to(kernels), cuts, factors).cpu()
    for found in (clips, yuv_clips_reference(memory, cuts, factors)):
        for row, values in enumerate(wanted):
            assert (found[row].double() - values).abs().max() <= 0.5 + 2e-3, CUTS[row]  # rounded once
        assert torch.equal(found[-1], memory[-1]), "a clip that is RGB already"


def test_in_any_order_and_all_of_them(kernels: torch.device) -> None:
    memory, cuts, factors, _ = slots(CUTS, 24, pictures=1)
    expected = yuv_clips_reference(memory, cuts, factors)
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    with nan_memory():
        clips = yuv_clips(memory[:-1].to(kernels), cuts[order], factors[order]).cpu()
    assert (clips.int() - expected[:-1].int()).abs().max() <= 1
    few = yuv_clips(memory.to(kernels), cuts[2:3], factors[2:3]).cpu()
    assert torch.equal(few[[0, 1, 3, 4, 5, 6]], memory[[0, 1, 3, 4, 5, 6]])
    assert torch.equal(few[2], clips[2])
    assert yuv_clips(memory, cuts[:0], factors[:0]) is memory


def test_a_region_is_the_least_that_a_crop_needs() -> None:
    """On whole chroma samples, with one more where interpolation reaches for it."""
    assert region((6, 4, 20, 22), 0, 40, 60) == ((4, 2, 24, 26), (2, 2, 20, 22))
    assert region((0, 0, 7, 40), 0, 40, 60) == ((0, 0, 10, 40), (0, 0, 7, 40))
    assert region((1, 3, 2, 2), 90, 21, 31) == ((24, 0, 6, 6), (2, 1, 2, 2))
    assert region((0, 0, 31, 21), 0, 21, 31) == ((0, 0, 31, 21), (0, 0, 31, 21))


def test_refuses_what_it_cannot_make(kernels: torch.device) -> None:
    memory, cuts, factors, _ = slots(CUTS[:2], 24)
    with pytest.raises(ValueError, match=r"planes of 1\d\d\d bytes a picture do not fit into 192"):
        yuv_clips(memory[:, :, :8, :8].contiguous().to(kernels), cuts, factors)
    for rows in ([0, 0], [0, 3], [-1, 0]):
        other = cuts.clone()
        other[:, 0] = torch.tensor(rows)
        with pytest.raises(ValueError, match="are not different ones below 3"):
            yuv_clips(memory.to(kernels), other, factors)
    with pytest.raises(ValueError, match="factors must have the shape"):
        yuv_clips(memory.to(kernels), cuts, factors[:, :5].contiguous())
    with pytest.raises(ValueError, match="slots must be uint8"):
        yuv_clips(memory.float().to(kernels), cuts, factors)


def test_opcheck(kernels: torch.device) -> None:
    memory, cuts, factors, _ = slots(CUTS[:1], 24, pictures=1)
    arguments = (memory.to(kernels), cuts.to(kernels), factors.to(kernels), 4)
    torch.library.opcheck(_yuv_clips, arguments, test_utils=("test_schema", "test_faketensor"))
