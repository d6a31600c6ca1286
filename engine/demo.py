"""The whole way on one machine without a GPU: videos (your own or made here), index, a small MAE, pictures of what it learned.

The made videos imitate an endoscope: textured tissue that drifts and breathes, two instruments that move over it, and a round
picture in a black border.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from ..loaders.corpus.index import index_corpus
from ..loaders.corpus.whole_file import write_whole
from .config.file import load_config
from .pretrain import pretrain
from .view.curve import view_curve
from .view.run import view_reconstruction

NUM_VIDEOS, SECONDS, FPS, WIDTH, HEIGHT = 12, 24, 25, 320, 240


def demo(run_dir: Path, videos: str | None, overrides: Sequence[str]) -> list[str]:
    """Runs the demo into `run_dir`. Returns the lines that say where things are. Raises what its stages raise."""
    corpus = run_dir / "corpus"
    config = load_config("demo_cpu", [f"run.dir={run_dir}", f"data.corpus={corpus}", *overrides])
    if videos is None:
        videos = str(run_dir / "videos")
        print(f"making {NUM_VIDEOS} videos of {SECONDS} s in {videos}", file=sys.stderr)
        make_videos(Path(videos))
    summary = index_corpus([videos], corpus, replace=True)
    result = pretrain(config)
    if result.is_stopped:
        return [f"asked to stop; {result.where_it_stands()}"]
    return [
        *summary.lines(),
        f"checkpoint      {result.checkpoint}",
        f"curve           {view_curve(run_dir)}",
        f"reconstruction  {view_reconstruction(run_dir)}",
    ]


def make_videos(folder: Path, *, num_videos: int = NUM_VIDEOS, seconds: float = SECONDS) -> list[Path]:
    """Writes synthetic endoscopic videos, H.264 at 320 x 240, 25 frames/s; those that are there stay. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"synthetic_{number:02d}.mp4" for number in range(num_videos)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_whole(path, partial(_write_video, Scene(number), round(seconds * FPS)))
    return paths


def _write_video(scene: Scene, frames: int, path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.render(frame / FPS), format="rgb24")))
        container.mux(stream.encode(None))


class Scene:
    """One synthetic operation, drawn from `seed`; `render` is a pure function of time."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        self.x, self.y = x - WIDTH / 2, y - HEIGHT / 2
        radius = np.hypot(self.x, self.y)
        field_of_view = radius < 0.62 * WIDTH * generator.uniform(0.75, 1.0)
        self.shade = (np.exp(-((radius / (0.75 * WIDTH)) ** 2)) * field_of_view)[..., None]
        self.texture = smooth_noise(generator, 3 * HEIGHT, 3 * WIDTH)
        colours = np.array([[1.0, 0.80, 0.66], [0.45, 0.10, 0.10]]) * generator.uniform(0.75, 1.1, (2, 3))
        self.tissue = colours.astype(np.float32)
        self.drift = generator.uniform(-9, 9, 2)
        self.sway = generator.uniform(10, 45, 2)
        self.instruments = [
            {
                "angle": generator.uniform(0, 2 * math.pi),
                "swing": generator.uniform(0.15, 0.5),
                "reach": generator.uniform(10, 60),
                "thrust": generator.uniform(15, 50),
                "rate": generator.uniform(0.15, 0.6, 2),
                "width": generator.uniform(7, 14),
                "colour": generator.uniform(0.45, 0.85) * np.array([0.95, 1.0, 1.05]),
            }
            for _ in range(2)
        ]

    def render(self, seconds: float) -> NDArray[np.uint8]:
        """The picture at a time, (240, 320, 3) uint8 RGB."""
        shift = self.sway * np.sin(2 * math.pi * np.array([0.11, 0.07]) * seconds) + self.drift * seconds
        rows = (np.arange(HEIGHT) + round(shift[0])) % self.texture.shape[0]
        columns = (np.arange(WIDTH) + round(shift[1])) % self.texture.shape[1]
        mixing = self.texture[np.ix_(rows, columns)][..., None]
        picture = mixing * self.tissue[0] + (1 - mixing) * self.tissue[1]
        for instrument in self.instruments:
            self._draw(picture, instrument, seconds)
        picture *= self.shade
        return (255 * picture.clip(0, 1)).astype(np.uint8)

    def _draw(self, picture: NDArray, instrument: dict, seconds: float) -> None:
        """A shaft that comes in from the border, pivots and thrusts, with a bright line along it."""
        swing, thrust = np.sin(2 * math.pi * instrument["rate"] * seconds)
        angle = instrument["angle"] + instrument["swing"] * swing
        along = self.x * math.cos(angle) + self.y * math.sin(angle)
        across = -self.x * math.sin(angle) + self.y * math.cos(angle)
        tip = instrument["reach"] + instrument["thrust"] * thrust
        inside = (np.abs(across) < instrument["width"]) & (along > tip)
        shine = 1.25 - 0.7 * np.abs(across[inside] / instrument["width"] - 0.3)
        picture[inside] = shine[:, None] * instrument["colour"]


def smooth_noise(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Periodic noise with a falling spectrum, 0 .. 1: blotches and vessels of all sizes."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 0.003) ** 2.3
    amplitude[0, 0] = 0
    phase = generator.uniform(0, 2 * math.pi, amplitude.shape)
    noise = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(height, width))
    low, high = np.percentile(noise, [2, 98])
    return ((noise - low) / (high - low)).clip(0, 1).astype(np.float32)
