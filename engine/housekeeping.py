"""What a long run asks of its process: cores near its GPU, no garbage collection in between, a picture of full memory."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .distributed import World

COLLECT_EVERY_STEPS = 100
PCI = Path("/sys/bus/pci/devices")


def pin_to_cores(world: World) -> set[int]:
    """Gives this rank its part of the cores that the process may use, those near its GPU where that is known. Returns them.

    Threads that start later inherit it: decoding does not wander to the memory of another socket. Does nothing where there are
    not two cores for each rank of the node.
    """
    allowed = os.sched_getaffinity(0)
    if world.local_size > 1 and len(allowed) >= 2 * world.local_size:
        allowed = share_cores(sorted(allowed), _near(world.device), world.local_rank, world.local_size)
        os.sched_setaffinity(0, allowed)
    return allowed


def share_cores(allowed: list[int], near: set[int], local_rank: int, local_size: int) -> set[int]:
    """The cores of one rank of a node: disjoint for all ranks. near: cores beside its GPU, none where unknown.

    Ranks and cores are numbered so that neighbours share a socket; where a rank's part lies elsewhere than its GPU, the GPU's side
    has to serve all ranks near it, whose number is not known here, and the rank takes every local_size-th core of it.
    """
    part = allowed[local_rank * len(allowed) // local_size : (local_rank + 1) * len(allowed) // local_size]
    beside = [core for core in allowed if core in near]
    if not beside or set(part) <= near:
        return set(part)
    return set(beside[local_rank % local_size :: local_size]) or set(beside)


@contextmanager
def collect_garbage_seldom() -> Iterator[Callable[[int], None]]:
    """Switches automatic garbage collection off and gives a function to call after every step, which collects now and then.

    Python starts a collection whenever enough objects were made, on each rank at another time, and all others wait for that rank.
    """
    was_enabled = gc.isenabled()
    gc.disable()

    def collect(step: int) -> None:
        if step % COLLECT_EVERY_STEPS == 0:
            gc.collect(1)

    try:
        yield collect
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def snapshot_when_out_of_memory(run_dir: Path, world: World) -> Iterator[None]:
    """Writes what fills the GPU to RUN/memory_RANK.pickle, for https://pytorch.org/memory_viz, before the error goes on."""
    try:
        yield
    except torch.OutOfMemoryError:
        path = run_dir / f"memory_{world.rank}.pickle"
        torch.cuda.memory._dump_snapshot(str(path))
        print(f"trocar: out of memory; {path} shows what filled it", file=sys.stderr, flush=True)
        raise


def _near(device: torch.device) -> set[int]:
    """The cores beside a GPU, as the kernel tells; none where it does not."""
    if device.type != "cuda":
        return set()
    properties = torch.cuda.get_device_properties(device)
    address = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    path = PCI / address / "local_cpulist"
    return parse_cores(path.read_text()) if path.exists() else set()


def parse_cores(text: str) -> set[int]:
    """ "0-3,8" as {0, 1, 2, 3, 8}."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores |= set(range(int(first), int(last or first) + 1))
    return cores
