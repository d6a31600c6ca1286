"""A planted task: random textures that move to one of four sides. No frame tells which; only motion does."""

from __future__ import annotations

import numpy as np
import torch

FRAMES, SIDE, SPEED = 8, 32, 2


def moving_textures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, T, R, R, 3) uint8 and labels (count,)."""
    chance = np.random.default_rng(seed)
    margin = SPEED * FRAMES
    clips, labels = [], chance.integers(0, 4, count)
    for label in labels:
        noise = torch.from_numpy(chance.random((1, 3, 16, 16), dtype=np.float32))
        size = SIDE + 2 * margin
        texture = torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)[0] * 255
        step = ((0, 1), (0, -1), (1, 0), (-1, 0))[label]
        places = [(margin + SPEED * t * step[0], margin + SPEED * t * step[1]) for t in range(FRAMES)]
        clips.append(torch.stack([texture[:, top : top + SIDE, left : left + SIDE] for top, left in places]))
    pixels = torch.stack(clips).permute(0, 1, 3, 4, 2).round().to(torch.uint8)
    return pixels.contiguous(), torch.from_numpy(labels)
