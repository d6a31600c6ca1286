"""DALI's loader delivers the batches that the CPU's delivers: same clips, same frames, same order, nearly the same pixels."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")

from trocar.loaders import cpu, dali
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.dali import ClipLoader
from trocar.loaders.decode import dali_codecs
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.decode.dali_codecs import can_decode
from trocar.loaders.decode.dali_decoder import DecodingPipeline
from trocar.loaders.decode.dali_pipeline import DataNode, cut_view, decode_windows, fn, pipeline_def, types, view_input
from trocar.loaders.decode.span import SpanReader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.sampler import Clip, Sampler
from trocar.loaders.video.video import Kind, VideoError
from trocar.loaders.video.window import Window, WindowReader

pytestmark = pytest.mark.timeout(180)

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
FRAMES = 4
# name, coded frames, encoding; the place of a name is the video's id and its row. DALI's CPU decoder has three of the codecs.
VIDEOS: list[tuple[str, int, dict[str, Any]]] = [
    ("0.mp4", 60, {"gop": 12, "codec": "libvpx-vp9"}),
    ("1.webm", 60, {"gop": 30, "codec": "libvpx", "hidden_frames": True}),
    ("2.mp4", 60, {"codec": "mjpeg"}),
    ("3.mp4", 60, {"gop": 12, "b_frames": 3, "open_gop": True}),
    ("4.mkv", 60, {"gop": 20, "codec": "libvpx-vp9", "hidden_frames": True, "variable_rate": True}),
    ("5.mp4", 60, {"gop": 15, "rotation": 90}),
    ("6.avi", 60, {"codec": "mjpeg"}),
    ("7.mp4", 3, {"codec": "libvpx-vp9"}),
    ("8.mkv", 60, {"gop": 30, "codec": "libx265", "b_frames": 3}),
]
SHORT = 7
WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)
AUGMENTED = CropRecipe((0.3, 1), (0.75, 1.33), 0.5)


def build_corpus(folder: Path, videos: list[tuple[str, int, dict[str, Any]]] = VIDEOS) -> Corpus:
    (folder / "videos").mkdir(parents=True)
    for row, (name, frames, encoding) in enumerate(videos):
        clips.write_numbered(
            folder / "videos" / name, frames, video_id=row, first_number=100, width=160, height=160, **encoding
        )
    index_corpus([folder / "videos"], folder / "corpus", workers=1, progress=False)
    return Corpus.open(folder / "corpus")


@pytest.fixture(scope="module")
def shared_corpus(tmp_path_factory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("shared"))


def load(corpus: Corpus, draws: Any, *, loader: Any = ClipLoader, crops: CropRecipe = WHOLE, **options: Any) -> Any:
    sampler = Sampler(corpus.frames, num_frames=FRAMES, stride=3, seed=options.pop("seed", 7))
    if loader is ClipLoader:
        options = {"device": "cpu", "decoders": 2, **options}
    usual: dict[str, Any] = {"resolution": 64, "threads": 2, **options}
    return loader(corpus, sampler, crops, draws, **usual)


def in_batches(first: int, count: int, size: int = 4) -> list[np.ndarray]:
    return [np.arange(start, start + size) for start in range(first, first + count * size, size)]


def check_frames(batch: ClipBatch) -> None:
    """Every picture carries the number and the video that the batch says."""
    for clip, video, numbers in zip(batch.frames.cpu().numpy(), batch.videos, batch.frame_numbers, strict=True):
        assert [clips.read_number(picture) for picture in clip] == [(video, 100 + number) for number in numbers]


def facts(batch: ClipBatch) -> tuple[Any, ...]:
    """All that a batch says but its pixels and what it cost."""
    columns = (batch.numbers, batch.draws, batch.views, batch.videos, batch.frame_numbers, batch.pts_seconds)
    failures = [(failure.draw, failure.spare, failure.path) for failure in batch.count.failures]
    return *(column.tolist() for column in columns), batch.labels, failures


@pytest.mark.parametrize("device", DEVICES)
def test_the_cpu_loaders_batches(shared_corpus, device):
    """Of a corpus in which DALI decodes some videos and the CPU the others; batches and runs of changing size."""
    sizes = [4, 1, 9, 5, 5, 3, 8, 5]
    starts = np.cumsum([0, *sizes])
    draws = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    with (
        load(shared_corpus, draws, device=device, spans_per_run=4) as loader,
        load(shared_corpus, draws, loader=cpu.ClipLoader) as reference,
    ):
        pairs = list(zip(loader, reference, strict=True))
    assert [len(batch.draws) for batch, _ in pairs] == sizes
    for batch, expected in pairs:
        assert (batch.frames.dtype, batch.frames.device.type) == (torch.uint8, device.type)
        assert facts(batch) == facts(expected)
        check_frames(batch)
        assert batch.count.frames_used == expected.count.frames_used
        assert batch.count.repeated_frames == expected.count.repeated_frames
        assert batch.count.bytes_read == expected.count.bytes_read
        assert batch.count.packets_decoded == expected.count.packets_decoded
        assert (batch.count.spans, batch.count.clips) == (expected.count.spans, expected.count.clips)
    assert set(np.concatenate([batch.videos for batch, _ in pairs])) == set(range(len(VIDEOS)))
    assert loader.total.frames_decoded >= loader.total.frames_used > 0


def test_what_dali_decodes_here(shared_corpus):
    """VP8, VP9 and Motion JPEG: by DALI and by nobody else."""
    decoded_elsewhere = []
    decode = SpanReader.decode

    def recorded(self, cut, output, count):
        decoded_elsewhere.append(cut.clips[0].video)
        decode(self, cut, output, count)

    with pytest.MonkeyPatch.context() as patch, load(shared_corpus, in_batches(0, 12)) as loader:
        patch.setattr(SpanReader, "decode", recorded)
        videos = np.concatenate([batch.videos for batch in loader])
    assert sorted(decoded_elsewhere) == sorted(video for video in videos if video in (3, 5, 8))


def write_scene(path: Path, rotation: int = 0, **encoding: Any) -> None:
    def picture(number: int) -> np.ndarray:
        rows, columns = np.mgrid[:180, :240]
        waves = [
            np.sin((rows + 3 * number) / 25 + channel) + np.cos((columns - 2 * number) / 40) for channel in range(3)
        ]
        return (110 + 40 * np.stack(waves, axis=-1)).astype(np.uint8)

    clips.write_pictures(path, (picture(number) for number in range(30)), rotation=rotation, **encoding)


def test_nearly_the_cpu_loaders_pixels(tmp_path):
    """With crops and mirroring, turned videos, BT.709, and several views of a span."""
    (tmp_path / "videos").mkdir()
    for row, rotation in enumerate((0, 90, 180, 270)):
        write_scene(tmp_path / "videos" / f"{row}.mp4", rotation, codec="mjpeg", options={"qmin": "1", "qmax": "2"})
    quality = {"crf": "8", "b": "4M"}
    write_scene(tmp_path / "videos" / "4.mp4", codec="libvpx-vp9", options=quality)
    write_scene(tmp_path / "videos" / "5.mp4", codec="libvpx-vp9", options={**quality, "colorspace": "bt709"})
    index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    assert [corpus.video(row).facts.rotation for row in range(6)] == [0, 90, 180, 270, 0, 0]
    assert corpus.video(5).facts.colorspace == 1
    order = ClipOrder(views_per_span=2)
    options: dict[str, Any] = {"crops": AUGMENTED, "order": order, "resolution": 48}
    with (
        load(corpus, in_batches(0, 8), **options) as loader,
        load(corpus, in_batches(0, 8), loader=cpu.ClipLoader, resize="exact", **options) as exact,
        load(corpus, in_batches(0, 8), loader=cpu.ClipLoader, resize="fast", **options) as fast,
    ):
        batches = list(zip(loader, exact, fast, strict=True))
    assert {video for batch, _, _ in batches for video in batch.videos} == set(range(6))
    frames = [torch.cat([batch.frames for batch in column]).int() for column in zip(*batches, strict=True)]
    assert (frames[0] - frames[1]).abs().max() <= 2
    off = (frames[0] - frames[2]).abs().float()
    assert off.mean() <= 1.5
    assert off.flatten().kthvalue(int(off.numel() * 0.99)).values <= 8


@pytest.mark.gpu
@pytest.mark.parametrize("is_uncropped", [True, False])
def test_pictures_that_are_no_whole_blocks(is_uncropped, tmp_path):
    """Of the coded picture what the video shows, by its number and at its edges; JPEGs by the engines for them."""
    (tmp_path / "videos").mkdir()
    encodings: list[dict[str, Any]] = [
        {"gop": 12, "b_frames": 3},
        {"gop": 12, "codec": "libx265"},
        {"gop": 12, "rotation": 90},
        {"codec": "mjpeg"},
    ]
    for row, encoding in enumerate(encodings):
        path = tmp_path / "videos" / f"{row}.mp4"
        clips.write_numbered(path, 60, video_id=row, first_number=100, width=200, height=108, **encoding)
    index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    with (
        load(corpus, in_batches(0, 8), device="cuda", is_uncropped=is_uncropped) as loader,
        load(corpus, in_batches(0, 8), loader=cpu.ClipLoader, resize="exact") as exact,
    ):
        for batch, expected in zip(loader, exact, strict=True):
            assert facts(batch) == facts(expected)
            check_frames(batch)
            off = (batch.frames.cpu().short() - expected.frames.short()).abs().float()
            assert off.mean() <= 1
            assert off[:, :, [0, -1]].mean() <= 1.5
            assert off[:, :, :, [0, -1]].mean() <= 1.5
    assert not loader.taken_over


def test_resuming_half_way(shared_corpus):
    """Also where spans are reused, and some of their views were served before."""
    for order in (ClipOrder(), ClipOrder(views_per_span=3, pool_spans=6, lanes=2, seed=3)):
        options: dict[str, Any] = {"crops": AUGMENTED, "order": order}
        with load(shared_corpus, in_batches(0, 10), prefetch=1, **options) as loader:
            whole = list(loader)
        for first in (1, 6):
            with load(shared_corpus, in_batches(4 * first, 10 - first), threads=3, prefetch=3, **options) as loader:
                resumed = list(loader)
            assert len(resumed) == 10 - first
            for batch, expected in zip(resumed, whole[first:], strict=True):
                assert facts(batch) == facts(expected)
                assert torch.equal(batch.frames, expected.frames)


def test_several_views_of_a_span(shared_corpus):
    order = ClipOrder(views_per_span=4)
    with (
        load(shared_corpus, in_batches(0, 6, 8), order=order, spans_per_run=1) as loader,
        load(shared_corpus, in_batches(0, 6, 8), order=order, loader=cpu.ClipLoader) as reference,
    ):
        for batch, expected in zip(loader, reference, strict=True):
            assert facts(batch) == facts(expected)
            check_frames(batch)
            assert batch.views.tolist() == [0, 1, 2, 3] * 2
            assert batch.count.spans == 2


def test_a_batch_is_dalis_memory(shared_corpus, monkeypatch):
    """Where one run is a batch; and it stays as it is when the loader is gone."""
    handed_over = []
    from_dlpack = torch.from_dlpack

    def recorded(tensor: Any) -> torch.Tensor:
        handed_over.append(tensor.data_ptr())
        return from_dlpack(tensor)

    monkeypatch.setattr(torch, "from_dlpack", recorded)
    monkeypatch.setattr(dali, "jpegs_of", lambda window: None)  # all in one graph
    with load(shared_corpus, in_batches(0, 6)) as loader:
        batches = list(loader)
    assert [batch.frames.data_ptr() for batch in batches] == handed_over
    del loader
    gc.collect()
    for batch in batches:
        check_frames(batch)


def test_decoding_goes_on_while_nobody_waits(shared_corpus):
    taken = []

    def draws():
        for number in itertools.count():
            taken.append(number)
            yield np.arange(4) + 4 * number

    with load(shared_corpus, draws(), prefetch=3) as loader:
        for number in range(3):
            next(loader)
            assert len(taken) == number + 4
            for plan in loader._ahead:
                assert plan.block.clips.exception(timeout=60) is None


def test_runs_wait_in_dali_for_one_another(shared_corpus, monkeypatch):
    """So that its decoders have work when a run ends."""
    waiting, most = [0], [0]

    class SlowPipeline(DecodingPipeline):
        def submit(self, samples: Any) -> None:
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
            super().submit(samples)

        def result(self) -> list[torch.Tensor]:
            time.sleep(0.1)
            waiting[0] -= 1
            return super().result()

    monkeypatch.setattr(dali, "DecodingPipeline", SlowPipeline)
    with load(shared_corpus, in_batches(0, 12, 1), prefetch=4) as loader:
        for batch in loader:
            check_frames(batch)
    assert most[0] >= 3


def test_labels_and_inputs_of_a_graph_of_ones_own(shared_corpus):
    @pipeline_def(enable_conditionals=True)
    def darkened(device: str, views: int, resolution: int) -> tuple[DataNode, ...]:
        video = decode_windows(device)
        share = [view_input("share", view, types.FLOAT, 0) for view in range(views)]
        return tuple(fn.brightness(cut_view(video, view, resolution), brightness=share[view]) for view in range(views))

    class LabelledSampler(Sampler):
        def clips(self, draws: Any, *, view: int = 0, spare: int = 0) -> list[Clip]:
            return [replace(clip, label=f"draw {clip.draw}") for clip in super().clips(draws, view=view, spare=spare)]

    sampler = LabelledSampler(shared_corpus.frames, num_frames=FRAMES, stride=3, seed=7)

    def run(**options: Any) -> list[ClipBatch]:
        with ClipLoader(
            shared_corpus, sampler, WHOLE, in_batches(0, 6), resolution=64, device="cpu", threads=2, **options
        ) as loader:
            return list(loader)

    plain = run()
    dark = run(pipeline=darkened, inputs=lambda clip: {"share": np.float32(0.25 + 0.25 * (clip.draw % 2))})
    assert [batch.labels for batch in plain] == [[f"draw {draw}" for draw in batch.draws] for batch in plain]
    # What the CPU decoded takes the same way.
    assert {3, 5, 8} & set(np.concatenate([batch.videos for batch in plain]).tolist())
    for batch, darker in zip(plain, dark, strict=True):
        assert facts(batch) == facts(darker)
        shares = torch.from_numpy(0.25 + 0.25 * (batch.draws % 2))[:, None, None, None, None]
        assert (batch.frames * shares - darker.frames).abs().max() <= 0.5


def harm(corpus: Corpus, row: int) -> None:
    """Overwrites the beginning of every payload but the first GOP's, which no decoder takes."""
    video, gops = corpus.video(row).facts, corpus.gops(row)
    data = bytearray(Path(video.path).read_bytes())
    packets = gops.packets[int(gops.first_packet[1]) : int(gops.first_packet[-1] + gops.num_packets[-1])]
    for offset, size in zip(packets.offset.tolist(), packets.size.tolist(), strict=True):
        assert offset > 0
        length = min(size, 200)
        data[offset : offset + length] = b"\xff" * length
    Path(video.path).write_bytes(data)
    os.utime(video.path, ns=(0, video.mtime_ns))


DAMAGED = 1


@pytest.fixture
def damaged_corpus(tmp_path) -> Corpus:
    encoding = {"gop": 12, "codec": "libvpx-vp9"}
    corpus = build_corpus(tmp_path, [(f"{row}.mp4", 60, encoding) for row in range(4)])
    harm(corpus, DAMAGED)
    return corpus


@pytest.mark.parametrize("spans_per_run", [1, 3, 8])
def test_windows_that_do_not_decode_are_replaced(damaged_corpus, spans_per_run, caplog):
    """As by the CPU's loader; all other clips keep their places, those queued behind the failure as well."""
    with load(damaged_corpus, in_batches(0, 10), loader=cpu.ClipLoader, failure_budget=1) as loader:
        expected = list(loader)
    assert {failure.path for failure in loader.total.failures} == {damaged_corpus.video(DAMAGED).facts.path}
    options: dict[str, Any] = {"prefetch": 3, "spans_per_run": spans_per_run, "failure_budget": 1}
    with load(damaged_corpus, in_batches(0, 10), **options) as loader:
        batches = list(loader)
    for batch, wanted in zip(batches, expected, strict=True):
        assert facts(batch) == facts(wanted)
        check_frames(batch)
        assert batch.count.bytes_read >= wanted.count.bytes_read
        assert batch.count.spans == 4
    assert loader.total.failures
    assert "1.mp4: decoded on the CPU from now on, as DALI does not: Assert on" in caplog.text


def test_files_that_cannot_be_read_are_replaced(damaged_corpus):
    Path(damaged_corpus.video(2).facts.path).unlink()
    with (
        load(damaged_corpus, in_batches(0, 10), failure_floor=1000) as loader,
        load(damaged_corpus, in_batches(0, 10), loader=cpu.ClipLoader, failure_floor=1000) as reference,
    ):
        for batch, wanted in zip(loader, reference, strict=True):
            assert facts(batch) == facts(wanted)
            check_frames(batch)
    assert any("restore the file" in failure.reason for failure in loader.total.failures)


def test_the_budget_ends_the_run_with_the_reasons(damaged_corpus):
    options: dict[str, Any] = {"failure_budget": 0.01, "failure_floor": 2}
    with load(damaged_corpus, in_batches(0, 100), **options) as loader:
        with pytest.raises(VideoError, match="above the budget of 1%, in 1 videos"):
            list(loader)
        assert list(loader) == []
    assert threads_alive() == 0


def test_a_draw_without_replacement_is_left_out(damaged_corpus):
    class Once(Sampler):
        max_spares = 0

    sampler = Once(damaged_corpus.frames, num_frames=FRAMES, stride=3, seed=7)
    options: dict[str, Any] = {"resolution": 64, "threads": 2, "failure_budget": 1}
    with (
        ClipLoader(damaged_corpus, sampler, WHOLE, in_batches(0, 10), device="cpu", **options) as loader,
        cpu.ClipLoader(damaged_corpus, sampler, WHOLE, in_batches(0, 10), **options) as reference,
    ):
        sizes = []
        for batch, wanted in zip(loader, reference, strict=True):
            assert facts(batch) == facts(wanted)
            check_frames(batch)
            sizes.append(len(batch.draws))
    assert sum(sizes) == 40 - len(loader.total.failures) < 40


def test_what_only_dali_fails_at_goes_to_the_cpu_for_good(shared_corpus, monkeypatch):
    """Every window of two videos makes DALI fail; the CPU decodes them, and DALI is not asked twice about a video."""
    monkeypatch.setitem(dali_codecs.DECODABLE["cpu"], "h264", None)
    monkeypatch.setitem(dali_codecs.DECODABLE["cpu"], "hevc", None)
    built = []
    init = DecodingPipeline.__init__

    def counted(self, *args, **options):
        built.append(1)
        init(self, *args, **options)

    monkeypatch.setattr(DecodingPipeline, "__init__", counted)
    with (
        load(shared_corpus, in_batches(0, 20), prefetch=1) as loader,
        load(shared_corpus, in_batches(0, 20), loader=cpu.ClipLoader) as reference,
    ):
        for batch, wanted in zip(loader, reference, strict=True):
            assert facts(batch) == facts(wanted)
            check_frames(batch)
    assert loader._unfit == {3, 5, 8}
    assert not loader.total.failures
    # Two windows of a video may be on their way when the first one fails, in two batches ahead.
    assert 3 < len(built) < 60


def test_a_run_that_fails_throughout_builds_few_pipelines(tmp_path, monkeypatch):
    """32 windows, none of which DALI decodes: after three videos the kind is the CPU's, what is queued for DALI too."""
    corpus = build_corpus(tmp_path, [(f"{row}.webm", 60, {"gop": 12, "codec": "libvpx-vp9"}) for row in range(6)])
    built = []

    class FailingPipeline(DecodingPipeline):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            built.append(1)
            self.fails: deque[bool] = deque()

        def submit(self, samples: Any) -> None:
            self.fails.append(any(sample.window is not None for sample in samples))
            super().submit(samples)

        def result(self) -> list[torch.Tensor]:
            if self.fails.popleft():
                raise RuntimeError("encountered:\n\nsomething that it does not say of which window")
            return super().result()

    monkeypatch.setattr(dali, "DecodingPipeline", FailingPipeline)
    options: dict[str, Any] = {"spans_per_run": 32, "prefetch": 1}
    with (
        load(corpus, in_batches(0, 3, 32), **options) as loader,
        load(corpus, in_batches(0, 3, 32), loader=cpu.ClipLoader) as reference,
    ):
        for batch, wanted in zip(loader, reference, strict=True):
            assert facts(batch) == facts(wanted)
            check_frames(batch)
    (facts_of_one,) = {Kind.of(corpus.video(row).facts) for row in range(6)}
    assert facts_of_one in loader._unfit
    # Five halvings to the first window, two of its neighbours at worst by as many again.
    assert len(built) <= 16


def test_where_dali_does_not_start_nothing_is_left_behind(shared_corpus, monkeypatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to load libnvcuvid.so")

    monkeypatch.setattr(dali, "DecodingPipeline", broken)
    with pytest.raises(RuntimeError, match="libnvcuvid"):
        load(shared_corpus, in_batches(0, 2))
    assert threads_alive() == 0


def test_a_kind_of_video_that_the_gpu_refuses_is_not_tried_again(shared_corpus, monkeypatch):
    class RefusingPipeline(DecodingPipeline):
        """Refuses every run with an MP4, which of this corpus is Motion JPEG."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.refused: deque[bool] = deque()

        def submit(self, samples: Any) -> None:
            windows = [sample.window for sample in samples if sample.window is not None]
            self.refused.append(any(window[4:8].tobytes() == b"ftyp" for window in windows))
            super().submit(samples)

        def result(self) -> list[torch.Tensor]:
            if self.refused.popleft():
                raise RuntimeError("encountered:\n\nCodec configuration not supported on this GPU. Codec: JPEG")
            return super().result()

    monkeypatch.setattr(dali, "DecodingPipeline", RefusingPipeline)
    monkeypatch.setattr(dali, "jpegs_of", lambda window: None)
    with load(shared_corpus, in_batches(0, 10)) as loader:
        for batch in loader:
            check_frames(batch)
    assert loader._unfit == {Kind("mjpeg", "yuvj420p", 160, 160)}


def test_an_error_of_the_graph_itself_ends_the_run(shared_corpus):
    @pipeline_def(enable_conditionals=True)
    def broken(device: str, views: int, resolution: int) -> tuple[DataNode, ...]:
        video = decode_windows(device)
        clip = cut_view(video, 0, resolution)
        return (fn.slice(clip, 0, 2 * resolution, axes=(1,)),)

    with load(shared_corpus, in_batches(0, 3), pipeline=broken) as loader:
        with pytest.raises(RuntimeError, match=r"(?i)out of bounds"):
            next(loader)
        assert next(loader, None) is None
    assert threads_alive() == 0


def window_of(corpus: Corpus, row: int) -> Window:
    reader = WindowReader(corpus.video(row).facts)
    window = reader.window(np.arange(2), corpus.gops(row))
    reader.close()
    return window


def test_what_a_gpu_is_trusted_with(shared_corpus):
    cuda = torch.device("cuda")
    h264, hevc = window_of(shared_corpus, 3), window_of(shared_corpus, 8)

    def has(window: Window, **changes: Any) -> bool:
        return can_decode(replace(window, video=replace(window.video, **changes)), cuda)

    assert has(h264)
    assert has(hevc, pix_fmt="yuv420p10le")
    assert not has(h264, pix_fmt="yuv420p10le")
    assert not has(h264, pix_fmt="yuv422p")
    assert not has(h264, header=b"")
    assert not can_decode(replace(h264, idr=False), cuda)
    assert can_decode(replace(hevc, idr=False), cuda)
    assert not has(h264, codec="mjpeg", pix_fmt="yuvj420p")
    assert not has(h264, codec="av1")
    # Pictures that are not shown would count as frames.
    assert has(window_of(shared_corpus, 0))
    shown = window_of(shared_corpus, 1)
    assert has(replace(shown, shows=np.ones_like(shown.shows)))
    assert not has(replace(shown, shows=np.arange(len(shown.shows)) > 0))
    hidden = window_of(shared_corpus, 4)
    assert any(payload[-1] & 0xE0 == 0xC0 for payload in hidden.payloads) == (not has(hidden))
    assert not has(replace(hidden, payloads=[memoryview(b"\x80\xc1")]))


def test_the_gpu_of_the_calling_thread_is_meant(shared_corpus, monkeypatch):
    """CUDA's current device belongs to a thread; DALI's pipeline is built in another."""
    asked, devices = [], []

    def current_device() -> int:
        asked.append(threading.current_thread())
        return 3

    class NoPipeline:
        def __init__(self, *_: Any, device: torch.device, stream: Any, **__: Any) -> None:
            devices.append(device)
            assert stream == (None if device.type == "cpu" else f"stream of {device}")

        def close(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "current_device", current_device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(dali, "DecodingPipeline", NoPipeline)
    for name in ("cuda", "cuda:1", "cpu"):
        load(shared_corpus, [], device=name).close()
    assert devices == [torch.device("cuda:3"), torch.device("cuda:1"), torch.device("cpu")]
    assert asked == [threading.current_thread()]


def threads_alive() -> int:
    return sum(thread.name.startswith(("decode", "window")) for thread in threading.enumerate())


def held() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def test_closing_early_leaves_nothing_behind(shared_corpus):
    for _ in load(shared_corpus, in_batches(0, 2)):
        pass
    before = held()
    for batches in (0, 1, 3):
        with load(shared_corpus, (np.arange(4) + 4 * n for n in itertools.count()), threads=3, prefetch=4) as loader:
            for _ in range(batches):
                next(loader)
        assert threads_alive() == 0
        assert held() == before
        assert next(loader, None) is None
        loader.close()


def test_an_error_in_a_reading_thread_closes_the_loader(shared_corpus, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("no video's fault")

    monkeypatch.setattr(SpanReader, "cut", broken)
    loader = load(shared_corpus, in_batches(0, 3))
    with pytest.raises(ZeroDivisionError, match="no video's fault"):
        next(loader)
    assert (threads_alive(), next(loader, None)) == (0, None)


def test_threads_that_stand_back(shared_corpus):
    """DALI's threads, too; they are named in brackets."""

    def niceness() -> dict[str, int]:
        found = {}
        for task in Path("/proc/self/task").iterdir():
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            found[f"{name} {task.name}"] = int(rest.split()[16])
        return {name: nice for name, nice in found.items() if name.startswith(("[DALI]", "window", "decode"))}

    own = os.getpriority(os.PRIO_PROCESS, 0)
    for background in (False, True):
        with load(shared_corpus, in_batches(0, 4), background=background) as loader:
            next(loader)
            found = niceness()
        assert sum(name.startswith("[DALI]") for name in found) >= 2
        assert set(found.values()) == {own + 5 * background}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [200, pytest.param(4000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_memory_and_descriptors_stay_flat(shared_corpus, damaged_corpus, count):
    """With windows that fail among them: those take other paths out."""
    descriptors = tasks = memory = 0
    for corpus in (shared_corpus, damaged_corpus):
        with load(corpus, in_batches(0, count // 2, 2), failure_budget=1) as loader:
            for _ in itertools.islice(loader, count // 8):
                loader._unfit.clear()  # so that DALI goes on failing
            (descriptors, tasks), memory = held(), resident_bytes()
            for _ in loader:
                loader._unfit.clear()
            now = held()
            growth = resident_bytes() - memory
        assert now[0] <= descriptors
        assert now[1] <= tasks + 2
        print(f"\n{count * 3 // 4} clips: resident memory grew by {growth / 1e6:.1f} MB")
        assert growth < 24e6


def test_what_cannot_be_is_refused(shared_corpus):
    impossible: list[dict[str, Any]] = [{"decoders": 0}, {"spans_per_run": 0}]
    for options in impossible:
        with pytest.raises(ValueError, match="decoders and spans_per_run must be at least 1"):
            load(shared_corpus, [], **options)
    with pytest.raises(ValueError, match="DALI decodes on cpu or cuda, not on meta"):
        load(shared_corpus, [], device="meta")
    with pytest.raises(ValueError, match="prefetch and threads must be at least 1"):
        load(shared_corpus, [], prefetch=0)
