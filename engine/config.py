"""The settings of a run: frozen dataclasses, each of which refuses values out of its range."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from ..kernels.pixel_loss import Normalization
from ..loaders.resize import Resize
from ..ssl.encoder import SIZES, Positions
from .config_error import ConfigError, require


@dataclass(frozen=True)
class RunConfig:
    """Where and how a run happens.

    dir: run directory; resumed where it holds a checkpoint. seed: of weights, draws, crops and masks. device: "auto" takes a GPU
    where there is one. threads: CPU threads of PyTorch, its own choice where None. log_every, checkpoint_every: in optimizer
    steps. keep_checkpoints: how many of the newest stay.
    """

    dir: str
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    threads: int | None = None
    log_every: int = 1
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    tensorboard: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "run.seed", self.seed, "0 .. 2**63 - 1")
        require(self.threads is None or self.threads > 0, "run.threads", self.threads, "a positive number or null")
        for key in ("log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, key) > 0, f"run.{key}", getattr(self, key), "a positive number")


@dataclass(frozen=True)
class SamplingPhase:
    """What changes from draw `first_draw` on, where an epoch of the draws before must end; null is as before. The keys are those
    of `DataConfig`."""

    first_draw: int
    tree: str | None = None
    balance: float | None = None
    max_repeats: float | None = None
    epoch_draws: int | None = None
    source_caps: dict[str, float] | None = None
    thin: float | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DataConfig:
    """What clips are and where they come from.

    corpus: folder that `trocar index` wrote. frames: T. stride: decoded frames from one clip frame to the next; sample_fps:
    clip frames a second instead, for corpora of mixed frame rates. resolution: side of the clip in pixels. crop_scale: least and
    largest share of the picture's area, crop_ratio: least and largest width / height. flip: probability of mirroring.
    content_box: crop inside the black border. loader: "auto" measures what decodes each kind of video faster where there is a
    GPU. decoders: how many spans DALI decodes at the same time. views_per_span: clips that are made of every span that is
    decoded, each with its own offset, crop and mask. pool_spans: decoded spans of which clips wait on the device, over all
    ranks, a multiple of lanes; where 0, the clips of a span stand in one batch. lanes: independent parts of the pool; the number
    of ranks has to divide it. threads: decoding threads, all cores where None. prefetch: batches decoded ahead. failure_budget:
    share of the spans that may fail before the run stops. allow_changed_corpus: resume although the corpus is another one.

    tree: folder that `trocar cluster` wrote, to draw from its branches; null draws all spans alike. balance: 0 draws the corpus
    as it is, 1 all branches of the tree alike. max_repeats: most draws of one span an epoch. epoch_draws: draws of an epoch, as
    many as there are spans where null. source_caps: the largest share of the draws of a source, by name. thin: leave out spans
    nearer than this to another of their leaf. include, exclude: videos by id, file name, pattern of paths, or @FILE that lists
    such. phases: what of these changes on the way.
    """

    corpus: str
    frames: int = 16
    stride: int | None = 4
    sample_fps: float | None = None
    resolution: int = 224
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    resize: Resize = "fast"
    content_box: bool = True
    loader: Literal["auto", "cpu", "dali"] = "auto"
    decoders: int = 16
    views_per_span: int = 1
    pool_spans: int = 0
    lanes: int = 24
    threads: int | None = None
    prefetch: int = 2
    failure_budget: float = 0.1
    allow_changed_corpus: bool = False
    tree: str | None = None
    balance: float = 1.0
    max_repeats: float | None = None
    epoch_draws: int | None = None
    source_caps: dict[str, float] = field(default_factory=dict)
    thin: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    phases: tuple[SamplingPhase, ...] = ()

    def __post_init__(self) -> None:
        if self.sample_fps is not None and self.stride is not None:
            raise ConfigError(
                f"data.stride={self.stride} and data.sample_fps={self.sample_fps} exclude each other; set one of them to null"
            )
        require(
            self.sample_fps is not None or (self.stride or 0) > 0,
            "data.stride",
            self.stride,
            "a positive number of frames",
        )
        require(self.sample_fps is None or self.sample_fps > 0, "data.sample_fps", self.sample_fps, "a positive rate")
        for key in ("frames", "resolution", "prefetch", "decoders"):
            require(getattr(self, key) > 0, f"data.{key}", getattr(self, key), "a positive number")
        require(self.threads is None or self.threads > 0, "data.threads", self.threads, "a positive number or null")
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "[least, largest] with 0 < least <= largest <= 1"
        )
        low, high = self.crop_ratio
        require(0 < low <= high, "data.crop_ratio", self.crop_ratio, "[least, largest] with 0 < least <= largest")
        require(1 <= self.views_per_span <= 64, "data.views_per_span", self.views_per_span, "1 .. 64")
        require(self.lanes > 0, "data.lanes", self.lanes, "a positive number")
        accepted = f"0 or a multiple of data.lanes ({self.lanes})"
        require(
            self.pool_spans >= 0 and self.pool_spans % self.lanes == 0, "data.pool_spans", self.pool_spans, accepted
        )
        require(0 <= self.flip <= 1, "data.flip", self.flip, "a probability, 0 .. 1")
        require(0 <= self.failure_budget <= 1, "data.failure_budget", self.failure_budget, "a share, 0 .. 1")
        sampled = [self, *self.phases]
        if all(part.tree is None for part in sampled) and any(
            part.balance not in (None, 1.0) or part.thin for part in sampled
        ):
            raise ConfigError("data.balance and data.thin need data.tree; make one: trocar embed, then trocar cluster")
        for prefix, part in (("data.", self), *((f"data.phases[{i}].", phase) for i, phase in enumerate(self.phases))):
            _check_sampling(prefix, part)


def _check_sampling(prefix: str, part: DataConfig | SamplingPhase) -> None:
    def check(key: str, accepted: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(part, key)
        require(value is None or holds(value), f"{prefix}{key}", value, accepted)

    check("balance", "0 (the corpus as it is) .. 1 (all branches alike)", lambda value: 0 <= value <= 1)
    check("max_repeats", "a positive number or null", lambda value: value > 0)
    check("epoch_draws", "1 .. 2**31 - 1, or null", lambda value: 0 < value < 2**31)
    check("source_caps", "shares between 0 and 1", lambda caps: all(0 < share <= 1 for share in caps.values()))
    check("thin", "a positive distance or null", lambda value: value > 0)


@dataclass(frozen=True)
class ModelConfig:
    """A video ViT by name, with what deviates from it.

    positions: "flat" is VideoMAE's table, "axes" V-JEPA's, which small models learn from sooner. The decoder's width and heads
    are VideoMAE's for that name where None.
    """

    encoder: str = "base"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    tubelet: int = 2
    patch: int = 16
    positions: Positions = "flat"
    decoder_width: int | None = None
    decoder_depth: int = 4
    decoder_heads: int | None = None

    def __post_init__(self) -> None:
        require(self.encoder in SIZES, "model.encoder", self.encoder, f"one of {', '.join(SIZES)}")
        for key, value in vars(self).items():
            require(value is None or isinstance(value, str) or value > 0, f"model.{key}", value, "a positive number")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned. mask_ratio: share of the cells hidden by the tube mask. targets: "channel" normalises each channel of a
    patch (VideoMAE), "patch" all its values together, "none" predicts the pixels, 0 .. 1, themselves."""

    kind: Literal["mae"] = "mae"
    mask_ratio: float = 0.9
    targets: Normalization = "channel"

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio < 1, "objective.mask_ratio", self.mask_ratio, "a share between 0 and 1")


@dataclass(frozen=True)
class OptimConfig:
    """How it is learned.

    batch: clips per optimizer step, over all ranks and accumulation steps. steps: optimizer steps; where null, epochs counts
    passes over the corpus's spans. The peak learning rate is base_learning_rate x batch / 256 (linear rule, Goyal et al. 2017).
    warmup: share of the steps. clip_gradient: largest gradient norm, unbounded where null.
    """

    batch: int = 256
    accumulation: int = 1
    steps: int | None = None
    epochs: float | None = None
    base_learning_rate: float = 1.5e-4
    final_learning_rate: float = 0.0
    warmup: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_gradient: float | None = None

    def __post_init__(self) -> None:
        require(self.batch > 0, "optim.batch", self.batch, "a positive number of clips")
        require(
            self.accumulation > 0 and self.batch % self.accumulation == 0,
            "optim.accumulation",
            self.accumulation,
            f"a divisor of optim.batch ({self.batch})",
        )
        require(
            self.steps is not None or self.epochs is not None,
            "optim.steps",
            self.steps,
            "steps, or epochs, or both (steps wins)",
        )
        require(self.steps is None or self.steps > 0, "optim.steps", self.steps, "a positive number")
        require(self.epochs is None or self.epochs > 0, "optim.epochs", self.epochs, "a positive number")
        require(self.base_learning_rate > 0, "optim.base_learning_rate", self.base_learning_rate, "a positive rate")
        require(
            self.final_learning_rate >= 0, "optim.final_learning_rate", self.final_learning_rate, "a rate, 0 or more"
        )
        require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "a share of the steps, 0 <= share < 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        require(all(0 <= beta < 1 for beta in self.betas), "optim.betas", self.betas, "two numbers, 0 <= beta < 1")
        require(
            self.clip_gradient is None or self.clip_gradient > 0,
            "optim.clip_gradient",
            self.clip_gradient,
            "a positive norm or null",
        )


@dataclass(frozen=True)
class Config:
    run: RunConfig
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def to_yaml(self) -> str:
        return yaml.safe_dump(_plain(self), sort_keys=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
