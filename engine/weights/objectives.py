"""Weights from elsewhere, renamed to ours.

D encoder width. Hugging Face keeps query, key and value apart and gives the key no bias (its gradient is zero: a constant added to
all scores of a row leaves the softmax as it is); ours are one matrix, as in the original VideoMAE, with a zero in the key's place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...ssl.jepa import JointEmbedding
from ...ssl.predictor import Predictor
from .files import Tensors
from .names import rename_blocks

KINDS = ("weight", "bias")
BLOCK_PARTS = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def huggingface_block(state: Tensors, source: str, target: str) -> Tensors:
    """One block of a Hugging Face VideoMAE or V-JEPA 2, renamed. Takes the tensors it uses out of `state`."""
    block = {name.removeprefix(source): name for name in state if name.startswith(f"{source}.")}
    renamed, left = rename_blocks({f"layer.0{name}": state[whole] for name, whole in block.items()})
    for name, whole in block.items():
        if f"layer.0{name}" not in left:
            del state[whole]
    return {f"{target}.{part}.{kind}": renamed[f"blocks.0.{part}.{kind}"] for part in BLOCK_PARTS for kind in KINDS}


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
        for kind in KINDS:
            renamed[f"{ours}.{kind}"] = state.pop(f"{theirs}.{kind}")
    for part, layers in (("encoder", depth), ("predictor", predictor_depth)):
        for layer in range(layers):
            renamed |= huggingface_block(state, f"{part}.layer.{layer}", f"{part}.blocks.{layer}")
    if state:
        raise ValueError(f"tensors without a place in JointEmbedding: {sorted(state)}")
    return renamed


def from_vjepa(checkpoint: Mapping[str, Tensors], model: JointEmbedding) -> Tensors:
    """The original checkpoint of V-JEPA 1 or 2 (facebookresearch/jepa, vjepa2) as a state dict of `model`.

    checkpoint: the state dicts "encoder", "predictor" and "target_encoder", with or without the prefixes of their wrappers. Tables
    of positions, which V-JEPA 1 stores, must equal the model's; they are no part of its state. V-JEPA 2's are left out: its model
    does not use them; and of its ten mask tokens a model with one takes the first, which is all that its loop uses. Raises KeyError
    where a tensor is missing and ValueError where one is left over or a table is another, naming them.
    """
    renamed: Tensors = {}
    assert isinstance(model.predictor, Predictor)
    tables = {"pos_embed": model.encoder.positions, "predictor_pos_embed": model.predictor.positions}
    for theirs in ("encoder", "predictor", "target_encoder"):
        state = {
            name.removeprefix("module.").removeprefix("backbone."): part for name, part in checkpoint[theirs].items()
        }
        for name, table in tables.items():
            stored = state.pop(name, None)
            if stored is None or model.encoder.position_kind == "rope":
                continue
            if stored[0].shape != table.shape or not torch.allclose(stored[0].float(), table.float(), atol=1e-5):
                raise ValueError(f"{theirs}.{name} is not the table of model.positions, frames and resolution")
        if theirs == "predictor":
            stored = sorted(
                (name for name in state if name.startswith("mask_tokens.")), key=lambda name: int(name[12:])
            )
            tokens, wanted = [state.pop(name) for name in stored], len(model.predictor.mask_tokens)
            if len(tokens) != wanted and (wanted != 1 or len(tokens) < 1):
                raise ValueError(
                    f"predictor.mask_tokens are {len(tokens)}, not {wanted}: set model.predictor_mask_tokens=1"
                )
            tokens = tokens[:wanted]  # V-JEPA 2's loop uses the first of its ten for every kind of mask
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
