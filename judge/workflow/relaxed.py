"""M2CAI16's relaxed metrics: within ten seconds of a boundary some confusions of neighbouring phases are forgiven.

The challenge's MATLAB script (and Cholec80's, which follows it) gives each phase a number in the order of the operation; a frame is
right where predicted - true is 0, or where that difference is forgiven. Scores under this rule are higher than others, and are
called relaxed.

Shapes: T frames of one video, K phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .choices import MetricChoices

# Of a phase: by how much the number predicted may differ just behind its beginning, and just before its end.
Jumps = Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]
GENERAL = ((-1,), (1,))
DISSECTION = ("GallbladderDissection", "GallbladderPackaging")  # may be left for either of the next two phases
CLEANING = ("CleaningCoagulation", "GallbladderRetraction")  # may also follow from two phases before


def jumps_of(classes: Sequence[str]) -> Jumps:
    """The script's exceptions for gallbladder removals, by their names in M2CAI16 and Cholec80; no phase else has any."""
    of = dict.fromkeys(DISSECTION, ((-1,), (1, 2))) | dict.fromkeys(CLEANING, ((-1, -2), (1, 2)))
    return {number: of[name] for number, name in enumerate(classes) if name in of}


def relaxed_scores(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    phases: int,
    rate: float,
    choices: MetricChoices,
    jumps: Jumps,
) -> dict[str, NDArray[np.float64]]:
    """{"precision", "recall", "jaccard": (K,), NaN where the video lacks the phase; "accuracy": ()}, at most 1.

    truth, predicted: (T,). The frames of a phase are those where it is true or predicted, the right ones of them may be true of
    another phase; precision is that by the frames predicted, which is how the script has it, cut at 1.
    """
    window = max(round(choices.relaxed_seconds * rate), 1)
    difference = predicted - truth
    edges = np.flatnonzero(np.diff(truth)) + 1
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), len(truth)], strict=True):
        late, early = jumps.get(int(truth[start]), GENERAL)
        piece, length = difference[start:end], min(window, end - start)
        head = piece[:length]
        head[np.isin(head, late)] = 0
        at_the_end = np.isin(piece[-length:], early)
        # The script takes places among the last frames for places among the first ones.
        forgiven = head if choices.relaxed_rule == "m2cai16_script" else piece[-length:]
        forgiven[at_the_end] = 0
    right = difference == 0
    found = {name: np.full(phases, np.nan) for name in ("precision", "recall", "jaccard")}
    for phase in np.unique(truth).tolist():
        true, said = truth == phase, predicted == phase
        hits = np.count_nonzero(right & (true | said))
        found["jaccard"][phase] = hits / np.count_nonzero(true | said)
        found["precision"][phase] = min(hits / said.sum(), 1.0) if said.any() else 0.0
        found["recall"][phase] = min(hits / true.sum(), 1.0)
    return {**found, "accuracy": np.asarray(right.mean())}
