"""Test videos that an encoder was pretrained on: planted as the same file, renamed, in another folder, encoded anew and packed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clips import write_pictures
from dataset_fixtures import SMALL
from safetensors.torch import save_file

from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.weights.run_encoder import build_encoder
from trocar.judge.downstream.finetune_command import open_task
from trocar.judge.downstream.pretraining import NOT_COMPARED, ON_TEST, PUBLISHED, compare_pretraining, find_pretraining
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings

PLANTED = ("same", "folder", "renamed", "encoded", "packed")
TINY = ["data.frames=2", "data.resolution=32", "model.width=16", "model.depth=1", "model.heads=1", "data.stride=2"]


def pictures(seed: int, width: int = 96, height: int = 72, frames: int = 50) -> list[np.ndarray]:
    """A smooth texture that drifts by a pixel a frame, the same in any size."""
    chance = np.random.default_rng(seed)
    noise = torch.from_numpy(chance.random((1, 3, 8, 10), dtype=np.float32)) * 255
    whole = torch.nn.functional.interpolate(noise, (96, 176), mode="bicubic").clamp(0, 255)
    cut = [whole[..., 10:82, frame : frame + 96] for frame in range(frames)]
    sized = [torch.nn.functional.interpolate(part, (height, width), mode="area")[0] for part in cut]
    return [np.ascontiguousarray(part.permute(1, 2, 0).round().to(torch.uint8).numpy()) for part in sized]


@dataclass
class Made:
    """tables: planted.csv and clean.csv, paths relative to `root`. corpora: of originals, and of their proxies, whose originals are
    gone. runs: a run's folder for each; exports: its encoder as a file."""

    root: Path
    corpora: dict[str, Path]
    exports: dict[str, Path]
    runs: dict[str, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("planted")
    names = [f"{kind}_{split}{n}" for split in ("train", "val") for kind in ("planted", "clean") for n in range(2)]
    names += [*PLANTED, *(f"clean_test{n}" for n in range(3))]
    videos, web = root / "benchmark" / "videos", root / "web"
    (web / "elsewhere").mkdir(parents=True)
    videos.mkdir(parents=True)
    for seed, name in enumerate(names):
        write_pictures(videos / f"{name}.mp4", pictures(seed))
    for table in ("planted", "clean"):
        tests = PLANTED if table == "planted" else [f"clean_test{n}" for n in range(3)]
        kept = [(name, "test") for name in tests]
        kept += [(f"{table}_{split}{n}", split) for split in ("train", "val") for n in range(2)]
        rows = [f"videos/{name}.mp4,{'ab'[n % 2]},{name},{split}" for n, (name, split) in enumerate(kept)]
        (root / f"{table}.csv").write_text("\n".join(["video,label,subject,split", *rows]) + "\n")
    os.link(videos / "same.mp4", web / "hard_link.mp4")
    shutil.copy(videos / "folder.mp4", web / "elsewhere" / "folder.mp4")
    shutil.copy(videos / "renamed.mp4", web / "x17.mp4")
    again = {"gop": 12, "fps": 25, "options": {"crf": "35"}}
    write_pictures(web / "anew.mkv", pictures(names.index("encoded"), 64, 48), **again)
    write_pictures(web / "original.mkv", pictures(names.index("packed"), 128, 96), b_frames=2, **again)
    for seed in (900, 901):
        write_pictures(web / f"other{seed}.mp4", pictures(seed))
    corpora = {name: root / name for name in ("originals", "proxies")}
    index_corpus([web, videos / "same.mp4"], corpora["originals"], progress=False)
    pack_corpus(corpora["originals"], corpora["proxies"], PackSettings(short_side=48, stride=2), progress=False)
    exports, runs = {}, {}
    for name in corpora:
        config = load_config("demo_cpu", [f"data.corpus={name}", *TINY])
        exports[name], runs[name] = root / f"{name}.safetensors", root / "runs" / name
        state = {key: value.contiguous() for key, value in build_encoder(config).state_dict().items()}
        save_file(state, exports[name], metadata={"step": "1", "config": config.to_yaml(), "folder": str(root)})
        runs[name].mkdir(parents=True)
        (runs[name] / "config.yaml").write_text(config.to_yaml())
        (runs[name] / "run.json").write_text(json.dumps([{"config": config.to_yaml(), "folder": str(root)}]))
    return Made(root, corpora, exports, runs)


def test_audit_finds_all_plants_and_nothing_else(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for corpus in made.corpora.values():
        command = [str(made.root / "benchmark"), "--split", "as-is", "--corpus", str(corpus)]
        assert main(["bench", "audit", str(made.root / "planted.csv"), *command]) == 1
        assert "pretraining: 5 rows of test come from videos of the corpus" in capsys.readouterr().out
        assert main(["bench", "audit", str(made.root / "clean.csv"), *command]) == 0
        assert "no fault found" in capsys.readouterr().out
    # A card's table begins at ROOT as well.
    command = [str(made.root / "benchmark"), "--split", "as-is", "--corpus", str(made.corpora["proxies"])]
    card = ["bench", "audit", "hyperkvasir", *command, "--table", str(made.root / "planted.csv")]
    assert main(card) == 1
    assert "5 rows of test come from" in capsys.readouterr().out


def test_absent_videos_are_an_error(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--split", "as-is", "--corpus", str(made.corpora["originals"])]
    assert main(["bench", "audit", str(made.root / "planted.csv"), str(made.root / "nowhere"), *command]) == 1
    said = capsys.readouterr()
    assert "no fault found" not in said.out
    assert "videos/encoded.mp4: no such video (7 of 7 are missing), so it cannot be compared" in said.err


def test_the_run_says_what_it_was_trained_on(made: Made, tmp_path: Path) -> None:
    """By run.json, by an export's header, without the videos that it left out; where the corpus is gone, that is said."""
    task = open_task(str(made.root / "planted.csv"), made.root / "benchmark", split="as-is", cache=tmp_path)
    for source in (*made.runs.values(), *made.exports.values()):
        found = compare_pretraining(task, find_pretraining(str(source)))
        assert (found["test_rows"], found["flags"], found["unknown"]) == (5, [ON_TEST], [])
    run = tmp_path / "run"
    shutil.copytree(made.runs["originals"], run)
    config = load_config("demo_cpu", ["data.corpus=originals", "data.exclude=[x17, '*/anew.mkv']", *TINY])
    (run / "run.json").write_text(json.dumps([{"config": config.to_yaml(), "folder": str(made.root)}]))
    assert compare_pretraining(task, find_pretraining(str(run)))["test_rows"] == 3
    (run / "run.json").write_text(json.dumps([{"config": config.to_yaml(), "folder": str(tmp_path)}]))
    lost = compare_pretraining(task, find_pretraining(str(run)))
    assert lost["flags"] == [NOT_COMPARED]
    assert "originals" in lost["unknown"][0]
    named = compare_pretraining(task, find_pretraining(str(run), str(made.corpora["proxies"])))
    assert (named["test_rows"], named["flags"], named["unknown"]) == (5, [ON_TEST], [])
    published = compare_pretraining(task, find_pretraining("timm:vit_tiny_patch16_224"))
    assert (published["flags"], published["unknown"]) == ([], [PUBLISHED])
    assert compare_pretraining(task, find_pretraining(f"random:{run}"))["unknown"] == []


def test_finetune_and_the_matrix_flag_every_score(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (made.root / "web").rglob("*.m*"):
        path.unlink()  # the proxies are what is left
    common = [str(made.root / "benchmark"), str(made.exports["proxies"]), "--split", "as-is", "--device", "cpu"]
    assert main(["finetune", str(made.root / "planted.csv"), *common, "--out", str(tmp_path / "cell"), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "pretrained on test: 5 of 5 test rows come from videos of" in said
    assert json.loads((tmp_path / "cell/row.json").read_text())["flags"][0] == ON_TEST
    matrix = {
        "models": [{"name": "ours", "weights": "proxies.safetensors"}],
        "datasets": [{"name": f"{n}.csv", "root": "benchmark", "split": "as-is"} for n in ("planted", "clean")],
        "protocols": [{"name": "probe", "kind": "linear", "set": SMALL}],
        "seeds": [0],
    }
    (tmp_path / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    places = ["--out", str(tmp_path / "out"), "--data", str(made.root), "--weights", str(made.root)]
    assert main(["bench", "downstream", str(tmp_path / "matrix.yaml"), *places, "--device", "cpu"]) == 0
    planted, clean = (tmp_path / "out/report.md").read_text().split("## planted")[1].split("## clean")
    assert ON_TEST in planted
    assert ON_TEST not in clean
    assert NOT_COMPARED not in clean
