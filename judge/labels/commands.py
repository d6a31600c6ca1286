"""`trocar bench audit`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...loaders.options import COSINE, FILE, SEED, Commands


def add_commands(commands: Commands) -> None:
    add_audit(commands.benches.add_parser("audit", help="what is wrong with a labelled data set and its splits"))


def add_audit(audit: argparse.ArgumentParser) -> None:
    audit.add_argument(
        "dataset", metavar="DATASET", help="a data set that trocar knows, the path of a card, or a table.csv"
    )
    audit.add_argument(
        "root", type=Path, metavar="ROOT", help="folder of the data set as downloaded; a table's paths begin there"
    )
    audit.add_argument(
        "--split",
        default="leak-free",
        metavar="NAME",
        help="leak-free, official, as-is, paper, or CENTRE-left-out (default: leak-free)",
    )
    audit.add_argument(
        "--csv", type=Path, metavar="DIR", help="take the split from DIR/{train,val,test}.csv as released"
    )
    audit.add_argument("--table", type=Path, metavar="CSV", help="take the table from this file instead")
    audit.add_argument("--corpus", metavar="CORPUS", help="also look for videos that stand in this corpus")
    audit.add_argument(
        "--duplicates", action="store_true", help="also compare what clips look like; decodes all of them"
    )
    audit.add_argument(
        "--likeness", default="thumbnails", metavar="MODEL", help="by which: thumbnails, descriptor, RUN or timm:MODEL"
    )
    audit.add_argument(
        "--similar", type=COSINE, default=0.99, metavar="COSINE", help="of clips that are the same (default: 0.99)"
    )
    audit.add_argument("--seed", type=SEED, default=0, help="of subjects that are shared out (default: 0)")
    add_unlabelled(audit)
    audit.add_argument("--json", type=FILE, metavar="FILE", help="write the result there as well")
    audit.add_argument("--out", type=FILE, metavar="CSV", help="write the table with its split there")
    audit.set_defaults(run=run_bench_audit)


def add_unlabelled(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unlabelled",
        default="refuse",
        choices=("refuse", "drop", "none"),
        help="rows of table.csv without a label: none is for tables whose rows may have several (default: refuse)",
    )


def run_bench_audit(options: argparse.Namespace) -> int:
    from .dataset import check_dataset

    if options.table is None and options.csv is None:
        check_dataset(options.dataset, options.root)
    from .audit_command import audit_dataset

    names = ("split", "csv", "table", "corpus", "duplicates", "likeness", "similar", "seed", "unlabelled", "out")
    given = {name: getattr(options, name) for name in names}
    result = audit_dataset(options.dataset, options.root, json_file=options.json, **given)
    print("\n".join(result.lines()))
    return int(bool(result.findings))
