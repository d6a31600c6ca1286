"""Probes and full fine-tuning: exact heads, an honest selection, the same twice, killed and resumed, motion seen where it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from motion_task import FRAMES, SIDE, motion_table, tiny_conversion
from timm.data import auto_augment

from trocar.engine.config.error import ConfigError
from trocar.engine.curate.embedders import ImageModel
from trocar.engine.weights.convert import save_encoder
from trocar.engine.weights.encoder_sources import ClipShape
from trocar.engine.weights.run_encoder import weights_digest
from trocar.judge.downstream.backbones import Backbone, FrameAverage, load_backbone
from trocar.judge.downstream.features import ViewPlan, extract
from trocar.judge.downstream.finetune import finetune
from trocar.judge.downstream.heads import AttentiveHead
from trocar.judge.downstream.mixing import Mixing
from trocar.judge.downstream.probing import class_weights, loss
from trocar.judge.downstream.protocol import PROTOCOLS, read_protocol
from trocar.judge.downstream.task import Task, pieces_of
from trocar.judge.downstream.tuning import build_tuned, layer_groups
from trocar.judge.labels.dataset import Card, DatasetError, Segment, table_card
from trocar.judge.labels.table import write_table
from trocar.ssl.encoder import VideoEncoder

CPU = torch.device("cpu")
PLAIN = ["flip=0", "segments=1", "crops=1", "crop_scale=[1, 1]", "crop_ratio=[1, 1]", "batch=32"]
BRIEF = [*PLAIN, "epochs=2", "train_views=1", "learning_rates=[1e-3]", "weight_decays=[0.05]", "balances=[0]"]


def video_backbone(width: int = 48, depth: int = 1) -> Backbone:
    torch.manual_seed(0)
    encoder = VideoEncoder(width, depth, width // 16, frames=FRAMES, resolution=SIDE, patch=8, positions="axes")
    encoder.requires_grad_(False).eval()
    return Backbone(
        "video", encoder, "videomae", width, depth, ClipShape(FRAMES, 1, None, SIDE), weights_digest(encoder), "random"
    )


def image_backbone() -> Backbone:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **size)
    half = torch.full((3, 1, 1), 0.5)
    average = FrameAverage(ImageModel(model, 48, half, half, SIDE)).requires_grad_(False).eval()
    return Backbone(
        "image", average, "image", 48, 1, ClipShape(FRAMES, 1, None, SIDE), weights_digest(average), "random"
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[Segment]:
    return motion_table(tmp_path_factory.mktemp("motion"), {"train": 7, "val": 2, "test": 5}, 32)


@pytest.fixture(scope="module")
def task(table: list[Segment]) -> Task:
    return Task("motion", table_card(Path("motion.csv"), table), table)


@pytest.fixture(scope="module")
def small(table: list[Segment]) -> list[Segment]:
    """Few rows of all splits, for what needs no good score."""
    kept = {"train": 24, "val": 12, "test": 12}
    return [row for split, count in kept.items() for row in [s for s in table if s.split == split][:count]]


def small_task(rows: list[Segment]) -> Task:
    return Task("small", table_card(Path("small.csv"), rows), rows)


@pytest.mark.slow
def test_motion_is_seen_by_the_tuned_video_encoder_alone(task: Task, tmp_path: Path) -> None:
    """The label is in the order of frames: full fine-tuning of a video encoder finds it, the average over frames of an image model
    does not, nor a probe on random weights, and the row of each says so."""
    tuned = read_protocol(
        "full",
        [*PLAIN, "learning_rates=[2e-3]", "epochs=9", "batch=16", "drop_path=0", "layer_decay=1", "label_smoothing=0"],
    )
    probe = read_protocol(
        "linear", [*PLAIN, "epochs=10", "train_views=1", "learning_rates=[1e-3]", "weight_decays=[0.05]"]
    )
    video = finetune(task, video_backbone(), tuned, tmp_path / "video", tell=print)
    image = finetune(task, image_backbone(), replace(tuned, epochs=3), tmp_path / "image", tell=print)
    frozen = finetune(task, video_backbone(), probe, tmp_path / "frozen", tell=print)
    print({name: (row["score"], row["low"], row["high"], row["flags"]) for name, row in
           {"video": video, "image": image, "frozen": frozen}.items()})  # fmt: skip
    assert video["low"] > 0.9
    assert not video["flags"]
    for row in (image, frozen):
        assert row["low"] <= row["majority"] == 0.5
        assert row["high"] < 0.7
        assert {"as majority", "unstable"} <= {*row["flags"]}


@pytest.mark.parametrize("kind", ["linear", "attentive", "full"])
def test_same_seed_twice_is_the_same(kind: str, small: list[Segment], tmp_path: Path) -> None:
    extra = (
        ["drop_path=0.2", "mixup=0.8", "cutmix=1.0", "random_augment=[2, 7]", "erasing=0.5"] if kind == "full" else []
    )
    protocol = read_protocol(kind, [*BRIEF, *extra, "flip=0.5", "crop_scale=[0.5, 1]"])
    backbone = video_backbone(16)
    rows = [finetune(small_task(small), backbone, protocol, tmp_path / name, tell=print) for name in "ab"]
    assert rows[0] == rows[1]
    first, second = (np.load(tmp_path / name / "predictions.npz")["scores"] for name in "ab")
    assert np.array_equal(first, second)
    other = finetune(small_task(small), backbone, protocol, tmp_path / "c", seed=1, tell=print)
    assert other["selected"] != rows[0]["selected"]


@pytest.mark.parametrize("kind", ["linear", "full"])
def test_a_damaged_training_video_is_named(
    kind: str, small: list[Segment], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another row takes its place: on the console and in a list, not in silence."""
    damaged = Path(shutil.copy(small[0].video, tmp_path / "damaged.mp4"))
    task = small_task([replace(small[0], video=str(damaged)), *small[1:]])
    content = damaged.read_bytes()
    start = content.index(b"mdat") + 4
    damaged.write_bytes(content[:start] + bytes(len(content) - start))
    finetune(task, video_backbone(16), read_protocol(kind, BRIEF), tmp_path / "cell", tell=print)
    assert "another clip replaces draw" in (said := capfd.readouterr().err)
    assert str(damaged) in said
    lists = [path.read_text() for path in (tmp_path / "cell").rglob("quarantine.csv")]
    assert len(lists) == 1
    assert str(damaged) in lists[0]


def test_selection_does_not_know_the_test_labels(small: list[Segment], tmp_path: Path) -> None:
    swap = {"left": "right", "right": "left"}
    changed = [replace(s, label=swap[s.label]) if s.split == "test" else s for s in small]
    protocol = read_protocol("linear", [*BRIEF, "learning_rates=[1e-4, 1e-2]", "balances=[0, 1]"])
    rows = [
        finetune(small_task(rows), video_backbone(16), protocol, tmp_path / name, tell=print)
        for name, rows in (("a", small), ("b", changed))
    ]
    assert rows[0]["selected"] == rows[1]["selected"]
    assert rows[0]["metrics"]["accuracy"] == pytest.approx(1 - rows[1]["metrics"]["accuracy"])
    for name in ("weights.safetensors", "validation.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_test_split_opens_once(small: list[Segment], tmp_path: Path) -> None:
    task = small_task(small)
    with pytest.raises(DatasetError, match="opens after the selection"):
        task.open_test(tmp_path)
    (tmp_path / "selected.json").write_text('{"point": "a"}')
    assert len(task.open_test(tmp_path).rows) == 12
    task.open_test(tmp_path)  # for the same selection, as after an interruption
    (tmp_path / "selected.json").write_text('{"point": "b"}')
    with pytest.raises(DatasetError, match="for another selection; it is not opened twice"):
        task.open_test(tmp_path)
    folder = tmp_path / "cell"
    protocol = read_protocol("linear", BRIEF)
    row = finetune(task, video_backbone(16), protocol, folder, tell=print)
    (folder / "predictions.npz").unlink()
    assert finetune(task, video_backbone(16), protocol, folder, tell=print) == row, "what is done is read"
    assert not (folder / "predictions.npz").exists()
    with pytest.raises(ConfigError, match=r"of other settings \(protocol\.epochs was 2, is 3; seed was 0, is 1\)"):
        finetune(task, video_backbone(16), replace(protocol, epochs=3), folder, seed=1, tell=print)


def test_validation_that_is_the_test_split_is_refused(small: list[Segment]) -> None:
    copied = [replace(s, split="val") for s in small if s.split == "test"]
    with pytest.raises(DatasetError, match="12 of 12 test clips are validation clips too"):
        small_task([*(s for s in small if s.split != "val"), *copied])
    with pytest.raises(DatasetError, match="no rows for val"):
        small_task([s for s in small if s.split != "val"])
    left_out = small_task([*small, replace(small[0], split="", start=0.1)])
    assert left_out.left_out == 1


@pytest.mark.parametrize("kind", [pytest.param("attentive", marks=pytest.mark.slow), "full"])
def test_a_killed_cell_resumes(kind: str, small: list[Segment], tmp_path: Path) -> None:
    """SIGKILL once something is written; the same command ends as it would have ended."""
    write_table(tmp_path / "small.csv", small)
    save_encoder(tiny_conversion(), tmp_path / "tiny.safetensors")
    settings = [*BRIEF, "epochs=6", "batch=4", "train_views=6", "learning_rates=[1e-3, 1e-2]", "flip=0.5"]
    clips = ["--stride", "1", "--split", "as-is", "--device", "cpu"]

    def command(out: Path) -> list[str]:
        start = [sys.executable, "-m", "trocar.engine.cli", "finetune", str(tmp_path / "small.csv"), str(tmp_path)]
        return [*start, str(tmp_path / "tiny.safetensors"), "--out", str(out), "--protocol", kind, *clips, *settings]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command(tmp_path / "killed"), env=environment, stderr=subprocess.DEVNULL)
    pattern = "features/*/000001.npy" if kind == "attentive" else "state/*.safetensors"
    while not [*(tmp_path / "killed").glob(pattern)] and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "it was done before it was killed"
    assert not (tmp_path / "killed" / "row.json").exists()
    for out in ("killed", "whole"):
        subprocess.run(command(tmp_path / out), env=environment, check=True, capture_output=True)
    rows = [json.loads((tmp_path / out / "row.json").read_text()) for out in ("killed", "whole")]
    assert rows[0] == rows[1]
    scores = [np.load(tmp_path / out / "predictions.npz")["scores"] for out in ("killed", "whole")]
    assert np.array_equal(*scores)
    if kind == "full":
        weights = [(tmp_path / out / "weights.safetensors").read_bytes() for out in ("killed", "whole")]
        assert weights[0] == weights[1]


def test_features_resume_behind_the_last_whole_part(
    small: list[Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trocar.judge.downstream.features.CLIPS_PER_PART", {True: 7, False: 7})
    protocol = read_protocol("linear", [*BRIEF, "train_views=2", "encode_batch=2"])
    task, backbone = small_task(small), video_backbone(16)
    transfers, to_host = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(1) or to_host(tensor))

    def open_features(folder: Path) -> torch.Tensor:
        plan = ViewPlan.training_of(protocol)
        found = extract(folder, task.train, plan, backbone, protocol, averaged=False, seed=0, device=CPU)
        assert found.row_of.tolist() == [*range(24), *range(24)]
        return found.read(np.arange(48))

    whole = open_features(tmp_path / "a")
    assert len(transfers) == 7, "a part's features leave the device together, not a batch's"
    for number in (2, 3, 4, 5, 6):
        (tmp_path / "a" / f"{number:06d}.npy").unlink()
    kept = (tmp_path / "a" / "000000.npy").stat().st_mtime_ns
    assert torch.equal(open_features(tmp_path / "a"), whole)
    assert (tmp_path / "a" / "000000.npy").stat().st_mtime_ns == kept
    plan = ViewPlan.training_of(protocol)
    with pytest.raises(ConfigError, match=r"features of other settings \(another table\)"):
        extract(tmp_path / "a", task.val, plan, backbone, protocol, averaged=False, seed=0, device=CPU)


def test_attentive_head_is_vjepas() -> None:
    """Against Hugging Face's pooler and classifier of V-JEPA 2, without its layers of self-attention."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    settings = {"hidden_size": 32, "num_attention_heads": 2, "num_pooler_layers": 0, "mlp_ratio": 4.0}
    config = transformers.VJEPA2Config(**settings, attn_implementation="eager")
    torch.manual_seed(0)
    peer, head = VJEPA2AttentivePooler(config).eval(), AttentiveHead(32, 3, 2)
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer = peer.cross_attention_layer
    pairs = [
        (head.norm1, layer.layer_norm1), (head.norm2, layer.layer_norm2), (head.q, layer.cross_attn.q_proj),
        (head.k, layer.cross_attn.k_proj), (head.v, layer.cross_attn.v_proj), (head.fc1, layer.mlp.fc1),
        (head.fc2, layer.mlp.fc2),
    ]  # fmt: skip
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
    head.query.data.copy_(peer.query_tokens)
    tokens = torch.randn(4, 7, 32)
    torch.testing.assert_close(head(tokens), head.linear(peer(tokens)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="do not divide the width"):
        AttentiveHead(32, 3, 5)


def test_frame_average_does_not_know_the_order() -> None:
    average = image_backbone().model
    frames = torch.randint(0, 256, (2, FRAMES, SIDE, SIDE, 3), dtype=torch.uint8)
    torch.testing.assert_close(average(frames), average(frames.flip(1)), rtol=1e-4, atol=1e-5)
    assert average(frames).shape == (2, 17, 48)


def test_layers_learn_less_the_lower_they_are(task: Task) -> None:
    point = PROTOCOLS["full"].grid()[0]
    for backbone in (video_backbone(depth=2), image_backbone()):
        model = build_tuned(backbone, task.num_classes, point, replace(PROTOCOLS["full"], drop_path=0.0), 0)
        groups = layer_groups(model, backbone.depth, point, 0.5)
        peak = {id(p): (g["peak"] / point.learning_rate, g["weight_decay"]) for g in groups for p in g["params"]}
        named = {name: peak[id(parameter)] for name, parameter in model.named_parameters()}
        assert len(named) == len(peak)
        depth = backbone.depth
        prefix = "encoder." if depth == 2 else "encoder.image_model."
        first = "patch_embed.weight" if depth == 2 else "patch_embed.proj.weight"
        assert named[prefix + first] == (0.5 ** (depth + 1), 0.05)
        assert named[f"{prefix}blocks.{depth - 1}.mlp.fc1.weight"] == (0.5, 0.05)
        assert named[f"{prefix}norm.weight"] == (1, 0)
        assert named["head.linear.weight"] == (1, 0.05)
        if depth == 1:
            assert named[f"{prefix}pos_embed"][1] == 0


def test_losses_and_class_weights() -> None:
    truth = np.array([0, 0, 0, 1])
    torch.testing.assert_close(class_weights(truth, 3, 0.0), torch.ones(3))
    weights = class_weights(truth, 3, 1.0)
    assert weights[0] * 3 == pytest.approx(float(weights[1]))
    assert float(weights[torch.from_numpy(truth)].mean()) == pytest.approx(1)
    logits, wanted = torch.randn(4, 3), torch.from_numpy(truth)
    expected = torch.nn.functional.cross_entropy(logits, wanted, label_smoothing=0.1)
    torch.testing.assert_close(loss(logits, wanted, torch.ones(3), 0.1), expected)
    shares = torch.nn.functional.one_hot(wanted, 3).float()
    torch.testing.assert_close(loss(logits, shares, weights, 0.0), loss(logits, wanted, weights, 0.0))
    several = np.array([[True, False], [True, True], [True, False]])
    assert class_weights(several, 2, 1.0).tolist() == [1, 2]
    assert loss(torch.randn(3, 2), torch.from_numpy(several), torch.ones(2), 0.0) > 0


def test_mixing_mixes_clips_and_labels_alike() -> None:
    frames = torch.stack([torch.full((2, 16, 16, 3), value, dtype=torch.uint8) for value in (0, 200)])
    for settings in (["mixup=1"], ["cutmix=1"]):
        mixing = Mixing(read_protocol("full", settings), 2, several=False)
        torch.manual_seed(3)
        mixed, shares = mixing(frames, torch.tensor([0, 1]))
        assert mixed.dtype == torch.uint8
        torch.testing.assert_close(mixed.float().mean(dim=(1, 2, 3, 4)) / 200, shares[:, 1], atol=0.01, rtol=0)
    nothing = Mixing(PROTOCOLS["full"], 2, several=False)
    assert torch.equal(nothing(frames, torch.tensor([0, 1]))[0], frames)
    both = Mixing(read_protocol("full", ["mixup=1", "random_augment=[2, 9]", "erasing=1"]), 2, several=True)
    changed, wanted = both(
        torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8), torch.ones(3, 2, dtype=torch.bool)
    )
    assert changed.shape == (3, 2, 16, 16, 3)
    assert wanted.all()


def test_protocols_refuse_what_cannot_be() -> None:
    assert len(PROTOCOLS["attentive"].grid()) == 24
    for setting, message in [
        ("epochs=0", r"protocol\.epochs: 0 is not accepted"),
        ("heads=[attentive]", "some of .*mean.* for linear"),
        ("learning_rates=[1e-3, 1e-3]", "each once"),
        ("epoch=3", "unknown key; did you mean epochs"),
        ("flip=2", "flip probability"),
        ("epochs", "write key=value"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_protocol("linear", [setting])
    with pytest.raises(ConfigError, match="one of linear, attentive, full"):
        read_protocol("knn")


def test_segments_are_cut_into_equal_pieces() -> None:
    segment = Segment("a.mp4", 1.0, 6.0, "x", "a")
    assert [piece.seconds() for piece in pieces_of(segment, 2)] == [(1.0, 2.667), (2.667, 4.333), (4.333, 6.0)]
    assert pieces_of(segment, 5) == [segment]
    assert pieces_of(replace(segment, end=None), 2) == [replace(segment, end=None)]


def test_several_labels_of_a_row(small: list[Segment], tmp_path: Path) -> None:
    rows = [replace(s, label=("left|odd", "", "odd")[n % 3] if n % 2 else s.label) for n, s in enumerate(small)]
    task = small_task(rows)
    assert task.several
    assert task.classes == ("left", "odd", "right")
    row = finetune(task, video_backbone(16), read_protocol("linear", BRIEF), tmp_path, tell=print)
    assert row["metric"] == "mean_average_precision"
    assert {*row["metrics"]} == {"mean_average_precision", "video_mean_average_precision", "auroc"}


def test_random_encoders_by_name() -> None:
    backbone = load_backbone("random:tiny", frames=2, resolution=32)
    again, other = (load_backbone("random:tiny", frames=2, resolution=32, seed=seed) for seed in (0, 1))
    assert backbone.digest == again.digest != other.digest
    assert backbone.clips == ClipShape(2, 4, None, 32)
    assert load_backbone("random:tiny", frames=2, resolution=32, sample_fps=2.0).clips == ClipShape(2, None, 2.0, 32)
    with pytest.raises(ConfigError, match="no such encoder"):
        load_backbone("nothing.pth")


def test_cards_have_metrics_that_suit(small: list[Segment]) -> None:
    card = Card("x", "other", "x", 2, "x", 1, "f1", "x", "x", "x")
    with pytest.raises(DatasetError, match="the metric 'f1' of its card is none of"):
        Task("x", card, small)


def test_random_augment_counts_as_timm_does() -> None:
    """Magnitude 7 of 10 is 21 degrees of 30, not 7 (timm's rand-m7)."""
    change = Mixing(read_protocol("full", ["random_augment=[4, 7]"]), 2, several=False)._changes
    assert change is not None
    augment: Any = change.transforms[0]
    magnitudes, _ = augment._AUGMENTATION_SPACE["Rotate"]
    assert float(magnitudes(augment.num_magnitude_bins, 224, 224)[augment.magnitude]) == pytest.approx(0.7 * 30)
    for name in ("Rotate", "ShearX", "ShearY", "Brightness", "Color", "Contrast", "Sharpness"):
        turns = name in ("Rotate", "ShearX", "ShearY")
        (theirs,) = auto_augment.LEVEL_TO_ARG[name if turns else f"{name}Increasing"](7, {})
        steps = augment._AUGMENTATION_SPACE[name][0](augment.num_magnitude_bins, 224, 224)
        ours = float(steps[augment.magnitude])
        assert ours == pytest.approx(abs(theirs) if turns else abs(theirs - 1)), (
            name
        )  # an enhancement by 1 changes nothing
    with pytest.raises(ConfigError, match=r"a magnitude of 0 \.\. 10"):
        read_protocol("full", ["random_augment=[4, 21]"])
