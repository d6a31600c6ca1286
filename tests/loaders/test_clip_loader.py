"""One call from a list or a corpus to batches: epochs, ranks, resuming, evaluation; and what it refuses."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
import torch

from trocar.loaders.choose import DaliOptions
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.video_files import VideoFiles
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.decode.loader import BaseClipLoader, LoaderOptions
from trocar.loaders.decode.threads import LoaderError
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.clip_list import ClipList
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.epochs import EpochLoader
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.video import VideoError

pytestmark = pytest.mark.timeout(120)

ITEMS = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        clips.write_numbered(folder / f"{number}.mp4", 60, video_id=number, gop=12, b_frames=2)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path, tmp_path_factory) -> Corpus:
    out = tmp_path_factory.mktemp("corpus")
    index_corpus([folder], out, workers=1, progress=False)
    return Corpus.open(out)


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Any]:
    """ITEMS rows whose labels are their places."""
    return [(folder / f"{item % 2}.mp4", 0.1 * item, item, 0.1 * item + 0.4) for item in range(ITEMS)]


def load(rows: Any, **options: Any) -> EpochLoader:
    size = {"batch": 2, "num_frames": 2, "stride": 2, "resolution": 32}
    usual: dict[str, Any] = {**size, "threads": 2, "loader": "cpu", "device": "cpu", **options}
    return clip_loader(rows, **usual)


def labels(batches: Any) -> list[Any]:
    return [label for batch in batches for label in batch.labels]


def pixels(batch: ClipBatch) -> bytes:
    return batch.frames.numpy().tobytes() + batch.numbers.tobytes()


def test_every_item_once_an_epoch(rows):
    loader = load(rows, drop_last=False)
    assert len(loader) == 6
    epochs = [list(loader) for _ in range(3)]
    for number, batches in enumerate(epochs):
        assert [len(batch.frames) for batch in batches] == [2] * 5 + [1]
        assert sorted(labels(batches)) == list(range(ITEMS))
        assert np.concatenate([batch.numbers for batch in batches]).tolist() == list(
            range(number * ITEMS, (number + 1) * ITEMS)
        )
    assert len({tuple(labels(batches)) for batches in epochs}) == 3
    assert (loader.number, loader.total.clips) == (3 * ITEMS, 3 * ITEMS)
    assert labels(load(rows, shuffle=False, drop_last=False)) == list(range(ITEMS))
    assert labels(load(rows, seed=1)) != labels(load(rows))


def test_a_last_batch_that_is_not_full_is_left_out(rows):
    loader = load(rows, batch=4)
    assert len(loader) == 2
    seen: Counter[int] = Counter()
    for number in range(8):
        batches = list(loader)
        assert [len(batch.frames) for batch in batches] == [4, 4]
        assert loader.number == (number + 1) * ITEMS
        seen.update(labels(batches))
    # Other items are left out in other epochs.
    assert len(seen) == ITEMS
    assert seen.total() == 64


def test_several_epochs_of_one_iteration(rows):
    loader, one_by_one = load(rows, epochs=3), load(rows)
    assert len(loader) == 3 * len(one_by_one) == 15
    together = [pixels(batch) for batch in loader]
    assert together == [pixels(batch) for _ in range(3) for batch in one_by_one]
    endless = load(rows, epochs=None)
    with pytest.raises(TypeError, match="an endless loader has no length; set epochs"):
        len(endless)
    # An endless one goes on where it was left.
    first = [pixels(batch) for batch in itertools.islice(endless, 4)]
    assert first + [pixels(batch) for batch in itertools.islice(endless, 11)] == together


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("order", [ClipOrder(), ClipOrder(2), ClipOrder(2, pool_spans=6, lanes=6)])
def test_ranks_share_an_epoch(rows, ranks, order):
    for drop_last in (True, False):
        whole = load(rows, batch=2 * ranks, order=order, drop_last=drop_last)
        shares = [load(rows, order=order, drop_last=drop_last, rank=rank, ranks=ranks) for rank in range(ranks)]
        parts = [list(share) for share in shares]
        assert [len(part) for part in parts] == [len(share) for share in shares]
        if drop_last:
            assert {len(part) for part in parts} == {len(whole)}
        expected = list(whole)
        for step, batch in enumerate(expected):
            found = [part[step] for part in parts if step < len(part)]
            numbers = np.concatenate([batch.numbers for batch in found])
            assert sorted(numbers.tolist()) == batch.numbers.tolist()
            by_number = {int(n): clip for batch in found for n, clip in zip(batch.numbers, batch.frames, strict=True)}
            assert all(
                torch.equal(by_number[int(n)], clip) for n, clip in zip(batch.numbers, batch.frames, strict=True)
            )
        assert len({share.number for share in shares} | {whole.number}) == 1 or not drop_last
        assert len(labels(expected)) == (len(whole) * 2 * ranks if drop_last else ITEMS * order.views_per_span)


@pytest.mark.parametrize("options", [{}, {"epochs": 2}, {"order": ClipOrder(2)}, {"drop_last": False}])
def test_resuming_is_one_integer(rows, options):
    loader = load(rows, **options)
    per_iteration = len(loader)
    reference = [[pixels(batch) for batch in loader] for _ in range(2)]
    for steps in (1, 3, per_iteration - 1, per_iteration):
        interrupted = load(rows, **options)
        for _ in itertools.islice(interrupted, steps):
            pass
        assert interrupted.state_dict() == {"number": interrupted.number}
        resumed = load(rows, first_number=interrupted.number, **options)
        loaded = load(rows, **options)
        loaded.load_state_dict(interrupted.state_dict())
        for again in (resumed, loaded):
            assert again.number == interrupted.number
            rest = [pixels(batch) for batch in again]
            assert rest == (reference[0][steps:] if steps < per_iteration else reference[1])
            if steps < per_iteration:
                assert [pixels(batch) for batch in again] == reference[1]


def test_resuming_on_other_ranks(rows):
    whole = load(rows)
    next(iter(whole))
    rest = [load(rows, batch=1, rank=rank, ranks=2, first_number=whole.number) for rank in range(2)]
    expected = load(rows, first_number=whole.number)
    assert sorted(labels(rest[0]) + labels(rest[1])) == sorted(labels(expected))


def test_an_iteration_that_is_left_early(rows):
    """Training goes on with the next epoch, evaluation starts again; no thread is left."""
    training, evaluation = load(rows), load(rows, training=False)
    for number in range(3):
        for loader in (training, evaluation):
            first: list[int] = []
            for batch in loader:
                first = batch.numbers.tolist()
                break
            assert first == ([number * ITEMS, number * ITEMS + 1] if loader is training else [0, 1])
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_evaluation_views(rows):
    loader = load(rows, training=False, segments=2, crops=3, batch=4)
    assert len(loader) == 17
    runs = [list(loader) for _ in range(2)] + [list(load(rows, training=False, segments=2, crops=3, batch=4, seed=5))]
    assert [[pixels(batch) for batch in run] for run in runs[1:]] == [[pixels(batch) for batch in runs[0]]] * 2
    assert labels(runs[0]) == np.repeat(range(ITEMS), 6).tolist()
    numbers = np.concatenate([batch.numbers for batch in runs[0]])
    assert numbers.tolist() == list(range(6 * ITEMS))
    for batch in runs[0]:
        assert (batch.numbers // 6).tolist() == batch.labels
        assert (batch.draws % 2).tolist() == (batch.numbers // 3 % 2).tolist()
        assert batch.views.tolist() == (batch.numbers % 3).tolist()
    squares = load(rows, training=False, crops=CropRecipe((1, 1), (1, 1), 0))
    assert [pixels(batch) for batch in squares] == [pixels(batch) for batch in load(rows, training=False)]


def test_evaluation_is_whole_or_fails(rows, tmp_path):
    broken = [*rows, (tmp_path / "gone.mp4", 0, 99)]
    loader = load(broken, training=False)
    with pytest.raises(VideoError, match=r"1 failures in 12 draws(.|\n)*gone\.mp4: cannot be read"):
        list(loader)
    lenient = load(broken, training=False, batch=1, failure_budget=1)
    assert labels(lenient) == list(range(ITEMS))  # the batch of which nothing is left is not handed out
    assert [failure.draw for failure in lenient.total.failures] == [ITEMS]


def test_training_replaces_what_cannot_be_read(rows, tmp_path):
    broken = [*rows, (tmp_path / "gone.mp4", 0, 99)]
    loader = load(broken)
    for _ in range(3):
        found = labels(loader)
        assert len(found) == 12
        assert set(found) == set(range(ITEMS))
    assert {failure.path for failure in loader.total.failures} == {str(tmp_path / "gone.mp4")}
    assert len(loader.total.failures) >= 3


def test_a_corpus_of_proxies(corpus, tmp_path):
    pack_corpus(
        corpus.path, tmp_path / "packed", PackSettings(short_side=64, stride=2, gop=4), workers=1, progress=False
    )
    packed = Corpus.open(tmp_path / "packed")
    batches = list(load(packed))
    assert len(batches) == 15  # spans of 2 frames: 15 of each proxy
    assert all((np.diff(batch.frame_numbers) == 1).all() for batch in batches)
    with pytest.raises(ValueError, match="stride 3 is not a multiple of 2"):
        load(packed, stride=3)


def test_a_corpus(corpus):
    loader = load(corpus)
    assert len(loader) == 20  # spans of 3 frames: 20 of each video
    for _ in range(2):
        batches = list(loader)
        assert Counter(video for batch in batches for video in batch.videos.tolist()) == {0: 20, 1: 20}
        assert set(labels(batches)) == {None}
    evaluation = load(corpus, training=False, segments=3)
    assert np.concatenate([batch.videos for batch in evaluation]).tolist() == [0, 0, 0, 1, 1, 1]
    assert np.concatenate([batch.frame_numbers[:, 0] for batch in evaluation]).tolist() == [0, 29, 57] * 2
    of_rows = load([(0, 0, "a"), (corpus.video(1).id, 1.0, "b")], videos=corpus, training=False)
    assert labels(of_rows) == ["a", "b"]


def test_ranks_of_torch_distributed(rows, monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    loader = load(rows, training=False)
    assert (loader.rank, loader.ranks) == (1, 3)
    assert labels(loader) == [item for item in range(ITEMS) if item % 3 == 1]
    assert (load(rows, rank=0, ranks=1).rank, load(rows, rank=0, ranks=1).ranks) == (0, 1)


def test_dali_loads_the_same_clips(folder, tmp_path):
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")
    pytest.importorskip("trocar.loaders.dali")
    clips.write_numbered(tmp_path / "0.webm", 60, width=160, height=160, codec="libvpx-vp9")
    rows = [(tmp_path / "0.webm", 0.2 * item, item) for item in range(6)]
    for training in (True, False):
        cpu, dali = (list(load(rows, loader=loader, training=training)) for loader in ("cpu", "dali"))
        assert labels(cpu) == labels(dali)
        for a, b in zip(cpu, dali, strict=True):
            assert np.array_equal(a.frame_numbers, b.frame_numbers)
            assert (a.frames.float() - b.frames.float()).abs().mean() < 3


def test_options_are_the_keywords_of_the_loaders() -> None:
    base = signature(BaseClipLoader).parameters
    own = {"corpus", "sampler", "crops", "draws", "resolution", "device"}
    assert set(base) - own == LoaderOptions.__optional_keys__
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")
    dali = signature(import_module("trocar.loaders.dali").ClipLoader).parameters
    assert set(dali) - own - {"options"} == DaliOptions.__optional_keys__ - LoaderOptions.__optional_keys__


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loader": "gpu"}, ValueError, "loader must be one of auto, cpu, planes, dali, nvdec, both, got 'gpu'"),
        ({"thread": 2}, TypeError, "unexpected keyword argument 'thread'"),
        ({"loader": "cpu", "decoders": 2}, TypeError, "unexpected keyword argument 'decoders'"),
        ({"resolution": (64, 96)}, ValueError, r"one positive number of pixels, as clips are square; got \(64, 96\)"),
        ({"segments": 2}, ValueError, "segments=2 and crops=None are views for evaluation; set training=False"),
        ({"crops": 3}, ValueError, "segments=1 and crops=3 are views for evaluation"),
        ({"training": False, "order": ClipOrder(2)}, ValueError, "order, shuffle and epochs are for training"),
        ({"training": False, "epochs": 2}, ValueError, "order, shuffle and epochs are for training"),
        ({"rank": 1}, ValueError, "give both rank and ranks or neither, got rank=1, ranks=None"),
        ({"rank": 2, "ranks": 2}, ValueError, r"rank 2 is not in 0 \.\. 1"),
        ({"batch": 0}, ValueError, "^batch must be at least 1, got 0$"),
        ({"epochs": 0}, ValueError, "^epochs must be at least 1, got 0$"),
        ({"first_number": -1}, ValueError, "^first_number must be at least 0, got -1$"),
        ({"batch": 12}, ValueError, r"an epoch has 11 clips, fewer than 1 rank\(s\) x batch 12: .* drop_last=False"),
        (
            {"batch": 3, "order": ClipOrder(2), "rank": 0, "ranks": 2},
            ValueError,
            "must be a multiple of the 2 views of a draw",
        ),
        ({"order": ClipOrder(2, 6, 6), "rank": 0, "ranks": 4}, ValueError, "4 ranks do not divide the pool's 6 lanes"),
        ({"stride": None}, ValueError, "give either stride, at least 1, or sample_fps"),
    ],
)
def test_what_cannot_be_is_refused(rows, options, error, message):
    with pytest.raises(error, match=message):
        load(rows, **options)


def test_a_corpus_is_its_own_order_and_videos(corpus):
    for options in ({"videos": corpus}, {"shuffle": False}):
        with pytest.raises(ValueError, match="videos and shuffle=False go with a list"):
            load(corpus, **options)


class Batches(torch.utils.data.IterableDataset):
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return (batch.labels for batch in self.make())


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_a_dataloader_are_refused_or_have_shares(rows, workers):
    """Each of them would load every clip."""
    options = {"num_workers": workers, "batch_size": None, "multiprocessing_context": "fork"}
    whole = load(rows)
    with pytest.raises(
        LoaderError, match=rf"num_workers={workers}: each of them would load every clip.*set num_workers=0"
    ):
        list(torch.utils.data.DataLoader(Batches(lambda: whole), **options))
    assert labels(whole), "in the process itself it goes on"

    def share() -> Any:
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        return load(rows, training=False, rank=worker.id, ranks=worker.num_workers, threads=1)

    shared = [label for batch in torch.utils.data.DataLoader(Batches(share), **options) for label in batch]
    assert sorted(shared) == sorted(labels(load(rows, training=False)))


def test_a_loader_of_one_process_is_none_of_another(rows):
    files = VideoFiles()
    source = ClipList(rows, files, num_frames=4, stride=2)
    with ClipLoader(files, source, CropRecipe(), [np.arange(2)] * 2, resolution=32, threads=1) as loader:
        next(loader)
        context = {"num_workers": 2, "batch_size": None, "multiprocessing_context": "fork"}
        with pytest.raises(LoaderError, match="used in another process than it was made in"):
            list(torch.utils.data.DataLoader(Batches(lambda: loader), **context))
        next(loader)
