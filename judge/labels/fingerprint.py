"""What a video looks like at a few moments: for finding the same video under another name, in another codec, size or rate.

Moments double (1/4, 1/2, 1, 2, 4 ... seconds from the first frame), so that one video's are another's as well, however long either
is. At each the picture inside the black border, upright, is shrunk to 16 x 16 grey values and freed of its mean and contrast.

Not found: copies that begin elsewhere, run at another speed, or were cropped, mirrored or drawn over in a large part.

Shapes: M moments, F frames near one, S x S values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ...loaders.video.decode import DecodeCount
from ...loaders.video.sequence import read_frames
from ...loaders.video.video import GopTable, VideoFacts

FIRST_SECONDS = 0.25
# A proxy keeps every fourth frame, and encoders shift a stream by a few.
NEAR_SECONDS = 0.2
SIDE = 16
LEAST_CONTRAST = 4.0  # levels of 255; a flat picture looks like any other
SIMILAR = 0.95  # cosine from which two pictures count as the same: encoded anew 0.987 and more, others at most 0.76
ENOUGH = 0.8  # share of the moments at which two videos must look the same
LEAST_MOMENTS = 2


@dataclass(frozen=True)
class Fingerprint:
    """pictures: of each moment, (F, S x S) float32 of unit length; none where the picture is flat or the video is over."""

    pictures: tuple[NDArray[np.float32], ...]

    def is_same(self, other: Fingerprint) -> bool:
        """Whether both show the same at nearly all moments that both have, of which there must be two or more."""
        pairs = zip(self.pictures, other.pictures, strict=False)
        likeness = [float((a @ b.T).max()) for a, b in pairs if len(a) and len(b)]
        same = sum(value >= SIMILAR for value in likeness)
        return len(likeness) >= LEAST_MOMENTS and same >= ENOUGH * len(likeness)


def fingerprint(video: VideoFacts, gops: GopTable) -> Fingerprint:
    """Decodes a few frames of an indexed video. Raises VideoError where they cannot be read."""
    packets = gops.packets[0 : int(gops.first_packet[-1] + gops.num_packets[-1])]
    shown = packets.frame >= 0
    seconds = np.empty(video.frames)
    tick = video.time_base_numerator / video.time_base_denominator
    seconds[packets.frame[shown]] = (packets.pts[shown] - video.start_pts) * tick
    moments = FIRST_SECONDS * 2.0 ** np.arange(
        max(int(np.log2(max(seconds[-1], FIRST_SECONDS) / FIRST_SECONDS)) + 1, 1)
    )
    near = np.abs(seconds[:, None] - moments) <= NEAR_SECONDS
    near[np.searchsorted(seconds, moments, side="right") - 1, np.arange(len(moments))] = True
    wanted = np.flatnonzero(near.any(axis=1))
    pictures = {number: _picture(frame, video) for number, _, frame in read_frames(video, gops, wanted, DecodeCount())}
    nothing = np.empty((0, SIDE * SIDE), np.float32)
    of_moments = [[pictures[n] for n in np.flatnonzero(near[:, m]).tolist()] for m in range(len(moments))]
    kept = [[picture for picture in group if picture is not None] for group in of_moments]
    return Fingerprint(tuple(np.stack(group) if group else nothing for group in kept))


def _picture(frame: VideoFrame, video: VideoFacts) -> NDArray[np.float32] | None:
    """(S x S,) of unit length, None where there is no contrast."""
    grey = np.rot90(frame.to_ndarray(format="gray"), video.rotation // 90)
    inside = grey[video.box_top : video.box_top + video.box_height, video.box_left : video.box_left + video.box_width]
    edges = [np.arange(SIDE) * side // SIDE for side in inside.shape]
    sums = np.add.reduceat(np.add.reduceat(inside, edges[0], axis=0, dtype=np.uint32), edges[1], axis=1)
    sizes = [np.diff(edge, append=side) for edge, side in zip(edges, inside.shape, strict=True)]
    values = (sums / (sizes[0][:, None] * sizes[1])).ravel()
    values = values - values.mean()
    return None if values.std() < LEAST_CONTRAST else (values / np.linalg.norm(values)).astype(np.float32)
