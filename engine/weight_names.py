"""Names of published encoders' weights -> those of `VideoEncoder`.

| kind | told by | positions |
|---|---|---|
| VideoMAE, V2 | blocks with q_bias and v_bias (or no bias), tubelets | flat |
| VideoMAE of Hugging Face | attention.attention.query | flat |
| V-JEPA 1 | blocks with qkv.bias, tubelets, a table pos_embed | axes |
| V-JEPA 2 | the same without a table | rope |
| V-JEPA 2 of Hugging Face | attention.query, tubelets | rope |
| image ViT (timm, DINO, DINOv2) | patches without time | the image's own, for every time step |

Shapes: D width, p patch, t tubelet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .weight_files import Tensors

PREFIXES = ("module.", "_orig_mod.", "backbone.", "videomae.", "vit.", "encoder.", "model.")
IMAGE_TUBELET = 2
BLOCK_NAMES = {
    # Hugging Face's VideoMAE
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    # Hugging Face's V-JEPA 2
    "attention.proj": "attn.proj",
}
TOP_NAMES = {
    "patch_embed.proj": "patch_embed",
    "embeddings.patch_embeddings.projection": "patch_embed",
    "embeddings.patch_embeddings.proj": "patch_embed",
    "fc_norm": "norm",
    "layernorm": "norm",
}


TABLE_NAMES = ("pos_embed", "embeddings.position_embeddings")


@dataclass(frozen=True)
class Renamed:
    """kind: whose names they were. tensors: by ours. positions: of `VideoEncoder`. table: (1, N, D) positions that the file holds.
    stray: names of its blocks that have no place in ours: another architecture, or damage. unused: others without a place, as those
    of heads and decoders."""

    kind: str
    tensors: Tensors
    positions: str
    table: torch.Tensor | None
    stray: list[str]
    unused: list[str]


def rename(state: Tensors) -> Renamed:
    """Tells the kind and renames. Raises KeyError where there is not even a patch embedding."""
    sources = {_without_prefixes(name): name for name in state if not _is_decoder(name)}
    own = {name: state[source] for name, source in sources.items()}
    tensors, without = rename_blocks(own)
    left = {name: sources[name] for name in without if name not in TABLE_NAMES}
    table = next((own[name] for name in TABLE_NAMES if name in own), None)
    if "patch_embed.weight" not in tensors:
        raise KeyError("patch_embed")
    kind, positions = _kind(own, tensors, table)
    stray = sorted(source for name, source in left.items() if re.match(r"(blocks|layer)\.\d+\.", name))
    others = sorted({*left.values(), *(name for name in state if _is_decoder(name))} - {*stray})
    return Renamed(kind, tensors, positions, table, stray, others)


def rename_blocks(own: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors of blocks (blocks.0 or layer.0 on), patches and last norm -> (ours, names of `own` that have no place in them)."""
    targets = {name: target for name in own if (target := _target(name))}
    tensors = {target: own[name] for name, target in targets.items()}
    fused, merged = _fused(own)
    tensors |= fused
    used = {*targets, *merged, *_scaled(own, tensors)}
    return tensors, [name for name in own if name not in used]


def inflated(weight: torch.Tensor, tubelet: int = IMAGE_TUBELET) -> torch.Tensor:
    """(D, 3, p, p) -> (D, 3, t, p, p): the same value for a clip that stands still."""
    return (weight / tubelet).unsqueeze(2).repeat(1, 1, tubelet, 1, 1)


def image_positions(table: torch.Tensor, prefix_tokens: int, grid: tuple[int, int, int]) -> torch.Tensor:
    """(1, prefix + N, D) positions of an image -> (T' * H' * W', D), resized bicubically, the same at every time step.

    Raises ValueError where they are of no square image.
    """
    spatial = table[0, prefix_tokens:].float()
    side = round(len(spatial) ** 0.5)
    if side * side != len(spatial):
        raise ValueError(f"{len(spatial)} positions are of no square image")
    if grid[1:] != (side, side):
        picture = spatial.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        picture = F.interpolate(picture, size=grid[1:], mode="bicubic", align_corners=False, antialias=False)
        spatial = picture.permute(0, 2, 3, 1).reshape(grid[1] * grid[2], -1)
    return spatial.repeat(grid[0], 1)


def _without_prefixes(name: str) -> str:
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            # Hugging Face's V-JEPA 2 calls its blocks encoder.layer.0.
            if name.startswith(prefix):
                name, stripped = name[len(prefix) :], True
    return name


def _is_decoder(name: str) -> bool:
    return bool(re.match(r"(module\.)?(decoder|encoder_to_decoder|predictor|mask_token$|head|classifier)", name))


def _target(name: str) -> str | None:
    """Our name of a tensor that is taken as it is."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in TOP_NAMES or stem in ("norm", "patch_embed"):
        return f"{TOP_NAMES.get(stem, stem)}.{kind}"
    match = re.fullmatch(r"(?:blocks|layer)\.(\d+)\.(.+)", stem)
    if not match:
        return None
    inner = BLOCK_NAMES.get(match[2], match[2])
    known = ("norm1", "norm2", "attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2")
    return f"blocks.{match[1]}.{inner}.{kind}" if inner in known else None


def _fused(own: Tensors) -> tuple[Tensors, list[str]]:
    """Query, key and value in one, their biases with a zero for the key where it has none."""
    tensors: Tensors = {}
    used: list[str] = []

    def take(name: str) -> torch.Tensor | None:
        if name not in own:
            return None
        used.append(name)
        return own[name]

    def put(target: str, parts: list[torch.Tensor | None]) -> None:
        present = [part for part in parts if part is not None]
        if present:
            tensors[target] = torch.cat([torch.zeros_like(present[0]) if part is None else part for part in parts])

    def bias(attention: str, part: str) -> torch.Tensor | None:
        """Older files of Hugging Face's call it as VideoMAE does."""
        found = take(f"{attention}.{part}.bias")
        return take(f"{attention}.{part[0]}_bias") if found is None else found

    depth = {int(match[1]) for name in own if (match := re.match(r"(?:blocks|layer)\.(\d+)\.", name))}
    parts = ("query", "key", "value")
    for number in sorted(depth):
        target = f"blocks.{number}.attn.qkv"
        for attention in (f"layer.{number}.attention.attention", f"layer.{number}.attention"):
            if all(f"{attention}.{part}.weight" in own for part in parts):
                put(f"{target}.weight", [take(f"{attention}.{part}.weight") for part in parts])
                query, key, value = (bias(attention, part) for part in parts)
                if query is not None and value is not None:
                    put(f"{target}.bias", [query, key, value])
        attention = f"blocks.{number}.attn"
        if f"{attention}.q_bias" in own and f"{attention}.v_bias" in own:
            put(f"{target}.bias", [take(f"{attention}.{part}_bias") for part in "qkv"])
    return tensors, used


def _scaled(own: Tensors, tensors: Tensors) -> list[str]:
    """Multiplies layer scales into the projections before them, which gives the same function; returns the names of the scales."""
    used = []
    for name, gamma in own.items():
        match = re.fullmatch(r"(?:blocks|layer)\.(\d+)\.(?:ls|gamma_|layer_scale)([12])(?:\.gamma|\.lambda1)?", name)
        layer = f"blocks.{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}" if match else ""
        if f"{layer}.weight" in tensors:
            used.append(name)
            tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] * gamma[:, None]
            if f"{layer}.bias" in tensors:
                tensors[f"{layer}.bias"] = tensors[f"{layer}.bias"] * gamma
    return used


def _kind(own: Tensors, tensors: Tensors, table: torch.Tensor | None) -> tuple[str, str]:
    """(whose weights, which positions)."""
    if tensors["patch_embed.weight"].ndim == 4:
        return "image ViT", "flat"
    if any("attention.attention.query" in name for name in own):
        return "VideoMAE (Hugging Face)", "flat"
    if any(name.endswith("attention.query.weight") for name in own):
        return "V-JEPA 2 (Hugging Face)", "rope"
    if any(name.endswith("q_bias") for name in own) or "blocks.0.attn.qkv.bias" not in tensors:
        return "VideoMAE", "flat"
    return ("V-JEPA 1", "axes") if table is not None else ("V-JEPA 2", "rope")
