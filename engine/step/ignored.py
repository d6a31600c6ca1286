"""`objective.ignore`: of a batch's clips, the tokens that are never targets.

A clip's crop follows from its draw, its view and its video, so that nothing has to come with a batch: what a loader cut out is
worked out again here, on the host, beside the masks.

Shapes: B clips, S x S tokens of a time step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import CorpusError
from ...loaders.corpus.spans import Screen
from ...loaders.decode.batch import ClipBatch
from ...loaders.decode.span import clip_crop
from ...loaders.draw.augment import Box, CropRecipe
from ...loaders.draw.ignored import ignored_tokens
from ..config.settings import Config, ConfigError


class IgnoredTargets:
    """What `trocar screen` found in a corpus, as clips of it show that. seed: of the sampler that the clips come from.

    Raises ConfigError where the corpus has no screen, or not of every video.
    """

    def __init__(self, config: Config, corpus: Corpus, patch: int, seed: int) -> None:
        self.corpus, self.patch, self.seed, self.data = corpus, patch, seed, config.data
        self.crops = CropRecipe(config.data.crop_scale, config.data.crop_ratio, config.data.flip)
        try:
            self.overlays = [video.overlay for video in Screen(corpus).videos]
        except CorpusError as error:
            raise ConfigError(f"objective.ignore: {config.objective.ignore}, but {error}") from error

    @classmethod
    def of(cls, config: Config, corpus: Corpus, patch: int, seed: int) -> IgnoredTargets | None:
        """None where nothing is ignored. patch: of the encoder, in pixels."""
        return None if config.objective.ignore == "nothing" else cls(config, corpus, patch, seed)

    def tokens(self, batch: ClipBatch) -> NDArray[np.bool_]:
        """(B, S S)."""
        resolution = batch.frames.shape[2]
        found = []
        for draw, view, row in zip(batch.draws.tolist(), batch.views.tolist(), batch.videos.tolist(), strict=True):
            video = self.corpus.video(row).facts
            cut = self.data.content_box, self.data.square_pixels
            crop = clip_crop(self.crops, video, *cut, seed=self.seed, draw=draw, view=view)
            if video.mirrored:
                crop = crop.unmirrored(video.upright_size[0])
            content = Box(video.box_left, video.box_top, video.box_width, video.box_height)
            size = video.upright_size
            side = resolution // self.patch
            found.append(ignored_tokens(self.overlays[row], content, size, crop, resolution, side).reshape(-1))
        return np.stack(found)


def without(masks: Any, ignored: NDArray[np.bool_], device: torch.device) -> Any:
    """The same masks, of which ignored tokens, (B, S S), are no targets."""
    held = torch.from_numpy(ignored)
    if device.type == "cuda":
        held = held.pin_memory().to(device, non_blocking=True)
    return masks.without(held)
