"""The benchmark measures what it says: both ways agree, costs are counted right, and a red test has no speed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trocar.bench.kernels import cases
from trocar.bench.kernels import kernels as bench
from trocar.bench.kernels.cases import CASES, Case, Size
from trocar.bench.kernels.kernels import BenchError, bench_kernels, check_tests, measure, table
from trocar.bench.rows import timing
from trocar.bench.rows.row import read_rows, row, write_rows
from trocar.bench.rows.timing import Ceilings, measure_ceilings, time_call

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TINY = Size(
    clips=2,
    frames=4,
    resolution=16,
    patch=8,
    width=24,
    heads=2,
    decoder_width=12,
    ratio=0.5,
    parameter_shapes=((3, 4), (5,)),
    rows=40,
    centroids=3,
    dtype=torch.float32,
)
CEILINGS = Ceilings(1e9, 1e12, "float32")


@pytest.mark.parametrize("name", CASES)
def test_every_operator_is_measured(name: str) -> None:
    (figures,) = measure(name, TINY, CPU, CEILINGS, repeats=2)
    assert figures["operator"] == name
    assert figures["seconds"] > 0
    assert figures["eager_seconds"] > 0
    assert figures["host_seconds"] > 0
    assert figures["forward_host_seconds"] > 0
    assert not figures["gaps"]
    assert figures["gigabytes_per_second"] > 0
    assert 0 < figures["of_floor"]
    json.dumps(row("kernels", CPU, figures), allow_nan=False)


def test_both_ways_of_embedding_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    monkeypatch.setattr(cases, "with_backward", lambda forward, leaves: outputs.append(forward()))
    for name in ("patch_embed", "pixel_loss", "decoder_tokens", "feature_loss", "rope3d"):
        outputs.clear()
        CASES[name](TINY, CPU)
        fused, eager = (output if isinstance(output, tuple) else (output,) for output in outputs)
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(fused, eager, strict=True)), name


def test_costs_of_patch_embed() -> None:
    """2 clips, 4 of 8 tokens visible, 384 values a patch, width 24, float32."""
    case = CASES["patch_embed"](TINY, CPU)
    rows, values, width = 8, 384, 24
    assert case.flops == 2 * 2 * rows * values * width
    assert case.bytes == 2 * rows * values + 2 * rows * width * 4 + 3 * values * width * 4 + 8 * width * 4


def test_a_red_test_has_no_speed(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_ema.py").write_text("def test_it():\n    assert False\n", encoding="utf-8")
    with pytest.raises(BenchError, match="ema is not measured: its tests fail"):
        check_tests("ema", tmp_path / "tests")
    with pytest.raises(BenchError, match=r"test_rope3d\.py is missing"):
        check_tests("rope3d", tmp_path / "tests")
    (tmp_path / "tests" / "test_ema.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    check_tests("ema", tmp_path / "tests")


def test_every_operator_has_its_test() -> None:
    assert [name for name in CASES if not (bench.TESTS / f"test_{name}.py").exists()] == []


def test_refuses_unknown_names_and_machines_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchError, match=r"unknown patch_embedd; operators: patch_embed, .*sizes: base, large"):
        bench_kernels(["patch_embedd"])
    with pytest.raises(BenchError, match="no NVIDIA GPU"):
        bench_kernels()


def test_a_reference_that_does_not_compile_leaves_the_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was timed is written before the compiler starts, which may raise anything or take all the time there is."""
    out, seen = tmp_path / "rows.jsonl", []

    def fails(call: object) -> None:
        seen.append([(entry["operator"], entry["compiled_reason"]) for entry in read_rows(out)])
        raise NotImplementedError("cannot inline a SliceView\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(bench, "CASES", dict.fromkeys("ab", lambda size, device: Case(int, int, 1, 1)))
    monkeypatch.setattr(bench, "check_tests", lambda name: None)
    monkeypatch.setattr(bench, "measure_ceilings", lambda device, dtype: CEILINGS)
    monkeypatch.setattr(bench, "time_call", lambda call, device, repeats: time_call(call, CPU, repeats=repeats))
    monkeypatch.setattr(bench, "row", lambda name, device, figures: row(name, CPU, figures))
    rows = bench_kernels(out=out)
    reason = "NotImplementedError: cannot inline a SliceView"
    assert seen == [[("a", "not measured")], [("a", reason), ("b", "not measured")]]
    assert read_rows(out) == rows
    assert [(entry["compiled_seconds"], entry["compiled_reason"]) for entry in rows] == [(None, reason)] * 2


class StandIn:
    """A GPU and its host, each with a clock: the device begins a kernel when it is launched and all before it is done."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.host = self.free = 0.0
        patch.setattr(timing.time, "perf_counter", lambda: self.host)
        patch.setattr(torch, "empty", lambda *size, **options: SimpleNamespace(zero_=lambda: self.launch(0.0, 1e-4)))
        patch.setattr(torch.cuda, "_sleep", lambda cycles: self.launch(0.0, cycles / timing.CYCLES_PER_SECOND))
        patch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))
        patch.setattr(torch.cuda, "synchronize", self.wait)

    def launch(self, launch_seconds: float, kernel_seconds: float) -> None:
        self.host += launch_seconds
        self.free = max(self.free, self.host) + kernel_seconds

    def wait(self, device: torch.device | None = None) -> None:
        self.host = max(self.host, self.free)


class Event:
    def __init__(self, gpu: StandIn) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = max(self.gpu.free, self.gpu.host)

    def query(self) -> bool:
        return self.gpu.host >= self.at

    def elapsed_time(self, later: Event) -> float:
        return 1000 * (later.at - self.at)


def test_the_gpus_time_and_the_hosts_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kernels of 20 us, launched in 500 us each: 60 us of the GPU's, 1.5 ms of the host's, and the other way round."""
    gpu = StandIn(monkeypatch)
    for launch, kernel in ((5e-4, 2e-5), (1e-5, 1e-3)):
        found = time_call(lambda times=(launch, kernel): [gpu.launch(*times) for _ in range(3)], CUDA, repeats=20)
        assert found.median_seconds == pytest.approx(3 * kernel)
        assert found.host_seconds == pytest.approx(3 * launch)
        assert found.is_whole


def test_a_call_that_waits_for_the_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = StandIn(monkeypatch)
    assert not time_call(lambda: (gpu.launch(1e-5, 1e-5), gpu.wait(), gpu.launch(1e-4, 1e-5)), CUDA).is_whole


def test_timing_and_ceilings() -> None:
    calls = []
    found = time_call(lambda: calls.append(1), CPU, warmup=2, repeats=7)
    assert len(calls) == 9
    assert found.host_seconds == found.median_seconds
    assert found.repeats == 7
    assert 0 <= found.low_seconds <= found.median_seconds <= found.high_seconds
    assert found.spread_percent >= 0
    ceilings = measure_ceilings(CPU, torch.float32, copy_bytes=2**16, side=32, repeats=2)
    assert ceilings.copy_bytes_per_second > 0
    assert ceilings.matrix_flops_per_second > 0


def test_rows_are_written_and_read(tmp_path: Path) -> None:
    rows = [row("kernels", CPU, figures) for figures in measure("ema", TINY, CPU, CEILINGS, repeats=2)]
    path = tmp_path / "results" / "kernels.json"
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert {"machine", "versions", "commit", "time", "spread_percent"} <= set(rows[0])
    assert {"torch", "trocar", "python"} <= set(rows[0]["versions"])
    assert table(rows).count("\n") == 2
