"""The downstream matrix: every data set's fixture from its files to the report's table, and the report itself."""

from __future__ import annotations

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from dataset_fixtures import FIXTURES, SMALL

from trocar.engine.cli import main
from trocar.engine.config.error import ConfigError
from trocar.engine.weights.convert import Conversion, EncoderSettings, save_encoder
from trocar.judge.downstream.downstream import bench_downstream, resolve_weights
from trocar.judge.downstream.finetune_command import lines
from trocar.judge.downstream.judgement import Interval
from trocar.judge.downstream.matrix import DatasetEntry, ModelEntry, Places, ProtocolEntry, load_matrix
from trocar.judge.downstream.metrics import METRICS, OVER_CLASSES
from trocar.judge.downstream.report import BESIDE, LISTED, _confusion, _scores, lost_table, write_report
from trocar.judge.downstream.results import Result, gather, ranks
from trocar.judge.labels.audit_command import audit_dataset

FAST = ("cholec80", "cholect50", "sar_rarp50")


def write_encoder(path: Path) -> None:
    settings = EncoderSettings(16, 1, 1, 2, 32, 2, 16, "axes")
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in settings.build().state_dict().items()}
    save_encoder(Conversion("videomae", "VideoMAE", settings, state, len(state), [], [], [], []), path)


def write_matrix(path: Path, datasets: list[dict[str, Any]], **more: Any) -> None:
    models = [
        {"name": "tiny", "weights": "tiny.safetensors"},
        {"name": "no weights", "weights": "random:tiny.safetensors"},
    ]
    protocols = [{"name": "probe", "kind": "linear", "set": SMALL, "is_papers": True}]
    tree = {"models": models, "datasets": datasets, "protocols": protocols, "seeds": [0], **more}
    path.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(FIXTURES)]
)
def test_from_the_files_as_downloaded_to_the_table(name: str, tmp_path: Path) -> None:
    """reader -> audit -> probe -> table"""
    FIXTURES[name](tmp_path / name)
    audit = audit_dataset(name, tmp_path / name, split="leak-free")
    assert audit.rows["test"] > 0
    assert "shared subjects" not in [finding.kind for finding in audit.findings]
    write_encoder(tmp_path / "tiny.safetensors")
    write_matrix(tmp_path / "matrix.yaml", [{"name": name, "root": name}])
    matrix, places = load_matrix(tmp_path / "matrix.yaml"), Places(tmp_path / "out", tmp_path, tmp_path)
    assert bench_downstream(matrix, places, device="cpu", tell=print) == []
    paths = write_report(matrix, places)
    with paths[2].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["tiny", "no weights"]
    assert {row["dataset"] for row in rows} == {name}
    assert all(0 <= float(row["score"]) <= 1 and float(row["majority"]) >= 0 for row in rows)
    assert all(int(row["rows"]) == audit.rows["test"] for row in rows)
    text = paths[0].read_text()
    assert "| majority baseline |" in text
    assert "| random baseline |" in text
    for seed_row in gather(matrix, places)[0].rows:
        assert any("majority baseline" in line for line in lines(seed_row))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix of two data sets, one of which is missing, and two seeds, done by the command line."""
    root = tmp_path_factory.mktemp("matrix")
    FIXTURES["cholec80"](root / "cholec80")
    write_encoder(root / "tiny.safetensors")
    datasets = [
        {"name": "cholec80", "root": "cholec80", "paper": {"SurgRec-MAE": 29.3}, "paper_majority": 14.65},
        {"name": "jigsaws", "root": "elsewhere"},
    ]
    write_matrix(root / "matrix.yaml", datasets, seeds=[0, 1], note="A note | with a bar.")
    tree = yaml.safe_load((root / "matrix.yaml").read_text())
    tree["models"][0]["column"] = "SurgRec-MAE"
    (root / "matrix.yaml").write_text(yaml.safe_dump(tree))
    return root


def run(root: Path, *more: str) -> int:
    places = ["--out", str(root / "out"), "--data", str(root), "--weights", str(root), "--device", "cpu"]
    return main(["bench", "downstream", str(root / "matrix.yaml"), *places, *more])


def test_what_is_missing_is_named_and_the_rest_runs(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(done) == 1
    said = capsys.readouterr()
    assert "2 of 4: no weights on cholec80: 2 cells done now" in said.err
    assert "tiny on jigsaws: not done: JIGSAWS: " in said.err
    text = (done / "out/report.md").read_text()
    assert "4 of 8 cells." in text
    assert "| jigsaws | tiny, no weights | JIGSAWS: " in text
    assert "29.30 |" in text
    assert "14.65 |" in text
    assert "laparoscopy" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| tiny | probe | ") and "±" in line]
    assert " .. " in line or "one subject" in line
    page = (done / "out/report.html").read_text()
    assert "Confusion: tiny, probe, seed 0" in page
    assert not any(f"<{tag}" in page for tag in ("script", "link", "img"))


def test_every_figure_stands_under_its_name(done: Path) -> None:
    """In Markdown and HTML: as many cells as headers, and each metric where its header is, in every data set's table."""
    run(done)
    matrix, places = load_matrix(done / "matrix.yaml"), Places(done / "out", done, done)
    results = {result.model.name: result for result in gather(matrix, places)}
    text = (done / "out/report.md").read_text()
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| ")]
    assert len(tables) >= 4
    assert all(len({line.replace("\\|", "").count("|") for line in table}) == 1 for table in tables)
    (scores,) = [table for table in tables if "95 % interval" in table[0]]
    header = [cell.strip() for cell in scores[0].split("|")[1:-1]]
    rows = {cells[0]: cells for line in scores[2:] for cells in [[cell.strip() for cell in line.split("|")[1:-1]]]}
    assert list(rows) == ["majority baseline", "random baseline", "tiny", "no weights"]
    named = {"accuracy (rows)": "accuracy", "accuracy (seconds)": "accuracy_over_seconds"}
    for name in header:  # how many classes they cover may stand behind
        named |= {name: "macro_f1"} if name.startswith("macro F1") else {}
        named |= {name: "balanced_accuracy"} if name.startswith("balanced accuracy") else {}
    assert len(named) == 4
    for column, metric in named.items():
        for model, result in results.items():
            wanted = sum(row["metrics"][metric] for row in result.rows) / len(result.rows)
            assert rows[model][header.index(column)] == f"{100 * wanted:.2f}", column
    assert rows["tiny"][header.index("paper")] == "29.30"
    page = (done / "out/report.html").read_text()
    for table in page.split("<table>")[1:]:
        assert (
            len({line.count("</td>") + line.count("</th>") for line in table.split("</table>")[0].split("</tr>")[:-1]})
            == 1
        )


@pytest.mark.parametrize("metric", METRICS)
def test_a_data_set_may_have_any_metric(metric: str) -> None:
    """As many headers as cells, no header twice, the score under its name; classes without test rows are told where they count."""
    dataset = DatasetEntry("custom", "custom", paper={"column": 12.5}, paper_majority=33.0)
    values = {name: 0.01 * (number + 1) for number, name in enumerate(METRICS)}
    row: dict[str, Any] = {
        "metric": metric,
        "classes": ["a", "b", "c"],
        "classes_without_rows": {"test": ["c"]},
        "majority": 0.91,
        "majority_metrics": {},
        "random": 0.92,
        "subjects": 4,
        "metrics": values,
        "flags": [],
    }
    interval = Interval(values[metric], 0.001, 0.95, 0.93)
    model, protocol = ModelEntry("tiny", "tiny", column="column"), ProtocolEntry("probe", "linear")
    table = _scores(dataset, [Result(dataset, model, protocol, (row,), interval, float("nan"), 0.125)])
    assert len({*table.header}) == len(table.header)
    assert {len(cells) for cells in table.rows} == {len(table.header)}
    (line,) = [dict(zip(table.header, cells, strict=True)) for cells in table.rows if cells[0] == "tiny"]
    score = "score" + " (2 of 3 classes)" * (metric in OVER_CLASSES)
    assert line[score] == f"{100 * values[metric]:.2f}"
    for name, label in BESIDE.items():
        assert line[label + " (2 of 3 classes)" * (name in OVER_CLASSES)] == f"{100 * values[name]:.2f}"
    assert (line["paper"], line["95 % interval"]) == ("12.50", "0.10 .. 95.00")
    first, *lines = table.markdown().splitlines()
    assert {text.count("|") for text in lines} == {first.count("|")}
    assert table.html().count("<th>") == len(table.header)


def test_done_cells_are_read_and_a_lost_one_is_made_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(done)
    rows = {path: path.read_bytes() for path in (done / "out/cells").glob("*/*/*/*/row.json")}
    assert len(rows) == 4
    lost = done / "out/cells/cholec80/tiny/probe/seed1/row.json"
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in rows if path != lost}
    capsys.readouterr()
    run(done)
    assert "tiny on cholec80: 1 cells done now" in capsys.readouterr().err
    assert lost.read_bytes() == rows[lost]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(done, "--report-only") == 0


def test_ranks_and_merged_seeds(done: Path) -> None:
    run(done)
    matrix, places = load_matrix(done / "matrix.yaml"), Places(done / "out", done, done)
    results = gather(matrix, places)
    found = ranks(results, matrix)["probe"]
    assert sum(found.values()) == 3
    for result in results:
        scores = [row["score"] for row in result.rows]
        assert result.interval.score == pytest.approx(sum(scores) / 2)
        assert len({row["encoder"] for row in result.rows}) == 1
    (paper,) = {result.paper for result in results if result.model.name == "tiny"}
    assert paper == pytest.approx(0.293)


@pytest.mark.slow
def test_several_jobs_at_a_time_give_the_same(done: Path) -> None:
    run(done)
    rows = {path.name: path.read_bytes() for path in (done / "out/cells").glob("*/*/*/*/row.json")}
    os.rename(done / "out", done / "alone")
    run(done, "--workers", "2")
    for path in (done / "alone/cells").glob("*/*/*/*/row.json"):
        assert (done / "out" / path.relative_to(done / "alone")).read_bytes() == path.read_bytes()
    assert rows


def test_the_papers_table_is_a_config(tmp_path: Path) -> None:
    matrix = load_matrix("table2")
    columns = {model.column for model in matrix.models} - {""}
    assert len(columns) == 7
    assert len(matrix.datasets) == 16
    assert all(set(dataset.paper) == columns for dataset in matrix.datasets)
    assert {dataset.name for dataset in matrix.datasets} <= {*FIXTURES}
    assert any(model.weights.startswith("random:") for model in matrix.models)
    means = {"DINOv3": 32.56, "VideoMAE": 28.25, "SurgRec-MAE": 45.28, "SurgRec-JEPA": 39.11}
    for column, mean in means.items():
        assert sum(d.paper[column] for d in matrix.datasets) / 16 == pytest.approx(mean, abs=0.006)
    for model in matrix.models:
        assert bool(model.column) == bool(model.as_paper)
    (paper,) = [protocol for protocol in matrix.protocols if protocol.is_papers]
    points = {model.column: paper.read(model) for model in matrix.models if model.column}
    rates = {column: (protocol.learning_rates, protocol.batch, protocol.pooling) for column, protocol in points.items()}
    # Rates per 256 clips: 5e-4 at 8 x 8 clips, DINOv3's 2e-3 at 4 x 8.
    assert rates["SurgRec-MAE"] == rates["VideoMAE"] == ((5e-4 * 64 / 256,), 64, "family")
    assert rates["SurgRec-JEPA"] == rates["V-JEPA"] == ((5e-4 * 64 / 256,), 64, "mean")
    assert rates["DINOv3"] == rates["DINOv3-Surg"] == ((2e-3 * 32 / 256,), 32, "family")
    assert {protocol.head_std for protocol in points.values()} == {0.02 * 0.001}
    assert all(len(protocol.grid()) == 1 and protocol.epochs * protocol.warmup == 5 for protocol in points.values())
    parts = {model.column: model.part for model in matrix.models if model.part}
    assert parts == {"V-JEPA": "encoder", "SurgRec-JEPA": "encoder"}
    matrix = replace(matrix, datasets=matrix.datasets[:1])
    text = write_report(matrix, Places(tmp_path, tmp_path, tmp_path))[0].read_text()
    assert "| encoder | column | as the paper | differs |" in text
    for model in matrix.models:
        assert model.differs.strip() in text


def test_configs_are_refused_and_paths_resolved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a YAML's path, or one of table2"):
        load_matrix("table3")
    write_matrix(tmp_path / "m.yaml", [{"name": "cholec80", "root": "a"}, {"name": "cholec80", "root": "b"}])
    with pytest.raises(ConfigError, match="each name once"):
        load_matrix(tmp_path / "m.yaml")
    write_matrix(tmp_path / "m.yaml", [{"name": "cholec80", "root": "a", "splits": "official"}])
    with pytest.raises(ConfigError, match=r"splits: unknown key; did you mean split"):
        load_matrix(tmp_path / "m.yaml")
    folder = Path("w")
    assert resolve_weights("a.pth", folder) == "w/a.pth"
    assert resolve_weights("random:a.pth", folder) == "random:w/a.pth"
    assert resolve_weights("random:base", folder) == "random:base"
    assert resolve_weights("timm:vit@a.pth", folder) == "timm:vit@w/a.pth"
    assert resolve_weights("random:timm:vit", folder) == "random:timm:vit"


def test_report_of_nothing(tmp_path: Path) -> None:
    write_matrix(tmp_path / "m.yaml", [{"name": "cholec80", "root": "a"}])
    paths = write_report(load_matrix(tmp_path / "m.yaml"), Places(tmp_path / "out", tmp_path, tmp_path))
    assert "0 of 2 cells." in paths[0].read_text()
    assert json.dumps(paths[2].read_text().splitlines()[0]).startswith('"dataset,')


def test_what_is_not_done_is_summed_up() -> None:
    """128 encoders on absent folders: a row a data set, the first ones, and how many more."""
    lost = [
        {"dataset": f"set{number}", "model": f"model{model}", "reason": f"/data/set{number}: no such folder\nmore"}
        for number in range(20)
        for model in range(8)
    ]
    table = lost_table(lost)
    assert len(table.rows) == LISTED + 1
    assert table.rows[0] == ("set0", "model0, model1, model2 and 5 more", "/data/set0: no such folder")
    assert table.rows[-1] == ("more", f"{(20 - LISTED) * 8}", f"{20 - LISTED} more reasons; failures.json has all")
    assert lost_table(lost[:2]).rows == [("set0", "model0, model1", "/data/set0: no such folder")]


def test_a_confusion_matrix_names_its_columns() -> None:
    row = {"classes": ["cut", "a<b", "clip"], "confusion": [[3, 1, 0], [0, 2, 0], [0, 0, 4]], "seed": 0}
    result = SimpleNamespace(rows=[row], model=SimpleNamespace(name="ours"), protocol=SimpleNamespace(name="linear"))
    lines = re.findall("<tr>(.*?)</tr>", _confusion(result))  # pyright: ignore[reportArgumentType]
    cells = [re.findall("<t[hd].*?>(.*?)</t[hd]>", line) for line in lines]
    assert cells[0][1:] == ["cut", "a&lt;b", "clip"]
    assert [line[0] for line in cells[1:]] == cells[0][1:]
    assert [line[1:] for line in cells[1:]] == [["3", "1", ""], ["", "2", ""], ["", "", "4"]]
