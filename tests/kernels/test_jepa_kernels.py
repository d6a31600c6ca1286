"""The JEPA runs on the fused kernels: they are called, and loss, gradients and target are those of the references."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trocar.kernels import launch
from trocar.ssl.attention import attention_by_sequence, packed_attention
from trocar.ssl.block_masks import MultiBlockMask
from trocar.ssl.choices import BlockRecipe, Positions
from trocar.ssl.encoder import VideoEncoder
from trocar.ssl.jepa import JointEmbedding
from trocar.ssl.predictor import Predictor

RECIPES = (BlockRecipe(2, (0.2, 0.3)), BlockRecipe(1, (0.4, 0.6)))


class CalledOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def step(device: torch.device, positions: Positions) -> tuple[set[str], dict[str, torch.Tensor]]:
    """The operators of one step, and its loss, gradients and target."""
    torch.manual_seed(0)
    encoder = VideoEncoder(24, 1, 2, frames=4, resolution=24, patch=8, positions=positions)
    predictor = Predictor(24, 12, 1, 2, grid=encoder.grid, positions=positions)
    model = JointEmbedding(encoder, predictor).to(device)
    frames = torch.randint(0, 256, (2, 4, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    masks = MultiBlockMask(encoder.grid, RECIPES, bucket=16)(0, [0, 1], 0, device)
    with CalledOps() as called:
        loss = model(frames.to(device), masks).loss
        loss.backward()
        with torch.no_grad():
            encoder.norm.bias.add_(1)
        model.update_target(0.75)
    results = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    target = {f"target/{name}": p.detach().cpu() for name, p in model.target_encoder.named_parameters()}
    return called.names, {"loss": loss.detach().cpu(), **results, **target}


@pytest.mark.parametrize("positions", ["axes", "rope"])
def test_a_step_on_the_kernels_is_that_of_the_references(
    positions: Positions, kernels: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, actual = step(kernels, positions)
    wanted = {"patch_embed", "patch_embed_backward", "feature_loss", "ema_"} | (
        {"rope3d"} if positions == "rope" else set()
    )
    assert wanted <= {name.split(".")[1] for name in names if name.startswith("trocar.")}
    assert not [name for name in names if "conv" in name]
    monkeypatch.setattr(launch, "triton", None)
    names, expected = step(torch.device("cpu"), positions)
    assert not [name for name in names if name.startswith("trocar.")]
    assert actual.keys() == expected.keys()
    for name in expected:
        error = (actual[name] - expected[name]).norm()
        assert error < 1e-5 * max(expected[name].norm().item(), 1e-2), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_packed_attention_on_a_gpu_equals_a_loop(dtype: torch.dtype) -> None:
    """Empty sequences, one token, more than a block; heads of 24, 32 and 64 values; forward and backward."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, 1, 1, 130, 400, 401], dtype=torch.int32, device="cuda")
    for width in (24, 32, 64):
        fused = torch.randn(401, 3, 3, width, device="cuda", dtype=dtype, requires_grad=True)
        leaves = fused.unbind(1)  # as the blocks have them: not contiguous
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        upstream = torch.randn(401, 3, width, device="cuda", dtype=dtype)
        mixed = packed_attention(*leaves, offsets, 401)
        oracle = attention_by_sequence(*exact, offsets)
        gradients = torch.autograd.grad((mixed * upstream).sum(), leaves)
        expected = torch.autograd.grad((oracle * upstream.double()).sum(), exact)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        for ours, theirs in zip((mixed, *gradients), (oracle, *expected), strict=True):
            assert (ours.double() - theirs).norm() < tolerance * theirs.norm()
