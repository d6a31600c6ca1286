"""Pictures while a run trains, and who is told of them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import JEPA, make_corpus
from runs import TINY, assert_same_run

from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.pretrain import pretrain
from trocar.engine.ranks.distributed import World
from trocar.engine.record.progress import StepProgress, duration
from trocar.engine.record.trackers import Mlflow
from trocar.engine.step.build import build_model
from trocar.engine.view.live import LINE, LivePictures


class MadeMlflow(SimpleNamespace):
    """Stands in for the package: keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(asked=[], rows=[], images=[], ended=0)

    def set_experiment(self, name: str) -> None:
        self.asked.append(name)

    def start_run(self, run_id: str | None, run_name: str | None) -> Any:
        self.asked.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "made"))

    def log_metrics(self, values: dict[str, float], step: int, synchronous: bool) -> None:
        assert not synchronous
        self.rows.append((step, values))

    def log_image(self, picture: np.ndarray, key: str, step: int, synchronous: bool) -> None:
        assert not synchronous
        self.images.append((step, key, picture.shape))

    def end_run(self) -> None:
        self.ended += 1


# The decoder of such an MAE drops tokens, which pictures show all the same.
@pytest.mark.parametrize(
    "settings",
    [["objective.decoder_mask_ratio=0.5", "data.resolution=64"], pytest.param(JEPA, marks=pytest.mark.slow)],
    ids=["mae", "jepa"],
)
def test_pictures_change_nothing_and_reach_all_trackers(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, mlflow, shown = make_corpus(tmp_path / "corpus"), MadeMlflow(), []
    wandb_run = SimpleNamespace(log=lambda row, step: shown.append((step, row)), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=lambda **_: wandb_run, Image=lambda picture: picture.shape)
    )
    common = [f"data.corpus={corpus}", *TINY, *settings, "optim.steps=4", "run.device=cpu", "run.precision=float32"]
    pretrain(load_config("demo_cpu", [*common, f"run.dir={tmp_path / 'without'}"]), progress=False)
    told = ["run.tensorboard=true", "run.wandb=surgery", "run.mlflow=surgery", "run.pictures_every=2"]
    run = tmp_path / "run"
    pretrain(load_config("demo_cpu", [*common, *told, f"run.dir={run}"]), progress=False)
    assert_same_run(run, tmp_path / "without")
    side = 64 if "data.resolution=64" in settings else 32
    lines = (1, 1) if side == 64 else (3, 2)  # narrow pictures wrap their titles
    shapes = {
        "reconstruction": (2 * side + LINE * lines[0], 3 * 4 * side, 3),
        "features": (2 * side + LINE * lines[1], 2 * 4 * side, 3),
    }
    expected = [(step, name, shape) for step in (2, 4) for name, shape in shapes.items()]
    assert mlflow.images == expected
    assert [(step, *pair) for step, row in shown for pair in row.items() if pair[0] in shapes] == expected
    for step, name, shape in expected:
        with Image.open(run / "pictures" / f"{name}_{step:08d}.png") as image:
            assert np.asarray(image).shape == shape
            assert np.asarray(image).std() > 10
            for title in np.array_split(np.asarray(image)[:LINE], shape[1] // (4 * side), axis=1):
                assert title.max() > 200 > 50 > title.mean()
    assert (mlflow.asked, mlflow.ended, [step for step, _ in mlflow.rows]) == (
        ["surgery", (None, "run")],
        1,
        [1, 2, 3, 4],
    )
    assert "loss" in mlflow.rows[0][1]
    steps = [step for step, _ in shown]
    assert steps == sorted(steps), "a later step would be refused"
    assert [set(row) <= {*shapes} for _, row in shown] == [False, False, True, True, False, False, True, True]
    Mlflow("surgery", run)
    assert mlflow.asked[-1] == ("made", None), "it goes on where it was"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {name: [event.step for event in events.Images(name)] for name in shapes} == {name: [2, 4] for name in shapes}


def test_mlflow_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"run\.mlflow: 'surgery' needs MLflow; pip install mlflow"):
        Mlflow("surgery", tmp_path)


def test_training_goes_on_without_pictures_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a disk is full, or the clips cannot be read: it is said, and tried again when the next are due."""
    config = load_config("demo_cpu", [*TINY, "run.pictures_every=2"])
    objective, _ = build_model(config)
    live = LivePictures(config, objective, World(torch.device("cpu"), 0, 1, 0, 1), lambda *_: None)
    asked: list[int] = []

    def unreadable(_config: object, clips: int) -> None:
        asked.append(clips)
        raise OSError("no space left")

    monkeypatch.setattr("trocar.engine.view.live.unseen_batch", unreadable)
    for step in range(1, 5):
        live.update(step)
    assert asked == [2, 2]
    assert capsys.readouterr().err.count("no space left") == 2


def test_pictures_need_the_whole_model() -> None:
    with pytest.raises(ConfigError, match=r"run\.pictures_every"):
        load_config("demo_cpu", ["run.pictures_every=5", "run.sharding=full"])


def test_a_line_says_what_is_left_and_what_is_held(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trocar.loaders.corpus.progress.SECONDS_BETWEEN_LINES", -1.0)
    now = [100.0]
    monkeypatch.setattr("trocar.engine.record.progress.time.monotonic", lambda: now[0])
    row = {"loss": 1.0, "clips_per_second": 2.0, "amplification": 3.0, "data_wait_percent": 60.0}
    with StepProgress(10, 40, memory=lambda: 2_500_000_000) as bar:
        for step in (11, 13, 40):
            bar.update(row | {"step": step})
            now[0] += 30.0
    first, second, last = capsys.readouterr().err.splitlines()
    assert "held up by: decoding  memory 2.5 GB" in first
    assert second.endswith("left 0:06:45")  # 27 steps of 15 s
    assert "left" not in first + last
    assert duration(200_000) == "2 days 7:33:20"
    with StepProgress(0, 1) as bar:
        bar.update(row | {"step": 1})
    held = float(capsys.readouterr().err.split("memory ")[1].split(" GB")[0])
    assert 0.05 < held < 100
