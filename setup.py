"""Maps the folders at the root to subpackages of `trocar`; everything else stands in pyproject.toml."""

from setuptools import setup

FOLDERS = ["bench", "bench/datasets", "configs", "engine", "kernels", "loaders", "ssl"]

setup(
    packages=[f"trocar.{folder.replace('/', '.')}" for folder in FOLDERS],
    package_dir={f"trocar.{folder.replace('/', '.')}": folder for folder in FOLDERS},
    package_data={"trocar.bench": ["results/*.jsonl", "results/*/*.jsonl"], "trocar.configs": ["*.yaml", "*/*.yaml"]},
)
