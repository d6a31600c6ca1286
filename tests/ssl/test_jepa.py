"""The JEPA against Hugging Face's V-JEPA 2, and against what its formulas say, written out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import VJEPA2Config, VJEPA2Model

from trocar.engine.weights.objectives import from_huggingface_vjepa2, from_vjepa
from trocar.kernels.choices import Distance
from trocar.ssl.attention import attention_by_sequence, packed_attention
from trocar.ssl.block_masks import MultiBlockMask
from trocar.ssl.choices import BlockRecipe, Positions
from trocar.ssl.encoder import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder, position_table
from trocar.ssl.jepa import JointEmbedding
from trocar.ssl.packing import BlockMasks, Packed, pack, pack_cut
from trocar.ssl.predictor import MeanOfContext, Predictor

DEPTH, PREDICTOR_DEPTH, WIDTH, PREDICTOR_WIDTH = 3, 2, 48, 36
GRID = (2, 4, 4)
RECIPES = (BlockRecipe(2, (0.2, 0.3)), BlockRecipe(1, (0.5, 0.7)))


def ours(positions: Positions, mask_tokens: int = 2, distance: Distance = "l1") -> JointEmbedding:
    encoder = VideoEncoder(WIDTH, DEPTH, 4, frames=4, resolution=32, patch=8, positions=positions)
    predictor = Predictor(
        WIDTH, PREDICTOR_WIDTH, PREDICTOR_DEPTH, 3, grid=GRID, positions=positions, mask_tokens=mask_tokens
    )
    model = JointEmbedding(encoder, predictor, distance=distance)
    with torch.no_grad():
        for parameter in model.parameters():  # biases, norms and mask tokens too, else a missing one would go unnoticed
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def clips(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def pixels(frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mean, std = (torch.tensor(values, dtype=dtype) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((frames.to(dtype) / 255 - mean) / std).permute(0, 1, 4, 2, 3)


def tokens_of(packed: Packed) -> list[torch.Tensor]:
    """The tokens of each sequence, padding left out."""
    return [packed.tokens[a:b] for a, b in zip(packed.offsets[:-2], packed.offsets[1:-1], strict=True)]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.detach() - expected.detach()).norm() / expected.detach().norm())


def peer() -> VJEPA2Model:
    config = VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        hidden_size=WIDTH,
        num_attention_heads=4,
        num_hidden_layers=DEPTH,
        initializer_range=0.2,
        pred_hidden_size=PREDICTOR_WIDTH,
        pred_num_attention_heads=3,
        pred_num_hidden_layers=PREDICTOR_DEPTH,
        pred_num_mask_tokens=2,
    )
    model = VJEPA2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def peer_context(theirs: VJEPA2Model, video: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Hugging Face's encoder on some tokens of one clip; its own forward embeds and sees all of them."""
    hidden = theirs.encoder.embeddings(video)[:, seen]
    for layer in theirs.encoder.layer:
        hidden = layer(hidden, seen[None])[0]
    return theirs.encoder.layernorm(hidden)


def peer_prediction(theirs: VJEPA2Model, context: torch.Tensor, seen: torch.Tensor, hidden: torch.Tensor, kind: int):
    """Hugging Face's predictor gathers the context from all tokens, and takes one kind of mask token."""
    everything = context.new_zeros(1, math.prod(GRID), WIDTH).index_copy(1, seen, context)
    embeddings = theirs.predictor.embeddings
    original = embeddings.forward
    embeddings.forward = partial(original, mask_index=kind)
    try:
        return theirs.predictor(everything, [seen[None]], [hidden[None]]).last_hidden_state[0]
    finally:
        embeddings.forward = original


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_equals_hugging_face_vjepa2(dtype: torch.dtype, tolerance: float) -> None:
    """Unequal masks packed, against Hugging Face clip by clip and mask by mask: features, predictions, loss, gradients."""
    torch.manual_seed(0)
    theirs, model = peer(), ours("rope").to(dtype)
    nn.Module.to(theirs, dtype)
    converted = from_huggingface_vjepa2(theirs.state_dict(), DEPTH, PREDICTOR_DEPTH)
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all(name.startswith("target_encoder.") for name in missing)
    model.update_target(0.0)

    frames = clips(3)
    masks = MultiBlockMask(GRID, RECIPES, bucket=16)(5, [0, 1, 2], 0)
    assert len(set(masks.context.offsets.diff()[:-1].tolist())) > 2, "the masks are to be unequal"
    video = pixels(frames, dtype)
    output = model(frames, masks)
    context = model.encoder(frames, masks.context, per_clip=2)
    features = theirs.encoder(video).last_hidden_state
    assert relative_error(model.target_encoder(frames), features) < tolerance
    targets = F.layer_norm(features.detach(), (WIDTH,))
    losses, kept = [], []
    for sequence, (seen, hidden) in enumerate(zip(tokens_of(masks.context), tokens_of(masks.target), strict=True)):
        clip, kind = divmod(sequence, 2)
        expected = peer_context(theirs, video[clip : clip + 1], seen)
        start = masks.context.offsets[sequence]
        assert relative_error(context[start : start + len(seen)], expected[0]) < tolerance
        predicted = peer_prediction(theirs, expected, seen, hidden, kind)
        start = masks.target.offsets[sequence]
        assert relative_error(output.prediction[start : start + len(hidden)], predicted) < tolerance
        losses.append((predicted - targets[clip, hidden]).abs().mean())
        kept.append(len(seen) + len(hidden))
    assert kept == [math.prod(GRID)] * 6
    expected_loss = torch.stack(losses).mean()
    assert relative_error(output.loss, expected_loss) < tolerance
    assert relative_error(output.clip_loss, torch.stack(losses).detach().unflatten(0, (3, 2)).mean(1)) < tolerance

    expected_loss.backward()
    output.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected_gradients = from_huggingface_vjepa2(gradients, DEPTH, PREDICTOR_DEPTH)
    typical = torch.stack([gradient.norm() for gradient in gradients.values()]).median()
    compared = 0
    for name, parameter in model.named_parameters():
        if name.startswith("target_encoder."):
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        actual, wanted = parameter.grad, expected_gradients.pop(name)
        assert (actual - wanted).norm() < tolerance * max(wanted.norm(), typical * 1e-3), name
        compared += 1
    assert not expected_gradients
    # patch (2), encoder norm (2), embed (2), mask tokens, predictor norm (2), proj (2); 12 tensors a block
    assert compared == 11 + 12 * (DEPTH + PREDICTOR_DEPTH)


def hand_written_block(block: Any, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    def norm(values: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * layer.weight + layer.bias

    attention, mlp = block.attn, block.mlp
    query, key, value = (norm(tokens, block.norm1) @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
    width = tokens.shape[-1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed.append(weights @ value[:, part])
    tokens = tokens + torch.cat(mixed, -1) @ attention.proj.weight.T + attention.proj.bias
    hidden = norm(tokens, block.norm2) @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return tokens + hidden @ mlp.fc2.weight.T + mlp.fc2.bias


def test_vjepa1_block_and_table_are_the_published_formulas() -> None:
    """arXiv 2404.08471 and facebookresearch/jepa: pre-norm block; per axis ceil(D / 6) frequencies 10000 ** (-i / ceil(D / 6))."""
    torch.manual_seed(1)
    model = ours("axes").double()
    tokens = torch.randn(7, WIDTH, dtype=torch.float64)
    expected = hand_written_block(model.encoder.blocks[1], tokens, 4)
    assert torch.allclose(model.encoder.blocks[1](tokens[None])[0], expected, rtol=0, atol=1e-12)
    table = position_table("axes", (3, 4, 5), 1024).double()
    half = math.ceil(1024 / 6)
    for token in range(60):
        place = (token // 20, token // 5 % 4, token % 5)
        angles = [[p * 10000 ** (-i / half) for i in range(half)] for p in place]
        row = [f(angle) for axis in angles for f in (math.sin, math.cos) for angle in axis][:1024]
        assert torch.allclose(table[token], torch.tensor(row, dtype=torch.float64), atol=1e-6)


def test_three_steps_of_loss_and_ema_by_hand() -> None:
    """Plain gradient steps; the loss from blocks written by hand, mask by mask; the target by its formula. float64."""
    torch.manual_seed(2)
    model = ours("axes").double()
    rate, frames = 0.05, clips(2, seed=3)
    source = MultiBlockMask(GRID, RECIPES)
    target_values = {name: p.detach().clone() for name, p in model.target_encoder.named_parameters()}
    for step, momentum in enumerate((0.9, 0.95, 1.0)):
        masks = source(7, [2 * step, 2 * step + 1], 0)
        output = model(frames, masks)

        def encode(encoder: VideoEncoder, clip: int, seen: torch.Tensor) -> torch.Tensor:
            video = pixels(frames[clip : clip + 1], torch.float64).permute(0, 2, 1, 3, 4)
            patches = F.conv3d(video, encoder.patch_embed.weight, encoder.patch_embed.bias, stride=(2, 8, 8))
            tokens = (patches.flatten(2).transpose(1, 2)[0] + position_table("axes", GRID, WIDTH).double())[seen]
            for block in encoder.blocks:
                tokens = hand_written_block(block, tokens, 4)
            return F.layer_norm(tokens, (WIDTH,), encoder.norm.weight, encoder.norm.bias, 1e-6)

        losses = []
        for sequence, (seen, hidden) in enumerate(zip(tokens_of(masks.context), tokens_of(masks.target), strict=True)):
            clip, kind = divmod(sequence, 2)
            predictor = model.predictor
            assert isinstance(predictor, Predictor)
            table = position_table("axes", GRID, PREDICTOR_WIDTH).double()
            context = predictor.embed(encode(model.encoder, clip, seen)) + table[seen]
            tokens = torch.cat([context, predictor.mask_tokens[kind] + table[hidden]])
            for block in predictor.blocks:
                tokens = hand_written_block(block, tokens, 3)
            predicted = predictor.proj(predictor.norm(tokens[len(seen) :]))
            with torch.no_grad():
                features = encode(model.target_encoder, clip, torch.arange(math.prod(GRID)))
                target = F.layer_norm(features, (WIDTH,))[hidden]
            losses.append((predicted - target).abs().mean())
        expected = torch.stack(losses).mean()
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
        output.loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None
                    parameter -= rate * parameter.grad
                    parameter.grad = None
        model.update_target(momentum)
        for name, parameter in model.encoder.named_parameters():
            # The momentum is a float32 on the device.
            held = float(torch.tensor(momentum, dtype=torch.float32))
            target_values[name] = held * target_values[name] + (1 - held) * parameter.detach()
        for name, parameter in model.target_encoder.named_parameters():
            assert torch.allclose(parameter, target_values[name], rtol=1e-9, atol=1e-12), name


def test_a_skipped_step_leaves_the_target() -> None:
    model = ours("axes")
    before = [parameter.clone() for parameter in model.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.fill_(float("nan"))
    model.update_target(0.5, skip=torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(before, model.target_encoder.parameters(), strict=True))
    model.update_target(0.5, skip=torch.tensor(0.0))
    assert all(torch.isnan(parameter).all() for parameter in model.target_encoder.parameters())


@pytest.mark.parametrize(("positions", "cut_batch"), [("axes", 0), ("rope", 0), ("axes", 4), ("rope", 2)])
def test_packing_loses_no_token(positions: Positions, cut_batch: int) -> None:
    """Loss and gradients of a packed batch with padding equal those computed mask by mask, one clip at a time."""
    torch.manual_seed(4)
    model = ours(positions).double()
    frames = clips(4)
    packed = MultiBlockMask(GRID, RECIPES, bucket=48 if cut_batch else 32, cut_batch=cut_batch)
    masks = packed(1, range(4), 0)
    assert masks.context.padding() > 0
    assert masks.target.padding() > 0
    output = model(frames, masks)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    seen, hidden = (torch.zeros(8, math.prod(GRID), dtype=torch.bool) for _ in range(2))
    for chosen, part in ((seen, masks.context), (hidden, masks.target)):
        for sequence, tokens in enumerate(tokens_of(part)):
            chosen[sequence, tokens] = True
    assert bool((seen | hidden).all()) == (not cut_batch)
    losses = []
    for sequence in range(8):
        clip, kind = divmod(sequence, 2)
        # Both masks of the clip, of which the loss of one counts: mask tokens go by the kind of mask.
        both = slice(2 * clip, 2 * clip + 2)
        alone = (
            pack_cut(seen[both].numpy(), hidden[both].numpy(), 2)
            if cut_batch
            else BlockMasks(*pack(hidden[both].numpy()), 2)
        )
        prediction = model(frames[clip : clip + 1], alone).prediction
        rows = slice(int(alone.target.offsets[kind]), int(alone.target.offsets[kind + 1]))
        with torch.no_grad():
            target = F.layer_norm(model.target_encoder(frames[clip : clip + 1]), (WIDTH,))[0, hidden[sequence]]
        losses.append((prediction[rows] - target).abs().mean())
    expected = torch.stack(losses).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12), name
    share = (
        100
        * float(masks.context.padding() + masks.target.padding())
        / (len(masks.context.tokens) + len(masks.target.tokens))
    )
    model(frames, masks)
    assert float(model.signals()["padding_percent"]) == pytest.approx(share)


def test_packed_attention_equals_softmax_written_out() -> None:
    """Of parts of one product, as the blocks have them, and with an empty sequence; gradients too."""
    torch.manual_seed(5)
    offsets = torch.tensor([0, 3, 3, 10, 11], dtype=torch.int32)
    leaves = torch.randn(11, 3, 2, 8, dtype=torch.float64, requires_grad=True).unbind(1)
    upstream = torch.randn(11, 2, 8, dtype=torch.float64)

    def by_hand(query, key, value, offsets):
        parts = []
        for start, end in pairwise(offsets.tolist()):
            scores = torch.einsum("ihe,jhe->hij", query[start:end], key[start:end]) / math.sqrt(8)
            parts.append(torch.einsum("hij,jhe->ihe", scores.softmax(-1), value[start:end]))
        return torch.cat(parts)

    ways: list[Callable[..., torch.Tensor]] = [by_hand, attention_by_sequence, partial(packed_attention, longest=7)]
    results = []
    for function in ways:
        mixed = function(*leaves, offsets)
        results.append([mixed.detach(), *torch.autograd.grad((mixed * upstream).sum(), leaves)])
    for result in results[1:]:
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(results[0], result, strict=True))


def test_a_clip_of_another_size_brings_its_own_positions() -> None:
    torch.manual_seed(6)
    for positions in ("axes", "rope"):
        model = ours(positions)
        small, large = clips(2), torch.randint(0, 256, (2, 8, 48, 48, 3), dtype=torch.uint8)
        first = model(small, MultiBlockMask(GRID, RECIPES)(0, [0, 1], 0)).loss
        grid = (4, 6, 6)
        output = model(large, MultiBlockMask(grid, RECIPES)(0, [0, 1], 0))
        fresh_encoder = VideoEncoder(WIDTH, DEPTH, 4, frames=8, resolution=48, patch=8, positions=positions)
        predictor = Predictor(WIDTH, PREDICTOR_WIDTH, PREDICTOR_DEPTH, 3, grid=grid, positions=positions)
        fresh = JointEmbedding(fresh_encoder, predictor)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(output.loss, fresh(large, MultiBlockMask(grid, RECIPES)(0, [0, 1], 0)).loss)
        assert torch.equal(first, model(small, MultiBlockMask(GRID, RECIPES)(0, [0, 1], 0)).loss)


def test_a_frozen_teacher_of_another_width() -> None:
    torch.manual_seed(7)
    teacher = VideoEncoder(24, 1, 2, frames=4, resolution=32, patch=8)
    encoder = VideoEncoder(WIDTH, 1, 4, frames=4, resolution=32, patch=8, positions="axes")
    predictor = Predictor(WIDTH, 36, 1, 3, grid=GRID, positions="axes", out_width=24)
    model = JointEmbedding(encoder, predictor, teacher=teacher)
    assert not [name for name in model.state_dict() if name.startswith("target")]
    before = [parameter.clone() for parameter in teacher.parameters()]
    masks = MultiBlockMask(GRID, RECIPES)(0, [0, 1], 0)
    output = model(clips(2), masks)
    assert output.prediction.shape[1] == 24
    output.loss.backward()
    model.update_target(0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.double().target_encoder.patch_embed.weight.dtype == torch.float64, "a teacher moves with its model"
    coarse = VideoEncoder(24, 1, 2, frames=4, resolution=32, patch=16)
    with pytest.raises(ValueError, match="tokens do not correspond"):
        JointEmbedding(encoder, predictor, teacher=coarse)


def test_without_a_predictor_the_mean_of_the_context_is_predicted() -> None:
    torch.manual_seed(8)
    encoder = VideoEncoder(WIDTH, 1, 4, frames=4, resolution=32, patch=8, positions="axes")
    model = JointEmbedding(encoder, MeanOfContext()).double()
    masks = MultiBlockMask(GRID, RECIPES, bucket=8)(0, [0, 1], 0)
    output = model(clips(2), masks)
    context = encoder(clips(2), masks.context, per_clip=2)
    for sequence in range(4):
        rows = slice(*masks.target.offsets[sequence : sequence + 2].tolist())
        seen = slice(*masks.context.offsets[sequence : sequence + 2].tolist())
        assert torch.allclose(output.prediction[rows], context[seen].mean(0).expand_as(output.prediction[rows]))


def test_the_original_vitl16_checkpoint_maps_completely() -> None:
    manifest = json.loads((Path(__file__).parents[1] / "manifests" / "vjepa_vitl16.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        encoder = VideoEncoder(1024, 24, 16, frames=16, resolution=224, positions="axes")
        predictor = Predictor(1024, 384, 12, 16, grid=encoder.grid, positions="axes")
    encoder.positions = position_table("axes", encoder.grid, 1024)
    predictor.positions = position_table("axes", encoder.grid, 384)
    with torch.device("meta"):
        model = JointEmbedding(encoder, predictor)
    checkpoint = {
        part: {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
        for part, tensors in manifest["tensors"].items()
    }
    for part, name, table in (
        ("encoder", "pos_embed", encoder.positions),
        ("target_encoder", "pos_embed", encoder.positions),
        ("predictor", "predictor_pos_embed", predictor.positions),
    ):
        assert list(table[None].shape) == manifest["tensors"][part][f"module.backbone.{name}"]
        checkpoint[part][f"module.backbone.{name}"] = table[None]
    converted = from_vjepa(checkpoint, model)
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(converted[name].shape == expected[name].shape for name in expected)
    mapped = len(converted) + 1 + 3  # two mask tokens are one tensor of ours, three tables are computed
    assert mapped == sum(len(tensors) for tensors in manifest["tensors"].values())

    checkpoint["encoder"]["module.backbone.extra"] = torch.empty(1, device="meta")
    with pytest.raises(ValueError, match="without a place in JointEmbedding: \\['extra'\\]"):
        from_vjepa(checkpoint, model)
    del checkpoint["encoder"]["module.backbone.extra"]
    checkpoint["encoder"]["module.backbone.pos_embed"] = encoder.positions[None] + 1
    with pytest.raises(ValueError, match=r"encoder\.pos_embed is not the table"):
        from_vjepa(checkpoint, model)
    checkpoint["encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 9, 1024)
    with pytest.raises(ValueError, match=r"encoder\.pos_embed is not the table"):
        from_vjepa(checkpoint, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_vjepa_2_predictors_have_ten_mask_tokens(dtype: torch.dtype) -> None:
    """Their loop uses the first, and their files hold tables that rotary models do not use; a model with two tokens is refused."""

    def small(mask_tokens: int) -> JointEmbedding:
        encoder = VideoEncoder(48, 1, 3, frames=4, resolution=32, positions="rope")
        return JointEmbedding(
            encoder, Predictor(48, 24, 1, 2, grid=encoder.grid, positions="rope", mask_tokens=mask_tokens)
        )

    model = small(1)
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    checkpoint: dict[str, dict[str, torch.Tensor]] = {}
    for part in ("encoder", "predictor", "target_encoder"):
        own = {name.removeprefix(f"{part}."): v for name, v in state.items() if name.startswith(f"{part}.")}
        renamed = {name.replace("patch_embed.", "patch_embed.proj."): value for name, value in own.items()}
        if part == "predictor":
            renamed.pop("mask_tokens")
            renamed = {f"predictor_{name}": value for name, value in renamed.items()}
            renamed |= {f"mask_tokens.{n}": torch.full((1, 1, 24), float(n), dtype=dtype) for n in range(10)}
        table = "predictor_pos_embed" if part == "predictor" else "pos_embed"
        checkpoint[part] = renamed | {table: torch.zeros(1, 2048, 48, dtype=dtype)}
    converted = from_vjepa(checkpoint, model)
    assert converted.keys() == model.state_dict().keys()
    assert torch.equal(converted["predictor.mask_tokens"], torch.zeros(1, 24, dtype=dtype))
    with pytest.raises(ValueError, match=r"mask_tokens are 10, not 2: set model\.predictor_mask_tokens=1"):
        from_vjepa(checkpoint, small(2))
