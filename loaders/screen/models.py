"""Scores of bodies by a network that somebody has: a TorchScript or ONNX file that says in or out of one picture.

Weights of OoBNet or of LEMON's classifier are not ours to hand out; whoever has them exports them to such a file. It gets (1, 3,
H, W) float32, RGB, less ImageNet's mean and by its deviation, at the sides that an ONNX file names, else 224 x 224. It returns one
value, of which the sigmoid counts, or two: out of the body, then in it, of which the softmax counts. With `head`, what it
returns are features (1, D), of which a linear head makes that value: an .npz file of `weight` (D,) and `bias`. An encoder of ours,
as `trocar export --to onnx` writes it, gets the picture as a clip that stands still, (1, T, R, R, 3) uint8, and its tokens are
averaged.

TorchScript files hold code: only those of people you trust.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus.folder import CorpusError
from .pictures import Picture

SIDE = 224
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
Network = Callable[[NDArray[np.float32]], NDArray[Any]]


def model_digest(model: str, head: str, shots_model: str = "") -> str:
    """32 hex digits of the files' contents and what each is for, "" without any. Raises CorpusError where one cannot be read."""
    if head and not model:
        raise CorpusError(f"--head {head}: is the head of an encoder; name that with --model")
    digest = hashlib.blake2b(digest_size=16)
    for kind, path in (("model", model), ("head", head), ("shots", shots_model)):
        if not path:
            continue
        if Path(path).is_dir():
            raise CorpusError(
                f"{path}: is a folder; of a run or a fine-tuned encoder write a file (`trocar export {path} --to onnx --out "
                "FOLDER`) and name its encoder.onnx, with --head for what tells bodies from its features"
            )
        try:
            digest.update(kind.encode())
            digest.update(Path(path).read_bytes())
        except OSError as error:
            raise CorpusError(
                f"{path}: cannot be read ({error.strerror}); give a TorchScript or an ONNX file"
            ) from error
    return digest.hexdigest() if model or shots_model else ""


def load_score(model: str, head: str = "") -> Callable[[Picture], float]:
    """A score of samples' pixels (H, W, 3) uint8, 0 .. 1. Raises CorpusError."""
    network, side = _onnx(model) if model.endswith(".onnx") else _torchscript(model)
    linear = _head(head) if head else None

    def score(pixels: Picture) -> float:
        import torch

        picture = torch.from_numpy((pixels / 255 - MEAN) / DEVIATION).permute(2, 0, 1)[None].float()
        picture = torch.nn.functional.interpolate(picture, (side, side), mode="bilinear", antialias=True)
        values = np.asarray(network(picture.numpy()), np.float64).ravel()
        if linear is not None:
            weight, bias = linear
            if len(weight) != len(values):
                raise CorpusError(f"{head}: a head of {len(weight)} values for {model}, which returns {len(values)}")
            values = np.array([values @ weight + bias])
        if len(values) not in (1, 2):
            raise CorpusError(f"{model}: returns {len(values)} values; 1 or 2 say in or out of a body, or give --head")
        logit = values[-1] - (values[0] if len(values) == 2 else 0.0)
        return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))

    score(np.zeros((8, 8, 3), np.uint8))
    return score


def _head(path: str) -> tuple[NDArray[np.float64], float]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["weight"].astype(np.float64).ravel(), float(arrays["bias"].ravel()[0])
    except (OSError, KeyError, ValueError) as error:
        raise CorpusError(
            f"{path}: not a linear head ({error}); give an .npz file of `weight` (D,) and `bias`"
        ) from error


def onnx_session(path: str) -> Any:
    """Raises CorpusError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise CorpusError(
            f"{path}: ONNX files need the package onnxruntime; install it, or give a TorchScript file"
        ) from error
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has classes of its own for every kind
        raise CorpusError(f"{path}: onnxruntime cannot load it ({error}); export it again") from error


def torchscript_module(path: str) -> Any:
    """Raises CorpusError."""
    import torch

    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path}: not a TorchScript file ({reason}); give one, or an .onnx file") from error


def _onnx(path: str) -> tuple[Network, int]:
    session = onnx_session(path)
    (first, *others), told = session.get_inputs(), [i.shape for i in session.get_inputs()]
    if not others and len(first.shape) == 5:
        return _onnx_of_clips(path, session)
    if others or len(first.shape) != 4:
        raise CorpusError(
            f"{path}: takes {told}; one input (1, 3, H, W) is accepted, or clips (1, T, R, R, 3) of uint8"
        )
    side = first.shape[2] if isinstance(first.shape[2], int) else SIDE
    return lambda picture: np.asarray(session.run(None, {first.name: picture})[0]), side


def _onnx_of_clips(path: str, session: Any) -> tuple[Network, int]:
    """Of an encoder as `trocar export --to onnx` writes it: a picture is a clip that stands still, its tokens are averaged."""
    (given,) = session.get_inputs()
    _, frames, rows, columns, channels = given.shape
    if given.type != "tensor(uint8)" or not isinstance(frames, int) or rows != columns or channels != 3:
        raise CorpusError(
            f"{path}: takes {given.type} {given.shape}; clips (B, T, R, R, 3) of uint8, as of `trocar export --to onnx`, are "
            "accepted, or pictures (1, 3, H, W)"
        )

    def run(picture: NDArray[np.float32]) -> NDArray[Any]:
        pixels = (picture * DEVIATION[:, None, None] + MEAN[:, None, None]) * 255
        clip = pixels.round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)[:, None].repeat(frames, 1)
        found = np.asarray(session.run(None, {given.name: clip})[0])
        return found.mean(axis=1) if found.ndim == 3 else found

    return run, rows


def _torchscript(path: str) -> tuple[Network, int]:
    import torch

    network = torchscript_module(path)

    def run(picture: NDArray[np.float32]) -> NDArray[Any]:
        with torch.inference_mode():
            return network(torch.from_numpy(picture)).float().numpy()

    return run, SIDE
