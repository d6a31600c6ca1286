"""DALI's graph returns exactly the wanted frames, cut as the CPU loader cuts them; runs end in memory of their own."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips
import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")

from trocar.loaders.decode.dali_decoder import DecodingPipeline
from trocar.loaders.decode.dali_pipeline import (
    DataNode,
    Sample,
    ViewCut,
    clip_pipeline,
    cut_view,
    decode_windows,
    fn,
    pipeline_def,
    types,
    view_input,
)
from trocar.loaders.decode.dali_pipeline import (
    dali as dali_module,
)

pytestmark = pytest.mark.timeout(120)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# How DALI converts on the CPU: FFmpeg's SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND.
ACCURATE = 0x2 | 0x2000 | 0x40000
FRAMES, RESOLUTION = 4, 64
# NVDEC needs 256 pixels for some codecs.
WIDTH, HEIGHT = 320, 256
# A codec's place is the id of its video.
CONTAINERS = {"libvpx-vp9": "mp4", "libvpx": "webm", "mjpeg": "mp4", "libx264": "mp4", "libx265": "mp4", "mpeg4": "mp4"}
ON_CPU = ["libvpx-vp9", "libvpx", "mjpeg"]
ON_GPU = [codec for codec in CONTAINERS if codec != "mjpeg"]  # loaders/decode/dali_codecs.py


def read_bytes(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint8)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> dict[str, np.ndarray]:
    """By codec, a video of 60 numbered frames."""
    folder = tmp_path_factory.mktemp("numbered")
    for video_id, (codec, suffix) in enumerate(CONTAINERS.items()):
        path = folder / f"{codec}.{suffix}"
        clips.write_numbered(path, 60, video_id=video_id, width=WIDTH, height=HEIGHT, gop=20, codec=codec)
    return {path.stem: read_bytes(path) for path in folder.iterdir()}


def build(device: torch.device = CPU, definition: Any = clip_pipeline, **options: Any) -> DecodingPipeline:
    defaults = {"views": 1, "resolution": RESOLUTION, "largest_run": 8, "threads": 2}
    return DecodingPipeline(definition, device=device, **{**defaults, **options})


def whole(order: Any) -> ViewCut:
    return ViewCut(0, 0, HEIGHT, WIDTH, np.array(order, np.int32))


def sample(window: np.ndarray, ranks: Any, *orders: Any) -> Sample:
    """Whole pictures: one view for each order, or one that shows every rank."""
    views = [whole(order) for order in orders or [range(len(ranks))]]
    return Sample(views, window=window, ranks=np.array(ranks, np.int32))


def numbers(clip: torch.Tensor) -> list[tuple[int, int]]:
    """(video id, number) of each frame."""
    return [clips.read_number(picture) for picture in clip.cpu().numpy()]


@pytest.mark.parametrize(
    ("device", "codec"),
    [(CPU, codec) for codec in ON_CPU] + [pytest.param(CUDA, codec, marks=pytest.mark.gpu) for codec in ON_GPU],
)
def test_exactly_the_wanted_frames(numbered, codec, device):
    """Of windows in which other numbers of frames are wanted, in any order and repeatedly; three runs ahead, of any size."""
    pipeline = build(device)
    wanted = [
        [([0, 1, 2, 59], [0, 1, 2, 3]), ([21, 40], [1, 1, 0, 1]), ([7], [0, 0, 0, 0])],
        [([3, 13, 23, 33, 43, 53], [5, 0, 3, 2])],
        [([start, start + 4, start + 8, start + 12], [0, 1, 2, 3]) for start in range(8)],
    ]
    for run in wanted:
        pipeline.submit([sample(numbered[codec], ranks, order) for ranks, order in run])
    for run in wanted:
        (clip_batch,) = pipeline.result()
        assert clip_batch.shape == (len(run), FRAMES, RESOLUTION, RESOLUTION, 3)
        assert (clip_batch.dtype, clip_batch.device.type) == (torch.uint8, device.type)
        for clip, (ranks, order) in zip(clip_batch, run, strict=True):
            video_id = list(CONTAINERS).index(codec)
            assert numbers(clip) == [(video_id, ranks[index]) for index in order]


def test_several_views_share_one_decoded_window(numbered):
    pipeline = build(views=3)
    orders = [([0, 2, 4, 6], [1, 3, 5, 7], [0, 0, 7, 7]), ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 1, 1])]
    ranks = [[10, 11, 14, 15, 18, 19, 22, 23], [0, 20, 40, 59]]
    pipeline.submit([sample(numbered["mjpeg"], kept, *order) for kept, order in zip(ranks, orders, strict=True)])
    views = pipeline.result()
    assert len(views) == 3
    for view, clip_batch in enumerate(views):
        for clip, kept, order in zip(clip_batch, ranks, orders, strict=True):
            assert [number for _, number in numbers(clip)] == [kept[index] for index in order[view]]


def test_pictures_decoded_elsewhere_take_the_same_way(numbered):
    pictures = np.stack([clips.number_picture(9, number, WIDTH, HEIGHT) for number in range(5)])
    ready = Sample([whole([4, 3, 3, 0])], pictures=pictures)
    corner = np.ascontiguousarray(pictures[:4, :RESOLUTION, :RESOLUTION])
    small = Sample([ViewCut(0, 0, RESOLUTION, RESOLUTION, np.arange(4, dtype=np.int32))], pictures=corner)
    decoded = sample(numbered["mjpeg"], [1, 2, 3, 4])
    pipeline = build()
    for run in ([ready], [decoded, ready, decoded], [ready, ready], [small]):
        pipeline.submit(run)
    assert numbers(pipeline.result()[0][0]) == [(9, 4), (9, 3), (9, 3), (9, 0)]
    mixed = pipeline.result()[0]
    assert numbers(mixed[1]) == [(9, 4), (9, 3), (9, 3), (9, 0)]
    assert [number for _, number in numbers(mixed[2])] == [1, 2, 3, 4]
    assert len(pipeline.result()[0]) == 2
    # What has the clip's size already passes unchanged.
    assert torch.equal(pipeline.result()[0][0], torch.from_numpy(corner))


def test_mirroring_is_exact(numbered):
    straight = whole([0, 1, 2, 3])
    mirrored = ViewCut(0, 0, HEIGHT, WIDTH, straight.order, is_mirrored=True)
    upended = ViewCut(0, 0, HEIGHT, WIDTH, straight.order, is_upended=True)
    pipeline = build()
    ranks = np.arange(4, dtype=np.int32)
    pipeline.submit([Sample([view], window=numbered["mjpeg"], ranks=ranks) for view in (straight, mirrored, upended)])
    first, second, third = pipeline.result()[0]
    assert torch.equal(first.flip(2), second)
    assert torch.equal(first.flip(1), third)
    assert not torch.equal(first, second)


def test_a_graph_with_operators_and_inputs_of_its_own(numbered):
    @pipeline_def(enable_conditionals=True)
    def darkened(device: str, views: int, resolution: int) -> tuple[DataNode, ...]:
        video = decode_windows(device)
        shares = [view_input("share", view, types.FLOAT, 0) for view in range(views)]
        return tuple(fn.brightness(cut_view(video, view, resolution), brightness=shares[view]) for view in range(views))

    views = [replace(whole(range(4)), inputs={"share": np.float32(share)}) for share in (1, 0.5)]
    ranks = np.arange(4, dtype=np.int32)
    pipeline = build(definition=darkened)
    pipeline.submit([Sample([view], window=numbered["mjpeg"], ranks=ranks) for view in views])
    full, half = pipeline.result()[0].float()
    assert full.max() > 200
    assert (full / 2 - half).abs().max() <= 1


def test_clips_are_dalis_memory_and_stay(numbered, monkeypatch):
    """Nothing is copied, nothing is overwritten by later runs, and the pipeline may go."""
    handed_over = []
    from_dlpack = torch.from_dlpack

    def recorded(tensor: Any) -> torch.Tensor:
        handed_over.append(tensor.data_ptr())
        return from_dlpack(tensor)

    monkeypatch.setattr(torch, "from_dlpack", recorded)
    pipeline = build()
    kept, copies = [], []
    for start in range(12):
        pipeline.submit([sample(numbered["libvpx-vp9"], range(start, start + FRAMES))] * (1 + start % 3))
        kept += pipeline.result()
        copies.append(kept[-1].clone())
    assert [clip.data_ptr() for clip in kept] == handed_over
    assert len(set(handed_over)) == 12
    del pipeline
    gc.collect()
    for start, (clip, copy) in enumerate(zip(kept, copies, strict=True)):
        assert torch.equal(clip, copy)
        assert [number for _, number in numbers(clip[-1])] == list(range(start, start + FRAMES))


class Memory:
    """Of a GPU, one buffer: free again when whoever had it lets go, at once or in the order of a stream, as DALI's is."""

    def __init__(self) -> None:
        self.values = torch.zeros(1, 1, 1, 1, 3, dtype=torch.uint8)

    def free(self, stream: Any) -> None:
        if stream is not None:
            stream.synchronize()


class Stream:
    """Work that is queued is done when somebody waits for it."""

    cuda_stream = 77

    def __init__(self) -> None:
        self.queue: list[Any] = []

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()


class StandIn:
    """DALI's pipeline as `DecodingPipeline` uses it, on `Memory`. A run writes its number."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.runs, self.bound = memory, 0, None

    def build(self) -> None:
        pass

    def feed_input(
        self, data_node: Any, data: Any, layout: Any = None, cuda_stream: Any = None, use_copy_kernel: bool = False
    ) -> None:
        pass

    def schedule_run(self) -> None:
        pass

    def share_outputs(self, cuda_stream: Any = None) -> tuple[Any, ...]:
        self.memory.free(self.bound)  # of the run before, whose tensors are gone
        self.bound, self.runs = cuda_stream, self.runs + 1
        self.memory.values.fill_(self.runs)
        return (SimpleNamespace(as_tensor=lambda: self.memory.values),)

    def release_outputs(self) -> None:
        pass


def test_memory_is_not_written_to_while_a_stream_has_still_to_read_it() -> None:
    """The host is two steps ahead of the GPU and has dropped its tensors: a step reads what its own clips were."""
    for name in ("share_outputs", "release_outputs", "schedule_run", "feed_input"):
        real, stand_in = (inspect.signature(getattr(owner, name)) for owner in (dali_module.Pipeline, StandIn))
        assert list(real.parameters) == list(stand_in.parameters), name
    stream, read = Stream(), []
    stand_in: Any = StandIn(Memory())
    options: dict[str, Any] = {"views": 1, "resolution": RESOLUTION, "largest_run": 1, "threads": 1}
    pipeline = DecodingPipeline(lambda **_: stand_in, device=CPU, stream=stream, **options)  # pyright: ignore
    for _ in range(3):
        pipeline.submit([sample(np.zeros(1, np.uint8), [0])])
        (clips_of_step,) = pipeline.result()
        stream.queue.append(lambda clips=clips_of_step: read.append(int(clips.max())))
    stream.synchronize()
    assert read == [1, 2, 3]


def test_queued_runs_decode_while_the_caller_does_something_else(numbered):
    pipeline = build()
    start = time.process_time()
    for _ in range(3):
        pipeline.submit([sample(numbered["libvpx-vp9"], [0, 20, 40, 59])] * 8)
    before, now = start, time.process_time()
    for _ in range(200):
        time.sleep(0.1)
        before, now = now, time.process_time()
        if now - before < 0.002:
            break
    ahead = now - start
    for _ in range(3):
        pipeline.result()
    assert time.process_time() - now < ahead / 5


def test_a_run_that_fails_says_so_and_another_pipeline_goes_on(numbered):
    good = sample(numbered["libvpx-vp9"], [5, 6, 7, 8])
    noisy = numbered["libvpx-vp9"].copy()
    third = len(noisy) // 3
    noisy[third : 2 * third] = np.frombuffer(np.random.default_rng(0).bytes(third), np.uint8)
    broken = [
        sample(noisy, [20, 30, 40, 50]),
        sample(numbered["mjpeg"][:5000], [0, 1, 2, 3]),
        sample(np.zeros(1000, np.uint8), [0, 1, 2, 3]),
        sample(numbered["libvpx-vp9"], [5, 6, 7, 60]),  # a rank behind the end, which must not come out black
        sample(numbered["libvpx-vp9"], [-1, 5, 6, 7]),
    ]
    for bad in broken:
        pipeline = build()
        for run in ([good], [good, bad, good], [good]):
            pipeline.submit(run)
        assert [number for _, number in numbers(pipeline.result()[0][0])] == [5, 6, 7, 8]
        with pytest.raises(RuntimeError, match="pipeline"):
            pipeline.result()
        other = build()
        other.submit([good, good])
        del pipeline  # with a run in it that nobody fetched
        assert [number for _, number in numbers(other.result()[0][1])] == [5, 6, 7, 8]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("runs", [200, pytest.param(2500, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_memory_descriptors_and_threads_stay_flat(numbered, runs):
    """Over many runs of changing size, and over many pipelines that failed."""
    good = sample(numbered["mjpeg"], [0, 10, 20, 30])
    bad = sample(np.zeros(1000, np.uint8), [0, 1, 2, 3])

    def use(count: int) -> None:
        pipeline = build()
        for run in range(count):
            pipeline.submit([good] * (1 + run % 8))
            pipeline.result()
        for _ in range(count // 40):
            pipeline = build()
            for samples in ([good], [good, bad], [good]):
                pipeline.submit(samples)
            pipeline.result()
            with pytest.raises(RuntimeError):
                pipeline.result()

    def held() -> tuple[int, int, int]:
        gc.collect()
        return resident_bytes(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def grown() -> tuple[int, int, int]:
        before = held()
        use(runs)
        memory, descriptors, threads = (now - then for now, then in zip(held(), before, strict=True))
        print(f"\n{runs} runs, {runs // 40} failures: resident memory grew by {memory / 1e6:.1f} MB")
        return memory, descriptors, threads

    use(100)
    # DALI's own pools hold tens of MB more or less by chance, a leak grows every time; the pictures of a run are 1 MB.
    found = [grown()]
    while found[-1][0] >= 80e6 and len(found) < 3:
        found.append(grown())
    assert found[-1][0] < 80e6
    assert [counts for _, *counts in found] == [[0, 0]] * len(found)


def test_without_dali_the_extra_is_named():
    program = "import sys; sys.modules['nvidia.dali'] = None; import trocar.loaders.decode.dali_pipeline"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.returncode
    assert "ImportError: DALI is not installed: in a checkout, pip install '.[dali]'" in process.stderr
