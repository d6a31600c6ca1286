"""Made vectors of whole operations whose phases can be told by one look, by what came before, or by what comes after alone.

Shapes: T moments of a video, one a second, D values a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trocar.judge.workflow.labels import DenseVideo
from trocar.judge.workflow.training import Example

VALUES, NOISE = 8, 0.3
CUE, TOLD = 4, 2  # phases 0 and 1 are the same for all; 2 or 3 is told by the cue


def planted(kind: str, videos: int, *, length: int = 120, seed: int = 0) -> list[Example]:
    """kind: "look": phases have looks of their own. "before": a cue of five seconds at the beginning says which of two phases the
    last third is, in which nothing is to be seen. "after": a cue at the very end says the same of the first third."""
    return [_video(kind, number, np.random.default_rng([seed, number]), length) for number in range(videos)]


def _video(kind: str, number: int, chance: np.random.Generator, length: int) -> Example:
    jitter = chance.integers(-length // 12, length // 12 + 1, 2)
    first, second = length // 3 + jitter[0], 2 * length // 3 + jitter[1]
    which = number // 2 % 2  # of both as many
    truth = np.repeat([0, 1, TOLD + which], [first, second - first, length - second])
    looks = np.zeros((length, VALUES))
    if kind == "look":
        looks[np.arange(length), truth] = 1
    else:
        shown = np.minimum(truth, TOLD)  # the last two phases look alike
        if kind == "after":
            truth = np.repeat([TOLD + which, 0, 1], [first, second - first, length - second])
            shown = np.minimum(truth, TOLD)
        looks[np.arange(length), shown] = 1
        cue = slice(2, 7) if kind == "before" else slice(length - 7, length - 2)
        looks[cue] = 0
        looks[cue, CUE + which] = 2
    vectors = (looks + NOISE * chance.standard_normal((length, VALUES))).astype(np.float16)
    name = f"{kind}{number}"
    return Example(vectors, DenseVideo(name, name, truth, np.ones(length, bool)))


def told_by_the_cue(example: Example, predicted: np.ndarray) -> np.ndarray:
    """Whether each second of the phase that the cue tells is right."""
    truth = example.labels.truth
    return (predicted == truth)[truth >= TOLD]


def halves(examples: Sequence[Example]) -> tuple[list[Example], list[Example], list[Example]]:
    """Train, validation, test: a half, a quarter and a quarter, both cues in each."""
    quarter = len(examples) // 4
    return list(examples[: 2 * quarter]), list(examples[2 * quarter : 3 * quarter]), list(examples[3 * quarter :])
