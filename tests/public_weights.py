"""Weights that anyone can make again, and what public code makes of them: recorded once, so that no test needs that code.

    python tests/public_weights.py VIDEOMAE JEPA VJEPA2

writes manifests/public_features.json; the three are checkouts of MCG-NJU/VideoMAE, facebookresearch/jepa and
facebookresearch/vjepa2, which wants einops. A model's tensors are drawn from names and shapes alone, so the file holds shapes and a
few features.

Shapes: B clips, T frames, H W pixels, N tokens, D width.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

RECORD = Path(__file__).parent / "manifests" / "public_features.json"
WIDTH, DEPTH, HEADS = 192, 2, 3
FRAMES, RESOLUTION = 4, 64
KEPT = 12  # values of a vector
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def drawn(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """float32 tensors, each of its name's own numbers."""
    tensors = {}
    for name, shape in shapes.items():
        values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
        tensors[name] = torch.from_numpy((0.15 * values).astype(np.float32))
    return tensors


def clip() -> torch.Tensor:
    """(1, T, H, W, 3) uint8"""
    values = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (1, FRAMES, RESOLUTION, RESOLUTION, 3))
    return torch.from_numpy(values.astype(np.uint8))


def pixels() -> torch.Tensor:
    """(1, 3, T, H, W), normalised as ImageNet is."""
    return ((clip().float() / 255 - MEAN) / STD).permute(0, 4, 1, 2, 3)


def tokens() -> torch.Tensor:
    """(1, N, D) of small deviation, where a norm's epsilon shows."""
    values = np.random.Generator(np.random.PCG64(8)).standard_normal((1, 20, WIDTH))
    return torch.from_numpy((0.01 * values).astype(np.float32))


def kept(vector: torch.Tensor) -> list[float]:
    return [float(value) for value in vector.flatten()[:KEPT]]


def record(videomae: Path, jepa: Path, vjepa2: Path) -> None:
    """Runs each checkout's code in a process of its own, since two of them call their package alike."""
    parts = [
        json.loads(subprocess.check_output([sys.executable, __file__, "--one", name, str(path.resolve())], text=True))
        for name, path in (("videomae", videomae), ("jepa", jepa), ("vjepa2", vjepa2))
    ]
    RECORD.write_text(json.dumps({name: case for part in parts for name, case in part.items()}, indent=1) + "\n")


def one(name: str, checkout: Path) -> dict[str, Any]:
    """The cases of one checkout."""
    sys.path.insert(0, str(checkout))
    commit = subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "HEAD"], text=True).strip()
    cases = {"videomae": of_videomae, "jepa": of_jepa, "vjepa2": of_vjepa2}[name]()
    return {key: {"commit": commit, **case} for key, case in cases.items()}


def filled(model: nn.Module) -> dict[str, list[int]]:
    """Gives the model its drawn weights but for tables of positions; returns the shapes."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if name != "pos_embed"}
    model.load_state_dict(drawn(shapes), strict=False)
    model.eval()
    return shapes


@torch.no_grad()
def of_videomae() -> dict[str, Any]:
    from functools import partial

    from modeling_finetune import VisionTransformer  # pyright: ignore[reportMissingImports]
    from modeling_pretrain import PretrainVisionTransformerEncoder  # pyright: ignore[reportMissingImports]

    size = {"img_size": RESOLUTION, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "qkv_bias": True}
    norm = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    before = PretrainVisionTransformerEncoder(**size, **norm, init_values=0.0)
    tokens = (FRAMES // 2) * (RESOLUTION // 16) ** 2
    before.pos_embed = before.pos_embed[:, :tokens]  # its own table is that of 16 frames
    shapes = filled(before)
    found = before(pixels(), torch.zeros(1, tokens, dtype=torch.bool))
    after = VisionTransformer(**size, **norm, all_frames=FRAMES, num_classes=5)
    tuned = filled(after)
    return {
        "videomae_pretraining": {"shapes": shapes, "mean": kept(found.mean(dim=1)), "token": kept(found[0, 5])},
        "videomae_fine_tuned": {"shapes": tuned, "mean": kept(after.forward_features(pixels()))},
    }


@torch.no_grad()
def of_jepa() -> dict[str, Any]:
    from functools import partial

    from src.models.vision_transformer import VisionTransformer  # pyright: ignore[reportMissingImports]

    model = VisionTransformer(**vjepa_size(), norm_layer=partial(nn.LayerNorm, eps=1e-6), uniform_power=True)
    shapes = filled(model)
    found = model(pixels())
    return {"vjepa1": {"shapes": shapes, "mean": kept(found.mean(dim=1)), "token": kept(found[0, 5])}}


@torch.no_grad()
def of_vjepa2() -> dict[str, Any]:
    from functools import partial

    from src.models.attentive_pooler import AttentiveClassifier  # pyright: ignore[reportMissingImports]
    from src.models.vision_transformer import VisionTransformer  # pyright: ignore[reportMissingImports]

    cases = {}
    for name, ratio in (("vjepa2", 4.0), ("vjepa2_giant_mlp", 48 / 11)):
        norm = partial(nn.LayerNorm, eps=1e-6)
        model = VisionTransformer(**vjepa_size(), norm_layer=norm, use_rope=True, mlp_ratio=ratio)
        shapes = filled(model)
        found = model(pixels())
        cases[name] = {"shapes": shapes, "mean": kept(found.mean(dim=1)), "token": kept(found[0, 5])}
    for depth in (1, 4):
        probe = AttentiveClassifier(embed_dim=WIDTH, num_heads=HEADS, depth=depth, num_classes=KEPT)
        torch.manual_seed(0)
        stds = {name: float(value.std()) for name, value in probe.state_dict().items() if value.ndim > 1}
        cases[f"probe_{depth}"] = {"stds": stds, "shapes": filled(probe), "scores": kept(probe(tokens()))}
    return cases


def vjepa_size() -> dict[str, int]:
    size = {"img_size": RESOLUTION, "num_frames": FRAMES, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return {**size, "patch_size": 16, "tubelet_size": 2}


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(one(sys.argv[2], Path(sys.argv[3]))))
    else:
        record(*map(Path, sys.argv[1:]))
