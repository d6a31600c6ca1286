"""What FFmpeg's decoders have to be told, and what they promise."""

from __future__ import annotations

from av.video.codeccontext import VideoCodecContext

from .pyav import field_order

# Decoders that go by the bitstream, the extradata and the codec tag alone. All others, raw and lossless video above all, also take
# bits per coded sample, a palette or a field order from the container.
TOLD_BY_A_HEADER = frozenset(["h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg"])
# Decoders that are asked anew with every packet whether to leave out what nothing refers to; libdav1d is asked when it is opened.
SKIPPING = frozenset(["h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video"])
# Sample entries that leave parameter sets to the header (ISO/IEC 14496-15, 5.4.2.1 and 8.4.1.1), as a little-endian number.
SETS_IN_THE_HEADER = frozenset(int.from_bytes(tag, "little") for tag in (b"avc1", b"hvc1"))
# Motion JPEG in QuickTime keeps the order of its fields outside of the pictures; AVFieldOrder has 0 for unknown, 1 for progressive.
WITHOUT_FIELDS = (0, 1)


def codec_tag(context: VideoCodecContext) -> str | None:
    """The container's four characters for the codec, None where they are not ASCII."""
    try:
        return context.codec_tag
    except UnicodeDecodeError:
        return None


def is_told_by_a_header(context: VideoCodecContext) -> bool:
    """Whether extradata and tag tell this stream's decoder all that it needs to know."""
    codec = context.codec.canonical_name
    return (
        codec in TOLD_BY_A_HEADER
        and codec_tag(context) is not None
        and (codec != "mjpeg" or field_order(context) in WITHOUT_FIELDS)
    )
