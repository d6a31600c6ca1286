"""ConfigError, apart from the settings themselves, whose ranges follow from models and hence from PyTorch.

The command line needs it at once, and so does every process that `trocar index` and `trocar pack` start.
"""

from __future__ import annotations

from ...loaders.video.error import UsageError


class ConfigError(UsageError):
    """A setting that cannot be used; the message names the key, the value, what is accepted and the fix."""


def require(condition: bool, key: str, value: object, accepted: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: {value!r} is not accepted; give {accepted}")
