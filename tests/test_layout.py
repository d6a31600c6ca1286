"""The house: folders at the root install as trocar.*, and nowhere else."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "configs", "engine", "judge", "kernels", "loaders", "ssl")
INNER_FOLDERS = sorted(
    {
        path.parent.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml") and path.parent.parent != ROOT
    }
)
MAY_IMPORT = {
    "kernels": set(),
    "loaders": {"kernels"},
    "ssl": {"kernels"},
    "engine": {"kernels", "loaders", "ssl"},
    "bench": {"engine", "kernels", "loaders", "ssl"},
    "judge": {"engine", "kernels", "loaders", "ssl"},
}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    # No inherited PYTHONPATH: what is imported has to come from the installation.
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_folders_shadow_nothing() -> None:
    assert not [path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    found = run(sys.executable, "-c", "import ssl; print(ssl.__file__, ssl.SSLContext)", cwd=ROOT)
    assert str(ROOT / "ssl") not in found
    assert found.split()[0].endswith("ssl.py")


def test_editable_install_maps_every_folder(tmp_path: Path) -> None:
    folders = [*FOLDERS, *INNER_FOLDERS]
    names = [f"trocar.{folder.replace('/', '.')}" for folder in folders]
    code = f"import importlib; [print(importlib.import_module(name).__path__[0]) for name in {names}]"
    assert run(sys.executable, "-c", code, cwd=tmp_path).split() == [str(ROOT / folder) for folder in folders]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "__init__.py", "py.typed"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", cwd=source)
    (built,) = (source / "out").glob("*.whl")
    return built


def test_wheel_holds_everything_inside_trocar(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"trocar", wheel.name.rpartition("-py3")[0] + ".dist-info"}
    assert {name for name in names if name.startswith("trocar/") and name.count("/") == 1} == {
        "trocar/__init__.py",
        "trocar/py.typed",  # without which type checkers take nothing from an installed package
    }
    for folder in (*FOLDERS, *INNER_FOLDERS):
        for path in (*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*.yaml")):
            assert f"trocar/{folder}/{path.name}" in names
    assert "trocar/bench/results/loading.jsonl" in names, "what `trocar plan` takes its rates from"


def test_wheel_runs_without_the_source(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import trocar.engine.config.file as config; print(config.__file__); "
        "print(config.load_config('demo_cpu').model.encoder); "
        "import trocar.engine.pretrain, trocar.loaders.cpu, ssl; print(trocar.loaders.cpu.__file__)"
    )
    imported, encoder, loader = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).split()
    assert imported == str(tmp_path / "site/trocar/engine/config/file.py")
    assert loader == str(tmp_path / "site/trocar/loaders/cpu.py")
    assert encoder == "tiny"


def test_version_is_that_of_the_metadata_and_costs_nothing_until_asked_for(wheel: Path, tmp_path: Path) -> None:
    """The wheel's, which says another one than the source that runs these tests."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (metadata,) = site.glob("*.dist-info/METADATA")
    metadata.write_text(re.sub(r"^Version: .*$", "Version: 7.8.9", metadata.read_text(), flags=re.MULTILINE))
    code = (
        "import sys, trocar; print('importlib.metadata' in sys.modules, trocar.__version__, "
        "hasattr(trocar, 'version'), hasattr(trocar, 'kernels')); from trocar import kernels; print(kernels.__name__)"
    )
    # -S: environments whose .pth files import something have importlib.metadata already.
    printed = run(sys.executable, "-S", "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).split()
    assert printed == ["False", "7.8.9", "False", "False", "trocar.kernels"]


def inner_arrows() -> dict[str, set[str]]:
    """The table of docs/architecture.md: folder to the folders beside it that it imports."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Arrows inside a folder")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", line) for line in table.splitlines() if line.startswith("| `")]
    return {folder: {f"{folder.partition('/')[0]}/{name}" for name in names} for folder, *names in rows}


def imports(path: Path) -> Iterator[tuple[ast.ImportFrom, Path]]:
    """Each relative import of a file, with the module that it names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            if target.with_suffix(".py").is_file():
                yield node, target
            else:
                yield from ((node, target / name.name) for name in node.names)


@pytest.mark.parametrize("root", sorted(MAY_IMPORT))
def test_arrows_point_one_way(root: str) -> None:
    """Between the folders at the root as the picture says, between those inside of them as the table says."""
    arrows, checked = inner_arrows(), 0
    for path in sorted((ROOT / root).rglob("*.py")):
        folder = path.parent.relative_to(ROOT).as_posix()
        for node, target in imports(path):
            place = f"{path}: line {node.lineno}"
            assert target.with_suffix(".py").is_file(), place
            there = target.parent.relative_to(ROOT).as_posix()
            if there.partition("/")[0] != root:
                assert there.partition("/")[0] in MAY_IMPORT[root], place
            elif "/" in folder:
                assert there == folder or there in arrows[folder], f"{place}: not in docs/architecture.md"
            checked += 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not (node.module or "").startswith("trocar"), f"{path}: line {node.lineno}: import relatively"
    assert checked


def test_the_table_of_arrows_is_whole_and_has_no_circle() -> None:
    arrows = inner_arrows()
    inner = {folder for folder in INNER_FOLDERS if not folder.startswith("configs/")}
    assert arrows.keys() == inner
    done: set[str] = set()
    while ready := {folder for folder in arrows.keys() - done if arrows[folder] <= done}:
        done |= ready
    assert done == inner


def test_folders_are_no_corridors() -> None:
    """Some 20 files a folder at most."""
    crowded = {folder: len(list((ROOT / folder).glob("*.py"))) for folder in (*FOLDERS, *INNER_FOLDERS)}
    assert not {folder: files for folder, files in crowded.items() if files > 21}


def test_files_are_short_or_say_why_not() -> None:
    long = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")] + list((ROOT / ".ci").glob("*.py"))
    assert long
    for path in long:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 300:
            assert "ver 300 lines" in (ast.get_docstring(ast.parse(text)) or ""), path


def test_readers_import_what_readers_share_alone() -> None:
    for path in sorted((ROOT / "judge" / "labels" / "datasets").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (node.level, node.module) in {(2, "annotations"), (2, "dataset")}, f"{path}: line {node.lineno}"


@pytest.mark.parametrize("blocked", ["timm", "torchvision", "sklearn", "tensorboard", "matplotlib"])
def test_loaders_alone_need_neither_model_nor_plots(blocked: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{blocked!r}] = None; import trocar.loaders.cpu, trocar.loaders.corpus.index"
    run(sys.executable, "-c", code, cwd=tmp_path)


def test_no_module_of_bench_imports_dali_at_the_top() -> None:
    """Nor anything of ours that does: tables, plans and made videos need none."""
    user = ROOT / "loaders" / "decode" / "dali_pipeline.py"
    assert 'import_module("nvidia.dali")' in user.read_text(encoding="utf-8")

    @functools.cache
    def imported(path: Path) -> set[Path]:
        """The modules of ours that one imports when it is imported itself, not inside functions."""
        found, pending = set(), list[ast.AST](ast.parse(path.read_text(encoding="utf-8")).body)
        while pending:
            node = pending.pop()
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                pending += ast.iter_child_nodes(node)
            elif isinstance(node, ast.ImportFrom) and node.level:
                folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                found |= {folder.with_suffix(".py"), *(folder / f"{name.name}.py" for name in node.names)}
        return {place for place in found if place.is_file()}

    assert user in imported(ROOT / "loaders" / "decode" / "dali_decoder.py")
    for start in sorted((ROOT / "bench").rglob("*.py")):
        seen, pending = {start}, [start]
        while pending:
            new = imported(pending.pop()) - seen
            seen |= new
            pending += new
        assert user not in seen, start


def test_what_differs_between_versions_of_pyav_stands_in_one_place() -> None:
    """No option that one of 17.1, 18 and 19 lacks, no rate or aspect that is taken for a Fraction, no question for the version."""
    strays = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        if path == ROOT / "loaders" / "video" / "pyav.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        converted = {
            id(argument) for call in calls if ast.unparse(call.func).endswith("as_fraction") for argument in call.args
        }
        strays += [
            f"{path}: line {call.lineno}: {keyword.arg}"
            for call in calls
            for keyword in call.keywords
            if keyword.arg in ("metadata_errors", "metadata_encoding")
        ]
        strays += [
            f"{path}: line {node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in converted
            if node.attr
            in (
                "average_rate",
                "base_rate",
                "guessed_rate",
                "sample_aspect_ratio",
                "display_aspect_ratio",
                "field_order",
            )
        ]
    assert not strays


def test_pages_of_the_interface_name_what_stands_there() -> None:
    """Each name of docs/api is defined, with a docstring, in the module that it names: the site is built from sources alone."""
    named = re.findall(
        r"^::: trocar\.(\S+)$", "\n".join(p.read_text("utf-8") for p in (ROOT / "docs/api").glob("*.md")), re.M
    )
    assert named
    for module, _, name in (path.rpartition(".") for path in named):
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        defined = {part.name: part for part in tree.body if isinstance(part, (ast.FunctionDef, ast.ClassDef))}
        assert ast.get_docstring(defined[name]), f"{module}.{name}"


def test_architecture_page_names_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sections = dict.fromkeys(("", *FOLDERS, *INNER_FOLDERS), "")
    section = ""
    for line in page.splitlines():
        section = line.split()[1].rstrip(":") if line.startswith("##") else section
        sections[section] = sections.get(section, "") + line + "\n"
    missing = [
        f"{folder}/{path.name}"
        for folder in (*FOLDERS, *INNER_FOLDERS)
        for path in (*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*.yaml"))
        if f"{path.name}`" not in (page if folder.startswith("configs") else sections[folder])
    ]
    assert not missing
    stale = [
        f"{folder}/{name}"
        for folder in (*FOLDERS, *INNER_FOLDERS)
        for name in re.findall(r"^\| `([\w]+\.py)` \|", sections.get(folder, ""), re.MULTILINE)
        if not (ROOT / folder / name).is_file()
    ]
    assert not stale
