"""`trocar pack --pseudonyms`: no name of an original in proxies, their index, or a run on them; the table is kept apart."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import ruin, write_numbered
from runs import TINY

from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.pretrain import pretrain
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import Screen
from trocar.loaders.pack.pseudonyms import Pseudonyms
from trocar.loaders.screen.screen import screen_corpus

# In folder, file, metadata, subject and centre of the originals.
TELLING = ("Winterbottom", "Ermengarde", "ThornfieldHall", "Rosamund")


def make_originals(folder: Path, count: int = 2) -> Path:
    """An index of videos whose names, folder and metadata tell, the last of them damaged, and of one that cannot be packed."""
    videos = folder / "Winterbottom"
    videos.mkdir()
    for number in range(count):
        path = videos / f"Ermengarde_{number}.mp4"
        write_numbered(folder / "plain.mp4", 60, video_id=number, gop=12)
        with av.open(str(folder / "plain.mp4")) as source, av.open(str(path), "w") as target:
            target.metadata["title"] = "Rosamund"
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    ruin(videos / f"Ermengarde_{count - 1}.mp4", 50)
    (folder / "plain.mp4").unlink()
    write_numbered(videos / "Ermengarde_short.mp4", 2, video_id=9, gop=12)
    rows = [(path, "made", "Rosamund", "ThornfieldHall") for path in sorted(videos.glob("*.mp4"))]
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "source", "subject", "centre"), *rows])
    index_corpus([folder / "list.csv"], folder / "index", workers=1, progress=False)
    return folder / "index"


def words(index: Path, packed: Path, table: Path, *more: str) -> list[str]:
    told = ["pack", str(index), "--out", str(packed), "--pseudonyms", str(table), "--workers", "1"]
    return [*told, "--stride", "2", "--short-side", "64", *more]


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file with its name and bytes; of tables, which are compressed, also what stands in them and their metadata."""
    for path in sorted(folder.rglob("*")):
        yield path, str(path.relative_to(folder)).encode()
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                yield path, repr((pq.read_table(path).to_pydict(), pq.read_schema(path))).encode()
            if path.suffix == ".arrow":
                table = pa.ipc.open_file(path).read_all()
                yield path, repr((table.to_pydict(), table.schema)).encode()


def assert_tells_nothing(folder: Path, ids: set[str]) -> None:
    held = list(contents(folder))
    assert held
    for path, data in held:
        for text in (*TELLING, *ids):
            assert text.encode() not in data, f"{path} holds {text}"


def leads_back(index: Path) -> set[str]:
    """What leads to the originals beside their names: ids that follow from paths, sizes and times of files."""
    originals, found = Corpus.open(index), set()
    for row in range(len(originals)):
        video = originals.video(row)
        found |= {video.id, str(video.facts.mtime_ns), f'"size_bytes": {video.facts.size_bytes},'}
    assert len(found) == 3 * len(originals)
    return found


def test_no_name_reaches_proxies_or_their_index(tmp_path: Path) -> None:
    index = make_originals(tmp_path)
    screen_corpus(index, workers=1, progress=False)
    packed, table = tmp_path / "packed", tmp_path / "kept" / "names.csv"
    assert main(words(index, packed, table, "--screen")) == 0
    assert_tells_nothing(packed, leads_back(index))
    told = (packed / "quarantine.csv").read_text()
    assert told.count("keeps 1, at least 2") == 1
    assert told.count("of its 60 frames are packed: ") == 1
    proxies = Corpus.open(packed)
    assert len(proxies) == len(Screen(proxies).videos) == 2
    assert len({proxies.video(row).subject for row in range(2)}) == 1
    assert len({proxies.video(row).id for row in range(2)}) == 2
    assert proxies.video(0).source == "made"

    assert oct(table.stat().st_mode & 0o777) == "0o600"
    with table.open(newline="") as file:
        known = {(row["kind"], row["name"]): row["pseudonym"] for row in csv.DictReader(file)}
    for row in range(2):
        video = proxies.video(row)
        assert video.original == video.id
    assert known["subject", "Rosamund"] == proxies.video(0).subject


@pytest.mark.parametrize("left", ["without a record", "with a torn record"])
def test_nothing_stays_of_a_plain_pack_that_was_killed(left: str, tmp_path: Path) -> None:
    """Killed between a proxy and its record, which is all that says whose names stand in a folder."""
    index, packed, table = make_originals(tmp_path), tmp_path / "packed", tmp_path / "names.csv"
    assert main([word for word in words(index, packed, table) if word not in ("--pseudonyms", str(table))]) == 0
    for path in packed.iterdir():
        if path.is_file():
            path.unlink()
    for record in packed.glob("videos/*/*.json"):
        text = record.read_text()
        record.unlink()
        if left == "with a torn record":
            record.write_text(text[:-40])
    assert len(list(packed.glob("videos/*/*.mp4"))) == 2
    assert main(words(index, packed, table)) == 0
    assert_tells_nothing(packed, leads_back(index))
    assert len(list(packed.glob("videos/*/*.mp4"))) == len(Corpus.open(packed)) == 2
    killed = next(packed.glob("videos/*/*.json"))
    killed.unlink()  # its own pack, killed: the proxy is made again in its place
    assert main(words(index, packed, table)) == 0
    assert killed.exists()


@pytest.mark.slow
def test_no_name_reaches_a_run_on_proxies(tmp_path: Path) -> None:
    index, packed, run = make_originals(tmp_path), tmp_path / "packed", tmp_path / "run"
    assert main(words(index, packed, tmp_path / "names.csv")) == 0
    settings = [f"data.corpus={packed}", f"run.dir={run}", *TINY, "optim.steps=2", "run.pictures_every=1"]
    settings += ["data.threads=1", "run.device=cpu"]
    pretrain(load_config("demo_cpu", settings), progress=False)
    assert main(["view", "recon", str(run), "--out", str(run / "seen.png")]) == 0
    assert main(["report", str(run), "--out", str(run / "page.html")]) == 0
    assert main(["export", str(run), "--to", "torch", "--out", str(run / "published")]) == 0
    assert (run / "published" / "README.md").exists()
    assert_tells_nothing(run, leads_back(index))


def test_the_same_table_names_alike_and_another_is_refused(tmp_path: Path) -> None:
    index, packed, table = make_originals(tmp_path, 1), tmp_path / "packed", tmp_path / "names.csv"
    assert main(words(index, packed, table)) == 0
    (first,) = Corpus.open(packed).scan("id")
    made = {path: path.stat().st_mtime_ns for path in packed.glob("videos/*/*")}
    write_numbered(tmp_path / "Winterbottom" / "A_first.mp4", 40, video_id=5, gop=12)
    index_corpus([tmp_path / "Winterbottom"], index, workers=1, progress=False)
    table.write_text("\n".join(table.read_text().splitlines()[:2]) + "\n")  # all rows but the key's are lost
    table.chmod(0o644)
    assert main(words(index, packed, table)) == 0
    ids = {row["id"] for row in Corpus.open(packed).scan("id")}
    assert first["id"] in ids
    assert len(ids) == 2
    assert all(path.stat().st_mtime_ns == before for path, before in made.items()), "nothing was made again"
    assert (table.stat().st_mode & 0o777, len(table.read_text().splitlines())) == (0o600, 1 + 1 + 3 + 2)
    plain = ["pack", str(index), "--out", str(packed), "--workers", "1", "--stride", "2", "--short-side", "64"]
    assert main(plain) == 1, "names would stand beside pseudonyms"
    assert main(words(index, packed, tmp_path / "other.csv")) == 1
    assert main([*plain[:3], str(tmp_path / "named"), *plain[4:]]) == 0
    assert main(words(index, tmp_path / "named", table)) == 1
    told = words(index, tmp_path / "unnamed", table)
    assert main([*told[:5], "", *told[6:]]) == 1, "a variable that is not set is no leave to name them"
    assert not (tmp_path / "unnamed").exists()


@pytest.mark.parametrize("place", ["packed/names.csv", "packed/deep/names.csv", "link/names.csv"])
def test_a_table_inside_of_the_packed_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "packed")
    index = make_originals(tmp_path, 1)
    with pytest.raises(CorpusError, match="keep the table of pseudonyms elsewhere"):
        Pseudonyms(tmp_path / place, Corpus.open(index), tmp_path / "packed")
    assert not list((tmp_path / "packed").iterdir())


@pytest.mark.parametrize(
    "text", ["", "path,id\na,b\n", "kind,name,pseudonym\nkey,,00\n", "kind,name,pseudonym\nvideo,a,b\n"]
)
def test_what_is_no_table_is_refused_and_stays(tmp_path: Path, text: str) -> None:
    index, table = make_originals(tmp_path, 1), tmp_path / "names.csv"
    table.write_text(text)
    with pytest.raises(CorpusError, match="is no table of pseudonyms"):
        Pseudonyms(table, Corpus.open(index), tmp_path / "packed")
    assert table.read_text() == text


@pytest.mark.slow
def test_a_killed_pack_keeps_the_table(tmp_path: Path) -> None:
    """Killed at ten moments, each time anew: whatever stands in the packed folder has its row, and the pack goes on."""
    index = make_originals(tmp_path, 2)
    for moment in range(10):
        packed, table = tmp_path / f"packed_{moment}", tmp_path / f"names_{moment}.csv"
        told = [sys.executable, "-m", "trocar.engine.cli", *words(index, packed, table)]
        process = subprocess.Popen(told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        while not table.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.05 * moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before = table.read_text()
        made = {path.stem for path in packed.glob("videos/*/*.mp4")}
        assert all(name in before for name in made)
        assert main(words(index, packed, table)) == 0
        assert table.read_text() == before
        assert len(Corpus.open(packed)) == 2
        shutil.rmtree(packed)
