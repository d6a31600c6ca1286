"""Every frame of a proxy is the frame it stands for, whatever the original is like, and a proxy that is not is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest
from av.video.frame import VideoFrame

from trocar.loaders.pack import proxy as proxy_module
from trocar.loaders.pack.proxy import Proxy, display_times, write_proxy
from trocar.loaders.pack.proxy_check import thumbnail
from trocar.loaders.pack.proxy_encoder import ProxyEncoder
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video import sequence
from trocar.loaders.video.decode import DecodeCount
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.sequence import read_frames
from trocar.loaders.video.video import VideoError

STRIDE, GOP = 3, 4
SMALL = PackSettings(short_side=64, stride=STRIDE, gop=GOP)
# name, frames, encoding
ORIGINALS: list[tuple[str, int, dict[str, Any]]] = [
    ("open_gop.mp4", 50, {"gop": 12, "b_frames": 3, "open_gop": True}),
    ("hevc.mkv", 50, {"codec": "libx265", "gop": 12, "b_frames": 3, "open_gop": True}),
    ("one_keyframe.mp4", 50, {"gop": 250, "b_frames": 2}),
    ("vp9.webm", 50, {"codec": "libvpx-vp9", "gop": 12, "hidden_frames": True}),
    ("vp8.webm", 50, {"codec": "libvpx", "gop": 12, "hidden_frames": True}),
    ("mpeg4.avi", 50, {"codec": "mpeg4", "gop": 12}),
    ("mjpeg.avi", 50, {"codec": "mjpeg", "gop": 1}),
    ("stream.ts", 50, {"gop": 12, "b_frames": 2}),
    ("hidden_start.mp4", 50, {"gop": 12, "b_frames": 2, "first_tick": -7}),
    ("turned.mp4", 50, {"gop": 12, "rotation": 90}),
    ("turned_around.mp4", 50, {"gop": 12, "rotation": 180}),
    ("variable.mkv", 50, {"gop": 12, "b_frames": 2, "variable_rate": True}),
    ("ten_bit.mkv", 50, {"gop": 12, "pix_fmt": "yuv420p10le"}),
    ("422.mkv", 50, {"gop": 12, "pix_fmt": "yuv422p"}),
    ("444.mkv", 50, {"gop": 12, "pix_fmt": "yuv444p", "width": 130, "height": 98}),
    ("odd_rate.mp4", 50, {"gop": 12, "fps": Fraction(30000, 1001)}),
    ("two.mp4", 4, {"gop": 12}),
]


def pack(path: Path, settings: PackSettings = SMALL, **probing: Any) -> tuple[Path, Proxy]:
    video, gops = probe_video(path, **probing)
    target = path.parent / "packed" / f"{path.name}.mp4"
    return target, write_proxy(video, gops, target, settings)


def decoded(path: Path) -> list[VideoFrame]:
    """As any player does it, without an index."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize(("name", "frames", "encoding"), ORIGINALS, ids=[name for name, *_ in ORIGINALS])
def test_every_frame_is_the_right_one(name: str, frames: int, encoding: dict[str, Any], tmp_path: Path) -> None:
    first = 500 + min(0, encoding.get("first_tick", 0))
    clips.write_numbered(tmp_path / name, frames, video_id=9, first_number=first, **encoding)
    target, proxy = pack(tmp_path / name)
    video, _ = probe_video(tmp_path / name)
    kept = decoded(target)
    assert [clips.read_number(frame.to_ndarray(format="rgb24")) for frame in kept] == [
        (9, 500 + number) for number in range(0, video.frames, STRIDE)
    ]
    assert proxy.frames == len(kept) == -(-video.frames // STRIDE)
    assert min(proxy.width, proxy.height) == 64
    assert proxy.width % 16 == proxy.height % 16 == 0
    width, height = video.upright_size
    assert (proxy.size_bytes, proxy.damage) == (target.stat().st_size, "")
    facts, gops = probe_video(target, content_box=False)
    assert proxy.width * facts.pixel_aspect / proxy.height == pytest.approx(width / height, rel=0.01)
    assert gops.first_frame.tolist() == list(range(0, len(kept), GOP))
    assert gops.idr.all()
    assert (facts.reorder_depth, facts.rotation, facts.pix_fmt, facts.health) == (0, 0, "yuv420p", "ok")
    assert facts.variable_rate == bool(encoding.get("variable_rate"))
    # Times are the original's; where these are even, so are the proxy's.
    originals = [float((frame.pts or 0) * (frame.time_base or 0)) for frame in decoded(tmp_path / name)][
        -video.frames :
    ]
    times = np.array([float((frame.pts or 0) * (frame.time_base or 0)) for frame in kept])
    assert times == pytest.approx(np.array(originals[::STRIDE]) - originals[0], abs=0.0011)
    if not facts.variable_rate:
        assert Fraction(facts.fps_numerator, facts.fps_denominator) == Fraction(encoding.get("fps", 25)) / STRIDE
    assert [path.name for path in target.parent.iterdir()] == [target.name]


FAST = (("h264", 8), ("hevc", 8), ("vp9", 8), ("mjpeg", 1))


@pytest.mark.parametrize(
    ("codec", "gop"),
    [
        (codec, gop) if (codec, gop) in FAST else pytest.param(codec, gop, marks=pytest.mark.slow)
        for codec in ("h264", "hevc", "vp9", "mjpeg")
        for gop in (1, 3, 8)
    ],
)
def test_every_codec(codec: Any, gop: int, tmp_path: Path) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 24, video_id=3, gop=12)
    target, _ = pack(tmp_path / "a.mp4", PackSettings(short_side=96, stride=1, gop=gop, codec=codec))
    kept = decoded(target)
    assert [clips.read_number(frame.to_ndarray(format="rgb24")) for frame in kept] == [
        (3, number) for number in range(24)
    ]
    facts, gops = probe_video(target, content_box=False)
    assert facts.codec == codec
    assert gops.first_frame.tolist() == list(range(0, 24, 1 if codec == "mjpeg" else gop))
    assert (kept[0].width, kept[0].height) == (128, 96)


def test_the_black_border_goes(tmp_path: Path) -> None:
    def bordered(number: int) -> np.ndarray:
        picture = np.zeros((192, 256, 3), np.uint8)
        picture[32:160, 64:192] = clips.number_picture(7, number, 128, 128)
        return picture

    clips.write_pictures(tmp_path / "a.mp4", [bordered(number) for number in range(30)], gop=12)
    target, proxy = pack(tmp_path / "a.mp4")
    assert (proxy.width, proxy.height) == (64, 64)
    numbers = [clips.read_number(frame.to_ndarray(format="rgb24")) for frame in decoded(target)]
    assert numbers == [(7, number) for number in range(0, 30, STRIDE)]
    _, whole = pack(tmp_path / "a.mp4", content_box=False)
    assert (whole.width, whole.height) == (80, 64)


GRADIENT = np.stack(np.broadcast_arrays(*np.ogrid[20:230:96j, 30:200:128j], 90), axis=-1).astype(np.uint8)
COLOURS: list[tuple[str, dict[str, Any], int, int]] = [
    # name, encoding, the proxy's matrix and range as FFmpeg numbers them
    ("untagged.mp4", {}, 2, 0),  # limited where nobody says so
    ("bt709.mp4", {"options": {"colorspace": "bt709", "color_range": "tv", "color_primaries": "bt709"}}, 1, 1),
    ("bt601.mp4", {"options": {"colorspace": "smpte170m", "color_range": "tv"}}, 6, 1),
    ("full.mp4", {"pix_fmt": "yuvj420p", "options": {"colorspace": "bt709", "color_range": "pc"}}, 1, 1),
    ("jpeg.avi", {"codec": "mjpeg", "gop": 1}, 5, 1),
    ("ten_bit.mkv", {"pix_fmt": "yuv420p10le", "options": {"colorspace": "bt709"}}, 1, 1),
    ("rgb.mkv", {"codec": "ffv1", "gop": 1, "pix_fmt": "bgr0"}, 1, 1),
]


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
@pytest.mark.parametrize(("name", "encoding", "matrix", "colour_range"), COLOURS, ids=[name for name, *_ in COLOURS])
def test_colours_stay(
    name: str, encoding: dict[str, Any], matrix: int, colour_range: int, codec: Any, tmp_path: Path
) -> None:
    clips.write_pictures(tmp_path / name, [GRADIENT] * 6, **encoding)
    quality = 2 if codec == "mjpeg" else 8
    target, _ = pack(tmp_path / name, PackSettings(short_side=96, stride=1, gop=6, codec=codec, quality=quality))
    (original, *_), (kept, *_) = decoded(tmp_path / name), decoded(target)
    if codec == "h264":
        assert (kept.colorspace, kept.color_range) == (matrix, colour_range)
        assert kept.color_primaries == original.color_primaries
    else:
        assert kept.format.name == "yuvj420p"
    first, second = (frame.to_ndarray(format="rgb24").astype(int) for frame in (original, kept))
    assert np.abs(first - second).mean() < 1.5


@pytest.mark.parametrize("multiple", [2, 16])
def test_pixels_that_are_not_square(multiple: int, tmp_path: Path) -> None:
    """As players show the original, which is 128 x 96 pixels, each 16 : 9; square but for what rounding the sides makes of them."""
    clips.write_numbered(tmp_path / "a.mp4", 12, options={"aspect": "16:9"})
    video, gops = probe_video(tmp_path / "a.mp4")
    stated = video.pixel_aspect_numerator / video.pixel_aspect_denominator
    assert stated == pytest.approx(16 / 9, rel=0.02)
    write_proxy(video, gops, tmp_path / "p.mp4", replace(SMALL, side_multiple=multiple))
    with av.open(str(tmp_path / "p.mp4")) as container:
        stream = container.streams.video[0]
        pixel = stream.sample_aspect_ratio or 1
        assert (pixel == 1) == (multiple == 2)
        assert stream.width % multiple == stream.height % multiple == 0
        assert pixel * stream.width / stream.height == pytest.approx(stated * 128 / 96, rel=0.02)


def test_a_gap_of_many_frames_is_kept_in_time(tmp_path: Path) -> None:
    """One pause in an even video: the proxy keeps the times, or annotations would slip behind it."""
    clips.write_numbered(tmp_path / "a.mkv", 60)
    clips.remux(
        tmp_path / "a.mkv", tmp_path / "b.mkv", change=lambda index, packet: delay(packet, 700 if index > 30 else 0)
    )
    video, gops = probe_video(tmp_path / "b.mkv")
    assert video.variable_rate
    ticks, tick = display_times(video, gops, STRIDE)
    assert float(ticks[-1] * tick) == pytest.approx(57 / 25 + 0.7, abs=0.002)
    target, _ = pack(tmp_path / "b.mkv")
    last = decoded(target)[-1]
    assert float((last.pts or 0) * (last.time_base or 0)) == pytest.approx(57 / 25 + 0.7, abs=0.002)


def delay(packet: av.Packet, milliseconds: int) -> None:
    assert packet.pts is not None
    assert packet.dts is not None
    packet.pts, packet.dts = packet.pts + milliseconds, packet.dts + milliseconds


def test_windows_are_short_and_miss_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 90, gop=12, b_frames=3, open_gop=True)
    video, gops = probe_video(tmp_path / "a.mp4")
    monkeypatch.setattr(sequence, "FRAMES_PER_WINDOW", 30)
    for wanted in (np.arange(90), np.arange(5, 90, 7), np.array([89])):
        parts = list(sequence._parts(gops, wanted))
        assert np.concatenate(parts).tolist() == wanted.tolist()
        assert max(part[-1] - part[0] for part in parts) <= 30
        numbers = [
            (number, clips.read_number(frame.to_ndarray(format="rgb24"))[1])
            for number, _, frame in read_frames(video, gops, wanted, DecodeCount())
        ]
        assert numbers == [(number, number) for number in wanted.tolist()]


def test_a_damaged_original_is_packed_up_to_the_damage(tmp_path: Path) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 90, gop=30)
    clips.ruin(tmp_path / "a.mp4", 65)
    target, proxy = pack(tmp_path / "a.mp4")
    assert 10 <= proxy.frames <= 22
    assert f"only the first {proxy.frames * STRIDE} of its 90 frames are packed: {tmp_path}/a.mp4: " in proxy.damage
    numbers = [clips.read_number(frame.to_ndarray(format="rgb24")) for frame in decoded(target)]
    assert numbers == [(0, STRIDE * index) for index in range(proxy.frames)]
    clips.write_numbered(tmp_path / "b.mp4", 90, gop=30)
    clips.ruin(tmp_path / "b.mp4", 4)
    with pytest.raises(VideoError, match=r"b\.mp4"):
        pack(tmp_path / "b.mp4")


def test_originals_that_cannot_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    clips.write_numbered(path, 12)
    with pytest.raises(VideoError, match=r"of 12 frames a stride of 12 keeps 1, at least 2 .* smaller stride"):
        pack(path, PackSettings(stride=12))
    video, gops = probe_video(path)

    def touched(*arguments: Any) -> Any:
        yield from read_frames(*arguments)
        os.utime(path, ns=(0, 0))

    monkeypatch.setattr(proxy_module, "read_frames", touched)
    with pytest.raises(VideoError, match="changed since it was indexed"):
        write_proxy(video, gops, tmp_path / "packed" / "p.mp4", SMALL)
    monkeypatch.undo()
    with pytest.raises(VideoError, match="changed since it was indexed"):
        write_proxy(video, gops, tmp_path / "packed" / "p.mp4", SMALL)
    assert list((tmp_path / "packed").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("keyint=6:min-keyint=6", r"keyframes at \[ 0  6 12 18\], not at \[ 0  4  8 12 16\]"),
        ("bframes=2:b-adapt=0", "pictures are reordered by 2"),
        ("open-gop=1:bframes=2:b-adapt=0", "the proxy is not what was encoded"),
    ],
)
def test_a_proxy_of_the_wrong_make_is_refused(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 60)
    usual = PackSettings.encoder_options

    def sabotaged(settings: PackSettings) -> dict[str, str]:
        return {**usual(settings), "bf": "2", "x264-params": f"{usual(settings)['x264-params']}:{options}"}

    monkeypatch.setattr(PackSettings, "encoder_options", sabotaged)
    with pytest.raises(VideoError, match=message):
        pack(tmp_path / "a.mp4")
    assert list((tmp_path / "packed").iterdir()) == []


def luma_video(path: Path, step: int) -> None:
    """A video whose frames are each `step` brighter than the one before."""
    ramp = np.broadcast_to(np.linspace(30, 90, 128), (96, 128))
    pictures = [np.repeat((ramp + step * number)[:, :, None], 3, axis=2).astype(np.uint8) for number in range(30)]
    clips.write_pictures(path, pictures, options={"crf": "5"})


@pytest.mark.parametrize(
    ("step", "message"), [(2, "frame 4 shows one of its neighbours"), (9, "frame 4 differs from its source")]
)
def test_exchanged_frames_are_noticed(step: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that hands out frame 5 twice, or pictures of something else."""
    luma_video(tmp_path / "a.mp4", step)
    write, held = ProxyEncoder._mux, []

    def sabotaged(self: ProxyEncoder, picture: VideoFrame | None) -> None:
        if picture is None:
            return write(self, None)
        held.append(picture)
        if len(held) == 5:
            return None
        if len(held) == 6:
            fourth, fifth = held[4], held[5]
            fourth.pts, fifth.pts = fifth.pts, fourth.pts
            write(self, fifth)
            return write(self, fourth)
        return write(self, picture)

    monkeypatch.setattr(ProxyEncoder, "_mux", sabotaged)
    with pytest.raises(VideoError, match=message):
        pack(tmp_path / "a.mp4", PackSettings(short_side=64, stride=1, gop=30))
    assert list((tmp_path / "packed").iterdir()) == []


def test_missing_and_late_frames_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 30)
    write = ProxyEncoder._mux
    for change, message in [
        (lambda pts: None if pts == 9 else pts, "it holds 9 frames, not 10"),
        (lambda pts: pts + 1 if pts == 9 else pts, "frame 9 is shown 0.1200 seconds late"),
    ]:

        def sabotaged(self: ProxyEncoder, picture: VideoFrame | None, change: Any = change) -> None:
            if picture is not None:
                picture.pts = change(picture.pts)
                if picture.pts is None:
                    return
                self._durations[picture.pts] = 1
            write(self, picture)

        monkeypatch.setattr(ProxyEncoder, "_mux", sabotaged)
        with pytest.raises(VideoError, match=message):
            pack(tmp_path / "a.mp4", PackSettings(short_side=64, stride=3, gop=10))


def test_a_full_disk_is_no_fault_of_the_video(tmp_path: Path) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 30)
    video, gops = probe_video(tmp_path / "a.mp4")
    with pytest.raises(OSError, match="No space left on device"):
        proxy_module._encode(video, gops, Path("/dev/full"), SMALL, ())


def test_thumbnails_are_block_means() -> None:
    luma = np.random.default_rng(0).integers(0, 256, (50, 70), np.uint8)
    frame = VideoFrame(70, 50, "yuv420p")
    padded = np.zeros((frame.planes[0].buffer_size // frame.planes[0].line_size, frame.planes[0].line_size), np.uint8)
    padded[:50, :70] = luma
    frame.planes[0].update(padded.tobytes())
    small = thumbnail(frame)
    assert small.shape == (16, 16)
    assert small[0, 0] == round(luma[:3, :4].mean())
    assert small[15, 15] == round(luma[46:, 65:].mean())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codec": "av1"}, "codec='av1': one of h264, hevc, vp9, mjpeg"),
        ({"short_side": 255}, "short_side=255: an even number of pixels in 32 .. 2160"),
        ({"short_side": 8}, "short_side=8"),
        ({"side_multiple": 15}, "side_multiple=15: an even number"),
        ({"stride": 0}, r"stride=0: 1 \.\. 1000"),
        ({"gop": 0}, r"gop=0: 1 \.\. 250"),
        ({"quality": 0}, r"quality=0: h264 takes a number in 1 \(best\) \.\. 34"),
        ({"codec": "mjpeg", "quality": 2.5}, "mjpeg takes a whole number"),
        ({"codec": "vp9", "quality": 53}, "quality=53: vp9"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackSettings(**values)


def test_sizes_are_multiples_and_hardly_larger() -> None:
    settings = PackSettings(short_side=256)
    assert settings.proxy_size(1920, 1080) == (448, 256)
    assert settings.proxy_size(1080, 1920) == (256, 448)
    assert settings.proxy_size(853, 480) == (448, 256)
    assert settings.proxy_size(200, 101) == (192, 96)
    assert settings.proxy_size(30, 4) == (32, 16)
    even = PackSettings(short_side=256, side_multiple=2)
    assert [even.proxy_size(*size) for size in ((1920, 1080), (853, 480), (200, 101))] == [
        (456, 256),
        (454, 256),
        (200, 100),
    ]
    assert PackSettings().quality is None
    assert PackSettings().encoder_quality == 23


@pytest.mark.slow
@pytest.mark.skipif("TROCAR_TEST_VIDEOS" not in os.environ, reason="TROCAR_TEST_VIDEOS names no folder of real videos")
@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mjpeg"])
def test_real_videos_pass_at_every_quality(codec: Any, tmp_path: Path) -> None:
    """The thresholds of verification refuse no honest proxy, not of the coarsest quality either."""
    paths = sorted(Path(os.environ["TROCAR_TEST_VIDEOS"]).glob("*.mp4"))
    assert paths
    for path in paths:
        video, gops = probe_video(path)
        for quality in (None, PackSettings(codec=codec).encoder.worst_quality):
            proxy = write_proxy(video, gops, tmp_path / "p.mp4", PackSettings(codec=codec, quality=quality))
            assert (proxy.frames, proxy.damage) == (-(-video.frames // 4), "")
