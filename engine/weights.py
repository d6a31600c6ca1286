"""Weights from elsewhere, renamed to ours.

D encoder width. Hugging Face keeps query, key and value apart and gives the key no bias (its gradient is zero: a constant added to
all scores of a row leaves the softmax as it is); ours are one matrix, as in the original VideoMAE, with a zero in the key's place.
"""

from __future__ import annotations

import torch

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
