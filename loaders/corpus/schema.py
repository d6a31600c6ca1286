"""The tables of a corpus: their columns, and what identifies their rows."""

from __future__ import annotations

import hashlib
from dataclasses import fields

import numpy as np
import pyarrow as pa

from ..video.video import GopTable, VideoFacts
from .folder import DESCRIPTION

FORMAT_VERSION = "4"


PACKETS_PER_BATCH = 65_536


_ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
    "tuple[int, ...]": pa.list_(pa.int32()),
}


FACT_FIELDS = [pa.field(field.name, _ARROW_TYPES[str(field.type)], nullable=False) for field in fields(VideoFacts)]


VIDEO_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        *FACT_FIELDS,
        *(pa.field(name, pa.string(), nullable=False) for name in DESCRIPTION),
        pa.field("original", pa.string(), nullable=False),
        pa.field("packed_stride", pa.int32(), nullable=False),
        pa.field("packed_start_seconds", pa.float64()),
        pa.field("boxed", pa.bool_(), nullable=False),
        pa.field("verified", pa.bool_(), nullable=False),
        pa.field("track", pa.int32()),
        pa.field("first_gop", pa.int64(), nullable=False),
        pa.field("num_gops", pa.int64(), nullable=False),
        pa.field("first_packet", pa.int64(), nullable=False),
        pa.field("gops_digest", pa.string(), nullable=False),
    ]
)


GOP_SCHEMA = pa.schema(
    [
        pa.field("video", pa.int32(), nullable=False),
        pa.field("first_frame", pa.int32(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("dts", pa.int64(), nullable=False),
        pa.field("byte_offset", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("leading", pa.int32(), nullable=False),
        pa.field("idr", pa.bool_(), nullable=False),
        pa.field("clean", pa.bool_(), nullable=False),
        pa.field("num_packets", pa.int32(), nullable=False),
        pa.field("crc32", pa.uint32()),
    ]
)


PACKET_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("flags", pa.uint8(), nullable=False),
    ]
)


def gops_digest(gops: GopTable) -> str:
    """16 hex digits over the columns of a GOP table, checksums left out."""
    digest = hashlib.blake2b(digest_size=8)
    for field in GOP_SCHEMA:
        if field.name not in ("video", "crc32"):
            digest.update(np.ascontiguousarray(getattr(gops, field.name)).tobytes())
    return digest.hexdigest()
