"""How good are the features by now? A probe on a labelled table, in a side thread while training goes on.

Every `probe.every` steps the encoder is copied, as it is, and a thread encodes the table's clips with the copy, a small batch at a
time, averages each clip's tokens and asks: does its label follow from those of clips of other videos? "knn": a vote of the nearest.
"linear": ridge regression, fitted on four fifths of the videos and judged on the rest, in turns. Videos never stand on both sides.

What it costs: one copy of the encoder, the table's clips as uint8 in host memory, decoded once, and their forward passes, which
share the device with training: `seconds` in each row, the first of which holds the decoding. A probe that is not done when the next
is due holds that one off; so training never waits.

Shapes: K clips of the table, D width, C classes.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...loaders.clip_loader import clip_loader
from ...loaders.corpus.names import as_stored, cleaned, twins
from ...loaders.corpus.text_file import open_table
from ...loaders.corpus.whole_file import write_text_whole
from ...loaders.video.video import is_remote
from ...ssl.encoder import VideoEncoder
from ..config.settings import Config, ConfigError
from ..inputs.folders import PROBE_FILE

COLUMNS = ("path", "start", "label")
FOLDS = 5
NAMED = 10  # missing videos in a message
TEMPERATURE = 0.1  # of the neighbours' votes: weights exp(cosine / temperature), as in DINO's kNN
RIDGE = 0.1  # penalty per clip and unit of a feature's variance


def read_table(path: Path, most: int) -> list[tuple[str, float, str]]:
    """(path, start in seconds, label) of at most `most` rows, evenly spread over the table. Raises ConfigError."""
    rows = []
    mend = "its first line is to name path,start,label"
    with open_table(path, lambda said: ConfigError(f"probe.table: {said}"), columns=COLUMNS, mend=mend) as reader:
        for row in reader:
            video, start, label = (cleaned(row[name] or "") for name in COLUMNS)
            if not video or not label:
                lacking = "label" if video else "path"
                raise ConfigError(
                    f"probe.table: {path}, line {reader.line_num}: the {lacking} is empty; fill it in or take the line out"
                )
            try:
                rows.append((as_stored(video, ""), float(start or 0), label))
            except ValueError:
                raise ConfigError(
                    f"probe.table: {path}, line {reader.line_num}: start is {start!r}; give seconds"
                ) from None
    if len({label for _, _, label in rows}) < 2 or len({video for video, _, _ in rows}) < 2:
        raise ConfigError(f"probe.table: {path} has {len(rows)} rows; at least two labels and two videos are needed")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))
    return [rows[index] for index in chosen]


def check_rows(rows: list[tuple[str, float, str]], path: Path) -> None:
    """Raises ConfigError where videos are missing; says on stderr which labels are one to the eye."""
    if missing := sorted({video for video, _, _ in rows if not is_remote(video) and not Path(video).exists()}):
        named = ", ".join(missing[:NAMED])
        raise ConfigError(
            f"probe.table: {path} names {len(missing)} videos that are missing: {named}{' ...' if len(missing) > NAMED else ''}; "
            "correct their paths, or leave their rows out"
        )
    for group in twins({label for _, _, label in rows}):
        print(f"trocar: probe.table: {' and '.join(map(repr, group))} count as {len(group)} classes", file=sys.stderr)


def knn_predictions(
    features: torch.Tensor, labels: torch.Tensor, videos: torch.Tensor, neighbours: int
) -> torch.Tensor:
    """features: (K, D). labels, videos: (K,) integers. Returns (K,): what the nearest clips of other videos vote for."""
    unit = F.normalize(_standardized(features), dim=1)
    likeness = (unit @ unit.T).masked_fill(videos[:, None] == videos[None], -torch.inf)
    nearest = likeness.topk(min(neighbours, len(features) - 1), dim=1)
    votes = F.one_hot(labels, int(labels.max()) + 1)[nearest.indices] * (nearest.values / TEMPERATURE).exp()[..., None]
    return votes.sum(dim=1).argmax(dim=1)


def linear_predictions(features: torch.Tensor, labels: torch.Tensor, videos: torch.Tensor) -> torch.Tensor:
    """As `knn_predictions`, by ridge regression on one-hot labels, each video judged by what was fitted without it."""
    from sklearn.linear_model import Ridge  # slow to import

    wanted = F.one_hot(labels, int(labels.max()) + 1).to(features.dtype)
    fold = torch.unique(videos, return_inverse=True)[1] % FOLDS
    predicted = torch.zeros_like(labels)
    for number in fold.unique():
        held = fold == number
        mean, deviation = features[~held].mean(0), features[~held].std(0) + 1e-6
        train, test = ((features[rows] - mean) / deviation for rows in (~held, held))
        fitted = Ridge(RIDGE * len(train)).fit(train.numpy(), wanted[~held].numpy())
        predicted[held] = torch.from_numpy(fitted.predict(test.numpy())).argmax(dim=1)
    return predicted


def balanced_accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean over classes of the share of its clips that are right."""
    from sklearn.metrics import balanced_accuracy_score  # slow to import

    return float(balanced_accuracy_score(labels.numpy(), predicted.numpy()))


def _standardized(features: torch.Tensor) -> torch.Tensor:
    return (features - features.mean(0)) / (features.std(0) + 1e-6)


@torch.no_grad()
def encode(encoder: VideoEncoder, frames: torch.Tensor, batch: int, device: torch.device) -> torch.Tensor:
    """(K, D) float64: the mean of every clip's tokens. frames: (K, T, H, W, 3) uint8 in host memory."""
    parts = []
    for part in frames.split(batch):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            parts.append(encoder(part.to(device)).mean(dim=1, dtype=torch.float32).double().cpu())
    return torch.cat(parts)


class OnlineProbe:
    """Probes a run's encoder. Does nothing where probe.table is null, or `write` is False (on all ranks but one).

    first_step: rows of RUN/probe.jsonl after it are cut off. A probe that fails says so on stderr and in its row; training goes on.
    Raises ConfigError where the table cannot be used, or the encoder is sharded.
    """

    def __init__(self, config: Config, device: torch.device, first_step: int, write: bool) -> None:
        self.config, self.device = config, device
        self.path = Path(config.run.dir) / PROBE_FILE
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None
        if config.probe.table is None:
            return
        if config.run.sharding != "none":
            raise ConfigError(
                "probe.table: an encoder that is sharded cannot be copied; set run.sharding=none or probe.table=null"
            )
        self._rows = read_table(Path(config.probe.table), config.probe.clips)
        if not write:
            return
        check_rows(self._rows, Path(config.probe.table))
        self._frames: torch.Tensor | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="probe")
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= first_step]
            write_text_whole(self.path, "".join(kept))

    def __enter__(self) -> OnlineProbe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def update(self, step: int, encoder: VideoEncoder) -> None:
        """After optimizer step `step`: starts a probe where one is due and none is running."""
        if self._pool is None or step % self.config.probe.every or (self._running and not self._running.done()):
            return
        snapshot = copy.deepcopy(encoder).requires_grad_(False).eval()
        self._running = self._pool.submit(self._probe, step, snapshot)

    def _probe(self, step: int, encoder: VideoEncoder) -> None:
        start = time.perf_counter()
        try:
            row = {"step": step, **self._judge(encoder), "seconds": time.perf_counter() - start}
        except Exception as error:  # noqa: BLE001  (whatever a side thread meets, training goes on, and it is said)
            print(f"trocar: the probe of step {step} failed: {error}", file=sys.stderr, flush=True)
            row = {"step": step, "error": str(error)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _judge(self, encoder: VideoEncoder) -> dict[str, Any]:
        probe = self.config.probe
        if self._frames is None:
            self._frames = self._decode()
        features = encode(encoder, self._frames, probe.batch, self.device)
        names = sorted({label for _, _, label in self._rows})
        paths = sorted({path for path, _, _ in self._rows})
        labels = torch.tensor([names.index(label) for _, _, label in self._rows])
        videos = torch.tensor([paths.index(path) for path, _, _ in self._rows])
        if probe.kind == "knn":
            predicted = knn_predictions(features, labels, videos, probe.neighbours)
        else:
            predicted = linear_predictions(features, labels, videos)
        accuracy = balanced_accuracy(predicted, labels)
        return {"kind": probe.kind, "balanced_accuracy": accuracy, "chance": 1 / len(names), "clips": len(labels)}

    def _decode(self) -> torch.Tensor:
        data = self.config.data
        times = {"num_frames": data.frames, "stride": data.stride, "sample_fps": data.sample_fps}
        options = {"resolution": data.resolution, "content_box": data.content_box, "resize": data.resize}
        options["square_pixels"] = data.square_pixels
        loader = clip_loader(
            self._rows,
            batch=8,
            training=False,
            loader="cpu",
            device="cpu",
            rank=0,
            ranks=1,
            threads=1,
            workers=int(self.device.type == "cuda"),
            **times,
            **options,
        )
        return torch.cat([batch.frames for batch in loader])
