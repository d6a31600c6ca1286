"""Pictures of a run: what the model reconstructs, and its curve. PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels.pixel_loss import patch_targets
from ...loaders.corpus.corpus import Corpus
from ...loaders.draw.phases import DrawSettings
from ...ssl.mae import MaskedAutoencoder
from ...ssl.masks import Masks
from ..checkpoint.checkpoint import load_checkpoint
from ..config.file import CONFIG_FILE, load_config
from ..config.settings import Config, ConfigError, DataConfig, ValidationConfig
from ..inputs.checkpoints import CheckpointError, newest_checkpoint
from ..inputs.folders import no_metrics
from ..record.metrics import read_metrics
from ..step.build import build_model, build_sampler
from ..step.changes import Change, marks
from ..step.loading import build_loader

ORIGINAL, SEEN, REBUILT = "original", "what the model sees", "reconstructed"
GIVEN = f"{REBUILT}; every hidden patch\nhas been given its true mean and deviation"
GUESSED = f"{REBUILT}; mean and deviation of\nhidden patches guessed from visible ones"
SMOOTHED = 21  # steps, odd
FIRST_UNSEEN_DRAW = 2**40  # far beyond any run: other offsets, crops and masks than the model was trained on


def view_reconstruction(
    run_dir: Path, out: Path | None = None, *, clips: int = 4, frames: int = 4, corpus: str | None = None
) -> Path:
    """Writes a grid of clips: original, what the model sees, what it makes of it.

    run_dir: a run with a checkpoint. out: RUN/reconstruction.png where None. clips: rows of the grid. frames: shown of each clip.
    corpus: another corpus than the run's, of which all spans come alike: the run's tree, shares, exclusions and held-out videos are
    of its own one. Returns the path of the PNG. Raises ConfigError, CorpusError or CheckpointError.
    """
    config = _run_config(run_dir, corpus)
    if config.objective.kind != "mae":
        raise ConfigError(
            f"{run_dir}: a run with objective.kind={config.objective.kind} predicts features, not pixels: there is nothing to "
            "reconstruct; `trocar view curve` shows how it went"
        )
    checkpoint = newest_checkpoint(run_dir)
    # Every hidden patch is shown, whether or not training had the decoder drop some.
    config = replace(config, objective=replace(config.objective, decoder_mask_ratio=0.0))
    model, mask = build_model(config)
    assert isinstance(model, MaskedAutoencoder)
    model.load_state_dict(load_checkpoint(checkpoint).model)
    model.eval()
    opened = Corpus.open(config.data.corpus)
    draws = np.arange(FIRST_UNSEEN_DRAW, FIRST_UNSEEN_DRAW + clips)
    with build_loader(config, opened, build_sampler(config, opened), iter([draws]), torch.device("cpu")) as loader:
        batch = next(loader)
    masks = mask(config.run.seed, batch.numbers, 0)
    with torch.no_grad():
        prediction = model(batch.frames, masks).prediction
    shown = np.linspace(0, config.data.frames - 1, frames).round().astype(int)
    panels = reconstruction(model, batch.frames, masks, prediction)
    out = out or run_dir / "reconstruction.png"
    title = f"{run_dir.name}, step {checkpoint.name.rpartition('_')[2].lstrip('0')}"
    if corpus is not None:
        title += f"\nclips of {corpus}, all its spans alike"
    _save_grid({name: video[:, shown] for name, video in panels.items()}, out, title)
    return out


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
    panels = {ORIGINAL: original, SEEN: original.scatter(1, index, 0.5)}
    panels |= {name: original.scatter(1, index, values.clamp(0, 1)) for name, values in rebuilt.items()}

    def video(patches: torch.Tensor) -> NDArray[np.uint8]:
        steps, rows, columns = grid
        cells = patches.unflatten(2, (tubelet, patch, patch, 3)).unflatten(1, (steps, rows, columns))
        ordered = cells.permute(0, 1, 4, 2, 5, 3, 6, 7)
        return (ordered.reshape(frames.shape) * 255).round().to(torch.uint8).numpy()

    return {name: video(patches) for name, patches in panels.items()}


def _nearness(masks: Masks, grid: tuple[int, int, int]) -> torch.Tensor:
    """(B, N_masked, N_visible) what visible patches weigh for hidden ones; sums to 1 over the visible ones."""
    places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float32) for size in grid))
    weights = torch.cdist(places[masks.masked], places[masks.visible]).square().reciprocal()
    return weights / weights.sum(dim=2, keepdim=True)


def view_curve(run_dir: Path, out: Path | None = None) -> Path:
    """Plots loss, its mean around each step, and speed. Returns the path of the PNG, RUN/curve.png where `out` is None."""
    rows = read_metrics(run_dir)
    if not rows:  # or none that is whole
        raise no_metrics(run_dir)
    out = out or run_dir / "curve.png"
    from matplotlib.figure import Figure  # slow to import: only where something is drawn

    figure = Figure(figsize=(8, 5), layout="constrained")
    loss, speed = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], color="0.75", linewidth=0.8, label="each step")
    loss.plot(steps, _smooth([row["loss"] for row in rows]), color="C0", label=f"mean of {SMOOTHED} around a step")
    if validated := [row for row in rows if "validation_loss" in row]:
        held_out = [row["validation_loss"] for row in validated]
        loss.plot([row["step"] for row in validated], held_out, "o-", color="C3", markersize=3, label="held-out videos")
    for step, changes in marks(run_dir):
        loss.axvline(step + 0.5, color="0.3", linestyle="--", linewidth=0.8)
        speed.axvline(step + 0.5, color="0.3", linestyle="--", linewidth=0.8)
        loss.plot([], [], "--", color="0.3", linewidth=0.8, label=shorten(step, changes))
    loss.set_yscale("log")
    loss.set_ylabel("loss")
    loss.set_title(run_dir.name)
    loss.legend(frameon=False)
    speed.plot(steps, [row["clips_per_second"] for row in rows], color="C1", linewidth=0.8)
    speed.set_ylabel("clips/s")
    speed.set_xlabel("step")
    figure.savefig(out, dpi=120)
    return out


def shorten(step: int, changes: Sequence[Change]) -> str:
    """A line of the legend: behind which step what was changed, at most three settings, each cut to a few words."""
    texts = [textwrap.shorten(f"{change.key} {change.before} -> {change.now}", 60) for change in changes[:3]]
    more = [f"{len(changes) - 3} more (run.json)"] if len(changes) > 3 else []
    return "\n".join([f"from step {step + 1:,} on:", *texts, *more])


def _smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean of the SMOOTHED values around each; of as many on both sides as there are, so that it neither trails nor leads."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    middle = np.arange(len(values))
    beside = np.minimum(SMOOTHED // 2, np.minimum(middle, len(values) - 1 - middle))
    return (total[middle + beside + 1] - total[middle - beside]) / (2 * beside + 1)


def _save_grid(panels: Mapping[str, NDArray[np.uint8]], out: Path, title: str) -> None:
    """A panel a name, of videos (B, T, H, W, 3): a clip a row, its frames side by side."""
    from matplotlib.figure import Figure

    clips, frames, height, width, _ = next(iter(panels.values())).shape
    panel_width = max(1.1 * frames * width / height, 3.2)  # inches; titles take three
    figure = Figure(
        figsize=(panel_width * len(panels), panel_width * clips * height / (frames * width) + 1), layout="constrained"
    )
    figure.suptitle(title)
    for axis, (name, video) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.imshow(video.transpose(0, 2, 1, 3, 4).reshape(clips * height, frames * width, 3))
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    figure.savefig(out, dpi=120)


def _run_config(run_dir: Path, corpus: str | None) -> Config:
    if not (run_dir / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{run_dir}: not a run (it has no {CONFIG_FILE}); name a folder that `trocar pretrain` wrote"
        )
    config = load_config(run_dir / CONFIG_FILE)
    if corpus is None:
        return config
    plain = DataConfig(corpus)
    names = {item.name for item in fields(DrawSettings)} & {item.name for item in fields(DataConfig)}
    changed = {name: getattr(plain, name) for name in ("corpus", "phases", *names)}
    return replace(config, data=replace(config.data, **changed), validation=ValidationConfig())
