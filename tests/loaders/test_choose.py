"""Where a run decodes is measured, compared and said."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import corpus_of_two_kinds

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.draws.samplers import build_order
from trocar.engine.ranks.distributed import World
from trocar.engine.step.loading import _settle, build_loader, diversity
from trocar.loaders import choose, cpu
from trocar.loaders.choice import Choice, agree
from trocar.loaders.choose import Loader, LoaderChoice, choose_loader, decoding_processes
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.video_files import VideoFiles
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video.video import Kind

CROPS = CropRecipe((1, 1), (1, 1), 0)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
H264, VP9 = Kind("h264", "yuv420p", 128, 96), Kind("vp9", "yuv420p", 128, 96)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_of_two_kinds(tmp_path_factory.mktemp("choose"))


def sampler_of(corpus: Corpus) -> Sampler:
    return Sampler(corpus.frames, num_frames=4, stride=2, seed=0)


def test_ranks_take_what_all_of_them_are_for() -> None:
    fast, slow = Choice(VP9, 0.7, "dali", "fast"), Choice(H264, 0.3, "cpu", "slow")
    assert agree([[fast, slow]] * 3) == [fast, slow]
    here, there = agree([[fast, Choice(H264, 0.3, "dali", "fast")], [Choice(VP9, 0.6, "dali", "faster"), slow]])
    assert here == fast
    assert (there.loader, there.reason) == ("cpu", "as rank 1 found: slow")
    (alone,) = agree([[fast], []])
    assert (alone.loader, alone.reason) == ("cpu", "as rank 1 found: not measured, or not installed")


def test_a_run_that_goes_on_measures_nothing_and_decodes_as_it_did(corpus: Corpus, tmp_path: Path) -> None:
    """RUN/loader.json of the first rank counts, for all ranks; clips of another size are another choice."""
    config = load_config("demo_cpu", [f"data.corpus={corpus.path}", f"run.dir={tmp_path}"])
    found = [Choice(VP9, 0.7, "dali", "fast"), Choice(H264, 0.3, "cpu", "slow")]
    assert _settle(config, World(CPU), lambda: found) == found
    refused: Any = partial(pytest.fail, "measured again")
    assert _settle(config, World(CPU), refused) == found
    larger = load_config("demo_cpu", [f"data.corpus={corpus.path}", f"run.dir={tmp_path}", "data.resolution=96"])
    assert _settle(larger, World(CPU), lambda: found[:1]) == found[:1]

    class Second(World):
        """Hears of the first rank's file."""

        def gather(self, value: Any) -> list[Any]:
            return [json.loads((tmp_path / "loader.json").read_text()), value]

    assert _settle(config, Second(CPU, 1, 2), refused) == found
    assert _settle(larger, Second(CPU, 1, 2), refused) == found[:1]


def test_what_ranks_agree_on_is_asked_of_all_of_them(corpus, opened, monkeypatch) -> None:
    """Also where DALI is not installed, which cannot measure: else the others would wait for it."""
    monkeypatch.setattr(choose, "find_spec", lambda _: None)
    asked = []
    settle: Any = lambda measure: asked.append(measure()) or [Choice(VP9, 1.0, "dali", "fast")]  # noqa: E731
    options: dict[str, Any] = {"resolution": 64, "options": {"threads": 1}, "settle": settle}
    choice = choose_loader("auto", corpus, sampler_of(corpus), CROPS, device=GPU, **options)
    assert (choice.name, asked) == ("cpu", [[]])


def test_reuse_is_told_in_every_tenth_row(corpus: Corpus) -> None:
    reused = load_config(
        "demo_cpu", [f"data.corpus={corpus.path}", "data.views_per_span=4", "data.pool_spans=48", "optim.batch=8"]
    )
    order = build_order(reused)
    assert diversity(reused, order, 9) == {}
    told = diversity(reused, order, 1000)
    assert 250 <= told["unique_spans_per_1000_clips"] <= 300
    assert told["reuse_distance_steps"] == pytest.approx(48 / 8, rel=0.1)
    assert diversity(reused, ClipOrder(), 1000) == {}


def settings(corpus: Corpus, loader: str) -> Any:
    overrides = [
        f"data.corpus={corpus.path}",
        f"data.loader={loader}",
        "data.frames=4",
        "data.resolution=64",
        "data.threads=1",
    ]
    return load_config("demo_cpu", overrides)


def test_what_was_chosen_is_said(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    batches = [np.arange(4)]
    for loader, said in (("auto", "as batches are wanted on cpu"), ("cpu", "as asked for")):
        config = settings(corpus, loader)
        with build_loader(config, corpus, sampler_of(corpus), batches, torch.device("cpu"), report=True) as built:
            assert isinstance(built, cpu.ClipLoader)
            assert len(next(built).frames) == 4
        assert capsys.readouterr().err == f"loader: cpu, on 1 threads, {said}\n"
    with build_loader(config, corpus, sampler_of(corpus), batches, torch.device("cpu")):
        assert capsys.readouterr().err == ""


def test_dali_by_name(corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from trocar.loaders import dali

    config = settings(corpus, "dali")
    with build_loader(config, corpus, sampler_of(corpus), [np.arange(8)], torch.device("cpu"), report=True) as built:
        assert isinstance(built, dali.ClipLoader)
        assert next(built).count.failures == []
    assert capsys.readouterr().err == "loader: dali, as asked for\n"
    monkeypatch.setattr(choose, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="DALI is not installed; in a checkout, pip install"):
        build_loader(config, corpus, sampler_of(corpus), [], torch.device("cpu"))


def test_nvdec_by_name_without_a_gpu(corpus: Corpus) -> None:
    config = settings(corpus, "nvdec")
    with pytest.raises(ConfigError, match=r"data\.loader: 'nvdec' works on a GPU, and the run is on the CPU"):
        build_loader(config, corpus, sampler_of(corpus), [], CPU)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Stands for both ClipLoaders, on a machine with a GPU and DALI: (module, options) of every loader that is made."""
    made: list[tuple[str, dict[str, Any]]] = []

    def module_of(name: str, package: str) -> Any:
        def loader(*arguments: Any, resolution: int = 224, **options: Any) -> str:
            made.append((name, options))
            return name

        return type("Module", (), {"ClipLoader": staticmethod(loader)})

    monkeypatch.setattr(choose, "import_module", module_of)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "remembered"))
    monkeypatch.setattr(choose, "find_spec", lambda _: True)
    return made


def choice_of(
    corpus: Corpus,
    wanted: Loader,
    device: torch.device = GPU,
    dali_options: dict[str, Any] | None = None,
    workers: int | None = None,
) -> LoaderChoice:
    return choose_loader(
        wanted,
        corpus,
        sampler_of(corpus),
        CROPS,
        resolution=64,
        device=device,
        options={"threads": 3, **(dali_options or {"decoders": 5})},  # pyright: ignore[reportArgumentType]
        workers=workers,
        cores=8,
    )


@pytest.mark.parametrize(("faster", "name", "on_cpu"), [([H264], "dali", {VP9}), ([], "cpu", None)])
def test_auto_takes_what_is_faster(corpus, opened, monkeypatch, faster, name, on_cpu) -> None:
    def measured(videos: Any, sampler: Any, candidates: Any) -> list[Choice]:
        names = ["cpu", "dali", "nvdec", "planes"]
        assert [(candidate.name, candidate.decoders) for candidate in candidates] == [(name, ()) for name in names]
        assert [candidate.make([]) for candidate in candidates] == [f".{name}" for name in names]
        return [Choice(kind, 0.5, "dali" if kind in faster else "cpu", "as seen here") for kind in (H264, VP9)]

    monkeypatch.setattr(choose, "measure_loaders", measured)
    choice = choice_of(corpus, "auto")
    assert (choice.name, [made.kind for made in choice.choices]) == (name, [H264, VP9])
    whole = "dali for 50% of the clips, cpu for 50% of the clips" if faster else "cpu for 100% of the clips"
    assert str(choice) == (
        f"{name}, as measured: {whole}\n  h264 yuv420p 128x96: as seen here; vp9 yuv420p 128x96: as seen here"
    )
    assert choice.open([], order=None) == f".{name}"
    common = {"device": GPU, "threads": 3}
    measured_ones = [(".cpu", {**common, "workers": 7}), (".dali", {**common, "decoders": 5}), (".nvdec", common)]
    measured_ones.append((".planes", {**common, "workers": 7}))
    assert opened[:4] == measured_ones
    assert opened[4][1].get("on_cpu") == on_cpu


def test_the_number_of_decoders_is_found_where_nobody_sets_it(corpus, opened, monkeypatch) -> None:
    def measured(videos: Any, sampler: Any, candidates: Any) -> list[Choice]:
        assert [candidate.decoders for candidate in candidates] == [(), (16, 32, 64, 8), (), ()]
        candidates[1].open([], 16)
        return [Choice(H264, 0.4, "cpu", "slow"), Choice(VP9, 0.6, "dali", "fast", 32)]

    monkeypatch.setattr(choose, "measure_loaders", measured)
    choice = choice_of(corpus, "auto", dali_options={"decoders": None})
    assert choice.reason.startswith("as measured: dali (32 decoders) for 60% of the clips, cpu for 40%")
    choice.open([])
    assert [options["decoders"] for _, options in opened] == [16, 32]
    choice_of(corpus, "dali", dali_options={"decoders": None}).open([])
    assert opened[-1][1]["decoders"] is None


def test_what_a_machine_has_measured_it_remembers(corpus, opened, monkeypatch, tmp_path) -> None:
    """For the same corpus and settings; a folder that cannot be written to is no reason to stop."""
    found = [Choice(VP9, 0.7, "dali", "fast", 32), Choice(H264, 0.3, "cpu", "slow")]
    asked: list[int] = []

    def measured(videos: Any, sampler: Any, candidates: Any) -> list[Choice]:
        asked.append(1)
        return found

    monkeypatch.setattr(choose, "measure_loaders", measured)
    for workers, total in ((None, 1), (None, 1), (2, 2), (None, 2)):
        assert choice_of(corpus, "auto", workers=workers).choices == tuple(found)
        assert len(asked) == total
    kept = sorted((Path(os.environ["XDG_CACHE_HOME"]) / "trocar" / "loaders").iterdir())
    assert len(kept) == 2
    for path in kept:
        path.write_text("{")
    assert choice_of(corpus, "auto").choices == tuple(found)
    assert len(asked) == 3
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choice_of(corpus, "auto").choices == tuple(found)
    assert len(asked) == 4


def test_what_was_measured_without_a_loader_is_not_remembered_with_it(corpus, opened, monkeypatch) -> None:
    measured_with: list[list[str]] = []

    def measured(videos: Any, sampler: Any, candidates: Any) -> list[Choice]:
        measured_with.append([candidate.name for candidate in candidates])
        return [Choice(VP9, 1.0, "cpu", "slow")]

    monkeypatch.setattr(choose, "measure_loaders", measured)
    with monkeypatch.context() as patch:
        patch.setattr(choose, "find_spec", lambda name: None if name == choose.NVDEC_PACKAGE else name)
        choice_of(corpus, "auto")
    choice_of(corpus, "auto")
    assert measured_with == [["cpu", "dali", "planes"], ["cpu", "dali", "nvdec", "planes"]]


def test_choices_of_runs_that_knew_two_loaders() -> None:
    row = {"kind": {"codec": "vp9", "pix_fmt": "yuv420p", "width": 128, "height": 96}, "share": 1.0, "reason": "fast"}
    assert Choice.parse({**row, "uses_dali": True}) == Choice(VP9, 1.0, "dali", "fast")
    assert Choice.parse({**row, "uses_dali": False}) == Choice(VP9, 1.0, "cpu", "fast")


def test_what_settles_the_choice_without_measuring(corpus, opened, monkeypatch) -> None:
    monkeypatch.setattr(choose, "measure_loaders", lambda *_: pytest.fail("measured"))
    assert str(choice_of(corpus, "dali")) == "dali, as asked for"
    assert str(choice_of(corpus, "cpu", workers=0)) == "cpu, on 3 threads, as asked for"
    assert str(choice_of(corpus, "cpu")) == "cpu, in 7 decoding processes, as asked for"
    assert str(choice_of(corpus, "auto", CPU)) == "cpu, on 3 threads, as batches are wanted on cpu"
    assert (
        str(choice_of(corpus, "auto", GPU, {"inputs": None})) == "dali, as the graph or its inputs are the caller's own"
    )
    monkeypatch.setattr(choose, "find_spec", lambda _: None)
    assert str(choice_of(corpus, "auto")).startswith(
        "cpu, in 7 decoding processes, as DALI is not installed (in a checkout, pip install"
    )
    with pytest.raises(ImportError, match="'dali' is asked for, but DALI is not installed"):
        choice_of(corpus, "dali")


def test_how_many_processes_decode(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, cores = (corpus, sampler_of(corpus), CROPS), len(os.sched_getaffinity(0))
    assert decoding_processes(None, CPU, sent, 8) == 0
    assert decoding_processes(3, CPU, sent, 8) == 3
    assert decoding_processes(0, GPU, sent, 8) == 0
    assert [decoding_processes(None, GPU, sent, number) for number in (1, 2, 16)] == [1, 1, 15]
    assert decoding_processes(None, GPU, sent, None) == max(1, cores - 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert decoding_processes(None, GPU, sent, None) == 1
    assert decoding_processes(None, GPU, (VideoFiles([]), *sent[1:]), 8) == 0, "each would probe all files"
    own = type("Crops", (CropRecipe,), {"__module__": "__main__"})()
    assert decoding_processes(None, GPU, (*sent[:2], own), 8) == 0, "what stands in the script itself cannot be sent"


def test_clip_loader_measures_and_tells(corpus, opened, monkeypatch) -> None:
    chosen = [Choice(VP9, 0.7, "dali", "fast"), Choice(H264, 0.3, "cpu", "slow")]
    monkeypatch.setattr(choose, "measure_loaders", lambda *_: chosen)
    loader = clip_loader(corpus, batch=2, num_frames=4, stride=2, device=GPU, decoders=2, rank=0, ranks=1)
    assert loader.choice is not None
    assert (loader.choice.name, loader.choice.choices) == ("dali", tuple(chosen))
    loader._open_loader(iter(()))
    assert opened[-1][0] == ".dali"
    assert (opened[-1][1]["decoders"], opened[-1][1]["on_cpu"]) == (2, {H264})
    with pytest.raises(ValueError, match="workers must be at least 0, or None, got -1"):
        clip_loader(corpus, batch=2, num_frames=4, stride=2, device="cpu", workers=-1)
    on_cpu = clip_loader(corpus, batch=2, num_frames=4, stride=2, device="cpu")
    assert str(on_cpu.choice).endswith("as batches are wanted on cpu")
