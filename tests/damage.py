"""Damages videos, loads clips from them and reports what came of it; a process of its own, since damage may crash a decoder.

Prints one JSON object, kind of damage -> {what became of it: how often}. Of the clips of one damaged video:

- refused: reported as a failure, and a replacement taken;
- same: delivered, every picture as from the whole file;
- silent: delivered from damaged bytes, some picture differs;
- astray: a picture that differs though its bytes are whole, or shows a frame that comes later, or another video, or a
  replacement that is not the next one. None may be.

Of a file that was damaged before it was indexed: "out of order" are clips whose whole pictures fall in number; "by its times"
where a timestamp itself was hit, so that the file asks for that order.

Usage: python tests/damage.py packets|files FOLDER COUNT CHECKSUMS(0|1) SEED
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import clips
import numpy as np
from numpy.typing import NDArray

from trocar.loaders.corpus.corpus import Corpus, CorpusError, Video
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.decode.batch import ClipBatch, LoaderCount
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video.video import GopTable, VideoError
from trocar.loaders.video.window import WindowReader

FRAMES, STRIDE, LENGTH, DRAWS = 6, 3, 72, 16
# Any two differ in at least 4 bits, as do the frames' numbers, so that no damaged block makes one of the other.
VIDEO_IDS = [0xA5, 0x0F, 0x33, 0x3C, 0x55, 0x5A, 0x66, 0x69, 0x96, 0x99]
FRAME_NUMBERS = [frame << 9 | frame << 2 | 3 * (frame.bit_count() % 2) for frame in range(LENGTH)]
# Grey levels, on average, between a picture that counts as whole and the undamaged one.
LARGEST_DIFFERENCE = 3.0
VIDEOS: list[tuple[str, dict[str, Any]]] = [
    ("00.mp4", {"gop": 12, "b_frames": 2}),
    ("01.mp4", {"gop": 30, "b_frames": 3, "open_gop": True}),
    ("02.mkv", {"gop": 12, "codec": "libx265", "b_frames": 3}),
    ("03.mp4", {"gop": 12, "codec": "libx265", "b_frames": 3, "open_gop": True}),
    ("04.webm", {"gop": 12, "codec": "libvpx"}),
    ("05.webm", {"gop": 30, "codec": "libvpx-vp9"}),
    ("06.avi", {"gop": 12, "codec": "mpeg4"}),
    ("07.avi", {"gop": 1, "codec": "mjpeg"}),
    ("08.ts", {"gop": 12, "b_frames": 2}),
    ("09.mpg", {"gop": 12, "codec": "mpeg2video", "b_frames": 2}),
]
CROPS = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)


@dataclass
class Damaged:
    """A corpus one of whose rows is another than its index says."""

    corpus: Corpus
    row: int
    gops_of_row: GopTable

    def __len__(self) -> int:
        return len(self.corpus)

    def video(self, row: int) -> Video:
        return self.corpus.video(row)

    def video_path(self, row: int) -> str:
        return self.corpus.video_path(row)

    def gops(self, row: int) -> GopTable:
        return self.gops_of_row if row == self.row else self.corpus.gops(row)


def load(corpus: Any, sampler: Sampler, draws: list[int]) -> tuple[list[ClipBatch], LoaderCount]:
    numbers = [np.array(draws)]
    with ClipLoader(corpus, sampler, CROPS, numbers, resolution=64, content_box=False, threads=2, failure_budget=1.0,
                    failure_floor=10**6) as loader:  # fmt: skip
        return list(loader), loader.total


def flip(data: bytearray, place: int, rng: np.random.Generator) -> None:
    data[place] ^= 1 << int(rng.integers(8))


def payload_place(corpus: Corpus, row: int, rng: np.random.Generator) -> int:
    """A byte inside a GOP."""
    gops = corpus.gops(row)
    gop = int(rng.integers(len(gops)))
    return int(gops.byte_offset[gop] + rng.integers(gops.num_bytes[gop]))


class Patient:
    """One video of the corpus, its whole bytes, and the ways to harm it."""

    def __init__(self, corpus: Corpus, row: int, rng: np.random.Generator) -> None:
        self.corpus, self.row, self.rng = corpus, row, rng
        self.facts = corpus.video(row).facts
        self.path = Path(self.facts.path)
        self.whole = self.path.read_bytes()
        self.source: Any = corpus

    def write(self, data: bytes | bytearray, hide: bool) -> None:
        self.path.write_bytes(data)
        if hide:
            os.utime(self.path, ns=(0, self.facts.mtime_ns))

    def restore(self) -> None:
        if self.path.is_dir():
            self.path.rmdir()
        self.write(self.whole, hide=True)

    def one_bit(self) -> None:
        data = bytearray(self.whole)
        flip(data, payload_place(self.corpus, self.row, self.rng), self.rng)
        self.write(data, hide=True)

    def some_bytes(self) -> None:
        data = bytearray(self.whole)
        for _ in range(int(self.rng.integers(2, 40))):
            flip(data, payload_place(self.corpus, self.row, self.rng), self.rng)
        self.write(data, hide=True)

    def noise(self) -> None:
        data = bytearray(self.whole)
        place = payload_place(self.corpus, self.row, self.rng)
        noise = self.rng.bytes(int(self.rng.integers(1, 1500)))
        data[place : place + len(noise)] = noise[: len(data) - place]
        self.write(data, hide=True)

    def lost_end(self) -> None:
        """As a copy that broke off in a file system that had reserved the space."""
        stop = int(self.rng.integers(1, len(self.whole)))
        self.write(self.whole[:stop].ljust(len(self.whole), b"\0"), hide=True)

    def truncated(self) -> None:
        self.write(self.whole[: int(self.rng.integers(len(self.whole)))], hide=True)

    def swapped(self) -> None:
        other = self.corpus.video((self.row + 1) % len(self.corpus)).facts.path
        self.write(Path(other).read_bytes(), hide=False)

    def swapped_unseen(self) -> None:
        """Another video of the same size and time."""
        other = Path(self.corpus.video((self.row + 1) % len(self.corpus)).facts.path).read_bytes()
        self.write(other[: len(self.whole)].ljust(len(self.whole), b"\0"), hide=True)

    def gone(self) -> None:
        self.path.unlink()

    def a_folder(self) -> None:
        self.path.unlink()
        self.path.mkdir()

    def wrong_index(self) -> None:
        gops = self.corpus.gops(self.row)
        packets = gops.packets[0 : int(gops.num_packets.sum())]
        places = np.where(packets.offset >= 0, packets.offset + self.rng.integers(1, 2000), -1)
        packets = replace(packets, offset=places, size=np.roll(packets.size, 1))
        self.source = Damaged(self.corpus, self.row, replace(gops, packets=packets))

    KINDS: tuple[str, ...] = (
        "one_bit", "some_bytes", "noise", "lost_end", "truncated", "swapped", "swapped_unseen", "gone", "a_folder", "wrong_index",
    )  # fmt: skip


def build(folder: Path, checksum: bool) -> Corpus:
    (folder / "videos").mkdir(parents=True)
    for row, (name, encoding) in enumerate(VIDEOS):
        pictures = (clips.number_picture(VIDEO_IDS[row], number) for number in FRAME_NUMBERS)
        clips.write_pictures(folder / "videos" / name, pictures, **encoding)
    index_corpus([folder / "videos"], folder / "index", workers=1, content_box=False, checksum=checksum, progress=False)
    corpus = Corpus.open(folder / "index")
    assert len(corpus) == len(VIDEOS)
    return corpus


def whole_pictures(corpus: Corpus) -> list[NDArray[np.uint8]]:
    """(videos) of (frames, 64, 64, 3): every frame of every video, undamaged."""
    return [load_all(corpus, row) for row in range(len(corpus))]


def load_all(corpus: Corpus, row: int) -> NDArray[np.uint8]:
    class Everything(Sampler):
        def clips(self, draws: Any, *, view: int = 0, spare: int = 0) -> list[Any]:
            clip = super().clips(draws, view=view, spare=spare)[0]
            return [replace(clip, video=row, frames=np.arange(self.num_frames), repeated=0)]

    frames = int(corpus.frames[row])
    (batch,), _ = load(corpus, Everything(corpus.frames, num_frames=frames, stride=1), [0])
    return batch.frames[0].numpy()


def is_touched(patient: Patient, frames: NDArray[np.int64]) -> bool:
    """Whether the bytes that these frames need are others than they were."""
    if patient.source is not patient.corpus:
        return True
    gops = patient.corpus.gops(patient.row)
    packets = gops.packets[0 : int(gops.num_packets.sum())]
    if (packets.offset < 0).any():
        return True
    reader = WindowReader(patient.facts)
    try:
        payloads = reader.window(frames, replace(gops, crc32=None)).payloads
    finally:
        reader.close()
    whole = {
        patient.whole[at : at + size] for at, size in zip(packets.offset.tolist(), packets.size.tolist(), strict=True)
    }
    return not {bytes(payload) for payload in payloads} <= whole


def whole_number(picture: NDArray[np.uint8], reference: list[NDArray[np.uint8]]) -> tuple[int, int] | None:
    """(row of the video, frame) that a picture shows, None where it is damaged."""
    try:
        video_id, number = clips.read_number(picture)
        video, frame = VIDEO_IDS.index(video_id), FRAME_NUMBERS.index(number)
    except ValueError:
        return None
    is_whole = np.abs(picture.astype(float) - reference[video][frame]).mean() < LARGEST_DIFFERENCE
    return (video, frame) if is_whole else None


def is_out_of_order(
    pictures: NDArray[np.uint8], numbers: NDArray[np.int64], video: int, reference: list[NDArray[np.uint8]]
) -> bool:
    """Whether a whole picture is another video's or a later frame: an earlier one is what decoders show for one they lack."""
    shown = [whole_number(picture, reference) for picture in pictures]
    return any(
        number is not None and (number[0] != video or number[1] > wanted)
        for number, wanted in zip(shown, numbers.tolist(), strict=True)
    )


def damage_packets(folder: Path, count: int, checksum: bool, seed: int) -> dict[str, Counter[str]]:
    """Harms indexed videos one at a time and loads the same draws each time."""
    corpus = build(folder, checksum)
    reference = whole_pictures(corpus)
    sampler = Sampler(corpus.frames, num_frames=FRAMES, stride=STRIDE, seed=seed)
    drawn: dict[int, list[int]] = defaultdict(list)
    for clip in sampler.clips(np.arange(40 * len(VIDEOS))):
        drawn[clip.video].append(clip.draw)
    found: dict[str, Counter[str]] = {kind: Counter() for kind in Patient.KINDS}
    for index in range(count):
        kind = Patient.KINDS[index % len(Patient.KINDS)]
        rng = np.random.default_rng([seed, index])
        patient = Patient(corpus, int(rng.integers(len(corpus))), rng)
        print(f"{index}: {kind} of {patient.path.name}", file=sys.stderr, flush=True)
        getattr(patient, kind)()
        draws = drawn[patient.row][:DRAWS] + drawn[(patient.row + 3) % len(corpus)][:2]
        (batch,), total = load(patient.source, sampler, draws)
        failures = defaultdict(list)
        for failure in total.failures:
            assert failure.path == str(patient.path)
            assert failure.path in failure.reason
            failures[failure.draw].append(failure.spare)
        assert batch.draws.tolist() == draws
        for row, draw in enumerate(draws):
            spare = len(failures[draw])
            (clip,) = sampler.clips([draw], spare=spare)
            if sampler.clips([draw])[0].video == patient.row and spare:
                found[kind]["refused"] += 1
            video, numbers, pictures = int(batch.videos[row]), batch.frame_numbers[row], batch.frames[row].numpy()
            if failures[draw] != list(range(spare)) or (clip.video, clip.frames.tolist()) != (video, numbers.tolist()):
                found[kind]["astray"] += 1
            elif np.array_equal(pictures, reference[video][numbers]):
                found[kind]["same"] += video == patient.row and not spare
            elif video != patient.row or not is_touched(patient, numbers):
                found[kind]["astray"] += 1
            else:
                found[kind]["silent"] += 1
                other = kind != "swapped_unseen" and is_out_of_order(pictures, numbers, video, reference)
                found[kind]["astray"] += other
        patient.restore()
    return found


def damage_files(folder: Path, count: int, checksum: bool, seed: int) -> dict[str, Counter[str]]:
    """Flips bytes anywhere in a file, indexes it and loads from it."""
    corpus = build(folder, checksum)
    reference = whole_pictures(corpus)
    found: dict[str, Counter[str]] = {name: Counter() for name, _ in VIDEOS}
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        row = index % len(VIDEOS)
        name = VIDEOS[row][0]
        print(f"{index}: bytes of {name}", file=sys.stderr, flush=True)
        data = bytearray(Path(corpus.video(row).facts.path).read_bytes())
        for _ in range(int(rng.integers(1, 60))):
            flip(data, int(rng.integers(len(data))), rng)
        case = folder / f"case {index}"
        case.mkdir()
        (case / name).write_bytes(data)
        try:
            index_corpus([case / name], case / "index", workers=1, checksum=checksum, progress=False)
        except CorpusError:
            found[name]["not indexed"] += 1
        else:
            flipped = Corpus.open(case / "index")
            sampler = Sampler(flipped.frames, num_frames=FRAMES, stride=STRIDE, seed=index)
            sampler.max_spares = 3
            try:
                batches, total = load(flipped, sampler, list(range(6)))
            except VideoError:
                found[name]["refused"] += 6
            else:
                found[name]["refused"] += len({failure.draw for failure in total.failures})
                found[name]["delivered"] += sum(len(batch.draws) for batch in batches)
                for batch in batches:
                    for pictures in batch.frames.numpy():
                        kind = (
                            "out of order" if times(flipped, 0) <= times(corpus, row) else "out of order by its times"
                        )
                        found[name][kind] += falls(pictures, reference)
        shutil.rmtree(case)
    return found


def times(corpus: Corpus, row: int) -> set[int]:
    gops = corpus.gops(row)
    return set(gops.packets[0 : int(gops.num_packets.sum())].pts.tolist())


def falls(pictures: NDArray[np.uint8], reference: list[NDArray[np.uint8]]) -> bool:
    """Whether whole pictures of a clip show falling frames."""
    shown = [number for picture in pictures if (number := whole_number(picture, reference))]
    return shown != sorted(shown)


def main() -> None:
    what, folder, count, checksum, seed = sys.argv[1:]
    sweeps: dict[str, Callable[[Path, int, bool, int], dict[str, Counter[str]]]]
    sweeps = {"packets": damage_packets, "files": damage_files}
    json.dump(sweeps[what](Path(folder), int(count), checksum == "1", int(seed)), sys.stdout)


if __name__ == "__main__":
    main()
