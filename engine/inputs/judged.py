"""What others found: `report.csv` of `trocar bench downstream`, what encoders are worth; JSON of `trocar bench audit`, which videos
of a benchmark stand in a corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...loaders.corpus.text_file import open_table, unreadable_text
from ..config.error import ConfigError
from ..console.table import Table

COLUMNS = ("dataset", "protocol", "model", "metric", "score", "low", "high", "seeds", "flags")


def judged_table(path: Path) -> Table:
    """A row for each encoder, data set and protocol: score and its 95 % interval in percent. Raises ConfigError."""
    what = "report.csv of `trocar bench downstream`"
    with open_table(path, ConfigError, columns=COLUMNS, mend=f"give the {what}") as reader:
        rows = [{name: row[name] or "" for name in COLUMNS} for row in reader]
    try:
        cells = [[row[name] for name in COLUMNS[:4]] + _scores(row) + [row["seeds"], row["flags"]] for row in rows]
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as a {what}: {error}") from error
    header = ("data set", "protocol", "encoder", "metric", "score", "95 % interval", "seeds", "flags")
    return Table(header, cells)


def audited_lines(paths: Sequence[Path]) -> list[str]:
    """A line for each benchmark: which of its validation and test rows come from videos of the corpus. Raises ConfigError."""
    lines = []
    for path in paths:
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            title, compared = tree["title"] or path.stem, tree["compared_videos"]
            found = [finding["detail"] for finding in tree["findings"] if finding["kind"].startswith("pretraining")]
        except OSError as error:
            raise ConfigError(unreadable_text(path, error, "JSON of `trocar bench audit`")) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: cannot be read as what `trocar bench audit --json` writes: {error!r}"
            ) from error
        if compared is None:
            raise ConfigError(
                f"{path}: this audit compared no corpus; run `trocar bench audit {title} --corpus CORPUS --json`"
            )
        said = "; ".join(found) or "no row of validation or test comes from a video of the corpus"
        lines.append(f"{title}: {said} ({compared:,} videos compared)")
    return lines


def _scores(row: dict[str, str]) -> list[str]:
    """An empty end of an interval is one that is not known."""
    score, low, high = (f"{100 * float(row[name]):.2f}" if row[name] else "" for name in ("score", "low", "high"))
    return [score, f"{low} .. {high}" if low and high else "unknown"]
