"""Calls sent within a transaction of the caller's own exist if, and only if, it commits."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import apsw
import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from tests.engines.kits import PostgresKit

from respool import App, ConfigError, EngineUnavailable, IdConflict, RecordTooLarge, Refused, UnknownCall
from respool.clock import now as wall_clock
from respool.engines.blobs import PATIENCE
from respool.engines.postgres.enlist import unwrapped
from respool.replay import create_replay
from respool.replay.rerun import rerun
from respool.testing import work

Opener = Callable[[str], Any]
T = TypeVar("T")


def _shop(url: str) -> App:
    app = App("shop", url=url)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    return app


@pytest.fixture
def on_postgres(session_database: str) -> Iterator[App]:
    kit = PostgresKit(session_database, "full")
    assert kit.url is not None
    app = _shop(kit.url)
    yield app
    app.close()
    kit.remove()


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[App]:
    app = _shop(f"sqlite:///{tmp_path / 'respool.db'}")
    yield app
    app.close()


@contextmanager
def _psycopg(url: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    with psycopg.connect(url, row_factory=dict_row) as db:  # type: ignore[arg-type]
        yield db, db.commit, db.rollback


@contextmanager
def _autocommit(url: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("BEGIN")
        yield db, lambda: db.execute("COMMIT") and None, lambda: db.execute("ROLLBACK") and None


@contextmanager
def _sqlalchemy(url: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    import sqlalchemy  # here: each worker collects this module, and it takes a sixth of a second

    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as db:
        yield db, db.commit, db.rollback
    engine.dispose()


@contextmanager
def _session(url: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    import sqlalchemy.orm

    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with sqlalchemy.orm.Session(engine) as db:
        yield db, db.commit, db.rollback
    engine.dispose()


@contextmanager
def _django(url: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    from django.conf import settings
    from django.db.backends.postgresql.base import DatabaseWrapper

    if not settings.configured:
        settings.configure(USE_TZ=True)
    parts = psycopg.conninfo.conninfo_to_dict(url)
    db = DatabaseWrapper(
        {
            "ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"],
            "PASSWORD": parts["password"], "HOST": parts["host"], "PORT": parts["port"], "OPTIONS": {},
            "TIME_ZONE": None, "CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False, "AUTOCOMMIT": True,
            "ATOMIC_REQUESTS": False, "TEST": {},
        },
        "default",
    )  # fmt: skip
    db.set_autocommit(False)
    yield db, db.commit, db.rollback
    db.close()


@pytest.mark.parametrize("open_one", [_psycopg, _autocommit, _sqlalchemy, _session, _django])
def test_a_call_in_a_transaction_on_postgres(on_postgres: App, session_database: str, open_one: Any) -> None:
    add = on_postgres.tasks["add"]
    with open_one(session_database) as (db, commit, rollback):
        lost = add.apply_async((1, 2), connection=db)
        assert lost.state == "UNKNOWN", "nobody sees it before the commit"
        rollback()
        with pytest.raises(UnknownCall):
            lost.get(timeout=1)
        if open_one is _autocommit:
            db.execute("BEGIN")
        with on_postgres.transaction(db):
            kept = add.delay(2, 3)
            given = add.apply_async((3, 3), task_id="order-7")
            many = add.apply_many([((n, n), {}) for n in range(3)])
        outside = add.delay(0, 0)
        assert (kept.state, outside.state) == ("UNKNOWN", "PENDING")
        commit()
    work(on_postgres)
    assert [r.get(timeout=1) for r in (kept, given, outside, *many)] == [5, 6, 0, 0, 2, 4]
    assert lost.state == "UNKNOWN"


def test_a_call_in_a_transaction_on_sqlite(on_sqlite: App) -> None:
    add = on_sqlite.tasks["add"]
    add.delay(0, 0)  # makes the file
    db = apsw.Connection(on_sqlite.location.path or "")
    db.execute("BEGIN IMMEDIATE")
    lost = add.apply_async((1, 2), connection=db)
    db.execute("ROLLBACK")
    assert lost.state == "UNKNOWN"
    with db, on_sqlite.transaction(db):
        kept = add.delay(2, 3)
        many = add.apply_many([((n, n), {}) for n in range(3)])
    db.close()
    work(on_sqlite)
    assert [r.get(timeout=1) for r in (kept, *many)] == [5, 0, 2, 4]


def test_errors_leave_the_transaction_as_it_was(on_postgres: App, session_database: str) -> None:
    add = on_postgres.tasks["add"]
    with psycopg.connect(session_database) as db:
        first = add.apply_async((1, 2), connection=db, task_id="order-1")
        again = add.apply_async((1, 2), connection=db, task_id="order-1")
        with pytest.raises(IdConflict):
            add.apply_async((9, 9), connection=db, task_id="order-1")
        with pytest.raises(RecordTooLarge):
            on_postgres.send_task("other", ("x" * 2_000_000,), connection=db)
        db.commit()
    work(on_postgres)
    assert first.get(timeout=1) == again.get(timeout=1) == 3


def _sent_by_strays(app: App) -> list[Callable[[], object]]:
    """All that sends, each to be called where its block has ended."""
    add, events, keyed = app.tasks["add"], app.stream("visits"), app.stream("users", key="id")
    once = app.task(name="once", unique=True)(lambda x: x)
    priced = app.task(name="priced", priority=9)(lambda x: x)
    for each in once, priced:
        each.delay(0)  # its lane is made
    return [
        lambda: add.delay(1, 2),
        lambda: add.apply_async((1, 2), task_id="order-1"),
        lambda: add.apply_async((1, 2), priority=9),
        lambda: add.apply_many([((n, n), {}) for n in range(3)]),
        lambda: once.delay(1),
        lambda: priced.delay_many(range(3)),
        lambda: events.publish({"n": 1}),
        lambda: events.publish_many([{"n": 1}, {"n": 2}]),
        lambda: keyed.publish_many([{"id": 1}, {"id": 2}]),
        lambda: asyncio.run(add.adelay(1, 2)),
        lambda: asyncio.run(once.adelay(1)),
        lambda: asyncio.run(events.apublish({"n": 1})),
    ]


def _records(app: App) -> int:
    return sum(end - first for stream in app.engine.streams() for _, first, end in app.engine.bounds(stream))


@pytest.mark.parametrize("open_one", [_psycopg, _autocommit, _sqlalchemy, _session, _django])
def test_what_outlives_its_block_sends_nothing_on_postgres(
    on_postgres: App, session_database: str, open_one: Any
) -> None:
    """P1: on the caller's connection it would begin a transaction that nobody commits."""
    strays = _sent_by_strays(on_postgres)
    with open_one(session_database) as (db, commit, _):
        with on_postgres.transaction(db):
            kept = on_postgres.tasks["add"].delay(2, 3)
            began_within = contextvars.copy_context()  # as a thread or a coroutine has that was begun here
            inner = unwrapped(db)
        commit()
        before = _records(on_postgres)
        for stray in strays:
            with pytest.raises(Refused, match=r"nothing was sent\. Wait for it within the block"):
                began_within.run(stray)
        assert inner.info.transaction_status == TransactionStatus.IDLE
    assert _records(on_postgres) == before
    work(on_postgres)
    assert kept.get(timeout=1) == 5


def test_what_outlives_its_block_sends_nothing_on_sqlite(on_sqlite: App) -> None:
    """P1: it would be stored with the caller's setting of `synchronous`, whatever that is."""
    strays = _sent_by_strays(on_sqlite)
    db = apsw.Connection(on_sqlite.location.path or "")
    with db, on_sqlite.transaction(db):
        began_within = contextvars.copy_context()
    before = _records(on_sqlite)
    for stray in strays:
        with pytest.raises(Refused, match=r"nothing was sent\. Wait for it within the block"):
            began_within.run(stray)
    db.close()
    assert _records(on_sqlite) == before


def test_a_block_within_another_ends_by_itself(on_sqlite: App) -> None:
    add = on_sqlite.tasks["add"]
    add.delay(0, 0)  # makes the file
    db = apsw.Connection(on_sqlite.location.path or "")
    with db, on_sqlite.transaction(db):
        with on_sqlite.transaction(db):
            within = contextvars.copy_context()
        given = add.apply_async((1, 1), connection=db)
        sent = add.delay(1, 2)
        with pytest.raises(Refused):
            within.run(add.delay, 1, 2)
    db.close()
    work(on_sqlite)
    assert (given.get(timeout=1), sent.get(timeout=1)) == (2, 3)


def test_a_block_ends_when_what_is_being_sent_has_been(
    on_postgres: App, session_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: else it would be sent behind the commit."""
    add, engine = on_postgres.tasks["add"], on_postgres.engine
    append = engine.append_enlisted
    sending, go_on, left = threading.Event(), threading.Event(), threading.Event()

    def slowly(*args: Any) -> Any:
        sending.set()
        assert go_on.wait(10)
        return append(*args)

    monkeypatch.setattr(engine, "append_enlisted", slowly)
    with psycopg.connect(session_database) as db, ThreadPoolExecutor(2) as pool:

        def send_and_leave() -> Any:
            with on_postgres.transaction(db):
                sent = pool.submit(contextvars.copy_context().run, add.delay, 2, 3)
                assert sending.wait(10)
            left.set()
            db.commit()
            return sent.result(10)

        sent = pool.submit(send_and_leave)
        assert sending.wait(10)
        assert not left.wait(0.2)
        go_on.set()
        kept = sent.result(10)
    work(on_postgres)
    assert kept.get(timeout=1) == 5


def test_a_process_forked_within_a_block_sends_nothing_on_its_connection(on_sqlite: App) -> None:
    """The connection is its parent's."""
    add = on_sqlite.tasks["add"]
    add.delay(0, 0)
    db = apsw.Connection(on_sqlite.location.path or "")
    with db, on_sqlite.transaction(db):
        child = os.fork()
        if child == 0:
            try:
                add.delay(1, 2)
            except Refused as error:
                os._exit(7 if "nothing was sent" in str(error) else 1)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    db.close()


def test_two_apps_in_one_transaction(on_postgres: App, session_database: str) -> None:
    add = on_postgres.tasks["add"]
    blog = App("blog", url=on_postgres.url)
    post = blog.task(name="post")(lambda x: x)
    for each in add, post:
        each.apply_async((0, 0)[: 2 if each is add else 1])
    before = _records(on_postgres)
    with blog, psycopg.connect(session_database) as db:
        with on_postgres.transaction(db), blog.transaction(db):
            lost = [add.delay(1, 2), post.delay(1)]
        db.rollback()
        assert _records(on_postgres) == before
        assert [each.state for each in lost] == ["UNKNOWN"] * 2
        with on_postgres.transaction(db), blog.transaction(db):
            kept = [add.delay(1, 2), post.delay(1)]
        db.commit()
        for each in on_postgres, blog:
            work(each)
        assert [each.get(timeout=1) for each in kept] == [3, 1]


def test_a_run_that_sends_nothing_sends_nothing_in_a_transaction_either(
    on_postgres: App, session_database: str
) -> None:
    """A rerun collects what its task sends, a replay drops and counts it, whatever it is sent by."""
    app, add, visits = on_postgres, on_postgres.tasks["add"], on_postgres.stream("visits")
    once = app.task(name="once", unique=True)(lambda x: x)

    @app.task
    def order(n: int) -> None:
        with psycopg.connect(session_database) as db, app.transaction(db):
            add.delay(n, n)
            add.apply_many([((n, 0), {}), ((n, 1), {})])
            once.delay(n)
            visits.publish({"n": n})

    first = order.delay(1)
    work(app)
    before = _records(app)
    assert before == 6
    done = rerun(app, first.id)
    assert (done.error, len(done.sent)) == (None, 5)
    create_replay(app, "default", "v2", ["order"])
    work(app, group="v2")
    assert _records(app) == before
    (group,) = [each for each in app.groups() if each.name == "v2"]
    assert app.engine.counters(group.id)["calls dropped"] == 5
    assert first.of("v2").state == "SUCCESS"


def _prompt(call: Callable[[], T], seconds: float) -> T:
    began = time.monotonic()
    try:
        return call()
    finally:
        assert time.monotonic() - began < seconds


@pytest.mark.parametrize("how", ["unique", "replace", "one id"])
def test_who_sends_the_same_as_an_open_transaction_is_refused_and_nobody_else_waits(
    on_postgres: App, session_database: str, how: str
) -> None:
    """H16, H20: on the same app as well, where nobody could end it. Else all appends wait behind that one."""
    add = on_postgres.tasks["add"]

    @on_postgres.task(unique=True, on_duplicate="replace" if how == "replace" else None)
    def build(x: int) -> int:
        return x

    def send(**more: Any) -> Any:
        if how == "one id":
            return add.apply_async((1, 2), task_id=f"order-{turn}", **more)
        return build.apply_async((1,), **more)

    if how == "replace":
        build.delay(1)
    with psycopg.connect(session_database) as db, ThreadPoolExecutor(1) as pool:
        for turn, end in enumerate((db.rollback, db.commit)):
            kept = send(connection=db)
            same = pool.submit(lambda: _prompt(send, 4.0))
            others = [_prompt(lambda: add.delay(2, 2), 1.0) for _ in range(20)]
            with pytest.raises(EngineUnavailable, match=r"open transaction has sent .*nothing was sent"):
                same.result()
            end()
            again = _prompt(send, 1.0)
            assert (again.id == kept.id) is (how == "one id" or (how == "unique" and turn == 1))
            work(on_postgres)
            assert [other.get(timeout=5) for other in others] == [4] * 20
            assert again.get(timeout=5)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_large_payloads_in_a_transaction_of_any_isolation(
    session_database: str, tmp_path: Path, isolation: str
) -> None:
    """H18: it is stored beside the transaction, whose snapshot may be older. The sweep spares it."""
    kit = PostgresKit(session_database, "full")
    assert kit.url is not None
    with (
        App("shop", url=kit.url, blobs=(tmp_path / "blobs").as_uri()) as app,
        psycopg.connect(session_database) as db,
    ):
        length = app.task(name="length")(len)
        engine: Any = app.engine
        length.delay(b"x" * 400_000)  # the second to send it touches what is there
        db.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        db.execute("SELECT 1 FROM pg_class LIMIT 1")  # the snapshot
        with app.transaction(db):
            sent = [length.delay(letter * 400_000) for letter in (b"x", b"y", b"z")]
            sent.append(length.apply_async((b"y" * 400_000,), task_id="order-1"))
            began_within = contextvars.copy_context()
        with pytest.raises(Refused, match="nothing was sent"):
            began_within.run(length.delay, b"w" * 400_000)
        assert db.info.transaction_status == TransactionStatus.INTRANS
        assert engine.doom_blobs(None, wall_clock() - PATIENCE, 10)[0] == 0
        db.commit()
        with pytest.raises(Refused, match="nothing was sent"):
            began_within.run(length.delay, b"w" * 400_000)
        assert db.info.transaction_status == TransactionStatus.IDLE
        assert engine.doom_blobs(None, wall_clock() + 1, 10)[0] == 0, "each is referred to"
        work(app)
        assert [each.get(timeout=5) for each in sent] == [400_000] * 4
    kit.remove()


def test_connections_that_cannot_be_used(on_postgres: App, on_sqlite: App, session_database: str) -> None:
    add, local = on_postgres.tasks["add"], on_sqlite.tasks["add"]
    local.delay(0, 0)
    with (
        psycopg.connect(session_database, autocommit=True) as db,
        pytest.raises(ConfigError, match="begin one"),
    ):
        add.apply_async((1, 2), connection=db)
    elsewhere = session_database.rpartition("/")[0] + "/postgres"
    with psycopg.connect(elsewhere) as db, pytest.raises(ConfigError, match="another database"):
        add.apply_async((1, 2), connection=db)
    with pytest.raises(ConfigError, match="psycopg 3"):
        add.apply_async((1, 2), connection=sqlite3.connect(":memory:"))
    with pytest.raises(ConfigError, match=r"apsw\.Connection, not Connection"):  # S1
        local.apply_async((1, 2), connection=sqlite3.connect(on_sqlite.location.path or ""))
    with pytest.raises(ConfigError, match="one file"):
        local.apply_async((1, 2), connection=apsw.Connection(":memory:"))
    with pytest.raises(ConfigError, match="begin one first"):
        local.apply_async((1, 2), connection=apsw.Connection(on_sqlite.location.path or ""))


def test_a_lane_made_beside_a_transaction(on_postgres: App) -> None:
    """In one of our own: what the caller rolls back takes no lane away that others may use (G7)."""
    add = on_postgres.tasks["add"]
    with psycopg.connect(on_postgres.url.partition("?")[0]) as db:
        with on_postgres.transaction(db):
            lost = add.apply_async((1, 2), priority=9)
        db.rollback()
        with on_postgres.transaction(db):
            kept = add.apply_async((3, 4), priority=9)
        db.commit()
    work(on_postgres)
    assert kept.get(timeout=0) == 7
    assert lost.state == "UNKNOWN"


def test_a_new_lane_within_a_transaction_on_a_file(tmp_path: Path) -> None:
    """It would wait for the caller's own lock: refused in time, and with what to do; nothing was sent."""
    with App("shop", url=f"sqlite:///{tmp_path / 'respool.db'}", append_timeout=0.3) as app:

        @app.task
        def add(x: int, y: int) -> int:
            return x + y

        _ = app.engine
        db = apsw.Connection(str(tmp_path / "respool.db"))
        db.execute("BEGIN IMMEDIATE")
        with (
            app.transaction(db),
            pytest.raises(EngineUnavailable, match="Send a first call of that priority"),
        ):
            add.apply_async((1, 2), priority=9)
        db.execute("ROLLBACK")
        add.apply_async((1, 2), priority=9)
        db.execute("BEGIN IMMEDIATE")
        with app.transaction(db):
            sent = add.apply_async((3, 4), priority=9)
        db.execute("COMMIT")
        db.close()
        work(app)
        assert sent.get(timeout=0) == 7
