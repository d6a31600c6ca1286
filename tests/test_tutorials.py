"""docs/tutorials, executed as they are printed, on made videos; each ends in a picture."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trocar.engine.cli import build_parser, main

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "tutorials"
# By page: the picture, or the page of HTML, that it ends in.
ENDS_IN = {
    "pretrain": ("features.png", "report.html"),
    "loaders": ("clip.png",),
    "curate": ("even.png", "neighbours.png", "tree.html"),
    "judge": ("predictions.png",),
    "slurm": ("slurm.png", "slurm.html"),
}
# What a cluster has and this machine has not: every task of a job in turn, at once, on this machine.
SRUN = """#!/bin/bash
shift
for task in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!); done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
"""


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) in order."""
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(r"```(python|sh|bash)\n(.*?)```", text, re.DOTALL)


def test_there_are_five_and_their_commands_exist() -> None:
    """Every option and setting is one that a command takes, every Python example compiles."""
    assert {path.stem for path in FOLDER.glob("*.md")} == {*ENDS_IN}
    parser = build_parser()
    for name in ENDS_IN:
        for language, text in blocks(name):
            if language == "python":
                compile(text, name, "exec")
            for command in text.splitlines() if language == "sh" else ():
                program, *arguments = shlex.split(command)
                assert program == "trocar"
                options, left = parser.parse_known_args(arguments)
                assert not left or (hasattr(options, "overrides") and all("=" in text for text in left)), command


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": name}
    for language, text in blocks(name):
        if language == "python":
            exec(compile(text, name, "exec"), names)
        for command in text.splitlines() if language == "sh" else ():
            if command.startswith("trocar report runs/slurm"):
                job(folder)
            assert main(shlex.split(command)[1:]) == 0, command
    for file in ENDS_IN[name]:
        if file.endswith(".png"):
            with Image.open(file) as image:
                assert np.asarray(image.convert("RGB")).std() > 5, file
        else:
            assert "</html>" in Path(file).read_text(encoding="utf-8")


def job(folder: Path) -> None:
    """The page's job under stand-ins for srun and scontrol."""
    ((_, text),) = [block for block in blocks("slurm") if block[0] == "bash"]
    for file, content in {"trocar.sbatch": text, "srun": SRUN, "scontrol": "#!/bin/bash\necho localhost\n"}.items():
        (folder / file).write_text(content)
        (folder / file).chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "1"}
    environment = {**os.environ, **slurm, "PATH": path, "OMP_NUM_THREADS": "1", "MASTER_PORT": "29731"}
    done = subprocess.run(
        ["bash", "trocar.sbatch"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "runs/slurm/checkpoints/step_00000008/rank_00001.safetensors").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # of the peers
@pytest.mark.parametrize("name", ENDS_IN)
def test_a_tutorial_runs_as_printed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "slurm":
        from trocar.engine.demo import make_videos

        make_videos(tmp_path / "videos", num_videos=2, seconds=6)
    run(name, tmp_path, monkeypatch)
