"""Reading ranges of a file, on a local disk or wherever fsspec reaches."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec.core

from .video import VideoError, VideoFacts, is_remote, open_url

# By falling trust; what a listing says and what the object itself says have to agree, hence not all that is known.
VERSION_KEYS = (
    "ETag",
    "etag",
    "Content-MD5",
    "mtime",
    "Last-Modified",
    "LastModified",
    "modified",
    "updated",
    "created",
)
INDEX_AGAIN = "run `trocar index` again"
REMOTE_BLOCK_BYTES = 4 << 20
REMOTE_BLOCKS = 16


def stored_version(path: str) -> tuple[int, int]:
    """(size in bytes, a number that changes with the content): the modification time in ns, or a hash of what the store tells.

    Raises OSError, also where the file does not exist.
    """
    if not is_remote(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    with as_os_error():
        system, name = fsspec.core.url_to_fs(path)
        told = system.info(name)
        version = next((str(told[key]) for key in VERSION_KEYS if told.get(key)), "")
        return int(told["size"]), zlib.crc32(version.encode())


def open_remote(path: str) -> Any:
    """A remote file that keeps the blocks read last, to be read from several places in turns. Raises OSError."""
    options: dict[str, Any] = {"cache_type": "blockcache", "cache_options": {"maxblocks": REMOTE_BLOCKS}}
    with as_os_error():
        return open_url(path, block_size=REMOTE_BLOCK_BYTES, **options)


@contextmanager
def as_os_error() -> Iterator[None]:
    """Every store has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class StoredFile:
    """An open file of which ranges can be read. remedy: what messages say mends it. Raises VideoError where it is gone or has
    changed since it was indexed."""

    def __init__(self, video: VideoFacts, remedy: str = INDEX_AGAIN) -> None:
        self.video, self.remedy = video, remedy
        self._descriptor = -1
        self._system: Any = None
        try:
            if is_remote(video.path):
                self._check(stored_version(video.path))
                self._system, self._name = fsspec.core.url_to_fs(video.path)
            else:
                self._descriptor = os.open(video.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                self._check_descriptor()
        except OSError as error:
            raise self._unreadable(error) from error

    def read(self, start: int, stop: int) -> bytes:
        """The bytes start .. stop - 1, with one `pread` or one ranged request.

        Raises VideoError where the file cannot be read, ends before, or has changed since it was indexed.
        """
        try:
            if self._system is not None:
                with as_os_error():
                    data = self._system.cat_file(self._name, start=start, end=stop)
            else:
                self._check_descriptor()
                data = os.pread(self._descriptor, stop - start, start)
        except OSError as error:
            raise self._unreadable(error) from error
        if len(data) != stop - start:
            raise VideoError(
                f"{self.video.path}: {len(data):,} of the {stop - start:,} bytes at {start:,} could be read; copy the file again"
            )
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_descriptor(self) -> None:
        status = os.fstat(self._descriptor)
        self._check((status.st_size, status.st_mtime_ns))

    def _check(self, version: tuple[int, int]) -> None:
        if version != (self.video.size_bytes, self.video.mtime_ns):
            self.close()
            raise VideoError(f"{self.video.path}: changed since it was indexed; {self.remedy}")

    def _unreadable(self, error: OSError) -> VideoError:
        reason = error.strerror or str(error)
        return VideoError(f"{self.video.path}: {reason}; restore the file or {self.remedy}")
