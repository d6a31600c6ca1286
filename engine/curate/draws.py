"""What a config draws, without drawing a run of it: shares of sources, domains and leaves, a contact sheet, and a table for
others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.whole_file import write_whole
from ...loaders.draw.sampler import Sampler
from ...loaders.draw.tree_draws import TreeOrder
from ..config.error import ConfigError
from ..config.file import load_config
from ..config.settings import Config
from ..console.table import Table
from ..draws.samplers import build_sampler, plan_draws, repeats_line
from ..view.numbers import write_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BY_DEFAULT = 100_000
TITLE_GAP = 14  # pixels between two titles


@dataclass(frozen=True)
class Planned:
    """A config, its corpus and its sampler; notes: what include, exclude and thin came to."""

    config: Config
    corpus: Corpus
    sampler: Sampler
    notes: list[str]


def plan(config: str, overrides: Sequence[str] = ()) -> Planned:
    """Opens what a config draws from. Raises ConfigError or CorpusError."""
    loaded = load_config(config, overrides)
    corpus = Corpus.open(loaded.data.corpus)
    sampler = build_sampler(loaded, corpus)
    planned = plan_draws(loaded, corpus, sampler)
    return Planned(loaded, corpus, sampler, [] if planned is None else planned.notes)


def draw_numbers(planned: Planned, first: int, count: int | None) -> NDArray[np.int64]:
    """`count` draws from `first` on; where None, an epoch, at most 100,000. Raises ConfigError."""
    count = min(planned.sampler.epoch_draws, MOST_BY_DEFAULT) if count is None else count
    if first < 0 or count < 1:
        raise ConfigError(f"--first {first}, --draws {count}: give a number from 0 on, and at least one draw")
    return np.arange(first, first + count)


def shares_table(planned: Planned, draws: NDArray[np.int64]) -> str:
    """`shares` as Markdown."""
    table, lines = shares(planned, draws)
    return "\n".join([*([table.markdown(), ""] if table.rows else []), *lines]).rstrip("\n")


def shares(planned: Planned, draws: NDArray[np.int64]) -> tuple[Table, list[str]]:
    """Each source, domain and procedure in the corpus and among the draws, and in sentences how many leaves, in effect."""
    videos, _, _ = planned.sampler.frames(draws)
    spans = np.bincount(planned.sampler.grid()[0], minlength=len(planned.corpus))
    cells = []
    for column in ("source", "domain", "procedure"):
        names = np.array([row[column] for row in planned.corpus.scan(column)])
        for name in np.unique(names):
            if name:
                chosen = names == name
                corpus_share, share = spans[chosen].sum() / spans.sum(), chosen[videos].mean()
                cells.append((column, name, f"{corpus_share:.2%}", f"{share:.2%}"))
    lines = []
    if not cells:
        lines.append("no video has a source, domain or procedure; name them in the table that `trocar index` reads")
    order = planned.sampler.order
    if isinstance(order, TreeOrder):
        leaves = np.bincount(order.leaves(draws))
        lines.append(f"{effective_number(leaves):,.1f} leaves in effect among {int((leaves > 0).sum()):,} drawn from")
    if repeats := repeats_line(order):
        lines.append(repeats)
    return Table(("", "", "corpus", "draws"), cells), lines


def effective_number(weights: NDArray) -> float:
    """How many equal parts are as even as these: the exponential of the entropy of their shares."""
    shares = weights[weights > 0] / weights.sum()
    return math.exp(float(-(shares * np.log(shares)).sum()))


def view_draws(
    planned: Planned, first: int, count: int | None, out: Path, clips: int = 48, numbers: Path | None = None
) -> list[str]:
    """Writes a contact sheet of the first `clips` draws, the middle frame of each. numbers: a JSON file of the shares and of what
    the sheet shows. Returns the shares and the path, as lines."""
    draws = draw_numbers(planned, first, count)
    table = shares_table(planned, draws)
    shown = draws[: max(1, clips)]
    import torch  # slow to import: what is wrong with the config has been told by now

    from ..step.loading import build_loader

    with build_loader(planned.config, planned.corpus, planned.sampler, iter([shown]), torch.device("cpu")) as loader:
        batch = next(loader)
    domains = [row["domain"] for row in planned.corpus.scan("domain")]
    labels = [domains[video] or Path(planned.corpus.video_path(video)).stem for video in batch.videos.tolist()]
    contact_sheet(batch.frames[:, batch.frames.shape[1] // 2].numpy(), labels, out)
    if numbers is not None:
        found, lines = shares(planned, draws)
        named = [dict(zip(("column", "value", "corpus", "draws"), row, strict=True)) for row in found.rows]
        shown_draws = {"draw": batch.draws, "label": labels, "seconds": batch.pts_seconds[:, 0]}
        write_numbers(
            numbers, {"draws": len(draws), "shares": named, "notes": [*planned.notes, *lines], "sheet": shown_draws}
        )
    return [*planned.notes, table, f"contact sheet   {out}"]


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8] | None] | NDArray[np.uint8], labels: Sequence[str], out: Path
) -> None:
    """Pictures (H, W, 3) with their labels in a grid, eight in a row; None leaves a place empty. PNG."""
    from matplotlib.figure import Figure  # slow to import: only where something is drawn

    columns = min(8, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(max(1.4 * columns, 2.8), 1.55 * rows + 0.3), layout="constrained")
    for index, axis in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        axis.set_axis_off()
        if index < len(pictures) and (picture := pictures[index]) is not None:
            axis.imshow(picture)
            axis.set_title(labels[index], fontsize=6)
    keep_titles_apart(figure)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def keep_titles_apart(figure: Figure) -> None:
    """Cuts the middle out of titles that are wider than their picture's share of the figure: names begin and end differently."""
    figure.draw_without_rendering()  # only then is it known where everything stands
    for axis in figure.axes:
        text, columns = axis.title, axis.get_subplotspec().get_gridspec().ncols  # pyright: ignore[reportOptionalMemberAccess]: made by subplots
        centre, lines = axis.bbox.x0 + axis.bbox.width / 2, text.get_text().split("\n")
        to_the_edge = 2 * min(centre, figure.bbox.width - centre)
        width, kept = min(figure.bbox.width / columns, to_the_edge) - TITLE_GAP, [*map(len, lines)]
        while max(kept) > 2 and text.get_window_extent().width > width:
            kept[kept.index(max(kept))] -= 1
            text.set_text("\n".join(map(_without_middle, lines, kept)))


def _without_middle(line: str, kept: int) -> str:
    return line if kept == len(line) else f"{line[: (kept + 1) // 2]}…{line[len(line) - kept // 2 :]}"


def export_draws(planned: Planned, first: int, count: int | None, out: Path) -> list[str]:
    """Writes the draws as rows (draw, path, video, first_frame, last_frame, start_seconds, end_seconds, source, domain, procedure,
    leaf) to a .csv or .parquet file. Frames are the file's own, seconds a player's, of when the first and the last frame begin;
    leaf is -1 where there is no tree. Raises ConfigError on another suffix."""
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{out}: give a file that ends in .csv or .parquet")
    draws = draw_numbers(planned, first, count)
    videos, frames, _ = planned.sampler.frames(draws)
    rows = list(planned.corpus.scan("path", "id", "source", "domain", "procedure"))
    order = planned.sampler.order
    seconds = np.empty((len(draws), 2))
    for video in np.unique(videos).tolist():
        ends = frames[videos == video][:, [0, -1]]
        seconds[videos == video] = planned.corpus.timeline(video).begins(ends)
    columns = {
        "draw": draws,
        "path": [rows[video]["path"] for video in videos.tolist()],
        "video": [rows[video]["id"] for video in videos.tolist()],
        "first_frame": frames[:, 0],
        "last_frame": frames[:, -1],
        "start_seconds": seconds[:, 0].round(6),
        "end_seconds": seconds[:, 1].round(6),
        **{name: [rows[video][name] for video in videos.tolist()] for name in ("source", "domain", "procedure")},
        "leaf": order.leaves(draws) if isinstance(order, TreeOrder) else np.full(len(draws), -1),
    }
    table = pa.table(columns)
    write = pa_csv.write_csv if out.suffix == ".csv" else partial(pq.write_table, compression="zstd")
    write_whole(out, partial(write, table))
    return [*planned.notes, f"{len(draws):,} draws of {len(np.unique(videos)):,} videos: {out}"]
