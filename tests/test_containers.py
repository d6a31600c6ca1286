"""The recipes of containers, read as their builders read them; nothing is built here."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / ".ci/containers/Dockerfile").read_text(encoding="utf-8")
APPTAINER = (ROOT / ".ci/containers/trocar.def").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "ENTRYPOINT"}
SECTIONS = {"arguments", "files", "post", "environment", "runscript"}


def extras() -> dict[str, str]:
    return dict(
        re.findall(r"^(\w+) = \[(.*)\]$", PYPROJECT.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    )


def check_shell(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check_installs(text: str, cuda: str) -> None:
    """Extras exist for both CUDAs, constraints are where pip looks for them."""
    for wanted in re.findall(r'"\.\[([^\]]+)\]"', text):
        for number in ("12", "13"):
            assert set(wanted.replace(cuda, number).split(",")) <= extras().keys() | {"onnx"}
    paths = re.findall(r"--constraint (\S+)", text)
    assert len(paths) == 2
    assert all((ROOT / path).is_file() for path in paths)
    assert "cuda120" in extras()["cuda12"]
    assert "cuda130" in extras()["cuda13"]


def test_the_dockerfile() -> None:
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    parsed = [line.partition(" ")[::2] for line in lines]
    assert {name for name, _ in parsed} <= INSTRUCTIONS
    assert parsed[0][0] == "FROM"
    for name, rest in parsed:
        if name == "RUN":
            check_shell(rest)
        if name == "COPY":
            source, _ = shlex.split(rest)
            assert (ROOT / source).exists(), source
    declared = {rest.partition("=")[0] for name, rest in parsed if name == "ARG"}
    assert declared == {"CUDA", "TORCH_INDEX"}
    assert set(re.findall(r"\$\{?(\w+)", "\n".join(rest for name, rest in parsed if name == "RUN"))) == declared
    check_installs(DOCKERFILE, "${CUDA}")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", ".venv", "build", "runs"} <= {*ignored}


def test_the_apptainer_recipe() -> None:
    header, *parts = re.split(r"^%(\w+)\n", APPTAINER, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sections.keys() == SECTIONS
    fields = dict(line.split(": ") for line in header.splitlines() if line and not line.startswith("#"))
    assert fields == {"Bootstrap": "docker", "From": re.findall(r"^FROM (.+)$", DOCKERFILE, re.MULTILINE)[0]}
    declared = set(re.findall(r"^ +(\w+)=", sections["arguments"], re.MULTILINE))
    assert set(re.findall(r"\{\{ (\w+) \}\}", APPTAINER)) == declared == {"CUDA", "TORCH_INDEX"}
    for name in ("post", "environment", "runscript"):
        check_shell(re.sub(r"\{\{ \w+ \}\}", "13", sections[name]))
    check_installs(sections["post"], "{{ CUDA }}")


def test_constraints_fit_what_the_project_asks_for() -> None:
    """Every dependency is pinned to a version that its bounds allow; the containers' Python is the one of the constraints."""
    head, *lines = (ROOT / ".ci/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {name.lower().replace("_", "-"): Version(version) for name, version in (line.split("==") for line in lines)}
    (python,) = re.findall(r"on Python ([\d.]+);", head)
    assert f"python:{python}-" in DOCKERFILE
    block = PYPROJECT.partition("dependencies = [")[2].partition("\n]")[0]
    for text in re.findall(r'^    "(.+)",', block, re.MULTILINE):
        requirement = Requirement(text)
        if requirement.name != "triton":  # torch's own pin
            assert pins[requirement.name] in requirement.specifier, text
    assert not [name for name in pins if name.startswith(("nvidia-cu", "cuda-"))]


def compat() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compat", ROOT / ".ci/compat.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["compat"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_compat_writes_constraints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, frozen = (
        compat(),
        "zebra==2\nnvidia-cublas==13\nav==18.1.0\ntriton==3.8.0\ntrocar @ file:///somewhere\nnvidia-dali-cuda120==2.4.0\n",
    )
    monkeypatch.setattr(module, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(module, "run", lambda command: subprocess.CompletedProcess(command, 0, frozen, ""))
    module.write_constraints(module.Environment("3.11", "newest"))
    head, *pins = (tmp_path / "constraints.txt").read_text().splitlines()
    assert "Python 3.11;" in head
    assert pins == ["av==18.1.0", "nvidia-dali-cuda120==2.4.0", "zebra==2"]
