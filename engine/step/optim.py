"""The optimizers, and how a step's rates are put into them."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from torch.cuda import is_available as has_cuda
from torch.distributed.tensor import DTensor

from ..config.settings import ConfigError, OptimConfig
from ..draws.schedule import Schedule
from .muon import Muon

BUILT_BY = "APEX_CPP_EXT=1 APEX_CUDA_EXT=1"
UNFIT_APEX = {
    "none": f"no apex is installed (NVIDIA's is built from its repository with {BUILT_BY})",
    "another": "the installed apex is PyPI's, an unrelated web toolkit (pip uninstall apex)",
    "partial": f"the installed NVIDIA apex was built without its CUDA extension ({BUILT_BY})",
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over what is trained; vectors (biases, norms, the mask token) are not decayed, as in VideoMAE.

    Raises ConfigError where optim.optimizer asks for what is not there, NVIDIA apex or Muon.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay, "is_decayed": True},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "is_decayed": False},
    ]
    if config.optimizer == "apex":
        fused_adam, problem = find_apex()
        if fused_adam is None:
            raise ConfigError(f"optim.optimizer: 'apex' is asked for, but {problem}; set optim.optimizer=adamw")
        return ApexAdam(fused_adam, groups, config)
    if config.optimizer == "muon":
        return Muon(model, groups, config)
    if config.final_weight_decay is not None and not any(isinstance(parameter, DTensor) for parameter in trained):
        # The fused kernel takes it from the host.
        groups[0] |= {"weight_decay": 0.0, "decay": config.weight_decay}
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)
    optimizer.register_step_pre_hook(_decay)
    return optimizer


def read_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """From here on AdamW reads its schedule from scalars on the device, and can be captured."""
    is_cuda = device.type == "cuda"
    for group in optimizer.param_groups:
        # The fused kernel reads float32 on a GPU; on a CPU float64, which is what it makes of a number.
        group["lr"] = torch.zeros((), dtype=torch.float32 if is_cuda else torch.float64, device=device)
        group["capturable"] = is_cuda
        if "decay" in group:
            group["decay"] = torch.zeros((), dtype=torch.float64, device=device)


def set_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Puts the step's learning rate and weight decay into the optimizer."""
    learning_rate, weight_decay = schedule(step), schedule.weight_decay(step)
    for group in optimizer.param_groups:
        _put(group, "lr", learning_rate)
        if group["is_decayed"]:
            _put(group, "decay" if "decay" in group else "weight_decay", weight_decay)


def _put(group: dict[str, Any], key: str, value: float) -> None:
    if isinstance(group[key], torch.Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


@torch.no_grad()
def _decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Decoupled weight decay that follows a schedule, weights times 1 - rate * decay, before AdamW's own step, whose moments do not
    look at the weights."""
    skip = getattr(optimizer, "found_inf", None)
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if "decay" not in group or not parameters:
            continue
        kept = torch.as_tensor(1 - group["lr"] * group["decay"], dtype=torch.float64, device=parameters[0].device)
        if skip is not None:
            kept = torch.where(skip != 0, torch.ones_like(kept), kept)
        torch._foreach_mul_(parameters, kept.to(parameters[0].dtype))  # pyright: ignore[reportPrivateImportUsage]


def step_unless(optimizer: torch.optim.Optimizer, found_inf: torch.Tensor) -> None:
    """Steps where found_inf, () float32 on the parameters' device, is 0; leaves all state as it is where it is 1. No host sync."""
    optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]  (what fused AdamW looks for)
    optimizer.step()
    del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]


def installed_apex() -> tuple[Literal["none", "another", "partial", "whole"], Any]:
    """Which apex is here, and NVIDIA's FusedAdam where it is whole: built with its CUDA extension.

    Another is the package `apex` on PyPI, an unrelated web toolkit; NVIDIA's is known by what it offers.
    """
    if find_spec("apex") is None:
        return "none", None
    try:
        applier = importlib.import_module("apex.multi_tensor_apply").multi_tensor_applier
        fused_adam = importlib.import_module("apex.optimizers").FusedAdam
    except (ImportError, AttributeError):
        return "another", None
    return ("whole", fused_adam) if applier.available else ("partial", None)


def find_apex() -> tuple[Any | None, str]:
    """(NVIDIA's FusedAdam, "") where it can run, else (None, why not)."""
    kind, fused_adam = installed_apex()
    if kind != "whole":
        return None, UNFIT_APEX[kind]
    if not has_cuda():
        return None, "NVIDIA apex's FusedAdam needs a CUDA device and there is none"
    return fused_adam, ""


class ApexAdam(torch.optim.Optimizer):
    """NVIDIA apex's FusedAdam in its capturable form, with what fused AdamW offers: `found_inf`, and a step count for every tensor.

    FusedAdam asks a gradient scaler whether to skip; this object answers as one, of scale 1. Its own count of a group's steps looks
    at the skip of the step before, which a checkpoint between the two would lose: the count is kept here.
    """

    def __init__(self, fused_adam: Any, groups: list[dict[str, Any]], config: OptimConfig) -> None:
        self._inner = fused_adam(groups, lr=0.0, betas=config.betas, adam_w_mode=True, capturable=True)
        super().__init__(self._inner.param_groups, {})
        self.param_groups, self.state = self._inner.param_groups, self._inner.state
        self._device = self.param_groups[0]["params"][0].device

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        found_inf: torch.Tensor = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        done = self.state[parameters[0]].get("step", torch.zeros((), device=self._device))
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self._device)
            group["step"] = done.to(torch.int32).reshape(1).clone()
        self._inner._dummy_overflow_buf.zero_()
        self._inner.step(grad_scaler=self)
        done = done + (1 - found_inf)
        for parameter in parameters:
            self.state[parameter]["step"] = done

    def _check_inf_per_device(self, _: torch.optim.Optimizer) -> dict[torch.device, torch.Tensor]:
        return {self._device: self.found_inf.reshape(1)}  # pyright: ignore[reportAttributeAccessIssue]

    def _get_scale_async(self) -> torch.Tensor:
        return torch.ones(1, device=self._device)
