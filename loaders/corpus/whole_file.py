"""Files that are written whole or not at all, and what is said of one that cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

# What the system says of a file that is not there; all else that it says is about permissions or the storage.
ABSENT = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
Value = TypeVar("Value")


def write_whole(path: Path, write: Callable[[Path], Value], *, is_private: bool = False) -> Value:
    """Writes `path`: `write` fills PATH.*.tmp beside it, which is flushed to the disk and renamed. Returns what `write` returns.

    The mode is that of any new file there, as umask and folder have it, also where a library writes by way of a private temporary
    file: safetensors leaves 0600, which colleagues cannot read. is_private: it is the owner's alone, 0600 from its first byte on.
    Processes of several machines may write the same file at once: the last one's stays. Raises what `write` raises, or OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        unfinished.touch(0o600 if is_private else 0o666)
        mode = unfinished.stat().st_mode & 0o777
        written = write(unfinished)
        unfinished.chmod(mode)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` of a text, in UTF-8."""
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_array_whole(path: Path, array: NDArray[Any]) -> None:
    """`write_whole` of one array as .npy: through a file, as NumPy adds a suffix to names that lack it."""

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            np.save(file, array)

    write_whole(path, write)


def write_arrays_whole(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """The same of several, as .npz."""

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            np.savez(file, **dict[str, Any](arrays))

    write_whole(path, write)


def check_readable(path: Path) -> None:
    """Raises OSError with the system's reason: safetensors says "no such file" of one that may not be read."""
    with path.open("rb"):
        pass


def unreadable(path: Path, error: BaseException, mend: str) -> str:
    """The message for a file that could not be read. mend: what to do where it is missing or damaged.

    A file that may not be read, or whose storage does not answer, is not called damaged.
    """
    if isinstance(error, PermissionError):
        return f"{path}: may not be read by this user ({error}); ask its owner for read permission, nothing is damaged"
    if isinstance(error, OSError) and error.errno not in ABSENT:
        return f"{path}: cannot be read now ({error}); see to its storage and start the same command again"
    what = "absent or incomplete" if isinstance(error, FileNotFoundError) else "damaged"
    return f"{path}: {what} ({error}); {mend}"


def set_aside(path: Path) -> str:
    """The command that gives a damaged file or folder another name, under which it is found no more."""
    return f"mv {path} {path.with_name('damaged_' + path.name)}"
