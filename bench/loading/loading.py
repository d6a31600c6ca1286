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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...loaders.corpus.corpus import Corpus
from ..rows.ratios import ratio
from ..rows.row import row
from ..rows.turns import in_turns
from .arms import Arm, Job, Request
from .check import Reference, Verdict, judge
from .clips import LoadingBenchError, describe_videos, draw_requests, packed_job, reference
from .gpu_peers import DaliReader, TorchcodecCuda
from .ours import TrocarCpu, TrocarDali
from .peers import Decord, Pyav, TorchcodecApproximate, TorchcodecExact
from .worker import ArmError, Delivery, Ready, Worker

ON_PROXIES = " packed"  # how the names of arms end that read proxies
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
    "torchcodec exact packed": TorchcodecExact,
    "torchcodec approximate packed": TorchcodecApproximate,
    "decord packed": Decord,
    "PyAV packed": Pyav,
}


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
    `table.table`.

    packed: a corpus of proxies, frame k of which is frame k * stride of the original: arms whose names end in "packed" deliver the
    same clips from there, their starts rounded down to a multiple of the stride; the peers' from the very same files. Tells
    the progress on stderr. Raises LoadingBenchError where there is nothing to compare, CorpusError and VideoError where a corpus
    cannot be read.
    """
    _check_arguments(arms, clips, rounds)
    corpus = Corpus.open(corpus_path)
    requests = draw_requests(corpus, clips, num_frames, stride, seed)
    job = Job(str(corpus_path), requests, batch, resolution, stride, len(os.sched_getaffinity(0)))
    _say(f"decoding {clips} clips and their neighbours to compare with")
    of_proxies = [name for name in ARMS if name.endswith(ON_PROXIES) and name in arms]
    of_originals = [name for name in ARMS if not name.endswith(ON_PROXIES) and name in arms]
    tasks: dict[str, tuple[Job, Reference]] = {}
    if of_originals:
        tasks |= dict.fromkeys(of_originals, (job, reference(job, requests, gap=1, content_box=False)))
    if packed is not None and of_proxies:
        tasks |= dict.fromkeys(of_proxies, packed_job(job, corpus, packed))
    entries: list[_Entry] = []
    with tempfile.TemporaryDirectory(prefix="trocar_bench_") as folder:
        try:
            for name in (name for name in ARMS if name in tasks):
                its_job, wanted = tasks[name]
                worker = Worker(name, ARMS[name], its_job, Path(folder))
                entries.append(_Entry(name, worker, wanted, its_job.requests))
                _prepare(entries[-1])  # one arm after the other: what they try out is timed
            _measure(entries, rounds)
            facts = {
                "clips": len(requests),
                "frames_a_clip": num_frames,
                "stride": stride,
                "resolution": resolution,
                "batch": batch,
                "rounds": rounds,
                "cores": job.cores,
                "videos": describe_videos(corpus, requests),
            }
            return [_row(entry, entries, facts) for entry in entries]
        finally:
            for entry in entries:
                entry.worker.close()


def _check_arguments(arms: Sequence[str], clips: int, rounds: int) -> None:
    unknown = [name for name in arms if name not in ARMS]
    if unknown:
        raise LoadingBenchError(f"unknown arm {', '.join(unknown)}; there are {', '.join(ARMS)}")
    if clips < 1 or rounds < 1:
        raise LoadingBenchError(f"clips and rounds must be at least 1, got {clips} and {rounds}")


def _prepare(entry: _Entry) -> None:
    """Waits for an arm and compares its frames; gives the reason where it is not to be timed."""
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


def _measure(entries: Sequence[_Entry], rounds: int) -> None:
    for number in range(rounds):
        running = [entry for entry in entries if not entry.reason]
        for entry in in_turns(running, number):
            try:
                entry.deliveries.append(entry.worker.deliver())
            except ArmError as error:
                entry.reason, entry.deliveries = f"not usable: {error}", []
        speeds = ", ".join(f"{entry.name} {entry.clips_per_second[-1]:.2f}" for entry in running if entry.deliveries)
        _say(f"round {number + 1} of {rounds}, clips/s: {speeds}")


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
                ours.name: ratio(ours.clips_per_second, speeds)
                for ours in entries
                if ours.name.startswith(OURS) and ours.deliveries and not entry.name.startswith(OURS)
                # A peer on proxies is held against us on the same ones.
                if ours.name == PACKED or not entry.name.endswith(ON_PROXIES)
            },
        }
    return row("loading", torch.device("cuda" if torch.cuda.is_available() else "cpu"), measured)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
