"""From a corpus or a list of (video, start, label) to batches of clips, in one call.

    from trocar.loaders.clip_loader import clip_loader

    for batch in clip_loader([("a.mp4", 2.5, "cut")], batch=1, num_frames=16, stride=4):
        batch.frames, batch.labels

It puts together what can be had one by one: which clips (`sampler.py`, `clip_list.py`), in which order (`order.py`), cut how
(`augment.py`, `evaluation_crops.py`), decoded by what (`cpu.py`, `dali.py`), an epoch at a time (`epochs.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .choose import DaliOptions, Loader, choose_loader, gpu_loaders
from .corpus.corpus import Corpus
from .corpus.video_files import VideoFiles
from .decode.loader import LoaderOptions
from .decode.recipe import CropSource, check_side
from .draw.augment import CropRecipe
from .draw.clip_list import ClipList, check_proxies
from .draw.evaluation_crops import EvaluationCrops
from .draw.order import ClipOrder
from .draw.sampler import MAX_SPARES, Sampler
from .epochs import EpochLoader

if TYPE_CHECKING:
    from typing_extensions import Unpack


def clip_loader(
    clips: Corpus | Iterable[Sequence[Any]],
    *,
    batch: int,
    num_frames: int,
    stride: int | None = None,
    sample_fps: float | None = None,
    resolution: int = 224,
    training: bool = True,
    segments: int = 1,
    crops: CropSource | int | None = None,
    videos: Corpus | VideoFiles | None = None,
    track: int | None = None,
    seed: int = 0,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
    epochs: int | None = 1,
    first_number: int = 0,
    rank: int | None = None,
    ranks: int | None = None,
    loader: Loader = "auto",
    device: torch.device | str | None = None,
    workers: int | None = None,
    **options: Unpack[DaliOptions],
) -> EpochLoader:
    """Batches of clips, `ClipBatch`, for training or for evaluation.

    clips: a corpus, of which all spans are drawn, or rows (video, start, label) or (video, start, label, end) as `ClipList` takes
    them, from `videos`. batch: clips of a batch, on each rank. num_frames, and either stride or sample_fps: see `ClipList`.
    resolution: pixels of a clip's sides.

    training: each item once an epoch, shuffled, at a random place, with a random crop; what cannot be read is replaced; a last
    batch that is not full is left out. `crops` is a CropSource, CropRecipe() where None; `order` may have several views of a span.
    Else: each item in `segments` x `crops` views (1 x 1 by default), one after the other, always the same, all of them; the
    first that cannot be read ends it with a VideoError, unless options say otherwise (failure_budget, failure_floor).

    shuffle, drop_last: as `training` says where None. epochs: passes of one iteration; None: endless. first_number: where to
    resume, `EpochLoader.number` of the run before. rank, ranks: torch.distributed's where None, else 0 of 1. loader: "dali", "cpu",
    or "auto": the CPU's without a GPU or DALI; else what decodes these videos faster, measured here and now, which takes seconds.
    `EpochLoader.choice` says which and why. device: where batches are; None: the current GPU if there is one. workers: processes in
    which the CPU decodes, 0 for threads of this one; None: processes beside a GPU, where the videos are a corpus, else threads.
    track: of files that nobody indexed, see `VideoFiles`. options: see BaseClipLoader, and where it may be DALI's, its ClipLoader.

    Raises ValueError and TypeError on what cannot be, ImportError where DALI is asked for and missing.
    """
    check_side(resolution)
    device = _device(device)
    others, _ = gpu_loaders(loader, device)
    order = options.pop("order", None)
    known = (DaliOptions if "dali" in others else LoaderOptions).__optional_keys__
    for unknown in options.keys() - known:
        raise TypeError(
            f"clip_loader() got an unexpected keyword argument {unknown!r}; its options are {sorted(known)}"
        )
    timing: dict[str, Any] = {"num_frames": num_frames, "stride": stride, "sample_fps": sample_fps, "seed": seed}
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, or None, got {workers}")
    if training:
        if segments != 1 or isinstance(crops, int):
            raise ValueError(
                f"segments={segments} and crops={crops} are views for evaluation; set training=False, or crops to a CropRecipe"
            )
        shuffle = True if shuffle is None else shuffle
        chosen, order = crops or CropRecipe(), order or ClipOrder()
    else:
        if order is not None or shuffle or epochs != 1:
            raise ValueError("order, shuffle and epochs are for training; evaluation goes through the list once")
        chosen = EvaluationCrops(1 if crops is None else crops) if crops is None or isinstance(crops, int) else crops
        order = ClipOrder(views_per_span=chosen.crops if isinstance(chosen, EvaluationCrops) else 1)
        options = {"failure_budget": 0.0, "failure_floor": 0, **options}
    if isinstance(clips, Corpus) and training:
        if videos is not None or not shuffle:
            raise ValueError(
                "a corpus is drawn from in random order, and is the videos; videos and shuffle=False go with a list"
            )
        videos = clips
        check_proxies(clips, slice(None), stride=stride, sample_fps=sample_fps)
        source = Sampler.of(clips, **timing)
        draws = source.num_spans
    else:
        if isinstance(clips, Corpus):
            videos, clips = clips, [(row, None, None) for row in range(len(clips))]
        source = ClipList(
            clips,
            videos,
            segments=0 if training else segments,
            shuffle=bool(shuffle),
            max_spares=MAX_SPARES if training else 0,
            content_box=options.get("content_box", True),
            track=track,
            **timing,
        )
        videos, draws = source.videos, source.num_draws

    choice = choose_loader(
        loader, videos, source, chosen, resolution=resolution, device=device, options=options, workers=workers
    )
    rank, ranks = _place(rank, ranks)
    return EpochLoader(
        partial(choice.open, order=order),
        clips_per_epoch=draws * order.views_per_span,
        order=order,
        batch=batch,
        rank=rank,
        ranks=ranks,
        epochs=epochs,
        drop_last=training if drop_last is None else drop_last,
        is_repeated=not training,
        first_number=first_number,
        choice=choice,
    )


def _device(device: torch.device | str | None) -> torch.device:
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # The current device is a thread's own, and loaders have threads.
    return torch.device("cuda", torch.cuda.current_device()) if chosen == torch.device("cuda") else chosen


def _place(rank: int | None, ranks: int | None) -> tuple[int, int]:
    if (rank is None) != (ranks is None):
        raise ValueError(f"give both rank and ranks or neither, got rank={rank}, ranks={ranks}")
    if rank is not None and ranks is not None:
        return rank, ranks
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
