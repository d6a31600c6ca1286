"""Texts and tables that people write: opened, or told what stands in the way and how to save them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ..video.error import TrocarError

SAVE = "save it as comma-separated UTF-8 (in Excel: CSV UTF-8)"
SEPARATORS = {";": "semicolons", "\t": "tabs"}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
SHOWN = 12  # bytes before and behind one that is not UTF-8


def unreadable_text(path: str | Path, error: BaseException, what: str, mend: str = "correct the path") -> str:
    """The message for a text file that could not be opened, decoded or parsed. what: it should be. mend: where it is absent."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"{path}: no such file; {mend}"
    if isinstance(error, IsADirectoryError):
        return f"{path}: is a folder, where a {what} is needed"
    if isinstance(error, OSError):
        return f"{path}: cannot be read ({error.strerror or error})"
    if not isinstance(error, UnicodeDecodeError):
        return f"{path}: not a readable {what} ({error})"
    if error.object[:2] in UTF_16:
        found = "it is UTF-16"
    else:
        text = error.object.decode("latin-1")
        begin = max(error.start - SHOWN, text.rfind("\n", 0, error.start) + 1)
        near = text[begin : error.start + SHOWN].splitlines()[0]
        found = f"{near!r} is written as in Latin-1 or Windows-1252"
    save = SAVE if what == "CSV file" else "save it as UTF-8"
    return f"{path}: not a readable {what} in UTF-8 ({found}); {save}"


@contextmanager
def open_table(
    path: str | Path,
    kind: Callable[[str], TrocarError],
    opened: AbstractContextManager[Any] | None = None,
    *,
    columns: Sequence[str] = (),
    mend: str = "",
    **reading: Any,
) -> Iterator[csv.DictReader[str]]:
    """The rows of a CSV file with a header.

    opened: the file, where it is no path of this machine. columns: that it is to have; mend: what to do where it lacks some.
    reading: of csv.DictReader. Raises `kind` where the file cannot be read, also while its rows are, or its columns are lacking or
    not separated by commas.
    """
    try:
        with opened or Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, **reading)
            if said := other_separator(reader.fieldnames or ()):
                raise kind(f"{path}: {said}")
            if lacking := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise kind(f"{path}: lacks the columns {', '.join(lacking)}; {mend}")
            yield reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise kind(unreadable_text(path, error, "CSV file")) from error


def other_separator(header: Sequence[str]) -> str:
    """What is to be said of a header, read with commas, whose columns something else separates; "" where that is not so."""
    name = header[0] if len(header) == 1 else ""
    said = next((word for separator, word in SEPARATORS.items() if separator in name), "")
    return said and f"{said} stand between its columns ({name!r}), not commas; {SAVE}"
