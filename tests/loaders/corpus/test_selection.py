"""Lists of videos as people write them: what is in the corpus is found, what is not is named, and a list for nothing is refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from clips import write_numbered

from trocar.loaders.corpus.corpus import Corpus, CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.selection import hold_out, read_list, select_videos

NAMES = ["cholec80/video01.mp4", "cholec80/Video 02.MP4", "m2cai/video01.mp4", "m2cai/Köln.mkv"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("selection")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        write_numbered(folder / name, 12 + number, gop=6)
    index_corpus([folder], folder / "corpus", workers=1, content_box=False, progress=False)
    return Corpus.open(folder / "corpus")


def excluded(corpus: Corpus, listed: Path) -> list[str]:
    wanted = select_videos(corpus, exclude=[f"@{listed}"]).wanted
    return ["/".join(Path(corpus.video_path(row)).parts[-2:]) for row in np.flatnonzero(~wanted).tolist()]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cholec80/video01.mp4", NAMES[:1]),
        ("./cholec80/video01.mp4 3", NAMES[:1]),
        ("../data/../cholec80/video01.mp4 3", []),
        ("__DATA_ROOT__/cholec80/video01.mp4,3", NAMES[:1]),
        ("cholec80\\video01.mp4\tcut the duct", NAMES[:1]),
        ("Cholec80/VIDEO01.MP4", NAMES[:1]),
        ("cholec80/Video 02.MP4", NAMES[1:2]),
        ("cholec80/video 02.mp4 7", NAMES[1:2]),
        ('"cholec80/Video 02.MP4",7', NAMES[1:2]),
        ("video 02.mp4 0.0 12.5 cut", NAMES[1:2]),
        ("video01.mp4 1", [NAMES[0], NAMES[2]]),
        ("video01 1", [NAMES[0], NAMES[2]]),
        ("/elsewhere/cholec80/video01.mp4", []),
        ("other/video01.mp4 1", []),
        (unicodedata.normalize("NFD", "m2cai/Köln.mkv"), NAMES[3:]),
        ("KÖLN.MKV  ", NAMES[3:]),
    ],
)
def test_lines_of_lists(line: str, found: list[str], corpus: Corpus, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{line}\n", encoding="utf-8")
    if found:
        assert sorted(excluded(corpus, listed)) == sorted(found)
    else:
        with pytest.raises(
            CorpusError, match=r"none of the 1 entries of .*list\.txt matches a video .*files of such names are"
        ):
            excluded(corpus, listed)


def test_a_list_that_matches_nothing_is_an_error_wherever_one_is_taken(corpus: Corpus, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("a.mp4 1\nb.mp4 2\n", encoding="utf-8")
    everything = np.ones(len(corpus), dtype=bool)
    for select in (
        lambda: select_videos(corpus, exclude=[f"@{listed}"]),
        lambda: select_videos(corpus, [f"@{listed}"]),
        lambda: select_videos(corpus, exclude=["video01.mp4", f"@{listed}"]),
        lambda: hold_out(corpus, everything, [f"@{listed}"]),
    ):
        with pytest.raises(CorpusError, match=r"none of the 2 entries .*: 'a\.mp4 1', 'b\.mp4 2'; give ids"):
            select()


def test_what_is_found_and_what_is_not_is_told(corpus: Corpus, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    gone = [f"gone{number}.mp4" for number in range(7)]
    listed.write_text("\n".join(["cholec80/video01.mp4 1", "elsewhere/köln.mkv", *gone]), encoding="utf-8")
    (note,) = select_videos(corpus, exclude=[f"@{listed}"]).notes
    assert note.startswith(
        f"exclude @{listed}: 1 videos (1 of 9 entries are in the corpus); without a video: 'elsewhere/köln.mkv', "
    )
    assert "'gone3.mp4' and 3 more (files of such names are " in note
    assert note.endswith("m2cai/Köln.mkv)")
    held = hold_out(corpus, np.ones(len(corpus), dtype=bool), [f"@{listed}"])
    assert held.wanted.tolist() == [
        Path(corpus.video_path(row)).parts[-2:] == ("cholec80", "video01.mp4") for row in range(4)
    ]
    assert held.notes[0].startswith("videos @")


def test_tables_are_lists_too(corpus: Corpus, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    for text in ("label, video\n1,cholec80/video01.mp4 \n", "cholec80/video01.mp4 1\n", "cholec80/video01.mp4,1\n"):
        listed.write_text(text, encoding="utf-8")
        assert excluded(corpus, listed) == NAMES[:1], text
    assert read_list(listed) == ["cholec80/video01.mp4,1"]
    listed.write_text("file,label\ncholec80/video01.mp4,1\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="no column `path` or `id` or `video`"):
        excluded(corpus, listed)
