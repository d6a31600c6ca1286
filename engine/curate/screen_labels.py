"""Spans of a screen that a person labels, as a CSV; and from it, how much a threshold removes wrongly, with an interval.

Shapes: N spans.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import SCORES, CorpusError
from ...loaders.corpus.spans import Screen
from ...loaders.corpus.text_file import open_table
from ...loaders.corpus.whole_file import write_whole

TO_BE_REMOVED = "is_to_be_removed"
COLUMNS = ("number", "video", "path", "first_frame", "seconds", "by", "score", "threshold", "is_removed", TO_BE_REMOVED)
REMOVED_ABOVE = ("blur", "overlay_share")  # scores that are better the lower they are
Z_95 = 1.959964  # of a normal distribution, 95 % lie within as many deviations


def is_removed(by: str, scores: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """(N,) which spans a threshold removes: those on the worse side of it, and on it."""
    return scores >= threshold if by in REMOVED_ABOVE else scores <= threshold


def removal(by: str, threshold: float) -> str:
    """The same as a condition."""
    return f"{by} {'>=' if by in REMOVED_ABOVE else '<='} {threshold:g}"


def write_labels(path: Path, screen: Screen, spans: Sequence[int], by: str, threshold: float) -> None:
    """Writes a row for each of `spans`, numbers of rows of the screen; the last column is for a person to fill in."""

    removed = is_removed(by, screen.columns[by], threshold)

    def write(unfinished: Path) -> None:
        with unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for number, span in enumerate(spans):
                row, first = int(screen.video[span]), int(screen.columns["first_frame"][span])
                score = screen.columns[by][span]
                seconds = f"{first / float(screen.corpus.fps[row]):.2f}"
                told = (by, f"{score:.4f}", repr(threshold), "yes" if removed[span] else "no", "")
                writer.writerow(
                    (number, screen.videos[row].video, screen.corpus.video_path(row), first, seconds, *told)
                )

    write_whole(path, write)


def labels_report(corpus: Corpus, path: Path) -> str:
    """Two lines: of what a threshold removes, the share that a person says is to stay; of what it keeps, the share to be removed.

    Shares are of spans, with the 95 % interval of Wilson (1927), as if the labelled spans had been drawn by chance; hours are that
    share of the hours on that side of the threshold. Raises CorpusError where the table cannot be read, holds anything but yes, no
    or nothing in its last column, or is of another screen.
    """
    screen = Screen(corpus)
    rows = _read(path, f"write it with `trocar view screen {corpus.path} --label {path}`")
    again = f"write it again with `trocar view screen {corpus.path} --label NEW.csv`"
    thresholds = {(row["by"], row["threshold"]) for row in rows}
    if len(thresholds) != 1:
        raise CorpusError(f"{path}: holds {len(thresholds)} thresholds; one a table is accepted; {again}")
    ((by, text),) = thresholds
    try:
        threshold = float(text)
    except ValueError:
        raise CorpusError(f"{path}: threshold is {text!r}; a number is accepted; {again}") from None
    if by not in SCORES:
        raise CorpusError(f"{path}: by is {by!r}; one of {', '.join(SCORES)} is accepted; {again}")
    removed, hours = is_removed(by, screen.columns[by], threshold), screen.seconds() / 3600
    places = {
        (screen.videos[row].video, str(first)): span
        for span, (row, first) in enumerate(zip(screen.video, screen.columns["first_frame"], strict=True))
    }
    labels: dict[int, bool] = {}
    for number, row in enumerate(rows, 2):
        span = places.get((row["video"], row["first_frame"]))
        if span is None or row["is_removed"] != ("yes" if removed[span] else "no"):
            raise CorpusError(
                f"{path}, line {number}: the screen of {corpus.path} has no such span on that side of {by} = {threshold:g}, "
                f"so it has changed since; {again}"
            )
        label = row[TO_BE_REMOVED].strip().lower()
        if label not in ("yes", "no", ""):
            raise CorpusError(f"{path}, line {number}: {TO_BE_REMOVED} is {label!r}; give yes, no or nothing")
        if label:
            labels[span] = label == "yes"
    sides = ((removed, False, "left out", "are to stay"), (~removed, True, "kept", "are to be left out"))
    lines = [f"{removal(by, threshold)}, by {len(labels):,} labels of {len(rows):,} spans in {path}:"]
    for side, wrong, name, what in sides:
        found = [label == wrong for span, label in labels.items() if side[span]]
        total = f"of {int(side.sum()):,} spans {name} ({hours[side].sum():,.2f} hours)"
        if not found:
            lines.append(f"  {total} none is labelled")
            continue
        low, high = wilson(sum(found), len(found))
        share, size = sum(found) / len(found), float(hours[side].sum())
        lines.append(
            f"  {total} {sum(found):,} of {len(found):,} labelled {what}: {share:.1%} (95 % interval {low:.1%} to {high:.1%}), "
            f"{share * size:,.2f} hours ({low * size:,.2f} to {high * size:,.2f})"
        )
    return "\n".join(lines)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share, `hits` of `count` > 0 (Wilson, JASA 22, 1927)."""
    share, spread = hits / count, Z_95**2 / count
    middle = share + spread / 2
    half = Z_95 * sqrt(share * (1 - share) / count + spread / (4 * count))
    low, high = np.clip([(middle - half) / (1 + spread), (middle + half) / (1 + spread)], 0.0, 1.0)
    return float(low), float(high)


def _read(path: Path, mend: str) -> list[dict[str, str]]:
    with open_table(path, CorpusError, columns=COLUMNS, mend=mend, restval="") as reader:
        rows = list(reader)
    if not rows:
        raise CorpusError(f"{path}: holds no span; {mend}")
    return rows
