"""Made videos with planted faults, and the truth about every frame: what `trocar screen` is judged by.

Scenes are pictures of tissue-like noise that a camera pans over, with an instrument that moves. Truth is per frame or per event:
cuts (also between scenes of one palette), flashes and sudden instruments, which are no cuts, fades and wipes, stretches that are
frozen, blank (with and without noise) or out of focus, pictures in the picture, and text, logos and clocks that stay all through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from clips import write_pictures

from trocar.loaders.corpus.spans import ScreenedVideo

FPS = 25
SIZES = ((192, 144), (240, 180), (320, 240))
PALETTES = (
    ((150, 60, 50), (210, 120, 100), (90, 25, 25)),
    ((190, 120, 70), (225, 185, 120), (120, 60, 40)),
    ((140, 80, 90), (220, 170, 170), (70, 30, 40)),
)
EVENTS = ("cut", "similar cut", "flash", "instrument", "fade", "wipe", "frozen", "blank", "defocus", "inset")
OVERLAYS = ("text", "logo", "slow logo", "clock", "none")


@dataclass
class Truth:
    """cuts: first frames of shots. flashes, instruments, transitions, frozen, blank, defocus, inset: (first, stop) frames.
    overlay: (height, width) bool."""

    path: Path
    frames: int = 0
    gop: int = 0
    cuts: list[int] = field(default_factory=list)
    flashes: list[tuple[int, int]] = field(default_factory=list)
    instruments: list[tuple[int, int]] = field(default_factory=list)
    transitions: list[tuple[int, int]] = field(default_factory=list)
    frozen: list[tuple[int, int]] = field(default_factory=list)
    blank: list[tuple[int, int]] = field(default_factory=list)
    defocus: list[tuple[int, int]] = field(default_factory=list)
    inset: list[tuple[int, int]] = field(default_factory=list)
    overlay: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), bool))


class Scene:
    """A canvas that a camera pans over. palette: of PALETTES."""

    def __init__(self, chance: np.random.Generator, width: int, height: int, palette: int) -> None:
        self.width, self.height, self.palette = width, height, palette
        self.margin = 48
        rows, columns = height + 2 * self.margin, width + 2 * self.margin
        total = np.zeros((rows, columns))
        for cell, weight in ((48, 1.0), (20, 0.7), (9, 0.45), (4, 0.25)):
            grid = chance.normal(size=(rows // cell + 2, columns // cell + 2))
            total += weight * _stretched(grid, rows, columns, cell)
        total = (total - total.mean()) / total.std()
        low, middle, high = (np.array(PALETTES[palette][place], float) for place in (2, 0, 1))
        share = np.clip(total / 2, -1, 1)[..., None]
        canvas = np.where(share > 0, middle + share * (high - middle), middle + share * (middle - low))
        self.canvas = np.clip(canvas, 0, 255).astype(np.uint8)
        self.speed = chance.uniform(0.2, 0.8, 2) * chance.choice([-1, 1], 2)
        self.phase = chance.uniform(0, 20, 2)
        down, right = np.mgrid[0:height, 0:width]
        distance = np.hypot((down - height / 2) / height, (right - width / 2) / width)
        self.light = np.clip(1.15 - 0.9 * distance**2, 0, 1)[..., None]
        self.angle, self.reach = chance.uniform(0.3, 1.2), chance.uniform(0.3, 0.6)
        self._down, self._right = down, right
        self._noise = chance.normal(0, 2.0, (4, height, width, 1))
        self.time = 0

    def next(self) -> np.ndarray:
        """(height, width, 3) float."""
        self.time += 1
        shift = self.margin * (1 + 0.95 * np.sin(self.speed * self.time / 40 + self.phase))
        top, left = shift.astype(int)
        picture = self.canvas[top : top + self.height, left : left + self.width] * self.light
        picture += self._noise[self.time % 4]
        return self.with_instrument(picture, self.angle + 0.1 * np.sin(self.time / 30), self.reach)

    def with_instrument(self, picture: np.ndarray, angle: float, reach: float, thickness: float = 0.05) -> np.ndarray:
        """A grey shaft from the lower left corner."""
        along = self._right * np.cos(angle) + (self.height - self._down) * np.sin(angle)
        across = self._right * np.sin(angle) - (self.height - self._down) * np.cos(angle)
        shaft = (np.abs(across) < thickness * self.width) & (along < reach * self.width)
        picture[shaft] = 120 + 60 * np.cos(across[shaft, None] / (thickness * self.width) * 1.5)
        return picture


def _stretched(grid: np.ndarray, rows: int, columns: int, cell: int) -> np.ndarray:
    """Bilinear, from cells to pixels."""
    down, right = np.arange(rows) / cell, np.arange(columns) / cell
    top, left = down.astype(int), right.astype(int)
    below, beside = (down - top)[:, None], right - left
    upper = grid[top][:, left] * (1 - beside) + grid[top][:, left + 1] * beside
    lower = grid[top + 1][:, left] * (1 - beside) + grid[top + 1][:, left + 1] * beside
    return upper * (1 - below) + lower * below


class Overlay:
    """Text, a logo that stands or drifts by some pixels in all, or a clock, over `frames` frames."""

    def __init__(self, chance: np.random.Generator, kind: str, width: int, height: int, frames: int) -> None:
        self.kind, self.frames, self.chance = kind, frames, chance
        scale = max(2, round(width / 96))
        letters = int(chance.integers(6, 11)) if kind != "clock" else 8
        if kind in ("text", "clock"):
            self.tall, self.wide = 5 * scale + 4, letters * 4 * scale + 4
        else:
            self.tall, self.wide = int(height * chance.uniform(0.15, 0.25)), int(width * chance.uniform(0.15, 0.28))
        self.scale, self.letters = scale, letters
        corner = chance.integers(4)
        gap = 6
        self.top = gap if corner < 2 else height - self.tall - gap
        self.left = gap if corner % 2 else width - self.wide - gap
        self.drift = (chance.choice([-1, 1], 2) * 4 if kind == "slow logo" else np.zeros(2)).astype(int)
        self.top += -4 if self.top > gap and self.drift.any() else 4 if self.drift.any() else 0
        self.left += -4 if self.left > gap and self.drift.any() else 4 if self.drift.any() else 0
        self.picture = self._drawn()
        self.mask = np.zeros((height, width), bool)
        for share in (0.0, 0.5, 1.0):
            top, left = self._place(share)
            self.mask[top : top + self.tall, left : left + self.wide] = True

    def _place(self, share: float) -> tuple[int, int]:
        return self.top + int(self.drift[0] * share), self.left + int(self.drift[1] * share)

    def _drawn(self) -> np.ndarray:
        if self.kind in ("text", "clock"):
            picture = np.full((self.tall, self.wide), 16.0)
            for letter in range(self.letters):
                bits = self.chance.random((5, 3)) < 0.6
                bits[self.chance.integers(5)] = True
                glyph = np.repeat(np.repeat(bits, self.scale, 0), self.scale, 1) * 224.0 + 16
                left = 2 + letter * 4 * self.scale
                picture[2 : 2 + glyph.shape[0], left : left + glyph.shape[1]] = glyph
        else:
            cell = max(4, self.tall // 5)
            grid = self.chance.integers(0, 2, (self.tall // cell + 1, self.wide // cell + 1)) * 200.0 + 30
            picture = np.repeat(np.repeat(grid, cell, 0), cell, 1)[: self.tall, : self.wide]
        return picture

    def on(self, picture: np.ndarray, number: int) -> np.ndarray:
        if self.kind == "none":
            return picture
        if self.kind == "clock" and number % FPS == 0:
            self.picture = self._drawn()
        top, left = self._place(number / self.frames)
        picture[top : top + self.tall, left : left + self.wide] = self.picture[..., None]
        return picture


def write_dirty_video(
    path: Path, seed: int, events: tuple[str, ...], *, overlay: str = "none", gop: int = 12, size: int = 0, longest_frozen: float
    = 8.0, clean_seconds: float = 2.0,
) -> Truth:  # fmt: skip
    """Writes a video with these events, `clean_seconds` and more of moving scene between them; returns the truth."""
    chance = np.random.default_rng(seed)
    width, height = SIZES[size]
    truth = Truth(path, gop=gop)
    plan = list(_pictures(chance, width, height, events, truth, longest_frozen, clean_seconds))
    truth.frames = len(plan)
    top = Overlay(chance, overlay, width, height, len(plan))
    if overlay != "none":
        truth.overlay = top.mask
    blank = np.zeros(len(plan), bool)
    for first, stop in truth.blank:
        blank[first:stop] = True
    pictures = (
        np.clip(picture if blank[number] else top.on(picture.astype(np.float32), number), 0, 255).astype(np.uint8)
        for number, picture in enumerate(plan)
    )
    write_pictures(path, pictures, gop=gop, b_frames=seed % 3, options={"preset": "veryfast", "crf": "21"})
    return truth


def _pictures(
    chance: np.random.Generator, width: int, height: int, events: tuple[str, ...], truth: Truth, longest_frozen: float, clean: float
) -> Iterator[np.ndarray]:  # fmt: skip
    """uint8 pictures; adds to `truth` what it plants."""
    scene, number = Scene(chance, width, height, int(chance.integers(len(PALETTES)))), 0

    def moving(seconds: float) -> Iterator[np.ndarray]:
        for _ in range(int(seconds * FPS)):
            yield scene.next()

    def other(similar: bool) -> Scene:
        palette = scene.palette if similar else (scene.palette + 1 + int(chance.integers(2))) % len(PALETTES)
        return Scene(chance, width, height, palette)

    def emit(pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal number
        for picture in pictures:
            number += 1
            yield np.clip(picture, 0, 255).astype(np.uint8)

    yield from emit(moving(clean + chance.uniform(0, 1)))
    for event in events:
        first = number
        if event in ("cut", "similar cut"):
            scene = other(event == "similar cut")
            truth.cuts.append(number)
        elif event == "flash":
            length, gain = int(chance.integers(1, 8)), chance.uniform(1.5, 3.0)
            yield from emit(scene.next() * gain + 60 for _ in range(length))
            truth.flashes.append((first, number))
        elif event == "instrument":
            angle, reach, length = chance.uniform(0.3, 1.2), chance.uniform(0.7, 1.2), int(chance.integers(8, 40))
            yield from emit(scene.with_instrument(scene.next(), angle + 0.01 * n, reach, 0.09) for n in range(length))
            truth.instruments.append((first, number))
        elif event in ("fade", "wipe"):
            length, following = int(chance.integers(12, 40)), other(False)
            shares = np.arange(1, length + 1) / (length + 1)
            border = np.arange(width)[None, :, None] / width
            yield from emit(
                (1 - share) * scene.next() + share * following.next()
                if event == "fade"
                else np.where(border < share, following.next(), scene.next())
                for share in shares.tolist()
            )
            scene = following
            truth.transitions.append((first, number))
        elif event == "frozen":
            still = scene.next()
            length = int(np.exp(chance.uniform(np.log(2.0), np.log(longest_frozen))) * FPS)
            yield from emit(iter([still]))
            yield from emit(still for _ in range(length))
            truth.frozen.append((first + 1, number))
        elif event == "blank":
            colour = np.array(((2, 2, 2), (16, 16, 16), (20, 30, 160), (110, 110, 110))[chance.integers(4)], float)
            sigma, length = chance.choice([0.0, 2.0, 5.0]), int(chance.uniform(2, 8) * FPS)
            truth.cuts.append(number)
            yield from emit(colour + chance.normal(0, sigma, (height, width, 1)) for _ in range(length))
            truth.blank.append((first, number))
            truth.cuts.append(number)
        elif event == "defocus":
            radius = int(chance.integers(4, 8)) * width // 192
            yield from emit(_defocused(scene.next(), radius) for _ in range(int(chance.uniform(6, 9) * FPS)))
            truth.defocus.append((first, number))
        elif event == "inset":
            small, length = other(False), int(chance.uniform(10, 14) * FPS)
            rows, columns = (int(side * chance.uniform(0.28, 0.42)) for side in (height, width))
            top, left = (
                (0 if chance.random() < 0.5 else height - rows),
                (0 if chance.random() < 0.5 else width - columns),
            )
            for _ in range(length):
                picture = scene.next()
                picture[top : top + rows, left : left + columns] = 0.5 * small.next()[:rows, :columns] + 100
                yield from emit(iter([picture]))
            truth.inset.append((first, number))
        yield from emit(moving(clean + chance.uniform(0, 2)))


def _defocused(picture: np.ndarray, radius: int) -> np.ndarray:
    for axis in (0, 1):
        for _ in range(2):
            padded = np.pad(picture, [(radius + 1, radius) if a == axis else (0, 0) for a in range(3)], mode="edge")
            sums = np.cumsum(padded, axis=axis)
            size = picture.shape[axis]
            picture = (
                np.take(sums, range(2 * radius + 1, 2 * radius + 1 + size), axis) - np.take(sums, range(size), axis)
            ) / (2 * radius + 1)
    return picture


def flags(ranges: list[tuple[int, int]], frames: int) -> np.ndarray:
    """(frames,) whether each is in one of the ranges."""
    found = np.zeros(frames, bool)
    for first, stop in ranges:
        found[first:stop] = True
    return found


@dataclass
class Counts:
    """right, wrong and missed of a kind: events, or frames."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        return self.right / max(self.right + self.wrong, 1)

    @property
    def recall(self) -> float:
        return self.right / max(self.right + self.missed, 1)


def judge(found: ScreenedVideo, truth: Truth, counts: dict[str, Counts]) -> float:
    """Adds to `counts`, by kind: cuts, flashes and instruments count events (right is one that was not taken for a cut), all others
    frames. What is blank counts neither as frozen nor as defocused. Returns the overlay's intersection over union, NaN without
    one."""
    spans = found.spans
    cuts = spans["first_frame"][1:][np.diff(spans["shot"]) > 0]
    planted = np.array(truth.cuts)
    right = [cut for cut in planted if np.abs(cuts - cut).min(initial=99) <= 1]
    wrong = [cut for cut in cuts.tolist() if np.abs(planted - cut).min(initial=99) > 1]
    _add(counts, "cut", len(right), len(wrong), len(planted) - len(right))
    for kind, events in (("flash", truth.flashes), ("instrument", truth.instruments)):
        false = sum(any(first - 3 <= cut <= stop + 3 for cut in wrong) for first, stop in events)
        _add(counts, kind, len(events) - false, false, 0)
    blank = flags(truth.blank, truth.frames)
    for kind, told, events in (
        ("blank", spans["blank"], truth.blank),
        ("frozen", spans["frozen"], truth.frozen),
        ("picture in picture", spans["picture_in_picture"], truth.inset),
        ("fade or wipe", spans["transition"], truth.transitions),
        ("defocus", spans["blur"] > 0.6, truth.defocus),
    ):
        counted = ~blank if kind in ("frozen", "defocus") else np.ones(truth.frames, bool)
        one, other = np.repeat(told, spans["frames"])[counted], flags(events, truth.frames)[counted]
        _add(counts, kind, int((one & other).sum()), int((one & ~other).sum()), int((~one & other).sum()))
    if not truth.overlay.any():
        return float("nan")
    rows, columns = found.overlay.shape
    height, width = truth.overlay.shape
    mask = truth.overlay[np.arange(rows)[:, None] * height // rows, np.arange(columns) * width // columns]
    return float((mask & found.overlay).sum() / (mask | found.overlay).sum())


def _add(counts: dict[str, Counts], kind: str, right: int, wrong: int, missed: int) -> None:
    of_kind = counts.setdefault(kind, Counts())
    of_kind.right, of_kind.wrong, of_kind.missed = of_kind.right + right, of_kind.wrong + wrong, of_kind.missed + missed
