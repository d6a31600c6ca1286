"""The comparison with Hugging Face's models: equal losses or no ratio, and the usual input pipeline."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import read_number, write_numbered

from trocar.bench.training import end_to_end, peers
from trocar.bench.training.clock import Waited
from trocar.bench.training.end_to_end import OURS, PACKED, bench_end_to_end
from trocar.bench.training.end_to_end_arms import USUAL
from trocar.bench.training.peer_input import UnusableError, UsualPipeline, VideoClips, WantedClip
from trocar.bench.training.peer_models import HuggingFaceMAE, PeerError, build_peer
from trocar.bench.training.peers import StepArm, bench_peers, figures, judge, measure
from trocar.bench.training.run import open_run
from trocar.bench.training.table import table
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings

SMALL = [
    *("run.device=cpu", "run.precision=float32", "optim.batch=3", "optim.accumulation=1", "data.stride=2"),
    *("data.frames=4", "data.resolution=32", "model.patch=8", "model.width=48", "model.depth=2", "model.heads=4"),
]
MAE = [*SMALL, "model.positions=flat", "model.decoder_width=24", "model.decoder_depth=1", "model.decoder_heads=2"]
JEPA = [
    *SMALL,
    "model.positions=rope",
    "model.predictor_width=36",
    "model.predictor_heads=3",
    "model.predictor_depth=2",
]
TWO = ["Hugging Face, SDPA", "Hugging Face, eager attention"]


def config(objective: str, *more: str) -> Config:
    name, settings = ("demo_cpu", MAE) if objective == "mae" else ("demo_jepa_cpu", JEPA)
    # A rate at which a gradient that is wrong would show in the next loss.
    return load_config(name, [*settings, "optim.base_learning_rate=0.5", "optim.warmup=0", *more])


DECODER_MASK = "objective.decoder_mask_ratio=0.5"


@pytest.mark.parametrize(("objective", "settings"), [("mae", []), ("mae", [DECODER_MASK]), ("jepa", [])])
def test_losses_stay_equal_while_both_train(objective: str, settings: list[str]) -> None:
    ours, *theirs = bench_peers(config(objective, *settings), rounds=3, names=TWO)
    assert (ours["arm"], ours["reason"]) == ("trocar", "")
    assert [entry["arm"] for entry in theirs] == TWO
    for entry in theirs:
        assert entry["reason"] == ""
        assert entry["largest_loss_difference"] < 1e-5
        assert len(entry["seconds_by_round"]) == 3
        ratios = np.divide(entry["seconds_by_round"], ours["seconds_by_round"])
        assert entry["ours_against_it"]["median"] == pytest.approx(np.median(ratios))
    assert "losses of all steps are equal to 1e-05, relative" in table([ours, *theirs])


@pytest.mark.parametrize(("objective", "settings"), [("mae", []), ("mae", [DECODER_MASK]), ("jepa", [])])
def test_float64_leaves_no_doubt(objective: str, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-7 over three steps at a high rate: gradients, optimizer and EMA are the same, not only the first loss."""
    monkeypatch.setattr(torch, "as_tensor", lambda values: torch.tensor(values, dtype=torch.float64))
    monkeypatch.setattr(peers, "normalized", normalized_in_double)
    build = peers.build_peer
    monkeypatch.setattr(peers, "build_peer", lambda *arguments: build(*arguments).double())
    # Adam divides by the gradient's own size: at the rate of `config` a last bit grows to 1e-7 in three steps, at a tenth to 1e-10.
    rate = "optim.base_learning_rate=0.05"
    entries = bench_peers(config(objective, *settings, rate, "run.precision=float64"), rounds=2, names=TWO[:1])
    assert entries[1]["reason"] == ""
    assert entries[1]["largest_loss_difference"] < 1e-7


def normalized_in_double(frames: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((frames.double() / 255 - mean) / std).permute(0, 1, 4, 2, 3)


def test_an_unequal_loss_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = HuggingFaceMAE.prepare

    def other_masks(self: HuggingFaceMAE, masks: Any) -> Any:
        hidden, dropping = prepare(self, masks)
        return hidden.roll(1, dims=1), dropping

    monkeypatch.setattr(HuggingFaceMAE, "prepare", other_masks)
    rows = bench_peers(config("mae"), rounds=2, names=TWO[:1])
    assert "ours_against_it" not in rows[1]
    assert rows[1]["reason"].startswith("unequal loss: ")
    text = table(rows)
    assert "- Hugging Face, SDPA: unequal loss" in text
    assert "| Hugging Face, SDPA |" not in text


def test_rows_are_handed_on_after_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm that takes all the time there is leaves the others what they had: the step is ended while it runs."""
    kept = []
    step = peers.peer_step

    def stuck_in_the_second_round(*arguments: Any) -> Any:
        ready = step(*arguments)

        def stuck(number: int) -> Any:
            if number == 2:
                raise KeyboardInterrupt
            return ready(number)

        return stuck

    monkeypatch.setattr(peers, "peer_step", stuck_in_the_second_round)
    with pytest.raises(KeyboardInterrupt):
        bench_peers(config("mae"), rounds=3, names=TWO[:1], keep=kept.append)
    (rows,) = kept
    assert [(row["arm"], row["rounds"], len(row["seconds_by_round"])) for row in rows] == [
        ("trocar", 1, 1),
        (TWO[0], 1, 1),
    ]
    assert rows[1]["ours_against_it"]["median"] > 0


def test_losses_that_are_no_numbers_are_not_equal() -> None:
    arms = [
        StepArm("trocar", losses=[1.0, 2.0]),
        StepArm("nan", losses=[1.0, float("nan")]),
        StepArm("near", losses=[1.0, 2.00001]),
    ]
    judge(arms, 1e-5)
    assert [bool(arm.reason) for arm in arms] == [False, True, False]
    assert "unequal loss: nan where ours is 2 in step 1 (1 of 2 steps" in arms[1].reason


def test_arms_take_turns_and_their_ratios_are_of_a_round() -> None:
    now, order = [0.0], list[str]()

    def arm(name: str, *seconds: float) -> StepArm:
        def ready(number: int) -> Any:
            def step() -> torch.Tensor:
                order.append(name)
                now[0] += seconds[number]
                return torch.tensor(1.0)

            return step

        return StepArm(name, ready)

    def broken(number: int) -> Any:
        raise RuntimeError("out of memory\nand more")

    arms = [arm("trocar", 9, 1, 2, 4), arm("peer", 9, 3, 3, 20), StepArm("broken", broken)]
    measure(arms, 3, 1, torch.device("cpu"), clock=lambda: now[0])
    assert order == ["trocar", "peer", "peer", "trocar", "trocar", "peer", "peer", "trocar"]
    assert arms[0].seconds == [1, 2, 4]
    assert arms[2].reason == "not usable: out of memory"
    found = figures(arms[1], arms[0], clips=6)
    assert found["ours_against_it"]["median"] == 3
    assert (found["ours_against_it"]["low"], found["ours_against_it"]["high"]) == (1.5, 5)
    assert found["clips_per_second"] == {"median": 2, "low": 0.3, "high": 2}
    assert "ours_against_it" not in figures(arms[2], arms[0], 6)


def test_what_hugging_face_has_not_is_named() -> None:
    with open_run(config("mae", "objective.targets=patch")) as run, pytest.raises(PeerError, match="targets=patch"):
        build_peer(run.objective, "sdpa")
    rows = bench_peers(config("jepa", "model.positions=axes"), rounds=1, names=TWO)
    assert [entry["reason"] for entry in rows[1:]] == [
        "not usable: Hugging Face's model has no model.positions=axes"
    ] * 2
    assert "ours_against_it" not in rows[1]


class Fake:
    """An arm of the end to end whose pictures are `level` of 255 off, and whose loss is `loss`."""

    def __init__(self, name: str, level: float, loss: float, seconds: float, clock: list[float]) -> None:
        self.name, self.level, self.loss, self.seconds, self.clock = name, level, loss, seconds, clock

    def first(self) -> tuple[torch.Tensor, float]:
        return torch.full((1, 2, 3, 4, 4), self.level / 255 / 0.225), self.loss

    def passage(self, first_step: int) -> float:
        self.clock[0] += self.seconds
        return self.seconds / 4

    def arm(self) -> end_to_end.PassageArm:
        return end_to_end.PassageArm(self.name, self.passage, self.first, facts={"input": "made"})


def test_end_to_end_compares_before_it_times() -> None:
    clock = [0.0]
    made = [
        Fake(OURS, 0, 1.0, 2.0, clock),
        Fake(PACKED, 2, 1.001, 1.0, clock),
        Fake(USUAL, 1, 1.002, 6.0, clock),
        Fake("other pictures", 40, 1.0, 6.0, clock),
        Fake("other loss", 1, 1.2, 6.0, clock),
    ]
    arms = [fake.arm() for fake in made]
    end_to_end.compare(arms)
    assert [arm.reason.partition(":")[0] for arm in arms] == ["", "", "", "other pictures", "unequal loss"]
    end_to_end.measure(arms, 3, torch.device("cpu"), 2, clock=lambda: clock[0])
    assert [len(arm.seconds) for arm in arms] == [3, 3, 3, 0, 0]
    told = [end_to_end.figures(arm, arms, 4, 2, {"trocar": 0.5, "peer": 1.5}) for arm in arms]
    assert told[0]["decode_percent"]["median"] == pytest.approx(50)
    assert told[1]["decode_percent"]["median"] == pytest.approx(0)
    assert told[2]["decode_percent"]["median"] == pytest.approx(50)
    assert told[0]["data_wait_percent"]["median"] == pytest.approx(25)
    assert {name: ratio["median"] for name, ratio in told[2]["ours_against_it"].items()} == {OURS: 3, PACKED: 6}
    assert "clips_per_second" not in told[3]


def test_frames_of_proxies_are_told_from_their_neighbours() -> None:
    """Blurred pictures of the right frames pass; frames one late do not; a picture that stands still tells nothing."""
    generator = torch.Generator().manual_seed(0)
    ours = 255 * torch.rand(2, 6, 3, 8, 8, generator=generator)
    blurred = ours.mean(dim=4, keepdim=True).expand_as(ours)
    assert end_to_end.frames_misplaced(0.5 * ours + 0.5 * blurred, ours) == 0
    late = torch.cat([ours[:, :1], ours[:, :-1]], dim=1)
    assert end_to_end.frames_misplaced(late, ours) == 2 * 5
    still = ours[:, :1].expand_as(ours)
    assert end_to_end.frames_misplaced(still + 10, still) == 0


def test_waiting_is_the_time_until_an_item_comes() -> None:
    now = [0.0]

    def items() -> Iterator[torch.Tensor]:
        for seconds in (1.0, 2.0):
            now[0] += seconds
            yield torch.zeros(())
        now[0] += 0.5

    waited = Waited(items(), clock=lambda: now[0])
    for _ in waited:
        now[0] += 10
    assert waited.waited == 3.5


@pytest.mark.parametrize("library", ["torchcodec", "decord"])
def test_a_library_that_is_missing_is_told_by_its_name(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (library, f"{library}.decoders"):
        monkeypatch.setitem(sys.modules, name, None)
    wanted = [WantedClip("nowhere.mp4", np.arange(4), (0, 0, 8, 8), False)]
    with pytest.raises(ImportError, match=library):
        VideoClips(wanted, 32, library)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    (folder / "videos").mkdir()
    for number in range(2):
        write_numbered(folder / "videos" / f"{number}.mp4", 60, video_id=number, gop=30, width=192, height=128)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, content_box=False, progress=False)
    pack_corpus(folder / "corpus", folder / "packed", PackSettings(stride=2), workers=1, progress=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchcodec", "decord"])
def test_the_usual_pipeline_delivers_what_is_asked_for(folder: Path, library: str) -> None:
    path = str(folder / "videos" / "1.mp4")
    wanted = [WantedClip(path, np.arange(start, start + 8, 2), (0, 0, 192, 128), False) for start in (3, 20, 41)]
    try:
        pipeline = UsualPipeline(wanted, batch=2, resolution=64, library=library, workers=1)
    except UnusableError as error:
        if importlib.util.find_spec(library) is None or "cannot be used" in str(error):
            pytest.skip(str(error))
        raise
    try:
        batches = list(pipeline.passage([2, 0, 1]))
        assert [batch.shape for batch in batches] == [(2, 4, 3, 64, 64), (1, 4, 3, 64, 64)]
        std, mean = (torch.tensor(values).view(3, 1, 1) for values in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
        pictures = 255 * (torch.cat(batches) * std + mean)
        numbers = [[read_number(frame.permute(1, 2, 0).numpy()) for frame in clip] for clip in pictures]
        assert numbers == [[(1, start + step) for step in (0, 2, 4, 6)] for start in (41, 3, 20)]
    finally:
        pipeline.close()


@pytest.mark.slow
def test_end_to_end_on_small_videos(folder: Path) -> None:
    kept: list[list[str]] = []
    rows = bench_end_to_end(
        config("mae", "data.content_box=false", "data.threads=1"),
        folder / "corpus",
        folder / "packed",
        rounds=1,
        steps_a_round=2,
        step_seconds={"trocar": 0.01, "peer": 0.01},
        keep=lambda rows: kept.append([entry["arm"] for entry in rows]),
    )
    assert kept == [[OURS, PACKED], [OURS, PACKED, USUAL]], "ours are kept before the usual pipeline is tried"
    assert [entry["arm"] for entry in rows] == [OURS, PACKED, USUAL]
    assert all("clips_per_second" in entry for entry in rows[:2])
    if "cannot be used" in rows[2]["reason"]:
        pytest.skip(rows[2]["reason"])
    assert rows[2]["reason"] == ""
    assert set(rows[2]["ours_against_it"]) == {OURS, PACKED}
    assert "| decoding's share |" in table(rows)
