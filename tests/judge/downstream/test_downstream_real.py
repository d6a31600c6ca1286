"""On real clips of operations, where they are at hand: from a pretrained demo checkpoint to the report, by the command line.

TROCAR_TEST_VIDEOS names a folder with BSA_<data set>_<action>_<number>_<video>_web.mp4; their labels are in their names.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from trocar.engine.cli import main
from trocar.judge.labels.dataset import Segment
from trocar.judge.labels.splits import leak_free
from trocar.judge.labels.table import read_table, write_table

FOLDER = os.environ.get("TROCAR_TEST_VIDEOS", "")
NAME = re.compile(r"BSA_(?P<source>[^_]+)_(?P<action>[^_]+)_\d+_(?P<video>\w+)_web\.mp4")
LEAST_SUBJECTS = 3
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="TROCAR_TEST_VIDEOS names no folder of real clips"),
]


def clips() -> list[Segment]:
    """Actions that three operations show, or more; an operation is a video of a data set."""
    found = [(path, match) for path in sorted(Path(FOLDER).iterdir()) if (match := NAME.fullmatch(path.name))]
    table = [
        Segment(str(path), None, None, match["action"], f"{match['source']} {match['video']}", source=match["source"])
        for path, match in found
    ]
    subjects = {label: {s.subject for s in table if s.label == label} for label in {s.label for s in table}}
    return leak_free([s for s in table if len(subjects[s.label]) >= LEAST_SUBJECTS], seed=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    write_table(root / "actions.csv", clips())
    assert main(["index", FOLDER, "--out", str(root / "corpus"), "--workers", "2"]) == 0
    settings = [f"data.corpus={root / 'corpus'}", f"run.dir={root / 'run'}", "optim.steps=4", "run.tensorboard=false"]
    assert main(["pretrain", "demo_cpu", *settings]) == 0
    return root


def test_probes_and_fine_tuning_to_the_report(root: Path) -> None:
    table = read_table(root / "actions.csv")
    counts = Counter(s.split for s in table)
    print(
        f"\n{dict(counts)} clips of {len({s.subject for s in table})} operations, {len({s.label for s in table})} actions"
    )
    views = ["segments=1", "crops=1", "train_views=1", "encode_batch=4"]
    tree = {
        "models": [{"name": "demo", "weights": "run"}, {"name": "no weights", "weights": "random:run"}],
        "datasets": [{"name": "actions.csv", "root": ".", "split": "as-is"}],
        "protocols": [
            {"name": "linear", "kind": "linear", "set": [*views, "epochs=20"]},
            {
                "name": "attentive",
                "kind": "attentive",
                "set": [*views, "epochs=4", "weight_decays=[0.1]", "balances=[0]"],
            },
            {"name": "full", "kind": "full", "set": [*views, "epochs=1", "batch=4", "learning_rates=[1e-4]"]},
        ],
        "seeds": [0],
    }
    (root / "matrix.yaml").write_text(yaml.safe_dump(tree))
    places = ["--out", str(root / "out"), "--data", str(root), "--weights", str(root), "--device", "cpu"]
    assert main(["bench", "downstream", str(root / "matrix.yaml"), *places]) == 0
    with (root / "out" / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["protocol"]) for row in rows] == [
        (model, protocol) for protocol in ("linear", "attentive", "full") for model in ("demo", "no weights")
    ]
    for row in rows:
        print(
            {name: row[name] for name in ("model", "protocol", "score", "low", "high", "majority", "random", "flags")}
        )
        if row["low"]:  # there is none where all resamples say the same
            assert float(row["low"]) <= float(row["score"]) <= float(row["high"])
        assert 0 <= float(row["majority"]) < 1  # 0 where the test clips lack the training clips' largest class
    text = (root / "out" / "report.md").read_text()
    assert "| majority baseline |" in text
    assert " .. " in text
    for path in (root / "out" / "cells").glob("*/*/*/*/row.json"):
        assert json.loads(path.read_text())["audit"] == []
