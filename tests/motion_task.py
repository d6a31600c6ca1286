"""A labelled table whose label is in the motion alone: textures that go to the left and come back, or to the right and come back.

The frames of a clip, without their order, say nothing of it. Nor do random weights much: which way a token moves has to be seen
together with when it does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from clips import write_pictures

from trocar.engine.weights.convert import Conversion, EncoderSettings
from trocar.judge.labels.dataset import Segment

FRAMES, SIDE, SPEED = 8, 32, 2
FPS = 25


def texture_clip(chance: np.random.Generator, direction: int) -> list[np.ndarray]:
    """FRAMES pictures (R, R, 3) uint8; direction: 1 or -1, columns times SPEED a frame, forth and back."""
    margin = SPEED * FRAMES // 2
    noise = torch.from_numpy(chance.random((1, 3, 12, 12), dtype=np.float32))
    size = SIDE + 2 * margin
    texture = torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0) * 255
    picture = texture.round().to(torch.uint8).numpy()
    lefts = [margin + direction * SPEED * min(step, FRAMES - 1 - step) for step in range(FRAMES)]
    return [np.ascontiguousarray(picture[margin : margin + SIDE, left : left + SIDE]) for left in lefts]


def motion_table(root: Path, videos: dict[str, int], clips: int, *, seed: int = 0) -> list[Segment]:
    """Writes videos of `clips` clips each, and returns their rows. videos: how many of each split."""
    chance = np.random.default_rng(seed)
    table = []
    for split, count in videos.items():
        for number in range(count):
            path = root / f"{split}_{number}.mp4"
            pictures = []
            for place in range(clips):
                direction = 1 if chance.random() < 0.5 else -1
                pictures += texture_clip(chance, direction)
                start = place * FRAMES / FPS
                label = "left" if direction == 1 else "right"
                table.append(Segment(str(path), start, start + FRAMES / FPS, label, path.stem, split=split))
            write_pictures(path, pictures, gop=FRAMES, fps=FPS, options={"qp": "12"})
    return table


def tiny_conversion() -> Conversion:
    """What `trocar convert` would make of a tiny encoder."""
    settings = EncoderSettings(16, 1, 1, FRAMES, SIDE, 2, 8, "axes")
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in settings.build().state_dict().items()}
    return Conversion("videomae", "VideoMAE", settings, state, len(state), [], [], [], [])
