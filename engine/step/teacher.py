"""The frozen encoder that a run learns from (SALT, arXiv 2509.24317): named by path, checked by checksum, never saved again."""

from __future__ import annotations

import json
from pathlib import Path

from ...loaders.corpus.whole_file import write_text_whole
from ...ssl.encoder import VideoEncoder
from ..config.settings import Config, ConfigError
from ..weights.run_encoder import load_run_encoder, weights_digest

RECORD = "teacher.json"


def load_teacher(config: Config) -> VideoEncoder | None:
    """The teacher that objective.teacher names, or None. The run's folder remembers its checksum: resumed with another teacher, it
    would learn something else. Raises ConfigError where the checksum is another, CheckpointError where there is no such encoder."""
    objective = config.objective
    if objective.teacher is None:
        return None
    encoder = load_run_encoder(Path(objective.teacher))[0]
    checksum = weights_digest(encoder)
    record = Path(config.run.dir) / RECORD
    wanted, where = objective.teacher_checksum, "objective.teacher_checksum"
    if wanted is None and record.exists():
        wanted, where = json.loads(record.read_text(encoding="utf-8"))["checksum"], str(record)
    if wanted not in (None, checksum):
        raise ConfigError(
            f"objective.teacher: the encoder in {objective.teacher} has the checksum {checksum}, but {where} says {wanted}; "
            "name the teacher that is meant, or set run.dir elsewhere"
        )
    # All ranks come here at once, and none may read what another has half written.
    write_text_whole(record, json.dumps({"path": objective.teacher, "checksum": checksum}))
    return encoder
