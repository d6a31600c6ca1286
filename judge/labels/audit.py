"""`trocar bench audit`: what is wrong with a labelled table before anything is trained on it.

Shapes: N rows of a table, D values of a descriptor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.console.table import Table
from .annotations import missing_videos
from .corpus_overlap import KnownVideo, overlap
from .dataset import SPLITS, Card, Segment
from .faults import EXAMPLES, Finding, find_faults, names_of

UNPUBLISHED = "not published"  # what cards say of patients whom nobody names
SIMILAR = 0.99  # cosine of two descriptors from which clips count as the same
BLOCK = 1024


@dataclass(frozen=True)
class Audit:
    """rows, subjects: of each split that has any. shares: of each class in each split. majority: accuracy of the training split's
    largest class on the others, NaN without training rows. findings: the faults. notes: what is no fault, but limits what a score
    says. title: of the card. compared_videos: of a corpus, None where none was looked at. origin: where the split comes from, in
    words."""

    rows: dict[str, int]
    subjects: dict[str, int]
    shares: dict[str, dict[str, float]]
    majority: dict[str, float]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    title: str = ""
    compared_videos: int | None = None
    origin: str = ""

    def lines(self) -> list[str]:
        """As text: a table of classes, then the faults."""
        splits = list(self.rows)
        counts = [("rows", self.rows), ("subjects", self.subjects)]
        cells = [(name, *(f"{row[split]:,}" for split in splits)) for name, row in counts]
        cells += [(name, *(f"{shares[split]:.1%}" for split in splits)) for name, shares in self.shares.items()]
        lines = Table(("", *(split or "(none)" for split in splits)), cells).text().splitlines()
        lines += [f"majority baseline on {split}: {score:.2%}" for split, score in self.majority.items()]
        return [
            *([self.origin] if self.origin else []),
            *lines,
            *self.notes,
            *map(str, self.findings or ("no fault found",)),
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def audit(
    table: Sequence[Segment],
    card: Card | None = None,
    *,
    describe: Callable[[Sequence[Segment]], NDArray] | None = None,
    similar: float = SIMILAR,
    corpus: Sequence[KnownVideo] | None = None,
    cache: Path | None = None,
) -> Audit:
    """Looks for faults.

    card: tells what is no class, and names of the same videos elsewhere. describe: makes (N, D) vectors of rows, by which clips are
    compared across splits; from the cosine `similar` on they count as the same. corpus: the videos that a model is pretrained on,
    with which those of all splits but train are compared; cache: as of `overlap`. Raises ValueError on an empty table, DatasetError
    and VideoError where a video that is to be compared is not there or cannot be read.
    """
    if not table:
        raise ValueError("the table is empty; give at least one row")
    present = [split for split in (*SPLITS, "") if any(segment.split == split for segment in table)]
    of_split = {split: [segment for segment in table if segment.split == split] for split in present}
    names = _label_names(table, card)
    findings = find_faults(table, of_split, card)
    if describe is not None:
        findings += duplicates(table, describe(table), similar=similar)
    if corpus is not None:
        findings += _pretraining(of_split, corpus, card, cache)
    return Audit(
        {split: len(rows) for split, rows in of_split.items()},
        {split: len({segment.subject for segment in rows}) for split, rows in of_split.items()},
        {
            name: {split: sum(name in names_of(s, card) for s in rows) / len(rows) for split, rows in of_split.items()}
            for name in names
        },
        {} if card and card.several else _majority(of_split),
        tuple(findings),
        (*_unpublished(card), *_lacking(of_split, card), *_not_trained(of_split, card)),
        card.title if card else "",
        None if corpus is None else len(corpus),
    )


def missing(table: Sequence[Segment]) -> list[Finding]:
    """Videos that are not there."""
    found = missing_videos(table)
    if not found:
        return []
    gone = set().union(*found.values())
    told = ", ".join(f"{split or 'in no split'} {len(found[split])}" for split in (*SPLITS, "") if split in found)
    detail = (
        f"{len(gone)} of {len({s.video for s in table})} videos are not there ({told}); correct their paths (relative ones of a "
        "table begin at ROOT)"
    )
    share = sum(segment.video in gone for segment in table) / len(table)
    return [Finding("missing videos", share, detail, tuple(sorted(gone)[:EXAMPLES]))]


def duplicates(table: Sequence[Segment], vectors: NDArray, *, similar: float = SIMILAR) -> list[Finding]:
    """Clips of a later split that look like one of an earlier split, and are not pieces of the same video.

    vectors: (N, D), compared by their cosine. Raises ValueError where a row has none.
    """
    rows = np.asarray(vectors, np.float32)
    if rows.ndim != 2 or len(rows) != len(table):
        raise ValueError(f"{len(table)} rows have descriptors of shape {rows.shape}")
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    videos = np.unique([segment.video for segment in table], return_inverse=True)[1]
    findings = []
    for first, second in combinations(SPLITS, 2):
        left, right = (np.array([n for n, s in enumerate(table) if s.split == split], int) for split in (first, second))
        pairs = []
        for start in range(0, len(right) if len(left) else 0, BLOCK):
            block = right[start : start + BLOCK]
            cosines = rows[block] @ rows[left].T
            # Pieces of one video are what "videos" finds.
            cosines[videos[block][:, None] == videos[left]] = -1
            near = cosines.max(axis=1) >= similar
            pairs += zip(block[near].tolist(), left[cosines.argmax(axis=1)[near]].tolist(), strict=True)
        if pairs:
            shown = tuple(f"{table[a].video} like {table[b].video}" for a, b in pairs[:EXAMPLES])
            detail = f"{len(pairs)} of {len(right)} rows of {second} look like rows of {first}"
            findings.append(Finding("duplicates", len(pairs) / len(right), detail, shown))
    return findings


def _pretraining(
    of_split: dict[str, list[Segment]], corpus: Sequence[KnownVideo], card: Card | None, cache: Path | None
) -> list[Finding]:
    """Of all splits but train, which videos stand in a corpus too."""
    table = [segment for split, rows in of_split.items() if split != "train" for segment in rows]
    found = overlap(table, corpus, card, cache)
    findings = []
    for split in of_split:
        rows = [segment for segment in found.rows if segment.split == split]
        if rows:
            detail = f"{len(rows)} rows of {split} come from videos of the corpus"
            findings.append(Finding("pretraining", len(rows) / len(of_split[split]), detail, found.names(rows)))
    if found.unread:
        detail = f"{len(found.unread)} videos of the corpus, as long as some here, cannot be read"
        findings.append(Finding("pretraining not compared", 1.0, detail, found.unread[:EXAMPLES]))
    return findings


def _unpublished(card: Card | None) -> list[str]:
    if card is None or UNPUBLISHED not in card.subject:
        return []
    return [f"the subject is {card.subject}: a split by it is as free of leaks as can be known, not more"]


def _lacking(of_split: dict[str, list[Segment]], card: Card | None) -> list[str]:
    """Which splits have no row of some classes."""
    found = _label_names([segment for rows in of_split.values() for segment in rows], card)
    # The release's labels may be numbers, of which only those that occur are known.
    classes = card.classes if card and {*card.classes} & {*found} else ()
    names = [*classes, *(name for name in found if name not in classes)]
    lines = []
    for split, rows in of_split.items():
        known = {label for segment in rows for label in names_of(segment, card)}
        lacking = [name for name in names if name and name not in known]
        if split and lacking:
            lines.append(f"{split} has no row of {len(lacking)} of {len(names)} classes: {', '.join(lacking)}")
    return lines


def _not_trained(of_split: dict[str, list[Segment]], card: Card | None) -> list[str]:
    """Classes that are asked for and not taught."""
    known = {label for segment in of_split.get("train", ()) for label in names_of(segment, card)}
    counts = {
        split: sum(bool({*names_of(segment, card)} - known) for segment in rows)
        for split, rows in of_split.items()
        if split in ("val", "test") and "train" in of_split
    }
    return [f"{n} rows of {split} are of classes without a training row" for split, n in counts.items() if n]


def _label_names(table: Sequence[Segment], card: Card | None) -> list[str]:
    found = {label for segment in table for label in names_of(segment, card)}
    order = {name: place for place, name in enumerate(card.classes if card else ())}
    return sorted(found, key=lambda name: (order.get(name, len(order)), name))


def _majority(of_split: dict[str, list[Segment]]) -> dict[str, float]:
    train = Counter(segment.label for segment in of_split.get("train", ()))
    largest = train.most_common(1)[0][0] if train else None
    return {
        split: sum(s.label == largest for s in rows) / len(rows) if train else float("nan")
        for split, rows in of_split.items()
        if split != "train"
    }
