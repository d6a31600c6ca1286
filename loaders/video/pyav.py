"""What differs between the versions of PyAV we run on, 17.1, 18 and 19. Nothing else depends on one; a test finds strays."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
from av.video.codeccontext import VideoCodecContext

# Up to 18 a title that is not UTF-8 refuses the whole file unless `av.open` is told otherwise; from 19 on it never does, and the
# option is gone.
LENIENT_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# swscale's short cuts from YUV to RGB are off by up to two of 255, all in one direction: enough to tell loaders apart.
# FFmpeg's SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND; 17.1 has no names for the last two.
ACCURATE_BILINEAR: Any = 2 | 0x2000 | 0x40000

# What a decoder may have to be told beside its size; 17.1 knows no field order, and the check of decoding refuses what needs it.
TOLD = tuple(name for name in ("extradata", "bits_per_coded_sample", "field_order") if hasattr(VideoCodecContext, name))


def as_fraction(rational: Any) -> Fraction | None:
    """A stream's rate, time base or aspect as an exact fraction; None where the file says none.

    Up to 18 PyAV hands out a Fraction or None, from 19 on an AVRational: 0 for none, and a product of two is rounded to 32 bits.
    """
    return Fraction(rational.numerator, rational.denominator) if rational else None


def field_order(context: Any) -> Any:
    """FFmpeg's AVFieldOrder of a codec context; None, as if it were not known to lack fields, before 18."""
    return getattr(context, "field_order", None)
