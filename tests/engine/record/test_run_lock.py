"""A run's folder is held by one training at a time, and let go of however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trocar.engine.config.error import ConfigError
from trocar.engine.ranks.distributed import World
from trocar.engine.record.run_lock import run_locked

HOLD = """
import sys, torch
from pathlib import Path
from trocar.engine.ranks.distributed import World
from trocar.engine.record.run_lock import run_locked
with run_locked(Path(sys.argv[1]), World(torch.device("cpu"))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_training_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    world, run_dir = World(torch.device("cpu")), tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=rf"process {first.pid} on .* is training in {run_dir}"),
            run_locked(run_dir, world),
        ):
            pytest.fail("both hold it")
        os.kill(first.pid, signal.SIGKILL)
    for _ in range(2):
        with run_locked(run_dir, world):
            assert f"process {os.getpid()} on" in (run_dir / ".lock").read_text()
