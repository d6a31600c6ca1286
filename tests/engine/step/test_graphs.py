"""The body of a step from buffers that stay where they are is the ordinary step, bit for bit; so is a recording of it, replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import OBJECTIVES, TINY, made_batch, make_corpus, train_made
from runs import assert_same_run, without_timings
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trocar.bench.training.run import open_run
from trocar.engine.checkpoint.checkpoint import run_tensors
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.pretrain import train_step
from trocar.engine.ranks import compiler, distributed
from trocar.engine.ranks.distributed import World
from trocar.engine.step import graphs
from trocar.engine.step.graphs import MOST_SHAPES, GraphedStep, why_no_graphs
from trocar.engine.step.run import Run

STEPS, BATCH, POISONED_STEP = 20, 12, 5
# Few tokens a bucket, so that packed masks come in several shapes; a schedule for each of rate, decay and momentum.
SETTINGS = [
    *TINY, "run.precision=float32", "optim.final_weight_decay=0.4", "optim.ema=[0.9, 1]", "optim.warmup=0.2",
    f"optim.steps={STEPS}", "optim.schedule_scale=2", "data.corpus=none", "run.dir=none", "run.device=cpu",
]  # fmt: skip


def configured(objective: str, *more: str) -> Config:
    return load_config("demo_cpu", [*SETTINGS, *OBJECTIVES[objective], "objective.bucket=8", *more])


@contextmanager
def stepping(
    config: Config, prepare: Callable[[Run], None] = lambda run: None
) -> Iterator[tuple[Run, list[torch.Tensor]]]:
    """A run after its steps, one of which is left out, and the sums of every step. prepare: is handed the run before them."""
    numbers = [
        np.arange(start, start + BATCH // config.optim.parts)
        for start in range(0, STEPS * BATCH, BATCH // config.optim.parts)
    ]
    batches = [made_batch(part, config.data.frames, config.data.resolution) for part in numbers]
    factor = torch.ones(())

    def spoil(model: Any, arguments: Any, output: Any) -> Any:
        return output._replace(loss=output.loss * factor)

    with open_run(config) as run:
        run.objective.register_forward_hook(spoil)
        prepare(run)
        loader, found = iter(batches), []
        for step in range(STEPS):
            factor.fill_(float("nan") if step == POISONED_STEP else 1.0)
            report = train_step(run, step, loader)
            assert bool(report.skipped) == (step == POISONED_STEP)
            kept = [
                report.sums.values[: 1 + BATCH],
                report.gradient_norm[None],
                *(s[None] for s in report.signals.values()),
            ]
            found.append(torch.cat([part.double() for part in kept]))
        yield run, found


def assert_same(actual: tuple[Run, list[torch.Tensor]], wanted: tuple[Run, list[torch.Tensor]]) -> None:
    for one, other in zip(actual[1], wanted[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    held, ordinary = (run_tensors(run.objective, run.optimizer, run.guard) for run, _ in (actual, wanted))
    assert held.keys() == ordinary.keys()
    assert not [name for name in held if not torch.equal(held[name], ordinary[name])]


@pytest.mark.parametrize(
    ("objective", "parts"),
    [
        ("jepa", 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("jepa", 3), ("mae", 1), ("mae", 3))),
    ],
)
def test_from_buffers_as_without(objective: str, parts: int) -> None:
    config = [
        configured(objective, f"optim.accumulation={parts}", f"run.cuda_graphs={switch}") for switch in ("on", "off")
    ]
    with stepping(config[0]) as held, stepping(config[1]) as ordinary:
        assert isinstance(held[0].body, GraphedStep)
        assert not isinstance(ordinary[0].body, GraphedStep)
        assert_same(held, ordinary)
        shapes = len(held[0].body._seen)
        assert shapes > 2 if objective == "jepa" else shapes == 2, "the parts' and the update's"


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: the operators of a call, run again on the very same tensors; no Python in between."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.is_new = True

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        owned = {
            part.untyped_storage()._cdata
            for part in tree_leaves((arguments, keywords))
            if isinstance(part, torch.Tensor)
        }
        made = [part for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        fresh = [part if part.untyped_storage()._cdata not in owned else None for part in made]
        self.operations.append((function, arguments, keywords or {}, fresh))  # pyright: ignore[reportArgumentType]
        return result

    @classmethod
    def capture(cls, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        tape = cls()
        with tape:
            result = call()
        return tape.replay, result

    @torch.no_grad()
    def replay(self) -> None:
        if self.is_new:  # recording ran it once already
            self.is_new = False
            return
        for function, arguments, keywords, fresh in self.operations:
            made = [part for part in tree_leaves(function(*arguments, **keywords)) if isinstance(part, torch.Tensor)]
            for place, value in zip(fresh, made, strict=True):
                if place is not None:
                    place.detach().copy_(value)


@pytest.mark.parametrize("parts", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_recorded_step_as_without(parts: int) -> None:
    """All that changes from step to step comes through the buffers: nothing that Python knew when it was recorded is left in it."""

    def record(run: Run) -> None:
        assert isinstance(run.body, GraphedStep)
        run.body._captures, run.body._capture = True, Tape.capture  # type: ignore[method-assign]

    config = [configured("mae", f"optim.accumulation={parts}", f"run.cuda_graphs={switch}") for switch in ("on", "off")]
    with stepping(config[0], record) as replayed, stepping(config[1]) as ordinary:
        assert isinstance(replayed[0].body, GraphedStep)
        assert len(replayed[0].body._graphs) == 2
        assert_same(replayed, ordinary)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("parts", [1, 3])
def test_whole_runs_in_two_pieces(objective: str, parts: int, tmp_path: Path) -> None:
    common = [setting for setting in SETTINGS if not setting.startswith(("data.corpus", "run.dir", "optim.steps"))]
    common += [*OBJECTIVES[objective], "objective.bucket=8", f"optim.accumulation={parts}"]
    common += [f"data.corpus={make_corpus(tmp_path / 'videos')}", "optim.schedule=constant"]
    for name, switch in (("held", "on"), ("ordinary", "off")):
        for last in (9, STEPS):
            chosen = [f"run.dir={tmp_path / name}", f"run.cuda_graphs={switch}", f"optim.steps={last}"]
            train_made([*common, *chosen], poison=POISONED_STEP * BATCH + 7)
    assert_same_run(tmp_path / "held", tmp_path / "ordinary")
    rows = without_timings(tmp_path / "held")
    assert [row["step"] for row in rows if row["skipped"]] == [POISONED_STEP + 1]
    assert len(rows) == STEPS


def test_shapes_are_bounded() -> None:
    with open_run(configured("mae", "run.cuda_graphs=on")) as run:
        body = run.body
        assert isinstance(body, GraphedStep)
        body.body.part = lambda *_: None  # type: ignore[method-assign]
        for clips in range(1, MOST_SHAPES + 9):
            body.part(torch.zeros(clips, 2), None, torch.arange(clips), True)
        assert len(body._seen) <= MOST_SHAPES + 1
        assert len(body._buffers) <= 2 * (MOST_SHAPES + 1)


def test_a_capture_that_fails_is_told_and_done_without(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(call: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def prepare(run: Run) -> None:
        assert isinstance(run.body, GraphedStep)
        run.body._captures, run.body._capture, run.body.may_fall_back = True, fail, True  # type: ignore[method-assign]

    with stepping(configured("mae", "run.cuda_graphs=on"), prepare) as failed, stepping(configured("mae")) as ordinary:
        assert_same(failed, ordinary)
    told = capsys.readouterr().err
    assert told == "run.cuda_graphs: off, capturing a step failed: operation not permitted when stream is capturing\n"
    with open_run(configured("mae", "run.cuda_graphs=on")) as run:
        prepare(run)
        run.body.may_fall_back = False  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match=r"run\.cuda_graphs: true, but capturing a step failed: operation not"):
            run.body._try("key", lambda: None)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["run.checkpoint_activations=true"], "run.checkpoint_activations"),
        (["data.sizes=[{from_step: 4, frames: 8}]"], "data.sizes"),
        (["optim.optimizer=apex"], "optim.optimizer=apex"),
        (["run.sharding=full"], "several ranks"),
        (["objective.kind=jepa", "run.precision=float32"], "packed attention"),
        (["run.cuda_graphs=off"], "run.cuda_graphs is false"),
    ],
)
def test_reasons_against_graphs(more: list[str], reason: str) -> None:
    world = World(torch.device("cuda", 0))
    assert why_no_graphs(configured("mae", "run.cuda_graphs=auto"), world) is None
    assert reason in (why_no_graphs(configured("mae", "run.cuda_graphs=auto", *more), world) or "")
    if reason != "run.cuda_graphs is false":
        with pytest.raises(ConfigError, match=r"run\.cuda_graphs: true, but"):
            why_no_graphs(configured("mae", "run.cuda_graphs=on", *more), world)


def test_a_jepa_has_graphs_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "varlen_attn", object())
    world, more = World(torch.device("cuda", 0)), ["run.precision=bfloat16"]
    assert "twice the memory" in (why_no_graphs(configured("jepa", "run.cuda_graphs=auto", *more), world) or "")
    assert why_no_graphs(configured("jepa", "run.cuda_graphs=on", *more), world) is None


def test_a_cpu_goes_without_unless_asked() -> None:
    assert why_no_graphs(configured("mae"), World(torch.device("cpu"))) == "there is no GPU"


@pytest.mark.gpu
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("parts", [1, 3])
def test_graphs_of_a_gpu_as_without(objective: str, parts: int) -> None:
    more = ["run.device=cuda", "run.precision=bfloat16", f"optim.accumulation={parts}"]
    with (
        stepping(configured(objective, *more, "run.cuda_graphs=on")) as held,
        stepping(configured(objective, *more, "run.cuda_graphs=off")) as ordinary,
    ):
        assert isinstance(held[0].body, GraphedStep)
        assert len(held[0].body._graphs) > 1
        for one, other in zip(held[1], ordinary[1], strict=True):
            torch.testing.assert_close(one[:1], other[:1], rtol=1e-3, atol=0, equal_nan=True)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile looks at its own inputs
def test_a_compiler_that_fails_is_told_and_done_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no code for this")

    monkeypatch.setattr(distributed, "blocks_backend", lambda wanted, device: fail)
    with stepping(configured("mae", "run.compile=auto")) as failed:
        told = capsys.readouterr().err
        monkeypatch.undo()
        with stepping(configured("mae", "run.compile=none")) as ordinary:
            assert_same(failed, ordinary)
    assert told.startswith("run.compile: off, compiling a block failed: ")
    assert told.count("\n") == 1
    monkeypatch.setattr(distributed, "blocks_backend", lambda wanted, device: fail)
    with pytest.raises(BackendCompilerFailed, match="no code for this"):  # asked for by name
        stepping(configured("mae", "run.compile=inductor")).__enter__()


def test_what_auto_compiles_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "choose_backend", lambda wanted: "inductor" if wanted == "auto" else wanted)
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert [compiler.blocks_backend("auto", device) for device in (cpu, cuda)] == [None, "inductor"]
    assert [compiler.blocks_backend(wanted, cpu) for wanted in ("none", "inductor")] == [None, "inductor"]
    monkeypatch.setattr(compiler, "choose_backend", lambda wanted: "aot_eager")
    assert compiler.blocks_backend("auto", cuda) is None, "without a compiler there is nothing to gain"
