"""The report of a downstream matrix: Markdown, CSV, and one HTML page that needs nothing else.

Scores are in percent of their metric. Every table begins with the majority and the random baseline.
"""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .downstream import DatasetEntry, Matrix, Places
from .downstream_results import Result, domain_means, failures, gather, ranks

STYLE = """body{font:14px system-ui,sans-serif;margin:2em auto;max-width:80em}table{border-collapse:collapse;margin:1em 0}
td,th{border:1px solid #bbb;padding:.2em .6em;text-align:right}td:first-child,th:first-child{text-align:left}
.confusion td{min-width:1.6em;padding:.1em .3em;font-size:12px}"""
COLUMNS = (
    "dataset",
    "domain",
    "protocol",
    "model",
    "seeds",
    "metric",
    "score",
    "low",
    "high",
    "deviation",
    "detectable",
)
MORE = ("majority", "random", "paper", "rows", "subjects", "left_out", "flags", "audit", "encoder")
EXPLAINED = """\
Scores in percent of the metric that stands above each table. Intervals: bootstrap over subjects of the test split, 95 %, of the
mean over seeds. Detectable: the smallest difference to another encoder that such a test split would show in 80 % of the cases.
Flags: "one class": the same class for every row; "a class's share": an accuracy that is exactly the share of a class; "unstable":
an interval wider than the distance to the majority baseline; "as majority": an interval that does not lie above that baseline. A
flagged score says nothing of the encoder. The paper's scores are accuracies."""


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def write_report(matrix: Matrix, places: Places) -> list[Path]:
    """report.md, report.html and report.csv in places.out, of the cells that are done."""
    results = gather(matrix, places)
    places.out.mkdir(parents=True, exist_ok=True)
    paths = [places.out / f"report.{kind}" for kind in ("md", "html", "csv")]
    sections = _sections(matrix, places, results)
    paths[0].write_text(_markdown(sections), encoding="utf-8")
    paths[1].write_text(_page(sections, results), encoding="utf-8")
    with paths[2].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *MORE])
        writer.writerows(_csv_row(result) for result in results)
    return paths


def _sections(matrix: Matrix, places: Places, results: list[Result]) -> list[tuple[str, str, Table | None]]:
    """(heading, text, table) in order."""
    sections: list[tuple[str, str, Table | None]] = [
        ("Downstream benchmark", f"{matrix.note}\n\n{EXPLAINED}".strip(), None)
    ]
    wanted = len(matrix.datasets) * len(matrix.models) * len(matrix.protocols) * len(matrix.seeds)
    done = sum(len(result.rows) for result in results)
    sections.append(("Done", f"{done} of {wanted} cells.", None))
    if lost := failures(places):
        rows = [(entry["dataset"], entry["model"], entry["reason"].split("\n")[0]) for entry in lost]
        sections.append(("Not done", "", Table(("data set", "encoder", "why"), rows)))
    sections += [
        ("Mean ranks", "1 is best; over the data sets on which all encoders have a result.", _ranks(matrix, results))
    ]
    sections += [
        (
            "Domains",
            "Means of the data sets' metrics, which differ; the worst domain in the last column.",
            _domains(matrix, results),
        )
    ]
    for dataset in matrix.datasets:
        own = [result for result in results if result.dataset == dataset]
        if own:
            sections.append((own[0].title, _about(own), _scores(dataset, own)))
    return sections


def _about(own: list[Result]) -> str:
    row = own[0].rows[0]
    text = (
        f"{row['metric']}; split {own[0].dataset.split}: {row['rows']['train']} training, {row['rows']['val']} validation and "
        f"{row['rows']['test']} test rows, the last of {row['subjects']} subjects; {len(row['classes'])} classes."
    )
    if row["left_out"]:
        text += f" {row['left_out']} rows stand in no split and are left out."
    if own[0].dataset.paper and own[0].dataset.split != "official":
        text += (
            " The paper's scores are of another split, whose pieces of one video stand on both sides: not comparable."
        )
    if row["audit"]:
        text += f" Faults of this split: {', '.join(row['audit'])}."
    return text


def _scores(dataset: DatasetEntry, own: list[Result]) -> Table:
    header = (
        "",
        "protocol",
        "score",
        "95 % interval",
        "over seeds",
        "detectable",
        "macro F1",
        "balanced",
        "flags",
        "paper",
    )
    row = own[0].rows[0]
    guess = row["majority_metrics"]
    share = "" if dataset.paper_majority is None else f"{dataset.paper_majority:.2f}"
    rows = [
        (
            "majority baseline", "", percent(row["majority"]), "", "", "",
            percent(guess.get("accuracy")), percent(guess.get("macro_f1")), percent(guess.get("balanced_accuracy")), "", share,
        ),
        ("random baseline", "", percent(row["random"]), "", "", "", "", "", "", "", ""),
    ]  # fmt: skip
    for result in own:
        interval = result.interval
        rows.append(
            (
                result.model.name,
                result.protocol.name,
                percent(interval.score),
                f"{percent(interval.low)} .. {percent(interval.high)}"
                if math.isfinite(interval.low)
                else "one subject",
                f"± {percent(result.deviation)} ({len(result.rows)})" if len(result.rows) > 1 else "1 seed",
                percent(interval.detectable),
                percent(result.mean("accuracy")),
                percent(result.mean("macro_f1")),
                percent(result.mean("balanced_accuracy")),
                ", ".join(result.flags),
                percent(result.paper),
            )
        )
    return Table(header, rows)


def _ranks(matrix: Matrix, results: list[Result]) -> Table:
    found = ranks(results, matrix)
    header = ("encoder", *found)
    return Table(
        header,
        [(m.name, *(f"{found[protocol][m.name]:.2f}" for protocol in found)) for m in matrix.models] if found else [],
    )


def _domains(matrix: Matrix, results: list[Result]) -> Table:
    found = domain_means(results, matrix)
    domains = sorted({domain for means in found.values() for domain in means} - {"mean"})
    rows = []
    for (protocol, model), means in found.items():
        worst = min((domain for domain in domains if domain in means), key=lambda domain: means[domain])
        rows.append((model, protocol, *(percent(means.get(domain)) for domain in [*domains, "mean"]), worst))
    return Table(("encoder", "protocol", *domains, "mean", "worst domain"), rows)


def percent(value: float | None) -> str:
    """A share in percent; nothing where it is not known."""
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"


def _csv_row(result: Result) -> list[object]:
    row, interval = result.rows[0], result.interval
    known = [interval.score, interval.low, interval.high, result.deviation, interval.detectable]
    numbers = ["" if not math.isfinite(value) else f"{value:.6f}" for value in known]
    first = [result.title, row["domain"], result.protocol.name, result.model.name, len(result.rows), row["metric"]]
    baselines = [row["majority"], row["random"], "" if result.paper is None else result.paper]
    counts = [row["rows"]["test"], row["subjects"], row["left_out"]]
    return [*first, *numbers, *baselines, *counts, "; ".join(result.flags), "; ".join(row["audit"]), row["encoder"]]


def _markdown(sections: Sequence[tuple[str, str, Table | None]]) -> str:
    parts = []
    for number, (heading, text, table) in enumerate(sections):
        parts.append(f"{'#' if number == 0 else '##'} {heading}\n")
        if text:
            parts.append(f"{text}\n")
        if table and table.rows:
            lines = [table.header, ("---",) * len(table.header), *table.rows]
            parts.append(
                "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
            )
    return "\n".join(parts)


def _page(sections: Sequence[tuple[str, str, Table | None]], results: list[Result]) -> str:
    parts = [f"<!doctype html><meta charset=utf-8><title>Downstream benchmark</title><style>{STYLE}</style>"]
    for number, (heading, text, table) in enumerate(sections):
        level = 1 if number == 0 else 2
        parts.append(f"<h{level}>{html.escape(heading)}</h{level}><p>{html.escape(text)}</p>")
        if table and table.rows:
            parts.append(_html_table(table))
        parts += [_confusion(result) for result in results if result.title == heading and "confusion" in result.rows[0]]
    return "\n".join(parts)


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _confusion(result: Result) -> str:
    """Rows are the truth, columns what the first seed predicts; shaded by the share of the row."""
    row = result.rows[0]
    lines = []
    for name, counts in zip(row["classes"], row["confusion"], strict=True):
        total = max(sum(counts), 1)
        cells = "".join(f'<td style="background:rgba(30,90,200,{n / total:.2f})">{n or ""}</td>' for n in counts)
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    title = html.escape(f"Confusion: {result.model.name}, {result.protocol.name}, seed {row['seed']}")
    return f"<details><summary>{title}</summary><table class=confusion>{''.join(lines)}</table></details>"
