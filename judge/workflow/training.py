"""A temporal head trained on whole videos, one a step, ended early by the validation videos; it goes on where it was killed.

What is drawn in an epoch follows from the seed and the epoch's number, and the state is written after each: a training that was
killed gives, on a CPU, the same bits as one that was not.

Shapes: T moments of a video, D values a vector, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...engine.config.error import ConfigError
from ..downstream.training_state import restore_state, save_state
from .choices import HeadChoices
from .frame_metrics import VideoResult, averaged, phase_counts, phase_scores
from .heads import TemporalHead, head_loss, leak
from .labels import DenseVideo

LEAK_TOLERANCE = 1e-4  # of a logit: sums of other lengths may be rounded otherwise


@dataclass(frozen=True)
class Example:
    """A video that is trained on or judged. vectors: (T, D) float16."""

    vectors: NDArray[np.float16]
    labels: DenseVideo


@dataclass(frozen=True)
class Trained:
    """head: as it was best on the validation videos. epoch, score: of that. epochs: how many there were. leaked: of `leak`, on the
    longest validation video; None of an offline head."""

    head: TemporalHead
    epoch: int
    score: float
    epochs: int
    leaked: float | None


class _Best(nn.Module):
    """What else the state of a training holds."""

    score: torch.Tensor
    loss: torch.Tensor
    epoch: torch.Tensor

    def __init__(self, head: TemporalHead) -> None:
        super().__init__()
        self.head = deepcopy(head)
        self.register_buffer("score", torch.tensor(-torch.inf, dtype=torch.float64))
        self.register_buffer("loss", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("epoch", torch.tensor(0))


def train_head(
    train: Sequence[Example],
    val: Sequence[Example],
    classes: int,
    choices: HeadChoices,
    state: Path,
    *,
    seed: int,
    device: torch.device | None = None,
    tell: Callable[[str], None] | None = None,
) -> Trained:
    """state: the file that is written after each epoch. Raises ConfigError where no training or no validation video has a label,
    where nothing is finite, and where an online head turns out to see what comes after."""
    device = device or torch.device("cpu")
    train, val = (
        [example for example in part if example.labels.known.any() and len(example.vectors)] for part in (train, val)
    )
    if not train or not val:
        raise ConfigError(f"{len(train)} training and {len(val)} validation videos have labels; one of each is needed")
    head = _begin(train, classes, choices, seed).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), choices.learning_rate, weight_decay=choices.weight_decay)
    best = _Best(head).to(device)
    done = restore_state(state, [head, best], optimizer)
    weights = class_weights(train, classes, choices.balance).to(device)
    for epoch in range(done, choices.epochs):
        if epoch - int(best.epoch) >= choices.patience:
            break
        _run_epoch(head, optimizer, train, weights, choices, seed=seed, epoch=epoch, device=device)
        score, loss = validate(head, val, classes, choices, weights, device)
        if not np.isfinite(loss):
            raise ConfigError(f"{state}: epoch {epoch + 1} is not finite; give a smaller head.learning_rate")
        # Of equal scores the loss decides, so that a head that is right already may still grow surer.
        if (score, -loss) > (float(best.score), -float(best.loss)):
            best.head.load_state_dict(head.state_dict())
            best.score.fill_(score)
            best.loss.fill_(loss)
            best.epoch.fill_(epoch + 1)
        done = epoch + 1
        save_state(state, [head, best], optimizer, done)
        if tell:
            tell(
                f"epoch {done}: validation {score:.4f}, loss {loss:.4f}; best {float(best.score):.4f} at {int(best.epoch)}"
            )
    found: TemporalHead = best.head.eval().requires_grad_(False)
    leaked = None
    if choices.mode == "online":
        leaked = check_online(found, max(val, key=lambda example: len(example.vectors)), device)
    return Trained(found, int(best.epoch), float(best.score), done, leaked)


def check_online(head: nn.Module, example: Example, device: torch.device) -> float:
    """By how much what it says depends on what comes after. Raises ConfigError beyond LEAK_TOLERANCE."""
    if len(example.vectors) < 2:
        return 0.0
    found = leak(head, torch.from_numpy(example.vectors).to(device).float())
    if found > LEAK_TOLERANCE:
        raise ConfigError(
            f"head.mode: 'online' is not true of this head: vectors behind a moment change its logits there by {found:.2g}; mend "
            "the head, or say mode: offline"
        )
    return found


@torch.no_grad()
def probabilities(head: nn.Module, vectors: NDArray[np.float16], several: bool, device: torch.device) -> NDArray:
    """(T, K) float64: of the last stage; softmax, or where there may be several labels the sigmoid."""
    if not len(vectors):
        raise ConfigError("a video has no vectors; its features are empty")
    logits = head(torch.from_numpy(vectors).to(device).float())[-1].double()
    return (logits.sigmoid() if several else logits.softmax(dim=-1)).cpu().numpy()


def class_weights(train: Sequence[Example], classes: int, balance: float) -> torch.Tensor:
    """(K,) with a mean of 1 over the frames; of several labels, by how much the positive ones weigh more."""
    truth = np.concatenate([example.labels.truth[example.labels.known] for example in train])
    if truth.ndim == 2:
        share = truth.mean(axis=0)
        weights = np.where(share > 0, ((1 - share) / np.maximum(share, 1e-6)) ** balance, 1.0)
    else:
        share = np.bincount(truth, minlength=classes) / len(truth)
        weights = np.where(share > 0, np.maximum(share, 1e-12) ** -balance, 0.0)
        weights = weights / (weights * share).sum()
    return torch.from_numpy(weights).float()


def validate(
    head: nn.Module,
    val: Sequence[Example],
    classes: int,
    choices: HeadChoices,
    weights: torch.Tensor,
    device: torch.device,
) -> tuple[float, float]:
    """(score by `select`, mean loss of the videos)"""
    head.eval()
    losses, videos = [], []
    for example in val:
        labels = example.labels
        several = labels.truth.ndim == 2
        found = probabilities(head, example.vectors, several, device)[labels.known]
        truth = labels.truth[labels.known]
        likely = np.where(truth, found, 1 - found) if several else found[np.arange(len(found)), truth]
        losses.append(float(-np.log(np.maximum(likely, 1e-12)).mean()))
        videos.append(VideoResult(labels.name, labels.subject, truth, found))
    select = choices.select or ("mean_average_precision" if videos[0].truth.ndim == 2 else "accuracy")
    return _score(videos, classes, select), float(np.mean(losses))


def _score(videos: Sequence[VideoResult], classes: int, select: str) -> float:
    several = videos[0].truth.ndim == 2
    if several != (select == "mean_average_precision"):
        raise ConfigError(
            f"head.select: {select!r} does not suit; several labels need mean_average_precision, one label the others"
        )
    if several:
        from sklearn.metrics import average_precision_score  # slow to import

        truth, scores = (np.concatenate([getattr(video, name) for video in videos]) for name in ("truth", "scores"))
        present = np.flatnonzero(truth.any(axis=0))
        return (
            float(np.mean([average_precision_score(truth[:, k], scores[:, k]) for k in present]))
            if len(present)
            else 0.0
        )
    counts = np.stack([phase_counts(video.truth, video.predicted, classes) for video in videos])
    if select == "accuracy":
        return float((counts[:, 0].sum(axis=1) / counts[:, 2].sum(axis=1)).mean())
    table = phase_scores(counts, "absent_left_out")["f1"]
    return float(averaged(table, "phases_then_videos", np.ones((1, len(videos))))[0])


def _begin(train: Sequence[Example], classes: int, choices: HeadChoices, seed: int) -> TemporalHead:
    values = train[0].vectors.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = TemporalHead(choices, values, classes)
    counted = sum(len(example.vectors) for example in train)
    mean = sum(example.vectors.astype(np.float64).sum(axis=0) for example in train) / counted
    square = sum((example.vectors.astype(np.float64) ** 2).sum(axis=0) for example in train) / counted
    head.mean.copy_(torch.from_numpy(np.asarray(mean)))
    head.deviation.copy_(torch.from_numpy(np.sqrt(np.maximum(square - np.asarray(mean) ** 2, 1e-6))))
    return head


def _run_epoch(
    head: TemporalHead,
    optimizer: torch.optim.Optimizer,
    train: Sequence[Example],
    weights: torch.Tensor,
    choices: HeadChoices,
    *,
    seed: int,
    epoch: int,
    device: torch.device,
) -> None:
    head.train()
    order = np.random.default_rng([seed, epoch]).permutation(len(train))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed << 20) + epoch)  # of dropout
        for number in order.tolist():
            example = train[number]
            truth = torch.from_numpy(example.labels.truth).to(device)
            truth = truth.float() if truth.ndim == 2 else truth
            known = torch.from_numpy(example.labels.known).to(device)
            logits = head(torch.from_numpy(example.vectors).to(device))
            loss = head_loss(logits, truth, known, weights, choices.smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 5.0)
            optimizer.step()
