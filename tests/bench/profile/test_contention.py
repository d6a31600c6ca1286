"""Decoding that takes the interpreter from the training thread is named, and nothing else is taken for it."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from trocar.bench.profile.contention import BESIDE_STEPS, ContentionClock, read, told

LAST, STEPS = 2, 8


def run(holds_the_interpreter: bool) -> ContentionClock:
    """Steps beside a decoding thread, until all is decoded."""
    clock, is_over = ContentionClock(LAST, STEPS), threading.Event()
    ranges = clock.around(lambda name: nullcontext())

    def decode() -> None:
        while not is_over.is_set():
            with ranges("trocar/decode"):
                if holds_the_interpreter:
                    until = time.thread_time() + 0.02
                    while time.thread_time() < until:
                        pass
                else:
                    time.sleep(0.02)

    thread = threading.Thread(target=decode)
    thread.start()
    for step in range(STEPS):
        if step == STEPS - 1:
            is_over.set()
            thread.join()
        clock.on_step(step)
        with ranges("trocar/step"), ranges("trocar/encoder"):
            for _ in range(20):
                time.sleep(0.0005)  # gives the interpreter up and wants it back, as an operator does
    return clock


def test_contention_is_named(tmp_path: Path) -> None:
    clock = run(holds_the_interpreter=True)
    found = clock.found()
    assert list(found) == ["encoder"]
    beside, alone = found["encoder"]
    assert beside > 2 * alone
    (note,) = told(found)
    assert "the interpreter is contended: encoder takes" in note
    assert "decode in processes (data.workers)" in note
    clock.write(tmp_path / "found.json")
    assert read(tmp_path / "found.json") == found
    assert read(tmp_path / "found.json") == {}


def test_threads_that_do_not_hold_it_are_no_contention() -> None:
    assert run(holds_the_interpreter=False).found() == {}
    assert told({}) == []


def test_only_steps_beside_decoding_count() -> None:
    clock = ContentionClock(0, BESIDE_STEPS + 1)
    ranges = clock.around(lambda name: nullcontext())
    for step in range(BESIDE_STEPS + 1):
        clock.on_step(step)
        with ranges("trocar/encoder"):
            time.sleep(0.01 if step < BESIDE_STEPS else 0.001)
    assert clock.found() == {}, "nothing was decoded"
    with ranges("trocar/decode"):
        pass
    assert clock.found() == {}, "nor by what comes in the last step"
    clock.on_step(0)
    with ranges("trocar/decode"):
        pass
    assert clock.found()["encoder"] == pytest.approx((0.01, 0.001), rel=0.9)
