"""What is remembered of a proxy, beside it: what it was made of, so that nobody makes it again, and what it is.

The record is written after the proxy is in its place, and both appear whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..corpus.corpus import Video
from ..corpus.folder import CorpusError
from ..corpus.whole_file import write_text_whole
from .proxy import Hidden, Proxy
from .pseudonyms import Named, Names
from .settings import SIDE_MULTIPLE, PackSettings

VIDEOS_FOLDER = "videos"
# Counted up when proxies of the same settings come out otherwise.
PROXY_VERSION = 1
# Of proxies whose record does not say it.
FIRST_SIDE_MULTIPLE = 2


def proxy_path(out: Path, video_id: str) -> Path:
    """Where a proxy stands, in one of 256 subfolders."""
    return out / VIDEOS_FOLDER / video_id[:2] / f"{video_id}.mp4"


def write_record(
    out: Path, video: Video, named: Named, settings: PackSettings, proxy: Proxy, hidden: Hidden = ()
) -> None:
    # The same proxy has the same record, however long it took.
    kept = {name: value for name, value in asdict(proxy).items() if name != "core_seconds"}
    record = {"made_of": _made_of(video, named, settings, hidden), "proxy": kept}
    write_text_whole(_record_path(out, named), json.dumps(record, indent=1))


def remove_record(out: Path, named: Named) -> None:
    _record_path(out, named).unlink(missing_ok=True)


def finished_proxy(out: Path, video: Video, named: Named, settings: PackSettings, hidden: Hidden = ()) -> Proxy | None:
    """The proxy that stands there, if it would come out the same again, or differs in sides that nobody asks for."""
    try:
        record = json.loads(_record_path(out, named).read_text(encoding="utf-8"))
        size_bytes = proxy_path(out, named.id).stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    found = {"side_multiple": FIRST_SIDE_MULTIPLE, **record["made_of"]}
    wanted = _made_of(video, named, settings, hidden)
    if settings.side_multiple is None:
        wanted["side_multiple"] = found["side_multiple"]
    if found != wanted or record["proxy"]["size_bytes"] != size_bytes:
        return None
    return Proxy(**record["proxy"])


def other_settings(
    out: Path, named: Named, settings: PackSettings, hidden: Hidden | None = None
) -> dict[str, tuple[Any, Any]]:
    """Setting -> (what the proxy that stands there was made with, what it would be now), of those that differ. hidden: None where
    nothing is screened."""
    try:
        found = json.loads(_record_path(out, named).read_text(encoding="utf-8"))["made_of"]
    except (FileNotFoundError, ValueError):
        return {}
    if not proxy_path(out, named.id).exists():
        return {}
    found = {"side_multiple": FIRST_SIDE_MULTIPLE, **found}
    wanted = {**asdict(settings), "quality": settings.encoder_quality}
    if settings.side_multiple is None:
        del wanted["side_multiple"]
    changed = {name: (found[name], value) for name, value in wanted.items() if found.get(name, value) != value}
    # Screening more than before is what a later screen is for; showing again what was black is not.
    return {**changed, "screen": (True, False)} if hidden is None and found.get("hidden") else changed


def check_names(out: Path, names: Names) -> None:
    """Raises CorpusError where originals are called otherwise in `out`: what stands there would stay beside."""
    before = _key_digest_of(out)
    if before is None or before == names.key_digest:
        return
    held = "the names of its originals" if not before else "pseudonyms"
    wanted = "by pseudonyms" if not before else "by those of the same table: --pseudonyms FILE"
    raise CorpusError(
        f"{out}: holds {held}, so it cannot go on otherwise; give another --out to name originals {wanted}"
    )


def remove_unrecorded(out: Path, kept: Collection[str]) -> None:
    """Takes away proxies that a killed pack left without a record, and records that cannot be read, but those of the ids `kept`,
    which are made again: under pseudonyms nothing may stay that leads back to an original."""
    for path in (out / VIDEOS_FOLDER).glob("*/*.*"):
        if path.stem not in kept and not _is_record(path.with_suffix(".json")):
            path.unlink(missing_ok=True)


def _is_record(path: Path) -> bool:
    try:
        return "made_of" in json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False


def _key_digest_of(out: Path) -> str | None:
    """Of the pseudonyms in a packed folder, "" where names stand in it, None where there is no proxy yet."""
    for path in (out / VIDEOS_FOLDER).glob("*/*.json"):
        try:
            return json.loads(path.read_text(encoding="utf-8"))["made_of"].get("pseudonyms", "")
        except ValueError:  # damaged: made again
            continue
    return None


def _record_path(out: Path, named: Named) -> Path:
    return proxy_path(out, named.id).with_suffix(".json")


def _made_of(video: Video, named: Named, settings: PackSettings, hidden: Hidden) -> dict[str, Any]:
    """All that decides what a proxy comes out like."""
    facts = video.facts
    return {
        "version": PROXY_VERSION,
        **asdict(settings),
        "quality": settings.encoder_quality,
        "side_multiple": settings.side_multiple or SIDE_MULTIPLE,
        **named.made_of,
        "frames": facts.frames,
        "box": [facts.box_left, facts.box_top, facts.box_width, facts.box_height],
        # Named only where they are not as usual, so that the proxies of most videos need not be made again for them.
        **({"hidden": [list(ends) for ends in hidden]} if hidden else {}),
        **({"mirrored": True} if facts.mirrored else {}),
        **({"pixel_aspect": facts.pixel_aspect} if facts.pixel_aspect != 1 else {}),
        **({"track": video.track} if video.track is not None else {}),
    }
