"""What a command can tell without PyTorch it tells without: wrong paths, unknown keys, and that nothing is left to do.

Importing PyTorch and what goes with it takes five to ten seconds of a core; a refusal comes in less than one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import write_numbered

from trocar.engine.cli import build_parser
from trocar.engine.config.file import load_config
from trocar.engine.draws.samplers import build_order, draws_fingerprints, samplers_by_clip
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus

HEAVY = (
    "torch", "torchvision", "timm", "triton", "sklearn", "scipy", "matplotlib", "nvidia.dali", "tensorboard", "pyarrow",
)  # fmt: skip
GONE = "gone/away"
TINY = [
    "model.encoder=tiny",
    "model.depth=1",
    "model.decoder_depth=1",
    "optim.batch=2",
    "optim.accumulation=1",
    "optim.steps=1",
]

# By command: arguments that name a path where nothing is, or another thing that is not there, and what is said of it.
WRONG = {
    "index": [([GONE, "--out", "out"], "no such file or folder")],
    "screen": [([GONE], "no such folder"), (["here", "--model", GONE], "no such file")],
    "pack": [([GONE, "--out", "out"], "no such folder")],
    "convert": [([GONE, "--out", "out"], "no such encoder")],
    "pretrain": [
        (["demo_cpu", f"data.corpus={GONE}"], "no such folder"),
        (["demo_cpu", "optim.stepz=3"], "did you mean steps"),
        (["demo_cpu", "--data.frames=8"], "settings are written without dashes: data.frames=8"),
        (["demo_cpu", "data.corpus=here", f"data.tree={GONE}"], "no such tree"),
        (["demo_cpu", "data.corpus=here", f"model.init={GONE}"], "no such encoder"),
        (["demo_cpu", "data.corpus=here", f"probe.table={GONE}"], "probe.table: gone/away: no such file"),
        (["demo_jepa_cpu", "data.corpus=here", f"objective.teacher={GONE}"], "neither a run"),
        ([GONE, "--dry-run", "8"], "no such config"),
    ],
    "profile": [(["demo_cpu", f"data.corpus={GONE}"], "no such folder")],
    "plan": [
        (["demo_cpu"], "give --corpus CORPUS"),
        (["demo_cpu", "--corpus", GONE], "no such folder"),
        (["demo_cpu", "--cluster", GONE], "no such cluster"),
        (["demo_cpu", "--rates", GONE], "No such file"),
    ],
    "export": [
        ([GONE], "neither a run"),
        (["run", "--to", "transformers"], "transformers has no such video encoder"),
        (["run", "--to", "timm"], "steps of time"),
        (["run", "--to", "torch", "--whole"], "takes an encoder alone"),
        (["run", "--to", "torch", "--out", "file"], "is there already"),
    ],
    "predict": [([GONE, "vids", "--out", "out.csv"], "no fine-tuned")],
    "view recon": [([GONE], "neither a run")],
    "view curve": [
        ([GONE], "no metrics to show"),
        (["run", "--out", "c.txt"], "give a file that ends in .png"),
        (["run", "--json", "here"], "here is a folder; give the name of a file"),
    ],
    "view draws": [(["demo_cpu", f"data.corpus={GONE}"], "no such folder")],
    "view tree": [([GONE], "no such tree")],
    "view features": [([GONE], "neither a run")],
    "view neighbours": [([GONE, "here", "a.mp4", "1"], "embed again")],
    "view clip": [
        ([GONE, "1"], "no such file"),
        ([GONE, "1", "--out", "c.txt"], "give a file that ends in .png or .webp or .gif"),
    ],
    "report": [([GONE], "neither a run"), (["run", "--out", "c.txt"], "give a file that ends in .html")],
    "demo": [(["--videos", GONE], "no such file or folder")],
    "view screen": [([GONE], "no such folder")],
    "corpus report": [
        ([GONE], "no such folder"),
        (["here", "--where", "import os"], "not an expression"),
        (["here", "--labels", GONE], "no such file"),
    ],
    "corpus sources": [(["--file", GONE], "no such file")],
    "corpus export": [(["demo_cpu", f"data.corpus={GONE}", "--out", "draws.csv"], "no such folder")],
    "embed": [
        ([GONE, "--out", "out"], "no such folder"),
        (["here", "--model", GONE, "--out", "out"], "neither 'descriptor'"),
    ],
    "cluster": [
        ([GONE, "--out", "out"], "manifest.json: missing"),
        ([GONE, "--out", "file"], "file is a file, where a folder is needed"),
    ],
    "finetune": [
        (["gone.csv", "here", "random:tiny", "--out", "out"], "gone.csv: no such file"),
        (["cholec80", GONE, "random:tiny", "--out", "out"], "no such folder"),
        (["labels.csv", "here", GONE, "--out", "out"], "no such encoder"),
    ],
    "features": [
        ([GONE, "--model", "random:tiny", "--out", "out"], "no such file or folder"),
        (["vids", "--model", GONE, "--out", "out"], "no such encoder"),
    ],
    "phases": [
        (["vids", GONE], "no trained head there"),
        (["vids", GONE, "extra"], "trocar phases: error: unrecognized arguments: extra"),
    ],
    "bench workflow": [([GONE, "--out", "out"], "give a YAML's path, or workflow")],
    "bench audit": [(["gone.csv", "here"], "gone.csv: no such file"), (["cholec80", GONE], "no such folder")],
    "bench downstream": [
        ([GONE, "--out", "out"], "give a YAML's path, or one of table2"),
        (["table2", "--out", "out", "--data", GONE], "none of the data sets is there"),
    ],
    "bench kernels": [(["gone"], "no such operator")],
    "bench loading": [([GONE], "no such folder"), (["--packed", GONE], "give CORPUS too")],
    "bench proxies": [([GONE], "no such video")],
    "bench decode": [(["--out", "file/rows"], "is not a folder that can be written to")],
    "bench dali-cache": [(["--out", "file/rows"], "is not a folder that can be written to")],
    "bench feed": [([GONE], "no such folder")],
    "bench data-wait": [([f"proxies={GONE}"], "no such folder")],
    "bench training": [(["--corpus", GONE], "no such folder"), ([GONE], "no such config")],
    "bench balance": [(["--out", "file/rows"], "is not a folder that can be written to")],
    "bench plan": [(["--out", "file/rows"], "is not a folder that can be written to")],
    "bench gpu": [(["gone"], "no such stage"), (["--videos", GONE], "no such folder")],
    "bench report": [(["--root", GONE], "has no bench/results")],
    "bench clustering": [(["--out", "file/rows"], "is not a folder that can be written to")],
}
TAKES_NOTHING = {"doctor"}

WALK = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from trocar.engine.cli import main
found = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        try:
            status = main(words)
        except SystemExit as ended:  # argparse's
            status = ended.code
    found.append([words, status, said.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(found))
"""


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for child, part in group.choices.items():
            yield from commands(part, f"{name} {child}".strip())
    if not groups:
        yield name


def walk(folder: Path, words: list[list[str]]) -> list[tuple[list[str], int, str, list[str]]]:
    """Each command one after the other in one new process: (words, status, what it said, heavy modules since)."""
    finished = subprocess.run(
        [sys.executable, "-c", WALK], cwd=folder, input=json.dumps(words), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_every_command_is_asked_for_something_wrong() -> None:
    assert set(commands(build_parser())) == {*WRONG, *TAKES_NOTHING}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder that looks like a corpus from without, a run whose checkpoint is empty, and a file in whose place a folder would
    be needed."""
    (tmp_path / "here").mkdir()
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(load_config("demo_cpu", ["data.corpus=here"]).to_yaml())
    for name in ("videos.parquet", "gops.parquet", "packets.arrow"):
        (tmp_path / "here" / name).touch()
    (tmp_path / "file").touch()
    (tmp_path / "labels.csv").write_text("video,label\n1.mp4,a\n")
    return tmp_path


def test_what_is_wrong_is_told_before_anything_heavy_is_imported(here: Path) -> None:
    asked = [(name, arguments, said) for name, cases in WRONG.items() for arguments, said in cases]
    found = walk(here, [[*name.split(), *arguments] for name, arguments, _ in asked])
    for (words, status, text, modules), (_, _, said) in zip(found, asked, strict=True):
        assert status in (1, 2), words
        assert said in text, (words, text)
        assert text.startswith(("trocar: ", "usage: trocar ")), (words, text)
        assert not modules, (words, modules)


def test_the_walk_would_notice(here: Path) -> None:
    """A command that has to read a table shows in it."""
    ((words, status, _, modules),) = walk(here, [["corpus", "report", "here"]])
    assert (words, status, modules) == (["corpus", "report", "here"], 1, ["pyarrow"])


REFUSED = [
    (["pretrain", "config.yaml", "data.exclude=[nothing*]"], "matches no video"),
    (["pretrain", "config.yaml", "data.frames=15"], "not divisible into"),
    (["pretrain", "config.yaml", "data.sizes=[{from_step: 1, resolution: 65}]"], "data.sizes[0]: data.frames"),
    (["pretrain", "config.yaml", "data.where=blur < 1"], "trocar screen"),
    (["pretrain", "config.yaml", "objective.ignore=overlays"], "corpus: was not screened; run `trocar screen"),
    (["pretrain", "config.yaml", "run.dir=config.yaml"], "config.yaml is a file, where a folder is needed"),
    (["pretrain", "config.yaml", "data.exclude=[@gone.txt]"], "gone.txt"),
    (["pretrain", "config.yaml", "optim.betas=[0.5,0.5]"], "would go on after step 1"),
    (["pretrain", "config.yaml", "run.seed=7"], "would draw other clips now"),
    (["view", "draws", "config.yaml", "data.exclude=[nothing*]"], "matches no video"),
]


def test_what_is_wrong_with_a_corpus_or_a_run_is_told_before_pytorch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "vids").mkdir()
    write_numbered(tmp_path / "vids" / "a.mp4", 80)
    index_corpus([str(tmp_path / "vids")], tmp_path / "corpus")
    made = ["data.corpus=corpus", "run.dir=run", "run.device=cpu", "data.resolution=32", "data.frames=4", *TINY]
    config = load_config("demo_cpu", made)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    state = {"step": 1, "steps": 2, "corpus": Corpus.open(tmp_path / "corpus").fingerprint, "config": config.to_yaml()}
    sampler_at = samplers_by_clip(config, Corpus.open(tmp_path / "corpus"))
    state["draws"] = draws_fingerprints(config, sampler_at, build_order(config), 2)
    saved = tmp_path / "run" / "checkpoints" / "step_00000001"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text(json.dumps({"state": state}))
    for (words, status, text, modules), (_, said) in zip(
        walk(tmp_path, [words for words, _ in REFUSED]), REFUSED, strict=True
    ):
        assert status in (1, 2), words
        assert said in text, (words, text)
        assert modules == ["pyarrow"], (words, modules)


@pytest.mark.slow
def test_seconds_of_a_core(tmp_path: Path) -> None:
    """Nothing to do below 1.5 s: the least of three, as other work takes caches away."""
    (tmp_path / "vids").mkdir()
    for number in range(3):
        write_numbered(tmp_path / "vids" / f"{number}.mp4", 80, video_id=number)
    chain = [
        ["index", "vids", "--out", "corpus"],
        ["pack", "corpus", "--out", "packed", "--workers", "1"],
        ["embed", "corpus", "--out", "embeddings", "--device", "cpu"],
        ["cluster", "embeddings", "--out", "tree", "--levels", "3"],
        ["cluster", "embeddings", "--out", "tree", "--levels", "3", "--corpus", "corpus"],
        ["pretrain", "demo_cpu", "data.corpus=corpus", "run.dir=run", "run.device=cpu", *TINY],
        ["corpus", "report", "corpus"],
    ]
    for words in chain:
        assert seconds(tmp_path, words)[0] == 0, words
    for words in [chain[0], *chain[1:3], *chain[4:]]:
        status, least = min(seconds(tmp_path, words) for _ in range(3))
        assert status == 0
        assert least < 1.5, (words, least)
    status, least = min(seconds(tmp_path, ["view", "curve", "run"]) for _ in range(3))
    assert (status, least < 3) == (0, True), least  # it draws a picture; with PyTorch it took seven


@pytest.mark.slow
def test_seconds_of_a_core_for_what_is_wrong_and_for_help(here: Path) -> None:
    """A wrong path below 1 s, help below 0.5 s: the least of three."""
    for name, cases in WRONG.items():
        least = min(seconds(here, [*name.split(), *cases[0][0]])[1] for _ in range(3))
        assert least < 1, (name, least)
        least = min(seconds(here, [*name.split(), "--help"])[1] for _ in range(3))
        assert least < 0.5, (name, least)


def seconds(folder: Path, words: list[str]) -> tuple[int, float]:
    """(status, seconds of a core) of a command in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "trocar.engine.cli", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime
