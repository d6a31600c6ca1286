"""The frozen encoder that a run learns from (SALT, arXiv 2509.24317): named by path, checked by checksum, never saved again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from uuid import uuid4

import torch

from ..ssl.encoder import SIZES, VideoEncoder
from .checkpoint import CheckpointError, checkpoints, load_checkpoint
from .config import Config, ConfigError
from .config_file import CONFIG_FILE, load_config

RECORD = "teacher.json"


def build_encoder(config: Config) -> VideoEncoder:
    """The encoder that a config describes, freshly initialised. Raises ValueError where sizes do not fit."""
    choice, size = config.model, SIZES[config.model.encoder]
    return VideoEncoder(
        choice.width or size.width,
        choice.depth or size.depth,
        choice.heads or size.heads,
        frames=config.data.frames,
        resolution=config.data.resolution,
        tubelet=choice.tubelet,
        patch=choice.patch,
        positions=choice.positions,
    )


def load_encoder(path: Path) -> tuple[VideoEncoder, str]:
    """The encoder of a run, with the SHA-256 of its weights: of a JEPA the target encoder, else the encoder itself.

    path: a run's folder, whose newest checkpoint counts, or one of its checkpoints. Raises CheckpointError or ConfigError.
    """
    run_dir = path.parent.parent if path.parent.name == "checkpoints" else path
    saved = [path] if run_dir != path else checkpoints(path)
    if not saved or not (run_dir / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{path}: neither a run with a checkpoint nor a checkpoint of a run (RUN/checkpoints/step_...)"
        )
    tensors = load_checkpoint(saved[-1]).model
    part = "target_encoder." if any(name.startswith("target_encoder.") for name in tensors) else "encoder."
    state = {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().flatten().view(torch.uint8).numpy().data)
    encoder = build_encoder(load_config(run_dir / CONFIG_FILE))
    encoder.load_state_dict(state)
    return encoder, digest.hexdigest()


def load_teacher(config: Config) -> VideoEncoder | None:
    """The teacher that objective.teacher names, or None. The run's folder remembers its checksum: resumed with another teacher, it
    would learn something else. Raises ConfigError where the checksum is another, CheckpointError where there is no such encoder."""
    objective = config.objective
    if objective.teacher is None:
        return None
    encoder, checksum = load_encoder(Path(objective.teacher))
    record = Path(config.run.dir) / RECORD
    wanted, where = objective.teacher_checksum, "objective.teacher_checksum"
    if wanted is None and record.exists():
        wanted, where = json.loads(record.read_text(encoding="utf-8"))["checksum"], str(record)
    if wanted not in (None, checksum):
        raise ConfigError(
            f"objective.teacher: the encoder in {objective.teacher} has the checksum {checksum}, but {where} says {wanted}; "
            "name the teacher that is meant, or set run.dir elsewhere"
        )
    record.parent.mkdir(parents=True, exist_ok=True)
    # All ranks come here at once, and none may read what another has half written.
    unfinished = record.with_suffix(f".{uuid4().hex}")
    unfinished.write_text(json.dumps({"path": objective.teacher, "checksum": checksum}), encoding="utf-8")
    unfinished.replace(record)
    return encoder
