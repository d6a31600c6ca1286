"""`trocar finetune`, `predict` and `bench downstream`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ...engine.commands import add_weights_arguments
from ...engine.config.error import ConfigError
from ...loaders.options import COUNT, FILE, POSITIVE, SEED, Commands, folder, tell
from ...loaders.video.error import TrocarError
from ..labels.commands import add_unlabelled


def add_commands(commands: Commands) -> None:
    add_finetune(
        commands.add(
            "finetune", task="encoders", text="judge an encoder on a labelled data set: probes, or full fine-tuning"
        )
    )
    add_predict(
        commands.add(
            "predict", task="encoders", text="what a fine-tuned encoder or a probe says of other videos, as a CSV"
        )
    )
    downstream = commands.benches.add_parser(
        "downstream", help="encoders x data sets x protocols x seeds, and their report"
    )
    downstream.add_argument("config", metavar="CONFIG", help="a YAML of the matrix, or table2: the paper's table")
    add_matrix(downstream, out="of cells and report", devices="auto, all GPUs in turn")
    downstream.add_argument("--workers", type=COUNT, default=1, help="encoders on data sets at a time (default: 1)")
    downstream.set_defaults(run=run_bench_downstream)


def add_matrix(parser: argparse.ArgumentParser, *, out: str, devices: str = "auto") -> None:
    """What a benchmark of encoders on data sets takes. out: what --out is of. devices: what --device is by default."""
    parser.add_argument("--out", type=folder, required=True, metavar="DIR", help=f"{out}; goes on with what is there")
    parser.add_argument("--data", type=Path, default=Path(), metavar="DIR", help="where folders of data sets begin")
    parser.add_argument("--weights", type=Path, default=Path(), metavar="DIR", help="where files of weights begin")
    add_numbered_device(parser, devices)
    parser.add_argument("--report-only", action="store_true", help="train nothing; write the report of what is there")


def add_numbered_device(parser: argparse.ArgumentParser, default: str = "auto") -> None:
    """--device, of several GPUs a certain one too. default: in words."""
    parser.add_argument("--device", default="auto", help=f"auto, cpu, cuda or cuda:1 (default: {default})")


def add_finetune(finetune: argparse.ArgumentParser) -> None:
    finetune.add_argument(
        "dataset", metavar="DATASET", help="a data set that trocar knows, the path of a card, or a table.csv"
    )
    finetune.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set as downloaded")
    finetune.add_argument(
        "model", metavar="MODEL", help="RUN, a file of weights, timm:MODEL[@FILE], or random: before one"
    )
    finetune.add_argument("overrides", nargs="*", metavar="key=value", help="of the protocol, for example epochs=20")
    finetune.add_argument(
        "--out", type=folder, required=True, metavar="DIR", help="folder of the cell; goes on with what is there"
    )
    finetune.add_argument(
        "--protocol", default="linear", choices=("linear", "attentive", "full"), help="default: linear"
    )
    finetune.add_argument("--split", default="leak-free", metavar="NAME", help="as of bench audit (default: leak-free)")
    finetune.add_argument(
        "--csv", type=Path, metavar="DIR", help="take the split from DIR/{train,val,test}.csv as released"
    )
    finetune.add_argument("--table", type=Path, metavar="CSV", help="take the table from this file instead")
    add_unlabelled(finetune)
    finetune.add_argument("--split-seed", type=SEED, default=0, help="of subjects that are shared out (default: 0)")
    finetune.add_argument(
        "--pieces", type=POSITIVE, metavar="SECONDS", help="cut segments into pieces of at most so long"
    )
    finetune.add_argument("--seed", type=SEED, default=0, help="of the training (default: 0)")
    finetune.add_argument("--frames", type=COUNT, help="of clips (default: the weights' own, else 16)")
    finetune.add_argument("--resolution", type=COUNT, metavar="PIXELS", help="default: the weights' own, else 224")
    rate = finetune.add_mutually_exclusive_group()
    rate.add_argument("--stride", type=COUNT, metavar="FRAMES", help="default: the weights' own, else 4")
    rate.add_argument(
        "--sample-fps", type=POSITIVE, metavar="FPS", help="frames of a clip a second, instead of a stride"
    )
    add_weights_arguments(finetune)
    finetune.add_argument(
        "--corpus",
        metavar="CORPUS",
        help="compare with these videos of its pretraining too (default: what its run says)",
    )
    add_numbered_device(finetune)
    finetune.set_defaults(run=run_finetune)


def add_predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("cell", type=Path, metavar="CELL", help="the --out of a `trocar finetune` that has finished")
    predict.add_argument(
        "sources", nargs="*", metavar="DIR|FILE|CSV|GLOB|CORPUS", help="videos; a CSV names them in a column path"
    )
    predict.add_argument("--out", type=FILE, required=True, metavar="CSV", help="a row for every piece of a video")
    predict.add_argument(
        "--every",
        type=POSITIVE,
        metavar="SECONDS",
        help="of a piece (default: the median of the rows it was trained on, or whole videos where those were such)",
    )
    predict.add_argument(
        "--table",
        type=Path,
        metavar="CSV",
        help="pieces by columns video, start and end, as of finetune; labels are not read",
    )
    predict.add_argument(
        "--model", metavar="MODEL", help="the encoder, if it is not where it was (default: as recorded)"
    )
    add_numbered_device(predict)
    predict.set_defaults(run=run_predict)


def run_finetune(options: argparse.Namespace) -> int:
    from ..labels.dataset import check_dataset

    if options.table is None and options.csv is None:
        check_dataset(options.dataset, options.root)
    from ...engine.inputs.folders import backbone_source
    from ...loaders.corpus.folder import GOPS_NAME, PACKETS_NAME, VIDEOS_NAME

    backbone_source(options.model)
    from ...engine.inputs.finished import done_before, note_done  # behind what is told without a table

    inputs = [options.dataset, options.csv, options.table, options.model]
    paths = [path for path in inputs if path is not None and os.path.exists(path)]
    if options.corpus is not None:
        paths += [Path(options.corpus) / name for name in (VIDEOS_NAME, GOPS_NAME, PACKETS_NAME)]
    if (before := done_before(options, paths)) is not None:
        print("\n".join(before))
        return 0
    from .finetune_command import finetune_command, lines

    clips = {
        name: getattr(options, name)
        for name in ("frames", "resolution", "stride", "sample_fps", "kind", "positions", "minimum")
    }
    of_task = {name: getattr(options, name) for name in ("split", "csv", "table", "split_seed", "pieces", "unlabelled")}
    of_cell = {name: getattr(options, name) for name in ("protocol", "seed", "device", "corpus")}
    places = (options.dataset, options.root, options.model, options.out)
    row = finetune_command(*places, settings=options.overrides, clips=clips, tell=tell, **of_cell, **of_task)
    note_done(options, paths, lines(row))
    print("\n".join(lines(row)))
    return 0


def run_predict(options: argparse.Namespace) -> int:
    from ...engine.inputs.folders import backbone_source
    from ...loaders.corpus.sources import absent_sources
    from ...loaders.video.video import is_remote
    from ..labels.table import placed, read_table
    from .predictor import read_record

    record = read_record(options.cell)
    backbone_source(options.model or record.model)
    rows = [] if options.table is None else placed(read_table(options.table, "none"), options.table.parent)
    gone = [row.video for row in rows if not (is_remote(row.video) or os.path.exists(row.video))]
    if options.table is not None and rows and len(gone) == len(rows):
        raise ConfigError(
            f"{options.table}: none of its {len(rows)} videos is there, for example {gone[0]}; relative paths begin at "
            f"{options.table.parent}, the folder of the table"
        )
    if not (options.sources or rows):
        raise ConfigError("name videos, or pieces of them by --table")
    if not rows and len(absent := absent_sources(options.sources)) == len(options.sources):
        raise ConfigError("\n".join(["nothing could be predicted", *absent]))
    from ...engine.step.device import choose_device
    from .predict import load_predictor, predict

    predictor = load_predictor(options.cell, choose_device(options.device), options.model)
    problems = predict(predictor, options.sources, options.out, rows=rows, every=options.every, tell=tell)
    for problem in problems:
        tell(f"not predicted: {problem}")
    print(options.out)
    return int(bool(problems))


def run_bench_downstream(options: argparse.Namespace) -> int:
    from ..labels.dataset import check_dataset
    from .matrix import Places, load_matrix

    matrix = load_matrix(options.config)
    places = Places(options.out, options.data, options.weights)
    absent = []
    for entry in matrix.datasets:
        try:
            if entry.csv is None and entry.table is None:
                check_dataset(places.table(entry), places.data / entry.root)
        except TrocarError as error:
            absent.append(str(error))
    if len(absent) == len(matrix.datasets) and not options.report_only:
        raise ConfigError("\n".join(["none of the data sets is there", *absent]))
    from .downstream import bench_downstream
    from .report import write_report

    failures = []
    if not options.report_only:
        failures = bench_downstream(matrix, places, device=options.device, workers=options.workers, tell=tell)
    print("\n".join(map(str, write_report(matrix, places))))
    return int(bool(failures))
