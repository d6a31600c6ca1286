"""Pictures while a run trains, of clips that training does not see: they show the model as it is, between two steps.

Shapes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...loaders.decode.batch import ClipBatch
from ...loaders.video.error import TrocarError
from ...ssl.objective import MaskSource, Objective
from ..config.settings import Config
from ..ranks.distributed import World
from ..step.build import build_masks
from .errors import ORIGINAL, enlarged
from .features import principal_components
from .run import panels
from .unseen import predict, unseen_batch

CLIPS, FRAMES = 2, 4  # rows of a picture, and frames of each
LETTER, LINE = 6, 14  # pixels of Pillow's own font, and from one line to the next
COLOURED = "features: principal components"
Picture = Callable[[int, str, NDArray[np.uint8]], None]


class LivePictures:
    """On the first rank, every run.pictures_every steps, two pictures (H, W, 3): "reconstruction" and "features", under titles. The
    clips have the size that the run begins with, and are decoded once, when first due. tell: takes (step, name, picture)."""

    def __init__(self, config: Config, objective: Objective, world: World, tell: Picture) -> None:
        self.every = config.run.pictures_every if world.is_first else None
        # Every hidden patch is shown, whether or not training has the decoder drop some.
        shown = replace(config.objective, decoder_mask_ratio=0.0)
        self.config = replace(config, objective=shown, data=replace(config.data, sizes=()))
        self.objective, self.tell = objective, tell
        self._masks: MaskSource | None = None if self.every is None else build_masks(self.config, objective.encoder)
        self._batch: tuple[ClipBatch, list[str]] | None = None

    def update(self, step: int) -> None:
        """After optimizer step `step`. Training goes on without pictures that cannot be made or written, which is said."""
        if self.every is None or step % self.every:
            return
        try:
            self._draw(step)
        except (OSError, TrocarError) as error:
            print(f"trocar: no pictures of step {step:,}: {error}", file=sys.stderr, flush=True)

    def _draw(self, step: int) -> None:
        assert self._masks is not None
        self._batch = self._batch or unseen_batch(self.config, CLIPS)
        unseen = predict(self.objective, self._masks, self.config.run.seed, step, *self._batch, self.config)
        shown = np.linspace(0, unseen.frames.shape[1] - 1, FRAMES).round().astype(int)
        self.tell(
            step, "reconstruction", titled_rows({name: video[:, shown] for name, video in panels(unseen).items()})
        )
        components = principal_components(unseen.tokens(unseen.frames), unseen.encoder.grid)
        colours = enlarged(components.colours(), unseen.encoder)
        self.tell(
            step, "features", titled_rows({ORIGINAL: unseen.frames.numpy()[:, shown], COLOURED: colours[:, shown]})
        )


def titled_rows(videos: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Videos (B, T, H, W, 3) beside one another, a clip a row, its frames side by side, under their names: (B H + lines, .., 3)."""
    from PIL import Image, ImageDraw

    wide = [np.concatenate(list(video.transpose(1, 0, 2, 3, 4)), axis=2) for video in videos.values()]  # (B, H, T W, 3)
    below = np.concatenate(list(np.concatenate(wide, axis=2)), axis=0)
    width = wide[0].shape[2]
    titles = [textwrap.fill(" ".join(name.split()), max(width // LETTER, 8)) for name in videos]
    image = Image.new("RGB", (below.shape[1], LINE * (1 + max(title.count("\n") for title in titles))))
    for place, title in enumerate(titles):
        ImageDraw.Draw(image).text((place * width + 2, 0), title, fill="white")
    return np.concatenate([np.asarray(image), below])
