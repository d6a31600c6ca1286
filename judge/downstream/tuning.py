"""Full fine-tuning: encoder and head together, each layer's learning rate a little lower than that of the next one.

Points of the grid are trained one after the other, each from the same weights. Every epoch is saved; what a step draws at random is
keyed by (seed, step), so a training that was killed ends as it would have ended.

Shapes: B clips, T frames, R x R pixels, N rows, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from torch import nn

from ...engine.record.metrics import QuarantineLog
from ...engine.weights.encoder_sources import ClipShape
from ...loaders.corpus.progress import FileProgress
from ...loaders.corpus.video_files import VideoFiles
from ...ssl.encoder import VideoEncoder
from ..labels.segment_clips import ClipRow
from .backbones import Backbone, FrameAverage
from .features import ViewPlan, open_clips
from .heads import MeanHead, build_head
from .mixing import Mixing
from .probing import class_weights, loss, probabilities, set_rates
from .protocol import Point, Protocol
from .task import Task
from .training_state import restore_state, save_state

BETAS = (0.9, 0.999)


class Tuned(nn.Module):
    """An encoder with a head."""

    def __init__(self, encoder: VideoEncoder | FrameAverage, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, R, R, 3) uint8 -> (B, K)"""
        with torch.autocast("cuda", dtype=torch.bfloat16) if frames.is_cuda else nullcontext():
            pools = isinstance(self.head, MeanHead)
            tokens = self.encoder.pooled(frames).unsqueeze(1) if pools else self.encoder(frames)
        return self.head(tokens.float())


def build_tuned(backbone: Backbone, classes: int, point: Point, protocol: Protocol, seed: int) -> Tuned:
    torch.manual_seed(seed)
    head = build_head(point.head, backbone.width, classes, protocol)
    encoder = backbone.copy()
    encoder.requires_grad_(True)
    for name, module in encoder.named_modules():
        match = re.search(r"(?:^|\.)blocks\.(\d+)$", name)
        if match and protocol.drop_path:
            rate = protocol.drop_path * int(match[1]) / max(backbone.depth - 1, 1)
            for branch in ("drop_path1", "drop_path2"):
                if hasattr(module, branch):
                    setattr(module, branch, DropPath(rate))
    return Tuned(encoder, head)


def train_point(
    backbone: Backbone,
    task: Task,
    protocol: Protocol,
    point: Point,
    path: Path,
    *,
    seed: int,
    device: torch.device,
    tell: Callable[[str], None],
) -> Tuned:
    """Trains, or goes on with what `path` holds, to the last epoch. Rows that cannot be read are replaced, named on stderr and
    listed in quarantine.csv of the cell, the folder above `path`'s."""
    model = build_tuned(backbone, task.num_classes, point, protocol, seed).to(device)
    optimizer = torch.optim.AdamW(layer_groups(model, backbone.depth, point, protocol.layer_decay), betas=BETAS)
    done = restore_state(path, [model], optimizer)
    weights = class_weights(task.train.truth, task.num_classes, point.balance).to(device)
    truth = torch.from_numpy(task.train.truth).to(device)
    mixing = Mixing(protocol, task.num_classes, several=task.several)
    rows = len(task.train.rows)
    per_epoch = -(-rows // protocol.batch)
    steps = protocol.epochs * per_epoch
    clips = {"first_number": done * rows, "batch": protocol.batch, "seed": seed, "device": device}
    plan = ViewPlan(True, protocol.epochs, 0, 0)
    if done == protocol.epochs:
        return model.eval()
    # Whatever the loader has to measure at its start, it measures once.
    loader = open_clips(task.train.rows, task.train.videos, plan, backbone.clips, protocol, **clips)
    model.train()
    with QuarantineLog(path.parents[1], loader.total.failures, tell=True) as quarantine:
        for step, batch in enumerate(loader, start=done * per_epoch):
            torch.manual_seed((seed << 32) + step)
            frames, wanted = mixing(batch.frames, truth[torch.tensor(batch.labels, device=device)])
            set_rates(optimizer, step, steps, protocol.warmup)
            optimizer.zero_grad()
            loss(model(frames), wanted, weights, protocol.label_smoothing).backward()
            if protocol.clip_gradient:
                nn.utils.clip_grad_norm_(model.parameters(), protocol.clip_gradient)
            optimizer.step()
            epoch, rest = divmod(step + 1, per_epoch)
            if not rest:
                quarantine.update()
                save_state(path, [model], optimizer if epoch < protocol.epochs else None, epoch)
                tell(f"{point.name}: epoch {epoch} of {protocol.epochs}")
    return model.eval()


@torch.no_grad()
def clip_scores(
    model: nn.Module,
    rows: Sequence[ClipRow],
    videos: VideoFiles,
    classes: int,
    protocol: Protocol,
    shape: ClipShape,
    *,
    several: bool,
    device: torch.device,
    task: str = "",
) -> NDArray[np.float64]:
    """(N, K) probabilities, averaged over the views of a row. several: rows may have several labels. task: what is said beside how
    many clips are done; nothing is, where it is empty."""
    model.eval()
    plan = ViewPlan.evaluation_of(protocol)
    scores = np.zeros((len(rows), classes))
    clips = {"batch": protocol.encode_batch, "seed": 0, "device": device}
    with FileProgress(len(rows) * plan.views, bool(task), task, "clips") as progress:
        for batch in open_clips(rows, videos, plan, shape, protocol, **clips):
            np.add.at(scores, np.array(batch.labels), probabilities(model(batch.frames), several))
            progress.advance(task, len(batch.labels))
    return scores / plan.views


def layer_groups(model: Tuned, depth: int, point: Point, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups by layer: patches and positions are layer 0, block i is layer i + 1, all behind the blocks layer depth + 1,
    which learns at the point's rate. Vectors and tables of positions are not decayed (Clark et al. 2020; BEiT)."""
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        match = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
        is_last = name.startswith("head.") or re.search(r"(?:^|\.)(norm|fc_norm)\.(weight|bias)$", name)
        layer = int(match[1]) + 1 if match else depth + 1 if is_last else 0
        is_decayed = parameter.ndim > 1 and not re.search(r"(pos_embed|cls_token|reg_token)$", name)
        group = groups.setdefault(
            (layer, is_decayed),
            {
                "params": [],
                "lr": 0.0,
                "peak": point.learning_rate * layer_decay ** (depth + 1 - layer),
                "weight_decay": point.weight_decay if is_decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
