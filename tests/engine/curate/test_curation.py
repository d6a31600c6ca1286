"""From made videos to even draws: index, embed, cluster, draw, by way of the command line; phases, exclusions, exports, reports."""

from __future__ import annotations

import csv
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import write_numbered

from trocar.bench.curation.balance_corpus import DOMAINS, SHARES, make_corpus, span_counts
from trocar.engine.cli import build_parser, main
from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import CONFIGS, load_config
from trocar.engine.curate import cluster_report
from trocar.engine.curate.corpus_report import corpus_report, load_sources, sources_table
from trocar.engine.curate.draws import draw_numbers, effective_number, keep_titles_apart, plan, shares_table
from trocar.engine.draws.samplers import build_sampler
from trocar.engine.view.exemplars import exemplar_pictures
from trocar.loaders.corpus.corpus import Corpus, CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.selection import select_videos
from trocar.loaders.draw.phases import DrawSettings, plan_order
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.draw.tree import ClusterTree

FRAMES, STRIDE, SPAN_FRAMES = 8, 2, 15
DRAWS = 20_000


def build(folder: Path, spans: int) -> Path:
    """Everything by the commands a user gives. Returns the folder of corpus, embeddings and tree."""
    make_corpus(folder, span_counts(spans), span_frames=SPAN_FRAMES)
    corpus = str(folder / "corpus")
    assert main(["index", str(folder / "corpus.csv"), "--out", corpus, "--workers", "1", "--no-content-box"]) == 0
    embed = ["--frames", str(FRAMES), "--stride", str(STRIDE), "--threads", "1"]
    assert main(["embed", corpus, "--out", str(folder / "embeddings"), *embed]) == 0
    cluster = ["--levels", "48,12,4", "--device", "cpu", "--duplicates", "--corpus", corpus]
    assert main(["cluster", str(folder / "embeddings"), "--out", str(folder / "tree"), *cluster]) == 0
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("made"), 400)


def settings(folder: Path, *more: str) -> list[str]:
    return [
        *(f"data.corpus={folder / 'corpus'}", f"data.frames={FRAMES}", f"data.stride={STRIDE}"),
        *(
            "data.resolution=64",
            f"run.dir={folder / 'run'}",
            f"data.tree={folder / 'tree'}",
            "data.max_repeats=null",
            *more,
        ),
    ]


def drawn(folder: Path, *more: str, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """(domains, procedures) of the first draws of a config."""
    planned = plan("demo_cpu", settings(folder, *more))
    videos, _, _ = planned.sampler.frames(np.arange(draws))
    rows = list(planned.corpus.scan("domain", "procedure"))
    return tuple(np.array([rows[video][name] for video in videos.tolist()]) for name in ("domain", "procedure"))  # pyright: ignore[reportReturnType]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_even(folder: Path) -> None:
    domains, procedures = drawn(folder)
    for domain in DOMAINS:
        assert abs((domains == domain).mean() - 0.25) < 0.05
    names, counts = np.unique(procedures, return_counts=True)
    assert len(names) == 12
    assert (np.abs(np.log(counts / DRAWS * 12)) < np.log(1.5)).all()


def assert_as_it_is(folder: Path, spans: int) -> None:
    domains, _ = drawn(folder, "data.balance=0")
    total = sum(span_counts(spans).values())
    for domain in DOMAINS:
        share = sum(count for (name, _), count in span_counts(spans).items() if name == domain) / total
        assert abs((domains == domain).mean() - share) < 4 * np.sqrt(share / DRAWS)


@pytest.mark.slow
def test_balanced_draws_of_made_videos_are_even(made: Path) -> None:
    assert_even(made)
    assert_as_it_is(made, 400)


@pytest.mark.slow
def test_the_same_with_the_whole_long_tail(tmp_path: Path) -> None:
    build(tmp_path, 1200)
    counts = span_counts(1200)
    for domain, share in zip(DOMAINS, SHARES, strict=True):
        assert sum(count for (name, _), count in counts.items() if name == domain) == 1200 * share
    assert_even(tmp_path)
    assert_as_it_is(tmp_path, 1200)


def test_caps_exclusions_and_thinning(made: Path, tmp_path: Path) -> None:
    domains, _ = drawn(made, "data.source_caps={made_robotic: 0.1, made_cataract: 0.1}")
    assert (domains == "robotic").mean() == pytest.approx(0.1, abs=0.01)
    assert (domains == "cataract").mean() == pytest.approx(0.1, abs=0.01)
    assert (domains == "endoscopy").mean() == pytest.approx(0.4, abs=0.05)
    tests = tmp_path / "benchmark_test.txt"
    tests.write_text(
        "# test videos of a benchmark\nrobotic_0_000.mp4\nrobotic_0_001\nnot_in_the_corpus\n", encoding="utf-8"
    )
    planned = plan("demo_cpu", settings(made, f"data.exclude=['@{tests}', '*/endoscopy_*']"))
    videos = {Path(planned.corpus.video_path(int(video))).stem for video in planned.sampler.frames(np.arange(5000))[0]}
    assert not [name for name in videos if name.startswith("endoscopy")]
    assert {"robotic_0_000", "robotic_0_001"}.isdisjoint(videos)
    assert [name for name in videos if name.startswith("robotic_1")]
    assert f"exclude @{tests}: 2 videos (2 of 3 entries are in the corpus)" in "\n".join(planned.notes)
    # Not as a replacement for a failed draw either.
    for spare in range(1, 65, 7):
        for video in planned.sampler.frames(np.arange(200), spare=spare)[0].tolist():
            assert "endoscopy" not in planned.corpus.video_path(video)
    thinned = plan("demo_cpu", settings(made, "data.thin=0.1"))
    assert 12 < thinned.sampler.num_spans < 400
    assert f"{sum(span_counts(400).values()) - thinned.sampler.num_spans} near-duplicate spans" in thinned.notes[0]


@pytest.mark.parametrize("entry", ["no_such_video", "*/nothing/*"])
def test_a_mistyped_exclusion_is_refused(entry: str, made: Path) -> None:
    with pytest.raises(CorpusError, match="matches no video"):
        plan("demo_cpu", settings(made, f"data.exclude=['{entry}']"))
    with pytest.raises(CorpusError, match="leave none"):
        plan("demo_cpu", settings(made, "data.exclude=['*']"))


def test_selection_by_id_path_and_name(made: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(made / "corpus")
    video = corpus.video(3)
    table = tmp_path / "list.csv"
    table.write_text(f"path,label\n{video.facts.path},1\n", encoding="utf-8")
    for entry in (video.id, video.facts.path, Path(video.facts.path).name, Path(video.facts.path).stem, f"@{table}"):
        assert np.flatnonzero(select_videos(corpus, [entry]).wanted).tolist() == [3], entry
        assert np.flatnonzero(~select_videos(corpus, exclude=[entry]).wanted).tolist() == [3], entry
    table.write_text("file\nx\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="no column `path` or `id`"):
        select_videos(corpus, [f"@{table}"])


def test_phases_change_the_balance_between_epochs(made: Path) -> None:
    phases = "data.phases=[{first_draw: 4000, balance: 1.0}, {first_draw: 8000, exclude: ['*/cataract_*']}]"
    domains, _ = drawn(made, "data.epoch_draws=1000", "data.balance=0", phases, draws=12_000)
    assert (domains[:4000] == "laparoscopy").mean() > 0.8
    assert (domains[4000:8000] == "laparoscopy").mean() == pytest.approx(0.25, abs=0.05)
    assert (domains[8000:] == "cataract").sum() == 0
    alone, _ = drawn(made, "data.epoch_draws=1000", "data.balance=0", draws=4000)
    assert np.array_equal(domains[:4000], alone)
    with pytest.raises(ConfigError, match="ends no epoch"):
        drawn(made, "data.epoch_draws=1000", "data.phases=[{first_draw: 4001}]")


def test_without_a_tree_all_spans_come_alike(made: Path) -> None:
    corpus = Corpus.open(made / "corpus")
    spans = Sampler(corpus.frames, num_frames=FRAMES, stride=STRIDE)
    kept = [row for row in range(len(corpus)) if "laparoscopy" not in corpus.video_path(row)]
    order = plan_order(corpus, [DrawSettings(exclude=["*/laparoscopy_*"])], spans, 0).order
    assert order.num_spans == int((corpus.frames[kept] // SPAN_FRAMES).sum())
    sampler = Sampler(corpus.frames, num_frames=FRAMES, stride=STRIDE, order=order)
    videos, _, _ = sampler.frames(np.arange(order.num_spans))
    assert np.bincount(videos, minlength=len(corpus))[kept].tolist() == (corpus.frames[kept] // SPAN_FRAMES).tolist()
    with pytest.raises(ConfigError, match=r"data.balance and data.thin need data.tree"):
        load_config("demo_cpu", ["data.balance=0.5"])


def test_longer_clips_start_in_the_leafs_spans(made: Path) -> None:
    """Clips of twice a span: the tree's spans say where they start."""
    loaded = load_config("demo_cpu", settings(made, "data.frames=16"))
    sampler = build_sampler(loaded, Corpus.open(made / "corpus"))
    assert sampler.num_spans == sum(span_counts(400).values())
    _, frames, _ = sampler.frames(np.arange(2000))
    assert (np.diff(frames, axis=1) <= STRIDE).all()
    assert np.median(frames[:, -1] - frames[:, 0]) == 30


def test_a_tree_of_another_corpus_is_refused(made: Path, tmp_path: Path) -> None:
    rows = read_csv(made / "corpus.csv")
    extra = tmp_path / "extra.mp4"
    extra.write_bytes((made / rows[0]["path"]).read_bytes())
    index_corpus([made / "corpus.csv", extra], tmp_path / "corpus", workers=1, content_box=False, progress=False)
    with pytest.raises(CorpusError, match=r"1 of its videos are not in the tree.*extra.mp4"):
        plan("demo_cpu", settings(made, f"data.corpus={tmp_path / 'corpus'}"))
    assert plan(
        "demo_cpu", settings(made, f"data.corpus={tmp_path / 'corpus'}", "data.exclude=[extra]")
    ).sampler.num_spans


def test_a_run_draws_from_the_tree(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["model.depth=1", "model.decoder_depth=1", "optim.batch=4", "optim.steps=2", "run.tensorboard=false"]
    assert main(["pretrain", "demo_cpu", *settings(made), *tiny]) == 0
    assert f"{sum(span_counts(400).values()):,} spans" in capsys.readouterr().err
    assert main(["pretrain", "demo_cpu", *settings(made, "data.balance=0.5"), *tiny, "optim.steps=3"]) == 2
    assert "the first 2 steps of the run" in capsys.readouterr().err


def test_export_and_contact_sheet(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("csv", "parquet"):
        out = str(tmp_path / f"draws.{suffix}")
        assert (
            main(["corpus", "export", "demo_cpu", *settings(made), "--first", "10", "--draws", "300", "--out", out])
            == 0
        )
    table = pq.read_table(tmp_path / "draws.parquet").to_pylist()
    rows = read_csv(tmp_path / "draws.csv")
    assert [int(row["draw"]) for row in rows] == [row["draw"] for row in table] == list(range(10, 310))
    sampler = plan("demo_cpu", settings(made)).sampler
    videos, frames, _ = sampler.frames(np.arange(10, 310))
    assert [row["first_frame"] for row in table] == frames[:, 0].tolist()
    assert [float(row["start_seconds"]) for row in rows] == pytest.approx((frames[:, 0] / 25).tolist())
    assert {row["path"] for row in table} == {
        Corpus.open(made / "corpus").video_path(video) for video in set(videos.tolist())
    }
    capsys.readouterr()
    out = tmp_path / "sheet.png"
    view = ["--draws", "2000", "--clips", "12", "--out", str(out)]
    assert main(["view", "draws", "demo_cpu", *settings(made), *view]) == 0
    assert "| domain | robotic |" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main(["corpus", "export", "demo_cpu", *settings(made), "--out", str(tmp_path / "draws.txt")]) == 2


def test_the_trees_report(made: Path) -> None:
    report = (made / "tree" / "report.md").read_text(encoding="utf-8")
    assert "| 3 | 4 | 4 |" in report
    assert "made_robotic 100%" in report
    assert report.count("4.0 |") >= 1
    for name in ("sizes.png", "exemplars.png"):
        assert (made / "tree" / name).read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^\| 3\.\d \| ", report, re.MULTILINE), "a cluster is called as on the tree's page"
    assert effective_number(np.array([5, 5, 0, 5])) == pytest.approx(3)
    assert effective_number(np.array([1, 0])) == pytest.approx(1)


def test_exemplars_of_a_cluster_stay_together(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a row each, called as on the tree's page; a cluster of fewer leaves places empty."""
    sheets: list[tuple[list[Any], list[str]]] = []
    few = pq.read_table(made / "tree" / "nodes.parquet").to_pylist()
    few[-1]["exemplars"] = few[-1]["exemplars"][:1]
    pq.write_table(pa.Table.from_pylist(few), tmp_path / "nodes.parquet")
    monkeypatch.setattr(
        cluster_report, "contact_sheet", lambda pictures, labels, out: sheets.append((pictures, labels))
    )
    assert cluster_report._exemplars(ClusterTree.read(made / "tree"), Corpus.open(made / "corpus"), tmp_path)
    ((pictures, labels),) = sheets
    assert len(pictures) == len(labels) == 4 * 4
    halves = [labels[start : start + 4] for start in range(0, 16, 4)]
    assert sorted(half[0] for half in halves) == ["3.0", "3.1", "3.2", "3.3"]
    last = f"3.{few[-1]['node']}"
    assert all(half == ([last, "", "", ""] if half[0] == last else [half[0]] * 4) for half in halves)
    assert [picture is None for picture in pictures] == [label == "" for label in labels]


def test_the_tree_is_shown(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, picture, corpus = tmp_path / "tree.html", tmp_path / "tree.png", ["--corpus", str(made / "corpus")]
    assert main(["view", "tree", str(made / "tree"), *corpus, "--out", str(page), "--most", "3"]) == 0
    text = page.read_text(encoding="utf-8")
    total = sum(span_counts(400).values())
    assert f"<h1>{made / 'tree'}: {total:,} spans (100.0%)</h1>" in text
    assert "1 smaller left out, " in text
    nodes = pq.read_table(made / "tree" / "nodes.parquet").to_pylist()
    largest = max((node for node in nodes if node["level"] == 3), key=lambda node: node["spans"])
    assert text.count("<details open>") == 3
    assert f"<details open><summary>3.{largest['node']}: {largest['spans']:,} spans" in text
    # Every cluster shows its spans, whose pictures stand in the page itself, with their file and time.
    tree = ClusterTree.read(made / "tree")
    shown = [int(part.partition("'")[0]) for part in text.split("alt='span ")[1:]]
    assert len(shown) == text.count("src='data:image/png;base64,") > 12
    assert set(tree.paths[tree.leaf[shown], 0].tolist()) <= set(range(4))
    assert "://" not in text
    assert "made_laparoscopy 100%" in text
    assert main(["view", "tree", str(made / "tree"), *corpus, "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    total_clusters = sum(node["spans"] > 0 for node in nodes)
    assert f" of {total_clusters:,} clusters, " in capsys.readouterr().out
    captions = re.findall(r"<figcaption>(.*?) (\d+:\d\d:\d\d)</figcaption>", text)
    assert len(captions) == len(shown)
    opened = Corpus.open(made / "corpus")
    rows = {row["id"]: number for number, row in enumerate(opened.scan("id"))}
    for span, (name, time) in zip(shown, captions, strict=True):
        assert name == Path(opened.video_path(rows[tree.video_ids[tree.video[span]]])).name
        middle = int(tree.first_frame[span] + tree.span_frames[span] // 2) / 25
        assert time == f"0:{int(middle) // 60:02}:{int(middle) % 60:02}"
    capsys.readouterr()
    assert main(["view", "tree", str(made / "tree"), "--out", str(page)]) == 0
    assert "add --corpus CORPUS" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "<img" not in text
    # All clusters are there without --most, and only what holds others opens.
    named = {f"{node['level']}.{node['node']}" for node in nodes if node["spans"]}
    assert set(re.findall(r"(\d+\.\d+): [\d,]+ spans", text)) == named
    leaves = sum(node["level"] == 1 for node in nodes if node["spans"])
    assert (text.count("<div class='leaf'>"), text.count("<details")) == (leaves, len(named) - leaves)
    with pytest.raises(SystemExit):
        main(["view", "tree", str(made / "tree"), "--out", str(tmp_path / "tree.pdf")])


def test_titles_of_a_contact_sheet_stand_apart() -> None:
    """Long names with one beginning, in grids of one to eight columns: cut, told apart, within the figure."""
    from matplotlib.figure import Figure

    for columns in (1, 2, 8):
        figure = Figure(figsize=(max(1.4 * columns, 2.8), 3.4), layout="constrained")
        names = [f"BSA_MultiBypass140_needlePuncture_{number}_SBP05_web" for number in range(2 * columns)]
        for axis, name in zip(np.atleast_1d(figure.subplots(2, columns)).flat, names, strict=True):
            axis.imshow(np.zeros((4, 4, 3), np.uint8))
            axis.set_title(name, fontsize=6)
        keep_titles_apart(figure)
        figure.draw_without_rendering()
        texts = [axis.title for axis in figure.axes]
        boxes = [text.get_window_extent() for text in texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(0 <= box.x0 and box.x1 <= figure.bbox.width for box in boxes)
        assert all(text.get_text().startswith("BSA") and text.get_text().endswith("web") for text in texts)


def test_an_exemplar_is_not_squeezed(made: Path) -> None:
    """The pictures are wider than high: a square of them is cut out, not made of the whole."""
    tree, corpus = ClusterTree.read(made / "tree"), Corpus.open(made / "corpus")
    span = int(np.flatnonzero(tree.leaf >= 0)[0])
    facts = corpus.video(
        {row["id"]: number for number, row in enumerate(corpus.scan("id"))}[tree.video_ids[tree.video[span]]]
    ).facts
    side = min(facts.width, facts.height)
    assert facts.width > facts.height
    with av.open(facts.path) as container:
        middle = int(tree.first_frame[span] + tree.span_frames[span] // 2)
        frame = next(itertools.islice(container.decode(video=0), middle, None)).to_ndarray(format="rgb24")
    left, top = (facts.width - side) // 4 * 2, (facts.height - side) // 4 * 2
    wanted = frame[top : top + side, left : left + side].astype(int)
    assert np.abs(exemplar_pictures(tree, corpus, [span], side)[span].picture - wanted).mean() < 4


def test_the_corpus_report_counts(made: Path) -> None:
    report = corpus_report(Corpus.open(made / "corpus"))
    counts = span_counts(400)
    robotic = sum(count for (name, _), count in counts.items() if name == "robotic") * SPAN_FRAMES
    assert f"| made_robotic | robotic | {6} | {robotic:,} |" in report
    assert f"| {sum(counts.values()) * SPAN_FRAMES:,} |" in report
    assert "| SurgRec's paper | | 10,535 | 214,500,000 | not stated |" in report
    assert "12 procedures" in report


def test_the_papers_sources_load_and_mark_what_is_unknown() -> None:
    sources = load_sources()
    assert len({source.name for source in sources}) == len(sources) >= 27
    assert sum(source.in_paper == "benchmark" for source in sources) == 16
    assert "| unknown |" in sources_table(sources)
    assert list((CONFIGS / "corpus").glob("*.yaml")) == [CONFIGS / "corpus" / "surgrec.yaml"]


def test_a_described_corpus(tmp_path: Path) -> None:
    path = make_corpus(tmp_path, {("cataract", 0): 2}, span_frames=SPAN_FRAMES)
    text = path.read_text(encoding="utf-8")
    header, row = text.splitlines()[:2]
    (tmp_path / "described.csv").write_text(f"{header},centre,licence\n{row},Bern,CC BY\n", encoding="utf-8")
    index_corpus([tmp_path / "described.csv"], tmp_path / "corpus", workers=1, progress=False)
    video = Corpus.open(tmp_path / "corpus").video(0)
    assert (video.source, video.domain, video.procedure) == ("made_cataract", "cataract", "cataract_0")
    assert (video.subject, video.origin, video.centre, video.licence) == ("cataract_0_0", "web", "Bern", "CC BY")
    path.write_text(text.replace(",web", ",internet"), encoding="utf-8")
    with pytest.raises(CorpusError, match="origin is 'internet'; give one of web, clinical, institutional"):
        index_corpus([path], tmp_path / "other", progress=False)
    path.write_text(text.replace("procedure", "procedures"), encoding="utf-8")
    with pytest.raises(CorpusError, match="column 'procedures' is not known; did you mean 'procedure'"):
        index_corpus([path], tmp_path / "other", progress=False)


def test_clustering_needs_neither_models_nor_plots() -> None:
    code = "import sys; sys.modules['timm'] = sys.modules['matplotlib'] = None; import trocar.loaders.curate.cluster"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_commands_of_the_page_are_understood() -> None:
    page = (CONFIGS.parent / "docs" / "curation.md").read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith("trocar ")]
    assert len(commands) == 8
    for command in commands:
        options = build_parser().parse_args(shlex.split(command)[1:])
        assert callable(options.run)
        if "config" in options:
            load_config(options.config, options.overrides)


def test_shares_where_no_video_is_described(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", 80)
    index_corpus([tmp_path / "a.mp4"], tmp_path / "corpus", workers=1, content_box=False, progress=False)
    planned = plan("demo_cpu", [f"data.corpus={tmp_path / 'corpus'}"])
    told = shares_table(planned, draw_numbers(planned, 0, 4))
    assert told == "no video has a source, domain or procedure; name them in the table that `trocar index` reads"
