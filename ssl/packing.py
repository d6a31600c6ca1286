"""Tokens of unequal masks laid one after another, none lost but where masks are cut, and padded to a round total.

Shapes: B clips, M masks a clip, S = B M sequences in the order of clips, L tokens of all sequences and of the padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map_only


class Packed(NamedTuple):
    """Some tokens of every sequence, then padding, which is a sequence of its own: it meets no other and enters no loss.

    tokens: (L,) int64, each token's place in its clip's grid, 0 for padding. sequences: (L,) int64, to which it belongs, S for
    padding. offsets: (S + 2,) int32: where sequences begin, where the padding begins, L. longest: bound of a sequence's length, the
    same for every batch.
    """

    tokens: torch.Tensor
    sequences: torch.Tensor
    offsets: torch.Tensor
    longest: int

    @property
    def num_sequences(self) -> int:
        return len(self.offsets) - 2

    def padding(self) -> torch.Tensor:
        """Tokens of padding, a scalar on the device."""
        return self.offsets[-1] - self.offsets[-2]


class Counted(NamedTuple):
    """Rows of packed targets laid anew: those that are counted sequence by sequence, then all others, which enter no loss.

    rows: (L,) int64, a permutation of the packed rows. tokens: (L,) int64, as `Packed.tokens`, in that order. offsets: (S + 1,)
    int32, where each sequence's counted rows begin and the last's end.
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    offsets: torch.Tensor


class BlockMasks(NamedTuple):
    """context: what the encoder sees of each sequence; target: what the predictor predicts. per_clip: M, sequence s is mask s % M
    of clip s // M. kept: context and target together, where masks were cut; None where they are all tokens of the grid. counted:
    the targets that enter the loss; all where None."""

    context: Packed
    target: Packed
    per_clip: int
    kept: Packed | None = None
    counted: Counted | None = None

    def without(self, ignored: torch.Tensor) -> BlockMasks:
        """The same tokens, of which `ignored`, (B, H' W') bool at every time step, are not counted. Waits for no device."""
        target = self.target
        is_padding = target.sequences == target.num_sequences
        clip = torch.where(is_padding, 0, target.sequences) // self.per_clip
        left_out = is_padding | ignored[clip, target.tokens % ignored.shape[1]]
        rows = left_out.to(torch.uint8).argsort(stable=True)
        counts = torch.zeros_like(target.offsets).scatter_add_(0, target.sequences + 1, (~left_out).int())
        offsets = counts[:-1].cumsum(0, dtype=torch.int32)
        return self._replace(counted=Counted(rows, target.tokens[rows], offsets))


def pack(hidden: NDArray[np.bool_], bucket: int = 1) -> tuple[Packed, Packed]:
    """The seen and the hidden tokens of each sequence.

    hidden: (S, N) bool. bucket: both totals are padded to a multiple of it. Returns (context, target) in host memory.
    """
    return _packed(~hidden, bucket), _packed(hidden, bucket)


def pack_cut(seen: NDArray[np.bool_], hidden: NDArray[np.bool_], per_clip: int, bucket: int = 1) -> BlockMasks:
    """Masks that leave some tokens out: (S, N) bool each, in host memory."""
    context, target, kept = (_packed(chosen, bucket) for chosen in (seen, hidden, seen | hidden))
    return BlockMasks(context, target, per_clip, kept)


def first_tokens(chosen: NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The first of the chosen tokens of each sequence, in the grid's order. chosen: (S, N) bool. counts: (S,) how many."""
    return chosen & (np.cumsum(chosen, axis=1) <= counts[:, None])


def _packed(chosen: NDArray[np.bool_], bucket: int) -> Packed:
    sequences, tokens = np.nonzero(chosen)
    padding = -len(tokens) % bucket
    counts = np.concatenate([[0], chosen.sum(axis=1), [padding]])
    return Packed(
        torch.from_numpy(np.pad(tokens, (0, padding))),
        torch.from_numpy(np.pad(sequences, (0, padding), constant_values=len(chosen))),
        torch.from_numpy(np.cumsum(counts, dtype=np.int32)),
        max(chosen.shape[1], bucket - 1),
    )


def to_device(masks: BlockMasks, device: torch.device) -> BlockMasks:
    """On `device`; from pinned memory to a GPU without waiting for it."""
    return masks if device.type == "cpu" else _each(masks, lambda part: part.to(device, non_blocking=True))


def pinned(masks: BlockMasks) -> BlockMasks:
    return _each(masks, torch.Tensor.pin_memory)


def _each(masks: BlockMasks, change: Callable[[torch.Tensor], torch.Tensor]) -> BlockMasks:
    return tree_map_only(torch.Tensor, change, masks)
