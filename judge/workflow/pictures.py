"""Pictures of whole videos: ribbons of phases over time, and the video's own picture where they change.

Shapes: T moments, K classes, R x R pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.video_files import VideoFiles
from ...loaders.corpus.whole_file import write_whole
from ...loaders.video.decode import DecodeCount
from .feature_clips import read_clips

UNKNOWN = (0.93, 0.93, 0.93)
SHORT = 180.0  # seconds, up to which a ribbon counts in them
Row = tuple[str, NDArray, NDArray[np.bool_]]


def colours(classes: int) -> NDArray[np.float64]:
    """(K, 3) RGB, 0 .. 1, of as many hues as there are classes."""
    from matplotlib import colormaps

    table = colormaps["tab10"] if classes <= 10 else colormaps["tab20"] if classes <= 20 else colormaps["gist_ncar"]
    places = np.arange(classes) if classes <= 20 else np.linspace(0.03, 0.97, classes)
    return np.array([table(place)[:3] for place in places.tolist()])


def ribbon(labels: NDArray, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(1, T, 3) RGB of class numbers (T,) with colours already chosen (T, 3), grey where unknown."""
    return np.where(known[:, None], labels, UNKNOWN)[None]


def ribbons_png(title: str, rows: Sequence[Row], rate: float, classes: Sequence[str]) -> bytes:
    """rows: (name, labels, (T,) known); labels are (T,) class numbers, or (T, K) bool, of which each class has a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    hues = colours(len(classes))
    lines = [len(classes) if labels.ndim == 2 else 1 for _, labels, _ in rows]
    named = list(zip(hues.tolist(), classes, strict=True))
    named += [] if all(known.all() for _, _, known in rows) else [(UNKNOWN, "no label")]
    unit, of = (60, "minutes") if max(len(labels) for _, labels, _ in rows) / rate > SHORT else (1, "seconds")
    legend_rows = -(-len(named) // 4)
    height = 0.6 + sum(0.34 if count == 1 else 0.09 * count for count in lines) + 0.2 * legend_rows
    figure = Figure(figsize=(11, height), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows), 1, height_ratios=[max(0.3 * count, 1) for count in lines], hspace=0.15, left=0.16, right=0.99,
        top=1 - 0.3 / height, bottom=(0.35 + 0.2 * legend_rows) / height,
    )  # fmt: skip
    for number, (name, labels, known) in enumerate(rows):
        axes = figure.add_subplot(grid[number])
        if labels.ndim == 2:
            picture = np.where(labels.T[:, :, None], hues[:, None], np.where(known[None, :, None], 1.0, UNKNOWN))
        else:
            picture = ribbon(hues[labels], known)
        axes.imshow(picture, aspect="auto", interpolation="nearest", extent=(0, len(labels) / rate / unit, 1, 0))
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes.tick_params(labelsize=7, labelbottom=number == len(rows) - 1)
        axes.set_xlabel(of if number == len(rows) - 1 else "", fontsize=7, labelpad=1)
    figure.text(0.01, 1 - 0.2 / height, title, fontsize=9)
    patches = [Patch(color=hue, label=name) for hue, name in named]
    figure.legend(handles=patches, loc="lower center", ncols=4, fontsize=7, frameon=False)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def write_png(path: Path, png: bytes) -> None:
    write_whole(path, lambda unfinished: unfinished.write_bytes(png))


def embedded(data: bytes, kind: str) -> str:
    """What stands in a page's src. kind: png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def pictures_at(path: str, seconds: Sequence[float], side: int) -> list[bytes]:
    """JPEGs of the centre of the picture that is on screen at each of some seconds. Raises VideoError."""
    from PIL import Image

    videos = VideoFiles()
    row = videos.add(path)
    shown = videos.timeline(row).shown_at(np.array(seconds))
    order = np.argsort(shown, kind="stable")
    found: dict[int, bytes] = {}
    clips = read_clips(videos, row, shown[order][:, None], side, DecodeCount())
    for place, clip in zip(order.tolist(), clips, strict=True):
        target = io.BytesIO()
        Image.fromarray(clip[0]).save(target, "JPEG", quality=80)
        found[place] = target.getvalue()
    return [found[place] for place in range(len(seconds))]
