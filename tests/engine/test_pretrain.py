"""Runs: resumed after kill -9 bit by bit, faults in the corpus, what is written down."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clips import write_numbered
from runs import TINY, assert_same_run

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.draws.schedule import Schedule
from trocar.engine.inputs.checkpoints import CheckpointError, checkpoints
from trocar.engine.pretrain import pretrain
from trocar.engine.record.metrics import read_metrics
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.video.video import VideoError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, frames in enumerate([60, 45, 5]):
        write_numbered(folder / f"{number}.mp4", frames, video_id=number, gop=12)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


def settings(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    return [f"data.corpus={corpus}", f"run.dir={run_dir}", *TINY, *more]


@pytest.mark.parametrize("accumulation", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_runs_resume_bit_identically(corpus: Path, tmp_path: Path, accumulation: int) -> None:
    more = [f"optim.accumulation={accumulation}", "optim.steps=40", "run.checkpoint_every=7", "run.keep_checkpoints=2"]
    pretrain(load_config("demo_cpu", settings(corpus, tmp_path / "whole", *more)), progress=False)
    chance = random.Random(accumulation)
    command = [
        sys.executable,
        "-m",
        "trocar.engine.cli",
        "pretrain",
        "demo_cpu",
        *settings(corpus, tmp_path / "killed", *more),
    ]
    kills = 0
    for target in sorted(chance.sample(range(2, 39), 2)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = tmp_path / "killed" / "metrics.jsonl"
        try:
            while process.poll() is None and (not rows.exists() or rows.read_bytes().count(b"\n") < target):
                time.sleep(0.002)
        finally:
            process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills, "every run ended before it was killed"
    result = pretrain(load_config("demo_cpu", settings(corpus, tmp_path / "killed", *more)), progress=False)
    assert result.steps == 40
    assert [row["step"] for row in read_metrics(tmp_path / "killed")] == list(range(1, 41))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert [path.name for path in checkpoints(tmp_path / "killed")] == ["step_00000035", "step_00000040"]


def test_rows_after_the_checkpoint_and_half_written_things_are_cut_off(corpus: Path, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    more = ["optim.steps=12", "run.checkpoint_every=5", "optim.warmup=0"]
    pretrain(load_config("demo_cpu", settings(corpus, whole, *more)), progress=False)
    pretrain(load_config("demo_cpu", settings(corpus, torn, *more)), progress=False)
    for name in ("step_00000012", "step_00000010"):
        (torn / "checkpoints" / name).rename(torn / "checkpoints" / f"unfinished_{name[5:]}")
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    result = pretrain(load_config("demo_cpu", settings(corpus, torn, *more)), progress=False)
    assert result.resumed_from == 5
    assert not list((torn / "checkpoints").glob("unfinished_*"))
    assert_same_run(torn, whole)


def test_a_finished_run_is_left_as_it_is(corpus: Path, tmp_path: Path) -> None:
    config = load_config("demo_cpu", settings(corpus, tmp_path, "optim.steps=3"))
    first = pretrain(config, progress=False)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    second = pretrain(config, progress=False)
    assert (second.resumed_from, second.checkpoint) == (3, first.checkpoint)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_metrics_say_what_happened(corpus: Path, tmp_path: Path) -> None:
    config = load_config(
        "demo_cpu", settings(corpus, tmp_path, "optim.steps=6", "run.log_every=4", "run.tensorboard=true")
    )
    pretrain(config, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["first_clip"] for row in rows] == [0, 4, 8, 12, 16, 20]
    for row in rows:
        assert row.keys() == {
            "step", "loss", "learning_rate", "gradient_norm", "clips_per_second", "amplification", "data_wait_percent",
            "first_clip", "spans_per_second", "bytes_per_clip", "repeated_frames_percent", "replaced_clips", "skipped",
        }  # fmt: skip
        assert row["loss"] > 0
        assert row["gradient_norm"] > 0
        assert row["clips_per_second"] > 0
        assert row["spans_per_second"] == row["clips_per_second"]
        assert row["bytes_per_clip"] > 0
        assert 1 < row["amplification"] < 8
        assert 0 <= row["data_wait_percent"] <= 100
        assert row["replaced_clips"] == 0
    assert any(row["repeated_frames_percent"] > 0 for row in rows), "the five-frame video repeats its last frame"
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_accumulation_and_precision(corpus: Path, tmp_path: Path) -> None:
    """The same draws in one batch or four: equal losses up to rounding. bfloat16: near."""
    losses = {}
    for name, more in {
        "one": [],
        "four": ["optim.accumulation=4"],
        "bfloat16": ["run.precision=bfloat16"],
    }.items():
        pretrain(load_config("demo_cpu", settings(corpus, tmp_path / name, "optim.steps=4", *more)), progress=False)
        losses[name] = [row["loss"] for row in read_metrics(tmp_path / name)]
    assert losses["four"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["bfloat16"] == pytest.approx(losses["one"], rel=0.03)
    assert losses["bfloat16"] != losses["one"]


def test_epochs_count_spans(corpus: Path, tmp_path: Path) -> None:
    # 7 frames a span: 8 + 6 + 1 spans in 60, 45 and 5 frames
    config = load_config("demo_cpu", settings(corpus, tmp_path, "optim.steps=null", "optim.epochs=1.6"))
    assert pretrain(config, progress=False).steps == round(1.6 * 15 / 4)


def test_schedule() -> None:
    schedule = Schedule(peak=1.0, final=0.1, warmup_steps=10, steps=110)
    assert [schedule(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(110) == pytest.approx(0.1)
    rates = [schedule(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_a_deleted_video_costs_its_draws_and_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(12):
        write_numbered(folder / f"{number:02d} ä.mp4", 40, video_id=number, gop=12)
    index_corpus([folder], tmp_path / "corpus", workers=1, progress=False)
    gone = folder / "03 ä.mp4"
    gone.unlink()
    config = load_config("demo_cpu", settings(tmp_path / "corpus", tmp_path / "run", "optim.steps=20"))
    pretrain(config, progress=False)
    with (tmp_path / "run" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["path"] for row in rows} == {str(gone)}
    assert all("trocar index" in row["reason"] for row in rows)
    assert sum(row["replaced_clips"] for row in read_metrics(tmp_path / "run")) == len({row["draw"] for row in rows})


def test_a_corpus_that_is_gone_stops_the_run_with_the_list(tmp_path: Path) -> None:
    for number in range(3):
        write_numbered(tmp_path / f"{number}.mp4", 30, video_id=number)
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    for number in range(3):
        (tmp_path / f"{number}.mp4").unlink()
    config = load_config("demo_cpu", settings(tmp_path / "corpus", tmp_path / "run", "optim.steps=20"))
    with pytest.raises(VideoError, match=r"(?s)0\.mp4.*run `trocar index` again") as error:
        pretrain(config, progress=False)
    assert all(f"{number}.mp4" in str(error.value) for number in range(3))
    with (tmp_path / "run" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        assert {Path(row["path"]).name for row in csv.DictReader(file)} == {"0.mp4", "1.mp4", "2.mp4"}


def test_refuses_what_cannot_be_resumed(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(load_config("demo_cpu", settings(corpus, run, "optim.steps=2")), progress=False)
    with pytest.raises(CheckpointError, match=r"another model; set run\.dir elsewhere"):
        pretrain(load_config("demo_cpu", settings(corpus, run, "optim.steps=4", "model.depth=1")), progress=False)

    write_numbered(tmp_path / "other.mp4", 50)
    index_corpus([tmp_path / "other.mp4"], tmp_path / "other", workers=1, progress=False)
    with pytest.raises(ConfigError, match=r"the run .* began on .*corpus, and .*other is another corpus"):
        pretrain(load_config("demo_cpu", settings(tmp_path / "other", run, "optim.steps=4")), progress=False)
    allowed = settings(
        tmp_path / "other", run, "optim.steps=4", "data.allow_changed_corpus=true", "run.allow_changes=true"
    )
    assert pretrain(load_config("demo_cpu", allowed), progress=False).resumed_from == 2

    (checkpoints(run)[-1] / "rank_00000.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match="to go on from the one before: mv "):
        pretrain(load_config("demo_cpu", [*allowed, "optim.steps=6"]), progress=False)


def test_refuses_to_go_on_with_other_draws(corpus: Path, tmp_path: Path) -> None:
    """The same corpus, drawn otherwise: refused, but where the change begins with a draw that is still to come."""
    run, held = tmp_path / "run", ["data.epoch_draws=4", "data.exclude=['2.mp4']"]
    # Of a constant rate, further steps change nothing.
    held += ["optim.schedule=constant", "optim.warmup=0"]
    pretrain(load_config("demo_cpu", settings(corpus, run, *held, "optim.steps=2")), progress=False)
    for changed in (
        [held[0], *held[2:]],
        [*held, "data.exclude=['1.mp4']"],
        [*held, "data.epoch_draws=8"],
        [*held, "run.seed=1"],
        [*held, "validation.videos=['1.mp4']"],
        [*held, "data.phases=[{first_draw: 4, exclude: []}]"],
    ):
        with pytest.raises(
            ConfigError, match=r"first 2 steps of the run .* would draw other clips now.*draw 8 or later"
        ):
            pretrain(load_config("demo_cpu", settings(corpus, run, *changed, "optim.steps=4")), progress=False)
    later = [*held, "data.phases=[{first_draw: 8, exclude: ['1.mp4']}]"]
    assert (
        pretrain(load_config("demo_cpu", settings(corpus, run, *later, "optim.steps=4")), progress=False).resumed_from
        == 2
    )
    other = [held[0], *held[2:], "data.allow_changed_corpus=true", "optim.steps=6"]
    assert pretrain(load_config("demo_cpu", settings(corpus, run, *other)), progress=False).resumed_from == 4


def test_refuses_a_missing_corpus_and_a_missing_gpu(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder; build it with `trocar index"):
        pretrain(load_config("demo_cpu", settings(tmp_path / "none", tmp_path / "run")), progress=False)
    with pytest.raises(ConfigError, match=r"run\.device=cuda: PyTorch finds no CUDA.*run\.device=cpu"):
        pretrain(load_config("demo_cpu", settings(corpus, tmp_path / "run", "run.device=cuda")), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_said_and_harms_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("demo_cpu", settings(corpus, tmp_path, "optim.steps=4", "run.checkpoint_every=2"))

    def full(descriptor: int) -> None:
        if (tmp_path / "checkpoints" / "step_00000002").exists():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((CheckpointError, OSError), match="No space left on device"):
        pretrain(config, progress=False)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    assert pretrain(config, progress=False).resumed_from == 2
