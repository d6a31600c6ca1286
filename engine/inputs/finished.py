"""Work that is done already, found without PyTorch: a command that has nothing left to do answers at once.

What these functions find, the commands would find too, later. Where anything differs, or cannot be read, they return None and the
command itself says what it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import MANIFEST_NAME
from ...loaders.corpus.whole_file import write_text_whole
from ...loaders.curate.embeddings import Manifest, check_shard, shard_path
from ...loaders.draw.grid_clips import GridClips
from ..config.file import parse_config
from ..config.settings import Config
from .checkpoints import checkpoint_state, checkpoints
from .folders import DESCRIPTOR

REPORT_NAME = "report.md"
DONE = ".done.json"


@dataclass(frozen=True)
class EmbedSummary:
    """spans: N. width: D. made: shards that this call made. failed: spans that could not be read, over all shards; reasons:
    some."""

    out: Path
    spans: int
    width: int
    shards: int
    made: int
    failed: int
    reasons: list[str]

    def lines(self) -> list[str]:
        lines = [
            f"{self.spans:,} spans of {self.width} values in {self.shards:,} shards ({self.made:,} made now): {self.out}"
        ]
        if self.failed:
            lines.append(f"{self.failed:,} spans could not be read and are left out of clusters; first of them:")
            lines += [f"  {reason}" for reason in self.reasons]
        return lines


def is_made(out: Path, manifest: Manifest, shard: int) -> bool:
    """Raises CorpusError where the shard is not what the manifest says."""
    if not shard_path(out, shard).exists():
        return False
    check_shard(out, manifest, shard)
    return True


def summary_of(out: Path, manifest: Manifest, made: int) -> EmbedSummary:
    """made: shards of this call."""
    failures = [failure for shard in range(manifest.num_shards) for failure in _failures(out, shard)]
    reasons = list({failure["path"]: failure["reason"] for failure in failures}.values())[:3]
    return EmbedSummary(out, manifest.rows, manifest.width, manifest.num_shards, made, len(failures), reasons)


def _failures(out: Path, shard: int) -> list[dict[str, Any]]:
    path = shard_path(out, shard).with_suffix(".failed.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def finished_embeddings(
    corpus: str | os.PathLike[str],
    out: Path,
    *,
    model: str,
    frames: int,
    stride: int,
    part: tuple[int, int],
    rows_per_shard: int,
) -> EmbedSummary | None:
    """Of the descriptor alone: whether a run's or timm's weights are the same, their values say. Raises CorpusError."""
    if model != DESCRIPTOR or not (out / MANIFEST_NAME).exists():
        return None
    opened = Corpus.open(corpus)
    known = Manifest.read(out)
    rows = len(GridClips(opened, num_frames=frames, stride=stride, sample_fps=None))
    asked = {"rows": rows, "rows_per_shard": rows_per_shard, "corpus": opened.fingerprint, "model": model}
    if replace(known, **asked, frames=frames, stride=stride) != known:
        return None
    shards = range(part[0], known.num_shards, part[1])
    return summary_of(out, known, 0) if all(is_made(out, known, shard) for shard in shards) else None


def finished_run(config: Config) -> Path | None:
    """The last checkpoint of a run that has done all its steps by these settings, on this corpus. Raises CorpusError."""
    saved = checkpoints(Path(config.run.dir))
    state = checkpoint_state(saved[-1]) if saved else None
    if not state or "config" not in state or state["step"] != state.get("steps"):
        return None
    settings = (config, parse_config(state["config"], str(saved[-1])))
    # `auto` has become a number there; it changes neither draws nor curve.
    now, before = (replace(one, optim=replace(one.optim, accumulation=1)) for one in settings)
    is_same = now == before and Corpus.open(config.data.corpus).fingerprint == state["corpus"]
    return saved[-1] if is_same else None


def report_mark(corpus: Corpus | None) -> str:
    """The last line of a tree's report: what it was made of."""
    of = "no corpus" if corpus is None else f"corpus {corpus.fingerprint}"
    return f"<!-- by trocar {metadata.version('trocar')} of {of} -->"


def current_report(out: Path, corpus: Corpus | None) -> Path | None:
    """The report of the tree in `out`, where it is of this corpus."""
    path = out / REPORT_NAME
    if not path.exists() or not path.read_text(encoding="utf-8").endswith(f"{report_mark(corpus)}\n"):
        return None
    return path


def done_before(options: argparse.Namespace, paths: Iterable[str | os.PathLike[str]]) -> list[str] | None:
    """The lines that `note_done` wrote in `options.out` for the same options, where neither a file in there nor one of `paths` is
    another since, by its size and time."""
    try:
        noted = json.loads((options.out / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return noted["lines"] if noted["asked"] == _asked(options, paths) else None


def note_done(options: argparse.Namespace, paths: Iterable[str | os.PathLike[str]], lines: Sequence[str]) -> None:
    """options: what a command was asked for, `out` among it. paths: files, and folders with all that is in them, that its work
    hangs on."""
    write_text_whole(options.out / DONE, json.dumps({"asked": _asked(options, paths), "lines": list(lines)}))


def _asked(options: argparse.Namespace, paths: Iterable[str | os.PathLike[str]]) -> str:
    words = sorted((name, str(value)) for name, value in vars(options).items() if name not in ("run", "parser"))
    told: list[Any] = [metadata.version("trocar"), os.getcwd(), words]
    for path in map(Path, (options.out, *paths)):
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file.name != DONE:
                found = file.stat()
                told.append((os.path.abspath(file), found.st_size, found.st_mtime_ns))
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()
