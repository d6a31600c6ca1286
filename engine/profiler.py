"""The stages of a step under stable names, as NVTX ranges for Nsight Systems. This file is the one place that names them.

    trocar/wait       the training waits for a batch          trocar/encoder    encoder blocks on visible tokens
    trocar/decode     a thread reads, decodes, crops a span   trocar/decoder    the decoder or predictor, to its output
    trocar/masks      masks are drawn                         trocar/loss       what follows until the loss is known
    trocar/forward    the model, to the loss                  trocar/backward   gradients, and their exchange between ranks
    trocar/patch_embed  pixels to visible tokens              trocar/guard      gradient norm, clipping, verdict over the step
    trocar/target     the target encoder                      trocar/optimizer  the optimizer's step
    trocar/ema        the target encoder's update             trocar/save       weights are copied for a checkpoint

They are off unless TROCAR_NVTX=1 is in the environment: then a range costs about a microsecond, else a call that returns one shared
object, and the model has no hooks.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, get_args

from torch import nn

Stage = Literal[
    "wait", "decode", "masks", "forward", "patch_embed", "encoder", "target", "decoder", "loss", "backward", "guard", "optimizer",
    "ema", "save",
]  # fmt: skip
STAGES: tuple[Stage, ...] = get_args(Stage)
# Submodules of an objective and their stages, by name; those that an objective lacks are passed over.
MODULES: dict[str, Stage] = {
    "encoder": "encoder",
    "encoder.patch_embed": "patch_embed",
    "target": "target",
    "predictor": "decoder",
}
IS_ON = os.environ.get("TROCAR_NVTX", "0") == "1"
_OFF = nullcontext()


def stage(name: Stage) -> AbstractContextManager[Any]:
    """The range of a stage, around the code in its `with`."""
    return _range(name) if IS_ON else _OFF


def _range(name: Stage) -> AbstractContextManager[Any]:
    import nvtx

    return nvtx.annotate(f"trocar/{name}", domain="trocar")


def name_modules(model: nn.Module) -> None:
    """Gives the parts of an objective their ranges. Does nothing where ranges are off."""
    if not IS_ON:
        return
    modules = dict(model.named_modules())
    for name, stage_name in MODULES.items():
        if name in modules:
            _Ranges(stage_name).attach(modules[name])
    # VideoMAE's decoder is several modules: from the first one's start to the last one's end; the loss follows.
    if "encoder_to_decoder" in modules and "decoder_head" in modules:
        decoder, loss = _Ranges("decoder"), _Ranges("loss")
        modules["encoder_to_decoder"].register_forward_pre_hook(lambda *_: decoder.start())
        modules["decoder_head"].register_forward_hook(lambda *_: decoder.stop())
        modules["decoder_head"].register_forward_hook(lambda *_: loss.start())
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
