"""The pictures of a run's page: what its checkpoints make of clips that training does not see.

Shapes: B clips, T frames, H W pixels, D width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...loaders.decode.batch import ClipBatch
from ..inputs.checkpoints import checkpoints
from ..record.metrics import PICTURES
from ..view.errors import ORIGINAL, SEEN, enlarged, largest_error, token_errors
from ..view.features import principal_components
from ..view.neighbours import nearest
from ..view.run import panels
from ..view.unseen import Unseen, run_config, unseen_batch, unseen_clips, where_from
from .page import paragraph, picture

CLIPS, REBUILT_CLIPS, COLOURED_CLIPS = 24, 2, 4  # decoded; of which are reconstructed; of which features are coloured
MOST_STEPS = 6  # checkpoints of the filmstrip
MOST_LIVE = 8  # pictures of a kind that were made while the run trained
QUERIES, NEAREST = 3, 4
ENCODED = 8  # clips at a time


def run_pictures(run_dir: Path) -> str:
    """HTML: pictures made while it trained, a filmstrip over the checkpoints that are kept, features as colours, neighbours; ""
    where there is no checkpoint.

    Raises ConfigError, CheckpointError, CorpusError or VideoError.
    """
    kept = checkpoints(run_dir)
    if not kept:
        return ""
    config = run_config(run_dir)
    batch, names = unseen_batch(config, CLIPS)
    few = _first(batch, REBUILT_CLIPS), names[:REBUILT_CLIPS]
    chosen = [kept[place] for place in np.unique(np.linspace(0, len(kept) - 1, MOST_STEPS).round().astype(int))]
    unseen = unseen_clips(run_dir, REBUILT_CLIPS, checkpoint=chosen[0], batch=few)
    largest = largest_error(token_errors(unseen).numpy())  # the scale of all checkpoints' errors
    parts = _film(unseen, largest, with_original=True)
    for path in chosen[1:]:
        unseen = unseen_clips(run_dir, REBUILT_CLIPS, checkpoint=path, batch=few)
        parts += _film(unseen, largest, with_original=False)
    film = f'<div class="pictures">{"".join(parts)}</div>'
    return (
        _live(run_dir)
        + "<h3>Checkpoints</h3>"
        + paragraph(f"Clips {where_from(config)}: {'; '.join(few[1])}.")
        + film
        + _coloured(unseen, batch.frames[:COLOURED_CLIPS])
        + _neighbours(unseen, batch, names)
    )


def _live(run_dir: Path) -> str:
    """What run.pictures_every left behind, MOST_LIVE of each kind."""
    from PIL import Image

    figures = []
    for name in ("reconstruction", "features"):
        files = sorted((run_dir / PICTURES).glob(f"{name}_*.png"))
        for place in np.unique(np.linspace(0, len(files) - 1, MOST_LIVE).round().astype(int)) if files else ():
            with Image.open(files[place]) as image:
                shown = np.asarray(image.convert("RGB"))
            figures.append(picture(f"{name}, step {int(files[place].stem.rpartition('_')[2]):,}", shown))
    return f'<h3>While it trained</h3><div class="pictures">{"".join(figures)}</div>' if figures else ""


def _first(batch: ClipBatch, clips: int) -> ClipBatch:
    arrays = {name: getattr(batch, name)[:clips] for name in ("frames", "numbers", "draws", "views", "videos")}
    return replace(batch, **arrays, frame_numbers=batch.frame_numbers[:clips], pts_seconds=batch.pts_seconds[:clips])


def _film(unseen: Unseen, largest: float, with_original: bool) -> list[str]:
    """The middle frame of each clip, one below the other; what is predicted stands last among the panels."""
    made = panels(unseen, largest)
    middle = unseen.frames.shape[1] // 2
    shown = {name: video[:, middle].reshape(-1, *video.shape[3:]) for name, video in made.items()}
    predicted = list(made)[-1]
    figures = [picture(name, shown[name]) for name in (ORIGINAL, SEEN)] if with_original else []
    return [*figures, picture(f"step {unseen.step:,}: {' '.join(predicted.split())}", shown[predicted])]


def _coloured(unseen: Unseen, frames: torch.Tensor) -> str:
    found = principal_components(unseen.tokens(frames), unseen.encoder.grid)
    coloured = enlarged(found.colours(), unseen.encoder)
    both = np.concatenate([frames.numpy(), coloured], axis=2)  # (B, T, 2 H, W, 3)
    looping = np.concatenate(list(both), axis=2)
    shares = ", ".join(f"{share:.0%}" for share in found.explained)
    told = f"Equal colours are equal features, in all of these clips; three components, {shares} of the variance."
    caption = f"step {unseen.step:,}: clips, and their features' principal components"
    still = picture(caption, looping[len(looping) // 2])
    return (
        f'<h3>Features</h3>{paragraph(told)}<div class="pictures">{still}{picture(f"{caption}, moving", looping)}</div>'
    )


def _neighbours(unseen: Unseen, batch: ClipBatch, names: list[str]) -> str:
    with torch.no_grad():
        pooled = torch.cat([unseen.encoder.pooled(part) for part in batch.frames.split(ENCODED)])
    unit = F.normalize(pooled - pooled.mean(dim=0), dim=1).numpy()
    middle: NDArray[np.uint8] = batch.frames[:, batch.frames.shape[1] // 2].numpy()
    lines = []
    for query in range(min(QUERIES, len(unit))):
        rows, cosines = nearest(unit, unit[query], NEAREST, batch.videos != batch.videos[query])
        figures = [picture(f"query: {names[query]}", middle[query])]
        figures += [
            picture(f"{cosine:.2f}: {names[row]}", middle[row]) for row, cosine in zip(rows, cosines, strict=True)
        ]
        lines.append(f'<div class="pictures">{"".join(figures)}</div>')
    told = f"Of {len(unit)} clips the nearest by the cosine of their mean features, in other videos than the query's."
    return f"<h3>Neighbours</h3>{paragraph(told)}{''.join(lines)}"
