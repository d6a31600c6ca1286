"""Clips that a kernel makes of decoded planes, against those that decoding processes make: same numbers, order and spares, pictures
within 1 of 255 of the exact resize."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from clips import damage_gops, write_numbered

from trocar.loaders.choose import choose_loader, gpu_loaders
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.decode.batch import LoaderCount
from trocar.loaders.decode.planes import PlaneWriter
from trocar.loaders.decode.recipe import Recipe
from trocar.loaders.decode.span import SpanReader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video.video import Kind

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CROPS = CropRecipe((0.1, 1), (0.75, 1.33), 0.5)
POOL = ClipOrder(views_per_span=3, pool_spans=12, lanes=6, seed=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Of 4:2:0, in full range too, of 4:2:2, and turned by 90 degrees; a part of the first is damaged."""
    folder = tmp_path_factory.mktemp("planes")
    encodings: dict[str, dict[str, Any]] = {
        "0.mp4": {},
        "1.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "2.mp4": {"pix_fmt": "yuv422p"},
        "3.mp4": {"rotation": 90},
    }
    for number, (name, encoding) in enumerate(encodings.items()):
        write_numbered(folder / name, 60, video_id=number, gop=6, **encoding)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    found = Corpus.open(folder / "corpus")
    damage_gops(found, 0)
    return found


def batches(corpus: Corpus, device: str, **options: Any) -> list[Any]:
    numbers = [np.arange(n * 6, n * 6 + 6) for n in range(6)]
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=7)
    options = {"resolution": 64, "failure_budget": 1.0, "workers": 1, "resize": "exact", "device": device, **options}
    with ClipLoader(corpus, sampler, CROPS, numbers, **options) as loader:
        return list(loader)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", [pytest.param(ClipOrder(), marks=pytest.mark.slow), POOL], ids=["one view", "pool"])
def test_the_clips_of_the_exact_resize(corpus: Corpus, device: str, order: ClipOrder) -> None:
    rgb, planes = (batches(corpus, device, order=order, planes=planes) for planes in (False, True))
    assert any(batch.count.failures for batch in rgb), "some is replaced"
    assert {int(video) for batch in rgb for video in batch.videos} == set(range(len(corpus)))
    for one, other in zip(rgb, planes, strict=True):
        for name in ("numbers", "draws", "views", "videos", "frame_numbers", "pts_seconds"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert one.count.failures == other.count.failures
        difference = (one.frames.int() - other.frames.int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 0.4


def test_what_leaves_a_process_as_planes(corpus: Corpus) -> None:
    """4:2:0 of 8 bits, where the crop has room in the clip's memory, and the kind is not left to the CPU."""
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=7)
    recipe = Recipe(corpus, sampler, CROPS, 64, planes=True)
    facts = [corpus.video(row).facts for row in range(len(corpus))]
    output = np.zeros((1, 4, 64, 64, 3), np.uint8)
    kept = set()
    reader = SpanReader(recipe)
    for draw in range(40):
        result = reader.read(draw, (0,), output)
        if result.cuts is not None:
            kept.add(facts[result.clips[0].video].pix_fmt)
    assert kept == {"yuv420p", "yuvj420p"}
    reader = SpanReader(replace(recipe, rgb_kinds=frozenset(Kind.of(video) for video in facts)))
    assert all(reader.read(draw, (0,), output).cuts is None for draw in range(10))
    small = SpanReader(replace(recipe, resolution=8))
    assert all(small.read(draw, (0,), output[:, :, :8, :8].copy()).cuts is None for draw in range(10))


def test_a_stream_that_changes_on_the_way_is_cut_on_the_cpu(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=7)
    reader = SpanReader(Recipe(corpus, sampler, CROPS, 64))
    cut = reader.cut(sampler.clips([1]), LoaderCount())
    output = np.zeros((1, 4, 64, 64, 3), np.uint8)
    reader.decode(cut, expected := output.copy(), LoaderCount())
    write = PlaneWriter.write

    def changed(self: PlaneWriter, view: int, first: int, stop: int, frame: Any) -> None:
        write(self, view, first, stop, frame if first < 2 else frame.reformat(format="yuv444p"))

    monkeypatch.setattr(PlaneWriter, "write", changed)
    reader.recipe = replace(reader.recipe, planes=True)
    assert reader.read(1, (0,), output).cuts is None
    assert np.array_equal(output, expected)


def test_where_it_is_offered(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=7)
    with pytest.raises(ValueError, match="'planes' makes clips on cuda, not on cpu"):
        gpu_loaders("planes", torch.device("cpu"))
    with pytest.raises(ValueError, match="workers must be at least 1, as planes=True"):
        ClipLoader(corpus, sampler, CROPS, [], resolution=64, planes=True)
    candidates: list[str] = []

    def measure(videos: Any, sampler: Any, found: Any) -> list[Any]:
        candidates.extend(candidate.name for candidate in found)
        return []

    monkeypatch.setattr("trocar.loaders.choose.measure_loaders", measure)
    monkeypatch.setattr("trocar.loaders.choose.remembered", lambda videos, device, known, ask: ask())
    cuda = torch.device("cuda", 0)
    choose_loader("auto", corpus, sampler, CROPS, resolution=64, device=cuda, options={}, workers=2)
    assert candidates[0] == "cpu"
    assert "planes" in candidates
    candidates.clear()
    choose_loader("auto", corpus, sampler, CROPS, resolution=64, device=cuda, options={}, workers=0)
    assert "planes" not in candidates
