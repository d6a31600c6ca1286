"""Arms for the tests of the loading benchmark that draw what they are asked for: right, wrong, absent and crashing ones.

A file of its own, for the processes of arms import it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
from clips import number_picture

from trocar.bench.loading.arms import Arm, Job, Request, UnavailableError


class Painted(Arm):
    """Draws the frames that were asked for instead of decoding them, `late` frames late."""

    late = 0

    def batches(self, way: str, requests: Sequence[Request]) -> Iterator[np.ndarray]:
        side = self.job.resolution
        for batch in self.job.split(requests):
            numbers = [[int(frame) + self.late for frame in request.frames] for request in batch]
            yield np.array([[number_picture(0, number, side, side) for number in clip] for clip in numbers])


class Late(Painted):
    late = 1


class Absent(Painted):
    def __init__(self, job: Job) -> None:
        raise UnavailableError("it is not installed")


class Crashing(Painted):
    def batches(self, way: str, requests: Sequence[Request]) -> Iterator[np.ndarray]:
        os.write(2, b"the last words\n")
        os._exit(3)
