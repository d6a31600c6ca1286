"""Labels of a person on a screen's spans: written, filled in, read back as an estimate."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from clips import write_pictures

from trocar.engine.cli import main
from trocar.engine.curate.screen_labels import TO_BE_REMOVED, labels_report, wilson, write_labels
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import SPAN_SCHEMA, Screen, ScreenedVideo, write_screen
from trocar.loaders.draw.where import parse_where

SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9], np.float32)


def screen_of(index: Path, scores: np.ndarray, by: str = "in_body") -> None:
    """Eight spans of 5 frames, of which four are below 0.5."""
    (identity,) = [row["id"] for row in Corpus.open(index).scan("id")]
    spans = {field.name: np.zeros(8, field.type.to_pandas_dtype()) for field in list(SPAN_SCHEMA)[1:]}
    spans |= {"first_frame": np.arange(8) * 5, "frames": np.full(8, 5, np.int32), by: scores}
    write_screen(index, [ScreenedVideo(identity, "", spans, np.zeros((2, 2), bool), 1)], "{}")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    write_pictures(tmp_path / "videos" / "v.mp4", [picture] * 40, gop=10)
    index_corpus([tmp_path / "videos"], tmp_path / "index", workers=1, content_box=False, progress=False)
    screen_of(tmp_path / "index", SCORES)
    return tmp_path / "index"


def filled(path: Path, labels: list[str]) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(labels)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, TO_BE_REMOVED: label} for row, label in zip(rows, labels, strict=True))


def test_labels_come_back_as_an_estimate(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "labels.csv"
    view = ["view", "screen", str(index), "--spans", "8", "--out", str(tmp_path / "s.png"), "--label", str(table)]
    assert main(view) == 0
    assert "trocar corpus report" in capsys.readouterr().out
    report = ["corpus", "report", str(index), "--labels", str(table)]
    assert main(report) == 0
    assert capsys.readouterr().out.count("none is labelled") == 2
    filled(table, ["yes", "no", "Yes ", "", "no", "no", "yes", "no"])
    assert main(report) == 0
    told = capsys.readouterr().out
    assert "by 7 labels of 8 spans" in told
    low, high = wilson(1, 3)
    assert f"1 of 3 labelled are to stay: 33.3% (95 % interval {low:.1%} to {high:.1%})" in told
    assert "1 of 4 labelled are to be left out: 25.0%" in told
    filled(table, ["maybe", *[""] * 7])
    with pytest.raises(CorpusError, match=r"line 2: is_to_be_removed is 'maybe'; give yes, no or nothing"):
        labels_report(Corpus.open(index), table)
    filled(table, [""] * 8)
    screen_of(index, SCORES[::-1].copy())
    with pytest.raises(CorpusError, match=r"line 2: the screen .* has changed since; write it again"):
        labels_report(Corpus.open(index), table)
    table.write_text("path,label\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"lacks the columns number, video"):
        labels_report(Corpus.open(index), table)


def test_of_blur_and_overlays_what_is_above_the_threshold_is_removed(index: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(index)
    for by, removed in (("in_body", "yes yes yes yes no no no no"), ("blur", "no no no no yes yes yes yes")):
        screen_of(index, SCORES, by)
        table = tmp_path / f"{by}.csv"
        write_labels(table, Screen(corpus), range(8), by, 0.6 if by == "blur" else 0.5)
        with table.open(newline="", encoding="utf-8") as file:
            assert [row["is_removed"] for row in csv.DictReader(file)] == removed.split()
        filled(table, ["no"] * 8)
        told = labels_report(corpus, table)
        assert "of 4 spans left out (0.00 hours) 4 of 4 labelled are to stay" in told
    assert told.startswith("blur >= 0.6, by 8 labels")
    assert parse_where("blur < 0.6").holds(Screen(corpus).columns).tolist() == [True] * 4 + [False] * 4


def test_interval() -> None:
    """Against the roots of (p - x)^2 = z^2 p (1 - p) / n, which define it; and how often it holds the truth."""
    for hits, count in ((0, 5), (1, 3), (7, 50), (50, 50)):
        share, spread = hits / count, 1.959964**2 / count
        roots = np.roots([1 + spread, -(2 * share + spread), share**2])
        assert wilson(hits, count) == pytest.approx(sorted(np.clip(roots.real, 0, 1)), abs=1e-7)
    hits = np.random.default_rng(0).binomial(40, 0.1, 2000)
    held = np.mean([low <= 0.1 <= high for low, high in (wilson(int(hit), 40) for hit in hits)])
    assert 0.93 <= held <= 0.98
