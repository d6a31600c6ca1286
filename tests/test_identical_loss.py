"""20 steps give the losses that are stored here: a change of the engine that is meant to change nothing changes nothing.

In float64, on clips made of their numbers, so that neither a decoder nor the order of a machine's sums shows: over 20 steps the
losses of DDP, FSDP2 and one process differ by less than 1e-12. A change that means to change losses stores the new ones: they are
what `python tests/test_identical_loss.py` prints.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from ranks import TINY, make_corpus, train_made

from trocar.engine.metrics import read_metrics

STORED = {"mae": []}
COMMON = ["optim.accumulation=2", "optim.final_weight_decay=0.4", "optim.warmup=0.2"]
SETTINGS = {
    "mae": COMMON,
    "jepa": [
        *COMMON,
        "objective.kind=jepa",
        "objective.bucket=32",
        "data.resolution=32",
        "model.positions=axes",
        "model.predictor_depth=1",
        "model.predictor_width=24",
        "model.predictor_heads=2",
    ],
}


def losses(corpus: Path, run_dir: Path, name: str) -> list[float]:
    settings = [
        f"data.corpus={corpus}",
        f"run.dir={run_dir}",
        *TINY,
        "optim.batch=4",
        "optim.steps=20",
        *SETTINGS[name],
    ]
    train_made(settings)
    return [row["loss"] for row in read_metrics(run_dir)]


@pytest.mark.parametrize("name", STORED)
def test_losses_are_the_stored_ones(tmp_path: Path, name: str) -> None:
    assert losses(make_corpus(tmp_path), tmp_path / "run", name) == pytest.approx(STORED[name], rel=0, abs=1e-9)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = make_corpus(Path(folder))
        for name in SETTINGS:
            print(name, [float(f"{loss:.12g}") for loss in losses(made, Path(folder) / name, name)])
