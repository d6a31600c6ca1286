"""A made corpus with a long tail: four domains, three procedures each, all known. For `trocar bench balance` and the tests of
curation.

Each domain has a way to be drawn (tissue with shafts, a tunnel, an eye, tissue with jointed tools), each procedure colours, a
texture and a pace, each video its light and its place in the texture.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

DOMAINS = ("laparoscopy", "endoscopy", "cataract", "robotic")
SHARES = (0.85, 0.10, 0.04, 0.01)
PROCEDURE_SHARES = (0.5, 0.3, 0.2)
WIDTH, HEIGHT, FPS = 96, 72, 25
SPANS_PER_VIDEO = 16
PALETTES = {  # of the three procedures of each domain: dark and light colour
    "laparoscopy": (((0.45, 0.12, 0.10), (0.85, 0.45, 0.38)), ((0.48, 0.16, 0.10), (0.90, 0.52, 0.36)), ((0.42, 0.10, 0.14),
    (0.82, 0.42, 0.46))), "endoscopy": (((0.40, 0.26, 0.08), (0.95, 0.75, 0.35)), ((0.36, 0.24, 0.14), (0.92, 0.80, 0.50)),
    ((0.42, 0.22, 0.05), (0.98, 0.68, 0.25))), "cataract": (((0.10, 0.20, 0.35), (0.60, 0.75, 0.90)), ((0.10, 0.25, 0.28), (0.60,
    0.82, 0.80)), ((0.15, 0.18, 0.40), (0.68, 0.70, 0.92))), "robotic": (((0.15, 0.05, 0.10), (0.42, 0.18, 0.28)), ((0.12, 0.06,
    0.14), (0.38, 0.20, 0.36)), ((0.08, 0.04, 0.20), (0.28, 0.16, 0.50))),
}  # fmt: skip


def span_counts(spans: int) -> dict[tuple[str, int], int]:
    """How many spans each (domain, procedure) has: the shares' parts, at least 2."""
    return {
        (domain, procedure): max(2, round(spans * share * part))
        for domain, share in zip(DOMAINS, SHARES, strict=True)
        for procedure, part in enumerate(PROCEDURE_SHARES)
    }


def make_corpus(
    folder: Path,
    counts: dict[tuple[str, int], int],
    *,
    span_frames: int,
    spans_per_video: int = SPANS_PER_VIDEO,
    seed: int = 0,
) -> Path:
    """Writes the videos and `corpus.csv`, whose path is returned. counts: spans of each (domain, procedure)."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rows = []
    for (domain, procedure), total in counts.items():
        # A rare procedure comes from several videos too, as from several patients.
        size = min(spans_per_video, max(1, total // 2))
        for number, first in enumerate(range(0, total, size)):
            name = f"videos/{domain}_{procedure}_{number:03d}.mp4"
            scene = Scene(domain, procedure, [seed, DOMAINS.index(domain), procedure, number])
            _write(folder / name, scene.frames(min(size, total - first) * span_frames))
            rows.append(
                [name, f"made_{domain}", domain, f"{domain}_{procedure}", f"{domain}_{procedure}_{number}", "web"]
            )
    path = folder / "corpus.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "source", "domain", "procedure", "subject", "origin"], *rows])
    return path


def _write(path: Path, frames: Iterator[NDArray[np.uint8]]) -> None:
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "crf": "20", "g": "16", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


class Scene:
    """One video of a procedure. key: integers that seed what is its own."""

    def __init__(self, domain: str, procedure: int, key: list[int]) -> None:
        generator = np.random.default_rng(key)
        self.domain = domain
        dark, light = (np.array(colour) for colour in PALETTES[domain][procedure])
        self.dark, self.light = dark * generator.uniform(0.93, 1.07), light * generator.uniform(0.95, 1.05)
        self.pace = (0.4, 1.0, 2.2)[procedure]
        waves = (0.12, 0.25, 0.45)[procedure] * generator.uniform(0.8, 1.2, 5)
        angles = generator.uniform(0, 2 * math.pi, 5)
        self.waves = np.stack([waves * np.cos(angles), waves * np.sin(angles), generator.uniform(0, 2 * math.pi, 5)], 1)
        self.phase = generator.uniform(0, 2 * math.pi, 2)
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        self.x, self.y = x - WIDTH / 2, y - HEIGHT / 2
        self.radius = np.hypot(self.x, self.y)

    def frames(self, count: int) -> Iterator[NDArray[np.uint8]]:
        return (self.render(number / FPS) for number in range(count))

    def render(self, seconds: float) -> NDArray[np.uint8]:
        """The picture at a time, (72, 96, 3) uint8 RGB."""
        time = self.pace * seconds
        x, y = self.x + 6 * math.sin(time + self.phase[0]), self.y + 4 * math.cos(0.7 * time + self.phase[1])
        texture = np.zeros((HEIGHT, WIDTH))
        for a, b, c in self.waves:
            texture += np.sin(a * x + b * y + c + 0.5 * time)
        texture = texture / 6 + 0.5
        if self.domain == "endoscopy":  # rings that come nearer, dark in the middle
            texture = 0.5 * texture + 0.3 + 0.2 * np.sin(0.5 * np.sqrt(self.radius * 12) - 3 * time)
        picture = self.dark + texture.clip(0, 1)[..., None] * (self.light - self.dark)
        swing = 0.4 * math.sin(1.3 * time + self.phase[0])
        if self.domain == "laparoscopy":
            picture *= (1.05 - 0.5 * (self.radius / 60) ** 2)[..., None]
            self._shaft(picture, swing + self.phase[1], 12 + 6 * math.sin(time), 4, (0.7, 0.72, 0.75))
        elif self.domain == "endoscopy":
            picture *= (0.12 + 0.9 * (self.radius / 45).clip(0, 1))[..., None]
            picture[self.radius > 44] = 0.02
        elif self.domain == "cataract":
            picture = 0.35 * picture + 0.6
            iris = self.radius < 26
            picture[iris] = (self.dark + 0.8 * texture[iris, None] * (self.light - self.dark)).clip(0, 1)
            picture[self.radius < 9] = 0.05
            picture[np.abs(self.radius - 27) < 1.5] = 0.95
        else:
            for side in (0.6, math.pi - 0.6):
                self._shaft(picture, side + swing, 6, 5, (0.35, 0.38, 0.45))
                self._shaft(picture, side + 2.2 * swing, 16, 2, (0.8, 0.85, 0.9))
        return (255 * picture.clip(0, 1)).astype(np.uint8)

    def _shaft(self, picture: NDArray, angle: float, reach: float, width: float, colour: tuple[float, ...]) -> None:
        along = self.x * math.cos(angle) + self.y * math.sin(angle)
        across = -self.x * math.sin(angle) + self.y * math.cos(angle)
        picture[(np.abs(across) < width) & (along > reach)] = colour
