"""The bench of training: what is timed and counted, step by step and over ranks, and how it is told."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import write_numbered
from ranks import CONTEXT, TINY, free_port, made_batch

from trocar.bench.rows.row import read_rows, row
from trocar.bench.rows.timing import Ceilings
from trocar.bench.training import parts as training_command
from trocar.bench.training.clock import StepTimes, time_steps
from trocar.bench.training.parts import bench_training, sweep_points
from trocar.bench.training.ranks import account, bench_ranks, efficiency, measure_rank
from trocar.bench.training.table import table
from trocar.bench.training.training import Effort, bench_steps
from trocar.engine.cli import main
from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.record.readback import StepReport, StepSums
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.decode.batch import ClipBatch, LoaderCount
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings

SETTINGS = [*TINY, "run.device=cpu", "optim.batch=4", "run.precision=float32"]
SMALL = Effort(sets=2, steps=2, warmup=1)
CEILINGS = Ceilings(1e10, 1e11, "float32")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("training")
    (folder / "videos").mkdir()
    for number in range(2):
        write_numbered(folder / "videos" / f"{number}.mp4", 120, video_id=number, gop=40)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, content_box=False, progress=False)
    pack_corpus(folder / "corpus", folder / "packed", PackSettings(stride=2), workers=1, progress=False)
    return {"originals": folder / "corpus", "proxies": folder / "packed"}


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_steps_waits_and_losses_are_those_of_the_timed_steps() -> None:
    clock, log = Time(), list[int]()
    run: Any = SimpleNamespace(world=SimpleNamespace(device=torch.device("cpu")))

    def batches() -> Iterator[ClipBatch]:
        for number in itertools.count():
            clock.now += 0.25 * (number + 1)  # what waiting for it takes
            yield made_batch(np.arange(3), 4, 16)

    def step(run: Any, number: int, fed: Iterator[ClipBatch]) -> StepReport:
        next(fed)
        clock.now += 1.0  # what computing takes
        log.append(number)
        sums = StepSums.zeros(3, 1, torch.device("cpu"))
        sums.values[:3] = torch.tensor([number + 0.5, 0, 0])
        sums.tell(0, LoaderCount(clips=3, frames_used=12), False, 0.0, 0.0)
        return StepReport({}, 4, 0.0, sums, torch.zeros(()), torch.zeros(()))

    times = time_steps(run, batches(), 3, warmup=2, first_step=10, clock=clock, step=step)
    assert log == [10, 11, 12, 13, 14]
    assert times.seconds == (1.75, 2.0, 2.25)
    assert times.waited == 0.75 + 1.0 + 1.25
    assert times.losses == (12.5, 13.5, 14.5)
    assert times.count.clips == 9
    assert times.clips_per_second == pytest.approx(9 / 6)
    assert times.data_wait_percent == pytest.approx(50)


def test_every_arm_trains_on_what_it_says(corpora: dict[str, Path]) -> None:
    rows = bench_steps("demo_cpu", SETTINGS, corpora, effort=SMALL, sweep=[("optim.batch", "half")], ceilings=CEILINGS)
    arms = ["resident", "replayed", "loader, originals", "loader, proxies"]
    assert [(entry["arm"], entry["batch"], entry["changed"]) for entry in rows] == [
        *((arm, 4, "") for arm in arms),
        *((arm, 2, "optim.batch=2") for arm in arms),
    ]
    by_arm = {entry["arm"]: entry for entry in rows[:4]}
    assert by_arm["resident"]["amplification"] is None
    assert by_arm["loader, originals"]["amplification"] > by_arm["loader, proxies"]["amplification"] >= 1
    assert by_arm["resident"]["of_resident"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    for entry in rows:
        assert entry["steps_timed"] == 4
        assert len(entry["clips_per_second_by_set"]) == 2
        assert entry["flops_per_second"]["median"] == pytest.approx(
            entry["flops_per_clip"] * entry["clips_per_second"]["median"]
        )
        assert entry["of_matrix_ceiling"]["median"] == pytest.approx(entry["flops_per_second"]["median"] / 1e11)
    # 4 x 16 x 16 pixels are 8 tokens, of which the mask leaves two: one cell of four at two time steps.
    tokens = (
        by_arm["resident"]["visible_tokens_per_second"]["median"] / by_arm["resident"]["clips_per_second"]["median"]
    )
    assert tokens == pytest.approx(2)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    text = table(rows)
    assert "The step and its data (optim.batch=2): MAE" in text
    assert "| loader, proxies | " in text


def test_resident_steps_are_the_engines_own(corpora: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that sleeps shows in its own arm and in no other."""
    from trocar.loaders.cpu import ClipLoader

    begin = ClipLoader._finish

    def late(self: Any, block: Any) -> Any:
        import time

        time.sleep(0.2)
        return begin(self, block)

    monkeypatch.setattr(ClipLoader, "_finish", late)
    rows = bench_steps("demo_cpu", SETTINGS, {"proxies": corpora["proxies"]}, effort=SMALL, ceilings=CEILINGS)
    by_arm = {entry["arm"]: entry for entry in rows}
    assert by_arm["loader, proxies"]["data_wait_percent"]["median"] > 60
    assert by_arm["resident"]["data_wait_percent"]["median"] < 30
    assert by_arm["loader, proxies"]["of_resident"]["median"] < 0.6


def one_of_two(rank: int, port: int, out: str, settings: list[str]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    measure_rank(load_config("demo_cpu", settings), Effort(sets=2, steps=3, warmup=1), Path(out))


@pytest.mark.slow
def test_two_ranks_add_up(tmp_path: Path) -> None:
    settings = [*SETTINGS, "optim.batch=6", f"run.dir={tmp_path}"]
    out, port = tmp_path / "row.json", free_port()
    started = [
        CONTEXT.Process(target=one_of_two, args=(rank, port, str(out), settings), daemon=True) for rank in (0, 1)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    entry = json.loads(out.read_text())
    assert entry["world_size"] == 2
    assert entry["clips"] == 2 * 3 * 6
    for rates in entry["clips_per_second_by_rank"]:
        assert len(rates) == 2
        assert rates[0] == pytest.approx(rates[1], rel=0.5), "they meet in every step"
    whole = statistics.harmonic_mean([min(rates) * 2 for rates in entry["clips_per_second_by_rank"]])
    assert entry["clips"] / entry["seconds"] == pytest.approx(whole, rel=0.05)


def test_accounts_of_ranks() -> None:
    found = account([[(6, 2.0), (6, 3.0)], [(6, 4.0), (6, 4.0)], [(6, 1.0), (6, 1.0)]], 12)
    assert found["clips_per_second"] == {"median": 4.0, "low": 3.0, "high": 12.0}
    assert found["clips_per_second_by_rank"][0] == [3.0, 2.0]
    assert (found["clips"], found["seconds"], found["world_size"]) == (36, 8.0, 2)
    with pytest.raises(AssertionError, match="11 clips were trained on by 2 ranks, 12 were due"):
        account([[(5, 2.0), (6, 3.0)]], 12)
    one, four = ({"clips_per_second": {"median": rate}, "world_size": size} for rate, size in ((2.0, 1), (6.0, 4)))
    assert efficiency(four, one) == 0.75


@pytest.mark.slow
def test_ranks_are_started_by_torchrun(tmp_path: Path) -> None:
    rows = bench_ranks("demo_cpu", [*SETTINGS, f"run.dir={tmp_path}"], [2, 1], effort=SMALL)
    assert [entry["world_size"] for entry in rows] == [1, 2]
    assert [entry["batch"] for entry in rows] == [4, 8]
    assert rows[0]["efficiency"] == 1
    assert rows[1]["efficiency"] > 0
    assert "| 2 | " in table(rows)
    with pytest.raises(ConfigError, match="ranks did not run"):
        bench_ranks("demo_cpu", [*SETTINGS, "model.patch=7"], [1], effort=SMALL)


def test_sweeps_are_told_apart() -> None:
    assert sweep_points(None, "mae") == []
    assert sweep_points(["optim.batch=2,4", "model.encoder=base"], "mae") == [
        ("optim.batch", "2"),
        ("optim.batch", "4"),
        ("model.encoder", "base"),
    ]
    assert ("objective.mask_ratio", "0.95") in sweep_points([], "mae")
    assert not any(key == "objective.mask_ratio" for key, _ in sweep_points([], "jepa"))
    with pytest.raises(ConfigError, match=r"--sweep batch=2: give it as section\.key=value,value"):
        sweep_points(["batch=2"], "mae")


def test_the_command_writes_rows_as_they_come(
    corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_command, "CPU_EFFORT", Effort(sets=1, steps=1, warmup=0))
    out = tmp_path / "training.jsonl"
    command = ["bench", "training", "demo_cpu", *SETTINGS, "--device", "cpu", "--parts", "steps", "--out", str(out)]
    where = ["--corpus", str(corpora["originals"]), "--packed", str(corpora["proxies"])]
    assert main([*command, *where]) == 0
    rows = read_rows(out)
    assert [entry["arm"] for entry in rows] == ["resident", "replayed", "loader, proxies"]
    assert {"machine", "versions", "commit", "time", "benchmark"} <= set(rows[0])
    assert "| resident | " in capsys.readouterr().out
    assert main([*command, "--packed", "x"]) == 2
    assert main(["bench", "training", "--device", "cpu", "--parts", "stepps"]) == 2
    assert main(["bench", "training", "--device", "cpu", "--peers", "me"]) == 2
    assert main(["bench", "training", "--device", "cpu", "--ranks", "0,1"]) == 2
    errors = capsys.readouterr().err
    assert "give --corpus too" in errors
    assert "stepps is not accepted; there are peers, decoder-mask, end-to-end, steps, ranks" in errors
    assert "me is not accepted; there are Hugging Face, SDPA" in errors
    assert "'0,1' is not accepted" in errors


def test_the_part_of_the_decoder_mask() -> None:
    settings = [*SETTINGS, "model.positions=flat"]
    rows = bench_training("cpu", config="demo_cpu", overrides=settings, parts=["decoder-mask"], rounds=1)
    assert [entry["arm"] for entry in rows] == ["trocar", "Hugging Face, SDPA"]
    assert {(entry["part"], entry["decoder_mask_ratio"], entry["reason"]) for entry in rows} == {
        ("decoder mask", 0.5, "")
    }
    assert rows[1]["ours_against_it"]["median"] > 0
    text = table(rows)
    assert "decoder mask 0.5" in text
    assert "| Hugging Face, SDPA |" in text


def test_without_a_gpu_cuda_is_refused() -> None:
    with pytest.raises(ConfigError, match="PyTorch finds no CUDA device"):
        bench_training("cuda")


def made_row(arm: str, speed: float, **more: Any) -> dict[str, Any]:
    speeds = {"median": speed, "low": speed, "high": speed}
    facts = {
        "part": "peers",
        "objective": "mae",
        "encoder": "small",
        "frames": 16,
        "resolution": 224,
        "mask_ratio": 0.9,
    }
    facts |= {"precision": "float32", "batch": 2, "rounds": 7, "tolerance": 1e-5, "threads": 2}
    return row(
        "training",
        torch.device("cpu"),
        {**facts, "arm": arm, "clips_per_second": speeds, "core_seconds_per_clip": speeds, "reason": "", **more},
    )


@pytest.mark.parametrize("ours", [3.0, 1.0])
def test_the_fastest_stands_first_whoever_it_is(ours: float) -> None:
    ratio = {"median": ours / 2, "low": ours / 2, "high": ours / 2, "confidence": 0.98}
    ratios = {"ours_against_it": ratio, "ours_against_it_in_core_seconds": ratio}
    peer = made_row("Hugging Face, SDPA", 2.0, **ratios, largest_loss_difference=1e-7)
    text = table([made_row("trocar", ours), peer])
    order = [text.index("| trocar |"), text.index("| Hugging Face, SDPA |")]
    assert (order == sorted(order)) == (ours > 2)


def test_step_times_of_nothing_waited() -> None:
    times = StepTimes((0.5, 0.5), 0.0, (1.0, 1.0), LoaderCount(clips=4))
    assert (times.clips_per_second, times.data_wait_percent) == (4.0, 0.0)
