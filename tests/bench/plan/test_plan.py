"""`trocar plan`: the model's arithmetic, where its numbers come from, and what it says against real runs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import write_numbered

from trocar.bench.plan import check as plan_check
from trocar.bench.plan.check import Setting, bench_plan
from trocar.bench.plan.cluster import CLUSTERS, Cluster, load_cluster
from trocar.bench.plan.corpus import measure_corpora, span_cost
from trocar.bench.plan.model import Compute, Demand, Rate, Share, Videos, levers, plan_step
from trocar.bench.plan.proxies import proxy_codecs
from trocar.bench.plan.rates import (
    clip_flops,
    compute_rates,
    fit_line,
    interpreter_rate,
    packing_rates,
    shipped_rows,
    video_rates,
)
from trocar.bench.plan.report import corpus_size, make_plan, rows_of, with_number_of_parts
from trocar.bench.plan.table import sentence, table
from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.ranks.distributed import World
from trocar.engine.step import micro_batch
from trocar.engine.step.micro_batch import MARGIN, RESERVED_BYTES, step_memory
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.window import WindowReader

NOT_SAID = Rate(0.0, "test")


def seconds(value: float) -> Rate:
    return Rate(value, "test")


VIDEOS = Videos("originals", seconds(2e6), seconds(76), seconds(0.5), seconds(0.01), NOT_SAID, seconds(700))
COMPUTE = Compute(seconds(0.01), seconds(0.002))
GPU_SHARE = Share(ranks=8, cores=16, threads=16, storage=1e9, exchange=100e9, has_nvdec=True)


def test_a_step_takes_as_long_as_its_slowest_part() -> None:
    step = plan_step(COMPUTE, VIDEOS, GPU_SHARE, Demand(clips=64, views=1, prefetch=2, gradient_bytes=400e6))
    assert step.seconds_by_resource == {
        "compute": pytest.approx(0.01 + 64 * 0.002),
        "decode": pytest.approx(64 * 0.51 / 16),
        "storage": pytest.approx(64 * 2e6 / 1e9),
        "exchange": pytest.approx(2 * 7 / 8 * 400e6 / 100e9),
    }
    assert (step.bottleneck, step.decoder) == ("decode", "cpu")
    assert step.clips_per_second == pytest.approx(8 * 64 / (64 * 0.51 / 16))
    reused = plan_step(COMPUTE, VIDEOS, GPU_SHARE, Demand(clips=64, views=16, prefetch=2, gradient_bytes=400e6))
    assert reused.seconds_by_resource["decode"] == pytest.approx(4 * (0.5 + 16 * 0.01) / 12), (
        "12 spans in flight, 16 threads"
    )
    assert reused.bottleneck == "decode"
    assert reused.spans_per_second == pytest.approx(reused.clips_per_second / 16)


def test_nvdec_decodes_where_it_is_faster() -> None:
    few_cores = Share(8, 2, 2, 1e9, 100e9, has_nvdec=True)
    step = plan_step(COMPUTE, VIDEOS, few_cores, Demand(64, 1, 2, 0.0))
    assert step.decoder == "nvdec"
    assert step.seconds == pytest.approx(64 * 76 / 700)
    assert (
        plan_step(COMPUTE, VIDEOS, Share(8, 2, 2, 1e9, 1e11, has_nvdec=False), Demand(64, 1, 2, 0.0)).decoder == "cpu"
    )


def test_threads_share_the_interpreter_with_the_step_and_processes_do_not() -> None:
    """What the rates of an H200 say of runs on it, against what was measured there."""
    rows = {row.get("what", row.get("step")): row for row in shipped_rows() if row["benchmark"].startswith("gpu_")}
    speed = {name: row["clips_per_second"] for name, row in rows.items() if "clips_per_second" in row}
    interpreter = interpreter_rate(shipped_rows())
    assert interpreter is not None
    assert interpreter.is_measured
    alone = "proxies, decoding alone: 16 processes of 1 thread"
    compute = Compute(NOT_SAID, seconds(1 / speed["the same step on resident data, 64 clips"]))
    work = float(rows[alone]["note"].split()[0])
    proxies = Videos("proxies", NOT_SAID, seconds(16), seconds(work), NOT_SAID, NOT_SAID)
    threads, demand = Share(1, 16, 16, 1e9, 1e9, False, interpreter.value), Demand(64, 1, 2, 0.0)
    step = plan_step(compute, proxies, threads, demand)
    assert step.bottleneck == "interpreter"
    measured = speed["`trocar pretrain` from proxies, 16 decoding threads in the process of the step"]
    assert step.clips_per_second == pytest.approx(measured, rel=0.15)
    processes = replace(threads, threads=15, interpreter_seconds=0.0)
    beside = rows["64 clips, launched one by one"]["beside"]  # 15 processes and the step
    found = plan_step(compute, proxies, processes, demand)
    assert found.clips_per_second == pytest.approx(float(beside.split(", ")[1].split()[0]), rel=0.15)
    assert plan_step(compute, proxies, replace(processes, threads=16), demand).clips_per_second == pytest.approx(
        speed[alone], rel=0.15
    )
    gains = {lever.name: lever.gain for lever in levers(compute, proxies, threads, demand, [])}
    assert max(gains, key=lambda name: gains[name]) == "decoding processes (data.workers)"


def test_cores_are_shared_where_the_cpu_trains() -> None:
    cpu = Compute(seconds(0.0), seconds(0.1), threads=2)
    share = Share(1, 2, 2, 1e9, 1e9, has_nvdec=False)
    step = plan_step(cpu, VIDEOS, share, Demand(4, 1, 2, 0.0))
    assert step.bottleneck == "cores"
    assert step.seconds == pytest.approx((0.4 * 2 + 4 * 0.51) / 2)
    # A thread that sleeps needs no core.
    sleepy = Videos("originals", NOT_SAID, NOT_SAID, seconds(0.01), NOT_SAID, seconds(0.5))
    step = plan_step(Compute(seconds(0), seconds(0.01), threads=1), sleepy, share, Demand(4, 1, 2, 0.0))
    assert step.bottleneck == "decode"
    assert step.seconds == pytest.approx(4 * 0.51 / 2)


def test_levers_move_the_bottleneck() -> None:
    proxies = Videos("proxies", seconds(2e5), seconds(20), seconds(0.02), seconds(0.0), NOT_SAID)
    demand = Demand(64, 1, 2, 0.0)
    found = {lever.name: lever.gain for lever in levers(COMPUTE, VIDEOS, GPU_SHARE, demand, [proxies])}
    assert max(found, key=lambda name: found[name]) == "proxies"
    assert found["twice the cores"] == pytest.approx(2.0)
    assert found["a step twice as fast"] == found["twice the storage bandwidth"] == pytest.approx(1.0)
    found = {lever.name: lever.gain for lever in levers(COMPUTE, proxies, GPU_SHARE, demand, [])}
    assert found["a step twice as fast"] > 1.3
    assert found["twice the cores"] == pytest.approx(1.0)


def test_accumulation_is_named_where_it_moves_the_step() -> None:
    """Four clips at a time, in 8 parts: a fixed second is paid 8 times, and few spans keep few threads busy."""
    compute = Compute(seconds(1.0), seconds(0.002))
    found = levers(compute, VIDEOS, GPU_SHARE, Demand(4, 1, 2, 0.0, parts=8), [])
    gains = {lever.name: lever.gain for lever in found}
    assert gains["optim.accumulation=4, 8 clips at a time"] == pytest.approx(2 * 1.008 / 1.016)
    named = [lever.name for lever in levers(compute, VIDEOS, GPU_SHARE, Demand(4, 1, 2, 0.0), [])]
    assert not any("accumulation" in name for name in named)
    (odd,) = [
        lever for lever in levers(COMPUTE, VIDEOS, GPU_SHARE, Demand(4, 1, 2, 4e8, 9), []) if "accum" in lever.name
    ]
    assert odd.name == "optim.accumulation=3, 12 clips at a time"


def test_lines() -> None:
    assert fit_line({4: 0.5, 8: 0.9}) == pytest.approx((0.1, 0.1))
    assert fit_line({4: 0.8}) == pytest.approx((0.0, 0.2)), "one point: through 0"
    assert fit_line({4: 0.1, 8: 0.9})[0] == 0.0, "nothing costs less than nothing"
    assert fit_line({4: 0.9, 8: 0.7}) == pytest.approx((0.8, 0.0))


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cluster_loads(path: Path) -> None:
    assert load_cluster(path.stem) == load_cluster(str(path))


def test_clusters_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean a100_8"):
        load_cluster("a100-8")
    bad = tmp_path / "bad.yaml"
    bad.write_text((CLUSTERS / "cpu_2_cores.yaml").read_text() + "utilization: {value: 0.5, source: ''}\n")
    with pytest.raises(ConfigError, match="source"):
        load_cluster(str(bad))


@pytest.fixture(scope="module")
def paper() -> tuple[Config, Cluster]:
    return load_config("surgrec_mae_unbalanced", ["optim.accumulation=4"]), load_cluster("a100_8")


def test_accumulation_auto_is_settled_by_the_clusters_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few parts as a rank of the cluster has memory for; a cluster that does not say it is asked."""
    tiny = ["model.encoder=tiny", "model.depth=2", "model.decoder_depth=1", "data.resolution=64", "optim.batch=64"]
    config, cluster = load_config("surgrec_mae_unbalanced", tiny), load_cluster("a100_8")
    world = World(torch.device("cuda"), size=8, local_size=8)
    needed = step_memory(config, world)
    monkeypatch.setattr(micro_batch, "step_memory", lambda *_: needed)  # asked for once: a dry run takes seconds
    for parts in (1, 2, 4):
        gigabytes = (needed.of(8 // parts) + RESERVED_BYTES) / (1 - MARGIN) / 1e9
        enough = replace(cluster, memory_gigabytes=1.0001 * gigabytes)
        assert with_number_of_parts(config, enough).optim.accumulation == parts
    with pytest.raises(ConfigError, match="memory_gigabytes is not given"):
        with_number_of_parts(config, replace(cluster, memory_gigabytes=None))
    given = load_config("surgrec_mae_unbalanced", ["optim.accumulation=2"])
    assert with_number_of_parts(given, replace(cluster, memory_gigabytes=None)) is given


def test_measured_and_assumed_are_kept_apart(paper: tuple[Config, Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    config, cluster = paper
    rows = shipped_rows()
    assert video_rates(rows, config, cluster, "originals").core_seconds_per_span.is_measured  # type: ignore[union-attr]
    assert not compute_rates(rows, config, cluster).seconds_per_clip.is_measured, "no A100 was measured"
    assert all(rate is not None and rate.is_measured for rate in packing_rates(rows, cluster))
    measured = {
        "benchmark": "training", "arm": "resident", "changed": "", "objective": "mae", "encoder": "base", "frames": 16,
        "resolution": 224, "batch": 64, "threads": 1, "step_seconds": {"median": 0.064}, "time": "2030-01-01T00:00:00",
        "commit": "abc", "machine": {"device": "NVIDIA A100-SXM4-80GB"},
    }  # fmt: skip
    compute = compute_rates([*rows, measured], config, cluster)
    assert compute.seconds_per_clip.value == pytest.approx(0.001)
    assert compute.seconds_per_clip.origin == "training, NVIDIA A100-SXM4-80GB, 2030-01-01, commit abc"
    assert compute.seconds_per_clip.is_measured
    other = {**measured, "machine": {"device": "NVIDIA H100"}}
    assert not compute_rates([*rows, other], config, cluster).seconds_per_clip.is_measured, "another card's step"
    with pytest.raises(ConfigError, match="measure one: trocar profile"):
        compute_rates([], load_config("surgrec_mae_unbalanced"), load_cluster("cpu_2_cores"))


def test_the_papers_case(paper: tuple[Config, Cluster]) -> None:
    config, cluster = paper
    corpus = corpus_size(None, 10_535, 214_500_000, config, cluster)
    assert corpus.spans == round(214_500_000 / 61 - 10_535 / 2)
    plan = make_plan(config, cluster, corpus, shipped_rows())
    assert plan.clips == 150 * corpus.spans
    arms = {arm.name: arm for arm in plan.arms}
    assert list(arms) == [
        "originals, 1 view a span", "originals, 4 views a span", "proxies, 1 view a span", "proxies, 4 views a span",
    ]  # fmt: skip
    naive = arms["originals, 1 view a span"]
    assert naive.days == pytest.approx(plan.clips / naive.step.clips_per_second / 86400)
    assert naive.gpu_hours == pytest.approx(naive.days * 24 * 8)
    assert naive.levers[0].name == "proxies"
    assert arms["proxies, 1 view a span"].packing_core_hours > 0
    assert arms["proxies, 1 view a span"].terabytes > naive.terabytes  # type: ignore[operator]
    assert "It rests on measured rates." in sentence(naive, plan.compute)
    text = table(plan)
    measured, assumed = text.index("\nMeasured:\n"), text.index("\nAssumed:\n")
    assert measured < text.index("originals, core seconds per span: ") < assumed < text.index("step, seconds a clip: ")
    json.dumps(rows_of(plan), allow_nan=False)
    with pytest.raises(ConfigError, match="not divisible by 8 ranks"):
        make_plan(
            load_config("surgrec_mae_unbalanced", ["optim.batch=12", "optim.accumulation=1"]), cluster, corpus, []
        )


def test_proxies_by_codec(paper: tuple[Config, Cluster]) -> None:
    """Bytes and rates as measured; what no GPU of the cluster's kind has shown is said to be unmeasured."""
    _, cluster = paper
    figures = {"packing_cpu_seconds_per_original_frame": 0.01, "frames_per_core_second": 600.0}
    rows: list[dict[str, Any]] = [
        {"benchmark": "proxies", "variant": variant, "bytes_per_frame": size, "amplification": amplification, **figures,
         "machine": {"device": "x86_64"}}
        for variant, size, amplification in (("h264 gop 8 quality 23", 8192.0, 1.25), ("mjpeg gop 1 quality 3", 16384.0, 1.0))
    ]  # fmt: skip
    h264, jpeg = proxy_codecs(rows, cluster)
    assert h264.sentence(1e9) == (
        "h264: 8.0 KiB a frame, 8,192.00 GB in all; amplification 1.25; 600 frames a second of a core (x86_64); "
        "by DALI on a GPU unmeasured"
    )
    assert "16.0 KiB a frame, 16,384.00 GB in all; amplification 1.00" in jpeg.sentence(1e9)
    shown = {"benchmark": "dali_cache", "arm": "JPEG", "codec": "mjpeg", "clips_per_second": 1234.0}
    for device, told in ((f"NVIDIA {cluster.device}", "1,234 clips/s"), ("another", "unmeasured")):
        _, jpeg = proxy_codecs([*rows, {**shown, "machine": {"device": device}}], cluster)
        assert jpeg.sentence(1e9).endswith(f"by DALI on a GPU {told}")
    assert proxy_codecs([], cluster) == []


def test_flops_of_a_clip() -> None:
    tiny = ["data.frames=4", "data.resolution=32", "model.patch=8", "model.depth=1", "model.decoder_depth=1"]
    one, two = (clip_flops(load_config("demo_cpu", [*tiny, f"model.depth={depth}"])) for depth in (1, 2))
    assert one < two < 2 * one


SLEEPING = (
    Setting(2, 1),
    Setting(6, 3),
    Setting(4, 4, is_held_out=True),
    Setting(4, 1, 0.12, is_held_out=True),
    Setting(6, 1, 0.03, is_held_out=True),
)


@pytest.mark.slow
def test_the_model_against_runs_whose_times_are_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real runs, in which the step and the loader sleep: so it holds on a busy machine that what should overlap does."""
    from trocar.ssl import mae

    fast = mae.pixel_loss

    def slow(prediction: Any, *arguments: Any) -> Any:
        time.sleep(0.06 + 0.02 * len(prediction))
        return fast(prediction, *arguments)

    monkeypatch.setattr(mae, "pixel_loss", slow)
    read = plan_check.SpanReader.read
    monkeypatch.setattr(plan_check.SpanReader, "read", lambda *a: time.sleep(0.05) or read(*a))
    monkeypatch.setattr(plan_check, "SIZE", (96, 64))
    monkeypatch.setattr(plan_check, "CORPUS", plan_check.Scale(frames=120, videos=2))
    tiny = ["data.resolution=32", "model.width=24", "model.heads=2", "model.depth=1", "model.decoder_depth=1"]
    tiny += ["model.decoder_width=24", "model.decoder_heads=2"]
    rows = bench_plan(SLEEPING, rounds=1, steps=8, overrides=tiny, tell=lambda line: None)
    checked = [entry for entry in rows if entry["benchmark"] == "plan"]
    assert [entry["bottleneck"] for entry in checked] == ["compute", "decode", "decode"]
    for entry in checked:
        ratio = entry["measured_clips_per_second"] / entry["predicted_clips_per_second"]
        assert 0.85 < ratio < 1.15, plan_check.table(rows)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_model_against_real_work() -> None:
    """On a machine that does nothing else: within 15 % on settings that gave no rates."""
    rows = bench_plan(rounds=5)
    print(plan_check.table(rows))
    checked = [entry for entry in rows if entry["benchmark"] == "plan"]
    off = {
        entry["setting"]: entry["measured_clips_per_second"] / entry["predicted_clips_per_second"] - 1
        for entry in checked
    }
    assert all(abs(value) < 0.15 for value in off.values()), (off, checked[0]["load_average"])


def test_the_corpus_itself_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes and pictures by the index, seconds by decoding, packing by what `trocar pack` took; small sums are not nothing."""
    videos = tmp_path / "videos"
    videos.mkdir()
    write_numbered(videos / "a.mp4", 150, gop=10)
    index_corpus([videos], tmp_path / "corpus", workers=1, progress=False)
    pack_corpus(tmp_path / "corpus", tmp_path / "packed", PackSettings(stride=2), workers=1, progress=False)
    corpora = Corpus.open(tmp_path / "corpus"), Corpus.open(tmp_path / "packed")
    small = ["data.resolution=32", "data.frames=8", "data.stride=2", "optim.accumulation=4"]
    config = load_config("surgrec_mae_unbalanced", small)
    measured = measure_corpora(*corpora, config)
    originals, proxies = measured.spans["originals"], measured.spans["proxies"]
    # 15 frames and what precedes them: 0 to 9 of a GOP of 10; of proxies every frame is used, and GOPs have 8.
    assert 15 <= originals["pictures_per_span"].value <= 24
    assert 8 <= proxies["pictures_per_span"].value <= 15
    assert all(rate.is_measured and rate.value > 0 for rate in (*originals.values(), *proxies.values()))
    size = (videos / "a.mp4").stat().st_size
    assert 0.1 < originals["bytes_per_span"].value / (size * originals["pictures_per_span"].value / 150) < 3
    assert measured.packing is not None
    told = json.loads((tmp_path / "packed/packing.json").read_text())
    assert measured.packing[0].value == pytest.approx(told["core_seconds"] / 150)
    arguments = ["plan", "surgrec_mae_unbalanced", *small, "optim.epochs=1", "--cluster", "h200_8"]
    arguments += ["--corpus", str(tmp_path / "corpus")]
    assert main([*arguments, "--packed", str(tmp_path / "packed")]) == 0
    text = capsys.readouterr().out
    assert "1 videos, 150 frames, " in text
    assert f"originals, pictures per span: {originals['pictures_per_span'].value:.1f} (10 spans of" in text
    assert f"(trocar pack into {tmp_path / 'packed'}, " in text
    assert "| 0 |\n" not in text
    assert main(["plan", "surgrec_mae_unbalanced", *small, "--corpus", str(tmp_path / "packed")]) == 2
    assert "holds proxies" in capsys.readouterr().err


def test_window_costs_are_those_of_the_reader(tmp_path: Path) -> None:
    """By the index alone: the bytes that a window of the loaders reads, and at least the pictures that it decodes."""
    write_numbered(tmp_path / "b.mp4", 60, gop=12, b_frames=2)
    facts, gops = probe_video(tmp_path / "b.mp4")
    windows = WindowReader(facts)
    for frames in (np.arange(5, 30, 4), np.arange(20, 48), np.array([59])):
        window = windows.window(frames, gops)
        size, pictures = span_cost(gops, frames)
        assert size == window.bytes_read
        assert len(window.payloads) <= pictures <= 1.2 * len(window.payloads)
    windows.close()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write_numbered(tmp_path / f"{number}.mp4", 150, video_id=number)
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    arguments = ["plan", "surgrec_mae_unbalanced", "--corpus", str(tmp_path / "corpus"), "optim.accumulation=4"]
    assert main([*arguments, "--views", "8", "--json", str(tmp_path / "plan.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "2 videos" in printed
    assert "originals, bytes a frame" in printed
    rows = [json.loads(line) for line in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows][1] == "originals, 8 views a span"
    assert main(["plan", "surgrec_mae_unbalanced", "--videos", "3"]) == 2
    assert main([*arguments, "--cluster", "nowhere"]) == 2
