"""What `trocar screen` found in a corpus, beside its index: `spans.parquet`, a row a span, and `screen.parquet`, a row a video.

Spans of a video lie end to end from its first frame to its last. They end at cuts, pauses and where a picture freezes or goes
blank, and are otherwise a few seconds long, so that what is said of a span holds for all of it.

    in_body             0 .. 1, how much it looks like the inside of a body
    blank, frozen       nothing to see; the picture stands still
    blur                0 (sharp) .. 1
    overlay_share       0 .. 1, how much of the picture text and logos cover that stand all through the video
    picture_in_picture  a smaller picture stands in it
    transition          a fade or wipe
    brightness, saturation    0 .. 1
    cut_seconds         to the nearest cut; infinite where the video has none

Shapes: N spans, V videos, H W cells of an overlay mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .corpus import Corpus
from .folder import FLAGS, SCORES, SCREEN_NAME, SPANS_NAME, CorpusError
from .whole_file import unreadable, write_whole

# Counted up when a screen comes out otherwise.
SCREEN_VERSION = "3"
SPAN_SCHEMA = pa.schema(
    [
        pa.field("video", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("first_frame", pa.int64(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("shot", pa.int32(), nullable=False),
        *(pa.field(name, pa.float32(), nullable=False) for name in SCORES),
        *(pa.field(name, pa.bool_(), nullable=False) for name in FLAGS),
    ]
)
VIDEO_SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("made_of", pa.string(), nullable=False),
        pa.field("mask_rows", pa.int32(), nullable=False),
        pa.field("mask_columns", pa.int32(), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),
        pa.field("pictures", pa.int64(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ScreenedVideo:
    """What was found in one video.

    video: its id. made_of: hex digits of the file, its index and how it was screened. spans: `SPAN_SCHEMA`'s columns but video,
    each (N,). overlay: (H, W) bool, over the whole upright picture. pictures: how many were decoded. note: what could not be done.
    """

    video: str
    made_of: str
    spans: dict[str, NDArray]
    overlay: NDArray[np.bool_]
    pictures: int
    note: str = ""


def write_screen(folder: Path, videos: list[ScreenedVideo], settings: str) -> None:
    """Writes both tables into `folder`, each whole or not at all. settings: how they were screened, for `Screen.settings`."""
    metadata = {"version": SCREEN_VERSION, "settings": settings}
    count = np.repeat(np.arange(len(videos)), [len(video.spans["first_frame"]) for video in videos])
    ids = pa.array([video.video for video in videos], pa.string())
    columns = [pa.DictionaryArray.from_arrays(pa.array(count, pa.int32()), ids)]
    for field in list(SPAN_SCHEMA)[1:]:
        values = [video.spans[field.name] for video in videos]
        columns.append(pa.array(np.concatenate(values) if values else [], field.type))
    spans = pa.Table.from_arrays(columns, schema=SPAN_SCHEMA.with_metadata(metadata))
    rows = [
        {
            "video": video.video,
            "made_of": video.made_of,
            "mask_rows": video.overlay.shape[0],
            "mask_columns": video.overlay.shape[1],
            "mask": np.packbits(video.overlay).tobytes(),
            "pictures": video.pictures,
            "note": video.note,
        }
        for video in videos
    ]
    about = pa.Table.from_pylist(rows, schema=VIDEO_SCHEMA.with_metadata(metadata))
    for name, table in ((SPANS_NAME, spans), (SCREEN_NAME, about)):
        write_whole(folder / name, lambda path, table=table: pq.write_table(table, path, compression="zstd"))


def read_screen(folder: Path) -> list[ScreenedVideo]:
    """What `write_screen` wrote; nothing where there is none, or one of another version. Raises CorpusError."""
    tables = []
    for name, schema in ((SPANS_NAME, SPAN_SCHEMA), (SCREEN_NAME, VIDEO_SCHEMA)):
        path = folder / name
        if not path.exists():
            return []
        try:
            table = pq.read_table(path, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(unreadable(path, error, f"run `trocar screen {folder}` again")) from error
        version = (table.schema.metadata or {}).get(b"version", b"").decode()
        if version != SCREEN_VERSION or table.schema.names != schema.names:
            return []
        tables.append(table)
    spans, about = tables
    video = spans.column("video").unify_dictionaries().combine_chunks()
    video = video.chunk(0) if isinstance(video, pa.ChunkedArray) else video
    code_of = {identity: code for code, identity in enumerate(video.dictionary.to_pylist())}
    codes = video.indices.to_numpy()
    columns = {name: spans.column(name).to_numpy() for name in spans.schema.names[1:]}
    found = []
    for row in about.to_pylist():
        code = code_of.get(row["video"], -1)
        first, stop = np.searchsorted(codes, [code, code + 1])  # videos stand in the order of their codes
        rows, wide = row["mask_rows"], row["mask_columns"]
        bits = np.unpackbits(np.frombuffer(row["mask"], np.uint8), count=rows * wide)
        part = {name: column[first:stop] for name, column in columns.items()}
        overlay = bits.reshape(rows, wide).astype(bool)
        found.append(ScreenedVideo(row["video"], row["made_of"], part, overlay, row["pictures"], row["note"]))
    return found


class Screen:
    """The screen of a corpus.

    video: (N,) int64 rows of the corpus, ascending. columns: the others of `SPAN_SCHEMA`, each (N,). Raises CorpusError where
    there is none, or it does not cover every frame of every video.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        screened = {video.video: video for video in read_screen(corpus.path)}
        again = f"run `trocar screen {corpus.path}`"
        if not screened:
            there = (corpus.path / SPANS_NAME).exists()
            what = f"its {SPANS_NAME} is of another version" if there else "was not screened"
            raise CorpusError(f"{corpus.path}: {what}; {again}")
        ids = [row["id"] for row in corpus.scan("id")]
        self.videos: list[ScreenedVideo] = []
        for row, identity in enumerate(ids):
            video = screened.get(identity)
            if video is None or int(video.spans["frames"].sum()) != int(corpus.frames[row]):
                what = "was not screened" if video is None else "has changed since it was screened"
                raise CorpusError(f"{corpus.path}: {corpus.video_path(row)} {what}; {again}")
            self.videos.append(video)
        counts = [len(video.spans["first_frame"]) for video in self.videos]
        self.video = np.repeat(np.arange(len(ids)), counts)
        self.columns = {
            field.name: np.concatenate([video.spans[field.name] for video in self.videos])
            for field in list(SPAN_SCHEMA)[1:]
        }

    @cached_property
    def cuts(self) -> NDArray[np.int64]:
        """(C, 2) (video, frame) of the first frames of shots but each video's first."""
        shot, same = self.columns["shot"], np.diff(self.video) == 0
        at = np.flatnonzero(same & (np.diff(shot) != 0)) + 1
        return np.column_stack([self.video[at], self.columns["first_frame"][at]])

    def seconds(self) -> NDArray[np.float64]:
        """(N,) how long each span lasts."""
        return self.columns["frames"] / self.corpus.fps[self.video]
