"""`trocar bench feed`: is training fed? What decoding takes from the thread that launches kernels, and what it delivers.

contention: a thread on the first core issues small operators, as a step's launching does, while clips are decoded on the second
core, by threads of the same process or by processes. rates: clips/s by threads and by processes, and how much of the training
thread a clip takes. trained, on a GPU: clips/s of the step on resident data, behind threads and behind processes.

Arms take turns, so that what else a machine does meets all of them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch

from ...engine.config.file import load_config
from ...engine.console.table import Table
from ...engine.draws.samplers import samplers_by_clip
from ...engine.step.loading import build_loader
from ...loaders import nvdec
from ...loaders.choose import NVDEC_PACKAGE
from ...loaders.corpus.corpus import Corpus
from ...loaders.cpu import ClipLoader
from ...loaders.decode.loader import BaseClipLoader
from ...loaders.decode.nvdec_session import Calls
from ...loaders.decode.plan import clip_numbers
from ...loaders.draw.augment import CropRecipe
from ...loaders.draw.sampler import Sampler
from ..profile.stage_clock import account_of_this_thread
from ..rows.cells import share_cell, spread_cell
from ..rows.row import row, write_rows
from ..rows.turns import in_turns
from .clock import spread, time_steps
from .run import clip_numbers as run_numbers
from .run import made_clips, open_run, resident

OPERATORS = 1200
ISSUING_SECONDS = 1.0
DEEP = 40  # batches ahead: decoding goes on while nobody takes any
BATCH, AHEAD = 8, 4
SECONDS = 3.0
ALONE, RESIDENT = "alone", "resident"
TRAINED = ((RESIDENT, None), ("processes", ()), ("planes", ("data.loader=planes",)), ("threads", ("data.workers=0",)))
Decoding = tuple[str, Mapping[str, Any]]
BESIDE: tuple[Decoding, ...] = (
    ("1 decoding thread", {"threads": 1}),
    ("4 decoding threads", {"threads": 4}),
    ("2 decoding processes", {"workers": 2}),
)


def bench_feed(
    corpus: Path, *, device: torch.device, stride: int = 4, rounds: int = 5, out: Path | None = None
) -> list[dict[str, Any]]:
    """All that a machine can show; a row for each. corpus: of proxies, or of originals. out: gets the rows, part by part.

    Raises ConfigError, CorpusError.
    """
    opened, cores = Corpus.open(corpus), len(os.sched_getaffinity(0))
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {}
    if device.type == "cuda":
        parts["trained"] = partial(trained, corpus, stride)
    parts["rates"] = partial(decoding_rates, opened, stride, rounds)
    if cores > 1:
        parts["contention"] = partial(contention, opened, stride, rounds)
    rows: list[dict[str, Any]] = []
    for part, measure in parts.items():
        rows += [row("feed", device, {"part": part, **figures, "cores": cores}) for figures in measure()]
        if out is not None:
            write_rows(out, rows)
    return rows


def _load(corpus: Corpus, stride: int, prefetch: int, first: int, how: Mapping[str, Any]) -> BaseClipLoader[Any]:
    sampler = Sampler.of(corpus, num_frames=16, stride=stride, seed=0)
    numbers = clip_numbers(BATCH, first)
    make = nvdec.ClipLoader if "calls" in how else ClipLoader
    return make(corpus, sampler, CropRecipe(), numbers, resolution=224, prefetch=prefetch, **how)


def rate_arms(cores: int) -> list[Decoding]:
    """One, two, and as many as the cores allow, of each; on a GPU also of processes that leave it planes."""
    numbers = sorted({1, 2, max(1, cores - 1)})
    threads: list[Decoding] = [(f"{number} thread{'s' * (number > 1)}", {"threads": number}) for number in numbers]
    processes: list[Decoding] = [(f"{number} process{'es' * (number > 1)}", {"workers": number}) for number in numbers]
    on_device: list[Decoding] = [
        (f"{name}, planes", {**how, "planes": True, "device": "cuda"})
        for name, how in processes
        if torch.cuda.is_available()
    ]
    return threads + processes + on_device + nvdec_arms(numbers[-1])


def nvdec_arms(threads: int) -> list[Decoding]:
    """NVDEC's open sessions, given a packet or a window a call; none without a GPU or PyNvVideoCodec."""
    if not torch.cuda.is_available() or find_spec(NVDEC_PACKAGE) is None:
        return []
    return [
        (f"NVDEC, {threads} threads, a {calls} a call", {"threads": threads, "device": "cuda", "calls": calls})
        for calls in get_args(Calls)
    ]


@contextmanager
def _on(core: int) -> Iterator[None]:
    """Inside, this thread, and all that it starts, are on one of the cores that it may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def contention(corpus: Corpus, stride: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of OPERATORS small operators on the first core, alone and beside decoding on the second one.

    least: where nothing else of the machine came between. operators_ms: means of a second each, see `_issue`.
    """
    threads_before, milliseconds = torch.get_num_threads(), defaultdict[str, list[float]](list)
    least = defaultdict[str, list[float]](list)

    def issue(name: str) -> None:
        mean, shortest = _issue()
        milliseconds[name].append(mean)
        least[name].append(shortest)

    torch.set_num_threads(1)
    for number in range(rounds):
        issue(ALONE)
        for name, how in BESIDE:
            with _on(1):
                loader = _load(corpus, stride, DEEP, number * 10_000, how)
            with loader:
                loader.wait_until_ready()
                next(loader)
                issue(name)
    torch.set_num_threads(threads_before)
    alone = milliseconds[ALONE]
    return [
        {
            "arm": name,
            "operators_ms": spread(values),
            "least_ms": spread(least[name]),
            "against_alone": spread([value / before for value, before in zip(values, alone, strict=True)]),
        }
        for name, values in milliseconds.items()
    ]


def _issue() -> tuple[float, float]:
    """Milliseconds of OPERATORS operators: their mean, less the time in which the thread was ready and had no core, which is other
    work's fault; and the least that they took."""
    x, taken = torch.ones(64), []
    with _on(0):
        queued, start = account_of_this_thread()[1], time.perf_counter()
        while (began := time.perf_counter()) < start + ISSUING_SECONDS:
            y = x
            for _ in range(OPERATORS):
                y = torch.add(y, 1.0)
            taken.append(1000 * (time.perf_counter() - began))
        waited = account_of_this_thread()[1] - queued
    return statistics.fmean(taken) - 1000 * waited / len(taken), min(taken)


def decoding_rates(corpus: Corpus, stride: int, rounds: int) -> list[dict[str, Any]]:
    """Clips/s that are delivered, and milliseconds of the training thread for each clip of a batch that is there already."""
    arms = rate_arms(len(os.sched_getaffinity(0)))
    speeds, host = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for number in range(rounds):
        for name, how in in_turns(arms, number):
            with _load(corpus, stride, AHEAD, number * 10_000, how) as loader:
                loader.wait_until_ready()
                for _ in range(AHEAD + 2):  # what was decoded ahead must not look as if it had cost nothing
                    next(loader)
                began, clips = time.perf_counter(), 0
                while time.perf_counter() - began < SECONDS:
                    clips += len(next(loader).numbers)
                speeds[name].append(clips / (time.perf_counter() - began))
                host[name].append(_taking_ms(loader, 2 * BATCH / speeds[name][-1]))
    first = speeds[arms[0][0]]
    return [
        {
            "arm": name,
            "clips_per_second": spread(values),
            "against_the_first": spread([value / one for value, one in zip(values, first, strict=True)]),
            "training_thread_ms_per_clip": spread(host[name]),
        }
        for name, values in speeds.items()
    ]


def _taking_ms(loader: BaseClipLoader[Any], step_seconds: float) -> float:
    """Milliseconds of this thread for a clip, while it launches operators between batches, as training does; a thread that slept
    finds its caches cold, and takes ten times as long."""
    x, busy, clips = torch.ones(64), 0.0, 0
    for number in range(3 * AHEAD):
        began = time.perf_counter()
        while time.perf_counter() - began < step_seconds:
            torch.add(x, 1.0)
        before = time.thread_time()
        taken = len(next(loader).numbers)
        if number >= AHEAD:  # until then batches that are waited for
            busy, clips = busy + time.thread_time() - before, clips + taken
    return 1000 * busy / clips


def trained(corpus: Path, stride: int) -> list[dict[str, Any]]:
    """Trained clips/s of the recipe's step: on resident data, behind decoding threads and processes, and such that leave planes."""
    opened, found = Corpus.open(corpus), list[dict[str, Any]]()
    for encoder, views in (("base", 1), ("base", 4), ("large", 1)):
        settings = [
            *(f"data.corpus={corpus}", f"data.stride={stride}", f"data.views_per_span={views}", "data.loader=cpu"),
            *("run.device=cuda", "run.dir=none", "run.compile=auto", f"model.encoder={encoder}"),
            *("optim.accumulation=1", "optim.batch=64"),
        ]
        config = load_config("surgrec_mae_unbalanced", settings)
        with open_run(config) as run:
            speed = 0.0
            for number, (arm, how) in enumerate(TRAINED):
                numbers = run_numbers(run, first_step=1000 * number)
                if how is None:
                    frames = made_clips(config, config.optim.clips_at_once, 0)
                    times = time_steps(run, resident(run, frames, numbers), 20, warmup=8, first_step=1000 * number)
                    speed = times.clips_per_second
                else:
                    loading = load_config("surgrec_mae_unbalanced", [*settings, *how])
                    sampler = samplers_by_clip(loading, opened)(0)
                    with build_loader(loading, opened, sampler, numbers, run.world.device) as loader:
                        warmup = config.data.prefetch + 2
                        times = time_steps(run, iter(loader), 12, warmup=warmup, first_step=1000 * number)
                of = {"arm": arm, "encoder": encoder, "views_per_span": views, "batch": config.optim.batch}
                rate, wait = times.clips_per_second, times.data_wait_percent
                step_ms = spread([1000 * seconds for seconds in times.seconds])
                figures = {"clips_per_second": rate, "of_resident": rate / speed}
                found.append({**of, **figures, "data_wait_percent": wait, "step_ms": step_ms})
    return found


TABLES: dict[str, dict[str, str | Callable[[Any], str]]] = {
    "rates": {
        "decoding": "{arm}",
        "clips/s": spread_cell("clips_per_second", 1, "to"),
        "against 1 thread": spread_cell("against_the_first", 2, "to"),
        "training thread, ms a clip": "{training_thread_ms_per_clip[median]:.3f}",
    },
    "contention": {
        f"{OPERATORS:,} operators on a core, beside": "{arm}",
        "ms": spread_cell("operators_ms", 2, "to"),
        "against alone": spread_cell("against_alone", 2, "to"),
        "least ms": "{least_ms[low]:.2f}",
    },
    "trained": {
        "step": lambda row: f"ViT-{row['encoder'][0].upper()}, {row['views_per_span']} views a span",
        "clips from": "{arm}",
        "trained clips/s": "{clips_per_second:.0f}",
        "of resident": share_cell("of_resident"),
        "data wait": "{data_wait_percent:.0f} %",
    },
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As docs/performance.md has them."""
    parts = [(columns, [entry for entry in rows if entry["part"] == part]) for part, columns in TABLES.items()]
    return "\n\n".join(Table.of(found, columns).markdown() for columns, found in parts if found)
