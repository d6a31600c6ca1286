"""What runs leave behind can be read by colleagues; what may not be read is not called damaged; nobody is told to delete."""

from __future__ import annotations

import ast
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from motion_task import tiny_conversion
from ranks import TINY, make_corpus
from safetensors.torch import save_file

from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.inputs.checkpoints import checkpoints
from trocar.engine.pretrain import pretrain
from trocar.engine.weights.convert import read_encoder, save_encoder
from trocar.engine.weights.encoder_sources import find_encoder
from trocar.engine.weights.export import export_weights
from trocar.engine.weights.files import WeightsError, read_weights
from trocar.judge.downstream.training_state import restore_state, save_state
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.whole_file import write_whole

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65534


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, beside its corpus."""
    folder = tmp_path_factory.mktemp("colleagues")
    corpus = make_corpus(folder)
    more = [f"data.corpus={corpus}", f"run.dir={folder / 'run'}", *TINY, "optim.batch=2", "optim.steps=2"]
    with umask(0o027):
        pretrain(load_config("demo_cpu", more), progress=False)
        export_weights(folder / "run")
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    return folder / "run"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """`path` may not be read; root, who may read all, is somebody else meanwhile."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)


def test_what_a_run_leaves_has_the_mode_of_the_umask(run: Path, tmp_path: Path) -> None:
    with umask(0o027):
        save_encoder(tiny_conversion(), tmp_path / "converted.safetensors")
        save_state(tmp_path / "probe.safetensors", [torch.nn.Linear(2, 2)], None, 1)
    files = [path for folder in (run, tmp_path) for path in folder.rglob("*") if path.is_file()]
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files}
    assert set(modes.values()) == {"0o640"}, modes
    assert {"rank_00000.safetensors", "encoder.safetensors", "converted.safetensors", "probe.safetensors"} <= set(modes)
    assert not [name for name in modes if name.endswith(".tmp")]


def test_a_private_temporary_file_of_a_library_is_made_public(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "private.safetensors")
    with umask(0o002):
        write_whole(tmp_path / "new" / "ours.safetensors", lambda path: save_file({"a": torch.zeros(1)}, path))
    assert stat.S_IMODE((tmp_path / "new" / "ours.safetensors").stat().st_mode) == 0o664


def test_half_a_file_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("whole")

    def fail(target: Path) -> None:
        target.write_text("ha")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_whole(path, fail)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("table.csv", "whole")]


@pytest.mark.parametrize("name", ["manifest.json", "rank_00000.safetensors"])
def test_a_checkpoint_that_may_not_be_read_is_not_damaged(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with unreadable(checkpoints(run)[-1] / name):
        assert main(["export", str(run), "--out", os.devnull]) == 1
    said = capsys.readouterr().err
    assert "may not be read by this user" in said
    assert "nothing is damaged" in said
    assert "mv " not in said


def test_neither_is_any_other_file(run: Path, tmp_path: Path) -> None:
    exported, corpus = run / "encoder.safetensors", run.parent / "corpus"
    with unreadable(exported):
        for read in (find_encoder, read_encoder):
            with pytest.raises(PermissionError, match="Permission denied"):
                read(exported)
        with pytest.raises(PermissionError, match="Permission denied"):
            restore_state(exported, [], None)
        with pytest.raises(WeightsError, match="may not be read by this user"):
            read_weights(exported)
    for name in ("videos.parquet", "packets.arrow"):
        with unreadable(corpus / name), pytest.raises(CorpusError, match="may not be read by this user"):
            Corpus.open(corpus)


def test_nobody_is_told_to_delete() -> None:
    """In no message of ours; docstrings say what the code does."""
    advice = re.compile(r"\b(delete|remove|erase|rm -)", re.IGNORECASE)
    found, texts = [], 0
    for folder in ("kernels", "loaders", "ssl", "engine", "bench", "judge"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if not advice.search(text):
                continue
            tree = ast.parse(text)
            parts = (getattr(node, "body", None) for node in ast.walk(tree))
            bodies = [body for body in parts if isinstance(body, list)]
            docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    texts += 1
                    found += [f"{path}:{node.lineno}: {node.value}"] if advice.search(node.value) else []
    assert texts > 100
    assert not found


def test_safetensors_are_written_through_the_one_function() -> None:
    lines = [
        line
        for folder in ("engine", "bench", "judge", "loaders", "ssl")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "save_file" in line and "import" not in line
    ]
    assert len(lines) >= 4
    assert all("write_whole(" in line for line in lines), lines
