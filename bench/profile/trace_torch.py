"""torch.profiler: recording some steps, and reading the Chrome trace that it writes.

The trace is the format of chrome://tracing and of ui.perfetto.dev: microseconds, one "X" event a range, operator, CUDA call, kernel
or copy; a kernel names the call that started it by the same correlation.
"""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .trace import PREFIX, DeviceWork, Event, Trace, TraceError


class TorchRecorder:
    """Records the steps `first` .. `last` - 1 of a run, counted from 0, all threads of them."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.notes: list[str] = []
        self._profile: profile | None = None
        self._is_recorded = False

    def on_step(self, steps_done: int) -> None:
        """To be called with the number of steps done, before the first and after each."""
        if steps_done == self.first and self._profile is None:
            _synchronize()  # so that nothing of earlier steps is on the device
            self._profile = self._open()
            with warnings.catch_warnings():
                # Said by some versions at every start; there is one cycle here.
                warnings.filterwarnings("ignore", "(Warning: )?Profiler clears events at the end of each cycle")
                self._profile.start()
        elif steps_done == self.last and self._profile is not None and not self._is_recorded:
            _synchronize()
            self._profile.stop()
            self._is_recorded = True

    def save(self, path: Path) -> None:
        """Writes the trace, gzipped. Raises TraceError where the steps were not reached."""
        if self._profile is None or not self._is_recorded:
            raise TraceError(f"the run ended before step {self.last}; nothing was recorded")
        self._profile.export_chrome_trace(str(path))

    def _open(self) -> profile:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        try:
            from torch._C._profiler import _ExperimentalConfig

            options: dict[str, Any] = {"experimental_config": _ExperimentalConfig(profile_all_threads=True)}
        except (ImportError, TypeError):
            options = {}
            self.notes.append(f"PyTorch {torch.__version__} records no other threads: decoding is not seen")
        return profile(activities=activities, **options)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def read_chrome_trace(path: Path) -> Trace:
    """Raises TraceError where the file is no such trace."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}: cannot be read as a trace of torch.profiler: {error!r}") from error
    trace = Trace("torch.profiler", str(path))
    calls: dict[int, Event] = {}
    work: list[dict[str, Any]] = []
    for entry in events:
        if entry.get("ph") != "X":
            continue
        category, name = entry.get("cat"), entry["name"]
        if category == "user_annotation" and name.startswith(PREFIX):
            trace.ranges.append(_event(entry, name.removeprefix(PREFIX)))
        elif category == "cpu_op":
            trace.operators.append(_event(entry, name))
        elif category in ("cuda_runtime", "cuda_driver"):
            call = _event(entry, name)
            trace.calls.append(call)
            calls[entry["args"].get("correlation", -1)] = call
        elif category in ("kernel", "gpu_memcpy", "gpu_memset"):
            work.append(entry)
    trace.device = [_work(entry, calls) for entry in work]
    trace.notes.append("NVDEC, PCIe and SM use over time are absent: they need Nsight Systems")
    return trace


def _event(entry: dict[str, Any], name: str) -> Event:
    start = round(entry["ts"] * 1000)
    return Event(name, start, start + round(entry["dur"] * 1000), entry["tid"])


def _work(entry: dict[str, Any], calls: dict[int, Event]) -> DeviceWork:
    details, name = entry.get("args", {}), entry["name"]
    start = round(entry["ts"] * 1000)
    is_copy = entry["cat"] == "gpu_memcpy"
    kind = next((kind for kind in ("HtoD", "DtoH", "DtoD") if kind in name), "other") if is_copy else ""
    return DeviceWork(
        name=name,
        start=start,
        end=start + round(entry["dur"] * 1000),
        stream=int(details.get("stream", 0)),
        call=calls.get(details.get("correlation", -1)),
        copy=kind,
        bytes=int(details.get("bytes", 0)),
        is_pinned="Pageable" not in name,
    )
