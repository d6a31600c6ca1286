"""Clips in a grid, as a PNG.

Shapes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def save_grid(panels: Mapping[str, NDArray[np.uint8]], out: Path, title: str, clip_names: Sequence[str]) -> None:
    """A panel a name, of videos (B, T, H, W, 3): a clip a row, its frames side by side. clip_names: B of them."""
    from matplotlib.figure import Figure

    clips, frames, height, width, _ = next(iter(panels.values())).shape
    panel_width = max(1.1 * frames * width / height, 3.2)  # inches; titles take three
    figure = Figure(
        figsize=(panel_width * len(panels), panel_width * clips * height / (frames * width) + 1), layout="constrained"
    )
    figure.suptitle(title)
    axes = figure.subplots(1, len(panels))
    for axis, (name, video) in zip(axes, panels.items(), strict=True):
        axis.imshow(video.transpose(0, 2, 1, 3, 4).reshape(clips * height, frames * width, 3))
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    behind = {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
    for row, text in enumerate(clip_names):
        axes[0].text(2, row * height + 2, text, fontsize=6, color="white", va="top", bbox=behind)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
