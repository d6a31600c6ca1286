"""Set-up: stamped, resumed after an interruption, repeated when the project changes, clear about what is missing.

The interpreter is a stand-in that makes environments whose pip only writes down that it was called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *"version_info < "*) exit {too_old} ;;
    *"import ensurepip, venv"*) exit {lacks_venv} ;;
    *"version_info[:2]"*) echo 3.12 ;;
    *"sys.base_prefix"*) echo "{base}" ;;
    --version) echo "Python 3.9.1" ;;
    "-m venv "*)
        mkdir -p "$3/bin"
        cat > "$3/bin/python" <<'END'
#!/usr/bin/env bash
case "$*" in
    *"sys.base_prefix"*) echo "{base}" ;;
    "-m pip install "*) echo "$*" >> "{log}"; exit $(cat "{status}") ;;
esac
END
        chmod +x "$3/bin/python" ;;
esac
"""


class House:
    """A copy of what set-up reads, beside a stand-in interpreter."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.status = folder, folder / "pip.log", folder / "pip.status"
        self.status.write_text("0")
        for name in ("setup.sh", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        self.make_python()

    def make_python(self, *, too_old: int = 0, lacks_venv: int = 0, base: str = "/usr 3.12.1") -> None:
        text = PYTHON.format(too_old=too_old, lacks_venv=lacks_venv, base=base, log=self.log, status=self.status)
        (self.folder / "python").write_text(text)
        (self.folder / "python").chmod(0o755)

    def set_up(self, extra: str = "[dev]", python: str = "./python") -> subprocess.CompletedProcess[str]:
        command = ["bash", "setup.sh", extra]
        environment = os.environ | {"PYTHON": python, "VENV": ".venv"}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    @property
    def installs(self) -> int:
        return self.log.read_text().count("pip install") if self.log.exists() else 0


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_installs_once_and_again_when_the_project_changes(house: House) -> None:
    for _ in range(2):
        assert house.set_up().returncode == 0
        assert house.installs == 1
    with (house.folder / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    assert house.set_up().returncode == 0
    assert house.installs == 2


def test_an_environment_for_testing_serves_for_running(house: House) -> None:
    house.set_up("[dev]")
    house.set_up("")
    assert house.installs == 1


def test_an_environment_for_the_pages_serves_for_all_else(house: House) -> None:
    house.set_up("[dev]")
    for extra in ("[dev,docs]", "[dev]", "", "[dev,docs]"):
        assert house.set_up(extra).returncode == 0
        assert house.installs == 2
    assert "--editable .[dev,docs]" in house.log.read_text()


def test_an_environment_for_running_is_completed_for_testing(house: House) -> None:
    house.set_up("")
    house.set_up("[dev]")
    assert house.installs == 2
    assert "--editable .[dev]" in house.log.read_text()


def test_resumes_after_an_interruption(house: House) -> None:
    house.status.write_text("1")
    assert house.set_up().returncode != 0
    house.status.write_text("0")
    (house.folder / ".venv" / "kept").touch()
    assert house.set_up().returncode == 0
    assert house.installs == 2
    assert (house.folder / ".venv" / "kept").exists()


def test_another_interpreter_starts_anew(house: House) -> None:
    house.set_up()
    (house.folder / ".venv" / "old").touch()
    house.make_python(base="/opt 3.13.0")
    assert house.set_up().returncode == 0
    assert house.installs == 2
    assert not (house.folder / ".venv" / "old").exists()


def test_what_is_not_ours_stays(house: House) -> None:
    """No stamp: somebody's own environment, or their data."""
    own = house.folder / ".venv" / "data"
    own.parent.mkdir()
    own.touch()
    finished = house.set_up()
    assert (finished.returncode, house.installs) == (1, 0)
    assert ".venv was not made by setup.sh and stays as it is; move it, or name another place" in finished.stderr
    assert own.exists()


def test_says_in_one_line_what_is_missing(house: House) -> None:
    for change, message in [
        ({"lacks_venv": 1}, "apt install python3.12-venv"),
        ({"too_old": 1}, "Python 3.9.1 is too old; Python 3.10 or later is needed"),
    ]:
        house.make_python(**change)  # pyright: ignore[reportArgumentType]
        finished = house.set_up()
        assert finished.returncode == 1
        assert message in finished.stderr
        assert len(finished.stderr.splitlines()) == 1
    finished = house.set_up(python="./none")
    assert (finished.returncode, "no ./none here" in finished.stderr) == (1, True)
    assert not (house.folder / ".venv").exists()
