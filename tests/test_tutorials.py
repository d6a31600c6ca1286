"""docs/tutorials as notebooks, whose cells are what is printed, executed in order on made videos; each ends in a picture."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def notebook(name: str) -> dict[str, Any]:
    """Of the page, as `make notebooks` writes it."""
    spec = importlib.util.spec_from_file_location("notebooks", FOLDER.parents[1] / ".ci/notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads(json.dumps(module.notebook((FOLDER / f"{name}.md").read_text(encoding="utf-8"))))


def code_cells(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]


def test_notebooks_hold_the_pages_and_nothing_else() -> None:
    """Every word of a page in its place; what runs in cells of its own, commands behind "!"; cells as nbformat 4.5 wants them."""
    for name in ENDS_IN:
        page, made = (FOLDER / f"{name}.md").read_text(encoding="utf-8"), notebook(name)
        assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
        assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
        keys = {"id", "cell_type", "metadata", "source"}
        told = ""
        for cell in made["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "code":
                assert {*cell} == {*keys, "outputs", "execution_count"}
                is_shell = text.startswith("!")
                assert all(line.startswith("!") for line in text.splitlines()) == is_shell
                text = f"```{'sh' if is_shell else 'python'}\n{text.replace('!trocar', 'trocar')}\n```"
            else:
                assert {*cell} == keys
                assert "```python" not in text
                assert "```sh" not in text
            told += f"{text}\n\n"
        assert told.split() == page.split(), name
        wanted = [text for language, text in blocks(name) if language != "bash"]
        assert [text.replace("!trocar", "trocar") for text in code_cells(name)] == [
            text.rstrip("\n") for text in wanted
        ]


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
    for text in code_cells(name):
        if not text.startswith("!"):
            exec(compile(text, name, "exec"), names)
            continue
        for command in (line.removeprefix("!") for line in text.splitlines()):
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
