"""The clips of `trocar bench loading`, and what they look like to us: what every arm's frames are compared with.

Shapes: N clips, T frames, R x R pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...loaders.corpus.corpus import Corpus
from ...loaders.cpu import ClipLoader
from ...loaders.draw.sampler import Sampler
from ...loaders.video.error import TrocarError
from .arms import Job, Request
from .check import Frames, Reference
from .ours import ListedClips, WholePicture


class LoadingBenchError(TrocarError):
    """A comparison that cannot be made."""


def draw_requests(corpus: Corpus, clips: int, num_frames: int, stride: int, seed: int) -> tuple[Request, ...]:
    """The first draws whose clip lies whole in its video: not every library repeats a last frame.

    Raises LoadingBenchError where too few do.
    """
    sampler = Sampler(corpus.frames, num_frames=num_frames, stride=stride, seed=seed)
    drawn = [clip for clip in sampler.clips(np.arange(16 * clips)) if not clip.repeated][:clips]
    if len(drawn) < clips:
        span = (num_frames - 1) * stride + 1
        raise LoadingBenchError(f"{corpus.path}: too few videos of at least {span} frames for {clips} clips")
    return tuple(Request(clip.video, corpus.video(clip.video).facts.path, clip.frames) for clip in drawn)


def reference(job: Job, requests: Sequence[Request], *, gap: int, content_box: bool) -> Reference:
    """The clips as ClipLoader decodes them, with the frames `gap` before and behind; content_box: inside the black border."""
    corpus = Corpus.open(job.corpus)
    shifted = [_decode(corpus, job, requests, shift, content_box) for shift in (0, -gap, gap)]
    return Reference(*shifted, gap=gap)


def _decode(corpus: Corpus, job: Job, requests: Sequence[Request], shift: int, content_box: bool) -> Frames:
    moved = [
        replace(request, frames=np.clip(request.frames + shift, 0, corpus.frames[request.row] - 1))
        for request in requests
    ]
    with ClipLoader(
        corpus,
        ListedClips(corpus, moved),
        WholePicture(),
        [np.array(part) for part in job.split(range(len(moved)))],
        resolution=job.resolution,
        content_box=content_box,
        failure_budget=0.0,
        failure_floor=0,
    ) as loader:
        return np.concatenate([batch.frames.numpy() for batch in loader])


def packed_job(job: Job, originals: Corpus, packed: Path) -> tuple[Job, Reference]:
    """The same clips of proxies, starts rounded down to a multiple of the stride, and what of the originals they have to show.

    Raises LoadingBenchError where the corpus of proxies is not one of these originals.
    """
    onto, there = onto_proxies(job.requests, job.stride, originals, packed)
    # Proxies hold the picture inside the black border.
    wanted = reference(job, onto, gap=job.stride, content_box=True)
    return replace(job, corpus=str(packed), requests=there, stride=1), wanted


def onto_proxies(
    requests: Sequence[Request], stride: int, originals: Corpus, packed: Path
) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
    """(of the originals, of the proxies): the same frames, the starts rounded down to a multiple of the stride.

    Raises LoadingBenchError where the corpus of proxies is not one of these originals.
    """
    proxies = Corpus.open(packed)
    rows = {values["id"]: row for row, values in enumerate(proxies.scan("id"))}
    onto, there = [], []
    for request in requests:
        row = rows.get(originals.video(request.row).id)
        frames = request.frames // stride
        if row is None or proxies.packed_stride[row] != stride or frames[-1] >= proxies.frames[row]:
            raise LoadingBenchError(
                f"{packed}: has no proxy of {request.path} at stride {stride} as far as frame {request.frames[-1]}; run "
                f"`trocar pack {originals.path} --stride {stride} --out {packed}`"
            )
        onto.append(replace(request, frames=frames * stride))
        there.append(Request(row, proxies.video(row).facts.path, frames))
    return tuple(onto), tuple(there)


def describe_videos(corpus: Corpus, requests: Sequence[Request]) -> list[str]:
    """Codec and size of the videos that the clips come from, with the range of their mean GOPs."""
    gops: dict[str, list[float]] = {}
    for row_number in {request.row for request in requests}:
        facts = corpus.video(row_number).facts
        mean_gop = facts.frames / len(corpus.gops(row_number))
        gops.setdefault(f"{facts.codec} {facts.width}x{facts.height}", []).append(mean_gop)
    return [
        f"{kind}, {min(values):.0f}{f' to {max(values):.0f}' if max(values) > min(values) else ''} frames a GOP"
        for kind, values in sorted(gops.items())
    ]
