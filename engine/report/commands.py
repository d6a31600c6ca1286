"""`trocar report`: runs on a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...loaders.options import HTML, POSITIVE, Commands


def add_commands(commands: Commands) -> None:
    report = commands.add(
        "report", task="pictures", text="runs side by side on one HTML page: curves, speed, draws, failures, pictures"
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=HTML, metavar="HTML", help="default: report.html in the first run")
    report.add_argument(
        "--downstream",
        type=Path,
        action="append",
        default=[],
        metavar="CSV",
        help="a report.csv of `trocar bench downstream`; may be given again",
    )
    report.add_argument("--no-pictures", dest="pictures", action="store_false", help="decode nothing, load no weights")
    report.add_argument("--watch", action="store_true", help="write it anew while runs train, until Ctrl-C")
    report.add_argument("--every", type=POSITIVE, default=60.0, metavar="SECONDS", help="with --watch (default: 60)")
    report.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    from ..inputs.folders import run_folder
    from ..inputs.judged import judged_table

    runs = [run_folder(run) for run in options.runs]
    for table in options.downstream:
        judged_table(table)
    from .report import PAGE, Report, watch

    out = options.out or runs[0] / PAGE
    report = Report(
        runs,
        out,
        downstream=options.downstream,
        pictures=options.pictures,
        refresh=options.every if options.watch else None,
    )
    print(report.write())
    if options.watch:
        watch(report, options.every)
    return 0
