"""docs/launch.md: its commands for a CPU run as they stand, its sums are the code's, its settings exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from ranks import make_corpus

from trocar.engine.cli import main
from trocar.engine.config.settings import DataConfig, OptimConfig, RunConfig, ValidationConfig
from trocar.engine.draws.schedule import build_schedule
from trocar.engine.ranks.distributed import COLLECTIVE_GRACE
from trocar.engine.ranks.stop import REQUEUE_STATUS
from trocar.engine.record.metrics import read_metrics

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "launch.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
SMALL = (
    "data.frames=4 data.stride=2 data.resolution=32 model.patch=8 model.encoder=tiny model.depth=1 model.decoder_depth=1 "
    "run.precision=float32"
)


@pytest.mark.parametrize("number", range(len(SHELL)))
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    make_corpus(tmp_path)
    command = f"{SHELL[number].strip()} {SMALL}"
    if "--dry-run" in command:
        command += " optim.batch=64"
    if command.startswith("trocar "):  # in this process, which has imported everything
        monkeypatch.chdir(tmp_path)
        assert main(shlex.split(command)[1:]) == 0
        if "validation." in command:
            assert [row["step"] for row in read_metrics(tmp_path / "runs/held") if "validation_loss" in row] == [2, 4]
        return
    command = command.replace("torchrun", f"{sys.executable} -m torch.distributed.run", 1)  # what torchrun is
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert (tmp_path / "runs/two/checkpoints/step_00000004/rank_00001.safetensors").exists()


def test_sums_are_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.e-]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for batch, gpus, accumulation, clips, rate in rows:
        assert int(batch) == int(gpus) * int(accumulation) * int(clips)
        config = OptimConfig(batch=int(batch), accumulation=int(accumulation), steps=10, warmup=0.0)
        assert build_schedule(config, 10)(0) == pytest.approx(float(rate))


def test_settings_and_figures_exist() -> None:
    sections = {"run": RunConfig, "optim": OptimConfig, "data": DataConfig, "validation": ValidationConfig}
    known = {f"{name}.{item.name}" for name, section in sections.items() for item in fields(section)}
    named = set(re.findall(rf"\b((?:{'|'.join(sections)})\.[a-z_]+)\b(?!\()", PAGE)) - {"run.json"}
    assert named <= known
    settings = {item.name: item.default for item in fields(RunConfig)}
    assert f"`run.heartbeat_timeout` ({settings['heartbeat_timeout']:g} s)" in PAGE
    assert f"`run.save_timeout` ({settings['save_timeout']:g} s)" in PAGE
    assert f"`run.rank_timeout` ({settings['rank_timeout']:g} s)" in PAGE
    limit = DataConfig(corpus="none").clip_timeout
    assert limit is not None
    assert f"`data.clip_timeout` ({limit:g} s)" in PAGE
    assert f"({COLLECTIVE_GRACE:g} times it)" in PAGE
    assert f"exit status **{REQUEUE_STATUS}**" in PAGE
    assert f'"$status" -eq {REQUEUE_STATUS}' in PAGE
