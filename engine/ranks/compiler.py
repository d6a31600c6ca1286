"""Which compiler torch.compile can use here."""

from __future__ import annotations

import shutil
from typing import Literal

import torch


def choose_backend(wanted: Literal["auto", "inductor", "aot_eager"]) -> str:
    """What "auto" comes to: inductor where it can generate code (Triton on a GPU, a C++ compiler on a CPU), else aot_eager."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        return "inductor" if has_triton() else "aot_eager"
    return "inductor" if any(map(shutil.which, ("c++", "g++", "clang++"))) else "aot_eager"
