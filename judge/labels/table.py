"""Tables of labelled segments as CSV: written, read back, checked row by row."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Literal

from ...loaders.corpus.names import as_stored, cleaned
from ...loaders.corpus.text_file import open_table
from ...loaders.video.video import is_remote
from .dataset import MANY, SPLITS, DatasetError, Segment

Unlabelled = Literal["refuse", "drop", "none"]


NAMED = 10  # lines in a message


def write_table(path: Path, table: Sequence[Segment]) -> None:
    """A table as CSV with a header; `read_table` reads it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Segment)])
        writer.writerows(astuple(segment) for segment in table)


def read_table(path: Path, unlabelled: Unlabelled = "refuse") -> list[Segment]:
    """A table from CSV; the columns video and label are needed. Values are trimmed and in Unicode's normal form C.

    unlabelled: what to do with rows whose label is empty: "refuse" the table, "drop" them, or take them as rows of "none" of the
    classes, which only tables have whose rows may have several labels; where "|" stands in one of its labels that is so anyway.
    Raises DatasetError, which names file and line.
    """
    names = [field.name for field in fields(Segment)]
    with open_table(path, DatasetError) as reader:
        header = reader.fieldnames or []
        if not {"video", "label"} <= set(header) or set(header) - set(names):
            raise DatasetError(
                f"{path}: its columns are {header}; known are {names}, of which video and label are needed"
            )
        table, empty = [], []
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DatasetError(f"{where}: not {len(header)} values, as the header has")
            text = {name: cleaned(row.get(name) or "") for name in names}
            if not text["video"]:
                raise DatasetError(f"{where}: names no video; fill it in or take the line out")
            try:
                start, end = (float(text[name]) if text[name] else None for name in ("start", "end"))
            except ValueError as error:
                raise DatasetError(f"{where}: start and end are seconds ({error})") from error
            _check_seconds(start, end, where)
            if text["split"] not in ("", *SPLITS):
                raise DatasetError(
                    f"{where}: split is {text['split']!r}; give one of {', '.join(SPLITS)}, or nothing to leave the row out"
                )
            text["label"] = MANY.join(map(cleaned, text["label"].split(MANY)))
            empty += [] if text["label"] else [reader.line_num]
            segment = Segment(text["video"], start, end, text["label"], text["subject"] or text["video"])
            table.append(replace(segment, **{name: text[name] for name in ("centre", "source", "split")}))
    if not table:
        raise DatasetError(
            f"{path}: holds no row below its header; give a line for each labelled video or piece of one"
        )
    if not empty or unlabelled == "none" or any(MANY in segment.label for segment in table):
        return table
    if unlabelled == "drop":
        return [segment for segment in table if segment.label]
    raise DatasetError(
        f"{path}: {len(empty)} of {len(table)} rows have no label, line {', '.join(map(str, empty[:NAMED]))}"
        f"{' ...' if len(empty) > NAMED else ''}; fill it in, or leave those rows out with --unlabelled drop, or, where rows may "
        "have several labels or none, say so with --unlabelled none"
    )


def placed(table: Iterable[Segment], root: str | os.PathLike[str]) -> list[Segment]:
    """The rows with their relative paths begun at `root`."""
    return [s if is_remote(s.video) else replace(s, video=as_stored(s.video, os.fspath(root))) for s in table]


def _check_seconds(start: float | None, end: float | None, where: str) -> None:
    for name, moment in (("start", start), ("end", end)):
        if moment is not None and not 0 <= moment < math.inf:
            raise DatasetError(f"{where}: {name} is {moment:g}; give seconds from the video's first frame, 0 or more")
    if end is not None and end < (start or 0.0):
        raise DatasetError(f"{where}: it ends at {end:g} s, before its start at {start or 0.0:g} s; exchange them")
