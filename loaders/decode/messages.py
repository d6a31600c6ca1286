"""What a decoding process says of a span, in few bytes that are quickly read: the training's thread reads them.

A message has a length, a head, and of a span its frame numbers and times. Only what is seldom, labels, failures and
errors, is pickled behind them.

Shapes: V views, T frames.
"""

from __future__ import annotations

import pickle
import struct
from fcntl import F_SETPIPE_SZ, fcntl
from typing import Any

import numpy as np

from ...kernels.yuv_geometry import CUT_FLOATS, CUT_INTEGERS
from ..draw.sampler import Clip
from .batch import LoaderCount
from .planes import PlaneCuts
from .span import SpanResult

LENGTH = struct.Struct("<I")
# Which job; V and T of a span that was read, else 0; its video and spare; is it lost?; are there cuts?; the count's first six
# numbers.
HEAD = struct.Struct("<q4q??6q")
COUNTS = ("packets_decoded", "frames_decoded", "frames_used", "repeated_frames", "bytes_read", "spans")
NOBODY = -1
PIPE_BYTES = 1 << 20


def packed(number: int, result: SpanResult) -> bytes:
    """What became of job `number`."""
    clips, count = result.clips, result.count
    labels = [clip.label for clip in clips]
    counts = [getattr(count, name) for name in COUNTS]
    numbers = np.array([clip.frames for clip in clips], np.int64)
    head = HEAD.pack(
        number, *numbers.shape, clips[0].video, clips[0].spare, result.is_lost, result.cuts is not None, *counts
    )
    # A span that is lost has no times.
    times = result.pts_seconds if result.pts_seconds.shape == numbers.shape else np.zeros(numbers.shape)
    drawn = np.array([(clip.draw, clip.view, clip.repeated) for clip in clips], np.int64)
    parts = [head, numbers.tobytes(), times.tobytes(), drawn.tobytes()]
    if result.cuts is not None:
        parts += [result.cuts.integers.tobytes(), result.cuts.factors.tobytes()]
    seldom = count.failures or any(label is not None for label in labels) or any(clip.problem for clip in clips)
    if seldom:
        parts.append(pickle.dumps((labels, [clip.problem for clip in clips], count.failures), protocol=5))
    return _framed(b"".join(parts))


def packed_error(number: int, error: Any) -> bytes:
    """That job `number` raised an error; of NOBODY's: why a process cannot work, or None where it can."""
    return _framed(HEAD.pack(number, 0, 0, 0, 0, False, False, *[0] * len(COUNTS)) + pickle.dumps(error))


def unpacked(message: bytes) -> tuple[int, Any]:
    """(the number of a job or NOBODY, what became of it)."""
    number, views, frames, video, spare, is_lost, are_planes, *counts = HEAD.unpack_from(message)
    if not views:
        return number, pickle.loads(message[HEAD.size :])  # noqa: S301  (our own process's)
    start = HEAD.size
    numbers = np.frombuffer(message, np.int64, views * frames, start).reshape(views, frames)
    start += numbers.nbytes
    times = np.frombuffer(message, np.float64, views * frames, start).reshape(views, frames)
    start += times.nbytes
    drawn = np.frombuffer(message, np.int64, 3 * views, start).reshape(views, 3).tolist()
    start += 24 * views
    cuts = None
    if are_planes:
        integers = np.frombuffer(message, np.int32, views * len(CUT_INTEGERS), start).reshape(views, -1)
        factors = np.frombuffer(message, np.float32, views * CUT_FLOATS, start + integers.nbytes).reshape(views, -1)
        cuts, start = PlaneCuts(integers, factors), start + integers.nbytes + factors.nbytes
    labels, problems, failures = [None] * views, [""] * views, []
    if start < len(message):
        labels, problems, failures = pickle.loads(message[start:])  # noqa: S301  (our own process's)
    clips = [
        Clip(draw, view, spare, video, numbers[place], repeated, labels[place], problems[place])
        for place, (draw, view, repeated) in enumerate(drawn)
    ]
    count = LoaderCount(**dict(zip(COUNTS, counts, strict=True)), failures=failures)
    return number, SpanResult(clips, times, count, is_lost, cuts)


def _framed(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def widen(pipe: int) -> None:
    """Room for the messages of a long step. Where the system grants none, processes wait for their loader now and then."""
    try:
        fcntl(pipe, F_SETPIPE_SZ, PIPE_BYTES)
    except PermissionError:  # beyond what one user may have in all
        return
