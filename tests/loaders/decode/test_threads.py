"""A thread that dies or hangs while it decodes: an error that names the clip, within seconds, and a process that ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest

from trocar.loaders import cpu
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.decode.span import SpanReader
from trocar.loaders.decode.threads import LoaderError, Threads
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video.storage import StoredFile

pytestmark = pytest.mark.timeout(120)

CROPS = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    for row in range(3):
        clips.write_numbered(folder / f"{row}.mp4", 60, video_id=row, gop=12, codec="libvpx-vp9")
    index_corpus([folder], folder / "index", workers=1, content_box=False, progress=False)
    return Corpus.open(folder / "index")


def load(kind: Any, corpus: Corpus, **options: Any) -> Any:
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=1)
    numbers = [np.arange(first, first + 4) for first in range(0, 12, 4)]
    return kind(corpus, sampler, CROPS, numbers, resolution=32, threads=2, device="cpu", **options)


def dali_loader() -> Any:
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")
    from trocar.loaders import dali

    return dali.ClipLoader


KINDS = {"cpu": lambda: cpu.ClipLoader, "dali": dali_loader}


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a thread may wait for until the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fatal", [SystemExit(3), GeneratorExit()], ids=lambda error: type(error).__name__)
def test_a_thread_that_dies_is_an_error_that_names_the_clip(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, kind: str, fatal: BaseException
) -> None:
    cut = SpanReader.cut

    def dies(self: SpanReader, wanted: Any, count: Any) -> Any:
        found = cut(self, wanted, count)
        if wanted[0].draw == 6:
            raise fatal
        return found

    monkeypatch.setattr(SpanReader, "cut", dies)
    before = set(threading.enumerate())
    started = time.monotonic()
    with load(KINDS[kind](), corpus) as loader:
        next(loader)
        with pytest.raises(
            LoaderError, match=r"ended with (SystemExit|GeneratorExit).*: draw 6, from frame \d+ on of /"
        ):
            list(loader)
    assert time.monotonic() - started < 20
    assert not {thread for thread in threading.enumerate() if thread.is_alive()} - before


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_that_hangs_is_an_error_that_names_the_clip(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, never: threading.Event, kind: str
) -> None:
    read, hung = StoredFile.read, corpus.video_path(1)

    def hangs(self: StoredFile, start: int, stop: int) -> bytes:
        if self.video.path == hung:
            never.wait()
        return read(self, start, stop)

    monkeypatch.setattr(StoredFile, "read", hangs)
    started = time.monotonic()
    with (
        load(KINDS[kind](), corpus, clip_timeout=1.0) as loader,
        pytest.raises(
            LoaderError, match=rf"does not come on for 1 s \(clip_timeout\): draw \d+.* of {hung}; see whether"
        ),
    ):
        list(loader)
    assert time.monotonic() - started < 20


def test_dali_that_hangs_is_an_error(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, never: threading.Event) -> None:
    kind = dali_loader()
    from trocar.loaders.decode.dali_decoder import DecodingPipeline

    result, calls = DecodingPipeline.result, iter(range(100))

    def hangs(self: DecodingPipeline) -> Any:
        if next(calls) == 1:
            never.wait()
        return result(self)

    monkeypatch.setattr(DecodingPipeline, "result", hangs)
    with (
        load(kind, corpus, clip_timeout=1.0) as loader,
        pytest.raises(LoaderError, match=r"decode_0 does not come on for 1 s.*: DALI decodes draws 4 to 7"),
    ):
        list(loader)


def test_a_slow_thread_is_left_alone(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each clip takes less than the limit, all together far more; waiting for others is nobody's fault."""
    cut = SpanReader.cut

    def slow(self: SpanReader, wanted: Any, count: Any) -> Any:
        time.sleep(0.3)
        return cut(self, wanted, count)

    monkeypatch.setattr(SpanReader, "cut", slow)
    for kind in KINDS.values():
        with load(kind(), corpus, clip_timeout=1.0) as loader:
            assert [batch.numbers.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_stands_in_its_range(corpus: Corpus, kind: str) -> None:
    """Every span on the CPU, every run of spans with DALI; for profilers."""
    entered: list[str] = []

    @contextmanager
    def named() -> Iterator[None]:
        entered.append(threading.current_thread().name)
        yield

    with load(KINDS[kind](), corpus) as loader:
        loader.decoding_range = named
        assert len(list(loader)) == 3
    assert len(entered) == {"cpu": 12, "dali": 3}[kind]
    assert all(name.startswith("decode_") for name in entered)


def test_threads_that_cannot_begin() -> None:
    def refuse() -> None:
        raise PermissionError("no such priority")

    threads = Threads(2, "decode", refuse)
    future = threads.submit(str, int)
    for thread in (worker.thread for worker in threads._workers):
        thread.join(10)
    with pytest.raises(LoaderError, match=r"decode_0 ended with PermissionError\('no such priority'\)"):
        threads.check(0.1, None)
    assert threads.close() == set()
    assert future.cancelled()


def test_jobs_come_back_in_order_and_threads_end_when_dropped() -> None:
    before = set(threading.enumerate())
    threads = Threads(3, "decode")

    def fail(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    futures = [threads.submit(str, fail, number) for number in range(20)]
    assert [future.result(10) for number, future in enumerate(futures) if number != 5] == [
        number for number in range(20) if number != 5
    ]
    with pytest.raises(ValueError, match="five"):
        futures[5].result(10)
    started = [worker.thread for worker in threads._workers]
    del threads
    for thread in started:
        thread.join(10)
    assert set(threading.enumerate()) <= before


def test_stopped_time_does_not_count() -> None:
    """What counts is how often somebody looked, not the clock: a process that was stopped for an hour goes on."""
    threads, go_on = Threads(1, "decode"), threading.Event()
    future = threads.submit(lambda thread: "a clip", go_on.wait)
    wait_until(lambda: threads._workers[0].account is not None)
    for _ in range(10):
        threads.check(0.1, limit=1.0)
    threads.check(0.1, limit=2.0)
    with pytest.raises(LoaderError, match=r"decode_0 does not come on for 1 s .*: a clip;"):
        threads.check(0.1, limit=1.0)
    go_on.set()
    assert future.result(10)
    assert threads.close(10) == set()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_whose_thread_hangs_ends(corpus: Corpus) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        import numpy as np
        from trocar.loaders.draw.augment import CropRecipe
        from trocar.loaders.corpus.corpus import Corpus
        from trocar.loaders.cpu import ClipLoader
        from trocar.loaders.draw.sampler import Sampler
        from trocar.loaders.video.storage import StoredFile

        StoredFile.read = lambda *_: time.sleep(10_000)
        corpus = Corpus.open(sys.argv[1])
        sampler = Sampler(corpus.frames, num_frames=4, stride=2)
        with ClipLoader(corpus, sampler, CropRecipe(), [np.arange(4)], resolution=32, threads=2, clip_timeout=0.5) as loader:
            next(loader)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(corpus.path))], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "LoaderError: the thread decode_" in done.stderr
