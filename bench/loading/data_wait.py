"""How long training waits for its data: the same model on original videos, on proxies, and on proxies with span reuse.

Every arm is a pretraining run of its own; what is reported is the median over the second half of its steps.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.config.file import load_config
from ...engine.config.settings import ConfigError
from ...engine.pretrain import pretrain
from ...engine.record.metrics import read_metrics
from ..rows.cells import table_of
from ..rows.row import row

FIGURES = ("data_wait_percent", "clips_per_second", "spans_per_second", "amplification", "bytes_per_clip")


def bench_data_wait(
    device: torch.device,
    corpora: dict[str, Path],
    *,
    config: str = "surgrec_mae_unbalanced",
    views_per_span: int = 4,
    steps: int = 60,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Trains `config` for some steps on each corpus, and on the last of them once more with span reuse; one row each.

    corpora: a name and a folder for each. overrides: settings such as "optim.batch=64", for all arms. Raises ConfigError where the
    config does not fit, and CorpusError.
    """
    if steps < 2:
        raise ConfigError(f"steps={steps}: at least 2 are needed, as the first half does not count")
    arms = [(name, path, 1) for name, path in corpora.items()]
    name, path, _ = arms[-1]
    arms.append((f"{name}, {views_per_span} views a span", path, views_per_span))
    rows = []
    for name, path, views in arms:
        with tempfile.TemporaryDirectory() as folder:
            settings = [f"data.corpus={path}", f"run.dir={folder}", f"run.device={device.type}", f"optim.steps={steps}"]
            settings += ["run.log_every=1", "run.tensorboard=false", f"data.views_per_span={views}", *overrides]
            pretrain(load_config(config, settings), progress=False, listen=False)
            late = read_metrics(Path(folder))[steps // 2 :]
        medians = {figure: statistics.median(entry[figure] for entry in late) for figure in FIGURES}
        rows.append(row("data_wait", device, {"config": config, "corpus": name, "steps": steps, **medians}))
    return rows


table = table_of(
    {
        "videos": "{corpus}",
        "data wait": "{data_wait_percent:.0f} %",
        "clips/s": "{clips_per_second:.1f}",
        "spans/s": "{spans_per_second:.1f}",
        "amplification": "{amplification:.2f}",
    }
)
