"""Every kernel compiles for A100, H100 and B200 without a GPU: nothing spilled, shared memory within limits, matrix units used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trocar.kernels import launch

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may ask for
ON_MATRIX_UNITS = {"_embed_kernel", "_weight_gradient_kernel", "_assign_kernel"}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parents[1] / "compile_check.py"
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_spills_and_shared_memory_fits(rows: list[dict]) -> None:
    assert {80, 90} <= {row["capability"] for row in rows} <= set(SHARED_LIMIT)
    for row in rows:
        assert row["stack_bytes"] == row["local_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_LIMIT[row["capability"]], row


def test_matrix_products_run_on_matrix_units(rows: list[dict]) -> None:
    half = [row for row in rows if row["kernel"] in ON_MATRIX_UNITS and "float32" not in row["case"]]
    assert {(row["kernel"], row["capability"]) for row in half} == {
        (kernel, capability) for kernel in ON_MATRIX_UNITS for capability in {row["capability"] for row in rows}
    }
    assert all(row["matrix_instructions"] > 0 for row in half)


def test_float32_products_are_ieee(rows: list[dict]) -> None:
    single = [row for row in rows if row["kernel"] in ON_MATRIX_UNITS and "float32" in row["case"]]
    assert {row["kernel"] for row in single} == ON_MATRIX_UNITS
    assert all(row["matrix_instructions"] == 0 for row in single)  # TF32 would be one


def test_divisions_and_roots_are_correctly_rounded(rows: list[dict]) -> None:
    """The default ones of a GPU are not: x / n is x times a rounded 1/n there, and so the mean of equal values not their value."""
    assert [(row["kernel"], row["approximate"]) for row in rows if row["approximate"]] == []


def test_no_float_atomics(rows: list[dict]) -> None:
    assert all(row["float_atomics"] == 0 for row in rows)


def test_every_kernel_is_compiled(rows: list[dict]) -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(launch.__file__).parent.glob("*.py")]
    defined = {
        line.removeprefix("def ").split("(")[0]
        for source in sources
        for decorator, line in zip(source.splitlines(), source.splitlines()[1:], strict=False)
        if decorator == "@jit" and "_kernel(" in line
    }
    assert {row["kernel"] for row in rows} == defined
