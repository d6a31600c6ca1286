"""`trocar bench training` and `feed`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...engine.config.error import ConfigError
from ...loaders.options import COUNT, Commands, add_device


def add_commands(commands: Commands) -> None:
    feed = commands.benches.add_parser(
        "feed", help="what decoding takes from training, in threads and in processes, and delivers"
    )
    feed.add_argument("corpus", type=Path, metavar="CORPUS", help="an index, of proxies or of originals")
    feed.add_argument(
        "--stride", type=COUNT, default=4, help="frames of the originals from one of a clip to the next (default: 4)"
    )
    feed.add_argument("--rounds", type=COUNT, default=5, help="how often each arm runs, in turns (default: 5)")
    feed.add_argument("--out", type=Path, default=Path("bench/results/feed.jsonl"), metavar="FILE")
    feed.set_defaults(run=run_bench_feed)

    add_training(
        commands.benches.add_parser(
            "training", help="the training step: data's share, utilisation, Hugging Face's models, ranks"
        )
    )


def add_training(training: argparse.ArgumentParser) -> None:
    training.add_argument("config", nargs="?", metavar="CONFIG", help="default: an MAE and a JEPA, small ones on a CPU")
    training.add_argument("overrides", nargs="*", default=[], metavar="section.key=value")
    add_device(training)
    training.add_argument("--corpus", type=Path, help="an index of original videos (default: 1080p videos are made)")
    training.add_argument("--packed", type=Path, metavar="CORPUS", help="an index of their proxies")
    training.add_argument(
        "--parts", nargs="+", metavar="PART", help="of peers, decoder-mask, end-to-end, steps, ranks (default: all)"
    )
    training.add_argument(
        "--sweep",
        nargs="*",
        metavar="section.key=V,V",
        help="measure the step again with each value (default: no sweep)",
    )
    training.add_argument("--ranks", metavar="N,N", help="numbers of ranks (default: 1, 2, 4 .. GPUs)")
    training.add_argument("--peers", nargs="+", metavar="PEER", help="default: all that are quick to start here")
    training.add_argument("--rounds", type=COUNT, default=7, help="how often each arm runs, in turns (default: 7)")
    training.add_argument("--out", type=Path, default=Path("bench/results/training.jsonl"), metavar="FILE")
    training.set_defaults(run=run_bench_training)


def run_bench_feed(options: argparse.Namespace) -> int:
    from ...loaders.corpus.folder import corpus_folder

    corpus = corpus_folder(options.corpus)
    from ...engine.step.device import choose_device
    from .feed import bench_feed, table

    device = choose_device("auto")
    print(table(bench_feed(corpus, device=device, stride=options.stride, rounds=options.rounds, out=options.out)))
    return 0


def run_bench_training(options: argparse.Namespace) -> int:
    from ...engine.config.file import load_config
    from ...loaders.corpus.folder import corpus_folder

    if options.packed and not options.corpus:
        raise ConfigError("--packed: proxies need their originals beside them; give --corpus too")
    given = {"originals": options.corpus, "proxies": options.packed}
    corpora = {name: corpus_folder(path) for name, path in given.items() if path}
    ranks = options.ranks.split(",") if options.ranks else []
    if not all(text.isdigit() and int(text) for text in ranks):
        raise ConfigError(f"--ranks: {options.ranks!r} is not accepted; give numbers of ranks, as 1,2,4")
    config, overrides = options.config, options.overrides
    if config and "=" in config:  # settings without a config
        config, overrides = None, [config, *overrides]
    if config:
        load_config(config, overrides)
    from ...engine.step.device import choose_device
    from .parts import bench_training
    from .table import table

    rows = bench_training(
        choose_device(options.device).type,
        config=config,
        overrides=overrides,
        corpora=corpora or None,
        parts=options.parts,
        sweep=options.sweep,
        ranks=[int(text) for text in ranks],
        peers=options.peers,
        rounds=options.rounds,
        out=options.out,
    )
    print(table(rows))
    return 0
