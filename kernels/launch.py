"""Where a kernel runs, and what it refuses: the one place that knows whether Triton is there.

CUDA tensors take the Triton kernels, CPU tensors and float64 the PyTorch references. Where Triton is missing (it ships for Linux on
x86-64 alone) the modules import all the same and every tensor takes the reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

# For the tests: CPU tensors take the kernels too, in Triton's interpreter (TRITON_INTERPRET=1 before the first import).
interpret_on_cpu = False
# For the compile check: a function that is handed (kernel, arguments, options) instead of the device.
record: Callable[[Any, tuple, dict], None] | None = None
# Index ranges are always checked on the CPU. On a device the check costs a host sync; unchecked, a bad index gives NaN.
check_indices_on_device = os.environ.get("TROCAR_CHECK_INDICES") == "1"

INDEX_DTYPES = (torch.int32, torch.int64)
HALF_DTYPES = (torch.float16, torch.bfloat16)
TRITON_DTYPES = (*HALF_DTYPES, torch.float32)
FLOAT_DTYPES = (*TRITON_DTYPES, torch.float64)


def jit(function: Callable) -> Any:
    """`triton.jit`; the plain function, never called, where Triton is missing."""
    return function if triton is None else triton.jit(function)


def takes_triton(*tensors: torch.Tensor) -> bool:
    """Whether these tensors go to the Triton kernels rather than to the PyTorch reference."""
    if triton is None or any(tensor.dtype == torch.float64 for tensor in tensors):
        return False
    return tensors[0].is_cuda or interpret_on_cpu


def has_values(tensor: torch.Tensor) -> bool:
    """False where only shapes are traced: by torch.compile, or in a dry run."""
    return not (torch.compiler.is_compiling() or isinstance(tensor, FakeTensor))


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Starts `kernel` on the device of its first tensor."""
    if record is not None:
        record(kernel, arguments, options)
        return
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    if device.type != "cuda":
        kernel[grid](*arguments, **options)
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, enable_fp_fusion=True, **options)


def power_of_two(number: int, least: int = 16) -> int:
    """The smallest power of two that is at least `number` and `least`."""
    return max(least, 1 << (number - 1).bit_length())


def ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def compute_dtype(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.dtype:
    """`dtype` where given, else autocast's where that is on, else the tensor's own."""
    if dtype is not None:
        return dtype
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def require(
    name: str,
    tensor: torch.Tensor,
    *,
    dtypes: Iterable[torch.dtype],
    shape: tuple[int | None, ...],
    like: torch.Tensor,
    contiguous: bool = True,
) -> None:
    """Raises a ValueError that names the argument where it has another dtype, shape, device or layout, or is empty.

    shape: None stands for any size above zero. like: a tensor on the device that is wanted.
    """
    wanted_dtypes = tuple(dtypes)
    if tensor.dtype not in wanted_dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in wanted_dtypes)
        raise ValueError(f"{name} must be {names}, got {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.ndim != len(shape) or any(
        wanted is not None and wanted != size for wanted, size in zip(shape, tensor.shape, strict=True)
    ):
        wanted_shape = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have the shape ({wanted_shape}), got {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} must not be empty, got the shape {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the other arguments, got {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()} for {tuple(tensor.shape)}")


def require_indices(
    name: str, indices: torch.Tensor, shape: tuple[int | None, ...], bound: int, like: torch.Tensor
) -> None:
    """As `require`, for indices of any layout: also refuses those outside 0 .. bound - 1 (on a device only when asked to)."""
    require(name, indices, dtypes=INDEX_DTYPES, shape=shape, like=like, contiguous=False)
    if not has_values(indices) or not (check_indices_on_device or indices.device.type == "cpu"):
        return
    smallest, largest = indices.min().item(), indices.max().item()
    if smallest < 0 or largest >= bound:
        raise ValueError(f"{name} must lie in 0 .. {bound - 1}, got {smallest} .. {largest}")


def require_frames(frames: torch.Tensor, tubelet: int, patch: int) -> tuple[int, int, int]:
    """The grid (T/t, H/p, W/p) of frames (B, T, H, W, 3). Raises ValueError where they are not uint8, dense in rows and divisible.

    Clips, frames and rows may lie any stride apart, as in a crop; the pixels of a row must follow each other.
    """
    require("frames", frames, dtypes=(torch.uint8,), shape=(None, None, None, None, 3), like=frames, contiguous=False)
    _, num_frames, height, width, _ = frames.shape
    if num_frames % tubelet or height % patch or width % patch:
        raise ValueError(
            f"frames of {num_frames} x {height} x {width} are not divisible into patches of {tubelet} x {patch} x {patch}"
        )
    if frames.stride()[3:] != (3, 1):
        raise ValueError(f"frames must have dense rows of RGB pixels, got strides {frames.stride()}")
    return num_frames // tubelet, height // patch, width // patch
