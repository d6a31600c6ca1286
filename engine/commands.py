"""The commands of a run: pretrain, export, convert, demo, doctor."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..loaders.options import COUNT, SHARE, Commands
from .config.file import CONFIGS


def add_commands(commands: Commands) -> None:
    shipped = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    pretrain = commands.add("pretrain", task="training", text="train, or resume, what a config describes")
    pretrain.add_argument("config", metavar="CONFIG", help=f"a YAML file, or one of ours: {shipped}")
    pretrain.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example optim.steps=100")
    pretrain.add_argument(
        "--dry-run", type=COUNT, metavar="WORLD", help="print memory and traffic of a rank of so many; train nothing"
    )
    pretrain.set_defaults(run=run_pretrain)

    export = commands.add(
        "export", task="encoders", text="the newest checkpoint's encoder, for Trocar or other libraries"
    )
    export.add_argument("run_dir", type=Path, metavar="RUN")
    export.add_argument(
        "--to",
        choices=("transformers", "timm", "torch", "onnx"),
        help="a folder for that library, with a model card (default: one safetensors file, Trocar's)",
    )
    export.add_argument("--out", type=Path, metavar="PLACE", help="default: RUN/encoder.safetensors, or RUN/LIBRARY")
    export.add_argument("--whole", action="store_true", help="with decoder or predictor: RUN/model.safetensors")
    export.add_argument(
        "--judged", type=Path, metavar="CSV", help="a report.csv of `trocar bench downstream`, for the model card"
    )
    export.add_argument(
        "--audited",
        type=Path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="what `trocar bench audit --corpus --json` found of benchmarks in the corpus, for the model card",
    )
    export.set_defaults(run=run_export)

    convert = commands.add(
        "convert", task="encoders", text="published weights to an encoder's file, and what of them matched"
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

    demo = commands.add("demo", task="training", text="index, pretrain a small MAE on the CPU and draw what it learned")
    demo.add_argument("--videos", metavar="DIR", help="your videos (default: some are made)")
    demo.add_argument(
        "--out", type=Path, metavar="RUN", help="default: runs/demo_cpu, or runs/demo_DIR with your videos"
    )
    demo.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example optim.steps=20")
    demo.set_defaults(run=run_demo)

    doctor = commands.add(
        "doctor", task="this machine", text="what this machine has, and what the absence of the rest costs"
    )
    doctor.set_defaults(run=run_doctor)


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """What published weights do not always say of themselves."""
    parser.add_argument(
        "--kind",
        choices=("videomae", "vjepa1", "vjepa2", "image"),
        help="whose weights they are, where the file does not tell (default: as the file tells)",
    )
    parser.add_argument(
        "--positions", choices=("flat", "axes", "rope"), help="of their tokens (default: as their kind has them)"
    )
    parser.add_argument(
        "--minimum", type=SHARE, default=1.0, metavar="SHARE", help="of tensors that must match (default: 1)"
    )


def run_pretrain(options: argparse.Namespace) -> int:
    from .config.file import load_config
    from .inputs.folders import checked_config

    if options.dry_run is not None:
        config, ranks = load_config(options.config, options.overrides), options.dry_run
        from .step.dry_run import dry_run

        if config.optim.accumulation == "auto":  # for ranks that have this machine's GPU, or its memory
            from .ranks.distributed import World
            from .step.device import choose_device
            from .step.micro_batch import fewest_parts, with_parts

            world = World(choose_device(config.run.device, "run.device"), 0, ranks, 0, min(8, ranks))
            config = with_parts(config, fewest_parts(config, world))
        print("\n".join(dry_run(config, ranks).lines()))
        return 0
    config = checked_config(options.config, options.overrides)
    from .inputs.finished import finished_run

    if (last := finished_run(config)) is not None:
        if os.environ.get("RANK", "0") == "0":
            print(f"all steps of this run are done; checkpoint: {last}")
        return 0
    from .draws.changes import check_start

    check_start(config)
    from .pretrain import pretrain
    from .ranks.stop import INTERRUPTED_STATUS, REQUEUE_STATUS

    result = pretrain(config)
    resumed = f" (resumed at step {result.resumed_from})" if result.resumed_from else ""
    if result.is_stopped:
        print(f"asked to stop; {result.where_it_stands()}", file=sys.stderr)
        return INTERRUPTED_STATUS if result.is_interrupted else REQUEUE_STATUS
    print(f"{result.steps} steps{resumed}; checkpoint: {result.checkpoint}")
    return 0


def run_export(options: argparse.Namespace) -> int:
    from .config.error import ConfigError
    from .config.file import CONFIG_FILE, load_config
    from .inputs.folders import run_folder, run_with_checkpoint
    from .inputs.judged import audited_lines, judged_table
    from .inputs.libraries import check_library, library_folder

    run_with_checkpoint(options.run_dir)
    if options.to:
        check_library(load_config(run_folder(options.run_dir) / CONFIG_FILE), options.to, whole=options.whole)
        library_folder(options.run_dir, options.to, options.out)
    if (options.judged is not None or options.audited) and not options.to:
        raise ConfigError(
            "--judged and --audited are for the model card, which stands beside an export --to another library"
        )
    if options.judged is not None:
        judged_table(options.judged)
    audited_lines(options.audited)
    if options.to:
        from .weights.publish import publish

        folder, notes = publish(
            options.run_dir,
            options.to,
            options.out,
            whole=options.whole,
            judged=options.judged,
            audited=options.audited,
        )
        print("\n".join([*(f"note: {note}" for note in notes), str(folder)]))
        return 0
    from .weights.export import export_weights

    print(export_weights(options.run_dir, options.out, whole=options.whole))
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


def run_doctor(options: argparse.Namespace) -> int:
    from .doctor import doctor

    findings = doctor()
    print("\n".join(map(str, findings)))
    return int(any(finding.verdict == "problem" for finding in findings))
