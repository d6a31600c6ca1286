"""Reading ranges of a file, on a local disk or wherever fsspec reaches."""

from __future__ import annotations

import os
import zlib
from typing import Any

import fsspec

from .video import VideoError, VideoFacts


def is_remote(path: str) -> bool:
    """Whether `path` is a URL such as s3://bucket/name rather than a local path."""
    return "://" in path


def stored_version(path: str) -> tuple[int, int]:
    """(size in bytes, a number that changes with the content): the modification time in ns, or a hash of what the store tells.

    Raises OSError, also where the file does not exist.
    """
    if not is_remote(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    system, name = fsspec.url_to_fs(path)
    return int(system.info(name)["size"]), zlib.crc32(system.ukey(name).encode())


class StoredFile:
    """An open file of which ranges can be read. Raises VideoError where it is gone or has changed since it was indexed."""

    def __init__(self, video: VideoFacts) -> None:
        self.video = video
        self._descriptor = -1
        self._system: Any = None
        try:
            if is_remote(video.path):
                self._system, self._name = fsspec.url_to_fs(video.path)
                self._check(stored_version(video.path))
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
            raise VideoError(f"{self.video.path}: changed since it was indexed; run `trocar index` again")

    def _unreadable(self, error: OSError) -> VideoError:
        reason = error.strerror or str(error)
        return VideoError(f"{self.video.path}: {reason}; restore the file or run `trocar index` again")
