"""How torch.distributed.checkpoint writes and reads a checkpoint here: safetensors and one JSON file, and no pickle at all.

A checkpoint is a folder: rank_00000.safetensors, ... (what each rank wrote) and manifest.json, which says what state the run was
in, which part of which tensor stands where, and the size and SHA-256 of every file. PyTorch's own storage keeps the latter in a
pickle, which runs whatever code somebody put into it.

All ranks write into a folder of another name; when all have flushed their files, the first rank adds the manifest and renames the
folder, so a checkpoint is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ...loaders.corpus.whole_file import write_whole
from ..inputs.checkpoints import MANIFEST

FORMAT = 1
FILE_NAME = re.compile(r"rank_\d{5}\.safetensors")
DTYPES = {str(dtype).partition(".")[2]: dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool
)}  # fmt: skip


class SafetensorsWriter(StorageWriter):
    """Writes one checkpoint.

    unfinished, final: the folder that is written and what it is renamed to. rank: whose file this is. state: JSON values for the
    manifest. before_commit: called on the first rank when all files are on the disk, before the rename.
    """

    def __init__(
        self, unfinished: Path, final: Path, rank: int, state: dict[str, Any], before_commit: Callable[[], None]
    ) -> None:
        self.unfinished, self.final, self.rank = unfinished, final, rank
        self.state, self.before_commit = state, before_commit

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        """Nothing is kept from an earlier checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.unfinished.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        path = self.unfinished / f"rank_{self.rank:05d}.safetensors"
        tensors = {_key(item.index): planner.resolve_data(item).detach().cpu().contiguous() for item in plan.items}  # pyright: ignore[reportAttributeAccessIssue]
        written: Future[list[WriteResult]] = Future()
        results = []
        if tensors:
            write_whole(path, partial(save_file, tensors))
            place = {"file": path.name, "bytes": path.stat().st_size, "sha256": checksum(path)}
            for item in plan.items:
                key = _key(item.index)
                size = tensors[key].nbytes
                results.append(WriteResult(item.index, size, {**place, "key": key}))
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places = {result.index: result.storage_data for written in results for result in written}
        files = {place["file"]: {"bytes": place["bytes"], "sha256": place["sha256"]} for place in places.values()}
        tensors = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata), name
            chunks = [
                {
                    "offsets": list(chunk.offsets),
                    "sizes": list(chunk.sizes),
                    **{key: places[MetadataIndex(name, chunk.offsets)][key] for key in ("file", "key")},
                }
                for chunk in tensor.chunks
            ]
            dtype = str(tensor.properties.dtype).partition(".")[2]
            tensors[name] = {"dtype": dtype, "shape": list(tensor.size), "chunks": chunks}
        manifest = {"format": FORMAT, "state": self.state, "files": files, "tensors": tensors}
        (self.unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        flush(self.unfinished / MANIFEST)
        flush(self.unfinished)
        self.before_commit()
        if self.final.exists():
            remove_folder(self.final)
        self.unfinished.rename(self.final)
        flush(self.final.parent)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


class SafetensorsReader(StorageReader):
    """Reads the checkpoint whose manifest this is, on however many ranks."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        """Nothing is kept from an earlier checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors: dict[str, Any] = {}
        places: dict[MetadataIndex, tuple[str, str]] = {}
        for name, entry in self.manifest["tensors"].items():
            chunks = [
                ChunkStorageMetadata(torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"]))
                for chunk in entry["chunks"]
            ]
            properties = TensorProperties(dtype=DTYPES[entry["dtype"]])
            tensors[name] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)
            for chunk in entry["chunks"]:
                places[MetadataIndex(name, chunk["offsets"])] = (chunk["file"], chunk["key"])
        return Metadata(tensors, storage_data=places)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self._places[item.storage_index][0], []).append(item)
        for name, items in by_file.items():
            with safe_open(self.path / name, framework="pt") as file:
                for item in items:
                    part = file.get_slice(self._places[item.storage_index][1])
                    window = zip(item.storage_offsets, item.lengths, strict=True)
                    values = part[tuple(slice(start, start + length) for start, length in window) or ...]
                    target = planner.resolve_tensor(item)
                    target.detach().copy_(values)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint `path`. Raises ValueError where it names other files than ours, or OSError."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is not of format {FORMAT}")
    if any(key not in manifest for key in ("state", "files", "tensors")):
        raise ValueError(f"{MANIFEST} lacks state, files or tensors")
    used = {chunk["file"] for entry in manifest["tensors"].values() for chunk in entry["chunks"]}
    for name in used | manifest["files"].keys():
        if not FILE_NAME.fullmatch(name) or name not in manifest["files"]:
            raise ValueError(f"{MANIFEST} names {name!r}, which is no file of a checkpoint")
    return manifest


def check_files(path: Path, files: dict[str, Any]) -> None:
    """Compares files with the manifest's sizes and checksums. Raises ValueError naming the first that differs."""
    for name, expected in files.items():
        size = (path / name).stat().st_size
        if size != expected["bytes"]:
            raise ValueError(f"{name} has {size} bytes, not {expected['bytes']}")
        if checksum(path / name) != expected["sha256"]:
            raise ValueError(f"{name} does not match its SHA-256")


def remove_folder(folder: Path) -> None:
    """Deletes a checkpoint, after giving it a name that no longer counts: a crash in between leaves no half of one."""
    condemned = folder.with_name(f"unfinished_{folder.name}_old")
    shutil.rmtree(condemned, ignore_errors=True)
    folder.rename(condemned)
    shutil.rmtree(condemned)


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(file)


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _key(index: MetadataIndex) -> str:
    """A whole tensor is stored under its name, a part of one with where it starts."""
    offsets = index.offset or ()
    return f"{index.fqn}@{','.join(map(str, offsets))}" if any(offsets) else index.fqn
