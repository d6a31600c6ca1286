"""`trocar bench kernels`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...engine.config.error import ConfigError
from ...loaders.options import Commands


def add_commands(commands: Commands) -> None:
    kernels = commands.benches.add_parser(
        "kernels", help="each kernel against eager PyTorch and torch.compile; needs an NVIDIA GPU"
    )
    kernels.add_argument("operators", nargs="*", metavar="OPERATOR", help="default: all")
    kernels.add_argument("--size", default="base", choices=("base", "large"), help="shapes of ViT-B or ViT-L")
    kernels.add_argument("--out", type=Path, default=Path("bench/results/kernels.jsonl"), metavar="FILE")
    kernels.set_defaults(run=run_bench_kernels)


def run_bench_kernels(options: argparse.Namespace) -> int:
    from ..gpu.steps import OPERATORS

    if unknown := [name for name in options.operators if name not in OPERATORS]:
        raise ConfigError(f"{', '.join(unknown)}: no such operator; there are {', '.join(OPERATORS)}")
    from .kernels import bench_kernels, table

    rows = bench_kernels(options.operators, size=options.size, out=options.out)
    print(table(rows))
    return 0
