"""Whether a packet begins with a picture that decoding may start at, by the codec's own headers.

Containers flag keyframes, and are wrong: without its index, an AVI has every packet for one, as has an MP4 without the table of
them. H.264 and HEVC are in `nal.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial


def _bits(payload: memoryview, start: int, count: int) -> int:
    """`count` bits from bit `start` on, most significant first; bits behind the end are 0."""
    head = bytes(payload[: (start + count + 7) // 8]).ljust((start + count + 7) // 8, b"\0")
    return int.from_bytes(head, "big") >> -(start + count) % 8 & ((1 << count) - 1)


def _flv1(payload: memoryview) -> bool:
    # Sorenson Spark: start code 17 bits, version 5, temporal reference 8, size 3 with 0, 16 or 32 more, type 2.
    extra = {0: 16, 1: 32}.get(_bits(payload, 30, 3), 0)
    return _bits(payload, 33 + extra, 2) == 0


def _h263(payload: memoryview) -> bool:
    # ITU-T H.263, 5.1: start code 22 bits, temporal reference 8, PTYPE; its format 7 stands for PLUSPTYPE.
    if _bits(payload, 35, 3) != 7:
        return _bits(payload, 38, 1) == 0
    return _bits(payload, 41 + (18 if _bits(payload, 38, 3) == 1 else 0), 3) == 0


def _behind_start_code(payload: memoryview, start_code: bytes, byte: int) -> int:
    """The byte at `byte` behind the first such start code, -1 without."""
    data = bytes(payload)
    at = data.find(start_code)
    return data[at + len(start_code) + byte] if 0 <= at < len(data) - len(start_code) - byte else -1


def _mpeg4(payload: memoryview) -> bool:
    # ISO/IEC 14496-2, 6.2.5: vop_coding_type 0 is intra.
    return _behind_start_code(payload, b"\0\0\1\xb6", 0) in range(64)


def _mpeg12(payload: memoryview) -> bool:
    # ISO/IEC 13818-2, 6.2: a sequence header, which sets the matrices, before an intra picture.
    data = bytes(payload)
    picture = data.find(b"\0\0\1\0")
    return 0 <= data.find(b"\0\0\1\xb3") < picture < len(data) - 5 and data[picture + 5] >> 3 & 7 == 1


def _vp9(payload: memoryview) -> bool:
    # VP9 bitstream specification, 6.2: marker 2 bits, profile 2 (and a reserved one in profile 3), show_existing_frame, frame_type.
    at = 5 if _bits(payload, 2, 2) == 3 else 4
    return _bits(payload, at, 2) == 0


def _obus(payload: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, what follows the header) of the OBUs of an AV1 packet (AV1 specification, 5.3)."""
    at = 0
    while at < len(payload):
        header, size = payload[at], len(payload) - at - 1
        at += 2 if header & 4 else 1
        if header & 2:
            size = shift = 0
            while at < len(payload):
                byte = payload[at]
                size |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if not byte & 128 or shift > 28:
                    break
        yield header >> 3 & 15, payload[at : at + size]
        at += size


def _av1(payload: memoryview, has_sequence: bool) -> bool:
    # AV1 specification, 7.6.1: a sequence header, then a key frame that is shown. The header begins with show_existing_frame,
    # 2 bits of frame_type and show_frame.
    for kind, body in _obus(payload):
        has_sequence |= kind == 1
        if kind in (3, 6):
            return has_sequence and _bits(body, 0, 4) == 1
    return False


_CHECKS: dict[str, Callable[[memoryview], bool]] = {
    "flv1": _flv1,
    "h263": _h263,
    "h263p": _h263,
    # These write their type less 1 first, version 1 behind a start code of 32 bits and a number of 5.
    "msmpeg4v1": lambda payload: _bits(payload, 37, 2) == 0,
    "msmpeg4v2": lambda payload: _bits(payload, 0, 2) == 0,
    "msmpeg4v3": lambda payload: _bits(payload, 0, 2) == 0,
    "wmv1": lambda payload: _bits(payload, 0, 2) == 0,
    "wmv2": lambda payload: _bits(payload, 0, 1) == 0,
    "mpeg4": _mpeg4,
    "mpeg1video": _mpeg12,
    "mpeg2video": _mpeg12,
    "vp8": lambda payload: _bits(payload, 7, 1) == 0,  # RFC 6386, 9.1
    "vp9": _vp9,
    "theora": lambda payload: _bits(payload, 0, 2) == 0,  # Theora specification, 7.1
}


def intra_check(codec: str, extradata: bytes) -> Callable[[memoryview], bool] | None:
    """A function that tells whether a payload begins with a picture that refers to no other; None: for this codec there is none."""
    if codec == "av1":
        # Matroska may keep the sequence header in the extradata alone, behind 4 bytes.
        return partial(_av1, has_sequence=len(extradata) > 4)
    return _CHECKS.get(codec)


def shows_picture(codec: str, payload: memoryview) -> bool:
    """Whether a picture comes out for a VP8 or VP9 packet (RFC 6386, 9.1; VP9 bitstream specification, 6.2 and annex B)."""
    if codec == "vp8":
        return _bits(payload, 3, 1) == 1
    if codec != "vp9" or payload[-1] & 0xE0 == 0xC0:
        return True
    at = 5 if _bits(payload, 2, 2) == 3 else 4
    return _bits(payload, at, 1) == 1 or _bits(payload, at + 2, 1) == 1
