"""Saves checkpoints in the background, from all ranks, while training goes on: whole or not there.

The tensors are copied to the host at once; torch.distributed.checkpoint shares the writing among the ranks, in a thread of each.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..inputs.checkpoints import PREFIX, UNFINISHED, CheckpointError, checkpoint_path, checkpoints
from ..ranks.distributed import World
from .checkpoint import Tensors
from .storage import SafetensorsWriter, remove_folder

# How often a waiting training looks, and the most that a time between two looks counts: beyond it the process was stopped.
WAIT_SECONDS = 0.5
LOOK_SECONDS = 60.0


class CheckpointThreadError(CheckpointError):
    """The thread that saves is no more: nothing would be saved any longer."""


class CheckpointSaver:
    """Saves while training goes on.

    run_dir: where. keep: how many of the newest stay; keep_every: those of steps that are multiples of it stay too. group: of
    processes, for collectives beside the training's; None where there is one process. before_commit: called on the first rank, in
    the background, before a checkpoint counts. timeout: seconds that writing one may take; time in which the process is stopped
    does not count.
    """

    def __init__(
        self,
        run_dir: Path,
        world: World,
        keep: int,
        keep_every: int | None = None,
        before_commit: Callable[[], None] = lambda: None,
        timeout: float = float("inf"),
    ) -> None:
        self.run_dir, self.world, self.keep, self.keep_every = run_dir, world, keep, keep_every
        self.before_commit, self.timeout = before_commit, timeout
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None
        self._is_written = True
        self._looked_at, self._held = 0.0, 0.0

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What is being written may be finished, unless another rank is why this one ends.
        is_stuck = kind is not None and issubclass(kind, CheckpointThreadError)
        if self._thread is not None and not is_stuck and (kind is None or self.world.size == 1):
            self._thread.join()

    def save(self, tensors: Tensors, state: dict[str, Any]) -> None:
        """Copies everything to the host, then writes the checkpoint of state["step"] in the background.

        Waits first where the one before is still being written; says so on stderr where that could not be.
        """
        self._finish()
        staged = {name: _Staged(tensor) for name, tensor in tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # the copies to pinned memory
        self._is_written, self._step = False, state["step"]
        self._looked_at, self._held = time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._write, args=(staged, state), name="checkpoint", daemon=True)
        self._thread.start()

    def update(self) -> None:
        """After every step: says on stderr at once where a save failed. Raises CheckpointError where its thread died or hangs."""
        if self._thread is None:
            return
        if not self._thread.is_alive():
            self._finish()
            return
        now = time.monotonic()
        self._held, self._looked_at = self._held + min(now - self._looked_at, LOOK_SECONDS), now
        if self._held > self.timeout:
            raise CheckpointThreadError(
                f"{checkpoint_path(self.run_dir, self._step)}: not written after {self.timeout:g} s (run.save_timeout); see "
                "whether the storage of run.dir answers, or raise run.save_timeout; the last good checkpoint stays"
            )

    def wait(self) -> None:
        """Until nothing is being written. Raises CheckpointError, once, where the latest save failed, e.g. on a full disk."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(WAIT_SECONDS)
            if self._thread.is_alive():
                self.update()
        self._thread = None
        problem, self._problem = self._problem, None
        is_written, self._is_written = self._is_written, True
        if problem is not None:
            raise problem
        if not is_written:
            raise CheckpointThreadError(
                f"{checkpoint_path(self.run_dir, self._step)}: the thread that writes it is gone; start the same command again, it "
                "goes on from the checkpoint before"
            )

    def _finish(self) -> None:
        try:
            self.wait()
        except CheckpointThreadError:
            raise
        except CheckpointError as error:
            if self.world.is_first:
                print(f"trocar: {error}; training goes on, the last good checkpoint stays", file=sys.stderr, flush=True)

    def _write(self, staged: dict[str, _Staged], state: dict[str, Any]) -> None:
        folder = self.run_dir / "checkpoints"
        final = checkpoint_path(self.run_dir, state["step"])
        unfinished = folder / f"{UNFINISHED}{state['step']:08d}"
        writer = SafetensorsWriter(unfinished, final, self.world.rank, state, self.before_commit)
        try:
            _save(staged, writer, self.world)
            if self.world.is_first:
                self._remove_old()
            self._is_written = True
        except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            self._problem = CheckpointError(
                f"{final}: cannot be written ({_reason(error)}); free some space or set run.dir elsewhere"
            )
        except Exception as error:  # noqa: BLE001  (a mistake of ours: raised where the training waits)
            self._problem = error
        except BaseException as error:  # noqa: BLE001  (nothing that ends a thread may pass for a checkpoint)
            self._problem = CheckpointThreadError(f"{final}: the thread that writes it ended with {error!r}")

    def _remove_old(self) -> None:
        for old in checkpoints(self.run_dir)[: -self.keep]:
            if self.keep_every is None or int(old.name[len(PREFIX) :]) % self.keep_every:
                remove_folder(old)


class _Staged:
    """A tensor's local part, copied to the host; it tells torch.distributed.checkpoint where in the whole tensor it belongs."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape = tensor.shape
        self.offsets = torch.Size([0] * tensor.ndim)
        local = tensor.detach()
        if isinstance(local, DTensor):
            _, offsets = compute_local_shape_and_global_offset(local.shape, local.device_mesh, local.placements)
            self.offsets, local = torch.Size(offsets), local.to_local()
        if local.is_cuda:
            self.local = torch.empty(local.shape, dtype=local.dtype, pin_memory=True)
            self.local.copy_(local, non_blocking=True)
        else:
            self.local = local.clone(memory_format=torch.contiguous_format)

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        if not self.local.numel():  # a rank beyond the end of a small tensor
            return []
        chunk = ChunkStorageMetadata(self.offsets, self.local.shape)
        data = TensorWriteData(chunk, TensorProperties.create_from_tensor(self.local), self.shape)
        return [WriteItem(MetadataIndex(name, self.offsets), WriteItemType.SHARD, tensor_data=data)]


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].local


def _save(staged: dict[str, Any], writer: SafetensorsWriter, world: World) -> None:
    planner = _SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if world.size > 1:
        save(staged, storage_writer=writer, planner=planner, process_group=world.background)
        return
    # The same steps; dcp.save itself warns that there are no processes to talk to.
    planner.set_up_planner(staged, None, is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    results = writer.write_data(planner.finish_plan(plans[0]), planner).wait()
    writer.finish(metadata, [results])


def _reason(error: BaseException) -> str:
    """The first rank's reason out of what torch.distributed.checkpoint collects from all."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {cause}"
    return str(error)
