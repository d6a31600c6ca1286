"""`make compat`: does it run on what people have? Environments for the Pythons that are here, a set of tests in each, a table.

    .ci/compat.py            newest packages for every Python; the lower bounds of pyproject.toml for the oldest and newest too
    .ci/compat.py --quick    Python 3.12 and 3.13 on the newest packages: index -> CPU loader -> two training steps; for `.ci/run`

Where Python 3.11 passes on the newest packages, their versions are written to .ci/constraints.txt, which the containers take.

Environments stay under build/compat and serve again until pyproject.toml changes. Every cell is written to build/compat/cells.json
as it ends, so that an interrupted run goes on; `--again` runs all. Needs the network for what pip has not kept, and of the project
nothing: only the standard library. Over 300 lines for that reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "compat"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
QUICK_PYTHONS = ("3.12", "3.13")
NEWEST, LOWEST, QUICK = "newest", "lowest", "quick"
TORCH_FAMILY = ("torch", "torchvision", "triton", "timm")
CHECKS = {
    "index": "tests/loaders/corpus/test_index.py tests/loaders/video/test_probe.py",
    "window": "tests/loaders/video/test_window.py",
    "CPU loader": "tests/loaders/test_clip_loader.py tests/loaders/video/test_unusual_streams.py",
    "sampler": "tests/loaders/draw/test_sampler.py tests/loaders/draw/test_order.py",
    "DALI on a CPU": "tests/loaders/decode/test_dali_pipeline.py",
    "kernels, interpreted": "tests/kernels/test_pixel_loss.py tests/kernels/test_mask_sampler.py tests/kernels/test_ema.py "
    "-k 'videomae or kernel_draws or test_update or opcheck or compiles or (loss_and_gradient and float32-channel)'",
    "MAE": "tests/ssl/test_mae.py -k equals_hugging_face",
    "JEPA": "tests/ssl/test_jepa.py -k 'equals_hugging_face or by_hand'",
    "checkpoint, resume": "tests/engine/checkpoint/test_checkpoint.py",
    "commands": "tests/engine/test_cli.py",
}
TYPES = "types"  # as the newest packages' stubs have them: on the newest Python; older ones take packages whose stubs know less
DEMO = "two training steps"  # from made videos, indexed, decoded on the CPU; and their pictures
CELLS = {NEWEST: [TYPES, *CHECKS, DEMO], LOWEST: [*CHECKS, DEMO], QUICK: [DEMO]}
VERSIONS = ("av", "torch", "numpy", "pyarrow", "triton", "timm", "scikit-learn")
SECONDS = 1500
CONSTRAINTS, CONTAINERS_PYTHON = ROOT / ".ci" / "constraints.txt", "3.11"
LEFT_TO_TORCH = ("nvidia-cu", "nvidia-n", "cuda-", "triton==")


@dataclass(frozen=True)
class Environment:
    """python: "3.12". packages: newest, lowest or quick."""

    python: str
    packages: str

    @property
    def folder(self) -> Path:
        return HOME / f"{self.python}-{self.packages}"

    @property
    def interpreter(self) -> Path:
        return self.folder / "bin" / "python"


def find_python(version: str) -> str | None:
    """pythonX.Y of the PATH, or pyenv's."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = sorted(versions.glob(f"{version}.*/bin/python3"))
    found = [str(path) for path in kept] or [shutil.which(f"python{version}") or ""]
    for command in filter(None, found):
        if run([command, "-c", "import venv, ensurepip"]).returncode == 0:
            return command
    return None


def run(command: list[str], seconds: float = SECONDS, **environment: str) -> subprocess.CompletedProcess[str]:
    """With what it printed, errors too; status 124 where its time was up. No variable of this process's own Python goes along."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    try:
        return subprocess.run(
            command, cwd=ROOT, env={**kept, **environment}, timeout=seconds, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout
        return subprocess.CompletedProcess(command, 124, printed or "", "")


def requirements() -> list[str]:
    """The dependencies of pyproject.toml, as they stand there."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # Python 3.10 has no reader of TOML
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block
    return re.findall(r'^    "(.+)",', block[1], re.MULTILINE)


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def make(environment: Environment, python: str) -> str:
    """Installs what the environment wants, unless it stands already. Returns why it could not be made, "" where it was."""
    sources = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "setup.py", ".ci/compat.py"))
    wanted = f"{python} {hashlib.sha256(sources).hexdigest()}"
    stamp = environment.folder / "trocar-stamp"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return ""
    made = run([python, "-m", "venv", "--clear", str(environment.folder)])
    pip = [
        str(environment.interpreter),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    if environment.packages == NEWEST:
        steps = [[*pip, "--upgrade", "--editable", ".[dev]"]]
    elif environment.packages == LOWEST:
        steps = lowest_steps(environment, pip)
    else:
        steps = quick_steps(environment, pip)
    for step in steps:
        if made.returncode == 0:
            made = run(step)
    if made.returncode:
        return next(
            (line for line in reversed(made.stdout.splitlines()) if "ERROR" in line or "Error" in line),
            made.stdout[-300:],
        )
    stamp.write_text(wanted, encoding="utf-8")
    return ""


def lowest_steps(environment: Environment, pip: list[str]) -> list[list[str]]:
    """Every dependency, and what tests need, at its lower bound or the first version behind it that has a wheel for this Python:
    uv finds them, as pip always takes the newest."""
    bounds = str(environment.folder / "lower_bounds.txt")
    choose = ["uv", "pip", "compile", "pyproject.toml", "--extra", "dev", "--resolution", "lowest-direct"]
    choose += ["--only-binary", ":all:", "--python-version", environment.python, "--quiet", "--output-file", bounds]
    return [
        [*pip, "uv"],
        [str(environment.interpreter), "-m", *choose],
        [*pip, "--requirement", bounds],
        [*pip, "--no-deps", "--no-build-isolation", "--editable", "."],
    ]


def quick_steps(environment: Environment, pip: list[str]) -> list[list[str]]:
    """The newest packages of this Python, PyTorch's family in .venv's versions, and a link to .venv's NVIDIA libraries, which are
    the same for every Python and most of what there is to install."""
    shared = next((ROOT / ".venv" / "lib").glob("python3*/site-packages"))
    others = [requirement for requirement in requirements() if name_of(requirement) not in TORCH_FAMILY]
    family = []
    for name in TORCH_FAMILY:
        folder = next(shared.glob(f"{name}-*.dist-info"))
        family.append(f"{name}=={folder.name.removesuffix('.dist-info').split('-')[1]}")
        lines = (folder / "METADATA").read_text(encoding="utf-8").splitlines()
        wanted = (line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: "))
        needs = [re.sub(r"[()\s]", "", line.split(";")[0]) for line in wanted if "extra ==" not in line]
        others += [need for need in needs if not name_of(need).startswith(("nvidia", "cuda", *TORCH_FAMILY))]
    link = "import os, sys, sysconfig; os.symlink(sys.argv[1], sysconfig.get_path('purelib') + '/nvidia')"
    return [
        [*pip, "--upgrade", *dict.fromkeys(others)],
        [*pip, "--no-deps", *family],
        [*pip, "--no-deps", "--no-build-isolation", "--editable", "."],
        [str(environment.interpreter), "-c", link, str(shared / "nvidia")],
    ]


def check(environment: Environment, what: str) -> str:
    """Runs one cell: "" where it passed, else why not."""
    interpreter = str(environment.interpreter)
    if what == TYPES:
        # Its environment stands already.
        done = run(["make", "-o", "setup-dev", "typing", f"VENV={environment.folder}"])
        errors = [line.strip() for line in done.stdout.splitlines() if " error: " in line]
        return "" if done.returncode == 0 else "; ".join(errors)[:600] or done.stdout.strip()[-300:]
    if what == DEMO:
        folder = environment.folder / "demo"
        shutil.rmtree(folder, ignore_errors=True)
        command = [interpreter, "-m", "trocar.engine.cli", "demo", "--out", str(folder), "optim.steps=2"]
        done = run(command, OMP_NUM_THREADS="1")
        wanted = [folder / "checkpoints" / "step_00000002", folder / "reconstruction.png", folder / "curve.png"]
        if done.returncode == 0 and all(path.exists() for path in wanted):
            return ""
        return done.stdout.strip()[-600:] or f"status {done.returncode}"
    command = [
        interpreter,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        *shlex.split(CHECKS[what]),
    ]
    done = run(command, OMP_NUM_THREADS="1")
    if done.returncode == 0:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR tests"))]
    return "; ".join(failed)[:600] or done.stdout.strip()[-300:] or f"status {done.returncode}"


def versions(environment: Environment) -> str:
    code = f"from importlib.metadata import version\nprint(', '.join(f'{{n}} {{version(n)}}' for n in {VERSIONS}))"
    return run([str(environment.interpreter), "-c", code]).stdout.strip()


def write_constraints(environment: Environment) -> None:
    """The versions that an environment's cells passed with. NVIDIA's libraries, which torch pins itself, are other packages for
    CUDA 12; what is installed from a folder has no version to pin."""
    frozen = run([str(environment.interpreter), "-m", "pip", "freeze", "--exclude-editable"]).stdout.splitlines()
    pins = [line for line in frozen if "==" in line and not line.startswith(LEFT_TO_TORCH)]
    head = f"# Versions that the tests passed with on Python {environment.python}; written by `make compat`."
    CONSTRAINTS.write_text("\n".join([head, *sorted(pins, key=str.lower)]) + "\n", encoding="utf-8")


def source_checksum() -> str:
    """Of all that the cells run: what passed with other code says nothing."""
    digest = hashlib.sha256()
    for folder in ("bench", "configs", "engine", "judge", "kernels", "loaders", "ssl", "tests"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def wanted_environments(quick: bool, present: list[str]) -> list[Environment]:
    if quick:
        return [Environment(python, QUICK) for python in present]
    ends = {present[0], present[-1]} if present else set()
    return [
        Environment(python, packages)
        for python in present
        for packages in (NEWEST, LOWEST)
        if packages == NEWEST or python in ends
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Python 3.12 and 3.13, two steps of training")
    parser.add_argument("--again", action="store_true", help="run cells that have passed, too")
    parser.add_argument("--python", action="append", metavar="X.Y", help="only this one (may be given again)")
    parser.add_argument("--packages", choices=(NEWEST, LOWEST), help="only these")
    options = parser.parse_args()
    asked = options.python or (QUICK_PYTHONS if options.quick else PYTHONS)
    pythons = {version: find_python(version) for version in asked}
    for version in [version for version, python in pythons.items() if python is None]:
        print(f"Python {version}: not here, not tried", flush=True)
    present = [version for version, python in pythons.items() if python]
    environments = [
        environment
        for environment in wanted_environments(options.quick, present)
        if options.packages in (None, environment.packages)
    ]
    newest = max((version for version in PYTHONS if find_python(version)), default="")
    HOME.mkdir(parents=True, exist_ok=True)
    record = HOME / "cells.json"
    cells: dict[str, str] = (
        json.loads(record.read_text(encoding="utf-8")) if record.exists() and not options.again else {}
    )
    source = source_checksum()
    table: dict[str, dict[str, str]] = {}
    for environment in environments:
        title = f"Python {environment.python}, {environment.packages}"
        began = time.monotonic()
        reason = make(environment, str(pythons[environment.python]))
        print(f"{title}: {reason or versions(environment)} ({time.monotonic() - began:.0f} s)", flush=True)
        table[title] = {}
        for name in CELLS[environment.packages]:
            if name == TYPES and environment.python != newest:
                continue
            key = f"{title}: {name}: {versions(environment) if not reason else ''}, source {source}"
            began = time.monotonic()
            if reason or cells.get(key) != "":
                cells[key] = reason or check(environment, name)
                record.write_text(json.dumps(cells, indent=1), encoding="utf-8")
            table[title][name] = cells[key]
            print(f"  {'ok    ' if not cells[key] else 'FAILED'} {name} ({time.monotonic() - began:.0f} s)", flush=True)
        if environment == Environment(CONTAINERS_PYTHON, NEWEST) and not any(table[title].values()):
            write_constraints(environment)
    names = [DEMO] if options.quick else CELLS[NEWEST]
    print("\n| environment | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for title, row in table.items():
        print(f"| {title} | " + " | ".join({"": "ok", None: "-"}.get(row.get(name), "FAILED") for name in names) + " |")
    failures = [f"{title}, {name}: {reason}" for title, row in table.items() for name, reason in row.items() if reason]
    print("\n".join(["", *failures]) if failures else "")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
