"""A run's folder belongs to one training at a time: a second one would write over the first one's rows and checkpoints."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config.error import ConfigError
from ..ranks.distributed import World

LOCK_FILE = ".lock"


@contextmanager
def run_locked(run_dir: Path, world: World) -> Iterator[None]:
    """Holds the folder, which is made, for the first rank; the system lets go of it however the process ends. Where the file system
    knows no locks the folder is not held.

    Raises ConfigError where another process holds it, which is named.
    """
    if not world.is_first:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise ConfigError(f"run.dir: {who} is training in {run_dir}; stop that, or set run.dir elsewhere") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
