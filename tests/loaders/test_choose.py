"""Where a run decodes is measured, compared and said."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
import torch

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.ranks.distributed import World
from trocar.engine.step.loading import _settle, build_loader
from trocar.loaders import choose, cpu
from trocar.loaders.choose import (
    Choice,
    Kind,
    Loader,
    LoaderChoice,
    agree,
    choose_decoders,
    choose_loader,
    decoding_processes,
)
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.video_files import VideoFiles
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler

CROPS = CropRecipe((1, 1), (1, 1), 0)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
H264, VP9 = Kind("h264", "yuv420p", 128, 96), Kind("vp9", "yuv420p", 128, 96)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("choose")
    (folder / "videos").mkdir()
    for number, (name, codec) in enumerate([("0.mp4", "libx264"), ("1.webm", "libvpx-vp9"), ("2.webm", "libvpx-vp9")]):
        clips.write_numbered(folder / "videos" / name, 60, video_id=number, gop=12, codec=codec)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, progress=False)
    return Corpus.open(folder / "corpus")


def sampler_of(corpus: Corpus) -> Sampler:
    return Sampler(corpus.frames, num_frames=4, stride=2, seed=0)


class Doctored(cpu.ClipLoader):
    """A CPU loader that stands for another one, and shows H.264 upside down."""

    def __init__(self, *arguments: Any, refuses: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        if refuses:
            self.taken_over["a.mp4"] = refuses

    def _finish(self, block: Any) -> Any:
        frames, results = super()._finish(block)
        for row, result in enumerate(results):
            if result.clips[0].video == 0:
                frames[row] = frames[row].flip(1)
        return frames, results


def test_every_kind_is_compared(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cpu = partial(cpu.ClipLoader, corpus, sampler_of(corpus), CROPS, resolution=64, threads=1)
    make_other = partial(Doctored, corpus, sampler_of(corpus), CROPS, resolution=64, threads=1)
    rates = iter([50.0, 400.0] * 2)
    run = choose._run
    monkeypatch.setattr(choose, "_run", lambda loader, clips: (*run(loader, clips)[:1], next(rates), ""))
    found = choose_decoders(corpus, sampler_of(corpus), make_cpu, make_other, repeats=1)
    assert [choice.kind for choice in found] == [
        Kind("vp9", "yuv420p", 128, 96),
        Kind("h264", "yuv420p", 128, 96),
    ]
    assert sum(choice.share for choice in found) == pytest.approx(1)
    assert [choice.uses_dali for choice in found] == [True, False]
    assert "400 clips/s with DALI, 50 on the CPU" in str(found[0])
    assert "clips differ from the CPU's by" in str(found[1])


def test_the_slower_and_the_failing_are_not_taken(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cpu = partial(cpu.ClipLoader, corpus, sampler_of(corpus), CROPS, resolution=64, threads=1)
    run = choose._run
    rates = iter([400.0, 50.0] * 2)
    monkeypatch.setattr(choose, "_run", lambda loader, clips: (*run(loader, clips)[:1], next(rates), ""))
    assert not any(choice.uses_dali for choice in choose_decoders(corpus, sampler_of(corpus), make_cpu, make_cpu))
    monkeypatch.setattr(choose, "_run", run)
    make_refusing = partial(Doctored, *make_cpu.args, refuses="no such codec", **make_cpu.keywords)
    found = choose_decoders(corpus, sampler_of(corpus), make_cpu, make_refusing, repeats=1)
    assert {(choice.uses_dali, choice.reason) for choice in found} == {(False, "as DALI fails: no such codec")}


def test_dali_that_does_not_start_is_no_reason_to_stop(corpus: Corpus) -> None:
    """As in a container without NVIDIA's video libraries: said, tried once, and the CPU does all."""
    tried = []

    def make_broken(batches: Any) -> Any:
        tried.append(batches)
        raise RuntimeError("Failed to load libnvcuvid.so\nstack of C++")

    unused = partial(pytest.fail, "the CPU is not measured against nothing")
    found = choose_decoders(corpus, sampler_of(corpus), unused, make_broken)  # pyright: ignore[reportArgumentType]
    assert {(choice.uses_dali, choice.reason) for choice in found} == {
        (False, "as DALI does not start: Failed to load libnvcuvid.so")
    }
    assert len(tried) == 1


def test_dali_that_fails_while_it_is_measured(corpus: Corpus) -> None:
    class Broken(cpu.ClipLoader):
        def _finish(self, block: Any) -> Any:
            raise RuntimeError("out of decoders")

    options: dict[str, Any] = {"resolution": 64, "threads": 1}
    make_cpu, make_broken = (
        partial(kind, corpus, sampler_of(corpus), CROPS, **options) for kind in (cpu.ClipLoader, Broken)
    )
    found = choose_decoders(corpus, sampler_of(corpus), make_cpu, make_broken, repeats=1)
    assert {choice.reason for choice in found} == {"as DALI fails: out of decoders"}


def test_ranks_take_what_all_of_them_are_for() -> None:
    fast, slow = Choice(VP9, 0.7, True, "fast"), Choice(H264, 0.3, False, "slow")
    assert agree([[fast, slow]] * 3) == [fast, slow]
    here, there = agree([[fast, Choice(H264, 0.3, True, "fast")], [Choice(VP9, 0.6, True, "faster"), slow]])
    assert here == fast
    assert (there.uses_dali, there.reason) == (False, "as rank 1 found: slow")
    (alone,) = agree([[fast], []])
    assert (alone.uses_dali, alone.reason) == (False, "as rank 1 found: not measured, or DALI is not installed")


def test_a_run_that_goes_on_measures_nothing_and_decodes_as_it_did(corpus: Corpus, tmp_path: Path) -> None:
    """RUN/loader.json of the first rank counts, for all ranks; clips of another size are another choice."""
    config = load_config("demo_cpu", [f"data.corpus={corpus.path}", f"run.dir={tmp_path}"])
    found = [Choice(VP9, 0.7, True, "fast"), Choice(H264, 0.3, False, "slow")]
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
    settle: Any = lambda measure: asked.append(measure()) or [Choice(VP9, 1.0, True, "fast")]  # noqa: E731
    options: dict[str, Any] = {"resolution": 64, "options": {"threads": 1}, "settle": settle}
    choice = choose_loader("auto", corpus, sampler_of(corpus), CROPS, device=GPU, **options)
    assert (choice.name, asked) == ("cpu", [[]])


def test_rare_kinds_stay_on_the_cpu_unmeasured(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "MEASURED_KINDS", 0)
    refused = partial(pytest.fail, "nothing is measured, DALI is not even started")
    found = choose_decoders(corpus, sampler_of(corpus), refused, refused)  # pyright: ignore[reportArgumentType]
    assert [choice.reason for choice in found] == ["too few clips to measure it"] * 2


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
    with pytest.raises(ConfigError, match=r"data\.loader: 'nvdec' decodes on a GPU, and the run is on the CPU"):
        build_loader(config, corpus, sampler_of(corpus), [], CPU)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Stands for both ClipLoaders, on a machine with a GPU and DALI: (module, options) of every loader that is made."""
    made: list[tuple[str, dict[str, Any]]] = []

    def module_of(name: str, package: str) -> Any:
        def loader(*arguments: Any, resolution: int = 224, **options: Any) -> str:
            made.append((name, options))
            return name

        return type("Module", (), {"ClipLoader": staticmethod(loader)})

    monkeypatch.setattr(choose, "import_module", module_of)
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
    def measured(videos: Any, sampler: Any, make_cpu: Any, make_dali: Any) -> list[Choice]:
        assert [make_cpu([]), make_dali([])] == [".cpu", ".dali"]
        return [Choice(kind, 0.5, kind in faster, "as measured here") for kind in (H264, VP9)]

    monkeypatch.setattr(choose, "choose_decoders", measured)
    choice = choice_of(corpus, "auto")
    assert (choice.name, [made.kind for made in choice.choices]) == (name, [H264, VP9])
    assert str(choice).startswith(f"{name}, as measured:\n  h264 yuv420p 128x96, 50% of the clips: ")
    assert choice.open([], order=None) == f".{name}"
    common = {"device": GPU, "threads": 3}
    assert opened[:2] == [(".cpu", {**common, "workers": 7}), (".dali", {**common, "decoders": 5})]
    assert opened[2][1].get("on_cpu") == on_cpu


def test_what_settles_the_choice_without_measuring(corpus, opened, monkeypatch) -> None:
    monkeypatch.setattr(choose, "choose_decoders", lambda *_: pytest.fail("measured"))
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
    chosen = [Choice(VP9, 0.7, True, "fast"), Choice(H264, 0.3, False, "slow")]
    monkeypatch.setattr(choose, "choose_decoders", lambda *_: chosen)
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


def test_measuring_with_dali_itself(corpus: Corpus, tmp_path: Path) -> None:
    """VP9 is decoded by DALI's CPU backend, H.264 is left to the CPU's own loader: equal frames both ways."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from trocar.loaders import dali

    make_cpu = partial(cpu.ClipLoader, corpus, sampler_of(corpus), CROPS, resolution=64, threads=1)
    make_dali = partial(
        dali.ClipLoader, corpus, sampler_of(corpus), CROPS, resolution=64, threads=1, device="cpu", decoders=1
    )
    for choice in choose_decoders(corpus, sampler_of(corpus), make_cpu, make_dali, repeats=1):
        assert "clips/s with DALI" in choice.reason
