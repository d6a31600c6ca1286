"""Linear layers that read copies of their weights in bfloat16, which are cast after an update instead of at every use.

Autocast casts a float32 weight whenever a pass comes to it. Here a step writes all copies in one pass, and what a layer computes
from them is the same to the bit: forward, gradients (cast to float32 where they leave the layer, as autocast does) and all. The
parameters stay what they were, float32, in the state dict and for the optimizer; copies are in neither.

Shapes: (D_out, D_in) a weight, (D_out,) a bias.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class _Read(torch.autograd.Function):
    """The copy's values with the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].float(), None


class CopiedLinear(nn.Linear):
    """A linear layer with float32 parameters and, under autocast to the copies' type, their copies in the product."""

    weight_copy: torch.Tensor
    bias_copy: torch.Tensor | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (torch's name)
        kind = input.device.type
        if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != self.weight_copy.dtype:
            return super().forward(input)
        return F.linear(input, _read(self.weight, self.weight_copy), _read(self.bias, self.bias_copy))


def _read(weight: Any, copy: Any) -> Any:
    return (
        _Read.apply(weight, copy) if weight is not None and weight.requires_grad and torch.is_grad_enabled() else copy
    )


class WeightCopies:
    """Makes every linear layer of the model a `CopiedLinear`; `write` when their weights have changed."""

    def __init__(self, model: nn.Module) -> None:
        self._weights: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        for layer in [part for part in model.modules() if type(part) is nn.Linear]:
            layer.__class__ = CopiedLinear
            assert isinstance(layer, CopiedLinear)
            layer.weight_copy = self._copy(layer.weight)
            layer.bias_copy = None if layer.bias is None else self._copy(layer.bias)

    def _copy(self, weight: torch.Tensor) -> torch.Tensor:
        self._weights.append(weight)
        self._copies.append(weight.detach().to(torch.bfloat16))
        return self._copies[-1]

    @torch.no_grad()
    def write(self) -> None:
        torch._foreach_copy_(self._copies, self._weights)  # pyright: ignore[reportPrivateImportUsage]
