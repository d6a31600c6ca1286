"""The MAE runs on the fused kernels: they are called, nothing convolves, and training is that of the references."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trocar.kernels import launch
from trocar.ssl.encoder import VideoEncoder
from trocar.ssl.mae import MaskedAutoencoder
from trocar.ssl.masks import Masks, TubeMask


class CalledOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def model_and_batch(device: torch.device) -> tuple[MaskedAutoencoder, torch.Tensor, Masks]:
    torch.manual_seed(0)
    encoder = VideoEncoder(24, 1, 2, frames=4, resolution=16, patch=8)
    model = MaskedAutoencoder(encoder, decoder_width=12, decoder_depth=1, decoder_heads=2).to(device)
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return model, frames.to(device), TubeMask(encoder.grid, 0.5)(0, [0, 1], 0, device)


def train(device: torch.device, steps: int) -> list[float]:
    model, frames, masks = model_and_batch(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(frames, masks).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_forward_and_backward_call_the_kernels_and_no_convolution(kernels: torch.device) -> None:
    model, frames, masks = model_and_batch(kernels)
    with CalledOps() as called:
        model(frames, masks).loss.backward()
    ops = {"patch_embed", "patch_embed_backward", "decoder_tokens", "mask_token_gradient", "pixel_loss", "scale_"}
    assert {name.split(".")[1] for name in called.names if name.startswith("trocar.")} == ops
    assert not [name for name in called.names if "conv" in name]
    assert len(called.names) > 50


def test_three_training_steps_equal_the_references(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.takes_triton(torch.zeros(1, device=kernels))
    fused, asked = train(kernels, 3), []

    def never(*tensors: torch.Tensor) -> bool:
        asked.append(tensors)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(launch, "takes_triton", never)
        for module in ("patch_embed", "decoder_tokens", "pixel_loss", "row_sums"):
            patch.setattr(f"trocar.kernels.{module}.takes_triton", never)
        reference = train(kernels, 3)
    assert asked  # two computations, not one; in the interpreter they may agree to the last bit
    assert fused == pytest.approx(reference, rel=2e-5)
    assert fused[2] < fused[0]


def test_the_cpu_never_runs_the_interpreter_by_itself() -> None:
    model, frames, masks = model_and_batch(torch.device("cpu"))
    with CalledOps() as called:
        model(frames, masks).loss.backward()
    assert not [name for name in called.names if name.startswith("trocar.")]


def test_loss_scale_and_counted_reach_the_loss() -> None:
    model, frames, masks = model_and_batch(torch.device("cpu"))
    output = model(frames, masks)
    assert model(frames, masks, loss_scale=0.25).loss.item() == pytest.approx(output.loss.item() / 4)
    counted = torch.zeros_like(masks.masked, dtype=torch.bool)
    counted[:, 0] = True
    first = model(frames, masks._replace(counted=counted))
    alone = model(frames, masks._replace(counted=~counted))
    share = 1 / masks.masked.shape[1]
    assert torch.allclose(first.clip_loss * share + alone.clip_loss * (1 - share), output.clip_loss)


def test_the_whole_model_compiles_without_a_graph_break(kernels: torch.device) -> None:
    model, frames, masks = model_and_batch(kernels)
    expected = model(frames, masks).loss
    expected.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(frames, masks).loss
    loss.backward()
    assert torch.allclose(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


@pytest.mark.gpu
def test_a_step_replays_from_a_cuda_graph(kernels: torch.device) -> None:
    model, frames, masks = model_and_batch(kernels)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            model(frames, masks).loss.backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = model(frames, masks).loss
        loss.backward()
    # Its graph would keep the parameters' nodes, which belong to the stream of the capture.
    captured = loss.detach()
    del loss
    frames.copy_(255 - frames)
    graph.replay()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    expected = model(frames, masks).loss
    expected.backward()
    assert torch.allclose(captured, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
