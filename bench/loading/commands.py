"""`trocar bench loading, proxies, decode, data-wait`, and what `trocar pack --compare` compares."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from ...engine.config.error import ConfigError
from ...loaders.commands import run_pack
from ...loaders.options import COUNT, ENOUGH_STEPS, VIEWS, Commands


def add_commands(commands: Commands) -> None:
    pack = commands["pack"]
    pack.add_argument(
        "--compare", action="store_true", help="load clips of both afterwards, and say what packing brought"
    )
    pack.set_defaults(run=run_pack_and_compare)

    loading = commands.benches.add_parser(
        "loading", help="our loaders against torchcodec, decord, PyAV and DALI's reader"
    )
    clips_from = loading.add_mutually_exclusive_group()
    clips_from.add_argument(
        "corpus",
        nargs="?",
        type=Path,
        metavar="CORPUS",
        help="an index of original videos (default: made 1080p and proxies)",
    )
    clips_from.add_argument(
        "--make-1080p",
        nargs=2,
        type=Path,
        metavar=("DIR", "VIDEO"),
        help="the standard case: a minute of H.264, GOP 250, made in DIR of a 1080p video",
    )
    loading.add_argument("--packed", type=Path, metavar="CORPUS", help="an index of proxies of the same videos")
    loading.add_argument("--clips", type=COUNT, help="clips a round (default: 32, of made videos 4)")
    loading.add_argument("--rounds", type=COUNT, default=7, help="how often each arm runs, in turns (default: 7)")
    loading.add_argument(
        "--stride", type=COUNT, default=4, help="frames from one frame of a clip to the next (default: 4)"
    )
    loading.add_argument("--arms", nargs="+", metavar="ARM", help="default: all that run here")
    loading.add_argument(
        "--out", "--json", dest="out", type=Path, default=Path("bench/results/loading.jsonl"), metavar="FILE"
    )
    loading.set_defaults(run=run_bench_loading)

    proxies = commands.benches.add_parser("proxies", help="bytes, speed and likeness of proxies; on any machine")
    proxies.add_argument("videos", nargs="+", metavar="VIDEO")
    proxies.add_argument("--short-side", type=COUNT, default=256, metavar="PIXELS", help="default: 256")
    proxies.add_argument("--stride", type=COUNT, default=4, metavar="FRAMES", help="default: 4")
    proxies.add_argument("--out", type=Path, default=Path("bench/results/proxies.jsonl"), metavar="FILE")
    proxies.set_defaults(run=run_bench_proxies)

    decode = commands.benches.add_parser("decode", help="DALI's decoding of windows against the decoder's own ceiling")
    decode.add_argument("--quick", action="store_true", help="H.264 and HEVC in two sizes and GOPs, two seconds each")
    decode.add_argument("--out", type=Path, default=Path("bench/results/decode.jsonl"), metavar="FILE")
    decode.set_defaults(run=run_bench_decode)

    cache = commands.benches.add_parser("dali-cache", help="whether DALI keeps its decoders from window to window")
    cache.add_argument("--out", type=Path, default=Path("bench/results/dali_cache.jsonl"), metavar="FILE")
    cache.set_defaults(run=run_bench_dali_cache)

    wait = commands.benches.add_parser(
        "data-wait", help="how long training waits on originals, on proxies, and with span reuse"
    )
    wait.add_argument("corpora", nargs="+", metavar="NAME=CORPUS", help="for example originals=corpus proxies=packed")
    wait.add_argument(
        "--config", default="surgrec_mae_unbalanced", help="what is trained (default: surgrec_mae_unbalanced)"
    )
    wait.add_argument("--steps", type=ENOUGH_STEPS, default=60, help="steps of each run (default: 60)")
    wait.add_argument("--views", type=VIEWS, default=4, help="views of a span where spans are reused (default: 4)")
    wait.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="settings for all runs")
    wait.add_argument("--out", type=Path, default=Path("bench/results/data_wait.jsonl"), metavar="FILE")
    wait.set_defaults(run=run_bench_data_wait)


def run_pack_and_compare(options: argparse.Namespace) -> int:
    run_pack(options)
    if options.compare:
        from ...loaders.pack.settings import PackSettings
        from .packed import compare_loading, missing_originals, table

        if missing := missing_originals(options.corpus):
            print(f"not compared: {missing:,} of the originals are not there any more")
        else:
            print(table(compare_loading(options.corpus, options.out, options.stride or PackSettings().stride)))
    print(f"trocar plan CONFIG --corpus {options.corpus} --packed {options.out} plans a run by what was measured here")
    return 0


def run_bench_loading(options: argparse.Namespace) -> int:
    from ...loaders.corpus.folder import corpus_folder

    if options.packed and not (options.corpus or options.make_1080p):
        raise ConfigError("--packed: proxies need their originals beside them; give CORPUS too")
    for given in (options.corpus, options.packed):
        if given:
            corpus_folder(given)
    from ..rows.row import keep_rows
    from .case import make_1080p
    from .corpora import MADE_CLIPS, make_corpora
    from .loading import ARMS, bench_loading
    from .table import table

    with tempfile.TemporaryDirectory(prefix="trocar_loading_") as folder:
        corpus, packed, clips = options.corpus, options.packed, 32
        if options.make_1080p:
            corpus = make_1080p(*options.make_1080p)
        elif corpus is None:
            print("making 1080p videos and their proxies", file=sys.stderr)
            made, clips = make_corpora(Path(folder), stride=options.stride), MADE_CLIPS
            corpus, packed = made["originals"], made["proxies"]
        rows = bench_loading(
            corpus,
            packed=packed,
            clips=clips if options.clips is None else options.clips,
            rounds=options.rounds,
            stride=options.stride,
            arms=options.arms or tuple(ARMS),
        )
    return keep_rows(options.out, rows, table)


def run_bench_proxies(options: argparse.Namespace) -> int:
    from ...loaders.video.video import is_remote

    for video in options.videos:
        if not is_remote(video) and not os.path.isfile(video):
            raise ConfigError(f"{video}: no such video; correct the path")
    from .proxies import HEADER, bench_proxies

    def tell(line: str) -> None:
        print(line, flush=True)

    print(HEADER)
    sizes = {"short_side": options.short_side, "stride": options.stride}
    try:
        bench_proxies(options.videos, **sizes, out=options.out, tell=tell)
    except ValueError as error:
        raise ConfigError(f"trocar bench proxies: {error}") from error
    return 0


def run_bench_decode(options: argparse.Namespace) -> int:
    from ...engine.step.device import choose_device
    from ..rows.row import keep_rows
    from .decode import QUICK, bench_decode, table

    device = choose_device("auto")
    if device.type == "cpu":
        print("no NVIDIA GPU: a small run on DALI's CPU backend, which says nothing about one", file=sys.stderr)
    rows = bench_decode(device, QUICK if options.quick and device.type == "cuda" else None)
    return keep_rows(options.out, rows, table)


def run_bench_dali_cache(options: argparse.Namespace) -> int:
    from ...engine.step.device import choose_device
    from ..rows.row import keep_rows
    from .dali_cache import bench_dali_cache, table

    rows = bench_dali_cache(choose_device("auto"))
    return keep_rows(options.out, rows, table)


def run_bench_data_wait(options: argparse.Namespace) -> int:
    from ...engine.config.file import load_config
    from ...loaders.corpus.folder import corpus_folder

    pairs = [text.partition("=") for text in options.corpora]
    if any(not (name and path) for name, _, path in pairs):
        raise ConfigError(f"trocar bench data-wait: {' '.join(options.corpora)}: give each corpus as NAME=FOLDER")
    corpora = {name: corpus_folder(path) for name, _, path in pairs}
    load_config(options.config, options.set)
    from ...engine.step.device import choose_device
    from ..rows.row import keep_rows
    from .data_wait import bench_data_wait, table

    device = choose_device("auto")
    numbers = {"views_per_span": options.views, "steps": options.steps}
    rows = bench_data_wait(device, corpora, config=options.config, overrides=options.set, **numbers)
    return keep_rows(options.out, rows, table)
