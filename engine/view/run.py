"""Pictures of a run: what the model reconstructs. PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels.pixel_loss import patch_targets
from ...ssl.mae import MaskedAutoencoder
from ...ssl.masks import Masks
from .errors import ORIGINAL, SEEN, feature_errors, token_errors
from .grid import save_grid
from .numbers import write_numbers
from .unseen import Unseen, title_of, unseen_clips

REBUILT = "reconstructed"
GIVEN = f"{REBUILT}; every hidden patch\nhas been given its true mean and deviation"
GUESSED = f"{REBUILT}; mean and deviation of\nhidden patches guessed from visible ones"


def view_reconstruction(
    run_dir: Path,
    out: Path | None = None,
    *,
    clips: int = 4,
    frames: int = 4,
    corpus: str | None = None,
    numbers: Path | None = None,
) -> Path:
    """Writes a grid of clips: original, what the model sees, what it makes of it; of a JEPA, which predicts no pixels, how far its
    features are from the target's.

    run_dir: a run with a checkpoint; its clips are those that `where_from` says. out: RUN/reconstruction.png where None. clips:
    rows of the grid. frames: shown of each clip. corpus: another corpus than the run's, of which all spans come alike: the run's
    tree, shares, exclusions and held-out videos are of its own one. numbers: a JSON file of the errors, token by token. Returns the
    path of the PNG. Raises ConfigError, CorpusError or CheckpointError.
    """
    unseen = unseen_clips(run_dir, clips, corpus=corpus)
    out = out or run_dir / "reconstruction.png"
    shown = np.linspace(0, unseen.frames.shape[1] - 1, frames).round().astype(int)
    save_grid(
        {name: video[:, shown] for name, video in panels(unseen).items()},
        out,
        title_of(run_dir, unseen.step, corpus),
        unseen.names,
    )
    if numbers is not None:
        errors = token_errors(unseen)
        write_numbers(numbers, {"step": unseen.step, "clips": unseen.names, "errors": errors})
    return out


def panels(unseen: Unseen, largest: float | None = None) -> dict[str, NDArray[np.uint8]]:
    """What there is to see of a model's predictions, by name, each (B, T, H, W, 3) uint8. largest: as of `feature_errors`."""
    if isinstance(unseen.model, MaskedAutoencoder):
        return reconstruction(unseen.model, unseen.frames, unseen.masks, unseen.prediction)
    return feature_errors(unseen, largest)


def reconstruction(
    model: MaskedAutoencoder, frames: torch.Tensor, masks: Masks, prediction: torch.Tensor
) -> dict[str, NDArray[np.uint8]]:
    """ORIGINAL, SEEN and what is reconstructed by name, each (B, T, H, W, 3) uint8.

    Hidden patches are grey in SEEN; in the last ones they are the prediction and the visible ones are the original. A model of
    normalised targets says nothing of a patch's mean and deviation, and a picture that is given the true ones looks like the
    original before anything is learned: hence GIVEN and, with those of the visible patches around (weighted by the inverse square
    of the distance in tokens of space and time), GUESSED. Otherwise there is REBUILT alone.
    """
    tubelet, patch, grid = model.encoder.tubelet, model.encoder.patch, model.encoder.grid
    prediction = prediction.float()
    rebuilt = {REBUILT: prediction}
    if model.normalization != "none":
        over = -2 if model.normalization == "channel" else (-2, -1)

        def statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pixels = patch_targets(frames, patches, tubelet, patch, "none", torch.float32).unflatten(2, (-1, 3))
            variance, mean = torch.var_mean(pixels, dim=over, keepdim=True, correction=1)
            return mean, variance.sqrt() + 1e-6

        weights = _nearness(masks, grid)
        around = [torch.einsum("bmv,bvij->bmij", weights, values) for values in statistics(masks.visible)]
        normalised = prediction.unflatten(2, (-1, 3))
        rebuilt = {
            name: (normalised * deviation + mean).flatten(2)
            for name, (mean, deviation) in {GIVEN: statistics(masks.masked), GUESSED: around}.items()
        }
    everything = torch.arange(model.encoder.num_tokens).expand(len(frames), -1)
    original = patch_targets(frames, everything, tubelet, patch, "none", torch.float32)
    index = masks.masked[..., None].expand(-1, -1, original.shape[-1])
    made = {ORIGINAL: original, SEEN: original.scatter(1, index, 0.5)}
    made |= {name: original.scatter(1, index, values.clamp(0, 1)) for name, values in rebuilt.items()}

    def video(patches: torch.Tensor) -> NDArray[np.uint8]:
        steps, rows, columns = grid
        cells = patches.unflatten(2, (tubelet, patch, patch, 3)).unflatten(1, (steps, rows, columns))
        ordered = cells.permute(0, 1, 4, 2, 5, 3, 6, 7)
        return (ordered.reshape(frames.shape) * 255).round().to(torch.uint8).numpy()

    return {name: video(patches) for name, patches in made.items()}


def _nearness(masks: Masks, grid: tuple[int, int, int]) -> torch.Tensor:
    """(B, N_masked, N_visible) what visible patches weigh for hidden ones; sums to 1 over the visible ones."""
    places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float32) for size in grid))
    weights = torch.cdist(places[masks.masked], places[masks.visible]).square().reciprocal()
    return weights / weights.sum(dim=2, keepdim=True)
