"""The MAE against Hugging Face's VideoMAE: outputs, loss and every gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from trocar.engine.weights.objectives import from_huggingface_videomae
from trocar.ssl.attention import attention
from trocar.ssl.choices import SIZES
from trocar.ssl.encoder import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder, position_table
from trocar.ssl.mae import MaskedAutoencoder
from trocar.ssl.masks import TubeMask

DEPTH, DECODER_DEPTH = 3, 2


def peer(normalize_pixels: bool) -> VideoMAEForPreTraining:
    config = VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        hidden_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        intermediate_size=192,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=DECODER_DEPTH,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=96,
        use_mean_pooling=False,
        norm_pix_loss=normalize_pixels,
        initializer_range=0.2,
    )
    model = VideoMAEForPreTraining(config)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6  # the original VideoMAE's; Hugging Face sets 1e-12 and, in the decoder, 1e-5
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, else a missing one would go unnoticed
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def ours(normalize_pixels: bool) -> MaskedAutoencoder:
    encoder = VideoEncoder(48, DEPTH, 4, frames=4, resolution=32, patch=8)
    return MaskedAutoencoder(
        encoder,
        decoder_width=24,
        decoder_depth=DECODER_DEPTH,
        decoder_heads=2,
        normalization="channel" if normalize_pixels else "none",
    )


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.detach() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("normalize_pixels", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_equals_hugging_face(
    dtype: torch.dtype, tolerance: float, normalize_pixels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    theirs, model = peer(normalize_pixels), ours(normalize_pixels).to(dtype)
    nn.Module.to(theirs, dtype)
    model.load_state_dict(from_huggingface_videomae(theirs.state_dict(), DEPTH, DECODER_DEPTH), strict=True)

    frames = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8)
    masks = TubeMask((2, 4, 4), 0.75)(seed=5, draws=[0, 1, 2], views=0)
    masked = torch.ones(3, 32, dtype=torch.bool)
    masked.scatter_(1, masks.visible, False)
    pixels = (frames.to(dtype) / 255 - torch.tensor(IMAGENET_MEAN, dtype=dtype)) / torch.tensor(
        IMAGENET_STD, dtype=dtype
    )
    pixels = pixels.permute(0, 1, 4, 2, 3)

    # Hugging Face builds its mean and std in the default dtype: in float32 they would differ from ours by 1e-8.
    monkeypatch.setattr(torch, "as_tensor", lambda values: torch.tensor(values, dtype=dtype))
    expected = theirs(pixels, masked)
    output = model(frames, masks)
    tokens = model.encoder(frames, masks.visible)
    assert relative_error(tokens, theirs.videomae(pixels, masked).last_hidden_state) < tolerance
    assert relative_error(output.prediction, expected.logits) < tolerance
    assert relative_error(output.loss, expected.loss) < tolerance
    assert torch.allclose(output.clip_loss.mean(), output.loss)

    expected.loss.backward()
    output.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected_gradients = from_huggingface_videomae(gradients, DEPTH, DECODER_DEPTH)
    typical = torch.stack([gradient.norm() for gradient in gradients.values()]).median()
    compared = 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        actual, wanted = parameter.grad, expected_gradients.pop(name)
        if name.endswith("attn.qkv.bias"):
            query, key, value = actual.chunk(3)
            assert key.norm() < tolerance * typical, f"{name}: the key bias has a true gradient of zero"
            actual, wanted = torch.cat([query, value]), torch.cat([wanted.chunk(3)[0], wanted.chunk(3)[2]])
        assert relative_error(actual, wanted) < tolerance, name
        compared += 1
    assert not expected_gradients
    # patch (2), encoder norm (2), projection, mask token, decoder norm (2), head (2); 12 tensors a block
    assert compared == 10 + 12 * (DEPTH + DECODER_DEPTH)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2**-7)])
def test_a_block_of_the_last_tokens_alone(dtype: torch.dtype, tolerance: float) -> None:
    """Outputs and every gradient are those of the whole block; bfloat16 goes its own way on a CPU."""
    torch.manual_seed(1)
    block = ours(True).encoder.blocks[0].to(dtype)
    tokens, first = torch.randn(2, 40, 48).to(dtype), 7
    found = []
    for cut in (False, True):
        given = tokens.clone().requires_grad_()
        output = block(given, first=first) if cut else block(given)[:, first:]
        output.square().sum().backward()
        assert given.grad is not None
        gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
        found.append([output.double(), given.grad.double(), *(part.double() for part in gradients)])
        block.zero_grad()
    assert len(found[0]) == len(found[1]) == 2 + 12
    assert all(relative_error(actual, wanted) < tolerance for wanted, actual in zip(*found, strict=True))


def test_all_tokens_visible_equals_no_mask() -> None:
    encoder = ours(True).encoder
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    everything = torch.arange(32).expand(2, -1)
    assert torch.equal(encoder(frames), encoder(frames, everything))


@pytest.mark.parametrize(("name", "millions"), [("small", 21.9), ("base", 86.2), ("large", 303.9), ("huge", 631.7)])
def test_sizes_have_the_published_parameter_counts(name: str, millions: float) -> None:
    size = SIZES[name]
    with torch.device("meta"):
        encoder = VideoEncoder(size.width, size.depth, size.heads, frames=16, resolution=224)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)


def test_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="not divisible into 2 x 16 x 16"):
        VideoEncoder(48, 1, 4, frames=15, resolution=32)
    with pytest.raises(ValueError, match="not divisible by 5 heads"):
        VideoEncoder(48, 1, 5, frames=16, resolution=32)


def test_axis_positions_are_separable() -> None:
    """V-JEPA's table: a third each for time, row and column; the encoder's width of 1,024 cuts the last third short."""
    table = position_table("axes", (2, 3, 4), 1024)
    assert table.shape == (24, 1024)
    by_place = table.unflatten(0, (2, 3, 4))
    assert torch.equal(by_place[0, :, :, :342], by_place[0, :1, :1, :342].expand(3, 4, -1))
    assert torch.equal(by_place[:, :, 0, 342:684], by_place[:1, :, 0, 342:684].expand(2, -1, -1))
    assert torch.equal(by_place[:, :, :, 684:], by_place[:1, :1, :, 684:].expand(2, 3, -1, -1))
    assert by_place[1, 2, 3, 0] == pytest.approx(math.sin(1))
    assert by_place[1, 2, 3, 342 + 171] == pytest.approx(math.cos(2))
    assert by_place[1, 2, 3, 684 + 1] == pytest.approx(math.sin(3 * 10000 ** (-1 / 171)))
    with pytest.raises(ValueError, match="positions must be one of"):
        position_table("round", (2, 3, 4), 12)  # pyright: ignore[reportArgumentType]


def test_attention_in_bfloat16_on_a_cpu_is_attention() -> None:
    """Where gradients are wanted it is spelled out as products: no further from float64 than PyTorch's, twice over."""
    torch.manual_seed(3)
    exact = [torch.randn(2, 3, 40, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(2, 3, 40, 16, dtype=torch.float64)
    functions = (F.scaled_dot_product_attention, attention)
    wanted = functions[0](exact[0], exact[1], exact[2])
    wanted.backward(upstream)
    errors = []
    for function in functions:
        rounded = [part.detach().bfloat16().requires_grad_() for part in exact]
        output = function(rounded[0], rounded[1], rounded[2])
        output.backward(upstream.bfloat16())
        parts = [(output, wanted), *((part.grad, whole.grad) for part, whole in zip(rounded, exact, strict=True))]
        errors.append([relative_error(actual.double(), expected) for actual, expected in parts])
    assert all(ours < 2 * theirs + 2**-9 for theirs, ours in zip(*errors, strict=True)), errors
    output = attention(*(part.detach().bfloat16().requires_grad_() for part in exact))
    assert "ScaledDotProduct" not in type(output.grad_fn).__name__
    output = attention(*exact)
    assert "ScaledDotProduct" in type(output.grad_fn).__name__
