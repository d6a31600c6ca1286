"""Scores of bodies by a network that somebody has: a TorchScript or ONNX file that says in or out of one picture.

Weights of OoBNet or of LEMON's classifier are not ours to hand out; whoever has them exports them to such a file. It gets (1, 3,
H, W) float32, RGB, less ImageNet's mean and by its deviation, at the sides that an ONNX file names, else 224 x 224. It returns one
value, of which the sigmoid counts, or two: out of the body, then in it, of which the softmax counts. With `head`, what it
returns are features (1, D), of which a linear head makes that value: an .npz file of `weight` (D,) and `bias`.

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


def model_digest(model: str, head: str) -> str:
    """32 hex digits of the files' contents, "" without a model. Raises CorpusError where one cannot be read."""
    if head and not model:
        raise CorpusError(f"--head {head}: is the head of an encoder; name that with --model")
    digest = hashlib.blake2b(digest_size=16)
    for path in filter(None, (model, head)):
        try:
            digest.update(Path(path).read_bytes())
        except OSError as error:
            raise CorpusError(
                f"{path}: cannot be read ({error.strerror}); give a TorchScript or an ONNX file"
            ) from error
    return digest.hexdigest() if model else ""


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


def _onnx(path: str) -> tuple[Network, int]:
    try:
        import onnxruntime
    except ImportError as error:
        raise CorpusError(
            f"{path}: ONNX files need the package onnxruntime; install it, or give a TorchScript file"
        ) from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has classes of its own for every kind
        raise CorpusError(f"{path}: onnxruntime cannot load it ({error}); export it again") from error
    (first, *others), side = session.get_inputs(), SIDE
    if others or len(first.shape) != 4:
        raise CorpusError(
            f"{path}: takes {[i.shape for i in session.get_inputs()]}; one input (1, 3, H, W) is accepted"
        )
    if isinstance(first.shape[2], int):
        side = first.shape[2]
    return lambda picture: np.asarray(session.run(None, {first.name: picture})[0]), side


def _torchscript(path: str) -> tuple[Network, int]:
    import torch

    try:
        network = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path}: not a TorchScript file ({reason}); give one, or an .onnx file") from error

    def run(picture: NDArray[np.float32]) -> NDArray[Any]:
        with torch.inference_mode():
            return network(torch.from_numpy(picture)).float().numpy()

    return run, SIDE
