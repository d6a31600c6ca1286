"""Where a command computes."""

from __future__ import annotations

import torch

from ..config.error import ConfigError


def choose_device(name: str, option: str = "--device") -> torch.device:
    """name: "auto" (the first GPU, or the CPU), "cpu", "cuda" or "cuda:1". option: what said so, a key of the config or an option.

    Raises ConfigError where it is not here.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    is_key = not option.startswith("--")
    given = f"{option}={name}" if is_key else f"{option} {name}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        fix = f"set {option}=cpu" if is_key else f"give {option} cpu"
        raise ConfigError(f"{given}: PyTorch finds no CUDA device; run `trocar doctor`, or {fix}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{given}: is not accepted; give auto, cpu, cuda or cuda:1") from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise ConfigError(f"{given}: not here; give auto or cpu{f' or cuda:0 .. cuda:{count - 1}' * bool(count)}")
    return device
