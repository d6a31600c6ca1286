"""The command line: what it does, and what it says when it cannot."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from clips import write_numbered
from PIL import Image

from trocar.engine import doctor as doctor_module
from trocar.engine.cli import main
from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.demo import Scene, make_videos
from trocar.engine.doctor import doctor
from trocar.engine.inputs.checkpoints import CheckpointError
from trocar.engine.step.build import build_model
from trocar.engine.view.curve import _smooth, view_curve
from trocar.engine.view.run import GIVEN, GUESSED, ORIGINAL, REBUILT, SEEN, reconstruction, view_reconstruction
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.decode.threads import LoaderError
from trocar.loaders.video.error import TrocarError
from trocar.ssl.mae import MaskedAutoencoder
from trocar.ssl.masks import Masks

SMALL = [
    "data.frames=4",
    "data.resolution=32",
    "model.patch=8",
    "model.depth=1",
    "model.decoder_depth=1",
    "optim.batch=4",
    "run.tensorboard=false",
]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, made through the command line."""
    folder = tmp_path_factory.mktemp("cli")
    for number in range(3):
        write_numbered(folder / f"{number}.mp4", 40, video_id=number)
    assert main(["index", str(folder), "--out", str(folder / "corpus"), "--workers", "1"]) == 0
    overrides = [f"data.corpus={folder / 'corpus'}", f"run.dir={folder / 'run'}", "optim.steps=2", *SMALL]
    assert main(["pretrain", "demo_cpu", *overrides]) == 0
    return folder / "run"


def test_views_write_pictures(run_dir: Path, tmp_path: Path) -> None:
    assert main(["view", "recon", str(run_dir), "--clips", "2"]) == 0
    assert main(["view", "curve", str(run_dir), "--out", str(tmp_path / "curve.png")]) == 0
    for path in (run_dir / "reconstruction.png", tmp_path / "curve.png"):
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert min(picture.shape[:2]) > 100
        assert picture.std() > 10


@pytest.mark.parametrize("targets", ["none", "channel", "patch"])
def test_reconstruction_puts_patches_where_they_belong(targets: str) -> None:
    """A perfect prediction gives the original back; hidden patches are grey and no other pixel is."""
    config = load_config("demo_cpu", [*SMALL, f"objective.targets={targets}"])
    model, mask = build_model(config)
    assert isinstance(model, MaskedAutoencoder)
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    masks = mask(0, [0, 1], 0)
    from trocar.kernels.pixel_loss import patch_targets

    perfect = patch_targets(frames, masks.masked, 2, 8, model.normalization, torch.float32)
    panels = reconstruction(model, frames, masks, perfect)
    assert list(panels) == [ORIGINAL, SEEN, *([REBUILT] if targets == "none" else [GIVEN, GUESSED])]
    original, hidden, rebuilt = panels[ORIGINAL], panels[SEEN], panels[REBUILT if targets == "none" else GIVEN]
    assert np.array_equal(original, frames.numpy())
    assert np.abs(rebuilt.astype(int) - frames.numpy()).max() <= 1
    grey = (hidden == 128).all(axis=-1).mean()
    assert grey == pytest.approx(masks.masked.shape[1] / model.encoder.num_tokens, abs=0.001)
    assert np.array_equal(hidden[hidden != 128], original[hidden != 128])


@pytest.mark.parametrize("targets", ["channel", "patch"])
def test_hidden_patches_are_also_shown_without_their_true_mean_and_deviation(targets: str) -> None:
    """Flat patches: 100 and 200 are seen, 1 and 2 tokens from a hidden one of 50, which may not show in the guess."""
    model, _ = build_model(load_config("demo_cpu", [*SMALL, f"objective.targets={targets}"]))
    assert isinstance(model, MaskedAutoencoder)
    frames = torch.full((1, 4, 32, 32, 3), 50, dtype=torch.uint8)
    frames[:, :2, :8, :8], frames[:, :2, :8, 24:] = 100, 200
    visible = torch.tensor([[0, 3]])
    masks = Masks(visible, torch.tensor([[token for token in range(32) if token not in (0, 3)]]))
    panels = reconstruction(model, frames, masks, torch.zeros(1, 30, 2 * 8 * 8 * 3))
    assert (panels[GIVEN] == frames.numpy()).all()
    guessed = panels[GUESSED][0]
    assert (guessed[:2, :8, 8:16] == 120).all()  # (100 / 1 + 200 / 4) / (1 / 1 + 1 / 4)
    assert (guessed[:2, :8, 16:24] == 180).all()
    assert (
        guessed[2:, :8, :8] == 109
    ).all()  # a step in time is one in space: (100 / 1 + 200 / 10) / (1 + 1 / 10) = 109.1
    assert (guessed[:2, :8, :8] == 100).all()


def test_clips_of_another_corpus_are_drawn_without_what_the_run_knows_of_its_own(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tree, shares, exclusions and held-out videos are of the run's corpus; a corpus of one other video has none of them."""
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(run_dir, run)
    text = yaml.safe_load((run / "config.yaml").read_text())
    text["data"] |= {"tree": str(tmp_path / "tree"), "balance": 1.0, "exclude": ["0.mp4"], "source_caps": {"a": 0.5}}
    text["validation"] = {"videos": ["1.mp4"]}
    (run / "config.yaml").write_text(yaml.safe_dump(text))
    (tmp_path / "videos").mkdir()
    write_numbered(tmp_path / "videos" / "9.mp4", 40, video_id=9)
    assert main(["index", str(tmp_path / "videos"), "--out", str(other), "--workers", "1"]) == 0
    assert main(["view", "recon", str(run), "--corpus", str(other), "--clips", "1"]) == 0
    assert (run / "reconstruction.png").is_file()
    assert main(["view", "recon", str(run), "--clips", "1"]) == 0, "of the run's held-out videos, which have no shares"
    (run / "config.yaml").write_text(yaml.safe_dump({**text, "validation": {}}))
    assert main(["view", "recon", str(run), "--clips", "1"]) != 0
    assert "data.source_caps: no video has the source 'a'" in capsys.readouterr().err


def test_the_running_mean_neither_trails_nor_leads() -> None:
    """Of a straight line it is the line, ten steps from both ends; of a peak, symmetric around it."""
    line = np.arange(60.0)
    assert np.allclose(_smooth(line.tolist()), line[10:-10])
    peak = _smooth([float(step == 30) for step in range(61)])
    assert np.allclose(peak[10:31], 1 / 21)
    assert np.abs(peak[:10]).max() == np.abs(peak[31:]).max() == 0


def test_views_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no metrics to show"):
        view_curve(tmp_path)
    with pytest.raises(CheckpointError, match=r"not a run \(it has no config\.yaml\)"):
        view_reconstruction(tmp_path)


def test_errors_are_one_line_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.mp4").write_text("not a video")
    for arguments, status, message in [
        (["pretrain", "demo_cpu", "optim.step=1"], 2, "did you mean steps?"),
        (["pretrain", "demo_cpu", f"data.corpus={tmp_path}/none"], 1, "build it with `trocar index"),
        (["index", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")], 1, str(tmp_path / "nothing")),
        (["index", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1"], 1, "none of 1 files can be used"),
        (["view", "recon", str(tmp_path)], 1, "neither a run"),
    ]:
        assert main(arguments) == status
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_whoever_stops_reading_is_no_error() -> None:
    """As in `trocar corpus sources | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    started = [sys.executable, "-m", "trocar.engine.cli", "corpus", "sources"]
    done = subprocess.run(started, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipe_that_breaks_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("trocar.engine.doctor.doctor", broken)
    assert main(["doctor"]) == 1
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(CorpusError, 1), (LoaderError, 1), (ConfigError, 2)])
def test_expected_errors_end_a_command_with_their_message(
    error: type[TrocarError], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: object) -> int:
        raise error("what went wrong")

    monkeypatch.setattr("trocar.engine.commands.run_doctor", fail)
    assert main(["doctor"]) == status
    assert capsys.readouterr().err == "trocar: what went wrong\n"


# Caught by who calls: they stand for an answer, not for a mistake.
ANSWERS = {
    "ArmError",
    "NotPlanesError",
    "PeerError",
    "ProcessDied",
    "RecipeError",
    "StoppedBetweenPartsError",
    "TrocarError",
    "UnavailableError",
    "UnusableError",
}


def test_errors_of_ours_have_one_base() -> None:
    found = {
        node.name
        for root in ("loaders", "engine", "bench", "judge", "kernels", "ssl")
        for path in (ROOT / root).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Exception") for base in node.bases)
    }
    assert found == ANSWERS


@pytest.mark.parametrize(("shell", "checked_by"), [("bash", ["bash", "-n"]), ("zsh", None)])
def test_completions_name_commands_and_options(
    shell: str, checked_by: list[str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(word in script for word in ("pretrain", "--dry-run", "downstream", "--report-only"))
    if checked_by is not None:
        (tmp_path / "script").write_text(script)
        subprocess.run([*checked_by, str(tmp_path / "script")], check=True)


def test_help_lists_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert len(shown) == len(set(shown)) == 20
    assert {"index", "pretrain", "finetune", "view", "bench", "doctor"} <= set(shown)
    with pytest.raises(SystemExit, match="0"):
        main(["view", "tree", "--help"])
    assert capsys.readouterr().out.startswith("usage: trocar view tree [-h]")


def test_module_and_script_are_the_same_program(tmp_path: Path) -> None:
    version = f"trocar {metadata.version('trocar')}"
    script = Path(sys.executable).parent / "trocar"
    for command in ([str(script)], [sys.executable, "-m", "trocar.engine.cli"]):
        shown = subprocess.run([*command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert shown.stdout.strip() == version


def test_processes_that_import_the_command_line_stay_small(tmp_path: Path) -> None:
    """Those of `trocar index` and `trocar pack` import the module that started them."""
    code = "import trocar.engine.cli, sys; print([name for name in ('torch', 'timm', 'pyarrow', 'av') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_made_videos_show_their_scene(tmp_path: Path) -> None:
    paths = make_videos(tmp_path, num_videos=2, seconds=0.4)
    assert len(paths) == 2
    for number, path in enumerate(paths):
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
        assert len(frames) == 10
        errors = [np.abs(frame - Scene(number).render(index / 25)).mean() for index, frame in enumerate(frames)]
        assert max(errors) < 6
        assert np.abs(frames[0] - Scene(1 - number).render(0)).mean() > 20
    modified = paths[0].stat().st_mtime_ns
    assert make_videos(tmp_path, num_videos=2, seconds=0.4) == paths
    assert paths[0].stat().st_mtime_ns == modified, "videos that are there stay"


def test_doctor_has_a_line_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    names = [finding.name for finding in doctor()]
    assert names == [
        "Python", "torch", "torchvision", "PyAV", "GPU", "NVDEC", "DALI", "Triton", "cuML", "CUDA extras", "apex", "nsys",
    ]  # fmt: skip
    assert main(["doctor"]) == int(any(finding.verdict == "problem" for finding in doctor()))
    assert len(capsys.readouterr().out.splitlines()) == len(names)


def fake_package(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "verdict", "words"),
    [
        ({}, "absent", "not needed"),
        ({"apex/__init__.py": ""}, "problem", "unrelated web toolkit"),
        (
            {
                "apex/__init__.py": "",
                "apex/optimizers.py": "class FusedAdam: pass",
                "apex/multi_tensor_apply.py": "class multi_tensor_applier: available = True",
            },
            "ok",
            "NVIDIA's",
        ),
        (
            {
                "apex/__init__.py": "",
                "apex/optimizers.py": "class FusedAdam: pass",
                "apex/multi_tensor_apply.py": "class multi_tensor_applier: available = False",
            },
            "absent",
            "without its CUDA extension",
        ),
    ],
)
def test_doctor_tells_the_two_apexes_apart(
    files: dict[str, str], verdict: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path, files)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    finding = doctor_module.check_apex()
    for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    assert (finding.verdict, words in finding.text) == (verdict, True), finding


@pytest.mark.parametrize(
    ("torch_cuda", "installed", "verdict"),
    [
        ("13.2", [], "absent"),
        ("13.2", ["cuml-cu13", "cupy-cuda13x", "nvidia-dali-cuda130"], "ok"),
        ("13.2", ["nvidia-dali-cuda120"], "ok"),
        ("13.2", ["cuml-cu12"], "problem"),
        ("12.6", ["cuml-cu12", "cupy-cuda12x", "nvidia-dali-cuda120"], "ok"),
        ("12.6", ["cupy-cuda13x"], "problem"),
        ("12.6", ["cuml-cu12", "nvidia-dali-cuda130"], "problem"),
    ],
)
def test_doctor_checks_that_the_extras_match_torch(
    torch_cuda: str, installed: list[str], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(
        doctor_module, "installed_versions", lambda names: [name for name in names if name in installed]
    )
    assert doctor_module.check_extras_match().verdict == verdict


def test_doctor_notices_a_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.version

    monkeypatch.setattr(torchvision.version, "cuda", 12060)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    finding = doctor_module.check_torchvision()
    assert finding.verdict == "problem"
    assert "(CUDA 12.6) beside torch for CUDA 13.2" in finding.text
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    assert doctor_module.check_torchvision().verdict == "ok"
