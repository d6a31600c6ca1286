"""How much a picture looks like the inside of a body: a logistic regression on what colour, light, texture and border say of it.

It was fitted by `fit_in_body.py`, which says on what, and with which error. It knows laparoscopy, robotic and eye surgery as
cameras in bodies show them, and knows nothing of people: what it calls out of body is for a person to look at. Weights of others
go in its place by `--model` (`models.py`).

Shapes: H W = 144 x 192 pixels of a sample, K features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .pictures import LUMA, Picture, pooled

IN_BODY = 0.5  # the default threshold
FEATURES = (
    "red", "blue", "saturation", "saturation_deviation", "brightness", "brightness_deviation", "dark", "vignette", "edges",
    "upright", "warm", "cold", "grey", "colours", "dark_border",
)  # fmt: skip
# Of `fit_in_body.py`: mean and deviation of each feature, its weight; the constant.
MEANS = (
    0.3778,
    0.3054,
    0.3737,
    0.1323,
    0.3803,
    0.1697,
    0.1024,
    0.1437,
    0.2404,
    0.4952,
    0.4421,
    0.4157,
    0.1869,
    2.27,
    0.2146,
)
DEVIATIONS = (
    0.09759,
    0.07043,
    0.1669,
    0.0731,
    0.1616,
    0.04415,
    0.1966,
    0.1651,
    0.1224,
    0.2032,
    0.3865,
    0.3716,
    0.2882,
    0.5395,
    0.3085,
)
WEIGHTS = (
    2.547,
    1.141,
    -0.8273,
    0.005332,
    -1.035,
    -0.3484,
    -0.2311,
    1.603,
    -0.3342,
    -3.306,
    0.05806,
    -0.2395,
    -1.022,
    1.552,
    0.8072,
)
CONSTANT = -0.6301


def features(pixels: Picture) -> NDArray[np.float64]:
    """(K,) of a sample's pixels (H, W, 3) uint8."""
    small = pooled(pixels, 3) / 255
    luma = small @ LUMA
    most, least = small.max(axis=2), small.min(axis=2)
    saturation = (most - least) / np.maximum(most, 1e-3)
    lit = luma > 0.08
    lit = lit if lit.any() else np.ones_like(lit)
    red, green, blue = (small[..., channel][lit] for channel in range(3))
    total = np.maximum(red + green + blue, 1e-3)
    rows, columns = luma.shape
    centre = luma[rows // 4 : -rows // 4, columns // 4 : -columns // 4].mean()
    corners = np.mean([luma[r, c].mean() for r in (np.s_[:8], np.s_[-8:]) for c in (np.s_[:10], np.s_[-10:])])
    across, down = np.diff(luma, axis=1)[:-1], np.diff(luma, axis=0)[:, :-1]
    strong = np.hypot(across, down) > 0.06
    steepest = np.maximum(np.abs(across), np.abs(down))[strong]
    flattest = np.minimum(np.abs(across), np.abs(down))[strong]
    frame = np.concatenate([luma[:3].ravel(), luma[-3:].ravel(), luma[:, :3].ravel(), luma[:, -3:].ravel()])
    level = (small * 5.99).astype(int)
    counts = np.bincount(((level[..., 0] * 6 + level[..., 1]) * 6 + level[..., 2]).ravel(), minlength=216) / luma.size
    entropy = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
    saturated = saturation[lit]
    return np.array(
        [
            (red / total).mean(),
            (blue / total).mean(),
            saturated.mean(),
            saturated.std(),
            luma.mean(),
            luma.std(),
            (luma < 0.08).mean(),
            centre - corners,
            strong.mean(),
            (flattest < 0.2 * steepest).mean() if steepest.size else 0.0,
            ((red > green) & (red > blue) & (saturated > 0.25)).mean(),
            ((red < green) | (red < blue)).mean(),
            (saturated < 0.15).mean(),
            entropy,
            (frame < 0.06).mean(),
        ]
    )


def in_body(pixels: Picture) -> float:
    """0 .. 1, of a sample's pixels (H, W, 3)."""
    scaled = (features(pixels) - np.array(MEANS)) / np.array(DEVIATIONS)
    return float(1 / (1 + np.exp(-np.clip(scaled @ np.array(WEIGHTS) + CONSTANT, -30, 30))))
