"""Which loader serves a run, and which videos a GPU decodes faster than the CPU beside it: measured on the run's own clips.

A decoder on the GPU is not always the faster one: a session costs the same for a small picture as for a large one, and there are
few engines beside many cores. So some draws of every kind of video (codec, pixel format, size) are read both ways, and the clips
of both are compared. Whatever DALI fails at, the CPU does: also all, where it does not even start.

Shapes: B clips of a batch.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .both import open_both
from .corpus.corpus import Corpus
from .decode.loader import BaseClipLoader, LoaderOptions
from .decode.span import ClipSource, CropSource, VideoSource
from .decode.threads import LoaderError
from .draw.sampler import Clip
from .video.video import VideoError, VideoFacts

DRAWS_LOOKED_AT = 2048
CLIPS_PER_KIND = 16
MEASURED_KINDS = 8
# Two decoders of the same pictures differ by rounding in the conversion to RGB and in the resize; frames beside each other by more.
LARGEST_DIFFERENCE = 4.0

# Which loader is asked for.
Loader = Literal["auto", "cpu", "dali", "nvdec", "both"]
MakeLoader = Callable[[Iterable[NDArray[np.int64]]], BaseClipLoader[Any]]
# Given how to measure, what is chosen: measured, agreed on with others, or remembered.
Settle = Callable[[Callable[[], "list[Choice]"]], "list[Choice]"]


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


class DaliOptions(LoaderOptions, total=False):
    """What DALI's ClipLoader takes besides; it says what that means."""

    pipeline: Callable[..., Any]
    inputs: Callable[[Clip], Mapping[str, ArrayLike]] | None
    decoders: int | None
    spans_per_run: int
    on_cpu: Iterable[Kind]


@dataclass(frozen=True)
class Choice:
    """What becomes of a kind. share: of the draws looked at, 0 .. 1. reason: what was measured, or why it was not."""

    kind: Kind
    share: float
    uses_dali: bool
    reason: str

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Choice:
        """From `dataclasses.asdict`."""
        return cls(**{**row, "kind": Kind(**row["kind"])})

    def __str__(self) -> str:
        return f"{self.kind}, {self.share:.0%} of the clips: {'DALI' if self.uses_dali else 'CPU'}, {self.reason}"


@dataclass(frozen=True)
class LoaderChoice:
    """The loader of a run. name: "cpu" or "dali". reason: in words, a line for each kind of video where they were measured.

    open: makes it, of batches of clip numbers and, as `order`, a ClipOrder. choices: what was measured, empty where nothing was.
    """

    name: str
    reason: str
    open: Callable[..., BaseClipLoader[Any]]
    choices: tuple[Choice, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}, {self.reason}"


def may_be_dali(wanted: Loader, device: torch.device) -> tuple[bool, str]:
    """Whether a loader that is asked for so can be DALI's, and why. With "auto" and True it is still to be measured.

    Raises ImportError where DALI or NVDEC is asked for by name and is not installed, ValueError on an unknown name.
    """
    if wanted not in get_args(Loader):
        raise ValueError(f'loader must be "auto", "cpu", "dali", "nvdec" or "both", got {wanted!r}')
    if wanted == "nvdec":
        import_module(".nvdec", __package__).require_nvdec(device)
        return False, "as asked for"
    extras = "in a checkout, pip install '.[cuda12]' or '.[cuda13]'"
    is_installed = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    if wanted in ("dali", "both") and not is_installed:
        raise ImportError(f"{wanted!r} is asked for, but DALI is not installed; {extras}, or take the loader 'cpu'")
    if wanted != "auto":
        return wanted in ("dali", "both"), "as asked for"
    if device.type != "cuda":
        return False, f"as batches are wanted on {device.type}"
    return is_installed, "" if is_installed else f"as DALI is not installed ({extras})"


def choose_loader(
    wanted: Loader,
    videos: VideoSource,
    sampler: ClipSource,
    crops: CropSource,
    *,
    resolution: int,
    device: torch.device,
    options: DaliOptions,
    settle: Settle = lambda measure: measure(),
    workers: int | None = None,
    cores: int | None = None,
) -> LoaderChoice:
    """Decides and, with "auto" where a GPU and DALI are present, measures every kind of video both ways, which takes seconds.

    device: where batches are wanted. options: of both ClipLoaders, and of DALI's alone, where a graph or inputs of one's own
    settle it, since no other loader has them. settle: is called with "auto" on a GPU, also where DALI is not installed and what it
    is given measures nothing: so processes that agree in it all call it. workers, cores: see `decoding_processes`. Raises what
    `may_be_dali` raises.
    """
    workers = decoding_processes(workers, device, (videos, sampler, crops), cores)
    is_dali, reason = may_be_dali(wanted, device)
    is_own = not options.keys().isdisjoint(("pipeline", "inputs"))

    def make(name: str, numbers: Any, **more: Any) -> BaseClipLoader[Any]:
        kind = import_module(f".{name}", __package__).ClipLoader
        if name == "dali":
            more = {**options, **more}
        else:
            shared = {key: value for key, value in options.items() if key in LoaderOptions.__optional_keys__}
            more = {**({"workers": workers} if name == "cpu" else {}), **shared, **more}
        return kind(videos, sampler, crops, numbers, resolution=resolution, device=device, **more)

    if wanted == "both":
        return LoaderChoice(wanted, reason, partial(open_both, make, workers, options))
    if wanted not in ("auto", "cpu"):
        return LoaderChoice(wanted, reason, partial(make, wanted))
    choices: tuple[Choice, ...] = ()
    if wanted == "auto" and device.type == "cuda" and not (is_dali and is_own):

        def measure() -> list[Choice]:
            return choose_decoders(videos, sampler, partial(make, "cpu"), partial(make, "dali")) if is_dali else []

        choices = tuple(settle(measure))
    if not is_dali:
        threads = options.get("threads") or len(os.sched_getaffinity(0))
        where = f"in {workers} decoding process{'es' * (workers > 1)}" if workers else f"on {threads} threads"
        return LoaderChoice("cpu", f"{where}, {reason}", partial(make, "cpu"))
    if is_own:
        return LoaderChoice("dali", "as the graph or its inputs are the caller's own", partial(make, "dali"))
    reason = "\n".join(["as measured:", *(f"  {choice}" for choice in choices)])
    if not any(choice.uses_dali for choice in choices):
        return LoaderChoice("cpu", reason, partial(make, "cpu"), choices)
    on_cpu = {choice.kind for choice in choices if not choice.uses_dali}.union(options.get("on_cpu", ()))
    return LoaderChoice("dali", reason, partial(make, "dali", on_cpu=on_cpu), choices)


def decoding_processes(wanted: int | None, device: torch.device, sent: Sequence[object], cores: int | None) -> int:
    """How many processes decode on the CPU; 0: threads of this one do.

    wanted: that many; None: threads where batches are wanted on the CPU, beside a GPU one process for each core but one, which the
    training has. Files that nobody indexed would be probed by each of them, and what is defined in the program itself cannot be
    sent to them: then threads as well. sent: what they would be sent, the videos first. cores: None: those that this process may
    use, divided by the ranks that torchrun has started here.
    """
    if wanted is not None:
        return wanted
    if (
        device.type != "cuda"
        or not isinstance(sent[0], Corpus)
        or any(type(part).__module__ == "__main__" for part in sent)
    ):
        return 0
    cores = cores or len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cores - 1)


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
    choices: list[Choice] = []
    broken: str | None = None
    for kind, found in sorted(groups.items(), key=lambda item: -len(item[1])):
        share = len(found) / len(draws)
        if len(choices) < MEASURED_KINDS and broken is None:
            broken = _why_not_to_start(make_dali)
        if broken:
            choices.append(Choice(kind, share, False, broken))
        elif len(choices) < MEASURED_KINDS:
            batch = np.resize(np.array(found), CLIPS_PER_KIND)
            choices.append(Choice(kind, share, *_compare([batch] * (1 + repeats), make_cpu, make_dali)))
        else:
            choices.append(Choice(kind, share, False, "too few clips to measure it"))
    return choices


def agree(found: Sequence[list[Choice]]) -> list[Choice]:
    """What ranks choose together of what each has found, the same on all: DALI where every one of them is for it."""
    agreed = []
    for choice in found[0]:
        for rank, others in enumerate(found):
            other = next((other for other in others if other.kind == choice.kind), None)
            if choice.uses_dali and not (other and other.uses_dali):
                reason = other.reason if other else "not measured, or DALI is not installed"
                choice = replace(choice, uses_dali=False, reason=f"as rank {rank} found: {reason}")
        agreed.append(choice)
    return agreed


def _why_not_to_start(make_dali: MakeLoader) -> str:
    """Why DALI's graph cannot be built here, as in a container without the GPU's video libraries; empty where it can."""
    try:
        make_dali(()).close()
    except RuntimeError as error:
        return f"as DALI does not start: {_first_line(error)}"
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _compare(batches: list[NDArray[np.int64]], make_cpu: MakeLoader, make_dali: MakeLoader) -> tuple[bool, str]:
    """Whether DALI reads the batches faster and as well, and the reason in words."""
    try:
        cpu_clips, cpu_rate, _ = _run(make_cpu(batches), len(batches[0]))
    except VideoError as error:
        return False, f"not measured: {error}"
    try:
        dali_clips, dali_rate, failure = _run(make_dali(batches), len(batches[0]))
    except VideoError as error:
        return False, f"not measured: {error}"
    except (RuntimeError, LoaderError) as error:
        return False, f"as DALI fails: {_first_line(error)}"
    if failure:
        return False, f"as DALI fails: {failure}"
    difference = float((cpu_clips.short() - dali_clips.short()).abs().float().mean())
    if difference > LARGEST_DIFFERENCE:
        return False, f"as DALI's clips differ from the CPU's by {difference:.1f} of 255 on average"
    return dali_rate > cpu_rate, f"{dali_rate:.0f} clips/s with DALI, {cpu_rate:.0f} on the CPU"


def _run(loader: BaseClipLoader[Any], clips: int) -> tuple[torch.Tensor, float, str]:
    """The first batch on the host, clips per second, and why the loader left a video to the CPU, if it did."""
    with loader:
        loader.wait_until_ready()
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
