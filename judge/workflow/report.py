"""The report of a workflow matrix: Markdown, CSV, and one HTML page that needs nothing else, with ribbons of every test video.

Scores are in percent. Every table begins with the baselines.
"""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...engine.console.table import Table
from ...loaders.corpus.whole_file import write_text_whole, write_whole
from ..downstream.matrix import Places
from ..downstream.report import STYLE, lost_table, percent
from ..downstream.results import failures
from .matrix import WorkflowDataset, WorkflowMatrix
from .report_pictures import dataset_pictures
from .results import WorkflowResult, gather, over_folds
from .scores import BASELINES

STYLE_MORE = """img{max-width:100%}figure{display:inline-block;margin:.3em;font-size:11px;width:9em;vertical-align:top}
figure img{width:9em}details{overflow-x:auto}"""
COLUMNS = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "jaccard": "Jaccard",
    "f1": "F1",
    "edit_score": "edit",
    "f1_at_10": "F1@10",
    "f1_at_25": "F1@25",
    "f1_at_50": "F1@50",
}
POOLED = {
    "pooled_accuracy": "pooled accuracy",
    "pooled_precision": "pooled precision",
    "pooled_recall": "pooled recall",
    "pooled_jaccard": "pooled Jaccard",
    "pooled_f1": "pooled F1",
    "f1_of_means": "F1 of the means",
    "relaxed_accuracy": "relaxed accuracy",
    "relaxed_precision": "relaxed precision",
    "relaxed_recall": "relaxed recall",
    "relaxed_jaccard": "relaxed Jaccard",
}
PRESENCE = {"video_mean_average_precision": "mAP of videos", "mean_average_precision": "mAP of all frames together"}
EXPLAINED = """\
Scores in percent, of whole videos. ±: as the choices under each table say. Interval: 95 %, a bootstrap of the test videos (all
videos of a subject together), of the mean over seeds. Over seeds: the standard deviation of the seeds' scores. Detectable: the
smallest difference to another method that such a test split would show in 80 % of the cases, as if errors were independent. An
online head sees nothing that comes after, which is checked on the head as it was trained; an offline one sees the whole video:
their scores are not to be compared. Pooled: all frames of all videos are counted together. Edit and F1@k: of segments, as MS-TCN's
evaluation."""


def write_report(matrix: WorkflowMatrix, places: Places) -> list[Path]:
    """report.md, report.html and report.csv in places.out, of the cells that are done, and pictures/ beside them."""
    results = gather(matrix, places)
    paths = [places.out / f"report.{kind}" for kind in ("md", "html", "csv")]
    sections = _sections(matrix, places, results)
    write_text_whole(paths[0], "\n".join(_markdown(*section[:2], number) for number, section in enumerate(sections)))
    parts = [f"<!doctype html><meta charset=utf-8><title>Workflow benchmark</title><style>{STYLE}{STYLE_MORE}</style>"]
    for number, (heading, blocks, more) in enumerate(sections):
        parts.append(f"<h{1 + (number > 0)}>{html.escape(heading)}</h{1 + (number > 0)}>")
        parts += [block.html() if isinstance(block, Table) else f"<p>{html.escape(block)}</p>" for block in blocks]
        parts += more
    write_text_whole(paths[1], "\n".join(parts))
    write_whole(paths[2], lambda target: _write_csv(target, results))
    return paths


Section = tuple[str, list["str | Table"], list[str]]


def _sections(matrix: WorkflowMatrix, places: Places, results: list[WorkflowResult]) -> list[Section]:
    """(heading, texts and tables, HTML that Markdown does not have)"""
    wanted = len(matrix.judged) * len(matrix.models) * len(matrix.heads) * len(matrix.seeds)
    done = sum(len(result.rows) for result in results)
    top: list[str | Table] = [text for text in (matrix.note, EXPLAINED, f"{done} of {wanted} cells are done.") if text]
    sections: list[Section] = [("Workflow benchmark", top, [])]
    if lost := failures(places):
        sections.append(("Not done", [lost_table(lost)], []))
    for dataset in matrix.datasets:
        if dataset.folds and any(result.dataset in dataset.parts() for result in results):
            sections.append(_mean_of_folds(matrix, dataset, results))
        for part in dataset.parts():
            own = [result for result in results if result.dataset == part]
            if own:
                pictures = dataset_pictures(own, places.out / "pictures" / part.title)
                others = () if dataset.folds else _published(matrix, part.title, own)
                sections.append((part.title, [*_about(own), *_tables(own), *others], pictures))
    return sections


def _mean_of_folds(matrix: WorkflowMatrix, dataset: WorkflowDataset, results: list[WorkflowResult]) -> Section:
    """Of each metric the mean over folds, and its deviation (of a sample) over them; a fold's score is the mean over seeds."""
    found, rows = over_folds(results, dataset), []
    own = [result for folds in found.values() for result in folds]
    names = {**PRESENCE, **_parts(own[0])} if own[0].rows[0]["several"] else {**COLUMNS, **POOLED}
    columns = {metric: name for metric, name in names.items() if metric in own[0].metrics}
    for (model, head), folds in found.items():
        cells = []
        for metric in columns:
            scores = [score for fold in folds if math.isfinite(score := fold.metrics[metric].score)]
            spread = f" ± {percent(float(np.std(scores, ddof=1)))}" if len(scores) > 1 else ""
            cells.append(percent(float(np.mean(scores))) + spread if scores else percent(None))
        rows.append((model, head, folds[0].head.head.mode, f"{len(folds)} of {len(dataset.folds)}", *cells))
    told = f"Means over the folds {', '.join(dataset.folds)}, as far as they are done; ± over folds (a sample). Each one follows."
    table = Table(("", "head", "mode", "folds", *columns.values()), rows)
    title = Path(dataset.name).stem
    return f"{title}: mean over folds", [told, table, *_published(matrix, title, own)], []


def _about(own: list[WorkflowResult]) -> list[str]:
    row = own[0].rows[0]
    videos = ", ".join(f"{count} {split}" for split, count in row["split_videos"].items())
    counted = (
        f"{row['left_out']} of {row['of']} scores of a class in a video are left out."
        if row["left_out"]
        else "No score of a class in a video is left out."
    )
    lines = [
        f"Split {own[0].dataset.split}: {videos} videos. {row['frames']:,} test frames with a label, {row['rate']:g} a second, "
        f"{row['frames_without_label']:,} without; {len(row['classes'])} classes. {counted}",
        f"Choices: {row['choices']}",
        "Baselines: " + "; ".join(f"{name}: {meaning}" for name, meaning in BASELINES.items()) + ".",
    ]
    flags = {flag for result in own for row in result.rows for flag in row["pretraining"]["flags"]}
    return [*lines, *(f"Flag: {flag}." for flag in sorted(flags))]


def _tables(own: list[WorkflowResult]) -> list[str | Table]:
    if own[0].rows[0]["several"]:
        parts = _parts(own[0])
        main = _scores(own, PRESENCE, "video_mean_average_precision")
        return [main, _plain(own, parts)] if parts else [main]
    return [_scores(own, COLUMNS, "accuracy"), _plain(own, POOLED)]


def _parts(result: WorkflowResult) -> dict[str, str]:
    """The metrics of triplets' parts, and what they are called in a table."""
    return {
        name: f"{PRESENCE[name.replace(suffix, '')]}:{suffix.replace('_', ' ')}"
        for name in result.metrics
        if (suffix := name.partition("average_precision")[2])
    }


def _scores(own: list[WorkflowResult], columns: Mapping[str, str], main: str) -> Table:
    header = ("", "head", "mode", *columns.values(), f"{columns[main]}: interval", "over seeds", "detectable")
    rows: list[tuple[str, ...]] = [
        (name, "", "", *(percent(scores.get(metric)) for metric in columns), "", "", "")
        for name, scores in own[0].rows[0]["baselines"].items()
    ]
    for result in own:
        found = result.metrics[main]
        interval = f"{percent(found.low)} .. {percent(found.high)}" if math.isfinite(found.low) else "none"
        seeds = f"± {percent(found.over_seeds)} ({len(result.rows)})" if len(result.rows) > 1 else "1 seed"
        cells = [_with_deviation(result, metric) for metric in columns]
        rows.append(
            (
                result.model.name,
                result.head.name,
                result.head.head.mode,
                *cells,
                interval,
                seeds,
                percent(found.detectable),
            )
        )
    return Table(header, rows)


def _plain(own: list[WorkflowResult], columns: Mapping[str, str]) -> Table:
    columns = {metric: name for metric, name in columns.items() if metric in own[0].metrics}
    rows = [
        (name, "", *(percent(scores.get(metric)) for metric in columns))
        for name, scores in own[0].rows[0]["baselines"].items()
    ]
    rows += [
        (result.model.name, result.head.name, *(percent(result.metrics[metric].score) for metric in columns))
        for result in own
    ]
    return Table(("", "head", *columns.values()), rows)


def _with_deviation(result: WorkflowResult, metric: str) -> str:
    found = result.metrics[metric]
    return percent(found.score) + (f" ± {percent(found.deviation)}" if math.isfinite(found.deviation) else "")


def _published(matrix: WorkflowMatrix, title: str, own: list[WorkflowResult]) -> list[str | Table]:
    """What others report: only scores of the same split, rate and metric stand for a comparison, and what differs is said."""
    scores = [score for score in matrix.published if score.dataset == title]
    if not scores:
        return []
    ours = {name for result in own for name in result.metrics}
    rows = [
        (
            s.name,
            s.metric,
            f"{s.score:.2f}",
            s.source,
            s.differs or ("nothing" if s.metric in ours else "its metric is none of ours"),
        )
        for s in scores
    ]
    return ["Published scores:", Table(("method", "metric", "score", "source", "differs from ours in"), rows)]


CSV: dict[str, Callable[[WorkflowResult], object]] = {
    "dataset": lambda result: result.title,
    "split": lambda result: result.dataset.split,
    "model": lambda result: result.model.name,
    "head": lambda result: result.head.name,
    "mode": lambda result: result.head.head.mode,
    "seeds": lambda result: len(result.rows),
    "videos": lambda result: result.rows[0]["videos"],
    "rate": lambda result: result.rows[0]["rate"],
}


def _write_csv(target: Path, results: Sequence[WorkflowResult]) -> None:
    """A row for each metric of each result, and of the baselines."""
    names = ("score", "deviation", "over_seeds", "low", "high", "detectable")
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*CSV, "metric", *names])
        for result in results:
            first = [cell(result) for cell in CSV.values()]
            for metric, found in result.metrics.items():
                values = [getattr(found, name) for name in names]
                writer.writerow([*first, metric, *(f"{value:.6f}" if math.isfinite(value) else "" for value in values)])
            for name, scores in result.rows[0]["baselines"].items() if result is _first_of(results, result) else ():
                named = [*first[:2], name, "", "", "", *first[6:]]
                writer.writerows(
                    [*named, metric, "" if value is None else f"{value:.6f}", *[""] * 5]
                    for metric, value in scores.items()
                )


def _first_of(results: Sequence[WorkflowResult], result: WorkflowResult) -> WorkflowResult:
    return next(other for other in results if other.title == result.title)


def _markdown(heading: str, blocks: Sequence[str | Table], number: int) -> str:
    parts = [f"{'#' if number == 0 else '##'} {heading}\n"]
    parts += [f"{block.markdown()}\n" if isinstance(block, Table) else f"{block}\n" for block in blocks]
    return "\n".join(parts)
