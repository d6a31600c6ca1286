"""`trocar pack --screen`: numbered frames that were screened out are in no proxy, and nothing of the file's metadata is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import read_number, write_numbered, write_pictures

from trocar.engine.cli import main
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import FLAGS, SCORES
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import SPAN_SCHEMA, Screen, ScreenedVideo, write_screen

SECRETS = {
    "title": "Jane Doe",
    "location": "+52.5+013.4/",
    "creation_time": "2020-01-02T03:04:05Z",
    "comment": "theatre 7",
}
OUT = ((10, 21), (21, 33), (60, 80))


def original(path: Path) -> None:
    """Numbered frames with names, a place, a time and a chapter."""
    write_numbered(path.with_name("plain.mp4"), 90, gop=12)
    with av.open(str(path.with_name("plain.mp4"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        target.metadata.update(SECRETS)
        stream.metadata["handler_name"] = "Jane Doe's camera"
        target.set_chapters(
            [
                {
                    "id": 1,
                    "start": 0,
                    "end": 1000,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": "Jane Doe awake"},
                }
            ]
        )
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.with_name("plain.mp4").unlink()


def test_removed_frames_and_metadata_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    original(tmp_path / "videos" / "a.mp4")
    assert b"Jane Doe" in (tmp_path / "videos" / "a.mp4").read_bytes()
    index_corpus([tmp_path / "videos"], tmp_path / "index", workers=1, content_box=False, progress=False)
    corpus = Corpus.open(tmp_path / "index")
    bounds = np.array([0, 10, 21, 33, 60, 80, 90])
    spans = {name: np.zeros(6, np.float32) for name in SCORES} | {name: np.zeros(6, bool) for name in FLAGS}
    spans |= {
        "first_frame": bounds[:-1],
        "frames": np.diff(bounds).astype(np.int32),
        "shot": np.arange(6, dtype=np.int32),
    }
    spans["in_body"][:] = [0.9, 0.2, 0.5, 0.9, 0.1, 0.9]
    identity = corpus.video(0).id
    write_screen(corpus.path, [ScreenedVideo(identity, "", spans, np.zeros((2, 2), bool), 0)], "{}")
    words = ["pack", str(corpus.path), "--out", str(tmp_path / "packed"), "--stride", "2", "--workers", "1"]
    assert main([*words, "--screen"]) == 0
    said = capsys.readouterr().out
    assert "0.000" in said
    assert "2 stretches of 1 videos" in said
    (proxy,) = (tmp_path / "packed" / "videos").glob("*/*.mp4")
    seen = {}
    with av.open(str(proxy)) as container:
        assert not container.chapters()
        told = {**container.metadata, **container.streams.video[0].metadata}
        assert not {"title", "location", "creation_time", "comment"} & {name.lower() for name in told}
        for place, frame in enumerate(container.decode(video=0)):
            seen[place] = frame.to_ndarray(format="gray")
    assert b"Jane Doe" not in proxy.read_bytes()
    assert len(seen) == 45
    for place, picture in seen.items():
        if any(first <= 2 * place < stop for first, stop in OUT):
            assert picture.max() < 24, f"frame {2 * place} is to be seen"
        else:
            assert read_number(picture)[1] == 2 * place
    screen = Screen(Corpus.open(tmp_path / "packed"))
    assert screen.columns["first_frame"].tolist() == [0, 5, 11, 17, 30, 40]
    assert screen.columns["blank"].tolist() == [False, True, True, False, True, False]
    assert len(screen.cuts) == 5
    assert main(words) == 1, "what was black would be seen again"
    assert "made with other settings (screen True -> False)" in capsys.readouterr().err


def test_the_mask_of_a_proxy_lies_where_its_original_has_it_inside_the_black_border(tmp_path: Path) -> None:
    """Magenta on green inside a border that proxies do not have; turned by a display matrix besides."""
    (tmp_path / "videos").mkdir()
    overlay = np.zeros((144, 192), bool)
    overlay[30:60, 60:120] = overlay[90:112, 130:150] = True
    pictures = np.zeros((24, 144, 192, 3), np.uint8)
    pictures[:, 16:128, 40:160, 1] = 90 + 5 * np.arange(24)[:, None, None]
    pictures[:, overlay] = (250, 0, 250)
    write_pictures(tmp_path / "videos" / "a.mp4", pictures, gop=12, rotation=90, mirrored=True)
    index_corpus([tmp_path / "videos"], tmp_path / "index", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "index")
    facts = corpus.video(0).facts
    assert (facts.box_width, facts.box_height) == (120, 112)
    spans = {field.name: np.ones(1, field.type.to_pandas_dtype()) for field in list(SPAN_SCHEMA)[1:]}
    spans["frames"][:], spans["blank"][:], spans["first_frame"][:] = 24, False, 0
    write_screen(corpus.path, [ScreenedVideo(corpus.video(0).id, "", spans, overlay, 0)], "{}")
    words = ["pack", str(corpus.path), "--out", str(tmp_path / "packed"), "--stride", "1", "--workers", "1", "--screen"]
    assert main(words) == 0
    (proxy,) = (tmp_path / "packed" / "videos").glob("*/*.mp4")
    with av.open(str(proxy)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    screen = Screen(Corpus.open(tmp_path / "packed"))
    found = screen.videos[0].overlay
    rows, columns = (
        np.arange(count) * length // count for count, length in zip(found.shape, picture.shape, strict=False)
    )
    is_magenta = (picture[..., 0] > 125)[np.ix_(rows, columns)]
    assert (found & is_magenta).sum() > 0.95 * (found | is_magenta).sum()
    assert screen.columns["overlay_share"][0] == pytest.approx(found.mean())
