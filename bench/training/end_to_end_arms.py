"""The arms of the end to end: how clips come off the disk and into a training step, our way and the usual way.

Shapes: B clips of a step, T frames, R x R pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ...engine.config.settings import Config
from ...engine.pretrain import train_step
from ...engine.step.build import autocast
from ...engine.step.run import Run
from ...loaders.choose import DaliOptions, choose_loader
from ...loaders.corpus.corpus import Corpus
from ...loaders.draw.augment import Box, CropRecipe
from ...loaders.draw.sampler import Clip
from ..loading.arms import Request
from ..loading.ours import ListedClips
from .clock import Fed, Waited
from .peer_input import UnusableError, UsualPipeline, WantedClip
from .peer_models import Attention, PeerError, build_peer, normalized
from .peers import peer_training

USUAL = "usual pipeline, Hugging Face"
TRIAL_CLIPS = 1  # a worker: what a library is tried on


@dataclass
class PassageArm:
    """passage: trains on the clips of a round from its first step on; returns the seconds in which a step waited for data.
    first: pictures of the first batch, (B, T, 3, R, R) normalised, and the loss on them of weights that are not trained.

    seconds, waited: of each round. reason: why it has no ratio.
    """

    name: str
    passage: Callable[[int], float] | None = None
    first: Callable[[], tuple[torch.Tensor, float]] | None = None
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)


class AnyDraw(ListedClips):
    """Draw n is request n, counted round and round: what measures loaders asks for draws of its own."""

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]:
        numbers = np.asarray(draws)
        found = super().clips(numbers % len(self._requests), view=view, spare=spare)
        return [replace(clip, draw=int(number)) for clip, number in zip(found, numbers, strict=True)]


def our_arm(name: str, run: Run, corpus: Corpus, requests: Sequence[Request], steps: int) -> PassageArm:
    """Our loader into our step."""
    config, device = run.config, run.world.device
    data, batch = config.data, config.optim.batch
    crops = _crops(config)
    options: DaliOptions = {
        "content_box": data.content_box,
        "square_pixels": data.square_pixels,
        "threads": data.threads,
        "prefetch": data.prefetch,
        "background": device.type == "cpu",
        "failure_budget": 0.0,
        "failure_floor": 0,
        "decoders": None if data.decoders == "auto" else data.decoders,
    }
    source = AnyDraw(corpus, requests)
    choice = choose_loader(
        data.loader, corpus, source, crops, resolution=data.resolution, device=device, options=options
    )

    def passage(first_step: int) -> float:
        draws = (np.arange(step * batch, (step + 1) * batch) for step in range(first_step, first_step + steps))
        with choice.open(run.masks.ahead(config.run.seed, draws, device)) as loader:
            fed = Fed(iter(loader))
            for step in range(first_step, first_step + steps):
                train_step(run, step, fed)
        return fed.waited

    def first() -> tuple[torch.Tensor, float]:
        numbers = np.arange(batch)
        with choice.open(iter([numbers])) as loader:
            frames = next(iter(loader)).frames
        masks = run.masks(config.run.seed, numbers, 0, device)
        with torch.no_grad(), autocast(config, device):
            loss = run.objective(frames, masks).loss
        return normalized(frames), loss.item()

    return PassageArm(name, passage, first, facts={"input": f"{choice.name} loader"})


def usual_arm(
    run: Run, corpus: Corpus, requests: Sequence[Request], steps: int, libraries: Sequence[str], attention: Attention
) -> tuple[PassageArm, Callable[[], None]]:
    """The usual pipeline into Hugging Face's model with our weights, and what ends its processes."""
    config, device = run.config, run.world.device
    batch = config.optim.batch
    try:
        peer = build_peer(run.objective, attention)
        peer.give_weights(run.objective)  # pyright: ignore[reportArgumentType]
        pipeline, tried = fastest_pipeline(_wanted(config, corpus, requests), config, libraries)
    except (PeerError, UnusableError) as error:
        return PassageArm(USUAL, reason=f"not usable: {error}"), lambda: None
    train = peer_training(run, peer, peer)

    def passage(first_step: int) -> float:
        fed = Waited(pipeline.passage(range(first_step * batch, (first_step + steps) * batch)))
        for step, pixels in zip(range(first_step, first_step + steps), fed, strict=True):
            train(step, pixels.to(device, non_blocking=True), masks(step))
        return fed.waited

    def masks(step: int) -> Any:
        numbers = np.arange(step * batch, (step + 1) * batch)
        return peer.prepare(run.masks(config.run.seed, numbers, 0, device))

    def first() -> tuple[torch.Tensor, float]:
        pixels = next(iter(list(pipeline.passage(range(batch))))).to(device)
        with torch.no_grad(), autocast(config, device):
            return pixels, peer(pixels, masks(0)).item()

    facts = {
        "input": f"{pipeline.library} in {pipeline.workers} DataLoader workers, {attention} attention",
        "tried_seconds": tried,
    }
    return PassageArm(USUAL, passage, first, facts=facts), pipeline.close


def fastest_pipeline(
    clips: Sequence[WantedClip], config: Config, libraries: Sequence[str]
) -> tuple[UsualPipeline, dict[str, float | str]]:
    """The usual pipeline with the library that takes least for the first clips, and what each took, or why it cannot run.

    Raises UnusableError where none can.
    """
    workers = config.data.threads or len(os.sched_getaffinity(0))
    pipelines: dict[str, UsualPipeline] = {}
    tried: dict[str, float | str] = {}
    seconds: dict[str, float] = {}
    sizes = {"batch": config.optim.batch, "resolution": config.data.resolution, "workers": workers}
    for library in libraries:
        try:
            pipelines[library] = pipeline = UsualPipeline(clips, library=library, **sizes)
        except UnusableError as error:
            tried[library] = str(error)
            continue
        started = time.perf_counter()
        list(pipeline.passage(range(min(TRIAL_CLIPS * workers, len(clips)))))
        tried[library] = seconds[library] = time.perf_counter() - started
    if not seconds:
        raise UnusableError("; ".join(map(str, tried.values())) or "no library was named")
    best = min(seconds, key=lambda library: seconds[library])
    for library, pipeline in pipelines.items():
        if library != best:
            pipeline.close()
    return pipelines[best], tried


def _wanted(config: Config, corpus: Corpus, requests: Sequence[Request]) -> list[WantedClip]:
    """What our loader makes of each request, told to others: crops are keyed by the request's number."""
    crops, wanted = _crops(config), []
    for number, request in enumerate(requests):
        video = corpus.video(request.row).facts
        content = Box(video.box_left, video.box_top, video.box_width, video.box_height)
        if not config.data.content_box:
            content = Box(0, 0, *video.upright_size)
        crop = crops.crop(content, seed=ListedClips.seed, draw=number)
        box = (crop.box.left, crop.box.top, crop.box.width, crop.box.height)
        wanted.append(WantedClip(request.path, request.frames, box, crop.flip))
    return wanted


def _crops(config: Config) -> CropRecipe:
    return CropRecipe(config.data.crop_scale, config.data.crop_ratio, config.data.flip)
