"""The operators under measurement, each in two ways: fused, and as PyTorch has it; with the bytes and FLOPs of its formula.

Shapes: as the operators' own; `Size` is what they follow from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ...kernels.decoder_tokens import decoder_tokens, decoder_tokens_reference
from ...kernels.ema import ema
from ...kernels.feature_loss import feature_loss, feature_loss_reference
from ...kernels.kmeans_assign import kmeans_assign, kmeans_assign_reference
from ...kernels.mask_sampler import tube_mask
from ...kernels.patch_embed import patch_embed
from ...kernels.pixel_loss import patch_targets, pixel_loss
from ...kernels.rope3d import rope3d, rope3d_reference
from ...kernels.yuv_clip import yuv_clip, yuv_clip_reference
from ..gpu.steps import OPERATORS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Size:
    """What the operators' shapes follow from; the defaults are ViT-B's with 90 % masked."""

    clips: int = 32
    frames: int = 16
    resolution: int = 224
    patch: int = 16
    width: int = 768
    heads: int = 12
    decoder_width: int = 384
    ratio: float = 0.9
    parameter_shapes: tuple[tuple[int, ...], ...] = ((2304, 768), (768, 768), (3072, 768), (768, 3072), (768,)) * 12
    rows: int = 2**20
    centroids: int = 1024
    dtype: torch.dtype = torch.bfloat16

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.frames // 2, self.resolution // self.patch, self.resolution // self.patch

    @property
    def values(self) -> int:
        return 2 * self.patch**2 * 3


SIZES = {
    "base": Size(),
    "large": Size(
        width=1024,
        heads=16,
        decoder_width=512,
        parameter_shapes=((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096), (1024,)) * 24,
    ),
}


@dataclass(frozen=True)
class Case:
    """One operator, ready to run: both ways of computing the same, and what it costs at least. forward: the fused way without its
    backward pass, where there is one."""

    fused: Callable[[], Any]
    eager: Callable[[], Any]
    bytes: int
    flops: int
    forward: Callable[[], Any] | None = None


def with_backward(forward: Callable[[], Any], leaves: Sequence[torch.Tensor]) -> Callable[[], None]:
    """A call that runs `forward` and the backward pass of its output or outputs, ones upstream (made once)."""
    upstream: list[torch.Tensor] = []

    def call() -> None:
        outputs = forward()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if not upstream:
            upstream.extend(torch.ones_like(output) for output in outputs)
        torch.autograd.grad(outputs, leaves, upstream)

    return call


def trained(ways: Sequence[Callable[[], Any]], leaves: Sequence[torch.Tensor], moved: int, flops: int = 0) -> Case:
    """ways: fused and eager, each with its backward pass."""
    fused, eager = (with_backward(way, leaves) for way in ways)
    return Case(fused, eager, moved, flops, ways[0])


def batch(size: Size, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """frames, visible, masked."""
    shape = (size.clips, size.frames, size.resolution, size.resolution, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    visible, masked = tube_mask(0, range(size.clips), [0] * size.clips, size.grid, size.ratio, device)
    return frames, visible, masked


def patch_embed_case(size: Size, device: torch.device) -> Case:
    frames, visible, _ = batch(size, device)
    tokens = math.prod(size.grid)
    weight = torch.randn(size.width, 3, 2, size.patch, size.patch, device=device) * 0.02
    bias = torch.zeros(size.width, device=device)
    leaves = [weight.requires_grad_(), bias.requires_grad_()]
    positions = torch.randn(tokens, size.width, device=device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1, 1) for values in (MEAN, STD))

    def eager() -> torch.Tensor:
        """The usual path: normalise everything, embed everything, then drop what is masked."""
        pixels = (frames.permute(0, 4, 1, 2, 3).float() / 255 - mean) / std
        embedded = F.conv3d(pixels.to(size.dtype), weight.to(size.dtype), bias.to(size.dtype), stride=weight.shape[2:])
        embedded = embedded.flatten(2).mT + positions.to(size.dtype)
        return embedded.gather(1, visible[..., None].expand(-1, -1, size.width))

    def fused() -> torch.Tensor:
        return patch_embed(frames, visible, weight, bias, positions, MEAN, STD, dtype=size.dtype)

    rows, item = visible.numel(), size.dtype.itemsize
    moved = 2 * rows * size.values + 2 * rows * size.width * item + 3 * weight.numel() * 4 + positions.numel() * 4
    return trained([fused, eager], leaves, moved, 4 * rows * weight.numel())


def pixel_loss_case(size: Size, device: torch.device) -> Case:
    frames, _, masked = batch(size, device)
    tokens = torch.arange(math.prod(size.grid), device=device).expand(size.clips, -1)
    leaf = torch.randn(*masked.shape, size.values, device=device).to(size.dtype).requires_grad_()

    def eager() -> torch.Tensor:
        """VideoMAE's: normalise every patch in float32, then pick the masked ones."""
        targets = patch_targets(frames, tokens, 2, size.patch, "channel", torch.float32)
        chosen = targets.gather(1, masked[..., None].expand(-1, -1, size.values))
        return F.mse_loss(leaf.float(), chosen)

    def fused() -> torch.Tensor:
        return pixel_loss(leaf, frames, masked, 2, size.patch, "channel")[0]

    moved = leaf.numel() * (1 + 2 * size.dtype.itemsize)
    return trained([fused, eager], [leaf], moved)


def decoder_tokens_case(size: Size, device: torch.device) -> Case:
    _, visible, masked = batch(size, device)
    tokens, width = math.prod(size.grid), size.decoder_width
    projected = torch.randn(*visible.shape, width, device=device).to(size.dtype).requires_grad_()
    mask_token = torch.randn(width, device=device).requires_grad_()
    arguments = (projected, mask_token, torch.randn(tokens, width, device=device), visible, masked)
    ways = [partial(function, *arguments) for function in (decoder_tokens, decoder_tokens_reference)]
    moved = (2 * size.clips * tokens * width + 2 * projected.numel()) * size.dtype.itemsize
    return trained(ways, [projected, mask_token], moved)


def feature_loss_case(size: Size, device: torch.device) -> Case:
    _, _, masked = batch(size, device)
    tokens = math.prod(size.grid)
    features = torch.randn(size.clips, tokens, size.width, device=device).to(size.dtype)
    leaf = torch.randn(*masked.shape, size.width, device=device).to(size.dtype).requires_grad_()
    ways = [
        lambda function=function: function(leaf, features, masked, "l1")[0]
        for function in (feature_loss, feature_loss_reference)
    ]
    return trained(ways, [leaf], 3 * leaf.numel() * size.dtype.itemsize)


def ema_case(size: Size, device: torch.device) -> Case:
    targets, sources = ([torch.randn(shape, device=device) for shape in size.parameter_shapes] for _ in range(2))
    copies = [target.to(size.dtype) for target in targets]
    momentum = torch.full((), 0.999, device=device)

    def eager() -> None:
        torch._foreach_lerp_(targets, sources, 0.001)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_copy_(copies, targets)  # pyright: ignore[reportPrivateImportUsage]

    count = sum(target.numel() for target in targets)
    return Case(lambda: ema(targets, sources, momentum, copies), eager, count * (12 + size.dtype.itemsize), 0)


def mask_sampler_case(size: Size, device: torch.device) -> Case:
    draws = torch.arange(size.clips, device=device)
    steps, rows, columns = size.grid
    keep = rows * columns - int(size.ratio * rows * columns)

    def eager() -> tuple[torch.Tensor, torch.Tensor]:
        """Random keys and a sort on the device: as fast as PyTorch has it, with other numbers."""
        order = torch.rand(size.clips, rows * columns, device=device).argsort(dim=1)
        starts = torch.arange(steps, device=device)[:, None] * rows * columns
        parts = (order[:, :keep].sort().values, order[:, keep:].sort().values)
        visible, masked = ((starts + part[:, None]).flatten(1) for part in parts)
        return visible, masked

    moved = size.clips * steps * rows * columns * 8
    return Case(lambda: tube_mask(0, draws, draws, size.grid, size.ratio, device), eager, moved, 0)


def rope3d_case(size: Size, device: torch.device) -> Case:
    _, visible, _ = batch(size, device)
    shape = (*visible.shape, size.heads, size.width // size.heads)
    queries, keys = leaves = [torch.randn(shape, device=device).to(size.dtype).requires_grad_() for _ in range(2)]
    ways = [partial(function, queries, keys, visible, size.grid) for function in (rope3d, rope3d_reference)]
    return trained(ways, leaves, 8 * leaves[0].numel() * size.dtype.itemsize)


def kmeans_assign_case(size: Size, device: torch.device) -> Case:
    rows, centroids = (torch.randn(count, size.width, device=device) for count in (size.rows, size.centroids))
    rows, centroids = rows.to(size.dtype), centroids.to(size.dtype)
    sums = torch.zeros(size.centroids, size.width, device=device)
    counts = torch.zeros(size.centroids, dtype=torch.int64, device=device)

    def eager() -> None:
        for block in rows.split(2**16):
            labels, _ = kmeans_assign_reference(block, centroids)
            sums.index_add_(0, labels, block.float())

    moved = 2 * rows.numel() * size.dtype.itemsize + size.rows * 12
    flops = 2 * rows.numel() * size.centroids
    return Case(lambda: kmeans_assign(rows, centroids, sums, counts), eager, moved, flops)


def yuv_clip_case(size: Size, device: torch.device) -> Case:
    """The pictures of `clips` proxies, 456 x 256 in NV12, cut to the largest square."""
    height, width, pictures = 256, 456, size.clips * size.frames
    luma = torch.randint(16, 236, (pictures, height, width), dtype=torch.uint8, device=device)
    chroma = torch.randint(64, 192, (pictures, height // 2, width // 2, 2), dtype=torch.uint8, device=device)
    planes, box = (luma, chroma[..., 0], chroma[..., 1]), ((width - height) // 2, 0, height, height)
    moved = pictures * (height * height * 3 // 2 + 3 * size.resolution**2)
    return Case(
        lambda: yuv_clip(*planes, box, size.resolution),
        lambda: yuv_clip_reference(*planes, box, size.resolution, "bt601", False, 0, False),
        moved,
        0,
    )


CASES: dict[str, Callable[[Size, torch.device], Case]] = {name: globals()[f"{name}_case"] for name in OPERATORS}
