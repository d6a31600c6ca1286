"""Muon for the matrices inside transformer blocks, AdamW for all else: embeddings, heads, mask tokens, norms and biases.

Muon (Keller Jordan 2024) replaces a matrix's momentum by the nearest orthogonal matrix. Updates are scaled to the size of AdamW's
(Liu et al. 2025, arXiv 2502.16982), so learning rate and weight decay mean the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..config.settings import ConfigError, OptimConfig
from ..ranks.distributed import transformer_blocks

MOMENTUM = 0.95


def block_matrices(model: nn.Module) -> list[torch.Tensor]:
    """The weights of linear layers in blocks that are trained."""
    layers = (layer for block in transformer_blocks(model) for layer in block.modules())
    return [layer.weight for layer in layers if isinstance(layer, nn.Linear) and layer.weight.requires_grad]


class Muon(torch.optim.Optimizer):
    """PyTorch's Muon and its AdamW as one optimizer, with what fused AdamW offers: `found_inf`.

    groups: AdamW's, with all parameters; those of Muon are taken out. Raises ConfigError where this PyTorch has no Muon, and where
    matrices are sharded.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], config: OptimConfig) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optim.optimizer: 'muon' needs PyTorch 2.9 or later, here is {torch.__version__}; set optim.optimizer=adamw"
            )
        matrices = block_matrices(model)
        if any(isinstance(matrix, DTensor) for matrix in matrices):
            raise ConfigError(
                "optim.optimizer: 'muon' needs whole matrices on each rank; set run.sharding=none, or optim.optimizer=adamw"
            )
        taken = {id(matrix) for matrix in matrices}
        others = [{**group, "params": [p for p in group["params"] if id(p) not in taken]} for group in groups]
        chosen = {"params": matrices, "is_decayed": True, "weight_decay": config.weight_decay}
        self._adamw = torch.optim.AdamW(others, lr=0.0, betas=config.betas, fused=True)
        self._muon = torch.optim.Muon([chosen], lr=0.0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
        self._matrices = matrices
        inner_groups = [*self._adamw.param_groups, *self._muon.param_groups]
        super().__init__(inner_groups, {})
        self.param_groups, self.state = inner_groups, self._adamw.state
        self._muon.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        found_inf: torch.Tensor | None = getattr(self, "found_inf", None)
        matrices = [matrix for matrix in self._matrices if matrix.grad is not None]
        for matrix in matrices:
            self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
        changing = [*matrices, *(self.state[matrix]["momentum_buffer"] for matrix in matrices)]
        before = [] if found_inf is None else [tensor.clone() for tensor in changing]
        if found_inf is not None:
            self._adamw.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        self._adamw.step()
        self._muon.step()
        if found_inf is not None:
            del self._adamw.found_inf  # pyright: ignore[reportAttributeAccessIssue]
            for tensor, old in zip(changing, before, strict=True):
                tensor.copy_(torch.where(found_inf != 0, old, tensor))
