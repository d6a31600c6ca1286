"""Planes as a decoder leaves them, for tests of what is made of them."""

from __future__ import annotations

import numpy as np
import torch

Planes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def planes(
    pictures: int, height: int, width: int, device: torch.device, *, bits: int = 8, nv12: bool = False
) -> Planes:
    """Smooth pictures with noise, over all the values that samples can have."""
    rng = np.random.default_rng(height)
    number, rows, columns = np.ogrid[:pictures, :height, :width]
    luma = (
        128 + 150 * np.sin((rows + 5 * number) / 7) * np.cos(columns / 5) + rng.normal(0, 8, (pictures, height, width))
    )
    blue, red = (
        128 + 130 * np.sin(luma[:, ::2, ::2] / 50 + shift) + rng.normal(0, 4, luma[:, ::2, ::2].shape)
        for shift in (0, 2)
    )
    found = [torch.from_numpy(plane.clip(0, 255).astype(np.uint8)) for plane in (luma, blue, red)]
    if bits == 10:
        low = [torch.from_numpy(rng.integers(0, 4, plane.shape, np.int32)) for plane in found]
        found = [
            (64 * (4 * plane.int() + extra)).numpy().astype(np.uint16) for plane, extra in zip(found, low, strict=True)
        ]
        found = [torch.from_numpy(plane) for plane in found]
    if nv12:
        chroma = torch.from_numpy(np.stack([plane.numpy() for plane in found[1:]], axis=-1)).to(device)
        return found[0].to(device), chroma[..., 0], chroma[..., 1]
    luma, blue, red = (plane.to(device) for plane in found)
    return luma, blue, red
