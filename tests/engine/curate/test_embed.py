"""Embeddings: the descriptor, other encoders, resuming, several processes, spans that cannot be read, real clips."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from clips import write_numbered
from killing import started
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config

from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.curate import embed as module
from trocar.engine.curate import embedders
from trocar.engine.curate.descriptor import WIDTH, cielab, describe_clips
from trocar.engine.curate.embed import embed_corpus, embed_shard
from trocar.engine.curate.embedders import load_embedder
from trocar.engine.inputs.checkpoints import CheckpointError
from trocar.engine.pretrain import pretrain
from trocar.engine.weights.files import WeightsError
from trocar.engine.weights.run_encoder import load_run_encoder
from trocar.judge.downstream import downstream
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.curate.embeddings import EmbeddingRows, shard_path
from trocar.loaders.draw.grid_clips import GridClips
from trocar.loaders.pack import isolated
from trocar.ssl.encoder import VideoEncoder

SMALL = {"frames": 4, "stride": 2, "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 70, 35 and 5 frames: 10, 5 and 1 spans of 7 frames."""
    folder = tmp_path_factory.mktemp("embed")
    for number, frames in enumerate((70, 35, 5)):
        write_numbered(folder / f"{number}.mp4", frames, video_id=number)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


def read(folder: Path) -> np.ndarray:
    rows = EmbeddingRows(folder)
    return rows.read(0, rows.num_rows)


def test_cielab_of_known_colours() -> None:
    """White, black, red and mid grey of sRGB (CIE 15)."""
    colours = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]])
    wanted = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [53.39, 0, 0]])
    assert torch.allclose(cielab(colours), wanted, atol=0.05)


def test_the_descriptor_sees_colour_framing_and_motion() -> None:
    generator = torch.Generator().manual_seed(0)
    still = torch.randint(60, 200, (1, 1, 64, 64, 3), generator=generator, dtype=torch.uint8).expand(1, 8, -1, -1, -1)
    described = describe_clips(still)
    assert described.shape == (1, WIDTH)
    assert torch.equal(described, describe_clips(torch.cat([still, still]))[:1]), "a clip's row depends on nothing else"
    assert (described[0, :256] ** 2).sum() == pytest.approx(1, abs=1e-5)
    assert (described[0, 256:448] ** 2).sum() == pytest.approx(1, abs=1e-5)
    assert (described[0, 448:] == 0).all()
    moving = still.clone()
    moving[:, ::2, :32, :32] = 0
    moved = describe_clips(moving)[0, 448:].view(4, 4)
    assert (moved[:2, :2] > 0.1).all()
    assert moved.sum() == pytest.approx(float(moved[:2, :2].sum()))
    mirrored = describe_clips(still.flip(3))
    assert torch.allclose(mirrored[:, :256], described[:, :256])
    assert not torch.allclose(mirrored[:, 256:448], described[:, 256:448])
    with pytest.raises(ValueError, match="multiple of 8"):
        describe_clips(still[:, :, :60])


def test_rows_are_the_spans(corpus: Path, tmp_path: Path) -> None:
    summary = embed_corpus(corpus, tmp_path, rows_per_shard=6, **SMALL)
    assert (summary.spans, summary.shards, summary.made, summary.failed) == (16, 3, 3, 0)
    ids, video, first_frame, span_frames = EmbeddingRows(tmp_path).spans()
    opened = Corpus.open(corpus)
    assert ids == [opened.video(row).id for row in range(3)]
    assert video.tolist() == [0] * 10 + [1] * 5 + [2]
    assert first_frame.tolist() == [*range(0, 70, 7), *range(0, 35, 7), 0]
    assert set(span_frames.tolist()) == {7}
    clips = GridClips(opened, num_frames=4, stride=2, sample_fps=None).clips([0, 9, 10, 15])
    assert [(clip.video, clip.frames.tolist()) for clip in clips] == [
        (0, [0, 2, 4, 6]),
        (0, [63, 65, 67, 69]),
        (1, [0, 2, 4, 6]),
        (2, [0, 2, 4, 4]),
    ]
    # Another division into shards and processes, the same rows.
    embed_corpus(corpus, tmp_path / "again", rows_per_shard=16, **SMALL)
    assert np.array_equal(read(tmp_path), read(tmp_path / "again"))


def test_several_processes_and_parts(corpus: Path, tmp_path: Path) -> None:
    embed_corpus(corpus, tmp_path / "one", rows_per_shard=4, **SMALL)
    first = embed_corpus(corpus, tmp_path / "parts", rows_per_shard=4, part=(1, 2), **SMALL)
    assert first.made == 2
    with pytest.raises(CorpusError, match=r"missing, and 1 more of 4 shards"):
        EmbeddingRows(tmp_path / "parts")
    second = embed_corpus(corpus, tmp_path / "parts", rows_per_shard=4, workers=2, part=(0, 2), **SMALL)
    assert second.made == 2
    assert np.array_equal(read(tmp_path / "one"), read(tmp_path / "parts"))


def test_killed_it_goes_on_with_the_missing_shards(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_corpus(corpus, tmp_path / "whole", rows_per_shard=4, **SMALL)
    calls, replace, fails_at = 0, os.replace, 0

    def killed(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    for fails_at in range(1, 7):  # spans, manifest and four shards
        calls = 0
        with pytest.raises(KeyboardInterrupt):
            embed_corpus(corpus, tmp_path / str(fails_at), rows_per_shard=4, **SMALL)
        calls = -100
        summary = embed_corpus(corpus, tmp_path / str(fails_at), rows_per_shard=4, **SMALL)
        assert summary.made == 4 - max(0, fails_at - 3)
        assert np.array_equal(read(tmp_path / "whole"), read(tmp_path / str(fails_at)))


def test_a_worker_loads_one_model_and_chooses_one_loader(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all its shards; and a shard's rows leave the device together."""
    calls: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return call

    for name in ("load_embedder", "choose_loader"):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    monkeypatch.setattr(torch.Tensor, "cpu", counted("transfer", torch.Tensor.cpu))
    monkeypatch.setattr(module, "BATCH", 2)
    embed_corpus(corpus, tmp_path, rows_per_shard=4, **SMALL)
    assert calls == {"load_embedder": 1, "choose_loader": 1, "transfer": 4}
    calls.clear()
    module._maker.cache_clear()
    for shard in range(4):
        embed_shard(shard, str(corpus), str(tmp_path), "descriptor", 4, 2, 1, "cpu")
    module._maker.cache_clear()
    assert calls == {"load_embedder": 1, "choose_loader": 1, "transfer": 4}


@pytest.mark.parametrize("device_of", [module._device, downstream._device])
def test_a_worker_has_one_gpu(device_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever jobs it does; in turn where workers are more than GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of("auto") == "cuda:0"
    monkeypatch.setattr(isolated, "_number", 5)
    assert [device_of("auto") for _ in range(3)] == ["cuda:1"] * 3
    assert device_of("cpu") == "cpu"


def test_on_a_gpu_matrix_products_are_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: asked.append((kind, dtype)) or nullcontext())
    monkeypatch.setattr(embedders, "frozen", lambda model, device: model.eval())
    encoder = VideoEncoder(16, 1, 2, frames=2, resolution=16, patch=16)
    data = SimpleNamespace(frames=2, stride=2, sample_fps=None, resolution=16)
    monkeypatch.setattr(embedders, "load_run_encoder", lambda path: (encoder, SimpleNamespace(data=data)))
    frames = torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8)
    for device, wanted in (("cpu", []), ("cuda", [("cuda", torch.bfloat16)])):
        load_embedder(".", torch.device(device)).embed(frames)
        assert asked == wanted


@pytest.mark.slow
def test_sigkill_at_any_time(corpus: Path, tmp_path: Path) -> None:
    code = "import sys; from trocar.engine.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "embed", str(corpus), "--frames", "4", "--stride", "2", "--workers", "2"]
    command += ["--rows-per-shard", "2", "--out"]
    process = started([*command, str(tmp_path / "whole")], tmp_path / "whole")
    begun = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - begun
    inside = 0
    for number, share in enumerate(np.linspace(0.05, 0.9, 5)):
        out = tmp_path / str(number)
        process = started([*command, str(out)], out)
        time.sleep(share * seconds)
        process.send_signal(signal.SIGKILL)
        inside += process.wait() == -signal.SIGKILL
        subprocess.run([*command, str(out)], check=True)
        assert np.array_equal(read(tmp_path / "whole"), read(out))
    assert inside >= 3, "kills fell behind the work"


def test_other_settings_are_refused(corpus: Path, tmp_path: Path) -> None:
    embed_corpus(corpus, tmp_path, **SMALL)
    with pytest.raises(CorpusError, match=r"something else \(rows 16 -> .*stride 2 -> 3"):
        embed_corpus(corpus, tmp_path, **{**SMALL, "stride": 3})


def test_a_video_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    for number in range(2):
        write_numbered(tmp_path / f"{number}.mp4", 28, video_id=number)
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    (tmp_path / "1.mp4").unlink()
    summary = embed_corpus(tmp_path / "corpus", tmp_path / "out", **SMALL)
    assert (summary.spans, summary.failed) == (8, 4)
    assert "1.mp4" in "\n".join(summary.lines())
    assert np.isnan(read(tmp_path / "out")).all(axis=1).tolist() == [False] * 4 + [True] * 4


def test_an_image_model_from_a_local_file(corpus: Path, tmp_path: Path) -> None:
    """Random weights of a tiny model; the mean over four frames of what timm itself gives."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    name = f"timm:test_vit@{tmp_path / 'weights.safetensors'}"
    embedder = load_embedder(name, torch.device("cpu"), frames=8, stride=2)
    size = embedder.resolution
    frames = torch.randint(0, 256, (2, 8, size, size, 3), dtype=torch.uint8)
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        wanted = [model((clip[[0, 2, 5, 7]].permute(0, 3, 1, 2) / 255 - mean) / std).mean(dim=0) for clip in frames]
        assert torch.allclose(embedder.embed(frames), torch.stack(wanted), atol=1e-5)
    summary = embed_corpus(corpus, tmp_path / "out", model=name, **SMALL)
    assert summary.width == embedder.width == model.num_features
    with pytest.raises(ConfigError, match="cannot be made"):
        load_embedder(name.replace("test_vit", "no_such_model"), torch.device("cpu"))
    for suffix in ("pth", "safetensors"):
        broken = tmp_path / f"broken.{suffix}"
        broken.write_bytes(b"no weights")
        with pytest.raises(WeightsError, match=f"broken.{suffix}"):
            load_embedder(f"timm:test_vit@{broken}", torch.device("cpu"))


def test_a_runs_encoder(corpus: Path, tmp_path: Path) -> None:
    settings = [
        *(f"run.dir={tmp_path / 'run'}", f"data.corpus={corpus}", "run.tensorboard=false", "run.threads=1"),
        *("data.frames=4", "data.stride=2", "data.resolution=32", "model.depth=1", "model.decoder_depth=1"),
        *("optim.steps=1", "optim.batch=2"),
    ]
    pretrain(load_config("demo_cpu", settings), progress=False)
    encoder, config = load_run_encoder(tmp_path / "run")
    assert config.data.stride == 2
    embedder = load_embedder(str(tmp_path / "run"), torch.device("cpu"), frames=99)
    assert (embedder.frames, embedder.stride, embedder.resolution, embedder.width) == (4, 2, 32, 192)
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(embedder.embed(frames), encoder.eval()(frames).mean(dim=1))
    summary = embed_corpus(corpus, tmp_path / "out", model=str(tmp_path / "run"), threads=1, progress=False)
    assert (summary.spans, summary.width, summary.failed) == (16, 192, 0)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_run_encoder(tmp_path / "run")
    with pytest.raises(ConfigError, match="neither 'descriptor'"):
        load_embedder("descriptr", torch.device("cpu"))


def test_a_damaged_shard_is_not_taken_for_a_finished_one(corpus: Path, tmp_path: Path) -> None:
    embed_corpus(corpus, tmp_path, rows_per_shard=6, **SMALL)
    shard_path(tmp_path, 1).write_bytes(b"")
    with pytest.raises(CorpusError, match="damaged"):
        embed_corpus(corpus, tmp_path, rows_per_shard=6, **SMALL)


def leave_one_clip_out(rows: np.ndarray, clips: np.ndarray, sources: np.ndarray) -> tuple[float, list[str]]:
    """Balanced accuracy of the nearest other clip's source, a clip being the mean of its spans; what each clip was taken for."""
    means = np.stack([rows[clips == clip].mean(axis=0) for clip in range(len(sources))])
    gaps = ((means[:, None] - means[None]) ** 2).sum(axis=2)
    np.fill_diagonal(gaps, np.inf)
    nearest = sources[gaps.argmin(axis=1)]
    accuracy = [float((nearest[sources == source] == source).mean()) for source in np.unique(sources)]
    return float(np.mean(accuracy)), nearest.tolist()


def test_leave_one_clip_out() -> None:
    rows = np.array([[0.0], [0.3], [0.1], [5.0], [5.1], [5.3]])
    assert leave_one_clip_out(rows, np.arange(6), np.array(["a", "a", "a", "b", "b", "b"]))[0] == 1
    accuracy, nearest = leave_one_clip_out(rows, np.arange(6), np.array(["a", "a", "b", "b", "b", "b"]))
    assert nearest == ["b", "b", "a", "b", "b", "b"]
    assert accuracy == (0 + 3 / 4) / 2


def real_clips() -> list[Path]:
    folder = Path(os.environ.get("TROCAR_TEST_VIDEOS", "/nonexistent"))
    return [path for path in sorted(folder.glob("BSA_*.mp4")) if "heichole" not in path.name]


@pytest.mark.skipif(not real_clips(), reason="TROCAR_TEST_VIDEOS names no folder of real videos")
def test_the_descriptor_knows_real_sources(tmp_path: Path) -> None:
    """Four sources of at least five clips, 26 in all; chance is 0.25."""
    paths = real_clips()
    sources = np.array([path.name.split("_")[1] for path in paths])
    assert len(paths) == 26
    assert len(np.unique(sources)) == 4
    index_corpus(paths, tmp_path / "corpus", workers=1, progress=False)
    embed_corpus(tmp_path / "corpus", tmp_path / "out", threads=2, progress=False)
    _, clips, *_ = EmbeddingRows(tmp_path / "out").spans()
    accuracy, nearest = leave_one_clip_out(read(tmp_path / "out").astype(np.float32), clips, sources)
    taken: dict[tuple[str, str], int] = {}
    for source, found in zip(sources.tolist(), nearest, strict=True):
        taken[source, found] = taken.get((source, found), 0) + 1
    print(f"balanced accuracy {accuracy:.3f}; {taken}")
    assert accuracy >= 0.75


def test_a_failing_shard_is_named(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> list[tuple[tuple, Exception]]:
        return [((2, "", ""), RuntimeError("no memory"))]

    monkeypatch.setattr(module, "_run", run)
    with pytest.raises(CorpusError, match=r"00002.npy: cannot be made \(no memory\)"):
        embed_corpus(corpus, tmp_path, **SMALL)
