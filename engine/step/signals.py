"""Is a run's representation collapsing? Signals that a falling loss does not give away.

feature_std     deviation over clips of the target's mean-pooled features before its last norm (`JointEmbedding.signals`)
rankme          exp of the entropy of the normalised singular values of such features (Garrido et al., ICML 2023, equation 2)
loss_trend      mean loss of the latest steps over that of as many steps before them, minus 1
collapse        1 where feature_std or rankme has fallen below half of what it was at the run's start, else 0

Features are those of the rank that writes the metrics, kept on the device: of as many of its latest clips as `window_clips` says.
Every `RANK_EVERY` steps, once they are so many, they go to the host without anyone waiting, and a side thread decomposes them:
rankme stands in the row of `RANK_EVERY` steps later. Features of many steps are those of many target encoders, whose differences
would count as directions of their own: a run that learns fast would seem to have a higher rank than it has.

Shapes: B clips, K clips in the window, D width.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ...ssl.objective import Objective

LEAST_CLIPS, MOST_CLIPS, WINDOW_STEPS = 64, 256, 8
TREND_STEPS = 50
RANK_EVERY = 10
MEMORY_STEPS = 20  # deviations of single batches vary: their mean over so many steps counts
COLLAPSED_SHARE = 0.5


def rankme(features: torch.Tensor) -> float:
    """features: (K, D). Returns a number from 1 to min(K, D): with p = s / sum(s) + 1e-7 of the singular values s,
    exp(-sum(p log p)). NaN where a feature is not finite."""
    if not torch.isfinite(features).all():
        return float("nan")
    share = torch.linalg.svdvals(features.double().cpu())
    share = share / share.sum().clamp(min=1e-30) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def _sent(features: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """The features on their way to the host, and when they are there; on a CPU they are."""
    if not features.is_cuda:
        return features, None
    host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
    host.copy_(features, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def _rankme_of(features: torch.Tensor, event: torch.cuda.Event | None) -> float:
    if event is not None:
        event.synchronize()
    return rankme(features)


def window_clips(batch: int) -> int:
    """How many clips `rankme` is taken of: those of 8 steps, but at least 64 and at most 256. batch: clips a step on a rank."""
    return min(MOST_CLIPS, max(LEAST_CLIPS, WINDOW_STEPS * batch))


class CollapseWatch:
    """Adds the signals above to the rows of a run.

    rows: of the run so far, whose first ones say what things were at the start. Objectives that leave no `pooled` features get
    loss_trend alone. tell: say on stderr when collapse begins. write: False does nothing, for all ranks but the one that writes the
    metrics.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], tell: bool = True, write: bool = True) -> None:
        self.tell, self._write = tell, write
        self._thread = ThreadPoolExecutor(1, "rankme") if write else None
        self._coming: dict[int, Future[float]] = {}
        self._losses: deque[float] = deque(maxlen=2 * TREND_STEPS)
        self._deviations: deque[float] = deque(maxlen=MEMORY_STEPS)
        self._start: dict[str, float] = {}
        self._pooled: deque[torch.Tensor] = deque()
        self._window = MOST_CLIPS
        self._rank, self._collapsed = float("nan"), 0
        for row in rows:
            self._take(row)
            self._rank = row.get("rankme", self._rank)
            self._judge()

    def observe(self, objective: Objective, step: int) -> None:
        """Keeps the features of the last forward pass, on their device. step: how many are done."""
        pooled = objective.observed.get("pooled")
        if self._thread is None or pooled is None:
            return
        self._pooled.append(pooled.detach())
        self._window = window_clips(len(pooled))
        while sum(map(len, self._pooled)) - len(self._pooled[0]) >= self._window:
            self._pooled.popleft()
        if step % RANK_EVERY == 0 and sum(map(len, self._pooled)) >= self._window:
            features = torch.cat(list(self._pooled))[-self._window :]
            self._coming[step + RANK_EVERY] = self._thread.submit(_rankme_of, *_sent(features))

    def complete(self, row: dict[str, Any]) -> None:
        """Adds the signals to a row whose loss has arrived."""
        if not self._write:
            return
        self._take(row)
        if (rank := self._coming.pop(row["step"], None)) is not None:
            self._rank = row["rankme"] = rank.result()
        if len(self._losses) == 2 * TREND_STEPS:
            losses = list(self._losses)
            row["loss_trend"] = sum(losses[TREND_STEPS:]) / sum(losses[:TREND_STEPS]) - 1
        if "feature_std" in row:
            before, row["collapse"] = self._collapsed, self._judge()
            if row["collapse"] and not before and self.tell:
                print(
                    f"trocar: step {row['step']}: {self._reason()}: the features collapse", file=sys.stderr, flush=True
                )

    def _take(self, row: dict[str, Any]) -> None:
        if math.isfinite(row["loss"]):
            self._losses.append(row["loss"])
        if "feature_std" in row:
            self._deviations.append(row["feature_std"])

    def _now(self) -> dict[str, float]:
        now = {"rankme": self._rank}
        if len(self._deviations) == MEMORY_STEPS:
            now["feature_std"] = sum(self._deviations) / MEMORY_STEPS
        return {name: value for name, value in now.items() if math.isfinite(value)}

    def _judge(self) -> int:
        now = self._now()
        for name, value in now.items():
            self._start.setdefault(name, value)
        self._collapsed = int(any(value < COLLAPSED_SHARE * self._start[name] for name, value in now.items()))
        return self._collapsed

    def _reason(self) -> str:
        return ", ".join(
            f"{name} {value:.3g} after {self._start[name]:.3g} at the start" for name, value in self._now().items()
        )
