"""Every codec and container round-trips the numbers of `clips`."""

from __future__ import annotations

import av
import clips
import numpy as np
import pytest
import torch

CASES = [
    ("a.mp4", {"codec": "libx264"}),
    ("a.mp4", {"codec": "libx264", "b_frames": 3}),
    ("a.mkv", {"codec": "libx264", "b_frames": 3, "open_gop": True}),
    ("a.mkv", {"codec": "libx264", "pix_fmt": "yuv420p10le"}),
    ("a.ts", {"codec": "libx264", "b_frames": 2}),
    ("a.mp4", {"codec": "libx265", "b_frames": 3}),
    ("a.mkv", {"codec": "libx265", "b_frames": 3, "open_gop": True}),
    ("a.webm", {"codec": "libvpx"}),
    ("a.webm", {"codec": "libvpx", "hidden_frames": True}),
    ("a.webm", {"codec": "libvpx-vp9"}),
    ("a.webm", {"codec": "libvpx-vp9", "hidden_frames": True}),
    ("a.avi", {"codec": "mpeg4"}),
    ("a.mp4", {"codec": "mpeg4", "b_frames": 2}),
    ("a.avi", {"codec": "mjpeg"}),
    ("a.mp4", {"codec": "libx264", "variable_rate": True}),
]


@pytest.mark.parametrize(("name", "encoding"), CASES, ids=lambda case: str(case))
def test_numbers_survive_coding(tmp_path, name, encoding):
    path = tmp_path / name
    clips.write_numbered(path, 40, video_id=173, first_number=300, gop=12, **encoding)
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [clips.read_number(picture) for picture in pictures] == [(173, number) for number in range(300, 340)]


def test_gops_are_as_asked(tmp_path):
    for codec, name in [
        ("libx264", "a.mp4"),
        ("libx265", "b.mp4"),
        ("libvpx-vp9", "c.webm"),
        ("libvpx", "d.webm"),
        ("mpeg4", "e.avi"),
    ]:
        clips.write_numbered(tmp_path / name, 30, codec=codec, gop=7)
        with av.open(str(tmp_path / name)) as container:
            keys = [i for i, packet in enumerate(p for p in container.demux(video=0) if p.size) if packet.is_keyframe]
        assert keys == [0, 7, 14, 21, 28], codec


@pytest.mark.parametrize("size", [64, 112, 224])
def test_numbers_survive_resizing_to_a_square(size):
    rng = np.random.default_rng(0)
    for number in [0, 65535, *rng.integers(0, 65536, 20)]:
        picture = torch.from_numpy(clips.number_picture(9, int(number), 160, 120)).permute(2, 0, 1)[None].float()
        small = torch.nn.functional.interpolate(picture, size=(size, size), mode="bilinear", antialias=True)
        assert clips.read_number(small[0].permute(1, 2, 0).byte().numpy()) == (9, number)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_reads_upright(tmp_path, rotation):
    clips.write_numbered(tmp_path / "a.mp4", 3, video_id=5, first_number=77, rotation=rotation)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation % 360 == rotation
    assert (frame.width, frame.height) == (128, 96)
    assert clips.read_number(np.rot90(frame.to_ndarray(format="rgb24"), rotation // 90)) == (5, 77)


def test_a_mixture_of_frames_is_refused():
    mixture = clips.number_picture(0, 1) // 2 + clips.number_picture(0, 2) // 2
    with pytest.raises(ValueError, match="neither dark nor light"):
        clips.read_number(mixture)
