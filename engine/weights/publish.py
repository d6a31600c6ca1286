"""`trocar export RUN --to transformers|timm|torch|onnx`: a folder that the library loads, with a model card.

The folder is written under another name and renamed: it is there whole or not at all. Nothing in it names a path of this machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import save_file

from ...loaders.corpus.whole_file import write_whole
from ...ssl.encoder import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from ..checkpoint.checkpoint import load_checkpoint
from ..config.file import CONFIG_FILE, load_config
from ..config.settings import Config
from ..inputs.checkpoints import newest_checkpoint
from ..inputs.judged import audited_lines, judged_table
from ..inputs.libraries import check_library, library_folder
from .files import Tensors
from .model_card import model_card
from .programs import example_clips, export_onnx, export_program
from .run_encoder import build_encoder, encoder_tensors
from .transformers_layout import contiguous, to_huggingface

CARD, WEIGHTS = "README.md", "model.safetensors"
HERE = '"."'  # the code of a card is run beside it: no name of a folder holds for everybody
TIMM_MODEL = "vit_base_patch16_224"  # whose sizes are arguments


def publish(
    run_dir: Path,
    to: str,
    out: Path | None = None,
    *,
    whole: bool = False,
    judged: Path | None = None,
    audited: Sequence[Path] = (),
) -> tuple[Path, list[str]]:
    """Writes the newest checkpoint's encoder (of a JEPA the target encoder) for another library. Returns (folder, what to know).

    to: of WRITERS. out: RUN/<to> where None. whole: transformers alone, with decoder or predictor. judged: a report.csv of
    `trocar bench downstream`, and audited: what `trocar bench audit --json` wrote, both for the card. Raises CheckpointError, or
    ConfigError where that library has no such model or the folder is there already.
    """
    out = library_folder(run_dir, to, out)
    config = load_config(run_dir / CONFIG_FILE)
    check_library(config, to, whole=whole)
    scores, overlaps = None if judged is None else judged_table(judged), audited_lines(audited)
    checkpoint = load_checkpoint(newest_checkpoint(run_dir))
    encoder = build_encoder(config)
    encoder.load_state_dict(encoder_tensors(checkpoint.model))
    encoder.eval()
    written = WRITERS[to](encoder, checkpoint.model, config, whole)
    unfinished = out.with_name(f"{out.name}.{uuid4().hex}.tmp")
    unfinished.mkdir(parents=True)
    try:
        notes, usage = written(unfinished)
        card = model_card(run_dir, config, encoder, int(checkpoint.state["step"]), to, usage, notes, scores, overlaps)
        (unfinished / CARD).write_text(card, encoding="utf-8")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out, notes


# Checks at once, then fills a folder and returns (what to know, how it is loaded).
Writer = Callable[[Path], tuple[list[str], str]]


def _transformers(encoder: VideoEncoder, state: Tensors, config: Config, whole: bool) -> Writer:
    model = to_huggingface(encoder, state, config, whole=whole)

    def write(folder: Path) -> tuple[list[str], str]:
        _json(folder / "config.json", model.config)
        name = (
            "video_preprocessor_config.json"
            if "video_processor_type" in model.processor
            else "preprocessor_config.json"
        )
        _json(folder / name, model.processor)
        tensors = contiguous(model.tensors)
        write_whole(folder / WEIGHTS, lambda target: save_file(tensors, target, metadata={"format": "pt"}))
        (kind,) = model.config["architectures"]
        return model.notes, f"from transformers import {kind}\n\nmodel = {kind}.from_pretrained({HERE})"

    return write


def _timm(encoder: VideoEncoder, _state: Tensors, _config: Config, _whole: bool) -> Writer:
    own, side = encoder.state_dict(), encoder.grid[1] * encoder.patch
    arguments: dict[str, Any] = {
        "img_size": side,
        "patch_size": encoder.patch,
        "embed_dim": encoder.width,
        "depth": len(encoder.blocks),
        "num_heads": encoder.heads,
        "mlp_ratio": (encoder.mlp_width or 4 * encoder.width) / encoder.width,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "num_classes": 0,
    }

    def write(folder: Path) -> tuple[list[str], str]:
        tensors = {name: value for name, value in own.items() if not name.startswith("patch_embed.")}
        # A picture that stands still for a tubelet.
        tensors["patch_embed.proj.weight"] = own["patch_embed.weight"].sum(dim=2)
        tensors["patch_embed.proj.bias"], tensors["pos_embed"] = own["patch_embed.bias"], encoder.positions[None]
        kept = contiguous(tensors)
        write_whole(folder / WEIGHTS, lambda target: save_file(kept, target))
        pixels = {"input_size": [3, side, side], "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        _json(
            folder / "config.json",
            {"architecture": TIMM_MODEL, "model_args": arguments, "pretrained_cfg": pixels},
        )
        words = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        words += f', checkpoint_path="{WEIGHTS}"'
        usage = f'import timm\n\nmodel = timm.create_model("{TIMM_MODEL}", {words})'
        return [f"a picture counts as {encoder.tubelet} equal frames"], usage

    return write


def _torch(encoder: VideoEncoder, _state: Tensors, _config: Config, _whole: bool) -> Writer:
    def write(folder: Path) -> tuple[list[str], str]:
        export_program(encoder, folder / "encoder.pt2")
        frames = f"frames = torch.zeros({_clip(encoder)}, dtype=torch.uint8)  # RGB; any number of clips"
        usage = 'encoder = torch.export.load("encoder.pt2").module()\ntokens = encoder(frames)'
        return [], f"import torch\n\n{frames}\n{usage}"

    return write


def _onnx(encoder: VideoEncoder, _state: Tensors, _config: Config, _whole: bool) -> Writer:
    def write(folder: Path) -> tuple[list[str], str]:
        export_onnx(encoder, folder / "encoder.onnx")
        frames = f'frames = np.zeros({_clip(encoder)}, dtype="uint8")  # RGB; any number of clips'
        run = '(tokens,) = onnxruntime.InferenceSession("encoder.onnx").run(["tokens"], {"frames": frames})'
        return [], f"import numpy as np\nimport onnxruntime\n\n{frames}\n{run}"

    return write


def _clip(encoder: VideoEncoder) -> tuple[int, ...]:
    """The shape of one clip, (1, T, R, R, 3)."""
    return tuple(example_clips(encoder)[:1].shape)


WRITERS: dict[str, Callable[[VideoEncoder, Tensors, Config, bool], Writer]] = {
    "transformers": _transformers,
    "timm": _timm,
    "torch": _torch,
    "onnx": _onnx,
}


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
