"""What is finished of a `trocar cluster` call: arrays by step in OUT/state, so that a killed call goes on where it was.

Of several processes the first one writes and says what is there; all of them read, so OUT lies on a disk that they share.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus.changed_settings import changed_settings
from ..corpus.folder import CorpusError
from ..corpus.whole_file import write_arrays_whole, write_text_whole
from .processes import from_first, is_first, wait_for_all
from .settings import (
    IDENTITY_NAME,
    STATE,
    SUMMARY_NAME,
    ClusterSummary,
    known_identity,
    read_summary,
)

Arrays = dict[str, NDArray]


class ClusterState:
    """identity: what the tree in `out` is of, JSON values. seconds: that each step took, of those made here.

    Raises CorpusError where `out` holds another tree.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.out, self.folder = out, out / STATE
        self.seconds: dict[str, float] = {}
        if is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            known = known_identity(out)
            if known not in (None, identity):
                changed = "; ".join(changed_settings(known, identity))
                raise CorpusError(
                    f"{out}: holds a tree of other embeddings or settings ({changed}); choose another --out"
                )
            write_text_whole(self.folder / IDENTITY_NAME, json.dumps(identity, indent=1))
        wait_for_all()

    def step(self, name: str, make: Callable[[], Arrays], *, by_first: bool = False) -> Arrays:
        """What the step made, now or before. by_first: the first process makes it alone and hands it to the others."""
        path = self.folder / f"{name}.npz"
        if from_first(path.exists()):
            with np.load(path) as stored:
                found = dict(stored)
            wait_for_all()  # the first process removes the steps when the tree is whole
            return found
        begun = time.perf_counter()
        made = from_first(make() if is_first() else {}) if by_first else make()
        self.seconds[name] = time.perf_counter() - begun
        if is_first():
            write_arrays_whole(path, made)
        return made

    def summary(self) -> ClusterSummary | None:
        """What `finish` was given, where the tree is whole."""
        return from_first(read_summary(self.out) if is_first() else None)

    def finish(self, summary: ClusterSummary) -> None:
        """The tree is whole: keeps what it is of, removes the steps. For the first process."""
        write_text_whole(self.out / SUMMARY_NAME, json.dumps({**asdict(summary), "out": None}, indent=1))
        for path in [*self.folder.glob("*.npz"), *self.folder.glob("*.tmp")]:
            path.unlink()
