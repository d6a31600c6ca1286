"""The loaders need no model, no training framework and no plotting: in a process where none can be imported, they load."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import clips
import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ["timm", "torchvision", "sklearn", "transformers", "tensorboard", "matplotlib", "lightning", "accelerate"]
OURS_ELSEWHERE = ["trocar.ssl", "trocar.engine", "trocar.bench"]
# What `pip install` brings for these: what they import besides is theirs.
CPU_NEEDS = {"av", "fsspec", "numpy", "pyarrow", "torch"}
INDEX_NEEDS = {"av", "fsspec", "numpy", "pyarrow", "rich"}
# Modules that stand or fall with a package of an extra.
NEED_AN_EXTRA = {
    "dali": "nvidia.dali",
    "decode.dali_decoder": "nvidia.dali",
    "decode.dali_pipeline": "nvidia.dali",
    "curate.cluster": "sklearn",
}

HOOK = f"""
import importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        for blocked in {[*BLOCKED, *OURS_ELSEWHERE]}:
            if name == blocked or name.startswith(blocked + "."):
                raise ImportError(f"{{name}} is not for loaders alone")
        return None

sys.meta_path.insert(0, Block())
"""


def run(code: str, folder: Path) -> Any:
    finished = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", HOOK + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_the_hook_blocks(tmp_path):
    code = "try:\n    import timm\nexcept ImportError as error:\n    print(json.dumps(str(error)))"
    assert run(code, tmp_path) == "timm is not for loaders alone"


def test_every_module_imports(tmp_path):
    folder = ROOT / "loaders"
    names = sorted(".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py"))
    missing = [name for name, package in NEED_AN_EXTRA.items() if package in BLOCKED or not has(package)]
    wanted = [name for name in names if name not in missing]
    assert {"cpu", "clip_loader", "draw.clip_list", "corpus.index"} <= set(wanted)
    code = f"""
import importlib
for name in {wanted}:
    importlib.import_module(f"trocar.loaders.{{name}}")
print(json.dumps(sorted(name for name in sys.modules if name.startswith("trocar."))))
"""
    imported = run(code, tmp_path)
    assert {f"trocar.loaders.{name}" for name in wanted} <= set(imported)
    others = {name.split(".")[1] for name in imported} - {"loaders"}
    assert others == {"kernels"}


def has(package: str) -> bool:
    parent = package.partition(".")[0]
    return find_spec(parent) is not None and find_spec(package) is not None


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("trocar.loaders.cpu", CPU_NEEDS),
        ("trocar.loaders.clip_loader", CPU_NEEDS),
        ("trocar.loaders.corpus.index", INDEX_NEEDS),
    ],
)
def test_what_is_imported_from_elsewhere(tmp_path, module, needs):
    """The packages that our own files import, found by asking who imports."""
    code = f"""
import builtins
plain_import, asked = builtins.__import__, set()

def asking_import(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "")
    if level == 0 and importer.startswith("trocar."):
        asked.add(name.partition(".")[0])
    return plain_import(name, globals, locals, fromlist, level)

builtins.__import__ = asking_import
import {module}
builtins.__import__ = plain_import
print(json.dumps(sorted(asked - set(sys.stdlib_module_names) - {{"trocar"}})))
"""
    assert set(run(code, tmp_path)) == needs


def test_a_corpus_and_a_list_are_loaded(tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(2):
        clips.write_numbered(tmp_path / "videos" / f"{number}.mp4", 60, video_id=number)
    code = """
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus

index_corpus(["videos"], "corpus", workers=1, progress=False)
options = {"batch": 2, "num_frames": 4, "stride": 2, "resolution": 32, "loader": "cpu", "device": "cpu", "threads": 1}
corpus = clip_loader(Corpus.open("corpus"), **options)
rows = clip_loader([("videos/0.mp4", 0.4, "cut"), ("videos/1.mp4", 1.0, "grasp")], **options)
shapes = [list(batch.frames.shape) for loader in (corpus, rows) for batch in loader]
labels = [label for batch in rows for label in batch.labels]
print(json.dumps([shapes, sorted(labels)]))
"""
    shapes, labels = run(code, tmp_path)
    assert len(shapes) == 9  # spans of 7 frames: 8 of each video, then a batch of the list
    assert {tuple(shape) for shape in shapes} == {(2, 4, 32, 32, 3)}
    assert labels == ["cut", "grasp"]
