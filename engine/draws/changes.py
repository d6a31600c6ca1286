"""What a run that goes on does otherwise than before: which settings differ, who has to agree, and where its curve shows it.

A checkpoint holds the settings it was made with. Those that change neither the curve nor the draws are free. Those that say what is
drawn may change for draws still to come: that is judged by what they draw. All others, also keys added later, ask for
run.allow_changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...loaders.corpus.corpus import Corpus
from ...loaders.draw.sampler import Sampler
from ..config.file import CONFIG_FILE, parse_config
from ..config.settings import Config, ConfigError, plain
from ..inputs.checkpoints import checkpoint_state, newest_checkpoint, newest_step
from ..record.run_record import read_starts
from .samplers import build_order, drawn_from, draws_fingerprints, samplers_by_clip, screen_to_ignore_by
from .schedule import Schedule, build_schedule, count_steps

# fmt: off
FREE = frozenset([
    "data.corpus",  # its fingerprint is compared
    "data.decoders", "data.threads", "data.workers", "data.prefetch", "data.failure_budget", "data.clip_timeout",
    "data.allow_changed_corpus",
    # A run that goes on has weights of its own.
    "model.start", "model.init", "model.init_minimum", "model.init_kind", "model.init_positions",
    "objective.teacher_checksum",
    "optim.accumulation", "optim.skip_budget",
    "probe.every", "probe.batch", "validation.every", "validation.batch",
])
DRAWN = frozenset([
    "run.seed", "data.frames", "data.stride", "data.sample_fps", "data.sizes", "data.tree", "data.balance", "data.max_repeats",
    "data.epoch_draws", "data.source_caps", "data.thin", "data.include", "data.exclude", "data.phases", "data.where",
    "data.within_shots", "validation.videos", "validation.fraction",
])
SCHEDULE = frozenset([
    "optim.steps", "optim.epochs", "optim.base_learning_rate", "optim.final_learning_rate", "optim.start_learning_rate",
    "optim.schedule", "optim.schedule_scale", "optim.cooldown", "optim.warmup", "optim.weight_decay", "optim.final_weight_decay",
    "optim.ema",
])
# Weights of before fit nowhere then.
OTHER_WEIGHTS = frozenset([
    "objective.kind", "model.encoder", "model.width", "model.depth", "model.tubelet", "model.patch", "model.decoder_width",
    "model.decoder_depth", "model.predictor_width", "model.predictor_depth", "model.predictor_mask_tokens",
])
# fmt: on
NOT_FREE_OF_RUN = ("run.seed", "run.precision", "run.fp8")


@dataclass(frozen=True)
class Change:
    """A setting, "section.key", and its values. note: what follows from it, in words."""

    key: str
    before: Any
    now: Any
    note: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}{f' ({self.note})' if self.note else ''}"

    @property
    def is_free(self) -> bool:
        return self.key in FREE or (self.key.startswith("run.") and self.key not in NOT_FREE_OF_RUN)


def check_start(config: Config) -> None:
    """What `pretrain` would refuse for its corpus and for the run that it goes on with, without PyTorch.

    Raises ConfigError or CorpusError. Of a checkpoint that cannot be read, whoever restores it says why.
    """
    corpus, run_dir = Corpus.open(config.data.corpus), Path(config.run.dir)
    if run_dir.is_file():
        raise ConfigError(f"run.dir: {run_dir} is a file, where a folder is needed; choose another place")
    if config.objective.ignore != "nothing":
        screen_to_ignore_by(config, corpus)
    sampler_at = samplers_by_clip(config, corpus)
    step = newest_step(run_dir)
    state = checkpoint_state(newest_checkpoint(run_dir)) if step else None
    if state is not None:
        steps = count_steps(config.optim, sampler_at(0).num_spans)
        check_resumed(config, corpus, sampler_at, step, steps, state)


def check_resumed(
    config: Config, corpus: Corpus, sampler_at: Callable[[int], Sampler], step: int, steps: int, state: dict[str, Any]
) -> tuple[Config | None, list[Change]]:
    """The settings before, None where they cannot be read, and what differs now. step, state: of the checkpoint from which the run
    goes on. steps: of the whole run, now. Raises ConfigError where that is refused."""
    before = config_before(Path(config.run.dir), state)
    named = state.get("drawn_from", {})
    check_same_corpus(config, corpus, state["corpus"], named.get("the corpus"), before)
    check_same_draws(config, before, corpus, step, state.get("draws"), named)
    steps_before = state.get("steps") or (count_steps(before.optim, sampler_at(0).num_spans) if before else steps)
    return before, check_changes(config, before, step, steps, steps_before)


def differences(before: Config, now: Config) -> list[Change]:
    """All settings that differ, in the order of the config."""
    old, new = (
        {f"{section}.{key}": value for section, keys in plain(config).items() for key, value in keys.items()}
        for config in (before, now)
    )
    return [Change(key, old[key], value) for key, value in new.items() if old[key] != value]


def config_before(run_dir: Path, state: dict[str, Any]) -> Config | None:
    """The settings that a checkpoint was made with: its state's; of one from before states had them, the run's. None where they
    cannot be read."""
    text, named = state.get("config"), "the checkpoint"
    if text is None:
        path = run_dir / CONFIG_FILE
        if not path.exists():
            return None
        text, named = path.read_text(encoding="utf-8"), str(path)
    try:
        return parse_config(text, named)
    except ConfigError:  # of a version with other keys
        return None


def check_same_corpus(
    config: Config, corpus: Corpus, fingerprint: str, held: str | None = None, before: Config | None = None
) -> None:
    """held: what it was then, as `drawn_from` says it. before: the settings then."""
    if fingerprint != corpus.fingerprint and not config.data.allow_changed_corpus:
        holds = drawn_from(config, corpus)["the corpus"]
        counts = f" ({held} then, {holds} now)" if held and held != holds else ""
        now, then = config.data.corpus, config.data.corpus if before is None else before.data.corpus
        said, mend = f"{now} has changed since the run in {config.run.dir} began", "restore the corpus"
        if now != then:
            said, mend = f"the run in {config.run.dir} began on {then}, and {now} is another corpus", "set it back"
        raise ConfigError(
            f"data.corpus: {said}{counts}, so its draws would be others; {mend}, set run.dir elsewhere, or accept it with "
            "data.allow_changed_corpus=true"
        )


def check_same_draws(
    config: Config,
    before: Config | None,
    corpus: Corpus,
    step: int,
    fingerprints: list[str] | None,
    named: dict[str, str] | None = None,
) -> None:
    """Raises ConfigError where the clips of steps 1 .. step are drawn otherwise now than `fingerprints`, a checkpoint's, say.
    named: of the same, what `drawn_from` gave."""
    counted = _counted_as(config, before)
    order, clips = build_order(counted), step * counted.optim.batch
    if (
        config.data.allow_changed_corpus
        or config.run.allow_changes
        or fingerprints == draws_fingerprints(counted, samplers_by_clip(counted, corpus), order, clips)
    ):
        return
    changes = [] if before is None else [change for change in differences(before, config) if change.key in DRAWN]
    if changes:
        cause = "; ".join(map(str, changes))
    elif before is None:
        cause = f"what is drawn is not as it was, and {config.run.dir}/{CONFIG_FILE} does not tell why"
    elif other := [name for name, now in drawn_from(config, corpus).items() if named and named.get(name) != now]:
        cause = f"no setting differs, but {', '.join(other)} is not as it was"
    else:
        cause = "no setting differs, so what they name does: the tree, a list of videos (@FILE), the corpus's screen or its sources"
    others = [] if before is None else [change for change in differences(before, config) if change.key not in DRAWN]
    if asked := [change for change in others if not change.is_free]:
        cause += f". These differ as well: {'; '.join(map(str, asked))}"
    raise ConfigError(
        f"data: the first {step:,} steps of the run in {config.run.dir} would draw other clips now: {cause}. Set it back, "
        "change it from a later draw on (data.phases with a first_draw at the end of an epoch, draw "
        f"{order.draws_before(clips):,} or later), set run.dir elsewhere, or accept it with run.allow_changes=true"
    )


def check_same_targets(config: Config, before: str | None, now: str | None) -> None:
    """before, now: fingerprints of what `objective.ignore` ignores. Raises ConfigError where both are there and differ."""
    accepted = config.data.allow_changed_corpus or config.run.allow_changes
    if before is not None and now is not None and before != now and not accepted:
        raise ConfigError(
            f"objective.ignore: {config.data.corpus} was screened anew since the run in {config.run.dir} began, and other tokens "
            "would be ignored; restore its screen, set run.dir elsewhere, or accept it with run.allow_changes=true"
        )


def check_changes(config: Config, before: Config | None, step: int, steps: int, steps_before: int) -> list[Change]:
    """What differs for a run that goes on after `step`. steps, steps_before: of the whole run, now and as it was.

    Raises ConfigError where that changes what is trained and run.allow_changes does not accept it.
    """
    if before is None:
        return []
    changes = [_with_note(change, config, before, step) for change in differences(before, config)]
    if steps != steps_before and not any(change.key == "optim.steps" for change in changes):
        changes.append(Change("optim.steps", steps_before, steps, "from optim.epochs and the spans of the corpus"))
    is_same = _is_same_schedule(config, before, step, steps, steps_before)
    asked = [
        change
        for change in changes
        if not change.is_free and change.key not in DRAWN and not (change.key in SCHEDULE and is_same)
    ]
    fits_not = any(change.key in OTHER_WEIGHTS for change in asked)
    if fits_not or (asked and not config.run.allow_changes):
        listed = "\n".join(f"  {change}" for change in asked)
        mend = "Set that back, or set run.dir elsewhere to start anew: its weights are of another model"
        if not fits_not:
            mend = "Set that back, set run.dir elsewhere to start anew, or accept it with run.allow_changes=true"
        raise ConfigError(
            f"run.dir: the run in {config.run.dir} would go on after step {step:,} as another one:\n{listed}\n{mend}"
        )
    return changes


def tell_changes(before: Config | None, changes: list[Change], step: int) -> None:
    """Says on stderr what differs; nothing where nothing of it shows in the curve."""
    if before is None:
        print(f"resumed after step {step:,}; the settings before cannot be read, nor what has changed", file=sys.stderr)
    if shown := [f"  {change}" for change in changes if not change.is_free]:
        print("\n".join([f"resumed after step {step:,} with other settings:", *shown]), file=sys.stderr)


def marks(run_dir: Path) -> list[tuple[int, list[Change]]]:
    """(step behind which the run was changed, what of it shows in the curve), of the starts that the curve is made of."""
    found: list[tuple[int, list[Change]]] = []
    for start in read_starts(run_dir):
        first = start["first_step"]
        found = [(step, changes) for step, changes in found if step < first]  # later rows were cut off
        changes = [Change(key, *values) for key, values in start.get("changes", {}).items()]
        if shown := [change for change in changes if not change.is_free]:
            found.append((first, shown))
    return found


def _counted_as(config: Config, before: Config | None) -> Config:
    """The config with what numbers clips as it was for those that were drawn."""
    if before is None:
        return config
    views = {name: getattr(before.data, name) for name in ("views_per_span", "pool_spans", "lanes")}
    optim = replace(config.optim, batch=before.optim.batch, accumulation=1)
    return replace(config, data=replace(config.data, **views), optim=optim)


def _with_note(change: Change, config: Config, before: Config, step: int) -> Change:
    old, new = (step * each.optim.batch for each in (before, config))
    if change.key != "optim.batch" or old == new:
        return change
    told = f"clips {new:,} .. {old - 1:,} come again" if new < old else f"clips {old:,} .. {new - 1:,} are left out"
    return replace(change, note=told)


def _is_same_schedule(config: Config, before: Config, step: int, steps: int, steps_before: int) -> bool:
    """Whether the steps that both runs have still to come, and the last one done, have the same rates."""
    old, new = build_schedule(before.optim, steps_before), build_schedule(config.optim, steps)
    moves = config.objective.kind == "jepa"
    common = range(max(step - 1, 0), max(min(steps, steps_before), step))
    return all(
        left == right for left, right in zip(_rates(old, common, moves), _rates(new, common, moves), strict=True)
    )


def _rates(schedule: Schedule, steps: range, moves: bool) -> Iterator[tuple[float, ...]]:
    for step in steps:
        yield schedule(step), schedule.weight_decay(step), schedule.momentum(step) if moves else 0.0
