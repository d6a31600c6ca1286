"""A small file in the schema of Nsight Systems' SQLite export: two training steps on a GPU, to the nanosecond.

The tables and columns are those documented for Nsight Systems 2023.4 to 2025.6 (SQLite Schema Reference), without those that say
nothing here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER, category
    INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER,
    uint64Value INTEGER, int64Value INTEGER, doubleValue REAL, uint32Value INTEGER, int32Value INTEGER, floatValue
    REAL, jsonTextId INTEGER, jsonText TEXT, binaryData TEXT);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL,
    globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, callchainId
    INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid
    INTEGER, demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER, launchType INTEGER,
    cacheConfig INTEGER, registersPerThread INTEGER NOT NULL, gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ
    INTEGER NOT NULL, blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL, staticSharedMemory
    INTEGER NOT NULL, dynamicSharedMemory INTEGER NOT NULL, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid
    INTEGER, bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL, deprecatedSrcId INTEGER, srcKind INTEGER, dstKind
    INTEGER, srcDeviceId INTEGER, dstDeviceId INTEGER, graphNodeId INTEGER, copyCount INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_SYNCHRONIZATION (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT
    NULL, contextId INTEGER NOT NULL, greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER,
    globalPid INTEGER, syncType INTEGER NOT NULL, eventId INTEGER NOT NULL, eventSyncId INTEGER);
CREATE TABLE TARGET_INFO_GPU (vmId INTEGER NOT NULL, id INTEGER NOT NULL, name TEXT, busLocation TEXT, isDiscrete
    INTEGER, smCount INTEGER);
CREATE TABLE TARGET_INFO_GPU_METRICS (typeId INTEGER NOT NULL, sourceId INTEGER NOT NULL, typeName TEXT NOT NULL,
    metricId INTEGER NOT NULL, metricName TEXT NOT NULL);
CREATE TABLE GPU_METRICS (rawTimestamp INTEGER, timestamp INTEGER NOT NULL, typeId INTEGER NOT NULL, metricId INTEGER
    NOT NULL, value INTEGER NOT NULL);
"""  # fmt: skip
PID = 4242
TRAINING, AUTOGRAD, DECODER = ((PID << 24) | number for number in (1, 2, 3))
COMPUTE_STREAM, DALI_STREAM = 7, 21
MICROSECOND = 1000
METRICS = ("SMs Active [Throughput %]", "PCIe RX Throughput [Throughput %]", "PCIe TX Throughput [Throughput %]")


class Export:
    """Writes events; times are in microseconds."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.executescript(SCHEMA)
        self._strings: dict[str, int] = {}
        self._correlation = 100

    def string(self, text: str) -> int:
        if text not in self._strings:
            self._strings[text] = len(self._strings) + 1
            self._insert("StringIds", id=self._strings[text], value=text)
        return self._strings[text]

    def range(self, name: str, start: float, end: float, thread: int = TRAINING, *, registered: bool = True) -> None:
        """registered: the text is a number of StringIds, as the nvtx package writes it; else it stands in the row."""
        text = {"textId": self.string(f"trocar/{name}")} if registered else {"text": f"trocar/{name}"}
        times = {"start": _ns(start), "end": _ns(end)}
        self._insert("NVTX_EVENTS", **times, eventType=59, globalTid=thread, domainId=1, **text)

    def call(self, name: str, start: float, end: float, thread: int = TRAINING) -> int:
        self._correlation += 1
        times = {"start": _ns(start), "end": _ns(end)}
        row = {"eventClass": 1, "globalTid": thread, "correlationId": self._correlation, "nameId": self.string(name)}
        self._insert("CUPTI_ACTIVITY_KIND_RUNTIME", **times, **row, returnValue=0)
        return self._correlation

    def kernel(
        self, name: str, launched: float, start: float, end: float, thread: int = TRAINING, stream: int = COMPUTE_STREAM
    ) -> None:
        correlation = self.call("cudaLaunchKernel_v7000", launched, launched + 5, thread)
        sizes = dict.fromkeys(("gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ", "registersPerThread"), 1)
        memory = {"staticSharedMemory": 0, "dynamicSharedMemory": 0}
        names = {"demangledName": self.string(f"void {name}(float*)"), "shortName": self.string(name)}
        where = {
            "deviceId": 0,
            "contextId": 1,
            "streamId": stream,
            "correlationId": correlation,
            "globalPid": PID << 24,
        }
        self._insert("CUPTI_ACTIVITY_KIND_KERNEL", start=_ns(start), end=_ns(end), **where, **names, **sizes, **memory)

    def copy(self, kind: int, launched: float, start: float, end: float, *, size: int, pageable: bool) -> None:
        """kind: 1 from the host, 2 to the host."""
        correlation = self.call("cudaMemcpyAsync_v3020", launched, end if pageable else launched + 5)
        kinds = (
            {"srcKind": 2, "dstKind": 0 if pageable else 1}
            if kind == 2
            else {"srcKind": 0 if pageable else 1, "dstKind": 2}
        )
        where = {"deviceId": 0, "contextId": 1, "streamId": COMPUTE_STREAM, "correlationId": correlation}
        times = {"start": _ns(start), "end": _ns(end)}
        self._insert("CUPTI_ACTIVITY_KIND_MEMCPY", **times, **where, bytes=size, copyKind=kind, **kinds)

    def metrics(self, samples: Sequence[tuple[float, Sequence[int]]], names: Sequence[str] = METRICS) -> None:
        for number, name in enumerate(names):
            info = {
                "typeId": 2**40,
                "sourceId": 1,
                "typeName": "GPU Metrics [0]",
                "metricId": number,
                "metricName": name,
            }
            self._insert("TARGET_INFO_GPU_METRICS", **info)
            for time, values in samples:
                self._insert("GPU_METRICS", timestamp=_ns(time), typeId=2**40, metricId=number, value=values[number])

    def close(self) -> None:
        self._connection.commit()
        self._connection.close()

    def _insert(self, table: str, **values: object) -> None:
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        self._connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))


def write_two_steps(path: Path, *, slow: str = "", counters: bool = True) -> Path:
    """Two steps of 1,000 us: wait, encoder, loss, backward, optimizer, and decoding beside them.

    slow: "kernel" makes the encoder's kernel 5,000 us longer, "loader" the wait; without either, the backward pass's kernel is the
    longest, 400 us a step.
    """
    with closing(Export(path)) as export:
        late = 5000 if slow else 0
        for start in (0, 1000 + late):
            end = start + 1000 + late
            export.range("step", start, end)
            wait = start + 10 + 90 + (late if slow == "loader" else 0)
            export.range("wait", start + 10, wait, registered=False)
            export.range("decode", start + 20, wait - 10, DECODER)
            export.kernel("dali::color_convert", wait - 60, wait - 50, wait - 30, thread=99, stream=DALI_STREAM)
            export.range("forward", wait, wait + 200)
            export.range("encoder", wait + 10, wait + 100)
            export.kernel("attention", wait + 20, wait + 30, wait + 230 + (late if slow == "kernel" else 0))
            export.range("loss", wait + 110, wait + 190)
            export.copy(
                2,
                wait + 120,
                wait + 240 + late * (slow == "kernel"),
                wait + 250 + late * (slow == "kernel"),
                size=4,
                pageable=True,
            )
            after = wait + 260 + late * (slow == "kernel")
            export.range("backward", after, after + 300)
            # The autograd engine launches from a thread of its own, without ranges.
            export.kernel("attention_backward", after + 20, after + 30, after + 430, thread=AUTOGRAD)
            export.range("optimizer", after + 310, after + 400)
            export.kernel("adamw", after + 320, after + 430, after + 480)
            export.call("cudaStreamSynchronize_v3020", after + 410, after + 480)
        if counters:
            last = 2000 + 2 * late
            export.metrics([(time, (80, 20, 10)) for time in range(0, last, 100)])
    return path


def _ns(microseconds: float) -> int:
    return round(microseconds * MICROSECOND)
