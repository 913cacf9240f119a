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


def events(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Records of 100 bytes: published, then read by a subscription that does nothing."""
    use(folder)
    from bench.apps.events import app
    from bench.apps.events import events as stream

    n = sizes.events
    values = [f"{i:098d}" for i in range(n)]  # and two quotes around it
    stream.publish_many(values[:1000])  # opens the log
    start = time.perf_counter()
    stream.publish_many(values)
    published = n / (time.perf_counter() - start)

    total = n + 1000
    group = next(g for g in app.groups() if g.name == "nothing")

    def left() -> int:
        counts = app.engine.counts(group)
        return int(counts.pending + counts.leased + counts.returned + sum(counts.parked.values()))

    with worker(folder, "bench.apps.events") as running:
        before, moved = left(), time.monotonic()
        while before == total:
            time.sleep(0.002)
            running.check()
            before = left()
            if time.monotonic() - moved > common.READY:
                running.fail("it read nothing")
        first, start = before, time.perf_counter()
        while before:
            time.sleep(0.002)
            running.check()
            now = left()
            if now < before:
                before, moved = now, time.monotonic()
            elif time.monotonic() - moved > common.READY:
                running.fail(f"{now} of {total} events are still to be read")
        took = time.perf_counter() - start
    app.close()
    return {"publish_rate": published, "read_rate": first / took}
