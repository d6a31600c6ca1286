"""What the GPU works and idles for, on a stand-in for it: a clock that launches, queues and computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trocar.engine.record import device_time
from trocar.engine.record.device_time import CYCLES_PER_SECOND, HELD_BACK_EVERY, DeviceTime, held_up_by, shares
from trocar.engine.record.readback import ReadBack, StepReport, StepSums
from trocar.loaders.decode.batch import LoaderCount

STRETCHES = 3


class Device:
    """A GPU and its host. host: the host's clock; free: when the device has done all that it was given."""

    def __init__(self) -> None:
        self.host = self.free = self.worked = self.held = 0.0

    def launch(self, kernels: int, launch_seconds: float, kernel_seconds: float) -> None:
        for _ in range(kernels):
            self.host += launch_seconds
            self.free = max(self.free, self.host) + kernel_seconds
            self.worked += kernel_seconds

    def hold(self, cycles: int) -> None:
        self.held += cycles / CYCLES_PER_SECOND
        self.free = max(self.free, self.host) + cycles / CYCLES_PER_SECOND

    def event(self) -> Any:
        at = max(self.free, self.host)
        return SimpleNamespace(at=at, query=lambda: self.host >= at, elapsed_time=lambda later: 1000 * (later.at - at))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(device_time, "_event", made.event)
    monkeypatch.setattr(device_time.time, "perf_counter", lambda: made.host)
    monkeypatch.setattr(torch.cuda, "_sleep", made.hold)
    return made


CLIPS: Any = SimpleNamespace(is_cuda=True, shape=(8, 16, 224, 224, 3))


def steps(device: Device, count: int, wait: float, launch: float, kernel: float) -> list[dict[str, float]]:
    """Metrics of some steps: `wait` for clips, then three stretches of 100 kernels. The host is at most two steps ahead."""
    clock, rows, ends = DeviceTime(), [], [0.0, 0.0]
    for _ in range(count):
        started = device.host
        device.host += wait
        for _ in range(STRETCHES):
            clock.begin(CLIPS)
            device.launch(100, launch, kernel)
        work = clock.finish()
        assert work is not None
        ends.append(device.free)
        device.host = max(device.host, ends[-3])
        own = clock.own_seconds(work)
        rows.append({} if own is None else shares(device.host - started, own, wait))
    return rows


@pytest.mark.parametrize(
    ("wait", "launch", "kernel", "held_up"),
    [
        (0.0, 1e-3, 1e-4, "the host launches too slowly"),
        (0.0, 1e-4, 1e-3, "computing"),
        (2.0, 1e-4, 1e-3, "decoding"),
        (0.02, 3e-4, 2e-4, "computing"),
    ],
)
def test_the_shares_of_a_step(device: Device, wait: float, launch: float, kernel: float, held_up: str) -> None:
    rows = steps(device, 2 * HELD_BACK_EVERY, wait, launch, kernel)
    late = rows[HELD_BACK_EVERY // 2 :]
    busy = 100 * device.worked / device.free
    assert all(row["gpu_busy_percent"] == pytest.approx(busy, abs=2) for row in late if row), busy
    assert sum(not row for row in late) == 0
    row = {**late[-1], "data_wait_percent": 0.0}
    assert 0 <= row["host_bound_percent"] <= 100 - row["gpu_busy_percent"] + 1e-9
    assert held_up_by(row) == held_up
    assert device.held <= 0.01 * device.free, "holding the device back costs too much"


def test_gaps_between_kernels_are_no_work(device: Device) -> None:
    """What two events around a step would say: the device is busy all of the time."""
    rows = steps(device, 40, 0.0, 1e-3, 1e-4)
    assert rows[-1]["gpu_busy_percent"] == pytest.approx(10, abs=1)
    assert rows[-1]["host_bound_percent"] == pytest.approx(90, abs=1)


def test_clips_of_another_size_are_measured_for_themselves(device: Device) -> None:
    clock = DeviceTime()
    for side in (224, 256):
        clips: Any = SimpleNamespace(is_cuda=True, shape=(8, 16, side, side, 3))
        clock.begin(clips)
        device.launch(10, 1e-4, side * 1e-5)
        work = clock.finish()
        assert work is not None
        work.is_whole = True
        assert clock.own_seconds(work) == pytest.approx(work.seconds())
    small: Any = SimpleNamespace(is_cuda=True, shape=(8, 16, 224, 224, 3))
    clock.begin(small)
    device.launch(10, 1.0, 1e-5)
    work = clock.finish()
    assert work is not None
    assert not work.is_whole
    assert clock.own_seconds(work) == pytest.approx(10 * 224e-5, rel=0.1)


def test_a_cpu_has_none_of_it() -> None:
    clock = DeviceTime()
    clock.begin(torch.zeros(1))
    assert clock.finish() is None
    assert held_up_by({"data_wait_percent": 60.0}) == "decoding"
    assert held_up_by({"data_wait_percent": 10.0}) == "computing"


def test_they_stand_in_the_metrics(device: Device) -> None:
    read_back, clock = ReadBack(torch.device("cpu"), measured := DeviceTime()), 0.0
    row: dict[str, Any] = {}
    for step in range(12):
        sums = StepSums.zeros(2, 1, torch.device("cpu"))
        sums.tell(0, LoaderCount(frames_used=1, clips=2), stop=False, waited=0.0, alone=0.0)
        sums.clip_loss.copy_(torch.from_numpy(np.ones(2)))
        measured.begin(CLIPS)
        device.launch(100, 1e-3, 1e-4)
        started, clock = clock, device.host
        report = StepReport({"step": step}, 16, started, sums, torch.zeros(()), torch.zeros(()), {}, measured.finish())
        read_back.push(report)
        (row,) = [found.row for found in read_back.arrived()]
    assert row["gpu_busy_percent"] == pytest.approx(10, abs=1)
    assert row["host_bound_percent"] == pytest.approx(90, abs=1)
