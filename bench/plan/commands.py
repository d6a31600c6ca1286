"""`trocar plan`, and `trocar bench plan`, which holds it against the clock."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...engine.config.error import ConfigError
from ...loaders.options import COUNT, FILE, TOTAL, VIEWS, Commands, tell


def add_commands(commands: Commands) -> None:
    plan = commands.add("plan", task="measurements", text="what a run on a cluster will take, and what holds it up")
    plan.add_argument("config", metavar="CONFIG", help="the recipe, as for trocar pretrain")
    plan.add_argument("overrides", nargs="*", metavar="section.key=value")
    plan.add_argument("--cluster", default="a100_8", metavar="NAME|YAML", help="default: a100_8")
    plan.add_argument("--corpus", type=Path, metavar="CORPUS", help="an index of the original videos")
    plan.add_argument(
        "--packed", metavar="CORPUS", help="an index of their proxies, and what trocar pack took for them"
    )
    plan.add_argument("--videos", type=COUNT, help="number of videos, where there is no index")
    plan.add_argument("--frames", type=TOTAL, help="their frames in all, where there is no index")
    plan.add_argument("--rates", nargs="+", type=Path, metavar="JSONL", help="rows of yours (default: those shipped)")
    plan.add_argument("--views", type=VIEWS, default=4, help="a span, in the arms with span reuse (default: 4)")
    plan.add_argument("--json", type=FILE, metavar="FILE", help="write the arms there as well")
    plan.set_defaults(run=run_plan)

    plan = commands.benches.add_parser("plan", help="trocar plan's model against the clock, on the CPU")
    plan.add_argument("--rounds", type=COUNT, default=3, help="how often each setting runs, in turns (default: 3)")
    plan.add_argument("--steps", type=COUNT, default=12, help="steps that are timed (default: 12)")
    plan.add_argument("--out", type=Path, default=Path("bench/results/plan.jsonl"), metavar="FILE")
    plan.set_defaults(run=run_bench_plan)


def run_plan(options: argparse.Namespace) -> int:
    import json

    from ...engine.config.file import load_config
    from ...loaders.corpus.folder import corpus_folder
    from ..rows.row import read_rows
    from .cluster import load_cluster

    own = [f"data.corpus={options.corpus}"] if options.corpus else []
    config, cluster = load_config(options.config, [*options.overrides, *own]), load_cluster(options.cluster)
    given = [row for path in options.rates or () for row in read_rows(path)]
    places = [corpus_folder(path) if path else None for path in (options.corpus, options.packed)]
    if not (options.corpus or (options.videos and options.frames)):
        raise ConfigError("give --corpus CORPUS, an index of the originals, or both --videos and --frames")
    if cluster.gpus_per_node and config.run.device == "cpu":
        tell(f"the recipe is for a CPU (run.device), planned as on {cluster.name}; --cluster names another")
    from ...loaders.corpus.corpus import Corpus
    from .corpus import measure_corpora
    from .rates import shipped_rows
    from .report import corpus_size, make_plan, rows_of
    from .table import table

    originals, proxies = (place and Corpus.open(place) for place in places)
    rows = given if options.rates else shipped_rows()
    size = corpus_size(options.corpus, options.videos, options.frames, config, cluster)
    measured = measure_corpora(originals, proxies, config)
    plan = make_plan(config, cluster, size, rows, views=options.views, measured=measured)
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows_of(plan)), encoding="utf-8")
    print(table(plan))
    return 0


def run_bench_plan(options: argparse.Namespace) -> int:
    from ..rows.row import keep_rows
    from .check import bench_plan, table

    rows = bench_plan(rounds=options.rounds, steps=options.steps, tell=tell)
    return keep_rows(options.out, rows, table)
