"""Call and get with a worker that waits; and what such a worker costs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.cases.common import Sizes, check_ran, on_a_file, use, worker
from bench.peers import common

MB = 1 << 20


SCHEDULING = 240.0  # seconds that putting a million calls by may take


def get(folder: Path, sizes: Sizes) -> dict[str, float]:
    """`delay().get()`, synced, one after the other: in a log that is written over, and in a new one."""
    marks = use(folder)
    from bench.apps.noop import app, plain

    with worker(folder) as running:
        fresh = latencies = _waited(sizes.gets)
        ran = common.WARM_UP + sizes.gets
        if on_a_file():
            for _ in range(sizes.singles):
                plain.delay()
            common.wait_for_size(marks, ran + sizes.singles, running)
            app.engine.tidy(0)  # type: ignore[call-arg] # as the baseline does
            latencies = _waited(sizes.gets)
            ran += sizes.singles + common.WARM_UP + sizes.gets
    check_ran(marks, ran)
    app.close()
    return {
        "p50_ms": common.percentile(latencies, 50),
        "p99_ms": common.percentile(latencies, 99),
        "fresh_p50_ms": common.percentile(fresh, 50),
    }


def _waited(n: int) -> list[float]:
    """Return how many milliseconds calls took to their results, after some of warm-up."""
    from bench.apps.noop import result

    latencies = []
    for i in range(common.WARM_UP + n):
        start = time.perf_counter()
        result.delay().get(timeout=common.READY)
        if i >= common.WARM_UP:
            latencies.append((time.perf_counter() - start) * 1e3)
    return latencies


def priority(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Calls of priority 9 behind a backlog of others: from the call to the start of its run."""
    use(folder)
    from bench.apps.noop import app, begun, mark

    waits = []
    mark.delay_many(range(2 * sizes.backlog))  # while it is measured, half of them may be done
    with worker(folder):
        for i in range(common.WARM_UP + sizes.urgent):
            sent = time.monotonic()
            started = begun.apply_async(priority=9).get(timeout=common.READY)
            if i >= common.WARM_UP:
                waits.append((started - sent) * 1e3)
            time.sleep(0.01)
        queue = next(group for group in app.groups() if group.name == "main")
        left = app.engine.counts(queue).pending
    app.close()
    if not left:
        raise common.PeerError("the backlog was done before the last call was sent")
    return {
        "p50_ms": common.percentile(waits, 50),
        "p99_ms": common.percentile(waits, 99),
        "worst_ms": max(waits),
        "left": left,
    }


def scheduled(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Calls that are due soon, among others that are due in an hour: from the due time to the start."""
    use(folder)
    from bench.apps.noop import app, begun, mark

    from respool.record import Meta, new_head

    mark.delay(0)  # makes the queue
    now = time.time()
    (log,) = app.stream_of("queue", "default").logs
    body, meta = b"\x92\x91\x01\x80", Meta(due=now + 3600).packed()  # as apply_async(countdown=3600) would
    for _ in range(sizes.backlog // 10_000):
        app.engine.append_run(log, "mark", [body] * 10_000, meta, new_head(now), now)
    late = []
    with worker(folder) as running:
        queue = next(group for group in app.groups() if group.name == "main")
        until = time.monotonic() + SCHEDULING
        while app.engine.counts(queue).parked.get("scheduled", 0) < sizes.backlog:
            running.check()
            if time.monotonic() > until:
                running.fail(f"not all calls were put by within {SCHEDULING:g} s")
            time.sleep(0.2)
        for i in range(common.WARM_UP + sizes.urgent):
            due = time.monotonic() + 0.1
            started = begun.apply_async(countdown=0.1).get(timeout=common.READY)
            if i >= common.WARM_UP:
                late.append((started - due) * 1e3)
    app.close()
    return {"p50_ms": common.percentile(late, 50), "worst_ms": max(late)}


def idle(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Processor time of a worker with nothing to do, its supervisor and both children; memory of a child.

    Before that it has run 10,000 calls. Memory is the greater child's: `rss` counts what it shares with
    others in full, `pss` in part, `uss` not at all.
    """
    marks = use(folder)
    from bench.apps.noop import app, mark

    with worker(folder) as running:
        mark.delay_many(range(10_000))
        common.wait_for_size(marks, 10_000, running)
        app.close()
        time.sleep(3.0)
        children = children_of(running.pid)
        if len(children) != 2:
            running.fail(f"it has {len(children)} children")
        pids = [running.pid, *children]
        before, start = [cpu_seconds(pid) for pid in pids], time.perf_counter()
        time.sleep(sizes.idle_seconds)
        took = time.perf_counter() - start
        used = [100 * (cpu_seconds(pid) - b) / took for pid, b in zip(pids, before, strict=True)]
        memory = [child_memory(pid) for pid in children]
    return {
        "cpu_percent": sum(used),
        "supervisor_cpu_percent": used[0],
        "child_cpu_percent": max(used[1:]),
        **{f"child_{kind}_mb": max(each[kind] for each in memory) for kind in ("rss", "pss", "uss")},
    }


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it has just ended
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return sorted(found)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far: to the nanosecond from schedstat, else to the tick from stat."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except FileNotFoundError:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def child_memory(pid: int) -> dict[str, float]:
    kib: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        kib[name.rstrip(":")] = int(value)
    unshared = kib["Private_Clean"] + kib["Private_Dirty"]
    return {
        "rss": kib["Rss"] * 1024 / MB,
        "pss": kib["Pss"] * 1024 / MB,
        "uss": unshared * 1024 / MB,
    }
