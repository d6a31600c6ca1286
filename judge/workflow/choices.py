"""What is chosen when whole videos are judged: how features are made, which head, which rules the metrics follow.

Each choice of a metric has a name, is printed beside the scores, and changes them (arXiv 2305.13961 lists how much).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...engine.config.error import require

Absent = Literal["absent_left_out", "undefined_left_out", "zero", "one"]
Order = Literal["phases_then_videos", "videos_then_phases"]
Mode = Literal["online", "offline"]
ABSENT_IN_WORDS = {
    "absent_left_out": "a phase that a video's truth lacks is left out in that video; one that is there and never predicted has "
    "precision 0",
    "undefined_left_out": "a score is left out in a video where it is 0 / 0; a phase that is predicted where it never occurs "
    "counts as 0",
    "zero": "a score that is 0 / 0 counts as 0, as scikit-learn's zero_division=0",
    "one": "a phase that is neither in a video nor predicted there counts as 1; what else is 0 / 0 counts as 0",
}
ORDER_IN_WORDS = {
    "phases_then_videos": "averaged over the phases of each video, then over videos; ± over videos",
    "videos_then_phases": "averaged over the videos of each phase, then over phases; ± over phases",
}


@dataclass(frozen=True)
class MetricChoices:
    """absent, order: keys of ABSENT_IN_WORDS and ORDER_IN_WORDS. deviation: of a sample (n - 1) or of a population (n).
    relaxed_seconds: within which of a boundary the relaxed metrics forgive. relaxed_rule: "m2cai16_script" as that script computes,
    whose early transitions are looked for at the end of a phase and forgiven at its beginning; "m2cai16_intended" forgives them
    where they are. unlabelled: frames between segments are "left_out", or "a_class" of their own, called none."""

    absent: Absent = "absent_left_out"
    order: Order = "phases_then_videos"
    deviation: Literal["sample", "population"] = "sample"
    relaxed_seconds: float = 10.0
    relaxed_rule: Literal["m2cai16_script", "m2cai16_intended"] = "m2cai16_script"
    unlabelled: Literal["left_out", "a_class"] = "left_out"

    def __post_init__(self) -> None:
        require(self.relaxed_seconds > 0, "metrics.relaxed_seconds", self.relaxed_seconds, "a positive number")

    def in_words(self) -> str:
        return (
            f"Frames per phase are {ORDER_IN_WORDS[self.order]} (deviation of a {self.deviation}). Absent phases, rule "
            f"{self.absent}: {ABSENT_IN_WORDS[self.absent]}. Relaxed metrics alone forgive {self.relaxed_seconds:g} s around "
            f"boundaries, rule {self.relaxed_rule}. Frames without a label: {self.unlabelled.replace('_', ' ')}."
        )


@dataclass(frozen=True)
class FeatureChoices:
    """rate: vectors a second. clips: "causal" ones end at their moment, "centred" ones lie around it, and see what comes after."""

    rate: float = 1.0
    clips: Literal["causal", "centred"] = "causal"

    def __post_init__(self) -> None:
        require(0 < self.rate <= 60, "features.rate", self.rate, "vectors a second, above 0, at most 60")


@dataclass(frozen=True)
class HeadChoices:
    """A temporal head and how it is trained, on whole videos, one a step.

    kind: "linear" looks at one frame; "tcn" is MS-TCN (arXiv 1903.01945), online TeCNO (arXiv 2003.10751); "transformer" attends to
    the last `memory` vectors online, to all of them offline. mode: an online head must not see what comes after. width, layers,
    stages, attention_heads, dropout: of the head (stages of a tcn). smoothing: weight of MS-TCN's truncated error of neighbours.
    balance: classes weigh as their share to the power of minus this. epochs at most; patience: epochs without a better validation
    split before it ends. select: what is better there: accuracy, f1 or, with several labels, mean_average_precision; "" takes
    accuracy or the last.
    """

    kind: Literal["linear", "tcn", "transformer"] = "tcn"
    mode: Mode = "online"
    width: int = 64
    layers: int = 9
    stages: int = 2
    attention_heads: int = 4
    memory: int = 512
    dropout: float = 0.3
    smoothing: float = 0.15
    balance: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    epochs: int = 60
    patience: int = 15
    select: Literal["", "accuracy", "f1", "mean_average_precision"] = ""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "stages", "attention_heads", "memory", "epochs", "patience"):
            require(getattr(self, name) >= 1, f"head.{name}", getattr(self, name), "1 or more")
        require(
            self.layers <= 16, "head.layers", self.layers, "at most 16: its dilation is 2 to the power of the layer"
        )
        even = self.kind != "transformer" or self.width % (2 * self.attention_heads) == 0
        require(even, "head.width", self.width, f"a multiple of twice its {self.attention_heads} attention_heads")
        for name in ("smoothing", "balance", "weight_decay"):
            require(getattr(self, name) >= 0, f"head.{name}", getattr(self, name), "0 or more")
        require(0 <= self.dropout < 1, "head.dropout", self.dropout, "0 or more, below 1")
        require(self.learning_rate > 0, "head.learning_rate", self.learning_rate, "a positive number")

    def check_clips(self, features: FeatureChoices) -> None:
        """Raises ConfigError where an online head is handed clips that show what comes after."""
        accepted = "causal for heads of mode online, or mode: offline"
        require(self.mode == "offline" or features.clips == "causal", "features.clips", features.clips, accepted)

    def plain(self) -> dict[str, Any]:
        return asdict(self)
