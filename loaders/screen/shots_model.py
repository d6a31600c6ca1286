"""Cuts and transitions by a network that somebody has: a TorchScript or ONNX file of TransNet V2's shape.

TransNet V2 (Soucek and Lokoc, arXiv 2008.04838) sees (1, 100, 27, 48, 3) RGB, 0 .. 255, uint8 or float32, and returns (1, 100, 1)
logits of one frame a transition, and, as a second output or under "many_hot", of all frames of one. As in its published inference
windows begin every 50 frames, the middle 50 of each count, the ends are padded by the first and the last frame, and what lies
above 0.5 is a transition; the shot after it begins with the first frame below. Probabilities in place of logits are told by what
the file says of a black window. Every frame is decoded.

TorchScript files hold code: only those of people you trust.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus.folder import CorpusError
from .models import onnx_session, torchscript_module
from .packet_signals import runs_of
from .pictures import Picture

WINDOW, KEPT, MARGIN = 100, 50, 25
ROWS, COLUMNS = 27, 48
SHAPE = (1, WINDOW, ROWS, COLUMNS, 3)
GRADUAL = 4  # frames of a transition that has no frame of its own

ShotsNetwork = Callable[[Picture], NDArray[np.float64]]


def load_shots_model(path: str) -> ShotsNetwork:
    """(100, 27, 48, 3) uint8 -> (2, 100) probabilities: that a shot ends with a frame, that a frame is of a transition. Raises
    CorpusError."""
    raw = _onnx(path) if path.endswith(".onnx") else _torchscript(path)

    def run(window: Picture) -> NDArray[np.float64]:
        found = [np.asarray(values, np.float64) for values in raw(window[None])[:2]]
        if not found or any(values.shape not in ((1, WINDOW, 1), (1, WINDOW)) for values in found):
            shapes = ", ".join(str(values.shape) for values in found) or "nothing"
            raise CorpusError(
                f"{path}: returns {shapes} for frames {SHAPE}; (1, {WINDOW}, 1) is accepted, once or twice"
            )
        return np.stack([found[0].ravel(), found[-1].ravel()])

    black = run(np.zeros(SHAPE[1:], np.uint8))
    is_logits = bool((black < 0).any() or (black > 1).any())

    def probabilities(window: Picture) -> NDArray[np.float64]:
        values = run(window)
        return 1 / (1 + np.exp(-np.clip(values, -30, 30))) if is_logits else values

    if not (probabilities(np.zeros(SHAPE[1:], np.uint8)) <= 0.5).all():
        raise CorpusError(f"{path}: finds a transition in {WINDOW} black frames; give an export of a trained network")
    return probabilities


def network_shots(pictures: Iterable[Picture], network: ShotsNetwork) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(C,) first frames of shots but the first, and (T, 2) first frames of transitions and those behind their last. pictures: of
    every frame, (27, 48, 3) uint8. A transition of fewer than `GRADUAL` frames is a cut."""
    frames = 0

    def counted() -> Iterator[Picture]:
        nonlocal frames
        for picture in pictures:
            frames += 1
            yield picture

    kept = [network(window)[:, MARGIN : MARGIN + KEPT] for window in _windows(counted())]
    above = np.concatenate(kept, axis=1)[:, :frames] > 0.5 if kept else np.zeros((2, 0), bool)
    runs = [runs_of(flags) for flags in above]
    gradual = runs_of(above[0] | above[1])
    gradual = gradual[gradual[:, 1] - gradual[:, 0] >= GRADUAL]
    inside = [((first < gradual[:, 1]) & (stop > gradual[:, 0])).any() for first, stop in runs[0].tolist()]
    cuts = runs[0][~np.array(inside, bool), 1]
    return cuts[cuts < frames], gradual


def _windows(pictures: Iterator[Picture]) -> Iterator[Picture]:
    """(100, 27, 48, 3) of every 50 frames and 25 on either side."""
    held: list[Picture] = []
    left = 0
    for picture in pictures:
        held = held or [picture] * MARGIN
        held.append(picture)
        left += 1
        if len(held) == WINDOW:
            yield np.stack(held)
            del held[:KEPT]
            left -= KEPT
    while left > 0:
        held += [held[-1]] * (WINDOW - len(held))
        yield np.stack(held)
        del held[:KEPT]
        left -= KEPT


def _onnx(path: str) -> Callable[[Picture], list[Any]]:
    session = onnx_session(path)
    (first, *others) = session.get_inputs()
    fits = len(first.shape) == 5 and all(
        not isinstance(side, int) or side == wanted for side, wanted in zip(first.shape, SHAPE, strict=True)
    )
    types = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    if others or not fits or first.type not in types:
        told = [f"{each.type} {each.shape}" for each in session.get_inputs()]
        raise CorpusError(f"{path}: takes {', '.join(told)}; one input {SHAPE}, uint8 or float, is accepted")
    return lambda frames: session.run(None, {first.name: frames.astype(types[first.type])})


def _torchscript(path: str) -> Callable[[Picture], list[Any]]:
    import torch

    network = torchscript_module(path)

    def run(frames: torch.Tensor) -> list[Any]:
        with torch.inference_mode():
            found = network(frames)
        found = list(found) if isinstance(found, tuple | list) else [found]
        return [(each["many_hot"] if isinstance(each, dict) else each).float().numpy() for each in found]

    errors = []
    for kind in (torch.uint8, torch.float32):
        try:
            run(torch.zeros(SHAPE, dtype=kind))
        except (RuntimeError, KeyError, AttributeError) as error:
            errors.append(str(error).strip().splitlines()[-1])
        else:
            return lambda frames, kind=kind: run(torch.from_numpy(frames).to(kind))
    raise CorpusError(
        f"{path}: does not take frames {SHAPE}, neither uint8 ({errors[0]}) nor float ({errors[1]}); export it for these"
    )
