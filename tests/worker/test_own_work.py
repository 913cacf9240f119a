"""`self.transaction()`: what a run does in the log's database commits with its settlement, or not (P4).

The outside record is the table that the tasks write to, read on a connection of the test's own.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import apsw
import psycopg
import pytest
from tests.worker.support import Place, eventually, on_each_engine

from respool import App, ConfigError
from respool.testing import work

CODE = """
ON_FILE = app.url.startswith("sqlite")
TABLE = "done" if ON_FILE else "done_" + app.url.partition("schema=")[2]
events = app.stream("paid")


def put(connection, n):
    connection.execute(f"INSERT INTO {TABLE} VALUES ({'?' if ON_FILE else '%s'})", (n,))


@app.task(bind=True)
def pay(self, n):
    note("start", "pay", n)
    with self.transaction() as connection:
        put(connection, n)
        stage("in the block")
    stage("after the block")
    thank.delay(n)
    return [n, "paid"]


@app.task
def thank(n):
    note("start", "thank", n)


@app.task
def plain(n):
    return n


def stage(name):
    if IN_WORKER and once(name):
        kill()


def kill():
    if os.environ.get("VICTIM") == "group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    die()
"""

STAGED = """
if IN_WORKER:
    if ON_FILE:
        from respool.engines.sqlite import work
        from respool.engines.sqlite.work import SQLiteWork as Work, SQLiteWorks as Works
    else:
        from respool.engines.postgres import work
        from respool.engines.postgres.work import PostgresWork as Work, PostgresWorks as Works
    from respool.worker import own_work

    def before(owner, name, what):
        inner = getattr(owner, name)
        def wrapped(*args, **kwargs):
            stage(what)
            return inner(*args, **kwargs)
        setattr(owner, name, wrapped)

    def after(owner, name, what):
        inner = getattr(owner, name)
        def wrapped(*args, **kwargs):
            answer = inner(*args, **kwargs)
            stage(what)
            return answer
        setattr(owner, name, wrapped)

    before(Works, "begin_work", "asked for")
    after(Works, "begin_work", "begun")
    before(Work, "settle", "settling")
    before(own_work, "settle", "locked")
    after(work, "write_change", "written")
    after(Work, "settle", "committed")
"""
STAGES = {  # how often the run is begun
    "asked for": 2,
    "begun": 2,
    "in the block": 2,
    "after the block": 2,
    "settling": 2,
    "locked": 2,
    "written": 2,
    "committed": 1,
}


class Table:
    """The tasks' own table."""

    def __init__(self, place: Place) -> None:
        self._db: Any
        if place.url is None:
            self._db = apsw.Connection(str(place.folder / "log.db"))
            self.name = "done"
        else:
            self._db = psycopg.connect(place.url.partition("?")[0], autocommit=True)
            self.name = "done_" + place.url.partition("schema=")[2]

    def make(self, columns: str = "n bigint") -> None:
        self.execute(f"CREATE TABLE {self.name} ({columns})")

    def execute(self, statement: str) -> None:
        self._db.execute(statement)

    def rows(self) -> Counter[int]:
        return Counter(n for (n,) in self._db.execute(f"SELECT n FROM {self.name}").fetchall())

    def close(self) -> None:
        self._db.close()


@pytest.fixture
def table(place: Place) -> Iterator[Table]:
    place.module("").app.engine.usable()  # the file is ours first
    made = Table(place)
    made.make()
    yield made
    made.close()


@on_each_engine
def test_work_result_and_calls_are_there_together(place: Place, table: Table) -> None:
    module = place.module(CODE)
    paid = module.pay.delay_many(range(100))
    plain = module.plain.delay_many(range(100))
    more = module.pay.delay_many(range(100, 200))
    worker = place.burst(2)
    assert table.rows() == dict.fromkeys(range(200), 1)
    assert paid.get(timeout=5) + more.get(timeout=5) == [[n, "paid"] for n in range(200)]
    assert plain.get(timeout=5) == list(range(100))
    assert place.runs("thank") == {str(n): 1 for n in range(200)}
    assert "refused settlements" not in place.counters(), worker.log
    assert [attempt.how for attempt in paid[7].history()] == ["done"]
    place.check()


@pytest.mark.parametrize("victim", ["child", "group"])
@on_each_engine
def test_crash_at_each_stage(place: Place, table: Table, victim: str) -> None:
    """Once in the table, whenever the process dies: a run is repeated exactly where its work was undone."""
    module = place.module(CODE, STAGED, max_deliveries=1000)
    for name in STAGES:
        place.touch(name)
    paid = module.pay.delay_many(range(40))
    worker = place.worker(1, env={"VICTIM": victim})

    def finished() -> bool:
        nonlocal worker
        if worker.process.poll() is not None:
            worker = place.worker(1, env={"VICTIM": victim})
        return place.idle()

    eventually(finished, "all paid", 60)
    assert worker.stop() == 0
    assert table.rows() == dict.fromkeys(range(40), 1)
    assert paid.get(timeout=5) == [[n, "paid"] for n in range(40)]
    assert place.runs("thank") == {str(n): 1 for n in range(40)}
    assert not [name for name in STAGES if (place.folder / name).exists()]
    runs = place.runs("pay")
    assert len(runs) == 40
    assert sum(runs.values()) - 40 == sum(times - 1 for times in STAGES.values())
    place.check()


@on_each_engine
def test_what_raises_is_undone(place: Place, table: Table) -> None:
    module = place.module(
        CODE,
        """
        @app.task(bind=True, max_retries=1, default_retry_delay=0.01, autoretry_for=(OSError,))
        def fails(self, n, where):
            thank.delay(n + 100 * self.request.retries)
            with self.transaction() as connection:
                put(connection, n)
                if where == "in it" and not self.request.retries:
                    raise OSError
            if where == "after it" and not self.request.retries:
                raise OSError
            if where == "for good":
                raise KeyError
            return n


        @app.task(bind=True)
        def goes_on(self, n):
            try:
                with self.transaction() as connection:
                    put(connection, -n)
                    raise OSError
            except OSError:
                with self.transaction() as connection:
                    put(connection, n)
            return n
        """,
    )
    failing = [module.fails.delay(n, where) for n, where in enumerate(("in it", "after it", "for good"))]
    going = module.goes_on.delay(7)
    place.burst(1)
    assert table.rows() == {0: 1, 1: 1, 7: 1}
    assert [failing[0].get(timeout=5), failing[1].get(timeout=5), going.get(timeout=5)] == [0, 1, 7]
    assert failing[2].state == "FAILURE"
    assert place.counts().parked == {"dead": 1}
    assert place.runs("thank") == {"0": 1, "100": 1, "1": 1, "101": 1, "2": 1}
    place.check()


@on_each_engine
def test_calls_stay_until_the_work_commits(place: Place, table: Table) -> None:
    """However long the run takes, and however many calls it makes (P4)."""
    module = place.module(
        CODE,
        """
        @app.task(bind=True)
        def slow(self, n, calls, ends):
            with self.transaction() as connection:
                put(connection, n)
                for each in range(calls):
                    plain.delay(each)
                events.publish({"n": n})
                note("start", "slow", n)
                wait_for(f"go-{n}")
            events.publish({"n": n, "after": True})
            if not ends:
                raise KeyError
            return n
        """,
        outbox_hold=0.05,
    )
    slow = [
        module.slow.delay(1, 10, True),
        module.slow.delay(2, 10_500, True),
        module.slow.delay(3, 10_500, False),
    ]
    worker = place.worker(1)
    sent = 0
    for n, calls in ((1, 10), (2, 10_500), (3, 10_500)):
        place.await_start("slow", str(n))
        assert _records(place, "plain") == sent
        place.touch(f"go-{n}")
        sent += calls
        eventually(lambda n=n: slow[n - 1].state in ("SUCCESS", "FAILURE"))
        assert _records(place, "plain") == sent, "those of a run that fails are sent as well (H8)"
    assert table.rows() == {1: 1, 2: 1}
    assert [event.value for event in module.events.read()] == [
        {"n": 1}, {"n": 1, "after": True}, {"n": 2}, {"n": 2, "after": True},
    ]  # fmt: skip
    assert worker.stop() == 0
    place.check()


def _records(place: Place, task: str) -> int:
    stream = place.app.stream_of("queue", "default")
    ((_, lo, hi),) = place.app.engine.bounds(stream)
    return place.app.engine.task_counts(lo, hi, None, None).get(task, 0)  # type: ignore[no-any-return]


@on_each_engine
def test_misuse_is_an_error_that_says_so(place: Place, table: Table) -> None:
    module = place.module(
        CODE,
        """
        def ways(self, connection, how):
            if how == "second":
                with self.transaction():
                    pass
            if how == "commit" and ON_FILE:
                connection.execute("COMMIT")
            elif how == "commit":
                connection.commit()
            if how == "by hand" and not ON_FILE:
                connection.execute("COMMIT")
            if how == "progress":
                self.update_state({"done": 1})


        @app.task(bind=True)
        def misused(self, how):
            with self.transaction() as connection:
                put(connection, 1)
                ways(self, connection, how)


        @app.task
        async def coroutine(n):
            with coroutine.transaction() as connection:
                put(connection, n)
            return n
        """,
    )
    misused = {how: module.misused.delay(how) for how in ("second", "commit", "by hand", "progress")}
    unbound = module.coroutine.delay(9)
    place.burst(1)
    assert unbound.get(timeout=5) == 9
    with pytest.raises(ConfigError, match="one for each run"):
        misused["second"].get(timeout=5)
    with pytest.raises(Exception, match=r"settlement|constraint failed"):
        misused["commit"].get(timeout=5)
    rows = {9: 1}
    if place.url is None:
        misused["by hand"].get(timeout=5)
        rows[1] = 1
        with pytest.raises(ConfigError, match="update_state"):
            misused["progress"].get(timeout=5)
    else:
        misused["progress"].get(timeout=5)
        with pytest.raises(ConfigError, match="COMMIT or ROLLBACK of its own"):
            misused["by hand"].get(timeout=5)
        rows[1] = 2  # that COMMIT was the task's own, and is not undone
    assert table.rows() == rows
    with pytest.raises(ConfigError, match="only while a worker runs"), module.pay.transaction():
        pass
    place.check()


@on_each_engine
def test_solo_worker_commits_work_too(place: Place, table: Table) -> None:
    module = place.module(CODE)
    paid = module.pay.delay_many(range(20))
    work(module.app)
    assert table.rows() == dict.fromkeys(range(20), 1)
    assert paid.get(timeout=5) == [[n, "paid"] for n in range(20)]
    place.check()


def test_log_in_memory_says_that_it_cannot() -> None:
    app = App("t", url="sqlite:///:memory:")

    @app.task(bind=True)
    def pay(self: Any) -> None:
        with self.transaction():
            raise AssertionError

    result = pay.delay()
    work(app)
    with pytest.raises(ConfigError, match="SQLite in memory"):
        result.get(timeout=5)
    app.close()


on_postgres = pytest.mark.parametrize("place", ["postgres"], indirect=True)


@on_postgres
def test_run_that_lost_its_lease_is_undone(place: Place, table: Table) -> None:
    """Fenced by the lease: its worker stood still in the middle of the block, and was declared dead."""
    module = place.module(
        CODE,
        """
        @app.task(bind=True)
        def slow(self, n):
            with self.transaction() as connection:
                put(connection, n)
                note("start", "slow", n)
                wait_for("go")
            return n
        """,
        beat=0.1,
        worker_ttl=0.5,
    )
    result = module.slow.delay(1)
    elsewhere = "import respool.worker.supervisor as s\ns.boot_id = lambda: 'another boot'\n"
    first = place.worker(1, before=elsewhere)
    mark = place.await_start("slow", "1")
    os.kill(first.pid, signal.SIGSTOP)
    second = place.worker(1)
    second.said("silent for too long")
    eventually(lambda: place.runs("slow")["1"] == 2)
    place.touch("go")
    assert result.get(timeout=20) == 1
    first.said("what its run did in self.transaction() was undone")
    os.kill(first.pid, signal.SIGCONT)
    first.said("declared dead")
    assert mark.pid != place.marks("start", "slow")[1].pid
    eventually(lambda: place.counters().get("refused settlements") == 1)
    assert (first.stop(), second.stop()) == (0, 0)
    assert table.rows() == {1: 1}
    place.check()


@on_postgres
def test_errors_of_the_commit_are_those_of_the_run(place: Place, table: Table) -> None:
    """A deferred constraint, a transaction that has failed already: that run fails, and no other."""
    table.execute(f"ALTER TABLE {table.name} ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    module = place.module(
        CODE,
        """
        @app.task(bind=True)
        def swallows(self, n):
            with self.transaction() as connection:
                put(connection, n)
                try:
                    connection.execute("SELECT 1 / 0")
                except Exception:
                    return n
        """,
    )
    first = module.pay.delay_many([1, 2])
    twice = module.pay.delay(2)
    swallowed = module.swallows.delay(3)
    last = module.pay.delay_many([4, 5])
    place.burst(1)
    assert first.get(timeout=5) + last.get(timeout=5) == [[n, "paid"] for n in (1, 2, 4, 5)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        twice.get(timeout=5)
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        swallowed.get(timeout=5)
    assert table.rows() == {1: 1, 2: 1, 4: 1, 5: 1}
    assert place.runs("thank") == {"1": 1, "2": 2, "4": 1, "5": 1}, "a run that fails sends its calls as well"
    place.check()


@on_postgres
def test_a_commit_that_fails_holds_up_its_key(place: Place, table: Table) -> None:
    """P8: what looked like a success is run again before anything that follows of its key."""
    table.execute(f"ALTER TABLE {table.name} ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    module = place.module(
        CODE,
        """
        app.queue("orders", ordered=True, partitions=1)

        @app.task(
            bind=True, queue="orders", key=lambda n: "u", autoretry_for=(Exception,), default_retry_delay=0
        )
        def in_order(self, n):
            note("start", "in_order", n)
            with self.transaction() as connection:
                put(connection, n)
                if n == 100 and once("twice"):
                    put(connection, 1)
            return n
        """,
    )
    place.touch("twice")
    results = module.in_order.delay_many(range(120))
    place.burst(1)
    assert results.get(timeout=5) == [*range(120)]
    begun = [int(mark.key) for mark in place.marks("start", "in_order")]
    assert begun == [*range(101), *range(100, 120)]
    assert table.rows() == dict.fromkeys(range(120), 1)
    place.check()


@on_postgres
def test_connection_that_breaks_is_no_fault_of_the_run(place: Place, table: Table) -> None:
    """In the block, before the settlement, before the COMMIT: undone, and done again without a failure."""
    module = place.module(
        CODE,
        STAGED,
        """
        def kill():
            import psycopg
            with psycopg.connect(app.location.server.value, autocommit=True) as db:
                db.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE application_name = 'respool run' AND datname = current_database()"
                )
        """,
    )
    for name in ("after the block", "locked", "written"):
        place.touch(name)
    paid = module.pay.delay_many(range(20))
    worker = place.burst(1)
    assert table.rows() == dict.fromkeys(range(20), 1)
    assert paid.get(timeout=5) == [[n, "paid"] for n in range(20)]
    runs = place.runs("pay")
    assert sum(runs.values()) == 23, worker.log
    assert place.runs("thank") == {str(n): 1 for n in range(20)}
    place.check()
