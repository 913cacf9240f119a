"""Limits over all workers, as a user sees them: rates, runs at a time, keys of their own, one big tenant."""

from __future__ import annotations

import random
import signal
import time
from bisect import bisect_left

import pytest
from tests.worker.support import Mark, Place, eventually, on_each_engine, on_every_engine, tree

from respool.errors import GetTimeout
from respool.replay import dead_letters

CODE = """
app.queue("narrow", max_concurrency=1)


@app.task(rate_limit="100/s")
def steady(n):
    note("start", "steady", n)


@app.task(max_concurrency=2)
def two(n):
    with noted("two", n):
        time.sleep(0.01)


@app.task(queue="narrow")
def narrow(n):
    with noted("narrow", n):
        time.sleep(0.005)


@app.task(rate_limit="20/s", limit_key="tenant")
def hook(n, tenant):
    note("start", "hook", tenant)


@app.task(rate_limit="1/h", limit_key=lambda n: str(n) if n < 100 or not IN_WORKER else 1 / 0)
def hourly(n):
    note("start", "hourly", n)
    return n


@app.task(rate_limit="30/m")
def seldom(n):
    note("start", "seldom", n)
    return n


@app.task
def free(n):
    note("start", "free", n)
"""


def most_at_once(marks: list[Mark]) -> int:
    """Return how many runs were going on at the most, of those that came to their end."""
    ended = {(mark.pid, mark.key) for mark in marks if mark.what == "end"}
    steps = [(m.at, 1 if m.what == "start" else -1) for m in marks if (m.pid, m.key) in ended]
    now = most = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


@on_every_engine
def test_a_rate_is_kept_by_ten_processes_together(place: Place) -> None:
    """To 5 %, over eight seconds of a queue that is never empty."""
    module = place.module(CODE)
    workers = [place.worker(5), place.worker(5)]
    module.free.delay(0).get(timeout=20)
    place.children(10)
    module.steady.delay_many(range(3000))
    eventually(lambda: len(place.runs("steady")) > 100, "the first hundred")

    def windows() -> list[int]:
        """How many there are in each eight seconds, from when the burst is over."""
        times = [mark.at for mark in place.marks("start", "steady")]
        times = times[bisect_left(times, times[0] + 1.5) :]
        return [bisect_left(times, at + 8) - n for n, at in enumerate(times) if at + 8 < times[-1]]

    def kept() -> bool:
        return any(800 * 0.95 <= number <= 800 * 1.05 for number in windows())

    eventually(kept, "eight seconds at its rate, once this machine can keep up for so long", timeout=28)
    assert max(windows()) <= (800 + 100) * 1.01, "a burst more where it could not keep up before, and no more"
    for worker in workers:
        worker.stop()
    place.check()


@on_every_engine
def test_no_more_run_at_a_time_whoever_runs_them(place: Place) -> None:
    module = place.module(CODE)
    module.two.delay_many(range(100))
    module.narrow.delay_many(range(60))
    place.worker(2, burst=True)
    place.burst(2, timeout=60)
    eventually(lambda: place.idle() and place.counts(queue="narrow").parked == {}, "all done")
    assert place.runs("two") == dict.fromkeys(map(str, range(100)), 1)
    assert place.runs("narrow") == dict.fromkeys(map(str, range(60)), 1)
    two = [mark for mark in place.marks() if mark.name == "two"]
    assert most_at_once(two) == 2, "no more, and no less"
    assert most_at_once([mark for mark in place.marks() if mark.name == "narrow"]) == 1
    place.check()


@on_each_engine
def test_a_big_tenant_does_not_hold_up_a_small_one(place: Place) -> None:
    """B's ten calls stand behind a hundred thousand of A's, which at 20/s would take more than an hour."""
    module = place.module(CODE)
    many = 100_000 if place.url is None else 20_000
    module.hook.apply_many(((n, "A"), {}) for n in range(many))
    module.hook.apply_many(((n, "B"), {}) for n in range(10))
    place.worker(2)
    eventually(lambda: place.runs("hook")["B"] == 10, "B's calls", timeout=60)
    assert 0 < place.runs("hook")["A"] < 2000, "A has its own rate all the while"
    assert place.counts().parked["limited"] > many - 3000
    place.check()


@pytest.mark.parametrize("when", ["before a worker looks", "while they wait for their turn"])
def test_calls_that_have_expired_take_no_turns(place: Place, when: str) -> None:
    """With a turn each the good one would come after 40 s."""
    module = place.module(CODE)
    waits = when == "while they wait for their turn"
    if waits:
        place.worker(1).said("serves")
        assert module.seldom.delay(0).get(timeout=20) == 0
    expiring = [module.seldom.apply_async((n,), expires=1.5 if waits else 0.01) for n in range(1, 21)]
    good = module.seldom.delay(99)
    if waits:
        eventually(lambda: place.counts().parked.get("limited", 0) == 21, "they wait")
    else:
        sent = time.time()
        eventually(lambda: time.time() > sent + 0.02, "they have expired")
        place.worker(1)
    assert good.get(timeout=15) == 99
    assert {each.state for each in expiring} == {"REVOKED"}
    assert place.runs("seldom") == ({"0": 1, "99": 1} if waits else {"99": 1})
    place.check()


def test_beyond_the_cap_the_cursor_waits_and_goes_on(place: Place) -> None:
    module = place.module(CODE, max_limited=100)
    module.hook.apply_many(((n, "A"), {}) for n in range(6000))
    last = module.free.delay(1)
    worker = place.worker(1)
    eventually(lambda: place.counts().parked.get("limited", 0) >= 100, "the cap")
    eventually(lambda: place.runs("hook")["A"] > 20, "it goes on")
    counts = place.counts()
    assert counts.parked["limited"] < 4200, "a claim's worth over the cap, at most"
    assert counts.pending > 1000, "the cursor waits"
    with pytest.raises(GetTimeout, match="calls are before it"):
        last.get(timeout=0.1)
    before, cpu = time.monotonic(), _cpu(worker.pid)
    eventually(lambda: time.monotonic() > before + 2, "two seconds", timeout=5)
    assert _cpu(worker.pid) - cpu < 1.0, "it does not spin"
    worker.stop()
    place.check()


def _cpu(pid: int) -> float:
    """Return the processor time of a worker's children."""
    from tests.worker.support import cpu_seconds

    return sum(cpu_seconds(child) for child in tree(pid))


def test_who_waits_is_pending_and_says_for_what(place: Place) -> None:
    module = place.module(CODE)
    first, second = module.hourly.delay(7), module.hourly.delay(7)
    other = module.hourly.delay(8)
    place.worker(1)
    assert first.get(timeout=20) == 7
    assert other.get(timeout=20) == 8, "a key of its own"
    eventually(lambda: place.counts().parked == {"limited": 1}, "the second waits")
    assert second.state == "PENDING"
    with pytest.raises(GetTimeout, match=r"waits for its limit: t/task hourly, key '7', 1/h"):
        second.get(timeout=0.1)


def test_a_key_that_cannot_be_told_is_a_dead_letter(place: Place) -> None:
    module = place.module(CODE)
    bad, good = module.hourly.delay(100), module.hourly.delay(1)
    place.worker(1)
    assert good.get(timeout=20) == 1
    eventually(lambda: bad.state == "FAILURE", "the other")
    (letter,) = dead_letters(place.app)
    assert "limit_key raised ZeroDivisionError" in letter.error.message
    assert place.runs("hourly") == {"1": 1}


CRASHING = """
@app.task(max_concurrency=3, max_deliveries=1000)
def frail(n):
    with noted("frail", n):
        time.sleep(0.004)
"""
MANY = 400


@on_every_engine
def test_kills_leak_no_slot_and_lose_nothing(place: Place) -> None:
    """Children and whole workers are killed at random; three run at a time at most, to the end."""
    module = place.module(CRASHING, beat=0.2, worker_ttl=1.0)
    module.frail.delay_many(range(MANY))
    chance = random.Random(7)
    workers = [place.worker(2), place.worker(2)]
    until = time.monotonic() + 60
    kills = 0
    while len(place.runs("frail")) < MANY - 20 and time.monotonic() < until and kills < 12:
        done = len(place.marks("start", "frail"))
        eventually(lambda done=done: len(place.marks("start", "frail")) >= done + 15 or place.idle(), "work")
        index = chance.randrange(2)
        if chance.random() < 0.3:
            workers[index].kill_group()
            workers[index] = place.worker(2)
        else:
            for child in tree(workers[index].pid)[:1]:
                _kill(child)
        kills += 1
    assert kills > 5
    eventually(place.idle, "the rest", timeout=60)
    assert set(place.runs("frail")) == set(map(str, range(MANY)))
    assert most_at_once([m for m in place.marks() if m.name == "frail"]) <= 3
    place.check()
    assert not any(lease.admitted for lease in place.app.engine.leases(place.group()))


def _kill(pid: int) -> None:
    import os

    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
