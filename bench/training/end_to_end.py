"""Videos on a disk to trained clips: our loaders and step against the usual pipeline and Hugging Face's model, in the same process.

A round is the same clips through every arm, in turns: from nothing decoded to the last optimizer step. Ours reads them from the
originals and, where there are proxies, from these; the usual pipeline reads the originals in worker processes. First every arm's
pictures are compared with ours, and the losses of equal weights with each other; an arm that does something else has no ratio.
Starts are rounded down to frames that the proxies hold, for all arms.

Shapes: B clips of a step, C clips of a round, T frames, R x R pixels.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...engine.config.settings import Config
from ...loaders.corpus.corpus import Corpus
from ...ssl.encoder import IMAGENET_STD
from ..loading.check import LARGEST_DIFFERENCE, LEAST_MOTION
from ..loading.clips import describe_videos, draw_requests, onto_proxies
from ..rows.ratios import ratio
from ..rows.row import row
from ..rows.timing import wait
from ..rows.turns import in_turns
from .clock import Clock, spread
from .end_to_end_arms import USUAL, PassageArm, our_arm, usual_arm
from .peer_input import LIBRARIES
from .peer_models import Attention
from .peers import AlikeMasks, loss_difference
from .run import open_run
from .training import describe

OURS, PACKED = "trocar, originals", "trocar, proxies"
# Of a loss, relative: pictures that two libraries have scaled differ by a level or so, and with them the losses of equal weights.
LOSS_TOLERANCE = 0.01


def bench_end_to_end(
    config: Config,
    originals: Path,
    packed: Path | None,
    *,
    rounds: int = 7,
    steps_a_round: int = 2,
    step_seconds: dict[str, float] | None = None,
    libraries: Sequence[str] = LIBRARIES,
    attention: Attention = "sdpa",
    keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """One row for each arm, the usual pipeline with the faster of `libraries`.

    packed: proxies of the same videos at the config's stride. step_seconds: of a step on resident data by "trocar" and by "peer",
    from which the share of decoding follows. attention: of Hugging Face's model. keep: is handed the rows so far: of a first round
    of ours alone, before the usual pipeline is tried, which may take all the time there is, then after each round. Tells the
    progress on stderr. Raises ConfigError, CorpusError and LoadingBenchError.
    """
    corpus, stride = Corpus.open(originals), config.data.stride or 1
    clips = config.optim.batch * steps_a_round
    requests = draw_requests(corpus, clips * rounds, config.data.frames, stride, config.run.seed)
    sources = {OURS: (corpus, requests)}
    if packed is not None:
        requests, there = onto_proxies(requests, stride, corpus, packed)
        sources = {OURS: (corpus, requests), PACKED: (Corpus.open(packed), there)}
    with open_run(config) as run:
        if config.objective.kind == "jepa":
            run = replace(run, masks=AlikeMasks(run.masks))
        arms = [our_arm(name, run, *source, steps_a_round) for name, source in sources.items()]
        device, resident = run.world.device, step_seconds or {}

        def rows(rounds: int) -> list[dict[str, Any]]:
            facts = {"part": "end to end", **describe(config), "rounds": rounds, "clips_a_round": clips}
            facts |= {"loss_tolerance": LOSS_TOLERANCE, "cores": len(os.sched_getaffinity(0)), "stride": stride}
            facts["videos"] = describe_videos(corpus, requests)
            return [
                row("training", device, {**facts, **figures(arm, arms, clips, steps_a_round, resident)}) for arm in arms
            ]

        compare(arms)
        measure(arms, 1, device, steps_a_round)
        keep(rows(1))
        for arm in arms:
            arm.seconds.clear()
            arm.waited.clear()
        usual, close = usual_arm(run, corpus, requests, steps_a_round, libraries, attention)
        arms.append(usual)
        try:
            compare(arms)
            measure(arms, rounds, device, steps_a_round, after=lambda done: keep(rows(done)))
        finally:
            close()
        return rows(rounds)


def compare(arms: Sequence[PassageArm]) -> None:
    """Gives the reason to every arm whose first pictures or loss are not the first arm's."""
    assert arms[0].first is not None
    ours, wanted = arms[0].first()
    scale = 255 * torch.tensor(IMAGENET_STD, device=ours.device).view(3, 1, 1)
    for arm in arms[1:]:
        if arm.first is None or arm.reason:
            continue
        pixels, loss = arm.first()
        difference = ((pixels - ours).abs() * scale).mean().item()
        arm.facts |= {"picture_difference": difference, "loss_difference": loss_difference(loss, wanted)}
        if arm.name == PACKED:
            # Smaller, and cut at pixels of its own: the right frames are nearer than those beside them.
            misplaced = frames_misplaced(pixels * scale, ours * scale)
            if misplaced:
                arm.reason = f"other pictures: {misplaced} frames are nearer to ours one before or behind"
        elif not difference <= LARGEST_DIFFERENCE:
            arm.reason = f"other pictures: they differ from ours by {difference:.1f} of 255"
        if not arm.reason and not arm.facts["loss_difference"] <= LOSS_TOLERANCE:
            arm.reason = f"unequal loss: {loss:.7g} where ours is {wanted:.7g} (tolerance {LOSS_TOLERANCE:g}, relative)"


def frames_misplaced(theirs: torch.Tensor, ours: torch.Tensor) -> int:
    """How many frames of (B, T, 3, R, R), in levels of 255, are nearer to a neighbour in time of ours that differs from ours."""

    def apart(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left - right).abs().mean(dim=(2, 3, 4))

    misplaced = torch.zeros(ours.shape[:2], dtype=torch.bool, device=ours.device)
    own = apart(theirs, ours)
    for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        moves = apart(ours[:, here], ours[:, there]) > LEAST_MOTION
        misplaced[:, here] |= moves & (apart(theirs[:, here], ours[:, there]) <= own[:, here])
    return int(misplaced.sum())


def measure(
    arms: Sequence[PassageArm],
    rounds: int,
    device: torch.device,
    steps: int,
    *,
    clock: Clock = time.perf_counter,
    after: Callable[[int], None] = lambda rounds: None,
) -> None:
    """`rounds` rounds; after: called with their number after each. Decoders are open and caches warm: `compare` had clips of every
    arm."""
    for number in range(rounds):
        running = [arm for arm in arms if arm.passage is not None and not arm.reason]
        for arm in in_turns(running, number):
            assert arm.passage is not None
            started = clock()
            waited = arm.passage(number * steps)
            wait(device)
            arm.seconds.append(clock() - started)
            arm.waited.append(waited)
        told = ", ".join(f"{arm.name} {arm.seconds[-1]:.2f}" for arm in running)
        print(f"end to end, round {number + 1} of {rounds}, seconds: {told}", file=sys.stderr, flush=True)
        after(number + 1)


def figures(
    arm: PassageArm, arms: Sequence[PassageArm], clips: int, steps: int, step_seconds: dict[str, float]
) -> dict[str, Any]:
    """Of a row. The share of decoding is what a round takes beyond its steps on resident data."""
    found: dict[str, Any] = {"arm": arm.name, "reason": arm.reason, **arm.facts}
    if not arm.seconds:
        return found
    found["clips_per_second"] = spread([clips / seconds for seconds in arm.seconds])
    found["seconds_by_round"] = [*arm.seconds]
    found["data_wait_percent"] = spread([100 * a / b for a, b in zip(arm.waited, arm.seconds, strict=True)])
    step = step_seconds.get("peer" if arm.name == USUAL else "trocar")
    if step is not None:
        found["decode_percent"] = spread([max(0.0, 100 * (1 - steps * step / seconds)) for seconds in arm.seconds])
    if arm.name == USUAL:
        found["ours_against_it"] = {
            ours.name: ratio(arm.seconds, ours.seconds) for ours in arms if ours.name != USUAL and ours.seconds
        }
    return found
