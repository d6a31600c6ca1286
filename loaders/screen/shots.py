"""Where one shot ends and the next begins, to the frame.

Packets and samples name candidates; around these alone frames are decoded. A cut is where nearly all that has texture shows
something else from one frame to the next, and where no picture before is like any of those behind: light that flashes comes
back, an instrument changes a part. What changes slowly is a transition, reported as such: it has no frame of its own.

Shapes: F frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..video.decode import DecodeCount, WindowDecoder
from ..video.video import GopTable, VideoError, VideoFacts
from ..video.window import WindowReader
from .pictures import Picture, Pictures, Sample, changed_share, colour_distance, colours, is_blank, lasting_change
from .transitions import COLOUR_CHANGE, HALF_SECONDS, SCANNED, transitions_in

CUT_SHARE = 0.5  # of the blocks
BEFORE, BEHIND = (1, 3, 6, 10), (0, 2, 5, 10)  # frames from a cut to what has to differ
SEARCH = 5  # frames around a candidate: coded pictures are reordered
SETTLING_FRAMES, REFINED, WATCHED = 12, 4, 50
STILL_STEP, STILL_MEDIAN = 0.6, 0.05  # luma from frame to frame of what does not move: at first, and then
NEAR = 8  # frames apart that are decoded in one go
EDGE_SHARE = 0.05  # of what may be decoded, for one end of a shot
LONGEST_SCAN = 600  # frames between two keyframes that are looked at one by one

Thumbnail = NDArray[np.float32]


class Frames:
    """Decoded pictures of one video, as few as possible. budget: how many may be decoded besides samples.

    blank: what is known of frames, by number. count: what decoding cost. note: the first thing that failed.
    """

    def __init__(self, video: VideoFacts, gops: GopTable, budget: int) -> None:
        self.video, self.gops, self.budget = video, gops, budget
        self.count, self.blank, self.samples = DecodeCount(), dict[int, bool](), dict[int, Sample]()
        self.note = ""
        self._reader, self._decoder = WindowReader(video), WindowDecoder(video)
        self._pictures = Pictures(video.rotation, video.mirrored)
        self._thumbnails: dict[int, Thumbnail] = {}
        self.starts = gops.first_frame[gops.clean & (gops.frames > 0)].astype(np.int64)

    def close(self) -> None:
        self._reader.close()
        self._decoder.close()

    def sample(self, frame: int) -> Sample | None:
        """None where it cannot be decoded."""
        if frame not in self.samples:
            self._decode(np.array([frame]), wants_sample=True)
        return self.samples.get(frame)

    def cost(self, first: int, last: int) -> int:
        """Pictures that have to be decoded for those from `first` to `last`."""
        start = int(np.searchsorted(self.starts, first, side="right")) - 1
        return last + 1 - (int(self.starts[start]) if start >= 0 else 0)

    def thumbnails(self, *numbers: int) -> dict[int, Thumbnail]:
        """Of those frames that there are and that decode."""
        frames = np.unique([number for number in numbers if 0 <= number < self.video.frames]).astype(np.int64)
        missing = np.array([frame for frame in frames.tolist() if frame not in self._thumbnails], np.int64)
        if missing.size:
            before = self.count.packets
            self._decode(missing, wants_sample=False)
            self.budget -= self.count.packets - before
        return {frame: self._thumbnails[frame] for frame in frames.tolist() if frame in self._thumbnails}

    def passing_samples(self, numbers: NDArray[np.int64]) -> list[Sample]:
        """Samples that are looked at once and count for nothing else."""
        kept, before = set(self.samples), self.count.packets
        self._decode(numbers, wants_sample=True)
        self.budget -= self.count.packets - before
        found = [self.samples[number] for number in numbers.tolist() if number in self.samples]
        for sample in found:
            if sample.frame not in kept:
                del self.samples[sample.frame]
        return found

    def every_picture(self, width: int, height: int) -> Iterator[Picture]:
        """(height, width, 3) uint8 of every frame, in order; where one cannot be decoded the one before, or black."""
        shown: Picture = np.zeros((height, width, 3), np.uint8)
        bounds = [0, *self.starts[self.starts > 0].tolist(), self.video.frames]
        for first, stop in pairwise(bounds):
            after = first
            try:
                for index, frame in self._decoder.frames(
                    self._reader.window(np.arange(first, stop), self.gops), self.count
                ):
                    while after < first + index:
                        yield shown
                        after += 1
                    shown = self._pictures.small(frame, width, height)
                    yield shown
                    after += 1
            except VideoError as error:
                self.note = self.note or str(error)
            for _ in range(after, stop):
                yield shown

    def ends_of(self, begin: int, stop: int) -> list[Sample]:
        """Looked at once, near both ends of a shot: its first and its last keyframe, and the frames a few from its ends where that
        costs little."""
        inside = self.starts[(self.starts >= begin) & (self.starts < stop)]
        numbers = {int(number) for number in (*inside[:1], *inside[-1:])}
        for number in (begin + NEAR, stop - NEAR):
            if begin <= number < stop and self.cost(number, number) <= self.budget * EDGE_SHARE:
                numbers.add(number)
        return self.passing_samples(np.array(sorted(numbers), np.int64)) if numbers else []

    def forget(self) -> None:
        """Thumbnails; what is known of blank frames stays."""
        self._thumbnails.clear()

    def _decode(self, frames: NDArray[np.int64], *, wants_sample: bool) -> None:
        # Frames that need the same keyframe are decoded in one go.
        starts = np.searchsorted(self.starts, frames, side="right")
        apart = (np.diff(starts) > 0) & (self.starts[np.maximum(starts[1:] - 1, 0)] > frames[:-1] + NEAR)
        for part in np.split(frames, np.flatnonzero(apart) + 1):
            try:
                window = self._reader.window(part, self.gops)
                for index, frame in self._decoder.frames(window, self.count):
                    number = int(part[index])
                    if wants_sample:
                        sample = self.samples[number] = self._pictures.sample(number, frame)
                        thumbnail = sample.thumbnail
                    else:
                        thumbnail = self._thumbnails[number] = self._pictures.thumbnail(frame)
                    self.blank[number] = is_blank(thumbnail)
            except VideoError as error:
                self.note = self.note or str(error)


@dataclass(frozen=True)
class Shots:
    """cuts: (C,) first frames of shots but the first, ascending. transitions: (T, 2) first frames of fades and wipes and those
    behind their last. unchecked: how many candidates nothing was decoded for, as the budget was spent."""

    cuts: NDArray[np.int64]
    transitions: NDArray[np.int64]
    unchecked: int


def find_shots(frames: Frames, candidates: NDArray[np.int64], strength: NDArray[np.float64]) -> Shots:
    """The shots of a video of which samples are taken. candidates, strength: as of `cut_candidates`."""
    cuts: set[int] = set()
    unchecked = 0
    keyframe = np.searchsorted(frames.starts, candidates - SEARCH - BEFORE[-1], side="right")
    groups = [np.flatnonzero(keyframe == start) for start in np.unique(keyframe).tolist()]
    for group in sorted(groups, key=lambda group: -strength[group].max()):
        near = [
            (candidate - SEARCH - BEFORE[-1], candidate + SEARCH + BEHIND[-1])
            for candidate in candidates[group].tolist()
        ]
        if frames.cost(max(near[0][0], 0), near[-1][1]) > frames.budget:
            unchecked += len(group)
            continue
        thumbnails = frames.thumbnails(*(number for first, last in near for number in range(first, last + 1)))
        for candidate in candidates[group].tolist():
            cuts.update(_cuts_near(thumbnails, candidate))
        frames.forget()
    transitions: list[list[int]] = []
    for first, last in _unlike_neighbours(frames, cuts):
        if any(first < stop and begin < last for begin, stop in transitions):
            continue  # seen already, from a sample that lies in it
        found = _between(frames, first, last, cuts)
        cuts.update(found.cuts.tolist())
        transitions += found.transitions.tolist()
        unchecked += found.unchecked
        frames.forget()
    return Shots(np.array(sorted(cuts), np.int64), np.array(sorted(transitions), np.int64).reshape(-1, 2), unchecked)


def _cuts_near(thumbnails: dict[int, Thumbnail], candidate: int) -> list[int]:
    """The cut at most a few frames from a candidate, if there is one."""
    near = range(candidate - SEARCH, candidate + SEARCH + 1)
    shares = {
        frame: changed_share(thumbnails[frame - 1], thumbnails[frame])
        for frame in near
        if frame in thumbnails and frame - 1 in thumbnails
    }
    best = max(shares, key=lambda frame: shares[frame], default=None)
    return [best] if best is not None and shares[best] > CUT_SHARE and _is_cut(thumbnails, best) else []


def _is_cut(thumbnails: dict[int, Thumbnail], frame: int) -> bool:
    """Whether no picture before is like one behind."""
    before = [thumbnails[frame - step] for step in BEFORE if frame - step in thumbnails]
    behind = [thumbnails[frame + step] for step in BEHIND if frame + step in thumbnails]
    return all(lasting_change(one, other) > CUT_SHARE for one in before for other in behind)


def _unlike_neighbours(frames: Frames, cuts: Iterable[int]) -> list[tuple[int, int]]:
    """Known frames of one shot with other colours, next to each other or with one between, which may lie in a transition; or of
    which one is blank. Samples tell, and what lies at the ends of shots, where that costs little."""
    bounds = [0, *sorted(cuts), frames.video.frames]
    found: list[tuple[int, int]] = []
    blank = dict(frames.blank)
    for begin, stop in pairwise(bounds):
        of_shot = [number for number in sorted(blank) if begin <= number < stop]
        found += [(a, b) for a, b in pairwise(of_shot) if blank[a] != blank[b] and b > a + 1]
        looked = {number: sample for number, sample in frames.samples.items() if begin <= number < stop}
        looked |= {sample.frame: sample for sample in frames.ends_of(begin, stop)}
        numbers = sorted(looked)
        for reach in (1, 2):
            for a, b in zip(numbers, numbers[reach:], strict=False):
                if b == a + 1 or any(first < b and a < last for first, last in found):
                    continue
                if colour_distance(looked[a].pixels, looked[b].pixels) > COLOUR_CHANGE:
                    found.append((a, b))
    return sorted(found)


def _between(frames: Frames, first: int, last: int, known: Iterable[int]) -> Shots:
    """What lies between two unlike frames: keyframes between them are halved, then every frame is looked at; where there is no cut,
    what goes over around them. known: cuts."""
    nothing = np.zeros(0, np.int64)
    begin = max([0, *(cut for cut in known if cut <= first)])
    end = min([frames.video.frames, *(cut for cut in known if cut > last)])
    while True:
        one, other = frames.sample(first), frames.sample(last)
        keys = frames.starts[(frames.starts > first) & (frames.starts < last)]
        middle = frames.sample(int(keys[len(keys) // 2])) if len(keys) else None
        if middle is None or one is None or other is None:
            break
        if frames.blank[first] != frames.blank[last]:
            is_in_first = frames.blank[middle.frame] != frames.blank[first]
        else:
            is_in_first = colour_distance(one.pixels, middle.pixels) > colour_distance(middle.pixels, other.pixels)
        first, last = (first, middle.frame) if is_in_first else (middle.frame, last)
    if last - first > LONGEST_SCAN or frames.cost(first, last) > frames.budget:
        return Shots(nothing, nothing.reshape(0, 2), 1)
    thumbnails = frames.thumbnails(*range(first - BEFORE[-1], last + BEHIND[-1] + 1))
    cuts = [
        frame
        for frame in range(first + 1, last + 1)
        if frame in thumbnails
        and frame - 1 in thumbnails
        and changed_share(thumbnails[frame - 1], thumbnails[frame]) > CUT_SHARE
        and _is_cut(thumbnails, frame)
    ]
    if cuts:
        return Shots(np.array(cuts, np.int64), nothing.reshape(0, 2), 0)
    fps = frames.video.fps_numerator / frames.video.fps_denominator
    reach = round((HALF_SECONDS[-1] + 1) * fps)
    numbers = np.arange(max(begin, first - reach), min(end, last + reach), SCANNED)
    if frames.cost(int(numbers[0]), int(numbers[-1])) > frames.budget:
        return Shots(nothing, nothing.reshape(0, 2), 1)
    pictures = frames.passing_samples(numbers)
    roots = np.array([colours(picture.pixels) for picture in pictures], np.float32).reshape(-1, 64)
    shown = np.array([picture.frame for picture in pictures], np.int64)
    return Shots(nothing, transitions_in(roots, shown, fps), 0)


def settled(frames: Frames, runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those runs of still packets (R, 2) in which hardly any frame differs from the one before, with the frames before them that
    show the same: an encoder refines a picture at first, behind a keyframe and now and then, and then it changes at once. Where the
    budget is spent, they stay as they are."""
    grown, kept = runs.copy(), np.ones(len(runs), bool)
    for row, (first, stop) in enumerate(runs.tolist()):
        earliest = max(first - SETTLING_FRAMES, 1)
        ends = [first, *frames.starts[(frames.starts > first) & (frames.starts < stop)].tolist(), stop]
        begin, end = max(pairwise(ends), key=lambda piece: piece[1] - piece[0])
        begin = min(begin + REFINED, end - 1)
        end = min(end, begin + WATCHED)
        if frames.cost(earliest - 1, first + 1) + frames.cost(begin, end - 1) > frames.budget:
            continue
        thumbnails = frames.thumbnails(*range(earliest - 1, first), *range(begin, end))
        frames.forget()
        steps = {
            frame: float(np.abs(thumbnail - thumbnails[frame - 1]).mean())
            for frame, thumbnail in thumbnails.items()
            if frame - 1 in thumbnails
        }
        watched = [steps[frame] for frame in range(begin + 1, end) if frame in steps]
        kept[row] = not watched or np.median(watched) < STILL_MEDIAN
        steps = {frame: step for frame, step in steps.items() if frame < first}
        moving = max(steps.values(), default=0.0)
        keyframes = set(frames.starts.tolist())
        for frame in range(first - 1, earliest - 1, -1):
            if steps.get(frame, np.inf) < min(STILL_STEP, moving / 3):
                grown[row, 0] = frame
            elif frame not in keyframes:  # which may show the same in another quality
                break
    return grown[kept]
