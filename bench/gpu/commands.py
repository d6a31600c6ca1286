"""`trocar bench gpu`, which `make gpu` calls."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...engine.config.error import ConfigError
from ...loaders.options import Commands


def add_commands(commands: Commands) -> None:
    gpu = commands.benches.add_parser(
        "gpu", help="tests and measurements of an NVIDIA GPU, in stages; `make gpu` calls it"
    )
    gpu.add_argument(
        "stages",
        nargs="*",
        metavar="STAGE",
        help="tests, feed, step, kernels, loading, training, compiled, cluster (default: all)",
    )
    gpu.add_argument("--videos", type=Path, metavar="DIR", help="videos of yours (default: some are made)")
    gpu.add_argument("--again", action="store_true", help="also the steps that are done")
    gpu.set_defaults(run=run_bench_gpu)


def run_bench_gpu(options: argparse.Namespace) -> int:
    from .steps import check_stages

    check_stages(options.stages)
    if options.videos and not options.videos.is_dir():
        raise ConfigError(f"--videos {options.videos}: no such folder; correct the path")
    from .run import is_success, run_stages, summary

    outcomes = run_stages(options.stages, videos=options.videos, again=options.again)
    print(summary(outcomes))
    return int(not is_success(outcomes))
