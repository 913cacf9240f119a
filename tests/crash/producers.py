"""Producers that are killed in mid-append, again and again, while a worker runs what they sent (P1)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.warm import WarmPopen
from tests.worker.support import LINE, SOURCES, Place, eventually

CODE = """
@app.task
def fine(n):
    note("start", "fine", n)
    return n
"""
PRODUCER = """
import os, sys, importlib
sys.path.insert(0, sys.argv[1])
module = importlib.import_module(sys.argv[2])
first, way = int(sys.argv[3]), sys.argv[4]
out = os.open(sys.argv[5], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def acknowledge(n, id):
    os.write(out, f"{n} {id}".ljust(63).encode() + b"\\n")
n = first
while True:
    if way == "one":
        acknowledge(n, module.fine.delay(n).id)
        n += 1
    else:
        results = module.fine.delay_many(range(n, n + 500))
        for each, result in enumerate(results):
            acknowledge(n + each, result.id)
        n += 500
"""
BEGUN = 20  # calls that a producer has sent before it may be killed
SAMPLE = 50  # of the calls whose results are looked at


class Producers:
    """Kills producers, one or two at a time, while they append calls one by one or many at once."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)
        self.module = place.module(CODE)
        self.acknowledged: dict[str, str] = {}
        self.kills = 0

    def go(self, enough: Callable[[int], bool]) -> int:
        """Kill until it is enough, then hold what was acknowledged against what was run; return how many."""
        worker = self.place.worker(1)
        while not enough(self.kills):
            self.kill(self.random.choice(("one", "many", "both")))
        eventually(self.place.idle, "all calls done", 120)
        self.verify()
        assert worker.stop() == 0
        return self.kills

    def kill(self, how: str) -> None:
        """Start a producer, or two of them, and kill it in the midst."""
        running = [self._produce(way) for way in (("one", "many") if how == "both" else (how,))]
        for _, out in running:
            eventually(lambda: out.exists() and out.stat().st_size > LINE * BEGUN)  # noqa: B023
        time.sleep(self.random.uniform(0, 0.05))  # when the kill comes is left to chance
        for process, _ in running:
            process.kill()
        for process, out in running:
            process.wait()
            self.acknowledged |= _acknowledged(out)

    def verify(self) -> None:
        """What was acknowledged is there, and was run, once; what was not is there at most once."""
        runs, acknowledged = self.place.runs("fine"), self.acknowledged
        assert len(acknowledged) > self.kills * BEGUN
        assert set(acknowledged) <= set(runs)
        assert set(runs.values()) == {1}
        ours = {*acknowledged.values()}
        seen = [id for id in self._records() if id in ours]
        assert len(seen) == len(set(seen)) == len(acknowledged)
        for number in self.random.sample(sorted(acknowledged), SAMPLE):
            assert self.module.app.AsyncResult(acknowledged[number]).get(timeout=5) == int(number)
        self.place.check()
        print(f"{self.kills} kills of producers, {len(acknowledged)} calls acknowledged, {len(runs)} run")

    def _produce(self, way: str) -> tuple[subprocess.Popen[bytes], Path]:
        self.kills += 1
        out = self.place.folder / f"acknowledged-{self.kills}-{way}"
        first = str(self.kills * 1_000_000)
        arguments = [str(self.place.folder), self.place.path.stem, first, way, str(out)]
        env = {**os.environ, "PYTHONPATH": SOURCES}
        return WarmPopen([sys.executable, "-c", PRODUCER, *arguments], env=env), out

    def _records(self) -> list[str]:
        engine = self.place.app.engine
        ((_, lo, hi),) = engine.bounds(self.place.app.stream_of("queue", "default"))
        found: list[str] = []
        while lo < hi:
            page = engine.records(lo, hi, 5000)
            found += [str(uuid.UUID(bytes=record.id)) for record in page]
            lo = page[-1].pos + 1 if page else hi
        return found


def _acknowledged(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    lines = [data[at : at + LINE].decode().split() for at in range(0, len(data) - LINE + 1, LINE)]
    return dict(lines)
