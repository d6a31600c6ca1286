"""Every reader of a text that people write says what is wrong with it, in words of its own, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trocar.bench.plan.cluster import load_cluster
from trocar.engine.config.file import load_config
from trocar.engine.curate.corpus_report import load_sources
from trocar.engine.curate.screen_labels import _read as read_screen_labels
from trocar.engine.inputs.judged import audited_lines, judged_table
from trocar.engine.step.online_probe import read_table as read_probe_table
from trocar.judge.downstream.matrix import load_matrix
from trocar.judge.labels.annotations import records
from trocar.judge.labels.dataset import check_dataset, load_card
from trocar.judge.labels.splits import from_release
from trocar.judge.labels.table import read_table
from trocar.judge.workflow.matrix import load_workflow
from trocar.loaders.corpus.selection import read_list
from trocar.loaders.corpus.sources import list_videos
from trocar.loaders.video.error import TrocarError

TABLES: dict[str, Callable[[Path], Any]] = {
    "a labelled table": read_table,
    "a table checked before it is read": lambda path: check_dataset(str(path), path.parent),
    "videos of a corpus": lambda path: list_videos([path]),
    "a probe's table": lambda path: read_probe_table(path, 10),
    "labels of a screen": lambda path: read_screen_labels(path, "write it again"),
    "what others found": judged_table,
    "a list of videos": read_list,
}
TEXTS = TABLES | {
    "a run": load_config,
    "a card": lambda path: load_card(path.with_suffix(".yaml")),
    "a matrix": lambda path: load_matrix(path.with_suffix(".yaml")),
    "a matrix of phases": lambda path: load_workflow(path.with_suffix(".yaml")),
    "sources": load_sources,
    "a cluster": lambda path: load_cluster(str(path.with_suffix(".yaml"))),
    "split files": lambda path: from_release(path.parent, "", files=[path.name] * 3),
    "annotations": records,
    "an audit": lambda path: audited_lines([path]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_absent_is_called_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrocarError, match=r"gone\.(csv|yaml): no such |^no file |gone\.csv: no such config") as caught:
        TEXTS[name](tmp_path / "gone.csv")
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("name", sorted({*TEXTS} - {"an audit"}))
@pytest.mark.parametrize(
    ("encoding", "found"), [("utf-16", "it is UTF-16"), ("latin-1", "'Käse,a.mp4,1' is written as in Latin-1")]
)
def test_another_encoding_is_named_with_the_way_to_save_it(
    name: str, encoding: str, found: str, tmp_path: Path
) -> None:
    for suffix in (".csv", ".yaml"):
        (tmp_path / f"odd{suffix}").write_bytes("path,video,label\nKäse,a.mp4,1\n".encode(encoding))
    with pytest.raises(TrocarError) as caught:
        TEXTS[name](tmp_path / "odd.csv")
    assert f"in UTF-8 ({found}" in str(caught.value)
    assert "; save it as " in str(caught.value)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_separator_is_named_with_the_way_to_save_it(
    name: str, separator: str, word: str, tmp_path: Path
) -> None:
    table = tmp_path / "odd.csv"
    table.write_text(f"path{separator}video{separator}label\na.mp4{separator}a.mp4{separator}1\n")
    with pytest.raises(TrocarError, match=f"{word} stand between its columns .* save it as comma-separated UTF-8"):
        TABLES[name](table)
