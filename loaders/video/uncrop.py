"""A window's packets with a sequence header that cuts nothing off, so that the picture shown is the whole coded one.

Codecs work on blocks, so a 1920x1080 stream codes 1088 rows and its header says that eight are not shown. DALI keeps decoders from
window to window by the coded size of their streams, but remembers the shown one, and so opens one anew wherever the two differ.
Only the right and the lower edge are given back: what was shown stays where it was, for whoever cuts it out.
"""

from __future__ import annotations

from collections.abc import Sequence

from av.bitstream import BitStreamFilterContext
from av.codec import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from .video import VideoFacts

FILTERS = {"h264": "h264_metadata", "hevc": "hevc_metadata"}
LARGEST_BLOCK = 16
KEPT_SIZES = 4096


def can_be_cropped(video: VideoFacts) -> bool:
    """Whether the coded picture may be larger than the shown one. Where both sides are whole blocks, it is taken not to be."""
    return video.codec in FILTERS and (video.width % LARGEST_BLOCK != 0 or video.height % LARGEST_BLOCK != 0)


def uncropped(video: VideoFacts, source: VideoStream, target: VideoStream, packets: Sequence[Packet]) -> list[Packet]:
    """The packets for `target`, an MP4's stream, without cropping to the right and below.

    source: the stream as the video has it. packets: of a window, in decode order, the first a keyframe; they are used up. The
    target gets the new header and the coded size, since decoders go by a container that says less. Raises FFmpegError.
    """
    description = f"{FILTERS[video.codec]}=crop_right=0:crop_bottom=0"
    bitstream = BitStreamFilterContext(description, source, target)
    rewritten = [new for packet in packets for new in bitstream.filter(packet)]
    codec = target.codec_context
    codec.codec_tag = "\0\0\0\0"  # the muxer's own: the video's may come from another container
    codec.width, codec.height = _coded_size(video, codec.extradata, rewritten[0])
    return rewritten


# By what decides it: the header, and the size that is shown where pictures bring headers of their own.
_sizes: dict[tuple[bytes, int, int], tuple[int, int]] = {}


def _coded_size(video: VideoFacts, extradata: bytes | None, keyframe: Packet) -> tuple[int, int]:
    """(width, height) that a decoder makes of a stream without cropping; the keyframe of the first window is decoded for it."""
    key = (video.header, video.width, video.height)
    if key not in _sizes:
        if len(_sizes) >= KEPT_SIZES:
            _sizes.clear()
        decoder = CodecContext.create(video.codec, "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.thread_count, decoder.extradata = 1, extradata
        frames = [*decoder.decode(keyframe), *decoder.decode(None)]
        if not frames:
            return video.width, video.height  # not remembered: the next window may begin better
        _sizes[key] = frames[0].width, frames[0].height
    return _sizes[key]
