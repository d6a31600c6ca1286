"""What numbers the options of commands accept: types for argparse, in one place, so that none is refused late or by a traceback."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass


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


COUNT = Number(1, 2**31 - 1)
FROM_ZERO = Number(0, 2**31 - 1)
TOTAL = Number(1, 2**63 - 1)
INDEX = Number(0, 2**63 - 1)
SEED = Number(0, 2**32 - 1)
VIEWS = Number(1, 64)
PASSES = Number(2, 5)
ENOUGH_STEPS = Number(2, 2**31 - 1)  # the first half of a measurement does not count
POSITIVE = Number(0, is_whole=False, is_open=True)
QUALITY = Number(0, is_whole=False)
SHARE = Number(0, 1, is_whole=False, is_open=True)
COSINE = Number(-1, 1, is_whole=False)
