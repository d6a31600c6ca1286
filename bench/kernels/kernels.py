"""`trocar bench kernels`: every fused operator against its eager reference and against that reference under torch.compile.

The GPU's time and what launching takes the host are measured apart, forward and backward where there is one, in the shapes of
ViT-B (or ViT-L) on 16 frames at 224 pixels. An operator's tests run first: where they fail, its speed is not measured.
`bytes` is what it must move at least, each input read and each output written once; `flops` what it must multiply and add.
The floor is the longer of both at the ceilings measured in the same process.

Shapes: B clips, N = 1568 tokens, K = 1536 values a patch, D width.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.console.table import Table
from ...loaders.video.error import TrocarError
from ..rows.cells import known_cell, share_cell
from ..rows.row import row, write_rows
from ..rows.timing import Ceilings, measure_ceilings, time_call
from .cases import CASES, SIZES, Size

TESTS = Path(__file__).resolve().parents[2] / "tests" / "kernels"


class BenchError(TrocarError):
    """A measurement that cannot be made, or must not be."""


def check_tests(name: str, tests: Path = TESTS) -> None:
    """Runs the operator's tests. Raises BenchError where they fail or are not there: a speed without them says nothing."""
    path = tests / f"test_{name}.py"
    if not path.exists():
        raise BenchError(f"{path} is missing: no speed without its tests; run from a checkout")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, env=environment, cwd=tests.parent, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{name} is not measured: its tests fail\n{done.stdout[-2000:]}")


def measure(
    name: str, size: Size, device: torch.device, ceilings: Ceilings, *, repeats: int = 50
) -> Iterator[dict[str, Any]]:
    """Times one operator. Yields its row's figures, on a GPU twice: before its reference is compiled, which may take all the time
    there is, and with that. "of_floor" is floor time / measured time, of the device as all but the host's; "compiled_reason" says
    why there is no compiled reference, "gaps" that some calls were not queued before the device began them."""
    case = CASES[name](size, device)
    fused = time_call(case.fused, device, repeats=repeats)
    eager = time_call(case.eager, device, repeats=repeats)
    seconds = fused.median_seconds
    floor = max(case.bytes / ceilings.copy_bytes_per_second, case.flops / ceilings.matrix_flops_per_second)
    found = {
        "operator": name,
        "dtype": str(size.dtype).removeprefix("torch."),
        "clips": size.clips,
        "width": size.width,
        "seconds": seconds,
        "spread_percent": fused.spread_percent,
        "repeats": fused.repeats,
        "gaps": not fused.is_whole,
        "host_seconds": fused.host_seconds,
        "forward_host_seconds": time_call(case.forward or case.fused, device, repeats=repeats).host_seconds,
        "eager_seconds": eager.median_seconds,
        "eager_host_seconds": eager.host_seconds,
        "compiled_seconds": None,
        "compiled_reason": "not measured",
        "times_eager": eager.median_seconds / seconds,
        "times_compiled": None,
        "gigabytes_per_second": case.bytes / seconds / 1e9,
        "teraflops_per_second": case.flops / seconds / 1e12,
        "of_copy_bandwidth": case.bytes / seconds / ceilings.copy_bytes_per_second,
        "of_matrix_ceiling": case.flops / seconds / ceilings.matrix_flops_per_second,
        "of_floor": floor / seconds,
        "copy_gigabytes_per_second": ceilings.copy_bytes_per_second / 1e9,
        "matrix_teraflops_per_second": ceilings.matrix_flops_per_second / 1e12,
    }
    yield found
    if device.type == "cuda":
        try:
            compiled = time_call(torch.compile(case.eager), device, repeats=repeats).median_seconds
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises is its own reason, and no other row's
            said = (str(error).strip().splitlines() or ["no message"])[0]
            yield {**found, "compiled_reason": f"{type(error).__name__}: {said[:200]}"}
        else:
            times = compiled / seconds
            yield {**found, "compiled_seconds": compiled, "compiled_reason": "", "times_compiled": times}


def bench_kernels(names: Sequence[str] = (), *, size: str = "base", out: Path | None = None) -> list[dict[str, Any]]:
    """Measures the named operators, all where none is named, on the first GPU, and writes the rows to `out` as they come.

    size: "base" or "large". Raises BenchError without an NVIDIA GPU, on unknown names, and where an operator's tests fail.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown or size not in SIZES:
        raise BenchError(
            f"unknown {', '.join(unknown) or size}; operators: {', '.join(CASES)}; sizes: {', '.join(SIZES)}"
        )
    if not torch.cuda.is_available():
        raise BenchError("no NVIDIA GPU: on a CPU the operators are their references, and there is nothing to measure")
    device = torch.device("cuda", 0)
    ceilings = measure_ceilings(device, SIZES[size].dtype)
    rows: list[dict[str, Any]] = []
    for name in names or CASES:
        check_tests(name)
        unfinished: list[dict[str, Any]] = []
        for figures in measure(name, SIZES[size], device, ceilings):
            unfinished = [row("kernels", device, {"size": size, **figures})]
            if out is not None:
                write_rows(out, [*rows, *unfinished])
        rows += unfinished
        torch.cuda.empty_cache()
    return rows


COLUMNS: dict[str, str | Callable[[Any], str]] = {
    "operator": "{operator}",
    "GPU time": lambda row: (
        f"{row['seconds'] * 1e6:.0f} us +- {row['spread_percent'] / 2:.0f} %" + ", with gaps" * row["gaps"]
    ),
    "host us, forward": lambda row: f"{row['forward_host_seconds'] * 1e6:.0f}",
    "with backward (eager's)": lambda row: f"{row['host_seconds'] * 1e6:.0f} ({row['eager_host_seconds'] * 1e6:.0f})",
    "against eager": "{times_eager:.1f}x",
    "against torch.compile": known_cell("times_compiled", "{:.1f}x"),
    "GB/s": "{gigabytes_per_second:.0f}",
    "TFLOP/s": "{teraflops_per_second:.0f}",
    "of its floor": share_cell("of_floor"),
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, as docs/kernels.md has them."""
    return Table.of(rows, COLUMNS).markdown()
