"""What tests send to decoding processes: sources that kill, fail or hang. Few imports, as the processes make them too."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.draw.augment import Box, Crop, CropRecipe
from trocar.loaders.video.video import GopTable


class DeadlyVideo(Corpus):
    """A corpus whose last video ends whoever reads it, as a file does that FFmpeg cannot bear."""

    def __init__(self, corpus: Corpus) -> None:
        vars(self).update(vars(corpus))

    def __reduce__(self) -> tuple[Any, ...]:
        return DeadlyVideo.again, (str(self.path),)

    @classmethod
    def again(cls, path: str) -> DeadlyVideo:
        return cls(Corpus.open(path))

    def gops(self, row: int) -> GopTable:
        if row == len(self) - 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().gops(row)


class OwnError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class ScriptCrops(CropRecipe):
    """As somebody's script or notebook defines them."""


class FailingCrops(CropRecipe):
    def crop(self, content: Box, *, seed: int, draw: int, view: int = 0) -> Crop:
        if draw == 7:
            raise (
                KeyError("what somebody's own code raises") if self.flip_probability else OwnError("cannot", "be sent")
            )
        return super().crop(content, seed=seed, draw=draw, view=view)


class SlowCrops(CropRecipe):
    def crop(self, content: Box, *, seed: int, draw: int, view: int = 0) -> Crop:
        if draw == 6:
            time.sleep(600)
        return super().crop(content, seed=seed, draw=draw, view=view)
