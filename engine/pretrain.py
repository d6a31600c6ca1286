"""One pretraining run, top to bottom: the file to read first.

    corpus -> sampler -> loader -> masks -> model -> optimizer -> metrics, checkpoints

Nothing here is drawn from a running generator: step s of a batch of B clips takes clips s * B .. s * B + B - 1, and a clip's
number keys its draw, its crop and its mask. So resuming needs the step alone, and a run killed anywhere ends bit-identical to one
that was not. Several ranks share the clips of every step; the loss is the mean over clips, whoever reads them.

Nothing here waits for the device while a step is under way: what the host has to know comes back later (`readback`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.fsdp import FSDPModule

from ..loaders.corpus.corpus import Corpus
from ..loaders.corpus.whole_file import write_text_whole
from ..loaders.decode.batch import ClipBatch, LoaderCount
from ..loaders.draw.order import ClipOrder
from ..loaders.draw.sampler import Sampler
from .checkpoint.checkpoint import remove_unfinished, restore, run_tensors
from .checkpoint.saver import CheckpointSaver
from .config.file import CONFIG_FILE
from .config.settings import Config, RunConfig
from .draws.changes import check_resumed, check_same_targets, tell_changes
from .draws.samplers import build_order, drawn_from, draws_fingerprints, samplers_by_clip, selection_notes
from .draws.schedule import count_steps
from .inputs.checkpoints import checkpoint_path, newest_step
from .ranks.distributed import World, check_shares, open_world
from .ranks.housekeeping import collect_garbage_seldom, snapshot_when_out_of_memory
from .ranks.stop import StoppedBetweenPartsError, StopRequest, StopVote
from .ranks.watch import RankWatch
from .record.metrics import MetricsLog, QuarantineLog, read_metrics
from .record.profiler import name_decoding, stage
from .record.progress import StepProgress
from .record.readback import ReadBack, StepReport
from .record.run_lock import run_locked
from .record.run_record import record_start
from .record.skips import SkipLog
from .step.attention import attention_restored, keep_attention
from .step.build import describe
from .step.device import choose_device
from .step.ignored import IgnoredTargets, without
from .step.loading import build_loader, diversity
from .step.micro_batch import PEAK_STEPS, device_memory, fit_batch, measured_peak
from .step.online_probe import OnlineProbe
from .step.run import Run, build_run, claim_cores, give_first_weights
from .step.signals import CollapseWatch
from .step.validation import Validation
from .view.live import LivePictures


@dataclass(frozen=True)
class PretrainResult:
    """run_dir, checkpoint: where things are. steps: optimizer steps in all. resumed_from: step, 0 where it started anew.

    is_stopped: it was asked to stop and saved before it was done; the same command goes on. is_interrupted: by Ctrl-C.
    """

    run_dir: Path
    checkpoint: Path
    steps: int
    resumed_from: int
    is_stopped: bool = False
    is_interrupted: bool = False

    def where_it_stands(self) -> str:
        """Of a run that was stopped."""
        saved = f"checkpoint: {self.checkpoint}" if newest_step(self.run_dir) else "not a step was done"
        return f"{saved}; the same command goes on from there"


def pretrain(
    config: Config,
    *,
    progress: bool = True,
    on_step: Callable[[int], None] = lambda steps_done: None,
    listen: bool = True,
) -> PretrainResult:
    """Runs, or resumes, the pretraining that `config` describes, on all ranks that were started.

    on_step: called with the number of steps done, before the first one and after each. listen: the first Ctrl-C, SIGTERM and
    SIGUSR1 save and end it in order; else they end it as they end any Python.
    Raises ConfigError, CorpusError, CheckpointError, VideoError where more draws fail than data.failure_budget allows, SkipError
    where more steps are left out than optim.skip_budget allows, RankError where another rank is gone.
    """
    settings = config.run
    with (
        open_world(choose_device(config.run.device, "run.device"), settings.rank_timeout) as world,
        RankWatch(world, settings.heartbeat_timeout, settings.rank_timeout) as watch,
        StopRequest(listen) as stop,
        snapshot_when_out_of_memory(Path(settings.dir), world),
        attention_restored(),
    ):
        claim_cores(config, world)
        config = fit_batch(config, world)
        corpus = Corpus.open(config.data.corpus)
        steps = count_steps(config.optim, samplers_by_clip(config, corpus)(0).num_spans)
        vote = StopVote(stop, world.size, config.optim.parts)
        with run_locked(Path(settings.dir), world):
            run = build_run(config, world, watch, vote, steps, begin=give_first_weights)
            return train(run, corpus, steps, progress and world.is_first, on_step)


def train(
    run: Run, corpus: Corpus, steps: int, progress: bool, on_step: Callable[[int], None] = lambda steps_done: None
) -> PretrainResult:
    """From the newest checkpoint, or from nothing, to step `steps`, or to where the run is asked to stop."""
    config, world, run_dir = run.config, run.world, Path(run.config.run.dir)
    settings, optim = config.run, config.optim
    sampler_at, order = samplers_by_clip(config, corpus), build_order(config)
    sampler = sampler_at(0)
    ignored = IgnoredTargets.of(config, corpus, run.objective.encoder.patch, settings.seed)
    run = replace(run, ignored=ignored)
    made_of = {"corpus": corpus.fingerprint, "config": config.to_yaml(), "steps": steps}
    made_of |= {"drawn_from": drawn_from(config, corpus)} | ({"ignored": ignored.fingerprint} if ignored else {})
    check_shares(world, order, optim)
    run_dir.mkdir(parents=True, exist_ok=True)
    if world.is_first:
        remove_unfinished(run_dir)
    first_step, state = resume(run, corpus, sampler_at, steps)
    numbers = clips_ahead(run, order, first_step, steps)
    if progress:
        notes = [*selection_notes(config, corpus), *([ignored.note] if ignored else [])]
        said = describe(config, run.objective, corpus, sampler, steps, first_step, world.device)
        print(*notes, said, sep="\n", file=sys.stderr)
    done, is_stopping, read_back = first_step, False, ReadBack(world.device, run.device_time)
    with (
        build_loader(config, corpus, sampler, numbers, world.device, report=progress, world=world) as loader,
        open_log(settings, first_step, world) as log,
        QuarantineLog(run_dir, loader.total.failures, world.rank, tell=progress) as quarantine,
        SkipLog(run_dir, corpus, sampler_at, order, optim.skip_budget, world.is_first, first_step, state) as skips,
        CheckpointSaver(
            run_dir, world, settings.keep_checkpoints, settings.keep_every, log.flush, settings.save_timeout
        ) as saver,
        OnlineProbe(config, world.device, first_step, world.is_first) as probe,
        Validation(config, corpus, run.objective, world, steps) as validation,
        StepProgress(first_step, steps, progress, device_memory(world)) as bar,
        collect_garbage_seldom() as collect_garbage,
        run.energy.watching(world.device),
    ):
        name_decoding(loader)
        collapse = CollapseWatch(read_metrics(run_dir), write=world.is_first)
        live = LivePictures(config, run.objective, world, log.picture)
        takers = (collapse.complete, log.write, bar.update)
        on_step(done)
        saved, saved_at, limit = done, time.monotonic(), settings.checkpoint_minutes
        while done < steps and not is_stopping:
            is_due = world.is_first and limit is not None and time.monotonic() - saved_at >= 60 * limit
            try:
                with stage("step"):
                    report = train_step(run, done, loader, is_due)
            except StoppedBetweenPartsError:  # all ranks alike
                saving = is_stopping = True
            else:
                done += 1
                on_step(done)
                if progress and done == first_step + PEAK_STEPS:
                    print(measured_peak(world), file=sys.stderr)
                collapse.observe(run.objective, done)  # what the step's own clips left behind, before others pass
                if validation.is_due(done):
                    run.watch.reach(f"the validation after step {done}")
                    report.signals = {**report.signals, **validation.losses()}
                report.row |= diversity(config, order, done)
                read_back.push(report)
                probe.update(done, run.objective.encoder)
                live.update(done)
                quarantine.update()
                saver.update()
                collect_garbage(done)
                saving = done % settings.checkpoint_every == 0 or done == steps
                is_due, is_stopping = read_back.hand_on(saving, takers, skips.update)
                saving = saving or is_due
            if (saving or is_stopping) and done > saved:
                read_back.hand_on(True, takers, skips.update)
                run.watch.reach(f"saving step {done}")
                with stage("save"):
                    draws = draws_fingerprints(config, sampler_at, order, done * optim.batch)
                    state = {"step": done, "draws": draws, **made_of, **skips.state()}
                    saver.save(run_tensors(run.objective, run.optimizer, run.guard), state)
                saved, saved_at = done, time.monotonic()
        saver.wait()
    newest, is_interrupted = checkpoint_path(run_dir, done), run.stop.is_interrupted
    return PretrainResult(run_dir, newest, steps, first_step, done < steps, is_interrupted)


def resume(run: Run, corpus: Corpus, sampler_at: Callable[[int], Sampler], steps: int) -> tuple[int, dict[str, Any]]:
    """Goes on from the newest checkpoint, where there is one, and writes down what begins. Returns (its step, its state).

    Raises ConfigError where the run would draw other clips, or be another one, than until then.
    """
    config, world, run_dir = run.config, run.world, Path(run.config.run.dir)
    first_step, state, changes = world.from_first(newest_step(run_dir)), {}, []
    if first_step:
        state = restore(checkpoint_path(run_dir, first_step), run.objective, run.optimizer, run.guard, world)
        before, changes = check_resumed(config, corpus, sampler_at, first_step, steps, state)
        check_same_targets(config, state.get("ignored"), run.ignored and run.ignored.fingerprint)
        if world.is_first:
            tell_changes(before, changes, first_step)
    if world.is_first:
        write_text_whole(run_dir / CONFIG_FILE, config.to_yaml())
    keep_attention(config, world, run.attention)
    record_start(config, world, first_step, {change.key: (change.before, change.now) for change in changes})
    return first_step, state


def clips_ahead(run: Run, order: ClipOrder, first_step: int, steps: int) -> Iterator[NDArray[np.int64]]:
    """The numbers of this rank's clips, an array a part of a step; masks of those that come next are on their way to the device."""
    config, world = run.config, run.world
    micro_batch, parts = config.optim.clips_at_once, config.optim.parts
    micro_steps = range(first_step * parts, steps * parts)
    batches = (np.arange(number * micro_batch, (number + 1) * micro_batch) for number in micro_steps)
    shares = (order.share(batch, world.rank, world.size) for batch in batches)
    return run.masks.ahead(config.run.seed, shares, world.device)


def open_log(settings: RunConfig, first_step: int, world: World) -> MetricsLog:
    names = {"wandb": settings.wandb, "mlflow": settings.mlflow}
    more = {"every": settings.log_every, "write": world.is_first, **names}
    return MetricsLog(Path(settings.dir), first_step, settings.tensorboard, **more)


def train_step(run: Run, step: int, loader: Iterator[ClipBatch], is_due: bool = False) -> StepReport:
    """One optimizer step. Returns its report, with all that the device computes still there.

    is_due: whether this rank wants a checkpoint after it. Raises StoppedBetweenPartsError, with weights as they were.
    """
    config, world, body = run.config, run.world, run.body
    started, waited, count = time.perf_counter(), 0.0, LoaderCount()
    batch_clips, accumulation = config.optim.batch, config.optim.parts
    alone, since, frames = 0.0, started, config.data.frames
    is_sharded = isinstance(run.model, FSDPModule)
    body.begin(run.schedule, step)
    for part in range(accumulation):
        run.watch.reach(f"waiting for clips of step {step + 1}")
        run.vote.check()
        asked = time.perf_counter()
        with stage("wait"):
            batch = next(loader)
        waited += time.perf_counter() - asked
        count.add(batch.count)
        run.device_time.begin(batch.frames)
        frames = batch.frames.shape[1]
        run.watch.reach(f"the forward pass of step {step + 1}")
        with stage("masks"):
            masks = run.masks(config.run.seed, batch.numbers, 0, world.device)
            if run.ignored is not None:
                masks = without(masks, run.ignored.tokens(batch), world.device)
        places = torch.from_numpy(batch.numbers - step * batch_clips).to(world.device, non_blocking=True)
        if is_sharded:  # ranks gather weights in the forward pass already, where all wait for the slowest
            alone += time.perf_counter() - since

        def before_backward(clips: torch.Tensor = batch.frames) -> None:
            nonlocal alone
            if not is_sharded:
                alone = time.perf_counter() - started
            run.watch.reach(f"the exchange of gradients of step {step + 1}")
            run.device_time.begin(clips)

        body.part(batch.frames, masks, places, part == accumulation - 1, before_backward)
        if part < accumulation - 1:
            run.device_time.end()
        else:
            run.device_time.begin(batch.frames)
        since = time.perf_counter()
    body.sums.tell(world.rank, count, run.stop.is_asked, waited, alone, is_due, run.energy.taken())
    world.sum(body.sums.values)
    gradient_norm, skip = body.update()
    row = {"step": step + 1, "learning_rate": run.schedule(step), "first_clip": step * batch_clips}
    signals, work = run.objective.signals(), run.device_time.finish()
    return StepReport(row, frames, started, body.sums.copy(), gradient_norm, skip, signals, work, waited)
