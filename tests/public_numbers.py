"""What public code makes of numbers that anyone can draw again: recorded once, so that no test needs that code.

    python tests/public_numbers.py jepa=DIR vjepa2=DIR videomae=DIR dinov3=DIR ms-tcn=DIR ivtmetrics=DIR phases=DIR \\
        curation=DIR surgrec=DIR

writes manifests/public_numbers.json: of facebookresearch/jepa, vjepa2, dinov3 and ssl-data-curation, MCG-NJU/VideoMAE,
yabufarha/ms-tcn, CAMMA-public/ivtmetrics, dlmanrique/Trans-SVNet-COLAS-2025 (Cholec80's evaluation in Python) and
Siiichenggg/SurgRec-open-source; wants einops and pandas. What is named alone is recorded alone. Where a file cannot be imported,
a function is taken out of it.

Shapes: V videos, N rows, K classes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from public_weights import drawn, kept

RECORD = Path(__file__).parent / "manifests" / "public_numbers.json"
MASK_BATCHES, MASK_BATCH = 400, 24
PHASES, PHASE_VIDEOS, SEGMENT_VIDEOS = 7, 40, 12
DINO = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1}
STEPS_PER_EPOCH, EPOCHS, WARMUP_EPOCHS, VIDEOMAE_BATCH = 10, 20, 1, 1024


def phase_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) truth, predictions and videos, a row a second: errors of three and more phases, 15 s and more from any border, which no
    relaxed boundary forgives. Some videos lack phases."""
    chance = np.random.Generator(np.random.PCG64(80))
    truth, said, videos = [], [], []
    for video in range(PHASE_VIDEOS):
        for phase in range(PHASES):
            if phase and chance.random() < 0.2:
                continue
            length = int(chance.integers(40, 120))
            labels = np.full(length, phase)
            wrong = np.arange(15, 15 + int(chance.integers(0, length - 30)))
            labels[wrong] = (phase + (3 if phase < 4 else -3)) % PHASES
            truth += [phase] * length
            said += labels.tolist()
            videos += [video] * length
    return np.array(truth), np.array(said), np.array(videos)


def segment_rows() -> list[tuple[np.ndarray, np.ndarray]]:
    """(truth, said) of each video, a row a frame: borders that move, segments that are split, exchanged and made up."""
    chance = np.random.Generator(np.random.PCG64(12))
    found = []
    for _ in range(SEGMENT_VIDEOS):
        count = int(chance.integers(4, 15))
        truth = np.repeat(chance.integers(0, 6, count), chance.integers(5, 60, count))
        said = np.roll(truth, int(chance.integers(-12, 13)))
        for _ in range(int(chance.integers(2, 9))):
            start, length = int(chance.integers(0, len(said))), int(chance.integers(2, 30))
            said[start : start + length] = chance.integers(0, 6)
        found.append((truth, said))
    return found


def triplet_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, K) truth and scores, (N,) videos; the last class does not occur."""
    chance = np.random.default_rng(50)
    truth = chance.random((90, 6)) < np.array([0.3, 0.1, 0.05, 0.02, 0.3, 0.0])
    scores = chance.random((90, 6)) * 0.7 + 0.5 * truth * chance.random((90, 6))
    return truth, scores, np.repeat([0, 1, 2], [20, 30, 40])


def leaf_tree() -> tuple[np.ndarray, np.ndarray]:
    """(L,) spans of each leaf, small and large, and (L,) the node above it."""
    chance = np.random.Generator(np.random.PCG64(5))
    return (10 ** chance.uniform(0.5, 2.7, 40)).astype(int), np.sort(chance.integers(0, 6, 40))


def features() -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and a target, (2, 5, 16) each."""
    values = np.random.Generator(np.random.PCG64(2)).standard_normal((2, 2, 5, 16))
    prediction, target = torch.from_numpy(values.astype(np.float32))
    return prediction, target


def picture() -> torch.Tensor:
    """(1, 3, 64, 64)"""
    values = np.random.Generator(np.random.PCG64(9)).standard_normal((1, 3, 64, 64))
    return torch.from_numpy(values.astype(np.float32))


def taken_out(path: Path, names: tuple[str, ...], namespace: dict[str, Any]) -> dict[str, Any]:
    """Functions of a file that cannot be imported, or of a function: their lines, run in `namespace`."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for name in names:
        start = next(number for number, line in enumerate(lines) if line.strip().startswith(f"def {name}("))
        indent = len(lines[start]) - len(lines[start].lstrip())
        body = [lines[start]]
        for line in lines[start + 1 :]:
            if line.strip() and len(line) - len(line.lstrip()) <= indent and not line.strip().startswith(")"):
                break
            body.append(line)
        # NumPy 2 has no np.float.
        exec(textwrap.dedent("\n".join(body)).replace("np.float)", "float)"), namespace)
    return namespace


def of_jepa(checkout: Path) -> dict[str, Any]:
    """Masks of ViT-L/16 at 224 px and 16 frames, as collated; and the loss of the published loop with another exponent."""
    import yaml
    from src.masks.multiblock3d import MaskCollator  # pyright: ignore[reportMissingImports]

    recipe = yaml.safe_load((checkout / "configs" / "pretrain" / "vitl16.yaml").read_text(encoding="utf-8"))
    collate = MaskCollator(recipe["mask"], crop_size=224, num_frames=16, patch_size=16, tubelet_size=2)
    torch.manual_seed(0)
    seen, late, hidden = ([[], []] for _ in range(3))
    batch = [(torch.zeros(1),)] * MASK_BATCH
    for _ in range(MASK_BATCHES):
        _, contexts, targets = collate(batch)
        for kind, (context, target) in enumerate(zip(contexts, targets, strict=True)):
            seen[kind].append(context.shape[1] / 1568)
            hidden[kind].append(target.shape[1] / 1568)
            late[kind].append(float((context >= 784).float().mean()))
    names = ("context", "target", "context_in_second_half")
    shares = {name: [spread(kind) for kind in values] for name, values in zip(names, (seen, hidden, late), strict=True)}
    masks = {"batches": MASK_BATCHES, "clips_a_batch": MASK_BATCH, **shares}
    prediction, target = features()
    loss = taken_out(
        checkout / "app" / "vjepa" / "train.py", ("loss_fn",), {"torch": torch, "loss_exp": 2.0, "masks_pred": [0]}
    )["loss_fn"]
    normed = torch.nn.functional.layer_norm(target, (16,))
    return {"masks": masks, "l2": {"loss": float(loss([prediction], [normed]))}}


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def of_vjepa2(checkout: Path) -> dict[str, Any]:
    """The predictor as the loop calls it: ten tokens, two kinds of mask, both cut, so that some tokens are in neither."""
    from functools import partial

    from src.models.predictor import VisionTransformerPredictor  # pyright: ignore[reportMissingImports]
    from src.utils.wrappers import PredictorMultiSeqWrapper  # pyright: ignore[reportMissingImports]

    size = {"img_size": 64, "patch_size": 16, "num_frames": 4, "tubelet_size": 2, "embed_dim": 48, "depth": 2}
    own = {"predictor_embed_dim": 36, "num_heads": 3, "use_mask_tokens": True, "num_mask_tokens": 10, "use_rope": True}
    model = VisionTransformerPredictor(**size, **own, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)).eval()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(drawn(shapes))
    contexts, targets = cut_places()
    context = [
        drawn({f"context {kind}": (1, len(places), 48)})[f"context {kind}"] for kind, places in enumerate(contexts)
    ]
    with torch.no_grad():
        found = PredictorMultiSeqWrapper(model)(
            [context],
            [[torch.tensor([places]) for places in contexts]],
            [[torch.tensor([places]) for places in targets]],
        )
    return {"predictor": {"shapes": shapes, "found": [kept(kind[0, -1]) for kind in found[0]]}}


def cut_places() -> tuple[list[list[int]], list[list[int]]]:
    """Context and target of two kinds of mask over 2 x 4 x 4 tokens, which leave some out."""
    return [[0, 1, 5, 18], [2, 3, 9]], [[4, 6, 7, 20, 31], [0, 8, 16, 24, 25, 30]]


def of_videomae(checkout: Path) -> dict[str, Any]:
    """How the base model begins, the rate of a short run of its recipe, and its crops of 1080p pictures."""
    from modeling_pretrain import pretrain_videomae_base_patch16_224  # pyright: ignore[reportMissingImports]
    from transforms import GroupMultiScaleCrop  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    model = pretrain_videomae_base_patch16_224(decoder_depth=4)
    stds = {name: float(value.std()) for name, value in model.state_dict().items() if value.numel() > 1}
    named = [*(name for name in stds if "blocks" not in name and value_varies(stds[name]))]
    named += [name for name in stds if "blocks.1." in name and value_varies(stds[name])]
    schedule = taken_out(checkout / "utils.py", ("cosine_scheduler",), {"np": np, "math": math})["cosine_scheduler"]
    scale = VIDEOMAE_BATCH / 256
    with redirect_stdout(io.StringIO()):
        rates = schedule(1.5e-4 * scale, 1e-5 * scale, EPOCHS, STEPS_PER_EPOCH, warmup_epochs=WARMUP_EPOCHS)
    crop = GroupMultiScaleCrop(224, [1, 0.875, 0.75, 0.66])
    import random

    random.seed(0)
    sizes = [crop._sample_crop_size((1920, 1080))[:2] for _ in range(4000)]
    areas = [width * height / (1920 * 1080) for width, height in sizes]
    return {
        "videomae_starts": {"stds": {name: stds[name] for name in named}},
        "videomae_rates": {"rates": [float(rate) for rate in rates]},
        "videomae_crops": {"area": spread(areas), "largest": max(areas), "smallest": min(areas)},
    }


def value_varies(std: float) -> bool:
    return std > 0


def of_dinov3(checkout: Path) -> dict[str, Any]:
    from dinov3.models.vision_transformer import DinoVisionTransformer  # pyright: ignore[reportMissingImports]

    # As hub/backbones.py builds their ViT-S.
    hub = {
        "pos_embed_rope_rescale_coords": 2,
        "pos_embed_rope_dtype": "fp32",
        "layerscale_init": 1e-5,
        "norm_layer": "layernormbf16",
    }
    model = DinoVisionTransformer(**DINO, **hub, n_storage_tokens=4, mask_k_bias=True).eval()
    whole = model.state_dict()
    shapes = {
        name: list(value.shape) for name, value in whole.items() if "bias_mask" not in name and "periods" not in name
    }
    masks = {
        name: torch.cat([torch.ones(64), torch.zeros(64), torch.ones(64)]) for name in whole if "bias_mask" in name
    }
    model.load_state_dict({**whole, **masks, **drawn(shapes)})
    with torch.no_grad():
        found = model.forward_features(picture())
    tokens = found["x_norm_patchtokens"]
    return {"dinov3": {"shapes": shapes, "mean": kept(tokens.mean(dim=1)), "token": kept(tokens[0, 5])}}


def of_ms_tcn(checkout: Path) -> dict[str, Any]:
    names = ("get_labels_start_end_time", "levenstein", "edit_score", "f_score")
    code = taken_out(checkout / "eval.py", names, {"np": np})
    rows, found = (
        segment_rows(),
        {"edit": float(np.mean([code["edit_score"](s.tolist(), t.tolist(), bg_class=[]) for t, s in segment_rows()]))},
    )
    for overlap in (10, 25, 50):
        counts = np.array([code["f_score"](s.tolist(), t.tolist(), overlap / 100, bg_class=[]) for t, s in rows])
        found[f"f1_at_{overlap}"] = float(np.mean([f1(*count) for count in counts]))
        found[f"f1_at_{overlap}_pooled"] = f1(*counts.sum(axis=0))
    return {"segments": found}


def f1(hits: float, extra: float, missed: float) -> float:
    return float(2 * hits / (2 * hits + extra + missed))


def of_ivtmetrics(checkout: Path) -> dict[str, Any]:
    import warnings

    from ivtmetrics.recognition import Recognition  # pyright: ignore[reportMissingImports]

    truth, scores, videos = triplet_rows()
    metric = Recognition(num_class=6)
    for video in np.unique(videos):
        metric.update(truth[videos == video].astype(int), scores[videos == video])
        metric.video_end()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "video": float(metric.compute_video_AP("ivt")["mAP"]),
            "global": float(metric.compute_global_AP("ivt")["mAP"]),
        }
    return {"triplets": found}


def of_phases(checkout: Path) -> dict[str, Any]:
    import pandas as pd  # pyright: ignore[reportMissingImports]
    from scipy.ndimage import label
    from sklearn import metrics as sk

    given = {
        "np": np,
        "pd": pd,
        "label": label,
        **{name: getattr(sk, name) for name in dir(sk) if name.endswith("_score")},
    }
    names = ("calculate_metrics", "relaxed_evaluation_Cholec80_video", "relaxed_evaluation_Cholec80")
    truth, said, videos = phase_rows()
    evaluate = taken_out(checkout / "evaluation_relaxed_metrics.py", names, given)[names[-1]]
    means = evaluate(said.tolist(), truth.tolist(), videos.tolist())["Cholec80"]["mean"]
    return {"phases": {"jaccard": float(means["relaxed jaccard"]) / 100, "of_videos_first": float(means["jaccard"])}}


def of_curation(checkout: Path) -> dict[str, Any]:
    """What each leaf of a tree of two levels gets of a number of points, at most `multiplier` times each point."""
    names = ("_find_best_cut_left", "find_subcluster_target_size")
    share = taken_out(checkout / "src" / "hierarchical_sampling.py", names, {"np": np})["find_subcluster_target_size"]
    sizes, above = leaf_tree()
    np.random.seed(0)  # noqa: NPY002 (what theirs draws from)
    cases = []
    for multiplier in (1, 2, 3):
        for target in (200, 900, 3000):
            nodes = share(np.bincount(above, sizes).astype(int), target, multiplier)
            leaves = [share(sizes[above == node], int(total), multiplier) for node, total in enumerate(nodes)]
            cases.append({"multiplier": multiplier, "target": target, "leaves": np.concatenate(leaves).tolist()})
    return {"curation": {"cases": cases}}


def of_surgrec(checkout: Path) -> dict[str, Any]:
    """Rows of each label in the release's training and test files."""
    found = {}
    for folder in sorted((checkout / "splits").iterdir()):
        if not (folder / "test.csv").exists():
            continue
        counts = {}
        for split in ("train", "test"):
            lines = csv.reader((folder / f"{split}.csv").read_text(encoding="utf-8").splitlines(), delimiter=" ")
            counts[split] = dict(sorted(Counter(row[-1] for row in lines if row).items()))
        found[folder.name] = counts
    return {"surgrec_labels": {"counts": found}}


PUBLIC: dict[str, Callable[[Path], dict[str, Any]]] = {
    "jepa": of_jepa, "vjepa2": of_vjepa2, "videomae": of_videomae, "dinov3": of_dinov3, "ms-tcn": of_ms_tcn,
    "ivtmetrics": of_ivtmetrics, "phases": of_phases, "curation": of_curation, "surgrec": of_surgrec,
}  # fmt: skip


def one(name: str, checkout: Path) -> dict[str, Any]:
    """The cases of one checkout."""
    sys.path.insert(0, str(checkout))
    commit = subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "HEAD"], text=True).strip()
    return {case: {"commit": commit, **values} for case, values in PUBLIC[name](checkout).items()}


def record(checkouts: dict[str, Path]) -> None:
    """Each in a process of its own, since some call their packages alike."""
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for name, path in checkouts.items():
        known |= json.loads(
            subprocess.check_output([sys.executable, __file__, "--one", name, str(path.resolve())], text=True)
        )
    RECORD.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(one(sys.argv[2], Path(sys.argv[3]))))
    else:
        record({name: Path(path) for name, _, path in (argument.partition("=") for argument in sys.argv[1:])})
