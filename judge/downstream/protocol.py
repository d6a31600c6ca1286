"""How an encoder is judged on a data set: what is trained on it, over which grid, and in which views it is seen.

| kind | trains | on |
|---|---|---|
| linear | a layer on the mean of the tokens | features, computed once |
| attentive | V-JEPA's probe: one query attends to all tokens | features, computed once |
| full | the encoder too, its lower layers less | clips |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...engine.config.error import require
from ...engine.config.file import apply_settings
from ...loaders.draw.augment import CropRecipe

Kind = Literal["linear", "attentive", "full"]
HeadKind = Literal["mean", "standardized", "attentive"]
MAGNITUDES = 10
Pooling = Literal["family", "tokens", "mean"]


@dataclass(frozen=True)
class Protocol:
    """kind: see above. heads: "mean" is a layer on the mean of the tokens, "standardized" the same on values of unit variance over
    the training clips, "attentive" V-JEPA's. learning_rates, weight_decays, balances: with the heads they span the grid. balance:
    classes weigh as their share to the power of -balance; 0 is the data as it is, 1 all classes alike.

    pooling: what stands before a layer on the mean of the tokens. "tokens": each is normalised, then they are averaged, as V-JEPA's
    leave it. "mean": they are averaged, then normalised by a fresh norm, frozen in a probe, as VideoMAE is fine-tuned. "family": as
    the encoder's family does. An attentive probe has its own norm and takes the tokens as the encoder leaves them.

    head_std: deviation that a layer on the mean of the tokens begins with. epochs: passes over the training rows. batch: rows of
    a step. warmup: share of the steps; then a half cosine to zero. label_smoothing: 0 .. 1. attention_heads: of the attentive
    probe, the encoder's where null. attentive_blocks: 1 is V-JEPA's probe, 4 V-JEPA 2's.

    train_views: random views of each training row that are encoded; epoch e takes view e mod train_views (linear, attentive).
    segments, crops: views of a validation or test row in time and space, whose probabilities are averaged. crop_scale, crop_ratio,
    flip: of training views. encode_batch: clips encoded at a time.

    Of full alone: layer_decay: a layer's learning rate is the next one's times this. drop_path: of the last block, growing from 0.
    mixup, cutmix: their alpha, 0 is none. random_augment: (operations, magnitude 0 .. 10 as timm counts it), null is none;
    posterize and solarize are torchvision's, weaker than timm's. erasing: probability.
    clip_gradient: largest norm, null is unbounded.
    """

    kind: Kind
    heads: tuple[HeadKind, ...]
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    balances: tuple[float, ...] = (0.0, 1.0)
    pooling: Pooling = "family"
    head_std: float = 0.02
    epochs: int = 50
    batch: int = 64
    warmup: float = 0.1
    label_smoothing: float = 0.0
    attention_heads: int | None = None
    attentive_blocks: int = 1
    train_views: int = 4
    segments: int = 5
    crops: int = 3
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    encode_batch: int = 16
    layer_decay: float = 0.75
    drop_path: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    random_augment: tuple[int, int] | None = None
    erasing: float = 0.0
    clip_gradient: float | None = None

    def __post_init__(self) -> None:
        for key in ("heads", "learning_rates", "weight_decays", "balances"):
            values = getattr(self, key)
            require(0 < len(values) == len(set(values)), f"protocol.{key}", values, "one or more, each once")
        for key in ("epochs", "batch", "train_views", "segments", "crops", "encode_batch", "attentive_blocks"):
            require(getattr(self, key) > 0, f"protocol.{key}", getattr(self, key), "a positive number")
        require(min(self.learning_rates) > 0, "protocol.learning_rates", self.learning_rates, "positive rates")
        for key in ("weight_decays", "balances"):
            require(min(getattr(self, key)) >= 0, f"protocol.{key}", getattr(self, key), "numbers of at least 0")
        for key in ("warmup", "label_smoothing", "drop_path"):
            require(0 <= getattr(self, key) < 1, f"protocol.{key}", getattr(self, key), "0 <= share < 1")
        operations, magnitude = self.random_augment or (1, 0)
        fits_scale = operations >= 1 and 0 <= magnitude <= MAGNITUDES
        accepted = f"operations of at least 1 and a magnitude of 0 .. {MAGNITUDES}"
        require(fits_scale, "protocol.random_augment", self.random_augment, accepted)
        require(self.head_std > 0, "protocol.head_std", self.head_std, "a positive deviation")
        require(0 <= self.erasing <= 1, "protocol.erasing", self.erasing, "a probability, 0 .. 1")
        require(0 < self.layer_decay <= 1, "protocol.layer_decay", self.layer_decay, "0 < factor <= 1")
        require(min(self.mixup, self.cutmix) >= 0, "protocol.mixup", (self.mixup, self.cutmix), "numbers of at least 0")
        require(
            self.clip_gradient is None or self.clip_gradient > 0, "protocol.clip_gradient", self.clip_gradient, "a norm"
        )
        fits = {"linear": {"mean", "standardized"}, "attentive": {"mean", "standardized", "attentive"}}
        allowed = fits.get(self.kind, {"mean", "attentive"})
        require({*self.heads} <= allowed, "protocol.heads", self.heads, f"some of {sorted(allowed)} for {self.kind}")
        try:
            self.recipe()
        except ValueError as error:
            require(False, "protocol: crop_scale, crop_ratio, flip", self.flip, str(error))

    def recipe(self) -> CropRecipe:
        """What crops of training views are drawn from."""
        return CropRecipe(self.crop_scale, self.crop_ratio, self.flip)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    def grid(self) -> list[Point]:
        """Every combination, in a fixed order."""
        return [
            Point(head, rate, decay, balance)
            for head in self.heads
            for balance in self.balances
            for decay in self.weight_decays
            for rate in self.learning_rates
        ]


@dataclass(frozen=True)
class Point:
    """One combination of the grid."""

    head: HeadKind
    learning_rate: float
    weight_decay: float
    balance: float

    @property
    def name(self) -> str:
        return f"{self.head}_lr{self.learning_rate:g}_wd{self.weight_decay:g}_balance{self.balance:g}"


RATES, DECAYS = (1e-4, 3e-4, 1e-3, 3e-3), (0.01, 0.1, 0.8)
PROTOCOLS = {
    "linear": Protocol("linear", ("mean", "standardized"), (*RATES, 1e-2), (0.0, *DECAYS)),
    "attentive": Protocol("attentive", ("attentive",), RATES, DECAYS),
    "full": Protocol(
        "full",
        ("mean",),
        (2e-5, 6e-5, 2e-4),
        (0.05,),
        (0.0,),
        batch=32,
        warmup=0.1,
        label_smoothing=0.1,
        clip_gradient=5.0,
    ),
}


def read_protocol(name: str, settings: Iterable[str] | Mapping[str, Any] = ()) -> Protocol:
    """One of PROTOCOLS with some settings changed: "key=value" or a mapping. Raises ConfigError."""
    require(name in PROTOCOLS, "protocol", name, f"one of {', '.join(PROTOCOLS)}")
    return apply_settings(Protocol, dataclasses.asdict(PROTOCOLS[name]), settings, "protocol.")
