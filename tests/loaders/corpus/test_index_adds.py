"""An index is added to: nothing leaves unnamed, copies and files that are left out are said."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clips import write_numbered

from trocar.engine.cli import main
from trocar.engine.curate.corpus_report import corpus_report
from trocar.loaders.corpus.corpus import VIDEOS_NAME, Corpus
from trocar.loaders.corpus.index import IndexSummary, index_corpus
from trocar.loaders.corpus.left_out import LeftOut, looks_like_video
from trocar.loaders.corpus.sources import list_videos


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for number, name in enumerate(["a.mp4", "b.mkv", "c.ts", "d.avi"]):
        write_numbered(folder / name, 12 + number, gop=6)
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    """old/a.mp4, old/b.mkv; new/c.ts"""
    for name, parent in (("a.mp4", "old"), ("b.mkv", "old"), ("c.ts", "new")):
        (tmp_path / parent).mkdir(exist_ok=True)
        shutil.copy(originals / name, tmp_path / parent)
    return tmp_path


def build(folder: Path, *sources: str, **options: bool) -> IndexSummary:
    paths = [folder / source for source in sources]
    return index_corpus(paths, folder / "corpus", workers=1, content_box=False, progress=False, **options)


def names(folder: Path) -> list[str]:
    return [Path(row["path"]).name for row in Corpus.open(folder / "corpus").scan("path")]


def test_adding_is_the_default_and_replacing_asks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(folder, "old")
    added = build(folder, "new")
    assert names(folder) == ["c.ts", "a.mp4", "b.mkv"]
    assert (added.videos, added.reused, added.kept, added.left) == (3, 2, 2, ())
    assert (
        "2 of the videos are not among these sources and stay from before (--replace leaves them out)" in added.lines()
    )
    arguments = ["index", str(folder / "new"), "--out", str(folder / "corpus"), "--no-content-box", "--workers", "1"]
    assert main([*arguments, "--replace"]) == 0
    said = capsys.readouterr().out
    assert f"2 videos left the index: {folder / 'old' / 'a.mp4'}, {folder / 'old' / 'b.mkv'}\n" in said
    assert names(folder) == ["c.ts"]


def test_what_leaves_is_named_and_what_cannot_be_reached_stays(folder: Path) -> None:
    build(folder, "old", "new")
    (folder / "old" / "a.mp4").unlink()
    gone = build(folder, "new")
    assert gone.left == (str(folder / "old" / "a.mp4"),)
    assert f"1 videos left the index: {folder / 'old' / 'a.mp4'}" in gone.lines()
    (folder / "old").rename(folder / "unplugged")
    away = build(folder, "new")
    assert (away.videos, away.left, away.unreachable) == (2, (), (str(folder / "old" / "b.mkv"),))
    assert f"1 of those cannot be found now: {folder / 'old' / 'b.mkv'}" in away.lines()
    (folder / "unplugged").rename(folder / "old")
    (folder / "old" / "b.mkv").write_bytes(b"no video any more")
    broken = build(folder, "new")
    assert (broken.videos, broken.quarantined, broken.left) == (1, 1, (str(folder / "old" / "b.mkv"),))


def test_descriptions_stay_and_another_way_to_a_file_is_the_same_video(folder: Path) -> None:
    (folder / "old" / "list.csv").write_text("path,source,licence\n a.mp4 ,hospital\u00a0,CC0\n", encoding="utf-8")
    build(folder, "old/list.csv")
    (folder / "link").symlink_to(folder / "old")
    again = build(folder, "link", "new")
    assert (again.videos, again.reused, again.kept) == (3, 1, 0)
    video = Corpus.open(folder / "corpus").video(names(folder).index("a.mp4"))
    assert (video.facts.path, video.source, video.licence) == (str(folder / "old" / "a.mp4"), "hospital", "CC0")


def test_an_earlier_versions_index_is_added_to_and_a_damaged_one_said(folder: Path) -> None:
    build(folder, "old")
    path = folder / "corpus" / VIDEOS_NAME
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"version": b"0"}), path)
    added = build(folder, "new")
    assert (added.videos, added.kept, added.reused) == (3, 2, 0)
    path.write_bytes(b"PAR1 not really")
    assert "the index before could not be read" in build(folder, "new").lines()[-1]
    assert names(folder) == ["c.ts"]


def test_copies_are_mentioned(folder: Path) -> None:
    shutil.copy(folder / "old" / "a.mp4", folder / "new" / "renamed.mp4")
    found = build(folder, "old", "new")
    pair = (str(folder / "new" / "renamed.mp4"), str(folder / "old" / "a.mp4"))
    assert found.copies == (pair,)
    said = "1 videos are copies of others, byte for byte, and are drawn like videos of their own:"
    assert found.lines()[-2:] == [said, f"  {' = '.join(pair)}"]
    assert said in corpus_report(Corpus.open(folder / "corpus"))
    # Raw pictures of one size and length have equal tables: the bytes decide.
    data = bytearray((folder / "new" / "renamed.mp4").read_bytes())
    data[-1] ^= 1
    (folder / "new" / "renamed.mp4").write_bytes(data)
    assert build(folder, "old", "new").copies == ()


def test_files_beside_videos_are_counted_and_those_like_videos_named(folder: Path) -> None:
    old = folder / "old"
    for source, name in (("a.mp4", "x.dat"), ("b.mkv", "y.dat"), ("a.mp4", "half.mp4.part")):
        shutil.copy(old / source, old / name)
    (old / "table.dat").write_bytes(b"0.5 0.25\n" * 60)
    (old / "notes").write_text("none")
    found = build(folder, "old")
    assert found.videos == 2
    counted, likely = found.lines()[-2:]
    assert counted == "5 files left out for their suffix: 3 .dat, 1 .part, 1 without one"
    assert likely.startswith("of these 3 look like videos: ")
    for name in ("x.dat", "y.dat", "half.mp4.part"):
        assert str(old / name) in likely
    assert build(folder, "old/x.dat").videos == 3
    (folder / "only").mkdir()
    shutil.copy(old / "x.dat", folder / "only")
    with pytest.raises(
        Exception, match=r"no video found there; .*1 files left out for their suffix: 1 \.dat; of these 1 look"
    ):
        build(folder, "only")


def test_videos_of_rare_suffixes_are_taken(originals: Path, tmp_path: Path) -> None:
    write_numbered(tmp_path / "made.mpg", 12, codec="mpeg2video", gop=6)
    for name in ("a.mod", "b.MPE", "c.tod", "d.vro"):
        shutil.copy(tmp_path / "made.mpg", tmp_path / name)
    (tmp_path / "raw.h264").write_bytes(b"\x00\x00\x00\x01\x67" + bytes(60))
    left = LeftOut()
    assert [Path(entry.path).name for entry in list_videos([tmp_path], left)] == [
        "a.mod", "b.MPE", "c.tod", "d.vro", "made.mpg", "raw.h264"
    ]  # fmt: skip
    assert not left.lines()
    for path in originals.iterdir():
        assert looks_like_video(str(path)), path


@pytest.mark.parametrize("pattern", ["tar://sub/a.mp4::{}", "tar://sub/*.mp4::{}", "tar://::{}"])
def test_files_of_an_archive_keep_its_name(pattern: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with tarfile.open(folder / "w.tar", "w") as archive:
        archive.add(folder / "old" / "a.mp4", arcname="sub/a.mp4")
    summary = index_corpus([pattern.format("w.tar")], folder / "corpus", workers=1, progress=False)
    assert summary.videos == 1
    monkeypatch.chdir("/")
    corpus = Corpus.open(folder / "corpus")
    assert corpus.video_path(0) == f"tar://sub/a.mp4::{folder / 'w.tar'}"
    plain = build(folder, "old/a.mp4")
    assert plain.copies == ((f"{folder}/old/a.mp4", f"tar://sub/a.mp4::{folder / 'w.tar'}"),)
