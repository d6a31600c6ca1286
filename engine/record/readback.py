"""Numbers of a step on their way from the device to the host, without making the device wait.

On a GPU the host reads a step's numbers `LAG_STEPS` steps later, from pinned memory: by then they are there, and the host is
never more than that many steps ahead. Every rank reads step s before it starts step s + LAG_STEPS + 1, whatever its speed, so
what follows from the numbers (stopping, giving up) happens on all ranks after the same step. On a CPU they are there at once.

Shapes: B clips of the step over all ranks, R ranks. All sums are float64, which holds every count.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...loaders.decode.batch import LoaderCount
from .device_time import DeviceTime, StepWork, shares
from .energy import UNKNOWN

LAG_STEPS = 2
# stop: whether this rank was asked to; save: whether a checkpoint is due by its clock; joules: of its GPU. The others are what its
# batches cost.
HOST = (
    "stop",
    "save",
    "joules",
    "clips",
    "spans",
    "packets_decoded",
    "frames_used",
    "repeated_frames",
    "bytes_read",
    "replaced",
)


@dataclass
class StepSums:
    """What all ranks add up in a step, in one vector: loss, B clip losses, and what each rank's host has to say."""

    values: torch.Tensor
    batch: int

    @classmethod
    def zeros(cls, batch: int, ranks: int, device: torch.device) -> StepSums:
        return cls(torch.zeros(1 + batch + len(HOST) + 2 * ranks, dtype=torch.float64, device=device), batch)

    def add(self, places: torch.Tensor, loss: torch.Tensor, clip_loss: torch.Tensor) -> None:
        """Takes in a part of the batch. places: (b,) int64 of its clips in the batch. loss: this rank's part of the step's."""
        self.loss.add_(loss)
        self.clip_loss.index_copy_(0, places, clip_loss.double())

    def copy(self) -> StepSums:
        """As they are now, for who reads them later."""
        return StepSums(self.values.clone(), self.batch)

    def tell(
        self,
        rank: int,
        count: LoaderCount,
        stop: bool,
        waited: float,
        alone: float,
        save: bool = False,
        joules: float = UNKNOWN,
    ) -> None:
        """Puts in what this rank's host knows: the numbers named in HOST, and seconds (see `seconds`)."""
        replaced = len({failure.draw for failure in count.failures})
        told = [float(stop), float(save), joules, *(getattr(count, name) for name in HOST[3:-1]), replaced]
        seconds = torch.zeros_like(self.seconds, device="cpu")
        seconds[:, rank] = torch.tensor([waited, alone])
        host = torch.cat([torch.tensor(told, dtype=torch.float64), seconds.flatten()])
        self.values[1 + self.batch :] = host.to(self.values.device, non_blocking=True)

    @property
    def loss(self) -> torch.Tensor:
        return self.values[0]

    @property
    def clip_loss(self) -> torch.Tensor:
        return self.values[1 : 1 + self.batch]

    @property
    def host(self) -> dict[str, float]:
        start = 1 + self.batch
        return dict(zip(HOST, self.values[start : start + len(HOST)].tolist(), strict=True))

    @property
    def seconds(self) -> torch.Tensor:
        """(2, R): waited for data; what a rank took until it first waited for others, or between such waits."""
        return self.values[1 + self.batch + len(HOST) :].view(2, -1)


@dataclass
class StepReport:
    """A step: its row of metrics, and its numbers, first on the device, then on the host. frames: T of a clip. signals: the
    objective's, of this rank's clips. work: what its GPU does for them; waited: seconds that its host waited for them."""

    row: dict[str, Any]
    frames: int
    started: float
    sums: StepSums
    gradient_norm: torch.Tensor
    skipped: torch.Tensor
    signals: dict[str, torch.Tensor] = field(default_factory=dict)
    work: StepWork | None = None
    waited: float = 0.0
    _host: torch.Tensor = field(init=False)
    _event: torch.cuda.Event | None = field(init=False, default=None)

    @property
    def is_stopping(self) -> bool:
        """Whether any rank was asked to stop. Known once the report has arrived."""
        return self.sums.host["stop"] > 0

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is due by a rank's clock. Known once the report has arrived."""
        return self.sums.host["save"] > 0

    def send(self) -> None:
        """Starts the copy to the host."""
        scalars = [self.gradient_norm, self.skipped, *self.signals.values()]
        packed = torch.cat([self.sums.values, torch.stack([scalar.detach().double() for scalar in scalars])])
        if packed.is_cuda:
            self._host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = packed

    def receive(self) -> None:
        """Waits for the copy."""
        if self._event is not None:
            self._event.synchronize()
        size = self.sums.values.numel()
        self.sums = StepSums(self._host[:size], self.sums.batch)
        self.gradient_norm, self.skipped, *signals = self._host[size:]
        self.signals = dict(zip(self.signals, signals, strict=True))


class ReadBack:
    """Steps whose numbers are under way, oldest first."""

    def __init__(self, device: torch.device, device_time: DeviceTime | None = None) -> None:
        self._device_time = device_time
        self._lag = LAG_STEPS if device.type == "cuda" else 0
        self._pending: deque[StepReport] = deque()

    def push(self, report: StepReport) -> None:
        report.send()
        self._pending.append(report)

    def arrived(self, everything: bool = False) -> Iterator[StepReport]:
        """Takes out the steps that are old enough, with `everything` all of them, each with its row complete."""
        while len(self._pending) > (0 if everything else self._lag):
            report = self._pending.popleft()
            report.receive()
            # A step lasts until the next one starts; the latest until now, when the device has finished it.
            end = self._pending[0].started if self._pending else time.perf_counter()
            seconds = end - report.started
            _complete(report, seconds)
            if self._device_time is not None and report.work is not None:
                own = self._device_time.own_seconds(report.work)
                if own is not None:
                    report.row |= shares(seconds, own, report.waited)
            yield report

    def hand_on(
        self,
        everything: bool,
        rows: Sequence[Callable[[dict[str, Any]], object]],
        reports: Callable[[StepReport], object],
    ) -> tuple[bool, bool]:
        """Gives the rows of the steps that have arrived to each of `rows`, then their reports to `reports`. Returns whether one of
        them asks for a checkpoint, and for the end."""
        arrived = list(self.arrived(everything))
        for report in arrived:
            for take in rows:
                take(report.row)
            reports(report)
        return any(report.is_due for report in arrived), any(report.is_stopping for report in arrived)


def _complete(report: StepReport, seconds: float) -> None:
    row, sums, host = report.row, report.sums, report.sums.host
    row["loss"], row["gradient_norm"] = sums.loss.item(), report.gradient_norm.item()
    row["skipped"] = int(report.skipped.item())
    row |= {name: value.item() for name, value in report.signals.items()}
    row["amplification"] = host["packets_decoded"] / max(host["frames_used"], 1)
    row["bytes_per_clip"] = host["bytes_read"] / host["clips"]
    row["repeated_frames_percent"] = 100 * host["repeated_frames"] / (host["clips"] * report.frames)
    row["replaced_clips"] = int(host["replaced"])
    row["clips_per_second"] = host["clips"] / seconds
    row["spans_per_second"] = host["spans"] / seconds
    if math.isfinite(host["joules"]):
        row["joules"] = host["joules"]
    waits, alone = sums.seconds
    row["data_wait_percent"] = min(100.0, 100 * waits.max().item() / seconds)
    if len(waits) > 1:
        # Who comes to an exchange last holds up all others.
        row["slowest_rank"] = int(alone.argmax())
        row["slowest_rank_behind_ms"] = 1000 * (alone.max() - alone.median()).item()
        row["slowest_rank_wait_ms"] = 1000 * waits[row["slowest_rank"]].item()
