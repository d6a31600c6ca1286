"""AIxSuture, skill: videos of five minutes and OSATS.xlsx, in which several investigators rate each one.

The global rating, averaged over the investigators, makes three classes: below 16, below 24, and from there to 40.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

from openpyxl import load_workbook
from openpyxl.utils.exceptions import InvalidFileException

from ..annotations import file
from ..dataset import DatasetError, Segment

COLUMNS = ("STUDENT", "VIDEO", "GLOBA_RATING_SCORE")  # as it is spelled there
CLASSES = ((16.0, "novice"), (24.0, "intermediate"), (41.0, "proficient"))


def read(root: Path) -> list[Segment]:
    """One segment for each video, the whole of it; the subject is the student, who is filmed before and after a course."""
    scores: dict[str, list[float]] = {}
    students: dict[str, str] = {}
    path = file(root / "OSATS.xlsx")
    for student, video, score in _rows(path):
        if students.setdefault(video, student) != student:
            raise DatasetError(f"{path}: video {video} belongs to the students {students[video]} and {student}")
        scores.setdefault(video, []).append(score)
    table = []
    for name, ratings in scores.items():
        average = sum(ratings) / len(ratings)
        label = next((label for limit, label in CLASSES if 8 <= average < limit), None)
        if label is None:
            raise DatasetError(f"{path}: video {name} is rated {average:g}, which is not in 8 .. 40")
        table.append(Segment(str(file(root / f"{name}.mp4")), None, None, label, students[name], source="AIxSuture"))
    return table


def _rows(path: Path) -> list[tuple[str, str, float]]:
    """(student, video, score) of each rating."""
    try:
        workbook = load_workbook(path, read_only=True, data_only=True)
        rows = [list(row) for row in workbook.worksheets[0].iter_rows(values_only=True)]
        workbook.close()
    except (OSError, BadZipFile, InvalidFileException, KeyError) as error:
        raise DatasetError(f"{path}: not a readable workbook ({error})") from error
    header = [str(name).strip() for name in rows[0]] if rows else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DatasetError(f"{path}: no column {', '.join(missing)} among {header}")
    places = [header.index(name) for name in COLUMNS]
    ratings = []
    for line, row in enumerate(rows[1:], start=2):
        if all(value is None for value in row):
            continue
        student, video, score = (row[place] for place in places)
        try:
            ratings.append((str(student).strip(), str(video).strip(), float(score)))  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{path}, row {line}: the score is {score!r}, not a number") from error
    return ratings
