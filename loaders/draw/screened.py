"""What a screen leaves of a corpus to be drawn from: shots that no clip crosses, and spans that fulfil `data.where`.

Both are stretches of frames, as those between pauses are, so drawing stays what it was: a function of the draw's number.

Shapes: N spans of the screen, V videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..corpus.corpus import Corpus
from ..corpus.folder import SPANS_NAME, CorpusError
from ..corpus.spans import Screen
from .where import WhereError, parse_where

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Screened:
    """breaks: (K, 2) (video, frame) of frames that begin a stretch which no clip leaves. left_out: (M, 3) (video, first frame,
    the one behind the last) of what no clip shows. notes: what that comes to, for the log."""

    breaks: Integers
    left_out: Integers
    notes: list[str]


def has_screen(corpus: Corpus) -> bool:
    return Path(corpus.path, SPANS_NAME).exists()


def screened(corpus: Corpus, where: str | None = None, within_shots: bool | None = None) -> Screened | None:
    """What `data.where` and `data.within_shots` ask for; None where they ask for nothing. within_shots: None is where the corpus
    has a screen.

    Raises CorpusError where there is no screen but one is asked for, or the expression is not accepted or leaves nothing.
    """
    try:
        condition = None if where is None else parse_where(where)
    except WhereError as error:
        raise CorpusError(f"data.where: {error}") from error
    if within_shots is None:
        within_shots = has_screen(corpus)
    if condition is None and not within_shots:
        return None
    screen = Screen(corpus)
    hours, notes = screen.seconds() / 3600, []
    breaks = screen.cuts if within_shots else np.zeros((0, 2), np.int64)
    if within_shots:
        notes.append(f"no clip crosses one of {len(breaks):,} cuts (data.within_shots)")
    left_out = np.zeros((0, 3), np.int64)
    if condition is not None:
        kept = condition.holds(screen.columns)
        if not kept.any():
            raise CorpusError(f"data.where: {where!r} leaves nothing of {corpus.path}; `trocar corpus report` says why")
        first = screen.columns["first_frame"][~kept]
        left_out = np.column_stack([screen.video[~kept], first, first + screen.columns["frames"][~kept]])
        parts = ", ".join(
            f"{hours[~term.holds(screen.columns)].sum():,.2f} by {term.text!r}" for term in condition.terms()
        )
        notes.append(f"data.where leaves out {hours[~kept].sum():,.2f} of {hours.sum():,.2f} hours: {parts}")
    return Screened(breaks, left_out, notes)
