"""The settings of a run: frozen dataclasses, each of which refuses values out of its range.

Over 300 lines, so that whoever asks what a key means, or where one would go, reads one file in the order of a config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import yaml

from ...kernels.choices import Distance, Normalization
from ...loaders.draw.augment import Resize
from ...loaders.draw.where import parse_where
from ...ssl.choices import LONG_RANGE, MAX_KINDS, SHORT_RANGE, SIZES, BlockRecipe, Kind, Positions
from .error import ConfigError, require

CompileBackend = Literal["none", "auto", "inductor", "aot_eager"]
AttentionKernel = Literal["auto", "torch", "cudnn", "flash", "flash3", "flash4", "efficient"]
ScheduleShape = Literal["cosine", "constant", "linear"]


def _check(section: Any, prefix: str, accepted: str, holds: Callable[[Any], bool], *keys: str) -> None:
    """Raises ConfigError where one of the section's keys is not such that it `holds`, nor null where its type has null."""
    for key in keys:
        value, kind = getattr(section, key), section.__dataclass_fields__[key].type
        require("None" in kind if value is None else holds(value), f"{prefix}{key}", value, accepted)


def positive(value: float) -> bool:
    return value > 0


@dataclass(frozen=True)
class RunConfig:
    """Where and how a run happens.

    dir: run directory; resumed where it holds a checkpoint. seed: of weights, draws, crops and masks. device: "auto" takes a GPU
    where there is one. precision: of matrix products; "bfloat16" keeps weights and their updates in float32, "float64" is for exact
    comparisons. threads: CPU threads of PyTorch, its own choice where null. log_every, checkpoint_every: in optimizer steps.
    checkpoint_minutes: a checkpoint too when so many have passed since the one before; null is never. keep_checkpoints: how many of
    the newest stay. keep_every: checkpoints of steps that are multiples of it stay for good. allow_changes: resume although
    settings differ that change the curve or the draws. tensorboard: write the numbers of metrics.jsonl for TensorBoard too, into
    RUN/tensorboard. wandb: project of Weights & Biases that gets them as well, which needs its package; null sends nothing. mlflow:
    the same, an experiment of MLflow. pictures_every: steps between pictures of clips of held-out videos, or where there are none
    of other places and crops than are drawn (reconstruction or errors of features, and features as colours), in RUN/pictures and
    wherever the numbers go; null makes none. Needs sharding none.

    sharding: over several ranks, "none" keeps the whole model on each (DDP), "full" shards it over all (FSDP2), "node" shards it
    inside a node and keeps a copy per node (HSDP). checkpoint_activations: compute every block's activations again instead of
    keeping them. compile: torch.compile per block; "auto" takes inductor on a GPU, or none where that fails, and tells; none on a
    CPU. cuda_graphs: replay the whole step as CUDA graphs; "auto" does where GPU and run allow it, and tells why not; on a CPU true
    runs the step from the buffers that a graph would read. weight_copies: linear layers read bfloat16 copies, written once a step,
    where autocast would cast their weights at every use, with the same numbers; "auto" does where precision is bfloat16 and
    sharding is none. attention: the kernel of PyTorch that computes it on a GPU; "auto" takes the one that is fastest for the run's
    own shapes, timed at its start; "torch" leaves it to PyTorch; "flash3" and "flash4" are FlashAttention 3 and 4, packages of
    their own. fp8: the linear layers of trained blocks multiply in float8 (extra `fp8`; an H100 or later); "emulated" rounds as
    that does anywhere, slowly, to see what becomes of the loss. pin_cores: give every rank of a node its own cores, near its GPU.

    heartbeat_timeout: seconds without a sign of life from a rank before the run ends; rank_timeout: seconds that the others wait
    for one that lives but does not come on, also of collectives (NCCL's timeout). save_timeout: seconds that writing a checkpoint
    in the background may take before the run ends.
    """

    dir: str
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16", "float64"] = "bfloat16"
    threads: int | None = None
    log_every: int = 1
    checkpoint_every: int = 1000
    checkpoint_minutes: float | None = 15.0
    keep_checkpoints: int = 3
    keep_every: int | None = None
    allow_changes: bool = False
    tensorboard: bool = True
    wandb: str | None = None
    mlflow: str | None = None
    pictures_every: int | None = None
    sharding: Literal["none", "full", "node"] = "none"
    checkpoint_activations: bool = False
    compile: CompileBackend = "auto"
    cuda_graphs: bool | Literal["auto"] = "auto"
    weight_copies: bool | Literal["auto"] = "auto"
    attention: AttentionKernel = "auto"
    fp8: bool | Literal["emulated"] = False
    pin_cores: bool = True
    heartbeat_timeout: float = 30.0
    rank_timeout: float = 600.0
    save_timeout: float = 1800.0

    def __post_init__(self) -> None:
        check = partial(_check, self, "run.")
        check("0 .. 2**63 - 1", lambda seed: 0 <= seed < 2**63, "seed")
        check("a positive number or null", positive, "threads")
        counts = ("log_every", "checkpoint_every", "keep_checkpoints")
        check("a positive number", positive, *counts, "heartbeat_timeout", "rank_timeout", "save_timeout")
        check("a positive number of minutes or null", positive, "checkpoint_minutes")
        check("a positive number of steps or null", positive, "keep_every", "pictures_every")
        pictured = self.pictures_every is None or self.sharding == "none"
        accepted = "null, or run.sharding=none: a rank has the whole model"
        require(pictured, "run.pictures_every", self.pictures_every, accepted)


@dataclass(frozen=True)
class SizePhase:
    """Clips of another size on the way; null is as before. Keys as in `DataConfig`, but

    from_step: the optimizer step from which on clips have that size, counted from 0.
    """

    from_step: int
    frames: int | None = None
    resolution: int | None = None
    stride: int | None = None
    sample_fps: float | None = None

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            accepted = "a positive number" if key == "from_step" else "a positive number or null"
            require(value is None or value > 0, f"data.sizes: {key}", value, accepted)


@dataclass(frozen=True)
class SamplingPhase:
    """What changes of the draws on the way; null is as before. Keys as in `DataConfig`, but

    first_draw: the draw from which on they change, counted from 0; an epoch of the draws before must end there.
    """

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

    corpus: folder that `trocar index` wrote. frames: of a clip, a multiple of model.tubelet. stride: decoded frames from one clip
    frame to the next; sample_fps: clip frames a second instead, for corpora of mixed frame rates. resolution: side of the clip,
    which is square, in pixels; a multiple of model.patch. crop_scale: least and largest share of the picture's area, crop_ratio:
    least and largest width / height. flip: probability of mirroring. resize: "fast" is swscale's bilinear filter, antialiased,
    "exact" the one that PyTorch and DALI have in common. content_box: crop inside the black border. square_pixels: crop the
    picture as players show it, where its pixels are not square. loader: "auto" measures what decodes each kind of video faster
    where there is a GPU; "nvdec" keeps decoder sessions open (extra nvdec), "planes" decodes in
    processes and makes clips on the GPU, "both" shares the draws between "cpu" and "dali".
    decoders: how many spans DALI decodes at the same time; "auto" is where more bring no more clips, measured with loader "auto",
    else 16. views_per_span: clips that are made of every span that is decoded, each with its own offset, crop and mask.
    pool_spans: decoded spans of which clips wait on the device, over all ranks, a multiple of lanes; where 0, the clips of a span
    stand in one batch. lanes: independent parts of the pool; the number of ranks has to divide it. threads: decoding threads, one
    a core of the rank where null. workers: decoding processes, 0 for threads of the training process; null is one for each core
    but one where training is on a GPU, else 0. prefetch: batches decoded ahead. failure_budget: share of the spans that may fail
    before the run stops, never before 20 have. clip_timeout: seconds that a thread or process may be at one span before
    the run ends with its name, for ever where null. allow_changed_corpus: resume although the corpus or its draws are others.
    sizes: phases of other clip sizes on the way, in the order of their steps.

    tree: folder that `trocar cluster` wrote, to draw from its branches; null draws all spans alike. balance: 0 draws the corpus as
    it is, 1 all branches of the tree alike. max_repeats: most draws of one span an epoch, rounded down from 1 on; null is no limit.
    epoch_draws: draws of an epoch, as many as there are spans where null. source_caps: the largest share of the draws of a source,
    by name. thin: leave out spans nearer than this to another of their leaf. include, exclude: videos by id, file name, pattern of
    paths, or @FILE that lists such. phases: what of these changes on the way. where: what spans that `trocar screen` scored have to
    fulfil, as "in_body > 0.5 and not blank"; null is nothing. within_shots: no clip crosses a cut; null is where the corpus is
    screened.
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
    square_pixels: bool = True
    loader: Literal["auto", "cpu", "planes", "dali", "nvdec", "both"] = "auto"
    decoders: int | Literal["auto"] = "auto"
    views_per_span: int = 1
    pool_spans: int = 0
    lanes: int = 24
    threads: int | None = None
    workers: int | None = None
    prefetch: int = 2
    failure_budget: float = 0.1
    clip_timeout: float | None = 300.0
    allow_changed_corpus: bool = False
    sizes: tuple[SizePhase, ...] = ()
    tree: str | None = None
    balance: float = 1.0
    max_repeats: float | None = 10.0
    epoch_draws: int | None = None
    source_caps: dict[str, float] = field(default_factory=dict)
    thin: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    phases: tuple[SamplingPhase, ...] = ()
    where: str | None = None
    within_shots: bool | None = None

    def __post_init__(self) -> None:
        if self.sample_fps is not None and self.stride is not None:
            raise ConfigError(
                f"data.stride={self.stride} and data.sample_fps={self.sample_fps} exclude each other; set one of them to null"
            )
        require(
            self.sample_fps is not None or (self.stride or 0) > 0,
            "data.stride",
            self.stride,
            "a positive number of frames, or null with data.sample_fps",
        )
        check = partial(_check, self, "data.")
        check("a positive rate", positive, "sample_fps")
        check("a positive number", positive, "frames", "resolution", "prefetch")
        check("a positive number, or 'auto'", lambda number: number == "auto" or number > 0, "decoders")
        check("a positive number or null", positive, "threads")
        check("a number of processes, 0 for threads, or null", lambda number: number >= 0, "workers")
        accepted = "[least, largest] with 0 < least <= largest"
        check(f"{accepted} <= 1", lambda ends: 0 < ends[0] <= ends[1] <= 1, "crop_scale")
        check(accepted, lambda ends: 0 < ends[0] <= ends[1], "crop_ratio")
        check("1 .. 64", lambda views: 1 <= views <= 64, "views_per_span")
        check("a positive number", positive, "lanes")
        accepted = f"0 or a multiple of data.lanes ({self.lanes})"
        check(accepted, lambda spans: spans >= 0 and spans % self.lanes == 0, "pool_spans")
        begin = [phase.from_step for phase in self.sizes]
        require(begin == sorted(set(begin)), "data.sizes: from_step", begin, "steps in ascending order")
        check("a probability, 0 .. 1", lambda flip: 0 <= flip <= 1, "flip")
        check("a positive number of seconds or null", positive, "clip_timeout")
        check("a share, 0 .. 1", lambda share: 0 <= share <= 1, "failure_budget")
        if self.where is not None:
            try:
                parse_where(self.where)
            except ValueError as error:
                raise ConfigError(f"data.where: {error}") from error
        sampled = [self, *self.phases]
        if all(part.tree is None for part in sampled) and any(
            part.balance not in (None, 1.0) or part.thin for part in sampled
        ):
            raise ConfigError("data.balance and data.thin need data.tree; make one: trocar embed, then trocar cluster")
        for prefix, part in (("data.", self), *((f"data.phases[{i}].", phase) for i, phase in enumerate(self.phases))):
            _check_sampling(prefix, part)


def _check_sampling(prefix: str, part: DataConfig | SamplingPhase) -> None:
    check = partial(_check, part, prefix)
    check("0 (the corpus as it is) .. 1 (all branches alike)", lambda value: 0 <= value <= 1, "balance")
    check("a positive number or null", positive, "max_repeats")
    check("1 .. 2**31 - 1, or null", lambda value: 0 < value < 2**31, "epoch_draws")
    check("shares between 0 and 1", lambda caps: all(0 < share <= 1 for share in caps.values()), "source_caps")
    check("a positive distance or null", positive, "thin")


@dataclass(frozen=True)
class ModelConfig:
    """A video ViT by name, with what deviates from it.

    encoder: "tiny", "small", "base", "large" or "huge". width: values of a token, those of that name where null. depth: blocks,
    those of that name where null. heads: of attention, those of that name where null; they have to divide the width. tubelet:
    frames of a patch. patch: its side in pixels. positions: "flat" is VideoMAE's table, "axes" V-JEPA's, which small models learn
    from sooner, "rope" turns queries and keys as V-JEPA 2 does.

    decoder_width, decoder_heads: of the MAE's decoder, VideoMAE's for that name where null. decoder_depth: its blocks.
    predictor_width: of the JEPA's predictor. predictor_depth: its blocks; 0 is no predictor at all, which collapses.
    predictor_heads: the encoder's where null. predictor_mask_tokens: learned tokens, mask m takes token m modulo their number; null
    is one for each kind of mask, as V-JEPA 1, and 1 is one for all, as V-JEPA 2's loop.

    start: how an MAE's patch embedding, encoder_to_decoder and mask token begin: "xavier" as its other layers do, "videomae" as
    VideoMAE's code leaves them. A JEPA begins as V-JEPA's.
    init: a run, or a file of weights, that the encoder begins with; null begins afresh. init_minimum: share of the encoder's
    tensors that it must have. init_kind, init_positions: of published weights that do not tell whose they are, as of `trocar
    convert`.
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
    predictor_width: int = 384
    predictor_depth: int = 12
    predictor_heads: int | None = None
    predictor_mask_tokens: int | None = None
    start: Literal["xavier", "videomae"] = "xavier"
    init: str | None = None
    init_minimum: float = 1.0
    init_kind: Kind | None = None
    init_positions: Positions | None = None

    def __post_init__(self) -> None:
        require(0 < self.init_minimum <= 1, "model.init_minimum", self.init_minimum, "a share, 0 < share <= 1")
        require(self.encoder in SIZES, "model.encoder", self.encoder, f"one of {', '.join(SIZES)}")
        for key, value in vars(self).items():
            least = 0 if key in ("predictor_depth", "init_minimum") else 1
            fits = value is None or isinstance(value, str) or value >= least
            require(fits, f"model.{key}", value, f"a number of at least {least}")


@dataclass(frozen=True)
class MaskConfig:
    """One kind of multi-block mask: see `BlockRecipe`."""

    blocks: int
    scale: tuple[float, float]
    aspect: tuple[float, float] = SHORT_RANGE.aspect
    temporal_scale: tuple[float, float] = SHORT_RANGE.temporal_scale

    def recipe(self) -> BlockRecipe:
        return BlockRecipe(self.blocks, self.scale, self.aspect, self.temporal_scale)


VJEPA_MASKS = tuple(MaskConfig(recipe.blocks, recipe.scale) for recipe in (SHORT_RANGE, LONG_RANGE))


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned.

    kind: "mae" predicts pixels, "jepa" the features of a target encoder.

    MAE. mask_ratio: share of the cells hidden by the tube mask. decoder_mask_ratio: share of all tokens that the decoder drops by
    VideoMAE V2's running cells, 0.25, 0.5 or 0.75; 0 predicts every hidden token. targets: "channel" normalises each channel of a
    patch (VideoMAE), "patch" all its values together, "none" predicts the pixels, 0 .. 1, themselves.

    JEPA. masks: kinds of multi-block masks, one of each for every clip. truncate: "batch" draws one block size for clips that
    follow one another and cuts their masks to the shortest, as V-JEPA does to the clips of a GPU; "none" cuts nothing.
    truncate_batch: how many clips those are, whatever the ranks and the accumulation; 24 in V-JEPA. bucket: totals of packed tokens
    are padded to a multiple of it. distance: of a prediction to its layer-normalised target. teacher: a run's checkpoint, whose
    encoder is the target for good (SALT); null lets the target follow the encoder. teacher_checksum: SHA-256 that the teacher's
    weights must have; null is any.

    Both. ignore: tokens that are never targets: "overlays" are those of which more than half lies under text and logos that
    `trocar screen` found, or outside the content box; they may be seen, and the mean is taken over the others.
    """

    kind: Literal["mae", "jepa"] = "mae"
    mask_ratio: float = 0.9
    decoder_mask_ratio: float = 0.0
    targets: Normalization = "channel"
    masks: tuple[MaskConfig, ...] = VJEPA_MASKS
    truncate: Literal["none", "batch"] = "none"
    truncate_batch: int = 24
    bucket: int = 512
    distance: Distance = "l1"
    teacher: str | None = None
    teacher_checksum: str | None = None
    ignore: Literal["nothing", "overlays"] = "nothing"

    def __post_init__(self) -> None:
        check = partial(_check, self, "objective.")
        check("a share between 0 and 1", lambda share: 0 < share < 1, "mask_ratio")
        check("0, 0.25, 0.5 or 0.75", (0, 0.25, 0.5, 0.75).__contains__, "decoder_mask_ratio")
        require(
            1 <= len(self.masks) <= MAX_KINDS, "objective.masks", len(self.masks), f"1 .. {MAX_KINDS} kinds of masks"
        )
        check("a positive number of tokens", positive, "bucket")
        check("a positive number of clips", positive, "truncate_batch")
        for number, mask in enumerate(self.masks):
            try:
                mask.recipe()
            except ValueError as error:
                raise ConfigError(f"objective.masks[{number}]: {error}") from error


@dataclass(frozen=True)
class ProbeConfig:
    """How good the features are on the way, judged by a labelled table.

    table: CSV with the columns path, start (seconds) and label; null probes nothing. every: steps from one probe to the next. kind:
    "knn" asks the nearest clips of other videos, "linear" fits ridge regression to them. clips: at most so many rows of the table.
    neighbours: the nearest clips that "knn" asks. batch: clips encoded at a time.
    """

    table: str | None = None
    every: int = 1000
    kind: Literal["knn", "linear"] = "knn"
    clips: int = 512
    neighbours: int = 10
    batch: int = 8

    def __post_init__(self) -> None:
        _check(self, "probe.", "a positive number", positive, "every", "clips", "neighbours", "batch")


@dataclass(frozen=True)
class ValidationConfig:
    """The loss on videos that training never draws; none where no video is held out.

    videos: held out by name, entries as in data.include. fraction: of the others that data.include and data.exclude leave, each
    held out or not by a keyed hash of its id, whatever else the corpus holds. seed: the key of that hash, and of the clips, their
    cuts and masks; run.seed has no part in it, so that runs are judged alike. every: in optimizer steps; the last one counts too.
    clips: at most so many, as large as clips are at the run's start; they wait in host memory. batch: of them at a time on a rank.
    """

    videos: tuple[str, ...] = ()
    fraction: float = 0.0
    seed: int = 0
    every: int = 1000
    clips: int = 256
    batch: int = 16

    def __post_init__(self) -> None:
        check = partial(_check, self, "validation.")
        check("a share of the videos, 0 <= share < 1", lambda share: 0 <= share < 1, "fraction")
        check("0 .. 2**63 - 1", lambda seed: 0 <= seed < 2**63, "seed")
        check("a positive number", positive, "every", "clips", "batch")

    @property
    def is_wanted(self) -> bool:
        return bool(self.videos or self.fraction)


@dataclass(frozen=True)
class OptimConfig:
    """How it is learned.

    batch: clips per optimizer step, over all ranks and accumulation steps. accumulation: parts that a batch is computed in, one
    after the other; "auto" is as few as fit in memory, of a few clips each on a CPU. steps: optimizer steps; counted by epochs
    where null. epochs: passes over the corpus's spans, where steps is null. base_learning_rate: of 256 clips; the peak is this
    times batch / 256 (linear rule, Goyal et al. 2017). start_learning_rate: where the warmup begins, of 256 clips too.
    final_learning_rate: where the schedule ends, of 256 clips too. warmup: share of the steps over which the rate rises to its
    peak. schedule: what follows it. cooldown: share of the steps at the end over which a constant rate falls to
    final_learning_rate along a line. schedule_scale: schedules are laid out for so many times the steps, and cut off.
    weight_decay: of matrices, decoupled (AdamW). final_weight_decay: where the weight decay ends, along a cosine; constant where
    null. ema: the target encoder's momentum at the first and at the last step. betas: AdamW's. clip_gradient: largest gradient
    norm, unbounded where null.

    outlier_sigmas: a step whose loss or gradient norm is beyond the running mean by so many standard deviations is left out, on all
    ranks alike, as is one that is not finite; null leaves out the latter alone. skip_budget: so many of the last 1,000 steps may be
    left out; one more ends the run. optimizer: "adamw" is PyTorch's fused one, "apex" NVIDIA apex's FusedAdam,
    "muon" Muon for the blocks' matrices and AdamW for the rest.
    """

    batch: int = 256
    accumulation: int | Literal["auto"] = 1
    steps: int | None = None
    epochs: float | None = None
    base_learning_rate: float = 1.5e-4
    final_learning_rate: float = 0.0
    start_learning_rate: float = 0.0
    schedule: ScheduleShape = "cosine"
    schedule_scale: float = 1.0
    cooldown: float = 0.0
    warmup: float = 0.05
    weight_decay: float = 0.05
    final_weight_decay: float | None = None
    ema: tuple[float, float] = (0.998, 1.0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip_gradient: float | None = None
    outlier_sigmas: float | None = 10.0
    skip_budget: int = 20
    optimizer: Literal["adamw", "apex", "muon"] = "adamw"

    def __post_init__(self) -> None:
        check = partial(_check, self, "optim.")
        check("a positive number of clips", positive, "batch")
        accepted = f"auto, or a divisor of optim.batch ({self.batch})"
        check(accepted, lambda parts: parts == "auto" or (parts > 0 and self.batch % parts == 0), "accumulation")
        are_given = self.steps is not None or self.epochs is not None
        require(are_given, "optim.steps", self.steps, "steps, or epochs, or both (steps wins)")
        check("a positive number", positive, "steps", "epochs")
        check("a positive rate", positive, "base_learning_rate")
        check("a rate, 0 or more", lambda rate: rate >= 0, "final_learning_rate", "start_learning_rate")
        check("a factor, 1 or more", lambda scale: scale >= 1, "schedule_scale")
        share = "a share of the steps, 0 <= share < 1"
        check(share, lambda share: 0 <= share < 1, "cooldown")
        accepted = "0, or optim.schedule=constant"
        check(accepted, lambda share: not share or self.schedule == "constant", "cooldown")
        check(share, lambda share: 0 <= share < 1, "warmup")
        check("0 or more", lambda decay: decay >= 0, "weight_decay")
        check("0 or more, or null", lambda decay: decay >= 0, "final_weight_decay")
        check("[first, last], each 0 .. 1", lambda ends: all(0 <= end <= 1 for end in ends), "ema")
        check("a positive number or null", positive, "outlier_sigmas")
        check("a number of steps, 0 or more", lambda steps: steps >= 0, "skip_budget")
        check("two numbers, 0 <= beta < 1", lambda betas: all(0 <= beta < 1 for beta in betas), "betas")
        check("a positive norm or null", positive, "clip_gradient")

    @property
    def parts(self) -> int:
        """accumulation as a number. Raises ConfigError where that is still open: a run settles it when it starts (`fit_batch`)."""
        if self.accumulation == "auto":
            raise ConfigError(
                "optim.accumulation: 'auto' depends on a rank's memory, which is not known here; give a number, for example what "
                "`trocar pretrain` says when it starts"
            )
        return self.accumulation

    @property
    def clips_at_once(self) -> int:
        """Of one part, over all ranks."""
        return self.batch // self.parts


@dataclass(frozen=True)
class Config:
    run: RunConfig
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def to_yaml(self) -> str:
        return yaml.safe_dump(plain(self), sort_keys=False)


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries and tuples as lists: what YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return [plain(item) for item in value] if isinstance(value, tuple) else value
