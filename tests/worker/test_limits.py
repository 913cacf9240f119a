"""Time limits: only the record that ran too long fails, and only while its own code runs."""

from __future__ import annotations

import asyncio

import pytest
from tests.worker.support import Place, eventually

from respool.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from respool.replay import dead_letters

CODE = """
from respool.errors import SoftTimeLimitExceeded


@app.task
def fine(n):
    with noted("fine", n):
        return n


@app.task(time_limit=0.3)
def hard(n):
    note("start", "hard", n)
    if n < 0:
        fine.delay(1000)
        while True:
            time.sleep(0.001) if n == -1 else sum(range(10_000_000))
    note("end", "hard", n)
    return n


@app.task(soft_time_limit=0.2)
def soft(n):
    note("start", "soft", n)
    if n < 0:
        time.sleep(60)
    return n


@app.task(soft_time_limit=0.2)
def cleans_up(n):
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        note("clean", "cleans_up", n)
        return "cleaned"


@app.task(soft_time_limit=0.2, autoretry_for=(SoftTimeLimitExceeded,), default_retry_delay=0, max_retries=1)
def softly_retried(n):
    note("start", "softly_retried", n)
    time.sleep(60)


@app.task(soft_time_limit=0.2)
async def softly(n):
    note("start", "softly", n)
    if n < 0:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note("clean", "softly", n)
            raise
    return n


@app.task(soft_time_limit=0.2)
async def softly_busy(n):
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    return "had its way"


@app.task(soft_time_limit=0.2, time_limit=0.6)
def stubborn(n):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            time.sleep(60)
        except SoftTimeLimitExceeded:
            note("clean", "stubborn", n)


class Slow:
    # Its encoding takes longer than the limit of the task that returns it.
    pass


@app.task(soft_time_limit=0.2)
def slow_to_encode(n):
    return ["x"] * 10


if IN_WORKER:
    from respool.worker.calling import Caller
    success = Caller.success

    def slow(self, runner, row, span, value):
        if runner.name == "slow_to_encode":
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                time.sleep(0.01)
        return success(self, runner, row, span, value)

    Caller.success = slow
"""


@pytest.mark.parametrize("how", [-1, -2], ids=["sleeping", "busy"])
def test_hard_limit_fails_that_record_alone(place: Place, how: int) -> None:
    module = place.module(CODE)
    before = module.hard.delay_many(range(20))
    long = module.hard.delay(how)
    after = module.hard.delay_many(range(20, 40))
    place.burst(1)
    with pytest.raises(TimeLimitExceeded, match=r"hard was killed after 0\.3 s"):
        long.get(timeout=1)
    assert [a.how for a in long.history()] == ["failed"]
    assert before.get(timeout=1) + after.get(timeout=1) == list(range(40))
    assert set(place.runs("hard").values()) == {1}
    assert not place.runs("fine"), "the calls of a run that was killed are not sent"
    assert [d.parked.pos for d in dead_letters(place.app)] == [long.record().pos]
    place.check()


def test_soft_limit(place: Place) -> None:
    module = place.module(CODE)
    before = module.soft.delay_many(range(20))
    long = module.soft.delay(-1)
    cleaned = module.cleans_up.delay(1)
    retried = module.softly_retried.delay(1)
    after = module.soft.delay_many(range(20, 40))
    worker = place.burst(1)
    with pytest.raises(SoftTimeLimitExceeded):
        long.get(timeout=1)
    assert "time.sleep" in str(long.traceback)
    assert cleaned.get(timeout=1) == "cleaned"
    with pytest.raises(SoftTimeLimitExceeded):
        retried.get(timeout=1)
    assert before.get(timeout=1) + after.get(timeout=1) == list(range(40))
    runs = place.runs()
    assert runs.pop("-1") == 1
    assert place.runs("softly_retried") == {"1": 2}
    assert set(place.runs("soft").values()) == {1}
    assert "killed" not in worker.log


def test_soft_limit_in_a_coroutine(place: Place) -> None:
    module = place.module(CODE)
    before = module.softly.delay_many(range(5))
    long = module.softly.delay(-1)
    busy = module.softly_busy.delay(1)
    after = module.softly.delay_many(range(5, 10))
    place.burst(1)
    with pytest.raises(SoftTimeLimitExceeded):
        long.get(timeout=1)
    assert place.marks("clean", "softly")
    assert busy.get(timeout=1) == "had its way"
    assert before.get(timeout=1) + after.get(timeout=1) == list(range(10))
    assert set(place.runs("softly").values()) == {1}


def test_soft_limit_and_then_the_hard_one(place: Place) -> None:
    module = place.module(CODE)
    result = module.stubborn.delay(1)
    place.burst(1)
    with pytest.raises(TimeLimitExceeded, match=r"0\.6 s"):
        result.get(timeout=1)
    assert len(place.marks("clean", "stubborn")) == 1


def test_soft_limit_is_never_raised_outside_of_the_tasks_code(place: Place) -> None:
    """H17: not while its result is encoded, however long that takes."""
    module = place.module(CODE)
    results = [module.slow_to_encode.delay(n) for n in range(3)]
    worker = place.burst(1)
    assert [r.get(timeout=1) for r in results] == [["x"] * 10] * 3
    assert "Traceback" not in worker.log


def test_limits_are_kept_while_other_children_work(place: Place) -> None:
    module = place.module(CODE)
    long = [module.hard.delay(-2), module.soft.delay(-1)]
    worker = place.worker(2)
    fine = module.fine.delay_many(range(500))

    async def errors() -> list[object]:
        return [await each.aget(timeout=20, propagate=False) for each in long]

    assert [type(e) for e in asyncio.run(errors())] == [TimeLimitExceeded, SoftTimeLimitExceeded]
    assert fine.get(timeout=20) == list(range(500))
    eventually(place.idle)
    assert set(place.runs("fine").values()) == {1}
    assert worker.stop() == 0
