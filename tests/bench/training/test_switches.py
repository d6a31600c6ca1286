"""Each switch of the step is an arm, whose row is written before the next begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import TINY

from trocar.bench.rows.row import read_rows
from trocar.bench.rows.timing import Ceilings
from trocar.bench.training import switches
from trocar.bench.training.training import Effort
from trocar.engine.config.settings import ConfigError


def test_an_arm_a_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = switches.SWITCHES
    chosen = {name: before[name] for name in ("launched one by one", "graphs", "defaults")}
    monkeypatch.setattr(switches, "SWITCHES", {**chosen, "none": ("run.sharding=full",)})
    monkeypatch.setattr(switches, "device_ceilings", lambda device, precision: Ceilings(1e10, 1e11, precision))
    out, small = tmp_path / "rows.jsonl", [*TINY, "run.precision=float32", "run.device=cpu", "optim.batch=2"]
    rows = switches.bench_switches("mae-base", out, [*small, "data.corpus=none"], Effort(1, 2, 1))
    assert read_rows(out) == rows
    assert [(found["switches"], found["compile"], found["cuda_graphs"]) for found in rows] == [
        ("launched one by one", "none", False),
        ("graphs", "none", True),
        ("defaults", "auto", "auto"),
        ("none", "auto", "auto"),
    ]
    assert all(found["clips_per_second"]["median"] > 0 and not found["reason"] for found in rows[:3])
    assert "needs several ranks" in rows[3]["reason"]
    with pytest.raises(ConfigError, match="mae-huge: no such model"):
        switches.bench_switches("mae-huge", out)
