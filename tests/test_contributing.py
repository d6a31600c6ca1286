"""Where something new goes: a toy of each, written where the table of CONTRIBUTING.md says and named where it says; and the
workflow."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from runs import TINY

from trocar.engine import cli
from trocar.engine.config.file import load_config
from trocar.engine.step import build
from trocar.judge.labels import dataset
from trocar.loaders import choose

ROOT = Path(__file__).resolve().parent.parent
LOADER = """
from .decode.loader import BaseClipLoader

class ClipLoader(BaseClipLoader):
    def __init__(self, videos, sampler, crops, numbers, **options):
        self.made_of = (videos, numbers, options["workers"])

    def _start(self, spans): ...
    def _finish(self, block): ...
"""
KERNEL = """
import torch
from .launch import jit, launch, takes_triton, tl

def double_reference(values):
    return values * 2

@jit
def _double_kernel(values, doubled, size, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(doubled + place, tl.load(values + place, mask=place < size) * 2, mask=place < size)

def double(values):
    if not takes_triton(values):
        return double_reference(values)
    doubled = torch.full_like(values, float("nan"))
    launch(_double_kernel, (1,), values, doubled, values.numel(), BLOCK=16)
    return doubled
"""
OBJECTIVE = """
from .masks import TubeMask
from .objective import Objective, ObjectiveOutput

class Toy(Objective):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, frames, masks, loss_scale=1.0):
        tokens = self.encoder(frames, masks.visible)
        clip_loss = tokens.square().mean((1, 2))
        return ObjectiveOutput(clip_loss.mean() * loss_scale, clip_loss.detach(), tokens)
"""
READER = """
from ..dataset import Segment

def read(root):
    return [Segment(str(path), None, None, path.stem[0], subject=path.stem) for path in sorted(root.glob("*.mp4"))]
"""
CARD = """
title: Toy
domain: open
task: which letter a name begins with
num_classes: 2
classes: [a, b]
subject: video
videos: 2
main_metric: accuracy
licence: CC BY 4.0
source: https://example.org/toy
citation: An example
"""
COMMAND = """
def add_commands(commands):
    commands.add("toy", task="pictures", text="what a toy does").set_defaults(run=run_toy)

def run_toy(options):
    print("a toy ran")
    return 0
"""


def table() -> dict[str, list[str]]:
    """What is new to the cells behind it."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Where something new goes\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:] if line]
    return {what: cells for what, *cells in rows}


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Writes texts to the files that a row names, NAME being toy, where they are imported as if they stood in the tree. Returns
    the modules' names."""
    before = set(sys.modules)

    def write(what: str, *texts: str) -> list[str]:
        modules = []
        files = re.findall(r"`([\w/]*NAME[\w/.]*)`", table()[what][0])
        for name, text in zip(files, texts, strict=True):
            file = tmp_path / name.replace("NAME", "toy")
            assert not (ROOT / file.relative_to(tmp_path)).exists()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            room = name.partition("NAME")[0].strip("/")
            assert (ROOT / room).is_dir(), f"CONTRIBUTING.md: no folder {room}"
            if file.suffix == ".py":
                package = import_module(f"trocar.{room.replace('/', '.')}")
                monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / room)])
                modules.append("trocar." + file.relative_to(tmp_path).with_suffix("").as_posix().replace("/", "."))
        return modules

    yield write
    for name in sorted(set(sys.modules) - before, reverse=True):  # children before their parents
        if ".toy" in name:
            parent, _, child = name.rpartition(".")
            vars(sys.modules[parent]).pop(child, None)
            del sys.modules[name]


def test_the_table_has_these_five_and_names_what_is_there() -> None:
    rows = table()
    assert list(rows) == ["loader", "kernel", "objective", "dataset", "command"]
    for what, (_, named, tested) in rows.items():
        for name, path in re.findall(r"`([\w.]+)` in `([\w/.]+)`", named):
            text = (ROOT / path).read_text(encoding="utf-8")
            for part in name.split("."):
                assert re.search(rf"^ *(class )?{part}\b", text, re.MULTILINE), f"{what}: {path} has no {name}"
        (place,) = re.findall(r"`([\w/.]+)`", tested)
        assert (ROOT / place).exists() or (ROOT / place).parent.is_dir(), f"{what}: {place}"


def test_a_loader(add: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = add("loader", LOADER)
    asked = dict(device=torch.device("cpu"), resolution=32, options={}, workers=3)
    with pytest.raises(ValueError, match="got 'toy'"):
        choose.choose_loader("toy", "videos", "sampler", "crops", **asked)  # pyright: ignore
    monkeypatch.setattr(choose, "Loader", Literal["auto", "cpu", "dali", "toy"])
    choice = choose.choose_loader("toy", "videos", "sampler", "crops", **asked)  # pyright: ignore
    assert (choice.name, choice.reason) == ("toy", "as asked for")
    loader = choice.open("numbers")
    assert type(loader) is import_module(name).ClipLoader
    assert vars(loader)["made_of"] == ("videos", "numbers", 3)


def test_a_kernel(add: Callable[..., list[str]], kernels: torch.device) -> None:
    (name,) = add("kernel", KERNEL)
    toy, values = import_module(name), torch.arange(5.0, device=kernels)
    assert torch.equal(toy.double(values), toy.double_reference(values))


def test_an_objective(add: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = add("objective", OBJECTIVE)
    toy, config = import_module(name), load_config("demo_cpu", TINY)
    config = replace(config, objective=replace(config.objective, kind="toy"))  # pyright: ignore[reportArgumentType]

    def build_toy(config, found):
        encoder = build.build_encoder(config)
        return toy.Toy(encoder), build.build_masks(config, encoder)

    monkeypatch.setitem(build.OBJECTIVES, "toy", build_toy)
    model, masks = build.build_model(config)
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    output = model(frames, masks(0, [0, 1], [0, 0]))
    output.loss.backward()
    assert isinstance(model, toy.Toy)
    assert output.clip_loss.shape == (2,)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_dataset(add: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("dataset", READER, CARD)
    monkeypatch.setattr(dataset, "CARDS", tmp_path / "configs" / "datasets")
    assert dataset.dataset_names() == ["toy"]
    for name in ("a1.mp4", "b2.mp4"):
        (tmp_path / name).touch()
    assert [segment.label for segment in dataset.read_dataset("toy", tmp_path)] == ["a", "b"]


def test_a_command(
    add: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = add("command", COMMAND)
    folder = name.removeprefix("trocar.").removesuffix(".commands")
    with pytest.raises(SystemExit):
        cli.main(["toy"])
    monkeypatch.setattr(cli, "FOLDERS", (*cli.FOLDERS, folder))
    assert cli.main(["toy"]) == 0
    assert capsys.readouterr().out == "a toy ran\n"
    assert "what a toy does" in cli.build_parser().format_help()


def test_workflows_pin_actions_by_major_version_and_run_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    known = {name for names in targets for name in names.split()}
    steps = []
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}, path
        steps += [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert not [name for name in used if not re.fullmatch(r"actions/[\w-]+@v\d+", name)]
    ran = {step["run"].split()[1] for step in steps if step.get("run", "").startswith("make ")}
    assert {"setup-dev", "test", "compat", "docs"} <= ran <= known
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path


def test_the_citation_is_of_this_version() -> None:
    """Its fields are those that version 1.2.0 of the format requires, and what pyproject.toml says too."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for ours, theirs in (("version", "version"), ("license", "license"), ("abstract", "description")):
        assert f'\n{theirs} = "{citation[ours]}"\n' in project
