"""`trocar profile` on a CPU: a real run's stages, and whatever was made slow named as the bottleneck, by `trocar plan` too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import write_numbered

from trocar.bench.profile.run import Request
from trocar.bench.profile.stages import analyse
from trocar.bench.profile.trace import Event, Trace, TraceError, innermost
from trocar.bench.profile.trace_torch import TorchRecorder, read_chrome_trace
from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.record.profiler import name_modules, recorded_by
from trocar.engine.step.build import build_model
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.decode import span
from trocar.ssl import encoder, mae

TINY = [
    "data.frames=4", "data.stride=2", "data.resolution=32", "data.threads=1", "model.patch=8", "model.width=24",
    "model.heads=2", "model.depth=1", "model.decoder_depth=1", "model.decoder_width=24", "model.decoder_heads=2",
    "optim.batch=4", "run.threads=1",
]  # fmt: skip
SLOW = 0.1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(2):
        write_numbered(folder / f"{number}.mp4", 120, video_id=number, gop=12)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


def busily(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, a kernel that computes for SLOW seconds first."""

    def slow(*arguments: Any, **keywords: Any) -> Any:
        until = time.thread_time() + SLOW
        while time.thread_time() < until:
            pass
        return function(*arguments, **keywords)

    return slow


def profiled(corpus: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, dict[str, Any]]:
    """What `trocar profile` prints, and its row."""
    assert (
        main(["profile", "demo_cpu", f"data.corpus={corpus}", *TINY, *more, "--steps", "3:8", "--out", str(out)]) == 0
    )
    return capsys.readouterr().out, json.loads((out / "profile_rank0.jsonl").read_text())


def planned(corpus: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `trocar plan` says of the bottleneck, by the rates of that profile."""
    rates = ["--rates", str(out / "profile_rank0.jsonl"), "--cluster", "cpu_2_cores", "--corpus", str(corpus)]
    assert main(["plan", "demo_cpu", *TINY, *rates]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- originals, 1 view a span: ")]
    return line


def test_a_slow_loader_is_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = span.SpanReader.read
    monkeypatch.setattr(span.SpanReader, "read", lambda *arguments: time.sleep(SLOW) or read(*arguments))
    printed, row = profiled(corpus, tmp_path, capsys)
    assert row["bottleneck"] == "wait"
    assert "The bottleneck is the loader: training waits for clips" in printed
    assert row["spans_per_step"] == pytest.approx(4, abs=0.5)
    assert row["decode_thread_seconds_per_step"] > 0.6 * row["seconds_per_step"], "the one thread never rests"
    assert row["decode_core_seconds_per_step"] < 0.5 * row["decode_thread_seconds_per_step"], "it sleeps"
    plan = planned(corpus, tmp_path, capsys)
    assert "the bottleneck is the loader: decoding on CPU cores" in plan
    assert "4 views a span" not in plan
    assert "2 views a span (" in plan, "reusing spans is what helps"


@pytest.mark.slow
def test_contention_of_a_run_is_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding that is all Python, in threads of the process that trains, beside a stage that gives the interpreter up often."""
    embed = encoder.patch_embed
    monkeypatch.setattr(span.SpanReader, "read", busily(span.SpanReader.read))
    monkeypatch.setattr(
        encoder, "patch_embed", lambda *arguments: [embed(*arguments), *map(time.sleep, [0.0005] * 20)][0]
    )
    printed, row = profiled(corpus, tmp_path, capsys, "data.threads=2", "data.prefetch=3")
    assert "patch_embed" in row["contended_seconds_per_step"]
    assert "Note: the interpreter is contended: " in printed


def test_what_some_versions_say_of_cycles_ends_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.11 warns at every start that it clears events at the end of a cycle; there is one, and warnings are errors here."""

    class Warns:
        def start(self) -> None:
            warnings.warn(
                "Warning: Profiler clears events at the end of each cycle.Only events from the current", stacklevel=1
            )

    recorder = TorchRecorder(0, 1)
    monkeypatch.setattr(recorder, "_open", Warns)
    recorder.on_step(0)

    class WarnsOfMore:
        def start(self) -> None:
            warnings.warn("something else", stacklevel=1)

    recorder = TorchRecorder(0, 1)
    monkeypatch.setattr(recorder, "_open", WarnsOfMore)
    with pytest.raises(UserWarning, match="something else"):
        recorder.on_step(0)


@pytest.mark.parametrize(("module", "name", "stage", "called"), [
    (encoder, "patch_embed", "patch_embed", "patch embed"), (mae, "pixel_loss", "loss", "loss"),
])  # fmt: skip
def test_a_slow_kernel_is_named(
    module: Any, name: str, stage: str, called: str,
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, name, busily(getattr(module, name)))
    printed, row = profiled(corpus, tmp_path, capsys)
    assert row["bottleneck"] == stage
    assert f"The bottleneck is {called}: " in printed
    assert row["stages"][stage]["host"] > SLOW
    plan = planned(corpus, tmp_path, capsys)
    assert f"the bottleneck is the step's computation, of which {called} takes " in plan
    assert "a step twice as fast (" in plan


def test_what_it_leaves(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    printed, row = profiled(corpus, out, capsys)
    assert sorted(path.name for path in out.iterdir()) == [
        "profile_rank0.jsonl",
        "timeline_rank0.png",
        "trace_rank0.json.gz",
    ]
    assert (out / "timeline_rank0.png").read_bytes()[:4] == b"\x89PNG"
    stages = row["stages"]
    assert {"wait", "patch_embed", "encoder", "decoder", "loss", "backward", "optimizer", "ema"} <= stages.keys()
    assert sum(times["critical"] for times in stages.values()) == pytest.approx(row["seconds_per_step"])
    assert row["steps"] == 5
    assert row["bottleneck"] not in ("patch_embed", "loss"), "nothing was made slow"
    # Whether the thread that decodes takes the interpreter here is the machine's affair; what is found is told.
    assert ("the interpreter is contended" in printed) == bool(row["contended_seconds_per_step"])
    trace = read_chrome_trace(out / "trace_rank0.json.gz")
    assert len(trace.steps) == 5
    assert {event.name for event in trace.ranges} > {"decode", "backward"}
    assert "aten::" in printed
    assert "Host syncs: none without a GPU." in printed
    assert "absent: they need Nsight Systems" in printed


def test_ranks_that_are_not_asked_for_train_unrecorded(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["profile", "demo_cpu", f"data.corpus={corpus}", *TINY, "--steps", "0:1", "--ranks", "7"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert not list(tmp_path.glob("profile*"))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_two_ranks(corpus: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "trocar.engine.cli",
    ]
    settings = ["profile", "demo_cpu", f"data.corpus={corpus}", *TINY, "run.device=cpu"]
    done = subprocess.run(
        [*command, *settings, "--steps", "1:3", "--ranks", "1", "--out", str(tmp_path / "out")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out" / "profile_rank1.jsonl").read_text())
    assert (row["rank"], row["clips_per_step"], row["steps"]) == (1, 2, 2)
    assert not (tmp_path / "out" / "profile_rank0.jsonl").exists()


def test_what_is_asked_wrongly(capsys: pytest.CaptureFixture[str], tmp_path: Path, corpus: Path) -> None:
    for steps in ("5", "5:5", "a:b", "7:3"):
        with pytest.raises(ConfigError, match="--steps"):
            Request.parse("demo_cpu", [], steps, "0", tmp_path)
    assert main(["profile", "demo_cpu", f"data.corpus={corpus}", "--steps", "1:2", "--ranks", "x"]) == 2
    assert main(["profile", "demo_cpu", f"data.corpus={corpus}", *TINY, "--steps", "1:2", "--capture"]) == 2
    assert "--capture marks steps for a profiler of CUDA" in capsys.readouterr().err
    (tmp_path / "trace.json").write_text("[]")
    with pytest.raises(TraceError, match="cannot be read as a trace"):
        read_chrome_trace(tmp_path / "trace.json")


def test_the_command_of_nsight_compute(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["profile", "surgrec_mae", "--steps", "20:21", "--out", str(tmp_path), "--ncu", "_pixel_loss"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[:2] == ["TROCAR_NVTX=1", "ncu"]
    assert "regex:_pixel_loss" in printed
    assert printed[printed.index("--profile-from-start") + 1] == "off"
    assert {"--capture", "20:21", "surgrec_mae"} <= set(printed)


def test_a_jepas_parts_have_their_ranges() -> None:
    seen: list[str] = []

    @contextmanager
    def recorder(stage: str) -> Iterator[None]:
        seen.append(stage)
        yield
        seen.append(f"/{stage}")

    tiny = [
        "data.frames=4",
        "data.resolution=32",
        "model.depth=1",
        "model.predictor_depth=1",
        "data.corpus=none",
        "run.dir=none",
    ]
    model, masks = build_model(load_config("demo_jepa_cpu", tiny))
    with recorded_by(recorder):
        name_modules(model)
        model(torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8), masks(0, np.arange(2), 0))
    order = [
        "encoder",
        "patch_embed",
        "/patch_embed",
        "/encoder",
        "decoder",
        "/decoder",
        "loss",
        "target",
        "/target",
        "/loss",
    ]
    assert seen == [f"/trocar/{name[1:]}" if name[0] == "/" else f"trocar/{name}" for name in order]


def test_pieces_of_nested_ranges() -> None:
    ranges = [
        Event("a", 0, 100, 1),
        Event("b", 10, 60, 1),
        Event("c", 20, 30, 1),
        Event("d", 60, 70, 1),
        Event("e", 120, 130, 1),
    ]
    found = [(start, end, event.name) for start, end, event in innermost(ranges)]
    assert found == [
        (0, 10, "a"), (10, 20, "b"), (20, 30, "c"), (30, 60, "b"), (60, 70, "d"), (70, 100, "a"), (120, 130, "e"),
    ]  # fmt: skip


def test_time_between_steps_is_a_stage_of_its_own() -> None:
    trace = Trace(
        "made", "made", ranges=[Event("step", 0, 1000, 1), Event("wait", 0, 400, 1), Event("step", 3000, 4000, 1)]
    )
    profile = analyse(trace)
    assert profile.bottleneck.name == "between steps"
    assert "what the host does between steps" in profile.sentence()
