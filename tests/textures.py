"""A planted task: random textures that move to one of four sides. No frame tells which; only motion does."""

from __future__ import annotations

import numpy as np
import torch

FRAMES, SIDE, SPEED = 8, 32, 2


def moving_textures(
    count: int, seed: int, *, side: int = SIDE, speed: int = SPEED, grain: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, T, side, side, 3) uint8 and labels (count,). speed: pixels a frame. grain: pixels between independent colours."""
    chance = np.random.default_rng(seed)
    margin = speed * FRAMES
    size = side + 2 * margin
    clips, labels = [], chance.integers(0, 4, count)
    for label in labels:
        noise = torch.from_numpy(chance.random((1, 3, size // grain, size // grain), dtype=np.float32))
        texture = torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)[0] * 255
        step = ((0, 1), (0, -1), (1, 0), (-1, 0))[label]
        places = [(margin + speed * t * step[0], margin + speed * t * step[1]) for t in range(FRAMES)]
        clips.append(torch.stack([texture[:, top : top + side, left : left + side] for top, left in places]))
    pixels = torch.stack(clips).permute(0, 1, 3, 4, 2).round().to(torch.uint8)
    return pixels.contiguous(), torch.from_numpy(labels)
