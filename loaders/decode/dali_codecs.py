"""What DALI's decoders can be trusted with: exactly the frames of a window, in the right colours."""

from __future__ import annotations

import torch

from ..video.window import Window

YUV_420 = ("yuv420p", "yuvj420p")
# By type of device: codecs, and the pixel formats that come out right (None: all). On a GPU two are left out that NVDEC decodes:
# AV1, for the hidden pictures that almost every file has (see `can_decode`), and Motion JPEG, for which DALI creates no video
# decoder there ("Failed to create video decoder", DALI 2.4): its frames go to the image decoder (`dali_images.py`).
DECODABLE: dict[str, dict[str, tuple[str, ...] | None]] = {
    "cpu": {"vp8": None, "vp9": None, "mjpeg": None},
    "cuda": {
        "h264": YUV_420,
        "hevc": (*YUV_420, "yuv420p10le"),
        "mpeg4": YUV_420,
        "vp8": YUV_420,
        "vp9": YUV_420,
    },
}
REFUSALS = ("not supported on this GPU", "Video is too small", "Video is too large")


def can_decode(window: Window, device: torch.device) -> bool:
    """Whether DALI on this device returns exactly the window's frames, as far as that is known beforehand."""
    video = window.video
    if not video.header or video.codec not in DECODABLE[device.type]:
        return False
    pix_fmts = DECODABLE[device.type][video.codec]
    if pix_fmts is not None and video.pix_fmt not in pix_fmts:
        return False
    if device.type == "cpu":
        return True
    if video.codec == "h264" and not window.idr:
        return False  # DALI has trouble with such beginnings
    # NVDEC hands out pictures that are not to be shown as well, and DALI counts them as frames.
    hides = not window.shows.all() or (video.codec == "vp9" and any(map(_is_superframe, window.payloads)))
    return not hides


def _is_superframe(payload: memoryview) -> bool:
    """Whether a VP9 packet holds several pictures (VP9 bitstream specification, annex B)."""
    return payload[-1] & 0xE0 == 0xC0


def is_refusal(error: RuntimeError) -> bool:
    """Whether DALI fails at all videos of a kind, not at one window."""
    return any(words in str(error) for words in REFUSALS)
