"""Encoders from wherever they are: runs, exports, converted and published files, image models; refused with what did not match."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from clips import write_numbered
from safetensors.torch import save_file
from torch import nn

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.cli import main
from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.pretrain import PretrainResult, pretrain
from trocar.engine.weights.convert import convert, save_encoder
from trocar.engine.weights.encoder_sources import ClipShape
from trocar.engine.weights.export import export_weights
from trocar.engine.weights.files import WeightsError
from trocar.engine.weights.run_encoder import load_run_encoder
from trocar.judge.downstream.backbones import FrameAverage, load_backbone
from trocar.loaders.corpus.index import index_corpus
from trocar.ssl.encoder import VideoEncoder
from trocar.ssl.jepa import JointEmbedding

WIDTH, DEPTH, HEADS = 192, 1, 3
TINY = [
    "data.frames=4", "data.stride=2", "data.resolution=32", "model.depth=1", "model.decoder_width=32", "model.decoder_heads=2",
    "model.decoder_depth=1", "optim.batch=2", "optim.steps=2", "run.threads=1", "run.tensorboard=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    folder = tmp_path_factory.mktemp("backbones")
    write_numbered(folder / "a.mp4", 40, gop=12)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    settings = [*TINY, f"data.corpus={folder / 'corpus'}", f"run.dir={folder / 'run'}"]
    return pretrain(load_config("demo_cpu", settings), progress=False)


def original_videomae(path: Path) -> VideoEncoder:
    """A file as VideoMAE's authors write them; the encoder in it."""
    torch.manual_seed(1)
    encoder = VideoEncoder(WIDTH, DEPTH, HEADS, frames=4, resolution=32)
    state = {}
    for name, value in encoder.state_dict().items():
        if name.endswith("qkv.bias"):
            query, _, values = value.chunk(3)
            stem = name.removesuffix("qkv.bias")
            state |= {f"encoder.{stem}q_bias": query, f"encoder.{stem}v_bias": values}
        else:
            state[f"encoder.{name.replace('patch_embed.', 'patch_embed.proj.')}"] = value
    torch.save({"model": state}, path)
    return encoder


def test_runs_exports_and_files(run: PretrainResult, tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    expected = load_run_encoder(run.run_dir)[0](frames)
    exported = export_weights(run.run_dir, tmp_path / "encoder.safetensors")
    whole = export_weights(run.run_dir, tmp_path / "whole.safetensors", whole=True)
    for source in (run.run_dir, run.checkpoint, exported, whole):
        found = load_backbone(str(source))
        torch.testing.assert_close(found.model(frames), expected)
        assert (found.width, found.depth, found.clips) == (192, 1, ClipShape(4, 2, None, 32))
    random = load_backbone(f"random:{run.run_dir}")
    assert random.digest != found.digest
    assert not any(parameter.requires_grad for parameter in random.model.parameters())
    encoder = original_videomae(tmp_path / "videomae.pth")
    size: dict[str, Any] = {"frames": 4, "resolution": 32}
    found = load_backbone(str(tmp_path / "videomae.pth"), **size)
    torch.testing.assert_close(found.model(frames), encoder(frames))
    assert "100.0%" in found.account
    (tmp_path / "folder").mkdir()
    save_file(
        torch.load(tmp_path / "videomae.pth", weights_only=True)["model"], tmp_path / "folder" / "model.safetensors"
    )
    torch.testing.assert_close(load_backbone(str(tmp_path / "folder"), **size).model(frames), encoder(frames))
    converted = convert(tmp_path / "videomae.pth", **size)
    save_encoder(converted, tmp_path / "hub" / "model.safetensors")
    torch.testing.assert_close(
        load_backbone(str(tmp_path / "hub" / "model.safetensors")).model(frames), encoder(frames)
    )


def test_a_tenth_of_the_names_changed_is_refused_with_the_list(tmp_path: Path) -> None:
    original_videomae(tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    names = [name for name in state if ".blocks." in name]
    changed = names[:: len(names) // max(len(state) // 10, 1)][: max(len(state) // 10, 1)]
    torch.save({"model": {f"{n}_old" if n in changed else n: v for n, v in state.items()}}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="are asked for") as caught:
        load_backbone(str(tmp_path / "b.pth"), frames=4, resolution=32)
    assert all(f"{name}_old" in str(caught.value) for name in changed)
    size: dict[str, Any] = {"img_size": 32, "patch_size": 16}
    torch.save(timm.create_model("test_vit", num_classes=0, **size).state_dict(), tmp_path / "vit.pth")
    state = torch.load(tmp_path / "vit.pth", weights_only=True)
    changed = [name for name in state if "blocks" in name][: len(state) // 10]
    torch.save({f"{n}_old" if n in changed else n: v for n, v in state.items()}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"tensors matched .* are asked for") as caught:
        load_backbone(f"timm:test_vit@{tmp_path / 'other.pth'}", resolution=32)
    assert all(
        f"missing: {name}" in str(caught.value) and f"stray:   {name}_old" in str(caught.value) for name in changed
    )


def test_a_malicious_pickle_does_nothing_but_fail(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Command:
        def __reduce__(self) -> tuple:
            return Path.touch, (witness,)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Command()}, protocol=2))
    for source in (f"{tmp_path / 'evil.pth'}", f"timm:test_vit@{tmp_path / 'evil.pth'}"):
        with pytest.raises(WeightsError, match="without running the file"):
            load_backbone(source)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_image_models_are_averaged_over_frames(name: str, tmp_path: Path) -> None:
    """A ViT with a table of positions, and DINOv3's with rotary ones: tokens of a clip are the mean of its images' tokens."""
    torch.manual_seed(0)
    peer = timm.create_model(name, pretrained=False, num_classes=0, img_size=64).eval()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save({"model": peer.state_dict()}, tmp_path / "w.pth")
    found = load_backbone(f"timm:{name}@{tmp_path / 'w.pth'}", frames=2, resolution=64)
    assert isinstance(found.model, FrameAverage)
    assert "100.0%" in found.account
    assert found.clips == ClipShape(2, 4, None, 64)
    frames = torch.randint(0, 256, (1, 2, 64, 64, 3), dtype=torch.uint8)
    images = frames[0].permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        tokens = peer.forward_features((images - found.model.mean) / found.model.deviation)  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(found.model(frames)[0], tokens.mean(dim=0))
    assert found.depth == len(peer.blocks)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="cannot be made"):
        load_backbone("timm:no_such_model@x")


def test_pretraining_goes_on_from_weights(
    run: PretrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """model.init: the first step begins with them; a run that resumes keeps its own; another size is refused with the lists."""
    original_videomae(tmp_path / "videomae.pth")
    corpus = json.dumps(str(run.run_dir.parent / "corpus"))
    common = ["pretrain", "demo_cpu", *TINY, f"data.corpus={corpus}", "run.device=cpu", "model.positions=flat"]
    init = [*common, f"model.init={tmp_path / 'videomae.pth'}", f"run.dir={tmp_path / 'a'}"]
    assert main([*init, "optim.steps=1", "optim.base_learning_rate=1e-12"]) == 0
    assert "model.init: VideoMAE: " in capsys.readouterr().err
    assert "100.0%" in json.loads((tmp_path / "a" / "init.json").read_text())["account"]
    kept = load_checkpoint(tmp_path / "a" / "checkpoints" / "step_00000001").model
    encoder = convert(tmp_path / "videomae.pth", frames=4, resolution=32).tensors
    for name, value in encoder.items():
        torch.testing.assert_close(kept[f"encoder.{name}"], value, rtol=0, atol=1e-6)
    (tmp_path / "videomae.pth").rename(tmp_path / "moved.pth")
    assert main([*init, "optim.steps=2", "run.allow_changes=true"]) == 0
    refused = [*common, f"model.init={tmp_path / 'moved.pth'}", f"run.dir={tmp_path / 'b'}"]
    assert main([*refused, "model.depth=2"]) == 1
    said = capsys.readouterr().err
    assert "are asked for. Give model.encoder" in said
    assert "missing: blocks.1.norm1.weight" in said
    assert main([*refused, "model.positions=axes"]) == 1
    assert "set model.positions=flat" in capsys.readouterr().err
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_a_jepas_target_begins_with_them_too(run: PretrainResult, tmp_path: Path) -> None:
    from trocar.engine.step.build import build_model
    from trocar.engine.weights.initial import initialize_encoder

    tiny = [text for text in TINY if not text.startswith("model.decoder")]
    more = [
        "model.predictor_width=24",
        "model.predictor_heads=2",
        "model.predictor_depth=1",
        "model.width=192",
        "model.heads=3",
    ]
    settings = [
        *tiny,
        *more,
        "model.positions=axes",
        f"model.init={run.run_dir}",
        f"run.dir={tmp_path}",
        "model.patch=16",
    ]
    config = load_config("demo_jepa_cpu", settings)
    objective = build_model(config)[0]
    assert "100.0%" in initialize_encoder(config, objective)
    expected = load_run_encoder(run.run_dir)[0].state_dict()
    assert isinstance(objective, JointEmbedding)
    for part in (objective.encoder, objective.target_encoder):
        for name, value in part.state_dict().items():
            assert torch.equal(value, expected[name]), name
