"""`objective.ignore`: ignored tokens are those that show the overlay in the pixels of a clip, whatever was cut and turned."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import ranks
from clips import write_pictures
from ranks import OBJECTIVES
from runs import TINY, assert_same_run

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.draws.samplers import build_sampler
from trocar.engine.inputs.checkpoints import checkpoints
from trocar.engine.pretrain import pretrain
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step.ignored import IgnoredTargets
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import SPAN_SCHEMA, ScreenedVideo, write_screen
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.draw.augment import Box, Crop, CropRecipe
from trocar.loaders.draw.ignored import ignored_tokens

FRAMES, WIDTH, HEIGHT = 24, 192, 144
TURNS = [(0, False), (90, False), (180, True), (270, True)]
IGNORE = "objective.ignore=overlays"


def planted() -> np.ndarray:
    overlay = np.zeros((HEIGHT, WIDTH), bool)
    overlay[20:70, 12:72] = overlay[100:132, 110:180] = True
    return overlay


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Green pictures of another green in every frame, with an overlay in magenta, screened."""
    folder = tmp_path_factory.mktemp("corpus")
    for turn, (rotation, mirrored) in enumerate(TURNS):
        pictures = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        pictures[..., 1] = 90 + 5 * np.arange(FRAMES)[:, None, None]
        pictures[:, planted()] = (250, 0, 250)
        write_pictures(folder / f"{turn}.mp4", pictures, gop=12, rotation=rotation, mirrored=mirrored)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    write_planted_screen(folder / "corpus", planted())
    return folder / "corpus"


def write_planted_screen(folder: Path, overlay: np.ndarray) -> None:
    videos = []
    for row in Corpus.open(folder).scan("id", "frames"):
        spans = {field.name: np.zeros(1, field.type.to_pandas_dtype()) for field in list(SPAN_SCHEMA)[1:]}
        spans["frames"][0] = row["frames"]
        videos.append(ScreenedVideo(row["id"], "", spans, overlay, 1))
    write_screen(folder, videos, "{}")


def config(corpus: Path, run_dir: Path, *more: str) -> Config:
    settings = [f"data.corpus={corpus}", f"run.dir={run_dir}", *TINY, "data.threads=1", "data.crop_scale=[0.2, 1.0]"]
    return load_config("demo_cpu", [*settings, *more])


@pytest.mark.parametrize("resize", ["fast", "exact"])
def test_ignored_tokens_are_those_that_show_the_overlay(corpus: Path, resize: str) -> None:
    loaded = config(corpus, Path("none"), IGNORE, "data.resolution=64", f"data.resize={resize}")
    opened, data = Corpus.open(corpus), loaded.data
    ignoring = IgnoredTargets.of(loaded, opened, 8, loaded.run.seed)
    assert ignoring is not None
    crops = CropRecipe(data.crop_scale, data.crop_ratio, data.flip)
    options = {"resolution": 64, "resize": data.resize, "content_box": data.content_box, "threads": 1}
    seen, ignored_of_video = set(), np.zeros(len(TURNS))
    with ClipLoader(opened, build_sampler(loaded, opened), crops, [np.arange(32)], **options) as loader:
        for batch in loader:
            pixels = batch.frames.numpy().astype(int)
            magenta = (pixels[..., 0] > 125) & (pixels[:, 0, ..., 1] < 125)[:, None]
            share = magenta.mean(axis=1).reshape(-1, 8, 8, 8, 8).mean(axis=(2, 4)).reshape(-1, 64)
            tokens = ignoring.tokens(batch)
            is_clear = np.abs(share - 0.5) > 0.14  # a row of pixels, 0.125, is the resizer's to round
            assert np.array_equal(tokens[is_clear], (share > 0.5)[is_clear])
            assert is_clear.mean() > 0.8
            for row, of_clip in zip(batch.videos.tolist(), tokens, strict=True):
                seen.add(row)
                ignored_of_video[row] += of_clip.sum()
    assert seen == set(range(len(TURNS)))
    assert (ignored_of_video > 0).all()


def test_what_lies_outside_the_content_box_is_ignored() -> None:
    overlay = np.zeros((4, 4), bool)
    overlay[0, 0] = True
    found = ignored_tokens(overlay, Box(0, 0, 60, 80), (80, 80), Crop(Box(0, 0, 80, 80), False), 32, 4)
    expected = overlay.copy()
    expected[:, 3] = True
    assert np.array_equal(found, expected)
    mirrored = ignored_tokens(overlay, Box(0, 0, 60, 80), (80, 80), Crop(Box(0, 0, 80, 80), True), 32, 4)
    assert np.array_equal(mirrored, expected[:, ::-1])


@pytest.mark.parametrize("objective", ["mae", pytest.param("jepa", marks=pytest.mark.slow)])
def test_a_run_ignores_in_parts_in_buffers_and_after_a_stop(corpus: Path, tmp_path: Path, objective: str) -> None:
    def run(name: str, *more: str) -> list[dict]:
        common = [*OBJECTIVES[objective], "optim.steps=4", "optim.batch=6", "run.precision=float64", "run.device=cpu"]
        common += ["run.checkpoint_every=2", "validation.videos=['3']", "validation.every=2", "validation.clips=2"]
        pretrain(config(corpus, tmp_path / name, *common, *more), progress=False)
        return read_metrics(tmp_path / name)

    plain, ignoring = run("plain"), run("ignoring", IGNORE)
    run("buffers", IGNORE, "run.cuda_graphs=true")
    parts = run("parts", IGNORE, "optim.accumulation=3")
    assert plain[0]["loss"] != ignoring[0]["loss"]
    assert plain[1]["validation_loss"] != ignoring[1]["validation_loss"]
    assert np.allclose([row["loss"] for row in parts], [row["loss"] for row in ignoring], rtol=1e-6)
    assert_same_run(tmp_path / "buffers", tmp_path / "ignoring")
    # Goes on after step 2, as if it had been killed before the last checkpoint.
    shutil.copytree(tmp_path / "buffers", tmp_path / "again")
    shutil.rmtree(checkpoints(tmp_path / "again")[-1])
    run("again", IGNORE)
    assert_same_run(tmp_path / "again", tmp_path / "ignoring")
    with pytest.raises(ConfigError, match=r"objective.ignore: nothing -> overlays"):
        run("plain", IGNORE)
    shutil.copytree(corpus, tmp_path / "screened_anew")
    write_planted_screen(tmp_path / "screened_anew", ~planted())
    anew = [IGNORE, f"data.corpus={tmp_path / 'screened_anew'}"]
    with pytest.raises(ConfigError, match=r"objective.ignore.*was screened anew"):
        run("again", *anew)
    run("again", *anew, "run.allow_changes=true")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mae", "jepa"])
def test_ranks_ignore_what_one_process_does(tmp_path: Path, objective: str) -> None:
    folder = ranks.make_corpus(tmp_path / "videos")
    overlay = np.zeros((96, 128), bool)
    overlay[:50, 20:70] = True
    write_planted_screen(folder, overlay)

    def settings(name: str, *more: str) -> list[str]:
        common = [*ranks.TINY, *OBJECTIVES[objective], "data.crop_scale=[0.2, 1.0]", "optim.steps=4"]
        return [*common, f"data.corpus={folder}", f"run.dir={tmp_path / name}", *more]

    ranks.train_made(settings("plain"))
    ranks.train_made(settings("one", IGNORE))
    expected = [row["loss"] for row in read_metrics(tmp_path / "one")]
    assert not np.allclose(expected, [row["loss"] for row in read_metrics(tmp_path / "plain")], rtol=1e-3)
    for size, more in ((3, []), (2, ["run.sharding=full", "optim.accumulation=2"])):
        name = f"ranks_{size}"
        for status, output in ranks.run_ranks(size, tmp_path / name, settings=settings(name, IGNORE, *more)):
            assert status == 0, output
        assert np.allclose([row["loss"] for row in read_metrics(tmp_path / name)], expected, rtol=1e-9, atol=0)


def test_a_corpus_without_a_screen_is_refused(tmp_path: Path) -> None:
    pictures = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    pictures[..., 1] = 5 * np.arange(FRAMES)[:, None, None]
    write_pictures(tmp_path / "0.mp4", pictures, gop=12)
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    with pytest.raises(ConfigError, match=r"objective.ignore: overlays.*trocar screen"):
        pretrain(config(tmp_path / "corpus", tmp_path / "run", IGNORE, "optim.steps=1"), progress=False)
