"""Corpora that tests of several loaders share."""

from __future__ import annotations

from pathlib import Path

import clips

from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus


def damaged_corpus(folder: Path, damaged: int) -> Corpus:
    """Three videos; one GOP in three of number `damaged` is noise."""
    for row in range(3):
        clips.write_numbered(folder / f"{row}.mp4", 100, video_id=row, gop=6 + 6 * row)
    index_corpus([folder], folder / "index", workers=1, content_box=False, progress=False)
    corpus = Corpus.open(folder / "index")
    clips.damage_gops(corpus, damaged)
    return corpus


def corpus_of_two_kinds(folder: Path) -> Corpus:
    """A video of H.264 and two of VP9."""
    (folder / "videos").mkdir()
    for number, (name, codec) in enumerate([("0.mp4", "libx264"), ("1.webm", "libvpx-vp9"), ("2.webm", "libvpx-vp9")]):
        clips.write_numbered(folder / "videos" / name, 60, video_id=number, gop=12, codec=codec)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, progress=False)
    return Corpus.open(folder / "corpus")
