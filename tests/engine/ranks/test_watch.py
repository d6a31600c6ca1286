"""A rank that is killed, stopped, slow or fails by itself: all the others end in time, with an error that names it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ranks import TINY, make_corpus, start_ranks

HEARTBEAT, TIMEOUT = 4, 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("kill", f"rank 1 gave no sign of life for {HEARTBEAT} s (run.heartbeat_timeout)"),
        pytest.param(
            "sleep",
            f"rank 1 did not come on for {TIMEOUT} s (run.rank_timeout, also the timeout of NCCL and gloo)",
            marks=pytest.mark.slow,
        ),
        pytest.param("stop", f"rank 1 gave no sign of life for {HEARTBEAT} s", marks=pytest.mark.slow),
        pytest.param("raise", "rank 1 ended with ValueError: a clip of another shape", marks=pytest.mark.slow),
    ],
)
def test_the_rank_is_named(corpus: Path, tmp_path: Path, what: str, says: str) -> None:
    settings = [f"data.corpus={corpus}", f"run.dir={tmp_path / 'run'}", *TINY, "optim.steps=2000", "optim.batch=6"]
    settings += [f"run.heartbeat_timeout={HEARTBEAT}", f"run.rank_timeout={TIMEOUT}"]
    started = start_ranks(3, tmp_path, settings=settings, at={"rank": 1, "step": 5, "do": what})
    outs = [out for _, out in started]
    reads = tmp_path / "run" / "read_1.jsonl"
    while not reads.exists() or reads.read_bytes().count(b"\n") < 4:
        assert started[0][0].is_alive(), outs[0].read_text()
        time.sleep(0.05)
    happened = time.monotonic()
    # Under a heavy load a process may take a while to do anything; a hang would be for good.
    for rank, (process, out) in enumerate(started):
        if rank == 1 and what == "stop":
            continue
        process.join(60 + TIMEOUT)
        assert process.exitcode is not None, f"rank {rank} hangs: {out.read_text()}"
        if rank != 1 or what == "sleep":
            assert process.exitcode == 1
            assert says in out.read_text()
    print(f"{what}: all ended {time.monotonic() - happened:.1f} s after it")
    started[1][0].kill()
    started[1][0].join()


def test_a_single_process_that_hangs_ends_too(corpus: Path, tmp_path: Path) -> None:
    settings = [f"data.corpus={corpus}", f"run.dir={tmp_path / 'run'}", *TINY, "optim.steps=2000", "run.rank_timeout=2"]
    ((process, out),) = start_ranks(1, tmp_path, settings=settings, at={"rank": 0, "step": 3, "do": "sleep"})
    process.join(120)
    assert process.exitcode == 1
    assert "nothing came on for 2 s (run.rank_timeout): in waiting for clips of step 3" in out.read_text()
