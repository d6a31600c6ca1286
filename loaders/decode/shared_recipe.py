"""A recipe in memory that a loader shares with its decoding processes: written once, its arrays never copied."""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Sequence

from .recipe import Recipe
from .threads import LoaderError


def share_recipe(recipe: Recipe) -> tuple[int, tuple[int, ...]]:
    """(a descriptor of memory that holds the recipe, the sizes of its parts). All processes look at the same arrays."""
    arrays: list[pickle.PickleBuffer] = []
    try:
        text = pickle.dumps(recipe, protocol=5, buffer_callback=arrays.append)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise LoaderError(
            f"what is to be loaded cannot be sent to decoding processes: {error}; set workers=0, for threads"
        ) from error
    parts = [memoryview(text), *(array.raw() for array in arrays)]
    descriptor = os.memfd_create("trocar_recipe")
    with open(descriptor, "wb", closefd=False) as file:
        for part in parts:
            file.write(part)
            file.write(bytes(-len(part) % 64))
    return descriptor, tuple(len(part) for part in parts)


def load_recipe(descriptor: int, sizes: Sequence[int]) -> Recipe:
    """What `share_recipe` wrote; its arrays stay where they are, for all processes."""
    memory = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    parts, start = [], 0
    for size in sizes:
        parts.append(memory[start : start + size])
        start += -(-size // 64) * 64
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301  (our own loader's)
