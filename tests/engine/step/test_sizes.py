"""Clips that grow on the way: draws and weights exact wherever a run resumes; what proxies do not hold is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import write_numbered

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.draws.phases import phase_at, phases
from trocar.engine.draws.samplers import samplers_by_clip
from trocar.engine.inputs.checkpoints import checkpoint_path
from trocar.engine.pretrain import pretrain
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step.build import build_model
from trocar.engine.step.loading import build_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus

SIZES = "data.sizes=[{from_step: 2, resolution: 32}, {from_step: 4, frames: 8, stride: 1}]"
TINY = [
    "data.frames=4", "data.stride=2", "data.resolution=24", "model.width=24", "model.heads=2", "model.depth=1",
    "model.predictor_width=24", "model.predictor_heads=2", "model.predictor_depth=1", "optim.batch=4", "optim.steps=6",
    "run.threads=1", "run.tensorboard=false", "run.checkpoint_every=1", "run.keep_checkpoints=10", SIZES,
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, frames in enumerate([60, 45]):
        write_numbered(folder / f"{number}.mp4", frames, video_id=number, gop=12)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


def test_each_phase_has_its_own_clips(corpus: Path) -> None:
    config = load_config("demo_jepa_cpu", [*TINY, f"data.corpus={corpus}"])
    found = phases(config)
    assert [phase.first_clip for phase in found] == [0, 8, 16]
    assert [(phase.config.data.frames, phase.config.data.resolution, phase.config.data.stride) for phase in found] == [
        (4, 24, 2), (4, 32, 2), (8, 32, 1),
    ]  # fmt: skip
    assert [phase_at(found, number) for number in (0, 7, 8, 15, 16, 99)] == [0, 0, 1, 1, 2, 2]
    opened = Corpus.open(corpus)
    sampler_at = samplers_by_clip(config, opened)
    batches = [np.arange(start, start + 4) for start in range(0, 24, 4)]
    with build_loader(config, opened, sampler_at(0), iter(batches), torch.device("cpu")) as loader:
        loaded = list(loader)
    shapes = [tuple(batch.frames.shape[1:4]) for batch in loaded]
    assert shapes == [(4, 24, 24), (4, 24, 24), (4, 32, 32), (4, 32, 32), (8, 32, 32), (8, 32, 32)]
    for numbers, batch in zip(batches, loaded, strict=True):
        assert np.array_equal(batch.numbers, numbers)
        expected = [clip.frames for clip in sampler_at(int(numbers[0])).clips(numbers)]
        assert np.array_equal(batch.frame_numbers, expected)
    _, masks = build_model(config)
    totals = [masks(0, numbers, 0).context.num_sequences for numbers in batches]
    assert totals == [8] * 6
    tokens = [int(masks(0, numbers, 0).target.tokens.max()) for numbers in batches[::2]]
    assert tokens[0] < 2 * 3 * 3 <= tokens[1] < 2 * 4 * 4 <= tokens[2] < 4 * 4 * 4


@pytest.mark.parametrize("kind", ["demo_jepa_cpu", "demo_cpu"])
def test_a_run_resumed_in_any_phase_is_the_same(kind: str, corpus: Path, tmp_path: Path) -> None:
    def settings(name: str) -> list[str]:
        decoder = ["model.patch=8", "model.decoder_depth=1", "model.decoder_width=24", "model.decoder_heads=2"]
        return [*TINY, *decoder, f"data.corpus={corpus}", f"run.dir={tmp_path / name}"]

    pretrain(load_config(kind, settings("whole")), progress=False)
    wanted = load_checkpoint(checkpoint_path(tmp_path / "whole", 6)).model
    losses = [row["loss"] for row in read_metrics(tmp_path / "whole")]
    for step in (1, 3, 4):
        resumed = tmp_path / f"from_{step}"
        (resumed / "checkpoints").mkdir(parents=True)
        shutil.copytree(checkpoint_path(tmp_path / "whole", step), checkpoint_path(resumed, step))
        result = pretrain(load_config(kind, settings(resumed.name)), progress=False)
        assert result.resumed_from == step
        actual = load_checkpoint(checkpoint_path(resumed, 6)).model
        assert actual.keys() == wanted.keys()
        assert all(torch.equal(actual[name], wanted[name]) for name in wanted)
        assert [row["loss"] for row in read_metrics(resumed)] == losses[step:]


def packed_corpus(side: int, stride: int, fps: float) -> Any:
    """What is asked of a corpus of proxies before anything is drawn."""
    return SimpleNamespace(
        path="packed",
        packed_stride=np.array([stride]),
        frames=np.array([300]),
        fps=np.array([fps]),
        pauses=np.zeros((0, 2), np.int64),
        variable_rate=np.array([False]),
        timeline=None,
        scan=lambda *_: iter([{"original": "a.mp4", "width": 2 * side, "height": side}]),
    )


def test_a_phase_beyond_the_proxies_names_the_pack_setting() -> None:
    large = load_config("demo_jepa_cpu", ["data.sizes=[{from_step: 5, resolution: 384}]"])
    with pytest.raises(ConfigError, match=r"data\.sizes\[0\]: data\.resolution: 384 .*trocar pack --short-side 384"):
        samplers_by_clip(large, packed_corpus(256, 4, 6.25))
    dense = load_config("demo_jepa_cpu", ["data.sizes=[{from_step: 5, stride: 2}]"])
    with pytest.raises(ConfigError, match=r"data\.sizes\[0\]: data\.stride 2 .*trocar pack --stride 2"):
        samplers_by_clip(dense, packed_corpus(256, 4, 6.25))
    fast = load_config("demo_jepa_cpu", ["data.sizes=[{from_step: 5, sample_fps: 12}]"])
    with pytest.raises(ConfigError, match=r"data\.sizes\[0\]: data\.sample_fps 12 .*trocar pack --stride"):
        samplers_by_clip(fast, packed_corpus(256, 4, 6.25))


def test_refuses_phases_that_cannot_be() -> None:
    for sizes, message in (
        ("[{from_step: 5}, {from_step: 5}]", "ascending"),
        ("[{from_step: 0}]", "positive number"),
        ("[{from_step: 5, frames: 5}]", "not divisible"),
        ("[{from_step: 5, frame: 4}]", "did you mean frames"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(load_config("demo_jepa_cpu", [f"data.sizes={sizes}"]))
