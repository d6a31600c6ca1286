"""What a run is asked to draw, phase by phase -> the order of its draws (`tree_draws.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..corpus.corpus import Corpus
from ..corpus.folder import CorpusError
from ..corpus.selection import select_videos
from .limits import effective_limit
from .sampler import Sampler
from .shares import capped_quotas
from .tree import ClusterTree, TreeSpans, place_tree
from .tree_draws import Phase, TreeOrder


@dataclass(frozen=True)
class DrawSettings:
    """How a phase draws.

    first_draw: of the run, at the end of an epoch of the phase before. tree: folder that `trocar cluster` wrote; None: all spans
    alike. balance: 0 the corpus as it is .. 1 every branch of the tree alike. max_repeats: most draws of one span an epoch.
    epoch_draws: draws an epoch, None: as many as there are spans. source_caps: the largest share of the draws that a source
    gets. thin: leave out spans that are nearer than this to another of their leaf. include, exclude: see `selection`.
    """

    first_draw: int = 0
    tree: str | None = None
    balance: float = 1.0
    max_repeats: float | None = None
    epoch_draws: int | None = None
    source_caps: Mapping[str, float] = field(default_factory=dict)
    thin: float | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedOrder:
    """order: of the draws. notes: what was left out, for the log."""

    order: TreeOrder
    notes: list[str]


def plan_order(
    corpus: Corpus,
    phases: Sequence[DrawSettings],
    grid: Sampler,
    seed: int,
    held_out: NDArray[np.bool_] | None = None,
) -> PlannedOrder:
    """The order of draws that `phases` describe. grid: a sampler without an order, whose spans are drawn where there is no tree.
    held_out: (V,) videos that no phase draws, whatever it includes.

    Raises CorpusError or ValueError, which name the setting.
    """
    planned, notes = [], []
    trees: dict[str, ClusterTree] = {}
    for settings in phases:
        selection = select_videos(corpus, settings.include, settings.exclude)
        notes += [f"from draw {settings.first_draw:,}: {note}" for note in selection.notes]
        wanted = selection.wanted if held_out is None else selection.wanted & ~held_out
        if not wanted.any():
            raise CorpusError(
                f"{corpus.path}: from draw {settings.first_draw:,} on every video that may be drawn is held out for validation"
            )
        groups = _source_groups(corpus, settings.source_caps)
        if settings.tree is None:
            if settings.thin is not None:
                raise ValueError("data.thin needs data.tree, which knows how near spans are to each other")
            spans = grid_spans(grid, wanted, groups)
        else:
            tree = trees.setdefault(settings.tree, ClusterTree.read(settings.tree))
            spans = place_tree(tree, corpus, wanted, groups, settings.thin, grid.stretches.within)
            notes += _left_out(tree, settings)
        epoch_draws = settings.epoch_draws or len(spans.video)
        levels = spans.paths.shape[1]
        balances = [settings.balance] * levels if groups is None else [settings.balance] * (levels - 1) + [0.0]
        leaf_groups = np.full(levels and len(spans.leaf), -1) if groups is None else spans.paths[:, -1].astype(np.int64)
        # All spans alike come once an epoch each, which nothing above 1 limits.
        is_free = settings.tree is None and settings.epoch_draws is None and (settings.max_repeats or 1) >= 1
        most = None if is_free or settings.max_repeats is None else effective_limit(settings.max_repeats)
        quotas = capped_quotas(
            spans.paths,
            spans.sizes,
            leaf_groups,
            epoch_draws,
            balances,
            float("inf") if most is None else most,
            list(settings.source_caps.values()),
        )
        limit = None if most is None else max(1, int(most))
        planned.append(Phase(settings.first_draw, spans, quotas, epoch_draws, limit))
    return PlannedOrder(TreeOrder(planned, seed), notes)


def _source_groups(corpus: Corpus, caps: Mapping[str, float]) -> NDArray[np.int64] | None:
    """(V,) the number of each video's cap, -1 without one; None where there are no caps."""
    if not caps:
        return None
    sources = [row["source"] for row in corpus.scan("source")]
    if unknown := [name for name in caps if name not in sources]:
        known = ", ".join(sorted(set(sources) - {""})) or "none; give the corpus a column `source` (corpus.csv)"
        raise CorpusError(f"data.source_caps: no video has the source {unknown[0]!r}; known are {known}")
    numbers = {name: index for index, name in enumerate(caps)}
    return np.array([numbers.get(source, -1) for source in sources], dtype=np.int64)


def uniform_order(grid: Sampler, wanted: NDArray[np.bool_], seed: int) -> TreeOrder:
    """All spans of the grid alike, of the videos that are wanted (V,)."""
    spans = grid_spans(grid, wanted, None)
    total = len(spans.video)
    return TreeOrder([Phase(0, spans, np.array([total], dtype=np.float64), total)], seed)


def grid_spans(grid: Sampler, wanted: NDArray[np.bool_], groups: NDArray[np.int64] | None) -> TreeSpans:
    """All spans in one leaf, or in one a group."""
    video, first, frames = grid.grid()
    kept = wanted[video]
    video, first, frames = video[kept], first[kept], frames[kept]
    group = np.zeros(len(video), dtype=np.int64) if groups is None else groups[video]
    order = np.argsort(group, kind="stable")
    group = group[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(group) != 0]))
    paths = np.zeros((len(starts), 1), dtype=np.int32)
    if groups is not None:
        paths = np.column_stack([paths, group[starts]]).astype(np.int32)
    return TreeSpans(
        video[order].astype(np.int32),
        first[order],
        frames[order].astype(np.int32),
        np.append(starts, len(group)).astype(np.int64),
        np.arange(len(starts), dtype=np.int32),
        paths,
    )


def _left_out(tree: ClusterTree, settings: DrawSettings) -> list[str]:
    notes = []
    if lost := int((tree.leaf < 0).sum()):
        notes.append(f"from draw {settings.first_draw:,}: {lost:,} spans have no leaf (they could not be embedded)")
    if settings.thin is not None:
        near = int((tree.duplicate_distance < settings.thin).sum())
        notes.append(f"from draw {settings.first_draw:,}: {near:,} near-duplicate spans are thinned out")
    return notes
