"""The processes of a run: who they are, how the model is spread over them, when they exchange gradients.

`torchrun` or Slurm start one process a GPU with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them a run is
one process and nothing here does anything. Each rank reads its share of every batch and weighs its loss by that share, so that
the mean gradient over ranks is the gradient of the mean over clips, however many ranks there are.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ...loaders.draw.order import ClipOrder
from ..config.settings import ConfigError, OptimConfig, RunConfig
from .compiler import blocks_backend

# The watch over the ranks knows who is late; collectives give up after it, with no more than that they did.
COLLECTIVE_GRACE = 1.5
Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """rank of size processes, local_rank of local_size on this node. background: a group for collectives beside the training's."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    background: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds up `tensor` over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The greatest of all ranks' values, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def any(self, condition: bool) -> bool:
        """Whether it holds on any rank. A host sync: not for every step."""
        return bool(self.maximum(torch.tensor(float(condition), device=self.device)).item())

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, on all ranks; of what pickle knows, as the ranks are one program."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.background)
        return values

    def from_first(self, number: int) -> int:
        """The first rank's number, on all ranks."""
        value = torch.tensor(number, device=self.device)
        if self.size > 1:
            dist.broadcast(value, 0)
        return int(value.item())


@contextmanager
def open_world(device: torch.device, rank_timeout: float) -> Iterator[World]:
    """Joins the processes that the environment names. Raises ConfigError where it names them incompletely."""
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield World(device)
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {size} but {', '.join(missing)} not set; start with torchrun (docs/launch.md)"
        )
    rank = _number("RANK", 0)
    local_rank, local_size = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size)
    backend = "gloo"
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"LOCAL_RANK is {local_rank}, but there are {torch.cuda.device_count()} GPUs; start one process a GPU"
            )
        device, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=COLLECTIVE_GRACE * rank_timeout)
    dist.init_process_group(backend, timeout=timeout)
    try:
        background = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(background, dist.ProcessGroup)  # every rank is in it
        yield World(device, rank, size, local_rank, local_size, background)
    finally:
        dist.destroy_process_group()


def check_shares(world: World, order: ClipOrder, config: OptimConfig) -> None:
    """Raises ConfigError where a batch leaves a rank without a clip, or a pool's lanes cannot be divided."""
    clips = config.clips_at_once
    try:
        order.share([], 0, world.size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    units = clips if order.pool_spans else -(-clips // order.views_per_span)
    if units < world.size:
        least = world.size * (1 if order.pool_spans else order.views_per_span) * config.parts
        raise ConfigError(
            f"optim.batch: {config.batch} clips in {config.parts} parts leave some of {world.size} ranks "
            f"without a clip (all views of a span stay on one rank); give at least {least}, or less optim.accumulation"
        )


def distribute(model: nn.Module, config: RunConfig, world: World, mesh: DeviceMesh | None = None) -> nn.Module:
    """The model as it is called in training; its parameters stay those of `model`, sharded in place where run.sharding says so.

    mesh: over which ranks; made where None.
    """
    backend = blocks_backend(config.compile, world.device)
    if config.compile == "auto" and world.device.type == "cuda" and world.is_first:
        told = "the first steps take longer, a cache spares later runs that" if backend else "Triton is not there"
        print(f"run.compile: {backend or 'off'}, {told}", file=sys.stderr, flush=True)
    for block in transformer_blocks(model):
        if config.checkpoint_activations:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if backend is not None:
            block.compile(backend=backend)
    if config.sharding != "none":
        if world.size == 1:
            raise ConfigError(
                f"run.sharding: {config.sharding!r} needs several ranks; start with torchrun, or set it to none"
            )
        shard(model, config, mesh or device_mesh(config, world))
        return model
    if world.size == 1:
        return model
    devices = [world.device.index] if world.device.type == "cuda" else None
    # Buffers are positions, equal on all ranks; the argument that says so changed its name.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    unsynced: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
    }
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **unsynced)


def shard(model: nn.Module, config: RunConfig, mesh: DeviceMesh) -> None:
    """FSDP2: every block is gathered when it is needed; what stands outside the blocks keeps its precision (kernels fold it)."""
    low = config.precision == "bfloat16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if low else MixedPrecisionPolicy()
    for block in transformer_blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    # Objectives hand out their prediction, a view, for pictures and probes; nothing here changes it in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """All members of module lists: what is compiled, gathered and computed again as a unit."""
    return [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]


@contextmanager
def gradients_exchanged(model: nn.Module, now: bool) -> Iterator[None]:
    """Around forward and backward: ranks exchange gradients in the last part of an accumulated batch only."""
    if isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    yield


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded scalar, such as a gradient norm, as a plain tensor on all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def device_mesh(config: RunConfig, world: World) -> DeviceMesh:
    """All ranks in a row, or nodes by ranks of a node."""
    if config.sharding == "full" or world.size == world.local_size:
        return init_device_mesh(world.device.type, (world.size,))
    shape = (world.size // world.local_size, world.local_size)
    return init_device_mesh(world.device.type, shape, mesh_dim_names=("nodes", "gpus"))


def leave_uncompiled(model: nn.Module) -> None:
    """From here on blocks run as they are written."""
    for block in transformer_blocks(model):
        block._compiled_call_impl = None


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name} is {text!r} in the environment, not a number; start with torchrun (docs/launch.md)")
    return int(text)
