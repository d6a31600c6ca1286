"""What the folders of a corpus, its embeddings and its trees hold, apart from reading them: a wrong path is told at once."""

from __future__ import annotations

import os
from pathlib import Path

from ..video.error import TrocarError

VIDEOS_NAME, GOPS_NAME, PACKETS_NAME = "videos.parquet", "gops.parquet", "packets.arrow"
QUARANTINE_NAME = "quarantine.csv"
TREE_NAME = "tree.parquet"
MANIFEST_NAME = "manifest.json"  # of embeddings
# What `trocar screen` finds, and what it says of every span: numbers, and what is so or not; see `spans.py`.
SPANS_NAME, SCREEN_NAME = "spans.parquet", "screen.parquet"
SCORES = ("in_body", "blur", "overlay_share", "brightness", "saturation", "cut_seconds")
FLAGS = ("blank", "frozen", "picture_in_picture", "transition")
# What a CSV may say of a video beside its path. origin: web, clinical or institutional.
DESCRIPTION = ("source", "domain", "procedure", "subject", "centre", "origin", "licence")


class CorpusError(TrocarError):
    """A corpus that cannot be built or opened; the message names the path and the fix."""


def corpus_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a corpus. Raises CorpusError where it, or a table of it, is not there."""
    folder = Path(path)
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder; build it with `trocar index SOURCE --out {folder}`")
    for name in (VIDEOS_NAME, GOPS_NAME, PACKETS_NAME):
        if not (folder / name).exists():
            raise CorpusError(f"{folder / name}: missing; build it again with `trocar index SOURCE --out {folder}`")
    return folder


def tree_file(path: str | os.PathLike[str]) -> Path:
    """The table of a tree, of which `path` is the folder or the table itself. Raises CorpusError where it is not there."""
    file = Path(path)
    file = file / TREE_NAME if file.is_dir() else file
    if not file.exists():
        raise CorpusError(f"{file}: no such tree; make it again with trocar cluster")
    return file


def embeddings_folder(path: str | os.PathLike[str]) -> Path:
    """A folder of embeddings. Raises CorpusError where it has no manifest."""
    file = Path(path) / MANIFEST_NAME
    if not file.exists():
        raise CorpusError(f"{file}: missing; embed again with `trocar embed CORPUS --out {path}`")
    return Path(path)


def existing_file(path: str | os.PathLike[str]) -> Path:
    """A file that is to be read. Raises CorpusError where it is not there."""
    file = Path(path)
    if not file.is_file():
        raise CorpusError(f"{file}: no such file")
    return file
