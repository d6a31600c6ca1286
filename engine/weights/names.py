"""Names of published encoders' weights -> those of `VideoEncoder`.

| kind | whose | told by | positions |
|---|---|---|---|
| videomae | VideoMAE, V2, Hugging Face's twin | q_bias and v_bias, or attention.attention.query; tubelets | flat |
| vjepa1 | V-JEPA | qkv.bias, tubelets, its table of a size that V-JEPA 1 was published in | axes |
| vjepa2 | V-JEPA 2, Hugging Face's twin | no table, a size of V-JEPA 2's, or ten mask tokens; attention.query | rope |
| image | a ViT of timm, DINO, DINOv2 | patches without time | the image's own, for every time step |

The last norm is one of all tokens; but of their mean in VideoMAE's fine-tuned models, where it is called fc_norm, and where there
is none. V-JEPA 2's published files hold a table that their model does not use, under V-JEPA 1's names. So names alone do not tell
the two apart, and what nothing tells is refused: whoever knows says `kind`.

Shapes: D width, p patch, t tubelet, N tokens of a grid (T', S, S).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from ...ssl.choices import Kind, Positions
from ...ssl.encoder import LastNorm
from .files import Tensors
from .kinds import told_kind

PREFIXES = ("module.", "_orig_mod.", "backbone.", "videomae.", "vjepa2.", "vit.", "encoder.", "model.")
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
IMAGE_TOKENS = ("cls_token", "dist_token", "reg_token", "register_tokens", "mask_token")
VJEPA_2_1 = ("norms_block.", "video_mod_embed", "patch_embed_img.")
BESIDE = (
    r"(module\.|backbone\.|videomae\.|vjepa2\.)*"
    r"(decoder\.|encoder_to_decoder\.|predictor[._]|pooler\.|head\.|head_drop\.|classifier\.|mask_token$|mask_tokens\.)"
)


Resized = Literal["antialias", "offset"]


@dataclass(frozen=True)
class Renamed:
    """kind, layout: whose names they were, in a word and in words. tensors: by ours. last_norm: see `VideoEncoder`. table: (1, N,
    D) positions that the file holds. stray: names without a place in ours: another architecture, or damage. unused: names of heads,
    decoders, predictors and of tokens that ours has not."""

    kind: Kind
    layout: str
    tensors: Tensors
    last_norm: LastNorm
    table: torch.Tensor | None
    stray: list[str]
    unused: list[str]


def rename(
    state: Tensors,
    *,
    kind: Kind | None = None,
    positions: Positions | None = None,
    beside: Mapping[str, Tensors] | None = None,
) -> Renamed:
    """Tells the kind by all that the file holds, and renames.

    kind, or positions, which tell it too: where the file does not. beside: other parts of the file, "predictor" for example. Raises
    KeyError where there is not even a patch embedding, ValueError where the kind stays open, where `kind` cannot be, or where it is
    a model that is not ours.
    """
    sources = {_without_prefixes(name): name for name in state if not _is_beside(name)}
    own = {name: state[source] for name, source in sources.items()}
    has_norm = any(f"{name}.weight" in own for name in ("norm", "layernorm"))
    second = [name for name in own if has_norm and name.startswith("fc_norm.")]  # ours has one last norm
    tensors, without = rename_blocks({name: value for name, value in own.items() if name not in second})
    left = {name: sources[name] for name in [*without, *second] if name not in TABLE_NAMES}
    table = next((own[name] for name in TABLE_NAMES if name in own), None)
    if "patch_embed.weight" not in tensors:
        raise KeyError("patch_embed")
    if any(name.startswith(VJEPA_2_1) for name in left):
        raise ValueError("V-JEPA 2.1's encoder (norms_block, video_mod_embed, patch_embed_img) is not supported")
    kind, layout = told_kind(own, tensors, table, kind, positions, beside or {})
    unused = {source for name, source in left.items() if kind == "image" and name in IMAGE_TOKENS}
    stray = sorted({*left.values()} - unused)
    last_norm: LastNorm = "mean" if not has_norm and ("fc_norm.weight" in own or kind == "videomae") else "tokens"
    return Renamed(
        kind, layout, tensors, last_norm, table, stray, sorted({*unused, *(name for name in state if _is_beside(name))})
    )


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


def image_positions(
    table: torch.Tensor, prefix_tokens: int, grid: tuple[int, int, int], resized: Resized = "antialias"
) -> torch.Tensor:
    """(1, prefix + N, D) positions of an image -> (T' * H' * W', D), resized bicubically, the same at every time step.

    resized: "antialias" as timm and DINOv2's models with registers do; "offset" as DINO and DINOv2 without them, whose scale is
    that of sides longer by 0.1. Raises ValueError where they are of no square image.
    """
    spatial = table[0, prefix_tokens:].float()
    side = round(len(spatial) ** 0.5)
    if side * side != len(spatial):
        raise ValueError(f"{len(spatial)} positions are of no square image")
    if grid[1:] != (side, side):
        picture = spatial.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if resized == "offset":
            scale = ((grid[1] + 0.1) / side, (grid[2] + 0.1) / side)
            picture = F.interpolate(picture, scale_factor=scale, mode="bicubic")
        else:
            picture = F.interpolate(picture, size=grid[1:], mode="bicubic", antialias=True)
        assert picture.shape[2:] == grid[1:]
        spatial = picture.permute(0, 2, 3, 1).reshape(grid[1] * grid[2], -1)
    return spatial.repeat(grid[0], 1)


def image_resizing(state: Tensors) -> Resized:
    """How whoever trained these image weights resizes their positions, as far as the names tell: only DINOv2 has a mask token."""
    names = {_without_prefixes(name) for name in state}
    return "offset" if "mask_token" in names and "register_tokens" not in names else "antialias"


def _without_prefixes(name: str) -> str:
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            # Hugging Face's V-JEPA 2 calls its blocks encoder.layer.0.
            if name.startswith(prefix):
                name, stripped = name[len(prefix) :], True
    return name


def _is_beside(name: str) -> bool:
    """Of what stands beside an encoder in its file, and is known to be no part of it."""
    return bool(re.match(BESIDE, name))


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
