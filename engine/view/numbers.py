"""Pictures as numbers: what --json writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ...loaders.corpus.whole_file import write_text_whole


def write_numbers(path: Path, values: dict[str, Any]) -> None:
    """JSON, whole or not at all. Arrays and tensors become lists; what is not finite becomes null, which JSON has."""
    write_text_whole(path, json.dumps({name: _plain(value) for name, value in values.items()}, indent=1) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) or type(value).__name__ == "Tensor":  # without importing PyTorch
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
