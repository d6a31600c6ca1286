"""Exports for other libraries: the same features there, converted back the same weights, refused by name what they cannot be."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from ranks import JEPA, make_corpus
from runs import TINY
from transformers import AutoModel, VideoMAEForPreTraining, VJEPA2Model
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from trocar.engine.cli import main
from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.step.build import build_model
from trocar.engine.weights import publish as module
from trocar.engine.weights.convert import convert
from trocar.engine.weights.objectives import from_huggingface_videomae, from_huggingface_vjepa2
from trocar.engine.weights.publish import publish
from trocar.engine.weights.run_encoder import build_encoder, encoder_tensors
from trocar.ssl.choices import SIZES
from trocar.ssl.encoder import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from trocar.ssl.mae import MaskedAutoencoder
from trocar.ssl.masks import Masks
from trocar.ssl.objective import Objective

FLAT = ["model.positions=flat"]
ROPE = [*JEPA, "model.positions=rope"]
DEEP = ["model.width=48", "model.heads=4", "model.depth=3", "data.frames=8", "model.patch=16"]
RUNS = {
    "VideoMAE": FLAT,
    "a deeper VideoMAE": [*FLAT, *DEEP, "model.decoder_depth=2", "objective.targets=none"],
    "V-JEPA 2": ROPE,
    "a wider V-JEPA 2": [*ROPE, *DEEP, "model.predictor_width=36", "model.predictor_mask_tokens=1"],
    "axes": ["model.positions=axes"],
    "V-JEPA": [*JEPA, "model.positions=axes"],
}
FAST = ("V-JEPA 2",)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run's folder with random weights in place of a checkpoint; (folder, model, encoder)."""

    def make(name: str, *more: str, noise: float = 0.1) -> tuple[Path, Objective, VideoEncoder]:
        settings = [*TINY, "data.corpus=/nowhere/private", f"run.dir={tmp_path / 'run'}", *RUNS[name], *more]
        config = load_config("demo_cpu", settings)
        torch.manual_seed(0)
        model, _ = build_model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
            for part, value in model.state_dict().items():
                if part.endswith("qkv.bias"):
                    value.chunk(3)[1].zero_()  # as it begins: no output depends on it
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
        checkpoint = SimpleNamespace(model=model.state_dict(), state={"step": 7})
        monkeypatch.setattr(module, "newest_checkpoint", lambda path: path)
        monkeypatch.setattr(module, "load_checkpoint", lambda _: checkpoint)
        encoder = build_encoder(config)
        encoder.load_state_dict(encoder_tensors(model.state_dict()))
        return tmp_path / "run", model, encoder.eval()

    return make


def frames_of(encoder: VideoEncoder, clips: int = 3) -> torch.Tensor:
    steps, rows, columns = encoder.grid
    shape = (clips, steps * encoder.tubelet, rows * encoder.patch, columns * encoder.patch, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixels_of(frames: torch.Tensor) -> torch.Tensor:
    """(B, T, 3, H, W), as processors hand them over."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)


def as_printed(folder: Path) -> dict[str, Any]:
    """What the card's code leaves behind, run as it stands there, in the folder."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(code[1], names)
    finally:
        os.chdir(before)
    return names


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", [name for name in RUNS if "VideoMAE" in name or "V-JEPA 2" in name])
def test_transformers_has_the_same_features_and_gives_the_weights_back(
    name: str, whole: bool, made: Any, tmp_path: Path
) -> None:
    run, model, encoder = made(name)
    folder, _ = publish(run, "transformers", tmp_path / "out", whole=whole)
    frames = frames_of(encoder)
    loaded: Any = (AutoModel if "VideoMAE" in name else VJEPA2Model).from_pretrained(folder, output_loading_info=True)
    theirs, told = loaded
    if "VideoMAE" in name:
        given = theirs.eval()(pixel_values=pixels_of(frames)).last_hidden_state
        assert not told["missing_keys"]
        assert type(AutoImageProcessor.from_pretrained(folder)).__name__.startswith("VideoMAEImageProcessor")
    else:
        given = theirs.eval()(pixel_values_videos=pixels_of(frames), skip_predictor=True).last_hidden_state
        assert whole == (not told["missing_keys"])
        assert type(AutoVideoProcessor.from_pretrained(folder)).__name__ == "VJEPA2VideoProcessor"
    assert not told["unexpected_keys"] or (whole and "VideoMAE" in name), "AutoModel leaves the decoder out"
    with torch.no_grad():
        assert (given - encoder(frames)).abs().max() <= 1e-5
    printed, given = as_printed(folder)["model"].state_dict(), theirs.state_dict()
    inside = "videomae." if whole and "VideoMAE" in name else ""  # the decoder stands beside it
    kept = [part for part in given if whole or not part.startswith("predictor.")]
    assert all(torch.equal(printed[f"{inside}{part}"], given[part]) for part in kept)
    steps, side = encoder.grid[0] * encoder.tubelet, encoder.grid[1] * encoder.patch
    back = convert(folder / "model.safetensors", frames=steps, resolution=side, heads=encoder.heads)
    own = encoder.state_dict()
    assert back.tensors.keys() == own.keys()
    assert all(torch.equal(back.tensors[part], value) for part, value in own.items())
    if whole and "V-JEPA 2" in name:
        renamed = from_huggingface_vjepa2(theirs.state_dict(), len(encoder.blocks), len(model.predictor.blocks))
        assert all(
            torch.equal(renamed[part], value) for part, value in model.predictor.state_dict(prefix="predictor.").items()
        )


@pytest.mark.parametrize("name", ["VideoMAE", "a deeper VideoMAE"])
def test_transformers_has_the_same_loss_and_decoder(name: str, made: Any, tmp_path: Path) -> None:
    run, model, encoder = made(name)
    assert isinstance(model, MaskedAutoencoder)
    folder, notes = publish(run, "transformers", tmp_path / "out", whole=True)
    assert any("1e-5" in note for note in notes)
    theirs = VideoMAEForPreTraining.from_pretrained(folder).eval()
    renamed = from_huggingface_videomae(theirs.state_dict(), len(encoder.blocks), len(model.decoder_blocks))
    assert all(torch.equal(renamed[part], value) for part, value in model.state_dict().items())
    frames, hidden = frames_of(encoder), torch.zeros(3, encoder.num_tokens, dtype=torch.bool)
    hidden[:, ::3] = True
    order = hidden.int().argsort(dim=1, stable=True)
    count = int(hidden[0].sum())
    masks = Masks(order[:, :-count].contiguous(), order[:, -count:].contiguous())
    with torch.no_grad():
        loss = theirs(pixel_values=pixels_of(frames), bool_masked_pos=hidden).loss.item()
        assert model(frames, masks).loss.item() == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_programs_need_nothing_of_ours(name: str, made: Any, tmp_path: Path) -> None:
    """Of any number of clips."""
    run, _, encoder = made(name)
    folder, _ = publish(run, "torch", tmp_path / "out")
    program = torch.export.load(folder / "encoder.pt2")
    assert "trocar" not in str(program.graph)
    for clips in (1, 3):
        frames = frames_of(encoder, clips)
        with torch.no_grad():
            assert (program.module()(frames) - encoder(frames)).abs().max() <= 1e-5
    assert as_printed(folder)["tokens"].shape == (1, encoder.num_tokens, encoder.width)


@pytest.mark.parametrize(
    "name", ["VideoMAE", *(pytest.param(name, marks=pytest.mark.slow) for name in ("V-JEPA 2", "axes"))]
)
def test_onnx_runtime_has_the_same_features(name: str, made: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    run, _, encoder = made(name)
    folder, _ = publish(run, "onnx", tmp_path / "out")
    session = runtime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
    for clips in (1, 3):
        frames = frames_of(encoder, clips)
        (tokens,) = session.run(["tokens"], {"frames": frames.numpy()})
        with torch.no_grad():
            assert np.abs(tokens - encoder(frames).numpy()).max() <= 1e-5
    assert as_printed(folder)["tokens"].shape == (1, encoder.num_tokens, encoder.width)


def test_timm_has_the_same_features_of_a_picture(made: Any, tmp_path: Path) -> None:
    run, _, encoder = made("axes", "data.frames=2")
    folder, _ = publish(run, "timm", tmp_path / "out")
    names = as_printed(folder)
    frames = frames_of(encoder)
    frames[:, 1] = frames[:, 0]  # one picture
    with torch.no_grad():
        given = names["model"].eval().forward_features(pixels_of(frames)[:, 0])
        assert (given - encoder(frames)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "to", "more", "whole", "reason"),
    [
        ("axes", "transformers", [], False, "positions=axes: transformers has no such video encoder"),
        ("V-JEPA", "transformers", [], True, "positions=axes"),
        ("VideoMAE", "timm", [], False, "2 steps of time"),
        ("VideoMAE", "torch", [], True, "--to torch takes an encoder alone"),
        ("VideoMAE", "transformers", ["objective.targets=patch"], True, "knows channel and none"),
        ("V-JEPA", "transformers", ["model.positions=flat"], True, "a JEPA with model.positions=flat"),
    ],
)
def test_what_a_library_has_not_is_refused_by_name(
    name: str,
    to: str,
    more: list[str],
    whole: bool,
    reason: str,
    made: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its settings: no checkpoint is read for it."""
    run, _, _ = made(name, *more)
    monkeypatch.setattr(module, "load_checkpoint", None)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        publish(run, to, tmp_path / "out", whole=whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


USUAL = (("flat", "mae"), ("rope", "jepa"), ("axes", "mae"))  # an encoder is the same program whatever trained it
SHAPES = [(size, *of) for size in SIZES for of in (*USUAL, ("flat", "jepa"), ("axes", "jepa"))]  # an MAE has no rope
OF_A_SIZE = ("width", "heads", "decoder_width", "decoder_heads")


def differences(to: str, folder: Path, encoder: VideoEncoder) -> float:
    """The largest between the features of an exported encoder and ours, of one clip."""
    frames = frames_of(encoder, 1)
    if to == "timm":
        frames[:, 1:] = frames[:, :1]  # one picture
    with torch.no_grad():
        ours = encoder(frames)
        if to == "transformers":
            model: Any = AutoModel.from_pretrained(folder).eval()
            if isinstance(model, VJEPA2Model):
                theirs = model(pixel_values_videos=pixels_of(frames), skip_predictor=True).last_hidden_state
            else:
                theirs = model(pixel_values=pixels_of(frames)).last_hidden_state
        elif to == "timm":
            theirs = as_printed(folder)["model"].eval().forward_features(pixels_of(frames)[:, 0])
        elif to == "torch":
            theirs = torch.export.load(folder / "encoder.pt2").module()(frames)
        else:
            runtime = pytest.importorskip("onnxruntime")
            session = runtime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
            theirs = torch.from_numpy(session.run(["tokens"], {"frames": frames.numpy()})[0])
    return float((theirs - ours).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, None])
@pytest.mark.parametrize(("size", "positions", "kind"), SHAPES)
def test_every_shape_is_the_same_elsewhere_or_refused_by_name(
    size: str, positions: str, kind: str, depth: int | None, made: Any, tmp_path: Path
) -> None:
    """Two blocks of every size; whole depths of the small ones, and of all with TROCAR_TEST_SIZES=all (20 GB)."""
    if depth is None and size in ("large", "huge") and os.environ.get("TROCAR_TEST_SIZES") != "all":
        pytest.skip("TROCAR_TEST_SIZES=all runs whole large and huge encoders")
    settings = [f"model.encoder={size}", f"model.positions={positions}", "data.resolution=32", "model.patch=16"]
    settings += [f"model.{name}=null" for name in OF_A_SIZE]
    settings.append(f"model.depth={'null' if depth is None else depth}")
    name = "V-JEPA" if kind == "jepa" else "axes"
    programs = ("torch", "onnx") if (positions, kind) in USUAL else ()
    for frames, libraries in ((4, ("transformers", *programs)), (2, ("timm",))):
        run, _, encoder = made(name, *settings, f"data.frames={frames}", noise=0.02)
        assert len(encoder.blocks) == (depth or SIZES[size].depth)
        assert encoder.width == SIZES[size].width
        for to in libraries:
            refused = {"transformers": positions == "axes", "timm": positions == "rope"}.get(to, False)
            if refused:
                with pytest.raises(
                    ConfigError, match=r"positions=axes" if to == "transformers" else "rotary positions"
                ):
                    publish(run, to, tmp_path / to)
                continue
            folder, _ = publish(run, to, tmp_path / to)
            found = differences(to, folder, encoder)
            print(f"{size}, {positions}, {kind}, {len(encoder.blocks)} blocks, {to}: {found:.1e}")
            assert found <= 1e-5, to
        if frames == 4 and (positions, kind) == ("flat", "jepa"):
            with pytest.raises(ConfigError, match="is no model of transformers as a whole"):
                publish(run, "transformers", tmp_path / "whole", whole=True)


def test_a_trained_run_with_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card is valid, names no place of this machine, invents nothing; what is there is not written over."""
    corpus, run = make_corpus(tmp_path / "corpus"), tmp_path / "run"
    settings = [f"data.corpus={corpus}", f"run.dir={run}", *TINY, *FLAT, "optim.steps=2", "run.device=cpu"]
    assert main(["pretrain", "demo_cpu", *settings]) == 0
    scores = tmp_path / "report.csv"
    scores.write_text(
        "dataset,protocol,model,metric,score,low,high,seeds,flags\ncholec80,probe,a|b,macro_f1,0.512,0.44,0.58,2,unstable\n"
    )
    assert main(["export", str(run), "--to", "transformers", "--whole", "--judged", str(scores)]) == 0
    said = capsys.readouterr()
    folder = run / "transformers"
    assert said.out.splitlines()[-1] == str(folder)
    card = ModelCard.load(folder / "README.md")
    card.data.to_dict()
    text = str(card)
    assert re.search(r"\| unknown \| unknown \| unknown \| 2 \| 0\.00\d+ \|", text), "seconds, not 0.00 hours"
    assert "| model.width | 24 |" in text
    assert "objective.masks" not in text
    assert "None" not in text
    assert "| energy of the GPUs' boards | unknown |" in text
    assert "| GPU-hours | none |" in text
    assert "| cholec80 | probe | a\\|b | macro_f1 | 51.20 | 44.00 .. 58.00 | 2 | unstable |" in text
    assert re.search(r"\| loss \| \d", text)
    for path in folder.rglob("*"):
        for private in (str(tmp_path), str(Path.home()), str(Path.cwd())):
            assert private.encode() not in path.read_bytes(), path
    assert VideoMAEForPreTraining.from_pretrained(folder).config.num_frames == 4
    assert main(["export", str(run), "--to", "transformers"]) == 2
    assert "is there already" in capsys.readouterr().err
