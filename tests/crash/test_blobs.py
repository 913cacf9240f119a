"""Processes killed between storing a payload, writing its record, trimming and sweeping (H18)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS, SHARED, EngineKit
from tests.worker.support import SOURCES, eventually

from respool import App
from respool.blobs import Blobs, Store
from respool.errors import BlobLost, BlobsUnavailable, EngineUnavailable
from respool.record import first_pos
from respool.reference import is_reference
from respool.worker import sweeping
from respool.worker.sweeping import Progress, remove_left_over, sweep

KILLED = -9
LATER = time.time() + 100_000  # everything is older than that

SENDS = """
import os, signal, sys
from respool import App
from respool import blobs
from respool.engines.sqlite.engine import SQLiteEngine
from respool.engines.postgres.engine import PostgresEngine

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where, url, folder = sys.argv[1:]
app = App("shop", url, blobs=folder)
task = app.task(name="f")(len)
task.delay(b"small")
if where == "before":
    blobs.Store.put = die
elif where == "within":
    blobs.Store._sync = die
else:
    SQLiteEngine.append_row = PostgresEngine.append_row = die
task.delay(b"x" * 300_000)
"""

SWEEPS = """
import os, signal, sys
from respool import App
from respool import blobs
from respool.engines.sqlite.engine import SQLiteEngine
from respool.engines.postgres.engine import PostgresEngine
from respool.worker.sweeping import Progress, sweep

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where, url, folder = sys.argv[1:]
app = App("shop", url, blobs=folder)
if where == "doomed":
    blobs.Store.remove = die
elif where == "removed":
    SQLiteEngine.forget_blobs = PostgresEngine.forget_blobs = die
else:
    SQLiteEngine.doom_blobs = PostgresEngine.doom_blobs = die
sweep(app.engine, app.payloads.store, Progress(), 4e9)
"""


ONE_STORE = [kit for kit in KITS if kit != "kafka"]
"""Where a record and its reference are written in one transaction."""


@pytest.fixture(params=ONE_STORE)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    folder = tmp_path / "log"
    folder.mkdir()
    made = KITS[request.param](request, folder, "full")
    yield made
    made.remove()


on_shared = pytest.mark.parametrize("kit", [kit for kit in ONE_STORE if kit in SHARED], indirect=True)


@pytest.fixture
def blobs_url(tmp_path: Path) -> str:
    return (tmp_path / "blobs").as_uri()


def run(code: str, *arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, "PYTHONPATH": SOURCES}, timeout=60
    )
    return done.returncode


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@on_shared
@pytest.mark.parametrize("where", ["before", "within", "after"])
def test_killed_between_upload_and_append(kit: EngineKit, tmp_path: Path, blobs_url: str, where: str) -> None:
    assert kit.url is not None
    assert run(SENDS, where, kit.url, blobs_url) == KILLED
    with App("shop", kit.url, blobs=blobs_url) as app:
        engine, store = app.engine, app.payloads.store
        assert store is not None
        assert engine.has_blobs()
        assert len(files(tmp_path / "blobs")) == (0 if where == "before" else 1)
        task = app.task(name="f")(len)
        sent = task.delay(b"x" * 300_000)  # what is there already is taken, and synced
        assert sweep(engine, store, Progress(), LATER) == 0
        assert app.payloads.load(sent.record().body)[-3:] == b"xx\x80"
        other = task.delay(b"y" * 300_000)
        app.payloads.blobs.offload(b"z" * 300_000)
        assert sweep(engine, store, Progress(), LATER) == 1
        assert len(files(tmp_path / "blobs")) == 2
        assert app.payloads.load(other.record().body)


@on_shared
@pytest.mark.parametrize("where", ["trimmed", "doomed", "removed"])
def test_killed_within_a_sweep(kit: EngineKit, tmp_path: Path, blobs_url: str, where: str) -> None:
    """Whatever it had done: what is referred to stays, the rest goes with the next sweep."""
    assert kit.url is not None
    with App("shop", kit.url, blobs=blobs_url) as app:
        task = app.task(name="f")(len)
        kept = [task.delay(b"%d" % n * 100_000) for n in range(3)]
        for n in range(3, 6):
            app.payloads.blobs.offload(b"%d" % n * 100_000)
        assert run(SWEEPS, where, kit.url, blobs_url) == KILLED
        store = app.payloads.store
        assert store is not None
        resent = task.delay(b"3" * 100_000)  # what is being removed is stored anew
        sweep(app.engine, store, Progress(), LATER)
        assert app.engine.doomed_blobs(10) == []
        for each in [*kept, resent]:
            assert app.payloads.load(each.record().body)
        assert len(files(tmp_path / "blobs")) == 4  # no file is forgotten
        assert all(app.payloads.load(each.record().body) for each in [*kept, resent])


def test_sending_against_a_sweep_that_waits_for_nothing(
    kit: EngineKit, tmp_path: Path, blobs_url: str
) -> None:
    """The patience is taken away: what then keeps every payload that is referred to is the rule itself.

    Several send the same few payloads again and again, while a sweep takes all it may; a record once written
    has its payload. What is taken away in between is a refusal: nothing was sent.
    """
    engine = kit.open()
    log = engine.create_stream("queue", "shop", "default", 1, {}).logs[0]
    store = Store(blobs_url, 10.0)
    over = threading.Event()
    refused = 0
    errors: list[BaseException] = []

    def send(number: int) -> None:
        nonlocal refused
        from tests.engines.test_conformance import row

        from respool.record import Meta

        blobs = Blobs(engine, store, 1 << 20)
        for n in range(40):
            body = b"%d" % ((n + number) % 4) * 70_000
            try:
                engine.append_row(row(log, blobs.offload(body), meta=Meta(offloaded=len(body)).packed()))
            except BlobsUnavailable:
                refused += 1

    def sweep_all() -> None:
        progress = Progress()
        while not over.is_set():
            sweep(engine, store, progress, time.time() + 1000)

    def guarded(work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)
            raise

    senders = [threading.Thread(target=guarded, args=(send, n)) for n in range(4)]
    sweepers = [threading.Thread(target=guarded, args=(sweep_all,)) for _ in range(2)]
    for thread in [*senders, *sweepers]:
        thread.start()
    for thread in senders:
        thread.join(90)
    over.set()
    for thread in sweepers:
        thread.join(30)
    assert errors == []
    records = engine.records(first_pos(log), first_pos(log + 1), 1000)
    assert len(records) + refused == 160
    assert len(records) > 0
    blobs = Blobs(engine, store, 1 << 20)
    for record in records:
        assert is_reference(record.body)
        assert len(blobs.load(record.body)) == 70_000


@pytest.mark.parametrize("kit", ["postgres"], indirect=True)
def test_a_transaction_that_stays_open_keeps_what_it_refers_to(kit: EngineKit, blobs_url: str) -> None:
    """However long, and though nobody else sees that it does."""
    import psycopg

    assert kit.url is not None
    app = App("shop", kit.url, blobs=blobs_url)
    task = app.task(name="f")(len)
    task.delay(b"small")
    store = app.payloads.store
    assert store is not None
    address = kit.url.partition("?")[0]
    with psycopg.connect(address) as connection, app.transaction(connection):
        sent = task.delay(b"x" * 100_000)
        assert task.delay(b"x" * 100_000)  # twice in one is no trouble
        lone = app.payloads.blobs.offload(b"y" * 100_000)
        assert sweep(app.engine, store, Progress(), LATER) == 1  # the other one only
        elsewhere = App("shop", kit.url, blobs=blobs_url)
        other = elsewhere.task(name="f")(len).delay(b"x" * 100_000)  # nobody waits for the transaction
        assert elsewhere.payloads.load(other.record().body)
        elsewhere.close()
        connection.commit()
    assert app.payloads.load(sent.record().body)
    with pytest.raises(BlobLost):
        app.payloads.load(lone)
    with psycopg.connect(address) as connection, app.transaction(connection):
        undone = task.delay(b"z" * 100_000)
        connection.rollback()
    assert undone.state == "UNKNOWN"
    assert sweep(app.engine, store, Progress(), LATER) == 1
    app.close()


def test_a_transaction_rolled_back_on_sqlite_leaves_a_file_that_is_found(tmp_path: Path) -> None:
    import apsw

    app = App("shop", f"sqlite:///{tmp_path / 'q.db'}")
    task = app.task(name="f")(len)
    task.delay(b"small")
    store = app.payloads.store
    assert store is not None
    connection = apsw.Connection(str(tmp_path / "q.db"))
    connection.execute("BEGIN IMMEDIATE")
    with app.transaction(connection):
        task.delay(b"x" * 100_000)
    connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    with app.transaction(connection):
        sent = task.delay(b"y" * 100_000)
    connection.execute("COMMIT")
    connection.close()
    assert len(files(tmp_path / "q.db-blobs")) == 2
    assert sweep(app.engine, store, Progress(), LATER) == 0
    assert remove_left_over(app.engine, store, LATER) == 1
    assert app.payloads.load(sent.record().body)
    app.close()


def test_workers_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between their beats, in a thread: what takes the store a while holds up neither beats nor runs."""
    from respool.worker import sweeping

    monkeypatch.setattr(sweeping, "PATIENCE", -1000.0)
    app = App("shop", f"sqlite:///{tmp_path / 'q.db'}", beat=0.1, worker_ttl=1.0)
    app.queue("default", retention=0)
    ran: list[int] = []
    task = app.task(name="f")(lambda data: ran.append(len(data)))
    for n in range(3):
        task.delay(b"%d" % n * 100_000)
    slow = threading.Event()
    removed = Store.remove

    def remove(self: Store, name: str) -> None:
        slow.wait(20)
        removed(self, name)

    monkeypatch.setattr(Store, "remove", remove)
    from respool.testing import work

    work(app)  # comes back, though the store does not
    assert ran == [100_000] * 3
    slow.set()
    eventually(lambda: not app.engine.has_blobs() or (work(app) and False), "what was trimmed is swept")
    assert files(tmp_path / "q.db-blobs") == []
    app.close()


@pytest.mark.parametrize("how", ["rolled back", "not appended"])
def test_what_was_stored_for_a_call_that_never_came_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Though it is the only large payload there ever was."""
    import apsw

    path = tmp_path / "q.db"
    monkeypatch.setattr(sweeping, "PATIENCE", -100_000.0)  # everything is older than that
    with App("shop", f"sqlite:///{path}") as app:
        task, engine = app.task(name="f")(len), app.engine
        if how == "rolled back":
            connection = apsw.Connection(str(path))
            connection.execute("BEGIN IMMEDIATE")
            with app.transaction(connection):
                task.delay(b"x" * 100_000)
            connection.execute("ROLLBACK")
            connection.close()
        else:

            def fails(row: Any) -> int:
                raise EngineUnavailable("the disk is full; nothing was sent")

            with monkeypatch.context() as patch:
                patch.setattr(engine, "append_row", fails)
                with pytest.raises(EngineUnavailable):
                    task.delay(b"x" * 100_000)
        assert len(files(tmp_path / "q.db-blobs")) == 1
        assert engine.has_blobs() == (how == "not appended")
        store = app.payloads.store
        assert store is not None
        sweeper = sweeping.Sweeper(lambda: nullcontext(engine), store)
        sweeper.start(engine)
        sweeper.join(10)
        assert files(tmp_path / "q.db-blobs") == []
