"""How long a call takes on a device, and what the device could do at best.

Every time is a median over repeats with the spread beside it. On a GPU the device's time and the host's are measured apart: a
call is timed by events, with the cache emptied and the device held back until all of its kernels are queued, so that no gap
is the host's; what launching it takes is timed without waiting for the device. The ceilings are measured in the same process:
a share of a datasheet's figure says little about the card at hand.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.record.device_time import CYCLES_PER_SECOND

FLUSH_BYTES = 256 * 2**20  # more than the second-level cache of any card of today
QUEUED_CALLS = 8  # a full queue would make the host wait
SPARE_HOLD_SECONDS = 2e-4


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, 10th and 90th percentile, over `repeats` calls. host_seconds: the host's part, a median; on a CPU the
    call itself. is_whole: the device began no call before all of it was queued; else gaps may be among its time."""

    median_seconds: float
    low_seconds: float
    high_seconds: float
    repeats: int
    host_seconds: float
    is_whole: bool = True

    @property
    def spread_percent(self) -> float:
        return 100 * (self.high_seconds - self.low_seconds) / self.median_seconds


@dataclass(frozen=True)
class Ceilings:
    """What this device reached here: bytes/s of a large copy (read + written), FLOP/s of a large matrix product in `dtype`."""

    copy_bytes_per_second: float
    matrix_flops_per_second: float
    dtype: str


def time_call(call: Callable[[], Any], device: torch.device, *, warmup: int = 5, repeats: int = 50) -> Timing:
    """Times `call`, which must leave its work on `device`."""
    for _ in range(warmup):
        call()
    seconds, is_whole = _host_seconds(call, device, repeats), True
    host = statistics.median(seconds)
    if device.type == "cuda":
        seconds, is_whole = _device_seconds(call, device, repeats, host)
    deciles = statistics.quantiles(seconds if repeats > 1 else 2 * seconds, n=10, method="inclusive")
    return Timing(statistics.median(seconds), deciles[0], deciles[-1], repeats, host, is_whole)


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _host_seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    seconds = []
    for number in range(repeats):
        if number % QUEUED_CALLS == 0:
            wait(device)
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def _device_seconds(
    call: Callable[[], Any], device: torch.device, repeats: int, launching: float
) -> tuple[list[float], bool]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    hold = int(CYCLES_PER_SECOND * (2 * launching + SPARE_HOLD_SECONDS))
    pairs, is_whole = [], True
    for _ in range(repeats):
        wait(device)
        flush.zero_()
        torch.cuda._sleep(hold)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        is_whole &= not start.query()
        pairs.append((start, end))
    wait(device)
    return [start.elapsed_time(end) / 1e3 for start, end in pairs], is_whole


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, *, copy_bytes: int = 2**30, side: int = 8192, repeats: int = 20
) -> Ceilings:
    """Measures both ceilings. copy_bytes: size of the copied buffer. side: of the square matrices."""
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = time_call(lambda: target.copy_(source), device, repeats=repeats)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = time_call(lambda: left @ right, device, repeats=repeats)
    name = str(dtype).removeprefix("torch.")
    return Ceilings(2 * copy_bytes / copy.median_seconds, 2 * side**3 / product.median_seconds, name)
