"""Backlogs of calls and of events, run by a worker with two processes."""

from __future__ import annotations

import time
from pathlib import Path

from bench.cases.common import Sizes, check_ran, timed_drain, use, worker
from bench.peers import common


def drain(folder: Path, sizes: Sizes) -> dict[str, float]:
    """No-op calls, default settings."""
    marks = use(folder)
    from bench.apps.noop import app, mark

    mark.delay_many(range(sizes.drain))
    app.close()
    with worker(folder) as running:
        timed = timed_drain(marks, sizes.drain, running)
    check_ran(marks, sizes.drain)
    return {"rate": timed.rate, "second_half_rate": timed.second_half_rate}


def results(folder: Path, sizes: Sizes) -> dict[str, float]:
    """The same, every call's result stored; read back and compared afterwards."""
    marks = use(folder)
    from bench.apps.noop import app, echo

    handles = echo.delay_many(range(sizes.drain))
    with worker(folder) as running:
        timed = timed_drain(marks, sizes.drain, running)
        handles.wait(common.READY)
    check_ran(marks, sizes.drain)
    start = time.perf_counter()
    for expected, value in enumerate(handles.iterate(0)):
        if value != expected:
            raise common.PeerError(f"call {expected} has the result {value!r}")
    took = time.perf_counter() - start
    app.close()
    return {
        "rate": timed.rate,
        "second_half_rate": timed.second_half_rate,
        "results_read_per_s": sizes.drain / took,
    }


def batch(folder: Path, sizes: Sizes) -> dict[str, float]:
    """No-op calls in batches of 500; then the same, every result stored."""
    marks = use(folder)
    from bench.apps.batch import app, echo, mark

    rates = {}
    for name, task in (("rate", mark), ("results_rate", echo)):
        before = marks.stat().st_size
        task.delay_many(range(2 * sizes.drain))
        with worker(folder, "bench.apps.batch") as running:
            timed = timed_drain(marks, 2 * sizes.drain, running, before)
        check_ran(marks, before + 2 * sizes.drain)
        rates[name], rates[f"second_half_{name}"] = timed.rate, timed.second_half_rate
    app.close()
    return rates


def ordered(folder: Path, sizes: Sizes) -> dict[str, float]:
    """No-op calls of 10,000 keys, each key's in order."""
    marks = use(folder)
    from bench.apps.ordered import app, step

    start = time.perf_counter()
    step.delay_many(n % 10_000 for n in range(sizes.drain))
    sent = time.perf_counter() - start
    app.close()
    with worker(folder, "bench.apps.ordered") as running:
        timed = timed_drain(marks, sizes.drain, running)
    check_ran(marks, sizes.drain)
    return {
        "rate": timed.rate,
        "second_half_rate": timed.second_half_rate,
        "delay_many_rate": sizes.drain / sent,
    }


def publish(folder: Path, sizes: Sizes) -> dict[str, float]:
    """`publish_many` of records of 100 bytes, synced."""
    use(folder)
    from bench.apps.events import app, events

    values = _events(sizes.events)
    events.publish_many(values[:1000])  # opens the log
    start = time.perf_counter()
    events.publish_many(values)
    took = time.perf_counter() - start
    app.close()
    return {"rate": sizes.events / took}


def subscription(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Such records read by a subscription that does nothing, from the first settled one to the last."""
    use(folder)
    from bench.apps.events import app, events

    total = events.publish_many(_events(sizes.events))
    group = next(g for g in app.groups() if g.name == "nothing")

    def left() -> int:
        pending = sum(at.end - at.cursor for at in app.engine.positions(group))
        leased = sum(span.hi - span.lo for lease in app.engine.leases(group) for span in lease.spans)
        return int(pending + leased)  # counted by `counts` they would be looked at, too

    def wait_until_below(limit: int) -> int:
        before, moved = left(), time.monotonic()
        while before >= limit:
            time.sleep(0.002)
            running.check()
            now = left()
            if now < before:
                before, moved = now, time.monotonic()
            elif time.monotonic() - moved > common.READY:
                running.fail(f"{now} of {total} events are still to be read")
        return before

    with worker(folder, "bench.apps.events") as running:
        first = wait_until_below(total)
        start = time.perf_counter()
        half = wait_until_below(total // 2)
        middle = time.perf_counter()
        wait_until_below(1)
        end = time.perf_counter()
        if parked := app.engine.counts(group).parked:
            running.fail(f"events were set aside: {parked}")
    app.close()
    return {"rate": first / (end - start), "second_half_rate": half / (end - middle)}


def _events(n: int) -> list[str]:
    return [f"{i:098d}" for i in range(n)]  # and two quotes around it
