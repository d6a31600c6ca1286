"""The decoder's input: projected visible tokens, then a mask token per predicted place, each with its position.

    output[b] = [projected[b] + positions[visible[b]], mask_token + positions[masked[b]]]

Shapes: B clips, N tokens of the whole grid, D decoder width.
"""

from __future__ import annotations

import torch


def decoder_tokens_reference(
    projected: torch.Tensor,
    mask_token: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor,
    masked: torch.Tensor,
) -> torch.Tensor:
    """PyTorch version of `decoder_tokens`."""
    positions = positions.to(projected.dtype)
    return torch.cat([projected + positions[visible], mask_token.to(projected.dtype) + positions[masked]], dim=1)


def decoder_tokens(
    projected: torch.Tensor,
    mask_token: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor,
    masked: torch.Tensor,
) -> torch.Tensor:
    """Builds the decoder's input.

    projected: (B, N_visible, D). mask_token: (D,). positions: (N, D). visible: (B, N_visible), masked: (B, N_masked), int64.
    Returns (B, N_visible + N_masked, D) in the dtype of `projected`. Gradients reach projected, mask_token and positions.
    """
    return decoder_tokens_reference(projected, mask_token, positions, visible, masked)
