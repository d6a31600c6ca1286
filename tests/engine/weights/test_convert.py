"""Weights from elsewhere: exact against the models they come from, refused with the list, opened without being run."""

from __future__ import annotations

import argparse
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from trocar.engine.cli import main
from trocar.engine.weights.convert import convert, read_encoder, save_encoder
from trocar.engine.weights.files import WeightsError, read_weights
from trocar.engine.weights.names import image_positions, inflated
from trocar.judge.downstream.backbones import load_backbone
from trocar.ssl.encoder import VideoEncoder, position_table

WIDTH, DEPTH, HEADS = 48, 2, 3
SIZE: dict[str, Any] = {"frames": 4, "resolution": 32, "heads": HEADS}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def encoder() -> VideoEncoder:
    """Random weights, none of them zero."""
    torch.manual_seed(0)
    made = VideoEncoder(WIDTH, DEPTH, HEADS, frames=4, resolution=32, patch=16)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def original(encoder: VideoEncoder, *, split_bias: bool = True) -> dict[str, torch.Tensor]:
    """As VideoMAE names it; `split_bias`: queries and values have one each, keys none. Else V-JEPA's names."""
    state = {}
    for name, value in encoder.state_dict().items():
        if name.endswith("qkv.bias") and split_bias:
            query, _, values = value.chunk(3)
            stem = name.removesuffix("qkv.bias")
            state |= {f"{stem}q_bias": query, f"{stem}v_bias": values}
        else:
            state[name.replace("patch_embed.", "patch_embed.proj.")] = value
    return state


def without_key_bias(encoder: VideoEncoder) -> VideoEncoder:
    for name, value in encoder.named_parameters():
        if name.endswith("qkv.bias"):
            value.data[WIDTH : 2 * WIDTH] = 0
    return encoder


@pytest.mark.parametrize("norm", ["norm", "fc_norm"])
@pytest.mark.parametrize("wrapped", ["encoder.", "module.encoder.", ""])
def test_original_videomae(
    encoder: VideoEncoder, frames: torch.Tensor, tmp_path: Path, wrapped: str, norm: str
) -> None:
    """Pretraining (`encoder.`) and fine-tuned (`fc_norm`, a head) checkpoints, with the settings that stand beside them."""
    state = {
        f"{wrapped}{name.replace('norm.', f'{norm}.') if name.startswith('norm.') else name}": value
        for name, value in original(encoder).items()
    }
    state |= {"head.weight": torch.ones(5, WIDTH), "decoder.blocks.0.norm1.weight": torch.ones(3)}
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0), "epoch": 3}, tmp_path / "surgrec_mae.pth")
    found = convert(tmp_path / "surgrec_mae.pth", **SIZE)
    assert (found.kind, found.layout, found.share) == ("videomae", "VideoMAE", 1.0)
    assert found.unused == ["decoder.blocks.0.norm1.weight", "head.weight"]
    save_encoder(found, tmp_path / "ours.safetensors")
    wanted = without_key_bias(encoder)
    wanted.last_norm = "mean" if norm == "fc_norm" else "tokens"
    read = read_encoder(tmp_path / "ours.safetensors")
    torch.testing.assert_close(read(frames), wanted(frames))
    torch.testing.assert_close(read.pooled(frames), wanted.pooled(frames))


def test_original_vjepa_1(frames: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = VideoEncoder(WIDTH, DEPTH, HEADS, frames=4, resolution=32, positions="axes")
    table = position_table("axes", encoder.grid, WIDTH)[None]
    state = {f"module.backbone.{k}": v for k, v in original(encoder, split_bias=False).items()}
    state["module.backbone.pos_embed"] = table
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"encoder": state, "predictor": {"module.backbone.x": table}, "opt": {}}, tmp_path / "surgrec_jepa.pt")
    found = convert(tmp_path / "surgrec_jepa.pt", **SIZE, kind="vjepa1")
    assert (found.layout, found.share, found.settings.positions) == ("V-JEPA 1", 1.0, "axes")
    save_encoder(found, tmp_path / "ours.safetensors")
    torch.testing.assert_close(read_encoder(tmp_path / "ours.safetensors")(frames), encoder(frames))
    with pytest.raises(WeightsError, match="its table of positions is 'axes', not 'flat'"):
        convert(tmp_path / "surgrec_jepa.pt", **SIZE, positions="flat")
    # V-JEPA is evaluated by its target encoder, unless told otherwise.
    torch.save({"encoder": other, "target_encoder": state}, tmp_path / "both.pt")
    assert convert(tmp_path / "both.pt", **SIZE, kind="vjepa1").tensors["norm.weight"].all()
    with pytest.raises(WeightsError, match="its table of positions is learned"):
        convert(tmp_path / "both.pt", **SIZE, part="encoder", kind="vjepa1")
    with pytest.raises(WeightsError, match="has no dictionary 'teacher'; its keys are encoder, target_encoder"):
        convert(tmp_path / "both.pt", **SIZE, part="teacher")


def test_a_backbone_says_all_that_it_was_loaded_by(tmp_path: Path) -> None:
    """What a fine-tuned cell leaves for `trocar predict` finds the same weights again, the other encoder of a file too."""
    states = {}
    for seed, part in enumerate(("encoder", "target_encoder")):
        torch.manual_seed(seed)
        encoder = VideoEncoder(192, 1, 3, frames=4, resolution=32, positions="axes")
        state = original(encoder, split_bias=False) | {"pos_embed": position_table("axes", encoder.grid, 192)[None]}
        states[part] = {f"module.backbone.{name}": value for name, value in state.items()}
    torch.save(states, tmp_path / "both.pt")
    size: dict[str, Any] = {"frames": 4, "resolution": 32}
    chosen, usual = (
        load_backbone(str(tmp_path / "both.pt"), **size, kind="vjepa1", part=part) for part in ("encoder", None)
    )
    assert chosen.digest != usual.digest
    assert load_backbone(chosen.name, **size, **chosen.options).digest == chosen.digest
    of_clips = {"name", "frames", "resolution", "stride", "sample_fps"}
    assert set(chosen.options) == set(inspect.signature(load_backbone).parameters) - of_clips


def test_image_weights_see_a_still_clip_as_the_image(tmp_path: Path) -> None:
    """Blocks, layer scales and positions of a timm ViT: one block's input and output agree on a clip that stands still."""
    torch.manual_seed(0)
    peer = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, embed_dim=WIDTH, depth=1, num_heads=HEADS, init_values=0.5,
        num_classes=0,
        class_token=False, global_pool="avg", fc_norm=False,
    ).eval()  # fmt: skip
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.2)
    torch.save(peer.state_dict(), tmp_path / "w.pth")
    found = convert(tmp_path / "w.pth", frames=2, resolution=32, heads=HEADS)
    assert (found.kind, found.share, found.unused) == ("image", 1.0, [])
    save_encoder(found, tmp_path / "ours.safetensors")
    image = torch.randint(0, 256, (1, 1, 32, 32, 3), dtype=torch.uint8)
    assert isinstance(peer, VisionTransformer)
    with torch.no_grad():
        wanted = peer.forward_features(((image[:, 0].float() / 255 - MEAN) / STD).permute(0, 3, 1, 2))
        tokens = read_encoder(tmp_path / "ours.safetensors")(image.expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(tokens, wanted, atol=2e-5, rtol=1e-4)


def test_another_architecture_is_not_taken_for_ours(encoder: VideoEncoder, tmp_path: Path) -> None:
    """Each encoder tensor is there, but the blocks do more than ours; image weights without a table are refused as well."""
    more = {f"blocks.{number}.attn.relative_position_bias": torch.ones(3) for number in range(DEPTH)}
    torch.save({**original(encoder), **more}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"93\.3% .*(\n.*)+stray:   blocks\.0\.attn\.relative_position_bias"):
        convert(tmp_path / "w.pth", **SIZE)
    state = original(encoder, split_bias=False)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="image weights without a table of positions"):
        convert(tmp_path / "w.pth", **SIZE)


@pytest.mark.parametrize("name", ["blocks.1.ls1.gamma", "blocks.1.gamma_1", "blocks.1.layer_scale1.lambda1"])
def test_layer_scales_are_multiplied_in(encoder: VideoEncoder, tmp_path: Path, name: str) -> None:
    torch.save({**original(encoder), name: torch.full((WIDTH,), 3.0)}, tmp_path / "w.pth")
    found, block = convert(tmp_path / "w.pth", **SIZE), encoder.state_dict()
    assert (found.share, found.unused) == (1.0, [])
    for kind in ("weight", "bias"):
        proj = f"blocks.1.attn.proj.{kind}"
        torch.testing.assert_close(found.tensors[proj], 3 * block[proj])
    torch.testing.assert_close(found.tensors["blocks.0.attn.proj.bias"], block["blocks.0.attn.proj.bias"])


def test_inflation_and_positions_of_images() -> None:
    weight = torch.randn(4, 3, 2, 2)
    assert torch.equal(inflated(weight).sum(dim=2), weight)
    table = torch.arange(2 + 9).float()[None, :, None].expand(1, -1, 5)
    same = image_positions(table, 2, (2, 3, 3))
    assert torch.equal(same[:, 0], torch.arange(2, 11).float().repeat(2))
    assert image_positions(table, 2, (1, 6, 6)).shape == (36, 5)
    with pytest.raises(ValueError, match="no square image"):
        image_positions(table, 1, (1, 3, 3))


def test_renamed_keys_are_refused_with_the_list(encoder: VideoEncoder, tmp_path: Path) -> None:
    state = original(encoder)
    renamed = list(state)[::10]
    torch.save(
        {f"{name}x" if name in renamed and "patch" not in name else name: value for name, value in state.items()},
        tmp_path / "w.pth",
    )
    with pytest.raises(WeightsError) as caught:
        convert(tmp_path / "w.pth", **SIZE)
    message = str(caught.value)
    assert "of the encoder's tensors match, 100.0% are asked for" in message
    lost = [name for name in renamed if "patch" not in name]
    assert len(lost) >= 2
    for name in lost:
        assert f"{name}x" in message
    found = convert(tmp_path / "w.pth", **SIZE, minimum=0.5)
    assert 0.5 < found.share < 0.99
    assert len(found.missing) >= len(lost) - 1
    save_encoder(found, tmp_path / "ours.safetensors")
    read_encoder(tmp_path / "ours.safetensors")


class Command:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("plain", [False, True])
def test_malicious_pickle_does_nothing_but_fail(tmp_path: Path, plain: bool) -> None:
    witness, path = tmp_path / "witness", tmp_path / "w.pth"
    tree = {"model": {"patch_embed.proj.weight": torch.ones(2)}, "args": Command(witness)}
    if plain:
        path.write_bytes(pickle.dumps(tree, protocol=2))
    else:
        torch.save(tree, path)
    with pytest.raises(WeightsError, match="not tensors that can be read without running the file"):
        convert(path)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Command(witness)))  # noqa: S301
    assert witness.exists()


def test_what_is_no_encoder_is_refused(encoder: VideoEncoder, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for tree, message in [
        ([1], "holds list, not a dictionary"),
        ({"epoch": 3}, "no tensors in it; its keys are epoch"),
        ({"conv1.weight": torch.ones(2)}, "no patch embedding among its 1 tensors"),
        ({"patch_embed.proj.weight": torch.ones(WIDTH, 3, 2, 16, 16)}, "no transformer block"),
    ]:
        torch.save(tree, path)
        with pytest.raises(WeightsError, match=message):
            convert(path, **SIZE)
    torch.save(original(encoder), path)
    with pytest.raises(WeightsError, match="heads does not follow from the width 48; give --heads"):
        convert(path, frames=4, resolution=32)
    with pytest.raises(WeightsError, match="5 frames at 32 px are not divisible"):
        convert(path, frames=5, resolution=32, heads=HEADS)
    torch.save({**original(encoder), "norm.weight": torch.ones(7)}, path)
    with pytest.raises(WeightsError, match=r"shapes differ: norm\.weight is \(7,\), not \(48,\)"):
        convert(path, **SIZE)
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not tensors"):
        read_weights(path)
    with pytest.raises(WeightsError, match="make one with trocar convert"):
        read_encoder(path)


def test_command(encoder: VideoEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": original(encoder)}, tmp_path / "w.pth")
    sizes = ["--frames", "4", "--resolution", "32", "--heads", "3"]
    assert main(["convert", str(tmp_path / "w.pth"), "--out", str(tmp_path / "ours.safetensors"), *sizes]) == 0
    assert "VideoMAE: 28 of 28 tensors matched (100.0%)" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "nothing.pth"), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "nothing.pth: no such encoder" in capsys.readouterr().err
