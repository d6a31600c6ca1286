"""`trocar bench kernels`: every fused operator against its eager reference and against that reference under torch.compile.

Forward and backward where there is one, in the shapes of ViT-B (or ViT-L) on 16 frames at 224 pixels. An operator's tests run
first: where they fail, its speed is not measured. `bytes` is what the operator must move at least, each input read and each output
written once; `flops` what it must multiply and add. The floor is the longer of both at the ceilings measured in the same process.

Shapes: B clips, N = 1568 tokens, K = 1536 values a patch, D width.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...engine.console.table import Table
from ...kernels.decoder_tokens import decoder_tokens, decoder_tokens_reference
from ...kernels.ema import ema
from ...kernels.feature_loss import feature_loss, feature_loss_reference
from ...kernels.kmeans_assign import kmeans_assign, kmeans_assign_reference
from ...kernels.mask_sampler import tube_mask
from ...kernels.patch_embed import patch_embed
from ...kernels.pixel_loss import patch_targets, pixel_loss
from ...kernels.rope3d import rope3d, rope3d_reference
from ...loaders.video.error import TrocarError
from ..rows.cells import known_cell, share_cell
from ..rows.row import row, write_rows
from ..rows.timing import Ceilings, measure_ceilings, time_call

TESTS = Path(__file__).resolve().parents[2] / "tests" / "kernels"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BenchError(TrocarError):
    """A measurement that cannot be made, or must not be."""


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
    """One operator, ready to run: both ways of computing the same, and what it costs at least."""

    fused: Callable[[], Any]
    eager: Callable[[], Any]
    bytes: int
    flops: int


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


def batch(size: Size, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """frames, visible, masked."""
    shape = (size.clips, size.frames, size.resolution, size.resolution, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    visible, masked = tube_mask(0, range(size.clips), [0] * size.clips, size.grid, size.ratio, device)
    return frames, visible, masked


def patch_embed_case(size: Size, device: torch.device) -> Case:
    frames, visible, _ = batch(size, device)
    tokens = size.grid[0] * size.grid[1] * size.grid[2]
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
    return Case(with_backward(fused, leaves), with_backward(eager, leaves), moved, 4 * rows * weight.numel())


def pixel_loss_case(size: Size, device: torch.device) -> Case:
    frames, _, masked = batch(size, device)
    tokens = torch.arange(size.grid[0] * size.grid[1] * size.grid[2], device=device).expand(size.clips, -1)
    leaf = torch.randn(*masked.shape, size.values, device=device).to(size.dtype).requires_grad_()

    def eager() -> torch.Tensor:
        """VideoMAE's: normalise every patch in float32, then pick the masked ones."""
        targets = patch_targets(frames, tokens, 2, size.patch, "channel", torch.float32)
        chosen = targets.gather(1, masked[..., None].expand(-1, -1, size.values))
        return F.mse_loss(leaf.float(), chosen)

    def fused() -> torch.Tensor:
        return pixel_loss(leaf, frames, masked, 2, size.patch, "channel")[0]

    moved = leaf.numel() * (1 + 2 * size.dtype.itemsize)
    return Case(with_backward(fused, [leaf]), with_backward(eager, [leaf]), moved, 0)


def decoder_tokens_case(size: Size, device: torch.device) -> Case:
    _, visible, masked = batch(size, device)
    tokens, width = size.grid[0] * size.grid[1] * size.grid[2], size.decoder_width
    projected = torch.randn(*visible.shape, width, device=device).to(size.dtype).requires_grad_()
    mask_token = torch.randn(width, device=device).requires_grad_()
    arguments = (projected, mask_token, torch.randn(tokens, width, device=device), visible, masked)
    calls = [
        with_backward(lambda function=function: function(*arguments), [projected, mask_token])
        for function in (decoder_tokens, decoder_tokens_reference)
    ]
    moved = (2 * size.clips * tokens * width + 2 * projected.numel()) * size.dtype.itemsize
    return Case(calls[0], calls[1], moved, 0)


def feature_loss_case(size: Size, device: torch.device) -> Case:
    _, _, masked = batch(size, device)
    tokens = size.grid[0] * size.grid[1] * size.grid[2]
    features = torch.randn(size.clips, tokens, size.width, device=device).to(size.dtype)
    leaf = torch.randn(*masked.shape, size.width, device=device).to(size.dtype).requires_grad_()
    calls = [
        with_backward(lambda function=function: function(leaf, features, masked, "l1")[0], [leaf])
        for function in (feature_loss, feature_loss_reference)
    ]
    return Case(calls[0], calls[1], 3 * leaf.numel() * size.dtype.itemsize, 0)


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
    calls = [
        with_backward(lambda function=function: function(queries, keys, visible, size.grid), leaves)
        for function in (rope3d, rope3d_reference)
    ]
    return Case(calls[0], calls[1], 8 * leaves[0].numel() * size.dtype.itemsize, 0)


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


CASES: dict[str, Callable[[Size, torch.device], Case]] = {
    "patch_embed": patch_embed_case,
    "pixel_loss": pixel_loss_case,
    "decoder_tokens": decoder_tokens_case,
    "feature_loss": feature_loss_case,
    "ema": ema_case,
    "mask_sampler": mask_sampler_case,
    "rope3d": rope3d_case,
    "kmeans_assign": kmeans_assign_case,
}


def check_tests(name: str, tests: Path = TESTS) -> None:
    """Runs the operator's tests. Raises BenchError where they fail or are not there: a speed without them says nothing."""
    path = tests / f"test_{name}.py"
    if not path.exists():
        raise BenchError(f"{path} is missing: no speed without its tests; run from a checkout")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, env=environment, cwd=tests.parent, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{name} is not measured: its tests fail\n{done.stdout[-2000:]}")


def measure(
    name: str, size: Size, device: torch.device, ceilings: Ceilings, *, repeats: int = 50
) -> Iterator[dict[str, Any]]:
    """Times one operator. Yields its row's figures, on a GPU twice: before its reference is compiled, which may take all the time
    there is, and with that. "of_floor" is floor time / measured time; "compiled_reason" says why there is no compiled reference."""
    case = CASES[name](size, device)
    fused = time_call(case.fused, device, repeats=repeats)
    eager = time_call(case.eager, device, repeats=repeats)
    seconds = fused.median_seconds
    floor = max(case.bytes / ceilings.copy_bytes_per_second, case.flops / ceilings.matrix_flops_per_second)
    found = {
        "operator": name,
        "dtype": str(size.dtype).removeprefix("torch."),
        "clips": size.clips,
        "width": size.width,
        "seconds": seconds,
        "spread_percent": fused.spread_percent,
        "repeats": fused.repeats,
        "eager_seconds": eager.median_seconds,
        "compiled_seconds": None,
        "compiled_reason": "not measured",
        "times_eager": eager.median_seconds / seconds,
        "times_compiled": None,
        "gigabytes_per_second": case.bytes / seconds / 1e9,
        "teraflops_per_second": case.flops / seconds / 1e12,
        "of_copy_bandwidth": case.bytes / seconds / ceilings.copy_bytes_per_second,
        "of_matrix_ceiling": case.flops / seconds / ceilings.matrix_flops_per_second,
        "of_floor": floor / seconds,
        "copy_gigabytes_per_second": ceilings.copy_bytes_per_second / 1e9,
        "matrix_teraflops_per_second": ceilings.matrix_flops_per_second / 1e12,
    }
    yield found
    if device.type == "cuda":
        try:
            compiled = time_call(torch.compile(case.eager), device, repeats=repeats).median_seconds
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises is its own reason, and no other row's
            said = (str(error).strip().splitlines() or ["no message"])[0]
            yield {**found, "compiled_reason": f"{type(error).__name__}: {said[:200]}"}
        else:
            times = compiled / seconds
            yield {**found, "compiled_seconds": compiled, "compiled_reason": "", "times_compiled": times}


def bench_kernels(names: Sequence[str] = (), *, size: str = "base", out: Path | None = None) -> list[dict[str, Any]]:
    """Measures the named operators, all where none is named, on the first GPU, and writes the rows to `out` as they come.

    size: "base" or "large". Raises BenchError without an NVIDIA GPU, on unknown names, and where an operator's tests fail.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown or size not in SIZES:
        raise BenchError(
            f"unknown {', '.join(unknown) or size}; operators: {', '.join(CASES)}; sizes: {', '.join(SIZES)}"
        )
    if not torch.cuda.is_available():
        raise BenchError("no NVIDIA GPU: on a CPU the operators are their references, and there is nothing to measure")
    device = torch.device("cuda", 0)
    ceilings = measure_ceilings(device, SIZES[size].dtype)
    rows: list[dict[str, Any]] = []
    for name in names or CASES:
        check_tests(name)
        unfinished: list[dict[str, Any]] = []
        for figures in measure(name, SIZES[size], device, ceilings):
            unfinished = [row("kernels", device, {"size": size, **figures})]
            if out is not None:
                write_rows(out, [*rows, *unfinished])
        rows += unfinished
        torch.cuda.empty_cache()
    return rows


COLUMNS: dict[str, str | Callable[[Any], str]] = {
    "operator": "{operator}",
    "time": lambda row: f"{row['seconds'] * 1e6:.0f} us +- {row['spread_percent'] / 2:.0f} %",
    "against eager": "{times_eager:.1f}x",
    "against torch.compile": known_cell("times_compiled", "{:.1f}x"),
    "GB/s": "{gigabytes_per_second:.0f}",
    "TFLOP/s": "{teraflops_per_second:.0f}",
    "of its floor": share_cell("of_floor"),
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, as docs/kernels.md has them."""
    return Table.of(rows, COLUMNS).markdown()
