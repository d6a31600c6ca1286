"""Decoding processes: the batches of threads, bit for bit, whatever happens to the processes; and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
from corpora import damaged_corpus
from sent import DeadlyVideo, FailingCrops, ScriptCrops, SlowCrops

from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus, CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.decode.batch_memory import HANDED_OUT, BatchMemory
from trocar.loaders.decode.job_board import Job, JobBoard
from trocar.loaders.decode.shared_recipe import load_recipe, share_recipe
from trocar.loaders.decode.span import SpanReader
from trocar.loaders.decode.threads import LoaderError
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.clip_list import ClipList
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.phases import DrawSettings, plan_order
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video.video import VideoError

pytestmark = pytest.mark.timeout(120)

FRAMES, BATCH, DAMAGED = 4, 6, 1
ORDERS = [ClipOrder(1), ClipOrder(4), ClipOrder(views_per_span=3, pool_spans=18, lanes=6, seed=1)]
CROPS = CropRecipe((0.3, 1), (0.75, 1.33), 0.5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three videos; one GOP in three of the second one is damaged."""
    return damaged_corpus(tmp_path_factory.mktemp("corpus"), DAMAGED)


def load(corpus: Corpus, batches: Any, **options: Any) -> ClipLoader:
    """batches: how many, or their numbers."""
    numbers = (
        batches if not isinstance(batches, int) else [np.arange(n * BATCH, (n + 1) * BATCH) for n in range(batches)]
    )
    sampler = options.pop("sampler", None) or Sampler(corpus.frames, num_frames=FRAMES, stride=2, seed=7)
    options = {"crops": CROPS, "resolution": 32, "threads": 2, "failure_budget": 1.0, **options}
    return ClipLoader(corpus, sampler, draws=numbers, **options)


def told(batch: ClipBatch) -> list[Any]:
    """All that a batch says."""
    arrays = (batch.numbers, batch.draws, batch.views, batch.videos, batch.frame_numbers, batch.pts_seconds)
    return [batch.frames.numpy().tobytes(), *(array.tobytes() for array in arrays), batch.labels, repr(batch.count)]


def all_told(loader: ClipLoader) -> list[list[Any]]:
    with loader:
        return [told(batch) for batch in loader]


def processes_of(loader: ClipLoader) -> list[int]:
    assert loader._workers is not None
    return [process.process.pid for process in loader._workers._processes]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def descriptors() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(path))
        except FileNotFoundError:  # the one that lists them
            continue
    return sorted(found)


@pytest.mark.parametrize(("order", "workers"), [(ORDERS[0], 2), (ORDERS[2], 1)], ids=str)
def test_batches_are_those_of_threads(corpus: Corpus, order: ClipOrder, workers: int) -> None:
    """Pictures, numbers, times, replacements and what they cost."""
    expected = load(corpus, 8, order=order)
    reference = all_told(expected)
    assert expected.total.failures
    loader = load(corpus, 8, order=order, workers=workers)
    assert all_told(loader) == reference
    assert repr(loader.total) == repr(expected.total)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_batches_are_those_of_threads_everywhere(corpus: Corpus, order: ClipOrder) -> None:
    """Any number of processes, ranks, resumed anywhere."""
    for ranks in (1, 2, 3):
        for rank in range(ranks):
            numbers = [order.share(np.arange(n * 12, n * 12 + 12), rank, ranks) for n in range(8)]
            reference = all_told(load(corpus, numbers, order=order))
            for workers in (1, 2, 5):
                first = (rank + workers) % 7 if workers != 2 else 0
                resumed = all_told(
                    load(corpus, numbers[first:], order=order, workers=workers, prefetch=1 + workers % 3)
                )
                if order.pool_spans and first:  # the first batch decodes what is due besides; the clips are the same
                    assert [batch[:7] for batch in resumed] == [batch[:7] for batch in reference[first:]]
                    assert resumed == all_told(load(corpus, numbers[first:], order=order))
                else:
                    assert resumed == reference[first:]


def test_what_is_sent_draws_the_same(corpus: Corpus) -> None:
    """Samplers with a tree's order or by time, lists with labels, files without an index: the same clips, arrays not copied."""
    grid = Sampler.of(corpus, num_frames=FRAMES, stride=2, seed=3)
    planned = plan_order(corpus, [DrawSettings()], grid, 3).order
    sources: list[Any] = [
        Sampler.of(corpus, num_frames=FRAMES, stride=2, seed=3, order=planned),
        Sampler.of(corpus, num_frames=FRAMES, sample_fps=5.0, seed=3),
        ClipList([(0, 0.5, "cut"), (2, 1.0, ("sew", 3))], corpus, num_frames=FRAMES, stride=1),
        ClipList([(corpus.video_path(0), 0.5, {"a": 1})], num_frames=FRAMES, stride=1),
    ]
    for source in sources:
        recipe = load(corpus, [], sampler=source if source.num_videos == len(corpus) else None).recipe
        recipe = type(recipe)(getattr(source, "videos", corpus), source, CROPS, 32)
        descriptor, sizes = share_recipe(recipe)
        copy = load_recipe(descriptor, sizes)
        os.close(descriptor)
        for draw in range(6):
            ours, theirs = recipe.clips(draw, (0, 1), 0), copy.clips(draw, (0, 1), 0)
            assert [repr(clip) for clip in ours] == [repr(clip) for clip in theirs]
        assert len(sizes) > 1 or not isinstance(source, Sampler)
        if isinstance(source, Sampler):
            arrays = [value for value in vars(copy.sampler).values() if isinstance(value, np.ndarray) and value.size]
            assert any(not array.flags.owndata for array in arrays)


def test_processes_need_no_torch() -> None:
    ours = "trocar.loaders.decode.worker, trocar.loaders.draw.clip_list, trocar.loaders.draw.phases"
    code = f"import sys, {ours}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "pandas", "scipy", "matplotlib", "timm"}.intersection(modules)
    assert {"trocar.loaders.video.decode", "av"} <= set(modules)


def test_a_clip_that_ends_processes_is_a_failure_like_others(corpus: Corpus) -> None:
    sampler, deadly = Sampler(corpus.frames, num_frames=FRAMES, stride=2, seed=7), len(corpus) - 1
    drawn = [clip.video for clip in sampler.clips(np.arange(60))]
    harmless = [draw for draw, video in enumerate(drawn) if video == 0]
    numbers = [np.array([*harmless[:3], drawn.index(deadly)]), np.array(harmless[3:7])]
    loader = load(DeadlyVideo(corpus), numbers, workers=2)
    with loader:
        before = processes_of(loader)
        found = list(loader)
    assert [batch.draws.tolist() for batch in found] == [list(part) for part in numbers]
    failures, draw = loader.total.failures, int(numbers[0][-1])
    assert [(failure.draw, failure.spare) for failure in failures] == [(draw, spare) for spare in range(len(failures))]
    path, ended = corpus.video_path(deadly), 0
    for failure in failures:
        video = sampler.clips([draw], spare=failure.spare)[0].video
        assert failure.path == corpus.video_path(video)
        if video == deadly:
            assert failure.reason.startswith(f"{path}: ends the process that decodes it (signal 11, twice); re-encode")
            ended += 1
    assert ended
    assert failures[0].path == path
    reader, output = SpanReader(loader.recipe), np.zeros((1, FRAMES, 32, 32, 3), np.uint8)
    reader.read(draw, (0,), output, first_spare=len(failures))
    assert np.array_equal(found[0].frames[-1].numpy(), output[0])
    reader.close()
    threads = all_told(load(corpus, numbers[1:]))
    assert told(found[1]) == threads[0]
    assert not any(map(is_alive, before))
    with (
        load(DeadlyVideo(corpus), numbers, workers=1, failure_budget=0.0, failure_floor=0) as loader,
        pytest.raises(
            VideoError, match=r"(?s)\d+ failures in 4 draws, above the budget of 0%.*: ends the process that decodes it"
        ),
    ):
        next(loader)


def replaced(loader: ClipLoader) -> list[int]:
    """The processes, once those that have ended are replaced."""
    assert loader._workers is not None
    loader._workers.check(0.0, None)
    return processes_of(loader)


def kill_while_it_runs(corpus: Corpus, kills: int, batches: int, order: ClipOrder) -> None:
    reference = all_told(load(corpus, batches, order=order))
    loader = load(corpus, batches, order=order, workers=2)
    generator, seen, killed = np.random.default_rng(0), set[int](), 0
    with loader:
        found = []
        for number, batch in enumerate(loader):
            found.append(told(batch))
            alive = processes_of(loader)
            seen.update(alive)
            while killed < kills * (number + 1) / (batches - 3) and killed < kills:
                assert loader._workers is not None
                loader._wait_for(loader._workers.ready)
                victim = int(generator.choice(processes_of(loader)))
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda victim=victim: victim not in replaced(loader), "a killed process is not replaced")
                killed += 1
                seen.update(processes_of(loader))
    assert killed == kills
    assert found == reference, "something was lost, doubled or replaced"
    assert len(seen) == 2 + kills
    assert not any(map(is_alive, seen))


def test_processes_that_are_killed_from_outside_cost_nothing(corpus: Corpus) -> None:
    before = descriptors()
    kill_while_it_runs(corpus, 2, 8, ORDERS[0])
    assert descriptors() == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thirty_kills_cost_nothing(corpus: Corpus) -> None:
    before = descriptors()
    kill_while_it_runs(corpus, 30, 40, ORDERS[2])
    assert descriptors() == before


PARENT = """
    import os, sys, time
    sys.path[:0] = [{tests!r}, {here!r}]
    import numpy as np
    from test_workers import load
    from trocar.loaders.corpus.corpus import Corpus

    loader = load(Corpus.open({corpus!r}), ([n] for n in range(10**6)), workers=2)
    next(loader)
    print(*[process.process.pid for process in loader._workers._processes], flush=True)
    sys.stdin.readline()
    {then}
"""


@pytest.mark.parametrize(
    ("then", "kill", "status"),
    [
        pytest.param("time.sleep(600)", True, -signal.SIGKILL, id="killed"),
        pytest.param("raise SystemExit(3)", False, 3, id="ended", marks=pytest.mark.slow),
        pytest.param("os._exit(4)", False, 4, id="ended at once", marks=pytest.mark.slow),
    ],
)
def test_processes_end_with_their_parent(corpus: Corpus, then: str, kill: bool, status: int) -> None:
    """However it ends; and there is no shared memory that could stay: it has no name."""
    code = textwrap.dedent(
        PARENT.format(
            tests=str(Path(__file__).parents[2]), here=str(Path(__file__).parent), corpus=str(corpus.path), then=then
        )
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    memory = [os.readlink(f"/proc/{pids[0]}/fd/{name}") for name in os.listdir(f"/proc/{pids[0]}/fd")]
    assert any(target.startswith("/memfd:trocar_batch") for target in memory)
    if kill:
        parent.kill()
    parent.communicate("go on\n", timeout=60)
    assert parent.returncode == status
    wait_for(lambda: not any(map(is_alive, pids)), "a process outlives its parent")
    assert not [name for name in os.listdir("/dev/shm") if "trocar" in name]


def test_nothing_is_left_of_a_loader_that_is_closed_or_dropped(corpus: Corpus) -> None:
    before = descriptors()
    loader = load(corpus, 3, workers=2)
    batch = next(loader)
    pids, pictures = processes_of(loader), batch.frames.numpy().copy()
    loader.close()
    loader.close()
    assert not any(map(is_alive, pids))
    assert np.array_equal(batch.frames.numpy(), pictures), "a batch outlives its loader"
    del batch
    loader = load(corpus, 3, workers=1)
    pids = processes_of(loader)
    del loader
    assert not any(map(is_alive, pids))
    assert descriptors() == before


def test_batches_may_be_kept(corpus: Corpus) -> None:
    """More of them than the ring has buffers."""
    reference = all_told(load(corpus, 12))
    with load(corpus, 12, workers=1, prefetch=1) as loader:
        kept = list(loader)
    assert [told(batch) for batch in kept] == reference


def test_a_buffer_comes_round_when_its_batch_is_dropped() -> None:
    memory = BatchMemory(2, (FRAMES, 8, 8, 3), is_pinned=False)
    first = memory.take(3)
    held = memory.hand_out(first, 3)
    view = held[1:].flatten().numpy()
    assert (held.shape, held.is_contiguous()) == ((3, FRAMES, 8, 8, 3), True)
    taken = [memory.take(3) for _ in range(1 + HANDED_OUT)]
    assert first not in taken
    copied = memory.hand_out(taken[0], 3)  # nothing else is free
    assert memory.take(3) == taken[0]
    copied.fill_(1)
    assert memory.clips(taken[0], 3).sum() == 0
    del held
    with pytest.raises(IndexError):
        memory.take(3)
    del view
    assert memory.take(5) == first
    assert memory.clips(first, 5).shape[0] == 5
    memory.close()


def test_buffers_fit(corpus: Corpus) -> None:
    """What a first large block took is given back."""
    memory = BatchMemory(0, (1000,), is_pinned=False)
    number = memory.take(100)
    sizes = []
    for clips_ in (100, 60, 40, 120):
        memory._free.append(memory._buffers[number])
        while memory.take(clips_) != number:
            pass
        sizes.append(os.fstat(memory.descriptors[number]).st_size)
        memory._free.extend(buffer for buffer in memory._buffers if buffer.number != number)
    assert sizes == [100_000, 100_000, 40_000, 120_000]
    memory.close()


def test_a_job_has_one_owner() -> None:
    board = JobBoard(2)
    numbers = board.hand_in([Job(draw, 0, 3, draw) for draw in range(3)])
    assert list(numbers) == [0, 1, 2]
    assert [board.take(owner) for owner in (11, 12, 11, 12)] == [0, 1, 2, None]
    assert board.job(1) == Job(1, 0, 3, 1)
    assert [board.taken_by(owner, [1, 2]) for owner in (11, 12, 13)] == [2, 1, None]
    board.give(1, 13)
    assert board.taken_by(13, [1, 2]) == 1
    other = JobBoard(2, board.descriptor)
    assert other.hand_in([Job(9, 1, 1, 0)]) == range(3, 4)
    assert board.take(13) == 3
    for each in (board, other):
        each.close()
    os.close(board.descriptor)


def test_errors_of_processes_are_raised_here(corpus: Corpus) -> None:
    with load(corpus, 3, workers=1, crops=FailingCrops()) as loader:
        next(loader)
        with pytest.raises(KeyError, match="somebody's own"):
            next(loader)
    with (
        load(corpus, 3, workers=1, crops=FailingCrops(flip_probability=0.0)) as loader,
        pytest.raises(RuntimeError, match=r"(?s)Traceback.*OwnError: cannot"),
    ):
        list(loader)


def test_a_process_that_hangs_is_named(corpus: Corpus) -> None:
    started = time.monotonic()
    with load(corpus, 3, workers=2, crops=SlowCrops(), clip_timeout=1.0) as loader:
        next(loader)
        with pytest.raises(
            LoaderError, match=r"process decode_\d does not come on for 1 s \(clip_timeout\): draw 6, from frame"
        ):
            list(loader)
    assert time.monotonic() - started < 30


def test_what_cannot_be_sent_is_refused(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    with pytest.raises(LoaderError, match=r"cannot be sent to decoding processes: .*; set workers=0"):
        load(corpus, 3, workers=1, crops=type("Local", (CropRecipe,), {"__module__": "nowhere"})())
    monkeypatch.setattr(ScriptCrops, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "ScriptCrops", ScriptCrops, raising=False)
    with (
        load(corpus, 3, workers=1, crops=ScriptCrops()) as loader,
        pytest.raises(
            LoaderError, match=r"(?s)cannot take over .* classes of your own have to stand in a module.*AttributeError"
        ),
    ):
        next(loader)
    del loader
    assert descriptors() == before


def test_a_corpus_that_is_indexed_again_is_not_mixed_with_itself(corpus: Corpus, tmp_path: Path) -> None:
    clips.write_numbered(tmp_path / "0.mp4", 40, gop=10)
    index_corpus([tmp_path], tmp_path / "index", workers=1, content_box=False, progress=False)
    opened = Corpus.open(tmp_path / "index")
    function, arguments = opened.__reduce__()
    assert len(function(*arguments)) == 1
    clips.write_numbered(tmp_path / "1.mp4", 40, gop=10)
    index_corpus([tmp_path], tmp_path / "index", workers=1, content_box=False, progress=False)
    with pytest.raises(CorpusError, match="was indexed again while it was read"):
        function(*arguments)


def test_clip_loader_has_them(corpus: Corpus) -> None:
    """From files that nobody indexed as well."""
    paths = [corpus.video_path(row) for row in (0, 2)]
    rows = [(path, 0.5, label) for path, label in zip(paths, ("a", "b"), strict=True)]
    wanted: dict[str, Any] = {"batch": 2, "num_frames": FRAMES, "stride": 1, "resolution": 32, "training": False}
    threads, processes = (list(clip_loader(rows, device="cpu", workers=workers, **wanted)) for workers in (0, 1))
    assert [told(batch) for batch in processes] == [told(batch) for batch in threads]
    assert processes[0].labels == ["a", "b"]


def memory_of(pids: list[int]) -> int:
    """Resident bytes of processes, shared ones counted once for each."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_3000_batches_leave_memory_and_descriptors_flat(corpus: Corpus) -> None:
    order = ClipOrder(views_per_span=2, pool_spans=12, lanes=6, seed=1)
    samples: list[tuple[int, int, int]] = []
    numbers = [np.arange(n, n + 2) for n in range(0, 6000, 2)]
    loader = load(corpus, numbers, order=order, workers=2)
    with loader:
        for number, _ in enumerate(loader):
            if number % 250 == 249:
                pids = [os.getpid(), *processes_of(loader)]
                shared = sum(os.fstat(descriptor).st_blocks * 512 for descriptor in loader._memory.descriptors)
                opened = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
                samples.append((memory_of(pids), shared, opened))
    resident, shared, opened = (list(column) for column in zip(*samples, strict=True))
    print(
        f"resident MB {[round(value / 2**20) for value in resident]}, shared kB {[value >> 10 for value in shared]}, open {opened}"
    )
    assert max(resident[4:]) < 1.02 * max(resident[:4])
    # Which pages of the ring are in use when it is looked at depends on the moment: the mean must not grow.
    assert np.mean(shared[4:]) < 1.2 * np.mean(shared[:4])
    assert max(opened[4:]) <= max(opened[:4])
