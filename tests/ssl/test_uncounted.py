"""Ignored targets in float64: no loss and no gradient from them, all else as a mean written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trocar.kernels.pixel_loss import patch_targets
from trocar.ssl.block_masks import MultiBlockMask
from trocar.ssl.choices import BlockRecipe
from trocar.ssl.encoder import VideoEncoder
from trocar.ssl.jepa import JointEmbedding
from trocar.ssl.mae import MaskedAutoencoder
from trocar.ssl.masks import TubeMask
from trocar.ssl.objective import Objective
from trocar.ssl.packing import BlockMasks, to_device
from trocar.ssl.predictor import Predictor

GRID, CLIPS = (2, 4, 4), 3


def made(objective: str, decoder_ratio: float = 0.0) -> tuple[Objective, MultiBlockMask | TubeMask]:
    torch.manual_seed(0)
    encoder = VideoEncoder(24, 2, 2, frames=4, resolution=32, patch=8, positions="axes")
    if objective == "mae":
        model: Objective = MaskedAutoencoder(encoder, decoder_width=24, decoder_depth=1, decoder_heads=2)
        return model.double(), TubeMask(GRID, 0.75, decoder_ratio)
    predictor = Predictor(24, 24, 1, 2, grid=GRID, positions="axes", mask_tokens=2)
    masks = MultiBlockMask(GRID, (BlockRecipe(2, (0.2, 0.3)), BlockRecipe(1, (0.5, 0.7))), bucket=8)
    return JointEmbedding(encoder, predictor).double(), masks


def losses_of_targets(model: Objective, frames: torch.Tensor, masks, prediction: torch.Tensor):
    """(loss of each predicted row, its group: a clip or a sequence, its clip, its place in the grid), padding left out."""
    if isinstance(model, MaskedAutoencoder):
        target = patch_targets(frames, masks.masked, 2, 8, "channel", torch.float64)
        rows = (prediction - target).square().mean(dim=2)
        kept = torch.ones_like(masks.masked, dtype=torch.bool) if masks.counted is None else masks.counted
        group = torch.arange(CLIPS)[:, None].expand_as(rows)
        return rows[kept], group[kept], group[kept], masks.masked[kept]
    assert isinstance(model, JointEmbedding)
    with torch.no_grad():
        features = F.layer_norm(model.target_encoder.norm(model.target_encoder(frames, normalized=False)), (24,))
    inside = masks.target.sequences < CLIPS * masks.per_clip
    sequence, place = masks.target.sequences[inside], masks.target.tokens[inside]
    clip = sequence // masks.per_clip
    return (prediction[inside] - features[clip, place]).abs().mean(dim=1), sequence, clip, place


@pytest.mark.parametrize(("objective", "decoder_ratio"), [("mae", 0.0), ("mae", 0.5), ("jepa", 0.0)])
def test_ignored_tokens_enter_neither_loss_nor_gradient(objective: str, decoder_ratio: float) -> None:
    model, source = made(objective, decoder_ratio)
    frames = torch.randint(0, 256, (CLIPS, 4, 32, 32, 3), dtype=torch.uint8)
    whole = source(0, range(CLIPS), 0)
    ignored = torch.zeros(CLIPS, 16, dtype=torch.bool)
    ignored[0, :6] = ignored[1, 3:14] = ignored[2] = True  # the last clip counts nothing
    masks = whole.without(ignored)
    held = {}

    def hold(module, inputs, output) -> None:
        output.retain_grad()
        held["prediction"] = output

    last = model.decoder_head if isinstance(model, MaskedAutoencoder) else model.get_submodule("predictor")
    handle = last.register_forward_hook(hold)
    output = model(frames, masks, 0.5)
    output.loss.backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    gradient = held["prediction"].grad
    handle.remove()

    model.zero_grad()
    prediction = model(frames, whole).prediction
    prediction.retain_grad()
    rows, group, clip, place = losses_of_targets(model, frames, whole, prediction)
    counted = ~ignored[clip, place % 16]
    groups = CLIPS * (2 if objective == "jepa" else 1)
    means = [rows[counted & (group == one)] for one in range(groups)]
    expected = torch.stack([part.mean() if len(part) else rows.new_zeros(()) for part in means])
    (0.5 * expected.mean()).backward()

    assert torch.allclose(output.loss, 0.5 * expected.mean(), rtol=1e-12, atol=0)
    assert torch.allclose(output.clip_loss, expected.reshape(CLIPS, -1).mean(dim=1), rtol=1e-12, atol=0)
    assert output.clip_loss[2] == 0
    assert torch.allclose(gradient, prediction.grad, rtol=1e-10, atol=1e-18)
    is_zero = (gradient == 0).flatten(0, -2).all(dim=1)
    assert int((~is_zero).sum()) == int(counted.sum()) > 0, "only counted targets have gradients"
    for name, part in model.named_parameters():
        if part.grad is not None:
            assert torch.allclose(gradients[name], part.grad, rtol=1e-9, atol=1e-15), name


@pytest.mark.parametrize("objective", ["mae", "jepa"])
def test_where_nothing_is_ignored_the_loss_is_the_same(objective: str) -> None:
    model, source = made(objective)
    frames = torch.randint(0, 256, (CLIPS, 4, 32, 32, 3), dtype=torch.uint8)
    masks = source(0, range(CLIPS), 0)
    none = masks.without(torch.zeros(CLIPS, 16, dtype=torch.bool))
    with torch.no_grad():
        assert torch.allclose(model(frames, none).clip_loss, model(frames, masks).clip_loss, rtol=1e-14, atol=0)


def test_masks_keep_what_is_not_counted_where_they_travel() -> None:
    _, source = made("jepa")
    masks = source(0, range(CLIPS), 0).without(torch.ones(CLIPS, 16, dtype=torch.bool))
    assert isinstance(masks, BlockMasks)
    moved = to_device(masks, torch.device("meta"))
    assert moved.counted is not None
    assert {part.device.type for part in moved.counted} == {"meta"}
    assert moved.per_clip == masks.per_clip
    assert moved.target.longest == masks.target.longest
