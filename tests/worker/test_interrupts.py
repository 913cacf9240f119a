"""Exceptions from signal handlers, and runs that end otherwise than they should: each case was once wrong."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import apsw
import pytest
from tests.worker.support import Place

from respool import App, RecordTooLarge, SoftTimeLimitExceeded, WorkerLost
from respool.engines.sqlite import engine as sqlite_engine

CODE = """
import time as clock

@app.task(soft_time_limit=0.05)
def reports(n):
    while True:
        self_report(n)


def self_report(n):
    app.tasks["reports"].update_state(n)


@app.task(soft_time_limit=0.2)
def slow(n):
    clock.sleep(30)


@app.task(bind=True, max_deliveries=1, autoretry_for=(ValueError,), default_retry_delay=0, max_retries=2)
def once_and_again(self, n):
    note("start", "once_and_again", n)
    if self.request.retries < 2:
        raise ValueError("again")
    return n


@app.task(max_deliveries=1)
def dies(n):
    note("start", "dies", n)
    die()


@app.task
def sends_much(n):
    once_and_again.apply_async(("x" * 2_000_000,))
"""


class Interrupt(Exception):
    """What the handler raises, wherever the code is."""


@contextmanager
def interrupts(every: float) -> Iterator[None]:
    """Raise Interrupt in the main thread again and again."""

    def strike(number: int, frame: FrameType | None) -> None:
        if _strikes_in(frame):
            raise Interrupt

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _strikes_in(frame: FrameType | None) -> bool:
    """Say whether it would be what `struck` does that is interrupted, rather than the test itself."""
    if frame is None or frame.f_code.co_filename == __file__:
        return False
    while frame is not None and frame.f_code is not struck.__code__:
        frame = frame.f_back
    return frame is not None


def struck(act: Callable[[], object], times: int) -> None:
    """Do something until it was interrupted so often."""
    seen = 0
    while seen < times:
        try:
            act()
        except Interrupt:
            seen += 1


def in_time(act: Callable[[], object]) -> bool:
    """Say whether something another thread does ends within seconds."""
    done = threading.Event()

    def run() -> None:
        act()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done.wait(20)


def test_an_interrupt_leaves_no_lock_behind(tmp_path: Path) -> None:
    """H17 and Ctrl-C: an exception may come between any two steps of a read, a write or an append."""
    app = App("shop", url=f"sqlite:///{tmp_path / 'r.db'}?durability=os")

    @app.task
    def add(x: int) -> int:
        return x

    add.delay(0)
    engine, group = app.engine, app.groups()[0]
    for act in (
        lambda: engine.next_due(group.id),
        lambda: engine.counts(group),
        lambda: engine.set_progress(group.id, 1 << 40, b"x"),
        lambda: add.delay(1),
    ):
        with interrupts(0.0007):
            struck(act, 300)
        assert in_time(act)
    assert in_time(lambda: add.delay(2))
    app.close()


def test_a_soft_limit_strikes_in_no_code_of_ours(place: Place) -> None:
    app = place.module(CODE)
    handles = [app.reports.delay(n) for n in range(20)]
    worker = place.worker(1)
    for handle in handles:
        with pytest.raises(SoftTimeLimitExceeded):
            handle.get(timeout=30)
    assert worker.stop() == 0


def test_soft_limits_of_the_solo_pool_come_in_time(place: Place) -> None:
    app = place.module(CODE)
    handles = [app.slow.delay(n) for n in range(3)]
    place.worker(1, pool="solo")
    for handle in handles:
        with pytest.raises(SoftTimeLimitExceeded):
            handle.get(timeout=10)


def test_a_task_that_may_run_once_is_retried_when_it_says_so(place: Place) -> None:
    """H7 bounds the runs that may have been cut short, and a retry is asked for by one that was not."""
    app = place.module(CODE)
    handle = app.once_and_again.delay(1)
    place.burst()
    assert handle.get(timeout=1) == 1
    assert place.runs("once_and_again")["1"] == 3


def test_who_waits_for_a_call_that_is_buried_is_woken(place: Place) -> None:
    app = place.module(CODE, poll_interval=60)
    handle = app.dies.delay(1)
    place.worker(1)
    with pytest.raises(WorkerLost):
        handle.get(timeout=20)


def test_a_call_within_a_run_is_no_larger_than_allowed(place: Place) -> None:
    app = place.module(CODE, max_blob_size="1MiB")
    handle = app.sends_much.delay(1)
    place.burst()
    with pytest.raises(RecordTooLarge):
        handle.get(timeout=1)


def test_a_reader_that_stays_holds_up_no_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log cannot start over while somebody reads: it is tried now and then, not at each commit."""
    app = App("shop", url=f"sqlite:///{tmp_path / 'r.db'}?durability=os")

    @app.task
    def add(x: int) -> int:
        return x

    add.delay(0)
    monkeypatch.setattr(sqlite_engine, "WAL_SIZE", 20 * 2048)
    engine: object = app.engine
    assert isinstance(engine, sqlite_engine.SQLiteEngine)
    tried = []
    checkpoint = engine._state.checkpoint
    monkeypatch.setattr(engine._state, "checkpoint", lambda mode: tried.append(mode) or checkpoint(mode))
    reader = apsw.Connection(str(tmp_path / "r.db"))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM record").fetchall()
    for n in range(200):
        add.delay(n)
    assert 1 <= len(tried) <= 40, "some 400 pages: once for each 20"
    reader.execute("COMMIT")
    tried.clear()
    for n in range(100):
        add.delay(n)
    assert "RESTART" in tried
    reader.close()
    app.close()


def test_opening_needs_no_lock_where_all_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'r.db'}"
    first = App("shop", url=url)
    first.groups()
    first.close()
    other = apsw.Connection(str(tmp_path / "r.db"))
    other.execute("BEGIN IMMEDIATE")
    second = App("shop", url=url, append_timeout=0.2)
    assert [group.name for group in second.groups()] == ["main"]
    second.close()
    other.close()


def test_a_handle_does_not_speak_of_another_log(tmp_path: Path) -> None:
    """A position is that of the file it was given in, not of the one that takes its place."""
    path = tmp_path / "r.db"
    app = App("shop", url=f"sqlite:///{path}")

    @app.task
    def add(x: int) -> int:
        return x

    old = add.delay(1)
    assert old.state == "PENDING"
    app.close()
    for each in tmp_path.glob("r.db*"):
        if each.is_file():
            os.unlink(each)
    add.delay(2)
    assert old.state == "UNKNOWN"
    app.close()
