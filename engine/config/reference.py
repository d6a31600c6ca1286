"""Every key of a config with its meaning, type, range and default, as docs/config.md has them: all read from `config` itself.

The meaning is what the docstring of a section says behind "key: ". The range is what a section says when it refuses a value. None
of the two stands anywhere else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ...ssl.choices import BlockRecipe
from ..console.table import Table
from .error import ConfigError
from .settings import Config, DataConfig, MaskConfig, OptimConfig, RunConfig, SamplingPhase, SizePhase, plain

SECTIONS: dict[str, Any] = dict(get_type_hints(Config))
# Of lists of sections inside a section.
LISTED = {"data.sizes": SizePhase, "data.phases": SamplingPhase, "objective.masks": MaskConfig}
# Whose keys they share.
OF: dict[Any, Any] = {SizePhase: DataConfig, SamplingPhase: DataConfig, MaskConfig: BlockRecipe}
# What a section cannot be made without, or where it looks at a key at all.
LEAST: dict[Any, dict[str, Any]] = {
    RunConfig: {"dir": "run"},
    DataConfig: {"corpus": "corpus", "tree": "tree"},
    OptimConfig: {"steps": 1},
    SizePhase: {"from_step": 1},
    SamplingPhase: {"first_draw": 0},
    MaskConfig: {"blocks": 1, "scale": (0.5, 0.5)},
}
# One of these every number with a range refuses.
WRONG: tuple[Any, ...] = (-1, 0, 3, 2**63, (-1, -1), (3, 3), {"name": -1})
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def meanings(kind: type) -> dict[str, str]:
    """By key, what the docstring of a section says of it."""
    names = "|".join(field.name for field in dataclasses.fields(kind))
    entry = re.compile(rf"(?:^|(?<=[.,;:] ))((?:{names})(?:, (?:{names}))*): ")
    found: dict[str, str] = {}
    for paragraph in (kind.__doc__ or "").split("\n\n"):
        parts = entry.split(" ".join(paragraph.split()))
        for keys, text in zip(parts[1::2], parts[2::2], strict=True):
            found |= dict.fromkeys(keys.split(", "), text.strip(" ,;."))
    return found


def type_in_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join("null" if part is NoneType else type_in_words(part) for part in arguments)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list: {type_in_words(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(type_in_words, arguments))}]"
    if origin is dict:
        return f"{{name: {type_in_words(arguments[1])}}}"
    return WORDS.get(annotation) or "keys, see below"


def accepted(kind: Any, key: str) -> str:
    """What the section accepts for a number, in its own words; "" where it refuses none."""
    for value in WRONG:
        try:
            kind(**{**LEAST.get(kind, {}), **({"stride": None} if key == "sample_fps" else {}), key: value})
        except ConfigError as error:
            match = re.match(rf"[\w.: \[\]]*\b{key}: .* is not accepted; give (?P<accepted>.*)", str(error))
            if match:
                return match["accepted"]
        except (TypeError, ValueError, AttributeError):  # a value of another type, which the YAML's reader would refuse
            continue
    return ""


def section_table(section: str) -> str:
    """Markdown, a row a key. section: of SECTIONS or LISTED."""
    kind: Any = SECTIONS.get(section) or LISTED[section]
    texts, annotations, rows = meanings(kind), get_type_hints(kind), []
    of = OF.get(kind)
    for field in dataclasses.fields(kind):
        name, source = field.name, kind
        if name not in texts and of is not None:
            texts[name], source = meanings(of)[name] if of is BlockRecipe else f"as `data.{name}`", of
        limits = accepted(source, name) if _has_range(annotations[name]) else ""
        cells = (texts.get(name, ""), type_in_words(annotations[name]), limits, default_in_words(field))
        rows.append((f"`{name}`", *cells))
    return Table(("key", "meaning", "type", "accepted", "default"), rows).markdown()


def _has_range(annotation: Any) -> bool:
    """Whether there are values of the type that the section itself has to look at."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_has_range(part) for part in get_args(annotation))
    return annotation in (int, float) or get_origin(annotation) is dict or get_args(annotation)[:1] == (float,)


def default_in_words(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "has to be given"
    if (isinstance(value, Mapping) and not value) or value == ():
        return "none"
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=1000).strip()
    return f"`{text.removesuffix('...').strip()}`"
