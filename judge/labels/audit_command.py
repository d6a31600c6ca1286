"""`trocar bench audit DATASET ROOT`: the table, split as asked for, looked over and written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from numpy.typing import NDArray

from ...engine.config.error import ConfigError
from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import corpus_folder
from .audit import SIMILAR, Audit, audit, missing
from .corpus_overlap import corpus_videos
from .dataset import Card, Segment, load_card, read_dataset, table_card
from .splits import from_release, leak_free, leave_one_out, named, official, papers
from .table import Unlabelled, placed, read_table, write_table

LEFT_OUT = "-left-out"
THUMBNAILS = "thumbnails"


def audit_dataset(
    dataset: str,
    root: Path,
    *,
    split: str = "leak-free",
    csv: Path | None = None,
    table: Path | None = None,
    corpus: str | None = None,
    duplicates: bool = False,
    likeness: str = THUMBNAILS,
    similar: float = SIMILAR,
    seed: int = 0,
    unlabelled: Unlabelled = "refuse",
    json_file: Path | None = None,
    out: Path | None = None,
) -> Audit:
    """Audits a data set, or a table's file, as `labelled` splits it.

    corpus: what `trocar index` wrote, compared with the test and validation videos. duplicates: compare what all clips look
    like, by `likeness`: thumbnails, or an embedder of `trocar embed`; from the cosine `similar` on they count as the same.
    json_file, out: files for the audit and for the table. Videos that are not there are a fault, and an error where they are to be
    compared. Raises DatasetError, ConfigError, CorpusError and VideoError.
    """
    if corpus is not None:
        corpus_folder(corpus)
    card, rows, origin = labelled(dataset, root, split=split, csv=csv, table=table, seed=seed, unlabelled=unlabelled)
    cache = Path(root) / ".trocar"

    def describe(segments: Sequence[Segment]) -> NDArray:
        from .thumbnails import embeddings, thumbnails  # by PyTorch, which an audit without likeness needs not

        if likeness == THUMBNAILS:
            return thumbnails(segments, card, cache)
        return embeddings(segments, likeness, card, cache)

    result = audit(
        rows,
        card,
        describe=describe if duplicates else None,
        similar=similar,
        corpus=corpus_videos(Corpus.open(corpus)) if corpus else None,
        cache=cache,
    )
    result = replace(result, findings=(*missing(rows), *result.findings), origin=origin)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result.as_json(), indent=1), encoding="utf-8")
    if out is not None:
        write_table(out, rows)
    return result


def labelled(
    dataset: str,
    root: Path,
    *,
    split: str = "leak-free",
    csv: Path | None = None,
    table: Path | None = None,
    seed: int = 0,
    unlabelled: Unlabelled = "refuse",
) -> tuple[Card, list[Segment], str]:
    """The card of a data set, its table with the split of that name, and where that split comes from, in words.

    dataset: one of trocar's, a card's path, or a table's (.csv), which needs no card. Relative paths of tables begin at `root`.
    unlabelled: rows without a label in such a file, as of `read_table`. The rest: of `dataset_table`. Raises
    DatasetError and ConfigError.
    """
    if not dataset.endswith(".csv"):
        card = load_card(dataset)
        if csv is not None:
            return card, from_release(csv, str(root), card), f"split: the files of {csv}"
        rows = _rows(dataset, card, root, table)
        return card, split_table(rows, card, split, seed), split_origin(rows, split)
    if csv is not None or table is not None:
        raise ConfigError(f"{dataset}: is a table itself; leave --csv and --table out, or name a data set or a card")
    rows = placed(read_table(Path(dataset), unlabelled), root)
    card = table_card(Path(dataset), rows)
    return card, split_table(rows, card, split, seed), split_origin(rows, split)


def split_origin(rows: Sequence[Segment], split: str) -> str:
    """Where the split of that name comes from, in words. rows: as read, with the splits of the table."""
    if split == "as-is":
        return "split: as-is, the table's own"
    if split != "leak-free" and not split.endswith(LEFT_OUT):
        return f"split: {split}"
    own = "; the table's own is --split as-is" if any(segment.split for segment in rows) else ""
    return f"split: {split}, made here by subject{own}"


def dataset_table(
    dataset: str,
    card: Card,
    root: Path,
    *,
    split: str = "leak-free",
    csv: Path | None = None,
    table: Path | None = None,
    seed: int = 0,
) -> list[Segment]:
    """The table of a data set with the split of that name.

    split: "leak-free", "official", "as-is" (the reader's), "paper", one of the card's own names, or "bern-left-out" for a centre.
    csv: a folder of split files as the release writes them, which are the table then. table: a table's file instead of the data
    set's reader; its relative paths begin at `root`. Raises DatasetError, and ConfigError on a split that there is not.
    """
    if csv is not None:
        return from_release(csv, str(root), card)
    return split_table(_rows(dataset, card, root, table), card, split, seed)


def _rows(dataset: str, card: Card, root: Path, table: Path | None) -> list[Segment]:
    """As they are read, before any split."""
    empty: Unlabelled = "none" if card.several else "refuse"
    return placed(read_table(table, empty), root) if table is not None else read_dataset(dataset, root)


def split_table(rows: list[Segment], card: Card, split: str, seed: int = 0) -> list[Segment]:
    """The rows with the split of that name, as `dataset_table` has them."""
    if split == "as-is":
        return rows
    if split == "paper":
        return papers(rows, card)
    if split == "leak-free":
        return leak_free(rows, seed=seed)
    if split == "official":
        return official(rows, seed=seed, is_partial=card.official_is_partial)
    if split in card.named_splits:
        return named(rows, card, split)
    if split.endswith(LEFT_OUT):
        folds = leave_one_out(rows, seed=seed)
        centre = split.removesuffix(LEFT_OUT)
        if centre in folds:
            return folds[centre]
        raise ConfigError(f"split: {split!r}: no such centre; there are {', '.join(folds)}")
    known = ", ".join(["leak-free", "official", "as-is", "paper", *card.named_splits])
    raise ConfigError(f"split: {split!r} is not accepted; give {known} or CENTRE{LEFT_OUT}")
