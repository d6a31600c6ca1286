"""Made videos of whole operations, from their pictures to scores: who can know a phase does, and who cannot stays at the prior.

Pictures show a colour a moment; a moment is a second, in long videos two. "look": phases have colours of their own. "before": the
last third is one of two phases that look alike, and seven moments near the beginning say which. "after": the first third is,
and seven moments near the end say which.

Shapes: T moments of a video.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clips import write_pictures
from runs import TINY
from safetensors.torch import save_file

from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.weights.run_encoder import build_encoder
from trocar.judge.labels.dataset import Segment
from trocar.judge.labels.table import write_table
from trocar.judge.workflow.cell import read_predictions

TOLD = 2  # phases 0 and 1 all videos have; 2 or 3 is the one that a cue tells
TRAIN, VAL, VIDEOS = 16, 20, 32  # numbers of the first ones behind each part; of both phases as many in each
PALETTE = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60], [220, 220, 220], [20, 20, 20]])
STUDENT = 4.303  # of 95 % and two degrees of freedom
TRAINED = {"dropout": 0.0, "epochs": 30, "patience": 30, "learning_rate": 5e-3}
KNOWING = {
    "look": ("linear", "TeCNO", "MS-TCN", "memory transformer", "full transformer"),
    "before": ("TeCNO", "MS-TCN", "memory transformer", "full transformer"),
    "after": ("MS-TCN", "full transformer"),
}


def heads(moments: int) -> list[dict[str, object]]:
    """That reach over the whole operation."""
    convolutions = {"kind": "tcn", "width": 24, "layers": int(np.ceil(np.log2(moments))), "stages": 1, **TRAINED}
    attention = {"kind": "transformer", "width": 16, "layers": 1, "attention_heads": 2, "memory": moments, **TRAINED}
    chosen = {
        "linear": {"kind": "linear", **TRAINED, "learning_rate": 2e-2},
        "TeCNO": convolutions,
        "MS-TCN": {**convolutions, "mode": "offline"},
        "memory transformer": attention,
        "full transformer": {**attention, "mode": "offline"},
    }
    return [{"name": name, "head": head} for name, head in chosen.items()]


def operation(kind: str, which: int, moments: int, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(T,) what a picture shows, by PALETTE, and (T,) phases."""
    jitter = moments // 36
    first, second = (place * moments // 3 + int(chance.integers(-jitter, jitter + 1)) for place in (1, 2))
    order = [TOLD, 0, 1] if kind == "after" else [0, 1, TOLD]
    seen = np.repeat(order, [first, second - first, moments - second])
    phases = np.where(seen == TOLD, TOLD + which, seen)
    if kind == "look":
        return phases, phases
    seen[slice(3, 10) if kind == "before" else slice(-10, -3)] = 4 + which
    return seen, phases


def write_operations(folder: Path, kind: str, moments: int, rate: Fraction) -> None:
    """Videos of a frame a moment, and their table."""
    chance, table = np.random.default_rng(1), []
    for number in range(VIDEOS):
        split = "train" if number < TRAIN else "val" if number < VAL else "test"
        shown, phases = operation(kind, number % 2, moments, chance)
        pictures = (
            (PALETTE[look] + chance.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8) for look in shown.tolist()
        )
        path = folder / f"{number}.mp4"
        write_pictures(path, pictures, gop=20, fps=rate, options={"qp": "10", "preset": "ultrafast"})
        edges = [0, *(np.flatnonzero(np.diff(phases)) + 1).tolist(), moments]
        table += [
            Segment(path.name, float(a / rate), float(b / rate), f"phase{phases[a]}", path.stem, split=split)
            for a, b in pairwise(edges)
        ]
    write_table(folder / "planted.csv", table)


def write_encoder(path: Path) -> None:
    """A random one of one block, as `trocar export` writes it: the same for all seeds of heads."""
    config = load_config("demo_cpu", [*TINY, "data.frames=2", "data.stride=1", "model.patch=16", "model.depth=1"])
    torch.manual_seed(0)
    save_file(build_encoder(config).state_dict(), path, metadata={"config": config.to_yaml()})


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("minutes", [3, 20])
@pytest.mark.parametrize("kind", KNOWING)
def test_who_can_know_does_and_who_cannot_stays_at_the_prior(kind: str, minutes: int, tmp_path: Path) -> None:
    """Of three seeds, the share of right moments in the phase that is told, on test videos, with its 95 % interval."""
    rate = Fraction(1, 2) if minutes > 10 else Fraction(1)
    moments = int(60 * minutes * rate)
    write_operations(tmp_path, kind, moments, rate)
    write_encoder(tmp_path / "encoder.safetensors")
    settings = {
        "models": [{"name": "one block", "weights": "encoder.safetensors"}],
        "datasets": [{"name": "planted.csv", "root": ".", "split": "as-is"}],
        "heads": heads(moments),
        "features": {"rate": float(rate)},
        "seeds": [0, 1, 2],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    places = [f"--{name}={tmp_path}" for name in ("data", "weights")]
    command = ["bench", "workflow", str(tmp_path / "c.yaml"), *places, f"--out={tmp_path / 'out'}", "--device=cpu"]
    assert main(command) == 0
    found = {}
    for head in KNOWING["look"]:
        shares = []
        for seed in range(3):
            cell = tmp_path / "out/cells/planted/one_block" / head.replace(" ", "_") / f"seed{seed}"
            videos, scores = read_predictions(cell)
            told = [(s.argmax(axis=1) == v.truth)[v.truth >= TOLD] for v, s in zip(videos, scores, strict=True)]
            shares.append(float(np.concatenate(told).mean()))
        mean, half = float(np.mean(shares)), STUDENT * float(np.std(shares, ddof=1)) / 3**0.5
        print(f"{minutes} min, {kind}, {head}: {mean:.3f} ± {half:.3f}, seeds {[round(share, 3) for share in shares]}")
        found[head] = (mean, mean - half, min(shares))
    for head, (mean, low, least) in found.items():
        if head in KNOWING[kind]:
            assert mean > 0.9, (head, mean)
            assert least > 0.7, (head, least)
        else:
            assert mean < 0.65, (head, mean)
            assert low <= 0.5 + 0.05, (head, low)
