"""Temporal heads: what they can learn of planted operations, what an online one must not, and that a killed training goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_features import VALUES, halves, planted, told_by_the_cue

from trocar.engine.config.error import ConfigError
from trocar.judge.workflow import training
from trocar.judge.workflow.choices import FeatureChoices, HeadChoices, Mode
from trocar.judge.workflow.heads import TemporalHead, banded_attention, leak
from trocar.judge.workflow.labels import DenseVideo
from trocar.judge.workflow.training import Example, Trained, check_online, probabilities, train_head

CPU = torch.device("cpu")
PHASES = 4
SMALL = {
    "linear": HeadChoices("linear", epochs=30, learning_rate=1e-2),
    "tcn": HeadChoices("tcn", width=16, layers=7, stages=1, dropout=0.1, epochs=40, learning_rate=5e-3),
    "transformer": HeadChoices("transformer", width=16, layers=2, attention_heads=2, memory=128, dropout=0.0, epochs=60,
                               learning_rate=5e-3),
}  # fmt: skip


def learned(
    kind: str, choices: HeadChoices, folder: Path, *, videos: int = 32, length: int = 120, seed: int = 0
) -> float:
    """Which share of the seconds that the cue tells is right, on test videos."""
    train, val, test = halves(planted(kind, videos, length=length, seed=seed))
    found = train_head(train, val, PHASES, choices, folder / "state.safetensors", seed=seed)
    hits = [told_by_the_cue(e, probabilities(found.head, e.vectors, False, CPU).argmax(axis=1)) for e in test]
    return float(np.concatenate(hits).mean())


@pytest.mark.parametrize("kind", ["linear", "tcn", "transformer"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_an_online_head_does_not_see_what_comes_after(kind: str, mode: str) -> None:
    torch.manual_seed(0)
    head = TemporalHead(replace(SMALL[kind], mode=mode, memory=16), VALUES, PHASES)  # type: ignore[arg-type]
    vectors = torch.randn(70, VALUES)
    found = leak(head, vectors, moments=5)
    assert (found < 1e-5) == (mode == "online" or kind == "linear"), found


def test_a_head_that_says_it_is_online_and_is_not_is_refused() -> None:
    torch.manual_seed(0)
    leaking = TemporalHead(replace(SMALL["tcn"], mode="offline"), VALUES, PHASES)
    with pytest.raises(ConfigError, match="'online' is not true of this head"):
        check_online(leaking, planted("look", 1)[0], CPU)
    with pytest.raises(ConfigError, match=r"centred.*mode: offline"):
        HeadChoices(mode="online").check_clips(FeatureChoices(clips="centred"))
    HeadChoices(mode="offline").check_clips(FeatureChoices(clips="centred"))


@pytest.mark.parametrize(("moments", "memory"), [(1, 4), (7, 4), (8, 4), (30, 7), (5, 64)])
def test_attention_reaches_as_far_back_as_its_memory(moments: int, memory: int) -> None:
    chance = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, moments, 6, generator=chance, dtype=torch.float64) for _ in range(3))
    found = banded_attention(q, k, v, memory)
    for moment in range(moments):
        seen = slice(max(0, moment - memory + 1), moment + 1)
        weights = (q[:, moment, None] @ k[:, seen].mT / 6**0.5).softmax(-1)
        torch.testing.assert_close(found[:, moment], (weights @ v[:, seen])[:, 0])


def test_one_look_suffices_a_linear_probe(tmp_path: Path) -> None:
    choices = replace(SMALL["linear"], epochs=12, learning_rate=5e-2)
    assert learned("look", choices, tmp_path, videos=12, length=48) > 0.8


@pytest.mark.slow
def test_what_happened_before_is_known_to_a_head_with_a_memory(tmp_path: Path) -> None:
    choices = replace(SMALL["tcn"], layers=5, dropout=0.0, patience=40)
    assert learned("before", choices, tmp_path, videos=16, length=48) > 0.85


def bits(found: Trained) -> list[bytes]:
    return [value.numpy().tobytes() for value in found.head.state_dict().values()]


@pytest.mark.parametrize("kind", ["tcn", pytest.param("transformer", marks=pytest.mark.slow)])
def test_a_killed_training_goes_on_bit_for_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val, _ = halves(planted("before", 8, length=40))
    choices = replace(SMALL[kind], epochs=4, dropout=0.3)
    whole = train_head(train, val, PHASES, choices, tmp_path / "whole.safetensors", seed=3)
    validated = []

    def killed(*arguments: object) -> tuple[float, float]:
        validated.append(1)
        if len(validated) == 3:
            raise KeyboardInterrupt
        return found(*arguments)  # type: ignore[arg-type]

    found = training.validate
    monkeypatch.setattr(training, "validate", killed)
    with pytest.raises(KeyboardInterrupt):
        train_head(train, val, PHASES, choices, tmp_path / "killed.safetensors", seed=3)
    again = train_head(train, val, PHASES, choices, tmp_path / "killed.safetensors", seed=3)
    assert (bits(again), again.epoch, again.score, again.epochs) == (
        bits(whole),
        whole.epoch,
        whole.score,
        whole.epochs,
    )
    other = train_head(train, val, PHASES, choices, tmp_path / "other.safetensors", seed=4)
    assert bits(other) != bits(whole)


def test_training_ends_where_the_validation_videos_do_not_get_better(tmp_path: Path) -> None:
    train, val, _ = halves(planted("look", 8, length=60))
    found = train_head(train, val, PHASES, replace(SMALL["linear"], epochs=200, patience=2, learning_rate=0.3),
                       tmp_path / "state.safetensors", seed=0)  # fmt: skip
    assert found.epochs == found.epoch + 2 < 200
    assert found.leaked == 0


def test_several_labels_a_moment_are_learned_too(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    examples = []
    for number in range(8):
        truth = chance.random((60, 3)) < [0.5, 0.1, 0.3]
        vectors = (np.concatenate([truth, truth[:, ::-1]], axis=1) + 0.1 * chance.standard_normal((60, 6))).astype(
            np.float16
        )
        examples.append(Example(vectors, DenseVideo(str(number), str(number), truth, np.arange(60) % 7 != 0)))
    choices = replace(SMALL["linear"], balance=0.5, epochs=12, learning_rate=3e-2)
    found = train_head(examples[:4], examples[4:6], 3, choices, tmp_path / "state.safetensors", seed=0)
    assert found.score > 0.99
    scores = probabilities(found.head, examples[7].vectors, True, CPU)
    assert ((scores > 0.5) == examples[7].labels.truth).mean() > 0.97


MOMENTS = 180  # of an operation of three minutes; those of 20 minutes: test_planted_videos.py


def sized(kind: str, mode: Mode = "online") -> HeadChoices:
    """Heads that reach over the whole operation."""
    if kind == "tcn":
        return HeadChoices("tcn", mode, width=24, layers=9, stages=1, dropout=0.1, epochs=40,
                           patience=40, learning_rate=5e-3)  # type: ignore[arg-type]  # fmt: skip
    if kind == "transformer":
        return HeadChoices("transformer", mode, width=32, layers=2, attention_heads=4, memory=MOMENTS, dropout=0.0,
                           epochs=40, patience=40, learning_rate=3e-3)  # type: ignore[arg-type]  # fmt: skip
    return SMALL["linear"]


CASES = [
    ("look", "linear", "online", True),
    ("before", "linear", "online", False),
    ("before", "tcn", "online", True),
    ("before", "transformer", "online", True),
    ("after", "tcn", "offline", True),
    ("after", "transformer", "offline", True),
    ("after", "tcn", "online", False),
    ("after", "transformer", "online", False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head", "mode", "knows"), CASES)
def test_planted_operations_over_three_seeds(kind: str, head: str, mode: Mode, knows: bool, tmp_path: Path) -> None:
    """Means over seeds with their 95 % intervals (t of two degrees): a head that can know is far above the prior (a half), one
    that cannot is at it."""
    choices = sized(head, mode)
    found = [learned(kind, choices, tmp_path / str(seed), videos=32, length=MOMENTS, seed=seed) for seed in range(3)]
    mean, half = float(np.mean(found)), 4.303 * float(np.std(found, ddof=1)) / 3**0.5
    print(f"{kind}, {head} {mode}: {mean:.3f} ± {half:.3f}, seeds {found}")
    if knows:
        assert min(found) > 0.85, found
    else:
        assert mean - half <= 0.5 + 0.1, found
        assert mean < 0.7, found
