"""How a packed corpus names its originals: as they are, or by pseudonyms, whose table is kept apart.

The table is a CSV: kind, name, pseudonym. Its first row is a key that was drawn once; a pseudonym is a hash of the name under that
key. So the same table gives the same names again, whatever is added, in any order, even where a row was lost; and without the table
nobody finds out by trying whether a name stands behind a pseudonym.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..corpus.corpus import Corpus, Video
from ..corpus.folder import DESCRIPTION, CorpusError
from ..corpus.whole_file import unreadable, write_whole

COLUMNS = ("kind", "name", "pseudonym")
KEY, VIDEO = "key", "video"
NAMES_OF_PEOPLE = ("subject", "centre")  # of a description; what else it says decides what is drawn, and stays
KEY_BYTES, DIGEST_BYTES = 32, 8


@dataclass(frozen=True)
class Named:
    """An original as a packed corpus names it. original: its path. description: of `DESCRIPTION`. made_of: what says that it is
    the same file still, for a proxy's record."""

    id: str
    original: str
    description: tuple[str, ...]
    made_of: dict[str, Any]

    def told(self, path: str, text: str) -> str:
        """A message about the original at `path`, as it may stand in the packed folder."""
        if self.original != path:
            for name in (path, os.path.realpath(path), PurePath(path).name):
                text = text.replace(name, self.original)
        return text


class Names:
    """Names as they are. key_digest: of the key that pseudonyms hang on, "" where there are none."""

    key_digest = ""

    def named(self, video: Video) -> Named:
        facts = video.facts
        made_of = {"path": facts.path, "size_bytes": facts.size_bytes, "mtime_ns": facts.mtime_ns}
        return Named(video.id, facts.path, _description(video), made_of)


class Pseudonyms(Names):
    """Names of a corpus by the table at `path`, which is made, or gets what it lacks, before anything is packed.

    Raises CorpusError where the table would lie in `out`, the packed folder, or is none, and OSError where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], corpus: Corpus, out: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.resolve().is_relative_to(Path(out).resolve()):
            raise CorpusError(
                f"{self.path}: lies in {out}, which would be handed out with it; keep the table of pseudonyms elsewhere"
            )
        with _alone(self.path.parent):
            known = self._read()
            key = known.get((KEY, "")) or secrets.token_hex(KEY_BYTES)
            self._key = bytes.fromhex(key)
            self.key_digest = hashlib.blake2b(self._key, digest_size=DIGEST_BYTES).hexdigest()
            wanted = {(KEY, ""): key, **known}
            for row in corpus.scan("path", *NAMES_OF_PEOPLE):
                for kind, name in ((VIDEO, row["path"]), *((kind, row[kind]) for kind in NAMES_OF_PEOPLE if row[kind])):
                    wanted[kind, name] = self._of(kind, name)
            if wanted != known or self.path.stat().st_mode & 0o077:
                self._write(wanted)

    def named(self, video: Video) -> Named:
        facts, identity = video.facts, self._of(VIDEO, video.facts.path)
        described = dict(zip(DESCRIPTION, _description(video), strict=True))
        described |= {kind: self._of(kind, described[kind]) for kind in NAMES_OF_PEOPLE if described[kind]}
        # Size and times of a file lead back to it as well.
        version = self._of("version", repr((facts.path, facts.size_bytes, facts.mtime_ns)))
        made_of = {"pseudonyms": self.key_digest, "version": version}
        return Named(identity, identity, tuple(described.values()), made_of)

    def _of(self, kind: str, name: str) -> str:
        data = f"{kind}\n{name}".encode(errors="surrogateescape")
        return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=self._key).hexdigest()

    def _read(self) -> dict[tuple[str, str], str]:
        mend = "give the table that `trocar pack --pseudonyms` wrote, or a path at which nothing is"
        try:
            with self.path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                rows = list(csv.reader(file))
        except FileNotFoundError:
            return {}
        except (OSError, csv.Error) as error:
            raise CorpusError(unreadable(self.path, error, mend)) from error
        found = {(row[0], row[1]): row[2] for row in rows[1:] if len(row) == len(COLUMNS)}
        if not rows or tuple(rows[0]) != COLUMNS or len(found) != len(rows) - 1 or not _is_key(found.get((KEY, ""))):
            raise CorpusError(f"{self.path}: is no table of pseudonyms; {mend}")
        return found

    def _write(self, rows: dict[tuple[str, str], str]) -> None:
        def write(unfinished: Path) -> None:
            with unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerows([COLUMNS, *((*names, pseudonym) for names, pseudonym in rows.items())])

        write_whole(self.path, write, is_private=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two packs that begin together draw one key."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _description(video: Video) -> tuple[str, ...]:
    return tuple(getattr(video, name) for name in DESCRIPTION)


def _is_key(text: str | None) -> bool:
    try:
        return text is not None and len(bytes.fromhex(text)) == KEY_BYTES
    except ValueError:
        return False
