"""A run's model as a checkpoint has it, and clips that training does not see: what pictures of a run are made of.

Shapes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.decode.batch import ClipBatch
from ...loaders.draw.phases import DrawSettings
from ...ssl.encoder import VideoEncoder
from ...ssl.jepa import JointEmbedding
from ...ssl.objective import MaskSource, Objective
from ..checkpoint.checkpoint import load_checkpoint
from ..config.file import CONFIG_FILE, load_config
from ..config.settings import Config, DataConfig, ValidationConfig
from ..draws.samplers import build_held_out_sampler, build_sampler
from ..inputs.checkpoints import CheckpointError, newest_checkpoint
from ..step.build import autocast, build_model
from ..step.loading import build_loader

FIRST_UNSEEN_DRAW = 2**40  # far beyond any run: other offsets, crops and masks than it was trained on


@dataclass(frozen=True)
class Unseen:
    """step: of the checkpoint. frames: (B, T, H, W, 3) uint8. masks: of the objective's MaskSource. prediction: what the model says
    of the hidden places. names: of the clips, file and second. videos: (B,) rows of the corpus."""

    model: Objective
    step: int
    frames: torch.Tensor
    masks: Any
    prediction: torch.Tensor
    names: list[str]
    videos: NDArray[np.int64]

    @property
    def encoder(self) -> VideoEncoder:
        """What is evaluated: of a JEPA the target encoder, unless that is a frozen teacher."""
        if isinstance(self.model, JointEmbedding) and self.model.follows:
            return self.model.target_encoder
        return self.model.encoder

    def tokens(self, frames: torch.Tensor, encoder: VideoEncoder | None = None) -> torch.Tensor:
        """(B, N, D) float32 on the CPU, what an encoder, the evaluated one where None, makes of frames (B, T, H, W, 3)."""
        device = next(self.model.parameters()).device
        with torch.no_grad():
            return (encoder or self.encoder)(frames.to(device)).float().cpu()


def where_from(config: Config) -> str:
    """In words, which clips `unseen_batch` takes."""
    return (
        "of held-out videos"
        if config.validation.is_wanted
        else "of training videos, at places and in crops of their own"
    )


def title_of(run_dir: Path, step: int, corpus: str | None) -> str:
    """Of a picture of `unseen_clips`."""
    chosen = where_from(run_config(run_dir)) if corpus is None else f"of {corpus}, all its spans alike"
    return f"{run_dir.name}, step {step}\nclips {chosen}"


def unseen_batch(config: Config, clips: int) -> tuple[ClipBatch, list[str]]:
    """Clips that are `where_from(config)`, on the CPU, with their names. Raises ConfigError, CorpusError or VideoError."""
    corpus = Corpus.open(config.data.corpus)
    draws = np.arange(FIRST_UNSEEN_DRAW, FIRST_UNSEEN_DRAW + clips)
    build = build_held_out_sampler if config.validation.is_wanted else build_sampler
    with build_loader(config, corpus, build(config, corpus), iter([draws]), torch.device("cpu")) as loader:
        batch = next(loader)
    starts = zip(batch.videos.tolist(), batch.pts_seconds[:, 0].tolist(), strict=True)
    videos = ((corpus.video(row), seconds) for row, seconds in starts)
    return batch, [f"{PurePath(video.original or video.facts.path).name}, {seconds:.1f} s" for video, seconds in videos]


def predict(
    model: Objective,
    mask: MaskSource,
    seed: int,
    step: int,
    batch: ClipBatch,
    names: list[str],
    trained_as: Config | None = None,
) -> Unseen:
    """What the model, wherever it is, makes of the clips, without gradients. It is left as it was; what it gives is on the CPU.

    trained_as: of these settings is the precision; in the weights' own where None.
    """
    device = next(model.parameters()).device
    precision = nullcontext() if trained_as is None else autocast(trained_as, device)
    masks, was_training = mask(seed, batch.numbers, 0, device), model.training
    model.eval()
    with torch.no_grad(), precision:
        prediction = model(batch.frames.to(device), masks).prediction.cpu()
    model.train(was_training)
    return Unseen(model, step, batch.frames, mask(seed, batch.numbers, 0), prediction, names, batch.videos)


def unseen_clips(
    run_dir: Path,
    clips: int,
    *,
    corpus: str | None = None,
    checkpoint: Path | None = None,
    batch: tuple[ClipBatch, list[str]] | None = None,
) -> Unseen:
    """checkpoint: the newest one where None. corpus: another than the run's, of which all spans come alike. batch: clips that were
    read already. Raises ConfigError, CorpusError or CheckpointError."""
    config = run_config(run_dir, corpus)
    checkpoint = checkpoint or newest_checkpoint(run_dir)
    # Every hidden patch is shown, whether or not training had the decoder drop some.
    config = replace(config, objective=replace(config.objective, decoder_mask_ratio=0.0))
    model, mask = build_model(config)
    loaded = load_checkpoint(checkpoint)
    model.load_state_dict(loaded.model)
    made, names = batch or unseen_batch(config, clips)
    return predict(model, mask, config.run.seed, int(checkpoint.name.rpartition("_")[2]), made, names)


def run_config(run_dir: Path, corpus: str | None = None) -> Config:
    """A run's settings; with another corpus, without what belongs to its own. Raises CheckpointError."""
    if not (run_dir / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{run_dir}: not a run (it has no {CONFIG_FILE}); name a folder that `trocar pretrain` wrote"
        )
    config = load_config(run_dir / CONFIG_FILE)
    if corpus is None:
        return config
    plain = DataConfig(corpus)
    names = {item.name for item in fields(DrawSettings)} & {item.name for item in fields(DataConfig)}
    changed = {name: getattr(plain, name) for name in ("corpus", "phases", *names)}
    return replace(config, data=replace(config.data, **changed), validation=ValidationConfig())
