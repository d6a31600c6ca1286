"""`trocar bench gpu`, behind `make gpu`: runs the steps of `gpu_steps` one after another, each in a process of its own.

A step that is done is not run again until the source or the card changes. Its rows are taken into STAGE.jsonl of the results'
folder as soon as it ends, also what it wrote before its time was up; `steps.json` remembers how every step ended. Tests may skip
for one reason: an optional package that is not installed, whose name is then listed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...engine.config.error import ConfigError
from ...loaders.corpus.whole_file import write_whole
from ..rows.row import read_rows, write_rows
from .steps import ROWS_OF, STAGES, GpuStep, check_stages

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "gpu"
STATE = "steps.json"
SOURCE = ("bench", "engine", "kernels", "loaders", "ssl", "tests")
DONE, SKIPPED, FAILED, TIMED_OUT = "done", "skipped", "failed", "out of time"
OWN_PLUGINS = ("pytest_timeout",)
SKIP_LINE = re.compile(r"^SKIPPED \[\d+\] (?P<where>\S+): (?P<reason>.+)$", re.MULTILINE)
# What pytest.importorskip says, by itself or by the reasons that our tests give it.
ABSENT = (
    re.compile(r"could not import '(?P<name>[\w.]+)'"),
    re.compile(r"[Nn]o module named '?(?P<name>[\w.]+)"),
    re.compile(r"needs (?P<name>\w+): pip install"),
    re.compile(r"(?P<name>\w+) is not installed"),
)


@dataclass(frozen=True)
class Outcome:
    """How a step ended. reason: why it failed or was skipped. absent: optional packages that it, or tests of it, went without.
    fingerprint: of the source and the card that it ran on."""

    stage: str
    step: str
    status: str
    seconds: float
    reason: str
    absent: tuple[str, ...]
    fingerprint: str


def card() -> str:
    """The first GPU's name. Raises ConfigError where there is none."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "make gpu: PyTorch finds no NVIDIA GPU here; `trocar doctor` says what is missing. The rest is `make test`"
        )
    return torch.cuda.get_device_name(0)


def source_checksum() -> str:
    """Of all Python files of the checkout, 12 digits."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.glob("*/**/*.py")):
        if path.relative_to(ROOT).parts[0] in SOURCE:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def run_stages(
    names: Sequence[str],
    *,
    videos: Path | None = None,
    results: Path = RESULTS,
    again: bool = False,
    stages: Mapping[str, Sequence[GpuStep]] = STAGES,
    name_card: Callable[[], str] = card,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Runs the named stages, all where none is named. videos: made where None.

    Raises ConfigError without a GPU, on an unknown stage, and outside a checkout.
    """
    check_stages(names, stages)
    if not (ROOT / "tests").is_dir():
        raise ConfigError(f"make gpu: {ROOT} has no tests; run it from a checkout")
    fingerprint = f"{name_card()}, source {source_checksum()}"
    results.mkdir(parents=True, exist_ok=True)
    before = {} if again else _read_state(results)
    outcomes = []
    for stage in names or stages:
        for step in stages[stage]:
            if step.makes_videos and videos is not None:
                continue
            found = before.get((stage, step.name))
            if found is None or found.status != DONE or found.fingerprint != fingerprint:
                tell(f"{stage}, {step.name}: running, at most {step.seconds} s")
                found = _run_step(stage, step, fingerprint, results, videos)
                _remember(results, found)
            else:
                tell(f"{stage}, {step.name}: done before")
            outcomes.append(found)
    return outcomes


def _run_step(stage: str, step: GpuStep, fingerprint: str, results: Path, videos: Path | None) -> Outcome:
    missing = tuple(name for name in step.needs if not _is_installed(name))
    if missing:
        return Outcome(stage, step.name, SKIPPED, 0.0, f"not installed: {', '.join(missing)}", missing, fingerprint)
    began = time.monotonic()
    work = ROOT / "runs" / "gpu"
    with tempfile.TemporaryDirectory(prefix="trocar_gpu_") as folder:
        out = Path(folder) / "rows.jsonl"
        command = _command(step, out, work, videos)
        status, printed = run_limited(command, step.seconds)
        if out.exists():
            _take_rows(results / f"{ROWS_OF.get(stage, stage)}.jsonl", step.name, read_rows(out))
    absent, wrong = judge_skips(printed) if step.runs == "pytest" else ((), [])
    if status == DONE and wrong:
        status, printed = FAILED, "skipped, though no optional package is named:\n" + "\n".join(wrong)
    reason = "" if status == DONE else printed.strip()[-2000:]
    return Outcome(stage, step.name, status, round(time.monotonic() - began, 1), reason, absent, fingerprint)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package inside another that is not there
        return False


def _command(step: GpuStep, out: Path, work: Path, videos: Path | None) -> list[str]:
    filled = [part.format(out=out, work=work, videos=videos or work / "videos") for part in step.command]
    if step.runs == "pytest":
        plugins = [part for name in OWN_PLUGINS if _is_installed(name) for part in ("-p", name)]
        return [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *plugins, *filled]
    return [sys.executable, "-m", *([] if step.runs == "module" else ["trocar.engine.cli"]), *filled]


def run_limited(command: Sequence[str], seconds: float) -> tuple[str, str]:
    """How a command ended, and what it printed. Once its time is up, it and all that it started are ended."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # Whatever plugins a machine has may warn at start, and warnings are errors here.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = FAILED if process.wait(timeout=seconds) else DONE
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = TIMED_OUT
        printed.seek(0)
        return status, printed.read()


def judge_skips(printed: str) -> tuple[tuple[str, ...], list[str]]:
    """Of what pytest -rs printed: the packages that tests went without, and the skips that name none."""
    absent: dict[str, None] = {}
    wrong = []
    for match in SKIP_LINE.finditer(printed):
        named = next((found["name"] for pattern in ABSENT if (found := pattern.search(match["reason"]))), None)
        if named is None:
            wrong.append(f"{match['where']}: {match['reason']}")
        else:
            absent[named] = None
    return tuple(absent), wrong


def _take_rows(path: Path, step: str, rows: list[dict[str, Any]]) -> None:
    """Rows of a step take the place of those that it left before."""
    kept = [row for row in read_rows(path) if row["step"] != step] if path.exists() else []
    write_rows(path, [*kept, *({**row, "step": step} for row in rows)])


def _read_state(results: Path) -> dict[tuple[str, str], Outcome]:
    path = results / STATE
    if not path.exists():
        return {}
    entries = [Outcome(**{**entry, "absent": tuple(entry["absent"])}) for entry in json.loads(path.read_text())]
    return {(entry.stage, entry.step): entry for entry in entries}


def _remember(results: Path, outcome: Outcome) -> None:
    state = _read_state(results) | {(outcome.stage, outcome.step): outcome}
    text = json.dumps([asdict(entry) for entry in state.values()], indent=1)
    write_whole(results / STATE, lambda target: target.write_text(text, encoding="utf-8"))


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line a step, the packages that were absent, and the reasons of failures."""
    lines = [
        f"{outcome.stage:10} {outcome.step:16} {outcome.status:12} {outcome.seconds:7.1f} s" for outcome in outcomes
    ]
    absent = sorted({name for outcome in outcomes for name in outcome.absent})
    lines.append(f"optional packages that are absent: {', '.join(absent) or 'none'}")
    for outcome in outcomes:
        if outcome.status in (FAILED, TIMED_OUT):
            lines += ["", f"{outcome.stage}, {outcome.step}: {outcome.status}", outcome.reason]
    return "\n".join(lines)


def is_success(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.status in (DONE, SKIPPED) for outcome in outcomes)
