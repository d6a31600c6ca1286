"""Videos for `trocar bench training` and `loading` where none are given: 1080p, a keyframe every 250
frames, and their proxies.

Made scenes are easier to decode than what a camera sees; how much of a result is due to that only videos of one's own can tell.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from ...engine.demo import FPS, Scene
from ...loaders.corpus.index import index_corpus
from ...loaders.pack.pack import pack_corpus
from ...loaders.pack.settings import PackSettings

VIDEOS, SECONDS, GOP = 1, 11, 250
PACE = 3  # of the scene: neighbouring frames differ by 3.7 of 255 (median), as a surgical video's do (3.8)
MADE_CLIPS = 4  # a round of `trocar bench loading`, so that all of it takes minutes
SIZE = (1920, 1080)
GRAIN_LEVELS = 3.0  # a sensor's noise, of 255: without it made pictures take hardly a bit


def make_corpora(folder: Path, *, stride: int, videos: int = VIDEOS, seconds: float = SECONDS) -> dict[str, Path]:
    """Writes and indexes videos and proxies of every `stride`-th frame; "originals" and "proxies", each a folder."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for number in range(videos):
        _encode(folder / "videos" / f"{number}.mp4", number, round(seconds * FPS))
    index_corpus([folder / "videos"], folder / "corpus", progress=False)
    pack_corpus(folder / "corpus", folder / "packed", PackSettings(stride=stride), progress=False, replace=True)
    return {"originals": folder / "corpus", "proxies": folder / "packed"}


def _encode(path: Path, seed: int, frames: int) -> None:
    """The demo's synthetic operation, enlarged by the scaler, with grain of which a few pictures are used again and again."""
    generator = np.random.default_rng(seed)
    normal = (generator.normal(0, GRAIN_LEVELS, (SIZE[1], SIZE[0])).round().clip(-15, 15) for _ in range(4))
    grain = [levels.astype(np.int8).view(np.uint8) for levels in normal]
    options = {"preset": "veryfast", "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0"}
    scene = Scene(seed)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            small = av.VideoFrame.from_ndarray(scene.render(PACE * number / FPS), format="rgb24")
            planes = small.reformat(*SIZE, format="yuv420p", interpolation="BICUBIC").to_ndarray()
            planes[: SIZE[1]] += grain[number % len(grain)]  # luma lies in 16 .. 235: nothing wraps around
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
