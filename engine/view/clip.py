"""`trocar view clip VIDEO SECOND`: what a model is handed of a video, frame by frame.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...loaders.clip_loader import clip_loader
from ..config.error import ConfigError
from .numbers import write_numbers

MOVING = (".webp", ".gif")
COLUMNS = 8


def view_clip(
    video: str,
    second: float,
    out: Path,
    *,
    frames: int = 16,
    stride: int = 4,
    resolution: int = 224,
    numbers: Path | None = None,
) -> list[str]:
    """Writes `frames` frames, every `stride`-th from the one on that a player shows at `second`: a .png with all of them and their
    times, or a .webp or .gif that loops at the video's own speed. numbers: a JSON file of times, frame numbers and mean colours.

    Returns lines for the terminal. Raises ConfigError on another suffix, VideoError where the clip cannot be read.
    """
    if out.suffix not in (".png", *MOVING):
        raise ConfigError(f"--out {out}: give a file that ends in .png, .webp or .gif")
    loader = clip_loader(
        [(video, second, 0)],
        batch=1,
        training=False,
        loader="cpu",
        device="cpu",
        rank=0,
        ranks=1,
        workers=0,
        num_frames=frames,
        stride=stride,
        resolution=resolution,
    )
    (batch,) = loader
    pictures, seconds = batch.frames[0].numpy(), batch.pts_seconds[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix in MOVING:
        from PIL import Image

        images = [Image.fromarray(picture) for picture in pictures]
        apart = float(np.diff(seconds).mean()) if len(seconds) > 1 else 1.0
        milliseconds = max(20, round(1000 * apart))
        images[0].save(out, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    else:
        from matplotlib.figure import Figure  # slow to import: only where something is drawn

        columns = min(COLUMNS, len(pictures))
        rows = -(-len(pictures) // columns)
        figure = Figure(figsize=(1.6 * columns, 1.8 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, picture, time in zip(axes.flat, pictures, seconds, strict=False):
            axis.imshow(picture)
            axis.set_title(f"{time:.3f} s", fontsize=7)
        figure.savefig(out, dpi=120)
    if numbers is not None:
        colours = pictures.reshape(len(pictures), -1, 3).mean(axis=1)
        told = {"frames": batch.frame_numbers[0], "seconds": seconds, "mean_colours": colours}
        write_numbers(numbers, {"video": video, **told})
    return [f"{len(pictures)} frames, {seconds[0]:.3f} to {seconds[-1]:.3f} s: {out}"]
