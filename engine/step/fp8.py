"""`run.fp8`: linear layers of trained blocks multiply in float8, by torchao; parameters, optimizer and checkpoints stay float32.

Each product's two factors are divided by a scale of their own, found anew from their largest value every time, and rounded: inputs
and weights to e4m3, gradients to e5m2. So nothing is to be kept from step to step, and a run that goes on needs no more than its
weights. A target encoder, which only looks, stays in bfloat16; so do embeddings and heads.

Shapes: (D_out, D_in) a weight, L tokens that come to a layer at a time.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ...ssl.objective import MaskSource, Objective
from ..config.settings import Config, ConfigError
from ..ranks.distributed import World, transformer_blocks
from .body import pass_forward

SIDE = 16  # what D_in, D_out and L have to be multiples of, as the matrix units take float8
HOPPER = (9, 0)


def convert_linear_layers(config: Config, world: World, objective: Objective, masks: MaskSource) -> None:
    """Puts torchao's layers in the place of trained blocks' linear ones, with the same parameters, where run.fp8 has it so.

    objective: on its device, neither compiled nor spread. Raises ConfigError where package, hardware or sizes do not allow it, and
    beside settings with which it has not been tried.
    """
    if config.run.fp8 is False:
        return
    is_emulated = config.run.fp8 == "emulated"
    if found := why_no_fp8(config, world.device):
        raise ConfigError(f"run.fp8: {str(config.run.fp8).lower()}, but {found}; set run.fp8=false")
    try:
        float8: Any = import_module("torchao.float8")
    except ImportError as error:
        raise ConfigError(
            "run.fp8: torchao is not installed; in a checkout, pip install '.[fp8]', or set run.fp8=false"
        ) from error
    names = {layer: name for name, layer in objective.named_modules()}
    layers = {names[layer]: layer for layer in block_layers(objective)}
    _check_sizes(config, world, objective, masks, layers)
    float8.convert_to_float8_training(
        objective,
        module_filter_fn=lambda layer, name: name in layers,
        config=float8.Float8LinearConfig(emulate=is_emulated),
    )


def why_no_fp8(config: Config, device: torch.device) -> str | None:
    """What of the config or the hardware stands against it."""
    run = config.run
    if run.precision != "bfloat16":
        return f"run.precision={run.precision} is for comparisons; float8 goes with bfloat16"
    if run.sharding != "none":
        return f"run.sharding={run.sharding} has not been tried with it"
    if run.checkpoint_activations:
        return "run.checkpoint_activations has not been tried with it"
    if config.optim.optimizer != "adamw":
        return f"optim.optimizer={config.optim.optimizer} has not been tried with it"
    if run.fp8 == "emulated":
        return None
    if device.type != "cuda":
        return "the run is on the CPU, which can only emulate it (run.fp8=emulated)"
    capability = torch.cuda.get_device_capability(device)
    if capability < HOPPER:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, it needs 9.0"
        )
    return None


def block_layers(model: nn.Module) -> list[nn.Linear]:
    """Linear layers inside blocks, those that are trained."""
    layers = (layer for block in transformer_blocks(model) for layer in block.modules())
    return [layer for layer in layers if isinstance(layer, nn.Linear) and layer.weight.requires_grad]


def _check_sizes(
    config: Config, world: World, objective: Objective, masks: MaskSource, layers: dict[str, nn.Linear]
) -> None:
    tokens: dict[str, int] = {}

    def note(name: str, layer: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
        tokens[name] = inputs[0].numel() // layer.in_features

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        pass_forward(config, world, objective, masks)
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in layers.items():
        sizes = {"inputs": layer.in_features, "outputs": layer.out_features, "tokens at a time": tokens[name]}
        for what, size in sizes.items():
            if size % SIDE:
                raise ConfigError(
                    f"run.fp8: {name} has {size:,} {what}, not a multiple of {SIDE}; choose optim.batch, optim.accumulation and "
                    "model sizes so that it is, or set run.fp8=false"
                )
