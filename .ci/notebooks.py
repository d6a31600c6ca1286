"""`make notebooks`: the tutorials as notebooks, from their Markdown, which stays the one source.

Python becomes a cell, a command line a cell that begins with "!", as IPython runs it; all else is text. tests/test_tutorials.py
runs the cells in order. Written by hand: a notebook is JSON (nbformat 4.5).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
RUN = "!"  # before a command line


def notebook(markdown: str) -> dict[str, Any]:
    """A page's cells in order, without outputs."""
    cells: list[dict[str, Any]] = []
    place = 0
    for block in BLOCK.finditer(markdown):
        _add(cells, "markdown", markdown[place : block.start()])
        language, text = block.groups()
        _add(cells, "code", text if language == "python" else re.sub(r"^(?=.)", RUN, text, flags=re.MULTILINE))
        place = block.end()
    _add(cells, "markdown", markdown[place:])
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}


def _add(cells: list[dict[str, Any]], kind: str, text: str) -> None:
    if not text.strip():
        return
    cell: dict[str, Any] = {
        "id": f"cell-{len(cells)}",
        "cell_type": kind,
        "metadata": {},
        "source": text.strip("\n").splitlines(keepends=True),
    }
    cells.append({**cell, "execution_count": None, "outputs": []} if kind == "code" else cell)


def main(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for page in sorted(source.glob("*.md")):
        text = json.dumps(notebook(page.read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
        (out / f"{page.stem}.ipynb").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(ROOT / "docs" / "tutorials", Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "notebooks")
