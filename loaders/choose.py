"""Which videos a GPU decodes faster than the CPU beside it: measured at the start of a run, on the run's own clips.

A decoder on the GPU is not always the faster one: a session costs the same for a small picture as for a large one, and there are
few engines beside many cores. So some draws of every kind of video (codec, pixel format, size) are read both ways, and the clips
of both are compared.

Shapes: B clips of a batch.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .loader import BaseClipLoader
from .span import ClipSource, VideoSource
from .video import VideoError, VideoFacts

DRAWS_LOOKED_AT = 2048
CLIPS_PER_KIND = 16
MEASURED_KINDS = 8
# Two decoders of the same pictures differ by rounding in the conversion to RGB and in the resize; frames beside each other by more.
LARGEST_DIFFERENCE = 4.0

MakeLoader = Callable[[Iterable[NDArray[np.int64]]], BaseClipLoader[Any]]


@dataclass(frozen=True)
class Kind:
    """What decides where a video can be decoded, and how fast."""

    codec: str
    pix_fmt: str
    width: int
    height: int

    @classmethod
    def of(cls, video: VideoFacts) -> Kind:
        return cls(video.codec, video.pix_fmt, video.width, video.height)

    def __str__(self) -> str:
        return f"{self.codec} {self.pix_fmt} {self.width}x{self.height}"


@dataclass(frozen=True)
class Choice:
    """What becomes of a kind. share: of the draws looked at, 0 .. 1. reason: what was measured, or why it was not."""

    kind: Kind
    share: float
    uses_dali: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.share:.0%} of the clips: {'DALI' if self.uses_dali else 'CPU'}, {self.reason}"


def choose_decoders(
    videos: VideoSource, sampler: ClipSource, make_cpu: MakeLoader, make_dali: MakeLoader, *, repeats: int = 4
) -> list[Choice]:
    """Decides for every kind among the first draws, frequent ones first.

    make_cpu, make_dali: loaders of given batches of draws, with as many threads and decoders as the run will have. repeats:
    batches that are timed. Kinds of which there are few draws stay on the CPU, unmeasured.
    """
    draws = np.arange(min(DRAWS_LOOKED_AT, max(64, 8 * sampler.num_videos)))
    groups: dict[Kind, list[int]] = defaultdict(list)
    for clip in sampler.clips(draws):
        groups[Kind.of(videos.video(clip.video).facts)].append(clip.draw)
    choices = []
    for kind, found in sorted(groups.items(), key=lambda item: -len(item[1])):
        share = len(found) / len(draws)
        if len(choices) < MEASURED_KINDS:
            batch = np.resize(np.array(found), CLIPS_PER_KIND)
            choices.append(Choice(kind, share, *_compare([batch] * (1 + repeats), make_cpu, make_dali)))
        else:
            choices.append(Choice(kind, share, False, "too few clips to measure it"))
    return choices


def _compare(batches: list[NDArray[np.int64]], make_cpu: MakeLoader, make_dali: MakeLoader) -> tuple[bool, str]:
    """Whether DALI reads the batches faster and as well, and the reason in words."""
    try:
        cpu_clips, cpu_rate, _ = _run(make_cpu(batches), len(batches[0]))
        dali_clips, dali_rate, failure = _run(make_dali(batches), len(batches[0]))
    except VideoError as error:
        return False, f"not measured: {error}"
    if failure:
        return False, f"as DALI fails: {failure}"
    difference = float((cpu_clips.short() - dali_clips.short()).abs().float().mean())
    if difference > LARGEST_DIFFERENCE:
        return False, f"as DALI's clips differ from the CPU's by {difference:.1f} of 255 on average"
    return dali_rate > cpu_rate, f"{dali_rate:.0f} clips/s with DALI, {cpu_rate:.0f} on the CPU"


def _run(loader: BaseClipLoader[Any], clips: int) -> tuple[torch.Tensor, float, str]:
    """The first batch on the host, clips per second, and why the loader left a video to the CPU, if it did."""
    with loader:
        started = time.perf_counter()
        last = first = next(loader).frames
        batches = 1
        for batch in loader:
            last = batch.frames
            batches += 1
        if last.is_cuda:
            torch.cuda.synchronize(last.device)
        rate = batches * clips / (time.perf_counter() - started)
    return first.cpu(), rate, next(iter(loader.taken_over.values()), "")
