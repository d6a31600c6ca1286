"""Maps the folders at the root, and those inside them, to subpackages of `trocar`; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
ROOTS = ("bench", "configs", "engine", "kernels", "loaders", "ssl")
FILES = [path for root in ROOTS for path in (ROOT / root).rglob("*") if path.suffix in (".py", ".yaml")]
FOLDERS = sorted({*ROOTS, *(path.parent.relative_to(ROOT).as_posix() for path in FILES)})

setup(
    packages=[f"trocar.{folder.replace('/', '.')}" for folder in FOLDERS],
    package_dir={f"trocar.{folder.replace('/', '.')}": folder for folder in FOLDERS},
    package_data={"trocar.bench": ["results/*.jsonl", "results/*/*.jsonl"], "": ["*.yaml"]},
)
