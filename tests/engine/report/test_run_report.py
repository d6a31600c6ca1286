"""The page of runs: curves that lose no spike, names that stay names, a watch that survives what happens to a run."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.record.metrics import MetricsLog
from trocar.engine.report.curves import STRETCHES, Curve, MetricsReader
from trocar.engine.report.report import Report, watch

HOSTILE = "<script>alert('run')<img src=x onerror=alert(1)> $\\frac{1}$ & \"x"


def row(step: int, **more: float) -> dict[str, float]:
    speed = {"clips_per_second": 8.0, "data_wait_percent": 60.0, "amplification": 4.0}
    return {"step": step, "first_clip": 4.0 * (step - 1), "loss": 1.0 / step, "skipped": 0, **speed, **more}


def make_run(folder: Path, rows: list[dict[str, float]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(load_config("demo_cpu", ["data.corpus=gone", f"run.dir={folder}"]).to_yaml())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    return folder


def test_stretches_keep_least_largest_and_mean() -> None:
    """Of more steps than stretches, added in parts, against NumPy."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=5000)
    values[3210], values[77], values[78] = 1e6, np.nan, np.inf
    curve = Curve()
    for part in np.array_split(np.arange(5000), 7):
        curve.add(part, values[part])
    points = curve.points()
    assert curve.not_finite == 2
    assert curve.width == 8
    assert len(points["step"]) == 625 <= STRETCHES
    cut = np.where(np.isfinite(values), values, np.nan).reshape(625, 8)
    assert np.allclose(points["low"], np.nanmin(cut, axis=1))
    assert np.allclose(points["high"], np.nanmax(cut, axis=1))
    assert np.allclose(points["mean"], np.nanmean(cut, axis=1))
    assert points["high"].max() == 1e6
    assert points["step"][:2].tolist() == [3.5, 11.5]


def test_a_log_is_followed_over_a_kill_and_a_resume(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(step) for step in range(1, 31)])
    reader = MetricsReader(run)
    assert reader.read().steps == 30
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(31, rankme=3.0)) + '\n{"step": 32, "lo')  # killed in the middle of a row
    curves = reader.read()
    assert (curves.steps, curves.last["step"], curves.last["rankme"]) == (31, 31, 3.0)
    assert curves.seconds == pytest.approx(30 * 4 / 8)
    with MetricsLog(run, 20, tensorboard=False) as log:  # resumed at its checkpoint
        assert reader.read().steps == 20
        log.write(row(21, loss=float("nan")))
    resumed = reader.read()
    assert (resumed.steps, resumed.by_name["loss"].not_finite) == (21, 1)
    whole = MetricsReader(run).read()
    for name in ("loss", "clips_per_second"):
        assert all(
            np.array_equal(a, b)
            for a, b in zip(resumed.by_name[name].points().values(), whole.by_name[name].points().values(), strict=True)
        )


class Page(HTMLParser):
    """Elements and text of a page, and what it would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.elements: list[str] = []
        self.wanted: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.wanted.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text.append(data)


def hostile_runs(tmp_path: Path) -> list[Path]:
    runs = [
        make_run(tmp_path / name / HOSTILE.replace("/", ""), [row(step, validation_loss=2.0) for step in range(1, 9)])
        for name in "ab"
    ]
    (runs[0] / "quarantine.csv").write_text(
        f'draw,spare,path,reason\n3,0,"{HOSTILE.replace(chr(34), "")}.mp4","</script><script>x"\n'
    )
    (runs[0] / "skipped.csv").write_text("step,clip,draw,path,loss,reason\n5,1,1,<b>.mp4,nan,<i>far</i>\n")
    return runs


def test_names_from_outside_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No script but ours, no handler, nothing fetched; the names themselves can be read. Two runs of one name are told apart."""
    runs, judged = hostile_runs(tmp_path), tmp_path / "<u>judged.csv"
    judged.write_text(
        "dataset,protocol,model,metric,score,low,high,seeds,flags\ncholec80,probe,<script>m,macro_f1,0.5,0.4,0.6,2,\n"
        "jigsaws,probe,ours,accuracy,0.25,,,1,<b>\n"
    )
    out = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--out", str(out), "--downstream", str(judged)]) == 0
    assert "no such folder" in capsys.readouterr().err
    text = out.read_text()
    page = Page(text)
    *data, script = page.scripts
    charts = page.elements.count("figure")
    assert len(data) == charts >= 5
    assert all(len(json.loads(part)["lines"]) >= 2 for part in data)
    assert "addEventListener" in script
    assert not page.handlers
    assert all(link.startswith(("#", "data:")) for link in page.wanted), page.wanted
    assert not {"iframe", "object", "embed", "base", "form"} & {*page.elements}
    assert {"b", "u"}.isdisjoint(page.elements)
    seen = " ".join(page.text)
    for name in (
        HOSTILE,
        "</script><script>x",
        "<i>far</i>",
        "<script>m",
        "40.00 .. 60.00",
        "unknown",
        "no such folder",
    ):
        assert name in seen, name
    assert "held up by: decoding" in seen
    assert str(runs[1]) in seen
    assert text.count("<svg") == charts
    assert "#0102" not in text, "all colours are the page's"


def test_a_page_says_what_it_cannot_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", [])
    assert main(["report", str(run), "--no-pictures"]) == 0
    assert "No step is written down yet." in (run / "report.html").read_text()
    assert main(["report", str(run), str(run / ".." / "run")]) == 2
    assert "named twice" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("a,b\n")
    assert main(["report", str(run), "--downstream", str(tmp_path / "other.csv")]) == 2
    assert "lacks the columns dataset" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text("no json\n")
    assert main(["report", str(run)]) == 2
    assert "no row of metrics" in capsys.readouterr().err


def test_watching_goes_on_where_something_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", [row(1)])
    report = Report([run], tmp_path / "page.html", pictures=False, refresh=5)
    watch(report, 0.0, rounds=1)
    before = (tmp_path / "page.html").read_text()
    assert '<meta http-equiv="refresh" content="5">' in before
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").unlink()
    watch(report, 0.0, rounds=2)
    assert capsys.readouterr().err.count("stays as it was") == 2
    assert (tmp_path / "page.html").read_text() == before
    (run / "config.yaml").write_text(config)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(2)) + "\n")
    watch(report, 0.0, rounds=1)
    assert "<td>2</td>" in (tmp_path / "page.html").read_text()
