"""Linear and attentive probes: the whole grid of heads trained at once on features that were computed once.

The heads share the features and nothing else, so the sum of their losses gives each its own gradient, and one optimizer with a
group for each trains all of them. Rows are permuted by (seed, epoch) and epoch e takes view e mod V of a row.

Shapes: N rows, B rows of a batch, L tokens, D width, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ...engine.draws.schedule import Schedule
from .features import Features
from .heads import MeanHead, build_head
from .protocol import Point, Protocol
from .task import Split, Task
from .training_state import restore_state, save_state

TOLD = 5  # times that a training says how far it is, about
SECONDS_BETWEEN_SAVES = 60.0  # an epoch of a linear probe takes less than writing it down


def train_grid(
    features: Features,
    task: Task,
    protocol: Protocol,
    state: Path,
    *,
    seed: int,
    device: torch.device,
    tell: Callable[[str], None],
) -> list[nn.Module]:
    """The trained heads, one for each point of the grid. features: of the training split. state: file of where it stands."""
    points = protocol.grid()
    width = features.shape[1]
    heads: list[nn.Module] = []
    for point in points:
        # Points of one head begin alike, so that they differ in what the grid varies.
        torch.manual_seed(seed)
        heads.append(build_head(point.head, width, task.num_classes, protocol))
    statistics = feature_statistics(features) if "standardized" in protocol.heads else None
    for point, head in zip(points, heads, strict=True):
        head.to(device)
        if point.head == "standardized" and statistics and isinstance(head, MeanHead):
            head.standardize(*statistics)
    weights = [class_weights(task.train.truth, task.num_classes, point.balance).to(device) for point in points]
    groups = [group for point, head in zip(points, heads, strict=True) for group in head_groups(head, point)]
    optimizer = torch.optim.AdamW(groups)
    truth = torch.from_numpy(task.train.truth).to(device)
    rows = len(task.train.rows)
    per_epoch = -(-rows // protocol.batch)
    steps = protocol.epochs * per_epoch
    done, saved = restore_state(state, heads, optimizer), time.monotonic()
    for epoch in range(done, protocol.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(rows) + epoch % features.views * rows
        for number in range(per_epoch):
            clips = order[number * protocol.batch : (number + 1) * protocol.batch]
            tokens = features.read(clips).to(device)
            wanted = truth[torch.from_numpy(features.row_of[clips]).to(device)]
            losses = [
                loss(head(tokens), wanted, weight, protocol.label_smoothing)
                for head, weight in zip(heads, weights, strict=True)
            ]
            set_rates(optimizer, epoch * per_epoch + number, steps, protocol.warmup)
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
        is_last = epoch + 1 == protocol.epochs
        if is_last or (epoch + 1) % max(protocol.epochs // TOLD, 1) == 0:
            tell(f"epoch {epoch + 1} of {protocol.epochs}, {len(heads)} heads trained together")
        if is_last or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            save_state(state, heads, None if is_last else optimizer, epoch + 1)
            saved = time.monotonic()
    return heads


@torch.no_grad()
def feature_scores(
    heads: list[nn.Module], features: Features, split: Split, task: Task, *, batch: int, device: torch.device
) -> list[NDArray[np.float64]]:
    """(N, K) probabilities of each head, averaged over the views of a row. features: of that split, in evaluation views."""
    scores = [np.zeros((len(split.rows), task.num_classes)) for _ in heads]
    for start in range(0, len(features), batch):
        clips = np.arange(start, min(start + batch, len(features)))
        tokens = features.read(clips).to(device)
        for head, total in zip(heads, scores, strict=True):
            np.add.at(total, features.row_of[clips], probabilities(head(tokens), task.several))
    return [total / features.views for total in scores]


def feature_statistics(features: Features, batch: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the clips' mean tokens, each (D,)."""
    count = len(features)
    means = [
        features.read(np.arange(start, min(start + batch, count))).mean(dim=1).double()
        for start in range(0, count, batch)
    ]
    whole = torch.cat(means)
    return whole.mean(dim=0).float(), whole.std(dim=0, correction=0).float()


def head_groups(head: nn.Module, point: Point) -> list[dict[str, Any]]:
    """Parameter groups of a head; vectors are not decayed."""
    matrices = [parameter for name, parameter in head.named_parameters() if parameter.ndim > 1]
    vectors = [parameter for name, parameter in head.named_parameters() if parameter.ndim <= 1]
    common = {"lr": 0.0, "peak": point.learning_rate}
    return [
        {"params": matrices, "weight_decay": point.weight_decay, **common},
        {"params": vectors, "weight_decay": 0.0, **common},
    ]


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: float) -> None:
    """Each group's learning rate at a step: up to its peak along a line, then to zero along a half cosine."""
    share = Schedule(1.0, 0.0, round(warmup * steps), steps)(step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def class_weights(truth: NDArray, classes: int, balance: float) -> torch.Tensor:
    """(K,) float32, the shares of the classes to the power of -balance, with a mean of 1 over the rows.

    Of several labels: the weight of a row that has the label, (rows without / rows with) to the power of balance, 1 .. 100.
    """
    if truth.ndim == 2:
        positive = truth.sum(axis=0).clip(min=1)
        ratio = ((len(truth) - positive).clip(min=1) / positive) ** balance
        return torch.from_numpy(ratio.clip(1, 100)).float()
    counts = np.bincount(truth, minlength=classes)
    weights = np.where(counts > 0, counts.clip(min=1) / len(truth), 1.0) ** -balance
    return torch.from_numpy(weights * len(truth) / (weights * counts).sum()).float()


def loss(logits: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The mean over rows. wanted: (B,) class numbers, (B, K) shares of mixed clips, or (B, K) bool. weights: of `class_weights`."""
    if wanted.dtype == torch.bool:
        target = wanted.float() * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
    shares = F.one_hot(wanted, logits.shape[1]).float() if wanted.ndim == 1 else wanted
    row_weights = shares @ weights
    target = shares * (1 - smoothing) + smoothing / logits.shape[1]
    return -(row_weights * (target * logits.log_softmax(dim=1)).sum(dim=1)).mean()


def probabilities(logits: torch.Tensor, several: bool) -> NDArray[np.float64]:
    """(B, K)"""
    logits = logits.double()
    return (logits.sigmoid() if several else logits.softmax(dim=1)).cpu().numpy()
