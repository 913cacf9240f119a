"""Tasks of 8 ms, 1 s and 5 s in one pool: none waits behind a long one while another process is free (P7).

The outside record says when each call began and ended, and in which process. A short call may begin late only
where every process was at work all the time that it waited: that is looked for, not a time.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from pathlib import Path

from tests.worker.support import Mark, Place, eventually, on_each_engine, on_every_engine

CODE = """
@app.task
def short(n):
    with noted("short", n):
        time.sleep(0.008)


@app.task
def middle(n):
    with noted("middle", n):
        time.sleep(1)


@app.task
def long(n):
    with noted("long", n):
        time.sleep(5)
    return n


@app.task
def either(n):
    with noted("either", n):
        if n:
            time.sleep(0.008)
        else:
            wait_for("go")


@app.task
def gate(n):
    with noted("gate", n):
        wait_for("go")
    return n
"""
PROCESSES = 3
SLACK = 0.7  # seconds that a process may be free beside a call that waits: to give back, to wake, to claim


class Spell:
    """One run: from when to when, and where."""

    def __init__(self, start: Mark, end: Mark) -> None:
        self.name, self.key, self.pid = start.name, start.key, start.pid
        self.start, self.end = start.at, end.at


def spells(place: Place) -> list[Spell]:
    ends = {(mark.name, mark.key): mark for mark in place.marks("end")}
    return [Spell(mark, ends[mark.name, mark.key]) for mark in place.marks("start")]


def free_while_waiting(runs: list[Spell], pids: set[int], call: Spell, since: float) -> float:
    """Return the longest time, from `since` to a call's start, in which some process ran nothing."""
    longest = 0.0
    for pid in pids:
        at = since
        for run in sorted((r for r in runs if r.pid == pid), key=lambda r: r.start):
            if run.end <= at:
                continue
            longest = max(longest, min(run.start, call.start) - at)
            at = max(at, run.end)
            if at >= call.start:
                break
        longest = max(longest, call.start - at)
    return longest


@on_every_engine
def test_no_short_call_waits_behind_a_long_one(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker(PROCESSES)
    place.children(PROCESSES)
    worker.said("serves")
    calls = [*(("short", n) for n in range(200)), *(("middle", n) for n in range(2))]
    calls += [("long", 0), ("long", 1)]
    random.Random(5).shuffle(calls)
    for name, n in calls:
        getattr(module, name).delay(n)
    eventually(lambda: place.idle(), "all done", 60)

    runs = spells(place)
    assert Counter((run.name, run.key) for run in runs) == Counter((name, str(n)) for name, n in calls)
    pids = {run.pid for run in runs}
    assert len(pids) == PROCESSES
    since = max(min(run.start for run in runs if run.pid == pid) for pid in pids)  # all of them are up
    late = {
        (run.name, run.key): free
        for run in runs
        if run.name == "short" and run.start > since
        if (free := free_while_waiting(runs, pids, run, since)) > SLACK
    }
    assert not late, "a process was free while these waited"
    long_ends = min(run.end for run in runs if run.name == "long")
    before = [run for run in runs if run.name == "short" and run.start < long_ends]
    assert len(before) > 150, "the short calls did not wait for the long ones"
    place.check()


@on_each_engine
def test_a_long_call_in_the_middle_of_a_lease_of_short_ones(place: Place) -> None:
    """A process took many short calls at once, and a long one among them: the others take over the rest."""
    module = place.module(CODE)
    worker = place.worker(2)
    place.children(2)
    worker.said("serves")
    module.short.delay_many(range(200))  # it learns that they are short, and takes several at once
    eventually(lambda: len(place.runs("short")) > 100, "it runs")
    module.gate.delay(0)
    module.short.delay_many(range(200, 400))
    place.await_start("gate", "0")
    eventually(lambda: len(place.marks("end", "short")) == 400, "all are done while the long one runs")
    assert not place.marks("end", "gate")
    place.touch("go")
    eventually(place.idle, "all done")
    assert set(place.runs("short").values()) == {1}, "nothing is delivered twice"
    assert place.runs("gate") == Counter({"0": 1})


def test_a_long_call_needs_no_setting(place: Place) -> None:
    """Many times the time to live of a worker: a lease ends with its worker, not with time (P5)."""
    module = place.module(CODE, beat=0.1, worker_ttl=0.4)
    place.worker(2)
    result = module.long.delay(7)
    place.await_start("long", "7")
    place.worker(1)  # it looks for dead ones, and finds none
    assert result.get(timeout=20) == 7
    assert place.runs("long") == Counter({"7": 1})


def test_a_free_process_is_woken_for_what_is_given_back(place: Place) -> None:
    """Not by polling: that is set far off."""
    module = place.module(CODE, poll_interval=30.0)
    worker = place.worker(2)
    place.children(2)
    worker.said("serves")
    handles = [module.gate.delay(0), *(module.short.delay(n) for n in range(20))]
    eventually(lambda: len(place.marks("end", "short")) == 20, "the short ones are done", 10)
    place.touch("go")
    assert handles[0].get(timeout=20) == 0


@on_each_engine
def test_the_supervisor_is_woken_where_a_call_holds_up_others(place: Place) -> None:
    """It sleeps until its next beat while nothing runs, and that is set far off."""
    module = place.module(CODE, beat=60.0, worker_ttl=200.0)
    worker = place.worker(2)
    worker.said("serves")

    def both_are_up() -> bool:
        module.short.delay_many(range(10))
        return len({mark.pid for mark in place.marks("end", "short")}) == 2

    eventually(both_are_up, "both processes run calls", 30)
    eventually(place.idle, "all done")
    slept = [0, 0.0]  # how often, and since when that often

    def sleeps() -> bool:
        found = re.search(r"voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{worker.pid}/status").read_text())
        assert found is not None
        if int(found[1]) != slept[0]:
            slept[:] = int(found[1]), time.monotonic()
        return time.monotonic() - slept[1] > 0.3

    eventually(sleeps, "the supervisor sleeps for longer than beside processes that work")
    module.either.delay_many(range(20))
    place.await_start("either", "0")
    eventually(lambda: len(place.marks("end", "either")) == 19, "the others are done", 15)
    place.touch("go")
    eventually(place.idle, "all done")
    assert set(place.runs("either").values()) == {1}


def test_a_queue_of_its_own_where_wanted(place: Place) -> None:
    """A worker that serves only the short ones is never taken by a long one."""
    module = place.module(CODE, "app.queue('fast')\n")
    place.worker(1, queues=["default"])
    place.worker(1, queues=["fast"])
    module.gate.delay(0)
    place.await_start("gate", "0")
    module.short.apply_async((1,), queue="fast").get(timeout=20)
    assert not place.marks("end", "gate")
    place.touch("go")
