"""Loops that kill processes at random while work goes on, and what must hold afterwards."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.worker.support import LINE, Place, WorkerProcess, eventually, tree

from respool.engines.base import ParkedFilter

CODE = """
@app.task
def quick(n):
    note("start", "quick", n)
    note("end", "quick", n)


@app.task
def valued(n):
    with noted("valued", n):
        return [n, "x" * (n % 50 * 100)]


@app.task
def slow(n):
    with noted("slow", n):
        time.sleep(0.02)
        return n


@app.task
async def coroutine(n):
    with noted("coroutine", n):
        await asyncio.sleep(0.005)
        return n


@app.task(bind=True, max_retries=1)
def retried(self, n):
    note("start", f"retried{self.request.retries}", n)
    if not self.request.retries:
        made.delay(-n - 1)
        raise self.retry(countdown=0.01)
    return n


@app.task(batch=8, batch_wait=0.02)
def batched(numbers):
    for n in numbers:
        note("start", "batched", n)
    time.sleep(0.003)
    for n in numbers:
        made_by_batches.delay(n)
    return [[n] for n in numbers]


@app.task
def made_by_batches(n):
    note("start", "made_by_batches", n)


@app.task
def parent(n):
    with noted("parent", n):
        made.delay(n)
        return n


@app.task
def made(n):
    with noted("made", n):
        return n
"""
TASKS = ("quick", "valued", "slow", "coroutine", "retried", "parent", "batched")
BATCH = 8  # calls of `batched` that run together, and are repeated together
SETTINGS = {"max_deliveries": 1000, "beat": 0.2, "worker_ttl": 2.0, "poll_interval": 0.5}
CONCURRENCY = 2
VICTIMS = ("child", "child", "children", "supervisor", "group", "two workers")


@dataclass
class Tally:
    """What was done to the workers, and how many runs may have been repeated for it (P3)."""

    kills: int = 0
    allowed: int = 0
    sent: int = 0
    handles: dict[str, list[Any]] = field(default_factory=dict)


class Rampage:
    """Two workers that are killed again and again, and replaced, while calls are sent."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)
        self.module = place.module(CODE, **SETTINGS)
        self.tally = Tally()
        self.workers: list[WorkerProcess] = []

    def go(self, done: Callable[[Tally], bool]) -> Tally:
        """Kill until `done`; then let the survivors finish."""
        self.feed()
        self.workers = [self.place.worker(CONCURRENCY) for _ in range(2)]
        self.place.children(2 * CONCURRENCY)
        while not done(self.tally):
            self.feed()
            self.await_progress(self.random.choice((1, 3, 10, 30, 100)))
            self.kill(self.random.choice(VICTIMS))
        self.finish()
        return self.tally

    def await_progress(self, lines: int) -> None:
        """Wait until the outside record has so many lines more: the kill comes in the midst of work."""
        path = self.place.record_path
        size = path.stat().st_size if path.exists() else 0
        eventually(lambda: path.exists() and path.stat().st_size >= size + lines * LINE, "progress")

    def feed(self) -> None:
        """Send more calls where few are left."""
        if self.place.counts().pending > 400:
            return
        for name in TASKS:
            numbers = range(self.tally.sent, self.tally.sent + 30)
            results = getattr(self.module, name).delay_many(numbers)
            self.tally.handles.setdefault(name, []).append(results)
        self.tally.sent += 30

    def kill(self, victim: str) -> None:
        worker = self.random.choice(self.workers)
        # Without its first child a worker that starts gives up, as it should.
        children = tree(worker.pid) if "serves" in worker.log else []
        self.tally.kills += 1
        if victim in ("child", "children"):
            chosen = children[:1] if victim == "child" else children
            for pid in chosen:
                _kill(pid)
            self.tally.allowed += len(chosen)
        elif victim == "two workers":
            for each in list(self.workers):
                self.replace(each, each.kill_group)
        else:
            self.replace(worker, worker.kill if victim == "supervisor" else worker.kill_group)

    def replace(self, worker: WorkerProcess, kill: Callable[[], None]) -> None:
        """Kill a worker while another starts."""
        self.workers.remove(worker)
        self.workers.append(self.place.worker(CONCURRENCY))
        kill()
        self.tally.allowed += CONCURRENCY

    def finish(self) -> None:
        eventually(self.place.idle, "all calls done", 60)
        for worker in self.workers:
            assert worker.stop() == 0, worker.log

    def verify(self) -> None:
        """Every call run, few twice, none lost, nothing said of one that does not hold."""
        tally, place = self.tally, self.place
        numbers = {str(n) for n in range(tally.sent)}
        repeats = 0
        for name in ("quick", "valued", "slow", "coroutine", "retried0", "retried1", "parent"):
            runs = place.runs(name)
            assert set(runs) == numbers, (name, sorted(numbers - set(runs))[:5])
            repeats += sum(runs.values()) - len(runs)
        made = place.runs("made")
        assert set(made) == numbers | {str(-n - 1) for n in range(tally.sent)}
        repeats += sum(made.values()) - len(made)
        assert repeats <= tally.allowed, (
            f"{repeats} repeats after {tally.kills} kills, {tally.allowed} allowed"
        )
        batched = place.runs("batched")
        assert set(batched) == set(place.runs("made_by_batches")) == numbers
        assert sum(batched.values()) - len(batched) <= tally.allowed * BATCH
        self._verify_results()
        self._verify_calls()
        engine = place.app.engine
        assert not engine.parked(ParkedFilter([g.id for g in engine.groups()]), 10)
        place.check()
        calls = tally.sent * len(TASKS)
        print(f"{tally.kills} kills, {calls} calls, {repeats} repeats, {tally.allowed} allowed")

    def _verify_results(self) -> None:
        for name, many in self.tally.handles.items():
            for first, results in zip(range(0, self.tally.sent, 30), many, strict=True):
                expected = {
                    "quick": [None] * 30,
                    "valued": [[n, "x" * (n % 50 * 100)] for n in range(first, first + 30)],
                    "batched": [[n] for n in range(first, first + 30)],
                }.get(name, list(range(first, first + 30)))
                assert results.get(timeout=5) == expected

    def _verify_calls(self) -> None:
        """P4: the calls that runs made are there once each, however often the runs were repeated."""
        stream = self.place.app.stream_of("queue", "default")
        ((log, lo, hi),) = self.place.app.engine.bounds(stream)
        counted = self.place.app.engine.task_counts(lo, hi, None, None)
        assert counted["made"] == 2 * self.tally.sent
        assert counted["made_by_batches"] == self.tally.sent
        assert log >= 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
