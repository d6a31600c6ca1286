"""The command line: `trocar ...`, `python -m trocar.engine.cli`, `torchrun -m trocar.engine.cli`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

# Read when PyTorch loads OpenMP. Threads that wait actively take the cores from the decoding threads and, where cores are shared
# with other work, from those they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .cli_curation import add_commands, parse_levels
from .cli_downstream import add_downstream, add_weights_arguments
from .config.error import ConfigError
from .config.file import CONFIGS
from .console.options import COUNT, ENOUGH_STEPS, FROM_ZERO, QUALITY, TOTAL, VIEWS

# Errors that end a command with their message alone.
EXPECTED_ERRORS = {
    "loaders.corpus_folder": "CorpusError",
    "loaders.threads": "LoaderError",
    "loaders.video": "VideoError",
    "engine.checkpoint_folder": "CheckpointError",
    "engine.watch": "RankError",
    "engine.skips": "SkipError",
    "engine.weight_files": "WeightsError",
    "bench.dataset": "DatasetError",
    "bench.kernels": "BenchError",
    "bench.loading_case": "CaseError",
    "bench.loading_clips": "LoadingBenchError",
    "bench.render": "ReportError",
    "bench.trace": "TraceError",
}

# Heavy imports stand inside the subcommands, behind a look at what they are given (`inputs`) and at what is done already
# (`finished`): `trocar --help`, a wrong path and a command with nothing to do answer without PyTorch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Returns the exit status: 0, 1 where something could not be done, 2 where it was asked for wrongly."""
    parser = build_parser()
    options, left = parser.parse_known_args(arguments)
    # argparse takes no more settings once an option stood between them.
    if left and (not hasattr(options, "overrides") or any(text.startswith("-") for text in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        options.overrides = [*options.overrides, *left]
    try:
        for name in ("out", "json"):
            if getattr(options, name, None):
                check_place(f"--{name}", Path(getattr(options, name)))
        return options.run(options)
    except ConfigError as error:
        print(f"trocar: {error}", file=sys.stderr)
        return 2
    except (OSError, *_expected_errors()) as error:
        print(f"trocar: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trocar: interrupted", file=sys.stderr)
        return 130


def check_place(option: str, path: Path) -> None:
    """Raises ConfigError where no file or folder can be written at `path`: told before hours of work, not behind them."""
    folder = next((parent for parent in path.absolute().parents if parent.exists()), path)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"{option} {path}: {folder} is not a folder that can be written to; choose another place")


def _expected_errors() -> list[type[Exception]]:
    """Of the modules that were imported: others cannot have raised, and need packages that a command may do without."""
    package = (__package__ or "").rpartition(".")[0]
    loaded = [(sys.modules.get(f"{package}.{module}"), name) for module, name in EXPECTED_ERRORS.items()]
    return [getattr(module, name) for module, name in loaded if module is not None]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trocar", description="From a folder of long surgical videos to a pretrained video encoder."
    )
    parser.add_argument("--version", action="version", version=f"trocar {metadata.version('trocar')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    index = commands.add_parser("index", help="probe videos once and write the corpus tables")
    index.add_argument("sources", nargs="+", metavar="DIR|FILE|CSV|GLOB")
    index.add_argument("--out", required=True, metavar="CORPUS", help="folder of the tables; videos in it stay")
    index.add_argument("--workers", type=COUNT, help="probing processes (default: one per core)")
    index.add_argument("--no-content-box", action="store_true", help="do not look for it; crops may hold black border")
    index.add_argument("--checksum", action="store_true", help="a CRC-32 for every GOP, so that damage shows when read")
    index.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="compare random pictures of every video with plain decoding, and refuse videos where they differ "
        "(default: near the beginning of rare kinds of video alone)",
    )
    index.add_argument(
        "--track", type=FROM_ZERO, metavar="N", help="video track of every file, from 0 (default: the largest pictures)"
    )
    index.add_argument("--replace", action="store_true", help="leave out what these sources do not name (default: add)")
    index.set_defaults(run=run_index)

    pack = commands.add_parser("pack", help="make small proxies of a corpus, from which training reads at full speed")
    pack.add_argument("corpus", metavar="CORPUS", help="folder that `trocar index` wrote")
    pack.add_argument("--out", required=True, metavar="PACKED", help="folder of the proxies and their tables")
    pack.add_argument("--short-side", type=COUNT, metavar="PIXELS", help="of a proxy's shorter side (default: 256)")
    pack.add_argument("--stride", type=COUNT, metavar="FRAMES", help="every how many frames one is kept (default: 4)")
    pack.add_argument("--gop", type=COUNT, metavar="FRAMES", help="from keyframe to keyframe (default: 8)")
    pack.add_argument("--codec", help="h264, hevc, vp9 or mjpeg (default: h264)")
    pack.add_argument("--quality", type=QUALITY, help="of the encoder, lower is better (default: the codec's)")
    pack.add_argument("--workers", type=COUNT, help="packing processes (default: one per core)")
    pack.add_argument(
        "--compare", action="store_true", help="load clips of both afterwards, and say what packing brought"
    )
    pack.set_defaults(run=run_pack)

    convert = commands.add_parser(
        "convert", help="published weights to an encoder's file, with an account of what matched"
    )
    convert.add_argument(
        "weights",
        type=Path,
        metavar="FILE",
        help="safetensors, or PyTorch's, which is not run; a run; a folder of Hugging Face's",
    )
    convert.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors of the encoder")
    convert.add_argument(
        "--part", metavar="KEY", help='where in the file, as "encoder" (default: the first of the usual keys)'
    )
    convert.add_argument("--frames", type=COUNT, help="of the clips it will see (default: a run's own, else 16)")
    convert.add_argument("--resolution", type=COUNT, metavar="PIXELS", help="default: a run's own, else 224")
    convert.add_argument("--heads", type=COUNT, help="of attention (default: by the width)")
    add_weights_arguments(convert)
    convert.set_defaults(run=run_convert)

    shipped = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    pretrain = commands.add_parser("pretrain", help="train, or resume, what a config describes")
    pretrain.add_argument("config", metavar="CONFIG", help=f"a YAML file, or one of ours: {shipped}")
    pretrain.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example optim.steps=100")
    pretrain.add_argument(
        "--dry-run", type=COUNT, metavar="WORLD", help="print memory and traffic of a rank of so many; train nothing"
    )
    pretrain.set_defaults(run=run_pretrain)

    profile = commands.add_parser("profile", help="train some steps under a profiler; says where they went")
    profile.add_argument("config", metavar="CONFIG", help="as for trocar pretrain")
    profile.add_argument("overrides", nargs="*", metavar="section.key=value")
    profile.add_argument("--steps", default="10:20", metavar="A:B", help="steps A .. B - 1, from 0 (default: 10:20)")
    profile.add_argument("--ranks", default="0", metavar="N,N", help="those that are recorded (default: 0)")
    profile.add_argument("--out", type=Path, default=Path("runs/profile"), metavar="DIR", help="default: runs/profile")
    profile.add_argument("--json", type=Path, metavar="FILE", help="write the row there as well")
    profile.add_argument(
        "--ncu", metavar="KERNEL", help="print the command of Nsight Compute for a kernel; run nothing"
    )
    profile.add_argument(
        "--capture", action="store_true", help="only mark the steps, for a profiler of CUDA around this command"
    )
    profile.set_defaults(run=run_profile)

    plan = commands.add_parser("plan", help="what a run on a cluster will take, and what holds it up")
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
    plan.add_argument("--json", type=Path, metavar="FILE", help="write the arms there as well")
    plan.set_defaults(run=run_plan)

    export = commands.add_parser("export", help="the newest checkpoint's encoder as one safetensors file")
    export.add_argument("run_dir", type=Path, metavar="RUN")
    export.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/encoder.safetensors")
    export.add_argument("--whole", action="store_true", help="with decoder or predictor: RUN/model.safetensors")
    export.set_defaults(run=run_export)

    view = commands.add_parser("view", help="pictures of a run")
    views = view.add_subparsers(required=True, metavar="VIEW")
    recon = views.add_parser("recon", help="original, masked and reconstructed clips")
    recon.add_argument("run_dir", type=Path, metavar="RUN")
    recon.add_argument("--corpus", help="take the clips from another corpus")
    recon.add_argument("--clips", type=COUNT, default=4, help="rows of the picture (default: 4)")
    recon.add_argument("--out", type=Path, metavar="PNG", help="default: RUN/reconstruction.png")
    recon.set_defaults(run=run_view_recon)
    curve = views.add_parser("curve", help="loss and speed over the steps")
    curve.add_argument("run_dir", type=Path, metavar="RUN")
    curve.add_argument("--out", type=Path, metavar="PNG", help="default: RUN/curve.png")
    curve.set_defaults(run=run_view_curve)

    demo = commands.add_parser("demo", help="index, pretrain a small MAE on the CPU and draw what it learned")
    demo.add_argument("--videos", metavar="DIR", help="your videos (default: some are made)")
    demo.add_argument(
        "--out", type=Path, metavar="RUN", help="default: runs/demo_cpu, or runs/demo_DIR with your videos"
    )
    demo.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example optim.steps=20")
    demo.set_defaults(run=run_demo)

    bench = commands.add_parser("bench", help="measure speeds")
    benches = bench.add_subparsers(required=True, metavar="WHAT")
    kernels = benches.add_parser(
        "kernels", help="each kernel against eager PyTorch and torch.compile; needs an NVIDIA GPU"
    )
    kernels.add_argument("operators", nargs="*", metavar="OPERATOR", help="default: all")
    kernels.add_argument("--size", default="base", choices=("base", "large"), help="shapes of ViT-B or ViT-L")
    kernels.add_argument("--out", type=Path, default=Path("bench/results/kernels.jsonl"), metavar="FILE")
    kernels.set_defaults(run=run_bench_kernels)
    loading = benches.add_parser("loading", help="our loaders against torchcodec, decord, PyAV and DALI's reader")
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
    loading.add_argument("--json", type=Path, default=Path("bench/results/loading.jsonl"), metavar="FILE")
    loading.set_defaults(run=run_bench_loading)

    proxies = benches.add_parser("proxies", help="bytes, speed and likeness of proxies; on any machine")
    proxies.add_argument("videos", nargs="+", metavar="VIDEO")
    proxies.add_argument("--short-side", type=COUNT, default=256, metavar="PIXELS", help="default: 256")
    proxies.add_argument("--stride", type=COUNT, default=4, metavar="FRAMES", help="default: 4")
    proxies.add_argument("--out", type=Path, default=Path("bench/results/proxies.jsonl"), metavar="FILE")
    proxies.set_defaults(run=run_bench_proxies)

    decode = benches.add_parser("decode", help="DALI's decoding of windows against the decoder's own ceiling")
    decode.add_argument("--quick", action="store_true", help="H.264 and HEVC in two sizes and GOPs, two seconds each")
    decode.add_argument("--out", type=Path, default=Path("bench/results/decode.jsonl"), metavar="FILE")
    decode.set_defaults(run=run_bench_decode)
    feed = benches.add_parser(
        "feed", help="what decoding takes from training, in threads and in processes, and delivers"
    )
    feed.add_argument("corpus", type=Path, metavar="CORPUS", help="an index, of proxies or of originals")
    feed.add_argument(
        "--stride", type=COUNT, default=4, help="frames of the originals from one of a clip to the next (default: 4)"
    )
    feed.add_argument("--rounds", type=COUNT, default=5, help="how often each arm runs, in turns (default: 5)")
    feed.add_argument("--out", type=Path, default=Path("bench/results/feed.jsonl"), metavar="FILE")
    feed.set_defaults(run=run_bench_feed)
    wait = benches.add_parser("data-wait", help="how long training waits on originals, on proxies, and with span reuse")
    wait.add_argument("corpora", nargs="+", metavar="NAME=CORPUS", help="for example originals=corpus proxies=packed")
    wait.add_argument(
        "--config", default="surgrec_mae_unbalanced", help="what is trained (default: surgrec_mae_unbalanced)"
    )
    wait.add_argument("--steps", type=ENOUGH_STEPS, default=60, help="steps of each run (default: 60)")
    wait.add_argument("--views", type=VIEWS, default=4, help="views of a span where spans are reused (default: 4)")
    wait.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="settings for all runs")
    wait.add_argument("--out", type=Path, default=Path("bench/results/data_wait.jsonl"), metavar="FILE")
    wait.set_defaults(run=run_bench_data_wait)

    add_training(
        benches.add_parser(
            "training", help="the training step: data's share, utilisation, Hugging Face's models, ranks"
        )
    )

    balance = benches.add_parser("balance", help="pretraining with balanced draws against without, on a made corpus")
    balance.add_argument("--seeds", type=COUNT, default=3, help="default: 3")
    balance.add_argument("--steps", type=COUNT, default=150, help="of every run (default: 150)")
    balance.add_argument("--spans", type=COUNT, default=600, help="of the corpus (default: 600)")
    balance.add_argument("--out", type=Path, default=Path("bench/results/balance.jsonl"), metavar="FILE")
    balance.set_defaults(run=run_bench_balance)

    plan = benches.add_parser("plan", help="trocar plan's model against the clock, on the CPU")
    plan.add_argument("--rounds", type=COUNT, default=3, help="how often each setting runs, in turns (default: 3)")
    plan.add_argument("--steps", type=COUNT, default=12, help="steps that are timed (default: 12)")
    plan.add_argument("--out", type=Path, default=Path("bench/results/plan.jsonl"), metavar="FILE")
    plan.set_defaults(run=run_bench_plan)

    gpu = benches.add_parser("gpu", help="tests and measurements of an NVIDIA GPU, in stages; `make gpu` calls it")
    gpu.add_argument(
        "stages", nargs="*", metavar="STAGE", help="tests, kernels, loading, training, compiled, cluster (default: all)"
    )
    gpu.add_argument("--videos", type=Path, metavar="DIR", help="videos of yours (default: some are made)")
    gpu.add_argument("--again", action="store_true", help="also the steps that are done")
    gpu.set_defaults(run=run_bench_gpu)

    report = benches.add_parser("report", help="write the tables of README.md and docs/*.md from bench/results")
    report.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="of a checkout (default: here)")
    report.add_argument("--check", action="store_true", help="change nothing; status 1 where a page differs")
    report.add_argument("--rooflines", type=Path, metavar="PNG", help="plot kernels and stages of GPU rows there")
    report.set_defaults(run=run_bench_report)

    clustering = benches.add_parser("clustering", help="seconds and memory of a tree over made rows")
    clustering.add_argument("--rows", type=COUNT, nargs="+", default=[200_000], help="default: 200000")
    clustering.add_argument("--width", type=COUNT, default=384, help="default: 384")
    clustering.add_argument("--levels", default="2000,200,20", metavar="N,N,...", help="default: 2000,200,20")
    clustering.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    clustering.add_argument("--level-only", action="store_true", help="no tree, only one level at 10 M x 768 on a GPU")
    clustering.add_argument("--out", type=Path, default=Path("bench/results/clustering.jsonl"), metavar="FILE")
    clustering.set_defaults(run=run_bench_clustering)

    add_commands(commands, views)
    add_downstream(commands, benches)

    doctor = commands.add_parser("doctor", help="what this machine has, and what the absence of the rest costs")
    doctor.set_defaults(run=run_doctor)
    return parser


def add_training(training: argparse.ArgumentParser) -> None:
    training.add_argument("config", nargs="?", metavar="CONFIG", help="default: an MAE and a JEPA, small ones on a CPU")
    training.add_argument("overrides", nargs="*", default=[], metavar="section.key=value")
    training.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
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


def run_index(options: argparse.Namespace) -> int:
    from ..loaders.corpus.sources import check_sources

    check_sources(options.sources)
    from ..loaders.corpus.index import index_corpus

    summary = index_corpus(
        options.sources,
        options.out,
        workers=options.workers,
        content_box=not options.no_content_box,
        checksum=options.checksum,
        verify=options.verify,
        replace=options.replace,
        track=options.track,
    )
    print("\n".join(summary.lines()))
    return 0


def run_pack(options: argparse.Namespace) -> int:
    from ..loaders.corpus.folder import corpus_folder

    corpus_folder(options.corpus)
    from ..loaders.pack.pack import pack_corpus
    from ..loaders.pack.settings import PackSettings

    given = {name: getattr(options, name) for name in ("short_side", "stride", "gop", "codec", "quality")}
    try:
        settings = PackSettings(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise ConfigError(f"trocar pack: {error}") from error
    summary = pack_corpus(options.corpus, options.out, settings, workers=options.workers)
    print("\n".join(summary.lines()), flush=True)
    if options.compare:
        from ..bench.loading.packed import compare_loading, missing_originals, table

        if missing := missing_originals(options.corpus):
            print(f"not compared: {missing:,} of the originals are not there any more")
        else:
            print(table(compare_loading(options.corpus, options.out, settings.stride)))
    print(f"trocar plan CONFIG --corpus {options.corpus} --packed {options.out} plans a run by what was measured here")
    return 0


def run_convert(options: argparse.Namespace) -> int:
    from .inputs.folders import encoder_source

    encoder_source(options.weights)
    from .weights.convert import save_encoder
    from .weights.encoder_sources import convert_encoder

    names = ("part", "frames", "resolution", "heads", "kind", "positions", "minimum")
    found = convert_encoder(options.weights, **{name: getattr(options, name) for name in names})
    save_encoder(found, options.out)
    print("\n".join([*found.lines(), str(options.out)]))
    return 0


def run_pretrain(options: argparse.Namespace) -> int:
    from .config.file import load_config
    from .inputs.folders import checked_config

    if options.dry_run is not None:
        config, ranks = load_config(options.config, options.overrides), options.dry_run
        from .step.dry_run import dry_run

        if config.optim.accumulation == "auto":  # for ranks that have this machine's GPU, or its memory
            from .ranks.distributed import World
            from .step.build import choose_device
            from .step.micro_batch import fewest_parts, with_parts

            world = World(choose_device(config), 0, ranks, 0, min(8, ranks))
            config = with_parts(config, fewest_parts(config, world))
        print("\n".join(dry_run(config, ranks).lines()))
        return 0
    config = checked_config(options.config, options.overrides)
    from .inputs.finished import finished_run

    if (last := finished_run(config)) is not None:
        if os.environ.get("RANK", "0") == "0":
            print(f"all steps of this run are done; checkpoint: {last}")
        return 0
    from .pretrain import pretrain
    from .ranks.stop import INTERRUPTED_STATUS, REQUEUE_STATUS

    result = pretrain(config)
    resumed = f" (resumed at step {result.resumed_from})" if result.resumed_from else ""
    if result.is_stopped:
        print(f"asked to stop; {result.where_it_stands()}", file=sys.stderr)
        return INTERRUPTED_STATUS if result.is_interrupted else REQUEUE_STATUS
    print(f"{result.steps} steps{resumed}; checkpoint: {result.checkpoint}")
    return 0


def run_profile(options: argparse.Namespace) -> int:
    from .inputs.folders import checked_config

    if not options.ncu:  # a command that is printed may be for another machine
        checked_config(options.config, options.overrides)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # read with PyTorch: torch.profiler complains where there is no GPU
    from ..bench.profile.run import Request, capture, profile_steps
    from ..bench.profile.table import table
    from ..bench.rows.row import write_rows

    request = Request.parse(options.config, options.overrides, options.steps, options.ranks, options.out)
    if options.ncu:
        print(request.ncu_command(options.ncu))
        return 0
    if options.capture:
        capture(request)
        return 0
    found = profile_steps(request)
    if found is not None:
        if options.json:
            write_rows(options.json, [found[1]])
        print(table(found[0]))
    return 0


def run_plan(options: argparse.Namespace) -> int:
    import json

    from ..bench.plan.cluster import load_cluster
    from ..bench.rows.row import read_rows
    from ..loaders.corpus.folder import corpus_folder
    from .config.file import load_config

    own = [f"data.corpus={options.corpus}"] if options.corpus else []
    config, cluster = load_config(options.config, [*options.overrides, *own]), load_cluster(options.cluster)
    given = [row for path in options.rates or () for row in read_rows(path)]
    places = [corpus_folder(path) if path else None for path in (options.corpus, options.packed)]
    from ..bench.plan.corpus import measure_corpora
    from ..bench.plan.rates import shipped_rows
    from ..bench.plan.report import corpus_size, make_plan, rows_of, table
    from ..loaders.corpus.corpus import Corpus

    originals, proxies = (place and Corpus.open(place) for place in places)
    rows = given if options.rates else shipped_rows()
    size = corpus_size(options.corpus, options.videos, options.frames, config, cluster)
    measured = measure_corpora(originals, proxies, config)
    plan = make_plan(config, cluster, size, rows, views=options.views, measured=measured)
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows_of(plan)), encoding="utf-8")
    print(table(plan))
    return 0


def run_export(options: argparse.Namespace) -> int:
    from .inputs.folders import run_with_checkpoint

    run_with_checkpoint(options.run_dir)
    from .weights.export import export_weights

    print(export_weights(options.run_dir, options.out, whole=options.whole))
    return 0


def run_view_recon(options: argparse.Namespace) -> int:
    from ..loaders.corpus.folder import corpus_folder
    from .inputs.folders import run_with_checkpoint

    run_with_checkpoint(options.run_dir)
    if options.corpus:
        corpus_folder(options.corpus)
    from .view.run import view_reconstruction

    print(view_reconstruction(options.run_dir, options.out, clips=options.clips, corpus=options.corpus))
    return 0


def run_view_curve(options: argparse.Namespace) -> int:
    from .inputs.folders import run_with_metrics

    run_with_metrics(options.run_dir)
    from .view.run import view_curve

    print(view_curve(options.run_dir, options.out))
    return 0


def run_demo(options: argparse.Namespace) -> int:
    from ..loaders.corpus.sources import check_sources
    from .config.file import load_config

    load_config("demo_cpu", options.overrides)
    if options.videos:
        check_sources([options.videos])
    from .demo import demo

    name = Path(options.videos).resolve().name if options.videos else "cpu"
    print("\n".join(demo(options.out or Path("runs") / f"demo_{name}", options.videos, options.overrides)))
    return 0


def run_bench_kernels(options: argparse.Namespace) -> int:
    from ..bench.gpu.steps import OPERATORS

    if unknown := [name for name in options.operators if name not in OPERATORS]:
        raise ConfigError(f"{', '.join(unknown)}: no such operator; there are {', '.join(OPERATORS)}")
    from ..bench.kernels.kernels import bench_kernels, table

    rows = bench_kernels(options.operators, size=options.size, out=options.out)
    print(table(rows))
    return 0


def run_bench_proxies(options: argparse.Namespace) -> int:
    from ..loaders.video.video import is_remote

    for video in options.videos:
        if not is_remote(video) and not os.path.isfile(video):
            raise ConfigError(f"{video}: no such video; correct the path")
    from ..bench.loading.proxies import HEADER, bench_proxies

    def tell(line: str) -> None:
        print(line, flush=True)

    print(HEADER)
    sizes = {"short_side": options.short_side, "stride": options.stride}
    try:
        bench_proxies(options.videos, **sizes, out=options.out, tell=tell)
    except ValueError as error:
        raise ConfigError(f"trocar bench proxies: {error}") from error
    return 0


def run_bench_loading(options: argparse.Namespace) -> int:
    from ..loaders.corpus.folder import corpus_folder

    if options.packed and not (options.corpus or options.make_1080p):
        raise ConfigError("--packed: proxies need their originals beside them; give CORPUS too")
    for given in (options.corpus, options.packed):
        if given:
            corpus_folder(given)
    from ..bench.loading.case import make_1080p
    from ..bench.loading.loading import ARMS, bench_loading
    from ..bench.loading.table import table
    from ..bench.rows.row import write_rows
    from ..bench.training.corpus import MADE_CLIPS, make_corpora

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
    write_rows(options.json, rows)
    print(table(rows))
    return 0


def run_bench_decode(options: argparse.Namespace) -> int:
    import torch

    from ..bench.loading.decode import QUICK, bench_decode, table
    from ..bench.rows.row import write_rows

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        print("no NVIDIA GPU: a small run on DALI's CPU backend, which says nothing about one", file=sys.stderr)
    rows = bench_decode(device, QUICK if options.quick and device.type == "cuda" else None)
    write_rows(options.out, rows)
    print(table(rows))
    return 0


def run_bench_feed(options: argparse.Namespace) -> int:
    from ..loaders.corpus.folder import corpus_folder

    corpus = corpus_folder(options.corpus)
    import torch

    from ..bench.training.feed import bench_feed, table

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    print(table(bench_feed(corpus, device=device, stride=options.stride, rounds=options.rounds, out=options.out)))
    return 0


def run_bench_data_wait(options: argparse.Namespace) -> int:
    from ..loaders.corpus.folder import corpus_folder
    from .config.file import load_config

    pairs = [text.partition("=") for text in options.corpora]
    if any(not (name and path) for name, _, path in pairs):
        raise ConfigError(f"trocar bench data-wait: {' '.join(options.corpora)}: give each corpus as NAME=FOLDER")
    corpora = {name: corpus_folder(path) for name, _, path in pairs}
    load_config(options.config, options.set)
    import torch

    from ..bench.loading.data_wait import bench_data_wait, table
    from ..bench.rows.row import write_rows

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    numbers = {"views_per_span": options.views, "steps": options.steps}
    rows = bench_data_wait(device, corpora, config=options.config, overrides=options.set, **numbers)
    write_rows(options.out, rows)
    print(table(rows))
    return 0


def run_bench_training(options: argparse.Namespace) -> int:
    from ..loaders.corpus.folder import corpus_folder
    from .config.file import load_config

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
    import torch

    from ..bench.training.command import bench_training
    from ..bench.training.table import table

    rows = bench_training(
        options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
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


def run_bench_balance(options: argparse.Namespace) -> int:
    from ..bench.curation.balance import bench_balance, table
    from ..bench.rows.row import write_rows

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    rows = bench_balance(seeds=options.seeds, steps=options.steps, spans=options.spans, tell=tell)
    write_rows(options.out, rows)
    print(table(rows))
    return 0


def run_bench_plan(options: argparse.Namespace) -> int:
    from ..bench.plan.check import bench_plan, table
    from ..bench.rows.row import write_rows

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    rows = bench_plan(rounds=options.rounds, steps=options.steps, tell=tell)
    write_rows(options.out, rows)
    print(table(rows))
    return 0


def run_bench_gpu(options: argparse.Namespace) -> int:
    from ..bench.gpu.steps import check_stages

    check_stages(options.stages)
    if options.videos and not options.videos.is_dir():
        raise ConfigError(f"--videos {options.videos}: no such folder; correct the path")
    from ..bench.gpu.run import is_success, run_stages, summary

    outcomes = run_stages(options.stages, videos=options.videos, again=options.again)
    print(summary(outcomes))
    return int(not is_success(outcomes))


def run_bench_report(options: argparse.Namespace) -> int:
    if not (options.root / "bench" / "results").is_dir():
        raise ConfigError(f"--root {options.root}: has no bench/results; name the folder of a checkout")
    from ..bench.report.render import all_rows, misquoted, render_pages
    from ..bench.report.roofline import plot_rooflines

    pages = [page for page in render_pages(options.root) if not page.is_current]
    if options.rooflines:
        print(plot_rooflines(all_rows(options.root / "bench" / "results"), options.rooflines))
    for page in pages:
        if not options.check:
            page.path.write_text(page.after, encoding="utf-8")
        print(f"{page.path}: {'differs from bench/results' if options.check else 'written'}")
    misread = misquoted(options.root)
    for row in misread:
        print(
            f"{options.root / row['page']}: does not say {row['text']!r} as a row in bench/results does; change one of them"
        )
    return int(bool(misread) or (options.check and bool(pages)))


def run_bench_clustering(options: argparse.Namespace) -> int:
    levels = parse_levels(options.levels) or ()
    import torch

    from ..bench.curation.clustering import bench_clustering, bench_level, table
    from ..bench.rows.row import write_rows

    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
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


def run_doctor(options: argparse.Namespace) -> int:
    from .doctor import doctor

    findings = doctor()
    print("\n".join(map(str, findings)))
    return int(any(finding.verdict == "problem" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
