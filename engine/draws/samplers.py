"""What a run draws of its corpus: samplers, held-out videos, and the order in which clips come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import DESCRIPTION, SPANS_NAME, CorpusError, tree_file
from ...loaders.corpus.selection import Selection, hold_out, select_videos
from ...loaders.corpus.spans import Screen
from ...loaders.draw.clip_list import check_proxies
from ...loaders.draw.order import ClipOrder
from ...loaders.draw.phases import DrawSettings, PlannedOrder, plan_order, uniform_order
from ...loaders.draw.sampler import Sampler
from ...loaders.draw.screened import screened
from ...loaders.draw.tree_draws import TreeOrder
from ..config.settings import Config, ConfigError, DataConfig
from .phases import phase_at, phases

MANY_REPEATS = 10  # of a span an epoch: the default of data.max_repeats


def build_order(config: Config) -> ClipOrder:
    return ClipOrder(config.data.views_per_span, config.data.pool_spans, config.data.lanes, config.run.seed)


def drawn_from(config: Config, corpus: Corpus) -> dict[str, str]:
    """What draws hang on beside settings, by its name in a sentence: the corpus in words, of the others digests of what they are
    now. Of a file that cannot be read, whoever reads it says why."""
    data, validation = config.data, config.validation
    entries = [entry for phase in (data, *data.phases) for entry in (*(phase.include or ()), *(phase.exclude or ()))]
    files = {f"the list {entry}": entry[1:] for entry in (*entries, *validation.videos) if entry.startswith("@")}
    trees = {phase.tree for phase in (data, *data.phases) if phase.tree is not None}
    files |= {f"the tree {tree}": tree_file(tree) for tree in trees}
    if data.where or data.within_shots is not False:
        files["the corpus's screen"] = Path(corpus.path) / SPANS_NAME
    found = {name: _digest(Path(path).read_bytes()) for name, path in files.items() if Path(path).is_file()}
    found["its table of sources"] = _digest(repr([tuple(row.values()) for row in corpus.scan(*DESCRIPTION)]).encode())
    return {"the corpus": f"{len(corpus):,} videos of {int(corpus.frames.sum()):,} frames", **found}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def samplers_by_clip(config: Config, corpus: Corpus) -> Callable[[int], Sampler]:
    """Of a clip's number, the sampler that draws it. Raises ConfigError where the corpus does not hold what a phase asks for."""
    found = phases(config)
    samplers = []
    for number, phase in enumerate(found):
        try:
            samplers.append(build_sampler(phase.config, corpus))
        except ConfigError as error:
            raise ConfigError(f"data.sizes[{number - 1}]: {error}" if number else str(error)) from error
    return lambda clip: samplers[phase_at(found, clip)]


def screen_to_ignore_by(config: Config, corpus: Corpus) -> Screen:
    """What objective.ignore goes by. Raises ConfigError where the corpus has no screen, or not of every video."""
    try:
        return Screen(corpus)
    except CorpusError as error:
        raise ConfigError(f"objective.ignore: {config.objective.ignore}, but {error}") from error


def draws_fingerprints(config: Config, sampler_at: Callable[[int], Sampler], order: ClipOrder, clips: int) -> list[str]:
    """One for each size of clip (data.sizes) that has come by then: it changes when any draw of the first `clips` clips may."""
    stop = order.draws_before(clips)
    return [sampler_at(phase.first_clip).fingerprint(stop) for phase in phases(config) if phase.first_clip < clips]


def build_sampler(config: Config, corpus: Corpus) -> Sampler:
    """The sampler of originals and proxies alike: data.stride counts frames of the originals.

    Raises ConfigError where the proxies hold too few frames or pixels for what is asked.
    """
    _check_proxies(config.data, corpus)
    make = _sampler_of(config.data, corpus)
    plan = plan_draws(config, corpus, make())
    return make(seed=config.run.seed, order=None if plan is None else plan.order)


def build_held_out_sampler(config: Config, corpus: Corpus) -> Sampler:
    """Draws from the held-out videos, all their spans alike. Raises ConfigError where there are none."""
    held = held_out(config, corpus)
    assert held is not None
    make, seed = _sampler_of(config.data, corpus), config.validation.seed
    return make(seed=seed, order=uniform_order(make(), held, seed))


def _sampler_of(data: DataConfig, corpus: Corpus) -> Callable[..., Sampler]:
    timing = {"num_frames": data.frames, "stride": data.stride, "sample_fps": data.sample_fps}
    try:
        found = screened(corpus, data.where, data.within_shots)
    except CorpusError as error:
        raise ConfigError(str(error)) from error
    return partial(Sampler.of, corpus, **timing, screened=found)


def held_out(config: Config, corpus: Corpus) -> NDArray[np.bool_] | None:
    """(V,) the videos that training never draws; None where validation asks for none. Raises ConfigError."""
    found = _hold_out(config, corpus)
    return None if found is None else found.wanted


def selection_notes(config: Config, corpus: Corpus) -> list[str]:
    """What every entry of data.include, data.exclude, those of phases, and validation.videos came to. Raises CorpusError and
    ConfigError."""
    data, notes = config.data, []
    for phase in (data, *data.phases):
        notes += select_videos(corpus, phase.include or (), phase.exclude or ()).notes
    held, found = _hold_out(config, corpus), screened(corpus, data.where, data.within_shots)
    parts = [] if found is None else found.notes
    return [*dict.fromkeys(notes), *([] if held is None else held.notes), *parts]


def _hold_out(config: Config, corpus: Corpus) -> Selection | None:
    validation, data = config.validation, config.data
    if not validation.is_wanted:
        return None
    try:
        among = select_videos(corpus, data.include, data.exclude).wanted
        return hold_out(corpus, among, validation.videos, validation.fraction, validation.seed)
    except CorpusError as error:
        raise ConfigError(str(error)) from error


def plan_draws(config: Config, corpus: Corpus, grid: Sampler) -> PlannedOrder | None:
    """The order of a run that draws otherwise than from all spans alike. grid: a sampler without an order."""
    data = config.data
    names = [item.name for item in fields(DrawSettings)]
    settings = [DrawSettings(**{name: getattr(data, name) for name in names if name != "first_draw"})]
    held = held_out(config, corpus)
    is_plain = replace(settings[0], max_repeats=None) == DrawSettings() and (data.max_repeats or 1) >= 1
    if is_plain and not data.phases and held is None:
        return None
    for phase in data.phases:
        changed = {name: getattr(phase, name) for name in names if getattr(phase, name) is not None}
        settings.append(replace(settings[-1], **changed))
    try:
        return plan_order(corpus, settings, grid, config.run.seed, held)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error


def _check_proxies(data: DataConfig, corpus: Corpus) -> None:
    try:
        check_proxies(corpus, slice(None), stride=data.stride, sample_fps=data.sample_fps)
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error
    sides = [min(v["width"], v["height"]) for v in corpus.scan("original", "width", "height") if v["original"]]
    # Proxies are no larger than their originals, so a few small ones say nothing.
    if sides and max(sides) < data.resolution:
        raise ConfigError(
            f"data.resolution: {data.resolution} is more than the {max(sides)} pixels of the largest proxy's short side in "
            f"{corpus.path}; set data.resolution={max(sides)}, or pack larger originals again: trocar pack --short-side "
            f"{data.resolution + data.resolution % 2}"
        )


def repeats_line(order: object) -> str:
    """How often spans come an epoch, and how few of them half of all draws are; nothing where all come alike. With a warning where
    some come more than `MANY_REPEATS` times."""
    if not isinstance(order, TreeOrder):
        return ""
    repeats = np.sort(order.repeats)[::-1]
    if np.ptp(repeats) < 1e-6:
        return ""
    half = int(np.searchsorted(np.cumsum(repeats), repeats.sum() / 2)) + 1
    line = (
        f"a span comes {repeats[-1]:.2g} to {repeats[0]:.3g} times an epoch; half of all draws are of {half:,} of "
        f"{len(repeats):,} spans"
    )
    if repeats[0] > MANY_REPEATS:
        line += (
            "\nwarning: that is many times for the same pictures; set data.max_repeats "
            f"({MANY_REPEATS} or less) or a lower data.balance"
        )
    return line
