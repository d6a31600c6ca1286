"""Every public layout of weights, read by everything that reads weights: the features of whoever wrote them, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from public_weights import FRAMES, HEADS, KEPT, RECORD, RESOLUTION, clip, drawn, pixels, tokens
from safetensors.torch import save_file
from torch import nn
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from trocar.engine.cli import main
from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.step.build import build_model
from trocar.engine.weights.convert import conversion_encoder, convert, read_encoder
from trocar.engine.weights.encoder_sources import find_encoder
from trocar.engine.weights.files import WeightsError
from trocar.engine.weights.initial import initialize_encoder
from trocar.engine.weights.kinds import fixed_table
from trocar.engine.weights.names import image_positions, rename
from trocar.judge.downstream.backbones import load_backbone, pooled_as
from trocar.judge.downstream.heads import AttentiveHead
from trocar.judge.downstream.protocol import PROTOCOLS, read_protocol
from trocar.ssl.encoder import VideoEncoder, position_table

RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
SIZE: dict[str, Any] = {"frames": FRAMES, "resolution": RESOLUTION, "heads": HEADS}
TINY = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": HEADS}
GRID = (FRAMES // 2, RESOLUTION // 16, RESOLUTION // 16)


def state(case: str, prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in drawn(RECORDED[case]["shapes"]).items()}


def table(kind: Any = "axes", grid: tuple[int, int, int] = GRID, width: int = 192) -> torch.Tensor:
    return position_table(kind, grid, width)[None]


def learned(grid: tuple[int, int, int] = GRID) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1, int(np.prod(grid)), 192)).astype(np.float32))


def assert_is(encoder: VideoEncoder, case: str) -> None:
    """The features that the public code gave."""
    with torch.no_grad():
        pooled = encoder.eval().pooled(clip())[0, :KEPT]
        token = encoder(clip())[0, 5, :KEPT]
    torch.testing.assert_close(pooled, torch.tensor(RECORDED[case]["mean"]), atol=2e-5, rtol=2e-5)
    if "token" in RECORDED[case]:
        torch.testing.assert_close(token, torch.tensor(RECORDED[case]["token"]), atol=2e-5, rtol=2e-5)


JEPA = "module.backbone."
TEN_TOKENS = {f"{JEPA}mask_tokens.{number}": torch.zeros(1, 1, 8) for number in range(10)}
TWO_TOKENS = {f"{JEPA}mask_tokens.{number}": torch.zeros(1, 1, 8) for number in range(2)}
HUB_TABLE = {f"{JEPA}pos_embed": table()}

# name: (case, the file's tree, what has to be said; None: nothing)
RIGHT: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "videomae": ("videomae_pretraining", lambda: {"model": state("videomae_pretraining", "encoder.")}, {}),
    "videomae in a module": ("videomae_pretraining", lambda: {"module": state("videomae_pretraining", "encoder.")}, {}),
    "videomae fine-tuned": ("videomae_fine_tuned", lambda: {"model": state("videomae_fine_tuned")}, {}),
    "videomae with its table": (
        "videomae_pretraining",
        lambda: {"model": state("videomae_pretraining", "encoder.") | {"encoder.pos_embed": table("flat")}},
        {},
    ),
    "vjepa 1": ("vjepa1", lambda: {"target_encoder": state("vjepa1", JEPA) | HUB_TABLE}, {"kind": "vjepa1"}),
    "vjepa 1 by positions": (
        "vjepa1",
        lambda: {"encoder": state("vjepa1", JEPA) | HUB_TABLE},
        {"positions": "axes"},
    ),
    "vjepa 2": ("vjepa2", lambda: {"target_encoder": state("vjepa2", JEPA), "predictor": TEN_TOKENS}, {}),
    "vjepa 2 alone": ("vjepa2", lambda: state("vjepa2"), {}),
    "vjepa 2 of the hub": (
        "vjepa2",
        lambda: {"encoder": state("vjepa2", JEPA) | HUB_TABLE, "predictor": TEN_TOKENS},
        {},
    ),
    "vjepa 2 of the hub, alone": (
        "vjepa2",
        lambda: {"encoder": state("vjepa2", JEPA) | HUB_TABLE},
        {"kind": "vjepa2"},
    ),
    "vjepa 2 with another table": (
        "vjepa2",
        lambda: {"encoder": state("vjepa2", JEPA) | {f"{JEPA}pos_embed": table(grid=(8, 14, 14))}},
        {"positions": "rope"},
    ),
    "vjepa 2 giant's mlp": ("vjepa2_giant_mlp", lambda: state("vjepa2_giant_mlp", JEPA), {}),
}

# name: (the file's tree, what the refusal says)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a table that either may have": (
        lambda: {"encoder": state("vjepa2", JEPA) | HUB_TABLE},
        "32 positions of an encoder .width 192, 2 blocks. that neither V-JEPA was published in.*--kind vjepa1 or vjepa2",
    ),
    "two mask tokens tell nothing": (
        lambda: {"encoder": state("vjepa1", JEPA) | HUB_TABLE, "predictor": TWO_TOKENS},
        "--kind vjepa1 or vjepa2",
    ),
    "vjepa 2.1": (
        lambda: {
            "encoder": {name: value for name, value in state("vjepa2", JEPA).items() if ".norm." not in name}
            | {f"{JEPA}norms_block.0.weight": torch.ones(192), f"{JEPA}video_mod_embed": torch.ones(1, 1, 192)}
        },
        r"V-JEPA 2\.1's encoder .* is not supported",
    ),
    "a learned table": (
        lambda: state("videomae_pretraining") | {"pos_embed": learned()},
        "its table of positions is learned, .* not 'flat'",
    ),
    "a learned table of another grid": (
        lambda: state("videomae_pretraining") | {"pos_embed": learned((8, 14, 14))},
        "its table of positions is learned",
    ),
    "another thing at the top": (
        lambda: state("videomae_pretraining") | {"temporal_embed": torch.ones(1, 2, 192)},
        "stray:   temporal_embed",
    ),
    "no last norm": (
        lambda: {name: value for name, value in state("vjepa2").items() if not name.startswith("norm.")},
        "missing: norm.weight",
    ),
    "ours without its settings": (
        lambda: {name.replace("patch_embed.proj", "patch_embed"): value for name, value in state("vjepa2").items()},
        "the names of Trocar's own encoder .* without the settings",
    ),
}


def read(path: Path, reader: str, told: dict[str, Any]) -> VideoEncoder:
    """What a reader of weights makes of a file."""
    if reader == "convert":
        return conversion_encoder(convert(path, **SIZE, **told))
    if reader == "command":
        options = [text for name, value in {**SIZE, **told}.items() for text in (f"--{name}", str(value))]
        out = path.with_name("converted.safetensors")
        out.unlink(missing_ok=True)
        assert main(["convert", str(path), "--out", str(out), *options]) == 0
        return read_encoder(out)
    clips = {"frames": FRAMES, "resolution": RESOLUTION}
    if reader == "find_encoder":
        return find_encoder(path, **clips, **told).encoder
    if reader == "load_backbone":
        model = load_backbone(str(path), **clips, **told).model
        assert isinstance(model, VideoEncoder)
        return model
    position_kind = find_encoder(path, **clips, **told).encoder.position_kind
    settings = {
        "data.corpus": "x", "data.frames": FRAMES, "data.resolution": RESOLUTION, "model.patch": 16,
        "model.width": 192, "model.depth": 2, "model.heads": HEADS,
        "model.positions": position_kind, "model.decoder_width": 32, "model.decoder_heads": 2, "model.decoder_depth": 1,
        "model.predictor_width": 24, "model.predictor_heads": 2, "model.predictor_depth": 1, "model.init": path,
        **{f"model.init_{name}": value for name, value in told.items()},
    }  # fmt: skip
    # The MAE's decoder has no rotary positions.
    name = "demo_jepa_cpu" if position_kind == "rope" else "demo_cpu"
    config = load_config(name, [f"{name}={value}" for name, value in settings.items()])
    objective = build_model(config)[0]
    initialize_encoder(config, objective)
    return objective.encoder


READERS = ("convert", "command", "find_encoder", "load_backbone", "model.init")


def matrix(names: Iterable[str]) -> list[Any]:
    """Every name by every reader; other readers than convert, which goes through them all, have one in three in `make test`."""
    cells = [(name, reader) for name in names for reader in READERS]
    is_slow = [reader != "convert" and number % 3 != 0 for number, (_, reader) in enumerate(cells)]
    return [
        pytest.param(*cell, marks=pytest.mark.slow if slow else ()) for cell, slow in zip(cells, is_slow, strict=True)
    ]


@pytest.mark.parametrize(("name", "reader"), matrix(RIGHT))
def test_features_are_those_of_the_public_code(tmp_path: Path, name: str, reader: str) -> None:
    case, tree, told = RIGHT[name]
    torch.save(tree(), tmp_path / "w.pth")
    if reader == "model.init" and case in ("videomae_fine_tuned", "vjepa2_giant_mlp"):
        return  # no encoder of a run has such a norm or MLP: test_model_init_of_a_fine_tuned_model
    assert_is(read(tmp_path / "w.pth", reader, told), case)


@pytest.mark.parametrize(("name", "reader"), matrix(REFUSED))
def test_what_stays_open_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reader: str) -> None:
    tree, message = REFUSED[name]
    torch.save(tree(), tmp_path / "w.pth")
    if reader == "command":
        with pytest.raises(AssertionError):
            read(tmp_path / "w.pth", reader, {})
        assert str(tmp_path / "w.pth") in capsys.readouterr().err
    else:
        with pytest.raises(WeightsError, match=f"(?s){message}"):
            read(tmp_path / "w.pth", reader, {})


def test_model_init_of_a_fine_tuned_model(tmp_path: Path) -> None:
    """Its blocks are taken, its norm of the mean is not made one of tokens; an MLP that no run has is refused."""
    torch.save(RIGHT["videomae fine-tuned"][1](), tmp_path / "w.pth")
    encoder = read(tmp_path / "w.pth", "model.init", {})
    given = state("videomae_fine_tuned")
    assert torch.equal(encoder.norm.weight, torch.ones(192))
    assert torch.equal(encoder.get_parameter("blocks.1.mlp.fc1.weight"), given["blocks.1.mlp.fc1.weight"])
    torch.save(RIGHT["vjepa 2 giant's mlp"][1](), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"stray:   blocks\.0\.mlp\.fc1\.weight"):
        read(tmp_path / "w.pth", "model.init", {})


def hugging_face(model: nn.Module) -> Any:
    """With drawn weights: norms too, so that none is as good as another."""
    model.load_state_dict(drawn({name: value.shape for name, value in model.state_dict().items()}))
    return model.eval()


@pytest.mark.parametrize("pooled", [False, True])
def test_videomae_for_classification_of_hugging_face(tmp_path: Path, pooled: bool) -> None:
    """With mean pooling its model has no last norm, and its classifier's stands behind the mean."""
    shape = {"image_size": RESOLUTION, "num_frames": FRAMES, "layer_norm_eps": 1e-6, "use_mean_pooling": pooled}
    peer = hugging_face(VideoMAEForVideoClassification(VideoMAEConfig(**TINY, intermediate_size=768, **shape)))
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    found = find_encoder(tmp_path, frames=FRAMES, resolution=RESOLUTION).encoder
    with torch.no_grad():
        tokens = peer.videomae(pixels().transpose(1, 2)).last_hidden_state
        wanted = peer.fc_norm(tokens.mean(dim=1)) if pooled else tokens.mean(dim=1)
        torch.testing.assert_close(found(clip()), tokens, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.pooled(clip()), wanted, atol=1e-4, rtol=1e-4)


def test_videomae_without_a_last_norm_says_so(tmp_path: Path) -> None:
    """A bare model with mean pooling: pretraining of Hugging Face's has neither norm."""
    names = {
        name: value for name, value in state("videomae_fine_tuned").items() if not name.startswith(("fc_norm", "head"))
    }
    torch.save(names, tmp_path / "w.pth")
    found = convert(tmp_path / "w.pth", **SIZE)
    assert (found.share, found.settings.last_norm) == (1.0, "mean")
    assert "the file has no last norm (mean pooling)" in "\n".join(found.lines())


def test_vjepa_2_for_classification_of_hugging_face(tmp_path: Path) -> None:
    predictor: dict[str, Any] = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    shape: dict[str, Any] = {"patch_size": 16, "crop_size": RESOLUTION, "frames_per_clip": FRAMES, "mlp_ratio": 48 / 11}
    peer = hugging_face(VJEPA2ForVideoClassification(VJEPA2Config(**TINY, **shape, **predictor)))
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    found = convert(tmp_path / "model.safetensors", **SIZE)
    assert (found.kind, found.share, found.stray) == ("vjepa2", 1.0, [])
    with torch.no_grad():
        wanted = peer.vjepa2(pixels().transpose(1, 2), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(conversion_encoder(found)(clip()), wanted, atol=1e-4, rtol=1e-4)


def published(width: int, depth: int, grid: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """Names and shapes that tell, of an encoder of that size; most tensors are left out."""
    blocks = {f"blocks.{number}.attn.qkv.bias": torch.zeros(1) for number in range(depth)}
    return {
        "patch_embed.proj.weight": torch.zeros(width, 3, 2, 1, 1),
        "pos_embed": table("axes", grid, width),
        **blocks,
    }


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("vjepa1", (1024, 24, (8, 14, 14))),
        ("vjepa1", (1280, 32, (8, 14, 14))),
        ("vjepa1", (1280, 32, (8, 24, 24))),
        ("vjepa2", (1024, 24, (8, 16, 16))),
        ("vjepa2", (1280, 32, (32, 16, 16))),
        ("vjepa2", (1408, 40, (32, 24, 24))),
    ],
)
def test_published_sizes_tell(kind: str, size: tuple[int, int, tuple[int, int, int]]) -> None:
    assert rename(published(*size)).kind == kind


def test_a_size_of_neither_tells_nothing() -> None:
    with pytest.raises(ValueError, match="--kind vjepa1 or vjepa2"):
        rename(published(1024, 12, (8, 14, 14)))


def test_fixed_tables_are_known_over_any_grid() -> None:
    assert fixed_table(table("axes", (4, 6, 6))) == "axes"
    assert fixed_table(table("flat", (4, 6, 6))) == "flat"
    assert fixed_table(learned((4, 6, 6))) is None
    assert fixed_table(table("axes", (4, 6, 6)) + 1e-3) is None


def test_giants_heads_follow_from_the_family(tmp_path: Path) -> None:
    """Both are 1,408 wide, with MLPs of 6,144; a depth of one is enough to tell."""
    shapes = {
        "patch_embed.proj.weight": (1408, 3, 2, 2, 2), "patch_embed.proj.bias": (1408,), "norm.weight": (1408,),
        "norm.bias": (1408,), "blocks.0.mlp.fc1.weight": (6144, 1408), "blocks.0.mlp.fc1.bias": (6144,),
        "blocks.0.mlp.fc2.weight": (1408, 6144), "blocks.0.mlp.fc2.bias": (1408,), "blocks.0.attn.qkv.weight": (4224, 1408),
        "blocks.0.attn.proj.weight": (1408, 1408), "blocks.0.attn.proj.bias": (1408,), "blocks.0.norm1.weight": (1408,),
        "blocks.0.norm1.bias": (1408,), "blocks.0.norm2.weight": (1408,), "blocks.0.norm2.bias": (1408,),
    }  # fmt: skip
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    small: dict[str, Any] = {"frames": 2, "resolution": 4}
    for heads, biases in (
        (22, {"blocks.0.attn.qkv.bias": torch.zeros(4224)}),
        (16, {f"blocks.0.attn.{part}_bias": torch.zeros(1408) for part in "qv"}),
    ):
        torch.save(tensors | biases, tmp_path / "w.pth")
        found = convert(tmp_path / "w.pth", **small)
        assert (found.settings.heads, found.settings.mlp_width, found.share) == (heads, 6144, 1.0)


def test_our_own_files_say_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A converted file, converted again, is itself, whatever its names; what contradicts it is refused."""
    torch.save(RIGHT["vjepa 1"][1](), tmp_path / "w.pth")
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    options = ["--frames", str(FRAMES), "--resolution", str(RESOLUTION)]
    assert main(["convert", str(tmp_path / "w.pth"), "--out", str(first), *options, "--kind", "vjepa1"]) == 0
    assert main(["convert", str(first), "--out", str(second)]) == 0
    assert "V-JEPA 1, V-JEPA 1, converted: 28 of 28 tensors matched (100.0%)" in capsys.readouterr().out
    assert_is(read_encoder(second), "vjepa1")
    assert main(["convert", str(first), "--out", str(second), "--positions", "rope"]) == 1
    assert "it says itself what it is" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="its positions is axes, not rope"):
        load_backbone(str(first), positions="rope")


@pytest.mark.parametrize(("heads", "fresh"), [("[mean]", True), ("[attentive]", False)])
def test_pooling_follows_the_family(tmp_path: Path, heads: str, fresh: bool) -> None:
    """VideoMAE's pretraining drops its norm for a fresh one behind the mean; V-JEPA keeps its own; tuned files bring theirs."""
    clips: dict[str, Any] = {"frames": FRAMES, "resolution": RESOLUTION}
    protocol = read_protocol("full", [f"heads={heads}"])
    torch.save(RIGHT["videomae"][1](), tmp_path / "w.pth")
    backbone = load_backbone(str(tmp_path / "w.pth"), **clips)
    pooled = pooled_as(backbone, protocol)
    assert (pooled.digest != backbone.digest) == fresh
    with torch.no_grad():
        tokens = backbone.model(clip(), normalized=False)
        if fresh:
            wanted = nn.functional.layer_norm(tokens.mean(dim=1), (192,), eps=1e-6)
            torch.testing.assert_close(pooled.model.pooled(clip()), wanted)
            assert backbone.model.last_norm == "tokens"
        own = pooled_as(backbone, read_protocol("full", [f"heads={heads}", "pooling=tokens"]))
        torch.testing.assert_close(own.model.pooled(clip()), backbone.model.pooled(clip()))
    torch.save(RIGHT["vjepa 2"][1](), tmp_path / "w.pth")
    backbone = load_backbone(str(tmp_path / "w.pth"), **clips)
    assert pooled_as(backbone, protocol) is backbone
    torch.save(RIGHT["videomae fine-tuned"][1](), tmp_path / "w.pth")
    backbone = load_backbone(str(tmp_path / "w.pth"), **clips)
    assert pooled_as(backbone, protocol) is backbone
    if fresh:
        with pytest.raises(ConfigError, match="last norm behind the mean"):
            pooled_as(backbone, read_protocol("full", ["pooling=tokens"]))


def test_every_protocol_names_its_pooling() -> None:
    assert {name: protocol.pooling for name, protocol in PROTOCOLS.items()} == dict.fromkeys(PROTOCOLS, "family")


def test_images_positions_are_resized_as_their_family_does() -> None:
    """timm's resampling antialiases; DINOv2's scale is that of sides longer by 0.1."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    spatial = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 37 * 37, 8)).astype(np.float32))
    ours = image_positions(spatial, 0, (1, 16, 16), "antialias")
    theirs = resample_abs_pos_embed(spatial, [16, 16], old_size=[37, 37], num_prefix_tokens=0)[0]
    torch.testing.assert_close(ours, theirs)
    picture = spatial.reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    theirs = nn.functional.interpolate(picture, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    torch.testing.assert_close(image_positions(spatial, 0, (1, 16, 16), "offset"), theirs[0].flatten(1).T)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}),
        ("resnet18", {}),
        pytest.param("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 2}, marks=pytest.mark.slow),
        pytest.param("focalnet_tiny_srf", {}, marks=pytest.mark.slow),
    ],
)
def test_images_models_give_tokens_whatever_their_layout(name: str, size: dict[str, Any]) -> None:
    from trocar.engine.curate.embedders import ImageModel
    from trocar.judge.downstream.backbones import FrameAverage

    model = timm.create_model(name, pretrained=False, num_classes=0, **size).eval()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    width: Any = model.num_features
    average = FrameAverage(ImageModel(model, width, mean, deviation, 0))
    with torch.no_grad():
        tokens = average(clip())
        wanted = model(pixels()[0].transpose(0, 1)).mean(dim=0)
    assert tokens.shape[2] == model.num_features
    torch.testing.assert_close(tokens.mean(dim=1)[0], wanted, atol=1e-4, rtol=1e-4)


def test_biases_that_timm_leaves_out_count(tmp_path: Path) -> None:
    """Its DINOv3 models without "qkvb" have none; weights that were trained on may."""
    size: dict[str, Any] = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 1}
    peer = timm.create_model("vit_small_patch16_dinov3_qkvb", pretrained=False, num_classes=0, **size)
    weights = drawn({name: value.shape for name, value in peer.state_dict().items()})
    torch.save(weights, tmp_path / "w.pth")
    assert weights["blocks.0.attn.q_bias"].any()
    with pytest.raises(WeightsError, match=r"stray:   blocks\.0\.attn\.q_bias"):
        load_backbone(f"timm:vit_small_patch16_dinov3@{tmp_path / 'w.pth'}", resolution=64)


@pytest.mark.parametrize("blocks", [1, 4])
def test_probe_is_the_published_one(blocks: int) -> None:
    """V-JEPA's probe and V-JEPA 2's, on small features; and its initialisation, weight by weight."""
    case = RECORDED[f"probe_{blocks}"]
    theirs = {name: value.clone() for name, value in drawn(case["shapes"]).items()}
    names = {
        "pooler.query_tokens": "query",
        "pooler.cross_attention_block.xattn.q": "q",
        "pooler.cross_attention_block.mlp": "",
        "pooler.cross_attention_block": "",
        "pooler": "",
    }

    def ours(name: str) -> str:
        prefix = next((prefix for prefix in names if name.startswith(prefix)), None)
        return name if prefix is None else f"{names[prefix]}{name.removeprefix(prefix)}".lstrip(".")

    for kind in ("weight", "bias"):
        stem = "pooler.cross_attention_block.xattn"
        theirs[f"k.{kind}"], theirs[f"v.{kind}"] = theirs.pop(f"{stem}.kv.{kind}").chunk(2)
    torch.manual_seed(1)
    head = AttentiveHead(192, KEPT, HEADS, blocks)
    started = {name: float(value.std()) for name, value in head.state_dict().items()}
    for name, std in case["stds"].items():
        for own in ("k.weight", "v.weight") if ".kv." in name else (ours(name),):
            assert started[own] == pytest.approx(std, rel=0.1), name
    head.load_state_dict({ours(name): value for name, value in theirs.items()})
    with torch.no_grad():
        torch.testing.assert_close(head.eval()(tokens())[0], torch.tensor(case["scores"]), atol=1e-5, rtol=1e-5)
