"""What other libraries have of a run's encoder, by its settings alone: what they have not is refused before weights are read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..config.error import ConfigError
from ..config.settings import Config

MODEL_TYPES = {"flat": "videomae", "rope": "vjepa2"}  # of transformers, by model.positions
ONNX_PACKAGES = ("onnx", "onnxscript")


def check_library(config: Config, to: str, *, whole: bool) -> None:
    """Raises ConfigError where a run of these settings cannot be exported to a library, which names why. to: as of `publish`."""
    if whole and to != "transformers":
        raise ConfigError(f"--whole: --to {to} takes an encoder alone; leave it out")
    checks = {"transformers": lambda: _transformers(config, whole), "timm": lambda: _timm(config), "onnx": _onnx}
    checks.get(to, lambda: None)()


def library_folder(run_dir: Path, to: str, out: Path | None) -> Path:
    """Where an export goes. Raises ConfigError where something is there already."""
    out = out or run_dir / to
    if out.exists():
        raise ConfigError(f"{out}: is there already; name another folder with --out")
    return out


def _transformers(config: Config, whole: bool) -> None:
    positions, is_jepa = config.model.positions, config.objective.kind == "jepa"
    kind, targets = MODEL_TYPES.get(positions), config.objective.targets
    if kind is None:
        raise ConfigError(
            f"model.positions={positions}: transformers has no such video encoder (flat is its VideoMAE, rope its VJEPA2); export "
            "--to torch or onnx, or without --to for trocar"
        )
    if whole and is_jepa != (kind == "vjepa2"):
        objective = "a JEPA" if is_jepa else "an MAE"
        raise ConfigError(
            f"--whole: {objective} with model.positions={positions} is no model of transformers as a whole; export its encoder "
            "alone, without --whole"
        )
    if whole and not is_jepa and targets not in ("channel", "none"):
        raise ConfigError(
            f"objective.targets={targets}: VideoMAEForPreTraining knows channel and none; leave out --whole"
        )


def _timm(config: Config) -> None:
    steps = config.data.frames // config.model.tubelet
    if steps != 1 or config.model.positions == "rope":
        reason = "rotary positions in three axes" if steps == 1 else f"{steps} steps of time"
        raise ConfigError(
            f"timm's vision transformers see one picture, and this encoder has {reason}; export --to transformers, torch or onnx"
        )


def _onnx() -> None:
    lacking = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"--to onnx needs {' and '.join(lacking)}: pip install {' '.join(lacking)}, or, in a checkout, '.[onnx]'"
        )
