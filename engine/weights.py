"""Weights from elsewhere, renamed to ours.

D encoder width. Hugging Face keeps query, key and value apart and gives the key no bias (its gradient is zero: a constant added to
all scores of a row leaves the softmax as it is); ours are one matrix, as in the original VideoMAE, with a zero in the key's place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..ssl.jepa import JointEmbedding
from ..ssl.predictor import Predictor

Tensors = dict[str, torch.Tensor]

BLOCK_NAMES = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}


def huggingface_block(state: Tensors, source: str, target: str) -> Tensors:
    """One transformer block of a Hugging Face VideoMAE, renamed. Takes the tensors it uses out of `state`."""
    attention = f"{source}.attention.attention"
    query, key, value = (state.pop(f"{attention}.{part}.weight") for part in ("query", "key", "value"))
    query_bias, value_bias = state.pop(f"{attention}.query.bias"), state.pop(f"{attention}.value.bias")
    block = {
        f"{target}.attn.qkv.weight": torch.cat([query, key, value]),
        f"{target}.attn.qkv.bias": torch.cat([query_bias, torch.zeros_like(query_bias), value_bias]),
    }
    for theirs, ours in BLOCK_NAMES.items():
        for kind in ("weight", "bias"):
            block[f"{target}.{ours}.{kind}"] = state.pop(f"{source}.{theirs}.{kind}")
    return block


def huggingface_vjepa2_block(state: Tensors, source: str, target: str) -> Tensors:
    """One block of a Hugging Face V-JEPA 2, renamed. Takes the tensors it uses out of `state`."""
    block = {}
    for kind in ("weight", "bias"):
        parts = [state.pop(f"{source}.attention.{part}.{kind}") for part in ("query", "key", "value")]
        block[f"{target}.attn.qkv.{kind}"] = torch.cat(parts)
        block[f"{target}.attn.proj.{kind}"] = state.pop(f"{source}.attention.proj.{kind}")
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            block[f"{target}.{name}.{kind}"] = state.pop(f"{source}.{name}.{kind}")
    return block


def from_huggingface_vjepa2(state_dict: Tensors, depth: int, predictor_depth: int) -> Tensors:
    """The state dict of a `VJEPA2Model` as one of `JointEmbedding`, without a target.

    Raises KeyError where a tensor is missing and ValueError where one is left over, naming them.
    """
    state = dict(state_dict)
    renamed = {"predictor.mask_tokens": state.pop("predictor.embeddings.mask_tokens").flatten(1)}
    names = {
        "encoder.embeddings.patch_embeddings.proj": "encoder.patch_embed",
        "encoder.layernorm": "encoder.norm",
        "predictor.embeddings.predictor_embeddings": "predictor.embed",
        "predictor.layernorm": "predictor.norm",
        "predictor.proj": "predictor.proj",
    }
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            renamed[f"{ours}.{kind}"] = state.pop(f"{theirs}.{kind}")
    for part, layers in (("encoder", depth), ("predictor", predictor_depth)):
        for layer in range(layers):
            renamed |= huggingface_vjepa2_block(state, f"{part}.layer.{layer}", f"{part}.blocks.{layer}")
    if state:
        raise ValueError(f"tensors without a place in JointEmbedding: {sorted(state)}")
    return renamed


def from_vjepa(checkpoint: Mapping[str, Tensors], model: JointEmbedding) -> Tensors:
    """The original checkpoint of V-JEPA 1 or 2 (facebookresearch/jepa, vjepa2) as a state dict of `model`.

    checkpoint: the state dicts "encoder", "predictor" and "target_encoder", with or without the prefixes of their wrappers. Tables
    of positions, which V-JEPA 1 stores, must equal the model's; they are no part of its state. Raises KeyError where a tensor is
    missing and ValueError where one is left over or a table is another, naming them.
    """
    renamed: Tensors = {}
    assert isinstance(model.predictor, Predictor)
    tables = {"pos_embed": model.encoder.positions, "predictor_pos_embed": model.predictor.positions}
    for theirs in ("encoder", "predictor", "target_encoder"):
        state = {
            name.removeprefix("module.").removeprefix("backbone."): part for name, part in checkpoint[theirs].items()
        }
        for name, table in tables.items():
            if name in state and not torch.allclose(state.pop(name)[0], table, atol=1e-5):
                raise ValueError(f"{theirs}.{name} is not the table of model.positions, frames and resolution")
        if theirs == "predictor":
            tokens = [state.pop(f"mask_tokens.{number}") for number in range(len(model.predictor.mask_tokens))]
            renamed["predictor.mask_tokens"] = torch.cat(tokens).flatten(1)
            state = {name.removeprefix("predictor_"): part for name, part in state.items()}
        for name in [name for name in getattr(model, theirs).state_dict() if name != "mask_tokens"]:
            source = name.replace("patch_embed.", "patch_embed.proj.")
            renamed[f"{theirs}.{name}"] = state.pop(source)
        if state:
            raise ValueError(f"tensors of {theirs} without a place in JointEmbedding: {sorted(state)}")
    return renamed


def from_huggingface_videomae(state_dict: Tensors, depth: int, decoder_depth: int) -> Tensors:
    """The state dict of a `VideoMAEForPreTraining` as one of `MaskedAutoencoder`.

    Raises KeyError where a tensor is missing and ValueError where one is left over, naming them.
    """
    state = dict(state_dict)
    renamed = {
        "encoder.patch_embed.weight": state.pop("videomae.embeddings.patch_embeddings.projection.weight"),
        "encoder.patch_embed.bias": state.pop("videomae.embeddings.patch_embeddings.projection.bias"),
        "encoder.norm.weight": state.pop("videomae.layernorm.weight"),
        "encoder.norm.bias": state.pop("videomae.layernorm.bias"),
        "encoder_to_decoder.weight": state.pop("encoder_to_decoder.weight"),
        "mask_token": state.pop("mask_token").flatten(),
        "decoder_norm.weight": state.pop("decoder.norm.weight"),
        "decoder_norm.bias": state.pop("decoder.norm.bias"),
        "decoder_head.weight": state.pop("decoder.head.weight"),
        "decoder_head.bias": state.pop("decoder.head.bias"),
    }
    for layer in range(depth):
        renamed |= huggingface_block(state, f"videomae.encoder.layer.{layer}", f"encoder.blocks.{layer}")
    for layer in range(decoder_depth):
        renamed |= huggingface_block(state, f"decoder.decoder_layers.{layer}", f"decoder_blocks.{layer}")
    if state:
        raise ValueError(f"tensors without a place in MaskedAutoencoder: {sorted(state)}")
    return renamed
