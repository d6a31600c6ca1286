"""`trocar bench report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...engine.config.error import ConfigError
from ...loaders.options import Commands


def add_commands(commands: Commands) -> None:
    report = commands.benches.add_parser(
        "report", help="write the tables of README.md and docs/*.md from bench/results"
    )
    report.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="of a checkout (default: here)")
    report.add_argument("--check", action="store_true", help="change nothing; status 1 where a page differs")
    report.add_argument("--rooflines", type=Path, metavar="PNG", help="plot kernels and stages of GPU rows there")
    report.set_defaults(run=run_bench_report)


def run_bench_report(options: argparse.Namespace) -> int:
    if not (options.root / "bench" / "results").is_dir():
        raise ConfigError(f"--root {options.root}: has no bench/results; name the folder of a checkout")
    from .render import all_rows, misquoted, render_pages
    from .roofline import plot_rooflines

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
