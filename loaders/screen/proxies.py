"""What `trocar pack --screen` leaves out of proxies, and the screen of the originals as that of the proxies.

Shapes: N spans of a video, H W cells of an overlay mask.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..corpus.corpus import Corpus
from ..corpus.spans import Screen, ScreenedVideo, write_screen
from ..pack.pseudonyms import Names
from ..video.video import VideoFacts
from .in_body import IN_BODY

Hidden = tuple[tuple[int, int], ...]


def hidden_frames(corpus: Corpus, threshold: float = IN_BODY) -> tuple[dict[int, Hidden], list[str]]:
    """By row of the corpus, (first frame, the one behind the last) of spans that are out of the body, those that touch as one;
    and a report of what that comes to, as lines. Raises CorpusError where the corpus has no whole screen."""
    screen = Screen(corpus)
    out = ~screen.columns["blank"] & (screen.columns["in_body"] <= threshold)
    hours = screen.seconds() / 3600
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for span in np.flatnonzero(out).tolist():
        row, first = int(screen.video[span]), int(screen.columns["first_frame"][span])
        stop = first + int(screen.columns["frames"][span])
        if found[row] and found[row][-1][1] == first:
            found[row][-1] = (found[row][-1][0], stop)
        else:
            found[row].append((first, stop))
    lines = [
        f"left out as out of body (in_body <= {threshold:g}): {hours[out].sum():,.3f} of {hours.sum():,.3f} hours, "
        f"{sum(map(len, found.values())):,} stretches of {len(found):,} videos; black stands in their place"
    ]
    lines += [f"  {corpus.video_path(row)}: {len(ends):,}" for row, ends in sorted(found.items())[:10]]
    lines += [f"  and {len(found) - 10:,} videos more"] if len(found) > 10 else []
    return {row: tuple(ends) for row, ends in found.items()}, lines


def write_proxies_screen(corpus: Corpus, packed: Path, names: Names | None = None, threshold: float = IN_BODY) -> None:
    """Writes the screen of the originals as that of their proxies in `packed`, where what was left out is blank. names: of the
    originals in there; their own where None."""
    names = names or Names()
    originals = {}
    for row, video in enumerate(Screen(corpus).videos):
        named = names.named(corpus.video(row))
        note = named.told(corpus.video_path(row), video.note)
        originals[named.id] = row, replace(video, video=named.id, note=note)
    proxies, found = Corpus.open(packed), []
    for number, values in enumerate(proxies.scan("id")):
        row, video = originals[values["id"]]
        stride, frames = int(proxies.packed_stride[number]), int(proxies.frames[number])
        overlay = _inside_box(video.overlay, corpus.video(row).facts)
        found.append(_of_proxy(replace(video, overlay=overlay), stride, frames, threshold))
    write_screen(packed, found, json.dumps({"of": "originals"}))


def _inside_box(overlay: NDArray[np.bool_], video: VideoFacts) -> NDArray[np.bool_]:
    """(H, W) cells over the content box, which is all that a proxy shows, of those over the whole picture."""
    (width, height), (rows, columns) = video.upright_size, overlay.shape
    down = (video.box_top + (np.arange(rows) + 0.5) / rows * video.box_height) / height * rows
    across = (video.box_left + (np.arange(columns) + 0.5) / columns * video.box_width) / width * columns
    return overlay[np.ix_(down.astype(np.int64), across.astype(np.int64))]


def _of_proxy(video: ScreenedVideo, stride: int, frames: int, threshold: float) -> ScreenedVideo:
    """Frame k of a proxy is frame k * stride of its original; spans that hold none of these are gone."""
    spans = dict(video.spans)
    first = np.minimum(-(-spans["first_frame"] // stride), frames)
    count = np.diff(first, append=frames)
    spans["blank"] = spans["blank"] | (spans["in_body"] <= threshold)
    spans["overlay_share"] = np.full(len(first), video.overlay.mean(), np.float32)
    kept = count > 0
    spans["first_frame"], spans["frames"] = first, count.astype(np.int32)
    return replace(video, made_of="", spans={name: column[kept] for name, column in spans.items()}, pictures=0)
