"""Nsight Systems: the command that records some steps of a rank, and the reader of its SQLite export.

Written to the options and the export schema that are documented for Nsight Systems 2023.4 to 2025.6; no nsys has run it yet. Tables
are made as they are needed, so any may be absent; columns that came or went on the way (`rawTimestamp`, `timestamp`; `text`,
`textId`) are asked for. Times are nanoseconds since the start of the capture. A thread is a `globalTid`; NVTX ranges are events of
type 59 (push and pop).
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from .trace import PREFIX, Counter, DeviceWork, Event, Trace, TraceError

PUSH_POP_RANGE = 59
COPY_KINDS = {1: "HtoD", 2: "DtoH", 8: "DtoD", 10: "DtoD"}  # cudaMemcpyKind as CUPTI numbers it; 10 is between devices
PAGEABLE = 0  # CUpti_ActivityMemoryKind as the export numbers it: 0 pageable, 1 pinned
# What is kept of a GPU's counters, by their names in the export, which differ between chips.
COUNTERS = {
    "SM": re.compile(r"^SMs? Active", re.I),
    "NVDEC": re.compile(r"NVDEC|video decode", re.I),
    "PCIe read": re.compile(r"^PCIe (RX|read)", re.I),
    "PCIe written": re.compile(r"^PCIe (TX|write)", re.I),
    "memory read": re.compile(r"^DRAM read", re.I),
    "memory written": re.compile(r"^DRAM write", re.I),
}


def find_nsys() -> str | None:
    """The path of Nsight Systems' command line, None where it is not installed."""
    return shutil.which("nsys")


def nsys_command(nsys: str, report: Path, command: list[str], *, gpu_metrics: str = "") -> list[str]:
    """Records what `command` does between cudaProfilerStart and cudaProfilerStop, into `report` (without suffix).

    gpu_metrics: GPUs whose counters are sampled, as nsys numbers them or "cuda-visible"; needs the driver's permission.
    """
    options = [
        "--trace=cuda,nvtx,osrt",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--cuda-graph-trace=node",
        "--sample=none",
        "--cpuctxsw=none",
        "--force-overwrite=true",
        f"--output={report}",
    ]
    if gpu_metrics:
        options += [f"--gpu-metrics-devices={gpu_metrics}", "--gpu-metrics-frequency=10000"]
    return [nsys, "profile", *options, *command]


def export_command(nsys: str, report: Path, target: Path) -> list[str]:
    return [nsys, "export", "--type=sqlite", "--force-overwrite=true", f"--output={target}", str(report)]


def export(nsys: str, report: Path) -> Path:
    """report.nsys-rep as an SQLite file beside it. Raises TraceError where nsys cannot."""
    target = report.with_suffix(".sqlite")
    done = subprocess.run(export_command(nsys, report, target), capture_output=True, text=True)
    if done.returncode or not target.exists():
        raise TraceError(f"{report}: nsys export failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return target


def read_nsys(path: Path) -> Trace:
    """Raises TraceError where the file is no export of Nsight Systems."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file; nsys export --type=sqlite makes it of a .nsys-rep")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return _read(_Export(connection), path)
    except sqlite3.DatabaseError as error:
        raise TraceError(f"{path}: cannot be read as an export of Nsight Systems: {error}") from error


class CudaProfilerRecorder:
    """Marks the steps `first` .. `last` - 1 of a run, counted from 0, for a profiler around this process."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def on_step(self, steps_done: int) -> None:
        """To be called with the number of steps done, before the first and after each."""
        if steps_done == self.first:
            torch.cuda.synchronize()  # so that nothing of earlier steps is on the device
            torch.cuda.profiler.start()
        elif steps_done == self.last:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


class _Export:
    """The tables of one export, and their columns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        names = [name for (name,) in self.query("SELECT name FROM sqlite_master WHERE type = 'table'")]
        self.columns = {name: {row[1] for row in self.query(f"PRAGMA table_info({name})")} for name in names}
        self.strings: dict[int, str] = (
            dict(self.query("SELECT id, value FROM StringIds")) if self.has("StringIds") else {}
        )

    def query(self, text: str) -> list[Any]:
        return self._connection.execute(text).fetchall()

    def has(self, table: str) -> bool:
        return table in self.columns

    def first(self, table: str, *columns: str) -> str:
        """The first of these columns that the table has, NULL where it has none."""
        return next((column for column in columns if column in self.columns[table]), "NULL")


def _read(export: _Export, path: Path) -> Trace:
    trace = Trace("Nsight Systems", str(path))
    if not export.has("NVTX_EVENTS"):
        raise TraceError(f"{path}: has no table NVTX_EVENTS; record with --trace=cuda,nvtx and TROCAR_NVTX=1")
    text, text_id = (export.first("NVTX_EVENTS", name) for name in ("text", "textId"))
    rows = export.query(
        f"SELECT {text}, {text_id}, start, end, globalTid FROM NVTX_EVENTS WHERE eventType = {PUSH_POP_RANGE} AND end IS NOT NULL"
    )
    for given, number, start, end, thread in rows:
        name = given if given is not None else export.strings.get(number, "")
        if name.startswith(PREFIX):
            trace.ranges.append(Event(name.removeprefix(PREFIX), start, end, thread))
    by_correlation: dict[int, Event] = {}
    if export.has("CUPTI_ACTIVITY_KIND_RUNTIME"):
        for name_id, start, end, thread, correlation in export.query(
            "SELECT nameId, start, end, globalTid, correlationId FROM CUPTI_ACTIVITY_KIND_RUNTIME"
        ):
            call = Event(export.strings.get(name_id, ""), start, end, thread)
            trace.calls.append(call)
            by_correlation[correlation] = call
    trace.device = [*_kernels(export, by_correlation), *_copies(export, by_correlation)]
    trace.counters = _counters(export)
    missing = sorted(set(COUNTERS) - {counter.name for counter in trace.counters})
    if missing:
        trace.notes.append(
            f"{', '.join(missing)} over time: absent; the GPU has no such counter, or the driver keeps its counters from users"
        )
    return trace


def _kernels(export: _Export, calls: dict[int, Event]) -> list[DeviceWork]:
    table = "CUPTI_ACTIVITY_KIND_KERNEL"
    if not export.has(table):
        return []
    name = export.first(table, "demangledName", "shortName")
    rows = export.query(f"SELECT {name}, start, end, streamId, correlationId FROM {table}")
    return [
        DeviceWork(export.strings.get(number, "?"), start, end, stream, calls.get(correlation))
        for number, start, end, stream, correlation in rows
    ]


def _copies(export: _Export, calls: dict[int, Event]) -> list[DeviceWork]:
    table = "CUPTI_ACTIVITY_KIND_MEMCPY"
    if not export.has(table):
        return []
    source, target = (export.first(table, column) for column in ("srcKind", "dstKind"))
    rows = export.query(f"SELECT copyKind, start, end, streamId, correlationId, bytes, {source}, {target} FROM {table}")
    return [
        DeviceWork(
            name=f"copy {COPY_KINDS.get(kind, 'other')}",
            start=start,
            end=end,
            stream=stream,
            call=calls.get(correlation),
            copy=COPY_KINDS.get(kind, "other"),
            bytes=size,
            is_pinned=PAGEABLE not in (source_kind, target_kind),
        )
        for kind, start, end, stream, correlation, size, source_kind, target_kind in rows
    ]


def _counters(export: _Export) -> list[Counter]:
    """The counters of the first GPU that was sampled."""
    if not (export.has("GPU_METRICS") and export.has("TARGET_INFO_GPU_METRICS")):
        return []
    time = export.first("GPU_METRICS", "timestamp", "rawTimestamp")
    names = export.query("SELECT typeId, metricId, metricName FROM TARGET_INFO_GPU_METRICS ORDER BY typeId, metricId")
    counters = []
    for wanted, pattern in COUNTERS.items():
        match = next(((kind, number) for kind, number, name in names if pattern.search(name)), None)
        if match is None:
            continue
        samples = export.query(
            f"SELECT {time}, value FROM GPU_METRICS WHERE typeId = {match[0]} AND metricId = {match[1]} ORDER BY {time}"
        )
        counters.append(Counter(wanted, [sample[0] for sample in samples], [float(sample[1]) for sample in samples]))
    return counters
