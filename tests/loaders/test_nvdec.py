"""The loader on open decoder sessions delivers the CPU loader's batches: same clips, frames, order and spares, nearly the same
pixels. Here on a stand-in for the library; on a GPU on the library itself."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

import clips
import numpy as np
import pytest
import torch
from nvdec_stand_in import StandIn

from trocar.loaders import choose as choosing
from trocar.loaders import cpu, nvdec
from trocar.loaders.choose import LoaderChoice, choose_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.decode.nvdec_session import SessionError, Sessions, can_decode
from trocar.loaders.decode.span import SpanReader
from trocar.loaders.decode.threads import LoaderError
from trocar.loaders.draw.augment import Box, Crop, CropRecipe
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.nvdec import ClipLoader
from trocar.loaders.video.video import Kind
from trocar.loaders.video.window import WindowReader

pytestmark = pytest.mark.timeout(120)

FRAMES = 6
# name, encoding; the place of a name is the video's id and its row. Sizes differ, some within a session's kind, some by few pixels.
VIDEOS: list[tuple[str, dict[str, Any]]] = [
    ("0.mp4", {"gop": 12, "b_frames": 3, "width": 160, "height": 96}),
    ("1.mp4", {"gop": 24, "b_frames": 3, "width": 192, "height": 128}),
    ("2.mkv", {"gop": 24, "codec": "libx265", "b_frames": 3, "width": 160, "height": 96}),
    ("3.mp4", {"gop": 12, "width": 164, "height": 98}),
    ("4.ts", {"gop": 12, "b_frames": 2, "width": 160, "height": 100}),
    ("5.avi", {"gop": 12, "codec": "mpeg4", "width": 160, "height": 96}),
    ("6.webm", {"gop": 24, "codec": "libvpx", "width": 160, "height": 96}),
    ("7.webm", {"gop": 24, "codec": "libvpx-vp9", "hidden_frames": True, "width": 160, "height": 96}),
    ("8.mp4", {"gop": 12, "b_frames": 2, "rotation": 90, "width": 160, "height": 96}),
    ("9.mkv", {"gop": 12, "codec": "libx265", "pix_fmt": "yuv420p10le", "width": 160, "height": 96}),
]
LEFT_TO_THE_CPU = {7}
VP8 = Kind("vp8", "yuv420p", 160, 96)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("nvdec")
    (folder / "videos").mkdir()
    for row, (name, encoding) in enumerate(VIDEOS):
        clips.write_numbered(folder / "videos" / name, 36, video_id=row, first_number=100, **encoding)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, progress=False)
    return Corpus.open(folder / "corpus")


def sampler_of(corpus: Corpus) -> Sampler:
    return Sampler(corpus.frames, num_frames=FRAMES, stride=3, seed=4)


class Whole:
    """Crops that are the whole picture, whose number can be read."""

    def crop(self, content: Box, *, seed: int, draw: int, view: int = 0) -> Crop:
        return Crop(content, False)


WHOLE = Whole()


def load(corpus: Corpus, loader: Any, batches: int, size: int = 10, **options: Any) -> Any:
    draws = [np.arange(first, first + size) for first in range(0, batches * size, size)]
    crops = options.pop("crops", WHOLE)
    usual: dict[str, Any] = {"resolution": 64, "device": "cpu", "threads": 2, "content_box": False, **options}
    return loader(corpus, sampler_of(corpus), crops, draws, **usual)


def facts(batch: ClipBatch) -> tuple[Any, ...]:
    """All that a batch says but its pixels and what it cost."""
    columns = (batch.numbers, batch.draws, batch.views, batch.videos, batch.frame_numbers, batch.pts_seconds)
    failures = [(failure.draw, failure.spare, failure.path, failure.reason) for failure in batch.count.failures]
    return *(column.tolist() for column in columns), batch.labels, failures


def check_frames(batch: ClipBatch) -> int:
    """Every picture carries the number and the video that the batch says. Returns how many clips there were."""
    for clip, video, numbers in zip(batch.frames.cpu().numpy(), batch.videos, batch.frame_numbers, strict=True):
        assert [clips.read_number(picture) for picture in clip] == [(video, 100 + number) for number in numbers]
    return len(batch.videos)


@pytest.mark.parametrize("calls", ["packet", "window"])
def test_the_cpu_loaders_batches(corpus: Corpus, calls: str) -> None:
    library = StandIn()
    augmented = CropRecipe((0.3, 1), (0.75, 1.33), 0.5)
    order = ClipOrder(views_per_span=2, seed=3)
    checked = 0
    for crops, views in ((WHOLE, None), (augmented, order)):
        options: dict[str, Any] = {"crops": crops, "order": views}
        with (
            load(corpus, ClipLoader, 2, library=library, calls=calls, **options) as loader,
            load(corpus, cpu.ClipLoader, 2, resize="exact", **options) as reference,
        ):
            for batch, expected in zip(loader, reference, strict=True):
                assert facts(batch) == facts(expected)
                assert (batch.count.packets_decoded, batch.count.frames_used) == (
                    expected.count.packets_decoded,
                    expected.count.frames_used,
                )
                difference = (batch.frames.short() - expected.frames.short()).abs()
                assert difference.max() <= 1
                checked += 0 if views else check_frames(batch)
            assert loader.taken_over == {}
    assert checked == 20


def test_sessions_stay_open(corpus: Corpus) -> None:
    """A session a thread and kind, however many windows; what the CPU is left is left to it."""
    library, on_cpu, decode = StandIn(), set(), SpanReader.decode

    def recorded(self, cut, output, count):
        on_cpu.add(cut.clips[0].video)
        decode(self, cut, output, count)

    with pytest.MonkeyPatch.context() as patch, load(corpus, ClipLoader, 5, threads=1, library=library) as loader:
        patch.setattr(SpanReader, "decode", recorded)
        assert sum(len(batch.videos) for batch in loader) == 50
        # H.264 of multiples of 32, of 164x98 and of 160x100; HEVC of 8 and 10 bits; MPEG-4; VP8.
        assert loader.sessions_opened == library.decoders == 7
    assert on_cpu == LEFT_TO_THE_CPU
    assert library.windows > 40


def test_few_calls_take_a_window_each(corpus: Corpus) -> None:
    calls = {}
    for way in ("packet", "window"):
        library = StandIn()
        with load(corpus, ClipLoader, 1, library=library, calls=way) as loader:
            list(loader)
        calls[way] = library.calls / library.windows
    assert calls["window"] < 0.5 * calls["packet"]


@pytest.mark.parametrize("fault", ["error", "missing", "endless", "dead"])
def test_a_window_that_a_session_fails_at_costs_no_clip(corpus: Corpus, fault: Any, caplog) -> None:
    library = StandIn({5: fault, 9: fault})
    with (
        load(corpus, ClipLoader, 2, library=library, threads=1, calls="window", on_cpu=[VP8]) as loader,
        load(corpus, cpu.ClipLoader, 2) as reference,
        caplog.at_level(logging.WARNING, "trocar.loaders"),
    ):
        for batch, expected in zip(loader, reference, strict=True):
            assert facts(batch) == facts(expected)
            check_frames(batch)
        assert len(loader.taken_over) == 2
        assert loader.total.failures == []
    assert library.decoders <= 7 + 2
    words = {
        "error": "Decode Error",
        "missing": "pictures did not come out",
        "endless": "more than the",
        "dead": "CUDA_ERROR_INVALID_HANDLE",
    }
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all(words[fault] in message and "CPU from now on" in message for message in told)


@pytest.mark.slow
def test_what_fails_again_and_again_is_the_cpus(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video after one window, its kind after a few; nothing at all where the kinds are the CPU's from the start."""
    kinds = [Kind.of(corpus.video(row).facts) for row in range(len(corpus))]
    videos = len(VIDEOS) - len(LEFT_TO_THE_CPU)
    for rescues, on_cpu, windows in ((3, (), videos), (1, (), len(set(kinds)) - len(LEFT_TO_THE_CPU)), (1, kinds, 0)):
        monkeypatch.setattr(nvdec, "RESCUES_PER_KIND", rescues)
        library = StandIn(dict.fromkeys(range(100), "error"))
        with load(corpus, ClipLoader, 3, library=library, threads=1, on_cpu=on_cpu) as loader:
            assert set(np.concatenate([batch.videos for batch in loader])) == set(range(len(VIDEOS)))
        assert library.windows == windows


def test_a_clip_that_no_decoder_reads_is_replaced_as_on_the_cpu(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packets of one video are garbage: the same spares as the CPU's loader, and no word against NVDEC."""
    window = WindowReader.window

    def damaged(self, frames, gops):
        found = window(self, frames, gops)
        if not self.video.path.endswith("1.mp4"):
            return found
        return replace(found, payloads=[memoryview(b"\0" * len(payload)) for payload in found.payloads])

    monkeypatch.setattr(WindowReader, "window", damaged)
    options: dict[str, Any] = {"failure_floor": 1000}
    with (
        load(corpus, ClipLoader, 3, library=StandIn(), **options) as loader,
        load(corpus, cpu.ClipLoader, 3, **options) as reference,
    ):
        for batch, expected in zip(loader, reference, strict=True):
            assert facts(batch) == facts(expected)
            check_frames(batch)
        assert len(loader.total.failures) >= 2
        assert loader.taken_over == {}


def test_a_session_that_hangs_is_named(corpus: Corpus) -> None:
    library = StandIn({3: "blocked"})
    with (
        pytest.raises(LoaderError, match=r"nvdec_\d does not come on .*draw \d"),
        load(corpus, ClipLoader, 3, library=library, clip_timeout=1.0) as loader,
    ):
        list(loader)
    library.unblocked.set()


def test_sessions_are_few_and_the_oldest_goes(corpus: Corpus) -> None:
    library = StandIn()
    sessions = Sessions(library, torch.device("cpu"), "packet", limit=2)
    windows = []
    for row in (0, 2, 0, 5, 2, 0):  # H.264, HEVC, MPEG-4
        with pytest.MonkeyPatch.context():
            reader = WindowReader(corpus.video(row).facts)
            windows.append(reader.window(np.array([3, 7]), corpus.gops(row)))
            reader.close()
    opened = []
    for window in windows:
        pictures = sessions.pictures(window)
        assert (pictures.shape, pictures.dtype) == ((2, 144, 160), torch.uint8)
        opened.append(sessions.opened)
    assert opened == [1, 2, 2, 3, 4, 5]
    assert all(can_decode(window) for window in windows)
    sessions.close()


def test_a_library_that_opens_nothing(corpus: Corpus) -> None:
    class Broken(StandIn):
        def CreateDecoder(self, **settings: Any) -> Any:  # noqa: N802
            raise RuntimeError("Codec not supported on this GPU")

    sessions = Sessions(Broken(), torch.device("cpu"), "packet")
    reader = WindowReader(corpus.video(0).facts)
    with pytest.raises(SessionError, match="no session could be opened: Codec not supported"):
        sessions.pictures(reader.window(np.array([3]), corpus.gops(0)))
    reader.close()


def test_threads_and_sessions_end_with_the_loader(corpus: Corpus) -> None:
    before = set(threading.enumerate())  # of which some, of other tests, may end meanwhile
    loader = load(corpus, ClipLoader, 5, library=StandIn(), threads=3)
    next(loader)
    assert set(threading.enumerate()) - before
    loader.close()
    assert not set(threading.enumerate()) - before


def test_refused_without_the_package_or_a_gpu(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    with pytest.raises(ValueError, match="'nvdec' decodes on cuda, not on cpu"):
        load(corpus, ClipLoader, 1)
    with pytest.raises(ValueError, match="'nvdec' decodes on cuda, not on cpu"):
        choose(corpus, torch.device("cpu"))
    monkeypatch.setattr(choosing, "find_spec", lambda name: None)
    for make in (nvdec.nvdec_library, lambda device: choose(corpus, device)):
        with pytest.raises(ImportError, match=r"PyNvVideoCodec is not installed; .*'\.\[nvdec\]'"):
            make(gpu)
    monkeypatch.setattr(choosing, "find_spec", lambda name: name)

    def no_driver(name: str) -> Any:
        raise RuntimeError("libnvcuvid.so.1: cannot open shared object file\n\n=== TROUBLESHOOTING STEPS ===")

    monkeypatch.setattr(nvdec, "import_module", no_driver)
    with pytest.raises(
        ImportError, match=r"cannot be used here: libnvcuvid\.so\.1: cannot open shared object file; give the"
    ):
        nvdec.nvdec_library(gpu)


def choose(corpus: Corpus, device: torch.device) -> LoaderChoice:
    options: Any = {"threads": 2, "content_box": False}
    return choose_loader(
        "nvdec", corpus, sampler_of(corpus), WHOLE, resolution=64, device=device, options=options, workers=3
    )


def test_it_is_chosen_by_name(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "require_nvdec", lambda device: None)
    chosen = choose(corpus, torch.device("cpu"))
    assert (chosen.name, chosen.reason) == ("nvdec", "as asked for")
    with chosen.open([np.arange(4)], library=StandIn()) as loader:
        assert isinstance(loader, ClipLoader)
        assert check_frames(next(loader)) == 4


@pytest.mark.gpu
@pytest.mark.parametrize(("calls", "batches"), [("packet", 200), ("window", 20)])
def test_two_thousand_windows_on_nvdec(corpus: Corpus, calls: str, batches: int) -> None:
    """Frame identity of every codec on the card, and pixels near those of the CPU's exact resize."""
    pytest.importorskip("PyNvVideoCodec", reason="needs PyNvVideoCodec: pip install '.[nvdec]'")
    seen, compared = set(), 0
    with (
        load(corpus, ClipLoader, batches, device="cuda", threads=8, calls=calls) as loader,
        load(corpus, cpu.ClipLoader, 20, resize="exact", threads=4) as reference,
    ):
        for batch in loader:
            check_frames(batch)
            seen |= set(batch.videos.tolist())
            if (expected := next(reference, None)) is not None:
                assert facts(batch) == facts(expected)
                difference = (batch.frames.cpu().short() - expected.frames.short()).abs()
                assert difference.max() <= 1  # decoders agree to the bit
                compared += 1
        assert loader.taken_over == {}
        assert loader.sessions_opened <= 8 * 7
    assert seen == set(range(len(VIDEOS)))
    assert compared == 20
