"""Maps the root to the package `trocar`, the folders in it to subpackages; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
ROOTS = ("bench", "configs", "engine", "judge", "kernels", "loaders", "ssl")
FILES = [path for root in ROOTS for path in (ROOT / root).rglob("*") if path.suffix in (".py", ".yaml")]
FOLDERS = sorted({*ROOTS, *(path.parent.relative_to(ROOT).as_posix() for path in FILES)})

setup(
    script_name="setup.py",  # pip calls it otherwise, and what is not known as the script would count as a module of trocar
    packages=["trocar", *(f"trocar.{folder.replace('/', '.')}" for folder in FOLDERS)],
    package_dir={"trocar": ".", **{f"trocar.{folder.replace('/', '.')}": folder for folder in FOLDERS}},
    package_data={
        "trocar": ["py.typed"],
        "trocar.bench": ["results/*.jsonl", "results/*/*.jsonl"],
        "": ["*.yaml"],
    },
)
