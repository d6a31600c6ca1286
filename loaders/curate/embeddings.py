"""Embeddings of all spans of a corpus on disk: shards of fp16 rows, with a manifest that says what they are.

A folder holds `manifest.json`, `spans.parquet` (video id, first_frame and span_frames of every row, in frames of the original)
and `shards/00000.npy ...`, each rows_per_shard rows but the last. A shard is written under another name and renamed, so it is
whole or not there. A span that could not be embedded is a row of NaN.

Shapes: N spans, D values a row.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..corpus.folder import MANIFEST_NAME, CorpusError, embeddings_folder
from ..corpus.whole_file import set_aside, unreadable, write_array_whole, write_text_whole, write_whole

SPANS_NAME, SHARDS_NAME = "spans.parquet", "shards"
MANIFEST_VERSION = 1
SPANS_SCHEMA = pa.schema(
    [
        pa.field("video", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("first_frame", pa.int64(), nullable=False),
        pa.field("span_frames", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Manifest:
    """rows: N. width: D. corpus: fingerprint of the index. model: what embedded them, and `model_digest` which weights. frames,
    stride, sample_fps, resolution: what a clip was; see data.* of a run."""

    rows: int
    width: int
    rows_per_shard: int
    corpus: str
    model: str
    model_digest: str
    frames: int
    stride: int | None
    sample_fps: float | None
    resolution: int
    version: int = MANIFEST_VERSION

    @property
    def num_shards(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    def shard_rows(self, shard: int) -> int:
        return min(self.rows_per_shard, self.rows - shard * self.rows_per_shard)

    def write(self, folder: Path) -> None:
        write_text_whole(folder / MANIFEST_NAME, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises CorpusError."""
        path = embeddings_folder(folder) / MANIFEST_NAME
        again = f"embed again with `trocar embed CORPUS --out {folder}`"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            manifest = cls(**{field.name: values[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(unreadable(path, error, again)) from error
        if manifest.version != MANIFEST_VERSION or min(manifest.rows, manifest.width, manifest.rows_per_shard) < 1:
            raise CorpusError(
                f"{path}: version {manifest.version} with {manifest.rows} rows of {manifest.width}; {again}"
            )
        return manifest


def shard_path(folder: Path, shard: int) -> Path:
    return folder / SHARDS_NAME / f"{shard:05d}.npy"


def write_shard(folder: Path, shard: int, rows: NDArray[np.float16]) -> None:
    """Whole or not at all."""
    write_array_whole(shard_path(folder, shard), rows)


class EmbeddingRows:
    """The rows of a folder of embeddings, read in blocks; nothing is mapped, so what is resident is the block alone.

    Raises CorpusError where a shard is missing or is not what the manifest says.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.num_rows, self.width = self.manifest.rows, self.manifest.width
        self._offsets: list[int] = []
        missing = [shard for shard in range(self.manifest.num_shards) if not shard_path(self.folder, shard).exists()]
        if missing:
            raise CorpusError(
                f"{shard_path(self.folder, missing[0])}: missing, and {len(missing) - 1} more of "
                f"{self.manifest.num_shards} shards; finish `trocar embed`, which makes the missing ones alone"
            )
        for shard in range(self.manifest.num_shards):
            self._offsets.append(check_shard(self.folder, self.manifest, shard))

    def read(self, start: int, stop: int) -> NDArray[np.float16]:
        """Rows start .. stop - 1, (n, D) fp16."""
        rows = np.empty((stop - start, self.width), dtype=np.float16)
        per_shard, filled = self.manifest.rows_per_shard, 0
        while filled < len(rows):
            shard, inside = divmod(start + filled, per_shard)
            count = min(len(rows) - filled, self.manifest.shard_rows(shard) - inside)
            with shard_path(self.folder, shard).open("rb") as file:
                file.seek(self._offsets[shard] + inside * self.width * 2)
                target = rows[filled : filled + count].view(np.uint8).reshape(-1).data
                if file.readinto(target) != len(target):
                    raise CorpusError(f"{file.name}: ends early; {_again(self.folder)}")
            filled += count
        return rows

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.float16]:
        """Rows `numbers` (n,), in any order, (n, D) fp16. Opens each shard once."""
        rows = np.empty((len(numbers), self.width), dtype=np.float16)
        order = np.argsort(numbers, kind="stable")
        shards = numbers[order] // self.manifest.rows_per_shard
        for shard in np.unique(shards).tolist():
            chosen = order[np.searchsorted(shards, shard) : np.searchsorted(shards, shard, side="right")]
            path, rest = shard_path(self.folder, shard), self.manifest.shard_rows(shard)
            mapped = np.memmap(path, np.float16, "r", self._offsets[shard], (rest, self.width))
            rows[chosen] = mapped[numbers[chosen] - shard * self.manifest.rows_per_shard]
        return rows

    def spans(self) -> tuple[list[str], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
        """(ids of the videos, (N,) which of them, (N,) first_frame, (N,) span_frames), in frames of the originals."""
        path = self.folder / SPANS_NAME
        try:
            table = pq.read_table(path, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(unreadable(path, error, _again(self.folder))) from error
        if len(table) != self.num_rows:
            raise CorpusError(
                f"{path}: has {len(table):,} spans, the manifest {self.num_rows:,}; {_again(self.folder)}"
            )
        column = table.column("video").unify_dictionaries().combine_chunks()
        array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        return (
            array.dictionary.to_pylist(),
            array.indices.to_numpy().astype(np.int32),
            table.column("first_frame").to_numpy(),
            table.column("span_frames").to_numpy(),
        )


def write_spans(
    folder: Path,
    ids: list[str],
    video: NDArray[np.int32],
    first_frame: NDArray[np.int64],
    span_frames: NDArray[np.int32],
) -> None:
    """Whole or not at all."""
    codes = pa.DictionaryArray.from_arrays(pa.array(video, pa.int32()), pa.array(ids, pa.string()))
    columns = [codes, pa.array(first_frame, pa.int64()), pa.array(span_frames, pa.int32())]
    table = pa.Table.from_arrays(columns, schema=SPANS_SCHEMA)
    write_whole(folder / SPANS_NAME, lambda unfinished: pq.write_table(table, unfinished, compression="zstd"))


def _again(path: Path) -> str:
    return f"embed again after {set_aside(path)}"


def check_shard(folder: Path, manifest: Manifest, shard: int) -> int:
    """Where the rows of a shard begin in its file. Raises CorpusError where it is not what the manifest says."""
    path = shard_path(folder, shard)
    wanted = (manifest.shard_rows(shard), manifest.width)
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise CorpusError(unreadable(path, error, _again(path))) from error
    if shape != wanted or fortran or dtype != np.float16 or size != offset + 2 * wanted[0] * wanted[1]:
        raise CorpusError(
            f"{path}: holds {shape} {dtype} in {size:,} bytes, the manifest says {wanted} float16; {_again(path)}"
        )
    return offset
