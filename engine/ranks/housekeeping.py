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
PCI, CPUS = Path("/sys/bus/pci/devices"), Path("/sys/devices/system/cpu")


def pin_to_cores(world: World) -> set[int]:
    """Gives this rank its part of the cores that the process may use, those near its GPU where that is known. Returns them.

    Threads that start later inherit it: decoding does not wander to the memory of another socket. Does nothing where there are
    not two cores for each rank of the node.
    """
    allowed = os.sched_getaffinity(0)
    if world.local_size > 1 and len(allowed) >= 2 * world.local_size:
        near = [_near(world.device, rank) for rank in range(world.local_size)]
        allowed = share_cores(_physical_cores(allowed), near)[world.local_rank]
        os.sched_setaffinity(0, allowed)
    return allowed


def share_cores(physical: list[set[int]], near: list[set[int]]) -> list[set[int]]:
    """The logical cores of each rank of a node, disjoint. Ranks whose GPUs are near the same cores share those equally.

    physical: the logical cores of each physical one, in order; a physical core is not divided. near: for each rank, the logical
    cores beside its GPU, none where unknown. Where they are unknown, overlap in part, or are fewer than their ranks, all ranks
    share all.
    """
    beside = [[core for core in physical if core <= side] for side in near]
    groups = [[other for other, side in enumerate(near) if side == mine] for mine in near]
    known = set().union(*near)
    distinct = {min(group): near[min(group)] for group in groups}
    is_clear = sum(map(len, distinct.values())) == len(known) and all(
        len(cores) >= len(group) for cores, group in zip(beside, groups, strict=True)
    )
    if not is_clear:
        beside, groups = [physical] * len(near), [list(range(len(near)))] * len(near)
    parts = []
    for rank, (cores, group) in enumerate(zip(beside, groups, strict=True)):
        place, size = group.index(rank), len(cores) // len(group)
        # Of cores fewer than ranks some serve several: better than none for a rank.
        some = cores[place * size : (place + 1) * size] or [cores[place % len(cores)]]
        parts.append(set().union(*some))
    return parts


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


def _physical_cores(allowed: set[int]) -> list[set[int]]:
    """The allowed logical cores, those of a physical core together, as the kernel tells; each by itself where it does not."""
    cores: dict[tuple[int, ...], set[int]] = {}
    for core in sorted(allowed):
        path = CPUS / f"cpu{core}" / "topology" / "thread_siblings_list"
        siblings = parse_cores(path.read_text()) & allowed if path.exists() else {core}
        cores[tuple(sorted(siblings))] = siblings
    return list(cores.values())


def _near(device: torch.device, local_rank: int) -> set[int]:
    """The cores beside the GPU of a rank of this node, as the kernel tells; none where it does not."""
    if device.type != "cuda":
        return set()
    properties = torch.cuda.get_device_properties(local_rank)
    if not hasattr(properties, "pci_bus_id"):  # before PyTorch 2.8
        return set()
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
