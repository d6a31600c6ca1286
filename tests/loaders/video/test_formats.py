"""No wrong picture in silence: every kind of file that FFmpeg can make here, against plain decoding; docs/formats.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import clips
import formats
import numpy as np
import pytest

from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.verify import PROVED

PAGE = Path(__file__).resolve().parents[3] / "docs" / "formats.md"
# One of each kind of decoder, of container and of what a container has to tell.
# fmt: off
FEW = [
    ("libx264", "yuv420p", "mp4"), ("libx264", "yuv420p", "ts"), ("libx264 without B-frames", "yuv420p", "avi"),
    ("libx265", "yuv420p", "mkv"), ("libvpx", "yuv420p", "webm"), ("libvpx-vp9", "yuv420p", "mp4"), ("mpeg4", "yuv420p", "avi"),
    ("mpeg2video", "yuv420p", "mpg"), ("mpeg1video", "yuv420p", "mpg"), ("mjpeg", "yuvj420p", "avi"), ("h261", "yuv420p", "avi"),
    ("h263", "yuv420p", "avi"), ("flv", "yuv420p", "flv"), ("msmpeg4", "yuv420p", "avi"), ("wmv2", "yuv420p", "wmv"),
    ("svq1", "yuv410p", "mov"), ("ffv1", "yuv420p", "mkv"), ("huffyuv", "yuv422p", "avi"), ("utvideo", "gbrp", "avi"),
    ("png", "pal8", "mov"), ("gif", "pal8", "mov"), ("rpza", "rgb555le", "mov"), ("smc", "pal8", "mov"), ("msrle", "pal8", "avi"),
    ("zmbv", "pal8", "avi"), ("speedhq", "yuv420p", "avi"), ("v308", "yuv444p", "mov"), ("v408", "yuva444p", "avi"),
    ("prores_ks", "yuv422p10le", "mov"), ("rawvideo", "uyvy422", "avi"), ("rawvideo", "gray", "avi"), ("rawvideo", "pal8", "avi"),
]
# fmt: on
CONTAINER_NAMES = {
    "mov,mp4,m4a,3gp,3g2,mj2": "mp4",
    "matroska,webm": "mkv",
    "avi": "avi",
    "mpegts": "ts",
    "flv": "flv",
    "mpeg": "mpg",
}
MAKERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp8": "libvpx", "vp9": "libvpx-vp9"}
WHOLE = CropRecipe((1, 1), (3 / 2, 3 / 2), 0)


@pytest.mark.parametrize(("encoder", "pix_fmt", "container"), FEW)
def test_a_picture_is_plain_decodings_in_any_order(tmp_path, encoder, pix_fmt, container):
    path = tmp_path / f"a.{container}"
    if encoder.split()[0] not in av.codecs_available:
        pytest.skip(f"the FFmpeg of PyAV {av.__version__} has no encoder {encoder}")
    assert formats.write(path, encoder, pix_fmt)
    assert formats.compare(path).kind == "exact"


def rows_of_the_page() -> dict[str, list[str]]:
    """Encoder -> cells, one a container."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = next(index for index, row in enumerate(cells) if row[0] == "encoder")
    assert cells[start][2:] == list(formats.CONTAINERS)
    return {row[0]: row[2:] for row in cells[start + 2 :]}


def test_what_is_not_compared_at_indexing_is_exact_in_the_table():
    rows = rows_of_the_page()
    assert set(rows) == set(formats.ENCODERS)
    pairs = [(codec, container) for codec, containers in PROVED.items() for container in containers]
    for codec, container in pairs:
        encoder = "libx264 without B-frames" if (codec, container) == ("h264", "avi") else MAKERS.get(codec, codec)
        assert rows[encoder][formats.CONTAINERS.index(CONTAINER_NAMES[container])] == "exact", (codec, container)
    assert len(pairs) > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_table_of_the_page():
    lines, total = formats.table()
    assert total["exact"] + total["refused"] >= 200
    assert total["wrong"] == 0
    text = PAGE.read_text(encoding="utf-8")
    if av.ffmpeg_version_info in text:
        assert "\n".join(lines) in text
    else:  # another FFmpeg makes other files
        rows = rows_of_the_page()
        for line in lines[2:-2]:
            encoder, _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            changed = [
                pair for pair in zip(rows[encoder], cells, strict=True) if pair[0] == "exact" and "refused" in pair[1]
            ]
            assert not changed, encoder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rows_draws_proxies_and_dali_agree_on_frame_and_time(tmp_path):
    """The same file by every way in: the numbers in the pictures are those of the frames, at the seconds of plain decoding."""
    (tmp_path / "videos").mkdir()
    for encoder, pix_fmts in formats.ENCODERS.items():
        for container in () if encoder in formats.SIZES else formats.CONTAINERS:  # crops are of one shape
            formats.write(tmp_path / "videos" / f"{encoder} {container}.{container}", encoder, pix_fmts[0])
    index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    paths = [corpus.video(row).facts.path for row in range(len(corpus))]
    assert len(paths) > 150

    readable = {}
    for path in paths:
        facts, _ = probe_video(path, content_box=False)
        with av.open(path) as container:
            stream = next(stream for stream in container.streams.video if stream.index == facts.stream_index)
            shown = {frame.pts: frame.to_ndarray(format="rgb24") for frame in container.decode(stream)}
        ticks = facts.time_base_numerator / facts.time_base_denominator
        moments = [((pts - facts.zero_pts) * ticks, number(shown[pts])) for pts in sorted(shown)]
        assert len(moments) == facts.frames
        readable[path] = moments

    def agrees(path: str, frame: int, seconds: float, picture: np.ndarray) -> bool:
        moment, shown = readable[path][frame]
        assert moment == pytest.approx(seconds, abs=0.001), (path, frame)
        assert shown is None or number(picture) == shown, (path, frame)
        return shown is not None

    told = 0
    rows = [(path, readable[path][frame][0], (path, frame)) for path in paths for frame in (3, 17, 9)]
    options: dict[str, Any] = dict(batch=8, num_frames=2, stride=2, resolution=64, training=False, content_box=False)
    options |= dict(crops=WHOLE, threads=2, drop_last=False, loader="cpu", device="cpu")
    for batch in clip_loader(rows, **options):
        for (path, frame), numbers, times, pictures in zip(
            batch.labels, batch.frame_numbers, batch.pts_seconds, batch.frames.numpy(), strict=True
        ):
            assert numbers[0] == frame, path
            told += sum(agrees(path, *each) for each in zip(numbers, times, pictures, strict=True))
        assert not batch.count.failures

    def check_draws(source: Corpus, path_of: Callable[[int], str]) -> int:
        told = 0
        options: dict[str, Any] = dict(resolution=64, threads=2, content_box=False)
        sampler = Sampler(source.frames, num_frames=3, stride=2, seed=0)
        with ClipLoader(source, sampler, WHOLE, [np.arange(4 * len(source))], **options) as loader:
            for batch in loader:
                for video, numbers, times, pictures in zip(
                    batch.videos, batch.frame_numbers, batch.pts_seconds, batch.frames.numpy(), strict=True
                ):
                    for each in zip(numbers, times, pictures, strict=True):
                        told += agrees(path_of(int(video)), *each)
            assert not loader.total.failures
        return told

    told_by_draws = check_draws(corpus, paths.__getitem__)
    settings = PackSettings(short_side=64, stride=1, gop=8)
    pack_corpus(tmp_path / "corpus", tmp_path / "packed", settings, workers=2, progress=False)
    packed = Corpus.open(tmp_path / "packed")
    assert len(packed) == len(corpus)
    told_by_proxies = check_draws(packed, lambda row: packed.video(row).original)
    print(
        f"\n{len(paths)} videos: {told} pictures of rows, {told_by_draws} of draws, {told_by_proxies} of proxies show their number"
    )
    assert min(told, told_by_draws, told_by_proxies) > 500
    dali = [row for row in rows if Path(row[0]).name.split()[0] in ("libvpx", "libvpx-vp9", "mjpeg")]
    compare_with_dali(dali, options)


def compare_with_dali(rows: list[Any], options: dict[str, Any]) -> None:
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'trocar[dali]'")
    assert len(rows) > 20
    by_cpu, by_dali = (list(clip_loader(rows, **{**options, "loader": loader})) for loader in ("cpu", "dali"))
    for ours, theirs in zip(by_cpu, by_dali, strict=True):
        assert ours.labels == theirs.labels
        assert np.array_equal(ours.frame_numbers, theirs.frame_numbers)
        assert np.array_equal(ours.pts_seconds, theirs.pts_seconds)
        for mine, other in zip(ours.frames.numpy(), theirs.frames.cpu().numpy(), strict=True):
            assert [number(picture) for picture in mine] == [number(picture) for picture in other]


def number(picture: np.ndarray) -> int | None:
    try:
        return clips.read_number(picture)[1]
    except ValueError:
        return None
