"""The stages of a step under stable names, as ranges for profilers. This file is the one place that names them.

    trocar/wait       the training waits for a batch          trocar/encoder    encoder blocks on visible tokens
    trocar/decode     a thread reads, decodes, crops a span   trocar/decoder    the decoder or predictor, to its output
    trocar/masks      masks are drawn                         trocar/loss       what follows until the loss is known
    trocar/forward    the model, to the loss                  trocar/backward   gradients, and their exchange between ranks
    trocar/patch_embed  pixels to visible tokens              trocar/guard      gradient norm, clipping, verdict over the step
    trocar/target     the target encoder                      trocar/optimizer  the optimizer's step
    trocar/ema        the target encoder's update             trocar/save       weights are copied for a checkpoint
    trocar/step       one optimizer step, around all of these but decode and save

They are off unless TROCAR_NVTX=1 is in the environment, which gives Nsight Systems NVTX ranges, or a run is inside `recorded_by`,
which gives them to another recorder. Then a range costs about a microsecond, else a call that returns one shared object, and the
model has no hooks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

from torch import nn

Stage = Literal[
    "wait", "decode", "masks", "forward", "patch_embed", "encoder", "target", "decoder", "loss", "backward", "guard", "optimizer",
    "ema", "copies", "save", "step",
]  # fmt: skip
# Submodules of an objective and their stages, by name; those that an objective lacks are passed over.
MODULES: dict[str, Stage] = {
    "encoder": "encoder",
    "encoder.patch_embed": "patch_embed",
    "target_encoder": "target",
    "predictor": "decoder",
}
IS_ON = os.environ.get("TROCAR_NVTX", "0") == "1"
_recorder: Callable[[str], AbstractContextManager[Any]] | None = None
_OFF = nullcontext()


def stage(name: Stage) -> AbstractContextManager[Any]:
    """The range of a stage, around the code in its `with`."""
    return _range(name) if IS_ON else _OFF


@contextmanager
def recorded_by(recorder: Callable[[str], AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside, ranges are on, also of models and loaders that are made there, and go to `recorder` in place of Nsight Systems.

    recorder: of a name, the range; for example `torch.profiler.record_function`. Called on all threads.
    """
    global IS_ON, _recorder
    before = IS_ON, _recorder
    IS_ON, _recorder = True, recorder
    try:
        yield
    finally:
        IS_ON, _recorder = before


def _range(name: Stage) -> AbstractContextManager[Any]:
    return nvtx_range(f"trocar/{name}") if _recorder is None else _recorder(f"trocar/{name}")


def nvtx_range(name: str) -> AbstractContextManager[Any]:
    """A range for Nsight Systems, in the project's domain."""
    import nvtx

    return nvtx.annotate(name, domain="trocar")


def name_modules(model: nn.Module) -> None:
    """Gives the parts of an objective their ranges. Does nothing where ranges are off."""
    if not IS_ON:
        return
    modules = dict(model.named_modules())
    if isinstance(teacher := getattr(model, "target_encoder", None), nn.Module):
        modules["target_encoder"] = teacher  # a frozen teacher is no submodule
    for name, stage_name in MODULES.items():
        if name in modules:
            _Ranges(stage_name).attach(modules[name])
    # VideoMAE's decoder is several modules: from the first one's start to the last one's end.
    if "encoder_to_decoder" in modules and "decoder_head" in modules:
        decoder = _Ranges("decoder")
        modules["encoder_to_decoder"].register_forward_pre_hook(lambda *_: decoder.start())
        modules["decoder_head"].register_forward_hook(lambda *_: decoder.stop())
    # The loss is what follows the prediction; a JEPA's target is inside it, with a range of its own.
    if (prediction := modules.get("decoder_head", modules.get("predictor"))) is not None:
        loss = _Ranges("loss")
        prediction.register_forward_hook(lambda *_: loss.start())
        model.register_forward_hook(lambda *_: loss.stop())


def name_decoding(loader: Any) -> None:
    """Gives every span that the CPU decodes its range, and every run of spans that DALI does. Does nothing where ranges are off."""
    if IS_ON:
        loader.decoding_range = partial(stage, "decode")


class _Ranges:
    """Ranges of one stage that hooks open and close; they nest, so a stack holds them."""

    def __init__(self, name: Stage) -> None:
        self.name: Stage = name
        self._open: list[AbstractContextManager[Any]] = []

    def attach(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self.start())
        module.register_forward_hook(lambda *_: self.stop())

    def start(self) -> None:
        entered = _range(self.name)
        entered.__enter__()
        self._open.append(entered)

    def stop(self) -> None:
        self._open.pop().__exit__(None, None, None)
