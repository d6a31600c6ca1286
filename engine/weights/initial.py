"""`model.init`: a run whose encoder begins with weights from elsewhere, and goes on learning."""

from __future__ import annotations

import json
from pathlib import Path

from ...ssl.jepa import JointEmbedding
from ...ssl.objective import Objective
from ..config.settings import Config
from .encoder_sources import find_encoder
from .files import WeightsError

RECORD = "init.json"


def initialize_encoder(config: Config, objective: Objective) -> str:
    """Puts the weights that model.init names into the objective's encoder, and into the target that follows it.

    Returns what matched, in words; "" where nothing is named. Decoder and predictor begin afresh. Raises WeightsError, with the
    lists, where a smaller share of the tensors than model.init_minimum matches, or where the positions are of another kind.
    """
    model = config.model
    if model.init is None:
        return ""
    found = find_encoder(
        Path(model.init),
        frames=config.data.frames,
        resolution=config.data.resolution,
        kind=model.init_kind,
        positions=model.init_positions,
        minimum=model.init_minimum,
    )
    source, wanted = found.encoder.state_dict(), objective.encoder.state_dict()
    if found.encoder.last_norm == "mean":  # it is of no tokens: theirs begins afresh
        source, wanted = ({n: v for n, v in part.items() if not n.startswith("norm.")} for part in (source, wanted))
    kept = {name: value for name, value in source.items() if name in wanted and value.shape == wanted[name].shape}
    missing = [f"  missing: {name}" for name in wanted if name not in kept]
    stray = [f"  stray:   {name}" for name in source if name not in kept]
    share = len(kept) / (len(wanted) + sum(name not in wanted for name in source))
    account = f"model.init: {found.account}; {len(kept)} of {len(wanted)} tensors of the encoder ({share:.1%}), {len(stray)} stray"
    if share < model.init_minimum:
        lists = "\n".join([*missing, *stray])
        raise WeightsError(
            f"{model.init}: {account}; {model.init_minimum:.1%} are asked for. Give model.encoder, width, depth, patch and tubelet "
            f"as the weights have them, or a smaller model.init_minimum\n{lists}"
        )
    ours, theirs = objective.encoder.position_kind, found.encoder.position_kind
    if ours != theirs:
        raise WeightsError(
            f"{model.init}: its positions are {theirs}, model.positions is {ours}; set model.positions={theirs}"
        )
    objective.encoder.load_state_dict(kept, strict=False)
    if isinstance(objective, JointEmbedding) and objective.follows:
        objective.target_encoder.load_state_dict(kept, strict=False)
    return account


def record_init(config: Config, account: str) -> None:
    """RUN/init.json says what the run began with."""
    if account:
        path = Path(config.run.dir) / RECORD
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"path": config.model.init, "account": account}), encoding="utf-8")
