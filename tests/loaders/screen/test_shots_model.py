"""`trocar screen --shots-model`: cuts by a network of TransNet V2's shape, of which a small stand-in finds them by differences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_pictures
from numpy.typing import NDArray
from torch import nn

from trocar.engine.cli import main
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import Screen, read_screen
from trocar.loaders.screen.screen import screen_corpus
from trocar.loaders.screen.shots_model import load_shots_model, network_shots
from trocar.loaders.screen.video_screen import ScreenSettings

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
CUTS = (25, 50, 75, 77, 110, 149)  # at ends of windows and of what is kept of them, too
DISSOLVE = (180, 192)
FRAMES = 230
SUDDEN, GRADUAL = 30.0, 2.5  # levels from frame to frame


class Differences(nn.Module):
    """(1, 100, 27, 48, 3) uint8 -> logits (1, 100, 1), and of all frames under "many_hot"."""

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert frames.dtype == torch.uint8
        step = (frames[:, 1:].float() - frames[:, :-1].float()).abs().mean(dim=(2, 3, 4))
        step = torch.cat((step, torch.zeros_like(step[:, :1])), dim=1).unsqueeze(-1)
        return step - 30.0, {"many_hot": step - 2.5}


class Chances(nn.Module):
    """The same of float frames, as probabilities, one output."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        step = (frames[:, 1:] - frames[:, :-1]).abs().mean(dim=(2, 3, 4))
        assert frames.dtype == torch.float32
        return torch.sigmoid(torch.cat((step, torch.zeros_like(step[:, :1])), dim=1) - 30.0)


def write_onnx(path: Path, shape: tuple[int, ...] = (1, 100, 27, 48, 3)) -> None:
    """One output (1, 100, 1) of logits: |x[1:] - x[:-1]|, averaged, less 30."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    constants = {"one": [1], "end": [1000], "zero": [0], "last": [shape[1] - 1], "axis": [1]}
    nodes = [
        helper.make_node("Slice", ["frames", "one", "end", "axis"], ["later"]),
        helper.make_node("Slice", ["frames", "zero", "last", "axis"], ["earlier"]),
        helper.make_node("Sub", ["later", "earlier"], ["step"]),
        helper.make_node("Abs", ["step"], ["size"]),
        helper.make_node("ReduceMean", ["size"], ["mean"], axes=[2, 3, 4], keepdims=0),
        helper.make_node("Concat", ["mean", "still"], ["all"], axis=1),
        helper.make_node("Sub", ["all", "sudden"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["logits"]),
    ]
    held = [onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    held += [
        onnx.numpy_helper.from_array(np.zeros((1, 1), np.float32), "still"),
        onnx.numpy_helper.from_array(np.array([SUDDEN], np.float32), "sudden"),
        onnx.numpy_helper.from_array(np.array([1, shape[1], 1], np.int64), "shape"),
    ]
    graph = helper.make_graph(
        nodes,
        "differences",
        [helper.make_tensor_value_info("frames", number, list(shape))],
        [helper.make_tensor_value_info("logits", number, [1, shape[1], 1])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def write_model(kind: str, folder: Path) -> Path:
    path = folder / ("shots.onnx" if kind == "ONNX" else "shots.pt")
    if kind == "ONNX":
        write_onnx(path)
    else:
        torch.jit.script(Differences() if kind == "logits" else Chances()).save(str(path))
    return path


def pictures(count: int = FRAMES) -> Iterator[NDArray[np.uint8]]:
    """Scenes of soft light that moves a little, cut and dissolved."""
    right = np.arange(96)[None, :, None]
    bounds = [*CUTS, DISSOLVE[0], count]
    chance = np.random.default_rng(0)
    levels = [40.0 + 150 * (place % 2) + chance.uniform(-20, 20, 3) for place in range(len(bounds))]

    def scene(place: int, number: int) -> NDArray[np.float64]:
        return np.broadcast_to(levels[place] + 10 * np.sin((right + 0.2 * number) / 15), (64, 96, 3))

    for number in range(count):
        place = int(np.searchsorted(CUTS, number, side="right"))
        picture = scene(place, number)
        if number >= DISSOLVE[0]:
            share = min((number - DISSOLVE[0] + 1) / (DISSOLVE[1] - DISSOLVE[0] + 1), 1.0)
            picture = (1 - share) * picture + share * scene(place + 1, number)
        yield picture.clip(0, 255).astype(np.uint8)


def make_corpus(folder: Path, count: int = 1) -> Path:
    (folder / "videos").mkdir()
    for row in range(count):
        write_pictures(folder / "videos" / f"{row}.mp4", pictures(FRAMES - row), gop=40)
    index_corpus([folder / "videos"], folder / "index", workers=1, content_box=False, progress=False)
    return folder / "index"


@pytest.mark.parametrize("kind", ["logits", "probabilities", "ONNX"])
def test_cuts_to_the_frame(kind: str, tmp_path: Path) -> None:
    index, model = make_corpus(tmp_path), write_model(kind, tmp_path)
    assert main(["screen", str(index), "--workers", "1", "--shots-model", str(model)]) == 0
    (video,) = read_screen(index)
    assert video.pictures >= FRAMES
    spans = video.spans
    assert spans["first_frame"][1:][np.diff(spans["shot"]) > 0].tolist() == list(CUTS)
    gradual = np.repeat(spans["transition"], spans["frames"])
    if kind == "logits":
        assert np.abs(np.flatnonzero(np.diff(gradual)) + 1 - DISSOLVE).max() <= 1
    else:
        assert not gradual.any(), "only a second output tells it"


@pytest.mark.parametrize("frames", [1, 25, 49, 50, 51, 100, 101, 230])
def test_every_frame_is_judged_once_with_its_neighbours(frames: int) -> None:
    """A network that marks frames whose middle pixel says so, and wants the frames about them in order."""
    marked = {number for number in (0, 24, 48, 49, 50, 99, 100, 228) if number < frames - 1}
    seen: list[int] = []

    def network(window: NDArray[np.uint8]) -> NDArray[np.float64]:
        assert window.shape == (100, 27, 48, 3)
        numbers = window[:, 0, 0, 0].astype(int)
        assert set(np.diff(numbers).tolist()) <= {0, 1}
        seen.extend(numbers[25:75].tolist())
        return np.stack([window[:, 0, 0, 1] / 255] * 2)

    given = np.zeros((frames, 27, 48, 3), np.uint8)
    given[:, :, :, 0] = np.arange(frames)[:, None, None]
    given[list(marked), :, :, 1] = 255
    cuts, gradual = network_shots(iter(given), network)
    assert seen[:frames] == list(range(frames))
    runs = np.flatnonzero(np.diff([number in marked for number in range(frames)], prepend=False, append=False))
    assert cuts.tolist() == runs[1::2].tolist()
    assert gradual.shape == (0, 2)


def test_a_screen_goes_on_and_another_choice_begins_anew(tmp_path: Path) -> None:
    index, model = make_corpus(tmp_path, 2), write_model("logits", tmp_path)
    settings = ScreenSettings(shots_model=str(model))
    assert screen_corpus(index, workers=1, progress=False).reused == 0
    assert screen_corpus(index, settings, workers=1, progress=False).reused == 0
    assert screen_corpus(index, settings, workers=1, progress=False).reused == 2
    before = {video.video: video.made_of for video in read_screen(index)}
    moved = tmp_path / "moved.pt"
    model.rename(moved)
    assert screen_corpus(index, ScreenSettings(shots_model=str(moved)), workers=1, progress=False).reused == 2
    torch.jit.script(Chances()).save(str(moved))
    assert screen_corpus(index, ScreenSettings(shots_model=str(moved)), workers=1, progress=False).reused == 0
    assert all(video.made_of != before[video.video] for video in read_screen(index))
    (tmp_path / "videos" / "2.mp4").write_bytes((tmp_path / "videos" / "1.mp4").read_bytes())
    index_corpus([tmp_path / "videos"], index, workers=1, content_box=False, progress=False)
    assert screen_corpus(index, ScreenSettings(shots_model=str(moved)), workers=1, progress=False).reused == 2
    assert len(Screen(Corpus.open(index)).videos) == 3


class Odd(nn.Module):
    """Takes frames of another size, returns another, or calls everything a transition."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        found = frames.float().mean(dim=(2, 3, 4)).unsqueeze(-1)
        if self.fault == "input":
            return found @ torch.ones(7, 1)
        return found[:, :50] if self.fault == "output" else found + 5.0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("input", r"shots\.pt: does not take frames \(1, 100, 27, 48, 3\), neither uint8 .* nor float"),
        ("output", r"shots\.pt: returns \(1, 50, 1\) for frames .*; \(1, 100, 1\) is accepted"),
        ("level", r"shots\.pt: finds a transition in 100 black frames"),
        ("text", r"shots\.pt: not a TorchScript file"),
    ],
)
def test_what_does_not_fit_is_refused(fault: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "shots.pt"
    if fault == "text":
        path.write_text("weights")
    else:
        torch.jit.script(Odd(fault)).save(str(path))
    with pytest.raises(CorpusError, match=message):
        load_shots_model(str(path))


def test_an_onnx_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_onnx(tmp_path / "small.onnx", (1, 64, 27, 48, 3))
    with pytest.raises(
        CorpusError, match=r"takes tensor\(float\) \[1, 64, 27, 48, 3\]; one input \(1, 100, 27, 48, 3\)"
    ):
        load_shots_model(str(tmp_path / "small.onnx"))


def test_a_folder_or_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_corpus(tmp_path)
    assert main(["screen", str(index), "--shots-model", str(tmp_path / "none.pt")]) == 1
    assert "none.pt: no such file" in capsys.readouterr().err
