"""The commands of curation: corpus, embed, cluster, and `view draws`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...loaders.corpus.folder import SCORES, corpus_folder
from ...loaders.options import COUNT, FILE, FROM_ZERO, INDEX, PASSES, PNG, SCORE, SEED, Commands, add_device, folder
from ..config.error import ConfigError

if TYPE_CHECKING:
    from ...loaders.draw.where import Condition

GROUP_TIMEOUT = 24 * 3600.0  # seconds that processes wait for the first, which clusters in memory alone


def add_commands(commands: Commands) -> None:
    _add_corpus(commands.add("corpus", task="corpus", text="what a corpus holds"))
    _add_embed(commands.add("embed", task="corpus", text="one vector for every span of a corpus; resumable"))
    _add_cluster(
        commands.add(
            "cluster",
            task="corpus",
            text="embeddings to a tree of clusters, and a report; torchrun splits it over GPUs",
        )
    )
    _add_views(commands)


def _add_corpus(corpus: argparse.ArgumentParser) -> None:
    reports = corpus.add_subparsers(required=True, metavar="WHAT")
    report = reports.add_parser("report", help="videos, frames and hours by source and domain, beside the paper's")
    report.add_argument("corpus", metavar="CORPUS", help="folder that `trocar index` wrote")
    report.add_argument(
        "--where",
        metavar="EXPRESSION",
        help="what data.where would leave out (default: of each fault that is screened for)",
    )
    report.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="of `trocar view screen --label`, filled in: how much is left out wrongly",
    )
    report.set_defaults(run=run_corpus_report)
    sources = reports.add_parser("sources", help="the public sources of the paper's corpus, as far as they are known")
    sources.add_argument("--file", type=Path, metavar="YAML", help="default: ours, configs/corpus/surgrec.yaml")
    sources.set_defaults(run=run_corpus_sources)
    export = reports.add_parser("export", help="the draws of a config as a table, for other trainers")
    _add_draws(export)
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .csv or .parquet file")
    export.set_defaults(run=run_export)


def _add_embed(embed: argparse.ArgumentParser) -> None:
    embed.add_argument("corpus", metavar="CORPUS")
    embed.add_argument("--out", required=True, type=folder, metavar="EMBEDDINGS")
    embed.add_argument("--model", default="descriptor", metavar="MODEL", help="descriptor, timm:MODEL[@FILE], or a run")
    embed.add_argument("--frames", type=COUNT, default=16, help="of a span's clip (default: 16; a run brings its own)")
    embed.add_argument("--stride", type=COUNT, default=4, help="from one to the next (default: 4)")
    embed.add_argument(
        "--workers", type=COUNT, default=1, help="processes, each on a GPU of its own where there are several"
    )
    embed.add_argument("--threads", type=COUNT, help="decoding threads of each (default: as the cores allow)")
    add_device(embed)
    embed.add_argument("--part", default="0/1", metavar="I/N", help="every N-th shard from the I-th on, for N machines")
    embed.add_argument("--rows-per-shard", type=COUNT, default=4096, help="default: 4096")
    embed.set_defaults(run=run_embed)


def _add_cluster(cluster: argparse.ArgumentParser) -> None:
    cluster.add_argument("embeddings", metavar="EMBEDDINGS", help="folder that `trocar embed` wrote")
    cluster.add_argument("--out", required=True, type=folder, metavar="TREE")
    cluster.add_argument(
        "--levels", metavar="N,N,...", help="clusters, the spans' level first (default: by their number)"
    )
    for name, kind, text in (
        ("resampling", FROM_ZERO, "rounds of resampling on every level (default: 5)"),
        ("restarts", COUNT, "starts of every fit (default: 2)"),
        ("passes", PASSES, "over all rows, 2 .. 5 (default: 5)"),
        ("sample-per-cluster", COUNT, "rows of level 1 that are clustered in memory (default: 128)"),
        ("seed", SEED, "default: 0"),
    ):
        cluster.add_argument(f"--{name}", type=kind, help=text)
    add_device(cluster)
    cluster.add_argument(
        "--duplicates", action="store_true", help="measure near-duplicates in all leaves: for data.thin"
    )
    cluster.add_argument("--corpus", metavar="CORPUS", help="report sources and domains, and show exemplars")
    cluster.set_defaults(run=run_cluster)


def _add_views(commands: Commands) -> None:
    screen = commands.views.add_parser("screen", help="spans of a screened corpus by a score, pictures to look at")
    screen.add_argument("corpus", metavar="CORPUS", help="folder that `trocar screen` wrote to")
    screen.add_argument("--by", default="in_body", choices=SCORES, help="what they are ordered by (default: in_body)")
    screen.add_argument(
        "--threshold", type=SCORE, default=0.5, help="where a line is drawn between them (default: 0.5)"
    )
    screen.add_argument("--out", type=PNG, default=Path("screen.png"), metavar="PNG", help="default: screen.png")
    screen.add_argument("--spans", type=COUNT, default=48, help="how many (default: 48)")
    screen.add_argument(
        "--label", type=Path, metavar="CSV", help="write a table of the same spans, to be filled in by hand"
    )
    screen.set_defaults(run=run_view_screen)

    draws = commands.views.add_parser("draws", help="what a config draws: shares, and a contact sheet")
    _add_draws(draws)
    draws.add_argument("--out", type=PNG, default=Path("draws.png"), metavar="PNG", help="default: draws.png")
    draws.add_argument("--clips", type=COUNT, default=48, help="of the contact sheet (default: 48)")
    draws.add_argument("--json", type=FILE, metavar="FILE", help="write the shares as numbers, too")
    draws.set_defaults(run=run_view_draws)


def _add_draws(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, a run's, or one of ours")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example data.balance=0.5")
    parser.add_argument("--draws", type=COUNT, help="how many (default: an epoch, at most 100,000)")
    parser.add_argument("--first", type=INDEX, default=0, help="the first of them (default: 0)")


def parse_levels(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--levels {text}: give numbers with commas between them, for example 2000,200,20") from error


def run_corpus_report(options: argparse.Namespace) -> int:

    corpus_folder(options.corpus)
    where = None if options.where is None else checked_where(options.where)
    if options.labels is not None and not options.labels.is_file():
        raise ConfigError(f"--labels {options.labels}: no such file; write it with `trocar view screen --label`")
    from ...loaders.corpus.corpus import Corpus
    from ...loaders.draw.screened import has_screen
    from .corpus_report import corpus_report
    from .screen_labels import labels_report
    from .screen_report import screen_report

    corpus = Corpus.open(options.corpus)
    # Read first: what is wrong with the table is said before the report.
    labels = None if options.labels is None else labels_report(corpus, options.labels)
    print(corpus_report(corpus))
    if where is not None or has_screen(corpus):
        print(f"\n{screen_report(corpus, where)}")
    if labels is not None:
        print(f"\n{labels}")
    return 0


def checked_where(text: str) -> Condition:
    """Raises ConfigError."""
    from ...loaders.draw.where import parse_where

    try:
        return parse_where(text)
    except ValueError as error:
        raise ConfigError(f"--where: {error}") from error


def run_corpus_sources(options: argparse.Namespace) -> int:
    if options.file is not None and not options.file.is_file():
        raise ConfigError(f"--file {options.file}: no such file; see configs/corpus/surgrec.yaml")
    from .corpus_report import load_sources, sources_table

    print(sources_table(load_sources(options.file)))
    return 0


def run_embed(options: argparse.Namespace) -> int:
    from ..inputs.folders import embedder_source

    part, separator, parts = options.part.partition("/")
    if not (separator and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ConfigError(f"--part {options.part}: give I/N with 0 <= I < N, for example 0/4")
    corpus_folder(options.corpus)
    embedder_source(options.model)
    from ..inputs.finished import finished_embeddings

    names = ("model", "frames", "stride", "rows_per_shard")
    wanted = {**{name: getattr(options, name) for name in names}, "part": (int(part), int(parts))}
    summary = finished_embeddings(options.corpus, Path(options.out), **wanted)
    if summary is None:
        from .embed import embed_corpus

        more = {name: getattr(options, name) for name in ("workers", "threads", "device")}
        summary = embed_corpus(options.corpus, options.out, **wanted, **more)
    print("\n".join(summary.lines()))
    return 0


def run_cluster(options: argparse.Namespace) -> int:
    from ...loaders.corpus.folder import embeddings_folder

    embeddings_folder(options.embeddings)
    if options.corpus is not None:
        corpus_folder(options.corpus)
    from ...loaders.corpus.corpus import Corpus
    from ...loaders.curate.settings import ClusterSettings, finished_tree
    from ..inputs.finished import current_report

    names = ("resampling", "restarts", "passes", "sample_per_cluster", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = ClusterSettings(levels=parse_levels(options.levels), **given)
    corpus = None if options.corpus is None else Corpus.open(options.corpus)
    done = finished_tree(options.embeddings, options.out, settings)
    report = None if done is None else current_report(done.out, corpus)
    if done is not None and report is not None:
        if os.environ.get("RANK", "0") == "0":
            print("\n".join([*done.lines(), str(report)]))
        return 0
    from ...loaders.curate.cluster import cluster_embeddings
    from ..ranks.distributed import open_world
    from ..step.device import choose_device
    from .cluster_report import write_report

    with open_world(choose_device(options.device), GROUP_TIMEOUT) as world:
        summary = cluster_embeddings(
            options.embeddings, options.out, settings, device=world.device, all_duplicates=options.duplicates
        )
    if world.is_first:
        print("\n".join(summary.lines()))
        print(write_report(summary, corpus))
    return 0


def run_export(options: argparse.Namespace) -> int:
    from ..inputs.folders import checked_config

    checked_config(options.config, options.overrides)
    from .draws import export_draws, plan

    print("\n".join(export_draws(plan(options.config, options.overrides), options.first, options.draws, options.out)))
    return 0


def run_view_screen(options: argparse.Namespace) -> int:
    corpus_folder(options.corpus)
    from ...loaders.corpus.corpus import Corpus
    from .screen_report import view_screen

    corpus = Corpus.open(options.corpus)
    lines = view_screen(corpus, options.by, options.threshold, options.spans, options.out, options.label)
    print("\n".join(lines))
    return 0


def run_view_draws(options: argparse.Namespace) -> int:
    from ..inputs.folders import checked_config

    checked_config(options.config, options.overrides)
    from .draws import plan, view_draws

    planned = plan(options.config, options.overrides)
    lines = view_draws(planned, options.first, options.draws, options.out, options.clips, options.json)
    print("\n".join(lines))
    return 0
