"""What an encoder makes of clips, as colours: the three largest principal components of its tokens as red, green and blue.

Components are those of all clips together, so that a colour means the same in each of them.

Shapes: B clips, N tokens of the grid (T', H', W'), D width, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import ORIGINAL, enlarged
from .grid import save_grid
from .numbers import write_numbers
from .unseen import title_of, unseen_clips

PERCENTILES = 1, 99  # of a component: black and full colour
COLOURED = "principal components of its features:\nequal colours, equal features"


@dataclass(frozen=True)
class Components:
    """values: (B, T', H', W', 3), each token's places along the three components. explained: (3,) shares of the variance."""

    values: NDArray[np.float32]
    explained: NDArray[np.float64]

    def colours(self) -> NDArray[np.uint8]:
        """(B, T', H', W', 3)."""
        low, high = np.percentile(self.values.reshape(-1, 3), PERCENTILES, axis=0)
        scaled = (self.values - low) / np.maximum(high - low, 1e-12)
        return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def principal_components(tokens: torch.Tensor, grid: tuple[int, int, int]) -> Components:
    """tokens: (B, N, D), D at least 3. Signs are such that a component's largest weight is positive: alike from call to call."""
    rows = tokens.double().flatten(0, 1)
    rows = rows - rows.mean(dim=0)
    variances, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    directions = directions[:, -3:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    values = (rows @ (directions * largest.sign())).float().reshape(len(tokens), *grid, 3)
    explained = variances.clamp(min=0).flip(0)
    return Components(values.numpy(), (explained[:3] / explained.sum().clamp(min=1e-30)).numpy())


def view_features(
    run_dir: Path,
    out: Path,
    *,
    clips: int = 4,
    frames: int = 4,
    corpus: str | None = None,
    numbers: Path | None = None,
) -> Path:
    """Writes a grid of clips, as `view recon` takes them, beside their features' components. numbers: a JSON file of these.

    out: the path of a PNG, which is returned. frames: shown of each clip. Raises ConfigError, CorpusError or CheckpointError.
    """
    unseen = unseen_clips(run_dir, clips, corpus=corpus)
    found = principal_components(unseen.tokens(unseen.frames), unseen.encoder.grid)
    shown = np.linspace(0, unseen.frames.shape[1] - 1, frames).round().astype(int)
    coloured = enlarged(found.colours(), unseen.encoder)
    share = f"{found.explained.sum():.0%} of the variance"
    panels = {ORIGINAL: unseen.frames.numpy()[:, shown], f"{COLOURED} ({share})": coloured[:, shown]}
    save_grid(panels, out, title_of(run_dir, unseen.step, corpus), unseen.names)
    if numbers is not None:
        told = {"components": found.values, "explained": found.explained, "clips": unseen.names}
        write_numbers(numbers, {"step": unseen.step, **told})
    return out
