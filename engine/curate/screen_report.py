"""What conditions on a screened corpus remove, by source and domain; and the spans on both sides of a threshold, to be looked at.

Shapes: N spans.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.spans import Screen
from ...loaders.draw.where import Condition, parse_where
from ...loaders.screen.pictures import Pictures
from ...loaders.video.decode import DecodeCount, WindowDecoder
from ...loaders.video.video import VideoError
from ...loaders.video.window import WindowReader
from ..console.table import Table
from .corpus_report import UNNAMED
from .screen_labels import TO_BE_REMOVED, is_removed, removal, write_labels

USUAL = "in_body > 0.5 and not blank and not frozen and not picture_in_picture and not transition and blur < 0.6"


def screen_report(corpus: Corpus, where: Condition | None = None) -> str:
    """A table: hours by source and domain, and how many of them each condition removes, and all together. where: the condition
    whose parts they are, `USUAL` where None. Raises CorpusError where the corpus has no whole screen."""
    screen, condition = Screen(corpus), where or parse_where(USUAL)
    hours, rows = screen.seconds() / 3600, list(corpus.scan("source", "domain"))
    names = [(row["source"] or UNNAMED, row["domain"] or UNNAMED) for row in rows]
    groups = sorted(set(names))
    group = np.array([groups.index(name) for name in names])[screen.video]
    terms = condition.terms()
    removed = [~term.holds(screen.columns) for term in terms] + [~condition.holds(screen.columns)]
    header = ("source", "domain", "hours", *(f"not: {term.text}" for term in terms), "left out in all")
    cells = []
    for number, (source, domain) in enumerate([*groups, ("all", "")]):
        chosen = group == number if number < len(groups) else np.ones(len(group), bool)
        total = hours[chosen].sum()
        shares = [_amount(hours[chosen & part].sum(), total) for part in removed]
        cells.append((source, domain, f"{total:,.2f}", *shares))
    return f"{Table(header, cells).markdown()}\n\nhours that each condition leaves out; with none but it, or with others too"


def _amount(hours: float, total: float) -> str:
    return f"{hours:,.2f} ({hours / max(total, 1e-9):.1%})"


def view_screen(
    corpus: Corpus, by: str, threshold: float, count: int, out: Path, label: Path | None = None
) -> list[str]:
    """Writes a contact sheet of `count` spans, evenly from the lowest to the highest score `by`, the threshold said in the title of
    those that lie below; and a table of them, whose last column a person fills in. Returns lines that say so. Raises
    CorpusError."""
    from .draws import contact_sheet

    screen = Screen(corpus)
    scores = screen.columns[by]
    order = np.argsort(scores, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    pictures, titles, kept = [], [], []
    for span in chosen.tolist():
        frame = int(screen.columns["first_frame"][span] + screen.columns["frames"][span] // 2)
        picture = _picture(corpus, int(screen.video[span]), frame)
        if picture is not None:
            side = "below" if scores[span] <= threshold else "above"
            pictures.append(picture)
            video = corpus.video(int(screen.video[span]))
            name, second = PurePath(video.original or video.facts.path).name, frame / float(corpus.fps[video.row])
            titles.append(f"{len(kept)}: {scores[span]:.2f}, {side} {threshold:g}\n{name}, {second:.0f} s")
            kept.append(span)
    removed = int(is_removed(by, scores, threshold).sum())
    lines = [f"{removed:,} of {len(scores):,} spans have {removal(by, threshold)}"]
    if pictures:
        contact_sheet(np.stack(pictures), titles, out)
        lines.append(f"contact sheet   {out}")
    if label is not None:
        write_labels(label, screen, kept, by, threshold)
        lines.append(
            f"table   {label}: fill in {TO_BE_REMOVED} with yes or no, then `trocar corpus report {corpus.path} --labels {label}`"
        )
    return lines


def _picture(corpus: Corpus, row: int, frame: int) -> NDArray[np.uint8] | None:
    """The keyframe before a frame, or None where it does not decode."""
    facts, gops = corpus.video(row).facts, corpus.gops(row)
    start = int(gops.first_frame[gops.clean_start(frame)])
    pictures = Pictures(facts.rotation, facts.mirrored)
    try:
        with closing(WindowReader(facts)) as reader, closing(WindowDecoder(facts)) as decoder:
            window = reader.window(np.array([start]), gops)
            return next(pictures.sample(start, found).pixels for _, found in decoder.frames(window, DecodeCount()))
    except VideoError:
        return None
