"""Priorities, through the public API and real workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.worker.support import Place, eventually, on_each_engine, on_every_engine

from respool import App, ConfigError
from respool.delivery.claim import Request, claim
from respool.delivery.model import Settlement
from respool.delivery.settle import settle
from respool.engines.base import Reads
from respool.replay import purge
from respool.testing import work

CODE = """
@app.task
def step(n):
    note("start", "step", n)
    time.sleep(0.001)


@app.task(priority=0, max_retries=None, default_retry_delay=0, autoretry_for=(OSError,))
def again(n):
    note("start", "again", n)
    if not (HERE / "enough").exists():
        raise OSError(n)


@app.task(priority=9)
def urgent(n):
    note("start", "urgent", n)


@app.task
def slow(n):
    with noted("slow", n):
        time.sleep(0.03 if n > 200 else 0)
"""


def test_priorities_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as app:

        @app.task
        def add(x: int) -> int:
            return x

        for wrong in (10, -1, "9", 2.5, True):
            with pytest.raises(ConfigError, match=r"from 0 \(last\) to 9 \(first\)"):
                add.apply_async((1,), priority=wrong)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=r"from 0 \(last\) to 9 \(first\)"):
                app.task(name=f"t{wrong}", priority=wrong)(lambda: None)
        (queue,) = app.engine.streams()
        assert queue.lanes == {}
        assert [hi - lo for _, lo, hi in app.engine.bounds(queue)] == [0], "nothing was sent"


def test_a_task_sees_its_priority_and_the_middle_makes_no_lane(tmp_path: Path) -> None:
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as app:

        @app.task(bind=True)
        def seen(self: Any) -> list[int]:
            return [self.request.priority, self.request.partition, self.request.offset]

        @app.task(bind=True, priority=7)
        def usual(self: Any) -> int:
            return int(self.request.priority)

        sent = [seen.apply_async(priority=p) for p in (None, 4)]
        assert app.engine.streams()[0].lanes == {}
        sent += [seen.apply_async(priority=9), seen.apply_async(priority=0)]
        theirs = [usual.delay(), usual.apply_async(priority=4), usual.apply_async(priority=1)]
        many = usual.apply_many([((), {})] * 3)
        work(app)
        assert [r.get(0) for r in sent] == [[4, 0, 0], [4, 0, 1], [9, 0, 0], [0, 0, 0]]
        assert [r.get(0) for r in theirs] == [7, 4, 1]
        assert many.get(0) == [7, 7, 7]
        assert sorted(app.engine.streams()[0].lanes) == [0, 1, 7, 9]


def test_calls_made_by_a_run_keep_their_priority(tmp_path: Path) -> None:
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as app:
        order: list[str] = []

        @app.task
        def parent() -> None:
            child.apply_async(("low",), priority=0)
            child.apply_async(("high",), priority=9)

        @app.task
        def child(name: str) -> None:
            order.append(name)

        parent.delay()
        work(app)
        assert order == ["high", "low"]


@on_each_engine
def test_a_priority_9_call_behind_a_backlog(place: Place) -> None:
    """It starts within 100 ms, also the first of all, whose lane no worker knows of."""
    module = place.module(CODE)
    module.step.delay_many(range(4_000))
    place.worker(1)
    eventually(lambda: len(place.marks("start", "step")) > 100)
    waits = []
    for n in range(6):
        sent = time.monotonic()
        module.urgent.delay(n)
        waits.append(place.await_start("urgent", str(n)).at - sent)
    assert len(place.marks("start", "step")) < 4_000, "nothing was left to be behind of"
    assert sorted(waits)[3] < 0.1, waits
    assert max(waits) < 0.5, waits  # this machine has other things to do
    eventually(place.idle)
    assert place.runs("step") == {str(n): 1 for n in range(4_000)}
    place.check()


def test_a_lease_of_calls_that_became_slow_is_cut_short(place: Place) -> None:
    """A lease sized for quick calls would last for seconds: after 100 ms the rest goes back."""
    module = place.module(CODE)
    module.slow.delay_many(range(600))
    place.worker(1)
    place.await_start("slow", "205")
    sent = time.monotonic()
    module.urgent.delay(1)
    assert place.await_start("urgent", "1").at - sent < 0.4
    assert len(place.marks("start", "slow")) < 300


def test_retries_of_a_low_lane_do_not_overtake(place: Place) -> None:
    """H11: a storm of them that is always due, and calls of priority 9 are next all the same."""
    module = place.module(CODE)
    module.again.delay_many(range(200))
    worker = place.worker(1)
    eventually(lambda: len(place.marks("start", "again")) > 500)
    before = len(place.marks("start", "again"))
    waits = []
    for n in range(20):
        sent = time.monotonic()
        module.urgent.delay(n)
        waits.append(place.await_start("urgent", str(n)).at - sent)
    assert sorted(waits)[10] < 0.1, waits
    eventually(lambda: len(place.marks("start", "again")) > before, "the low lane starves")
    place.touch("enough")
    eventually(place.idle)
    worker.stop()
    place.check()


@on_every_engine
def test_none_starves(place: Place) -> None:
    module = place.module(CODE)
    module.urgent.delay_many(range(6000))
    module.step.delay_many(range(20))
    for n in range(20):
        module.step.apply_async((100 + n,), priority=0)
    place.burst(1, timeout=60)
    marks = place.marks("start")
    firsts = {
        key: n
        for n, (name, key) in reversed(list(enumerate((m.name, m.key) for m in marks)))
        if name == "step"
    }
    last = max(n for n, m in enumerate(marks) if m.name == "urgent")
    assert firsts["0"] < last
    assert firsts["100"] < last, "the lowest was served while the highest had calls"
    assert marks[0].name == "urgent"
    place.check()


def test_a_purge_leaves_nothing_of_what_was_given_back(tmp_path: Path) -> None:
    """Of a queue with lanes more is read at a time than was asked for."""
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as app:

        @app.task
        def add(x: int) -> None: ...

        add.delay_many(range(1200))
        add.apply_async((0,), priority=0)
        engine, main = app.engine, app.main_of("default")
        for lease in range(1, 1201):
            request = Request(1, 1, 0, 1 << 32 | lease, 1.0)
            reads = Reads(main.id, positions=True, due=1, now=1.0)
            held = engine.transact(reads, lambda view, change, request=request: claim(view, change, request))
            back = Settlement(held.id, 1, [], ended=1.0, release=True)
            reads = Reads(main.id, (held.id,))
            assert engine.transact(reads, lambda view, change, back=back: settle(view, change, back))
        assert engine.counts(main).returned == 1200
        assert purge(app, "default") == 1201
        counts = engine.counts(main)
        assert (counts.pending, counts.returned) == (0, 0)
