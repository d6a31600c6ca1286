"""What becomes of each kind of video: which loader decodes it. Agreed on by ranks, told in two lines, remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .corpus.corpus import Corpus
from .corpus.whole_file import write_text_whole
from .decode.recipe import VideoSource
from .video.video import Kind

TOLD_KINDS = 3
# Counted up when what is remembered means something else.
MEMORY_VERSION = 1
log = logging.getLogger("trocar.loaders")


@dataclass(frozen=True)
class Choice:
    """What becomes of a kind. share: of the draws looked at, 0 .. 1. loader: the name of the candidate that decodes it; decoders:
    how many of them it shall have, None where that was not asked. reason: what was measured, or why it was not."""

    kind: Kind
    share: float
    loader: str
    reason: str
    decoders: int | None = None

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Choice:
        """From `dataclasses.asdict`, also of runs that knew two loaders only."""
        values = dict(row)
        if "uses_dali" in values:
            values["loader"] = "dali" if values.pop("uses_dali") else "cpu"
        return cls(**{**values, "kind": Kind(**row["kind"])})

    def __str__(self) -> str:
        return f"{self.kind}, {self.share:.0%} of the clips: {self.loader}, {self.reason}"


def agree(found: Sequence[list[Choice]]) -> list[Choice]:
    """What ranks choose together of what each has found, the same on all: the first one's, where every one of them is for it."""
    agreed = []
    for choice in found[0]:
        for rank, others in enumerate(found):
            other = next((other for other in others if other.kind == choice.kind), None)
            if choice.loader != "cpu" and not (other and other.loader == choice.loader):
                reason = other.reason if other else "not measured, or not installed"
                choice = replace(choice, loader="cpu", reason=f"as rank {rank} found: {reason}", decoders=None)
        agreed.append(choice)
    return agreed


def told(choices: Sequence[Choice]) -> str:
    """What was measured, in two lines: how much falls to whom, and what frequent kinds were measured at."""
    shares: dict[str, float] = defaultdict(float)
    for choice in choices:
        named = f"{choice.loader} ({choice.decoders} decoders)" if choice.decoders else choice.loader
        shares[named] += choice.share
    parts = ", ".join(f"{name} for {share:.0%} of the clips" for name, share in sorted(shares.items(), reverse=True))
    kinds = "; ".join(f"{choice.kind}: {choice.reason}" for choice in choices[:TOLD_KINDS])
    rest = len(choices) - TOLD_KINDS
    return f"as measured: {parts}\n  {kinds}{f'; and {rest} more kinds' if rest > 0 else ''}"


def remembered(
    videos: VideoSource, device: torch.device, settings: Mapping[str, Any], measure: Callable[[], list[Choice]]
) -> list[Choice]:
    """What this machine has measured before with these videos and settings; else it measures, and remembers.

    settings: `sampler`, and what else decides about rates, by name. It is kept in $XDG_CACHE_HOME/trocar/loaders, ~/.cache where
    that is not set; delete that folder to measure again.
    """
    path = _memory(videos, device, settings)
    try:
        return [Choice.parse(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        choices = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, json.dumps([asdict(choice) for choice in choices], indent=1))
    except OSError as error:
        log.info("what was measured is not remembered for the next run: %s", error)
    return choices


def _memory(videos: VideoSource, device: torch.device, settings: Mapping[str, Any]) -> Path:
    """The file of one machine, corpus and setting."""
    known = videos.fingerprint if isinstance(videos, Corpus) else [videos.video_path(row) for row in range(len(videos))]
    sampler = settings["sampler"]
    clips = [np.asarray(clip.frames).tolist() for clip in sampler.clips(np.arange(4))]
    card = torch.cuda.get_device_name(device) if torch.cuda.is_available() and device.type == "cuda" else device.type
    machine = [platform.node(), card, len(os.sched_getaffinity(0)), os.environ.get("LOCAL_WORLD_SIZE", "1")]
    packages = [
        _version(name)
        for name in ("trocar", "av", "torch", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "PyNvVideoCodec")
    ]
    told = {name: str(value) for name, value in settings.items() if name not in ("sampler", "crops")}
    key = [MEMORY_VERSION, machine, packages, known, clips, type(settings.get("crops")).__name__, told]
    name = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "trocar" / "loaders" / f"{name}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
