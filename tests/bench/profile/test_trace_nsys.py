"""Nsight Systems: its arguments, and the reader of its export against a file in the export's schema."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from clips import write_numbered
from nsys_export import TRAINING, Export, write_two_steps

from trocar.bench.profile.stages import analyse
from trocar.bench.profile.table import table, timeline_picture
from trocar.bench.profile.trace import TraceError
from trocar.bench.profile.trace_nsys import export_command, find_nsys, nsys_command, read_nsys
from trocar.loaders.corpus.index import index_corpus


def test_the_arguments(tmp_path: Path) -> None:
    command = nsys_command("nsys", tmp_path / "report", ["python", "-m", "x", "--steps", "1:2"], gpu_metrics="0")
    assert command[:2] == ["nsys", "profile"]
    assert command[-5:] == ["python", "-m", "x", "--steps", "1:2"], "the command is last, its options its own"
    options = dict(part.split("=", 1) for part in command[2:-5])
    assert options["--capture-range"] == "cudaProfilerApi"
    assert options["--capture-range-end"] == "stop", "the run goes on after the steps"
    assert {"cuda", "nvtx"} <= set(options["--trace"].split(","))
    assert options["--output"] == str(tmp_path / "report")
    assert options["--gpu-metrics-devices"] == "0"
    assert not any("gpu-metrics" in part for part in nsys_command("nsys", tmp_path / "report", ["python"]))
    assert export_command("nsys", Path("a.nsys-rep"), Path("a.sqlite"))[1:3] == ["export", "--type=sqlite"]


def test_stages_are_those_of_the_launches(tmp_path: Path) -> None:
    profile = analyse(read_nsys(write_two_steps(tmp_path / "a.sqlite")))
    assert profile.steps == 2
    assert profile.has_device
    assert profile.seconds == pytest.approx(1e-3)
    times = {stage.name: stage for stage in profile.stages}
    # Launched in the encoder's range, though it runs on until the loss.
    assert times["encoder"].device == pytest.approx(200e-6)
    # Launched by the autograd engine's thread, which has no ranges, while the training thread is in the backward pass.
    assert times["backward"].device == pytest.approx(400e-6)
    assert times["optimizer"].device == pytest.approx(50e-6)
    assert times["loss"].device == pytest.approx(10e-6), "the copy to the host"
    assert times["forward"].host == pytest.approx((200 - 90 - 80) * 1e-6), "what is in none of its stages"
    assert "decode" not in times, "DALI's kernel on its own stream is not the training's"
    assert profile.bottleneck.name == "backward"
    assert profile.parts[0].name == "void attention_backward(float*)"
    assert sum(stage.critical for stage in profile.stages) == pytest.approx(profile.seconds), (
        "every moment has its stage"
    )
    assert sum(stage.host for stage in profile.stages) == pytest.approx(profile.seconds)


def test_idle_time_belongs_to_what_the_host_is_in(tmp_path: Path) -> None:
    profile = analyse(read_nsys(write_two_steps(tmp_path / "a.sqlite")))
    assert profile.idle["wait"] == pytest.approx(90e-6)
    gaps = 1000 - (200 + 400 + 50 + 10)
    assert sum(profile.idle.values()) == pytest.approx(gaps * 1e-6)


def test_host_syncs_are_found(tmp_path: Path) -> None:
    syncs = analyse(read_nsys(write_two_steps(tmp_path / "a.sqlite"))).syncs
    assert set(syncs) == {("DtoH copy of pageable memory", "loss"), ("cudaStreamSynchronize_v3020", "step")}
    calls, seconds = syncs["DtoH copy of pageable memory", "loss"]
    assert (calls, seconds) == (1, pytest.approx(130e-6))


@pytest.mark.parametrize(("slow", "stage"), [("loader", "wait"), ("kernel", "encoder"), ("", "backward")])
def test_the_bottleneck_is_named(tmp_path: Path, slow: str, stage: str) -> None:
    trace = read_nsys(write_two_steps(tmp_path / "a.sqlite", slow=slow))
    profile = analyse(trace)
    assert profile.bottleneck.name == stage
    sentence = profile.sentence()
    wanted = {"wait": "the loader", "encoder": "encoder: ", "backward": "attention_backward"}[stage]
    assert wanted in sentence
    assert sentence in table(profile)
    timeline_picture(trace, profile, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes()[:4] == b"\x89PNG"
    json.dumps(profile.row(), allow_nan=False)


def test_counters_and_their_absence(tmp_path: Path) -> None:
    profile = analyse(read_nsys(write_two_steps(tmp_path / "a.sqlite")))
    assert profile.counters == {"SM": 80, "PCIe read": 20, "PCIe written": 10}
    assert any(note.startswith("NVDEC, memory read") for note in profile.notes), profile.notes
    bare = analyse(read_nsys(write_two_steps(tmp_path / "b.sqlite", counters=False)))
    assert bare.counters == {}
    assert "NVDEC" in "".join(bare.notes)


def test_tables_that_are_not_there(tmp_path: Path) -> None:
    """Tables are made as they are needed: a run without copies, or without a GPU's work, has none of them."""
    path = write_two_steps(tmp_path / "a.sqlite")
    with closing(sqlite3.connect(path)) as connection, connection:
        for name in ("MEMCPY", "KERNEL", "RUNTIME", "SYNCHRONIZATION"):
            connection.execute(f"DROP TABLE CUPTI_ACTIVITY_KIND_{name}")
        connection.execute("ALTER TABLE GPU_METRICS DROP COLUMN timestamp")  # as older versions have it
        connection.execute("UPDATE GPU_METRICS SET rawTimestamp = 500")
    profile = analyse(read_nsys(path))
    assert not profile.has_device
    assert profile.stage("backward").critical == profile.stage("backward").host == pytest.approx(300e-6)
    assert profile.counters["SM"] == 80


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        read_nsys(tmp_path / "absent.sqlite")
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be read as one" * 100)
    with pytest.raises(TraceError, match="cannot be read as an export"):
        read_nsys(tmp_path / "text.sqlite")
    export = Export(tmp_path / "empty.sqlite")
    export.range("wait", 0, 1, TRAINING)
    export.close()
    with pytest.raises(TraceError, match="no range trocar/step"):
        analyse(read_nsys(tmp_path / "empty.sqlite"))


FAKE_NSYS = f"""#!{sys.executable}
import os, sys, shutil
from pathlib import Path
arguments = sys.argv[1:]
output = Path(next(part for part in arguments if part.startswith("--output=")).split("=", 1)[1])
if arguments[0] == "export":
    shutil.copy(Path(__file__).with_name("made.sqlite"), output)
elif any("gpu-metrics" in part for part in arguments):
    sys.exit("Insufficient privilege, see NVIDIA's ERR_NVGPUCTRPERM")
else:
    assert os.environ["TROCAR_NVTX"] == "1"
    Path(__file__).with_name("arguments.txt").write_text("\\n".join(arguments))
    output.with_suffix(".nsys-rep").write_text("report")
"""


def test_a_rank_runs_under_nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an nsys that may not sample counters: it is tried again without them, and the result says so."""
    from trocar.bench.profile import run as profile_run

    nsys = tmp_path / "bin" / "nsys"
    nsys.parent.mkdir()
    nsys.write_text(FAKE_NSYS)
    nsys.chmod(0o755)
    write_two_steps(nsys.with_name("made.sqlite"))
    monkeypatch.setenv("PATH", str(nsys.parent), prepend=":")
    assert find_nsys() == str(nsys)
    monkeypatch.setattr(profile_run, "choose_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(profile_run, "row", lambda name, device, measured: {"benchmark": name, **measured})
    write_numbered(tmp_path / "0.mp4", 60, video_id=0)
    index_corpus([tmp_path / "0.mp4"], tmp_path / "corpus", workers=1, progress=False)
    settings = ["run.device=cuda", f"data.corpus={tmp_path / 'corpus'}"]
    request = profile_run.Request.parse("demo_cpu", settings, "5:7", "0", tmp_path / "out")
    found = profile_run.profile_steps(request)
    assert found is not None
    profile, written, _ = found
    assert profile.bottleneck.name == "backward"
    assert "ERR_NVGPUCTRPERM" in "".join(profile.notes)
    assert written["benchmark"] == "profile"
    ran = nsys.with_name("arguments.txt").read_text().split("\n")
    assert ran[ran.index("profile", 1) :][:2] == ["profile", "demo_cpu"]
    assert "--capture" in ran
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"timeline_rank0.png", "profile_rank0.jsonl"}
