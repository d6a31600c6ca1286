"""Was an encoder pretrained on a test split? Its run says on which videos; the split's are compared with them.

A run's videos are those of its corpus that it could draw: by `data.include` and `data.exclude` of all phases and starts, without
the held-out ones. What it began with (`model.init`) and learned from (`objective.teacher`) counts as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open

from ...engine.config.error import ConfigError
from ...engine.config.file import CONFIG_FILE, parse_config
from ...engine.config.settings import Config
from ...engine.draws.samplers import held_out
from ...engine.record.run_record import FILE_NAME
from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import CorpusError
from ...loaders.corpus.selection import select_videos
from ...loaders.corpus.whole_file import check_readable
from ..labels.corpus_overlap import KnownVideo, Overlap, corpus_videos

ON_TEST, NOT_COMPARED = "pretrained on test", "pretraining not compared"
PUBLISHED = "published weights do not say on which videos they were pretrained; name a corpus of them: --corpus"


@dataclass(frozen=True)
class Pretraining:
    """videos: that an encoder was trained on, as far as known. corpora: where they were listed. unknown: what is not known, and
    why."""

    videos: tuple[KnownVideo, ...] = ()
    corpora: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Pretraining) -> Pretraining:
        return Pretraining(
            self.videos + other.videos,
            tuple(dict.fromkeys(self.corpora + other.corpora)),
            tuple(dict.fromkeys(self.unknown + other.unknown)),
        )


class Compared(Protocol):
    """A task whose test split can be compared with videos of a corpus, as `Task` and `WorkflowTask` are."""

    def test_overlap(self, known: Sequence[KnownVideo]) -> Overlap: ...


def find_pretraining(model: str, corpus: str | None = None) -> Pretraining:
    """What the encoder `model`, as of `load_backbone`, was pretrained on.

    corpus: what `trocar index` or `trocar pack` wrote, besides what the encoder says; it stands for what cannot be found. Raises
    CorpusError where it cannot be read.
    """
    named = Pretraining()
    if corpus is not None:
        named = Pretraining(tuple(corpus_videos(Corpus.open(corpus))), (corpus,))
    if model.startswith("random:"):
        return named
    found = Pretraining(unknown=(PUBLISHED,)) if model.startswith("timm:") else _of_path(Path(model))
    return named + (found if corpus is None else replace(found, unknown=()))


def compare_pretraining(task: Compared, pretraining: Pretraining) -> dict[str, Any]:
    """For a cell's row: corpora, how many test rows come from their videos and some of these, what is not known, and flags.

    "pretrained on test": some rows do. "pretraining not compared": a run's corpus, or a part of it, could not be looked at; of
    published weights that is not said. Raises DatasetError and VideoError where the test split's videos cannot be read.
    """
    found = task.test_overlap(pretraining.videos) if pretraining.videos else Overlap((), {}, ())
    unknown = list(pretraining.unknown)
    if found.unread:
        unknown.append(f"{len(found.unread)} videos cannot be read, {found.unread[0]} for example")
    flags = [ON_TEST] if found.rows else []
    flags += [NOT_COMPARED] if any(reason != PUBLISHED for reason in unknown) else []
    named = {
        "corpora": list(pretraining.corpora),
        "test_rows": len(found.rows),
        "videos": list(found.names(found.rows)),
    }
    return {**named, "unknown": unknown, "flags": flags}


def pretraining_lines(found: Mapping[str, Any], test_rows: int) -> list[str]:
    """What `compare_pretraining` found, in words. test_rows: of the split."""
    lines = [f"not compared with its pretraining: {reason}" for reason in found["unknown"]]
    if found["corpora"]:
        of = f"{found['test_rows']} of {test_rows} test rows come from videos of {', '.join(found['corpora'])}"
        lines.append(f"pretrained on test: {of}: {', '.join(found['videos'])}" if found["test_rows"] else of)
    return lines


def _of_path(path: Path) -> Pretraining:
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    if run.is_dir() and (run / CONFIG_FILE).is_file():
        return _of_run(run)
    if path.suffix == ".safetensors" and path.is_file():
        check_readable(path)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        if "config" in header:
            return _of_configs([(header["config"], header.get("folder", ""))], str(path))
    return Pretraining(unknown=(PUBLISHED,))


def _of_run(run: Path) -> Pretraining:
    starts: list[dict[str, Any]] = []
    if (run / FILE_NAME).is_file():
        starts = json.loads((run / FILE_NAME).read_text(encoding="utf-8"))
    texts = [(start["config"], start.get("folder", "")) for start in starts]
    return _of_configs(texts or [((run / CONFIG_FILE).read_text(encoding="utf-8"), "")], str(run))


def _of_configs(texts: list[tuple[str, str]], where: str) -> Pretraining:
    """texts: configs, and the folders in which their relative paths begin."""
    found = Pretraining()
    for text, folder in dict.fromkeys(texts):
        try:
            found += _of_config(parse_config(text, where), folder)
        except (ConfigError, CorpusError, OSError) as error:
            found += Pretraining(unknown=(f"{where}: {error}",))
    return found


def _of_config(config: Config, folder: str) -> Pretraining:
    path = os.path.join(folder, config.data.corpus)
    corpus = Corpus.open(path)
    include, exclude = (_from(folder, entries) for entries in (config.data.include, config.data.exclude))
    validation = replace(config.validation, videos=_from(folder, config.validation.videos))
    data = replace(config.data, include=include, exclude=exclude)
    held = held_out(replace(config, data=data, validation=validation), corpus)
    wanted = select_videos(corpus, include, exclude).wanted
    for phase in config.data.phases:
        include = include if phase.include is None else _from(folder, phase.include)
        exclude = exclude if phase.exclude is None else _from(folder, phase.exclude)
        wanted = wanted | select_videos(corpus, include, exclude).wanted
    if held is not None:
        wanted = wanted & ~held
    found = Pretraining(tuple(corpus_videos(corpus, wanted)), (path,))
    for source in (config.model.init, config.objective.teacher):
        if source:
            found += _of_path(Path(os.path.join(folder, source)))
    return found


def _from(folder: str, entries: Iterable[str]) -> tuple[str, ...]:
    """Entries of a selection, whose files' paths begin in `folder`."""
    return tuple(f"@{os.path.join(folder, e[1:])}" if e.startswith("@") else e for e in entries)
