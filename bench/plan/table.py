"""A plan as Markdown: its arms, the bottleneck of each in a sentence, and the rates that it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...engine.console.table import Table
from ..profile.stages import NAMES
from .model import COMPUTE, CORES, DECODE, EXCHANGE, INTERPRETER, STORAGE, Compute
from .report import Form, Plan


def sentence(arm: Form, compute: Compute) -> str:
    """The bottleneck of an arm, and what moves it."""
    step = arm.step
    name = step.bottleneck
    cause = {
        COMPUTE: "the step's computation",
        DECODE: f"the loader: decoding on {'NVDEC' if step.decoder == 'nvdec' else 'CPU cores'}",
        STORAGE: "the loader: reading from storage",
        EXCHANGE: "the exchange of gradients",
        CORES: "the processor cores, which decoding and computing share",
        INTERPRETER: "the training's interpreter, which decoding threads share",
    }[name]
    if name in (COMPUTE, CORES) and compute.stage:
        cause += f", of which {NAMES.get(compute.stage, compute.stage)} takes {compute.stage_share:.0%}"
    useful = [f"{lever.name} ({lever.gain:.2f}x)" for lever in arm.levers if lever.gain > 1.02]
    moved = f"what moves it: {', '.join(useful)}" if useful else "none of the changes looked at moves it alone"
    return f"{arm.name}: the bottleneck is {cause}; {moved}. It rests on {rests_on(arm, compute)}."


def rests_on(arm: Form, compute: Compute) -> str:
    """Whether the rates of the bottleneck were measured."""
    videos = arm.videos
    used = {
        COMPUTE: [compute.seconds_per_clip],
        DECODE: [videos.core_seconds_per_span],
        STORAGE: [videos.bytes_per_span],
        EXCHANGE: [],
        CORES: [compute.seconds_per_clip, videos.core_seconds_per_span],
        INTERPRETER: [compute.seconds_per_clip],
    }[arm.step.bottleneck]
    if arm.step.decoder == "nvdec" and arm.step.bottleneck == DECODE and videos.nvdec_pictures_per_second is not None:
        used = [videos.nvdec_pictures_per_second]
    if not used:
        return "the cluster's description"
    return "measured rates" if all(rate.is_measured for rate in used) else "an assumed rate"


def table(plan: Plan) -> str:
    """Markdown: the arms, their bottlenecks, and the rates, measured and assumed apart."""
    columns: dict[str, Callable[[Form], str]] = {
        "videos": lambda form: form.name,
        "clips/s": lambda form: _figure(form.step.clips_per_second),
        "unique spans/s": lambda form: _figure(form.step.spans_per_second),
        "bottleneck": lambda form: form.step.bottleneck + f" ({form.step.decoder})" * (form.step.bottleneck == DECODE),
        "time": lambda form: _time(form.days),
        "GPU-hours": lambda form: _figure(form.gpu_hours),
        "core-hours": lambda form: _figure(form.core_hours),
        "of them packing": lambda form: _figure(form.packing_core_hours),
        "storage": lambda form: "unknown" if form.terabytes is None else _size(form.terabytes),
    }
    if any(form.money is not None for form in plan.arms):
        columns[plan.cluster.prices.currency] = lambda form: "unknown" if form.money is None else _figure(form.money)
    frames = plan.corpus.frames
    counted = f"{frames / 1e6:,.1f} M frames" if frames >= 1e6 else f"{frames:,} frames"
    lines = [
        f"{plan.cluster.name}: {plan.corpus.videos:,} videos, {counted}, {plan.corpus.spans:,} spans; "
        f"{plan.config.model.encoder} {plan.config.objective.kind}, {plan.clips:,} clips in steps of {plan.config.optim.batch:,}",
        "",
        Table.of(plan.arms, columns).markdown(),
        "",
        *(f"- {sentence(form, plan.compute)}" for form in plan.arms),
    ]
    if plan.proxies:
        kept = plan.corpus.frames / (plan.config.data.stride or 1)
        lines += ["", "Proxies by codec (`trocar pack --codec`):", ""]
        lines += [f"- {codec.sentence(kept)}" for codec in plan.proxies]
    for is_measured, title in ((True, "Measured"), (False, "Assumed")):
        chosen = [
            (name, rate) for name, rate in plan.rates if rate.is_measured == is_measured and math.isfinite(rate.value)
        ]
        if chosen:
            lines += ["", f"{title}:", ""]
            lines += [f"- {name}: {_figure(rate.value)} ({rate.origin})" for name, rate in chosen]
    return "\n".join(lines)


def _time(days: float) -> str:
    if days >= 1 or not math.isfinite(days):
        return f"{_figure(days)} days"
    return f"{_figure(24 * days)} h" if 24 * days >= 1 else f"{_figure(86400 * days)} s"


def _size(terabytes: float) -> str:
    return f"{_figure(terabytes)} TB" if terabytes >= 1 else f"{_figure(1e3 * terabytes)} GB"


def _figure(value: float) -> str:
    """Three digits that count."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "never"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"
