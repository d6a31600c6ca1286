"""Weights of Hugging Face's models, converted: the same features, and nothing but the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEModel, VJEPA2Config, VJEPA2Model

from trocar.engine.weights.convert import convert, read_encoder, save_encoder
from trocar.ssl.choices import Positions

WIDTH, DEPTH, HEADS = 48, 2, 3
SIZE: dict[str, Any] = {"frames": 4, "resolution": 32, "heads": HEADS}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def test_videomae_of_hugging_face_gives_its_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
    }
    shape = {"image_size": 32, "num_frames": 4, "layer_norm_eps": 1e-6, "use_mean_pooling": False}
    peer = VideoMAEModel(VideoMAEConfig(**sizes, **shape)).eval()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_file(
        {f"videomae.{name}": value.contiguous() for name, value in peer.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    found = convert(tmp_path / "w.safetensors", **SIZE)
    assert (found.layout, found.share, found.missing) == ("VideoMAE (Hugging Face)", 1.0, [])
    save_encoder(found, tmp_path / "ours.safetensors")
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    pixels = ((frames.float() / 255 - MEAN) / STD).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        wanted = peer(pixels).last_hidden_state
        torch.testing.assert_close(read_encoder(tmp_path / "ours.safetensors")(frames), wanted, atol=2e-4, rtol=1e-4)


def test_decoder_of_a_pretraining_model_is_left_out(tmp_path: Path) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 4 * WIDTH}
    decoder = {
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 3,
        "use_mean_pooling": False,
    }
    peer = VideoMAEForPreTraining(VideoMAEConfig(image_size=32, num_frames=4, **sizes, **decoder))
    torch.save(peer.state_dict(), tmp_path / "w.pth")
    found = convert(tmp_path / "w.pth", **SIZE)
    assert found.share == 1.0
    assert found.unused == sorted(name for name in peer.state_dict() if not name.startswith("videomae."))


@pytest.mark.skipif("rope" not in get_args(Positions), reason="the encoder has no rotary positions yet")
@pytest.mark.parametrize("original", [False, True])
def test_vjepa_2_gives_its_features(tmp_path: Path, original: bool) -> None:
    """Hugging Face's file, and the same weights under the original names."""
    torch.manual_seed(0)
    predictor: dict[str, Any] = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    peer = VJEPA2Model(VJEPA2Config(patch_size=16, crop_size=32, frames_per_clip=4, **sizes, **predictor)).eval()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = peer.state_dict()
    if original:
        ours = convert_state(tmp_path, state)
        names = {name: name.replace("patch_embed.", "patch_embed.proj.") for name in ours}
        state = {f"module.backbone.{names[name]}": value for name, value in ours.items()}
        torch.save({"encoder": state, "predictor": {}}, tmp_path / "w.pt")
        found = convert(tmp_path / "w.pt", **SIZE)
        assert found.layout == "V-JEPA 2"
    else:
        torch.save(state, tmp_path / "w.pt")
        found = convert(tmp_path / "w.pt", **SIZE)
        assert found.layout == "V-JEPA 2 (Hugging Face)"
        assert found.unused == sorted(name for name in state if name.startswith("predictor."))
    assert (found.share, found.settings.positions) == (1.0, "rope")
    save_encoder(found, tmp_path / "ours.safetensors")
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    pixels = ((frames.float() / 255 - MEAN) / STD).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        wanted = peer(pixels, skip_predictor=True).last_hidden_state
        torch.testing.assert_close(read_encoder(tmp_path / "ours.safetensors")(frames), wanted, atol=2e-4, rtol=1e-4)


def convert_state(tmp_path: Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.save(state, tmp_path / "state.pt")
    return convert(tmp_path / "state.pt", **SIZE).tensors
