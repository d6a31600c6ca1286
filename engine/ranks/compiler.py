"""Which compiler torch.compile can use here."""

from __future__ import annotations

import shutil
import sys

import torch

from ..config.settings import CompileBackend


def choose_backend(wanted: CompileBackend) -> str:
    """What "auto" comes to: inductor where it can generate code (Triton on a GPU, a C++ compiler on a CPU), else aot_eager."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        return "inductor" if has_triton() else "aot_eager"
    return "inductor" if any(map(shutil.which, ("c++", "g++", "clang++"))) else "aot_eager"


def blocks_backend(wanted: CompileBackend, device: torch.device) -> str | None:
    """What a run compiles its blocks with; None leaves them as they are, as "auto" does where nothing would be gained by it."""
    if wanted == "none" or (wanted == "auto" and device.type != "cuda"):
        return None
    backend = choose_backend(wanted)
    return None if wanted == "auto" and backend != "inductor" else backend


def is_compilers(error: Exception) -> bool:
    """Whether a compiler of torch.compile failed, rather than what it compiled."""
    if "torch._dynamo.exc" not in sys.modules:
        return False
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
