"""Trocar: from a folder of long surgical videos to a pretrained video encoder.

The root of the repository is the package `trocar`: the folders beside this file are its subpackages, of which none has such a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:  # else every name would count as one that is here

    def __getattr__(name: str) -> str:
        """`__version__`, as it was installed, read when asked for: reading it takes longer than all else here."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("trocar")
