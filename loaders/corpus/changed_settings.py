"""What differs between the settings that a folder was made with and those of now, in words."""

from __future__ import annotations

import json
import re
from typing import Any


def changed_settings(was: Any, now: Any, key: str = "") -> list[str]:
    """A text for each value that differs, by its key, "section.key" in nested ones. was, now: JSON values.

    A digest says what it is of, as nobody reads one.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        places = {name: f"{key}.{name}" if key else name for name in {**was, **now}}
        return [
            text for name, place in places.items() for text in changed_settings(was.get(name), now.get(name), place)
        ]
    if was == now:
        return []
    if all(isinstance(value, str) and re.match("[0-9a-f]{16}", value) for value in (was, now)):
        return [f"another {key}"]
    return [f"{key} was {_shown(was)}, is {_shown(now)}"]


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
