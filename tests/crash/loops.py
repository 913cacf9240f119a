"""Loops that kill workers while ordered, batched and limited work goes on, and what must hold afterwards.

The outside record says what ran when, by a clock that all processes of the machine share. A line begins a run
and another ends it; what was killed in the midst has no end.
"""

from __future__ import annotations

import os
import random
import signal
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tests.worker.support import LINE, Mark, Place, WorkerProcess, eventually, tree

from respool.engines.base import ParkedFilter

SETTINGS = {"max_deliveries": 1000, "beat": 0.2, "worker_ttl": 2.0, "poll_interval": 0.2}
CONCURRENCY = 2
VICTIMS = ("child", "child", "children", "supervisor", "group")
CODE = """
KEYS, PARTITIONS = 12, 4
app.queue("orders", ordered=True, partitions=PARTITIONS)


@app.task(queue="orders", key="key", autoretry_for=(OSError,), max_retries=20, default_retry_delay=0.01)
def step(key, n, fails):
    with noted("step", f"{key}:{n}"):
        time.sleep(0.002)
    if fails and n % 7 == 3 and not (HERE / f"failed-{key}-{n}").exists():
        (HERE / f"failed-{key}-{n}").touch()
        raise OSError(n)
    if n % 5 == 0:
        follow.delay(key, n)


@app.task(queue="orders", key="key")
def follow(key, n):
    with noted("follow", f"{key}:{n}"):
        pass


@app.task(batch=16, batch_wait=0.02)
def batched(numbers):
    for n in numbers:
        note("start", "batched", n)
    time.sleep(0.003)
    if any(n % 50 == 13 for n in numbers):
        if len(numbers) > 1:
            raise ValueError("one of them")
        raise KeyError(numbers[0])
    return [ValueError(n) if n % 50 == 7 else [n] for n in numbers]


@app.task(max_concurrency=2, limit_key="tenant")
def narrow(tenant, n):
    with noted("narrow", f"{tenant}:{n}"):
        time.sleep(0.004)


@app.task(rate_limit="200/s", rate_burst=10)
def paced(n):
    note("start", "paced", n)
"""


class Run(NamedTuple):
    """One run in the outside record."""

    key: str
    n: int
    pid: int
    began: float
    ended: float | None  # None: it was killed, or did not come so far


class Loop(ABC):
    """Two workers that are killed again and again, and replaced, while calls of one kind are sent."""

    queue = "default"

    def __init__(self, place: Place, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)
        self.module = place.module(CODE, **SETTINGS)
        self.sent = self.kills = self.killed = 0
        self.workers: list[WorkerProcess] = []

    @abstractmethod
    def feed(self) -> None:
        """Send some more calls."""

    @abstractmethod
    def verify(self) -> None:
        """Hold the outside record against what was promised."""

    def go(self, done: Callable[[], bool]) -> None:
        """Kill until `done`; then let the survivors finish, and see what has become of it all."""
        self.feed()
        self.workers = [self.place.worker(CONCURRENCY) for _ in range(2)]
        self.place.children(2 * CONCURRENCY)
        while not done():
            if self.place.counts(queue=self.queue).pending < 300:
                self.feed()
            self.await_progress(self.random.choice((1, 3, 10, 30, 60)))
            self.kill(self.random.choice(VICTIMS))
        eventually(lambda: self.place.idle_in(self.queue), "all calls done", 90)
        for worker in self.workers:
            assert worker.stop() == 0, worker.log
        self.verify()
        self.place.check()

    def await_progress(self, lines: int) -> None:
        """Wait until the outside record has so many lines more: the kill comes in the midst of work."""
        path = self.place.record_path
        size = path.stat().st_size if path.exists() else 0
        eventually(lambda: path.exists() and path.stat().st_size >= size + lines * LINE, "progress", 60)

    def kill(self, victim: str) -> None:
        worker = self.random.choice(self.workers)
        # Without its first child a worker that starts gives up, as it should.
        children = tree(worker.pid) if "serves" in worker.log else []
        self.kills += 1
        if victim in ("child", "children"):
            chosen = children[:1] if victim == "child" else children
            for pid in chosen:
                _kill(pid)
            self.killed += len(chosen)
        else:
            self.workers.remove(worker)
            self.workers.append(self.place.worker(CONCURRENCY))
            (worker.kill if victim == "supervisor" else worker.kill_group)()
            self.killed += CONCURRENCY

    def runs(self, name: str) -> list[Run]:
        """Return the runs of a task as they began."""
        open_: dict[tuple[int, str], Mark] = {}
        found = []
        for mark in self.place.marks(name=name):
            key, _, n = mark.key.rpartition(":")
            if mark.what == "start":
                begun = open_.pop((mark.pid, mark.key), None)
                if begun is not None:
                    found.append(Run(key, int(n), mark.pid, begun.at, None))
                open_[mark.pid, mark.key] = mark
            else:
                found.append(Run(key, int(n), mark.pid, open_.pop((mark.pid, mark.key)).at, mark.at))
        for (pid, text), mark in open_.items():
            key, _, n = text.rpartition(":")
            found.append(Run(key, int(n), pid, mark.at, None))
        return sorted(found, key=lambda run: run.began)

    def nothing_is_left(self) -> None:
        """No lease, nothing parked but dead letters, no slot taken, nobody who waits for a bucket."""
        engine = self.place.app.engine
        groups = [group for group in engine.groups() if group.kind == "main"]
        parked = engine.parked(ParkedFilter([group.id for group in groups]), 1000)
        assert {each.reason for _, each in parked} <= {"dead"}
        assert not any(engine.leases(group) for group in groups)


class Ordered(Loop):
    """P8: of each key the runs are in order and never two at once, retries and calls of runs included."""

    queue = "orders"
    keys = 12

    def feed(self) -> None:
        calls = [
            ((f"k{key}", n, 1), {}) for n in range(self.sent, self.sent + 25) for key in range(self.keys)
        ]
        self.module.step.apply_many(calls)
        self.sent += 25

    def verify(self) -> None:
        steps, follows = self.runs("step"), self.runs("follow")
        in_order(steps, self.keys, range(self.sent))
        in_order(follows, self.keys, range(0, self.sent, 5))
        retried = sum(n % 7 == 3 for n in range(self.sent)) * self.keys
        wanted = self.sent * self.keys + retried
        assert len(steps) - wanted <= self.killed, "more runs repeated than processes killed (P3)"
        self.nothing_is_left()
        print(f"{self.kills} kills, {len(steps)} ordered runs of {self.sent * self.keys} calls")


def in_order(runs: Sequence[Run], keys: int, numbers: Sequence[int]) -> None:
    """P8, by the outside record: of each key one at a time, none before its time, none left out."""
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_key[run.key].append(run)
    assert set(by_key) == {f"k{key}" for key in range(keys)}
    for key, seen in by_key.items():
        for before, after in pairwise(seen):
            assert before.n <= after.n, f"{key}: {after.n} began after {before.n}"
            if before.ended is not None:
                assert before.ended <= after.began, f"{key}: {after.n} began while {before.n} ran"
            else:
                assert before.n == after.n, f"{key}: {before.n} did not end, and {after.n} began"
        assert {run.n for run in seen} == set(numbers), key
        assert seen[-1].ended is not None


class Batched(Loop):
    """Every call of a batch ends once, as it should; the culprits alone are dead letters."""

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place, seed)
        self.handles: list[Any] = []

    def feed(self) -> None:
        self.handles.append(self.module.batched.delay_many(range(self.sent, self.sent + 100)))
        self.sent += 100

    def verify(self) -> None:
        ran = {int(mark.key) for mark in self.place.marks(name="batched")}
        assert ran == set(range(self.sent))
        fails = {n for n in range(self.sent) if n % 50 in (7, 13)}
        engine, group = self.place.app.engine, self.place.group()
        outcomes: dict[int, list[str]] = defaultdict(list)
        for first, results in zip(range(0, self.sent, 100), self.handles, strict=True):
            for n, result in enumerate(results, first):
                assert result.state == ("FAILURE" if n in fails else "SUCCESS"), n
                if n not in fails:
                    assert result.get(timeout=5) == [n]
                pos = result.record().pos
                outcomes[n] += [each.ending for each in engine.outcomes(group.id, pos, pos + 1)]
                ends = [e.how for e in engine.journal(group.id, pos) if e.how in ("done", "failed")]
                assert len(ends) == 1, (n, ends)
        assert all(len(each) == 1 for each in outcomes.values())
        assert self.place.app.dead_letters(task="batched").count() == len(fails)
        self.nothing_is_left()
        print(f"{self.kills} kills, {self.sent} batched calls")


class Limited(Loop):
    """The limits hold over all workers, whoever dies; no slot is leaked, and no key waits for ever."""

    tenants = 3

    def feed(self) -> None:
        calls = [((f"t{n % self.tenants}", n), {}) for n in range(self.sent, self.sent + 60)]
        self.module.narrow.apply_many(calls)
        self.module.paced.delay_many(range(self.sent, self.sent + 60))
        self.sent += 60

    def verify(self) -> None:
        runs = self.runs("narrow")
        assert {run.n for run in runs} == set(range(self.sent))
        for tenant in range(self.tenants):
            assert _most_at_once([run for run in runs if run.key == f"t{tenant}"]) <= 2
        starts = sorted(mark.at for mark in self.place.marks("start", "paced"))
        assert {int(mark.key) for mark in self.place.marks("start", "paced")} == set(range(self.sent))
        _keeps_rate(starts, 200.0, 10)
        self.nothing_is_left()
        for tenant in range(self.tenants):  # a key that a dead worker held lets the next one in
            self.module.narrow.delay(f"t{tenant}", self.sent + tenant)
        self.module.paced.delay(self.sent)
        self.place.burst(1)
        assert len(self.place.runs("narrow")) == self.sent + self.tenants
        print(f"{self.kills} kills, {self.sent} limited calls of each kind")


def _most_at_once(runs: Sequence[Run]) -> int:
    """Return how many ran at once at most. What was killed ran until its process was gone."""
    events = []
    for run in runs:
        if run.ended is not None:
            events += [(run.began, 1), (run.ended, -1)]
    most = now = 0
    for _, step in sorted(events):
        now += step
        most = max(most, now)
    return most


def _keeps_rate(starts: Sequence[float], rate: float, burst: int) -> None:
    """In no stretch of a second or more are there more starts than the rate and the burst allow, and 5 %.

    What was let in starts when its process gets to it: each may hold a lease that was let in before.
    """
    held = 2 * CONCURRENCY * burst
    for size in (int(rate), len(starts) // 2, len(starts)):
        for first, last in zip(starts, starts[size - 1 :], strict=False):
            allowed = burst + held + (last - first) * rate * 1.05
            assert size <= allowed, f"{size} starts within {last - first:.3f} s"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


LOOPS: dict[str, type[Loop]] = {"ordered": Ordered, "batched": Batched, "limited": Limited}
