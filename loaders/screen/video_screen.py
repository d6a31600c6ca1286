"""One video to its spans and what is said of each.

Samples are keyframes, at most one in `seconds_between`; what cuts, blank and frozen pictures need besides is decoded around their
candidates alone, within a budget.

Shapes: N spans, S samples, H W = 144 x 192 cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..corpus.corpus import Corpus
from ..corpus.folder import FLAGS
from ..corpus.spans import SCREEN_VERSION, ScreenedVideo
from ..video.video import GopTable, VideoFacts
from .in_body import IN_BODY, in_body
from .overlays import dilated, insets, overlay_mask
from .packet_signals import PacketSizes, cut_candidates, still_runs
from .pictures import HEIGHT, WIDTH, Picture, Sample, blur, brightness_and_saturation
from .shots import Frames, Shots, find_shots, settled
from .shots_model import COLUMNS, ROWS, ShotsNetwork, network_shots

LONGEST_SPAN_SECONDS = 5.0
# Of what is decoded besides samples: a share of all frames, but at least so many pixels.
DECODED_SHARE, DECODED_PIXELS = 0.004, 1_200_000_000
NEAR_TEXT = 4  # pixels around text that are as sharp as it
SAID = ("in_body", "blur", "brightness", "saturation")
BLURRED = 0.6
STILL_DIFFERENCE = 4.0  # of luma, between two samples of a picture that stands still

Score = Callable[[Picture], float]


@dataclass(frozen=True)
class ScreenSettings:
    """seconds_between: samples; at most 2 pictures are decoded for 10 seconds where it is 5. thorough: every keyframe is a sample,
    and every candidate is looked at. model: file of a score of bodies, "" for ours; see `models.py`. head: of an encoder.
    shots_model: file of a network that finds shots, "" for packets and colours; see `shots_model.py`."""

    seconds_between: float = 5.0
    thorough: bool = False
    model: str = ""
    head: str = ""
    shots_model: str = ""


def made_of(corpus: Corpus, row: int, settings: ScreenSettings, model_digest: str) -> str:
    """32 hex digits of all that a video's screen follows from."""
    video = corpus.video(row)
    facts = video.facts
    told = (SCREEN_VERSION, facts.path, facts.size_bytes, facts.mtime_ns, facts.frames, video.gops_digest, facts.rotation,
            facts.mirrored, replace(settings, model="", head="", shots_model=""), model_digest)  # fmt: skip
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def screen_video(
    identity: str,
    video: VideoFacts,
    gops: GopTable,
    settings: ScreenSettings,
    score: Score = in_body,
    network: ShotsNetwork | None = None,
) -> ScreenedVideo:
    """What is to be said of a video; `made_of` is left empty. score: of samples (H, W, 3), 0 .. 1. network: finds shots.

    A picture that cannot be decoded is left out; where there is none at all, every span is blank and the note says why. Raises
    VideoError where the file is gone or has changed since it was indexed.
    """
    fps, pixels = video.fps_numerator / video.fps_denominator, video.width * video.height
    packets = PacketSizes.of(video, gops)
    budget = max(DECODED_SHARE * video.frames, DECODED_PIXELS / pixels)
    with closing(Frames(video, gops, video.frames * 64 if settings.thorough else int(budget))) as frames:
        for frame in sample_frames(frames.starts, video.frames, fps, settings):
            frames.sample(frame)
        if network is None:
            shots = find_shots(frames, *cut_candidates(packets))
        else:
            shots = Shots(*network_shots(frames.every_picture(COLUMNS, ROWS), network), 0)
        runs = settled(frames, still_runs(packets, pixels, fps))
        for first, stop in runs.tolist():
            frames.sample(_keyframe_in(frames.starts, first, stop))
        bounds = [0, *shots.cuts.tolist(), video.frames]
        for first, stop in pairwise(bounds):
            if not any(first <= frame < stop for frame in frames.samples):
                frames.sample(_keyframe_in(frames.starts, first, stop))
        samples = [frames.samples[frame] for frame in sorted(frames.samples)]
        note = frames.note
        if shots.unchecked:
            note = "; ".join(
                filter(None, [note, f"{shots.unchecked:,} places were not looked at (--thorough looks at all)"])
            )
        shown = [
            sample for sample in samples if not frames.blank[sample.frame] and not _is_repeat(sample, samples, runs)
        ]
        overlay = overlay_mask(shown)
        said = Said.of(samples, frames.blank, overlay, score, shots)
        spans = _spans(video, shots, _true_runs(runs, samples), frames.blank, said.changes())
        _describe(spans, said, overlay, fps, shots)
        return ScreenedVideo(identity, "", spans, overlay, frames.count.frames, note)


def sample_frames(starts: NDArray[np.int64], frames: int, fps: float, settings: ScreenSettings) -> list[int]:
    """The keyframes to look at: the first at or behind every multiple of the time between samples, all where it is thorough."""
    if settings.thorough:
        return starts.tolist()
    moments = np.arange(0, frames, max(1.0, settings.seconds_between * fps))
    places = np.searchsorted(starts, np.floor(moments))
    return np.unique(starts[places[places < len(starts)]]).tolist()


def _keyframe_in(starts: NDArray[np.int64], first: int, stop: int) -> int:
    """A frame between these that costs little: the keyframe next to the middle, or else the first frame but a few."""
    inside = starts[(starts >= first) & (starts < stop)]
    return int(inside[len(inside) // 2]) if len(inside) else min(first + 2, stop - 1)


def _true_runs(runs: NDArray[np.int64], samples: list[Sample]) -> NDArray[np.int64]:
    """The runs of still packets in which no two samples differ."""
    kept = []
    for first, stop in runs.tolist():
        inside = [sample.thumbnail for sample in samples if first <= sample.frame < stop]
        if all(np.abs(one - inside[0]).mean() < STILL_DIFFERENCE for one in inside[1:]):
            kept.append((first, stop))
    return np.array(kept, np.int64).reshape(-1, 2)


def _is_repeat(sample: Sample, samples: list[Sample], runs: NDArray[np.int64]) -> bool:
    """Whether an earlier sample shows the same still picture."""
    inside = runs[(runs[:, 0] <= sample.frame) & (sample.frame < runs[:, 1])]
    return any(inside[0, 0] <= other.frame < sample.frame for other in samples) if len(inside) else False


def _spans(
    video: VideoFacts, shots: Shots, still: NDArray[np.int64], blank: dict[int, bool], changes: list[int]
) -> dict[str, NDArray]:
    """Columns of the spans, without those that samples tell."""
    known = np.array(sorted(blank), np.int64)
    flags = np.array([blank[frame] for frame in known.tolist()], bool)
    bounds = {
        0,
        video.frames,
        *video.pauses,
        *shots.cuts.tolist(),
        *still.ravel().tolist(),
        *shots.transitions.ravel().tolist(),
        *changes,
    }
    bounds |= set(_changes(known, flags, shots.cuts))
    longest = max(1, round(LONGEST_SPAN_SECONDS * video.fps_numerator / video.fps_denominator))
    edges: list[int] = []
    ordered = sorted(bound for bound in bounds if 0 <= bound <= video.frames)
    for first, stop in pairwise(ordered):
        edges += np.linspace(first, stop, -(-(stop - first) // longest) + 1).astype(np.int64)[:-1].tolist()
    first = np.array(edges, np.int64)
    count = np.diff(first, append=video.frames)
    columns: dict[str, NDArray] = {
        "first_frame": first,
        "frames": count.astype(np.int32),
        "shot": np.searchsorted(shots.cuts, first, side="right").astype(np.int32),
        **{name: np.zeros(len(first), bool) for name in FLAGS},
    }
    columns["frozen"] = _inside(first, still)
    columns["transition"] = _inside(first, shots.transitions)
    if len(known):
        begin, end = np.searchsorted(known, first), np.searchsorted(known, first + count)
        for index, (low, high) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
            if low == high:  # nothing is known inside: as the nearest frame
                beside = [place for place in (low - 1, low) if 0 <= place < len(known)]
                middle = first[index] + count[index] // 2
                columns["blank"][index] = flags[min(beside, key=lambda place: abs(int(known[place]) - middle))]
            else:
                columns["blank"][index] = flags[low:high].mean() > 0.5
    else:
        columns["blank"][:] = True
    return columns


def _changes(known: NDArray[np.int64], flags: NDArray[np.bool_], cuts: NDArray[np.int64]) -> list[int]:
    """Where pictures go blank or come back: at the cut between two known frames that differ, else half-way."""
    found = []
    for index in np.flatnonzero(flags[1:] != flags[:-1]).tolist():
        first, last = int(known[index]), int(known[index + 1])
        between = cuts[(cuts > first) & (cuts <= last)]
        found.append(int(between[0]) if len(between) else (first + last + 1) // 2)
    return found


def _inside(first: NDArray[np.int64], runs: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.any((first[:, None] >= runs[:, 0]) & (first[:, None] < runs[:, 1]), axis=1)


@dataclass(frozen=True)
class Said:
    """What samples say. frames, shot: (S,) their numbers, and of which shot. blank, inset: (S,) bool. scores: (S, 4), `SAID`."""

    frames: NDArray[np.int64]
    shot: NDArray[np.int64]
    blank: NDArray[np.bool_]
    inset: NDArray[np.bool_]
    scores: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        samples: list[Sample],
        blank: dict[int, bool],
        overlay: NDArray[np.bool_],
        score: Score,
        shots: Shots,
    ) -> Said:
        near = dilated(overlay, NEAR_TEXT)
        scores = [(score(s.pixels), blur(s.pixels, near), *brightness_and_saturation(s.pixels)) for s in samples]
        frames = np.array([sample.frame for sample in samples], np.int64)
        return cls(
            frames,
            np.searchsorted(shots.cuts, frames, side="right"),
            np.array([blank[sample.frame] for sample in samples], bool),
            insets(samples, overlay),
            np.array(scores, np.float32).reshape(-1, len(SAID)),
        )

    def changes(self) -> list[int]:
        """Half-way between two samples of a shot, one after the other, of which one is sharp, in the body or holds a smaller
        picture, and the other is or does not."""
        body, blurred = self.scores[:, 0] > IN_BODY, self.scores[:, 1] > BLURRED
        sides = np.column_stack([body, blurred, self.inset])
        is_same_shot = (np.diff(self.shot) == 0) & ~self.blank[1:] & ~self.blank[:-1]
        at = np.flatnonzero(is_same_shot & (sides[1:] != sides[:-1]).any(axis=1))
        return ((self.frames[at] + self.frames[at + 1] + 1) // 2).tolist()


def _describe(spans: dict[str, NDArray], said: Said, overlay: NDArray[np.bool_], fps: float, shots: Shots) -> None:
    """Adds what the nearest sample says of each span: of the same shot, and blank as it is, where there is one."""
    first, frames, shot = spans["first_frame"], spans["frames"], spans["shot"]
    count, numbers = len(first), said.frames
    apart = np.full(count, np.inf)
    for cut in shots.cuts.tolist():
        apart = np.minimum(apart, np.where(first >= cut, first - cut, cut - first - frames))
    spans["cut_seconds"] = (apart / fps).astype(np.float32)
    spans["overlay_share"] = np.full(count, overlay.mean() if overlay.size else 0.0, np.float32)
    if not len(numbers):
        spans.update({name: np.zeros(count, np.float32) for name in SAID})
        return
    nearest, far = np.empty(count, np.int64), float(first[-1] + frames[-1])
    for index in range(count):
        distance = np.maximum(np.maximum(first[index] - numbers, numbers - first[index] - frames[index] + 1), 0)
        others = (said.shot != shot[index]) * 1 + (said.blank != spans["blank"][index]) * 2
        nearest[index] = np.argmin(distance + far * others)
    for place, name in enumerate(SAID):
        spans[name] = said.scores[nearest, place]
    spans["picture_in_picture"] = said.inset[nearest]
    assert overlay.shape == (HEIGHT, WIDTH)
