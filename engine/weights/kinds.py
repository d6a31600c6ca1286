"""Whose weights a file holds: by names where they tell, by sizes and tables where names do not. See `names.py` for the table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch

from ...ssl.choices import Kind, Positions
from ...ssl.encoder import position_table
from .files import Tensors


def fixed_table(table: torch.Tensor) -> Literal["flat", "axes"] | None:
    """Which of `position_table` a video's (1, N, D) is, over any grid (T', S, S) of N tokens; None: another, a learned one."""
    tokens, width = table.shape[1:]
    for side in range(math.isqrt(tokens), 0, -1):
        if tokens % side**2 == 0 and _equal(table, position_table("axes", (tokens // side**2, side, side), width)):
            return "axes"
    return "flat" if _equal(table, position_table("flat", (tokens, 1, 1), width)) else None


def _equal(table: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(table[0].float(), other, atol=1e-4)


def told_kind(
    own: Tensors,
    tensors: Tensors,
    table: torch.Tensor | None,
    kind: Kind | None,
    positions: Positions | None,
    beside: Mapping[str, Tensors],
) -> tuple[Kind, str]:
    """(kind, its layout in words)."""
    told = _told_by_names(own, tensors)
    if told is None:
        kind = kind or next((known for known, its in POSITIONS.items() if its == positions), None)
        kind = kind or (_vjepa(tensors, table, beside) if "patch_embed.proj.weight" in own else None)
        if kind is None:
            raise ValueError(_open_question(own, tensors, table))
        told = (kind, TITLES[kind])
    if kind not in (None, told[0]) or (kind == "image" and tensors["patch_embed.weight"].ndim == 5):
        raise ValueError(f"these are the names of {told[1]}, not of {kind!r}")
    return told


def _told_by_names(own: Tensors, tensors: Tensors) -> tuple[Kind, str] | None:
    if tensors["patch_embed.weight"].ndim == 4:
        return "image", TITLES["image"]
    if any("attention.attention.query" in name for name in own):
        return "videomae", "VideoMAE (Hugging Face)"
    if any(name.endswith("attention.query.weight") for name in own):
        return "vjepa2", "V-JEPA 2 (Hugging Face)"
    if any(name.endswith("q_bias") for name in own) or "blocks.0.attn.qkv.bias" not in tensors:
        return "videomae", TITLES["videomae"]
    return None


def _vjepa(tensors: Tensors, table: torch.Tensor | None, beside: Mapping[str, Tensors]) -> Kind | None:
    """V-JEPA 1 or 2, both of which name their tensors alike, or None where that stays open."""
    tokens = [name for name in beside.get("predictor", {}) if re.search(r"mask_tokens\.\d+$", name)]
    if table is None or len(tokens) == VJEPA_2_MASK_TOKENS:
        return "vjepa2"  # V-JEPA 1 and VideoMAE with learned positions store their tables
    width, blocks = len(tensors["patch_embed.weight"]), _depth(tensors)
    published_1, published_2 = (
        any(
            (width, blocks, side) in sizes and table.shape[1] == steps * side**2
            for _, _, side in sizes
            for steps in known
        )
        for sizes, known in ((VJEPA_1, VJEPA_1_STEPS), (VJEPA_2, VJEPA_2_STEPS))
    )
    if published_1 and not published_2 and fixed_table(table) == "axes":
        return "vjepa1"
    return "vjepa2" if published_2 and not published_1 else None


def _depth(tensors: Tensors) -> int:
    return len({match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))})


def _open_question(own: Tensors, tensors: Tensors, table: torch.Tensor | None) -> str:
    size = f"width {len(tensors['patch_embed.weight'])}, {_depth(tensors)} blocks"
    if "patch_embed.weight" in own:
        return (
            f"the names of Trocar's own encoder ({size}) without the settings that its files hold; export the run again, name the "
            "run's folder, or say --kind and --positions"
        )
    assert table is not None
    return (
        f"{table.shape[1]} positions of an encoder ({size}) that neither V-JEPA was published in: V-JEPA 1 adds them, V-JEPA 2 "
        "stores them without use; say --kind vjepa1 or vjepa2"
    )


TITLES: dict[Kind, str] = {"videomae": "VideoMAE", "vjepa1": "V-JEPA 1", "vjepa2": "V-JEPA 2", "image": "image ViT"}


POSITIONS: dict[Kind, Positions] = {"videomae": "flat", "vjepa1": "axes", "vjepa2": "rope", "image": "flat"}


# Published (width, depth, tokens along a side), and time steps of their tables.
VJEPA_1 = {(1024, 24, 14), (1280, 32, 14), (1280, 32, 24)}


VJEPA_2 = {(1024, 24, 16), (1280, 32, 16), (1408, 40, 16), (1408, 40, 24)}


VJEPA_1_STEPS, VJEPA_2_STEPS = (8,), (8, 32)


VJEPA_2_MASK_TOKENS = 10
