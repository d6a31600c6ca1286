"""A pickle is a program. None is run, whatever file it stands in: malicious ones are tried in all that is read.

Checkpoints have theirs in test_checkpoint.py, weights more in test_convert.py, published folds in test_datasets.py.
"""

from __future__ import annotations

import ast
import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from clips import write_numbered

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.inputs.checkpoints import CheckpointError
from trocar.engine.step.teacher import load_teacher
from trocar.engine.weights.convert import convert, read_encoder
from trocar.engine.weights.files import WeightsError, read_weights
from trocar.judge.labels.dataset import DatasetError, load_card
from trocar.judge.labels.table import read_table
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.selection import read_list
from trocar.loaders.corpus.sources import list_videos
from trocar.loaders.curate.embeddings import EmbeddingRows, Manifest, write_shard
from trocar.loaders.curate.state import ClusterState
from trocar.loaders.draw.tree import ClusterTree

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "engine", "judge", "kernels", "loaders", "ssl")


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(path)))  # noqa: S301
    assert path.exists(), "the bomb is a dud"
    path.unlink()
    yield path
    assert not path.exists(), "a pickle was run"


def plain(mark: Path) -> bytes:
    return pickle.dumps(Bomb(mark), protocol=2)


def zipped(mark: Path) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save({"model": {"blocks.0.norm1.weight": torch.ones(2)}, "extra": Bomb(mark)}, buffer)
    return buffer.getvalue()


def array(mark: Path) -> bytes:
    """An array of objects, which NumPy pickles."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def arrays(mark: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, centroids=np.array([Bomb(mark)], dtype=object))
    return buffer.getvalue()


def extension(mark: Path, arrow: bool = False) -> bytes:
    """A column of a type that Arrow before 14.0.1 rebuilt from a pickle in the file's metadata (CVE-2023-47248)."""
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Bomb(mark))}
    field = pa.field("id", pa.string(), metadata=metadata)
    table = pa.table([pa.array(["a"])], schema=pa.schema([field]))
    sink = io.BytesIO()
    if arrow:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, sink)
    return sink.getvalue()


def yaml_object(mark: Path) -> bytes:
    return f"run: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]".encode()


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    write_numbered(folder / "0.mp4", 20, gop=10)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


@pytest.mark.parametrize("name", ["videos.parquet", "gops.parquet", "packets.arrow"])
@pytest.mark.parametrize("bomb", [plain, extension], ids=lambda bomb: bomb.__name__)
def test_corpus_tables(indexed: Path, tmp_path: Path, mark: Path, name: str, bomb: Callable[..., bytes]) -> None:
    for path in indexed.iterdir():
        os.link(path, tmp_path / path.name)
    (tmp_path / name).unlink()
    is_arrow = bomb is extension and name.endswith(".arrow")
    (tmp_path / name).write_bytes(bomb(mark, True) if is_arrow else bomb(mark))
    with pytest.raises(CorpusError):
        read_corpus(tmp_path)


def read_corpus(folder: Path) -> None:
    corpus = Corpus.open(folder)
    list(corpus.scan("id"))
    corpus.gops(0)


def embeddings(folder: Path) -> Path:
    manifest = Manifest(**{**dict.fromkeys(Manifest.__dataclass_fields__, ""), **NUMBERS})
    manifest.write(folder)
    write_shard(folder, 0, np.zeros((4, 8), np.float16))
    return folder


NUMBERS: dict[str, Any] = {"version": 1, "rows": 4, "width": 8, "rows_per_shard": 4}


@pytest.mark.parametrize(
    ("place", "bomb"),
    [
        ("manifest.json", plain),
        ("shards/00000.npy", plain),
        ("shards/00000.npy", array),
        ("spans.parquet", plain),
        ("spans.parquet", extension),
    ],
)
def test_embeddings(tmp_path: Path, mark: Path, place: str, bomb: Callable[[Path], bytes]) -> None:
    folder = embeddings(tmp_path)
    assert len(EmbeddingRows(folder).read(0, 4)) == 4
    (folder / place).write_bytes(bomb(mark))
    with pytest.raises(CorpusError):
        read_embeddings(folder)


def read_embeddings(folder: Path) -> None:
    rows = EmbeddingRows(folder)
    rows.read(0, 4)
    rows.spans()


@pytest.mark.parametrize("bomb", [plain, extension], ids=lambda bomb: bomb.__name__)
def test_a_tree(tmp_path: Path, mark: Path, bomb: Callable[[Path], bytes]) -> None:
    (tmp_path / "tree.parquet").write_bytes(bomb(mark))
    with pytest.raises(CorpusError):
        ClusterTree.read(tmp_path)


@pytest.mark.parametrize("bomb", [plain, arrays], ids=lambda bomb: bomb.__name__)
def test_what_an_interrupted_clustering_left(tmp_path: Path, mark: Path, bomb: Callable[[Path], bytes]) -> None:
    state = ClusterState(tmp_path, {})
    (state.folder / "level_1.npz").write_bytes(bomb(mark))
    with pytest.raises(ValueError, match="allow_pickle"):
        state.step("level_1", dict)


def test_videos_and_lists(tmp_path: Path, mark: Path) -> None:
    for name in ("bomb.mp4", "bomb.webm", "bomb.ts", "list.csv", "list.txt"):
        (tmp_path / name).write_bytes(plain(mark))
    write_numbered(tmp_path / "good.mp4", 20, gop=10)
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    assert len(Corpus.open(tmp_path / "corpus")) == 1
    assert (tmp_path / "corpus" / "quarantine.csv").read_text().count("bomb.") >= 3
    for read in (lambda: list_videos([str(tmp_path / "list.csv")]), lambda: read_list(tmp_path / "list.txt")):
        with pytest.raises(CorpusError):
            read()
    with pytest.raises(DatasetError):
        read_table(tmp_path / "list.csv")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("bomb", [plain, zipped], ids=lambda bomb: bomb.__name__)
def test_weights(tmp_path: Path, mark: Path, suffix: str, bomb: Callable[[Path], bytes]) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(bomb(mark))
    for read in (read_weights, convert, read_encoder):
        with pytest.raises(WeightsError):
            read(path)


@pytest.mark.parametrize("bomb", [plain, zipped], ids=lambda bomb: bomb.__name__)
def test_weights_of_an_image_model(tmp_path: Path, mark: Path, bomb: Callable[[Path], bytes]) -> None:
    """timm reads the file that `trocar embed` names."""
    path = tmp_path / "weights.pth"
    path.write_bytes(bomb(mark))
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        timm.create_model("resnet10t", pretrained=False, checkpoint_path=str(path))


@pytest.mark.parametrize("bomb", [plain, yaml_object], ids=lambda bomb: bomb.__name__)
def test_configs_and_cards(tmp_path: Path, mark: Path, bomb: Callable[[Path], bytes]) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_bytes(bomb(mark))
    with pytest.raises(ConfigError, match=r"cannot be read as YAML|not a readable YAML file in UTF-8"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"cannot be read as YAML|not a readable YAML file in UTF-8"):
        load_card(path)
    with pytest.raises(ConfigError, match="is not a YAML value"):
        load_config("demo_cpu", [f"run.dir={yaml_object(mark).decode().partition(': ')[2]}"])


def test_a_teacher_that_is_no_run(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(plain(mark))
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000001" / "manifest.json").write_bytes(plain(mark))
    settings = ["data.corpus=none", f"run.dir={tmp_path / 'run'}", f"objective.teacher={tmp_path}"]
    with pytest.raises((CheckpointError, ConfigError)):
        load_teacher(load_config("demo_jepa_cpu", settings))


# Everything that could run what a file says, and where it may stand.
ALLOWED = {
    ("engine/weights/files.py", "torch.load"),  # weights_only
    ("loaders/curate/state.py", "np.load"),  # its default: no pickles
    ("judge/labels/datasets/multibypass140.py", "pickletools.genops"),  # reads the text, runs nothing
    ("engine/curate/embedders.py", "timm.create_model"),  # reads with weights_only, tried above
    ("judge/downstream/features.py", "np.load"),
    # Between a loader and its own processes, by descriptors that nobody else has.
    ("loaders/decode/worker.py", "pickle.loads"),
    ("loaders/decode/worker.py", "pickle.dumps"),
    ("loaders/decode/shared_recipe.py", "pickle.loads"),
    ("loaders/decode/shared_recipe.py", "pickle.dumps"),
    ("loaders/decode/messages.py", "pickle.loads"),
    ("loaders/decode/messages.py", "pickle.dumps"),
    ("judge/downstream/finetune.py", "np.load"),
    ("judge/downstream/results.py", "np.load"),
    ("judge/workflow/cell.py", "np.load"),
    ("judge/workflow/results.py", "np.load"),
    ("loaders/screen/screen.py", "np.load"),
    # What a person hands to `trocar screen --model`: TorchScript is a program, and docs/hygiene.md says so.
    ("loaders/screen/models.py", "torch.jit.load"),
    ("loaders/screen/models.py", "np.load"),
}
DANGEROUS = {
    "torch": {"load", "jit.load", "package.PackageImporter", "hub.load", "hub.load_state_dict_from_url"},
    "np": {"load", "fromfile", "lib.npyio.NpzFile"},
    "numpy": {"load", "fromfile"},
    "yaml": {"load", "load_all", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all"},
    "timm": {"create_model"},
}
DANGEROUS_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pickletools", "pandas"}
DANGEROUS_NAMES = {"eval", "exec", "FileSystemReader", "load_state_dict_from_url", "from_pretrained"}


def dangers(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls in a file that read what may be a program, by their name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        module, _, rest = name.partition(".")
        is_known = rest in DANGEROUS.get(module, ()) or module in DANGEROUS_MODULES or name in DANGEROUS_NAMES
        if is_known or rest.rpartition(".")[2] in DANGEROUS_NAMES - {"eval"}:  # model.eval() is no danger
            yield name, node


def test_readers_of_programs_stand_where_they_are_known() -> None:
    found = set()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name, call in dangers(path):
                found.add((path.relative_to(ROOT).as_posix(), name))
                keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert name != "torch.load" or keywords.get("weights_only") == "True", path
                assert keywords.get("allow_pickle", "False") == "False", path
            imported = {
                name.name if isinstance(node, ast.Import) else str(node.module)
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for name in node.names
            }
            # An error's class may be named; nothing else of such a module is used but by the calls above.
            assert imported & DANGEROUS_MODULES <= {"pickle", "pickletools"}, path
    assert found == ALLOWED


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    source = "import torch\ntorch.load('a')\nnp.load('b')\npickle.loads(b'')\nyaml.load('c')\neval('d')\nmodel.eval()\n"
    (tmp_path / "a.py").write_text(source + "Model.from_pretrained('e')\n")
    names = [name for name, _ in dangers(tmp_path / "a.py")]
    assert names == ["torch.load", "np.load", "pickle.loads", "yaml.load", "eval", "Model.from_pretrained"]
