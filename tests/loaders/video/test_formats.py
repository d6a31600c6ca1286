"""No wrong picture in silence: every kind of file that FFmpeg can make here, against plain decoding; docs/formats.md."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import clips
import formats
import numpy as np
import pytest
import torch
from torch.nn import functional

from trocar.engine.weights.encoder_sources import ClipShape
from trocar.engine.weights.run_encoder import weights_digest
from trocar.judge.downstream import features, tuning
from trocar.judge.downstream.backbones import Backbone
from trocar.judge.downstream.features import ViewPlan
from trocar.judge.downstream.finetune import finetune
from trocar.judge.downstream.protocol import read_protocol
from trocar.judge.downstream.task import Task
from trocar.judge.labels.dataset import Segment, table_card
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.epochs import EpochLoader
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.verify import PROVED
from trocar.ssl.encoder import VideoEncoder

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
WHOLE, SIDE = CropRecipe((1, 1), (3 / 2, 3 / 2), 0), 64


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


@dataclass(frozen=True)
class Plain:
    """A file by plain decoding: when a player shows each of its frames (F,), and how bright they are, (F, SIDE, SIDE), where the
    whole is squeezed into the square (None), or a square is cut out so far on the way from left to right."""

    moments: np.ndarray
    views: dict[float | None, torch.Tensor]

    @classmethod
    def of(cls, path: str, stream_index: int) -> Plain:
        shown: dict[float, torch.Tensor] = {}
        with av.open(path) as container:
            stream = next(stream for stream in container.streams.video if stream.index == stream_index)
            for frame in container.decode(stream):
                assert frame.time is not None
                shown[frame.time] = torch.from_numpy(frame.to_ndarray(format="rgb24")).float().mean(dim=2)
            aspect = float(stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio or 1)
            zero = (container.start_time or 0) / av.time_base  # without one, players take timestamps as they are
        pictures = torch.stack([shown[moment] for moment in sorted(shown)])
        (height, width), ratio = pictures.shape[1:], WHOLE.ratio[0]
        if aspect != 1:
            pictures = resized(pictures, round(height * max(1 / aspect, 1)), round(width * max(aspect, 1)))
            height, width = pictures.shape[1:]

        def cut(across: int, down: int, share: float) -> torch.Tensor:
            left, top = round(share * (width - across)), round(share * (height - down))
            return resized(pictures[:, top : top + down, left : left + across], SIDE, SIDE).round().to(torch.uint8)

        views = {share: cut(min(width, height), min(width, height), share) for share in (0.0, 0.5, 1.0)}
        whole = cut(min(width, round(height * ratio)), min(height, round(width / ratio)), 0.5)
        return cls(np.array(sorted(shown)) - zero, {None: whole, **views})


def resized(pictures: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return functional.interpolate(pictures[:, None], (height, width), mode="area")[:, 0]


def check_clip(
    plain: Plain, frames: np.ndarray, seconds: np.ndarray, pictures: torch.Tensor, share: float | None = None
) -> int:
    """That (T,) frames are at these seconds, and that each picture (T, SIDE, SIDE, 3) is likest to its own frame; T."""
    np.testing.assert_allclose(seconds, plain.moments[frames], rtol=0, atol=0.001)
    shown = plain.views[share].flatten(1).float()
    distances = torch.cdist(pictures.float().mean(dim=3).flatten(1), shown, p=1)
    assert (distances[torch.arange(len(frames)), torch.from_numpy(frames)] <= distances.amin(dim=1)).all()
    return len(frames)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rows_draws_proxies_dali_and_fine_tuning_agree_on_frame_and_time(tmp_path, monkeypatch):
    """The same file by every way in: each picture is that of its frame, at the second, by plain decoding."""
    (tmp_path / "videos").mkdir()
    for encoder, pix_fmts in formats.ENCODERS.items():
        for pix_fmt, container in itertools.product(pix_fmts, formats.CONTAINERS):
            # Numbers so far apart that a border is seen in none of these videos.
            formats.write(tmp_path / "videos" / f"{encoder} {pix_fmt} {container}.{container}", encoder, pix_fmt, 2521)
    index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    videos = [corpus.video(row).facts for row in range(len(corpus))]
    plain = {facts.path: Plain.of(facts.path, facts.stream_index) for facts in videos}
    assert [len(plain[facts.path].moments) for facts in videos] == [formats.FRAMES] * len(videos)
    assert len(videos) > 300
    # MS-RLE in WMV comes without its colours; of all others no two pictures are alike.
    alike = [path for path, each in plain.items() if len(each.views[None].flatten(1).unique(dim=0)) < formats.FRAMES]
    assert [Path(path).name for path in alike] in ([], ["msrle pal8 wmv.wmv"])

    rows = [(path, each.moments[frame], (path, frame)) for path, each in plain.items() for frame in (3, 17, 9)]
    options: dict[str, Any] = dict(batch=8, num_frames=2, stride=2, resolution=SIDE, training=False, content_box=False)
    options |= dict(crops=WHOLE, threads=2, drop_last=False, loader="cpu", device="cpu")
    of_rows = 0
    for batch in clip_loader(rows, **options):
        for (path, frame), numbers, seconds, pictures in zip(
            batch.labels, batch.frame_numbers, batch.pts_seconds, batch.frames, strict=True
        ):
            assert numbers.tolist() == [frame, frame + 2], path
            of_rows += check_clip(plain[path], numbers, seconds, pictures)
    assert of_rows == 2 * len(rows)

    def check_draws(source: Corpus, path_of: Callable[[int], str]) -> int:
        checked = 0
        options: dict[str, Any] = dict(resolution=SIDE, threads=2, content_box=False)
        sampler = Sampler(source.frames, num_frames=3, stride=2, seed=0)
        with ClipLoader(source, sampler, WHOLE, [np.arange(4 * len(source))], **options) as loader:
            for batch in loader:
                clips_of = zip(batch.videos, batch.frame_numbers, batch.pts_seconds, batch.frames, strict=True)
                for row, numbers, seconds, pictures in clips_of:
                    checked += check_clip(plain[path_of(int(row))], numbers, seconds, pictures)
            assert not loader.total.failures
        return checked

    assert check_draws(corpus, corpus.video_path) == 12 * len(corpus)
    settings = PackSettings(short_side=SIDE, stride=1, gop=8)
    pack_corpus(tmp_path / "corpus", tmp_path / "packed", settings, workers=2, progress=False)
    packed = Corpus.open(tmp_path / "packed")
    assert len(packed) == len(corpus)
    assert check_draws(packed, lambda row: packed.video(row).original) == 12 * len(corpus)
    dali = [row for row in rows if Path(row[0]).name.split()[0] in ("libvpx", "libvpx-vp9", "mjpeg")]
    compare_with_dali(dali, options)
    check_fine_tuning(plain, tmp_path, monkeypatch)


SEGMENTS = {"train": (4, 17), "val": (9, 23), "test": (0, formats.FRAMES)}  # first frame, and the one behind the last


def check_fine_tuning(plain: dict[str, Plain], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`finetune` on features and in full, on a table with a segment of every file in every split: every clip that it opens."""
    table = []
    for number, (path, each) in enumerate(plain.items()):
        for split, (first, behind) in SEGMENTS.items():
            # As tables of people have it, to the millisecond.
            start = round(float(each.moments[first]), 3)
            end = round(float(each.moments[behind]), 3) if behind < formats.FRAMES else None
            table.append(Segment(path, start if end else None, end, f"class {number % 3}", path, split=split))
    task = Task("formats", table_card(folder / "formats.csv", table), table)
    seen: Counter[tuple[Any, ...]] = Counter()
    loaders: dict[EpochLoader, tuple[Any, ...]] = {}

    def watched(rows: Any, videos: Any, plan: ViewPlan, shape: ClipShape, *more: Any, **options: Any) -> EpochLoader:
        loader = open_clips(rows, videos, plan, shape, *more, **options)
        loaders[loader] = rows, plan, shape
        return loader

    def batches(loader: EpochLoader) -> Iterator[ClipBatch]:
        for batch in iterate(loader):
            for clip in zip(
                batch.labels,
                batch.draws,
                batch.views,
                batch.frame_numbers,
                batch.pts_seconds,
                batch.frames,
                strict=True,
            ):
                seen[look_at(*loaders[loader], *clip)] += 1
            yield batch

    def look_at(
        rows: Any, plan: ViewPlan, shape: ClipShape, label: int, draw: int, view: int, numbers: Any, *shown: Any
    ) -> tuple[Any, ...]:
        path, start, number, _ = rows[label]
        assert number == label
        split = "train" if plan.training else "val" if start else "test"
        each, (first, behind) = plain[path], SEGMENTS[split]
        begin, moments = int(numbers[0]), each.moments
        if shape.stride:
            latest, expected = behind - 1 - 3 * shape.stride, begin + shape.stride * np.arange(4)
        else:
            assert shape.sample_fps
            steps = np.arange(4) / shape.sample_fps
            latest = np.flatnonzero(moments < moments[behind - 1] - steps[-1] + 0.001)[-1]
            expected = np.abs(moments - (moments[begin] + steps)[:, None]).argmin(axis=1)
        assert numbers.tolist() == expected.tolist(), path
        if plan.training:
            assert first <= begin <= latest, path
            check_clip(each, numbers, *shown)
            return shape, split, label
        item, segment = divmod(int(draw), plan.segments)
        assert (item, begin) == (label, (first, latest)[segment]), path
        check_clip(each, numbers, *shown, share=view / (plan.crops - 1))
        return shape, split, label, segment, int(view)

    iterate, open_clips = EpochLoader.__iter__, features.open_clips
    monkeypatch.setattr(EpochLoader, "__iter__", batches)
    for module in (features, tuning):
        monkeypatch.setattr(module, "open_clips", watched)
    few = ["crop_scale=[1, 1]", f"crop_ratio=[{WHOLE.ratio[0]}, {WHOLE.ratio[1]}]", "flip=0", "segments=2", "crops=3"]
    few += ["train_views=2", "epochs=2", "learning_rates=[1e-3]", "weight_decays=[0.05]", "balances=[0]"]
    encoder = VideoEncoder(16, 1, 1, frames=4, resolution=SIDE, patch=16, positions="axes").requires_grad_(False).eval()
    for kind, timing in (("linear", (2, None)), ("full", (None, 12.5))):
        shape = ClipShape(4, *timing, SIDE)
        backbone = Backbone("tiny", encoder, "videomae", 16, 1, shape, weights_digest(encoder), "random")
        finetune(task, backbone, read_protocol(kind, few), folder / kind, device=torch.device("cpu"), tell=print)
        expected: Counter[Any] = Counter({(shape, "train", row): 2 for row in range(len(plain))})
        expected.update(itertools.product([shape], ["val", "test"], range(len(plain)), range(2), range(3)))
        assert seen == expected
        seen.clear()
    assert not any(loader.total.failures for loader in loaders)


def compare_with_dali(rows: list[Any], options: dict[str, Any]) -> None:
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")
    assert len(rows) > 20
    given: list[dict[str, Any]] = [{**options, "loader": loader} for loader in ("cpu", "dali")]
    by_cpu, by_dali = (list(clip_loader(rows, **each)) for each in given)
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
