"""Ours against numbers that public code gave, recorded with its commit by public_numbers.py."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from public_numbers import (
    DINO,
    EPOCHS,
    MASK_BATCH,
    MASK_BATCHES,
    RECORD,
    STEPS_PER_EPOCH,
    VIDEOMAE_BATCH,
    WARMUP_EPOCHS,
    cut_places,
    features,
    leaf_tree,
    phase_rows,
    picture,
    segment_rows,
    triplet_rows,
)
from public_weights import KEPT, drawn

from trocar.engine.config.file import load_config
from trocar.engine.draws.schedule import build_schedule
from trocar.engine.step.build import build_model
from trocar.judge.downstream import metrics
from trocar.judge.downstream.backbones import _put_image_weights
from trocar.judge.downstream.matrix import load_matrix
from trocar.judge.downstream.metrics import METRICS, Predictions
from trocar.kernels.feature_loss import feature_loss
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.shares import capped_quotas
from trocar.ssl.block_masks import MultiBlockMask
from trocar.ssl.packing import pack_cut
from trocar.ssl.predictor import Predictor

RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
VITL = (8, 14, 14)
# The release's folders, by the names of our cards.
FOLDERS = {
    "aixsuture": "AlxSuture", "autolaparo": "AutoLaparo", "cat21": "cat-21", "cataract101": "cataract-101",
    "cataract1k": "cataract-1k-phase", "cholec80": "cholec80", "colonoscopic": "Colonoscopic-web", "hyperkvasir": "hyper-kvasir",
    "jigsaws": "JIGSAWS", "kvasir_capsule": "kvasir-capsule", "lapgyn": "LapGyn_dataset", "ldpolypvideo": "LDPolyVideo",
    "m2cai16": "M2CAI16-Workflow", "multibypass140": "MultiBypass140", "sar_rarp50": "SAR-RARP50",
    "surgicalactions160": "SurgicalActions160",
}  # fmt: skip


def said(truth: np.ndarray, predicted: np.ndarray, videos: np.ndarray, seconds: np.ndarray) -> Predictions:
    classes = int(max(truth.max(), predicted.max())) + 1
    return Predictions(truth, np.eye(classes)[predicted], videos, videos, seconds, seconds + 1.0)


def test_every_case_names_its_commit() -> None:
    assert all(len(case["commit"]) == 40 for case in RECORDED.values())


def test_cut_masks_are_those_of_v_jepas_collate() -> None:
    """Context, target, and how much of the context lies in the second half of the clip: means over batches of 24 clips."""
    batches = 80
    source = MultiBlockMask(VITL, cut_batch=MASK_BATCH)
    found: dict[str, list[list[float]]] = {name: [[], []] for name in ("context", "target", "context_in_second_half")}
    for batch in range(batches):
        masks = source.draw(3, np.arange(batch * MASK_BATCH, (batch + 1) * MASK_BATCH), 0)
        for name, packed in (("context", masks.context), ("target", masks.target)):
            lengths = packed.offsets.diff()[:-1].reshape(MASK_BATCH, 2)
            assert (lengths == lengths[0]).all(), "all clips of a batch have masks of one length"
            for kind in range(2):
                found[name][kind].append(int(lengths[0, kind]) / math.prod(VITL))
        late, kinds = masks.context.tokens >= math.prod(VITL) // 2, masks.context.sequences % 2
        for kind in range(2):
            found["context_in_second_half"][kind].append(float(late[kinds == kind].float().mean()))
    for name, values in found.items():
        for ours, theirs in zip(values, RECORDED["masks"][name], strict=True):
            error = math.hypot(np.std(ours) / math.sqrt(batches), theirs["std"] / math.sqrt(MASK_BATCHES))
            assert abs(np.mean(ours) - theirs["mean"]) < 4 * error, name
            assert np.std(ours) == pytest.approx(theirs["std"], rel=0.35), name


def test_uncut_contexts_are_larger_by_what_the_docs_say() -> None:
    masks = MultiBlockMask(VITL).draw(3, np.arange(1000), 0)
    shares = masks.context.offsets.diff()[:-1].reshape(-1, 2).double().mean(dim=0) / math.prod(VITL)
    ratios = [float(share) / cut["mean"] for share, cut in zip(shares, RECORDED["masks"]["context"], strict=True)]
    assert ratios == [pytest.approx(1.6, abs=0.05), pytest.approx(2.9, abs=0.15)]


def test_cut_masks_of_v_jepa_2s_predictor() -> None:
    """Its loop gives both kinds of mask the first of ten tokens; tokens in neither mask are not seen."""
    case, (contexts, targets) = RECORDED["predictor"], cut_places()
    theirs = drawn(case["shapes"])
    model = Predictor(48, 36, 2, 3, grid=(2, 4, 4), positions="rope", mask_tokens=1).eval()
    renamed = {name.replace("predictor_", ""): value for name, value in theirs.items() if "mask_tokens" not in name}
    model.load_state_dict({**renamed, "mask_tokens": theirs["mask_tokens.0"].flatten(1)})
    seen, hidden = (np.zeros((2, 32), dtype=bool) for _ in range(2))
    for kind in range(2):
        seen[kind, contexts[kind]] = hidden[kind, targets[kind]] = True
    for bucket in (1, 16):
        masks = pack_cut(seen, hidden, 2, bucket)
        rows = [drawn({f"context {k}": (1, len(places), 48)})[f"context {k}"][0] for k, places in enumerate(contexts)]
        context = torch.cat([*rows, torch.ones(len(masks.context.tokens) - sum(map(len, rows)), 48)])
        with torch.no_grad():
            found = model(context, masks, (2, 4, 4))
        for kind, wanted in enumerate(case["found"]):
            last = found[int(masks.target.offsets[kind + 1]) - 1, :KEPT]
            torch.testing.assert_close(last, torch.tensor(wanted), atol=2e-5, rtol=2e-5)


def test_leaves_get_what_ssl_data_curation_gives_them() -> None:
    """Fully balanced, to a draw of its rounding; no span more often than its multiplier."""
    sizes, above = leaf_tree()
    paths = np.stack([above, np.arange(len(sizes))], axis=1).astype(np.int32)
    compared = 0
    for case in RECORDED["curation"]["cases"]:
        multiplier, theirs = case["multiplier"], np.array(case["leaves"])
        draws = min(case["target"], multiplier * int(sizes.sum()))
        ours = capped_quotas(paths, sizes, np.full(len(sizes), -1), draws, [1.0, 1.0], multiplier, [])
        assert np.abs(ours - theirs).max() < 2, case["target"]
        assert (ours <= multiplier * sizes + 1e-9).all()
        assert (theirs <= multiplier * sizes).all()
        compared += 1
    assert compared == 9


def test_half_l2_is_v_jepas_loss_of_exponent_two() -> None:
    prediction, target = features()
    places = torch.arange(5).expand(2, -1).contiguous()
    loss = {name: float(feature_loss(prediction, target, places, name)[0]) for name in ("half_l2", "l2")}
    assert loss["half_l2"] == pytest.approx(RECORDED["l2"]["loss"], rel=1e-6)
    assert loss["l2"] == pytest.approx(2 * RECORDED["l2"]["loss"], rel=1e-6)


def test_surgrec_mae_begins_as_videomae() -> None:
    torch.manual_seed(1)
    model = build_model(load_config("surgrec_mae", ["model.depth=2", "model.decoder_depth=2"]))[0]
    values = dict(model.named_parameters())
    for name, std in RECORDED["videomae_starts"]["stds"].items():
        own = name.replace("patch_embed.proj", "patch_embed").replace("decoder.blocks", "decoder_blocks")
        own = own.replace("decoder.head", "decoder_head")
        tolerance = 0.1 if name == "mask_token" else 0.05 if name.endswith("bias") else 0.02
        assert float(values[own].detach().std()) == pytest.approx(std, rel=tolerance), name
    assert float(values["mask_token"].detach().abs().max()) <= 0.02
    assert float(values["encoder.patch_embed.weight"].detach().abs().max()) <= 1536**-0.5


def test_surgrec_maes_rate_is_videomaes_behind_the_warm_up() -> None:
    optim = load_config("surgrec_mae").optim
    assert optim.batch == VIDEOMAE_BATCH
    assert optim.warmup == WARMUP_EPOCHS / EPOCHS
    ours, steps = (
        build_schedule(optim, EPOCHS * STEPS_PER_EPOCH),
        range(WARMUP_EPOCHS * STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH),
    )
    theirs = RECORDED["videomae_rates"]["rates"]
    assert [ours(step) for step in steps] == pytest.approx([theirs[step] for step in steps], rel=1e-12)


def test_crops_of_1080p_are_another_recipe_than_videomaes() -> None:
    """What docs/recipes.md says of both."""
    data, theirs = load_config("surgrec_mae").data, RECORDED["videomae_crops"]
    assert data.flip == 0
    assert (theirs["smallest"], theirs["largest"]) == (pytest.approx(0.244, abs=1e-3), 0.5625)
    assert theirs["area"]["mean"] == pytest.approx(0.39, abs=0.01)
    low, high = data.crop_scale
    assert CropRecipe(data.crop_scale, data.crop_ratio, data.flip).scale == (low, high) == (0.5, 1.0)


def test_dinov3_with_biases_is_its_authors(tmp_path: Path) -> None:
    """facebookresearch/dinov3's own code; its key has no bias, by a mask over the bias that is stored."""
    case = RECORDED["dinov3"]
    weights = drawn(case["shapes"])
    for name in [name for name in weights if name.endswith("attn.qkv.bias")]:
        weights[name].view(3, -1)[1] = 0
    torch.save(weights, tmp_path / "w.pth")
    size: dict[str, Any] = {
        "img_size": DINO["img_size"],
        "embed_dim": DINO["embed_dim"],
        "depth": DINO["depth"],
        "num_heads": DINO["num_heads"],
    }
    model = timm.create_model("vit_small_patch16_dinov3_qkvb", pretrained=False, num_classes=0, **size).eval()
    assert "100.0%" in _put_image_weights(model, "vit_small_patch16_dinov3_qkvb", tmp_path / "w.pth", 1.0)
    with torch.no_grad():
        tokens = model.forward_features(picture())[:, 5:]  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(tokens.mean(dim=1)[0, :KEPT], torch.tensor(case["mean"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens[0, 5, :KEPT], torch.tensor(case["token"]), atol=1e-4, rtol=1e-4)


def test_segments_count_as_in_ms_tcn() -> None:
    parts = segment_rows()
    truth, predicted = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
    videos = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    seconds = np.concatenate([np.arange(len(part[0]), dtype=float) for part in parts])
    p, theirs = said(truth, predicted, videos, seconds), RECORDED["segments"]
    assert metrics.edit_score(p) == pytest.approx(theirs["edit"] / 100, abs=1e-12)
    names = [name for name in theirs if name.startswith("f1")]
    assert len(names) == 6
    for name in names:
        assert METRICS[name](p) == pytest.approx(theirs[name], abs=1e-12), name


def test_jaccard_is_in_cholec80s_order() -> None:
    truth, predicted, videos = phase_rows()
    p, theirs = said(truth, predicted, videos, np.arange(len(truth), dtype=float)), RECORDED["phases"]
    assert metrics.phase_jaccard(p) == pytest.approx(theirs["jaccard"], abs=1e-12)
    assert theirs["of_videos_first"] != pytest.approx(theirs["jaccard"], abs=0.01)


def test_average_precisions_are_ivtmetrics() -> None:
    truth, scores, videos = triplet_rows()
    seconds, theirs = np.arange(len(truth), dtype=float), RECORDED["triplets"]
    p = Predictions(truth, scores, videos, videos, seconds, seconds + 1)
    assert metrics.mean_average_precision(p) == pytest.approx(theirs["global"], abs=1e-12)
    assert metrics.video_mean_average_precision(p) == pytest.approx(theirs["video"], abs=1e-12)


def test_majorities_beside_the_papers_scores_are_those_of_its_training_files() -> None:
    """As our baseline is: what the largest class of the training split reaches on the test split."""
    counts, off = RECORDED["surgrec_labels"]["counts"], set()
    for dataset in load_matrix("table2").datasets:
        train, test = (counts[FOLDERS[dataset.name]][split] for split in ("train", "test"))
        reached = 100 * test.get(max(train, key=train.get), 0) / sum(test.values())
        assert dataset.paper_majority == pytest.approx(reached, abs=0.006), dataset.name
        if max(test.values()) / sum(test.values()) > reached / 100 + 1e-9:
            off.add(dataset.name)
    assert off == {"aixsuture", "autolaparo", "cataract1k"}, "where the test split's largest class is another"


def test_masks_of_a_batch_depend_on_nothing_beside_it() -> None:
    """A clip's masks are the same on any share, and the next batch has another size."""
    source = MultiBlockMask((4, 6, 6), bucket=8, cut_batch=6)
    whole = source.draw(1, np.arange(18), 0)
    for rank in range(3):
        mine = np.arange(rank, 18, 3)
        part = source.draw(1, mine, 0)
        for packed, all_of_them in (
            (part.context, whole.context),
            (part.target, whole.target),
            (part.kept, whole.kept),
        ):
            assert packed is not None
            assert all_of_them is not None
            for place, clip in enumerate(mine):
                for kind in range(2):
                    ours, theirs = (
                        p.tokens[p.offsets[n] : p.offsets[n + 1]]
                        for p, n in ((packed, 2 * place + kind), (all_of_them, 2 * clip + kind))
                    )
                    assert torch.equal(ours, theirs)
    assert whole.kept is not None
    assert len(set(whole.kept.offsets.diff()[:-1].reshape(18, 2)[:, 1].tolist())) > 1
    config = load_config("surgrec_jepa", ["objective.truncate=batch", "model.depth=1", "model.predictor_depth=1"])
    assert build_model(config)[1].source.cut_batch == 24  # pyright: ignore[reportAttributeAccessIssue]
    assert replace(source, cut_batch=0).draw(1, [0], 0).kept is None
