"""A run's weights as one safetensors file, for other tools: checkpoints hold optimizer state too, in a file a rank."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from ...loaders.corpus.whole_file import write_whole
from ..checkpoint.checkpoint import load_checkpoint
from ..inputs.checkpoints import newest_checkpoint
from ..record.run_record import last_folder
from .run_encoder import encoder_tensors


def export_weights(run_dir: Path, out: Path | None = None, *, whole: bool = False) -> Path:
    """Writes the newest checkpoint's encoder (of a JEPA the target encoder), or with `whole` the whole objective. Returns the file.

    out: RUN/encoder.safetensors or RUN/model.safetensors where None. The config travels as metadata. Raises CheckpointError.
    """
    checkpoint = load_checkpoint(newest_checkpoint(run_dir))
    tensors = checkpoint.model if whole else encoder_tensors(checkpoint.model)
    out = out or run_dir / ("model.safetensors" if whole else "encoder.safetensors")
    config = (run_dir / "config.yaml").read_text(encoding="utf-8")
    metadata = {"step": str(checkpoint.state["step"]), "config": config, "folder": last_folder(run_dir)}
    write_whole(out, lambda target: save_file(tensors, target, metadata=metadata))
    return out
