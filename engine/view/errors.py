"""How wrong a model is, token by token: of an MAE in its normalised pixels, of a JEPA, which has no pixels, in features.

Shapes: B clips, N tokens of the grid (T', H', W'), L packed tokens of all masks, T frames, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...kernels.feature_loss import row_clips
from ...kernels.pixel_loss import patch_targets
from ...ssl.encoder import VideoEncoder
from ...ssl.jepa import JointEmbedding
from ...ssl.mae import MaskedAutoencoder
from .unseen import Unseen

ORIGINAL, SEEN = "original", "what the model sees"
WRONG = "error of predicted features:\n"
GREY = 128


def token_errors(unseen: Unseen) -> torch.Tensor:
    """(B, T', H', W') float32: mean absolute error at hidden tokens, over all masks that hide one; NaN where none does."""
    model, masks = unseen.model, unseen.masks
    count, clips = model.encoder.num_tokens, len(unseen.frames)
    if isinstance(model, MaskedAutoencoder):
        tubelet, patch = model.encoder.tubelet, model.encoder.patch
        target = patch_targets(unseen.frames, masks.masked, tubelet, patch, model.normalization, torch.float32)
        places = (masks.masked + torch.arange(clips)[:, None] * count).flatten()
        errors = (unseen.prediction.float() - target).abs().mean(dim=2).flatten()
    else:
        assert isinstance(model, JointEmbedding)
        features = unseen.tokens(unseen.frames, model.target_encoder)
        features = F.layer_norm(features, features.shape[-1:])
        sequence = row_clips(masks.target.offsets[:-1], len(masks.target.tokens))
        inside = sequence < masks.target.num_sequences
        places = (sequence // masks.per_clip * count + masks.target.tokens)[inside]
        errors = (unseen.prediction[inside].float() - features.flatten(0, 1)[places]).abs().mean(dim=1)
    total, hidden = torch.zeros(2, clips * count).unbind()
    total = total.index_add(0, places, errors)
    hidden = hidden.index_add(0, places, torch.ones_like(errors))
    return (total / hidden).unflatten(0, (clips, *model.encoder.grid))


def feature_errors(unseen: Unseen, largest: float | None = None) -> dict[str, NDArray[np.uint8]]:
    """Original, what is seen under the first mask, and errors, by name, each (B, T, H, W, 3) uint8. Errors of all clips share one
    scale, which stands in the last name: black is none, bright `largest`, that of these clips where None; grey tokens are hidden by
    no mask."""
    from matplotlib import colormaps  # slow to import: only where something is drawn

    errors, encoder = token_errors(unseen).numpy(), unseen.model.encoder
    if largest is None:
        largest = largest_error(errors)
    colours = (colormaps["magma"](np.nan_to_num(errors / max(largest, 1e-12)))[..., :3] * 255).round().astype(np.uint8)
    colours[~np.isfinite(errors)] = GREY
    seen = np.zeros((len(errors), encoder.num_tokens), bool)
    context = unseen.masks.context
    first = (context.sequences % unseen.masks.per_clip == 0) & (context.sequences < context.num_sequences)
    seen[(context.sequences[first] // unseen.masks.per_clip).numpy(), context.tokens[first].numpy()] = True
    frames = unseen.frames.numpy()
    shown = np.repeat(seen.reshape(errors.shape)[..., None], 3, axis=-1)
    return {
        ORIGINAL: frames,
        SEEN: np.where(enlarged(shown, encoder), frames, np.uint8(GREY)),
        f"{WRONG}black 0, bright {largest:.2g}": enlarged(colours, encoder),
    }


def largest_error(errors: NDArray[np.float32]) -> float:
    """Of tokens that are hidden; 1 where none is."""
    hidden = errors[np.isfinite(errors)]
    return float(hidden.max()) if hidden.size else 1.0


def enlarged(tokens: NDArray, encoder: VideoEncoder) -> NDArray:
    """(B, T', H', W', C) to (B, T, H, W, C): each token as large as its patch."""
    for axis, times in ((1, encoder.tubelet), (2, encoder.patch), (3, encoder.patch)):
        tokens = np.repeat(tokens, times, axis=axis)
    return tokens
