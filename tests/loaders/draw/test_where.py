"""`data.where`: what it means, that nothing in it runs; and draws that keep to it and to shots, on any number of ranks."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from clips import write_numbered

from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import FLAGS, SCORES, CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import ScreenedVideo, write_screen
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.phases import DrawSettings, plan_order
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.draw.screened import screened
from trocar.loaders.draw.tree import ClusterTree
from trocar.loaders.draw.where import WhereError, parse_where

FRAMES, STRIDE = 4, 3
SPAN = (FRAMES - 1) * STRIDE + 1
WHERE = "in_body > 0.5 and not blank and (blur < 0.7 or saturation >= 0.25)"


def columns(count: int, seed: int) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    found = {name: chance.random(count, np.float32) for name in SCORES}
    return found | {name: chance.random(count) < 0.3 for name in FLAGS}


def test_expressions_mean_what_python_means() -> None:
    values = columns(200, 0)
    rows = [{name: column[row].item() for name, column in values.items()} for row in range(200)]
    for text in (
        WHERE, "not (blank or frozen)", "0.2 < blur <= 0.8", "in_body >= blur and not in_body == 0.5", "blank", "cut_seconds < inf",
        "-1 < brightness and frozen or blank and not transition", "blur != 0.5",
    ):  # fmt: skip
        held = parse_where(text).holds(values)
        expected = [eval(text, {"__builtins__": {}, "inf": np.inf}, row) for row in rows]
        assert held.tolist() == expected, text
        assert 0 < held.sum()
    assert [term.text for term in parse_where(WHERE).terms()] == [
        "in_body > 0.5", "not blank", "blur < 0.7 or saturation >= 0.25",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "in_body", "blank > 0", "1 < 2", "in_body > 'a'",
        "in_body in (1, 2)", "blank is True", "True",
        "in_bodies > 1", "in_body > 1 if blank else blank", "in_body + 1 > 2", "[blank for x in y]",
        "lambda: 0", "(blank := frozen)",
        "in_body.real > 0", "in_body[0] > 1", "f'{blank}'", "blank; frozen", "", "in_body > 10**9**9", "~blank", "not in_body",
        "in_body > 1j", "in_body > 0x", "(" * 400, "not " * 120 + "blank and" + "\0", "blank and " * 100 + "blank",
        "in_body > 1e400",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(WhereError, match="accepted"):
        parse_where(text)


def test_no_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 expressions made of pieces of Python: each is refused, or is true or false of every row, and nothing is called."""
    ran: list[int] = []
    monkeypatch.setattr(builtins, "ran", ran, raising=False)  # what runs would find it
    code = [
        "ran.append(1)", "(ran.append(1))", "[ran.append(1)]", "ran.append(1) or blank", "[0]", ".x", "lambda: ran.append(1)", "if",
        "else", "for x in", "in", "is", "*", "**", "+", "'a'", "__import__('os')", ":=", ",", "{", "}",
        "await", "f'{ran.append(1)}'",
    ]  # fmt: skip
    chance, accepted, values = np.random.default_rng(0), 0, columns(7, 1)
    for number in range(300):
        count = int(chance.integers(1, 5))
        atoms = chance.choice(["in_body > 0.5", "not blank", "frozen", "0 <= blur < 1"], count).tolist()
        words = " ; ".join(atoms).replace(";", str(chance.choice(["and", "or", "and not"]))).split()
        if number % 2:
            words.insert(int(chance.integers(len(words) + 1)), str(chance.choice(code)))
        try:
            condition = parse_where(" ".join(words))
        except WhereError:
            assert number % 2 or "not not" not in " ".join(words)
            continue
        accepted += 1
        assert number % 2 == 0 or "ran" not in " ".join(words)
        assert condition.holds(values).shape == (7,)
    assert accepted >= 150
    assert not ran


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four videos with a screen of random spans: of some frames each, with random scores and shots."""
    folder = tmp_path_factory.mktemp("screened")
    for row in range(4):
        write_numbered(folder / f"{row}.mp4", 150 + 60 * row, video_id=row, gop=12, width=64, height=64)
    index_corpus([folder], folder / "index", workers=1, content_box=False, progress=False)
    opened, chance, videos = Corpus.open(folder / "index"), np.random.default_rng(3), []
    for row, identity in enumerate(values["id"] for values in opened.scan("id")):
        total = int(opened.frames[row])
        inner = np.sort(chance.choice(np.arange(1, total), total // 25, replace=False))
        first = np.concatenate([[0], inner]).astype(np.int64)
        spans = columns(len(first), row) | {
            "first_frame": first,
            "frames": np.diff(first, append=total).astype(np.int32),
            "shot": np.cumsum(np.append([0], chance.random(len(inner)) < 0.4)).astype(np.int32),
        }
        videos.append(ScreenedVideo(identity, "", spans, np.zeros((1, 1), bool), 0))
    write_screen(opened.path, videos, "{}")
    return opened


def allowed(corpus: Corpus, where: str) -> list[np.ndarray]:
    """Of each video, the shot of every frame, -1 where the condition does not hold."""
    from trocar.loaders.corpus.spans import Screen

    screen = Screen(corpus)
    values = np.where(parse_where(where).holds(screen.columns), screen.columns["shot"], -1)
    return [
        np.repeat(values[screen.video == row], screen.columns["frames"][screen.video == row])
        for row in range(len(corpus))
    ]


def tree_of(corpus: Corpus, folder: Path) -> str:
    """Two leaves of all spans of the corpus, as a tree that knows no screen."""
    grid = Sampler.of(corpus, num_frames=FRAMES, stride=STRIDE).grid()
    ids = [row["id"] for row in corpus.scan("id")]
    leaf = (np.arange(len(grid[0])) % 3 > 0).astype(np.int32)
    nothing = np.full(len(leaf), np.nan, np.float32)
    tree = ClusterTree(
        ids, grid[0].astype(np.int32), grid[1], grid[2].astype(np.int32), leaf, nothing, nothing, np.array([[0], [1]], np.int32)
    )  # fmt: skip
    tree.write(folder)
    return str(folder)


def sampler(corpus: Corpus, tree: str | None, where: str | None, within: bool | None = None) -> Sampler:
    timing = {"num_frames": FRAMES, "stride": STRIDE, "screened": screened(corpus, where, within)}
    grid = Sampler.of(corpus, **timing)
    order = None if tree is None else plan_order(corpus, [DrawSettings(tree=tree)], grid, 5).order
    return Sampler.of(corpus, **timing, seed=5, order=order)


@pytest.mark.parametrize("from_tree", [False, True])
def test_no_clip_of_twenty_thousand_draws_leaves_its_shot(corpus: Corpus, from_tree: bool, tmp_path: Path) -> None:
    tree = tree_of(corpus, tmp_path) if from_tree else None
    drawn, shots = sampler(corpus, tree, WHERE), allowed(corpus, WHERE)
    draws = np.arange(20_000)
    video, frames, _ = drawn.frames(draws)
    seen = np.empty_like(frames)
    for row, shot in enumerate(shots):
        seen[video == row] = shot[frames[video == row]]
    assert (seen >= 0).all()
    assert (seen == seen[:, :1]).all()
    spare_video, spare_frames, _ = drawn.frames(draws[:500], spare=2)
    assert all((shots[row][numbers] >= 0).all() for row, numbers in zip(spare_video, spare_frames, strict=True))
    # Without them clips do cross, or this would say nothing.
    video, frames, _ = sampler(corpus, tree, None, False).frames(draws[:2000])
    crossed = [
        np.ptp(shots[row][numbers]) > 0 or shots[row][numbers[0]] < 0
        for row, numbers in zip(video, frames, strict=True)
    ]
    assert np.mean(crossed) > 0.3
    # Every frame that a stretch of a span's length allows is drawn some time.
    reached = {
        (int(row), int(number)) for row, numbers in zip(*drawn.frames(draws)[:2], strict=True) for number in numbers
    }
    runs = [np.split(shot, np.flatnonzero(np.diff(shot)) + 1) for shot in shots]
    long = sum(len(run) for parts in runs for run in parts if run[0] >= 0 and len(run) >= SPAN)
    assert len(reached) > 0.9 * long > 0


@pytest.mark.parametrize("from_tree", [False, True])
def test_draws_are_the_same_on_any_number_of_ranks_and_after_a_resume(
    corpus: Corpus, from_tree: bool, tmp_path: Path
) -> None:
    tree = tree_of(corpus, tmp_path) if from_tree else None
    whole = sampler(corpus, tree, WHERE).frames(np.arange(240))[1]
    made: dict[tuple[int, int], Sampler] = {}
    for ranks in (1, 2, 3):
        order, parts = ClipOrder(1, 0, 24, 5), {}
        for first in range(96, 240, 12):  # from a checkpoint on
            batch = np.arange(first, first + 12)
            for rank in range(ranks):
                numbers = order.share(batch, rank, ranks)
                if (key := (ranks, rank)) not in made:  # each rank opens what it draws from by itself
                    made[key] = sampler(corpus, tree, WHERE)
                again = made[key]
                parts |= dict(zip(numbers.tolist(), again.frames(numbers)[1], strict=True))
        assert sorted(parts) == list(range(96, 240))
        assert all(np.array_equal(parts[number], whole[number]) for number in parts)


def test_the_fingerprint_tells_screens_apart(corpus: Corpus) -> None:
    prints = [sampler(corpus, None, where, within).fingerprint(10) for where, within in (
        (None, False), (None, None), (WHERE, None), (WHERE, False), ("not blank", None)
    )]  # fmt: skip
    assert len(set(prints)) == 5
    assert sampler(corpus, None, None, False).fingerprint(10) == Sampler.of(
        corpus, num_frames=FRAMES, stride=STRIDE, seed=5
    ).fingerprint(10)


def test_what_is_left_out_is_told(corpus: Corpus, tmp_path: Path) -> None:
    found = screened(corpus, WHERE)
    assert found is not None
    assert f"{len(found.breaks):,} cuts" in found.notes[0]
    assert "by 'not blank'" in found.notes[1]
    with pytest.raises(CorpusError, match="leaves nothing"):
        screened(corpus, "in_body > 2")
    with pytest.raises(CorpusError, match=r"data\.where.*accepted"):
        screened(corpus, "in_body")
    write_numbered(tmp_path / "a.mp4", 30, gop=6, width=64, height=64)
    index_corpus([tmp_path], tmp_path / "index", workers=1, content_box=False, progress=False)
    bare = Corpus.open(tmp_path / "index")
    assert screened(bare) is None
    with pytest.raises(CorpusError, match="trocar screen"):
        screened(bare, "not blank")
