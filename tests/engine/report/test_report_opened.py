"""The page in a browser, and beside a run that is killed and resumed. Chromium may be missing: then it is not asked."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import started
from PIL import Image
from ranks import make_corpus
from runs import TINY
from test_run_report import hostile_runs, make_run, row

from trocar.engine.cli import main
from trocar.engine.report.report import Report, watch

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WINDOW = (1200, 3000)
# Looks at the page as a reader would: moves on the first chart by keyboard and pointer, and notes what was loaded and how fast.
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const charts = [...document.querySelectorAll("figure.chart")], told = {};
  told.boxes = charts.map((chart) => { const box = chart.querySelector("svg").getBoundingClientRect();
    return [box.left, box.top + scrollY, box.width, box.height]; });
  charts[0].focus();
  charts[0].dispatchEvent(new KeyboardEvent("keydown", {key: "Home"}));
  told.first = charts[0].querySelector("output").textContent;
  const plot = charts[1].querySelector(".plot"), seen = plot.getBoundingClientRect();
  plot.dispatchEvent(new PointerEvent("pointermove", {clientX: seen.left + 0.97 * seen.width, clientY: seen.top + 9}));
  told.second = charts[1].querySelector("output").textContent;
  told.loaded = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  told.milliseconds = performance.now();
  document.title = "told" + JSON.stringify(told);
}, 0))</script>"""

pytestmark = pytest.mark.slow


def chromium(page: Path, *options: str) -> tuple[str, str]:
    """(what it writes to stdout, to stderr), of a browser with a profile of its own."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    place = [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={WINDOW[0]},{WINDOW[1]}"]
    command = [CHROMIUM, *flags, *place, *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def probed(page: Path) -> dict:
    """What PROBE finds, in a copy without the policy, which would not let it run nor let anything be fetched."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy = page.with_name("probed.html")
    copy.write_text(text.replace("</body>", f"{PROBE}</body>"))
    shown, _ = chromium(copy, "--dump-dom")
    found = re.search(r"<title>told(.*?)</title>", shown)
    assert found, shown[:500]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_from_a_disk_and_draws_every_chart(tmp_path: Path) -> None:
    """In light and dark: no word on the console, nothing fetched, no dialogue; on every chart there are pixels of every run."""
    runs, out = hostile_runs(tmp_path), tmp_path / "page.html"
    Report(runs, out).write()
    told = probed(out)
    assert told["loaded"] == []
    assert told["first"].startswith("step 1\n")
    assert "<script>alert('run')<img" in told["first"], "a name is text here too"
    assert told["second"].startswith("step 8\n")
    assert len(told["boxes"]) >= 5
    pictures = {}
    for theme, flags in {"light": [], "dark": ["--blink-settings=preferredColorScheme=0"]}.items():
        picture = tmp_path / f"{theme}.png"
        _, said = chromium(out, f"--screenshot={picture}", *flags)
        assert "CONSOLE" not in said, said
        pictures[theme] = np.asarray(Image.open(picture).convert("RGB")).astype(int)
        colours = re.search({"light": r"^:root\{(.*?)\}", "dark": r"dark\)\{:root\{(.*?)\}"}[theme], _style(out))
        assert colours
        # The second run's lines cover the first's, as their steps are the same; both fill its area.
        wanted = _colour(colours[1], "run1")
        for left, top, width, height in told["boxes"]:
            chart = pictures[theme][round(top) : round(top + height), round(left) : round(left + width)]
            close = np.abs(chart - wanted).max(axis=-1) < 40
            assert close.sum() > 20, (theme, left, top)
    assert pictures["light"].mean() > 200 > 60 > pictures["dark"].mean()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_on_paper(tmp_path: Path) -> None:
    """Light whatever the theme, two charts beside one another, without what only a screen needs; a PDF of some pages."""
    out, paper = tmp_path / "page.html", tmp_path / "paper.html"
    Report(hostile_runs(tmp_path), out).write()
    paper.write_text(out.read_text().replace("@media print", "@media all"))
    first, second, third, *_ = probed(paper)["boxes"]
    assert first[1] == second[1] < third[1]
    assert first[0] + first[2] < second[0]
    picture, printed = tmp_path / "paper.png", tmp_path / "page.pdf"
    chromium(paper, f"--screenshot={picture}", "--blink-settings=preferredColorScheme=0")
    assert np.asarray(Image.open(picture).convert("L")).mean() > 200
    assert "nav,output,.keys{display:none}" in _style(out)
    chromium(out, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    assert printed.read_bytes()[:5] == b"%PDF-"
    assert 1 < printed.read_bytes().count(b"/MediaBox") < 8


def _style(page: Path) -> str:
    found = re.search(r"<style>(.*?)</style>", page.read_text(), re.DOTALL)
    assert found
    return found[1]


def _colour(variables: str, name: str) -> np.ndarray:
    found = re.search(rf"--{name}:#(\w{{6}})", variables)
    assert found
    return np.frombuffer(bytes.fromhex(found[1]), np.uint8).astype(int)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_million_steps_open_in_three_seconds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [])
    with (run / "metrics.jsonl").open("w") as file:
        for start in range(0, 1_000_000, 10_000):
            lines = [json.dumps(row(step, rankme=step % 7)) for step in range(start + 1, start + 10_001)]
            file.write("\n".join(lines) + "\n")
    report = Report([run], tmp_path / "page.html", pictures=False)
    report.write()
    told = probed(report.out)
    print(f"{told['milliseconds']:.0f} ms, {report.out.stat().st_size / 1e6:.2f} MB")
    assert told["milliseconds"] < 3000
    assert report.out.stat().st_size < 5e6
    assert "1,000,000" in report.out.read_text()


def test_watching_a_run_that_is_killed_and_resumed(tmp_path: Path) -> None:
    """The page has at the end what that of the whole run has, without a step twice."""
    corpus, run = make_corpus(tmp_path / "corpus"), tmp_path / "run"
    steps = ["optim.steps=60", "run.checkpoint_every=10", "run.keep_checkpoints=9", "run.device=cpu"]
    settings = ["pretrain", "demo_cpu", f"data.corpus={corpus}", f"run.dir={run}", *TINY, *steps]
    process = started([sys.executable, "-m", "trocar.engine.cli", *settings], run / "checkpoints" / "step_00000020")
    process.send_signal(signal.SIGSTOP)  # a page takes longer than the rest of the run
    report = Report([run], tmp_path / "page.html")
    watch(report, 0.0, rounds=2)
    process.kill()
    process.wait()
    watch(report, 0.0, rounds=1)
    before = report.followed[0].shown().curves.steps
    assert 20 <= before < 60
    assert main(settings) == 0
    watch(report, 0.0, rounds=1)
    curves = report.followed[0].shown().curves
    assert (curves.steps, curves.last["step"]) == (60, 60)
    again = Report([run], tmp_path / "again.html")
    again.write()
    texts = [re.sub(r"Written [\d :-]+", "", page.read_text()) for page in (report.out, again.out)]
    assert texts[0] == texts[1]
    assert "step 60: " in texts[0]
    assert "step 20" in texts[0]
