"""Calls appended: many at once, one by one, and by several processes beside a worker."""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.cases.common import Sizes, check_ran, on_a_file, use, worker
from bench.peers import common

PRODUCERS = 4


def delay_many(folder: Path, sizes: Sizes) -> dict[str, float]:
    """`delay_many`, synced."""
    use(folder)
    from bench.apps.noop import app, mark

    mark.delay_many(range(1000))  # opens the log
    start = time.perf_counter()
    mark.delay_many(range(sizes.many))
    took = time.perf_counter() - start
    app.close()
    return {"rate": sizes.many / took}


def delay(folder: Path, sizes: Sizes) -> dict[str, float]:
    """`delay()` one by one, no worker running, each synced."""
    use(folder)
    return _one_by_one(sizes.singles)


def delay_os(folder: Path, sizes: Sizes) -> dict[str, float]:
    """The same with durability="os"."""
    use(folder, durability="os")
    return _one_by_one(4 * sizes.singles)


def _one_by_one(n: int) -> dict[str, float]:
    """The rate of a log that is new, and of one whose WAL was written once, as with the baseline."""
    from bench.apps.noop import app, plain

    for _ in range(common.WARM_UP):
        plain.delay()
    fresh = _rate(plain.delay, n)
    for _ in range(n // 5):
        plain.delay()
    if on_a_file():
        app.engine.tidy(0)  # type: ignore[call-arg] # as the baseline does: from here on it is written over
    steady = _rate(plain.delay, n)
    app.close()
    return {"rate": steady, "fresh_rate": fresh}


def _rate(send: Callable[[], object], n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        send()
    return n / (time.perf_counter() - start)


def crowd(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Four producers call `delay()` as fast as they can, beside two workers that run the calls."""
    marks = use(folder)
    from bench.apps.noop import app, plain

    plain.delay()  # makes the log
    with (
        worker(folder, processes=1) as running,
        worker(folder, processes=1, options=("-n", "second")) as other,
    ):
        common.wait_for_size(marks, 1, running)
        begin = time.time() + 2.0
        files = [folder / f"latencies-{i}" for i in range(PRODUCERS)]
        with ExitStack() as stack:
            producers = []
            for file in files:
                command = [sys.executable, "-m", __name__, str(begin), str(sizes.crowd_seconds), str(file)]
                producers.append(stack.enter_context(common.process(command, folder)))
            deadline = time.monotonic() + 2.0 + sizes.crowd_seconds + common.READY
            for producer, file in zip(producers, files, strict=True):
                while not file.exists():
                    if time.monotonic() > deadline:
                        producer.fail("not done in time")
                    running.check()
                    other.check()
                    if not file.exists():
                        _check_running(producer, file)
                    time.sleep(0.05)
        each = [_read(file) for file in files]
        made = 1 + sum(map(len, each)) + PRODUCERS
        common.wait_for_size(marks, made, running)
    check_ran(marks, made)
    app.close()
    together = [ms for latencies in each for ms in latencies]
    shares = [len(latencies) / len(together) for latencies in each]
    return {
        "rate": len(together) / sizes.crowd_seconds,
        "p50_ms": common.percentile(together, 50),
        "p99_ms": common.percentile(together, 99),
        "worst_ms": max(together),
        "shares": shares,
        "unfairness": max(shares) / max(min(shares), 1e-9),
    }


def _check_running(producer: common.Process, file: Path) -> None:
    try:
        producer.check()
    except common.PeerError:
        if not file.exists():  # it may have ended well just now
            raise


def _read(file: Path) -> array[float]:
    latencies = array("d")
    latencies.frombytes(file.read_bytes())
    return latencies


def _produce(begin: float, seconds: float, file: Path) -> None:
    """Be one of the producers; the time of each call in milliseconds goes to `file`."""
    from bench.apps.noop import app, plain

    send, clock, latencies = plain.delay, time.perf_counter, array("d")
    send()
    time.sleep(max(0.0, begin - time.time()))
    now = clock()
    end = now + seconds
    while now < end:
        start = now
        send()
        now = clock()
        latencies.append((now - start) * 1e3)
    app.close()
    part = file.with_suffix(".part")
    part.write_bytes(latencies.tobytes())
    part.rename(file)


if __name__ == "__main__":
    common.leave_on_sigterm()
    _produce(float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
