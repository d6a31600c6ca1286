"""Cores for ranks, garbage collection, full memory, names for the profiler, the record of a run."""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from ranks import OBJECTIVES, TINY, make_corpus, train_made

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.draws.phases import Phase
from trocar.engine.ranks import housekeeping
from trocar.engine.ranks.distributed import World
from trocar.engine.ranks.housekeeping import (
    collect_garbage_seldom,
    parse_cores,
    pin_to_cores,
    share_cores,
    snapshot_when_out_of_memory,
)
from trocar.engine.record import profiler
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step.build import build_model
from trocar.engine.step.sizes import PhasedLoader
from trocar.loaders.decode.batch import LoaderCount


@pytest.mark.parametrize("near_side", [None, "same", "other"])
def test_ranks_get_cores_of_their_own(near_side: str | None) -> None:
    sockets = [set(range(16)), set(range(16, 32))]
    near = [{None: set(), "same": sockets[r // 4], "other": sockets[1 - r // 4]}[near_side] for r in range(8)]
    parts = share_cores([{core} for core in range(32)], near)
    assert all(len(part) == 4 and part <= (side or part) for part, side in zip(parts, near, strict=True))
    assert all(not parts[a] & parts[b] for a in range(8) for b in range(a))


@pytest.mark.parametrize("ranks", [[0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0], [0, 0, 0, 1], [0] * 8])
def test_hyperthreads_go_together_and_none_is_idle(
    ranks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 x 64 cores, whose second threads are numbered n + 128, as the kernel tells it. ranks: the socket of each one's GPU."""
    for core in range(256):
        siblings = tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list"
        siblings.parent.mkdir(parents=True)
        siblings.write_text(f"{core % 128},{core % 128 + 128}\n")
    monkeypatch.setattr(housekeeping, "CPUS", tmp_path)
    sockets = [{n for first in (0, 128) for n in range(first + 64 * s, first + 64 * s + 64)} for s in (0, 1)]
    monkeypatch.setattr(housekeeping, "_near", lambda device, rank: sockets[ranks[rank]])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(256)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: None)
    parts = [
        pin_to_cores(World(torch.device("cuda", rank), rank, len(ranks), rank, len(ranks)))
        for rank in range(len(ranks))
    ]
    for socket in (0, 1):
        of_socket = [part for part, other in zip(parts, ranks, strict=True) if other == socket]
        assert {len(part) for part in of_socket} <= {2 * (64 // max(1, len(of_socket)))}
        assert len(set().union(*of_socket)) == sum(map(len, of_socket)), "two ranks on one core"
        assert len(of_socket) * 2 > 128 - sum(map(len, of_socket)) or not of_socket, "cores idle beside a GPU"
        assert all(part <= sockets[socket] for part in of_socket)
    assert all({(core + 128) % 256 for core in part} == part for part in parts), "a physical core divided"


@pytest.mark.parametrize("near", [[{0, 1, 2, 3}, {2, 3}], [{0, 1}, set()], [{0}, {0}], [{8, 9}, {8, 9}]])
def test_sides_that_are_not_clear_are_not_counted_on(near: list[set[int]]) -> None:
    assert share_cores([{core} for core in range(4)], near) == [{0, 1}, {2, 3}]


def test_lists_of_cores_are_read() -> None:
    assert parse_cores("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cores("\n") == set()


def test_garbage_is_collected_on_request_only() -> None:
    assert gc.isenabled()
    with collect_garbage_seldom() as collect:
        assert not gc.isenabled()
        collect(100)
    assert gc.isenabled()


def test_full_memory_leaves_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_text("snapshot"))
    world = World(torch.device("cpu"), rank=3, size=4)
    with pytest.raises(torch.OutOfMemoryError), snapshot_when_out_of_memory(tmp_path, world):
        raise torch.OutOfMemoryError("full")
    assert (tmp_path / "memory_3.pickle").read_text() == "snapshot"


def test_stages_have_their_names_and_cost_nothing_when_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profiler.stage("wait") is profiler.stage("backward"), "off: one shared object"
    model, masks = build_model(
        load_config("demo_cpu", [*TINY, "data.corpus=none", "run.dir=none", "run.precision=float32"])
    )
    profiler.name_modules(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    seen: list[str] = []

    class Range:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            seen.append(self.name)

        def __exit__(self, *_: object) -> None:
            seen.append(f"/{self.name}")

    monkeypatch.setattr(profiler, "IS_ON", True)
    monkeypatch.setattr(profiler, "_range", Range)
    profiler.name_modules(model)
    with profiler.stage("forward"):
        model(torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8), masks(0, [0], 0))
    order = [
        "forward",
        "encoder",
        "patch_embed",
        "/patch_embed",
        "/encoder",
        "decoder",
        "/decoder",
        "loss",
        "/loss",
        "/forward",
    ]
    assert seen == order
    assert set(get_args(profiler.Stage)) >= {
        "decode",
        "wait",
        "masks",
        "backward",
        "guard",
        "optimizer",
        "ema",
        "target",
        "save",
    }


def test_decoding_has_its_range_in_every_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "_range", lambda name: f"range of {name}")
    off: Any = SimpleNamespace(decoding_range=None)
    profiler.name_decoding(off)
    assert off.decoding_range is None
    monkeypatch.setattr(profiler, "IS_ON", True)
    opened = SimpleNamespace(decoding_range=None, total=LoaderCount())
    config = load_config("demo_cpu", ["data.corpus=none", "run.dir=none"])
    loaders: Any = lambda config, numbers: nullcontext(opened)  # noqa: E731
    phased = PhasedLoader([Phase(0, config)], iter([np.arange(2)]), loaders)
    profiler.name_decoding(phased)
    phased._open()
    assert opened.decoding_range is not None
    assert opened.decoding_range() == "range of decode"


def test_the_record_says_what_ran(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    for steps in (2, 3):
        train_made(
            [f"data.corpus={corpus}", f"run.dir={tmp_path / 'run'}", *TINY, "optim.batch=2", f"optim.steps={steps}"]
        )
    first, second = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (first["first_step"], second["first_step"], second["ranks"]) == (0, 2, 1)
    assert second["versions"]["torch"] == torch.__version__.partition("+")[0] or second["versions"]["torch"]
    assert "steps: 3" in second["config"]
    assert {"host", "system", "cores", "device"} <= second["machine"].keys()


def test_weights_and_biases_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is given, by a stand-in; without the package the run does not begin."""
    corpus, rows, ended = make_corpus(tmp_path / "corpus"), [], []
    run = SimpleNamespace(log=lambda row, step: rows.append((step, row)), finish=lambda: ended.append(True))
    asked: list[dict[str, Any]] = []

    def init(**arguments: Any) -> Any:
        asked.append(arguments)
        return run

    settings = [f"data.corpus={corpus}", f"run.dir={tmp_path / 'run'}", *TINY, "optim.steps=2", "run.wandb=surgery"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"run\.wandb: 'surgery' needs Weights & Biases; pip install wandb"):
        train_made(settings)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    train_made(settings)
    train_made([*settings, "optim.steps=3", "run.allow_changes=true"])
    identity = (tmp_path / "run" / "wandb_id.txt").read_text()
    assert [(one["project"], one["name"], one["id"], one["resume"]) for one in asked] == [
        ("surgery", "run", identity, "allow")
    ] * 2
    assert identity.isalnum()
    assert identity != "run", "another's run of that name in the same project is another one"
    assert [step for step, _ in rows] == [1, 2, 3]
    assert all("loss" in row and "step" not in row for _, row in rows)
    assert ended == [True, True]


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile looks at its own inputs
@pytest.mark.parametrize("objective", ["mae", pytest.param("jepa", marks=pytest.mark.slow)])
def test_compiled_blocks_learn_the_same(tmp_path: Path, objective: str) -> None:
    """aot_eager, the backend where there is no compiler; also the forward passes of a validation, which take no gradient."""
    corpus = make_corpus(tmp_path / "corpus")
    more = [
        *TINY,
        *OBJECTIVES[objective],
        "optim.steps=3",
        "optim.batch=2",
        "validation.videos=['1']",
        "validation.clips=2",
    ]
    for compiled in ("none", "aot_eager"):
        train_made([f"data.corpus={corpus}", f"run.dir={tmp_path / compiled}", *more, f"run.compile={compiled}"])
    for name in ("loss", "validation_loss"):
        eager, compiled = (
            [row[name] for row in read_metrics(tmp_path / run) if name in row] for run in ("none", "aot_eager")
        )
        assert eager
        assert compiled == pytest.approx(eager, rel=0, abs=1e-9)


def test_cores_are_shared_where_pytorch_does_not_tell_a_gpus_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.6 and 2.7 have no PCI address among a device's properties."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="a card"))
    assert housekeeping._near(torch.device("cuda"), 0) == set()
