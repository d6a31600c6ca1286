"""`trocar doctor`: what this machine has, and what the absence of the rest costs. One line each."""

from __future__ import annotations

import ctypes
import importlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from typing import Literal

from .console.versions import installed_versions

Verdict = Literal["ok", "absent", "problem"]
MARKS: dict[Verdict, str] = {"ok": "ok     ", "absent": "absent ", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Finding:
    """verdict: "absent" is a capability that is merely missing, "problem" something that will fail. text: what was found and what
    follows."""

    name: str
    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{MARKS[self.verdict]}  {self.name:<12} {self.text}"


def doctor() -> list[Finding]:
    """Every check, in the order of a first look. Imports what is there; changes nothing."""
    return [check() for check in CHECKS]


def check_python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return Finding(
            "Python", "problem", f"{text}: only Linux x86-64 is tested; the CPU path may work, Triton and DALI do not"
        )
    return Finding("Python", "ok", text)


def check_torch() -> Finding:
    if (missing := _import_error("torch")) is not None:
        return Finding("torch", "problem", f"{missing}; nothing runs without it: pip install torch torchvision")
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Finding("torch", "ok", f"{torch.__version__} ({build})")


def check_torchvision() -> Finding:
    """timm imports torchvision, whose compiled part loads only beside the torch it was built for."""
    if (missing := _import_error("torchvision")) is not None:
        return Finding(
            "torchvision", "problem", f"{missing}; install the version that matches torch from the same index"
        )
    torch_cuda, vision_cuda = (_cuda_version(name) for name in ("torch", "torchvision"))
    text = f"{metadata.version('torchvision')} (CUDA {vision_cuda})" if vision_cuda else metadata.version("torchvision")
    if vision_cuda and torch_cuda != vision_cuda:
        return Finding(
            "torchvision", "problem", f"{text} beside torch for CUDA {torch_cuda}: install both from the same index"
        )
    return Finding("torchvision", "ok", f"{text}, matches torch")


def check_gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(
            "GPU", "absent", "PyTorch finds no CUDA device: training runs on the CPU, fit for demos and tests only"
        )
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("GPU", "ok", f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}")


def check_extras_match() -> Finding:
    """The extras cuda12 and cuda13 must be those of torch's own CUDA."""
    import torch

    ours = (torch.version.cuda or "").partition(".")[0]
    twelve = [*installed_versions(("nvidia-dali-cuda120", "cupy-cuda12x", "cuml-cu12"))]
    thirteen = [*installed_versions(("nvidia-dali-cuda130", "cupy-cuda13x", "cuml-cu13"))]
    if twelve and thirteen:
        names = ", ".join(twelve + thirteen)
        return Finding(
            "CUDA extras", "problem", f"both CUDA 12 and 13: {names}; uninstall one side, they share packages"
        )
    wrong = twelve if ours == "13" else thirteen if ours == "12" else []
    wrong = [name for name in wrong if name != "nvidia-dali-cuda120"]  # DALI brings its own CUDA runtime
    if wrong:
        return Finding(
            "CUDA extras",
            "problem",
            f"{', '.join(wrong)} beside torch for CUDA {ours}; in a checkout: pip install '.[cuda{ours}]'",
        )
    if not twelve and not thirteen:
        return Finding("CUDA extras", "absent", "neither the extra cuda12 nor cuda13: no DALI, CuPy, cuML")
    own = f" (beside torch for CUDA {ours}: it brings its own CUDA runtime)" if twelve and ours == "13" else ""
    return Finding("CUDA extras", "ok", ", ".join(twelve + thirteen) + own)


def check_nvdec() -> Finding:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return Finding("NVDEC", "absent", "libnvcuvid.so.1 does not load: videos are decoded on the CPU")
    return Finding("NVDEC", "ok", "libnvcuvid.so.1 loads")


def check_dali() -> Finding:
    if util.find_spec("nvidia") is None or util.find_spec("nvidia.dali") is None:
        return Finding("DALI", "absent", "GPU decoding needs it: in a checkout: pip install '.[cuda12]' or '.[cuda13]'")
    if (missing := _import_error("nvidia.dali")) is not None:
        return Finding("DALI", "problem", missing)
    return Finding("DALI", "ok", importlib.import_module("nvidia.dali").__version__)


def check_triton() -> Finding:
    if (missing := _import_error("triton")) is not None:
        return Finding("Triton", "absent", f"{missing}: the kernels run as plain PyTorch")
    return Finding("Triton", "ok", metadata.version("triton"))


def check_cuml() -> Finding:
    if util.find_spec("cuml") is None:
        return Finding("cuML", "absent", "clustering runs on scikit-learn, fit for small corpora")
    return Finding(
        "cuML", "ok", next(iter(installed_versions(("cuml-cu12", "cuml-cu13")).values()), "of unknown version")
    )


APEX: dict[str, tuple[Verdict, str]] = {
    "none": ("absent", "not needed: PyTorch's fused AdamW is used"),
    "another": ("problem", "PyPI's apex, an unrelated web toolkit: pip uninstall apex"),
    "partial": ("absent", "NVIDIA's, built without its CUDA extension: PyTorch's fused AdamW is used"),
    "whole": ("ok", "NVIDIA's, with its CUDA extension"),
}


def check_apex() -> Finding:
    """NVIDIA's, or PyPI's package of that name, which is a web toolkit."""
    from .step.optim import installed_apex

    kind, _ = installed_apex()
    return Finding("apex", *APEX[kind])


def check_nsys() -> Finding:
    path = shutil.which("nsys")
    if path is None:
        return Finding(
            "nsys", "absent", "no Nsight Systems: profiles come from torch.profiler, without decoder activity"
        )
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return Finding("nsys", "ok", shown.stdout.strip() or path)


def check_pyav() -> Finding:
    if (missing := _import_error("av")) is not None:
        return Finding("PyAV", "problem", f"{missing}; no video can be read: pip install av")
    import av

    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    return Finding("PyAV", "ok", f"{av.__version__} (libavcodec {ffmpeg}, no ffmpeg binary needed)")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_torch,
    check_torchvision,
    check_pyav,
    check_gpu,
    check_nvdec,
    check_dali,
    check_triton,
    check_cuml,
    check_extras_match,
    check_apex,
    check_nsys,
)


def _import_error(name: str) -> str | None:
    """Why a module does not import; None where it does. A broken binary raises more than ImportError."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"import {name} fails: {error}"
    return None


def _cuda_version(name: str) -> str | None:
    """The CUDA a package was built for, as "13.2"; torchvision writes that as 13020. None for a CPU build."""
    version = getattr(importlib.import_module(f"{name}.version"), "cuda", None)
    if not version:
        return None
    text = str(version)
    return text if "." in text else f"{int(text) // 1000}.{int(text) % 1000 // 10}"
