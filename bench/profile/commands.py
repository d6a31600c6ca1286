"""`trocar profile`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ...loaders.options import FILE, Commands


def add_commands(commands: Commands) -> None:
    profile = commands.add(
        "profile", task="measurements", text="train some steps under a profiler; says where they went"
    )
    profile.add_argument("config", metavar="CONFIG", help="as for trocar pretrain")
    profile.add_argument("overrides", nargs="*", metavar="section.key=value")
    profile.add_argument("--steps", default="10:20", metavar="A:B", help="steps A .. B - 1, from 0 (default: 10:20)")
    profile.add_argument("--ranks", default="0", metavar="N,N", help="those that are recorded (default: 0)")
    profile.add_argument("--out", type=Path, default=Path("runs/profile"), metavar="DIR", help="default: runs/profile")
    profile.add_argument("--json", type=FILE, metavar="FILE", help="write the row there as well")
    profile.add_argument(
        "--ncu", metavar="KERNEL", help="print the command of Nsight Compute for a kernel; run nothing"
    )
    profile.add_argument(
        "--capture", action="store_true", help="only mark the steps, for a profiler of CUDA around this command"
    )
    profile.set_defaults(run=run_profile)


def run_profile(options: argparse.Namespace) -> int:
    from ...engine.inputs.folders import checked_config

    if not options.ncu:  # a command that is printed may be for another machine
        checked_config(options.config, options.overrides)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # read with PyTorch: torch.profiler complains where there is no GPU
    from ..rows.row import write_rows
    from .run import Request, capture, profile_steps
    from .table import table

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
