"""Retention: what is old and done goes, what anybody needs stays, and positions never come back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from respool.delivery.claim import Request, claim
from respool.delivery.model import Change, Lease, Parked, Settlement, View
from respool.delivery.settle import settle
from respool.engines.base import Group, Reads, Stream
from respool.engines.sqlite.engine import SQLiteEngine, SQLiteOptions
from respool.record import first_pos, new_head

OLD = time.time() - 1000
CUT = OLD + 500


@pytest.fixture(params=["file", "memory"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SQLiteEngine]:
    made = SQLiteEngine(SQLiteOptions(tmp_path / "q.db" if request.param == "file" else None))
    yield made
    made.close()


@pytest.fixture
def queue(engine: SQLiteEngine) -> Stream:
    return engine.create_stream("queue", "shop", "default", 1, {})


def main_of(engine: SQLiteEngine) -> Group:
    return engine.groups()[0]


def fill(engine: SQLiteEngine, queue: Stream, runs: int, size: int, at: float = OLD) -> None:
    for n in range(runs):
        engine.append_run(queue.logs[0], "add", [b"x"] * size, None, new_head(at + n), at + n)


def run_all(engine: SQLiteEngine, group: Group, want: int = 4096, finish: bool = True) -> Lease | None:
    lease: Lease | None = engine.transact(
        Reads(group.id, positions=True),
        lambda v, c: claim(v, c, Request(want, 1, 0, time.time_ns() >> 8, OLD)),
    )
    if lease is not None and finish:
        done = Settlement(lease.id, 1, [(s.lo, s.hi) for s in lease.spans])
        engine.transact(Reads(group.id, (lease.id,)), lambda v, c: settle(v, c, done))
    return lease


def kept(engine: SQLiteEngine, queue: Stream) -> tuple[int, int]:
    ((_, first, end),) = engine.bounds(queue)
    return first - first_pos(queue.logs[0]), end - first_pos(queue.logs[0])


def test_old_and_done_goes_and_numbers_do_not_come_back(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    run_all(engine, main_of(engine))
    assert engine.trim(queue, CUT) == 100
    assert kept(engine, queue) == (100, 100)
    fill(engine, queue, 1, 1)
    assert kept(engine, queue) == (100, 101)
    assert run_all(engine, main_of(engine)) is not None


def test_what_is_young_stays(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    run_all(engine, main_of(engine))
    engine.trim(queue, OLD + 4.5)
    assert kept(engine, queue) == (50, 100)


def test_what_is_pending_or_leased_or_parked_stays(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    main = main_of(engine)
    assert engine.trim(queue, CUT) == 0
    run_all(engine, main, 35)
    engine.trim(queue, CUT)
    assert kept(engine, queue) == (30, 100)  # 35 lies in the run that begins at 30
    run_all(engine, main, 20, finish=False)
    run_all(engine, main)
    engine.trim(queue, CUT)
    assert kept(engine, queue) == (30, 100)


def test_a_dead_letter_stays(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    main = main_of(engine)
    run_all(engine, main)
    pos = first_pos(queue.logs[0]) + 42

    def park(view: View, change: Change) -> None:
        change.parked.append(Parked(pos, "dead", None, "add"))

    engine.transact(Reads(main.id), park)
    engine.trim(queue, CUT)
    assert kept(engine, queue) == (40, 100)


def test_another_groups_records_stay(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    log = queue.logs[0]
    engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first_pos(log) + 70, None)])
    run_all(engine, main_of(engine))
    engine.trim(queue, CUT)
    assert kept(engine, queue) == (70, 100)


def test_the_file_shrinks(tmp_path: Path) -> None:
    engine: Any = SQLiteEngine(SQLiteOptions(tmp_path / "q.db"))
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    for _ in range(20):
        engine.append_run(queue.logs[0], "add", [b"x" * 1000] * 500, None, new_head(OLD), OLD)
    while run_all(engine, main_of(engine)):
        pass
    engine.tidy(0)
    before = (tmp_path / "q.db").stat().st_size
    while engine.trim(queue, CUT):
        pass
    engine.tidy(0)
    assert (tmp_path / "q.db").stat().st_size < before / 4
    engine.close()
