"""`trocar screen --model`: scores by an encoder of ours with a linear head, by a TorchScript and by an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_pictures
from numpy.typing import NDArray
from torch import nn

from trocar.engine.cli import main
from trocar.engine.weights.programs import EncoderProgram, export_onnx
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import Screen
from trocar.loaders.screen.models import DEVIATION, MEAN, load_score
from trocar.ssl.encoder import VideoEncoder

# PyTorch still reads and writes TorchScript, and advises other formats.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
SIDE = 224
SHARPNESS = 5.0
Expected = Callable[[NDArray[np.uint8]], float]


class PictureEncoder(nn.Module):
    """An encoder of ours on one picture: (1, 3, H, W) less ImageNet's mean -> (1, D), the mean of its tokens."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.program, self.frames = EncoderProgram(encoder).eval(), encoder.grid[0] * encoder.tubelet
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None])

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        pixels = ((picture * self.deviation + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        clip = pixels.permute(0, 2, 3, 1)[:, None].expand(-1, self.frames, -1, -1, -1)
        return self.program(clip).mean(dim=1)


class Redness(nn.Module):
    """(1, 3, H, W) -> (1, 1): how much redder than blue."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = SHARPNESS

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        means = picture.mean(dim=(2, 3))
        return self.sharpness * (means[:, :1] - means[:, 2:])


def noise(red: int, blue: int) -> NDArray[np.uint8]:
    picture = np.random.default_rng(0).integers(0, 60, (SIDE, SIDE, 3))
    return (picture + np.array([red, 60, blue])).astype(np.uint8)


BODY, ROOM = noise(160, 20), noise(20, 160)


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def redness(picture: NDArray[np.uint8]) -> float:
    means = ((picture / 255 - MEAN) / DEVIATION).mean(axis=(0, 1))
    return SHARPNESS * float(means[0] - means[2])


def write_onnx(path: Path) -> None:
    """Two values, out of the body and in it, at sides that the file names."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    weight = SHARPNESS * np.array([[-0.5, 0.5], [0, 0], [0.5, -0.5]], np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["picture"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["values"]),
    ]
    graph = helper.make_graph(
        nodes,
        "redness",
        [helper.make_tensor_value_info("picture", number, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("values", number, [1, 2])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def encoder_with_head(folder: Path) -> tuple[list[str], Expected]:
    """An encoder of ours as TorchScript and a head between its features of both pictures; and what the score has to be, by the
    encoder itself."""
    torch.manual_seed(0)
    encoder = VideoEncoder(16, 1, 2, frames=2, resolution=SIDE, tubelet=2, patch=56).eval()
    program = torch.jit.trace(PictureEncoder(encoder), torch.zeros(1, 3, SIDE, SIDE))
    torch.jit.save(program, str(folder / "encoder.pt"))

    def features(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        with torch.no_grad():
            return encoder.pooled(torch.from_numpy(picture)[None, None].repeat(1, 2, 1, 1, 1))[0].double().numpy()

    body, room = features(BODY), features(ROOM)
    weight = (body - room) * 8 / ((body - room) ** 2).sum()
    bias = -weight @ (body + room) / 2
    np.savez(folder / "head.npz", weight=weight, bias=np.array(bias))
    files = [str(folder / "encoder.pt"), str(folder / "head.npz")]
    return files, lambda picture: sigmoid(float(features(picture) @ weight + bias))


def files_of(kind: str, folder: Path) -> tuple[list[str], Expected]:
    if kind == "an encoder of ours":
        return encoder_with_head(folder)
    if kind == "TorchScript":
        torch.jit.script(Redness()).save(str(folder / "model.pt"))
        return [str(folder / "model.pt")], lambda picture: sigmoid(redness(picture))
    write_onnx(folder / "model.onnx")
    return [str(folder / "model.onnx")], lambda picture: sigmoid(redness(picture))


@pytest.mark.parametrize("kind", ["an encoder of ours", "TorchScript", "ONNX"])
def test_a_file_says_in_or_out_of_the_body(kind: str, tmp_path: Path) -> None:
    files, expected = files_of(kind, tmp_path)
    score = load_score(*files)
    for picture in (BODY, ROOM):
        assert score(picture) == pytest.approx(expected(picture), abs=1e-5)
    (tmp_path / "videos").mkdir()
    for name, picture in (("body", BODY), ("room", ROOM)):
        moving = [np.roll(picture[:96, :96], number, 1) for number in range(20)]
        write_pictures(tmp_path / "videos" / f"{name}.mp4", moving, gop=10)
    index = tmp_path / "index"
    index_corpus([tmp_path / "videos"], index, workers=1, content_box=False, progress=False)
    options = [word for pair in zip(("--model", "--head"), files, strict=False) for word in pair]
    assert main(["screen", str(index), "--workers", "1", *options]) == 0
    screen = Screen(Corpus.open(index))
    for row in range(2):
        scores = screen.columns["in_body"][screen.video == row]
        is_body = Path(screen.corpus.video_path(row)).stem == "body"
        assert ((scores > 0.9) if is_body else (scores < 0.1)).all(), scores


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    files, _ = encoder_with_head(tmp_path)
    np.savez(tmp_path / "head.npz", weight=np.ones(3), bias=np.zeros(1))
    with pytest.raises(CorpusError, match=r"a head of 3 values for .*encoder\.pt, which returns 16"):
        load_score(*files)


def test_an_exported_encoder_of_clips_with_a_head(tmp_path: Path) -> None:
    """What `trocar export --to onnx` writes: clips of uint8 to tokens."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    encoder = VideoEncoder(16, 1, 2, frames=4, resolution=SIDE, tubelet=2, patch=56).eval()
    export_onnx(encoder, tmp_path / "encoder.onnx")
    weight, bias = np.random.default_rng(0).normal(size=16), 0.25
    np.savez(tmp_path / "head.npz", weight=weight, bias=np.array(bias))
    score = load_score(str(tmp_path / "encoder.onnx"), str(tmp_path / "head.npz"))
    for picture in (BODY, ROOM):
        with torch.no_grad():
            pooled = encoder.pooled(torch.from_numpy(picture)[None, None].repeat(1, 4, 1, 1, 1))[0].double().numpy()
        assert score(picture) == pytest.approx(sigmoid(float(pooled @ weight + bias)), abs=1e-4)
    with pytest.raises(CorpusError, match=r"returns 16 values; 1 or 2 say in or out of a body, or give --head"):
        load_score(str(tmp_path / "encoder.onnx"))


@pytest.mark.parametrize(("kind", "sides"), [("FLOAT", [1, 4, 64, 64, 3]), ("UINT8", [1, 3, 4, 64, 64])])
def test_onnx_clips_of_another_layout_are_refused(kind: str, sides: list[int], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, number = onnx.helper, getattr(onnx.TensorProto, kind)
    told = [helper.make_tensor_value_info(name, number, sides) for name in ("clips", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["clips"], ["same"])], "g", told[:1], told[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "clips.onnx")
    with pytest.raises(CorpusError, match=r"clips\.onnx: takes tensor\(.*clips \(B, T, R, R, 3\) of uint8"):
        load_score(str(tmp_path / "clips.onnx"))


def test_a_run_folder_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    write_pictures(tmp_path / "videos" / "v.mp4", [BODY[:64, :64]] * 8, gop=8)
    index_corpus([tmp_path / "videos"], tmp_path / "index", workers=1, content_box=False, progress=False)
    (tmp_path / "run").mkdir()
    for option in ("--model", "--shots-model"):
        assert main(["screen", str(tmp_path / "index"), option, str(tmp_path / "run")]) == 1
        assert "is a folder" in capsys.readouterr().err
