"""`trocar features`, `phases` and `bench workflow`."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from ...engine.commands import add_weights_arguments
from ...engine.config.error import ConfigError
from ...loaders.options import COUNT, POSITIVE, SEED, Commands, folder, tell
from ..downstream.commands import add_matrix, add_numbered_device


def add_commands(commands: Commands) -> None:
    add_features(
        commands.add(
            "features",
            task="encoders",
            text="a frozen encoder over whole videos: a vector every second, or as asked for",
        )
    )
    add_phases(
        commands.add(
            "phases", task="encoders", text="the phases of a video that nobody labelled: CSV, ribbon, chapters"
        )
    )
    workflow = commands.benches.add_parser(
        "workflow", help="encoders x data sets x temporal heads on whole videos, and their report"
    )
    workflow.add_argument("config", metavar="CONFIG", help="a YAML of the matrix, or workflow, which ships with trocar")
    add_matrix(workflow, out="of vectors, cells and report")
    workflow.add_argument(
        "--workers", type=COUNT, default=1, help="processes that encode videos, each on a GPU in turn (default: 1)"
    )
    workflow.set_defaults(run=run_workflow)


def add_features(features: argparse.ArgumentParser) -> None:
    features.add_argument(
        "sources", nargs="+", metavar="DIR|FILE|CSV|GLOB|CORPUS", help="videos; a CSV names them in a column path"
    )
    features.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="RUN, a file of weights, timm:MODEL[@FILE], or random: before one",
    )
    features.add_argument("--out", type=folder, required=True, metavar="DIR", help="goes on with what is there")
    features.add_argument("--rate", type=POSITIVE, default=1.0, help="vectors a second (default: 1)")
    features.add_argument(
        "--clips",
        choices=("causal", "centred"),
        default="causal",
        help="ending at their moment (default), or around it",
    )
    features.add_argument("--frames", type=COUNT, help="of clips (default: the weights' own, else 16; 1 of images)")
    features.add_argument("--resolution", type=COUNT, metavar="PIXELS", help="default: the weights' own, else 224")
    rate = features.add_mutually_exclusive_group()
    rate.add_argument("--stride", type=COUNT, metavar="FRAMES", help="default: the weights' own, else 4")
    rate.add_argument(
        "--sample-fps", type=POSITIVE, metavar="FPS", help="frames of a clip a second, instead of a stride"
    )
    add_weights_arguments(features)
    features.add_argument("--seed", type=SEED, default=0, help="of random weights (default: 0)")
    add_numbered_device(features)
    features.add_argument("--workers", type=COUNT, default=1, help="processes, each on a GPU in turn (default: 1)")
    features.add_argument(
        "--part", type=part, default=(0, 1), metavar="I/N", help="every N-th shard from the I-th on, I from 0"
    )
    features.set_defaults(run=run_features)


def add_phases(phases: argparse.ArgumentParser) -> None:
    phases.add_argument("video", metavar="VIDEO", help="a file of which nothing need be known")
    phases.add_argument(
        "cell", type=Path, metavar="RUN", help="a cell of `trocar bench workflow` that is done: .../HEAD/seed0"
    )
    phases.add_argument(
        "--out", type=folder, metavar="DIR", help="of VIDEO.csv, .png, .vtt and its vectors (default: VIDEO_phases)"
    )
    phases.add_argument(
        "--model", metavar="MODEL", help="the encoder, if it is not where it was (default: as recorded)"
    )
    add_numbered_device(phases)
    phases.set_defaults(run=run_phases)


def part(text: str) -> tuple[int, int]:
    """ "1/4" -> (1, 4). Raises ArgumentTypeError."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give I/N, I from 0 to N - 1, as 0/4")
    return int(first), int(count)


def run_features(options: argparse.Namespace) -> int:
    from ...engine.inputs.folders import backbone_source

    backbone_source(options.model)
    from ...loaders.corpus.folder import VIDEOS_NAME
    from ...loaders.corpus.sources import list_videos

    for source in options.sources:  # what is not there is told before PyTorch is imported
        if not (Path(source) / VIDEOS_NAME).exists():
            list_videos([source])
    from ..downstream.predictor import Problem, listed_videos

    problems: list[Problem] = []
    paths = list(listed_videos(options.sources, problems))
    if not paths:
        raise ConfigError("\n".join(["no video can be encoded", *map(str, problems)]))
    from ...engine.inputs.finished import done_before, note_done  # behind what is told without a table

    files = [path for path in (*paths, options.model) if os.path.exists(path)]
    if (before := done_before(options, files)) is not None:
        print("\n".join(before))
        return 0
    from .choices import FeatureChoices
    from .features import extract_features

    names = ("frames", "resolution", "stride", "sample_fps", "kind", "positions", "minimum")
    told = {name: getattr(options, name) for name in names}
    how = {name: getattr(options, name) for name in ("seed", "device", "workers", "part")}
    choices = FeatureChoices(options.rate, options.clips)
    found = extract_features(paths, options.out, options.model, choices, options=told, **how)
    for line in [*found.lines(), *(f"not encoded: {problem}" for problem in problems)]:
        print(line)
    if found.failed or problems:
        return 1
    note_done(options, files, replace(found, made=0).lines())
    return 0


def run_phases(options: argparse.Namespace) -> int:
    from ...engine.inputs.folders import backbone_source
    from .cell_record import read_phase_predictor

    record = read_phase_predictor(options.cell)
    backbone_source(options.model or record.model)
    if not Path(options.video).is_file():
        raise ConfigError(f"{options.video}: no such video")
    from ...engine.step.device import choose_device
    from .phases import write_phases

    out = options.out or Path(f"{Path(options.video).stem}_phases")
    for path in write_phases(options.video, options.cell, out, choose_device(options.device), model=options.model):
        print(path)
    return 0


def run_workflow(options: argparse.Namespace) -> int:
    from ..downstream.matrix import Places
    from .matrix import load_workflow

    matrix = load_workflow(options.config)
    places = Places(options.out, options.data, options.weights)
    from .report import write_report
    from .workflow import bench_workflow

    failures = []
    if not options.report_only:
        failures = bench_workflow(matrix, places, device=options.device, workers=options.workers, tell=tell)
    print("\n".join(map(str, write_report(matrix, places))))
    return int(bool(failures))
