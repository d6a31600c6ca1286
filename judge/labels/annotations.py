"""What readers of annotations share: finding files, reading text tables, turning frames into seconds.

A label that holds for frames a .. b, both included, at F frames a second, is a piece from a / F to (b + 1) / F seconds.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Hashable, Iterable, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from av.error import FFmpegError

from ...loaders.corpus.text_file import unreadable_text
from ...loaders.video.probe import choose_track
from ...loaders.video.pyav import as_fraction
from ...loaders.video.video import VideoError, is_remote, open_video
from .dataset import DatasetError, Segment

Label = TypeVar("Label", bound=Hashable)
PICTURES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"])


def folder(root: Path, *names: str) -> Path:
    """The first of these folders that `root` has. Raises DatasetError."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DatasetError(f"{root}: no folder {' or '.join(names)} in it")


def file(path: Path, *others: Path) -> Path:
    """The first of these files that exists. Raises DatasetError."""
    for candidate in (path, *others):
        if candidate.is_file():
            return candidate
    raise DatasetError(f"no file {' or '.join(map(str, (path, *others)))}")


def matching(parent: Path, pattern: str) -> list[tuple[re.Match[str], Path]]:
    """(match, path) of the files of a folder whose whole names match, numbers inside in order of their size.

    Raises DatasetError where there are none.
    """
    found = [
        (match, path) for path in parent.iterdir() if path.is_file() and (match := re.fullmatch(pattern, path.name))
    ]
    if not found:
        raise DatasetError(f"{parent}: no file in it is named like {pattern}")
    return sorted(found, key=lambda pair: natural(pair[1].name))


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def lines(path: Path, *, separator: str | None = None, header: Sequence[str] | None = None) -> list[list[str]]:
    """The rows of a text table, without empty lines.

    separator: between values; white space where None. header: names that its first row has to hold, whatever their case; that row
    is left out. Raises DatasetError.
    """
    try:
        with file(path).open(newline="", encoding="utf-8-sig") as text:
            rows = csv.reader(text, delimiter=separator) if separator else (line.split() for line in text)
            table = [[value.strip() for value in row] for row in rows if any(value.strip() for value in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(unreadable_text(path, error, "text table")) from error
    if header is None:
        return table
    if not table or [name.lower() for name in table[0][: len(header)]] != [name.lower() for name in header]:
        raise DatasetError(f"{path}: its first line is {table[0] if table else 'missing'}, not {' '.join(header)}")
    return table[1:]


def records(path: Path, *names: str, separator: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV with a header, as dictionaries of these columns. Raises DatasetError."""
    table = lines(path, separator=separator)
    header = table[0] if table else []
    missing = [name for name in names if name not in header]
    if missing:
        raise DatasetError(f"{path}: no column {', '.join(missing)} among {header}")
    for row in table[1:]:
        if len(row) != len(header):
            raise DatasetError(f"{path}: the row {row} has not {len(header)} values, as the header has")
    return [{name: row[header.index(name)] for name in names} for row in table[1:]]


def number(text: str, path: Path) -> int:
    """A whole number. Raises DatasetError, which names the file."""
    try:
        return int(text)
    except ValueError:
        raise DatasetError(f"{path}: {text!r} stands where a whole number is expected") from None


def seconds(text: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise DatasetError(f"{path}: {text!r} stands where seconds are expected") from None


def frame_rate(path: Path) -> Fraction:
    """Frames a second, as the file says. Raises DatasetError."""
    try:
        with open_video(str(path.absolute())) as container:
            rate = as_fraction(choose_track(str(path), container)[0].average_rate)
    except VideoError as error:
        raise DatasetError(str(error)) from error
    except (OSError, FFmpegError) as error:
        raise DatasetError(f"{path}: cannot be opened as a video ({error})") from error
    if not rate:
        raise DatasetError(f"{path}: says no frame rate")
    return rate


def labelled_frames(
    frames: Iterable[tuple[int, Label]], path: Path, rate: float | Fraction, *, step: int = 1
) -> list[tuple[float, float, Label]]:
    """(start, end, label) of the runs of one label among frames labelled one by one.

    frames: (number, label), in order, counted from 0 or from 1, every `step`-th one. rate: frames a second. Raises DatasetError
    where a number is out of order or one is missing.
    """
    table = list(frames)
    if not table:
        raise DatasetError(f"{path}: no frame is labelled")
    first = table[0][0]
    if first not in (0, 1):
        raise DatasetError(f"{path}: the first frame is {first}; frames count from 0 or from 1")
    for place, (frame, _) in enumerate(table):
        if frame != first + place * step:
            raise DatasetError(f"{path}: frame {frame} stands where {first + place * step} is expected")
    return runs([(frame - first, label) for frame, label in table], rate, step=step)


def runs(
    frames: Iterable[tuple[int, Label]], rate: float | Fraction, *, step: int = 1
) -> list[tuple[float, float, Label]]:
    """(start, end, label) of the runs of consecutive frames, counted from 0, that have one label; a gap ends a run."""
    found = []
    placed = ((place, frame, label) for place, (frame, label) in enumerate(frames))
    for (label, _), run in groupby(placed, key=lambda item: (item[2], item[1] - item[0] * step)):
        numbers = [frame for _, frame, _ in run]
        found.append((float(numbers[0] / rate), float((numbers[-1] + step) / rate), label))
    return found


def pictures(parent: Path) -> list[Path]:
    """The pictures of a folder, or beside others those that a pattern names (`train/1_*.jpg`), in order of their numbers.

    Raises DatasetError where there are none.
    """
    within, pattern = (parent.parent, parent.name) if _is_pattern(parent) else (parent, "*")
    found = [path for path in within.iterdir() if path.suffix.lower() in PICTURES and fnmatchcase(path.name, pattern)]
    if not found:
        raise DatasetError(f"{parent}: no picture in it")
    return sorted(found, key=lambda path: natural(path.name))


def are_pictures(video: str) -> bool:
    """Whether a table means pictures by it: a folder, or a pattern of names."""
    return os.path.isdir(video) or _is_pattern(Path(video))


def missing_videos(table: Iterable[Segment]) -> dict[str, list[str]]:
    """Split -> its videos that are not on the disk, by name; no entry where none lacks. Those elsewhere are not looked for."""
    of_split: dict[str, set[str]] = {}
    for segment in table:
        of_split.setdefault(segment.split, set()).add(segment.video)
    gone = {v for v in set().union(*of_split.values()) if not is_remote(v) and not is_there(v)}
    return {split: sorted(videos & gone) for split, videos in of_split.items() if videos & gone}


def is_there(video: str) -> bool:
    """Whether a table's video, or one of the pictures that it names, is on the disk."""
    path = Path(video)
    return path.exists() or (
        _is_pattern(path)
        and path.parent.is_dir()
        and any(fnmatchcase(name, path.name) for name in os.listdir(path.parent))
    )


def _is_pattern(path: Path) -> bool:
    return "*" in path.name and path.suffix.lower() in PICTURES
