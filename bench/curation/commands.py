"""`trocar bench balance` and `clustering`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...engine.config.error import ConfigError
from ...engine.curate.commands import parse_levels
from ...loaders.options import COUNT, Commands, add_device, tell


def add_commands(commands: Commands) -> None:
    balance = commands.benches.add_parser(
        "balance", help="pretraining with balanced draws against without, on a made corpus"
    )
    balance.add_argument("--seeds", type=COUNT, default=3, help="default: 3")
    balance.add_argument("--steps", type=COUNT, default=150, help="of every run (default: 150)")
    balance.add_argument("--spans", type=COUNT, default=600, help="of the corpus (default: 600)")
    balance.add_argument("--out", type=Path, default=Path("bench/results/balance.jsonl"), metavar="FILE")
    balance.set_defaults(run=run_bench_balance)

    clustering = commands.benches.add_parser("clustering", help="seconds and memory of a tree over made rows")
    clustering.add_argument("--rows", type=COUNT, nargs="+", default=[200_000], help="default: 200000")
    clustering.add_argument("--width", type=COUNT, default=384, help="default: 384")
    clustering.add_argument("--levels", default="2000,200,20", metavar="N,N,...", help="default: 2000,200,20")
    add_device(clustering)
    clustering.add_argument("--level-only", action="store_true", help="no tree, only one level at 10 M x 768 on a GPU")
    clustering.add_argument("--out", type=Path, default=Path("bench/results/clustering.jsonl"), metavar="FILE")
    clustering.set_defaults(run=run_bench_clustering)


def run_bench_balance(options: argparse.Namespace) -> int:
    from ..rows.row import keep_rows
    from .balance import bench_balance, table

    rows = bench_balance(seeds=options.seeds, steps=options.steps, spans=options.spans, tell=tell)
    return keep_rows(options.out, rows, table)


def run_bench_clustering(options: argparse.Namespace) -> int:
    levels = parse_levels(options.levels) or ()
    import torch

    from ...engine.step.device import choose_device
    from ..rows.row import write_rows
    from .clustering import bench_clustering, bench_level, table

    device = choose_device(options.device).type
    if options.level_only and device != "cuda":
        raise ConfigError("--level-only: one level of k-means is measured on a GPU, and PyTorch finds none")
    counts = [] if options.level_only else options.rows
    rows = [bench_clustering(count, options.width, levels, device=device) for count in counts]
    print(table(rows))
    if options.level_only:  # the design's row
        rows.append(bench_level(torch.device(device), rows=10_000_000, width=768, clusters=4096))
        print({name: value for name, value in rows[-1].items() if name.endswith(("seconds", "inertia"))})
    write_rows(options.out, rows)
    return 0
