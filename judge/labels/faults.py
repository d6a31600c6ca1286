"""What `trocar bench audit` finds wrong with a table and its splits by the rows alone, one function a kind of fault."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

from ...loaders.corpus.names import twins
from ...loaders.corpus.sources import VIDEO_SUFFIXES
from .dataset import TABLE_SUBJECT, Card, Segment, labels_of

EXAMPLES = 5
OVERLAP_SECONDS = 0.05  # less is rounding to frames
# fmt: off
HEADER_WORDS = frozenset([
    "action", "annotation", "case", "category", "class", "end", "endsec", "file", "filename", "finding", "frame",
    "frameno", "frames", "gesture", "id", "label", "name", "path", "phase", "sec", "start", "step", "steps", "subject",
    "time", "timestamp", "video", "videoid",
])
NEGATIVE_WORDS = frozenset([
    "background", "idle", "na", "n/a", "negative", "negatives", "no_label", "no_step", "none", "not_initialized",
    "null", "rest", "undefined", "unknown", "unlabeled", "unlabelled",
])
# fmt: on


@dataclass(frozen=True)
class Finding:
    """A fault. kind: which. share: of the rows that it concerns, 0 .. 1. detail: in words. examples: some of what it concerns."""

    kind: str
    share: float
    detail: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        some = f"; {', '.join(self.examples)}" if self.examples else ""
        return f"{self.kind}: {self.detail}{some}"


def find_faults(table: Sequence[Segment], of_split: dict[str, list[Segment]], card: Card | None) -> list[Finding]:
    """of_split: the rows of the table by split. card: tells what is no class."""
    return [
        *_identical(of_split),
        *_shared(of_split, "videos", lambda segment: os.path.abspath(segment.video)),
        *_shared(of_split, "subjects", lambda segment: segment.subject),
        *_classes(table, card),
        *_negatives_as_classes(table, card),
        *_no_subjects(table, card),
        *_twins(table, card),
        *_overlaps(of_split, card),
    ]


def names_of(segment: Segment, card: Card | None) -> list[str]:
    """Of its labels."""
    return labels_of(segment, card) if card else [segment.label]


def _no_subjects(table: Sequence[Segment], card: Card | None) -> list[Finding]:
    """Names of files in place of subjects: nobody knows then who stands in two splits."""
    named = [
        segment
        for segment in table
        for video in [Path(segment.video)]
        if video.suffix.lower() in VIDEO_SUFFIXES and Path(segment.subject).name == video.name
    ]
    if not named:
        return []
    whose = "give a column subject: the patient"
    if card is not None and card.subject != TABLE_SUBJECT:
        whose = f"the card says who is: {card.subject}"
    detail = f"file names stand for the subjects of {len(named)} rows, so a leak-free split cannot be made from this table; {whose}"
    return [Finding("no subjects", len(named) / len(table), detail, (named[0].subject,))]


def _distinct(table: Sequence[Segment]) -> list[Segment]:
    """Each clip once, however many splits hold it."""
    return list({(s.video, *s.seconds(), s.label): s for s in table}.values())


def _identical(of_split: dict[str, list[Segment]]) -> list[Finding]:
    contents = {split: {(s.video, *s.seconds()) for s in rows} for split, rows in of_split.items() if split}
    return [
        Finding("identical splits", 1.0, f"{first} and {second} hold the same {len(contents[first])} clips")
        for first, second in combinations(contents, 2)
        if contents[first] == contents[second]
    ]


def _shared(of_split: dict[str, list[Segment]], what: str, key: Callable[[Segment], str]) -> list[Finding]:
    """What stands in two splits. Of splits that are identical nothing more is said."""
    findings = []
    whole = {split: {(s.video, *s.seconds()) for s in rows} for split, rows in of_split.items() if split}
    for first, second in combinations(whole, 2):
        if whole[first] == whole[second]:
            continue
        known = {key(segment) for segment in of_split[first]}
        rows = [segment for segment in of_split[second] if key(segment) in known]
        if rows:
            shared = sorted({key(segment) for segment in rows})
            share = len(rows) / len(of_split[second])
            detail = f"{len(shared)} of {second} stand in {first} too, with {share:.1%} of the rows of {second}"
            findings.append(Finding(f"shared {what}", share, detail, tuple(shared[:EXAMPLES])))
    return findings


def _classes(table: Sequence[Segment], card: Card | None) -> list[Finding]:
    """Labels that are words of a table's header, or say that there is nothing."""
    table = _distinct(table)
    counts = Counter(label for segment in table for label in names_of(segment, card))
    classes, ignored = (set(card.classes), set(card.ignored)) if card else (set(), set())
    findings = []
    for label, count in counts.items():
        word = label.strip().casefold().replace(" ", "_")
        if label in classes or not label:
            continue
        share = count / len(table)
        if word in HEADER_WORDS:
            findings.append(
                Finding("header word", share, f"{label!r}, a word of a header, is the label of {count} rows")
            )
        elif word in NEGATIVE_WORDS or label in ignored:
            findings.append(Finding("negative class", share, f"{label!r} is no class, and the label of {count} rows"))
    return findings


def _twins(table: Sequence[Segment], card: Card | None) -> list[Finding]:
    """Labels that are one to the eye."""
    counts = Counter(label for segment in table for label in names_of(segment, card))
    known = set(card.classes) if card else set()
    return [
        Finding(
            "near twins",
            sum(counts[label] for label in group) / len(table),
            f"{' and '.join(map(repr, group))} count as {len(group)} classes ({', '.join(f'{counts[n]} rows' for n in group)})",
        )
        for group in twins(counts)
        if not known.issuperset(group)
    ]


def _overlaps(of_split: dict[str, list[Segment]], card: Card | None) -> list[Finding]:
    """Rows of one split, video and moment, where a row has one label alone."""
    if card and card.several:
        return []
    findings = []
    for split, rows in of_split.items():
        placed = sorted((s.video, s.start or 0.0, math.inf if s.end is None else s.end) for s in rows)
        shown, count = [], 0
        for (video, start, end), (after, later, _) in pairwise(placed):
            if video == after and later < end - OVERLAP_SECONDS:
                count += 1
                shown.append(f"{video}, {start:g} .. {end:g} s and from {later:g} s on")
        if count:
            detail = f"{count} rows of {split or 'no split'} begin before the row before them in the same video ends"
            findings.append(Finding("overlaps", count / len(rows), detail, tuple(shown[:EXAMPLES])))
    return findings


def _negatives_as_classes(table: Sequence[Segment], card: Card | None) -> list[Finding]:
    """Clips in a folder of negatives that are labelled as if they showed something."""
    table = _distinct(table)
    words = NEGATIVE_WORDS | {name.casefold() for name in (card.ignored if card else ())}
    rows = [
        segment
        for segment in table
        for folders in [{part.casefold() for part in Path(segment.video).parent.parts}]
        if folders & words and not {label.casefold() for label in names_of(segment, card)} & words
    ]
    if not rows:
        return []
    labels = Counter(segment.label for segment in rows)
    most, count = labels.most_common(1)[0]
    share = count / sum(segment.label == most for segment in table)
    detail = f"{len(rows)} clips from folders of negatives are labelled as a class, {share:.0%} of {most!r} for example"
    shown = tuple(segment.video for segment in rows[:EXAMPLES])
    return [Finding("mislabelled negatives", len(rows) / len(table), detail, shown)]
