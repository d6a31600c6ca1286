"""What a clip looks like, without any weights: colours, a thumbnail, motion. The default of `trocar embed`.

    colour     joint histogram of CIELAB, 4 x 8 x 8 bins, as square roots (their distance is Hellinger's)
    thumbnail  the clip's mean picture at 8 x 8 in opponent colours, of unit length
    motion     square roots of the mean absolute change of luma from frame to frame in 4 x 4 cells, times 0.5

It parts what differs in colour, light and framing. It knows no anatomy: two procedures under the same camera and light look
alike to it (docs/curation.md).

Shapes: B clips, T frames, R x R pixels; 464 values a clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

RESOLUTION = 64
BINS = (4, 8, 8)
THUMBNAIL, CELLS = 8, 4
WIDTH = BINS[0] * BINS[1] * BINS[2] + 3 * THUMBNAIL**2 + CELLS**2

# Of sRGB with the white point D65 (IEC 61966-2-1); rows are X, Y, Z over the white point's.
XYZ = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = torch.tensor([0.9505, 1.0, 1.089])
# Surgical pictures fill a part of the space: lowest value and range of L*, a*, b* that the bins cover; what lies outside goes to
# the edge.
LAB_LOWEST, LAB_RANGE = torch.tensor([0.0, -20.0, -30.0]), torch.tensor([100.0, 90.0, 90.0])


def describe_clips(frames: torch.Tensor) -> torch.Tensor:
    """(B, T, R, R, 3) uint8 -> (B, 464) float32. R must be a multiple of 8; ValueError else."""
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.shape[2] % THUMBNAIL or frames.shape[3] % THUMBNAIL:
        raise ValueError(f"frames must be (B, T, R, R, 3) with R a multiple of {THUMBNAIL}, got {tuple(frames.shape)}")
    pixels = frames.float() / 255
    return torch.cat([_colour(pixels), _thumbnail(pixels), 0.5 * _motion(pixels)], dim=1)


def _colour(pixels: torch.Tensor) -> torch.Tensor:
    lab = cielab(pixels)
    bins = torch.tensor(BINS, device=pixels.device)
    place = ((lab - LAB_LOWEST.to(lab)) / LAB_RANGE.to(lab) * bins).long().clamp(min=0).minimum(bins - 1)
    joint = (place[..., 0] * BINS[1] + place[..., 1]) * BINS[2] + place[..., 2]
    size = BINS[0] * BINS[1] * BINS[2]
    clip = torch.arange(len(pixels), device=pixels.device).view(-1, 1) * size
    counts = torch.bincount((joint.flatten(1) + clip).flatten(), minlength=len(pixels) * size)
    return (counts.view(len(pixels), size) / joint[0].numel()).sqrt()


def cielab(pixels: torch.Tensor) -> torch.Tensor:
    """sRGB (..., 3) in 0 .. 1 to CIELAB (CIE 1976) under D65."""
    linear = torch.where(pixels > 0.04045, ((pixels + 0.055) / 1.055) ** 2.4, pixels / 12.92)
    relative = linear @ XYZ.to(pixels).T / WHITE.to(pixels)
    root = torch.where(relative > 216 / 24389, relative.clamp(min=1e-9) ** (1 / 3), relative * 841 / 108 + 4 / 29)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def _thumbnail(pixels: torch.Tensor) -> torch.Tensor:
    small = F.adaptive_avg_pool2d(pixels.mean(dim=1).permute(0, 3, 1, 2), THUMBNAIL)
    red, green, blue = small.unbind(1)
    opponents = torch.stack([(red + green + blue) / 3, red - green, (red + green - 2 * blue) / 2], dim=1)
    return F.normalize(opponents.flatten(1), dim=1)


def _motion(pixels: torch.Tensor) -> torch.Tensor:
    luma = pixels.mean(dim=-1)
    change = (luma[:, 1:] - luma[:, :-1]).abs().mean(dim=1) if luma.shape[1] > 1 else torch.zeros_like(luma[:, 0])
    return F.adaptive_avg_pool2d(change[:, None], CELLS).flatten(1).sqrt()
