"""The formula of model FLOPs against PyTorch's own counter, operator by operator, for both objectives."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trocar.bench.training.flops import step_flops
from trocar.engine.config.file import load_config
from trocar.engine.step.build import build_model
from trocar.ssl.objective import Objective

SMALL = ["model.width=48", "model.depth=2", "model.heads=4", "model.patch=8", "data.frames=4", "data.resolution=32"]
MAE = [*SMALL, "model.decoder_width=24", "model.decoder_depth=1", "model.decoder_heads=2"]
JEPA = [*SMALL, "model.predictor_width=36", "model.predictor_heads=3", "model.predictor_depth=2", "objective.bucket=1"]


@pytest.mark.parametrize(
    ("name", "settings", "clips"),
    [
        ("demo_cpu", MAE, 3),
        ("demo_cpu", [*MAE, "objective.mask_ratio=0.5", "data.frames=8"], 1),
        ("demo_cpu", [*MAE, "model.width=96", "model.decoder_depth=3", "data.resolution=48"], 2),
        ("demo_cpu", [*MAE, "objective.decoder_mask_ratio=0.5"], 2),
        ("demo_jepa_cpu", JEPA, 2),
        ("demo_jepa_cpu", [*JEPA, "model.predictor_depth=0"], 2),
        ("demo_jepa_cpu", [*JEPA, "model.positions=rope", "model.depth=3", "data.resolution=48"], 3),
    ],
)
def test_formula_equals_the_counter(name: str, settings: list[str], clips: int) -> None:
    model, masks = build_model(load_config(name, [*settings, "run.device=cpu"]))
    config = load_config(name, settings)
    drawn = masks(0, range(clips), 0)
    shape = (clips, config.data.frames, config.data.resolution, config.data.resolution, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    forward, both = counted(model, frames, drawn)
    expected = step_flops(model, drawn)
    assert expected.forward == forward
    assert expected.total == both
    assert 0 < expected.visible_tokens < 2 * clips * model.encoder.num_tokens


def counted(model: Objective, frames: torch.Tensor, masks: object) -> tuple[int, int]:
    """Forward, and forward with backward. Attention is spelled out as products: flash attention would count its scores twice."""
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            loss = model(frames, masks).loss
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
    return forward, forward + counter.get_total_flops()


def test_padding_is_not_counted() -> None:
    model, masks = build_model(load_config("demo_jepa_cpu", [*JEPA, "objective.bucket=64"]))
    _, bare = build_model(load_config("demo_jepa_cpu", JEPA))
    padded, exact = masks(0, range(2), 0), bare(0, range(2), 0)
    assert len(padded.context.tokens) > len(exact.context.tokens)
    assert step_flops(model, padded) == step_flops(model, exact)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(TypeError, match="no formula for Objective with tuple"):
        step_flops(Objective(), ())  # pyright: ignore[reportArgumentType]
