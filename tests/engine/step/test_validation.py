"""Held-out videos: never drawn for training, the same clips every time, and training does not notice that they are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_numbered
from ranks import OBJECTIVES, TINY

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.draws.samplers import build_held_out_sampler, build_sampler, held_out
from trocar.engine.inputs.checkpoints import checkpoints
from trocar.engine.pretrain import pretrain
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step.build import build_masks, build_model
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.selection import below_fraction
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.draw.augment import CropRecipe

VIDEOS = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(VIDEOS):
        write_numbered(folder / f"{number}.mp4", 60, video_id=number, gop=12)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


def config(corpus: Path, run_dir: Path, *more: str) -> Config:
    settings = [f"data.corpus={corpus}", f"run.dir={run_dir}", *TINY, "optim.batch=2", "data.threads=1", *more]
    return load_config("demo_cpu", settings)


@pytest.mark.parametrize("phases", ["[]", "[{first_draw: 30, include: ['*'], exclude: []}]"])
def test_held_out_videos_are_never_drawn(corpus: Path, phases: str) -> None:
    opened = Corpus.open(corpus)
    stems = [Path(opened.video_path(row)).stem for row in range(VIDEOS)]
    loaded = config(
        corpus, Path("none"), "validation.videos=['3', '*/1.mp4']", "data.exclude=['0']", f"data.phases={phases}",
        "data.epoch_draws=10",
    )  # fmt: skip
    sampler, validating = build_sampler(loaded, opened), build_held_out_sampler(loaded, opened)
    draws = np.arange(400)
    drawn = {stems[video] for spare in range(4) for video in sampler.frames(draws, spare=spare)[0]}
    assert drawn == ({"2", "4"} if phases == "[]" else {"0", "2", "4"})
    assert {stems[video] for spare in range(4) for video in validating.frames(draws, spare=spare)[0]} == {"1", "3"}
    (video, frames, _), (again, same, _) = (validating.frames(np.arange(validating.num_spans)) for _ in range(2))
    assert np.array_equal(video, again)
    assert np.array_equal(frames, same)
    other = build_held_out_sampler(config(corpus, Path("none"), "validation.videos=['3', '1']", "run.seed=9"), opened)
    assert np.array_equal(other.frames(np.arange(20))[1], validating.frames(np.arange(20))[1])


def test_a_fraction_is_held_out_by_each_videos_own_hash(corpus: Path) -> None:
    names = [f"video_{number}" for number in range(20_000)]
    tenth, fifth, other = (
        {name for name in names if below_fraction(name, fraction, seed)}
        for fraction, seed in ((0.1, 0), (0.2, 0), (0.1, 1))
    )
    assert abs(len(tenth) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert tenth < fifth, "a larger fraction keeps what a smaller one holds out"
    assert len(tenth & other) < 300, "another seed holds out others"
    opened = Corpus.open(corpus)
    ids = [row["id"] for row in opened.scan("id")]
    # Ids follow from paths, which differ from test to test.
    seed = next(seed for seed in range(99) if 0 < sum(below_fraction(name, 0.5, seed) for name in ids) < VIDEOS)
    held = held_out(config(corpus, Path("none"), "validation.fraction=0.5", f"validation.seed={seed}"), opened)
    assert held is not None
    assert held.tolist() == [below_fraction(name, 0.5, seed) for name in ids]
    assert held_out(config(corpus, Path("none")), opened) is None


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("validation.videos=['9']", "validation.videos: '9' matches no video"),
        ("validation.videos=['*']", "leave none of its videos to train on"),
        ("validation.fraction=0.000001", "hold none out"),
        ("validation.fraction=1", "0 <= share < 1"),
        ("validation.every=0", "validation.every"),
    ],
)
def test_what_cannot_be_held_out_is_refused(corpus: Path, setting: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_sampler(config(corpus, Path("none"), setting), Corpus.open(corpus))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_does_not_notice(corpus: Path, tmp_path: Path, objective: str) -> None:
    """Bit-equal with and without, over a change of the clips' size; and the loss is that of the clips, worked out apart."""
    side = 2 * (32 if objective == "jepa" else 16)
    more = [*OBJECTIVES[objective], "optim.steps=5", f"data.sizes=[{{from_step: 3, resolution: {side}}}]"]
    more += ["run.tensorboard=true", "run.precision=float32"]
    wanted = ["validation.videos=['1', '3']", "validation.every=2", "validation.clips=7", "validation.batch=3"]
    looked = config(corpus, tmp_path / "looked", *more, *wanted)
    pretrain(looked, progress=False)
    pretrain(config(corpus, tmp_path / "blind", *more, "data.exclude=['1', '3']"), progress=False)
    mine, theirs = (load_checkpoint(checkpoints(tmp_path / name)[-1]) for name in ("looked", "blind"))
    for name in ("model", "optimizer"):
        a, b = getattr(mine, name), getattr(theirs, name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    rows, plain = read_metrics(tmp_path / "looked"), read_metrics(tmp_path / "blind")
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4, 5]
    for row, other in zip(rows, plain, strict=True):
        assert {key: row.get(key) for key in ("loss", "gradient_norm", "skipped", "feature_std")} == {
            key: other.get(key) for key in ("loss", "gradient_norm", "skipped", "feature_std")
        }
    assert rows[-1]["validation_loss"] == pytest.approx(loss_of(looked, 7), rel=1e-6)
    assert tags(tmp_path / "looked")["validation_loss"] == 3


def loss_of(config: Config, clips: int) -> float:
    """The mean loss of the held-out clips with the run's last weights, one clip at a time."""
    model, _ = build_model(config)
    model.load_state_dict(load_checkpoint(checkpoints(Path(config.run.dir))[-1]).model)
    opened = Corpus.open(config.data.corpus)
    data, losses = config.data, []
    crops = CropRecipe(data.crop_scale, data.crop_ratio, data.flip)
    sampler, masks = build_held_out_sampler(config, opened), build_masks(config, model.encoder)
    numbers = [np.array([number]) for number in range(clips)]
    with ClipLoader(opened, sampler, crops, numbers, resolution=data.resolution, threads=1) as loader, torch.no_grad():
        for batch in loader:
            assert Path(opened.video_path(int(batch.videos[0]))).stem in ("1", "3")
            losses.append(model(batch.frames, masks(0, batch.numbers, 0)).loss.item())
    return float(np.mean(losses))


def tags(run_dir: Path) -> dict[str, int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {name: len(events.Scalars(name)) for name in events.Tags()["scalars"]}


def test_clips_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    for number in range(2):
        write_numbered(tmp_path / f"{number}.mp4", 60, video_id=number, gop=12)
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    (tmp_path / "1.mp4").unlink()
    from trocar.loaders.video.video import VideoError

    with pytest.raises(VideoError, match=r"1\.mp4"):
        pretrain(
            config(tmp_path / "corpus", tmp_path / "run", "validation.videos=['1']", "optim.steps=1"), progress=False
        )
