"""Which loader serves a run, and which kinds of video it leaves to the CPU: as asked for, or as `measure.py` finds.

A new loader is one more name in `Loader`, and one more candidate in `_candidates` where it may be the faster one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from numpy.typing import ArrayLike

from .both import open_both
from .choice import Choice, remembered, told
from .corpus.corpus import Corpus
from .decode.loader import BaseClipLoader, LoaderOptions
from .decode.recipe import ClipSource, CropSource, VideoSource
from .draw.sampler import Clip
from .measure import Candidate, measure_loaders
from .video.video import Kind

# Which loader is asked for.
Loader = Literal["auto", "cpu", "planes", "dali", "nvdec", "both"]
NVDEC_PACKAGE = "PyNvVideoCodec"
# Numbers of DALI's decoders that are tried: upwards while they gain, else downwards while they lose nothing.
DECODERS = (16, 32, 64, 8)
# Given how to measure, what is chosen: measured, agreed on with others, or remembered.
Settle = Callable[[Callable[[], "list[Choice]"]], "list[Choice]"]


class DaliOptions(LoaderOptions, total=False):
    """What DALI's ClipLoader takes besides; it says what that means."""

    pipeline: Callable[..., Any]
    inputs: Callable[[Clip], Mapping[str, ArrayLike]] | None
    decoders: int | None
    spans_per_run: int
    on_cpu: Iterable[Kind]
    is_uncropped: bool


@dataclass(frozen=True)
class LoaderChoice:
    """The loader of a run. name: one of `Loader`. reason: in words, two lines where it was measured.

    open: makes it, of batches of clip numbers and, as `order`, a ClipOrder. choices: what was measured, empty where nothing was.
    """

    name: str
    reason: str
    open: Callable[..., BaseClipLoader[Any]]
    choices: tuple[Choice, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}, {self.reason}"


def gpu_loaders(wanted: Loader, device: torch.device) -> tuple[list[str], str]:
    """Which loaders that decode on a GPU, or DALI's on its CPU backend, may serve what is asked for so; and why these or none. With
    "auto" they are still to be measured.

    Raises ImportError where DALI or NVDEC is asked for by name and is not installed, ValueError on an unknown name, or where
    NVDEC is asked for without a GPU.
    """
    if wanted not in get_args(Loader):
        raise ValueError(f"loader must be one of {', '.join(get_args(Loader))}, got {wanted!r}")
    if wanted == "nvdec":
        require_nvdec(device)
    if wanted == "planes" and device.type != "cuda":
        raise ValueError(f"'planes' makes clips on cuda, not on {device}; take the loader 'cpu'")
    extras = "in a checkout, pip install '.[cuda12]' or '.[cuda13]'"
    is_installed = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    if wanted in ("dali", "both") and not is_installed:
        raise ImportError(f"{wanted!r} is asked for, but DALI is not installed; {extras}, or take the loader 'cpu'")
    if wanted != "auto":
        return [] if wanted == "cpu" else ["dali" if wanted == "both" else wanted], "as asked for"
    if device.type != "cuda":
        return [], f"as batches are wanted on {device.type}"
    present = {"dali": is_installed, "nvdec": find_spec(NVDEC_PACKAGE) is not None}
    found = [name for name, is_present in present.items() if is_present]
    return found, "" if found else f"as DALI is not installed ({extras})"


def takes_kernels(device: torch.device) -> bool:
    """Whether kernels run there: on a GPU, with Triton."""
    return device.type == "cuda" and find_spec("triton") is not None


def require_nvdec(device: torch.device) -> None:
    """Raises ImportError where PyNvVideoCodec is not installed, ValueError where the device is no GPU."""
    if device.type != "cuda":
        raise ValueError(f"'nvdec' decodes on cuda, not on {device}; take the loader 'cpu'")
    if find_spec(NVDEC_PACKAGE) is None:
        raise ImportError(
            f"'nvdec' is asked for, but {NVDEC_PACKAGE} is not installed; in a checkout, pip install '.[nvdec]', or take another "
            "loader"
        )


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
    """Decides and, with "auto" where a GPU and a loader for it are present, measures every candidate, for ten seconds at most,
    unless this machine has done so before with the same corpus and settings.

    device: where batches are wanted. options: of all ClipLoaders, and of DALI's alone, where a graph or inputs of one's own
    settle it, since no other loader has them; where its decoders are None their number is measured too. settle: is called with
    "auto" on a GPU, also where DALI is not installed and what it is given measures nothing: so processes that agree in it all call
    it. workers, cores: see `decoding_processes`. Raises what `gpu_loaders` raises.
    """
    workers = decoding_processes(workers, device, (videos, sampler, crops), cores)
    others, reason = gpu_loaders(wanted, device)
    if wanted == "auto" and workers and takes_kernels(device):
        others.append("planes")
    is_own = not options.keys().isdisjoint(("pipeline", "inputs"))

    def make(name: str, numbers: Any, **more: Any) -> BaseClipLoader[Any]:
        kind = import_module(f".{name}", __package__).ClipLoader
        if name == "dali":
            more = {**options, **more}
        else:
            shared = {key: value for key, value in options.items() if key in LoaderOptions.__optional_keys__}
            more = {**({} if name == "nvdec" else {"workers": workers}), **shared, **more}
        return kind(videos, sampler, crops, numbers, resolution=resolution, device=device, **more)

    if wanted == "both":
        return LoaderChoice(wanted, reason, partial(open_both, make, workers, options))
    if wanted not in ("auto", "cpu"):
        return LoaderChoice(wanted, reason, partial(make, wanted))
    choices: tuple[Choice, ...] = ()
    is_own = is_own and "dali" in others
    if wanted == "auto" and device.type == "cuda" and not is_own:
        candidates = _candidates(make, others, options)
        known = {"workers": workers, "resolution": resolution, "crops": crops, "sampler": sampler, "options": options}
        known["candidates"] = [candidate.name for candidate in candidates]

        def measure() -> list[Choice]:
            if not others:
                return []
            return remembered(videos, device, known, lambda: measure_loaders(videos, sampler, candidates))

        choices = tuple(settle(measure))
    if not others:
        threads = options.get("threads") or len(os.sched_getaffinity(0))
        where = f"in {workers} decoding process{'es' * (workers > 1)}" if workers else f"on {threads} threads"
        return LoaderChoice("cpu", f"{where}, {reason}", partial(make, "cpu"))
    if is_own:
        return LoaderChoice("dali", "as the graph or its inputs are the caller's own", partial(make, "dali"))
    reason = told(choices)
    fastest = next((choice for choice in choices if choice.loader in others), None)
    if fastest is None:
        return LoaderChoice("cpu", reason, partial(make, "cpu"), choices)
    on_cpu = {choice.kind for choice in choices if choice.loader != fastest.loader}.union(options.get("on_cpu", ()))
    more = {"on_cpu": on_cpu, **({"decoders": fastest.decoders} if fastest.decoders else {})}
    return LoaderChoice(fastest.loader, reason, partial(make, fastest.loader, **more), choices)


def _candidates(
    make: Callable[..., BaseClipLoader[Any]], others: Sequence[str], options: DaliOptions
) -> list[Candidate]:
    """What "auto" measures, the CPU's first. make: of a loader's name, batches and options. others: those beside it."""
    decoders = {"dali": DECODERS} if options.get("decoders") is None else {}
    return [Candidate(name, partial(make, name), decoders.get(name, ())) for name in ("cpu", *others)]


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
