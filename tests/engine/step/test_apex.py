"""Which apex is installed: none, PyPI's web toolkit, NVIDIA's; and what is made of NVIDIA's."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch
from torch import nn

from trocar.engine.config.settings import ConfigError, OptimConfig
from trocar.engine.step.optim import build_optimizer, find_apex, step_unless

APEX = OptimConfig(steps=1, optimizer="apex", weight_decay=0.1, betas=(0.9, 0.95))


class FusedAdam(torch.optim.Optimizer):
    """NVIDIA apex's capturable FusedAdam as its source has it, in PyTorch: the group counts steps, a scaler says what to skip."""

    def __init__(self, params, lr, betas, adam_w_mode, capturable) -> None:
        assert adam_w_mode
        assert capturable
        super().__init__(params, {"lr": torch.tensor(lr), "betas": betas, "eps": 1e-8, "weight_decay": 0.0})
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

    @torch.no_grad()
    def step(self, closure=None, grad_scaler: Any = None):  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            if "step" in group:
                group["step"] += (self._dummy_overflow_buf != 1).to(torch.int)
            else:
                group["step"] = torch.tensor([1], dtype=torch.int)
            found_inf = grad_scaler._check_inf_per_device(self)[torch.device("cpu")]
            self._dummy_overflow_buf.copy_(found_inf)
            assert grad_scaler._get_scale_async().item() == 1
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                if self._dummy_overflow_buf.item():
                    continue
                first, second = group["betas"]
                mean, square = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
                mean.lerp_(p.grad, 1 - first)
                square.mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                steps = group["step"].item()
                update = (mean / (1 - first**steps)) / ((square / (1 - second**steps)).sqrt() + group["eps"])
                p.sub_(group["lr"] * (update + group["weight_decay"] * p))


def install(monkeypatch: pytest.MonkeyPatch, kind: str, *, available: bool = True, cuda: bool = True) -> None:
    for name in ("apex", "apex.multi_tensor_apply", "apex.optimizers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if kind == "none":
        monkeypatch.setitem(sys.modules, "apex", None)
        return
    apex = types.ModuleType("apex")
    apex.__path__ = []  # a package
    apex.__spec__ = ModuleSpec("apex", None, is_package=True)
    monkeypatch.setitem(sys.modules, "apex", apex)
    if kind == "pypi":
        return
    applier = types.ModuleType("apex.multi_tensor_apply")
    applier.multi_tensor_applier = types.SimpleNamespace(available=available)  # pyright: ignore[reportAttributeAccessIssue]
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = FusedAdam  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "apex.multi_tensor_apply", applier)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    monkeypatch.setattr("trocar.engine.step.optim.has_cuda", lambda: cuda)


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("none", {}, "no apex is installed"),
        ("pypi", {}, "PyPI's, an unrelated web toolkit"),
        ("nvidia", {"available": False}, "built without its CUDA extension"),
        ("nvidia", {"cuda": False}, "needs a CUDA device and there is none"),
    ],
)
def test_what_cannot_be_used_is_told_apart(monkeypatch: pytest.MonkeyPatch, kind: str, more: dict, reason: str) -> None:
    install(monkeypatch, kind, **more)
    found, problem = find_apex()
    assert found is None
    assert reason in problem
    with pytest.raises(
        ConfigError, match=rf"optim\.optimizer: 'apex' is asked for, but .*{reason}.*optim\.optimizer=adamw"
    ):
        build_optimizer(nn.Linear(2, 2), APEX)


def test_nvidias_apex_is_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same steps, some left out, and a resume in between: equal to fused AdamW to 1e-6, counts included."""
    install(monkeypatch, "nvidia")
    assert find_apex() == (FusedAdam, "")
    compare(torch.device("cpu"))


@pytest.mark.gpu
def test_a_real_apex_matches_adamw() -> None:
    found, problem = find_apex()
    if found is None:
        pytest.skip(problem)
    compare(torch.device("cuda"))


def compare(device: torch.device) -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7)).to(device)
    second = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7)).to(device)
    second.load_state_dict(first.state_dict())
    models = (first, second)
    adamw = build_optimizer(first, OptimConfig(steps=1, weight_decay=0.1, betas=(0.9, 0.95)))
    apex = build_optimizer(second, APEX)
    for step in range(12):
        data = torch.randn(4, 5, device=device)
        skip = torch.tensor(float(step in (0, 4, 5)), device=device)
        for model, optimizer in zip(models, (adamw, apex), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = 0.001 * (step + 1)
            model.zero_grad()
            (model(data) * data.sum(dim=1, keepdim=True)).sin().sum().backward()
            step_unless(optimizer, skip)
        if step == 5:  # just after a step that was left out
            state = [dict(apex.state[p]) for p in second.parameters()]
            apex = build_optimizer(second, APEX)
            for parameter, values in zip(second.parameters(), state, strict=True):
                apex.state[parameter] = values
    for mine, theirs in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
        assert int(apex.state[mine]["step"]) == int(adamw.state[theirs]["step"]) == 9
