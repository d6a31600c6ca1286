"""What ignoring overlays does to a model: the error on all else, after equal steps on made clips under text and logos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dirty_videos import Scene
from numpy.typing import NDArray

from trocar.kernels.choices import Normalization
from trocar.kernels.pixel_loss import patch_targets
from trocar.ssl.encoder import VideoEncoder
from trocar.ssl.mae import MaskedAutoencoder
from trocar.ssl.masks import TubeMask

SIDE, PATCH, FRAMES, CLIPS = 64, 8, 4, 16
STEPS, WARMUP, LEARNING_RATE = 500, 50, 2.5e-3

Video = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def made_video(seed: int, frames: int = 40) -> Video:
    """(frames, 64, 64, 3) of a scene that a camera pans over, a line of text above or below and a logo in a corner, which stand
    still; (64,) which cells they cover, 20 of 64."""
    chance = np.random.default_rng(seed)
    scene = Scene(chance, SIDE, SIDE, int(chance.integers(3)))
    top, left = int(chance.choice([0, 48])), int(chance.choice([0, 48]))
    overlay = np.full((SIDE, SIDE), np.nan)
    overlay[top : top + 16] = np.kron((chance.random((8, 32)) < 0.5) * 224.0 + 16, np.ones((2, 2)))
    overlay[48 - top : 64 - top, left : left + 16] = np.kron(
        chance.integers(0, 2, (4, 4)) * 200.0 + 30, np.ones((4, 4))
    )
    covered = ~np.isnan(overlay)
    pictures = [np.where(covered[..., None], overlay[..., None], scene.next()) for _ in range(frames)]
    cells = covered.reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).any(axis=(1, 3)).reshape(-1)
    return np.clip(pictures, 0, 255).astype(np.uint8), cells


def drawn(videos: list[Video], chance: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, starts = chance.integers(len(videos), size=count), chance.integers(0, 33, size=count)
    clips = np.stack([videos[row][0][start : start + 2 * FRAMES : 2] for row, start in zip(rows, starts, strict=True)])
    return torch.from_numpy(clips), torch.from_numpy(np.stack([videos[row][1] for row in rows]))


def errors(seed: int, normalization: Normalization, ignores: bool, train: list[Video], held: list[Video]) -> NDArray:
    """(2,) mean squared errors on masked tokens of other videos: those beside overlays, and those under them."""
    torch.manual_seed(seed)
    encoder = VideoEncoder(48, 2, 3, frames=FRAMES, resolution=SIDE, patch=PATCH, positions="axes")
    model = MaskedAutoencoder(encoder, decoder_width=32, decoder_depth=1, decoder_heads=2, normalization=normalization)
    masks = TubeMask((FRAMES // 2, SIDE // PATCH, SIDE // PATCH), 0.75)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    chance = np.random.default_rng(seed)
    for step in range(STEPS):
        cosine = 0.5 * (1 + np.cos(np.pi * step / STEPS)) + 0.02
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * cosine
        frames, ignored = drawn(train, chance, CLIPS)
        drawn_masks = masks(seed, range(CLIPS * step, CLIPS * (step + 1)), 0)
        optimizer.zero_grad()
        model(frames, drawn_masks.without(ignored) if ignores else drawn_masks).loss.backward()
        optimizer.step()
    chance, found = np.random.default_rng(999), []
    with torch.no_grad():
        for part in range(8):
            frames, ignored = drawn(held, chance, 32)
            drawn_masks = masks(77, range(32 * part, 32 * (part + 1)), 0)
            target = patch_targets(frames, drawn_masks.masked, 2, PATCH, normalization, torch.float32)
            error = (model(frames, drawn_masks).prediction - target).square().mean(dim=2)
            covered = ignored.gather(1, drawn_masks.masked % ignored.shape[1])
            found.append([float(error[chosen].mean()) for chosen in (~covered, covered)])
    return np.mean(found, axis=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("normalization", "most"), [("none", 0.85), ("channel", 1.05)])
def test_what_is_ignored_takes_no_capacity(normalization: Normalization, most: float) -> None:
    train, held = [made_video(number) for number in range(32)], [made_video(500 + number) for number in range(12)]
    plain, ignoring = (errors(0, normalization, ignores, train, held) for ignores in (False, True))
    print(
        f"{normalization}: beside overlays {plain[0]:.5f} -> {ignoring[0]:.5f}, under them {plain[1]:.5f} -> {ignoring[1]:.5f}"
    )
    assert ignoring[0] < most * plain[0]
    assert ignoring[1] > plain[1]
