"""The trial of attention's kernels, on a CPU: its kernels stand for a GPU's, a clock of the test for the GPU's events."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import OBJECTIVES, TINY, made_batch, make_corpus, train_made
from runs import assert_same_run
from torch.nn import attention as switches
from torch.nn.attention import SDPBackend

from trocar.bench.training.run import open_run
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.pretrain import train_step
from trocar.engine.ranks.distributed import World
from trocar.engine.step import attention
from trocar.engine.step import run as run_module
from trocar.engine.step.attention import KERNELS, Choice, attention_calls, choose_attention, keep_attention, trial
from trocar.engine.step.build import build_model
from trocar.ssl.jepa import JointEmbedding
from trocar.ssl.mae import MaskedAutoencoder

CPU = World(torch.device("cpu"))
CLIPS = 6


def configured(objective: str, *more: str) -> Config:
    fixed = ["data.corpus=none", "run.dir=none", "run.device=cpu", f"optim.batch={CLIPS}"]
    return load_config("demo_cpu", [*TINY, "run.precision=float32", *fixed, *OBJECTIVES[objective], *more])


def order() -> list[SDPBackend]:
    return switches._cur_sdpa_kernel_backends(with_priority=True)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = order()
    with attention.attention_restored():
        yield
    assert order() == before


@pytest.fixture
def as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU counts as a GPU; it has PyTorch's flash attention for one kernel, and refuses cuDNN's and the efficient one."""
    monkeypatch.setattr(attention, "_has_kernels", lambda device: True)


def clock(**milliseconds: float) -> tuple[Callable[[Callable[[], None]], float], list[str]]:
    """Tells so long for a call, by the kernel that is switched on alone; and notes each call."""
    seen = []

    def seconds(call: Callable[[], None]) -> float:
        (backend,) = order()
        call()
        name = {SDPBackend.FLASH_ATTENTION: "flash", SDPBackend.MATH: "efficient"}[backend]
        seen.append(name)
        return milliseconds[name] / 1000

    return seconds, seen


def test_what_an_mae_asks_for() -> None:
    """Of each block a call, of the decoder's last one with queries of masked tokens alone."""
    config = configured("mae", "model.depth=3", "model.decoder_depth=2", "objective.mask_ratio=0.5")
    model, masks = build_model(config)
    assert isinstance(model, MaskedAutoencoder)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    calls = attention_calls(config, CPU, model, masks)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    tokens = model.encoder.num_tokens
    asked = {tuple(sizes for sizes, _ in call.layouts): number for call, number in calls.items()}
    encoder, decoder, last = ((CLIPS, 2, number, 12) for number in (tokens // 2, tokens, tokens - tokens // 2))
    assert asked == {(encoder,) * 3: 3, (decoder,) * 3: 1, (last, decoder, decoder): 1}
    assert all(call.has_gradients and call.dtype == torch.float32 and not call.offsets for call in calls)


def test_what_a_jepa_asks_for() -> None:
    """The encoder's packed sequences, the predictor's whole grids a mask, the target encoder's clips without gradients."""
    config = configured("jepa")
    model, masks = build_model(config)
    assert isinstance(model, JointEmbedding)
    tokens, depth = model.encoder.num_tokens, len(model.encoder.blocks)
    calls = attention_calls(config, CPU, model, masks)
    packed, grids, clips = sorted(calls, key=lambda call: (not call.offsets, not call.has_gradients))
    assert [calls[call] for call in (packed, grids, clips)] == [depth, 1, depth]
    assert [call.has_gradients for call in (packed, grids, clips)] == [True, True, False]
    assert packed.offsets[-1] == packed.layouts[0][0][0]
    assert packed.longest == tokens
    assert grids.layouts[0][0] == (2 * CLIPS, 2, tokens, 12)
    assert clips.layouts[0][0] == (CLIPS, 2, tokens, 12)
    state = torch.get_rng_state()
    for call in calls:
        call.made()()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        ({"flash": 2.0, "efficient": 1.0}, "efficient"),
        ({"flash": 1.0, "efficient": 2.0}, "flash"),
        ({"flash": 1.02, "efficient": 1.0}, "flash"),  # within the margin the earlier one
    ],
)
def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[str, float], chosen: str) -> None:
    monkeypatch.setitem(attention.BACKENDS, "efficient", SDPBackend.MATH)
    config = configured("mae")
    calls = attention_calls(config, CPU, *build_model(config))
    seconds, seen = clock(**milliseconds)
    found = trial(calls, seconds)
    assert found.kernel == chosen
    assert found.milliseconds == {name: pytest.approx(each * calls.total()) for name, each in milliseconds.items()}
    assert seen == ["flash"] * len(calls) + ["efficient"] * len(calls)
    assert set(found.absent) == set(KERNELS) - set(milliseconds)
    assert all(found.absent.values()), "each with its reason"


def test_none_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is left to choose."""
    config = configured("mae")
    calls = attention_calls(config, CPU, *build_model(config))
    found = trial(calls, lambda call: call() or 1.0, ("cudnn", "flash3"))
    assert (found.kernel, found.milliseconds) == ("torch", {})
    monkeypatch.delattr(switches, "activate_flash_attention_impl", raising=False)
    assert "no switch" in trial(calls, lambda call: call() or 1.0, ("flash3",)).absent["flash3"]


def test_flash_attention_3_by_pytorchs_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the place of PyTorch's own while it is tried, and is gone behind it."""
    active: list[str] = []
    monkeypatch.setattr(switches, "activate_flash_attention_impl", active.append, raising=False)
    monkeypatch.setattr(switches, "restore_flash_attention_impl", active.clear, raising=False)
    calls = Counter({attention.Call((((1, 1, 4, 8), (32, 32, 8, 1)),) * 3, torch.float32, CPU.device, False): 2})
    times = {(): 3.0, ("FA3",): 1.0, ("FA4",): 2.0}
    found = trial(calls, lambda call: call() or times[tuple(active)], ("flash", "flash3", "flash4"))
    assert found.milliseconds == {"flash": 6000, "flash3": 2000, "flash4": 4000}
    assert (found.kernel, active) == ("flash3", [])


@pytest.mark.usefixtures("as_a_gpu")
def test_the_first_rank_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It is told in one line, kept by the run and not timed again; other ranks time nothing."""
    monkeypatch.setitem(attention.BACKENDS, "efficient", SDPBackend.MATH)
    config = configured("mae", f"run.dir={tmp_path}")
    model, masks = build_model(config)
    seconds, seen = clock(flash=3.0, efficient=1.0)
    before = order()
    choice = choose_attention(config, CPU, model, masks, seconds)
    assert choice is not None
    assert choice.kernel == "efficient"
    assert order()[0] == SDPBackend.MATH
    assert set(order()) >= set(before) - {SDPBackend.OVERRIDEABLE}, "what it does not take falls to others"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "run.attention: efficient; milliseconds of a part's attention: efficient 3.00, flash 9.00; not here"
    )
    keep_attention(config, CPU, choice)
    assert len(json.loads((tmp_path / attention.ATTENTION_FILE).read_text())) == 1
    seen.clear()
    assert choose_attention(config, CPU, model, masks, seconds) == choice
    assert not seen, "a run that goes on computes as it did"
    choose_attention(configured("mae", f"run.dir={tmp_path}", "optim.batch=4"), CPU, model, masks, seconds)
    assert seen, "clips of another number are timed anew"

    class Second(World):
        def from_first(self, number: int) -> int:
            return KERNELS.index("flash")

    other = choose_attention(config, Second(CPU.device, 1, 2, 1, 2), model, masks, lambda call: pytest.fail("timed"))
    assert other == Choice("flash")
    assert order()[0] == SDPBackend.FLASH_ATTENTION
    assert choose_attention(configured("mae", "run.attention=torch"), CPU, model, masks) is None
    assert order() == before


@pytest.mark.usefixtures("as_a_gpu")
def test_a_named_kernel_or_a_refusal() -> None:
    config = configured("mae", "run.attention=flash")
    model, masks = build_model(config)
    never = lambda call: pytest.fail("timed")  # noqa: E731
    assert choose_attention(config, CPU, model, masks, never) == Choice("flash")
    assert order()[0] == SDPBackend.FLASH_ATTENTION
    for kernel in ("cudnn", "flash3", "flash4", "efficient"):
        with pytest.raises(
            ConfigError, match=f"run.attention: '{kernel}' cannot compute this run: .+; set run.attention=auto"
        ):
            choose_attention(configured("mae", f"run.attention={kernel}"), CPU, model, masks)


def test_a_cpu_times_nothing() -> None:
    config = configured("mae")
    model, masks = build_model(config)
    assert choose_attention(config, CPU, model, masks, lambda call: pytest.fail("timed")) is None
    with pytest.raises(ConfigError, match="'cudnn' is a kernel for NVIDIA GPUs, and the run is on the CPU"):
        choose_attention(configured("mae", "run.attention=cudnn"), CPU, model, masks)
    with pytest.raises(ConfigError, match=r"run\.attention"):
        configured("mae", "run.attention=xformers")


@pytest.mark.usefixtures("as_a_gpu")
def test_a_run_that_chose_is_the_run_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Timing changes no number of a run, which keeps what was chosen. It comes before anything is spread, compiled or captured."""
    happened = []
    for name in ("choose_attention", "distribute", "build_body"):
        done = getattr(run_module, name)
        noted = lambda *arguments, name=name, done=done: (happened.append(name), done(*arguments))[1]  # noqa: E731
        monkeypatch.setattr(run_module, name, noted)
    monkeypatch.setattr(attention, "_gpu_seconds", lambda call: call() or 0.001)
    make_corpus(tmp_path)
    fixed = [*TINY, "run.precision=float32", "run.device=cpu", "optim.steps=2", f"data.corpus={tmp_path / 'corpus'}"]
    for chosen in ("auto", "torch"):
        train_made([*fixed, f"run.dir={tmp_path / chosen}", f"run.attention={chosen}"])
    assert happened == 2 * ["choose_attention", "distribute", "build_body"]
    assert_same_run(tmp_path / "auto", tmp_path / "torch")
    (kept,) = json.loads((tmp_path / "auto" / attention.ATTENTION_FILE).read_text()).values()
    assert kept["kernel"] == "flash"
    assert not (tmp_path / "torch" / attention.ATTENTION_FILE).exists()
    assert np.isfinite(kept["milliseconds"]["flash"])


@pytest.mark.gpu
@pytest.mark.parametrize("objective", ["mae", "jepa"])
def test_on_a_gpu(objective: str, tmp_path: Path) -> None:
    """Whatever it takes, losses stay within bfloat16's rounding of PyTorch's own choice, and kernels were timed."""
    wide = [
        "model.width=128",
        "model.decoder_width=128",
        "run.precision=bfloat16",
        "run.device=cuda",
        f"run.dir={tmp_path}",
    ]
    losses = {}
    for chosen in ("torch", "auto"):
        config = configured(objective, *wide, f"run.attention={chosen}", "run.compile=none")
        numbers = (np.arange(start, start + CLIPS) for start in range(0, 4 * CLIPS, CLIPS))
        batches = iter([made_batch(part, config.data.frames, config.data.resolution) for part in numbers])
        with open_run(config) as run:
            assert (run.attention is None) == (chosen == "torch")
            if run.attention is not None:
                assert run.attention.kernel in run.attention.milliseconds
                assert all(time > 0 for time in run.attention.milliseconds.values())
            losses[chosen] = torch.stack([train_step(run, step, batches).sums.loss for step in range(4)])
    torch.testing.assert_close(losses["auto"], losses["torch"], rtol=2e-2, atol=1e-3)
