"""One pretraining run, top to bottom: the file to read first.

    corpus -> sampler -> loader -> masks -> model -> optimizer -> metrics, checkpoints

Nothing here is drawn from a running generator: step s of a batch of B clips takes clips s * B .. s * B + B - 1, and a clip's
number keys its draw, its crop and its mask. So resuming needs the step alone, and a run killed anywhere ends bit-identical to one
that was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..loaders.batch import ClipBatch, LoaderCount
from ..loaders.corpus import Corpus
from ..ssl.objective import MaskSource, Objective
from .build import autocast, build_model, build_sampler, check_same_corpus, choose_device, describe
from .checkpoint import checkpoints, load_checkpoint, remove_unfinished, restore, save_checkpoint
from .config import Config
from .config_file import CONFIG_FILE
from .loading import build_loader
from .metrics import MetricsLog, QuarantineLog
from .optim import Schedule, build_optimizer, build_schedule
from .progress import StepProgress


@dataclass(frozen=True)
class PretrainResult:
    """run_dir, checkpoint: where things are. steps: optimizer steps in all. resumed_from: step, 0 where it started anew."""

    run_dir: Path
    checkpoint: Path
    steps: int
    resumed_from: int


def pretrain(config: Config, *, progress: bool = True) -> PretrainResult:
    """Runs, or resumes, the pretraining that `config` describes.

    Raises ConfigError, CorpusError, CheckpointError, or VideoError where more draws fail than data.failure_budget allows.
    """
    run_dir = Path(config.run.dir)
    device = choose_device(config)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.manual_seed(config.run.seed)
    model, masks = build_model(config)
    corpus = Corpus.open(config.data.corpus)
    sampler = build_sampler(config, corpus)
    steps = config.optim.steps or max(1, round((config.optim.epochs or 0) * sampler.num_spans / config.optim.batch))
    schedule = build_schedule(config.optim, steps)
    model.to(device)
    optimizer = build_optimizer(model, config.optim)

    run_dir.mkdir(parents=True, exist_ok=True)
    remove_unfinished(run_dir)
    first_step = 0
    if saved := checkpoints(run_dir):
        checkpoint = load_checkpoint(saved[-1])
        check_same_corpus(config, corpus, checkpoint.state["corpus"])
        restore(checkpoint, model, optimizer)
        first_step = checkpoint.state["step"]
    (run_dir / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")

    micro_batch = config.optim.batch // config.optim.accumulation
    micro_steps = range(first_step * config.optim.accumulation, steps * config.optim.accumulation)
    numbers = (np.arange(number * micro_batch, (number + 1) * micro_batch) for number in micro_steps)
    numbers = masks.ahead(config.run.seed, numbers, device)
    checkpoint_path = saved[-1] if saved else run_dir
    if progress:
        print(describe(config, model, corpus, sampler, steps, first_step, device), file=sys.stderr)
    pending: list[dict[str, Any]] = []
    with (
        build_loader(config, corpus, sampler, numbers, device, report=progress) as loader,
        MetricsLog(run_dir, first_step, config.run.tensorboard) as log,
        QuarantineLog(run_dir, loader.total.failures) as quarantine,
        StepProgress(first_step, steps, enabled=progress) as bar,
    ):
        for step in range(first_step, steps):
            pending.append(train_step(config, step, schedule, model, masks, optimizer, loader))
            quarantine.update()
            done = step + 1
            saving = done % config.run.checkpoint_every == 0 or done == steps
            if saving or done % config.run.log_every == 0:
                rows = read_back(pending)
                pending.clear()
                for row in rows:
                    log.write(row)
                bar.update(done, rows[-1])
            if saving:
                log.flush()
                state = {"step": done, "corpus": corpus.fingerprint}
                checkpoint_path = save_checkpoint(run_dir, model, optimizer, state, config.run.keep_checkpoints)
    return PretrainResult(run_dir, checkpoint_path, steps, first_step)


def train_step(
    config: Config,
    step: int,
    schedule: Schedule,
    model: Objective,
    masks: MaskSource,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[ClipBatch],
) -> dict[str, Any]:
    """One optimizer step. Returns its row of metrics, with loss and gradient norm still on the device."""
    started = time.perf_counter()
    waited, count = 0.0, LoaderCount()
    loss = torch.zeros((), device=next(model.parameters()).device)
    for _ in range(config.optim.accumulation):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        count.add(batch.count)
        with autocast(config, loss.device):
            batch_masks = masks(config.run.seed, batch.numbers, 0, loss.device)
            scaled_loss = model(batch.frames, batch_masks, 1 / config.optim.accumulation).loss
        scaled_loss.backward()
        loss += scaled_loss.detach()

    learning_rate = schedule(step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_gradient or float("inf"))
    optimizer.step()
    model.update_target(schedule.momentum(step))
    optimizer.zero_grad(set_to_none=True)
    return {
        "step": step + 1,
        "loss": loss,
        "learning_rate": learning_rate,
        "gradient_norm": gradient_norm,
        **model.signals(),
        "first_clip": step * config.optim.batch,
        "amplification": count.amplification,
        "bytes_per_clip": count.bytes_read / count.clips,
        "repeated_frames_percent": 100 * count.repeated_frames / (count.clips * config.data.frames),
        "replaced_clips": len({failure.draw for failure in count.failures}),
        "started": started,
        "waited": waited,
        "clips": count.clips,
        "spans": count.spans,
    }


def read_back(pending: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fetches what is still on the device, all at once, and turns times into rates.

    Each step is timed from its start to the start of the next; the last one to now, when the device has finished it.
    """
    names = [name for name, value in pending[0].items() if isinstance(value, torch.Tensor)]
    values = torch.stack([torch.stack([row[name].float() for name in names]) for row in pending]).tolist()
    ends = [row["started"] for row in pending[1:]] + [time.perf_counter()]
    rows = []
    for row, fetched, end in zip(pending, values, ends, strict=True):
        seconds = end - row.pop("started")
        row.update(zip(names, fetched, strict=True))
        row["clips_per_second"] = row.pop("clips") / seconds
        row["spans_per_second"] = row.pop("spans") / seconds
        row["data_wait_percent"] = 100 * row.pop("waited") / seconds
        rows.append(row)
    return rows
