"""Queues whose log cannot be used: each rests, for longer and longer, and the others go on."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tests.worker.support import Place, eventually

from respool.errors import EngineUnavailable, RespoolError, StreamBroken, StreamUnavailable
from respool.worker import resting
from respool.worker.resting import Resting

CODE = """
@app.task
def fine(n):
    note("start", "fine", n)
    return n


@app.task(queue="bad")
def bad(n):
    note("start", "bad", n)
    return n


if IN_WORKER:
    from respool.engines.sqlite.engine import SQLiteEngine
    from respool.errors import StreamBroken, StreamUnavailable

    def failing(name, concerns):
        inner = getattr(SQLiteEngine, name)

        def wrapped(self, first, *args, **kwargs):
            try:
                kind, number = (HERE / f"broken-{name}").read_text().split()
            except (FileNotFoundError, ValueError):
                return inner(self, first, *args, **kwargs)
            if concerns(first, int(number)):
                note("start", f"failed-{name}")
                raise {"broken": StreamBroken, "unavailable": StreamUnavailable}[kind](f"cannot {name}")
            return inner(self, first, *args, **kwargs)

        setattr(SQLiteEngine, name, wrapped)

    failing("has_work", lambda group, number: group == number)
    failing("transact", lambda reads, number: reads.group == number and reads.due)
    failing("rows", lambda spans, number: any(span.lo >> 40 == number for span in spans))
"""
QUICK = "import respool.worker.resting as r; r.PAUSES = (0.2, 0.4)"


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(resting, "time", made)
    return made


def fails(clock: Clock, error: RespoolError, took: float) -> Any:
    def ask() -> bool:
        clock.now += took
        raise error

    return ask


def test_pauses_grow_with_what_the_looks_took_and_are_bounded(clock: Clock) -> None:
    rests = Resting()
    pauses = []
    for _ in range(7):
        assert not rests.look(7, "queue a", fails(clock, StreamUnavailable("no leader"), 10.0))
        left = rests.left(7)
        assert left is not None
        pauses.append(left)
        assert rests.left(8) is None, "nobody else rests"
        clock.now += left
        assert rests.left(7) is None
    assert pauses == [20.0, 40.0, 80.0, 80.0, 80.0, 80.0, 80.0]


def test_looks_that_fail_at_once_pause_too(clock: Clock) -> None:
    for alone in (False, True):
        rests = Resting(alone=alone)
        pauses = []
        for _ in range(6):
            rests.look(7, "queue a", fails(clock, StreamBroken("gone"), 0.0))
            pauses.append(rests.left(7) or 0.0)
            clock.now += pauses[-1]
        assert pauses == [1.0, 2.0, 5.0, 10.0, 30.0, 30.0]


def test_who_holds_up_nobody_looks_again_soon(clock: Clock) -> None:
    """A leader that is away for long was waited for meanwhile; what comes back is run within a second."""
    rests = Resting(alone=True)
    for _ in range(5):
        rests.look(7, "queue a", fails(clock, StreamUnavailable("no leader"), 10.0))
        assert rests.left(7) == 1.0
        clock.now += 1.0


def test_nobody_asks_while_it_rests_and_it_is_said_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    rests = Resting()
    asked = []

    def ask() -> bool:
        asked.append(clock.now)
        return True

    with caplog.at_level(logging.INFO, "respool.worker"):
        rests.look(7, "queue a", fails(clock, StreamBroken("gone"), 0.0))
        assert not rests.look(7, "queue a", ask)
        assert not asked
        clock.now += 1.0
        rests.look(7, "queue a", fails(clock, StreamBroken("gone"), 0.0))
        clock.now += 2.0
        rests.look(7, "queue a", fails(clock, StreamBroken("made again"), 0.0))
        clock.now += 5.0
        assert rests.look(7, "queue a", ask)
        assert len(asked) == 1
        rests.tried(7, "queue a", fails(clock, StreamBroken("made again"), 0.0))  # there is work, but …
        assert rests.left(7) == 10.0, "it was not well"
        clock.now += 10.0
        assert not rests.look(7, "queue a", lambda: False)
    assert not rests
    said = [record.getMessage() for record in caplog.records]
    again = "It is looked at again, now and then"
    assert said == [f"queue a rests: gone. {again}", f"queue a rests: made again. {again}", "queue a goes on"]


def test_an_engine_that_is_away_is_nobodys_rest(clock: Clock) -> None:
    rests = Resting()
    with pytest.raises(EngineUnavailable):
        rests.look(7, "queue a", fails(clock, EngineUnavailable("all is down"), 10.0))
    assert not rests


@pytest.mark.parametrize("queues", [["default", "bad"], ["bad"]])
@pytest.mark.parametrize("kind", ["broken", "unavailable"])
@pytest.mark.parametrize("name", ["has_work", "transact", "rows"])
def test_a_queue_that_fails_rests_and_its_process_goes_on(
    place: Place, name: str, kind: str, queues: list[str]
) -> None:
    module = place.module(CODE + "\n    " + QUICK)
    worker = place.worker(1, queues=queues)
    assert module.bad.delay(1).get(timeout=20) == 1
    (pid,) = place.children()
    group = place.group(queue="bad")
    (log,) = place.app.stream_of("queue", "bad").logs
    (place.folder / f"broken-{name}").write_text(f"{kind} {log if name == 'rows' else group.id}")
    waits = [module.bad.delay(n) for n in range(2, 7)]
    place.await_start(f"failed-{name}")
    worker.said(f"queue bad rests: cannot {name}")
    if "default" in queues:
        assert [module.fine.delay(n).get(timeout=5) for n in range(20)] == list(range(20))
    eventually(lambda: len(place.marks("start", f"failed-{name}")) >= 3)
    assert place.counts(queue="bad").leased == 0, "nothing is held meanwhile"
    (place.folder / f"broken-{name}").unlink()
    assert [each.get(timeout=20) for each in waits] == [2, 3, 4, 5, 6]
    worker.said("queue bad goes on")
    assert place.children() == [pid], "it is the same process"
    assert worker.stop() == 0
    assert worker.log.count("queue bad rests") == 1
    assert place.runs("bad") == {str(n): 1 for n in range(1, 7)}
    place.check()


def test_a_claim_that_fails_after_a_run_settles_it(place: Place) -> None:
    """What was run is settled by itself, where no more can be claimed with it."""
    module = place.module(
        CODE + "\n    " + QUICK,
        """
        @app.task(queue="bad")
        def breaks(group):
            (HERE / "broken-transact").write_text(f"unavailable {group}")
        """,
    )
    worker = place.worker(1)
    broke = module.breaks.delay(place.group(queue="bad").id)
    assert broke.get(timeout=20) is None
    worker.said("queue bad rests: cannot transact")
    assert module.fine.delay(1).get(timeout=5) == 1
    assert place.counts(queue="bad").leased == 0
    (place.folder / "broken-transact").unlink()
    assert module.bad.delay(1).get(timeout=20) == 1
    assert worker.stop() == 0
    assert [attempt.how for attempt in broke.history()] == ["done"]
    place.check()


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_a_burst_ends_with_the_others_and_says_what_it_left(place: Place, pool: str) -> None:
    module = place.module(CODE)
    results = [module.fine.delay(n) for n in range(5)]
    group = place.group(queue="bad")
    (place.folder / "broken-has_work").write_text(f"broken {group.id}")
    counts = f"""
        from respool.engines.sqlite.engine import SQLiteEngine
        from respool.errors import StreamBroken
        inner = SQLiteEngine.counts
        def counts(self, group):
            if group.id == {group.id}:
                raise StreamBroken("the topic is gone")
            return inner(self, group)
        SQLiteEngine.counts = counts
    """
    worker = place.worker(1, pool=pool, burst=True, before=counts)
    assert worker.wait() == 1, "not all was looked at"
    assert [each.get(timeout=1) for each in results] == [0, 1, 2, 3, 4]
    assert "of group main, what is left cannot be seen: the topic is gone" in worker.log
