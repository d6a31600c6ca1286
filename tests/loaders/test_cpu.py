"""The CPU loader delivers the sampler's clips in the sampler's order, whatever its threads do and whatever the files suffer."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
import torch

from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.decode import span
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video.video import VideoError
from trocar.loaders.video.window import WindowReader

pytestmark = pytest.mark.timeout(120)

FRAMES = 8
# name, coded frames, encoding; the rank of a name is the video's id and its row.
VIDEOS: list[tuple[str, int, dict[str, Any]]] = [
    ("0.mp4", 90, {"gop": 12, "b_frames": 3, "open_gop": True}),
    ("1.mkv", 90, {"gop": 30, "codec": "libx265", "b_frames": 3}),
    ("2.ts", 90, {"gop": 12, "b_frames": 2}),
    ("3.webm", 90, {"gop": 30, "codec": "libvpx", "hidden_frames": True}),
    ("4.avi", 90, {"gop": 12, "codec": "mpeg4"}),
    ("5.mp4", 90, {"gop": 250}),
    ("6.mkv", 90, {"gop": 30, "pix_fmt": "yuv420p10le", "variable_rate": True}),
    ("7.mp4", 97, {"gop": 12, "first_tick": -7, "b_frames": 3}),
    ("8.webm", 90, {"gop": 12, "codec": "libvpx-vp9", "hidden_frames": True}),
    ("9.mp4", 5, {"gop": 12}),
]
SHORT = 9


def build_corpus(folder: Path, videos: list[tuple[str, int, dict[str, Any]]] = VIDEOS) -> Corpus:
    (folder / "videos").mkdir(parents=True)
    for row, (name, frames, encoding) in enumerate(videos):
        first_number = 100 + min(0, encoding.get("first_tick", 0))
        clips.write_numbered(folder / "videos" / name, frames, video_id=row, first_number=first_number, **encoding)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, progress=False)
    return Corpus.open(folder / "corpus")


@pytest.fixture(scope="module")
def shared_corpus(tmp_path_factory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("shared"))


WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)


def load(
    corpus: Corpus, draws: Any, *, crops: CropRecipe = WHOLE, stride: float | None = 3, **options: Any
) -> ClipLoader:
    sampling: dict[str, Any] = {"stride": stride}
    if "sample_fps" in options:
        sampling = {"sample_fps": options.pop("sample_fps"), "video_fps": corpus.fps}
    sampler = Sampler(corpus.frames, num_frames=FRAMES, seed=options.pop("seed", 7), **sampling)
    usual: dict[str, Any] = {"resolution": 64, "threads": 2, **options}
    return ClipLoader(corpus, sampler, crops, draws, **usual)


def in_batches(first: int, count: int, size: int = 4) -> list[np.ndarray]:
    return [np.arange(start, start + size) for start in range(first, first + count * size, size)]


def check_frames(batch: ClipBatch) -> None:
    """Every picture carries the number and the video that the batch says."""
    for clip, video, numbers in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
        assert [clips.read_number(picture) for picture in clip] == [(video, 100 + number) for number in numbers]


def test_every_frame_of_every_batch(shared_corpus):
    seen, used = set(), 0
    with load(shared_corpus, in_batches(0, 16)) as loader:
        expected = iter(range(64))
        for batch in loader:
            assert batch.frames.shape == (4, FRAMES, 64, 64, 3)
            assert batch.frames.dtype == torch.uint8
            assert batch.draws.tolist() == list(itertools.islice(expected, 4))
            for row, (video, numbers) in enumerate(zip(batch.videos, batch.frame_numbers, strict=True)):
                (clip,) = loader.recipe.sampler.clips([batch.draws[row]])
                assert (clip.video, clip.frames.tolist()) == (video, numbers.tolist())
                gaps = [1, 1, 2, 4] if VIDEOS[video][2].get("variable_rate") else [1]
                ticks = np.concatenate([[0], np.cumsum(np.resize(gaps, 100))])
                assert batch.pts_seconds[row] == pytest.approx(ticks[numbers] / 25, abs=0.0011)
            check_frames(batch)
            seen |= set(batch.videos.tolist())
            used += sum(len(set(numbers.tolist())) for numbers in batch.frame_numbers)
    assert next(expected, None) is None
    assert seen == set(range(len(VIDEOS)))
    assert len(VIDEOS) > span.OPEN_VIDEOS_PER_THREAD
    total = loader.total
    assert (total.clips, total.failures) == (64, [])
    assert total.frames_used == used
    assert total.packets_decoded >= total.frames_used
    assert total.amplification == total.packets_decoded / total.frames_used
    assert total.bytes_read > 0


def test_the_same_bytes_for_any_threads_and_any_start(shared_corpus):
    augmented = CropRecipe((0.3, 1), (0.75, 1.33), 0.5)

    def everything(first: int, count: int, **options: Any) -> list[bytes]:
        with load(shared_corpus, in_batches(first, count), crops=augmented, **options) as loader:
            return [batch.frames.numpy().tobytes() + batch.pts_seconds.tobytes() for batch in loader]

    reference = everything(0, 8, threads=1, prefetch=1)
    assert everything(0, 8, threads=3) == reference
    assert everything(0, 8, threads=3, prefetch=5) == reference
    assert everything(20, 3, threads=2) == reference[5:]
    assert everything(0, 8, seed=8) != reference


def test_batches_wait_for_slow_clips(shared_corpus, monkeypatch):
    """The first clip finishes last; nothing overtakes it in the output."""
    read = ClipLoader._read

    def slow_read(self, wanted, output):
        if wanted.draw % 4 == 0:
            time.sleep(0.05)
        return read(self, wanted, output)

    monkeypatch.setattr(ClipLoader, "_read", slow_read)
    with load(shared_corpus, in_batches(0, 6), threads=3) as loader:
        for number, batch in enumerate(loader):
            assert batch.draws.tolist() == list(range(4 * number, 4 * number + 4))
            check_frames(batch)


def test_decoding_runs_a_bounded_distance_ahead(shared_corpus):
    taken = []

    def draws():
        for number in itertools.count():
            taken.append(number)
            yield np.arange(2) + 2 * number

    with load(shared_corpus, draws(), prefetch=3) as loader:
        for number in range(4):
            next(loader)
            assert len(taken) == number + 4
            # A slow consumer: all that is ahead gets decoded meanwhile, and nothing more.
            assert all(work.exception(timeout=30) is None for plan in loader._ahead for work in plan.block.work)
        assert len(loader._ahead) == 3


NICE_ALREADY = """
import os, sys
from trocar.loaders.decode.threads import Threads, stand_back
own = os.nice(4)
if os.geteuid() == 0:
    os.setuid(65534)  # the superuser may ask for anything
pool = Threads(1, "decode", stand_back)
print(pool.submit(str, os.getpriority, os.PRIO_PROCESS, 0).result(timeout=60) == min(own + 5, 19))
"""


def test_decoding_stands_back_of_a_process_that_is_nice_already():
    """As by `nice trocar pretrain`, by no superuser."""
    done = subprocess.run([sys.executable, "-c", NICE_ALREADY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_short_video_repeats_its_last_frame(shared_corpus):
    draws = [clip.draw for clip in Sampler(shared_corpus.frames, num_frames=FRAMES, stride=3, seed=7).clips(range(60))
             if clip.video == SHORT]  # fmt: skip
    with load(shared_corpus, [draws]) as loader:
        (batch,) = loader
    assert batch.frame_numbers.tolist() == [[0, 3, *[4] * 6]] * len(draws)
    check_frames(batch)
    assert batch.count.repeated_frames == 6 * len(draws)
    assert batch.count.frames_used == 3 * len(draws)
    assert (batch.frames[:, 2] == batch.frames[:, 7]).all()


@pytest.mark.parametrize("sample_fps", [5, 60])
def test_sampling_by_time(shared_corpus, sample_fps):
    """5 a second is every fifth of 25, 60 a second shows frames several times; variable rates count by their mean."""
    with load(shared_corpus, in_batches(0, 6), sample_fps=sample_fps) as loader:
        for batch in loader:
            check_frames(batch)
            for video, numbers in zip(batch.videos, batch.frame_numbers, strict=True):
                if video not in (SHORT, 6):
                    expected = np.floor(np.arange(FRAMES) * 25 / sample_fps + 0.5)
                    assert (numbers - numbers[0]).tolist() == expected.tolist()
    assert (loader.total.frames_used < 24 * FRAMES) == (sample_fps == 60 or loader.total.repeated_frames > 0)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("resize", ["fast", "exact"])
def test_rotated_videos_come_upright(tmp_path, rotation, resize):
    corpus = build_corpus(tmp_path, [("0.mp4", 40, {"rotation": rotation, "gop": 12})])
    ratio = 3 / 4 if rotation % 180 else 4 / 3
    crops = CropRecipe((1, 1), (ratio, ratio), 0)
    with load(corpus, in_batches(0, 2), crops=crops, resize=resize) as loader:
        for batch in loader:
            check_frames(batch)


def smooth_picture(number: int) -> np.ndarray:
    rows, columns = np.mgrid[:180, :240]
    waves = [np.sin((rows + 3 * number) / 25 + channel) + np.cos((columns - 2 * number) / 40) for channel in range(3)]
    return (128 + 50 * np.stack(waves, axis=-1)).astype(np.uint8)


def test_fast_and_exact_resizing_nearly_agree(tmp_path):
    (tmp_path / "videos").mkdir()
    for pix_fmt in ("yuv420p", "yuv444p"):
        pictures = (smooth_picture(number) for number in range(40))
        clips.write_pictures(tmp_path / "videos" / f"{pix_fmt}.mkv", pictures, pix_fmt=pix_fmt, options={"crf": "10"})
    index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    crops = CropRecipe((0.4, 1), (0.75, 1.33), 0.5)
    pictures = []
    for resize in ("fast", "exact"):
        with load(corpus, in_batches(0, 3), crops=crops, resize=resize, resolution=96) as loader:
            pictures.append(torch.stack([batch.frames for batch in loader]).float())
    difference = (pictures[0] - pictures[1]).abs()
    assert difference.mean() <= 2
    assert difference.max() <= 12


def test_the_content_box_cuts_the_border_off(tmp_path):
    (tmp_path / "videos").mkdir()
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[8:88, 40:120] = 180
    clips.write_pictures(tmp_path / "videos" / "a.mp4", [picture] * 30)
    index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    square = CropRecipe((1, 1), (1, 1), 0)
    dark = {}
    for content_box in (True, False):
        with load(corpus, [[0]], crops=square, content_box=content_box) as loader:
            dark[content_box] = float((next(loader).frames < 90).float().mean())
    assert dark[True] < 0.01
    assert dark[False] == pytest.approx(1 - 80 * 80 / 96**2, abs=0.03)


@dataclass
class Patients:
    """A corpus whose videos may be harmed; video 1 is the one."""

    corpus: Corpus
    path: Path

    def restored_mtime(self) -> None:
        os.utime(self.path, ns=(0, self.corpus.video(1).facts.mtime_ns))

    def harm(self, how: str) -> str:
        """Does it, and returns what the reason has to say."""
        if how == "deleted":
            self.path.unlink()
            return "No such file or directory; restore the file"
        if how == "touched":
            os.utime(self.path, ns=(0, 1))
            return "changed since it was indexed; run `trocar index` again"
        if how == "grown":
            with self.path.open("ab") as file:
                file.write(b"more")
            self.restored_mtime()
            return "changed since it was indexed"
        data = bytearray(self.path.read_bytes())
        gops = self.corpus.gops(1)
        for row in range(1, len(gops)):
            start, length = int(gops.byte_offset[row]), int(gops.num_bytes[row])
            noise = np.random.default_rng(0).bytes(length // 2)
            data[start + length // 4 : start + length // 4 + len(noise)] = noise
        self.path.write_bytes(data)
        self.restored_mtime()
        return "re-encode it"


@pytest.fixture
def patients(tmp_path) -> Patients:
    corpus = build_corpus(tmp_path, [(f"{row}.mp4", 120, {"gop": 12, "b_frames": 2}) for row in range(4)])
    return Patients(corpus, tmp_path / "videos" / "1.mp4")


@pytest.mark.parametrize("how", ["deleted", "touched", "grown", "damaged"])
def test_clips_that_fail_are_replaced_and_reported(patients, how):
    with load(patients.corpus, in_batches(0, 10)) as loader:
        before = [(batch.draws, batch.videos, batch.frames) for batch in loader]
    reason = patients.harm(how)
    runs = []
    for threads in (1, 3):
        with load(patients.corpus, in_batches(0, 10), threads=threads, failure_budget=1) as loader:
            batches = list(loader)
        runs.append([(b.videos.tolist(), b.frames.numpy().tobytes(), b.count.failures) for b in batches])
        failures = loader.total.failures
        assert failures
        assert {failure.path for failure in failures} == {str(patients.path)}
        for failure in failures:
            assert str(patients.path) in failure.reason
            assert reason in failure.reason
        replaced = {failure.draw for failure in failures}
        for batch, (draws, videos, frames) in zip(batches, before, strict=True):
            check_frames(batch)
            assert batch.draws.tolist() == draws.tolist()
            for row, draw in enumerate(draws):
                spares = [failure.spare for failure in batch.count.failures if failure.draw == draw]
                assert spares == list(range(len(spares)))
                if draw in replaced:
                    (clip,) = loader.recipe.sampler.clips([draw], spare=len(spares))
                    assert (clip.video, clip.frames.tolist()) == (batch.videos[row], batch.frame_numbers[row].tolist())
                else:
                    assert torch.equal(batch.frames[row], frames[row])
            if how != "damaged":
                assert 1 not in batch.videos
                assert {draw for draw, video in zip(draws, videos, strict=True) if video == 1} <= replaced
        assert loader.total.clips == 40
    assert runs[0] == runs[1]


def test_a_file_deleted_while_it_is_open_is_read_on(patients):
    with load(patients.corpus, in_batches(0, 20), threads=1, prefetch=1) as loader:
        while 1 not in next(loader).videos:
            pass
        patients.path.unlink()
        for batch in loader:
            check_frames(batch)
    assert not loader.total.failures


def test_the_budget_ends_the_run_with_the_reasons(patients):
    patients.harm("deleted")
    with load(patients.corpus, in_batches(0, 100), failure_budget=0.05, failure_floor=3) as loader:
        with pytest.raises(VideoError) as caught:
            list(loader)
        assert len(loader.total.failures) > 3
        message = str(caught.value)
        assert "above the budget of 5%, in 1 videos" in message
        assert f"{patients.path}: No such file or directory" in message
        assert (
            "run `trocar index` again where they are of a corpus, of proxies `trocar pack`; or leave "
            "them out (data.exclude), or raise failure_budget" in message
        )
        assert list(loader) == []
    with load(patients.corpus, in_batches(0, 10), failure_budget=0, failure_floor=1000) as loader:
        assert len(list(loader)) == 10


def test_a_corpus_of_which_nothing_is_left(patients):
    for row in range(4):
        Path(patients.corpus.video(row).facts.path).unlink()
    with (
        load(patients.corpus, in_batches(0, 10), failure_floor=10**6) as loader,
        pytest.raises(
            VideoError, match=r"a draw and its 64 replacements failed, in 4 videos:\n(.*restore the file.*\n){4}mend"
        ),
    ):
        next(loader)
    assert decoding_threads() == 0


def decoding_threads() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_closing_early_leaves_nothing_behind(shared_corpus):
    gc.collect()
    descriptors = open_descriptors()
    for batches in (0, 1, 3):
        with load(shared_corpus, (np.arange(4) + 4 * n for n in itertools.count()), threads=3) as loader:
            for _ in range(batches):
                next(loader)
        assert decoding_threads() == 0
        assert open_descriptors() == descriptors
        assert next(loader, None) is None
        loader.close()
    for _ in load(shared_corpus, in_batches(0, 3)):
        pass
    assert (decoding_threads(), open_descriptors()) == (0, descriptors)


def test_any_error_closes_the_loader(shared_corpus, monkeypatch):
    descriptors = open_descriptors()

    def draws():
        yield np.arange(4)
        raise RuntimeError("the draws end here")

    loader = load(shared_corpus, draws(), prefetch=1)
    with pytest.raises(RuntimeError, match="the draws end here"):
        next(loader)
    assert (decoding_threads(), open_descriptors(), next(loader, None)) == (0, descriptors, None)

    def broken(*_):
        raise ZeroDivisionError("no video's fault")

    monkeypatch.setattr(span.SpanReader, "decode", broken)
    loader = load(shared_corpus, in_batches(0, 3))
    with pytest.raises(ZeroDivisionError, match="no video's fault"):
        next(loader)
    assert (decoding_threads(), open_descriptors(), next(loader, None)) == (0, descriptors, None)


def test_few_videos_stay_open(shared_corpus, monkeypatch):
    opened = []
    init = WindowReader.__init__

    def counted(self, video, *more):
        opened.append(video.path)
        init(self, video, *more)

    monkeypatch.setattr(WindowReader, "__init__", counted)
    with load(shared_corpus, in_batches(0, 20), threads=1) as loader:
        descriptors = open_descriptors()
        for _ in loader:
            # A transport stream is open twice: it is demuxed.
            assert open_descriptors() <= descriptors + span.OPEN_VIDEOS_PER_THREAD + 2
    # Ten videos, eight places: most clips find their video open.
    assert len(VIDEOS) <= len(opened) < 80 * 0.6


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_memory_and_descriptors_stay_flat(shared_corpus, patients, count):
    """With clips that fail among them: those take other paths out."""
    patients.harm("damaged")
    for corpus in (shared_corpus, patients.corpus):
        with load(corpus, in_batches(0, count // 2, 2), failure_budget=1) as loader:
            for _ in itertools.islice(loader, count // 8):
                pass
            gc.collect()
            memory, descriptors = resident_bytes(), open_descriptors()
            for _ in loader:
                pass
            gc.collect()
            growth = resident_bytes() - memory
        assert open_descriptors() <= descriptors
        print(f"\n{count * 3 // 4} clips: resident memory grew by {growth / 1e6:.1f} MB")
        assert growth < 24e6


def test_what_cannot_be_is_refused(shared_corpus):
    with pytest.raises(ValueError, match="the sampler knows 3 videos, the corpus 10"):
        ClipLoader(shared_corpus, Sampler([9, 9, 9], num_frames=2, stride=1), WHOLE, [], resolution=64)
    impossible: list[dict[str, Any]] = [{"prefetch": 0}, {"threads": 0}]
    for options in impossible:
        with pytest.raises(ValueError, match="prefetch and threads must be at least 1"):
            load(shared_corpus, [], **options)
    with (
        pytest.raises(ValueError, match="resize must be one of"),
        load(shared_corpus, [[0]], resize="nearest") as loader,
    ):
        next(loader)
