"""One YAML is one run: YAML and `a.b=value` arguments into the dataclasses of `config`, strictly.

An unknown key is refused with the nearest known one, a wrong type with what is accepted. Nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ...loaders.corpus.text_file import unreadable_text
from .error import ConfigError

if TYPE_CHECKING:
    from .settings import Config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG_FILE = "config.yaml"  # in a run's directory
Settings = TypeVar("Settings")


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a config.

    source: path of a YAML file, or the name of one of ours ("demo_cpu"). overrides: "section.key=value", the value in YAML.
    Raises ConfigError.
    """
    from .settings import Config  # brings PyTorch along

    tree = read_yaml(config_path(source), "sections (run, data, model, objective, optim, probe, validation)")
    for override in overrides:
        _apply(tree, override)
    _keep_what_was_default(tree)
    return _build(Config, tree, "")


def parse_config(text: str, named: str) -> Config:
    """A config from its YAML; named: what the text comes from. Raises ConfigError."""
    from .settings import Config

    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{named}: its config cannot be read as YAML: {error}") from error
    return _build(Config, tree, "")


def load_settings(kind: type[Settings], path: Path) -> Settings:
    """A YAML file as one dataclass, as strictly as a config. Raises ConfigError, which names the file."""
    try:
        return _build(kind, read_yaml(path, "keys"), "")
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}") from error


def apply_settings(
    kind: type[Settings], values: dict[str, Any], changes: Iterable[str] | Mapping[str, Any], prefix: str
) -> Settings:
    """A flat dataclass from `values` with some of them changed: "key=value" in YAML, or a mapping. Raises ConfigError."""
    if not isinstance(changes, Mapping):
        parted = [change.partition("=") for change in changes]
        for key, separator, _ in parted:
            if not (key and separator):
                raise ConfigError(f"{key!r} is not a setting; write key=value, for example epochs=20")
        changes = {key: yaml.safe_load(text) for key, _, text in parted}
    return _build(kind, {**values, **changes}, prefix)


def read_yaml(path: Path, expected: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(unreadable_text(path, error, "YAML file")) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}, not {expected}")
    return tree


def config_path(source: str | Path) -> Path:
    """The file that `source` names: a path, or the name of a config that ships with trocar."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise ConfigError(f"{path}: no such config file")
        return path
    shipped = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if path.name not in shipped or len(path.parts) != 1:
        raise ConfigError(f"{source}: no such config{_nearest(str(source), shipped)}; there are {', '.join(shipped)}")
    return shipped[path.name]


def _keep_what_was_default(tree: dict[str, Any]) -> None:
    """A run that began before `data.max_repeats` had a default goes on without, unless it is named now: its draws stay."""
    run, data = tree.get("run"), tree.get("data")
    if not (isinstance(run, dict) and isinstance(data, dict)) or "max_repeats" in data:
        return
    began = Path(str(run.get("dir"))) / CONFIG_FILE
    if began.is_file():
        try:
            before = read_yaml(began, "sections").get("data")
        except ConfigError:
            return  # whatever it was, this run's own takes its place
        data["max_repeats"] = before.get("max_repeats") if isinstance(before, dict) else None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or len(parts) != 2 or not all(parts):
        raise ConfigError(f"{override!r} is not a setting; write section.key=value, for example optim.steps=100")
    try:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            # A shell takes the quotes away that YAML wants around what begins with @, the name of a file.
            quoted = re.sub(r"(^|[\[,]) *(@[^\[\],'\"]+)", r"\1'\2'", text)
            if quoted == text:
                raise
            value = yaml.safe_load(quoted)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not a YAML value: {error}") from error
    section = tree.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"{parts[0]}: holds {section!r}, not a section of keys")
    section[parts[1]] = value


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else ""


def _build(kind: type[Any], tree: Mapping[str, Any], prefix: str) -> Any:
    known = {item.name: item for item in dataclasses.fields(kind)}
    annotations = get_type_hints(kind)
    for key in tree:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: unknown key{_nearest(str(key), known)}; known are {', '.join(known)}")
    values = {}
    for name, item in known.items():
        if name in tree:
            values[name] = _convert(tree[name], annotations[name], f"{prefix}{name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(
                f"{prefix}{name}: missing; set it in the YAML or as {prefix}{name}=... on the command line"
            )
    return kind(**values)


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """`value` as `annotation`, or ConfigError. No conversion changes a value's meaning."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: holds {value!r}, not a section of keys")
        return _build(annotation, value, f"{key}.")  # pyright: ignore[reportArgumentType]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [choice for choice in arguments if choice is not type(None)]
        if any(get_origin(choice) is Literal and value in get_args(choice) for choice in choices):
            return value
        (annotation,) = [choice for choice in choices if get_origin(choice) is not Literal] or choices
        return _convert(value, annotation, key)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{key}: {value!r} is not accepted{_nearest(str(value), map(str, arguments))}; one of {arguments}"
            )
        return value
    if origin is tuple and arguments[-1] is Ellipsis:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key}: {value!r} is not accepted; give a list")
        return tuple(_convert(item, arguments[0], f"{key}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: {value!r} is not accepted; give names with values, {{name: value}}")
        return {_convert(name, str, key): _convert(item, arguments[1], f"{key}.{name}") for name, item in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            raise ConfigError(f"{key}: {value!r} is not accepted; give a list of {len(arguments)} numbers")
        return tuple(_convert(item, kind, key) for item, kind in zip(value, arguments, strict=True))
    if annotation is float:
        if isinstance(value, str):  # YAML reads 1e-4, without a point, as text
            try:
                value = float(value)
            except ValueError:
                raise ConfigError(f"{key}: {value!r} is not a number") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{key}: {value!r} is not a finite number")
        return float(value)
    if type(value) is not annotation and key.endswith("resolution"):
        raise ConfigError(f"{key}: {value!r} is not accepted; clips are square: give their side, one number of pixels")
    if type(value) is not annotation:
        raise ConfigError(f"{key}: {value!r} is {type(value).__name__}, not {annotation.__name__}")
    return value
