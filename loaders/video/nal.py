"""What the NAL units of an H.264 or HEVC packet say: may decoding start there, does another picture refer to it?"""

from __future__ import annotations

import re
from collections.abc import Iterator


def nal_length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit as the avcC or hvcC record says, or 0 for Annex B start codes."""
    if codec == "h264" and len(extradata) >= 7 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) >= 23 and (extradata[0] or extradata[1] or extradata[2] > 1):
        return (extradata[21] & 3) + 1
    return 0


def _nal_units(data: memoryview, length_size: int) -> Iterator[bytes]:
    """Yields the first 4 KiB of each NAL unit, found only when asked for: slices are long, and nobody wants them."""
    start = 0
    if length_size:
        while start + length_size < len(data):
            length = int.from_bytes(data[start : start + length_size], "big")
            start += length_size
            yield bytes(data[start : start + min(length, 4096)])
            start += length
    else:
        start_code = re.compile(rb"\x00\x00\x01")
        while found := start_code.search(data, start):
            start = found.end()
            yield start_code.split(bytes(data[start : start + 4096]), maxsplit=1)[0]


def keyframe_kind(codec: str, data: memoryview, length_size: int) -> tuple[bool, bool] | None:
    """(idr, clean) of an H.264 or HEVC packet that is flagged as a keyframe, from the NAL units up to its first slice.

    Clean are IDR, CRA and BLA pictures of HEVC (ITU-T H.265, table 7-1), IDR pictures of H.264, and those whose recovery
    point SEI says 0 frames (ITU-T H.264, D.1.8). None where the flag is wrong: other pictures of HEVC, and of H.264 predicted ones
    (table 7-6) without a recovery point.
    """
    recovers = recovers_at_once = False
    for unit in _nal_units(data, length_size):
        if not unit:
            continue
        if codec == "hevc":
            kind = unit[0] >> 1 & 63
            if kind < 32:
                return (kind in (19, 20), True) if 16 <= kind <= 21 else None
        else:
            kind = unit[0] & 31
            if kind == 6:
                frames = _recovery_frames_are_none(unit[1:])
                recovers |= frames is not None
                recovers_at_once |= frames is True
            elif 1 <= kind <= 5:
                if kind != 5 and not recovers and _slice_type(unit[1:]) % 5 not in (2, 4):
                    return None
                return kind == 5, kind == 5 or recovers_at_once
    return False, False


def holds_parameter_sets(codec: str, data: memoryview, length_size: int) -> bool:
    """Whether parameter sets stand before the first slice of an H.264 or HEVC packet; True where there is no slice to be found."""
    for unit in _nal_units(data, length_size):
        if unit:
            kind = unit[0] >> 1 & 63 if codec == "hevc" else unit[0] & 31
            if kind in ((32, 33, 34) if codec == "hevc" else (7, 8, 13, 15)):
                return True
            if kind < 32 if codec == "hevc" else 1 <= kind <= 5:
                return False
    return True


def discardable_layer(codec: str, data: memoryview, length_size: int) -> int:
    """The temporal layer of an H.264 or HEVC packet's picture if none in it refers to that, else -1 - layer.

    H.264: nal_ref_idc of every slice is 0 (ITU-T H.264, 7.4.1); its layer is 0. HEVC: sub-layer non-reference pictures (ITU-T
    H.265, table 7-1) are referred to in higher layers only.
    """
    layer = -1
    for unit in _nal_units(data, length_size):
        if len(unit) < 2:
            continue
        if codec == "hevc":
            kind = unit[0] >> 1 & 63
            if kind < 32:
                layer = (unit[1] & 7) - 1
                return layer if kind < 16 and kind % 2 == 0 else -1 - layer
        elif 1 <= unit[0] & 31 <= 5:
            if unit[0] >> 5 & 3:
                return -1
            layer = 0
    return layer


def _slice_type(slice_header: bytes) -> int:
    """The second of the two Exp-Golomb numbers that a slice of H.264 begins with (ITU-T H.264, 7.3.3)."""
    bits = int.from_bytes(slice_header[:16].replace(b"\x00\x00\x03", b"\x00\x00").ljust(16, b"\x80"), "big")
    left = value = 128
    for _ in ("first macroblock", "slice type"):
        zeros = left - (bits & ((1 << left) - 1)).bit_length()
        left = max(left - 2 * zeros - 1, 0)
        value = (bits >> left & ((2 << zeros) - 1)) - 1
    return value


def _recovery_frames_are_none(sei: bytes) -> bool | None:
    """Whether a recovery point SEI says 0 frames; None where there is no such."""
    sei = sei.replace(b"\x00\x00\x03", b"\x00\x00")
    position = 0
    while position + 2 < len(sei):
        header = []
        for _ in ("payload type", "payload size"):
            value = 0
            while position < len(sei) and sei[position] == 255:
                value += 255
                position += 1
            header.append(value + (sei[position] if position < len(sei) else 0))
            position += 1
        if header[0] == 6 and position < len(sei):
            # recovery_frame_cnt is Exp-Golomb coded: a leading 1 bit is the value 0.
            return bool(sei[position] & 0x80)
        position += header[1]
    return None
