"""The online probe: its arithmetic, its table, and that it judges while a run goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_numbered
from textures import FRAMES, moving_textures

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.pretrain import pretrain
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step.online_probe import (
    OnlineProbe,
    balanced_accuracy,
    encode,
    knn_predictions,
    linear_predictions,
    read_table,
)
from trocar.loaders.corpus.index import index_corpus
from trocar.ssl.block_masks import MultiBlockMask
from trocar.ssl.choices import LONG_RANGE, SHORT_RANGE, BlockRecipe
from trocar.ssl.encoder import VideoEncoder
from trocar.ssl.jepa import JointEmbedding
from trocar.ssl.predictor import Predictor

TINY = [
    "data.frames=4", "data.stride=2", "data.resolution=32", "model.width=24", "model.heads=2", "model.depth=1",
    "model.predictor_width=24", "model.predictor_heads=2", "model.predictor_depth=1", "optim.batch=4", "optim.steps=4",
    "run.threads=1", "run.tensorboard=false",
]  # fmt: skip


def test_probes_find_a_planted_label_and_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    videos = torch.arange(120) // 4
    noise = torch.randn(120, 16, generator=generator, dtype=torch.float64)
    planted = noise + 6 * torch.nn.functional.one_hot(labels, 16)
    for predict in (
        lambda features: knn_predictions(features, labels, videos, 10),
        lambda f: linear_predictions(f, labels, videos),
    ):
        assert balanced_accuracy(predict(planted), labels) > 0.9
        assert balanced_accuracy(predict(noise), labels) < 1 / 3 + 0.15


def test_a_video_never_judges_itself() -> None:
    """Features that name the video alone: its own clips, with its own label, would be right; all others are wrong."""
    videos = torch.arange(40) // 4
    labels = videos % 2
    features = torch.nn.functional.one_hot(videos, 10).double() + 1e-3 * torch.randn(40, 10, dtype=torch.float64)
    assert balanced_accuracy(knn_predictions(features, labels, videos, 3), labels) < 0.75
    assert balanced_accuracy(linear_predictions(features, labels, videos), labels) < 0.75


def test_balanced_accuracy_weighs_classes_alike() -> None:
    labels = torch.tensor([0] * 9 + [1])
    assert balanced_accuracy(torch.zeros(10, dtype=torch.long), labels) == 0.5


@pytest.mark.parametrize("width", [6, 90])
def test_the_linear_probe_is_ridge_regression_of_the_other_folds(width: int) -> None:
    """In closed form, with few features and with more of them than clips; labels that are hard to tell."""
    generator = torch.Generator().manual_seed(1)
    labels, videos = torch.arange(80) * 7 % 3, torch.arange(80) // 4
    features = torch.randn(80, width, generator=generator, dtype=torch.float64)
    features[:, :3] += 0.4 * torch.nn.functional.one_hot(labels, 3)
    expected = torch.empty_like(labels)
    for fold in range(5):
        held = videos % 5 == fold
        train, wanted = features[~held], torch.nn.functional.one_hot(labels[~held], 3).double()
        scaled = (features - train.mean(0)) / (train.std(0) + 1e-6)
        gram = scaled[~held].T @ scaled[~held] + 0.1 * len(train) * torch.eye(width, dtype=torch.float64)
        weights = torch.linalg.solve(gram, scaled[~held].T @ (wanted - wanted.mean(0)))
        expected[held] = (scaled[held] @ weights + wanted.mean(0)).argmax(1)
    found = linear_predictions(features, labels, videos)
    assert torch.equal(found, expected)
    shares = [(found[labels == label] == label).double().mean() for label in range(3)]
    assert balanced_accuracy(found, labels) == pytest.approx(sum(shares) / 3)
    assert 0.2 < sum(shares) / 3 < 0.95


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    rows = ["path,start,label"]
    for number in range(4):
        write_numbered(folder / f"{number}.mp4", 40, video_id=number, gop=12)
        rows += [f"{folder / f'{number}.mp4'},{start},{'ab'[number % 2]}" for start in (0, 0.4)]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    return folder


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_a_run_is_probed_on_the_way(kind: str, folder: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"data.corpus={folder / 'corpus'}", f"run.dir={tmp_path}"]
    probe = [f"probe.table={folder / 'table.csv'}", "probe.every=2", f"probe.kind={kind}"]
    pretrain(load_config("demo_jepa_cpu", [*settings, *probe]), progress=False)
    rows = [json.loads(line) for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    assert rows
    assert {row["step"] for row in rows} <= {2, 4}
    assert all(row["clips"] == 8 and row["chance"] == 0.5 and 0 <= row["balanced_accuracy"] <= 1 for row in rows)
    assert len(read_metrics(tmp_path)) == 4


def test_training_does_not_wait_and_a_failure_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(
        "demo_jepa_cpu", [*TINY, f"run.dir={tmp_path}", f"probe.table={folder / 'table.csv'}", "probe.every=1"]
    )
    encoder = VideoEncoder(24, 1, 2, frames=4, resolution=32, patch=8)
    release = threading.Event()
    with OnlineProbe(config, torch.device("cpu"), 0, True) as probe:
        seen = []

        def judge(snapshot: VideoEncoder) -> dict[str, float]:
            seen.append(snapshot.norm.weight[0].item())
            release.wait(30)
            if len(seen) == 2:
                raise ValueError("no such clip")
            return {"balanced_accuracy": 1.0}

        probe._judge = judge  # type: ignore[method-assign]
        for step in (1, 2, 3):
            probe.update(step, encoder)
            with torch.no_grad():
                encoder.norm.weight.fill_(float(step + 1))
        release.set()
        assert probe._running is not None
        probe._running.result()
        probe.update(4, encoder)
    assert seen == [1.0, 4.0], "a probe sees the weights of its step, and one that is due too early is left out"
    rows = [json.loads(line) for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    seconds = rows[0].pop("seconds")
    assert 0 <= seconds < 60
    assert rows == [{"step": 1, "balanced_accuracy": 1.0}, {"step": 4, "error": "no such clip"}]
    assert "the probe of step 4 failed: no such clip" in capsys.readouterr().err
    OnlineProbe(config, torch.device("cpu"), 2, True)
    assert len((tmp_path / "probe.jsonl").read_text().splitlines()) == 1


def test_refuses_tables_that_say_nothing(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    with pytest.raises(ConfigError, match=r"probe\.table: .*table\.csv: no such file"):
        read_table(table, 10)
    table.write_text("path,label\na.mp4,x\n")
    with pytest.raises(ConfigError, match="lacks the columns start"):
        read_table(table, 10)
    table.write_text("path,start,label\na.mp4,0,x\nb.mp4,0,x\n")
    with pytest.raises(ConfigError, match="at least two labels and two videos"):
        read_table(table, 10)
    table.write_text("path,start,label\n" + "".join(f"{n}.mp4,0,{'xy'[n % 2]}\n" for n in range(100)))
    rows = read_table(table, 10)
    assert len(rows) == 10
    assert (rows[0][0], rows[-1][0]) == ("0.mp4", "99.mp4")


HALF_OF_THE_TIME = (BlockRecipe(1, (1.0, 1.0), (1.0, 1.0), (0.5, 0.5)),)


def probe_gain(
    seed: int,
    steps: int,
    recipes: tuple[BlockRecipe, ...] = HALF_OF_THE_TIME,
    cut_batch: int = 0,
    clips: int = 384,
    batch: int = 24,
) -> tuple[float, float, float]:
    """Balanced accuracy of the linear probe on random weights and after a short JEPA training, and the loss of its last 100 steps.

    Masks hide half of the time: what is then at a place follows from where the texture moves. V-JEPA's own hide a place at all
    times, and a fast target pulls so small an encoder to what is easily foreseen: both teach it colours.
    """
    torch.manual_seed(seed)
    side, options = 24, {"side": 24, "speed": 4, "grain": 4}
    encoder = VideoEncoder(64, 3, 2, frames=FRAMES, resolution=side, patch=8, positions="axes")
    model = JointEmbedding(encoder, Predictor(64, 32, 1, 2, grid=encoder.grid, positions="axes"))
    source = MultiBlockMask(encoder.grid, recipes, cut_batch=cut_batch)
    frames, labels = moving_textures(clips, 1000 + seed, **options)

    def judge() -> float:
        features = encode(encoder, frames, 64, torch.device("cpu"))
        return balanced_accuracy(linear_predictions(features, labels, torch.arange(clips)), labels)

    before = judge()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.04)
    pool, _ = moving_textures(4096, seed, **options)
    losses = []
    for step in range(steps):
        numbers = np.arange(step * batch, (step + 1) * batch)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 30)
        loss = model(pool[numbers % len(pool)], source(seed, numbers, 0)).loss
        loss.backward()
        losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.update_target(0.9998 + 0.0002 * step / steps)
    return before, judge(), float(np.mean(losses[-100:]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_brief_training_sees_motion_that_random_weights_do_not() -> None:
    results = [probe_gain(seed, 3000) for seed in range(3)]
    gains = np.array([after - before for before, after, _ in results])
    half = 4.303 * gains.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom, 95 %
    interval = f"{gains.mean() - half:.3f} .. {gains.mean() + half:.3f}"
    print(f"\nrandom, trained: {results}; gain {gains.mean():.3f}, 95 % interval {interval}")
    assert (gains > 0).all()
    assert gains.mean() - half > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cut_and_whole_masks_of_v_jepas_recipe_side_by_side() -> None:
    """What the cut does to loss and features; one seed says nothing small."""
    whole, cut = (probe_gain(0, 1000, (SHORT_RANGE, LONG_RANGE), cut_batch) for cut_batch in (0, 24))
    print(f"\nrandom, trained, loss: {whole} as drawn, {cut} cut to the shortest of 24")
    assert whole[0] == cut[0], "the same random weights"
    assert whole[2] != cut[2]
