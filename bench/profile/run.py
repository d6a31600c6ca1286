"""`trocar profile`: a real pretraining run for some steps, recorded, and what the recording says.

A rank on a GPU runs under Nsight Systems where nsys is installed, every other one under torch.profiler in its own process. Several
ranks are started by torchrun as for training; those that are not asked for train unrecorded. The run has a directory of its own,
which is removed afterwards: nothing of an existing run is touched.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import record_function

from ...engine.config.file import load_config
from ...engine.config.settings import Config, ConfigError
from ...engine.pretrain import pretrain
from ...engine.record.metrics import read_metrics
from ...engine.record.profiler import nvtx_range, recorded_by
from ...engine.step.device import choose_device
from ..rows.row import row, write_rows
from .contention import BESIDE_STEPS, ContentionClock, read, told
from .row import figures
from .stage_clock import ProcessorClock
from .stages import StepProfile, analyse
from .table import timeline_picture
from .trace import Trace, TraceError
from .trace_nsys import CudaProfilerRecorder, export, find_nsys, nsys_command, read_nsys
from .trace_torch import TorchRecorder, read_chrome_trace

NO_COUNTERS = ("gpu-metrics", "gpu metrics", "privilege", "permission")


@dataclass(frozen=True)
class Request:
    """What is asked for. config, overrides: as for `trocar pretrain`. first, last: steps first .. last - 1, counted from 0. ranks:
    those that are recorded. out: folder of the results."""

    config: str
    overrides: tuple[str, ...]
    first: int
    last: int
    ranks: tuple[int, ...]
    out: Path

    @staticmethod
    def parse(config: str, overrides: Sequence[str], steps: str, ranks: str, out: Path) -> Request:
        """steps: "A:B". ranks: "0,7". Raises ConfigError."""
        try:
            first, last = (int(text) for text in steps.split(":"))
            chosen = tuple(int(text) for text in ranks.split(","))
        except ValueError:
            raise ConfigError(f"--steps {steps} --ranks {ranks}: give --steps A:B and --ranks N,N,...") from None
        if not 0 <= first < last or min(chosen) < 0:
            raise ConfigError(f"--steps {steps}: steps A .. B - 1, counted from 0, with 0 <= A < B; ranks from 0 on")
        return Request(config, tuple(overrides), first, last, chosen, out)

    def load(self) -> Config:
        own = [f"run.dir={self.out / 'run'}", "run.tensorboard=false", "run.wandb=null", "run.log_every=1"]
        ahead = load_config(self.config, [*self.overrides, *own]).data.prefetch
        # The run goes on a little: at first there is something to decode, at its end nothing is left.
        steps = self.last + BESIDE_STEPS + ahead + 1
        return load_config(
            self.config, [*self.overrides, *own, f"optim.steps={steps}", f"run.checkpoint_every={steps}"]
        )

    def contention_clock(self) -> ContentionClock:
        steps = self.load().optim.steps
        assert steps is not None
        return ContentionClock(self.last, steps)

    @property
    def contention_file(self) -> Path:
        return self.out / "contention.json"

    def command(self) -> list[str]:
        """This request as a command that only marks its steps, for a profiler around it."""
        steps = ["--steps", f"{self.first}:{self.last}", "--out", str(self.out), "--capture"]
        return [sys.executable, "-m", "trocar.engine.cli", "profile", self.config, *steps, *self.overrides]

    def ncu_command(self, kernel: str) -> str:
        """Nsight Compute on the kernels whose name holds `kernel`, in the first of these steps."""
        options = ["--target-processes", "all", "--profile-from-start", "off", "--nvtx", "--set", "full"]
        options += ["--kernel-name-base", "demangled", "--kernel-name", f"regex:{kernel}", "--launch-count", "5"]
        options += ["--export", str(self.out / f"ncu_{kernel}"), "--force-overwrite"]
        return "TROCAR_NVTX=1 " + shlex.join(["ncu", *options, *self.command()])


def capture(request: Request) -> None:
    """The run itself, its steps marked by cudaProfilerStart and cudaProfilerStop. Raises ConfigError without a GPU."""
    config = request.load()
    if choose_device(config.run.device, "run.device").type != "cuda":
        raise ConfigError(
            "--capture marks steps for a profiler of CUDA; without a GPU leave it out: torch.profiler records then"
        )
    recorder, contention = CudaProfilerRecorder(request.first, request.last), request.contention_clock()

    def on_step(steps_done: int) -> None:
        recorder.on_step(steps_done)
        contention.on_step(steps_done)

    with recorded_by(contention.around(nvtx_range)):
        pretrain(config, progress=False, listen=False, on_step=on_step)
    contention.write(request.contention_file)


def profile_steps(request: Request) -> tuple[StepProfile, dict[str, Any], Trace] | None:
    """Runs and records this rank. Returns what the recording says, its row, and the trace; None on ranks not asked for.

    Writes to request.out: the trace, profile_rankN.jsonl (the row) and timeline_rankN.png. Raises ConfigError, TraceError, and what
    `pretrain` raises.
    """
    config, rank = request.load(), int(os.environ.get("RANK", "0"))
    folder = Path(config.run.dir)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a call that was interrupted
    request.out.mkdir(parents=True, exist_ok=True)
    if rank not in request.ranks:
        pretrain(config, progress=False, listen=False)
        return None
    device, nsys = choose_device(config.run.device, "run.device"), find_nsys()
    processor = None
    try:
        if device.type == "cuda" and nsys is not None:
            trace = _record_by_nsys(request, nsys, rank)
            slowed = read(request.contention_file)
        else:
            trace, processor, slowed = _record_by_torch(request, config, rank, is_nsys_missing=device.type == "cuda")
        steps = [entry for entry in read_metrics(folder) if request.first < entry["step"] <= request.last]
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    trace.notes += told(slowed)
    profile = analyse(trace)
    measured = {"config": request.config, "rank": rank, "overrides": list(request.overrides)}
    measured |= figures(config, profile, steps, processor)
    measured["contended_seconds_per_step"] = {
        stage: {"beside": beside, "alone": alone} for stage, (beside, alone) in slowed.items()
    }
    written = row("profile", device, measured)
    write_rows(request.out / f"profile_rank{rank}.jsonl", [written])
    timeline_picture(trace, profile, request.out / f"timeline_rank{rank}.png")
    return profile, written, trace


def _record_by_torch(
    request: Request, config: Config, rank: int, *, is_nsys_missing: bool
) -> tuple[Trace, ProcessorClock, dict[str, tuple[float, float]]]:
    recorder, processor = TorchRecorder(request.first, request.last), ProcessorClock(request.first, request.last)
    contention = request.contention_clock()

    def on_step(steps_done: int) -> None:
        if steps_done == request.last:
            processor.on_step(steps_done)  # what the recorder does at the end is no part of the steps
        recorder.on_step(steps_done)
        if steps_done == request.first:
            processor.on_step(steps_done)
        contention.on_step(steps_done)

    with recorded_by(contention.around(processor.around(record_function))):
        pretrain(config, progress=False, listen=False, on_step=on_step)
    path = request.out / f"trace_rank{rank}.json.gz"
    recorder.save(path)
    trace = read_chrome_trace(path)
    trace.notes += recorder.notes
    if is_nsys_missing:
        trace.notes.append("nsys is not installed, so torch.profiler recorded: DALI's and NVDEC's work is seen in part")
    return trace, processor, contention.found()


def _record_by_nsys(request: Request, nsys: str, rank: int) -> Trace:
    """One rank under nsys. The counters are sampled for the first rank asked for: one sampler a machine is allowed."""
    report = request.out / f"trace_rank{rank}"
    environment = os.environ | {"TROCAR_NVTX": "1"}
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    counters = "cuda-visible" if is_alone else os.environ.get("LOCAL_RANK", "0")
    counters = counters if rank == request.ranks[0] else ""
    notes = []
    while True:
        command = nsys_command(nsys, report, request.command(), gpu_metrics=counters)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        found = report.with_suffix(".nsys-rep")
        if found.exists() and not done.returncode:
            break
        if not counters or not any(word in done.stdout.lower() for word in NO_COUNTERS):
            raise TraceError(f"nsys ended with status {done.returncode} and no {found}:\n{done.stdout[-2000:]}")
        notes.append("nsys may not sample the GPU's counters here (NVIDIA: ERR_NVGPUCTRPERM)")
        counters = ""
    trace = read_nsys(export(nsys, found))
    trace.notes += notes
    return trace
