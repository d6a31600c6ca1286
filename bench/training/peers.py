"""Our training step against Hugging Face's models in the same process: same weights, same masks, same pictures, equal losses first.

Arms take turns over the same batches, in another order every round, each with forward, backward, fused AdamW and EMA on a copy of
the model of its own. All start from equal weights, so their losses have to stay equal from the first round to the last, gradients
and optimizer included: an arm whose loss is another's has no ratio. A round gives one ratio for each peer.

Shapes: B clips, R rounds.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from ...engine.config.settings import Config
from ...engine.pretrain import train_step
from ...engine.ranks.compiler import choose_backend
from ...engine.step.build import autocast
from ...engine.step.optim import build_optimizer, set_schedule
from ...engine.step.run import Run
from ..rows.ratios import ratio
from ..rows.row import row
from ..rows.timing import wait
from ..rows.turns import in_turns
from .clock import Clock, spread
from .peer_models import Attention, Peer, PeerError, build_peer, normalized
from .run import clip_numbers, kept, made_clips, open_run
from .training import describe

OURS = "trocar"
PEERS: dict[str, tuple[Attention, bool]] = {
    "Hugging Face, SDPA": ("sdpa", False),
    "Hugging Face, eager attention": ("eager", False),
    "Hugging Face, torch.compile": ("sdpa", True),
}
# Of a loss, relative. float32 differs by the order of its sums, bfloat16 by what is rounded: a tenth of one rounding (2^-9) here.
TOLERANCES = {"float64": 1e-7, "float32": 1e-5, "bfloat16": 2e-4}

Step = Callable[[], torch.Tensor]


class AlikeMasks:
    """The first clip's block masks for all clips of a batch: a peer without packing takes no others."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __call__(self, seed: int, draws: ArrayLike, views: ArrayLike, device: torch.device | str = "cpu") -> Any:
        numbers = np.asarray(draws)
        return self._source(seed, np.full_like(numbers, numbers[0]), views, device)

    def ahead(self, seed: int, batches: Any, device: torch.device) -> Any:
        return iter(batches)


@dataclass
class StepArm:
    """One way to train. ready: of a step's number, the step on its batch, which returns the loss; only the step is timed.

    seconds, losses: of each round. core_seconds: of all of this process's threads. reason: why it has no ratio.
    """

    name: str
    ready: Callable[[int], Step] | None = None
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    core_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def bench_peers(
    config: Config,
    *,
    rounds: int = 7,
    steps_a_round: int = 1,
    names: Sequence[str] = tuple(PEERS),
    part: str = "peers",
    keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """One row for our step and one for each peer named. part: what the rows say they belong to. keep: is handed the rows of the
    rounds so far after each of them, as a peer may take all the time there is.

    Tells the progress on stderr. Raises ConfigError.
    """
    with open_run(config) as run:
        device = run.world.device
        arms = peer_arms(run, names)
        tolerance, clips = TOLERANCES[config.run.precision], config.optim.batch * steps_a_round

        def rows(rounds: int) -> list[dict[str, Any]]:
            judge(arms, tolerance)
            facts = {"part": part, **describe(config), "rounds": rounds, "tolerance": tolerance}
            return [row("training", device, {**facts, **figures(arm, arms[0], clips)}) for arm in arms]

        measure(arms, rounds, steps_a_round, device, after=lambda done: keep(rows(done)) if done else None)
        return rows(rounds)


def peer_arms(run: Run, names: Sequence[str]) -> list[StepArm]:
    """Ours, then the peers named, all with the first peer's weights."""
    if run.config.objective.kind == "jepa":
        run = replace(run, masks=AlikeMasks(run.masks))
    arms, first = [StepArm(OURS, our_step(run))], None
    for name in names:
        attention, is_compiled = PEERS[name]
        try:
            peer = build_peer(run.objective, attention)
            if first is None:
                peer.give_weights(run.objective)  # pyright: ignore[reportArgumentType]
            else:
                peer.load_state_dict(first.state_dict())
            arms.append(StepArm(name, peer_step(run, peer, is_compiled)))
            first = first or peer
        except PeerError as error:
            arms.append(StepArm(name, reason=f"not usable: {error}"))
    return arms


def our_step(run: Run) -> Callable[[int], Step]:
    """The engine's step from uint8 frames on the device; masks are drawn within it."""

    def ready(number: int) -> Step:
        batch = kept(_frames(run, number), next(clip_numbers(run, first_step=number)))
        return lambda: train_step(run, number, iter([batch])).sums.loss

    return ready


def peer_step(run: Run, peer: Peer, is_compiled: bool) -> Callable[[int], Step]:
    """The same with Hugging Face's model, from normalised pixels and masks that are made before the clock starts."""
    config, device = run.config, run.world.device
    if is_compiled and (backend := choose_backend("auto")) != "inductor":
        raise PeerError(f"torch.compile finds no compiler here, {backend} is left")
    train = peer_training(run, peer, torch.compile(peer) if is_compiled else peer)

    def ready(number: int) -> Step:
        numbers = np.arange(number * config.optim.batch, (number + 1) * config.optim.batch)
        masks = peer.prepare(run.masks(config.run.seed, numbers, 0, device))
        pixels = normalized(_frames(run, number))
        return lambda: train(number, pixels, masks)

    return ready


def peer_training(run: Run, peer: Peer, call: Callable[..., Any]) -> Callable[[int, torch.Tensor, Any], torch.Tensor]:
    """A step of a peer's training: of its number, pixels and prepared masks, the loss. call: the peer as it is called."""
    config = run.config
    optimizer = build_optimizer(peer, config.optim)

    def train(number: int, pixels: torch.Tensor, masks: Any) -> torch.Tensor:
        set_schedule(optimizer, run.schedule, number)
        with autocast(config, run.world.device):
            loss = call(pixels, masks)
        loss.backward()
        if config.optim.clip_gradient is not None:
            nn.utils.clip_grad_norm_(peer.parameters(), config.optim.clip_gradient)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        peer.update_target(run.schedule.momentum(number))
        return loss.detach()

    return train


def _frames(run: Run, number: int) -> torch.Tensor:
    """The clips of a step, on the device."""
    return made_clips(run.config, run.config.optim.batch, number).to(run.world.device)


def measure(
    arms: Sequence[StepArm],
    rounds: int,
    steps_a_round: int,
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
    after: Callable[[int], None] = lambda rounds: None,
) -> None:
    """`rounds` rounds, after one that is not timed. An arm that breaks leaves the contest with its reason. after: called after each
    round with the number of those timed."""
    for number in range(rounds + 1):
        running = [arm for arm in arms if arm.ready is not None and not arm.reason]
        for arm in in_turns(running, number):
            assert arm.ready is not None
            try:
                numbers = range(number * steps_a_round, (number + 1) * steps_a_round)
                steps = [arm.ready(place) for place in numbers]
                wait(device)
                started, cores_started = clock(), time.process_time()
                losses = [step() for step in steps]
                wait(device)
                seconds, core_seconds = clock() - started, time.process_time() - cores_started
            except (PeerError, RuntimeError) as error:  # RuntimeError: what compilers and full memory raise
                arm.reason = f"not usable: {str(error).strip().splitlines()[0]}"
                continue
            arm.losses += [loss.item() for loss in losses]
            if number:
                arm.seconds.append(seconds)
                arm.core_seconds.append(core_seconds)
        told = ", ".join(f"{arm.name} {arm.seconds[-1]:.3f}" for arm in running if arm.seconds)
        print(f"round {number} of {rounds}, seconds: {told or 'not timed'}", file=sys.stderr, flush=True)
        after(number)


def judge(arms: Sequence[StepArm], tolerance: float) -> None:
    """Gives the reason to every arm whose losses are not the first one's, all of them, to a relative `tolerance`."""
    ours = arms[0].losses
    for arm in arms[1:]:
        if arm.reason:
            continue
        pairs = list(zip(arm.losses, ours, strict=True))
        wrong = [place for place, pair in enumerate(pairs) if not loss_difference(*pair) <= tolerance]
        if wrong:
            theirs, wanted = pairs[wrong[0]]
            arm.reason = (
                f"unequal loss: {theirs:.7g} where ours is {wanted:.7g} in step {wrong[0]} ({len(wrong)} of {len(pairs)} steps "
                f"differ by more than {tolerance:g})"
            )


def loss_difference(theirs: float, ours: float) -> float:
    """Relative; not a number where one of them is none."""
    return abs(theirs - ours) / abs(ours) if ours else math.nan


def figures(arm: StepArm, ours: StepArm, clips: int) -> dict[str, Any]:
    """Of a row. clips: of a round. Only an arm with equal losses has a ratio: times as many clips/s as it has, by us."""
    found: dict[str, Any] = {"arm": arm.name, "reason": arm.reason}
    if arm.seconds:
        found["clips_per_second"] = spread([clips / seconds for seconds in arm.seconds])
        found["seconds_by_round"] = [*arm.seconds]
        found["core_seconds_per_clip"] = spread([seconds / clips for seconds in arm.core_seconds])
    if arm is not ours and not arm.reason:
        found["ours_against_it"] = ratio(arm.seconds, ours.seconds)
        found["ours_against_it_in_core_seconds"] = ratio(arm.core_seconds, ours.core_seconds)
        found["largest_loss_difference"] = max(map(loss_difference, arm.losses, ours.losses))
    return found
