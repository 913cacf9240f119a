"""A worker on other servers than most tests use: PostgreSQL's newest and oldest, and behind PgBouncer."""

from __future__ import annotations

import os
import signal

import pytest
from tests.worker.support import Place, eventually

CODE = """
@app.task
def parent(n):
    with noted("parent", n):
        made.delay(n)
        return [n, "v"]


@app.task
def made(n):
    note("start", "made", n)


@app.task(bind=True, max_retries=2)
def retried(self, n):
    note("start", f"retried{self.request.retries}", n)
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    return n


@app.task(bind=True)
def kept(self, n):
    with self.transaction() as connection:
        connection.execute(f"INSERT INTO {TABLE} VALUES (%s)", (n,))
    return n


@app.task
def slow(n):
    with noted("slow", n):
        wait_for("go")
        return n


TABLE = "kept_" + app.url.partition("schema=")[2]
"""


@pytest.mark.parametrize("place", ["postgres-newest", "postgres-oldest", "postgres-pooled"], indirect=True)
def test_worker_from_calls_to_a_death_and_on(place: Place) -> None:
    module = place.module(CODE, poll_interval=0.1)
    table = module.TABLE
    place.app.engine._writer.append(lambda db: db.execute(f"CREATE TABLE {table} (n bigint)"))
    parents, retried = module.parent.delay_many(range(500)), module.retried.delay_many(range(20))
    kept, later = module.kept.delay_many(range(50)), module.made.apply_async((1000,), countdown=0.5)
    worker = place.worker(2)
    assert parents.get(timeout=20) == [[n, "v"] for n in range(500)]
    assert retried.get(timeout=20) == list(range(20))
    assert kept.get(timeout=20) == list(range(50))
    later.get(timeout=20)
    slow = module.slow.delay(1)
    mark = place.await_start("slow", "1")
    os.kill(mark.pid, signal.SIGKILL)
    eventually(lambda: place.runs("slow") == {"1": 2})
    place.touch("go")
    assert slow.get(timeout=20) == 1
    assert [attempt.how for attempt in slow.history()] == ["lost", "done"]
    for n in range(20):
        assert module.retried.delay(n).get(timeout=20) == n
    eventually(place.idle)
    assert worker.stop() == 0, worker.log
    assert place.runs("parent") == {str(n): 1 for n in range(500)}
    assert place.runs("made") == {str(n): 1 for n in (*range(500), 1000)}
    found = place.app.engine._reader.read(lambda db: db.execute(f"SELECT n FROM {table}").fetchall())
    assert sorted(found) == [(n,) for n in range(50)]
    place.check()
