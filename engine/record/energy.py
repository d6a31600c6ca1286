"""What a step takes from the mains of the GPU's board: NVML's counter of joules, which the driver keeps since it was loaded.

A side thread reads it once a second; a step takes what has come together since the one before, and waits for nothing. Where there
is no counter (a CPU, no NVML, a part of a card under MIG) it is unknown, and of ranks together it is unknown where one of them has
none. Two ranks on one card would count it twice. What the rest of the machine takes is not in it.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LIBRARY = "libnvidia-ml.so.1"
READ_EVERY_SECONDS = 1.0
UNKNOWN = -math.inf  # stays so in a sum over ranks


class EnergyMeter:
    """Joules of one GPU's board, step by step; unknown outside of `watching`."""

    def __init__(self) -> None:
        self._latest: float | None = None
        self._told = 0.0

    @contextmanager
    def watching(self, device: torch.device, every: float = READ_EVERY_SECONDS) -> Iterator[None]:
        read = board_counter(device) if device.type == "cuda" else None
        if read is None:
            yield
            return
        self._told = self._latest = read()
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(every):
                self._latest = read()

        thread = threading.Thread(target=follow, name="energy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._latest = None

    def taken(self) -> float:
        """Since it was last asked, or `UNKNOWN`."""
        latest = self._latest
        if latest is None or math.isnan(latest):
            return UNKNOWN
        taken, self._told = latest - self._told, latest
        return taken


def board_counter(device: torch.device, library: Any = None) -> Callable[[], float] | None:
    """A function that returns the joules that a GPU's counter shows, NaN where it cannot be read any more; None where the card has
    no counter. library: NVML; loaded where None."""
    identity = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    try:
        library = library or ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
    name = (identity if identity.startswith("GPU-") else f"GPU-{identity}").encode()

    def read() -> float:
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)):
            return math.nan
        return value.value / 1000  # millijoules

    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) or math.isnan(read()):
        return None
    return read
