"""`trocar bench balance`: pretraining with balanced draws against without, equal steps, on the made corpus with a long tail.

Both arms of a seed have the same corpus, initial weights and steps; only where clips are drawn from differs. Judged on other
videos, the same number of every procedure: a linear probe on the frozen encoder that tells a domain's procedures apart, trained
on one video of each and scored on the others, every video in turn being that one (more labels bring every encoder to the ceiling,
untrained ones too); and the reconstruction loss. The weights that both arms begin with are judged too. Intervals are a paired
bootstrap over videos and seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.checkpoint.checkpoint import load_checkpoint
from ...engine.config.file import load_config
from ...engine.config.settings import Config
from ...engine.curate.embed import embed_corpus
from ...engine.pretrain import pretrain
from ...engine.step.build import build_model
from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.index import index_corpus
from ...loaders.cpu import ClipLoader
from ...loaders.curate.cluster import cluster_embeddings
from ...loaders.curate.settings import ClusterSettings
from ...loaders.draw.grid_clips import GridClips, WholePicture
from ..rows.cells import known_cell, table_of
from ..rows.row import row
from .balance_corpus import DOMAINS, PROCEDURE_SHARES, make_corpus, span_counts

FRAMES, STRIDE, RESOLUTION, PATCH, BATCH = 8, 2, 64, 8, 16
SPAN_FRAMES = (FRAMES - 1) * STRIDE + 1
LEVELS = (60, 12, 4)
JUDGED_SPANS, JUDGED_SPANS_PER_VIDEO = 32, 4  # of each procedure
RESAMPLES = 2000
ARMS = ("unbalanced", "balanced")
UNTRAINED = "untrained"


def bench_balance(
    *, seeds: int, steps: int, spans: int, judged_spans: int = JUDGED_SPANS, tell: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """One row a domain, and one of the worst domain: both arms' scores, their difference and its 95 % interval.

    seeds: runs of each arm. spans: of the corpus. judged_spans: of each procedure, for probe and loss, at least two videos' worth
    (2 JUDGED_SPANS_PER_VIDEO). tell: is told the progress.
    """
    with tempfile.TemporaryDirectory(prefix="trocar_balance_") as name:
        folder = Path(name)
        tell(f"making a corpus of about {spans:,} spans and another of {12 * judged_spans:,} to judge on")
        judged = {(domain, part): judged_spans for domain in DOMAINS for part in range(len(PROCEDURE_SHARES))}
        train = _indexed(folder / "train", span_counts(spans), 0)
        judge = _indexed(folder / "judge", judged, 1, spans_per_video=JUDGED_SPANS_PER_VIDEO)
        embed_corpus(train, folder / "embeddings", frames=FRAMES, stride=STRIDE, progress=False)
        levels = tuple(min(level, spans // 4) for level in LEVELS)
        cluster_embeddings(folder / "embeddings", folder / "tree", ClusterSettings(levels=levels), progress=False)
        found: dict[str, list[_Judged]] = {arm: [] for arm in (UNTRAINED, *ARMS)}
        for seed in range(seeds):
            for arm in found:
                tree = f"data.tree={folder / 'tree'}" if arm == "balanced" else "data.tree=null"
                config = _config(folder / f"{arm}_{seed}", train, seed, steps, tree)
                checkpoint = None if arm == UNTRAINED else pretrain(config, progress=False, listen=False).checkpoint
                found[arm].append(_judge(config, checkpoint, Corpus.open(judge)))
                scores = ", ".join(f"{name} {found[arm][-1].accuracy(name):.3f}" for name in DOMAINS)
                tell(f"seed {seed}, {arm}: {scores}")
    return _rows(found, {"seeds": seeds, "steps": steps, "spans": spans})


def _indexed(folder: Path, counts: dict[tuple[str, int], int], seed: int, **options: int) -> Path:
    index_corpus(
        [make_corpus(folder, counts, span_frames=SPAN_FRAMES, seed=seed, **options)], folder / "corpus", progress=False
    )
    return folder / "corpus"


def _config(run_dir: Path, corpus: Path, seed: int, steps: int, tree: str) -> Config:
    return load_config(
        "demo_cpu",
        [
            *(f"run.dir={run_dir}", f"run.seed={seed}", "run.tensorboard=false", f"run.checkpoint_every={steps}"),
            *(
                "data.max_repeats=null",
                f"data.corpus={corpus}",
                f"data.frames={FRAMES}",
                f"data.stride={STRIDE}",
                f"data.resolution={RESOLUTION}",
            ),
            *(
                tree,
                f"model.patch={PATCH}",
                f"optim.batch={BATCH}",
                f"optim.steps={steps}",
                "optim.base_learning_rate=1.6e-2",
            ),
        ],
    )


class _Judged:
    """What one run's encoder makes of the judged spans. correct: share of the probes that get a span right; loss: of a span;
    (N,) each."""

    def __init__(self, domain: NDArray, video: NDArray, correct: NDArray, loss: NDArray) -> None:
        self.domain, self.video, self.correct, self.loss = domain, video, correct, loss

    def accuracy(self, name: str) -> float:
        return float(self.correct[self.domain == name].mean())


def _judge(config: Config, checkpoint: Path | None, corpus: Corpus) -> _Judged:
    """checkpoint: None judges the weights that a run of this config begins with."""
    torch.manual_seed(config.run.seed)
    model, masks = build_model(config)
    if checkpoint is not None:
        model.load_state_dict(load_checkpoint(checkpoint).model)
    model.eval()
    grid = GridClips(corpus, num_frames=FRAMES, stride=STRIDE, sample_fps=None)
    numbers = [np.arange(start, min(start + 32, len(grid))) for start in range(0, len(grid), 32)]
    features, losses = [], []
    with ClipLoader(corpus, grid, WholePicture(), numbers, resolution=RESOLUTION) as loader, torch.inference_mode():
        for batch in loader:
            features.append(model.encoder(batch.frames).mean(dim=1).numpy())
            for number, clip in zip(batch.numbers, batch.frames, strict=True):
                losses.append(float(model(clip[None], masks(0, np.array([number]), 0)).loss))
    video, _, _ = grid.spans()
    rows = list(corpus.scan("domain", "procedure"))
    domain, procedure = (np.array([rows[index][name] for index in video.tolist()]) for name in ("domain", "procedure"))
    return _Judged(domain, video, _probed(np.concatenate(features), domain, procedure, video), np.array(losses))


def _probed(features: NDArray, domain: NDArray, procedure: NDArray, video: NDArray) -> NDArray:
    """(N,) share of the probes of its domain, each trained on one other video of every procedure, that get a span right.

    Probe k is trained on the procedures' k-th videos and scored on the rest.
    """
    place = np.zeros(len(video), np.int64)  # of a span's video among those of its procedure
    for name in np.unique(procedure):
        mine = procedure == name
        place[mine] = np.unique(video[mine], return_inverse=True)[1]
    right, probes = np.zeros(len(video)), np.zeros(len(video))
    for name in DOMAINS:
        for number in np.unique(place[domain == name]):
            train = (domain == name) & (place == number)
            test = (domain == name) & (place != number)
            right[test] += _probe(features, procedure, train, test)
            probes[test] += 1
    return right / probes


def _probe(features: NDArray, labels: NDArray, train: NDArray[np.bool_], test: NDArray[np.bool_]) -> NDArray:
    """(n,) which of the test spans a logistic regression on standardised features gets right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(
        features[train], labels[train]
    )
    return (probe.predict(features[test]) == labels[test]).astype(float)


def _rows(found: dict[str, list[_Judged]], facts: dict[str, Any]) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    first = found["balanced"][0]
    by_domain: dict[str, dict[str, NDArray]] = {}
    for name in DOMAINS:
        # (seeds, videos): a video's spans are alike, so videos are what is drawn again.
        videos = np.unique(first.video[first.domain == name])
        by_domain[name] = {
            arm: np.array([[run.correct[run.video == video].mean() for video in videos] for run in runs])
            for arm, runs in found.items()
        }
    draws = {name: _resampled(scores, generator) for name, scores in by_domain.items()}
    rows = []
    for name in DOMAINS:
        means = {arm: float(scores.mean()) for arm, scores in by_domain[name].items()}
        losses = {
            f"{arm}_loss": float(np.mean([run.loss[run.domain == name].mean() for run in runs]))
            for arm, runs in found.items()
        }
        gains = draws[name]["balanced"] - draws[name]["unbalanced"]
        rows.append(_row(name, means, gains, {**facts, **losses}))
    worst = {arm: min(row_[arm] for row_ in rows) for arm in found}
    lowest = {arm: np.min([draws[name][arm] for name in DOMAINS], axis=0) for arm in ARMS}
    rows.append(_row("worst domain", worst, lowest["balanced"] - lowest["unbalanced"], facts))
    return rows


def _resampled(scores: dict[str, NDArray], generator: np.random.Generator) -> dict[str, NDArray]:
    """(RESAMPLES,) means over seeds and videos drawn again, the same for both arms."""
    seeds, videos = scores["balanced"].shape
    chosen_seeds = generator.integers(0, seeds, (RESAMPLES, seeds, 1))
    chosen_videos = generator.integers(0, videos, (RESAMPLES, 1, videos))
    return {arm: values[chosen_seeds, chosen_videos].mean(axis=(1, 2)) for arm, values in scores.items()}


def _row(name: str, means: dict[str, float], gains: NDArray, facts: dict[str, Any]) -> dict[str, Any]:
    low, high = np.percentile(gains, [2.5, 97.5])
    measured = {
        "domain": name,
        **means,
        "gain": means["balanced"] - means["unbalanced"],
        "gain_low": float(low),
        "gain_high": float(high),
    }
    return row("balance", torch.device("cpu"), {**measured, **facts})


table = table_of(
    {
        "domain": "{domain}",
        "probe, untrained": f"{{{UNTRAINED}:.3f}}",
        **{arm: f"{{{arm}:.3f}}" for arm in ARMS},
        "gain (95 % interval)": "{gain:+.3f} ({gain_low:+.3f} to {gain_high:+.3f})",
        **{f"loss, {arm}": known_cell(f"{arm}_loss", "{:.4f}", "") for arm in ARMS},
    }
)
