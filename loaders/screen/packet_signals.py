"""What the sizes of packets say without decoding anything: where a picture stands still, and where a cut may be.

A picture that repeats the one before costs an encoder next to nothing; one that has nothing in common with it costs as much as a
keyframe. Most encoders begin a cut with a keyframe out of turn.

Shapes: F frames, in display order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..video.video import GopTable, PacketFlag, VideoFacts

STILL_SECONDS = 1.0
BASELINE_FRAMES = 24
SPIKE = 1.5  # times the larger packets around it
KEYFRAME_CHANGE = 0.25  # of the logarithm of a keyframe's size from one to the next
MACROBLOCK = 256
REFINED_FRAMES, ALONE_FRAMES = 4, 6
LEVEL_FRAMES, LEVEL_CHANGE = 12, 2.5


@dataclass(frozen=True)
class PacketSizes:
    """sizes: (F,) bytes. keys: (F,) bool."""

    sizes: NDArray[np.float64]
    keys: NDArray[np.bool_]

    @classmethod
    def of(cls, video: VideoFacts, gops: GopTable) -> PacketSizes:
        packets = gops.packets[0 : int(gops.first_packet[-1] + gops.num_packets[-1])]
        shown = packets.frame >= 0
        sizes, keys = np.zeros(video.frames), np.zeros(video.frames, bool)
        sizes[packets.frame[shown]] = packets.size[shown]
        keys[packets.frame[shown]] = packets.flags[shown] & PacketFlag.KEY != 0
        return cls(sizes, keys)


def runs_of(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(R, 2) where runs of True begin and end."""
    return np.flatnonzero(np.diff(flags, prepend=False, append=False)).reshape(-1, 2)


def still_runs(packets: PacketSizes, pixels: int, fps: float) -> NDArray[np.int64]:
    """(R, 2) first frame and the one behind the last of stretches of a second or more in which the picture stands still.

    pixels: of a picture. A stretch begins with the frame that repeats its predecessor.
    """
    sizes, keys = packets.sizes, packets.keys
    fewest = max(2, round(STILL_SECONDS * fps))
    if keys.all():
        # Equal pictures give equal keyframes.
        same = np.abs(np.diff(sizes, prepend=-1.0)) <= 0.002 * sizes
        runs = runs_of(same)
        return runs[runs[:, 1] - runs[:, 0] >= fewest]
    floor = 20 + 0.02 * pixels / MACROBLOCK
    others = sizes[~keys]
    lively = others[others > 2 * floor]
    usual = float(np.median(lively)) if len(lively) else 0.0
    repeats = (sizes <= max(floor, min(0.06 * usual, 4 * floor))) & ~keys
    # Between repeats stand keyframes, what an encoder refines behind them, and a packet now and then; where more comes, something
    # moves.
    behind_key = np.convolve(keys, np.ones(REFINED_FRAMES + 1))[: len(keys)] > 0
    moving = ~behind_key & (sizes > max(0.3 * usual, 2 * floor))
    crowded = np.convolve(moving, np.ones(2 * ALONE_FRAMES + 1), "same") > 1
    joined: list[list[int]] = []
    for first, stop in runs_of(repeats).tolist():
        if joined and first - joined[-1][1] <= REFINED_FRAMES and not crowded[joined[-1][1] : first].any():
            joined[-1][1] = stop
        else:
            joined.append([first, stop])
    runs = np.array(joined, np.int64).reshape(-1, 2)
    share = np.array([repeats[first:stop].mean() for first, stop in joined])
    return runs[(runs[:, 1] - runs[:, 0] >= fewest) & (share > 0.5)] if len(runs) else runs


def cut_candidates(packets: PacketSizes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(C,) frames that may begin a shot and (C,) how much speaks for each, the more the larger; ascending by frame."""
    sizes, keys = packets.sizes, packets.keys
    strength = np.zeros(len(sizes))
    if (~keys).any():
        others = np.where(keys, np.nan, sizes)
        strength = np.maximum(_spikes(others), _level_changes(others))
    rows = np.flatnonzero(keys)
    if len(rows) > 1:
        lengths = np.diff(rows)
        usual = int(np.percentile(lengths, 75))
        out_of_turn = rows[1:][lengths < usual]
        strength[out_of_turn] = np.maximum(strength[out_of_turn], 2.0)
        change = np.abs(np.diff(np.log(np.maximum(sizes[rows], 1))))
        changed = rows[1:][change > KEYFRAME_CHANGE]
        strength[changed] = np.maximum(strength[changed], change[change > KEYFRAME_CHANGE])
    found = np.flatnonzero(strength)
    return found[found > 0], strength[found[found > 0]]


def _spikes(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(F,) by how much the logarithm of a size exceeds that of the larger ones before and behind it; 0 where it is no spike."""
    window = BASELINE_FRAMES
    padded = np.pad(sizes, window, constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, window)
    levels = np.full(len(views), np.nan)
    for start in range(0, len(views), 1 << 16):
        part = views[start : start + (1 << 16)]
        filled = np.sort(np.where(np.isnan(part), -1.0, part), axis=1)
        count = (filled >= 0).sum(axis=1)
        place = window - np.maximum(np.ceil(0.2 * count).astype(int), 1)
        level = filled[np.arange(len(part)), np.minimum(place, window - 1)]
        levels[start : start + len(part)] = np.where(count >= 3, level, np.nan)
    before = levels[: len(sizes)]
    behind = levels[window + 1 :]
    level = np.fmax(before, behind)
    level = np.where(np.isnan(level), np.inf, level)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(np.isnan(sizes), 0.0, sizes / np.maximum(level, 32.0))
    return np.where(ratio > SPIKE, np.log(np.maximum(ratio, 1.0)), 0.0)


def _level_changes(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(F,) half of the logarithm by which the usual size changes at a frame, where that is most around it; 0 elsewhere."""
    window = LEVEL_FRAMES
    padded = np.pad(sizes, window, constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, window)
    filled = np.sort(np.where(np.isnan(views), np.inf, views), axis=1)
    count = np.isfinite(filled).sum(axis=1)
    levels = np.where(count >= 3, filled[np.arange(len(filled)), count // 2], np.nan)
    before, behind = levels[: len(sizes)], levels[window:][: len(sizes)]
    with np.errstate(invalid="ignore"):
        change = np.nan_to_num(np.abs(np.log(np.maximum(behind, 16.0) / np.maximum(before, 16.0))))
    most = np.lib.stride_tricks.sliding_window_view(np.pad(change, window // 2), window + 1).max(axis=1)
    return np.where((change > np.log(LEVEL_CHANGE)) & (change == most), change / 2, 0.0)
