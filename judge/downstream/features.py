"""Features of clips, computed once by a frozen encoder and kept in files: what linear and attentive probes are trained on.

A folder holds parts of consecutive clips. Each part is two files, `000003.rows.npy` and `000003.npy`, of which the second, written
last and renamed, says that the part is whole: whatever is killed goes on behind the last whole part.

Shapes: N rows of a table, V views of each, S segments, C crops, L tokens (1 where they are averaged), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.config.error import ConfigError
from ...engine.curate.embedders import half_precision
from ...engine.record.metrics import QuarantineLog
from ...engine.weights.encoder_sources import ClipShape
from ...loaders.clip_loader import clip_loader
from ...loaders.corpus.progress import FileProgress
from ...loaders.corpus.video_files import VideoFiles
from ...loaders.corpus.whole_file import write_array_whole
from ...loaders.epochs import EpochLoader
from ...ssl.encoder import VideoEncoder
from ..labels.segment_clips import ClipRow
from .backbones import Backbone, FrameAverage
from .protocol import Protocol
from .task import Split, claim

CLIPS_PER_PART = {True: 256, False: 64}  # averaged, and with all tokens, of which a ViT-L's clip has 3 MB
MANIFEST = "manifest.json"


class Features:
    """All views of all rows, read as they are needed.

    parts: mapped files of (clips, L, D). rows: (N V,) the row of each clip; view v of row n is clip v N + n in training, and
    n V + v in evaluation.
    """

    def __init__(self, parts: Sequence[NDArray], rows: NDArray[np.int64], views: int) -> None:
        self._parts, self.views = parts, views
        self.row_of = rows
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        """N V, the clips."""
        return len(self.row_of)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, D)"""
        return self._parts[0].shape[1], self._parts[0].shape[2]

    def read(self, clips: NDArray[np.int64]) -> torch.Tensor:
        """(B, L, D) float32 of these clips."""
        part = np.searchsorted(self._starts, clips, side="right") - 1
        found = [self._parts[p][clip - self._starts[p]] for p, clip in zip(part, clips, strict=True)]
        return torch.from_numpy(np.stack(found).astype(np.float32))


@dataclass(frozen=True)
class ViewPlan:
    """Which clips of a table are encoded: `views` random ones of each row for training, else segments x crops."""

    training: bool
    views: int
    segments: int
    crops: int

    @classmethod
    def training_of(cls, protocol: Protocol) -> ViewPlan:
        return cls(True, protocol.train_views, 0, 0)

    @classmethod
    def evaluation_of(cls, protocol: Protocol) -> ViewPlan:
        return cls(False, protocol.segments * protocol.crops, protocol.segments, protocol.crops)


def open_clips(
    rows: Sequence[ClipRow],
    videos: VideoFiles,
    plan: ViewPlan,
    shape: ClipShape,
    protocol: Protocol,
    *,
    batch: int,
    seed: int,
    device: torch.device,
    **options: Any,
) -> EpochLoader:
    """The clips of rows in batches; labels are row numbers. options: of `clip_loader`."""
    timing = {"num_frames": shape.frames, "stride": shape.stride, "sample_fps": shape.sample_fps}
    if plan.training:
        views = {"crops": protocol.recipe(), "drop_last": False, "epochs": plan.views}
    else:
        views = {"segments": plan.segments, "crops": plan.crops}
    common = {"batch": batch, "resolution": shape.resolution, "seed": seed, "device": device, "rank": 0, "ranks": 1}
    return clip_loader(rows, videos=videos, training=plan.training, **timing, **views, **common, **options)


def extract(
    folder: Path,
    split: Split,
    plan: ViewPlan,
    backbone: Backbone,
    protocol: Protocol,
    *,
    averaged: bool,
    seed: int,
    device: torch.device,
    progress: bool = False,
) -> Features:
    """Encodes what `folder` does not hold yet, and opens it.

    averaged: keep the mean of the tokens, not each. Raises ConfigError where the folder holds features of something else,
    VideoError where a row cannot be read (in training it is replaced, named on stderr and listed in the folder's quarantine.csv).
    """
    shape = backbone.clips
    made_of = {
        "encoder": backbone.digest,
        "table": split.identity,
        "clips": [shape.frames, shape.stride, shape.sample_fps, shape.resolution],
        "plan": [plan.training, plan.views, plan.segments, plan.crops],
        "recipe": repr(protocol.recipe()) if plan.training else "",
        "seed": seed if plan.training else 0,
        "averaged": averaged,
    }
    claim(folder / MANIFEST, made_of, "features")
    per_part = CLIPS_PER_PART[averaged]
    total = len(split.rows) * plan.views
    parts = -(-total // per_part)
    done = next((number for number in range(parts) if not _path(folder, number).exists()), parts)
    if done < parts:
        model = backbone.model.to(device)
        places = {"first_number": done * per_part, "shuffle": False}
        batch = protocol.encode_batch
        loader = open_clips(
            split.rows, split.videos, plan, shape, protocol, batch=batch, seed=seed, device=device, **places
        )
        replaced = loader.total.failures if plan.training else []
        with (
            QuarantineLog(folder, replaced, tell=True) as quarantine,
            FileProgress(parts - done, progress, f"encoding {folder.name}", "parts") as report,
        ):
            waiting: list[torch.Tensor] = []  # on the device: a part comes to the host at once
            labels: list[int] = []
            for clips in loader:
                waiting += encode(model, clips.frames, device, averaged=averaged).half().unbind()
                labels += clips.labels
                while len(labels) >= per_part or (
                    labels and done == parts - 1 and len(labels) == total - done * per_part
                ):
                    _write_part(folder, done, labels[:per_part], waiting[:per_part])
                    labels, waiting, done = labels[per_part:], waiting[per_part:], done + 1
                    report.advance("encoding")
                    quarantine.update()
        assert done == parts
    stored = [np.load(_path(folder, number), mmap_mode="r") for number in range(parts)]
    row_of = np.concatenate([np.load(_path(folder, number, ".rows")) for number in range(parts)])
    return Features(stored, row_of, plan.views)


@torch.no_grad()
def encode(
    model: VideoEncoder | FrameAverage, frames: torch.Tensor, device: torch.device, *, averaged: bool
) -> torch.Tensor:
    """(B, L, D) float32."""
    with half_precision(device):
        frames = frames.to(device)
        return model.pooled(frames).unsqueeze(1) if averaged else model(frames).float()


def _path(folder: Path, number: int, kind: str = "") -> Path:
    return folder / f"{number:06d}{kind}.npy"


def _write_part(folder: Path, number: int, rows: list[int], tokens: Sequence[torch.Tensor]) -> None:
    """Half precision: features come from a layer norm, and a probe's gradient is noisier than its rounding."""
    values = torch.stack(list(tokens)).cpu().numpy()
    if not np.isfinite(values).all():
        raise ConfigError(
            f"{folder}: the encoder's features are not finite; its weights are broken, or of another model"
        )
    np.save(_path(folder, number, ".rows"), np.array(rows, np.int64))
    write_array_whole(_path(folder, number), values)
