"""Every command and every example of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from clips import write_numbered

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
ENCODER, LOADER = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TINY = "model.encoder=tiny model.depth=1 model.decoder_depth=1 optim.batch=2 optim.accumulation=1 optim.steps=2"

SMALL = "epochs=2 train_views=1 segments=1 crops=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "videos").mkdir()
    for number in range(2):
        write_numbered(folder / "videos" / f"{number}.mp4", 80, video_id=number)
    return folder


def shell(command: str, folder: Path) -> str:
    # The interpreter that runs the tests is the one that make finds set up.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    finished = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_the_commands_are_these() -> None:
    assert [shlex.split(command)[:2] for command in COMMANDS] == [
        ["make", "demo"],
        ["make", "test"],
        ["trocar", "index"],
        ["trocar", "embed"],
        ["trocar", "cluster"],
        ["trocar", "pretrain"],
        ["trocar", "view"],
        ["trocar", "view"],
        ["trocar", "finetune"],
        ["trocar", "predict"],
        ["trocar", "doctor"],
    ]


@pytest.mark.parametrize("videos", ["", "VIDEOS"])
def test_make_demo(folder: Path, videos: str) -> None:
    out = folder / f"demo{videos}"
    more = f"VIDEOS='{folder / 'videos'}'" if videos else ""
    # Elsewhere than in an environment that `make` has set up, setting one up takes a network: tests/test_setup.py has that part.
    made = (ROOT / ".venv" / "trocar-stamp").exists()
    ready = "" if made else f"-o setup BIN='{Path(sys.executable).parent}'"
    printed = shell(f"make -s demo {ready} {more} ARGS='--out {out} optim.steps=2 optim.batch=2'", ROOT)
    for name in ("checkpoint", "curve", "reconstruction"):
        (path,) = re.findall(rf"^{name} +(.+)$", printed, re.MULTILINE)
        assert Path(path).exists(), path
    assert (out / "videos").exists() != bool(videos)


def test_make_test_sets_up_lints_types_and_tests() -> None:
    planned = shell("make -n test", ROOT)
    for step in ("setup.sh '[dev]'", "ruff check .", "pyright", 'pytest -m "not slow"'):
        assert step in planned


def test_the_trocar_commands(folder: Path) -> None:
    rows = ["video,start,end,label,subject", *(f"{n % 2}.mp4,{n},{n + 1},{'ab'[n // 2 % 2]},{n}" for n in (0, 1, 2))]
    rows += [f"{n}.mp4,0.5,1.5,{'ab'[n]},{n + 3}" for n in (0, 1)]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    for command in COMMANDS[2:10]:
        command = command.replace("/data/videos", "videos")
        if "finetune" in command:
            assert "majority baseline" in shell(f"{command} --device cpu {SMALL}", folder)
            continue
        if "predict" in command:
            command = f"{command} --device cpu"
        if "pretrain" in command:
            command = f"{command} {TINY} run.device=cpu"
        shell(command, folder)
    for name in ("checkpoints/step_00000002", "reconstruction.png", "curve.png", "metrics.jsonl", "config.yaml"):
        assert (folder / "runs/first" / name).exists()
    predicted = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert predicted[0] == "file,start_seconds,end_seconds,label,p(a),p(b)"
    assert len(predicted) > 2
    code = (
        "import torch, types\nbatch = types.SimpleNamespace(frames=torch.zeros(2, 8, 64, 64, 3, dtype=torch.uint8))\n"
    )
    code += ENCODER + "\nprint(tuple(vectors.shape), vectors.dtype, tuple(encoder(batch.frames).shape))"
    said = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "(2, 192) torch.float32 (2, 64, 192)", said.stderr
    assert "torchvision" in shell(COMMANDS[10], folder)


def test_the_python_example(folder: Path) -> None:
    code = LOADER + "\nprint(tuple(batch.frames.shape), batch.frames.dtype, sorted(batch.labels))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert printed.stdout.strip() == "(2, 16, 224, 224, 3) torch.uint8 ['clip', 'dissect']", printed.stderr


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_extras_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"trocar\[(\w+)\]", README):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    assert "distributed" not in project, "Dask, which nothing imports"
