"""The command line: `trocar ...`, `python -m trocar.engine.cli`, `torchrun -m trocar.engine.cli`.

A dispatcher: what runs stands beside what it runs, in the `commands.py` of each folder. Heavy imports stand inside the functions
there, behind a look at what they are given (`inputs`) and at what is done already (`finished`): `trocar --help`, a wrong path and a
command with nothing to do answer without PyTorch.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

# Read when PyTorch loads OpenMP. Threads that wait actively take the cores from the decoding threads and, where cores are shared
# with other work, from those they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ..loaders.options import Commands, is_unread
from ..loaders.video.error import TrocarError
from .config.error import ConfigError

# Each has a commands.py with add_commands(commands). By name: the engine imports neither bench nor judge.
FOLDERS = (
    *("loaders", "engine", "engine.curate", "engine.view", "engine.report"),
    *(f"bench.{name}" for name in ("loading", "training", "kernels", "profile", "plan", "curation", "report", "gpu")),
    *("judge.labels", "judge.downstream", "judge.workflow"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Returns the exit status: 0, 1 where something could not be done, 2 where it was asked for wrongly."""
    parser = build_parser()
    options, left = parser.parse_known_args(arguments)
    # argparse takes no more settings once an option stood between them.
    if left and (not hasattr(options, "overrides") or any(text.startswith("-") for text in left)):
        settings = [text[2:] for text in left if hasattr(options, "overrides") and re.match(r"--\w+\.\w+=", text)]
        hint = f"; settings are written without dashes: {' '.join(settings)}" if settings else ""
        options.parser.error(f"unrecognized arguments: {' '.join(left)}{hint}")
    if left:
        options.overrides = [*options.overrides, *left]
    try:
        for name in ("out", "json"):
            if getattr(options, name, None):
                check_place(f"--{name}", Path(getattr(options, name)))
        status = options.run(options)
        sys.stdout.flush()
        return status
    except (OSError, TrocarError) as error:
        if isinstance(error, BrokenPipeError) and is_unread():
            return 128 + signal.SIGPIPE
        print(f"trocar: {error}", file=sys.stderr)
        return error.status if isinstance(error, TrocarError) else 1
    except KeyboardInterrupt:
        print("trocar: interrupted", file=sys.stderr)
        return 130


def check_place(option: str, path: Path) -> None:
    """Raises ConfigError where no file or folder can be written at `path`: told before hours of work, not behind them."""
    folder = next((parent for parent in path.absolute().parents if parent.exists()), path)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"{option} {path}: {folder} is not a folder that can be written to; choose another place")


class PrintCompletion(argparse.Action):
    """What a shell sources to complete commands and options."""

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, shell: Any, _option: str | None = None
    ) -> None:
        import shtab

        print(shtab.complete(parser, shell))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    commands = Commands("From a folder of long surgical videos to a pretrained video encoder.")
    version = f"trocar {metadata.version('trocar')}"
    commands.parser.add_argument("--version", action="version", version=version)
    commands.parser.add_argument("--print-completion", choices=("bash", "zsh"), action=PrintCompletion)
    package = (__package__ or "").rpartition(".")[0]
    for folder in FOLDERS:
        import_module(f"{package}.{folder}.commands").add_commands(commands)
    return commands.parser


if __name__ == "__main__":
    sys.exit(main())
