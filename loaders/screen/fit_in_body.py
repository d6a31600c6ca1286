"""Fits the classical score of `in_body.py`: python -m trocar.loaders.screen.fit_in_body CLIPS... [--held-out NAME...]

What is in a body: the surgical clips given, public ones. What is not: scenes that are made here, of rooms, text and faces.
Sources are never on both sides: the error is that on sources held out, each in turn (`--held-out` leaves some out of the fit
altogether). Prints the numbers of `in_body.py`.

Shapes: N pictures, K features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from .in_body import FEATURES, features
from .pictures import HEIGHT, WIDTH, Picture, Pictures

KINDS = ("indoor", "text", "face", "outdoor")
SCENES_OF_A_KIND = 120
PICTURES_OF_A_CLIP = 12
PENALTY = 1.0


def made_scene(kind: str, seed: int) -> Picture:
    """(H, W, 3) uint8: a room, a title card, a head and shoulders, or what grows and is built outdoors, no two alike."""
    chance = np.random.default_rng([seed, KINDS.index(kind)])
    down, right = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    picture = np.empty((HEIGHT, WIDTH, 3), np.float32)
    picture[:] = {"indoor": _room, "text": _card, "face": _head, "outdoor": _outdoors}[kind](chance, down, right)
    light = 0.75 + 0.5 * (right / WIDTH if chance.random() < 0.5 else down / HEIGHT)
    picture *= light[..., None] * chance.uniform(0.7, 1.2)
    return np.clip(picture + chance.normal(0, chance.uniform(1, 6), picture.shape), 0, 255).astype(np.uint8)


def _wall(chance: np.random.Generator) -> NDArray[np.float32]:
    """(3,) the colour of a wall or a cloth: grey, bluish, greenish, cream or wood."""
    palettes = (
        (200, 200, 195),
        (150, 180, 200),
        (60, 110, 120),
        (40, 90, 160),
        (190, 170, 140),
        (120, 90, 60),
        (90, 140, 120),
    )
    return (np.array(palettes[chance.integers(len(palettes))]) + chance.normal(0, 15, 3)).astype(np.float32)


def _room(chance: np.random.Generator, down: NDArray, right: NDArray) -> NDArray:
    picture = np.broadcast_to(_wall(chance), (HEIGHT, WIDTH, 3)).copy()
    horizon = int(chance.uniform(0.55, 0.8) * HEIGHT)
    picture[horizon:] = _wall(chance) * 0.7
    for _ in range(chance.integers(4, 12)):
        top, left = int(chance.uniform(0, 0.8) * HEIGHT), int(chance.uniform(0, 0.8) * WIDTH)
        tall, wide = int(chance.uniform(0.08, 0.5) * HEIGHT), int(chance.uniform(0.06, 0.35) * WIDTH)
        picture[top : top + tall, left : left + wide] = _wall(chance) * chance.uniform(0.3, 1.2)
    if chance.random() < 0.6:
        row, column, radius = chance.uniform(0, 50), chance.uniform(20, WIDTH - 20), chance.uniform(8, 22)
        picture[np.hypot(down - row, right - column) < radius] = 245
    return picture


def _card(chance: np.random.Generator, down: NDArray, right: NDArray) -> NDArray:
    is_dark = chance.random() < 0.6
    ground = np.array((0, 0, 0) if is_dark else (250, 250, 250)) if chance.random() < 0.5 else _wall(chance)
    ink = 240.0 if ground.mean() < 128 else 20.0
    picture = np.broadcast_to(ground.astype(np.float32), (HEIGHT, WIDTH, 3)).copy()
    for line in range(chance.integers(1, 9)):
        top, size = 10 + line * 15, int(chance.integers(5, 11))
        left = int(chance.uniform(5, 60))
        for _ in range(chance.integers(4, 20)):
            wide = int(chance.integers(2, 8))
            picture[top : top + size, left : left + wide] = ink
            picture[top + size // 3 : top + size // 2, left + 1 : left + wide - 1] = ground
            left += wide + int(chance.integers(1, 4))
            if left > WIDTH - 10:
                break
    return picture


def _head(chance: np.random.Generator, down: NDArray, right: NDArray) -> NDArray:
    picture = _room(chance, down, right)
    skins = ((224, 172, 145), (198, 134, 100), (141, 85, 60), (240, 200, 180), (90, 56, 40))
    skin = np.array(skins[chance.integers(len(skins))]) + chance.normal(0, 8, 3)
    row, column = chance.uniform(45, 90), chance.uniform(60, WIDTH - 60)
    tall = chance.uniform(25, 60)
    wide = tall * chance.uniform(0.68, 0.85)
    body = ((right - column) / (2.2 * wide)) ** 2 + ((down - row - 2.2 * tall) / (1.4 * tall)) ** 2 < 1
    picture[body] = _wall(chance)
    hair = ((right - column) / (1.12 * wide)) ** 2 + ((down - row + 0.2 * tall) / (1.05 * tall)) ** 2 < 1
    picture[hair] = np.array(((30, 25, 20), (90, 60, 35), (60, 120, 160), (150, 150, 150))[chance.integers(4)])
    face = ((right - column) / wide) ** 2 + ((down - row) / tall) ** 2 < 1
    shade = 1 - 0.25 * ((right - column) / wide) ** 2
    picture[face] = (skin * shade[..., None])[face]
    for side in (-0.4, 0.4):
        eye = np.hypot((right - column - side * wide) / 1.6, down - row + 0.2 * tall) < 0.09 * tall
        picture[eye] = 40
    mouth = (np.abs(right - column) < 0.35 * wide) & (np.abs(down - row - 0.5 * tall) < 0.06 * tall)
    picture[mouth] = (150, 70, 70)
    if chance.random() < 0.4:  # a mask, as surgeons wear
        picture[face & (down > row + 0.15 * tall)] = _wall(chance)
    return picture


def _outdoors(chance: np.random.Generator, down: NDArray, right: NDArray) -> NDArray:
    """Sky over ground, all of it rough: leaves, grass, earth, stone."""
    skies, grounds = ((120, 160, 220), (200, 210, 220), (160, 190, 235)), (
        (70, 120, 40), (110, 150, 60), (120, 100, 70), (130, 130, 125), (50, 80, 45), (160, 150, 110)
    )  # fmt: skip
    picture = np.broadcast_to(np.array(skies[chance.integers(len(skies))], np.float32), (HEIGHT, WIDTH, 3)).copy()
    for layer in range(chance.integers(1, 4)):
        edge = chance.uniform(-0.1, 0.7) * HEIGHT + layer * 15
        hill = edge + _rough(chance, 3)[0] * 12
        ground = np.array(grounds[chance.integers(len(grounds))], np.float32)
        leaves = 1 + chance.uniform(0.15, 0.5) * _rough(chance, int(chance.integers(4, 8)))
        picture = np.where((down > hill)[..., None], ground * leaves[..., None], picture)
    return picture


def _rough(chance: np.random.Generator, octaves: int) -> NDArray:
    """(H, W) noise of about unit deviation, finer with every octave."""
    total = np.zeros((HEIGHT, WIDTH))
    for octave in range(octaves):
        cells = min(2 ** (octave + 1), HEIGHT)
        grid = chance.normal(size=(cells + 1, cells + 1))
        total += grid[np.arange(HEIGHT)[:, None] * cells // HEIGHT, np.arange(WIDTH) * cells // WIDTH] * 0.8**octave
    return total / total.std()


def source_of(path: Path) -> str:
    """Which data set a public clip is of: the part of its name that says so; two names of one data set are one source."""
    name = path.stem.removeprefix("BSA_").split("_")[0]
    return name.lower()


def clip_pictures(path: Path, count: int) -> Iterator[Picture]:
    """`count` pictures from all over a clip, at most as many as it has."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pictures = Pictures()
    for index in np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int)).tolist():
        yield pictures.sample(index, frames[index]).pixels


def fit(rows: NDArray, labels: NDArray, weights: NDArray) -> tuple[NDArray, NDArray, NDArray, float]:
    """Means, deviations, weights (K,) and the constant: Newton's steps on the penalised likelihood of rows (N, K)."""
    means, deviations = np.average(rows, axis=0, weights=weights), rows.std(axis=0) + 1e-6
    scaled = np.column_stack([(rows - means) / deviations, np.ones(len(rows))])
    found, penalty = np.zeros(scaled.shape[1]), np.diag([PENALTY] * rows.shape[1] + [1e-6])
    for _ in range(50):
        chances = 1 / (1 + np.exp(-np.clip(scaled @ found, -30, 30)))
        slope = scaled.T @ (weights * (chances - labels)) + penalty @ found
        curve = (scaled * (weights * chances * (1 - chances))[:, None]).T @ scaled + penalty
        found -= np.linalg.solve(curve, slope)
    return means, deviations, found[:-1], float(found[-1])


def score(model: tuple[NDArray, NDArray, NDArray, float], rows: NDArray) -> NDArray:
    means, deviations, weights, constant = model
    return 1 / (1 + np.exp(-np.clip((rows - means) / deviations @ weights + constant, -30, 30)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--held-out", nargs="*", default=[], help="sources that the fit does not see")
    options = parser.parse_args(arguments)
    scenes = np.array([features(made_scene(kind, 1000 + n)) for kind in KINDS for n in range(SCENES_OF_A_KIND)])
    clips = [
        (source_of(path), np.array([features(p) for p in clip_pictures(path, PICTURES_OF_A_CLIP)]))
        for path in options.clips
    ]
    sources = sorted({source for source, _ in clips})

    def fitted(left_out: set[str], scene_rows: NDArray) -> tuple[NDArray, NDArray, NDArray, float]:
        """Every source weighs the same, and both sides together."""
        kept = [(source, rows) for source, rows in clips if source not in left_out]
        names = np.repeat([source for source, _ in kept], [len(rows) for _, rows in kept])
        share = {name: 1 / (names == name).sum() for name in set(names.tolist())}
        inside = np.array([share[name] for name in names.tolist()])
        weights = np.concatenate([inside / inside.sum(), np.full(len(scene_rows), 1 / len(scene_rows))]) * 400
        rows = np.concatenate([*(rows for _, rows in kept), scene_rows])
        return fit(rows, np.repeat([1.0, 0.0], [len(names), len(scene_rows)]), weights)

    for source in sources:
        model = fitted({source}, scenes)
        of_clips = [score(model, rows) for name, rows in clips if name == source]
        least, missed = min(found.mean() for found in of_clips), sum((found < 0.5).sum() for found in of_clips)
        print(
            f"{source}: held out, {missed} of {sum(map(len, of_clips))} pictures called out of body; least clip {least:.3f}"
        )
    model = fitted(set(options.held_out), scenes)
    others = np.array([features(made_scene(kind, n)) for kind in KINDS for n in range(100)])
    print(f"made scenes of other seeds: {(score(model, others) >= 0.5).sum()} of {len(others)} called in body")
    means, deviations, weights, constant = model
    for name, values in (("MEANS", means), ("DEVIATIONS", deviations), ("WEIGHTS", weights)):
        print(f"{name} = ({', '.join(f'{value:.4g}' for value in values)})")
    print(f"CONSTANT = {constant:.4g}")
    assert len(weights) == len(FEATURES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
