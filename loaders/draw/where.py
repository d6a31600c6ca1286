"""`data.where`: which spans of a screen may be drawn, as an expression: "in_body > 0.9 and not blank and blur < 0.5".

Names of a screen's columns, numbers, comparisons, `and`, `or`, `not` and brackets; all else is refused. The text is parsed, not
run: nothing in it is called, looked up or evaluated by Python.

Shapes: N spans.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus.folder import FLAGS, SCORES

LONGEST = 500  # characters
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
ACCEPTED = (
    f"comparisons of {', '.join(SCORES)} with numbers, {', '.join(FLAGS)}, and, or, not and brackets are accepted, as in "
    "'in_body > 0.9 and not blank'"
)


class WhereError(ValueError):
    """An expression that is not accepted; the message says what is."""


@dataclass(frozen=True)
class Condition:
    """text: as it was given. tree: what it means."""

    text: str
    tree: ast.expr

    def holds(self, columns: Mapping[str, NDArray]) -> NDArray[np.bool_]:
        """(N,) of the spans whose columns (N,) these are."""
        return _truth(self.tree, columns)

    def terms(self) -> list[Condition]:
        """What `and` joins, on the outside."""
        is_joined = isinstance(self.tree, ast.BoolOp) and isinstance(self.tree.op, ast.And)
        parts = self.tree.values if is_joined and isinstance(self.tree, ast.BoolOp) else [self.tree]
        return [Condition(ast.unparse(part), part) for part in parts]


def parse_where(text: str) -> Condition:
    """Raises WhereError."""
    if len(text) > LONGEST:
        raise WhereError(f"{len(text)} characters; at most {LONGEST} are accepted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise WhereError(f"{text!r} is not an expression; {ACCEPTED}") from error
    condition = Condition(text, tree)
    none = {name: np.zeros(0) for name in SCORES} | {name: np.zeros(0, bool) for name in FLAGS}
    condition.holds(none)  # refuses what is not accepted
    return condition


def _truth(node: ast.expr, columns: Mapping[str, NDArray]) -> NDArray[np.bool_]:
    if isinstance(node, ast.BoolOp):
        parts = [_truth(part, columns) for part in node.values]
        return (np.logical_and if isinstance(node.op, ast.And) else np.logical_or).reduce(parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_truth(node.operand, columns)
    if isinstance(node, ast.Name) and node.id in FLAGS:
        return np.asarray(columns[node.id], bool)
    if isinstance(node, ast.Compare):
        values = [_number(part, columns) for part in (node.left, *node.comparators)]
        if not any(isinstance(value, np.ndarray) for value in values):
            raise WhereError(f"{ast.unparse(node)!r} compares numbers alone; {ACCEPTED}")
        held = np.ones(len(columns[SCORES[0]]), bool)
        for comparison, left, right in zip(node.ops, values, values[1:], strict=False):
            if type(comparison) not in COMPARISONS:
                raise WhereError(f"{ast.unparse(node)!r}: <, <=, >, >=, == and != are the comparisons; {ACCEPTED}")
            held = held & COMPARISONS[type(comparison)](left, right)
        return held
    raise WhereError(f"{_shown(node)} is neither true nor false; {ACCEPTED}")


def _number(node: ast.expr, columns: Mapping[str, NDArray]) -> NDArray | float:
    sign = 1.0
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1.0, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12:
        return sign * float(value)
    if isinstance(node, ast.Name) and node.id in SCORES and sign > 0:
        return np.asarray(columns[node.id])
    if isinstance(node, ast.Name) and node.id == "inf":
        return sign * math.inf
    raise WhereError(f"{_shown(node)} is no number that is known; {ACCEPTED}")


def _shown(node: ast.expr) -> str:
    return repr(ast.unparse(node)[:80])
