"""`objective.ignore`: of a batch's clips, the tokens that are never targets.

A clip's crop follows from its draw, its view and its video, so that nothing has to come with a batch: what a loader cut out is
worked out again here, on the host, beside the masks.

Shapes: B clips, S x S tokens of a time step.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.decode.batch import ClipBatch
from ...loaders.decode.recipe import upright_crop
from ...loaders.draw.augment import Box, CropRecipe
from ...loaders.draw.ignored import ignored_tokens
from ..config.settings import Config
from ..draws.samplers import screen_to_ignore_by

VIDEOS_AT_HAND = 1024  # whose facts are kept: looking them up takes longer than the rest


class IgnoredTargets:
    """What `trocar screen` found in a corpus, as clips of it show that. seed: of the sampler that the clips come from.

    fingerprint: 32 hex digits that change when any video's overlay does. note: what is ignored, in words. Raises ConfigError where
    the corpus has no screen, or not of every video.
    """

    def __init__(self, config: Config, corpus: Corpus, patch: int, seed: int) -> None:
        self.patch, self.seed, self.data = patch, seed, config.data
        self.crops = CropRecipe(config.data.crop_scale, config.data.crop_ratio, config.data.flip)
        videos = screen_to_ignore_by(config, corpus).videos
        self._facts = lru_cache(VIDEOS_AT_HAND)(lambda row: corpus.video(row).facts)
        # As bits: of ten thousand videos they would take 300 MB on every rank.
        self._shapes = [video.overlay.shape for video in videos]
        self._overlays = [np.packbits(video.overlay) for video in videos]
        digest = hashlib.blake2b(digest_size=16)
        for shape, bits in zip(self._shapes, self._overlays, strict=True):
            digest.update(repr(shape).encode() + bits.tobytes())
        self.fingerprint = digest.hexdigest()
        shares = np.array([video.overlay.mean() for video in videos])
        self.note = (
            f"objective.ignore: text and logos lie over {int((shares > 0).sum()):,} of {len(shares):,} videos, over "
            f"{100 * shares.mean():.1f} % of all pictures"
        )

    @classmethod
    def of(cls, config: Config, corpus: Corpus, patch: int, seed: int) -> IgnoredTargets | None:
        """None where nothing is ignored. patch: of the encoder, in pixels."""
        return None if config.objective.ignore == "nothing" else cls(config, corpus, patch, seed)

    def tokens(self, batch: ClipBatch) -> NDArray[np.bool_]:
        """(B, S S)."""
        resolution, found = batch.frames.shape[2], []
        for draw, view, row in zip(batch.draws.tolist(), batch.views.tolist(), batch.videos.tolist(), strict=True):
            video, shape = self._facts(row), self._shapes[row]
            overlay = np.unpackbits(self._overlays[row], count=shape[0] * shape[1]).reshape(shape).astype(bool)
            cut = self.data.content_box, self.data.square_pixels
            crop = upright_crop(self.crops, video, *cut, seed=self.seed, draw=draw, view=view)
            content = Box(video.box_left, video.box_top, video.box_width, video.box_height)
            side = resolution // self.patch
            found.append(ignored_tokens(overlay, content, video.upright_size, crop, resolution, side).reshape(-1))
        return np.stack(found)


def without(masks: Any, ignored: NDArray[np.bool_], device: torch.device) -> Any:
    """The same masks, of which ignored tokens, (B, S S), are no targets."""
    held = torch.from_numpy(ignored)
    if device.type == "cuda":
        held = held.pin_memory().to(device, non_blocking=True)
    return masks.without(held)
