"""A run's weights under Hugging Face's names, with the config of their model: VideoMAE of an MAE, V-JEPA 2 of a JEPA.

Written by hand, so that exporting needs no transformers. What their models cannot be is refused by name.

D encoder width. Their VideoMAE has no bias of the key: adding a constant to all scores of a row leaves the softmax as it is, so
ours stays behind. Its decoder's last norm has an epsilon of 1e-5 (ours: 1e-6), which no setting of theirs changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...ssl.choices import SIZES
from ...ssl.encoder import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from ..config.settings import Config, ConfigError
from ..inputs.libraries import MODEL_TYPES
from .files import Tensors

EPSILON = 1e-6  # of our layer norms
PREDICTOR_NAMES = {"embed": "embeddings.predictor_embeddings", "norm": "layernorm", "proj": "proj"}
VIDEOMAE_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@dataclass(frozen=True)
class HuggingFaceModel:
    """config: of config.json. tensors: of model.safetensors. processor: of preprocessor_config.json. notes: what is to be known."""

    config: dict[str, Any]
    tensors: Tensors
    processor: dict[str, Any]
    notes: list[str]


def to_huggingface(encoder: VideoEncoder, state: Tensors, config: Config, *, whole: bool) -> HuggingFaceModel:
    """encoder: holds the weights to export. state: of the whole objective, named as in `MaskedAutoencoder` or `JointEmbedding`.

    config: of the run, which `check_library` has passed. whole: with the decoder (VideoMAEForPreTraining) or the predictor. Raises
    ConfigError where the predictor has no counterpart.
    """
    kind = MODEL_TYPES[encoder.position_kind]
    return (_videomae if kind == "videomae" else _vjepa2)(encoder, state, config, whole)


def _videomae(encoder: VideoEncoder, state: Tensors, run: Config, whole: bool) -> HuggingFaceModel:
    targets = run.objective.targets
    config = {
        "architectures": ["VideoMAEForPreTraining" if whole else "VideoMAEModel"],
        "model_type": "videomae",
        **_shape(encoder, "image_size", "num_frames"),
        "num_channels": 3,
        "intermediate_size": _mlp_width(encoder),
        "qkv_bias": True,
        "use_mean_pooling": False,
    }
    own = encoder.state_dict()
    prefix = "videomae." if whole else ""
    tensors = {
        f"{prefix}embeddings.patch_embeddings.projection.weight": own["patch_embed.weight"],
        f"{prefix}embeddings.patch_embeddings.projection.bias": own["patch_embed.bias"],
        **_plain(own, "norm", f"{prefix}layernorm"),
        **_blocks(own, "blocks", f"{prefix}encoder.layer", _videomae_block),
    }
    dropped = [value.chunk(3)[1].abs().max().item() for name, value in own.items() if name.endswith("qkv.bias")]
    notes = (
        [f"key biases, which no output depends on, stay behind (the largest is {max(dropped):.1e})"]
        if any(dropped)
        else []
    )
    if whole:
        depth = len({name.split(".")[1] for name in state if name.startswith("decoder_blocks.")})
        width = len(state["mask_token"])
        config |= {
            "decoder_hidden_size": width,
            "decoder_num_hidden_layers": depth,
            "decoder_num_attention_heads": run.model.decoder_heads or SIZES[run.model.encoder].decoder_heads,
            "decoder_intermediate_size": len(state["decoder_blocks.0.mlp.fc1.bias"]) if depth else 4 * width,
            "norm_pix_loss": targets == "channel",
        }
        tensors |= {
            "encoder_to_decoder.weight": state["encoder_to_decoder.weight"],
            "mask_token": state["mask_token"][None, None],
            **_plain(state, "decoder_norm", "decoder.norm"),
            **_plain(state, "decoder_head", "decoder.head"),
            **_blocks(state, "decoder_blocks", "decoder.decoder_layers", _videomae_block),
        }
        notes.append(
            "the decoder's last norm has an epsilon of 1e-5 there, 1e-6 here: losses differ by about 1e-5 of themselves"
        )
    side = encoder.grid[1] * encoder.patch
    processor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        **_PIXELS,
    }
    return HuggingFaceModel(config, tensors, processor, notes)


def _vjepa2(encoder: VideoEncoder, state: Tensors, run: Config, whole: bool) -> HuggingFaceModel:
    config = {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        **_shape(encoder, "crop_size", "frames_per_clip"),
        "in_chans": 3,
        "mlp_ratio": _mlp_width(encoder) / encoder.width,
        "qkv_bias": True,
    }
    own = encoder.state_dict()
    tensors = {
        "encoder.embeddings.patch_embeddings.proj.weight": own["patch_embed.weight"],
        "encoder.embeddings.patch_embeddings.proj.bias": own["patch_embed.bias"],
        **_plain(own, "norm", "encoder.layernorm"),
        **_blocks(own, "blocks", "encoder.layer", _vjepa2_block),
    }
    notes = []
    if whole:
        tokens = state.get("predictor.mask_tokens")
        if tokens is None or len(state["predictor.proj.bias"]) != encoder.width:
            raise ConfigError(
                "--whole: VJEPA2Model has a predictor of features as wide as its encoder's, and this run has "
                f"{'none' if tokens is None else 'one of a teacher of another width'}; leave out --whole"
            )
        predictor = {
            name.removeprefix("predictor."): value for name, value in state.items() if name.startswith("predictor.")
        }
        config |= {
            "pred_hidden_size": tokens.shape[1],
            "pred_num_hidden_layers": len({name.split(".")[1] for name in predictor if name.startswith("blocks.")}),
            "pred_num_attention_heads": run.model.predictor_heads or encoder.heads,
            "pred_num_mask_tokens": len(tokens),
        }
        tensors["predictor.embeddings.mask_tokens"] = tokens[:, None, None]
        for ours, theirs in PREDICTOR_NAMES.items():
            tensors |= _plain(predictor, ours, f"predictor.{theirs}")
        tensors |= _blocks(predictor, "blocks", "predictor.layer", _vjepa2_block)
    else:
        # The class has a predictor whatever the file holds: a small one, which nobody asked for.
        config |= {
            "pred_hidden_size": 12,
            "pred_num_attention_heads": 1,
            "pred_num_hidden_layers": 1,
            "pred_num_mask_tokens": 1,
        }
        notes.append(
            "without a predictor, which transformers starts at random and says so: call the model with skip_predictor=True"
        )
    processor = {
        "video_processor_type": "VJEPA2VideoProcessor",
        "crop_size": {"height": config["crop_size"], "width": config["crop_size"]},
        **_PIXELS,
    }
    return HuggingFaceModel(config, tensors, processor, notes)


_PIXELS = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
    "resample": 2,
}


def _shape(encoder: VideoEncoder, side: str, frames: str) -> dict[str, Any]:
    return {
        side: encoder.grid[1] * encoder.patch,
        frames: encoder.grid[0] * encoder.tubelet,
        "patch_size": encoder.patch,
        "tubelet_size": encoder.tubelet,
        "hidden_size": encoder.width,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.heads,
        "hidden_act": "gelu",
        "layer_norm_eps": EPSILON,
        "dtype": "float32",
    }


def _mlp_width(encoder: VideoEncoder) -> int:
    return encoder.mlp_width or 4 * encoder.width


def _plain(state: Tensors, ours: str, theirs: str) -> Tensors:
    return {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}


def _blocks(state: Tensors, ours: str, theirs: str, rename: Callable[[Tensors], Tensors]) -> Tensors:
    """rename: the tensors of one block, by our names without its number, to theirs."""
    blocks: dict[str, Tensors] = {}
    for name, value in state.items():
        if name.startswith(f"{ours}."):
            number, inner = name.removeprefix(f"{ours}.").split(".", 1)
            blocks.setdefault(number, {})[inner] = value
    return {
        f"{theirs}.{number}.{name}": value for number, block in blocks.items() for name, value in rename(block).items()
    }


def _videomae_block(block: Tensors) -> Tensors:
    query, key, value = block["attn.qkv.weight"].chunk(3)
    query_bias, _, value_bias = block["attn.qkv.bias"].chunk(3)
    return {
        "attention.attention.query.weight": query,
        "attention.attention.key.weight": key,
        "attention.attention.value.weight": value,
        "attention.attention.q_bias": query_bias,
        "attention.attention.v_bias": value_bias,
        **{name: part for ours, theirs in VIDEOMAE_BLOCK.items() for name, part in _plain(block, ours, theirs).items()},
    }


def _vjepa2_block(block: Tensors) -> Tensors:
    parts = {}
    for kind in ("weight", "bias"):
        for name, part in zip(("query", "key", "value"), block[f"attn.qkv.{kind}"].chunk(3), strict=True):
            parts[f"attention.{name}.{kind}"] = part
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    return parts | {name: part for ours, theirs in names.items() for name, part in _plain(block, ours, theirs).items()}


def contiguous(tensors: Tensors) -> Tensors:
    """As safetensors wants them: none shares memory with another."""
    return {name: value.detach().to(torch.float32).clone().contiguous() for name, value in tensors.items()}
