"""The steps of `make gpu`: what is tested and measured on a machine with an NVIDIA GPU, in eight stages of at most eight minutes.

A command's `{out}` is the file its rows go to, `{videos}` a folder of videos, `{work}` a folder for what is made on the way. A
step's limit counts for all of its processes; the limits of a stage add up to no more than STAGE_SECONDS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...engine.config.error import ConfigError

STAGE_SECONDS = 470
DALI = ("nvidia.dali",)
OPERATORS = (
    "patch_embed", "pixel_loss", "decoder_tokens", "feature_loss", "ema", "mask_sampler", "rope3d", "kmeans_assign", "yuv_clip",
)  # fmt: skip
KERNEL_TESTS = tuple(f"kernels/{name}" for name in (*OPERATORS, "row_sums", "yuv_clips", "launch", "kernel_compile"))


@dataclass(frozen=True)
class GpuStep:
    """name: in its stage. runs: what the command's arguments are for; "module" has one as its first. seconds: its limit. needs:
    modules without which it cannot run at all; only optional packages, and PyAV, which a machine may lack where nothing is decoded.
    makes_videos: left out where there are some."""

    name: str
    command: tuple[str, ...]
    seconds: int
    needs: tuple[str, ...] = ()
    runs: Literal["trocar", "pytest", "module"] = "trocar"
    makes_videos: bool = False


def _tests(name: str, files: tuple[str, ...], seconds: int, needs: tuple[str, ...] = ()) -> GpuStep:
    places = [file.rpartition("/") for file in files]
    paths = tuple(f"tests/{folder}/test_{name}.py" for folder, _, name in places)
    return GpuStep(name, ("-m", "not slow", *paths), seconds, needs, "pytest")


def _bench(name: str, command: str, seconds: int, needs: tuple[str, ...] = ()) -> GpuStep:
    return GpuStep(name, tuple(command.split()), seconds, needs)


VIDEOS = GpuStep("videos", ("trocar.bench.gpu.videos", "{work}"), 60, ("av",), "module", makes_videos=True)
PEERS = ("bench", "training", "--device", "cuda", "--parts")
INDEX = _bench("index", "index {videos} --out {work}/corpus", 20, ("av",))
PACK = _bench("pack", "pack {work}/corpus --out {work}/packed", 60, ("av",))
STAGES: dict[str, tuple[GpuStep, ...]] = {
    "tests": (
        _tests("kernels", KERNEL_TESTS, 220),
        _tests("models", ("kernels/mae_kernels", "kernels/jepa_kernels"), 90),
        _tests("clustering", ("loaders/curate/kmeans",), 40, ("av",)),
        _tests("decoding", ("loaders/dali", "loaders/decode/dali_pipeline"), 80, ("av", *DALI)),
        _tests("sessions", ("loaders/nvdec",), 40, ("av", "PyNvVideoCodec")),
    ),
    # Trained clips/s behind decoding threads and processes against the same step on resident data: what all else depends on.
    "feed": (
        _bench("dali-cache", "bench dali-cache --out {out}", 60, ("av", *DALI)),
        VIDEOS,
        INDEX,
        PACK,
        _tests("workers", ("loaders/decode/workers", "engine/record/device_time"), 70, ("av",)),
        _bench("feed", "bench feed {work}/packed --rounds 2 --out {out}", 200, ("av",)),
    ),
    # Each switch of the step apart, on resident data.
    "step": (
        _tests("graphs", ("engine/step/graphs", "engine/step/weight_copies", "engine/step/attention"), 110),
        *(
            GpuStep(f"switches-{model}", ("trocar.bench.training.switches", model, "{out}"), 120, (), "module")
            for model in ("mae-base", "mae-large", "jepa-large")
        ),
    ),
    "kernels": tuple(_bench(name, f"bench kernels {name} --out {{out}}", 52) for name in OPERATORS),
    "loading": (
        VIDEOS,
        INDEX,
        PACK,
        _bench("decode", "bench decode --quick --out {out}", 180, ("av", *DALI)),
        _bench(
            "loaders",
            "bench loading {work}/corpus --packed {work}/packed --clips 32 --rounds 7 --json {out}",
            150,
            ("av",),
        ),
    ),
    "training": (
        VIDEOS,
        INDEX,
        GpuStep(
            "peers",
            (*PEERS, "peers", "decoder-mask", "--peers", "Hugging Face, SDPA", "Hugging Face, eager attention", "--out", "{out}"),
            110,
            ("av", "transformers"),
        ),
        _bench("steps", "bench training --device cuda --parts steps --out {out}", 110, ("av",)),
        _bench("end-to-end", "bench training --device cuda --parts end-to-end --out {out}", 110, ("av", "transformers")),
        _bench(
            "profile",
            "profile surgrec_mae_unbalanced data.corpus={work}/corpus run.device=cuda optim.batch=32 optim.accumulation=1 "
            "--steps 10:20 --out {work}/profile --json {out}",
            60,
            ("av",),
        ),
    ),
    # Apart from the others, as compiling a peer may take all the time that there is.
    "compiled": (
        GpuStep(
            "compiled-peer",
            (*PEERS, "peers", "--peers", "Hugging Face, torch.compile", "--rounds", "3", "--out", "{out}"),
            460,
            ("av", "transformers"),
        ),
    ),
    "cluster": (
        _bench("tree", "bench clustering --rows 1000000 --width 768 --levels 2000,200,20 --device cuda --out {out}", 240, ("av",)),
        _bench("level", "bench clustering --level-only --device cuda --out {out}", 180, ("av",)),
    ),
}  # fmt: skip

# Stages whose rows go to another's file: there are few files.
ROWS_OF = {"compiled": "training"}


def check_stages(names: Sequence[str], stages: Mapping[str, Sequence[GpuStep]] = STAGES) -> None:
    """Raises ConfigError where one of them is no stage."""
    if unknown := [name for name in names if name not in stages]:
        raise ConfigError(f"STAGE={','.join(unknown)}: no such stage; there are {', '.join(stages)}")
