"""The report of a downstream matrix: Markdown, CSV, and one HTML page that needs nothing else.

Scores are in percent of their metric. Every table begins with the majority and the random baseline.
"""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from ...engine.console.table import Table
from .downstream import FAILURES
from .judgement import classes_covered, missing_classes
from .matrix import DatasetEntry, Matrix, Places
from .metrics import MEANING, METRICS, OVER_CLASSES
from .results import Result, domain_means, failures, gather, ranks

STYLE = """body{font:14px system-ui,sans-serif;margin:2em auto;max-width:80em}table{border-collapse:collapse;margin:1em 0}
td,th{border:1px solid #bbb;padding:.2em .6em;text-align:right}td:first-child,th:first-child{text-align:left}
details td{min-width:1.6em;padding:.1em .3em;font-size:12px}"""
LISTED = 16  # rows of what is not done
# Metrics that stand in the table, and what they are called there.
BESIDE = {
    "accuracy": "accuracy (rows)",
    "accuracy_over_seconds": "accuracy (seconds)",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
}
EXPLAINED = """\
Scores in percent of the metric that stands above each table. Intervals: bootstrap over subjects of the test split, 95 %, of the
mean over seeds. Detectable: the smallest difference to another encoder that such a test split would show in 80 % of the cases.
Flags: "one class": the same class for every row; "a class's share": an accuracy that is exactly the share of a class; "unstable":
an interval wider than the distance to the majority baseline; "as majority": an interval that does not lie above that baseline;
"pretrained on test": the encoder has been trained on videos of the test split; "pretraining not compared": its corpus could not be
looked at. A flagged score says nothing of the encoder. The majority baseline is the largest class of a training split on its test
split: ours under our metrics, the paper's in its column. The paper's scores are accuracies."""


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
        writer.writerow(CSV)
        writer.writerows([cell(result) for cell in CSV.values()] for result in results)
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
        sections.append(("Not done", "", lost_table(lost)))
    if columns := [model for model in matrix.models if model.as_paper or model.differs]:
        cells = [(model.name, model.column, model.as_paper, model.differs) for model in columns]
        sections.append(("The paper's columns", "", Table(("encoder", "column", "as the paper", "differs"), cells)))
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
    rows = row["rows"]
    text = (
        f"{row['metric']}: {MEANING.get(row['metric'], 'as its card says')}. Split {own[0].dataset.split}: {rows['train']} "
        f"training, {rows['val']} validation and {rows['test']} test rows, the last of {row['subjects']} subjects; "
        f"{len(row['classes'])} classes."
    )
    if missing := missing_classes(row):
        text += f" Not every split has every class: {missing}."
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
    row = own[0].rows[0]
    covered = f" ({found})" if (found := classes_covered(row)) else ""

    def named(label: str, metric: str) -> str:
        return label + covered * (metric in OVER_CLASSES)

    score, beside = named("score", row["metric"]), {name: named(label, name) for name, label in BESIDE.items()}
    header = ("", "protocol", score, "95 % interval", "over seeds", "detectable", *beside.values(), "flags", "paper")
    rows: list[dict[str, str]] = [
        {
            "": "majority baseline",
            score: percent(row["majority"]),
            **{label: percent(row["majority_metrics"].get(name)) for name, label in beside.items()},
            "paper": "" if dataset.paper_majority is None else f"{dataset.paper_majority:.2f}",
        },
        {"": "random baseline", score: percent(row["random"])},
    ]
    for result in own:
        interval = result.interval
        unknown = "one subject" if row["subjects"] == 1 else "no variation"
        low_to_high = f"{percent(interval.low)} .. {percent(interval.high)}"
        deviation = f"± {percent(result.deviation)} ({len(result.rows)})"
        rows.append(
            {
                "": result.model.name,
                "protocol": result.protocol.name,
                score: percent(interval.score),
                "95 % interval": low_to_high if math.isfinite(interval.low) else unknown,
                "over seeds": deviation if len(result.rows) > 1 else "1 seed",
                "detectable": percent(interval.detectable),
                **{label: percent(result.mean(name)) for name, label in beside.items()},
                "flags": ", ".join(result.flags),
                "paper": percent(result.paper),
            }
        )
    return Table(header, [[cells.get(name, "") for name in header] for cells in rows])


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


def _digits(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else ""


CSV: dict[str, Callable[[Result], object]] = {
    "dataset": lambda result: result.title,
    "domain": lambda result: result.rows[0]["domain"],
    "protocol": lambda result: result.protocol.name,
    "model": lambda result: result.model.name,
    "seeds": lambda result: len(result.rows),
    "metric": lambda result: result.rows[0]["metric"],
    "score": lambda result: _digits(result.interval.score),
    "low": lambda result: _digits(result.interval.low),
    "high": lambda result: _digits(result.interval.high),
    "deviation": lambda result: _digits(result.deviation),
    "detectable": lambda result: _digits(result.interval.detectable),
    "majority": lambda result: result.rows[0]["majority"],
    "random": lambda result: result.rows[0]["random"],
    "paper": lambda result: "" if result.paper is None else result.paper,
    "rows": lambda result: result.rows[0]["rows"]["test"],
    "subjects": lambda result: result.rows[0]["subjects"],
    "left_out": lambda result: result.rows[0]["left_out"],
    "flags": lambda result: "; ".join(result.flags),
    "audit": lambda result: "; ".join(result.rows[0]["audit"]),
    "encoder": lambda result: result.rows[0]["encoder"],
    **{name: lambda result, name=name: _digits(result.mean(name)) for name in METRICS},
}


def lost_table(lost: Sequence[dict[str, str]]) -> Table:
    """What could not be done: a row for each data set and reason, the first LISTED of them, and how many more there are."""
    encoders: dict[tuple[str, str], list[str]] = {}
    for entry in lost:
        encoders.setdefault((entry["dataset"], entry["reason"].split("\n")[0]), []).append(entry["model"])
    rows = [(dataset, _first_names(names), why) for (dataset, why), names in list(encoders.items())[:LISTED]]
    if rest := list(encoders.values())[LISTED:]:
        rows.append(("more", f"{sum(map(len, rest))}", f"{len(rest)} more reasons; {FAILURES} has all"))
    return Table(("data set", "encoders", "why"), rows)


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _markdown(sections: Sequence[tuple[str, str, Table | None]]) -> str:
    parts = []
    for number, (heading, text, table) in enumerate(sections):
        parts.append(f"{'#' if number == 0 else '##'} {heading}\n")
        if text:
            parts.append(f"{text}\n")
        if table and table.rows:
            parts.append(f"{table.markdown()}\n")
    return "\n".join(parts)


def _page(sections: Sequence[tuple[str, str, Table | None]], results: list[Result]) -> str:
    parts = [f"<!doctype html><meta charset=utf-8><title>Downstream benchmark</title><style>{STYLE}</style>"]
    for number, (heading, text, table) in enumerate(sections):
        level = 1 if number == 0 else 2
        parts.append(f"<h{level}>{html.escape(heading)}</h{level}><p>{html.escape(text)}</p>")
        if table and table.rows:
            parts.append(table.html())
        parts += [_confusion(result) for result in results if result.title == heading and "confusion" in result.rows[0]]
    return "\n".join(parts)


def _confusion(result: Result) -> str:
    """Rows are the truth, columns what the first seed predicts; shaded by the share of the row."""
    row = result.rows[0]
    counts = row["confusion"]
    lines = [(name, *(str(n or "") for n in line)) for name, line in zip(row["classes"], counts, strict=True)]
    shades = [[n / max(sum(line), 1) for n in line] for line in counts]
    table = Table(("truth \\ predicted", *row["classes"]), lines)
    title = html.escape(f"Confusion: {result.model.name}, {result.protocol.name}, seed {row['seed']}")
    return f"<details><summary>{title}</summary>{table.html(shades)}</details>"
