"""What proxies are made like, and how FFmpeg's encoders are told so.

Decoding speed is what a proxy is for, so every choice costs some bytes: no B-frames, one reference picture, and in H.264 no CABAC
and no deblocking (docs/performance.md, "Proxies", has the figures). The quantiser is the same for all frames, whatever moves and
however long they are shown: what encoders save by the frame rate and where much moves spares an eye, not a model. Psychovisual rate
distortion is off for the same reason, and chroma is quantised a little finer, since models see RGB. Sides are multiples of 16, so
that the coded picture is the one that is shown: decoders on GPUs are kept from window to window where nothing is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Codec = Literal["h264", "hevc", "vp9", "mjpeg"]
SIDE_MULTIPLE = 16  # a macroblock of H.264, a unit of subsampled JPEG


@dataclass(frozen=True)
class Encoder:
    """One of FFmpeg's encoders. Its quality is a number, lower is better: constant rate factor, of MJPEG the quantiser scale.

    Beyond `worst_quality` verification could no longer tell coding errors from wrong pictures. whole_quality: it takes integers
    only.
    """

    name: str
    default_quality: float
    best_quality: int
    worst_quality: int
    whole_quality: bool = False
    pix_fmt: str = "yuv420p"


ENCODERS: dict[str, Encoder] = {
    "h264": Encoder("libx264", 23, 1, 34),
    "hevc": Encoder("libx265", 23, 1, 34),
    "vp9": Encoder("libvpx-vp9", 24, 1, 52, whole_quality=True),
    "mjpeg": Encoder("mjpeg", 3, 2, 31, whole_quality=True, pix_fmt="yuvj420p"),
}


@dataclass(frozen=True)
class PackSettings:
    """How proxies are made. Raises ValueError on values out of range.

    short_side: pixels of a proxy's shorter side, even; smaller originals keep their size. side_multiple: both sides are rounded to
    the nearest multiple of it, and pixels that are no squares any more say so; None: to one of 16, where proxies that are there
    already may have any. stride: every how many frames of the
    original one is kept. gop: frames from keyframe to keyframe; MJPEG has keyframes only. quality: of the encoder, its default
    where None.
    """

    short_side: int = 256
    stride: int = 4
    gop: int = 8
    codec: Codec = "h264"
    quality: float | None = None
    side_multiple: int | None = None

    def __post_init__(self) -> None:
        if self.codec not in get_args(Codec):
            raise ValueError(f"codec={self.codec!r}: one of {', '.join(get_args(Codec))} is needed")
        if self.short_side % 2 or not 32 <= self.short_side <= 2160:
            raise ValueError(f"short_side={self.short_side}: an even number of pixels in 32 .. 2160 is needed")
        if not 1 <= self.stride <= 1000:
            raise ValueError(f"stride={self.stride}: 1 .. 1000 frames are needed")
        if self.side_multiple is not None and (self.side_multiple % 2 or not 2 <= self.side_multiple <= 64):
            raise ValueError(f"side_multiple={self.side_multiple}: an even number of pixels in 2 .. 64 is needed")
        if not 1 <= self.gop <= 250:
            raise ValueError(f"gop={self.gop}: 1 .. 250 frames are needed")
        encoder, quality = self.encoder, self.encoder_quality
        if not encoder.best_quality <= quality <= encoder.worst_quality or (
            encoder.whole_quality and quality != int(quality)
        ):
            numbers = "a whole number" if encoder.whole_quality else "a number"
            raise ValueError(
                f"quality={quality}: {self.codec} takes {numbers} in {encoder.best_quality} (best) .. {encoder.worst_quality}"
            )

    @property
    def encoder(self) -> Encoder:
        return ENCODERS[self.codec]

    @property
    def encoder_quality(self) -> float:
        return self.encoder.default_quality if self.quality is None else self.quality

    @property
    def keyframe_interval(self) -> int:
        """Frames from keyframe to keyframe, as encoded."""
        return 1 if self.codec == "mjpeg" else self.gop

    def proxy_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the proxy of an upright picture's content, multiples of `side_multiple`; its shorter side is never
        enlarged but by rounding."""
        scale, multiple = min(1.0, self.short_side / min(width, height)), self.side_multiple or SIDE_MULTIPLE
        width, height = (max(multiple, multiple * round(side * scale / multiple)) for side in (width, height))
        return width, height

    def encoder_options(self) -> dict[str, str]:
        """The options of FFmpeg's encoder that make closed GOPs of equal length, cheap to decode, on one thread."""
        quality, gop = f"{self.encoder_quality:g}", self.keyframe_interval
        closed = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:open-gop=0:ref=1"
        even = "qcomp=1:ipratio=1.2:aq-mode=1:aq-strength=0.5"
        if self.codec == "h264":
            cheap = "cabac=0:no-deblock=1:weightp=0:threads=1:sliced-threads=0"
            faithful = f"{even}:mbtree=0:rc-lookahead=0:psy=0:chroma-qp-offset=-2"
            return {"preset": "medium", "crf": quality, "x264-params": f"{closed}:{cheap}:{faithful}"}
        if self.codec == "hevc":
            cheap = "no-sao=1:no-deblock=1:no-weightp=1:pools=none:frame-threads=1:wpp=0"
            faithful = f"{even}:no-cutree=1:rc-lookahead={gop}:psy-rd=0:cbqpoffs=-2:crqpoffs=-2"
            quiet = "log-level=none:no-info=1"
            return {"preset": "veryfast", "crf": quality, "x265-params": f"{closed}:{cheap}:{faithful}:{quiet}"}
        if self.codec == "vp9":
            # No frames from the future: each packet shows one picture, in order.
            shown = {"lag-in-frames": "0", "auto-alt-ref": "0"}
            speed = {"deadline": "good", "cpu-used": "4", "threads": "1"}
            return {"crf": quality, "b": "0", "g": str(gop), "keyint_min": str(gop), **shown, **speed}
        return {"qmin": quality, "qmax": quality, "threads": "1"}
