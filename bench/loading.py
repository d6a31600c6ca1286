"""`trocar bench loading`: our loaders against torchcodec, decord, PyAV and DALI's reader, delivering the same clips.

Every arm gets the same list of (video, frame numbers) from our sampler and delivers uint8 (B, T, R, R, 3) batches of whole
pictures, squeezed to R pixels. First their frames are compared with ours, and an arm whose frames are wrong gets no speed. Then the
arms take turns: a round is one delivery of all clips by each, in another order every time, so that whatever else the machine does
meets all of them. A round gives one ratio per peer; reported are the median and an interval that assumes nothing about the noise.

Shapes: B clips of a batch, T frames, R x R pixels.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..loaders.corpus import Corpus
from ..loaders.cpu import ClipLoader
from ..loaders.sampler import Sampler
from .loading_arms import Arm, Job, Request
from .loading_check import Frames, Reference, Verdict, judge
from .loading_gpu_peers import DaliReader, TorchcodecCuda
from .loading_ours import ListedClips, TrocarCpu, TrocarDali, WholePicture
from .loading_peers import Decord, Pyav, TorchcodecApproximate, TorchcodecExact
from .loading_worker import ArmError, Delivery, Ready, Worker
from .ratios import median_interval
from .report import row

OURS, PACKED = "trocar", "trocar packed"
ARMS: dict[str, type[Arm]] = {
    OURS: TrocarCpu,
    PACKED: TrocarCpu,
    "torchcodec exact": TorchcodecExact,
    "torchcodec approximate": TorchcodecApproximate,
    "decord": Decord,
    "PyAV": Pyav,
    "trocar dali": TrocarDali,
    "DALI reader": DaliReader,
    "torchcodec CUDA": TorchcodecCuda,
}


class LoadingBenchError(Exception):
    """A comparison that cannot be made."""


@dataclass
class _Entry:
    """One arm, and what is known of it. reason: why it has no speed."""

    name: str
    worker: Worker
    reference: Reference
    requests: tuple[Request, ...]
    reason: str = ""
    ready: Ready | None = None
    verdict: Verdict | None = None
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def clips_per_second(self) -> list[float]:
        return [len(self.requests) / delivery.seconds for delivery in self.deliveries]


def bench_loading(
    corpus_path: Path,
    *,
    packed: Path | None = None,
    clips: int = 32,
    rounds: int = 7,
    num_frames: int = 16,
    stride: int = 4,
    resolution: int = 224,
    batch: int = 8,
    seed: int = 0,
    arms: Sequence[str] = tuple(ARMS),
) -> list[dict[str, Any]]:
    """Measures the named arms on the first `clips` draws of a corpus; one row per arm, for `write_rows` and
    `loading_table.table`.

    packed: a corpus of proxies, frame k of which is frame k * stride of the original: the arm "trocar packed" delivers the same
    clips from there, their starts rounded down to a multiple of the stride. Tells the progress on stderr. Raises LoadingBenchError
    where there is nothing to compare, CorpusError and VideoError where a corpus cannot be read.
    """
    _check_arguments(arms, clips, rounds, packed)
    corpus = Corpus.open(corpus_path)
    requests = _draw(corpus, clips, num_frames, stride, seed)
    job = Job(str(corpus_path), requests, batch, resolution, stride, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="trocar_bench_") as folder:
        _say(f"decoding {len(requests)} clips and their neighbours to compare with")
        reference = _reference(job, requests, gap=1, content_box=False)
        entries = []
        try:
            for name in [name for name in ARMS if name in arms and (name != PACKED or packed)]:
                its_job, its_reference = job, reference
                if name == PACKED and packed is not None:
                    its_job, its_reference = _packed(job, corpus, packed)
                worker = Worker(name, ARMS[name], its_job, Path(folder))
                # One after the other: what they try out is timed.
                entries.append(_prepare(_Entry(name, worker, its_reference, its_job.requests)))
            _measure(entries, rounds)
            facts = {
                "clips": len(requests),
                "frames_a_clip": num_frames,
                "stride": stride,
                "resolution": resolution,
                "batch": batch,
                "rounds": rounds,
                "cores": job.cores,
                "videos": _describe(corpus, requests),
            }
            return [_row(entry, entries, facts) for entry in entries]
        finally:
            for entry in entries:
                entry.worker.close()


def _check_arguments(arms: Sequence[str], clips: int, rounds: int, packed: Path | None) -> None:
    unknown = [name for name in arms if name not in ARMS]
    if unknown:
        raise LoadingBenchError(f"unknown arm {', '.join(unknown)}; there are {', '.join(ARMS)}")
    if clips < 1 or rounds < 1:
        raise LoadingBenchError(f"clips and rounds must be at least 1, got {clips} and {rounds}")


def _draw(corpus: Corpus, clips: int, num_frames: int, stride: int, seed: int) -> tuple[Request, ...]:
    """The first draws whose clip lies whole in its video: not every library repeats a last frame."""
    sampler = Sampler(corpus.frames, num_frames=num_frames, stride=stride, seed=seed)
    drawn = [clip for clip in sampler.clips(np.arange(16 * clips)) if not clip.repeated][:clips]
    if len(drawn) < clips:
        span = (num_frames - 1) * stride + 1
        raise LoadingBenchError(f"{corpus.path}: too few videos of at least {span} frames for {clips} clips")
    return tuple(Request(clip.video, corpus.video(clip.video).facts.path, clip.frames) for clip in drawn)


def _reference(job: Job, requests: Sequence[Request], gap: int, content_box: bool) -> Reference:
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


def _packed(job: Job, originals: Corpus, packed: Path) -> tuple[Job, Reference]:
    """The same clips of proxies, and what of the originals they have to show."""
    proxies = Corpus.open(packed)
    expected = -(-originals.frames // job.stride)
    if not np.array_equal(proxies.frames, expected):
        raise LoadingBenchError(
            f"{packed}: its videos have {proxies.frames[:5].tolist()} ... frames, those of {originals.path} make "
            f"{expected[:5].tolist()} ... at stride {job.stride}; pack that corpus with that stride"
        )
    onto = [replace(request, frames=request.frames // job.stride * job.stride) for request in job.requests]
    there = [
        Request(request.row, proxies.video(request.row).facts.path, request.frames // job.stride) for request in onto
    ]
    # Proxies hold the picture inside the black border.
    reference = _reference(job, onto, gap=job.stride, content_box=True)
    return replace(job, corpus=str(packed), requests=tuple(there), stride=1), reference


def _prepare(entry: _Entry) -> _Entry:
    _say(f"{entry.name}: starting")
    try:
        entry.ready = entry.worker.ready()
        entry.verdict = judge(entry.worker.frames(), entry.reference)
    except ArmError as error:
        entry.reason = f"not usable: {error}"
    else:
        if entry.verdict.wrong is not None:
            clip, position = entry.verdict.wrong
            request = entry.requests[clip]
            frame = int(request.frames[position])
            entry.reason = f"wrong frames: {request.path}, frame {frame} {entry.verdict.reason}"
    if entry.reason:
        _say(f"{entry.name}: {entry.reason}")
    return entry


def _measure(entries: Sequence[_Entry], rounds: int) -> None:
    for number in range(rounds):
        running = [entry for entry in entries if not entry.reason]
        turn = number % max(len(running), 1)
        for entry in running[turn:] + running[:turn]:
            try:
                entry.deliveries.append(entry.worker.deliver())
            except ArmError as error:
                entry.reason, entry.deliveries = f"not usable: {error}", []
        speeds = ", ".join(f"{entry.name} {entry.clips_per_second[-1]:.2f}" for entry in running if entry.deliveries)
        _say(f"round {number + 1} of {rounds}, clips/s: {speeds}")


def _describe(corpus: Corpus, requests: Sequence[Request]) -> list[str]:
    """Codec, size and GOP of the videos that the clips come from, each kind once."""
    kinds = set()
    for row_number in {request.row for request in requests}:
        facts, gops = corpus.video(row_number).facts, corpus.gops(row_number)
        kinds.add(f"{facts.codec} {facts.width}x{facts.height}, {facts.frames / len(gops):.0f} frames a GOP")
    return sorted(kinds)


def _row(entry: _Entry, entries: Sequence[_Entry], facts: dict[str, Any]) -> dict[str, Any]:
    measured: dict[str, Any] = {"arm": entry.name, "reason": entry.reason, **facts}
    messages = entry.worker.messages()
    measured |= {"messages": len(messages), "last_message": messages[-1] if messages else ""}
    if entry.ready is not None:
        measured |= {
            "library": entry.ready.library,
            "way": entry.ready.way,
            "tried_seconds": entry.ready.seconds_by_way,
        }
    if entry.verdict is not None and not entry.reason:
        measured |= {
            "difference": entry.verdict.difference,
            "to_neighbours": entry.verdict.to_neighbours,
            "moving_share": entry.verdict.moving_share,
        }
    if entry.deliveries:
        speeds = entry.clips_per_second
        cpu = [delivery.cpu_seconds / len(entry.requests) for delivery in entry.deliveries]
        measured |= {
            "clips_per_second": statistics.median(speeds),
            "clips_per_second_by_round": speeds,
            "cpu_seconds_per_clip": statistics.median(cpu),
            "amplification": entry.deliveries[-1].cost.get("amplification"),
            "bytes_per_clip": entry.deliveries[-1].cost.get("bytes_per_clip"),
            "ours_against_it": {
                ours.name: vars(median_interval([a / b for a, b in zip(ours.clips_per_second, speeds, strict=True)]))
                for ours in entries
                if ours.name.startswith(OURS) and ours.deliveries and not entry.name.startswith(OURS)
            },
        }
    return row("loading", torch.device("cuda" if torch.cuda.is_available() else "cpu"), measured)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
