"""Runs that go on otherwise than they began: what differs is named, asked for, written down and marked; nothing else is touched."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import write_numbered
from runs import TINY, assert_same_run

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.draws.changes import check_changes, check_same_corpus, check_same_draws, differences, marks
from trocar.engine.draws.samplers import drawn_from
from trocar.engine.inputs.checkpoints import checkpoint_path, checkpoints
from trocar.engine.pretrain import pretrain
from trocar.engine.record.metrics import read_metrics
from trocar.engine.record.run_record import read_starts
from trocar.engine.view import curve as view
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus

# A value for every setting of a run that shows in its curve or its draws, other than the demo's.
# fmt: off
ASKED = [
    "run.precision=bfloat16", "data.resolution=48", "data.crop_scale=[0.3, 1.0]", "data.crop_ratio=[1.0, 1.0]",
    "data.flip=0.25", "data.resize=exact", "data.content_box=false", "data.loader=cpu", "data.views_per_span=2",
    "data.pool_spans=48", "data.lanes=12", "model.heads=4", "model.positions=flat", "objective.mask_ratio=0.9",
    "objective.decoder_mask_ratio=0.5", "objective.targets=patch", "optim.batch=16",
    "optim.steps=20", "optim.base_learning_rate=1e-3", "optim.final_learning_rate=1e-5", "optim.schedule=linear",
    "optim.schedule_scale=1.25", "optim.warmup=0.5", "optim.weight_decay=0.1", "optim.final_weight_decay=0.4",
    "optim.betas=[0.9, 0.999]", "optim.clip_gradient=0.5", "optim.outlier_sigmas=5", "probe.kind=linear",
    "validation.clips=3",
]
FREE = [
    "run.dir=elsewhere", "run.threads=3", "run.log_every=5", "run.checkpoint_every=3", "run.keep_every=2",
    "run.tensorboard=false", "run.compile=none", "run.sharding=full", "run.device=auto", "data.corpus=moved",
    "data.threads=2", "data.prefetch=5", "data.failure_budget=0.5", "data.clip_timeout=5", "model.init=other",
    "optim.accumulation=2", "optim.skip_budget=3", "probe.every=5", "probe.batch=2", "validation.every=5",
    "validation.batch=2",
]
# fmt: on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a run of four steps that was killed behind the second."""
    folder = tmp_path_factory.mktemp("changes")
    for number in range(2):
        write_numbered(folder / f"{number}.mp4", 60, video_id=number, gop=12)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    pretrain(config(folder, folder / "whole"), progress=False)
    shutil.copytree(folder / "whole", folder / "killed")
    shutil.rmtree(checkpoint_path(folder / "killed", 4))
    return folder


def config(folder: Path, run: Path, *more: str) -> Config:
    common = [f"data.corpus={folder / 'corpus'}", "optim.steps=4", "run.checkpoint_every=2"]
    return load_config("demo_cpu", [*common, *TINY, f"run.dir={run}", *more])


def killed(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "killed", tmp_path / "run"))


def made(*more: str) -> Config:
    return load_config("demo_cpu", ["data.corpus=x", "run.dir=x", "optim.steps=10", "data.lanes=24", *more])


@pytest.mark.parametrize("setting", ASKED)
def test_what_changes_the_curve_or_the_draws_is_asked_for(setting: str) -> None:
    before, now, key = made(), made(setting), setting.partition("=")[0]
    with pytest.raises(
        ConfigError, match=rf"(?s)after step 4 as another one:\n  {key}: .* -> .*run\.allow_changes=true"
    ):
        check_changes(now, before, 4, now.optim.steps or 0, 10)
    allowed = made(setting, "run.allow_changes=true")
    found = check_changes(allowed, before, 4, allowed.optim.steps or 0, 10)
    assert [change.key for change in found if not change.is_free] == [key]


@pytest.mark.parametrize("setting", ["objective.kind=jepa", "model.width=128", "model.decoder_depth=1"])
def test_nothing_accepts_weights_of_another_model(setting: str) -> None:
    for now in (made(setting), made(setting, "run.allow_changes=true")):
        with pytest.raises(
            ConfigError, match=r"(?s)as another one:.* to start anew: its weights are of another model$"
        ):
            check_changes(now, made(), 4, 10, 10)


@pytest.mark.parametrize("setting", FREE)
def test_what_does_not_is_free(setting: str) -> None:
    assert [change.is_free for change in check_changes(made(setting), made(), 4, 10, 10)] == [True]


def test_no_setting_is_left_out_of_the_comparison() -> None:
    """One that is added later is asked for, or stands among those that are free."""
    before = made()
    for section in dataclasses.fields(Config):
        part = getattr(before, section.name)
        for item in dataclasses.fields(part):
            other = object.__new__(type(part))
            for each in dataclasses.fields(part):
                object.__setattr__(other, each.name, getattr(part, each.name))
            object.__setattr__(other, item.name, "another value")
            changed = dataclasses.replace(before, **{section.name: other})
            assert [change.key for change in differences(before, changed)] == [f"{section.name}.{item.name}"]


def test_further_steps_of_a_constant_rate_change_nothing() -> None:
    constant = ["optim.schedule=constant", "optim.warmup=0"]
    before, more = made(*constant), made(*constant, "optim.steps=20")
    assert [change.key for change in check_changes(more, before, 10, 20, 10)] == ["optim.steps"]
    cooled = made(*constant, "optim.cooldown=0.2")
    assert check_changes(cooled, before, 4, 10, 8), "a run that was to be over before its cooldown"
    with pytest.raises(ConfigError, match=r"optim\.cooldown"):
        check_changes(cooled, before, 4, 10, 10)
    with pytest.raises(ConfigError, match=r"optim\.steps: 10 -> 12.*from optim\.epochs"):
        check_changes(made("optim.epochs=3"), made("optim.epochs=3"), 4, 12, 10)


def test_other_draws_hide_no_other_setting(folder: Path) -> None:
    before = config(folder, folder / "x")
    now = config(folder, folder / "x", "validation.videos=['1.mp4']", "data.resolution=48", "run.log_every=5")
    said = r"(?s)now: validation\.videos: .* These differ as well: data\.resolution: \d+ -> 48\. Set it back"
    with pytest.raises(ConfigError, match=said):
        check_same_draws(now, before, Corpus.open(folder / "corpus"), 2, ["others"])


def test_an_unchanged_run_goes_on_bit_by_bit_and_says_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed(folder, tmp_path)
    assert pretrain(config(folder, run), progress=False).resumed_from == 2
    assert capsys.readouterr().err == ""
    assert_same_run(run, folder / "whole")
    assert [(start["first_step"], set(start["changes"])) for start in read_starts(run)] == [
        (0, set()),
        (2, {"run.dir"}),
    ]
    assert marks(run) == []


def test_a_changed_run_is_refused_then_marked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed(folder, tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changed = ["optim.steps=5", "objective.targets=patch", "optim.batch=2"]
    with pytest.raises(ConfigError) as refused:
        pretrain(config(folder, run, *changed), progress=False)
    assert str(refused.value).splitlines()[1:4] == [
        "  objective.targets: none -> patch",
        "  optim.batch: 4 -> 2 (clips 4 .. 7 come again)",
        "  optim.steps: 4 -> 5",
    ]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, "a refusal changes nothing"
    pretrain(config(folder, run, *changed, "run.allow_changes=true"), progress=False)
    said = capsys.readouterr().err
    assert "resumed after step 2 with other settings:\n  objective.targets: none -> patch\n" in said
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4, 5]
    assert read_starts(run)[-1]["changes"]["optim.steps"] == [4, 5]
    ((step, shown),) = marks(run)
    assert (step, [change.key for change in shown]) == (2, ["objective.targets", "optim.batch", "optim.steps"])
    capsys.readouterr()
    pretrain(config(folder, run, *changed), progress=False)
    assert capsys.readouterr().err == "", "what the newest checkpoint was made with is no change"

    legends: list[list[str]] = []
    draw = view.marks
    monkeypatch.setattr(view, "shorten", lambda step, changes: legends.append([str(step)]) or "changed")
    plain = view.view_curve(run, tmp_path / "marked.png").read_bytes()
    monkeypatch.setattr(view, "marks", lambda _: [])
    assert view.view_curve(run, tmp_path / "unmarked.png").read_bytes() != plain
    assert legends == [["2"]]
    assert view.shorten is not draw


def test_a_mark_goes_with_the_rows_that_it_stood_for(tmp_path: Path) -> None:
    starts: list[dict[str, Any]] = [
        {"first_step": 0},  # from before changes were written down
        {"first_step": 10, "changes": {"optim.steps": [20, 30]}},
        {"first_step": 20, "changes": {"data.flip": [0.5, 0.0], "run.threads": [1, 2]}},
        {"first_step": 15, "changes": {}},
    ]
    (tmp_path / "run.json").write_text(json.dumps(starts))
    assert [(step, str(changes[0])) for step, changes in marks(tmp_path)] == [(10, "optim.steps: 20 -> 30")]


def test_a_checkpoint_from_before_settings_were_in_it_resumes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed(folder, tmp_path)
    manifest = next(iter(checkpoint_path(run, 2).glob("*.json")))
    tree = json.loads(manifest.read_text())
    for name in ("config", "steps"):
        del tree["state"][name]
    manifest.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"data\.flip: 0\.5 -> 0\.25"):
        pretrain(config(folder, run, "data.flip=0.25"), progress=False)
    (run / "config.yaml").write_text("run: {dir: x, of_another_version: 1}\n", encoding="utf-8")
    capsys.readouterr()
    pretrain(config(folder, run), progress=False)
    assert "the settings before cannot be read" in capsys.readouterr().err
    last = load_checkpoint(checkpoints(run)[-1]).model
    wanted = load_checkpoint(checkpoints(folder / "whole")[-1]).model
    assert all(torch.equal(last[name], wanted[name]) for name in wanted)


def test_a_refusal_of_other_draws_names_the_one_difference(folder: Path, tmp_path: Path) -> None:
    run = killed(folder, tmp_path)
    with pytest.raises(ConfigError, match=r"draw other clips now: data.exclude: \[\] -> \['1.mp4'\]\. Set it back"):
        pretrain(config(folder, run, "data.exclude=['1.mp4']"), progress=False)
    listed = tmp_path / "list.txt"
    listed.write_text("1.mp4\n", encoding="utf-8")
    other = tmp_path / "other"
    exclude = f"data.exclude=['@{listed}']"
    pretrain(config(folder, other, exclude), progress=False)
    listed.write_text("0.mp4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"no setting differs, but the list @{re.escape(str(listed))} is not as it"):
        pretrain(config(folder, other, exclude, "optim.steps=6", "run.checkpoint_every=2"), progress=False)


@pytest.mark.parametrize("what", ["the corpus's screen", "its table of sources", "the tree"])
def test_what_settings_name_is_told_apart(folder: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(folder / "corpus", tmp_path / "corpus")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "tree.parquet").write_bytes(b"one")
    (tmp_path / "corpus" / "spans.parquet").write_bytes(b"one")
    now = made(f"data.tree={tree}")
    named = drawn_from(now, Corpus.open(tmp_path / "corpus"))
    if what == "the tree":
        (tree / "tree.parquet").write_bytes(b"another")
        what = f"the tree {tree}"
    elif what == "the corpus's screen":
        (tmp_path / "corpus" / "spans.parquet").write_bytes(b"another")
    else:
        table = tmp_path / "videos.csv"
        table.write_text(f"path,source\n{folder / '0.mp4'},another\n{folder / '1.mp4'},\n", encoding="utf-8")
        index_corpus([table], tmp_path / "corpus", workers=1, progress=False)
    after = drawn_from(now, Corpus.open(tmp_path / "corpus"))
    assert [name for name in after if after[name] != named[name]] == [what]


def test_a_corpus_that_grew_is_told_with_its_sizes(folder: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(folder / "corpus")
    now = made(f"data.corpus={folder / 'corpus'}")
    with pytest.raises(
        ConfigError, match=rf"\(1 videos of 9 frames then, {len(corpus)} videos of .* now\), so its draws"
    ):
        check_same_corpus(now, corpus, "another", "1 videos of 9 frames")
    with pytest.raises(
        ConfigError, match=r"began on packed, and .*corpus is another corpus \(1 videos of 9 frames then, "
    ):
        check_same_corpus(now, corpus, "another", "1 videos of 9 frames", made("data.corpus=packed"))


def test_failed_draws_are_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, source in enumerate([0, 0, 0, 1]):
        shutil.copy(folder / f"{source}.mp4", tmp_path / f"{number}.mp4")
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    (tmp_path / "3.mp4").unlink()
    pretrain(config(tmp_path, tmp_path / "run", "data.failure_budget=1.0"))
    said = capsys.readouterr().err.splitlines()
    named = [line for line in said if "another clip replaces draw" in line]
    assert len(named) == 1
    assert "3.mp4" in named[0]
    failed = len((tmp_path / "run" / "quarantine.csv").read_text().splitlines()) - 1
    assert f"{failed} clips of 1 videos could not be read; {tmp_path / 'run' / 'quarantine.csv'} lists them" in said
    assert np.sum([row["replaced_clips"] for row in read_metrics(tmp_path / "run")]) > 0
