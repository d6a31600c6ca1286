"""What a corpus holds, by source and domain, beside the paper's totals; and the paper's public sources as far as they are known."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ...loaders.corpus.copies import copies_lines, identical_videos
from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import DESCRIPTION
from ..config.error import ConfigError
from ..config.file import CONFIGS, read_yaml
from ..console.table import Table

SOURCES_FILE = CONFIGS / "corpus" / "surgrec.yaml"
# SurgRec, arXiv 2603.29966: in all, and by origin as far as it is stated (frames in millions, rounded by the paper).
PAPER_VIDEOS, PAPER_FRAMES = 10_535, 214_500_000
PAPER_ORIGINS = {"clinical": 40_000_000, "web": 175_000_000}
UNNAMED = "(not given)"


@dataclass
class Total:
    videos: int = 0
    frames: int = 0
    hours: float = 0.0

    def add(self, frames: int, hours: float) -> None:
        self.videos += 1
        self.frames += frames
        self.hours += hours


def corpus_report(corpus: Corpus) -> str:
    """A text of a few tables: source x domain, origins beside the paper's, how many procedures, subjects and centres there are; and
    which videos ought to be packed, and which are copies of others."""
    by_source: dict[tuple[str, str], Total] = defaultdict(Total)
    by_origin: dict[str, Total] = defaultdict(Total)
    everything = Total()
    values: dict[str, set[str]] = {name: set() for name in DESCRIPTION}
    # Frames of proxies stand for several of the originals, which is what the paper counts.
    slow: list[str] = []
    for row in corpus.scan(*DESCRIPTION, "frames", "packed_stride", "duration_seconds", "path", "health"):
        if "rare clean starts" in row["health"]:
            slow.append(row["path"])
        frames, hours = row["frames"] * row["packed_stride"], row["duration_seconds"] / 3600
        for total in (
            by_source[row["source"] or UNNAMED, row["domain"] or UNNAMED],
            by_origin[row["origin"] or UNNAMED],
            everything,
        ):
            total.add(frames, hours)
        for name, known in values.items():
            known.add(row[name])
    rows = [*sorted(by_source.items()), (("all", ""), everything)]
    cells = [
        (source, domain, f"{total.videos:,}", f"{total.frames:,}", f"{total.hours:,.2f}")
        for (source, domain), total in rows
    ]
    cells.append(("SurgRec's paper", "", f"{PAPER_VIDEOS:,}", f"{PAPER_FRAMES:,}", "not stated"))
    share = everything.frames / PAPER_FRAMES
    lines = [Table(("source", "domain", "videos", "frames", "hours"), cells).markdown()]
    lines += ["", f"{share:.3%} of the paper's frames, {everything.videos / PAPER_VIDEOS:.3%} of its videos", ""]
    origins = []
    for origin in sorted({*by_origin, *PAPER_ORIGINS}):
        stated = f"about {PAPER_ORIGINS[origin]:,}" if origin in PAPER_ORIGINS else "not stated"
        origins.append((origin, f"{by_origin[origin].videos:,}", f"{by_origin[origin].frames:,}", stated))
    lines += [Table(("origin", "videos", "frames", "the paper's frames"), origins).markdown(), ""]
    plurals = {"procedure": "procedures", "subject": "subjects", "centre": "centres", "licence": "licences"}
    lines.append(", ".join(f"{len(values[name] - {''}):,} {plural}" for name, plural in plurals.items()))
    if slow:
        lines += [
            "",
            f"{len(slow):,} videos have so few places where decoding may start that a clip costs hundreds of pictures;",
        ]
        lines += [f"`trocar pack {corpus.path} --out PROXIES` makes proxies without that fault: {', '.join(slow[:5])}"]
        lines[-1] += f" and {len(slow) - 5:,} more" if len(slow) > 5 else ""
    lines += copies_lines(identical_videos(corpus))
    return "\n".join(lines)


@dataclass(frozen=True)
class PublicSource:
    """One public data set. in_paper: "benchmark" where the paper evaluates on it, "overlap" where it shares videos with one of
    those, "unknown" where nothing public says whether its corpus holds it. None elsewhere: not known."""

    name: str
    domain: str
    procedure: str | None
    videos: int | None
    frames: int | None
    licence: str | None
    in_paper: str
    note: str = ""


IN_PAPER = ("benchmark", "overlap", "unknown")


def load_sources(path: Path | None = None) -> list[PublicSource]:
    """Reads a list of sources, ours where `path` is None. Raises ConfigError."""
    path = path or SOURCES_FILE
    try:
        sources = [PublicSource(**entry) for entry in read_yaml(path, "sources")["sources"]]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a list of sources ({error}); see configs/corpus/surgrec.yaml") from error
    for source in sources:
        if source.in_paper not in IN_PAPER:
            raise ConfigError(
                f"{path}: {source.name}: in_paper is {source.in_paper!r}; give one of {', '.join(IN_PAPER)}"
            )
    return sources


def sources_table(sources: list[PublicSource]) -> str:
    """Markdown; what is not known is said to be so."""

    def known(value: object) -> str:
        return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    names = ("name", "domain", "procedure", "videos", "frames", "licence", "in_paper")
    cells = [[known(getattr(source, name)) for name in names] for source in sources]
    table = Table(("source", "domain", "procedure", "videos", "frames", "licence", "in the paper"), cells)
    told = f"{len(sources)} sources; the paper has 34 public clinical ones and lists none of their videos."
    return f"{table.markdown()}\n\n{told}"
