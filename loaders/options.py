"""What commands share: the parsers that they add theirs to, and what numbers their options accept.

The numbers are types for argparse, in one place, so that none is refused late or by a traceback.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import select
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Number:
    """A number within least .. most; whole ones where `is_whole`. is_open: `least` itself is not accepted."""

    least: float
    most: float = math.inf
    is_whole: bool = True
    is_open: bool = False

    def __call__(self, text: str) -> int | float:
        """Raises ArgumentTypeError, which argparse turns into a message that names the option, and status 2."""
        try:
            value = int(text) if self.is_whole else float(text)
        except ValueError:
            value = math.nan
        fits = self.least < value <= self.most if self.is_open else self.least <= value <= self.most
        if not (fits and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give {self}")
        return value

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        if self.most == math.inf:
            return f"{kind} above {self.least:g}" if self.is_open else f"{kind}, {self.least:g} or more"
        if self.is_open:
            return f"{kind} above {self.least:g}, at most {self.most:g}"
        return f"{kind}, {self.least:g} .. {int(self.most) if self.is_whole else self.most}"


@dataclass(frozen=True)
class File:
    """A place for a file whose name has one of these endings; any where none is named."""

    endings: tuple[str, ...] = ()

    def __call__(self, text: str) -> Path:
        """Raises ArgumentTypeError."""
        path = Path(text)
        if self.endings and path.suffix.lower() not in self.endings:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not accepted; give a file that ends in {' or '.join(self.endings)}"
            )
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder; give the name of a file")
        return path


def folder(text: str) -> Path:
    """A place for a folder, there or not. Raises ArgumentTypeError where a file stands there."""
    path = Path(text)
    if path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is a file, where a folder is needed; choose another place")
    return path


TASKS = ("corpus", "training", "encoders", "pictures", "measurements", "this machine")

COUNT = Number(1, 2**31 - 1)
FROM_ZERO = Number(0, 2**31 - 1)
TOTAL = Number(1, 2**63 - 1)
INDEX = Number(0, 2**63 - 1)
SEED = Number(0, 2**32 - 1)
VIEWS = Number(1, 64)
PASSES = Number(2, 5)
ENOUGH_STEPS = Number(2, 2**31 - 1)  # the first half of a measurement does not count
POSITIVE = Number(0, is_whole=False, is_open=True)
QUALITY = SECONDS = SCORE = Number(0, is_whole=False)
FILE, PNG, HTML = File(), File((".png",)), File((".html",))
SHARE = Number(0, 1, is_whole=False, is_open=True)
COSINE = Number(-1, 1, is_whole=False)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: cuda where there is one"
    )


def is_unread() -> bool:
    """Whether nobody reads what is printed any more, as behind `| head`, and not another pipe broke; the rest goes nowhere then."""
    poll = select.poll()
    poll.register(1, 0)  # an error is told unasked
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


def tell(text: str) -> None:
    """What is said while a command runs, apart from its result."""
    print(text, file=sys.stderr, flush=True)


class Commands:
    """The parsers of `trocar`, `trocar bench` and `trocar view`, to which folders add theirs."""

    def __init__(self, description: str) -> None:
        self.parser = _Parser(prog="trocar", usage="trocar [-h] [--version] COMMAND ...", description=description)
        self._parsers = self.parser.add_subparsers(
            prog="trocar", title="commands", required=True, metavar="COMMAND", parser_class=_Subparser
        )
        view = self.add("view", task="pictures", text="pictures of a run, of its draws and of a tree")
        bench = self.add("bench", task="measurements", text="measure speeds, and judge encoders")
        self.views = view.add_subparsers(required=True, metavar="VIEW")
        self.benches = bench.add_subparsers(required=True, metavar="WHAT")

    def add(self, name: str, *, task: str, text: str) -> argparse.ArgumentParser:
        """A command's parser; task: one of TASKS, under which `trocar --help` lists it with its text."""
        self.parser.tasks[task][name] = text
        return self._parsers.add_parser(name, description=text, help=text)

    def __getitem__(self, name: str) -> argparse.ArgumentParser:
        return self._parsers.choices[name]


class _Suggesting(argparse.ArgumentParser):
    """Names the nearest of what it accepts."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise argparse.ArgumentError(
                action, f"no such choice {str(value)!r}{hint} (choose from {', '.join(known)})"
            )


class _Subparser(_Suggesting):
    """Of a command; what it has parsed holds it as `parser`, for what is wrong only then."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.set_defaults(parser=self)


class _Parser(_Suggesting):
    """Its help lists the commands by what they are for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.tasks: dict[str, dict[str, str]] = {task: {} for task in TASKS}

    def format_help(self) -> str:
        lines = [self.format_usage(), self.description or "", ""]
        for task, commands in self.tasks.items():
            lines.append(f"{task}:")
            for name, text in commands.items():
                lines.append(textwrap.fill(text, 100, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12))
            lines.append("")
        return "\n".join(
            [*lines, "More of each: trocar COMMAND --help. Completions: trocar --print-completion bash, or zsh.", ""]
        )
