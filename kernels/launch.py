"""Where a kernel runs, and what it refuses: the one place that knows whether Triton is there.

CUDA tensors take the Triton kernels, CPU tensors and float64 the PyTorch references. Where Triton is missing (it ships for Linux on
x86-64 alone) the modules import all the same and every tensor takes the reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

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
MAX_LAYOUTS = 1024
Asked = TypeVar("Asked", bound=Callable)


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


def is_watched() -> bool:
    """Whether PyTorch looks on: a compiler, a mode that sees operators (shapes traced, FLOPs counted), a functional transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def by_layout(function: Asked) -> Asked:
    """`function`, asked once for arguments of equal shapes, strides, dtypes and devices and equal settings.

    For what follows from these alone: checks, sizes, grids. Arguments are positional, settings hashable. One that raised is asked
    again.
    """
    known: dict[tuple, Any] = {}

    @wraps(function)
    def asked(*arguments: Any) -> Any:
        if is_watched():
            return function(*arguments)
        key = tuple(
            [
                (part.shape, part.stride(), part.dtype, part.device) if isinstance(part, torch.Tensor) else part
                for part in arguments
            ]
        )
        if key not in known:
            found = function(*arguments)
            if len(known) >= MAX_LAYOUTS:
                known.clear()
            known[key] = found
        return known[key]

    return asked  # pyright: ignore[reportReturnType]


def directly(operator: Any, *arguments: Any, changed: Sequence[torch.Tensor] = ()) -> Any:
    """A custom operator outside of autograd, past PyTorch's dispatcher where nobody looks on: that costs the host less.

    changed: what it changes in place, which autograd is told of.
    """
    if is_watched():
        return operator(*arguments)
    result = operator._init_fn(*arguments)
    if changed:
        note_changed(changed)
    return result


def note_changed(tensors: Sequence[torch.Tensor]) -> None:
    """Tells autograd of what a kernel has changed in place."""
    if _versions_take_lists():
        increment_version(tensors)
    else:
        for tensor in tensors:
            increment_version(tensor)


@lru_cache(maxsize=1)
def _versions_take_lists() -> bool:
    """Older versions of PyTorch take a tensor at a time."""
    try:
        increment_version([])
    except (TypeError, RuntimeError):
        return False
    return True


def differentiable(operator: Any, backward: Callable, setup_context: Callable) -> Callable:
    """Registers an operator's backward pass. Returns the operator as it is to be called: as `directly`, with that backward pass."""
    operator.register_autograd(backward, setup_context=setup_context)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = operator._init_fn(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx, *gradients):  # pyright: ignore[reportIncompatibleMethodOverride]
            return backward(ctx, *gradients)

    def call(*arguments: Any) -> Any:
        return operator(*arguments) if is_watched() else Direct.apply(*arguments)

    return call


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Starts `kernel` on the device of its first tensor."""
    if record is not None:
        record(kernel, arguments, options)
        return
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    if device.type != "cuda":
        kernel[grid](*arguments, **options)
        return
    if device.index == torch.cuda.current_device():
        kernel[grid](*arguments, enable_fp_fusion=True, **options)
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
    require_range(name, indices, bound)


def require_range(name: str, indices: torch.Tensor, bound: int) -> None:
    """Raises a ValueError where an index lies outside 0 .. bound - 1; on a device only when asked to."""
    if not (check_indices_on_device or indices.device.type == "cpu") or not has_values(indices):
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
