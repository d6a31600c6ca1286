"""20 steps give the losses that are stored here: a change of the engine that is meant to change nothing changes nothing.

In float64, on clips made of their numbers, so that neither a decoder nor the order of a machine's sums shows: over 20 steps the
losses of DDP, FSDP2 and one process differ by less than 1e-12. A change that means to change losses stores the new ones: they are
what `python tests/engine/test_identical_loss.py` prints.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from ranks import JEPA, TINY, make_corpus, train_made

from trocar.engine.record.metrics import read_metrics

STORED = {
    "mae": [
        0.451335829683,
        0.439179131565,
        0.420917254224,
        0.413317444457,
        0.38453481504,
        0.363335627787,
        0.349066658364,
        0.332278486868,
        0.30954091884,
        0.300056359297,
        0.289521533118,
        0.281480669497,
        0.273437144561,
        0.26350600838,
        0.25641688196,
        0.251641316239,
        0.246912819655,
        0.247539149719,
        0.248982948558,
        0.246986644004,
    ],
    "jepa": [
        0.838225069249,
        0.825191214056,
        0.821988473409,
        0.821503357369,
        0.804074563362,
        0.78766600854,
        0.776221476975,
        0.764411556906,
        0.755730463976,
        0.742842013452,
        0.739666385635,
        0.739540806378,
        0.731483649814,
        0.728160934485,
        0.713279400318,
        0.723278542344,
        0.715754735451,
        0.713452757116,
        0.716893049444,
        0.718425587888,
    ],
}
COMMON = ["optim.accumulation=2", "optim.final_weight_decay=0.4", "optim.warmup=0.2"]
SETTINGS = {
    "mae": COMMON,
    "jepa": [*COMMON, *JEPA],
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
