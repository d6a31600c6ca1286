"""Docs whose figures are rows: what differs from bench/results is found, and so is a table without rows; goals; rooflines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trocar.bench.report.goals import GOALS, table
from trocar.bench.report.render import ReportError, all_rows, misquoted, render, render_pages, unbacked
from trocar.bench.report.roofline import plot_rooflines, points
from trocar.bench.report.tables import TABLES
from trocar.bench.rows.row import read_rows
from trocar.engine.cli import main

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CARD = {"device": "NVIDIA Made", "capability": "8.0"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("images"))
    shutil.copytree(ROOT / "bench" / "results", tmp_path / "bench" / "results")
    return tmp_path


def test_the_pages_are_what_the_rows_say() -> None:
    stale = [str(page.path) for page in render_pages(ROOT) if not page.is_current]
    assert not stale, "run `trocar bench report`"


def test_a_figure_changed_by_hand_is_found_and_mended(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = checkout / "docs" / "performance.md"
    text = page.read_text()
    (speed,) = [row for row in all_rows(checkout / "bench") if row.get("arm") == "decord"]
    figure = f"| decord | {speed['clips_per_second']:.2f} |"
    assert figure in text
    page.write_text(text.replace(figure, "| decord | 0.01 |"))
    assert main(["bench", "report", "--root", str(checkout), "--check"]) == 1
    assert f"{page}: differs from bench/results" in capsys.readouterr().out
    assert "0.01" in page.read_text(), "--check changes nothing"
    assert main(["bench", "report", "--root", str(checkout)]) == 0
    assert page.read_text() == text
    assert main(["bench", "report", "--root", str(checkout), "--check"]) == 0


def test_a_figure_in_a_sentence_is_its_row_s(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not misquoted(ROOT)
    page = checkout / "docs" / "decisions.md"
    text = page.read_text()
    assert "took 42 ms jagged" in text
    page.write_text(text.replace("took 42 ms jagged", "took 41 ms jagged"))
    (row,) = misquoted(checkout)
    assert "took 42 ms jagged" in row["text"]
    assert main(["bench", "report", "--root", str(checkout), "--check"]) == 1
    assert f"{page}: does not say" in capsys.readouterr().out


def test_a_row_that_changes_changes_its_page(checkout: Path) -> None:
    path = checkout / "bench" / "results" / "loading.jsonl"
    rows = read_rows(path)
    rows[0]["clips_per_second"] = 123.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stale = {page.path.name for page in render_pages(checkout) if not page.is_current}
    assert stale == {"README.md", "performance.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_table_has_figures_from_nowhere(page: Path) -> None:
    assert not unbacked(page.read_text(encoding="utf-8"))


FIGURES = "| loader | clips/s | wait |\n|---|---|---|\n| a | 12.3 | 4 % |\n| b | 5.6 (1.2 .. 7.8) | 9 % |\n"


@pytest.mark.parametrize(("text", "is_found"), [
    (f"# Speeds\n\n{FIGURES}", True),
    (f"# Speeds\n\n<!-- no rows: arithmetic -->\n{FIGURES}", False),
    (f"# Speeds\n\n<!-- no rows: -->\n{FIGURES}", True),
    (f"# Speeds\n`pytest tests/test_made.py` prints them.\n\n{FIGURES}", False),
    (f"# Other\n`tests/test_made.py`\n# Speeds\n\n{FIGURES}", True),
    (f"# Speeds\n<!-- rows: loading-speeds -->\n{FIGURES}<!-- end of rows -->\n", False),
    ("# Keys\n\n| key | meaning |\n|---|---|\n| `a` | 0 .. 1, by default 3 |\n| `b` | at most 5 frames |\n", False),
])  # fmt: skip
def test_what_a_table_without_rows_is(text: str, is_found: bool) -> None:
    assert bool(unbacked(text)) == is_found


def test_markers_that_are_wrong() -> None:
    with pytest.raises(ReportError, match="no table is named nothing; there are balance"):
        render("<!-- rows: nothing -->\n<!-- end of rows -->", [], "page.md")
    with pytest.raises(ReportError, match=r"page\.md: a .* without its"):
        render("<!-- rows: goals -->\n", [], "page.md")


def test_every_table_stands_somewhere() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in TABLES if f"<!-- rows: {name} -->" not in text] == []


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").rglob("*.jsonl")), ids=lambda path: path.stem)
def test_rows_say_what_they_are(path: Path) -> None:
    for row in read_rows(path):
        assert {"benchmark", "machine", "versions", "commit", "time"} <= row.keys()
        assert row["commit"] != "unknown" or row["transcribed_from"], "a row without a commit says where it is from"


def kernel(operator: str, **changed: Any) -> dict[str, Any]:
    figures = {
        "times_eager": 16.0, "of_floor": 0.61, "of_copy_bandwidth": 0.8, "gigabytes_per_second": 1500.0,
        "teraflops_per_second": 0.0, "copy_gigabytes_per_second": 1800.0, "matrix_teraflops_per_second": 250.0,
        "dtype": "bfloat16", "size": "base", "machine": CARD, "commit": "abc",
    }  # fmt: skip
    return {"benchmark": "kernels", "operator": operator, **figures, **changed}


def test_goals_are_measured_by_gpu_rows_alone() -> None:
    assert len(GOALS) == 14, "the 13 rows of the design, of which one has two goals"
    assert table([]).count("| unmeasured |") == len(GOALS)
    rows = [
        kernel("patch_embed"),
        kernel("ema", times_eager=1.6),
        {**kernel("pixel_loss"), "machine": {"device": "x86_64"}},
        {"benchmark": "training", "part": "peers", "objective": "mae", "precision": "bfloat16", "arm": "Hugging Face, SDPA",
         "ours_against_it": {"median": 2.13, "low": 2.0, "high": 2.2}, "machine": CARD, "commit": "abc"},
        {"benchmark": "training", "part": "decoder mask", "objective": "mae", "precision": "bfloat16", "arm": "Hugging Face, SDPA",
         "ours_against_it": {"median": 1.9, "low": 1.8, "high": 2.0}, "machine": CARD, "commit": "abc"},
        {"benchmark": "training", "part": "steps", "objective": "mae", "encoder": "large", "arm": "resident", "views_per_span": 1,
         "of_matrix_ceiling": {"median": 0.47}, "of_resident": {"median": 1.0}, "machine": CARD, "commit": "abc"},
        {"benchmark": "training", "part": "steps", "objective": "mae", "encoder": "large", "arm": "loader, proxies",
         "views_per_span": 1, "of_matrix_ceiling": {"median": 0.4}, "of_resident": {"median": 0.96}, "machine": CARD,
         "commit": "abc"},
        {"benchmark": "loading", "arm": "decord", "ours_against_it": {"trocar dali": {"median": 2.5}}, "machine": CARD,
         "commit": "abc"},
        {"benchmark": "loading", "arm": "trocar dali", "amplification": 4.1, "machine": CARD, "commit": "abc"},
        {"benchmark": "clustering_level", "rows": 10_000_000, "width": 768, "blocked_torch_seconds": 3.0, "kernel_seconds": 1.2,
         "cuml_seconds": 1.5, "machine": CARD, "commit": "abc"},
    ]  # fmt: skip
    text = table(rows)
    for wanted in (
        "measured: 16.0x eager, 61% of the bound (NVIDIA Made, commit abc)",
        "measured: 2.13x (2.00 .. 2.20)",
        "measured: 1.90x (1.80 .. 2.00)",
        "measured: 47% (",
        "large, 1 views a span: 96%",
        "measured: 2.50x decord",
        "trocar dali 4.10",
        "2.50x blocked torch, 1.25x cuML",
        "measured: 1.6x eager",
    ):
        assert wanted in text, text
    (pixel_loss,) = [line for line in text.splitlines() if line.startswith("| pixel_loss")]
    assert pixel_loss.endswith("| unmeasured |"), "a CPU's row says nothing of a GPU"


def test_rooflines_of_made_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    products = kernel("patch_embed", gigabytes_per_second=500.0, teraflops_per_second=200.0)
    (moved, multiplied) = points([kernel("pixel_loss"), products])
    assert moved[2] / moved[3] == pytest.approx(1500 / 1800), "against the bandwidth"
    assert multiplied[1:] == (pytest.approx(400), pytest.approx(200), 250), "against the matrix units"
    stages = {"encoder": {"device": 0.02, "critical": 0.02}, "wait": {"device": 0.0, "critical": 0.01}}
    profile = {"benchmark": "profile", "config": "made", "seconds_per_step": 0.03, "stages": stages, "machine": CARD}
    path = plot_rooflines([products, kernel("pixel_loss"), profile], tmp_path / "plots" / "rooflines.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ReportError, match="no row of a GPU"):
        plot_rooflines(all_rows(ROOT / "bench" / "results"), tmp_path / "none.png")
    assert main(["bench", "report", "--root", str(ROOT), "--check", "--rooflines", str(tmp_path / "none.png")]) == 1
    assert "no row of a GPU" in capsys.readouterr().err
