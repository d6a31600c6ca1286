"""`trocar pretrain CONFIG --dry-run WORLD`: what a run on WORLD ranks would hold and send, without any of their GPUs.

One process plays rank 0 of a process group that is not there (PyTorch's fake group), with tensors that have shapes and no memory.
The model is built, spread and stepped as in a real run, so parameters, gradients, optimizer state and every collective come from
what the code does and not from a formula. What no trace shows is not in the figures: kernels' workspaces, the allocator's
fragments, CUDA's and NCCL's own memory (about 1 to 2 GB a GPU), decoded clips waiting (printed apart).

Attention over packed sequences asks how long each is, which a tensor without memory cannot say. It is traced as one sequence of all
tokens: what it keeps for the backward pass (queries, keys, values, output, a logarithm for each token and head) is the same.

Shapes: as on rank 0, the first step of which is traced twice: the second finds its optimizer state made.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ...ssl import attention
from ..config.settings import Config
from ..draws.samplers import build_order
from ..ranks.distributed import World, check_shares, device_mesh, distribute, gradients_exchanged, whole
from .build import autocast, build_model
from .optim import build_optimizer, step_unless

# Operator -> what it is called here, and which argument a rank hands over.
COLLECTIVES = {
    "allreduce": ("all-reduce of gradients", 0),
    "all_reduce": ("all-reduce of norms", 0),
    "allgather_base": ("all-gather of weights", 1),
    "reduce_scatter_base": ("reduce-scatter of gradients", 1),
}


@dataclass(frozen=True)
class DryRun:
    """What one rank holds and sends. parameters: of the whole model and of this rank, numbers. Everything else in bytes.

    buckets: the copies of gradients that DDP exchanges. activations: the most that is alive between forward and backward,
    beyond what is listed before it. sent: collective -> (calls, bytes handed over) in one optimizer step.
    """

    ranks: int
    parameters: int
    parameters_here: int
    weights: int
    gradients: int
    buckets: int
    optimizer: int
    activations: int
    clips_waiting: int
    sent: dict[str, tuple[int, int]]

    def lines(self) -> list[str]:
        gigabyte = 1e9
        total = self.weights + self.gradients + self.buckets + self.optimizer + self.activations
        rows = [
            ("weights and buffers", self.weights),
            ("gradients", self.gradients),
            ("gradients in DDP's buckets", self.buckets),
            ("optimizer state", self.optimizer),
            ("activations at their most", self.activations),
            ("sum", total),
            ("clips waiting beside it", self.clips_waiting),
        ]
        text = [
            f"{self.ranks} ranks; {self.parameters / 1e6:.1f} M parameters, {self.parameters_here / 1e6:.1f} M on each rank"
        ]
        text += [f"  {name:<28} {size / gigabyte:10.3f} GB" for name, size in rows]
        text += ["a rank hands over in one optimizer step:"]
        text += [
            f"  {name:<28} {size / gigabyte:10.3f} GB in {calls} calls"
            for name, (calls, size) in sorted(self.sent.items())
        ]
        return text


class Traffic(TorchDispatchMode):
    """Counts what collectives are handed, by name: calls, and bytes of their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local operations come here instead
        space, _, name = str(function).partition(".")
        if space in ("c10d", "_c10d_functional") and (operation := COLLECTIVES.get(name.partition(".")[0].strip("_"))):
            label, place = operation
            handed = arguments[place] if isinstance(arguments[place], (list, tuple)) else [arguments[place]]
            self.add(label, sum(tensor.nbytes for tensor in handed))
        return function(*arguments, **(keywords or {}))

    def add(self, name: str, size: int, calls: int = 1) -> None:
        self.calls[name] += calls
        self.bytes[name] += size

    def sent(self) -> dict[str, tuple[int, int]]:
        return {name: (self.calls[name], self.bytes[name]) for name in self.calls}


class LiveMemory(TorchDispatchMode):
    """Follows what tensors that are made inside it hold. peak: the most at one time, bytes. A storage that shrinks counts less."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._fresh = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        # Adding up is slow: only when there may be a new peak worth it.
        if self._fresh > 0.002 * self.peak:
            self.peak, self._fresh = max(self.peak, self.bytes()), 0
        return result

    def bytes(self) -> int:
        return sum(storage.nbytes() for reference in self._live.values() if (storage := reference()) is not None)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._live or self._live[key]() is None:
            self._live[key] = weakref.ref(storage)
            self._fresh += storage.nbytes()


def dry_run(config: Config, ranks: int) -> DryRun:
    """Plays rank 0 of `ranks`, eight to a node. Raises ConfigError where the config does not fit so many ranks."""
    local_size = min(8, ranks)
    world = World(torch.device("cpu"), 0, ranks, 0, local_size)
    check_shares(world, build_order(config), config.optim)
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        return _traced(config, world)
    finally:
        dist.destroy_process_group()


def dry_run_alone(config: Config) -> DryRun:
    """The same of one rank by itself, also inside a process group that is there. run.sharding has to be none."""
    return _traced(config, World(torch.device("cpu")), steps=1)


def _traced(config: Config, world: World, steps: int = 2) -> DryRun:
    with TemporaryDirectory() as folder, _packed_as_one():
        # A teacher leaves its checksum in the run's folder, which is not to be there yet.
        return _play(dataclasses.replace(config, run=dataclasses.replace(config.run, dir=folder)), world, steps)


@contextmanager
def _packed_as_one() -> Iterator[None]:
    packed = attention.packed_attention

    def as_one(
        queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor, longest: int
    ) -> torch.Tensor:
        queries, keys, values = (part.transpose(0, 1)[None] for part in (queries, keys, values))
        return F.scaled_dot_product_attention(queries, keys, values)[0].transpose(0, 1)

    attention.packed_attention = as_one
    try:
        yield
    finally:
        attention.packed_attention = packed


def _play(config: Config, world: World, steps: int) -> DryRun:
    micro_batch = config.optim.clips_at_once
    share = build_order(config).share(np.arange(micro_batch), 0, world.size)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    plain = dataclasses.replace(config, run=dataclasses.replace(config.run, compile="none", cuda_graphs=False))
    is_sharded = config.run.sharding != "none"
    mesh = device_mesh(config.run, world) if is_sharded and world.size > 1 else None  # its ranks are values too
    objective, masks = build_model(plain)  # initialisation asks for values, so it has some
    drawn = masks(config.run.seed, share, 0, world.device)
    objective.to(torch.float64 if config.run.precision == "float64" else torch.float32)
    parts = _with_teacher(objective)
    for part in parts:
        _forget_values(part, fake)
    drawn = tree_map_only(torch.Tensor, fake.from_tensor, drawn)
    with fake:
        parameters = sum(parameter.numel() for parameter in objective.parameters())
        # DDP's reducer is C++ and wants memory: without sharding the bare model is traced, and its one all-reduce added.
        model = distribute(objective, plain.run, world if is_sharded else World(world.device), mesh)
        optimizer = build_optimizer(objective, config.optim)
        data = config.data
        frames = torch.zeros((len(share), data.frames, data.resolution, data.resolution, 3), dtype=torch.uint8)
        traffic, memory, gradients = Traffic(), LiveMemory(), 0
        for _ in range(steps):
            traffic, memory = Traffic(), LiveMemory()
            with memory, traffic:
                for part in range(config.optim.parts):
                    with (
                        gradients_exchanged(model, part == config.optim.parts - 1),
                        autocast(config, world.device),
                    ):
                        loss = model(frames, drawn, 1.0).loss
                    loss.backward()
                    del loss
            gradients = sum(_local(p.grad).nbytes for p in objective.parameters() if p.grad is not None)
            with traffic:
                whole(torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0))
            step_unless(optimizer, torch.zeros(()))
            optimizer.zero_grad(set_to_none=True)
        here = [_local(tensor) for part in parts for tensor in [*part.parameters(), *part.buffers()]]
        state = [_local(value) for values in optimizer.state.values() for value in values.values()]
        if not is_sharded and world.size > 1:
            traffic.add("all-reduce of gradients", gradients)
    order = build_order(config)
    waiting = (1 + data.prefetch) * len(share) + order.pool_spans // world.size * (order.views_per_span - 1)
    return DryRun(
        ranks=world.size,
        parameters=parameters,
        parameters_here=sum(_local(parameter).numel() for parameter in objective.parameters()),
        weights=sum(tensor.nbytes for tensor in here),
        gradients=gradients,
        buckets=gradients if world.size > 1 and not is_sharded else 0,
        optimizer=sum(tensor.nbytes for tensor in state),
        activations=max(0, memory.peak - gradients),
        clips_waiting=waiting * math.prod(frames.shape[1:]),
        sent=traffic.sent(),
    )


def _with_teacher(objective: nn.Module) -> list[nn.Module]:
    """The objective, and the frozen teacher that is no submodule of it: each rank holds all of that, whatever is sharded."""
    target = getattr(objective, "target_encoder", None)
    return [objective] if target is None or target in objective.modules() else [objective, target]


def _forget_values(model: nn.Module, fake: FakeTensorMode) -> None:
    """Leaves of parameters and buffers their shapes, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake.from_tensor(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake.from_tensor(buffer)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
