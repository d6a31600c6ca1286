"""Does a pretrained model look at its input? Held-out clips, fixed masks, on real surgical video.

Two bars. The reconstruction of held-out clips beats a constant: the training set's mean colour, or zero where targets are
normalised. And with the visible tokens of another clip it gets at least 10 % worse: what is predicted comes from what is seen.

TROCAR_TEST_VIDEOS names a folder of surgical clips; without it the same is held on the demo's synthetic videos.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config
from trocar.engine.demo import make_videos
from trocar.engine.draws.samplers import build_sampler
from trocar.engine.pretrain import pretrain
from trocar.engine.step.build import build_model
from trocar.engine.step.loading import build_loader
from trocar.kernels.pixel_loss import pixel_loss
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.ssl.mae import MaskedAutoencoder

HELD_OUT_CLIPS = 48
MINUTES_30 = 30 * 60


@dataclass(frozen=True)
class Verdict:
    """loss: on held-out clips. constant: the loss of the best constant of the training set. exchanged: the loss where the visible
    tokens come from another held-out clip."""

    loss: float
    constant: float
    exchanged: float


def clips(config: Config, corpus: Path, count: int) -> tuple[torch.Tensor, np.ndarray]:
    opened = Corpus.open(corpus)
    draws = np.arange(count)
    with build_loader(config, opened, build_sampler(config, opened), iter([draws]), torch.device("cpu")) as loader:
        batch = next(loader)
    assert not batch.count.failures
    return batch.frames, batch.draws


def train_and_judge(train: Path, held_out: Path, run_dir: Path, *settings: str) -> Verdict:
    config = load_config("demo_cpu", [f"data.corpus={train}", f"run.dir={run_dir}", "run.tensorboard=false", *settings])
    result = pretrain(config)
    model, mask = build_model(config)
    assert isinstance(model, MaskedAutoencoder)
    model.load_state_dict(load_checkpoint(result.checkpoint).model)
    frames, draws = clips(config, held_out, HELD_OUT_CLIPS)
    masks = mask(config.run.seed, draws, 0)
    # Another clip's pixels under the same mask: only the content of the visible tokens changes.
    exchanged_frames = frames.roll(1, dims=0)
    with torch.no_grad():
        loss = model(frames, masks).loss
        prediction = model.decode(model.encoder(exchanged_frames, masks.visible), masks)
    encoder = model.encoder
    exchanged, _ = pixel_loss(prediction, frames, masks.masked, encoder.tubelet, encoder.patch, model.normalization)
    constant = torch.zeros_like(prediction)
    if model.normalization == "none":
        colour = clips(config, train, 96)[0].float().mean(dim=(0, 1, 2, 3)) / 255
        constant += colour.repeat(prediction.shape[-1] // 3)
    constant_loss, _ = pixel_loss(constant, frames, masks.masked, encoder.tubelet, encoder.patch, model.normalization)
    verdict = Verdict(float(loss), float(constant_loss), float(exchanged))
    print(f"\n{run_dir.name}: {verdict}, exchange +{100 * (verdict.exchanged / verdict.loss - 1):.1f} %")
    return verdict


@dataclass(frozen=True)
class Split:
    """videos: the training files. train, held_out: their corpora."""

    videos: list[Path]
    train: Path
    held_out: Path


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("learning")
    real = os.environ.get("TROCAR_TEST_VIDEOS")
    videos = sorted(Path(real).glob("*.mp4")) if real else make_videos(folder / "videos", num_videos=16, seconds=10)
    held_out = videos[2::5]
    train = [video for video in videos if video not in held_out]
    assert len(train) >= 12
    index_corpus(train, folder / "train", workers=1, progress=False)
    index_corpus(held_out, folder / "held_out", workers=1, progress=False)
    return Split(train, folder / "train", folder / "held_out")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_model_looks_at_its_input(split: Split, tmp_path: Path) -> None:
    verdict = train_and_judge(split.train, split.held_out, tmp_path / "demo", "optim.steps=300")
    assert verdict.loss < verdict.constant
    assert verdict.exchanged > 1.1 * verdict.loss


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_same_from_one_long_file(split: Split, tmp_path: Path) -> None:
    long_video = concatenate(split.videos, tmp_path / "long.mp4", MINUTES_30)
    summary = index_corpus([long_video], tmp_path / "corpus", workers=1, progress=False)
    assert summary.hours * 3600 >= MINUTES_30
    verdict = train_and_judge(tmp_path / "corpus", split.held_out, tmp_path / "long", "optim.steps=300")
    assert verdict.loss < verdict.constant
    assert verdict.exchanged > 1.1 * verdict.loss


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_normalised_targets_beat_predicting_zero(split: Split, tmp_path: Path) -> None:
    """VideoMAE's recipe, 90 % masked: this short, it beats zero; that it looks at its input takes far longer runs."""
    recipe = ("objective.targets=channel", "objective.mask_ratio=0.9", "optim.steps=200")
    verdict = train_and_judge(split.train, split.held_out, tmp_path / "normalised", *recipe)
    assert verdict.loss < verdict.constant
    assert verdict.constant == pytest.approx(1.0, abs=0.02)


def concatenate(videos: list[Path], out: Path, seconds: float) -> Path:
    """One H.264 file of at least `seconds`: all videos at 320 x 180 one after another, that sequence again and again."""
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "g": "100", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        packets, number = [], 0
        for video in videos:
            with av.open(str(video)) as source:
                for frame in source.decode(video=0):
                    small = frame.reformat(320, 180, "yuv420p")
                    small.pts, small.time_base = number, Fraction(1, 25)
                    number += 1
                    packets += stream.encode(small)
        packets += stream.encode(None)
        first = [(packet.pts, packet.dts) for packet in packets]
        for turn in range(-(-int(seconds * 25) // number)):
            for packet, (pts, dts) in zip(packets, first, strict=True):
                # A fresh packet each time: muxing takes the one it is given.
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base, copy.is_keyframe = stream, packet.time_base, packet.is_keyframe
                shift = turn * number
                copy.pts, copy.dts = pts + shift, dts + shift
                container.mux(copy)
    return out
