"""The long tests: kills by the thousand, and a backlog of ten million. `make soak`; figures are printed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.crash.kills import Rampage
from tests.crash.loops import LOOPS
from tests.crash.producers import Producers
from tests.worker.support import Place, fresh_url, tree

SECONDS = float(os.environ.get("SOAK_SECONDS", "1800"))
ENGINES = ("sqlite", "postgres", "kafka")
BACKLOG = int(os.environ.get("SOAK_BACKLOG", "10000000"))
SMALL = 100_000
ROUND_KILLS = 100  # after so many everything is verified, and begun anew
TOLERANCE = 0.15
MEASURED = 3  # times that the small backlog is measured; the median counts


Enough = Callable[[int], bool]
"""Says of so many kills in this round that they are enough."""


class Rounds:
    """Rounds of kills, each with an empty store on one engine."""

    def __init__(self, request: pytest.FixtureRequest, engine: str, folder: Path) -> None:
        self.request, self.engine, self.folder = request, engine, folder

    def run(self, what: str, one: Callable[[Place, int, Enough], int], seconds: float) -> None:
        """Run rounds until the time is up; `one` runs one in a place with a seed, and returns its kills."""
        until = time.monotonic() + seconds
        seed = int(os.environ.get("RESPOOL_SEED", random.randrange(1 << 30)))
        kills = rounds = 0
        while time.monotonic() < until:
            folder = self.folder / str(rounds)
            folder.mkdir()
            place = Place(folder, fresh_url(self.request, self.engine))
            print(f"seed {seed + rounds}: ", end="", flush=True)
            try:
                kills += one(place, seed + rounds, lambda n: n >= ROUND_KILLS or time.monotonic() >= until)
            finally:
                place.close()
            rounds += 1
        print(f"{self.engine}, {what}: {kills:,} kills in {rounds} rounds")


@pytest.fixture(params=ENGINES)
def rounds(request: pytest.FixtureRequest, tmp_path: Path) -> Rounds:
    return Rounds(request, request.param, tmp_path)


def test_kills(rounds: Rounds) -> None:
    def one(place: Place, seed: int, enough: Enough) -> int:
        rampage = Rampage(place, seed)
        tally = rampage.go(lambda tally: enough(tally.kills))
        rampage.verify()
        return tally.kills

    rounds.run("work of each kind", one, SECONDS / len(ENGINES))


@pytest.mark.parametrize("kind", LOOPS)
def test_kills_over(kind: str, rounds: Rounds) -> None:
    """Ordered, batched, limited work: rounds of kills, each verified."""

    def one(place: Place, seed: int, enough: Enough) -> int:
        loop = LOOPS[kind](place, seed)
        loop.go(lambda: enough(loop.kills))
        return loop.kills

    rounds.run(f"{kind} work", one, SECONDS / len(LOOPS) / len(ENGINES))


def test_producers(rounds: Rounds) -> None:
    """Producers killed in mid-append; these kills take less time than those of workers."""

    def one(place: Place, seed: int, enough: Enough) -> int:
        return Producers(place, seed).go(enough)

    rounds.run("producers", one, SECONDS / 4 / len(ENGINES))


NOTHING = """
@app.task
def nothing(n):
    pass
"""


def _rss(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _append(module: Any, calls: int) -> float:
    before = time.monotonic()
    module.nothing.delay_many(range(calls))
    return calls / (time.monotonic() - before)


def _drain(place: Place, calls: int) -> tuple[float, list[int]]:
    """Run a worker until all is done; return calls a second, and its memory on the way."""
    worker = place.worker(2)
    memory = []
    while not place.idle():
        time.sleep(0.5)  # between samples
        memory.append(sum(map(_rss, [worker.pid, *tree(worker.pid)])))
    assert worker.stop() == 0
    return calls / _busy_for(place), memory


def _busy_for(place: Place) -> float:
    """Return the seconds from the first claim to the end of the last call, by the journal."""
    engine, group = place.app.engine, place.group()
    ((_, lo, hi),) = engine.bounds(place.app.stream_of("queue", "default"))
    first, last = engine.journal(group.id, lo)[0], engine.journal(group.id, hi - 1)[-1]
    return float(last.ended - first.started)


def _measure(folder: Path, calls: int) -> tuple[float, float, list[int], float]:
    folder.mkdir()
    place = Place(folder)
    try:
        module = place.module(NOTHING)
        empty = _size(folder)
        appended = _append(module, calls)
        place.app.engine._writer.checkpoint("TRUNCATE")
        body = len(module.nothing.apply_async((calls,)).record().body)
        each = (_size(folder) - empty) / calls - body
        drained, memory = _drain(place, calls)
    finally:
        place.close()
    return appended, drained, memory, each


def _size(folder: Path) -> int:
    return (folder / "log.db").stat().st_size if (folder / "log.db").exists() else 0


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@pytest.mark.timeout(7200)
def test_backlog(tmp_path: Path) -> None:
    small = [_measure(tmp_path / f"small-{at}", SMALL) for at in range(MEASURED)]
    append_small, drain_small = (_median([m[at] for m in small]) for at in (0, 1))
    append_large, drain_large, memory, each = _measure(tmp_path / "large", BACKLOG)
    tenth = max(len(memory) // 10, 1)
    early, late = max(memory[tenth : 2 * tenth] or memory), max(memory[-tenth:])
    print(
        f"\nappend: {append_small:,.0f}/s of {SMALL:,}, {append_large:,.0f}/s of {BACKLOG:,}"
        f"\ndrain: {drain_small:,.0f}/s of {SMALL:,}, {drain_large:,.0f}/s of {BACKLOG:,}"
        f"\nworker's memory: {early / 1e6:.0f} MB early, {late / 1e6:.0f} MB at the end"
        f"\nbytes a record besides the body: {each:.1f}"
    )
    assert each < 120
    assert late < early * 1.1 + 8e6
    assert append_large > append_small * (1 - TOLERANCE)
    assert drain_large > drain_small * (1 - TOLERANCE)
