"""What a model card says of the videos that a run drew from: sources and hours, what was left out and why, benchmarks among them.

Names of files and folders stay out, but those of lists of videos that a rule names, without their folders.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import CorpusError
from ...loaders.corpus.selection import select_videos
from ...loaders.curate.settings import read_summary
from ...loaders.draw.screened import has_screen, screened
from ..config.settings import Config, ConfigError
from ..console.table import Table, hours
from ..draws.samplers import held_out

UNKNOWN = "unknown"
GONE = f"{UNKNOWN}: the corpus is not where the run read it"
OVERLAP = f"{UNKNOWN}; `trocar bench audit --corpus --json` tells, and `trocar export --audited` writes it here"

Chosen = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def corpus_section(folder: str, config: Config, audited: list[str] | None = None) -> str:
    """Markdown. folder: in which the run was started. audited: of `audited_lines`."""
    try:
        corpus = Corpus.open(Path(folder) / config.data.corpus)
    except (CorpusError, OSError):
        corpus = None
    chosen = None if corpus is None else _chosen(corpus, config)
    cells = [
        *_hygiene(corpus, config),
        *([("never a target", "text and logos")] if config.objective.ignore == "overlays" else []),
        *_curation(Path(folder), config),
        ("videos left out by rules", _rules(corpus, config, chosen)),
        ("videos held out for validation", _held_out(corpus, config, chosen)),
    ]
    parts = [_sources(corpus, chosen), Table(("what was done with it", "as recorded"), cells).markdown()]
    if audited:
        parts.append("Videos of benchmarks in it:\n" + "\n".join(f"- {line}" for line in audited))
    else:
        parts.append(f"Videos of benchmarks in it: {OVERLAP}.")
    return "\n\n".join(parts)


def _chosen(corpus: Corpus, config: Config) -> Chosen | None:
    """(V,) which videos rules let through, and which of all are held out; None where these do not fit the corpus any more."""
    try:
        wanted, held = select_videos(corpus, config.data.include, config.data.exclude).wanted, held_out(config, corpus)
    except (ConfigError, CorpusError, OSError):
        return None
    return wanted, np.zeros_like(wanted) if held is None else held


def _sources(corpus: Corpus | None, chosen: Chosen | None) -> str:
    """Of the videos that were drawn from; of all where that is not known."""
    if corpus is None:
        return f"{GONE}."
    drawn = np.ones(len(corpus), bool) if chosen is None else chosen[0] & ~chosen[1]
    lasting: dict[tuple[str, str, str], list[float]] = {}
    for row, is_drawn in zip(corpus.scan("source", "domain", "licence", "duration_seconds"), drawn, strict=True):
        if not is_drawn:
            continue
        key = (row["source"] or UNKNOWN, row["domain"] or UNKNOWN, row["licence"] or UNKNOWN)
        lasting.setdefault(key, []).append((row["duration_seconds"] or 0) / 3600)
    cells = [(*key, f"{len(found):,}", hours(sum(found))) for key, found in sorted(lasting.items())]
    table = Table(("source", "domain", "licence", "videos", "hours"), cells).markdown()
    told = "drawn from" if chosen is not None else "in the corpus; which of them were drawn from is unknown"
    return f"{table}\n\n{hours(sum(map(sum, lasting.values())))} hours {told}."


def _hygiene(corpus: Corpus | None, config: Config) -> list[tuple[str, str]]:
    """Screen, conditions and cuts, with the hours that they take, as the corpus is now."""
    where, within = config.data.where, config.data.within_shots
    wanted = "no condition (data.where)" if where is None else f"only where {where}"
    if corpus is None:
        return [("screened for what is no surgery", GONE), ("drawn", wanted)]
    if not has_screen(corpus):
        return [("screened for what is no surgery", "no"), ("drawn", wanted)]
    try:
        found = screened(corpus, where, within)
    except CorpusError:
        return [("screened for what is no surgery", f"{UNKNOWN}: its screen is not of these videos"), ("drawn", wanted)]
    notes = ["clips may cross cuts (data.within_shots)"] if found is None else found.notes
    return [
        ("screened for what is no surgery", "yes"),
        ("drawn", wanted),
        ("what that takes away", "; ".join(notes) or "nothing"),
    ]


def _curation(folder: Path, config: Config) -> list[tuple[str, str]]:
    data = config.data
    if data.tree is None:
        tree = "no: spans were drawn alike"
    else:
        summary = read_summary(folder / data.tree)
        levels = UNKNOWN if summary is None else " / ".join(f"{count:,}" for count in summary.levels)
        size = "" if summary is None else f" of {summary.spans:,} spans"
        tree = f"yes, levels of {levels} clusters{size}, balance {data.balance:g}"
    often = "any number of times" if data.max_repeats is None else f"at most {data.max_repeats:g} times"
    found = [("drawn from a tree of clusters", tree), ("a span is drawn in an epoch", often)]
    if data.phases:
        found.append(
            ("phases with draws of their own", f"{len(data.phases):,}; the rest of this table is of the first")
        )
    return found


def _rules(corpus: Corpus | None, config: Config, chosen: Chosen | None) -> str:
    data = config.data
    if not (data.include or data.exclude):
        return "none"
    lists = sorted({Path(entry[1:]).name for entry in (*data.include, *data.exclude) if entry.startswith("@")})
    rules = f"{len(data.include):,} entries of data.include, {len(data.exclude):,} of data.exclude"
    rules += f" (lists: {', '.join(lists)})" if lists else ""
    if corpus is None:
        return f"{rules}; how many videos: {GONE}"
    if chosen is None:
        return f"{rules}; how many videos: {UNKNOWN}, the rules do not fit the corpus any more"
    return f"{_counted(corpus, ~chosen[0])}: {rules}"


def _held_out(corpus: Corpus | None, config: Config, chosen: Chosen | None) -> str:
    if not config.validation.is_wanted:
        return "none"
    if corpus is None or chosen is None:
        return f"some; how many: {UNKNOWN}"
    return f"{_counted(corpus, chosen[1])}; never drawn from"


def _counted(corpus: Corpus, videos: NDArray[np.bool_]) -> str:
    seconds = np.array([row["duration_seconds"] or 0.0 for row in corpus.scan("duration_seconds")])
    return f"{int(videos.sum()):,} of {len(videos):,} videos, {hours(seconds[videos].sum() / 3600)} hours"
