"""Every codec that FFmpeg's encoders here make, in every container that holds it: our pictures against plain decoding.

Plain decoding goes through a file from its beginning; pictures are compared by timestamp, and are equal to the last bit or wrong.
As a command, writes the table of docs/formats.md: python tests/formats.py
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from trocar.loaders.video.clean_start import picture_digest
from trocar.loaders.video.decode import DecodeCount, WindowDecoder
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import GopTable, VideoError, VideoFacts, open_video
from trocar.loaders.video.window import WindowReader

FRAMES, GOP = 26, 8
# fmt: off
CONTAINERS = ("mp4", "mov", "mkv", "webm", "avi", "wmv", "flv", "ts", "mpg", "mxf", "nut", "ogv", "3gp", "m4v", "dv")
# Encoders with the pixel formats that are tried.
ENCODERS: dict[str, tuple[str, ...]] = {
    "libx264": ("yuv420p", "yuvj420p", "yuv422p"), "libx264 without B-frames": ("yuv420p",), "libx264rgb": ("bgr24",),
    "libx265": ("yuv420p", "yuv422p"),
    "libsvtav1": ("yuv420p", "yuv420p10le"), "libvpx": ("yuv420p",), "libvpx-vp9": ("yuv420p", "yuv444p"),
    "mpeg1video": ("yuv420p",), "mpeg2video": ("yuv420p", "yuv422p"), "mpeg4": ("yuv420p",),
    "h261": ("yuv420p",), "h263": ("yuv420p",), "h263p": ("yuv420p",), "flv": ("yuv420p",),
    "msmpeg4v2": ("yuv420p",), "msmpeg4": ("yuv420p",), "wmv1": ("yuv420p",), "wmv2": ("yuv420p",),
    "rv10": ("yuv420p",), "rv20": ("yuv420p",), "svq1": ("yuv410p",), "cinepak": ("rgb24",), "snow": ("yuv420p",),
    "vc2": ("yuv420p", "yuv422p"), "mjpeg": ("yuvj420p", "yuvj422p", "yuvj444p"), "ljpeg": ("yuvj420p", "bgr24"),
    "jpegls": ("rgb24", "gray"), "jpeg2000": ("rgb24", "yuv420p"), "amv": ("yuvj420p",), "asv1": ("yuv420p",),
    "asv2": ("yuv420p",), "ffv1": ("yuv420p", "yuv444p", "bgr0"), "ffvhuff": ("yuv420p", "yuv422p", "bgra"),
    "huffyuv": ("yuv422p", "rgb24", "bgra"), "utvideo": ("gbrp", "yuv422p", "yuv420p"), "magicyuv": ("gbrp", "yuv420p"),
    "png": ("rgb24", "pal8", "gray"), "apng": ("rgb24",), "gif": ("bgr8", "pal8"), "bmp": ("bgr24", "pal8"),
    "tiff": ("rgb24", "pal8"), "targa": ("bgr24", "pal8"), "dpx": ("rgb24",), "sgi": ("rgb24",), "exr": ("gbrpf32le",),
    "qtrle": ("rgb24", "rgb555be"),
    "rpza": ("rgb555le",), "smc": ("pal8",), "msrle": ("pal8",), "msvideo1": ("rgb555le",),
    "zmbv": ("pal8", "rgb565le", "bgr0"),
    "zlib": ("bgr24",), "flashsv": ("bgr24",), "flashsv2": ("bgr24",), "prores_ks": ("yuv422p10le", "yuv444p10le"),
    "dnxhd": ("yuv422p",), "cfhd": ("yuv422p10le", "gbrp12le"), "dvvideo": ("yuv420p", "yuv411p"),
    "speedhq": ("yuv420p", "yuv422p"),
    "dxv": ("rgba",), "cljr": ("yuv411p",), "v210": ("yuv422p10le",), "v308": ("yuv444p",), "v408": ("yuva444p",),
    "v410": ("yuv444p10le",),
    "r210": ("gbrp10le",), "r10k": ("gbrp10le",), "avrp": ("gbrp10le",), "y41p": ("yuv411p",), "yuv4": ("yuv420p",),
    "rawvideo": ("yuv420p", "uyvy422", "yuyv422", "gray", "rgb24", "bgr24", "rgb555le", "pal8", "nv12", "yuv444p", "rgba"),
}
# fmt: on
SIZES = {"dvvideo": (720, 576), "h261": (176, 144), "h263": (176, 144), "dnxhd": (256, 128)}
OPTIONS = {
    "libx264": {"preset": "veryfast", "x264-params": f"keyint={GOP}:min-keyint={GOP}:open-gop=1:bframes=2"},
    "libx264 without B-frames": {"preset": "veryfast", "x264-params": f"keyint={GOP}:min-keyint={GOP}:bframes=0"},
    "libx265": {
        "preset": "ultrafast",
        "x265-params": f"keyint={GOP}:min-keyint={GOP}:log-level=none:pools=none:frame-threads=1",
    },
    "libsvtav1": {"preset": "12", "svtav1-params": f"lp=1:keyint={GOP}"},
    "dnxhd": {"profile": "dnxhr_hq"},
    "mpeg1video": {"bf": "2"},
    "mpeg2video": {"bf": "2"},
    "mpeg4": {"bf": "2"},
    **{name: {"strict": "-2"} for name in ("vc2", "ffv1", "snow", "apng", "cfhd", "avrp")},
}
# Why a file is refused, as the table has it, by what the reason says.
REASONS = {
    "a": ("another order than their timestamps", "it keeps no display times for B-frames"),
    "b": ("of its 26 packets is a keyframe", "its encoder flags no packet as a keyframe"),
    "c": ("no picture of it decodes", "no picture decodes"),
    "d": ("plain decoding from the beginning", "our picture differs from plain decoding's"),
    "e": ("has no timestamp", "packets without timestamps"),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a file: "exact", "refused" (a reason's letter in `why`) or "wrong"."""

    kind: str
    why: str = ""
    message: str = ""


def picture(number: int, width: int, height: int, pix_fmt: str) -> av.VideoFrame:
    """A numbered picture over a moving texture, so that nothing stands still."""
    rgb = clips.number_picture(5, number, width, height).astype(np.int16)
    texture = np.random.default_rng(1).integers(-12, 13, (height, width, 1))
    rgb = np.clip(rgb + np.roll(texture, 3 * number, axis=1), 0, 255).astype(np.uint8)
    if pix_fmt != "pal8":
        return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=pix_fmt)
    # Colours that no decoder would guess.
    palette = np.stack([np.full(256, 255), *(np.arange(256)[::-1] for _ in range(3))], axis=1).astype(np.uint8)
    return av.VideoFrame.from_ndarray((255 - rgb[:, :, 0], palette), "pal8")  # pyright: ignore[reportArgumentType]: PyAV takes both


def write(path: Path, encoder: str, pix_fmt: str, step: int = 1) -> bool:
    """FRAMES pictures, numbered 0, step, 2 step ...; False where FFmpeg cannot make the file."""
    width, height = SIZES.get(encoder, (96, 64))
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                encoder.split()[0], rate=25, options={"threads": "1", **OPTIONS.get(encoder, {})}
            )
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.codec_context.thread_count, stream.codec_context.gop_size = 1, GOP
            for index in range(FRAMES):
                frame = picture(index * step, width, height, pix_fmt)
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            # Transport and program streams take anything, and know few codecs when they are read.
            assert context is not None
            assert context.is_decoder
            assert context.width
    except (FFmpegError, ValueError, OverflowError, IndexError, AssertionError):
        path.unlink(missing_ok=True)
        return False
    return True


def plain_digests(facts: VideoFacts) -> dict[int, int]:
    """pts -> picture, as decoding from the beginning shows it."""
    with open_video(facts.path) as container:
        stream = next(stream for stream in container.streams.video if stream.index == facts.stream_index)
        digests: dict[int, int] = {}
        for frame in container.decode(stream):
            assert frame.pts is not None
            digests.setdefault(frame.pts, picture_digest(frame))
        return digests


class OneReader:
    """What a thread of a loader has of one video."""

    def __init__(self, facts: VideoFacts, gops: GopTable) -> None:
        self.gops, self.windows, self.decoder = gops, WindowReader(facts), WindowDecoder(facts)

    def __call__(self, frames: NDArray[np.int64], damaged: bool = False) -> list[tuple[int, int]]:
        """(pts, picture) of `frames`; damaged: with every payload overwritten."""
        window = self.windows.window(frames, self.gops)
        if damaged:
            window = replace(window, payloads=[memoryview(bytes(len(payload))) for payload in window.payloads])
        return [
            (int(window.pts[at]), picture_digest(frame)) for at, frame in self.decoder.frames(window, DecodeCount())
        ]

    def close(self) -> None:
        self.windows.close()
        self.decoder.close()


def in_random_order(facts: VideoFacts, gops: GopTable, seed: int) -> list[tuple[int, int]]:
    """Every frame alone, clips between them, and failures on the way."""
    rng = np.random.default_rng(seed)
    found: list[tuple[int, int]] = []
    with closing(OneReader(facts, gops)) as reader:
        for index, number in enumerate(rng.permutation(facts.frames)):
            found += reader(np.array([number]))
            if index % 9 == 4:
                with suppress(VideoError):
                    reader(np.array([number]), damaged=True)
            if index % 5 == 3:
                start = int(rng.integers(0, facts.frames - 7))
                found += reader(start + 2 * np.arange(4))
    return found


def compare(path: Path) -> Outcome:
    try:
        facts, gops = probe_video(path)
    except VideoError as error:
        message = str(error)
        return Outcome("refused", next(letter for letter, (words, _) in REASONS.items() if words in message), message)
    expected = plain_digests(facts)
    with ThreadPoolExecutor(3) as pool:
        found = list(itertools.chain(*pool.map(in_random_order, [facts] * 3, [gops] * 3, range(3))))
    wrong = [pts for pts, digest in found if expected.get(pts) != digest]
    if wrong or {pts for pts, _ in found} != set(expected):
        return Outcome(
            "wrong", message=f"{path.name}: wrong at {sorted(set(wrong))}, {facts.frames} of {len(expected)} frames"
        )
    return Outcome("exact")


def outcomes(encoder: str, folder: Path) -> dict[str, list[Outcome]]:
    """By container, what became of the files of one encoder, pixel format after pixel format."""
    found: dict[str, list[Outcome]] = defaultdict(list)
    for container, pix_fmt in itertools.product(CONTAINERS, ENCODERS[encoder]):
        path = folder / f"{encoder} {pix_fmt}.{container}"
        if write(path, encoder, pix_fmt):
            found[container].append(compare(path))
            path.unlink()
    return found


def cells(found: dict[str, list[Outcome]]) -> list[str]:
    """A row of the table: "exact", "refused" with the reason's letter, both where pixel formats differ, "" without a file."""
    row = []
    for container in CONTAINERS:
        counts = Counter(f"{outcome.kind} {outcome.why}".strip() for outcome in found.get(container, ()))
        row.append(", ".join(sorted(counts)))
    return row


def table() -> tuple[list[str], Counter[str]]:
    """The table's lines, and how many files became what."""
    lines = [f"| encoder | pixel formats | {' | '.join(CONTAINERS)} |", f"|{'---|' * (len(CONTAINERS) + 2)}"]
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for encoder, pix_fmts in ENCODERS.items():
            found = outcomes(encoder, Path(folder))
            for outcome in itertools.chain(*found.values()):
                total[outcome.kind] += 1
                assert outcome.kind != "wrong", outcome.message
            lines.append(f"| {encoder} | {', '.join(pix_fmts)} | {' | '.join(cells(found))} |")
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(total.items()))
    lines += [
        "",
        f"{total.total()} files: {counted}. Refused: "
        + "; ".join(f"{letter} {why}" for letter, (_, why) in REASONS.items())
        + ".",
    ]
    return lines, total


if __name__ == "__main__":
    print("\n".join(table()[0]))
