"""A step from buffers that stay where they are: captured as CUDA graphs and replayed, which costs the host next to nothing.

A part of a batch (forward, backward) is one graph for each shape of its inputs, the update (norm, guard, optimizer, target encoder)
another; a batch in several parts replays the part's graph. The first steps of a shape are launched one by one, on the stream that
captures later: compilers, allocator and tables of kernels have settled then, and nothing has to be undone. All graphs share one
memory pool, which is right because what one leaves behind is copied out, or stands outside of it, before the next is replayed.

On a CPU there is nothing to capture: the same body runs from the same buffers.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from ...ssl.attention import varlen_attn
from ..config.settings import Config, ConfigError
from ..draws.schedule import Schedule
from ..ranks.distributed import World
from ..record import profiler
from .body import StepBody

WARMUP = 3  # times that a shape is launched one by one first
UPDATE = "update"
MOST_SHAPES = 16  # of a JEPA's packed masks; others are launched one by one


def why_no_graphs(config: Config, world: World) -> str | None:
    """What stands against capturing the step; None where nothing does. Raises ConfigError where run.cuda_graphs is true."""
    run, optim = config.run, config.optim
    if run.cuda_graphs is False:
        return "run.cuda_graphs is false"
    if run.cuda_graphs == "auto" and world.device.type != "cuda":
        return "there is no GPU"
    found = None
    if run.sharding != "none" or world.size > 1:
        found = "several ranks exchange gradients, which is not captured"
    elif optim.optimizer != "adamw":
        found = f"optim.optimizer={optim.optimizer} takes its learning rate from the host"
    elif config.run.fp8:
        found = "run.fp8 has not been captured yet"
    elif config.data.sizes:
        found = "data.sizes changes the positions on the way"
    elif world.device.type == "cuda":
        found = _why_not_on_a_gpu(config)
    if found and run.cuda_graphs is True:
        raise ConfigError(f"run.cuda_graphs: true, but {found}; set it to auto or false")
    return found


def _why_not_on_a_gpu(config: Config) -> str | None:
    if config.run.checkpoint_activations:
        return "run.checkpoint_activations reads the generator's state on the host"
    if profiler.IS_ON:
        return "the stages of a step are being recorded, which a graph has not"
    if config.objective.kind == "jepa" and (varlen_attn is None or config.run.precision != "bfloat16"):
        return "packed attention reads lengths on the host (PyTorch before 2.10, or run.precision other than bfloat16)"
    if config.objective.kind == "jepa" and config.run.cuda_graphs == "auto":
        # Shapes that are not captured yet need the memory of a step beside what the graphs hold.
        return "a JEPA's masks come in several shapes, which may take twice the memory; run.cuda_graphs=true tries it"
    return None


class GraphedStep:
    """A `StepBody` with its interface: see the module. may_fall_back: where capturing fails, go on one by one and tell why."""

    def __init__(self, body: StepBody, may_fall_back: bool) -> None:
        assert body.keeps_gradients
        self.body, self.may_fall_back = body, may_fall_back
        self._captures = body.world.device.type == "cuda"
        self._stream = torch.cuda.Stream(body.world.device) if self._captures else None
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        self._buffers: dict[Hashable, torch.Tensor] = {}
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, tuple[Callable[[], None], Any, dict[str, torch.Tensor]]] = {}

    @property
    def sums(self):
        return self.body.sums

    def begin(self, schedule: Schedule, step: int) -> None:
        self.body.begin(schedule, step)

    def part(
        self,
        frames: torch.Tensor,
        masks: Any,
        places: torch.Tensor,
        is_last: bool,
        before_backward: Callable[[], None] = lambda: None,
    ) -> None:
        leaves, layout = tree_flatten((frames, masks, places))
        shape = tuple((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        if shape not in self._seen and len(self._seen) > MOST_SHAPES:  # one of those seen is the update
            self._beside(lambda: self.body.part(frames, masks, places, is_last, before_backward))
            return
        held = [
            self._hold((number, kind), leaf) if isinstance(leaf, torch.Tensor) else leaf
            for number, (leaf, kind) in enumerate(zip(leaves, shape, strict=True))
        ]
        # What the host does before the backward pass is not replayed; ranks that would have to know of it have no graphs.
        clips, drawn, rows = tree_unflatten(held, layout)
        self._run(shape, lambda: self.body.part(clips, drawn, rows, is_last))

    def update(self) -> tuple[torch.Tensor, torch.Tensor]:
        gradient_norm, skip = self._run(UPDATE, self.body.update)
        return gradient_norm.clone(), skip.clone()

    def _hold(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """The buffer of an input, with these values."""
        if key not in self._buffers:
            self._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        return self._buffers[key].copy_(tensor, non_blocking=True)

    def _run(self, key: Hashable, call: Callable[[], Any]) -> Any:
        self._seen[key] += 1
        if self._captures and key not in self._graphs and self._seen[key] > WARMUP:
            self._try(key, call)
        if key in self._graphs:
            replay, result, observed = self._graphs[key]
            replay()
            if key != UPDATE:
                self.body.objective.observed = {name: value.clone() for name, value in observed.items()}
            return result
        return self._beside(call)

    def _beside(self, call: Callable[[], Any]) -> Any:
        """Launches one by one, on the stream that captures: gradients are bound to the stream that they were first made on."""
        if self._stream is None:
            return call()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = call()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _try(self, key: Hashable, call: Callable[[], Any]) -> None:
        try:
            replay, result = self._capture(call)
        except RuntimeError as error:
            if not self.may_fall_back:
                raise ConfigError(f"run.cuda_graphs: true, but capturing a step failed: {error}") from error
            self._captures = False
            self._graphs.clear()
            first = str(error).partition("\n")[0]
            print(f"run.cuda_graphs: off, capturing a step failed: {first}", file=sys.stderr, flush=True)
        else:
            self._graphs[key] = replay, result, self.body.objective.observed

    def _capture(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What replays the call, and what it returned, whose values are there after a replay."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Threads that load and decode go on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = call()
        return graph.replay, result
