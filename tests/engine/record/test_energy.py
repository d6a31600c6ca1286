"""Joules of steps by a stand-in for NVML: its counter's differences, unknown where it or one of the ranks has none."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trocar.engine.record import energy as module
from trocar.engine.record.energy import UNKNOWN, EnergyMeter, board_counter
from trocar.engine.record.readback import ReadBack, StepReport, StepSums
from trocar.loaders.decode.batch import LoaderCount

GPU = torch.device("cuda", 0)


class Nvml:
    """Counts 5 J each time that it is read. wrong: the call that fails, from its nth time on."""

    def __init__(self, wrong: str = "", after: int = 0) -> None:
        self.wrong, self.after, self.joules, self.asked = wrong, after, 100, 0
        self.names: list[bytes] = []

    def _code(self, name: str) -> int:
        return int(name == self.wrong and self.asked >= self.after)

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return self._code("init")

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:  # noqa: N802
        self.names.append(name)
        return self._code("handle")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:  # noqa: N802
        code = self._code("read")
        self.asked += 1
        self.joules += 5
        value._obj.value = 1000 * self.joules
        return code


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="00ff-11"))


def test_differences_of_the_counter_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library, meter = Nvml(), EnergyMeter()
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    assert meter.taken() == UNKNOWN
    with meter.watching(GPU, every=0.001):
        total, end = 0.0, time.monotonic() + 10
        while total < 50 and time.monotonic() < end:
            total += meter.taken()
            time.sleep(0.001)
        before = library.joules
        total += meter.taken()
    assert library.names == [b"GPU-00ff-11"]
    assert 50 <= total <= library.joules - 110  # 105 at the first look, 110 where it began
    assert library.joules >= before
    assert meter.taken() == UNKNOWN


@pytest.mark.parametrize("wrong", ["init", "handle", "read"])
def test_a_card_without_a_counter_is_unknown(wrong: str) -> None:
    assert board_counter(GPU, Nvml(wrong)) is None


def test_a_counter_that_is_lost_is_unknown_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    library, meter = Nvml("read", after=3), EnergyMeter()
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    with meter.watching(GPU, every=0.001):
        end = time.monotonic() + 10
        while meter.taken() != UNKNOWN and time.monotonic() < end:
            time.sleep(0.001)
        assert meter.taken() == UNKNOWN


def test_without_nvml_and_on_a_cpu_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(module.ctypes, "CDLL", missing)
    for device in (GPU, torch.device("cpu")):
        meter = EnergyMeter()
        with meter.watching(device):
            assert meter.taken() == UNKNOWN


@pytest.mark.parametrize(("of_ranks", "joules"), [((3.0, 4.5), 7.5), ((3.0, UNKNOWN), None)])
def test_a_steps_row_has_the_sum_over_ranks(of_ranks: tuple[float, ...], joules: float | None) -> None:
    values = torch.zeros(())
    whole = StepSums.zeros(2, 2, torch.device("cpu"))
    for rank, taken in enumerate(of_ranks):
        sums = StepSums.zeros(2, 2, torch.device("cpu"))
        sums.tell(rank, LoaderCount(frames_used=1, clips=1), False, 0.0, 0.0, joules=taken)
        whole.values += sums.values
    read_back = ReadBack(torch.device("cpu"))
    read_back.push(StepReport({"step": 1}, 16, time.perf_counter() - 1, whole, values, values))
    (report,) = read_back.arrived(everything=True)
    assert report.row.get("joules") == joules
    assert not report.is_stopping
