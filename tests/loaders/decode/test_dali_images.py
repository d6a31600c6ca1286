"""Frames of Motion JPEG go to DALI's image decoder, alone and beside windows: the CPU's clips, and nothing else is decoded."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")

from trocar.loaders import cpu, dali
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.decode.dali_images import jpegs_of
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.pack.proxy import write_proxy
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.window import Window, WindowReader

pytestmark = pytest.mark.timeout(180)

WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)
AUGMENTED = CropRecipe((0.3, 1), (0.75, 1.33), 0.5)
# Of 255, against the CPU's "exact": the decoders round, and scale chroma up, each in its way.
LARGEST_DIFFERENCE, MEAN_DIFFERENCE = 4, 0.6


def scene(number: int) -> np.ndarray:
    rows, columns = np.mgrid[:160, :240]
    waves = [np.sin((rows + 3 * number) / 25 + channel) + np.cos((columns - 2 * number) / 40) for channel in range(3)]
    picture = (110 + 40 * np.stack(waves, axis=-1)).astype(np.uint8)
    picture[40:80, 60:100] = 200, 60, 50
    return picture


def corpus_of(folder: Path) -> Corpus:
    index_corpus([folder / "videos"], folder / "corpus", workers=1, progress=False)
    return Corpus.open(folder / "corpus")


def load(corpus: Corpus, batches: list[np.ndarray], kind: Any, **options: Any) -> Any:
    sampler = Sampler(corpus.frames, num_frames=4, stride=3, seed=7)
    if kind is dali.ClipLoader:
        options = {"device": "cpu", "decoders": 2, **options}
    return kind(corpus, sampler, options.pop("crops", WHOLE), batches, resolution=64, threads=1, **options)


def window_of(path: Path) -> Window:
    video, gops = probe_video(path, content_box=False)
    return WindowReader(video).window(np.arange(3, 12, 3), gops)


def test_a_proxys_frames_are_whole_jpegs(tmp_path: Path) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 30, gop=12)
    settings = PackSettings(short_side=64, stride=2, codec="mjpeg")
    write_proxy(*probe_video(tmp_path / "a.mp4"), tmp_path / "proxy.mp4", settings)
    window = window_of(tmp_path / "proxy.mp4")
    images = jpegs_of(window)
    assert images is not None
    assert [bytes(image) for image in images] == [bytes(payload) for payload in window.payloads]
    assert len(window.payloads) == 3, "nothing is read that is not shown"


def test_what_is_no_whole_jpeg_of_its_own_is_left_to_others(tmp_path: Path) -> None:
    clips.write_numbered(tmp_path / "a.mov", 15, codec="mjpeg")
    whole = window_of(tmp_path / "a.mov")
    assert jpegs_of(whole)
    assert jpegs_of(replace(whole, video=replace(whole.video, colorspace=1))) is None
    assert jpegs_of(replace(whole, video=replace(whole.video, pix_fmt="yuv420p"))) is None
    assert jpegs_of(replace(whole, video=replace(whole.video, height=whole.video.height * 2))) is None
    first = bytes(whole.payloads[0])
    tables = first.index(b"\xff\xc4")
    length = int.from_bytes(first[tables + 2 : tables + 4], "big")
    for other in (first[:-2], first[:tables] + first[tables + 2 + length :], first[:20], b""):
        assert jpegs_of(replace(whole, payloads=[memoryview(other), *whole.payloads[1:]])) is None


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "yuvj444p"])
def test_pictures_agree_with_the_cpus(pix_fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops, mirroring, turned pictures and several views of a span, without the video decoder."""
    (tmp_path / "videos").mkdir()
    for row, rotation in enumerate((0, 90, 180, 270)):
        pictures = (scene(number) for number in range(20))
        path = tmp_path / "videos" / f"{row}.mp4"
        clips.write_pictures(
            path, pictures, rotation=rotation, codec="mjpeg", pix_fmt=pix_fmt, options={"qmin": "3", "qmax": "3"}
        )
    corpus = corpus_of(tmp_path)
    monkeypatch.setattr(Window, "mux", lambda *_, **__: pytest.fail("a window is remuxed"))
    batches = [np.arange(first, first + 4) for first in range(0, 24, 4)]
    options: dict[str, Any] = {"crops": AUGMENTED, "order": ClipOrder(views_per_span=2)}
    with (
        load(corpus, batches, dali.ClipLoader, **options) as loader,
        load(corpus, batches, cpu.ClipLoader, resize="exact", **options) as exact,
    ):
        pairs = list(zip(loader, exact, strict=True))
    assert len({int(video) for batch, _ in pairs for video in batch.videos}) >= 3
    for batch, expected in pairs:
        assert batch.numbers.tolist() == expected.numbers.tolist()
        assert batch.frame_numbers.tolist() == expected.frame_numbers.tolist()
        off = (batch.frames.short() - expected.frames.short()).abs().float()
        assert off.max() <= LARGEST_DIFFERENCE
        assert off.mean() <= MEAN_DIFFERENCE
        assert batch.count.amplification == expected.count.amplification == 1
    assert not loader.taken_over


def test_runs_of_images_and_windows_and_a_jpeg_that_dali_refuses(tmp_path: Path) -> None:
    """Every clip in its place; what the image decoder fails at the CPU decodes."""
    (tmp_path / "videos").mkdir()
    for row, codec in enumerate(("mjpeg", "libvpx-vp9", "libx264", "mjpeg")):
        clips.write_numbered(
            tmp_path / "videos" / f"{row}.mp4", 40, video_id=row, codec=codec, gop=12, width=160, height=160
        )
    corpus = corpus_of(tmp_path)
    batches = [np.arange(first, first + 8) for first in range(0, 32, 8)]

    class Refusing(dali.ImagePipeline):
        fails: deque[bool]

        def submit(self, samples: Any) -> None:
            fails = any(len(image) == bad for sample in samples for image in sample.images)
            self.__dict__.setdefault("fails", deque()).append(fails)  # runs are queued
            super().submit(samples)

        def result(self) -> Any:
            if self.fails.popleft():
                raise RuntimeError("encountered:\n\nunsupported JPEG")
            return super().result()

    bad = 0
    for planted in (False, True):
        if planted:
            bad = int(corpus.gops(3).packets[20:21].size[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dali, "ImagePipeline", Refusing)  # before a thread of the loader builds one
            with (
                load(corpus, batches, dali.ClipLoader, prefetch=1) as loader,
                load(corpus, batches, cpu.ClipLoader) as reference,
            ):
                for batch, expected in zip(loader, reference, strict=True):
                    assert batch.draws.tolist() == expected.draws.tolist()
                    for clip, row, numbers in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
                        assert [clips.read_number(picture) for picture in clip] == [(row, number) for number in numbers]
            assert not loader.total.failures
        assert bool(loader.taken_over) == planted
