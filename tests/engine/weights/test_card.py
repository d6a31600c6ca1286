"""What a model card says of the corpus, of curves and of benchmarks: by hand where it is recorded, else unknown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clips import write_numbered

from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.console.table import hours
from trocar.engine.inputs.judged import audited_lines
from trocar.engine.weights.card_corpus import corpus_section
from trocar.engine.weights.model_card import _curves, _energy, _recipe
from trocar.engine.weights.run_encoder import build_encoder
from trocar.judge.labels.audit import audit
from trocar.judge.labels.corpus_overlap import KnownVideo
from trocar.judge.labels.dataset import Segment, load_card
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import FLAGS, SCORES
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import ScreenedVideo, write_screen

TREE = {
    "spans": 4000, "not_finite": 0, "constant": 0, "levels": [2000, 200, 20], "inertia": [1.0] * 3, "passes": 3,
    "backend": "made", "duplicates_measured": 0, "near_duplicates": {}, "seconds": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 2 and 4 seconds in `corpus`, not screened; the same in `screened`: two shots each, the second is blank."""
    root = tmp_path_factory.mktemp("card")
    for row in range(2):
        write_numbered(root / f"{row}.mp4", 50 * (row + 1), video_id=row, gop=12, width=64, height=64)
    for name in ("corpus", "screened"):
        index_corpus([root], root / name, workers=1, content_box=False, progress=False)
    corpus, videos = Corpus.open(root / "screened"), []
    for row, values in enumerate(corpus.scan("id")):
        half = int(corpus.frames[row]) // 2
        spans = {name: np.zeros(2, np.float32) for name in SCORES} | {name: np.zeros(2, bool) for name in FLAGS}
        spans |= {"first_frame": np.array([0, half]), "frames": np.array([half, half], np.int32)}
        spans |= {"shot": np.array([0, 1], np.int32), "blank": np.array([False, True])}
        videos.append(ScreenedVideo(values["id"], "", spans, np.zeros((1, 1), bool), 0))
    write_screen(corpus.path, videos, "{}")
    (root / "tree").mkdir()
    (root / "tree" / "summary.json").write_text(json.dumps(TREE))
    (root / "held_out.txt").write_text("1.mp4\n")
    return root


def said(folder: Path, *settings: str) -> dict[str, str]:
    config = load_config("demo_cpu", ["data.corpus=corpus", *settings])
    text = corpus_section(str(folder), config)
    assert str(folder) not in text
    return {row.split(" | ")[0].removeprefix("| "): row for row in text.splitlines() if row.startswith("| ")}


def test_hygiene_and_curation_are_said_as_they_were(folder: Path) -> None:
    rows = said(folder, "data.corpus=screened", "data.where=not blank", "data.tree=tree", "data.balance=0.5",
                f'data.exclude=["@{folder}/held_out.txt"]')  # fmt: skip
    assert rows["screened for what is no surgery"].endswith("| yes |")
    assert rows["drawn"].endswith("| only where not blank |")
    # 3 of 6 seconds are blank.
    assert "no clip crosses one of 2 cuts" in rows["what that takes away"]
    assert "data.where leaves out 0.00 of 0.00 hours" in rows["what that takes away"]
    assert (
        "yes, levels of 2,000 / 200 / 20 clusters of 4,000 spans, balance 0.5" in rows["drawn from a tree of clusters"]
    )
    assert rows["a span is drawn in an epoch"].endswith("| at most 10 times |")
    assert rows["videos left out by rules"].endswith(
        "| 1 of 2 videos, 0.0011 hours: 0 entries of data.include, 1 of data.exclude (lists: held_out.txt) |"
    )
    assert rows["unknown"].endswith("| 1 | 0.00056 |"), "of the videos that were drawn from"
    held = said(folder, "validation.videos=[0.mp4]")
    assert held["videos held out for validation"].endswith("| 1 of 2 videos, 0.00056 hours; never drawn from |")
    assert held["unknown"].endswith("| 1 | 0.0011 |")
    plain = said(folder, "data.max_repeats=null")
    assert plain["unknown"].endswith("| 2 | 0.0017 |")
    assert plain["videos held out for validation"].endswith("| none |")
    assert plain["screened for what is no surgery"].endswith("| no |")
    assert plain["drawn from a tree of clusters"].endswith("| no: spans were drawn alike |")
    assert plain["a span is drawn in an epoch"].endswith("| any number of times |")
    assert plain["videos left out by rules"].endswith("| none |")


def test_what_is_not_there_any_more_is_unknown(folder: Path) -> None:
    rows = said(folder, "data.corpus=gone", "data.tree=gone", "data.balance=1", "data.exclude=[private/1.mp4]")
    assert "unknown: the corpus is not where the run read it" in rows["screened for what is no surgery"]
    assert "levels of unknown clusters" in rows["drawn from a tree of clusters"]
    assert "1 of data.exclude; how many videos: unknown" in rows["videos left out by rules"]
    assert "private" not in rows["videos left out by rules"]
    changed = said(folder, "data.exclude=[elsewhere.mp4]")
    assert "unknown, the rules do not fit the corpus any more" in changed["videos left out by rules"]


def test_curves_signals_of_collapse_and_probes(tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 4.0 - n, "collapse": int(n == 2), "skipped": int(n == 1)} for n in range(3)]
    rows[1]["rankme"] = 7.0
    (tmp_path / "probe.jsonl").write_text('{"step": 2, "balanced_accuracy": 0.25}\n{"step": 4, "error": "lost"}\n{"st')
    text = _curves(tmp_path, rows)
    assert "| loss | 4 | 3 | 2 | 3 |" in text
    assert "| rankme | 7 | 7 | 7 | 1 |" in text
    assert "| probe: balanced_accuracy | 0.25 | 0.25 | 0.25 | 1 |" in text
    assert text.endswith("3 recorded steps; 1 of them were left out; 1 of 3 said that features collapse.")
    assert _curves(tmp_path / "none", rows[:1]).endswith("probe: unknown, the run had none.")
    assert "whether features collapse: unknown" in _curves(tmp_path, [{"step": 0, "loss": 1.0}])
    assert _curves(tmp_path / "none", []) == "unknown"


def test_an_audit_says_which_benchmarks_stand_in_the_corpus(tmp_path: Path) -> None:
    def facts() -> tuple[object, object]:
        raise AssertionError("told by its path")

    table = [Segment(str(tmp_path / f"{name}.mp4"), 0.0, 1.0, "x", name, split=name) for name in ("train", "test")]
    known = [KnownVideo((row.video,), 1.0, facts) for row in table]  # type: ignore[arg-type]
    paths = []
    for number, corpus in enumerate((known, known[:1], None)):
        paths.append(tmp_path / f"{number}.json")
        (tmp_path / "test.mp4").touch()
        rows = table if corpus is not None and len(corpus) > 1 else table[:1]
        paths[-1].write_text(json.dumps(audit(rows, load_card("cholec80"), corpus=corpus).as_json()))
    assert audited_lines(paths[:2]) == [
        "Cholec80: 1 rows of test come from videos of the corpus (2 videos compared)",
        "Cholec80: no row of validation or test comes from a video of the corpus (1 videos compared)",
    ]
    with pytest.raises(ConfigError, match="compared no corpus"):
        audited_lines(paths[2:])
    (tmp_path / "odd.json").write_text('{"findings": []}')
    with pytest.raises(ConfigError, match="cannot be read as what"):
        audited_lines([tmp_path / "odd.json"])
    text = corpus_section(str(tmp_path), load_config("demo_cpu"), audited_lines(paths[:1]))
    assert "- Cholec80: 1 rows of test come" in text


def test_a_recipe_says_what_took_part() -> None:
    def rows(name: str, *settings: str) -> dict[str, str]:
        config = load_config(name, ["data.corpus=corpus", *settings])
        lines = _recipe(config, build_encoder(config)).splitlines()[2:]
        return dict(line.strip("| ").split(" | ") for line in lines)

    mae = rows("demo_cpu", "model.encoder=tiny", "model.depth=2")
    assert (mae["model.width"], mae["model.depth"], mae["model.heads"]) == ("192", "2", "3")
    assert {"objective.mask_ratio", "objective.targets"} <= {*mae}
    assert {"objective.masks", "optim.ema", "data.balance", "data.sample_fps", "data.source_caps"}.isdisjoint(mae)
    sizes = "data.sizes=[{from_step: 9, frames: 32}]"
    jepa = rows("demo_jepa_cpu", sizes, "data.tree=tree", "data.source_caps={web: 0.5}")
    assert jepa["objective.masks"].startswith("blocks ")
    assert (jepa["data.sizes"], jepa["data.source_caps"], jepa["data.balance"]) == (
        "from_step 9 frames 32",
        "web 0.5",
        "1",
    )
    assert {"objective.mask_ratio", "objective.decoder_mask_ratio", "objective.targets"}.isdisjoint(jepa)
    assert not [value for value in (*mae.values(), *jepa.values()) if "None" in value or "(" in value]


def test_hours_of_minutes_say_something() -> None:
    assert [hours(value) for value in (0, 0.00123, 0.05, 0.125, 1234.5)] == [
        "0.00",
        "0.0012",
        "0.05",
        "0.12",
        "1,234.50",
    ]


def test_energy_is_of_the_steps_that_have_it() -> None:
    rows = [{"step": n, "joules": 1.8e6} for n in range(4)]
    assert _energy(rows) == "2 kWh"
    assert _energy([*rows, {"step": 4}]) == "2 kWh in 4 of 5 steps, of the others unknown"
    assert _energy([{"step": 0}]) == "unknown"
