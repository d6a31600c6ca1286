"""`make gpu`'s driver with made steps: limits, resuming, rows as they come, which skips pass, and that it says so without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trocar.bench.gpu import run as gpu
from trocar.bench.gpu.run import Outcome, is_success, judge_skips, run_limited, run_stages, summary
from trocar.bench.gpu.steps import KERNEL_TESTS, OPERATORS, ROWS_OF, STAGE_SECONDS, STAGES, GpuStep
from trocar.bench.kernels.cases import CASES
from trocar.bench.training.peers import PEERS
from trocar.engine.cli import build_parser, main
from trocar.engine.config.settings import ConfigError

ROOT = Path(__file__).resolve().parents[3]
WRITER = """
import json, sys, time
from pathlib import Path
target, value, nap = sys.argv[1:]
Path(target).write_text(json.dumps({"benchmark": "made", "value": value}) + "\\n")
time.sleep(float(nap))
"""


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that writes a row and sleeps: its name."""
    (tmp_path / "made_step.py").write_text(WRITER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "made_step"


def made(
    name: str, writer: str, value: str = "1", nap: float = 0, seconds: int = 30, needs: tuple[str, ...] = ()
) -> GpuStep:
    return GpuStep(name, (writer, "{out}", value, str(nap)), seconds, needs, "module")


def run(
    results: Path, stages: dict[str, list[GpuStep]], *names: str, card: str = "a card", again: bool = False
) -> list[Outcome]:
    return run_stages(
        names, results=results, stages=stages, name_card=lambda: card, again=again, tell=lambda line: None
    )


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_as_steps_end_and_done_steps_are_not_repeated(tmp_path: Path, writer: str) -> None:
    results = tmp_path / "results"
    stages = {"kernels": [made("one", writer), made("two", writer, "2")], "loading": [made("three", writer, "3")]}
    first = run(results, stages)
    assert [outcome.status for outcome in first] == ["done"] * 3
    assert rows(results / "kernels.jsonl") == [
        {"benchmark": "made", "value": "1", "step": "one"}, {"benchmark": "made", "value": "2", "step": "two"},
    ]  # fmt: skip
    assert sorted(path.name for path in results.iterdir()) == ["kernels.jsonl", "loading.jsonl", "steps.json"]
    changed = {"kernels": [made("one", writer, "changed"), made("two", writer, "changed")]}
    second = run(results, changed)
    assert [outcome.seconds for outcome in second] == [outcome.seconds for outcome in first[:2]], "nothing ran"
    assert {row["value"] for row in rows(results / "kernels.jsonl")} == {"1", "2"}
    run(results, changed, card="another card")
    assert {row["value"] for row in rows(results / "kernels.jsonl")} == {"changed"}, "measured anew on another card"
    run(results, stages, "kernels", card="another card", again=True)
    assert {row["value"] for row in rows(results / "kernels.jsonl")} == {"1", "2"}


def test_a_step_that_takes_too_long_is_ended_with_its_children_and_leaves_its_rows(tmp_path: Path, writer: str) -> None:
    results = tmp_path / "results"
    stages = {"training": [made("slow", writer, nap=600, seconds=2), made("next", writer)]}
    began = time.monotonic()
    outcomes = run(results, stages)
    assert time.monotonic() - began < 60
    assert [outcome.status for outcome in outcomes] == ["out of time", "done"]
    assert not is_success(outcomes)
    assert [row["step"] for row in rows(results / "training.jsonl")] == ["slow", "next"]
    assert "training, slow: out of time" in summary(outcomes)
    again = run(results, {"training": [made("slow", writer), stages["training"][1]]})
    assert [outcome.status for outcome in again] == ["done", "done"], "what was not done is run again"
    parent = [sys.executable, "-c", "import os, time; print(os.fork(), flush=True); time.sleep(600)"]
    status, printed = run_limited(parent, 2)
    assert status == "out of time"
    child = max(int(number) for number in printed.split())
    time.sleep(0.5)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z", "the child went with it"


def test_a_failing_step_fails_and_the_others_go_on(tmp_path: Path, writer: str) -> None:
    broken = GpuStep("broken", ("no_such_module",), 30, runs="module")
    outcomes = run(tmp_path / "results", {"loading": [broken, made("good", writer)]})
    assert [outcome.status for outcome in outcomes] == ["failed", "done"]
    assert "No module named no_such_module" in summary(outcomes)


def test_an_absent_optional_package_passes_by_name(tmp_path: Path, writer: str) -> None:
    stages = {"loading": [made("decode", writer, needs=("nvidia.no_dali", "json")), made("rest", writer)]}
    outcomes = run(tmp_path / "results", stages)
    assert [(outcome.status, outcome.absent) for outcome in outcomes] == [
        ("skipped", ("nvidia.no_dali",)),
        ("done", ()),
    ]
    assert is_success(outcomes)
    assert "optional packages that are absent: nvidia.no_dali" in summary(outcomes)


TESTS = """
import pytest
def test_good(): pass
def test_optional(): pytest.importorskip("no_such_package")
"""


def test_skips_of_tests(tmp_path: Path) -> None:
    good, bad = tmp_path / "test_made_good.py", tmp_path / "test_made_bad.py"
    good.write_text(TESTS)
    bad.write_text(TESTS + "def test_other(): pytest.skip('it is Monday')\n")
    steps = [GpuStep(path.stem, (str(path), "-c", os.devnull), 60, runs="pytest") for path in (good, bad)]
    outcomes = run(tmp_path / "results", {"tests": steps})
    assert [outcome.status for outcome in outcomes] == ["done", "failed"], summary(outcomes)
    assert outcomes[0].absent == ("no_such_package",)
    assert "it is Monday" in outcomes[1].reason


@pytest.mark.parametrize(("reason", "package"), [
    ("could not import 'cuml': No module named 'cuml'", "cuml"), ("needs DALI: pip install '.[dali]'", "DALI"),
    ("DALI is not installed", "DALI"), ("needs an NVIDIA GPU", None), ("TROCAR_TEST_VIDEOS names no folder of real videos", None),
])  # fmt: skip
def test_which_skips_name_a_package(reason: str, package: str | None) -> None:
    absent, wrong = judge_skips(f"SKIPPED [3] tests/test_x.py:12: {reason}\n1 passed, 3 skipped")
    assert absent == ((package,) if package else ())
    assert bool(wrong) == (package is None)


@pytest.mark.parametrize("stage", STAGES)
def test_stages_keep_to_their_time_and_name_what_exists(stage: str) -> None:
    steps = STAGES[stage]
    assert sum(step.seconds for step in steps) <= STAGE_SECONDS < 480
    assert len({step.name for step in steps}) == len(steps)
    parser = build_parser()
    for step in steps:
        filled = [part.format(out="o", work="w", videos="v") for part in step.command]
        if step.runs == "pytest":
            assert all((ROOT / part).is_file() for part in filled if part.startswith("tests/")), filled
        elif step.runs == "trocar" and filled[:2] != ["bench", "training"]:
            parser.parse_args(filled)


def test_every_kernel_is_tested_and_measured_and_there_are_few_files() -> None:
    assert set(OPERATORS) == set(CASES)
    assert {f"kernels/{name}" for name in OPERATORS} <= set(KERNEL_TESTS)
    assert len({ROWS_OF.get(stage, stage) for stage in STAGES}) + 1 <= 8, "files of rows, and steps.json"


def test_the_compiled_peer_stands_in_a_step_of_its_own() -> None:
    compiled = {name for name, (_, is_compiled) in PEERS.items() if is_compiled}
    named = {
        step.name: {*PEERS} & {*step.command} for steps in STAGES.values() for step in steps if "peers" in step.command
    }
    assert named == {"peers": {*PEERS} - compiled, "compiled-peer": compiled}


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "gpu"]) == 2
    assert "PyTorch finds no NVIDIA GPU here" in capsys.readouterr().err
    assert main(["bench", "gpu", "kernel"]) == 2
    assert "there are tests, feed, step, kernels, loading, training, compiled, cluster" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no NVIDIA GPU"):
        run_stages([], results=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_make_gpu_starts_over_an_environment_without_network_or_git(tmp_path: Path) -> None:
    """python3 is itself an environment's, pip reaches nothing, and the checkout is an unpacked archive."""
    checkout, machine = tmp_path / "trocar", tmp_path / "machine"
    hidden = shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=hidden)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", machine], check=True)
    (packages,) = (machine / "lib").glob("python3*/site-packages")
    ours = [path for path in sys.path if path.endswith("-packages")]
    (packages / "all.pth").write_text("\n".join(ours))
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_NO_INDEX": "1", "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": str(machine / "bin/python"), "VENV": "none",
    }  # fmt: skip
    for _ in range(2):  # the second finds what the first has made, and makes it anew
        done = subprocess.run(
            ["bash", "gpu.sh", "kernels"], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        assert "PyTorch finds no NVIDIA GPU here" in done.stderr, done.stderr
        assert done.returncode == 2
        assert not (checkout / "none").exists()
    where = subprocess.run(
        [checkout / "build/gpu/bin/python", "-c", "import trocar.bench.gpu.run as m; print(m.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.strip() == str(checkout / "bench/gpu/run.py")


def test_foreign_plugins_that_warn_do_not_stop_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest-benchmark does beside xdist: a warning at start, where warnings are errors."""
    (tmp_path / "foreign.py").write_text("import warnings\ndef pytest_configure(config): warnings.warn('mine')\n")
    info = tmp_path / "foreign-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pytest11]\nforeign = foreign\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    step = GpuStep("tests", ("tests/bench/gpu/test_gpu.py", "-k", "time_is_up_and_nothing_else"), 120, (), "pytest")
    command = gpu._command(step, tmp_path, tmp_path, None)
    as_usual = [sys.executable, "-m", "pytest", "-q", *step.command]
    alone = subprocess.run(as_usual, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "mine" in alone.stdout + alone.stderr
    assert alone.returncode not in (0, 5)
    status, printed = run_limited(command, step.seconds)
    assert "no tests ran" in printed or "deselected" in printed, printed
    assert "mine" not in printed
    assert status == gpu.FAILED  # pytest's own status for no test, behind a start without complaint


def test_make_gpu_asks_for_no_network(tmp_path: Path) -> None:
    """It runs with the environment at hand, and installs nothing where that has what is needed."""
    planned = subprocess.run(
        ["make", "-n", "gpu", "STAGE=kernels", "VIDEOS=a folder"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "bash gpu.sh kernels --videos 'a folder'" in planned
    fake = tmp_path / "venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "ran $*"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", "gpu.sh", "tests"], cwd=ROOT, env={"PATH": os.environ["PATH"], "VENV": str(tmp_path / "venv")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "ran -m trocar.engine.cli bench gpu tests\n"


def test_the_checksum_follows_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "a.py").write_text("1")
    first = gpu.source_checksum()
    (tmp_path / "bench" / "results.jsonl").write_text("{}")
    assert gpu.source_checksum() == first
    (tmp_path / "bench" / "a.py").write_text("2")
    assert gpu.source_checksum() != first
