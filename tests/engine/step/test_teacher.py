"""A frozen teacher is what was saved, pinned by its checksum, remembered by the run. A JEPA's run has no picture to rebuild."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ranks import TINY, make_corpus, train_made

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.curate.embedders import load_embedder
from trocar.engine.inputs.checkpoints import CheckpointError, checkpoints
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step.teacher import load_teacher
from trocar.engine.weights.run_encoder import load_run_encoder, weights_digest

STUDENT = [
    "objective.kind=jepa", "data.resolution=32", "model.width=12", "model.predictor_width=12", "model.predictor_heads=2",
    "model.predictor_depth=1", "optim.steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two steps: two MAEs, a JEPA whose target follows, and one taught by a copy of the first MAE, which is gone."""
    folder = tmp_path_factory.mktemp("teacher")
    corpus = f"data.corpus={make_corpus(folder / 'videos')}"
    mae = [*TINY, corpus, "data.resolution=32", "optim.steps=2"]
    train_made([*mae, f"run.dir={folder / 'mae'}"])
    train_made([*mae, f"run.dir={folder / 'other'}", "run.seed=1"])
    jepa = [*TINY, corpus, *STUDENT]
    train_made([*jepa, f"run.dir={folder / 'jepa'}", "optim.ema=[0.5, 0.5]"])
    shutil.copytree(folder / "mae", folder / "gone")
    train_made([*jepa, f"run.dir={folder / 'taught'}", f"objective.teacher={folder / 'gone'}"])
    shutil.rmtree(folder / "gone")
    return folder


def student(folder: Path, run: Path, teacher: str, *more: str) -> Config:
    corpus = f"data.corpus={folder / 'videos' / 'corpus'}"
    return load_config(
        "demo_cpu", [*TINY, corpus, *STUDENT, f"run.dir={run}", f"objective.teacher={folder / teacher}", *more]
    )


def digest(path: Path) -> str:
    return weights_digest(load_run_encoder(path)[0])


def saved(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(run)[-1]).model


@pytest.mark.parametrize(("run", "part"), [("mae", "encoder."), ("jepa", "target_encoder.")])
def test_the_teacher_is_the_encoder_that_was_saved(run: str, part: str, folder: Path, tmp_path: Path) -> None:
    teacher = load_teacher(student(folder, tmp_path / "run", run))
    assert teacher is not None
    tensors = {name.removeprefix(part): value for name, value in saved(folder / run).items() if name.startswith(part)}
    assert tensors.keys() == teacher.state_dict().keys()
    assert all(torch.equal(value.float(), tensors[name].float()) for name, value in teacher.state_dict().items())
    if run == "jepa":
        own = saved(folder / run)
        assert any(not torch.equal(own[part + name], own["encoder." + name]) for name in tensors), (
            "the target's, not the encoder's"
        )
    assert digest(checkpoints(folder / run)[-1]) == digest(folder / run)


def test_a_run_remembers_its_teacher(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert load_teacher(load_config("demo_jepa_cpu", ["data.corpus=none"])) is None
    load_teacher(student(folder, run, "mae"))
    record = json.loads((run / "teacher.json").read_text())
    assert record == {"path": str(folder / "mae"), "checksum": digest(folder / "mae")}
    load_teacher(student(folder, run, "mae"))
    with pytest.raises(ConfigError, match=rf"has the checksum .*teacher.json says {record['checksum']}"):
        load_teacher(student(folder, run, "other"))
    assert json.loads((run / "teacher.json").read_text()) == record, "what is refused is not remembered"


def test_a_checksum_pins_the_teacher(folder: Path, tmp_path: Path) -> None:
    checksum = digest(folder / "mae")
    pin = f"objective.teacher_checksum={checksum}"
    assert load_teacher(student(folder, tmp_path / "right", "mae", pin)) is not None
    with pytest.raises(ConfigError, match=f"objective.teacher_checksum says {checksum}"):
        load_teacher(student(folder, tmp_path / "wrong", "other", pin))
    assert not (tmp_path / "wrong").exists()


def test_what_is_no_teacher_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a run .* nor a checkpoint of one"):
        load_teacher(student(folder, tmp_path / "run", "videos"))


def test_a_taught_run_leaves_its_teacher_alone(folder: Path) -> None:
    rows = read_metrics(folder / "taught")
    assert len(rows) == 2
    assert rows[0]["loss"] > 0
    assert not [name for name in saved(folder / "taught") if name.startswith("target_encoder.")]
    record = json.loads((folder / "taught" / "teacher.json").read_text())
    assert record["checksum"] == digest(folder / "mae")


def test_a_taught_encoder_embeds_without_its_teacher(folder: Path) -> None:
    """The teacher of "taught" is gone; the run's record of it stays as it is."""
    record = (folder / "taught" / "teacher.json").read_text()
    encoder, tensors = load_run_encoder(folder / "taught")[0], saved(folder / "taught")
    assert all(torch.equal(value, tensors["encoder." + name].float()) for name, value in encoder.state_dict().items())
    embedder = load_embedder(str(folder / "taught"), torch.device("cpu"))
    assert embedder.digest == weights_digest(encoder)
    assert (folder / "taught" / "teacher.json").read_text() == record


def test_errors_of_features_are_viewed_where_the_target_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The teacher of "taught" is gone: what its errors are is not known; its curve is."""
    assert main(["view", "recon", str(folder / "jepa"), "--clips", "2"]) == 0
    assert (folder / "jepa" / "reconstruction.png").stat().st_size > 1000
    capsys.readouterr()
    assert main(["view", "recon", str(folder / "taught"), "--clips", "2"]) != 0
    assert "teacher" in capsys.readouterr().err
    assert not (folder / "taught" / "reconstruction.png").exists()
    assert main(["view", "curve", str(folder / "taught")]) == 0
    assert (folder / "taught" / "curve.png").stat().st_size > 1000
