"""Statements that go to PostgreSQL together: values as by cursors, errors where they belong, an end."""

from __future__ import annotations

import datetime
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import errors as pg
from psycopg.types.json import Jsonb

from respool.engines.postgres import batch as module
from respool.engines.postgres.connection import Bounded, connect
from respool.engines.postgres.reach import PostgresOptions

TYPED = (
    b"SELECT %s::bigint, %s::text, %s::bytea, %s::jsonb, %s::double precision, %s::bigint[], %s::boolean, "
    b"%s::text[], %s::timestamptz"
)
VALUES = (
    (1, "a", b"\0b", Jsonb({"a": [1]}), 0.5, [1, 2], True, ["x", None], None),
    (1 << 40, "é%'", b"", Jsonb(None), 1e300, [], None, [], datetime.datetime.now(datetime.UTC)),
    (None, None, None, None, None, None, None, None, None),
)


@pytest.fixture
def db(session_database: str) -> Iterator[Bounded]:
    found = opened(session_database)
    yield found
    found.close()


def opened(url: str) -> Bounded:
    return connect(PostgresOptions(url, "the test's"), "test")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
def test_values_are_those_of_cursors(db: Bounded, prepared: bool, binary: bool) -> None:
    db.prepares = prepared
    for values in VALUES * 2:
        expected = db.execute(TYPED, values, binary=binary).fetchall()
        assert db.batch.run(TYPED, values, binary=binary).fetchall() == expected
    reply = db.batch.run(b"SELECT %(a)s::int, %(b)b::bytea, %(a)s::int, '%%'", {"a": 3, "b": b"x"})
    assert reply.fetchone() == (3, b"x", 3, "%")


@pytest.mark.parametrize("prepared", [False, True])
def test_values_that_come_encoded(db: Bounded, prepared: bool) -> None:
    db.prepares = prepared
    db.execute("CREATE TEMP TABLE n (i int PRIMARY KEY, t text, b bytea)")
    statement = b"INSERT INTO n VALUES (%(i)s, %(t)s || '%%', %(b)s) RETURNING i, %(i)s + 1"
    add = module.Encoded(statement, {"i": 23, "t": 25, "b": 17})
    for n in (1, 2):
        found = db.batch.run_encoded(add, (n.to_bytes(4, "big"), "é".encode(), None))
        assert [found.get_value(0, column) for column in range(2)] == [n.to_bytes(4), (n + 1).to_bytes(4)]
        with pytest.raises(pg.UniqueViolation):
            db.batch.run_encoded(add, (n.to_bytes(4, "big"), None, b"x"))
    assert db.execute("SELECT i, t, b FROM n ORDER BY i").fetchall() == [(1, "é%", None), (2, "é%", None)]
    row = db.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%RETURNING i%'")
    assert row.fetchone() == (int(prepared),)


def test_a_statement_whose_first_use_fails_can_be_used(db: Bounded) -> None:
    invert = module.Encoded(b"SELECT 6 / %(by)s", {"by": 23})
    for _ in range(2):
        with pytest.raises(pg.DivisionByZero):
            db.batch.run_encoded(invert, (bytes(4),))
        assert db.batch.run_encoded(invert, ((2).to_bytes(4),)).get_value(0, 0) == (3).to_bytes(4)


def test_encoded_values_are_those_of_the_statement() -> None:
    with pytest.raises(ValueError, match="values are"):
        module.Encoded(b"SELECT %(a)s, %(b)s", {"b": 23, "a": 23})


def test_many_in_one_round_trip_in_their_order(db: Bounded) -> None:
    with db.batch as batch:
        batch.execute(b"CREATE TEMP TABLE n (i int)")
        added = [batch.execute(b"INSERT INTO n VALUES (%s), (%s)", (n, n)) for n in range(10)]
        seen = batch.execute(b"SELECT DISTINCT i FROM n ORDER BY i")
        none = batch.execute(b"SELECT i FROM n WHERE i > %s", (99,))
        batch.sync()
        assert [each.rowcount for each in added] == [2] * 10
        assert [i for (i,) in seen.fetchall()] == list(range(10))
        assert (none.fetchall(), none.fetchone(), none.rowcount) == ([], None, 0)
        assert batch.execute(b"DELETE FROM n").rowcount == 20, "who asks early has it sent"
    assert db.execute("SELECT count(*) FROM n").fetchone() == (0,)


def test_the_first_error_is_raised_and_the_connection_goes_on(db: Bounded) -> None:
    db.execute("CREATE TEMP TABLE n (i int PRIMARY KEY)")
    batch = db.batch

    def violate() -> None:
        with batch:
            batch.execute(b"BEGIN")
            batch.execute(b"INSERT INTO n VALUES (1), (1)")
            batch.execute(b"SELECT 'never prepared', i FROM n")
            batch.sync()

    def fail_with_something_on_its_way() -> None:
        with batch:
            batch.execute(b"SELECT 1")
            raise ZeroDivisionError

    for _ in range(3):  # prepared or not: what comes after the error was never prepared
        with pytest.raises(pg.UniqueViolation):
            violate()
        db.rollback()
        assert batch.run(b"SELECT 'never prepared', i FROM n").fetchall() == []
        with pytest.raises(pg.SyntaxError):
            batch.run(b"SELEC 1")
        with pytest.raises(ZeroDivisionError):
            fail_with_something_on_its_way()
        assert batch.run(b"SELECT 2").fetchone() == (2,)


def test_what_the_driver_ends_is_not_ours(db: Bounded) -> None:
    """psycopg deallocates all statements after a rollback where it has prepared any."""
    for _ in range(3):
        db.batch.run(b"SELECT 'prepared'")
        for _ in range(10):
            db.execute("SELECT 'often'")
        with pytest.raises(pg.DivisionByZero):
            db.batch.run(b"SELECT 1 / 0")
        db.execute("BEGIN")
        db.rollback()


def test_more_kinds_than_are_kept_prepared(db: Bounded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PREPARED", 3)
    for _ in range(2):
        for n in range(8):
            assert db.batch.run(b"SELECT %d" % n).fetchone() == (n,)
    row = db.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'respool%'").fetchone()
    assert row == (3,)


def test_much_in_both_directions(db: Bounded) -> None:
    """Neither side waits for the other to read first."""
    much = b"x" * (4 << 20)
    with db.batch as batch:
        replies = [batch.execute(b"SELECT %s::bytea", (much,), binary=True) for _ in range(8)]
        batch.sync()
        assert all(reply.fetchone() == (much,) for reply in replies)


def test_a_server_that_does_not_answer(session_database: str) -> None:
    """G7: the wait ends, and so does the connection, for nobody knows what it did."""
    port = urlsplit(session_database).port
    assert port is not None
    listener = socket.create_server(("127.0.0.1", 0))
    silent = threading.Event()
    ends: list[socket.socket] = []
    pipes: list[threading.Thread] = []

    def pipe(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(1 << 16):
            if not silent.is_set():
                sink.sendall(data)

    def serve() -> None:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        ends.extend((client, server))
        for pair in ((client, server), (server, client)):
            pipes.append(threading.Thread(target=pipe, args=pair))
            pipes[-1].start()

    server = threading.Thread(target=serve)
    server.start()
    db = opened(session_database.replace(f":{port}/", f":{listener.getsockname()[1]}/"))
    try:
        assert db.batch.run(b"SELECT 1").fetchone() == (1,)
        silent.set()
        db.patience = 0.3
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match=r"no answer within 0\.3 s"):
            db.batch.run(b"SELECT 1")
        assert 0.3 <= time.monotonic() - began < 5
        assert db.closed
    finally:
        silent.set()
        server.join()
        for end in ends:
            end.shutdown(socket.SHUT_RD)
        for each in pipes:
            each.join()
        for end in (*ends, listener):
            end.close()


def test_a_connection_that_is_ended(db: Bounded, session_database: str) -> None:
    assert db.batch.run(b"SELECT 1").fetchone() == (1,)
    with psycopg.connect(session_database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", (db.info.backend_pid,))  # and wait for it
    with pytest.raises(psycopg.OperationalError):
        db.batch.run(b"SELECT 1")
    assert db.closed


def test_what_nobody_waits_for_is_done_and_its_error_is_nobodys(db: Bounded) -> None:
    batch = db.batch
    asked = b"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    for _ in range(2):  # prepared or not
        batch.post(b"SELECT pg_advisory_lock(%s)", (7,))
        batch.post(b"SELECT 1 / %s::int", (0,))
        batch.post(b"SELECT pg_advisory_unlock(%s)", (7,))
        assert batch.run(asked).fetchone() == (0,)
    batch.post(b"SELECT 1")
    with batch:
        assert batch.execute(b"SELECT 2").fetchone() == (2,)
    assert db.execute("SELECT 3").fetchone() == (3,), "cursors go on"
