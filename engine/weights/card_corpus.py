"""What a model card says of the videos that a run drew from: sources and hours, what was left out and why, benchmarks among them.

Names of files and folders stay out, but those of lists of videos that a rule names, without their folders.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import CorpusError
from ...loaders.corpus.selection import select_videos
from ...loaders.curate.settings import read_summary
from ...loaders.draw.screened import has_screen, screened
from ..config.settings import Config
from ..console.table import Table

UNKNOWN = "unknown"
GONE = f"{UNKNOWN}: the corpus is not where the run read it"
OVERLAP = f"{UNKNOWN}; `trocar bench audit --corpus --json` tells, and `trocar export --audited` writes it here"


def corpus_section(folder: str, config: Config, audited: list[str] | None = None) -> str:
    """Markdown. folder: in which the run was started. audited: of `audited_lines`."""
    try:
        corpus = Corpus.open(Path(folder) / config.data.corpus)
    except (CorpusError, OSError):
        corpus = None
    cells = [
        *_hygiene(corpus, config),
        *_curation(Path(folder), config),
        ("videos left out by rules", _rules(corpus, config)),
    ]
    parts = [_sources(corpus), Table(("what was done with it", "as recorded"), cells).markdown()]
    if audited:
        parts.append("Videos of benchmarks in it:\n" + "\n".join(f"- {line}" for line in audited))
    else:
        parts.append(f"Videos of benchmarks in it: {OVERLAP}.")
    return "\n\n".join(parts)


def _sources(corpus: Corpus | None) -> str:
    if corpus is None:
        return f"{GONE}."
    hours: dict[tuple[str, str, str], list[float]] = {}
    for row in corpus.scan("source", "domain", "licence", "duration_seconds"):
        key = (row["source"] or UNKNOWN, row["domain"] or UNKNOWN, row["licence"] or UNKNOWN)
        hours.setdefault(key, []).append((row["duration_seconds"] or 0) / 3600)
    cells = [(*key, f"{len(found):,}", f"{sum(found):,.2f}") for key, found in sorted(hours.items())]
    table = Table(("source", "domain", "licence", "videos", "hours"), cells).markdown()
    return f"{table}\n\n{sum(map(sum, hours.values())):,.2f} hours."


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


def _rules(corpus: Corpus | None, config: Config) -> str:
    data = config.data
    if not (data.include or data.exclude):
        return "none"
    lists = sorted({Path(entry[1:]).name for entry in (*data.include, *data.exclude) if entry.startswith("@")})
    rules = f"{len(data.include):,} entries of data.include, {len(data.exclude):,} of data.exclude"
    rules += f" (lists: {', '.join(lists)})" if lists else ""
    if corpus is None:
        return f"{rules}; how many videos: {GONE}"
    try:
        wanted = select_videos(corpus, data.include, data.exclude).wanted
    except (CorpusError, OSError):
        return f"{rules}; how many videos: {UNKNOWN}, the rules do not fit the corpus any more"
    seconds = np.array([row["duration_seconds"] or 0.0 for row in corpus.scan("duration_seconds")])
    return f"{int((~wanted).sum()):,} of {len(wanted):,} videos, {seconds[~wanted].sum() / 3600:,.2f} hours: {rules}"
