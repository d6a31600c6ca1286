"""A clip and those of a corpus that are nearest to it, by the embeddings that `trocar embed` wrote.

Shapes: N spans, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.curate.embeddings import EmbeddingRows
from ..config.error import ConfigError
from .exemplars import Spans, exemplar_pictures
from .numbers import write_numbers

BLOCK_ROWS = 65536
SIDE = 160  # pixels of a picture


def nearest(
    unit: NDArray[np.float32], query: NDArray[np.float32], count: int, allowed: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(rows, cosines) of at most `count` allowed rows, the nearest first. unit: (N, D), query: (D,), all of length 1."""
    cosines = np.where(allowed, unit @ query, -np.inf)
    cosines = np.where(np.isnan(cosines), -np.inf, cosines)
    order = np.argsort(-cosines, kind="stable")[:count]
    order = order[np.isfinite(cosines[order])]
    return order, cosines[order]


def span_at(spans: Spans, corpus: Corpus, video: str, second: float) -> int:
    """The row of the span that a player shows at `second` of a video, which is named by its id, path or file's name.

    Raises ConfigError where no video, or more than one, has that name, or no span of it holds that second.
    """
    rows = list(corpus.scan("id", "path"))
    found = [n for n, row in enumerate(rows) if video in (*row.values(), PurePath(row["path"]).name)]
    if len(found) != 1:
        some = ", ".join(PurePath(row["path"]).name for row in rows[:5])
        raise ConfigError(
            f"{video}: {len(found)} videos of {corpus.path} have that name; give one's path, as of {some}"
        )
    seconds = corpus.video(found[0]).facts.duration_seconds
    if not 0 <= second <= seconds:
        raise ConfigError(f"{video}: nothing at {second:g} s; it lasts {seconds:.2f} s")
    of_video = np.flatnonzero(np.asarray(spans.video) == spans.video_ids.index(rows[found[0]]["id"]))
    begins = corpus.timeline(found[0]).begins(_packed(spans.first_frame[of_video], corpus, found[0]))
    place = int(np.searchsorted(begins, second, side="right")) - 1
    if place < 0:
        raise ConfigError(f"{video}: no span at {second:g} s; its first one begins at {begins.min():.2f} s")
    return int(of_video[place])


def _packed(frames: NDArray, corpus: Corpus, video: int) -> NDArray[np.int64]:
    """Frames of the original as frames of what is on the disk."""
    return np.minimum(frames // corpus.packed_stride[video], corpus.frames[video] - 1).astype(np.int64)


def corpus_neighbours(
    rows: EmbeddingRows, query: int, count: int, allowed: NDArray[np.bool_]
) -> list[tuple[int, float]]:
    """(span, cosine) of the nearest allowed spans, read a block at a time.

    Raises ConfigError where the query could not be embedded.
    """
    wanted = _unit(rows.read(query, query + 1))[0]
    if not np.isfinite(wanted).all():
        raise ConfigError(f"{rows.folder}: span {query} could not be embedded; take another moment")
    best: list[tuple[int, float]] = []
    for start in range(0, rows.num_rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, rows.num_rows)
        places, cosines = nearest(_unit(rows.read(start, stop)), wanted, count, allowed[start:stop])
        best += zip((places + start).tolist(), cosines.tolist(), strict=True)
        best = sorted(best, key=lambda pair: -pair[1])[:count]
    return best


def _unit(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = rows.astype(np.float32)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return wide


def view_neighbours(
    embeddings: Path,
    corpus: Corpus,
    moments: Sequence[tuple[str, float]],
    out: Path,
    *,
    count: int = 8,
    same_video: bool = False,
    numbers: Path | None = None,
) -> list[str]:
    """Writes a row of pictures for each (video, second): its span's middle frame, then the nearest ones'. Returns lines for the
    terminal. same_video: spans of the query's own video count too, but itself. Raises ConfigError or CorpusError."""
    rows = EmbeddingRows(embeddings)
    ids, video, first_frame, span_frames = rows.spans()
    spans = Spans(ids, video, first_frame, span_frames)
    found: dict[int, list[tuple[int, float]]] = {}
    for name, second in moments:
        query = span_at(spans, corpus, name, second)
        allowed = np.ones(rows.num_rows, bool) if same_video else video != video[query]
        allowed[query] = False
        found[query] = corpus_neighbours(rows, query, count, allowed)
    shown = [span for query, near in found.items() for span in (query, *(span for span, _ in near))]
    pictures = exemplar_pictures(spans, corpus, shown, SIDE)
    from matplotlib.figure import Figure  # slow to import: only where something is drawn

    figure = Figure(figsize=(1.7 * (count + 1), 2.1 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), count + 1, squeeze=False)
    for line, (query, near) in zip(axes, found.items(), strict=True):
        for axis, (span, cosine) in zip(line, [(query, None), *near], strict=False):
            if span in pictures:
                axis.imshow(pictures[span].picture)
                said = "query" if cosine is None else f"cosine {cosine:.3f}"
                axis.set_title(f"{said}\n{_short(pictures[span].caption)}", fontsize=6, parse_math=False)
    for axis in axes.flat:
        axis.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    if numbers is not None:
        write_numbers(numbers, {"neighbours": [_told(spans, query, near) for query, near in found.items()]})
    return [f"{len(found)} queries, {sum(map(len, found.values()))} neighbours: {out}"]


def _told(spans: Spans, query: int, near: list[tuple[int, float]]) -> dict[str, object]:
    def of(span: int) -> dict[str, object]:
        first = int(spans.first_frame[span])
        return {"span": span, "video": spans.video_ids[int(spans.video[span])], "first_frame": first}

    return {"query": of(query), "nearest": [{**of(span), "cosine": cosine} for span, cosine in near]}


def _short(name: str, letters: int = 30) -> str:
    return name if len(name) <= letters else f"{name[: letters // 2]}…{name[-letters // 2 + 1 :]}"
