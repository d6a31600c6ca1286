"""Pictures as players show them: turned, mirrored, with square pixels, of the largest track; in every loader and in proxies."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest

from trocar.loaders import cpu, dali
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.draw.augment import Box, CropRecipe, with_square_pixels, with_stored_pixels
from trocar.loaders.draw.evaluation_crops import EvaluationCrops
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.pack.proxy import write_proxy
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.orientation import orientation
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import VideoError

WAYS = [(rotation, mirrored) for rotation in (0, 90, 180, 270) for mirrored in (False, True)]
FRAMES = 4


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """All eight ways, Motion JPEG, which DALI decodes without a GPU; the place of one is the video's id."""
    folder = tmp_path_factory.mktemp("turned")
    (folder / "videos").mkdir()
    for row, (rotation, mirrored) in enumerate(WAYS):
        path = folder / "videos" / f"{row}.mp4"
        clips.write_numbered(path, 12, video_id=row, rotation=rotation, mirrored=mirrored, codec="mjpeg", gop=1)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, progress=False)
    return Corpus.open(folder / "corpus")


def test_the_index_knows_all_eight(turned: Corpus) -> None:
    found = [(facts.rotation, facts.mirrored) for facts in (turned.video(row).facts for row in range(8))]
    assert found == WAYS


@pytest.mark.parametrize("kind", ["fast", "exact", "dali"])
def test_all_eight_come_upright(turned: Corpus, kind: str) -> None:
    """Blocks of numbers from the left top corner on: turned or mirrored otherwise, they read as another number."""
    sampler = Sampler.of(turned, num_frames=FRAMES, stride=3, seed=1)
    loader = dali.ClipLoader if kind == "dali" else cpu.ClipLoader
    resize: Any = "fast" if kind == "fast" else "exact"
    for ratio in (4 / 3, 3 / 4):
        draws = np.arange(8)
        crops = CropRecipe((1, 1), (ratio, ratio), 0)
        with loader(turned, sampler, crops, [draws], resolution=64, threads=1, device="cpu", resize=resize) as batches:
            batch = next(batches)
        assert sorted(batch.videos.tolist()) == list(range(8))
        for clip, video, frames in zip(batch.frames.numpy(), batch.videos.tolist(), batch.frame_numbers, strict=True):
            if (WAYS[video][0] % 180 == 90) == (ratio < 1):  # the whole picture
                assert [clips.read_number(picture) for picture in clip] == [(video, number) for number in frames]


def test_crops_of_mirrored_pictures_agree_between_loaders(tmp_path: Path) -> None:
    """An uneven crop, flipped or not, is the same in all of them, and the player's."""
    rows, columns = np.mgrid[:180, :240]
    picture = (
        110 + 40 * np.stack([np.sin(rows / 25), np.cos(columns / 40), np.sin((rows + columns) / 30)], -1)
    ).astype(np.uint8)
    (tmp_path / "videos").mkdir()
    quality = {"qmin": "1", "qmax": "2"}
    for row, (rotation, mirrored) in enumerate(WAYS):
        path, ways = tmp_path / "videos" / f"{row}.mp4", {"rotation": rotation, "mirrored": mirrored}
        clips.write_pictures(path, [picture] * 3, codec="mjpeg", gop=1, options=quality, **ways)
    index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    sampler, crops = Sampler.of(corpus, num_frames=1, stride=1), CropRecipe((0.3, 0.6))
    found: list[np.ndarray] = []
    for kind, resize in ((cpu, "fast"), (cpu, "exact"), (dali, "exact")):
        options: dict[str, Any] = {"resolution": 48, "threads": 1, "resize": resize, "device": "cpu"}
        with kind.ClipLoader(corpus, sampler, crops, [np.arange(24)], **options) as loader:
            batch = next(loader)
            found.append(batch.frames[:, 0].numpy().astype(int))
    assert len({int(video) for video in batch.videos}) == 8
    for draw, video, shown in zip(batch.draws.tolist(), batch.videos.tolist(), found[1], strict=True):
        crop = crops.crop(Box(0, 0, 240, 180), seed=0, draw=draw)
        box = crop.box
        part = picture[box.top : box.top + box.height, box.left : box.left + box.width]
        part = part[:, ::-1] if crop.flip else part
        middle = part[part.shape[0] // 2, part.shape[1] // 2].astype(int)
        assert np.abs(middle - shown[24, 24]).max() <= 8, (video, draw)
    assert np.abs(found[1] - found[2]).max() <= 2
    assert np.abs(found[0] - found[1]).mean() <= 1.5


def test_proxies_of_all_eight_are_upright(turned: Corpus, tmp_path: Path) -> None:
    for row in range(8):
        write_proxy(
            turned.video(row).facts, turned.gops(row), tmp_path / "a.mp4", PackSettings(short_side=64, stride=3)
        )
        with av.open(str(tmp_path / "a.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert [clips.read_number(frame) for frame in frames] == [(row, number) for number in range(0, 12, 3)]


@pytest.mark.parametrize(("rotation", "mirrored"), WAYS)
def test_the_content_box_is_in_upright_pixels(tmp_path: Path, rotation: int, mirrored: bool) -> None:
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[8:72, 16:96] = 200
    clips.write_pictures(tmp_path / "a.mp4", [picture] * 2, gop=1, rotation=rotation, mirrored=mirrored)
    facts, _ = probe_video(tmp_path / "a.mp4")
    assert (facts.box_left, facts.box_top, facts.box_width, facts.box_height) == (16, 8, 80, 64)


@pytest.mark.parametrize("turned", [(0.7071, -0.7071, 0.7071, 0.7071), (1, 0.5, 0, 1)])
def test_other_matrices_are_refused_by_name(tmp_path: Path, turned: tuple[float, float, float, float]) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 3)
    clips.write_matrix(tmp_path / "a.mp4", turned)
    with pytest.raises(
        VideoError, match=r"a\.mp4: its display matrix \(.*\) neither turns by quarters nor mirrors; re-encode"
    ):
        probe_video(tmp_path / "a.mp4")


def test_a_picture_without_a_matrix_is_upright() -> None:
    assert orientation(av.VideoFrame(16, 16, "yuv420p")) == (0, False)


def disc(width: int, height: int, pixel_aspect: float) -> np.ndarray:
    """Round on the screen."""
    rows, columns = np.mgrid[:height, :width]
    inside = (
        np.hypot((columns - width / 2) * pixel_aspect, rows - height / 2) < min(height, width * pixel_aspect) * 0.35
    )
    return np.repeat(np.where(inside, 220, 70).astype(np.uint8)[:, :, None], 3, axis=2)


def roundness(picture: np.ndarray) -> float:
    lit = np.asarray(picture)[..., 1] > 145
    return lit.any(axis=0).sum() / lit.any(axis=1).sum()


@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(8, 9)])
@pytest.mark.parametrize("rotation", [0, 90])
def test_pixels_are_square_by_default(tmp_path: Path, aspect: Fraction, rotation: int) -> None:
    upright = (144, 180) if rotation else (180, 144)
    shown_aspect = float(1 / aspect if rotation else aspect)
    pictures = [disc(*upright, shown_aspect)] * 4
    path = tmp_path / "a.mp4"
    clips.write_pictures(path, pictures, pixel_aspect=aspect, rotation=rotation, options={"crf": "10"})
    facts, gops = probe_video(path)
    assert Fraction(facts.pixel_aspect_numerator, facts.pixel_aspect_denominator) == aspect
    assert facts.pixel_aspect == pytest.approx(shown_aspect)
    assert facts.upright_size == upright
    options: dict[str, Any] = {
        "batch": 1,
        "num_frames": 1,
        "stride": 1,
        "resolution": 160,
        "training": False,
        "device": "cpu",
    }
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 1.0),
        ({"resize": "exact"}, 1.0),
        ({"square_pixels": False}, 1 / shown_aspect),
    ]
    for extra, expected in cases:
        (batch,) = clip_loader([(path, 0.0, None)], threads=1, **options, **extra)
        assert roundness(batch.frames[0, 0].numpy()) == pytest.approx(expected, abs=0.03)
    write_proxy(facts, gops, tmp_path / "proxy.mp4", PackSettings(short_side=128, stride=1))
    packed, _ = probe_video(tmp_path / "proxy.mp4")
    # Sides are multiples of 16; what that takes from square is told in the file.
    assert packed.pixel_aspect == pytest.approx(1, abs=0.03)
    shown = packed.width * packed.pixel_aspect / packed.height
    assert shown == pytest.approx(upright[0] * shown_aspect / upright[1], rel=0.01)
    with av.open(str(tmp_path / "proxy.mp4")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert roundness(picture) == pytest.approx(1 / packed.pixel_aspect, abs=0.03)
    (batch,) = clip_loader([(tmp_path / "proxy.mp4", 0.0, None)], threads=1, **options)
    assert roundness(batch.frames[0, 0].numpy()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("aspect", [64 / 45, 8 / 9, 2.0, 0.5, 1.7, 64 / 63, 1.001])
def test_square_crops_stay_inside_the_content(aspect: float) -> None:
    content = Box(10, 6, 350, 286)
    shown = with_square_pixels(content, aspect)
    assert shown.width / shown.height == pytest.approx(350 / 286 * aspect, rel=0.02)
    assert with_stored_pixels(shown, content, aspect) == content
    for draw in range(50):
        crop = CropRecipe((0.01, 1)).crop(shown, seed=0, draw=draw)
        box = with_stored_pixels(crop.box, content, aspect)
        assert content.left <= box.left <= box.left + box.width <= content.left + content.width
        assert content.top <= box.top <= box.top + box.height <= content.top + content.height
        assert {box.left % 2, box.top % 2, box.width % 2, box.height % 2} == {0}
        if min(box.width, box.height) > 100:
            assert box.width / box.height * aspect == pytest.approx(crop.box.width / crop.box.height, rel=0.03)
    square = with_stored_pixels(EvaluationCrops().crop(shown).box, content, aspect)
    assert square.width * aspect == pytest.approx(square.height, rel=0.03)


@pytest.fixture
def two_tracks(tmp_path: Path) -> Path:
    """A small camera first, which is the default track, and the large one second."""
    for video_id, size in enumerate([(96, 64), (192, 128)]):
        clips.write_numbered(tmp_path / f"{video_id}.mp4", 10, video_id=video_id, width=size[0], height=size[1])
    with (
        av.open(str(tmp_path / "0.mp4")) as room,
        av.open(str(tmp_path / "1.mp4")) as scope,
        av.open(str(tmp_path / "two.mp4"), "w") as target,
    ):
        streams = [target.add_stream_from_template(source.streams.video[0]) for source in (room, scope)]
        for source, stream in zip((room, scope), streams, strict=True):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    return tmp_path / "two.mp4"


def test_the_largest_track_is_taken_and_said(two_tracks: Path, tmp_path: Path) -> None:
    facts, _ = probe_video(two_tracks)
    assert (facts.width, facts.stream_index) == (192, 1)
    assert facts.health == "several video tracks: 1 is taken of 0 (96x64), 1 (192x128)"
    assert probe_video(two_tracks, track=0)[0].width == 96
    with pytest.raises(VideoError, match=r"it has 2 video track\(s\), track 2 is asked for; give one of 0 \.\. 1"):
        probe_video(two_tracks, track=2)
    for track, video_id in ((None, 1), (0, 0), (1, 1)):
        summary = index_corpus([two_tracks], tmp_path / "corpus", workers=1, track=track, progress=False)
        assert summary.reused == 0, "of another track than was asked for before"
        assert index_corpus([two_tracks], tmp_path / "corpus", workers=1, track=track, progress=False).reused == 1
        corpus = Corpus.open(tmp_path / "corpus")
        sources: list[tuple[Corpus | None, dict[str, Any]]] = [(corpus, {}), (None, {"track": track})]
        for videos, options in sources:
            whole = CropRecipe((1, 1), (1.5, 1.5), 0)
            rows = [(str(two_tracks), 0.12, None)]
            (batch,) = clip_loader(
                rows, videos=videos, batch=1, num_frames=1, stride=1, resolution=64, crops=whole, device="cpu", threads=1, **options
            )  # fmt: skip
            assert clips.read_number(batch.frames[0, 0].numpy()) == (video_id, 3)
