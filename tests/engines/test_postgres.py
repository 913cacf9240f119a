"""PostgreSQL's own hazards, G1 to G7: numbers are given out early and seen late, and locks are held for long.

The transactions that are in the way are real ones, on connections of the tests' own.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import quote

import psycopg
import pytest
from tests.engines.kits import TIMEOUT, PostgresKit
from tests.worker.support import eventually

from respool.delivery.admin import purge
from respool.delivery.claim import Request, claim
from respool.delivery.lapse import lapse
from respool.delivery.model import Change, Lease, NewCall, Parked, Settlement, Verdict, View
from respool.delivery.order import Claimant
from respool.delivery.settle import settle
from respool.delivery.spans import Span
from respool.engines import open_engine
from respool.engines.base import Conflict, Engine, Group, LeaseLost, Reads, Registration, Stream
from respool.engines.moving import Mark
from respool.engines.postgres import bells, partitions, retention, state, view, windows
from respool.engines.postgres import gaps as kept_gaps
from respool.engines.postgres import work as works
from respool.engines.postgres.appends import insert
from respool.engines.postgres.batch import Batch, Reply
from respool.engines.postgres.change import write_change
from respool.engines.postgres.connection import Bounded, connect
from respool.engines.postgres.partitions import SIZE
from respool.engines.postgres.sql import LIMITS_LOCK, quoted
from respool.errors import AppendUnknown, ConfigError, EngineError, EngineUnavailable, PartlyAppended
from respool.location import parse_url
from respool.record import Meta, Row, first_pos, id_of, new_head
from respool.replay import DeadFilter, check, plan_seek, purgeable, redrive, resume_seek, seek
from respool.replay import purge as purge_queue

T = TypeVar("T")
OLD = time.time() - 1000
CUT = OLD + 500
HOWS = ("row", "rows", "run")
PATIENCE = TIMEOUT / 2  # seconds in which what waits for nobody is done
numbers = itertools.count(1)


@pytest.fixture
def kit(session_database: str) -> Iterator[PostgresKit]:
    kit = PostgresKit(session_database, "full")
    yield kit
    kit.remove()


@pytest.fixture
def writers(engine: Any) -> Iterator[Callable[[], Writer]]:
    """Make transactions of somebody's own; those that are open in the end are undone."""
    made: list[Writer] = []

    def make() -> Writer:
        made.append(Writer(engine))
        return made[-1]

    yield make
    for writer in made:
        writer.close()


@pytest.fixture(autouse=True)
def seek_holders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could still fill a gap is asked of the locks at once; or never, but only of the snapshot.

    A snapshot knows the transactions of all databases: what other tests leave open keeps a gap open, too.
    """
    monkeypatch.setattr(kept_gaps, "LONG", -10.0 if getattr(request, "param", True) else 1e9)


both_ways = pytest.mark.parametrize("seek_holders", [False, True], indirect=True, ids=["snapshot", "locks"])


class Writer:
    """A transaction of somebody's own, that appends by the engine's own statements."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.db: psycopg.Connection[Any] = psycopg.connect(engine.options.conninfo, autocommit=True)

    def begin(self, isolation: str = "READ COMMITTED") -> Writer:
        self.db.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
        return self

    def append(self, log: int, size: int = 1, how: str = "rows", ids: Sequence[Any] = ()) -> list[int]:
        """Append so many records; return where they are."""
        sql, head = self._engine._sql, new_head(OLD)
        if how == "run":
            bound = self._engine._run_values(log, "add", [b"b"] * size, None, head, OLD)
            self.db.execute(sql["append_run"], bound, binary=True)
            ids = [head]
        elif how == "fresh":
            for _ in range(size):
                ids = [*ids, new_head(OLD)]
                bound = {"sequence": self._engine._sequence(log), "id": ids[-1], "task": "add", "body": b"b"}
                bound |= {"meta": None, "key": None, "time": int(OLD * 1e6), "said": "log 0 for "}
                self.db.execute(self._engine.ringing["append_fresh"], bound, binary=True)
        elif how == "row":
            ids = ids or [new_head(OLD)]
            bound = {"sequence": self._engine._sequence(log), "id": ids[0], "task": "add", "body": b"b"}
            bound |= {"meta": None, "key": None, "time": int(OLD * 1e6), "said": "log 0 for ", "patience": ""}
            self.db.execute(self._engine.ringing["append_row"], bound, binary=True)
        else:
            ids = ids or [new_head(OLD) for _ in range(size)]
            rows = [NewCall(log, "add", b"b", None, id, OLD) for id in ids]
            insert(self.db, sql, self._engine._sequence, rows, 0, None)
        schema = self._engine.options.schema
        found = self.db.execute(
            f"SELECT pos FROM {schema}.record WHERE pos >= %s AND id = ANY (%s) ORDER BY pos".encode(),
            (first_pos(log), list(ids)),
        )
        return [pos for (pos,) in found.fetchall()]

    def execute(self, statement: str, bound: Any = ()) -> Any:
        return self.db.execute(statement.encode(), bound)

    def commit(self) -> None:
        self.db.execute("COMMIT")

    def rollback(self) -> None:
        self.db.execute("ROLLBACK")

    def close(self) -> None:
        self.db.close()


class Reader:
    """A worker of a group: it settles and claims in one transaction, and keeps count."""

    def __init__(self, engine: Engine, group: Group, want: int = 100) -> None:
        self.engine, self.group, self.want = engine, group, want
        self.handed: list[int] = []
        self._lease: Lease | None = None
        self._turn = 0

    def exchange(self) -> list[int]:
        """Settle, and claim; return what was handed out."""
        before, lease, self._turn = self._lease, None, self._turn + 1
        request = Request(self.want, 1, 0, 1 << 40 | next(numbers), OLD, self._turn)

        def decide(view: View, change: Change) -> Lease | None:
            if before is not None:
                done = [(span.lo, span.hi) for span in before.spans]
                assert settle(view, change, Settlement(before.id, 1, done, started=OLD, ended=OLD))
            return claim(view, change, request)

        leases = (before.id,) if before else ()
        lease = self.engine.transact(Reads(self.group.id, leases, True, self.want, 8, OLD), decide)
        self._lease = lease
        got = [pos for span in lease.spans for pos in range(span.lo, span.hi)] if lease else []
        self.handed += got
        return got

    def leave_no_gap(self) -> None:
        """Look again until no gap is left, and find nothing else."""
        eventually(lambda: self.exchange() or not gaps(self.engine, self.group), "a gap stays")
        assert gaps(self.engine, self.group) == 0

    def drain(self) -> list[int]:
        """Work until there is nothing more to do; return what was handed out."""
        before, for_nothing = len(self.handed), 0
        while for_nothing < 1000:
            if self.exchange():
                for_nothing = 0
            elif self.engine.has_work(self.group.id, OLD, ()):
                for_nothing += 1
            else:
                return self.handed[before:]
        raise AssertionError("there is work, and none is handed out")


@contextmanager
def between(engine: Any, events: dict[int, Callable[[], object]]) -> Iterator[Callable[[], int]]:
    """Let things happen before the n-th statement of the engine's transactions; give how many there were.

    Not in a pipeline: each statement has been done before the next is sent.
    """
    db, count = engine._state.opened(), itertools.count()
    execute, said = db.execute, 0

    def hooked(*args: Any, **named: Any) -> Any:
        nonlocal said
        said = next(count)
        if said in events:
            events.pop(said)()
        return execute(*args, **named)

    db.execute, db.pipeline = hooked, lambda: nullcontext(SimpleNamespace(sync=lambda: None))
    try:
        yield lambda: said + 1
    finally:
        del db.execute, db.pipeline
    for event in events.values():  # in their order
        event()


def promptly(run: Callable[[], T]) -> T:
    """Return what a call gives; fail where it waits for somebody."""
    return started(run).result(PATIENCE)


def started(run: Callable[[], T]) -> Future[T]:
    """Run in a thread of its own, that nobody waits for."""
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(run())
        except BaseException as error:  # noqa: BLE001 whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future


def blocked(engine: Any, writer: Writer) -> None:
    """Return once a writer's statement waits for a lock."""
    schema_reader: psycopg.Connection[Any] = psycopg.connect(engine.options.conninfo, autocommit=True)
    with schema_reader as db:
        asked = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        eventually(lambda: db.execute(asked, (writer.db.info.backend_pid,)).fetchone() == (True,))


def tell(engine: Any, statement: str, bound: Any = ()) -> list[Any]:
    """Ask the engine's schema, or change it behind its back."""
    schema = engine.options.schema

    def run(db: Any) -> list[Any]:
        cursor = db.execute(statement.replace("respool.", f"{schema}.").encode(), bound)
        return cursor.fetchall() if cursor.description else []

    found: list[Any] = engine._writer.append(run)
    return found


def fill(engine: Engine, log: int, runs: int = 1, size: int = 1) -> None:
    for _ in range(runs):
        engine.append_run(log, "add", [b"x"] * size, None, new_head(OLD), OLD)


def row(log: int, id: Any = None) -> NewCall:
    return NewCall(log, "add", b"x", None, id or new_head(OLD), OLD)


def sound(engine: Engine) -> Any:
    report = check(engine)
    assert report.ok, [report.problems, [group.problems for group in report.groups]]
    return report


def gaps(engine: Engine, group: Group) -> int:
    return engine.counts(group).parked.get("gap", 0)


# What hangs, or breaks, at the commit


def test_a_beat_that_hangs_in_its_commit_is_no_other_beats_error(engine: Any, writers: Any) -> None:
    """Its worker gives it up, and beats again: the same number, for nobody sees the first yet."""
    worker = engine.register(Registration("shop", "one", "host", "boot", 1, OLD, {}))
    hanging = writers().begin()
    statement = engine._sql["beat"]
    assert hanging.db.execute(statement, (OLD, False, "{}", worker)).fetchone() == (1,)
    again = started(lambda: engine.beat(worker, True, {"pool": "solo"}, synced=True))
    waits = "SELECT %s = ANY (pg_blocking_pids(%s))"
    pids = hanging.db.info.backend_pid, engine._writer.opened().info.backend_pid
    eventually(lambda: engine._reader.read(lambda db: db.execute(waits, pids).fetchone()) == (True,))
    hanging.commit()
    assert again.result(PATIENCE) == 1
    (seen,) = engine.workers()
    assert (seen.beat, seen.draining, seen.info) == (1, True, {"pool": "solo"})
    assert engine.beat(worker, True, {}, synced=True) == 2


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("then", ["read-only", "moved", "no right"])
def test_what_broke_after_its_commit_is_never_refused(
    kit: PostgresKit, engine: Any, log: int, then: str, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the second try meets, the first is stored (P1, H20)."""
    hasty: Any = open_engine(parse_url(kit.url), "full", 0.5)
    tries = itertools.count()

    def breaking(real: Any) -> Any:
        return lambda batch, statement, *bound, **named: run(real, batch, statement, *bound, **named)

    def run(real: Any, batch: Batch, statement: Any, *bound: Any, **named: Any) -> Any:
        text = statement if isinstance(statement, bytes) else statement.text
        if b"INSERT INTO" not in text or batch is not hasty._writer.opened().batch:
            return real(batch, statement, *bound, **named)
        if next(tries) == 0:
            real(batch, statement, *bound, **named)
            pid = batch._db.info.backend_pid
            tell(engine, "SELECT pg_terminate_backend(%s, 5000)", (pid,))
        elif then == "read-only":  # a standby that is not promoted yet
            batch._db.execute("SET default_transaction_read_only = on")
        elif then == "moved":
            engine.set_mark(Mark("move", "closed", "sqlite:///elsewhere.db", OLD))
        else:
            batch._db.execute("SET ROLE pg_monitor")
        return real(batch, statement, *bound, **named)

    for name in ("run", "run_encoded"):
        monkeypatch.setattr(Batch, name, breaking(getattr(Batch, name)))
    now = time.time() if fresh else OLD
    sent = NewCall(log, "add", b"x", None, new_head(now), now)
    with pytest.raises(AppendUnknown) as told:
        hasty.append_row(sent)
    assert "nothing was sent" not in str(told.value)
    monkeypatch.undo()
    hasty.close()
    assert next(tries) > 1
    assert engine.find("", sent.id) is not None
    engine.set_mark(None)


# Early numbers, late commits: G1, G2, G3


@pytest.mark.parametrize("how", [*HOWS, "fresh"])
def test_a_late_commit_is_delivered_to_every_group(
    engine: Any, queue: Stream, main: Group, log: int, writers: Any, how: str
) -> None:
    late = writers().begin()
    mine = late.append(log, 2, how)
    fill(engine, log, size=3)
    replay = engine.create_group(queue, "shop", "v2", "replay", {}, engine.window(queue, None, None))
    follows = engine.create_group(queue, "shop", "audit", "subscription", {}, [(log, first_pos(log), None)])
    assert replay
    assert follows
    readers = [Reader(engine, group) for group in (main, replay, follows)]
    for reader in readers:
        assert len(reader.drain()) == 3
        assert gaps(engine, reader.group) == len(mine)
        assert engine.status(reader.group, mine[0]).parked is not None
    late.commit()
    for reader in readers:
        assert reader.drain() == mine
        reader.leave_no_gap()
        assert not engine.has_work(reader.group.id, OLD, ())
    sound(engine)


@pytest.mark.parametrize("how", [*HOWS, "fresh"])
@both_ways
def test_the_transaction_is_known_before_its_number(
    engine: Any, main: Group, log: int, writers: Any, how: str
) -> None:
    """G1: a writer stands still within its statement, with its number and before it stores anything."""
    tell(
        engine,
        "CREATE FUNCTION respool.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF current_setting('t.slow', true) = 'on' THEN PERFORM pg_advisory_xact_lock(1, 1); END IF; "
        "RETURN NEW; END $$",
    )
    for table in ("ids", "record"):
        tell(
            engine,
            f"CREATE TRIGGER wait BEFORE INSERT ON respool.{table} "
            "FOR EACH ROW EXECUTE FUNCTION respool.wait()",
        )
    late, holder, reader = writers(), writers(), Reader(engine, main)
    fill(engine, log)  # the first of each 32 numbers is logged, which takes an xid by itself
    reader.drain()
    late.execute("SET t.slow = 'on'")
    late.begin()
    holder.execute("SELECT pg_advisory_lock(1, 1)")
    appending = started(lambda: late.append(log, 1, how))
    blocked(engine, late)
    fill(engine, log)
    (other,) = reader.drain()
    assert other == first_pos(log) + 2
    holder.execute("SELECT pg_advisory_unlock(1, 1)")
    (pos,) = appending.result(PATIENCE)
    reader.drain()
    late.commit()
    assert reader.drain() == [pos]
    sound(engine)


@both_ways
def test_a_gap_waits_for_whoever_ran_when_it_was_seen(
    engine: Any, main: Group, log: int, writers: Any
) -> None:
    """G2: what a snapshot calls the next transaction may be one that has its number, and runs."""
    reader = Reader(engine, main)
    for _ in range(10):  # others' transactions in this server may hide it, now and then
        early, late = writers().begin(), writers().begin()
        early.execute("SELECT pg_current_xact_id()")
        mine, others = late.append(log), early.append(log)
        early.commit()
        assert reader.drain() == others
        reader.drain()
        late.commit()
        assert reader.drain() == mine
        early.close()
        late.close()
    sound(engine)


ENDS: dict[str, Callable[[Writer], object]] = {
    "commit": lambda writer: writer.commit(),
    "rollback": lambda writer: writer.rollback(),
    "savepoint": lambda writer: (writer.execute("ROLLBACK TO SAVEPOINT s"), writer.commit()),
}


@pytest.mark.parametrize("end", ENDS)
@both_ways
def test_wherever_it_falls_in_a_claim(
    engine: Any, main: Group, log: int, writers: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """G2, G3, G4: it appends, and ends, before each pair of statements of two claims that settle too."""
    monkeypatch.setattr(kept_gaps, "MAX_GAPS", 100_000)  # in another database one may be open all the while
    late, other, reader = writers(), writers(), Reader(engine, main, 2)
    reader.drain()
    late.append(log)
    reader.exchange()  # so that the first of the claims has something to settle
    with between(engine, {}) as statements:
        reader.exchange()
        reader.exchange()
        rounds = statements() + 10  # others, with gaps
    step = 1 if end == "commit" else 5
    pairs = itertools.combinations_with_replacement(range(0, rounds, step), 2)
    for first, second in ((first, second) for first, second in pairs if first <= rounds // 2):
        wanted: list[int] = []

        def append(wanted: list[int] = wanted) -> None:
            late.begin()
            if end == "savepoint":
                wanted += late.append(log)
                late.execute("SAVEPOINT s")
            gone = late.append(log)
            wanted += gone if end == "commit" else []
            wanted += other.append(log)

        def finish() -> None:
            ENDS[end](late)

        events = {first: append, second: finish} if first < second else {first: lambda: (append(), finish())}
        other.append(log)
        reader.exchange()
        before = len(reader.handed)
        with between(engine, events):
            reader.exchange()
            reader.exchange()
        reader.drain()
        assert sorted(reader.handed[before:]) == sorted(wanted), (first, second)
    reader.leave_no_gap()
    sound(engine)


@both_ways
def test_none_lost_and_none_doubled(
    kit: PostgresKit, engine: Any, queue: Stream, main: Group, log: int
) -> None:
    """Five who write (rows, runs, savepoints, rollbacks, the same ids, late commits) and two who claim."""
    replay = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first_pos(log), None)])
    assert replay is not None
    seed = random.randrange(1 << 32)
    print("seed", seed)
    groups, stop = [main, main, replay], threading.Event()
    readers = [Reader(kit.open(), group, want) for group, want in zip(groups, (7, 50, 20), strict=True)]
    shared = [new_head(OLD) for _ in range(500)]
    until = time.monotonic() + 2.5

    def write(n: int) -> list[int]:
        chance, stored = random.Random(seed + n), []
        open_ones = [Writer(engine) for _ in range(3)]
        pending: list[list[int] | None] = [None] * 3
        while time.monotonic() < until:
            at = chance.randrange(3)
            writer, known = open_ones[at], pending[at]
            if known is not None and chance.random() < 0.4:
                if chance.random() < 0.7:
                    writer.commit()
                    stored += known
                else:
                    writer.rollback()
                pending[at] = None
                continue
            if known is None:
                writer.begin()
                known = pending[at] = []
            what = chance.random()
            if what < 0.6:
                known += writer.append(log, chance.randrange(1, 6), chance.choice(HOWS))
            elif what < 0.8:
                writer.execute("SAVEPOINT s")
                writer.append(log, chance.randrange(1, 4), chance.choice(HOWS))
                writer.execute("ROLLBACK TO SAVEPOINT s")
            elif not known:  # one alone, so that no two wait for each other
                writer.rollback()
                pending[at] = None
                engine.append_row(row(log, shared[chance.randrange(len(shared))]))
        for writer, known in zip(open_ones, pending, strict=True):
            if known is not None:
                writer.commit()
                stored += known
            writer.close()
        return stored

    def read(reader: Reader) -> None:
        while not stop.is_set():
            reader.exchange()
        reader.exchange()  # settles the last

    with ThreadPoolExecutor(8) as pool:
        reading = [pool.submit(read, reader) for reader in readers]
        writing = [pool.submit(write, n) for n in range(5)]
        try:
            stored = [pos for each in writing for pos in each.result()]
        finally:
            stop.set()
        for each in reading:
            each.result()
    for reader in readers:
        reader.drain()
        reader.leave_no_gap()
    schema = engine.options.schema
    there = [pos for (pos,) in tell(engine, f"SELECT pos FROM {schema}.record ORDER BY pos")]
    assert set(stored) <= set(there)
    for handed in (readers[0].handed + readers[1].handed, readers[2].handed):
        assert [pos for pos, times in Counter(handed).items() if times > 1] == []
        assert sorted(handed) == there
    report = sound(engine)
    assert [(group.done, group.pending, group.leased) for group in report.groups] == [(len(there), 0, 0)] * 2
    assert len(there) > 100, "it was busy"


# Gaps: G4


def test_one_left_open_delays_nothing_but_its_own(
    engine: Any, main: Group, log: int, writers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many gaps it keeps: others', behind them, are looked at all the same."""
    monkeypatch.setattr(kept_gaps, "A_CLAIM", 5)
    slow, quick, reader = writers().begin(), writers().begin(), Reader(engine, main)
    mine = []
    for _ in range(8):
        mine += slow.append(log)
        fill(engine, log)
    quicks = quick.append(log)
    fill(engine, log)
    assert len(reader.drain()) == 9
    quick.commit()
    assert reader.drain() == quicks
    assert gaps(engine, main) == 8
    fill(engine, log)
    assert len(reader.drain()) == 1
    slow.commit()
    assert sorted(reader.drain()) == mine
    assert gaps(engine, main) == 0


def test_beyond_the_cap_the_cursor_waits_visibly(
    engine: Any, main: Group, log: int, writers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_gaps, "MAX_GAPS", 3)
    slow, quick, reader = writers().begin(), writers().begin(), Reader(engine, main)
    mine, others = slow.append(log), quick.append(log)
    for _ in range(5):
        fill(engine, log)
        mine += slow.append(log)
    fill(engine, log)
    assert len(reader.drain()) == 3
    counts = engine.counts(main)
    assert (counts.pending, counts.parked) == (3, {"gap": 4})
    assert engine.gaps(main.id)[:3] == (4, 3, 3)
    assert not engine.has_work(main.id, OLD, ()), "or an idle worker would ask again and again"
    quick.commit()
    assert engine.has_work(main.id, OLD, ())
    assert reader.drain() == others
    assert engine.counts(main).pending == 3
    slow.commit()
    assert len(reader.drain()) == 3 + len(mine)
    assert (engine.counts(main).pending, gaps(engine, main)) == (0, 0)
    sound(engine)


@pytest.mark.parametrize("found", [1, 3, 10, 11])
@pytest.mark.parametrize("ended", ["commit", "half"])
def test_what_a_limit_cut_off_is_not_void(
    engine: Any, main: Group, log: int, writers: Any, monkeypatch: pytest.MonkeyPatch, found: int, ended: str
) -> None:
    monkeypatch.setattr(kept_gaps, "FOUND", found)
    slow, other, reader = writers().begin(), writers().begin(), Reader(engine, main)
    mine: list[int] = []
    for _ in range(10):
        mine += slow.append(log)
        if ended == "half":
            other.append(log)
    fill(engine, log)
    assert len(reader.drain()) == 1
    slow.commit()
    other.rollback()
    assert sorted(reader.drain()) == mine
    assert gaps(engine, main) == 0
    sound(engine)


@both_ways
def test_numbers_that_were_rolled_back_leave_no_gap(
    engine: Any, queue: Stream, main: Group, log: int, writers: Any
) -> None:
    undone, reader = writers().begin(), Reader(engine, main)
    undone.append(log, 5)
    fill(engine, log)
    reader.drain()
    assert gaps(engine, main) == 5
    assert engine.trim(queue, CUT, 100) == 0, "nobody knows yet what will be there"
    undone.rollback()
    eventually(lambda: engine.has_work(main.id, OLD, ()), "nothing is to be run, but something to be done")
    before = len(reader.handed)
    reader.leave_no_gap()
    assert len(reader.handed) == before
    assert not engine.has_work(main.id, OLD, ())
    assert engine.trim(queue, CUT, 100) == 1


@pytest.mark.parametrize("waits", ["reads", "writes"])
def test_a_long_transaction_that_appends_nothing_keeps_no_gap(
    engine: Any, main: Group, log: int, writers: Any, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    monkeypatch.setattr(kept_gaps, "LONG", -10.0)
    foreign, undone, reader = writers().begin("REPEATABLE READ"), writers().begin(), Reader(engine, main)
    foreign.execute(f"SELECT count(*), pg_current_xact_id() FROM {engine.options.schema}.record")
    if waits == "writes":
        foreign.execute(f"INSERT INTO {engine.options.schema}.counter VALUES (0, 'x', 1)")
    undone.append(log, 5)
    fill(engine, log)
    reader.drain()
    assert gaps(engine, main) == 5
    undone.rollback()
    reader.exchange()
    assert gaps(engine, main) == 0
    late = writers().begin()
    mine = late.append(log)
    fill(engine, log)
    assert len(reader.drain()) == 1
    reader.exchange()
    assert gaps(engine, main) == 1
    late.commit()
    assert reader.drain() == mine


def test_a_purge_takes_all_there_is(engine: Any, main: Group, log: int) -> None:
    """However much more that is than a claim is shown."""
    for _ in range(3):
        fill(engine, log, size=2000)
    ended = engine.transact(Reads(main.id, positions=True), lambda v, c: purge(v, c, [], b"", OLD))
    assert (ended, engine.counts(main).pending) == (6000, 0)


@pytest.mark.parametrize("sees", [3, 50_000])
@pytest.mark.parametrize("how", ["purge", "seek", "lapse"])
def test_what_commits_later_is_not_ended(
    engine: Any, queue: Stream, main: Group, log: int, writers: Any, monkeypatch: Any, how: str, sees: int
) -> None:
    """Be its number near or beyond what is seen at once: it is kept as a gap, and counts for nothing."""
    monkeypatch.setattr(view, "PASSED", sees)
    first, late, mine = first_pos(log), writers().begin(), []
    for _ in range(3):
        mine += late.append(log, 2)
        fill(engine, log, 1, 4)
    others = [first + n for n in range(18) if first + n not in mine]
    if how == "purge":
        assert purgeable(engine, "default", app="shop") == 12
        assert purge_queue(engine, "default", app="shop") == 12
        assert purgeable(engine, "default", app="shop") == 0
    elif how == "seek":
        plan = plan_seek(engine, queue, main, "latest")
        assert plan.passed == {"add": 12}
        seek(engine, main, plan)
    else:
        lost = iter(
            lambda: engine.transact(
                Reads(main.id, positions=True), lambda v, c: lapse(v, c, {log: first + 18}, OLD)
            ),
            0,
        )
        assert sum(lost) == 12
    assert {engine.status(main, pos).how for pos in others} == {"trimmed" if how == "lapse" else "purged"}
    assert engine.counts(main).pending == 0
    assert gaps(engine, main) == 6
    late.commit()
    assert [engine.status(main, pos).outcome for pos in mine] == [None] * 6
    assert Reader(engine, main).drain() == mine
    assert {engine.status(main, pos).how for pos in mine} == {"done"}
    sound(engine)


@pytest.mark.parametrize("how", ["purge", "seek"])
def test_where_there_is_no_room_for_gaps_it_goes_no_further(
    engine: Any, queue: Stream, main: Group, log: int, writers: Any, monkeypatch: Any, how: str
) -> None:
    monkeypatch.setattr(kept_gaps, "MAX_GAPS", 1)
    late, mine = writers().begin(), []
    for _ in range(3):
        mine += late.append(log)
        fill(engine, log, 1, 4)
    if how == "purge":
        assert purge_queue(engine, "default", app="shop") == 4
        assert engine.counts(main).pending == 8
    else:
        with pytest.raises(ConfigError, match="resume"):
            seek(engine, main, plan_seek(engine, queue, main, "latest"))
    late.commit()
    if how == "purge":
        assert len(Reader(engine, main).drain()) == 8 + 3
    else:
        assert resume_seek(engine, main)
        assert set(Reader(engine, main).drain()) <= set(mine)
    sound(engine)


def test_known_ids_burn_no_numbers(engine: Any, log: int) -> None:
    head, ids = new_head(OLD), [new_head(OLD) for _ in range(3)]
    rows = [row(log, id) for id in ids]
    asked = f"SELECT last_value FROM respool.log_{log}"
    engine.append_run(log, "add", [b"x"] * 4, None, head, OLD)
    engine.append_rows(rows)
    before = tell(engine, asked)
    engine.append_run(log, "add", [b"x"] * 4, None, head, OLD)
    engine.append_rows(rows + rows)
    assert isinstance(engine.append_row(rows[0]), int)
    assert isinstance(engine.append_row(NewCall(log, "add", b"other", None, ids[0], OLD)), Conflict)
    assert engine.append_rows([row(log, id_of(head, 2))]) == []
    with pytest.raises(LeaseLost):
        engine.append_rows([row(log)], (1, 1))
    assert tell(engine, asked) == before


def test_a_group_is_dropped_beside_a_settlement_that_frees_slots(
    kit: PostgresKit, engine: Any, queue: Stream, main: Group, log: int, writers: Any
) -> None:
    """Both change what waits for a bucket, of several groups: by turns, or each waits for the other."""
    dropped = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first_pos(log), None)])
    for group in (dropped, main):
        tell(engine, "INSERT INTO respool.waiting (grp, bucket) VALUES (%s, 1)", (group.id,))
    settles, schema = writers().begin(), engine.options.schema
    settles.execute("SELECT pg_advisory_xact_lock(%s, 0)", (LIMITS_LOCK,))
    settles.execute(f"UPDATE {schema}.waiting SET next = 0 WHERE grp = %s", (main.id,))
    dropping = started(lambda: kit.open().drop_group(dropped))
    with psycopg.connect(engine.options.conninfo, autocommit=True) as db:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        eventually(lambda: db.execute(asked, (settles.db.info.backend_pid,)).fetchone() == (1,))
    settles.execute(f"UPDATE {schema}.waiting SET next = 0 WHERE grp = %s", (dropped.id,))
    settles.commit()
    dropping.result(PATIENCE)
    assert dropped not in engine.groups()
    assert tell(engine, "SELECT grp, next FROM respool.waiting") == [(main.id, 0)]


# Plans: G5


def buffers(engine: Any, name: str, bound: Any) -> tuple[int, set[str]]:
    """Return how many pages a statement looks at, prepared as for any values; and the kinds of its nodes."""
    with psycopg.connect(engine.options.conninfo) as db:
        db.execute("SET plan_cache_mode = force_generic_plan")
        db.execute("SELECT set_config('respool_gap.oldest', '0', true)")
        db.execute(engine._sql[name], bound)  # what a connection looks up once, in the catalogue
        statement = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + engine._sql[name]
        (plan,) = db.execute(statement, bound).fetchone()[0]  # type: ignore[index]
    kinds: set[str] = set()

    def walk(node: Any) -> None:
        kinds.add(f"{node['Node Type']} {node.get('Relation Name', '')}".strip())
        for each in node.get("Plans", ()):
            walk(each)

    walk(plan["Plan"])
    return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"], kinds


def test_a_claim_looks_at_few_pages_of_many(engine: Any, main: Group, log: int) -> None:
    for _ in range(20):
        fill(engine, log, size=10_000)
    first = first_pos(log)
    reader = Reader(engine, main, 4096)
    reader.exchange()
    for at in (first + 4096, first + 100_000, first + 199_999):
        tell(engine, "INSERT INTO respool.cursor (grp, log, cursor) VALUES (%s, %s, %s)", (main.id, log, at))
        now = {"grp": main.id, "now": OLD, "tasks": []}
        looks = {
            "claimable": {"grp": main.id, "want": 100},
            "gaps": {"grp": main.id, "limit": 1000, "ranges": 200},
            "may_have_work": now,
            "positions": (main.id,),
        }
        for name, bound in looks.items():
            pages, kinds = buffers(engine, name, bound)
            assert pages < 60, (name, pages, kinds)
            assert not any(kind.startswith("Seq Scan record") for kind in kinds), (name, kinds)


def test_a_window_is_found_by_time(engine: Any, queue: Stream, log: int, monkeypatch: Any) -> None:
    """Not by reading the log from either end: by the index on time, or where it begins and ends at once."""
    monkeypatch.setattr(windows, "NEAR", 1000)
    first = first_pos(log)
    for n in range(10):
        engine.append_run(log, "add", [b"x"] * 10_000, None, new_head(OLD), OLD + 60 * n)
    schema = engine.options.schema
    index = f"{schema}.record_{log}_0_time_idx"
    tell(engine, "SELECT brin_summarize_new_values(%s::regclass)", (index,))
    tell(engine, "ANALYZE respool.record")
    db, pages = engine._reader.opened(), 0
    execute = db.execute

    def counting(statement: Any, bound: Any = (), **named: Any) -> Any:
        nonlocal pages
        if b".record" in statement:
            explained = execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, bound)
            plan = explained.fetchone()[0][0]["Plan"]
            pages += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        return execute(statement, bound, **named)

    db.execute = counting
    for since, until, lo, hi in (
        (OLD + 270, OLD + 330, 50_000, 60_000),
        (None, OLD + 600, 0, 100_000),
        (OLD, None, 0, 100_000),
        (OLD + 600, None, 100_000, 100_000),
    ):
        pages = 0
        assert engine.window(queue, since, until) == [(log, first + lo, first + hi)]
        assert pages < 400, (since, until, pages)
    del db.execute


def test_claims_read_no_more_behind_an_open_transaction(engine: Any, main: Group, log: int) -> None:
    """Nothing that was ever updated or deleted can be cleaned up; nothing of it is looked at either."""
    fill(engine, log, size=2200)
    reader = Reader(engine, main, 1)
    with psycopg.connect(engine.options.conninfo) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")  # no xid: it would keep the gaps of other databases' tests open
        reader.exchange()
        before, _ = buffers(engine, "claimable", {"grp": main.id, "want": 1})
        for n in range(2000):
            if n % 400 == 399:
                engine.tidy()
            reader.exchange()
        after, _ = buffers(engine, "claimable", {"grp": main.id, "want": 1})
        statements = {
            "returned": {"grp": main.id, "now": OLD, "most": 8, "lanes": 500},
            "oldest_writer": {"grp": main.id, "before": OLD},
            "may_have_work": {"grp": main.id, "now": OLD, "tasks": []},
        }
        pages = {name: buffers(engine, name, bound)[0] for name, bound in statements.items()}
    assert after < before + 10
    assert max(pages.values()) < 40, pages


def test_old_dead_letters_are_found_without_a_look_at_the_young(engine: Any, main: Group, log: int) -> None:
    dead = [Parked(first_pos(log) + n, "dead", None, "add", error=b"e" * 1500, at=OLD) for n in range(5000)]
    engine.transact(Reads(main.id), lambda view, change: change.parked.extend(dead))
    tell(engine, "ANALYZE respool.parked")
    for name, bound in (
        ("dead_before", (main.id, "add", OLD, 100)),
        ("dead_tasks", {"grp": main.id}),
    ):
        pages, kinds = buffers(engine, name, bound)
        assert pages < 30, (name, kinds)


def test_old_versions_are_passed_over_once_behind_an_open_transaction(
    engine: Any, main: Group, log: int
) -> None:
    """Each second they are looked for: what stays of those deleted must not be read each time."""
    worker = engine.register(Registration("shop", "w", "h", "b", 1, OLD, {}))
    with psycopg.connect(engine.options.conninfo) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")
        for _ in range(2):
            tell(
                engine,
                "INSERT INTO respool.cursor (grp, log, cursor) "
                "SELECT %s, %s, %s FROM generate_series(1, 2500)",
                (main.id, log, first_pos(log)),
            )
            tell(
                engine,
                "INSERT INTO respool.beat (worker, beat, beaten, draining, info) "
                "SELECT worker, beat + n, 0, false, info "
                "FROM (SELECT * FROM respool.beat ORDER BY beat DESC LIMIT 1) b, generate_series(1, 2500) n",
            )
            for _ in range(4):
                engine.tidy()
        with asked_of(engine, ("old_cursors", "old_beats")) as asked:
            engine.tidy()
        pages = {name: buffers(engine, name, bound) for name, bound in asked.items()}
    assert pages.keys() == {"old_cursors", "old_beats"}
    assert max(count for count, _ in pages.values()) < 40, pages
    assert tell(engine, "SELECT count(*) FROM respool.cursor WHERE grp = %s", (main.id,)) == [(1,)]
    assert tell(engine, "SELECT beat FROM respool.beat WHERE worker = %s", (worker,)) == [(5000,)]
    assert engine.beat(worker, False, {}, synced=False) == 5001
    engine.tidy()
    assert tell(engine, "SELECT beat FROM respool.beat WHERE worker = %s", (worker,)) == [(5001,)]


@contextmanager
def asked_of(engine: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give with what values the engine runs statements."""
    db, asked = engine._state.opened(), dict[str, Any]()
    execute, texts = db.execute, {engine._sql[name]: name for name in names}

    def noted(statement: Any, bound: Any = (), **named: Any) -> Any:
        if statement in texts:
            asked[texts[statement]] = bound
        return execute(statement, bound, **named)

    db.execute = noted
    try:
        yield asked
    finally:
        del db.execute


def test_what_workers_ask_again_and_again_looks_at_no_partition(
    engine: Any, queue: Stream, main: Group
) -> None:
    """A statement that may touch every partition is planned, and begun, for all: of other queues, too."""
    engine.create_stream("queue", "shop", "wide", 30, {"ordered": True})
    asked: dict[str, Any] = {
        "may_have_work": {"grp": main.id, "now": OLD, "tasks": []},
        "numbers": (main.id,),
        "oldest_writer": {"grp": main.id, "before": OLD},
    }
    for name, bound in asked.items():
        _, kinds = buffers(engine, name, bound)
        assert not any("record" in kind or "outcome" in kind for kind in kinds), (name, kinds)


def test_numbers_that_brought_no_record_mislead_an_ordered_claim_once(engine: Any, writers: Any) -> None:
    wide = engine.create_stream("queue", "shop", "wide", 20, {"ordered": True})
    group = next(each for each in engine.groups() if each.stream == wide.id)
    gone = writers().begin()
    for log in wide.logs:
        gone.append(log)
    gone.rollback()
    claims = 0

    def claimed() -> list[int]:
        nonlocal claims
        claims += 1
        who = Claimant(1, 0, 10, claims)
        request = Request(10, 1, 0, 1 << 40 | next(numbers), OLD, claims, ordered=who)
        reads = Reads(group.id, (), True, 10, 8, OLD, ordered=who)
        lease = engine.transact(reads, lambda view, change: claim(view, change, request))
        return [pos for span in lease.spans for pos in range(span.lo, span.hi)] if lease else []

    with asking(engine, "keys_ahead") as asked:
        assert claimed() == []
        assert len(asked) == len(wide.logs), "each was given a number, and may have a record"
        assert claimed() == []
        assert len(asked) == len(wide.logs), "now records are looked at, not numbers"
        fill(engine, wide.logs[7], size=3)
        late = writers().begin()
        mine = late.append(wide.logs[3])
        assert claimed() == [first_pos(wide.logs[7]) + 1 + n for n in range(3)]
        late.commit()
        assert claimed() == mine
        assert len(asked) == len(wide.logs) + 2
    assert claimed() == []
    assert not engine.has_work(group.id, OLD, ())


@contextmanager
def asking(engine: Any, name: str) -> Iterator[list[Any]]:
    """Give what a statement is asked with by the engine's transactions."""
    batch, asked = engine._state.opened().batch, list[Any]()
    execute = batch.execute

    def noted(statement: Any, bound: Any = (), /, *, binary: bool = False) -> Any:
        if statement == engine._sql[name]:
            asked.append(bound)
        return execute(statement, bound, binary=binary)

    batch.execute = noted
    try:
        yield asked
    finally:
        del batch.execute


def test_one_look_finds_what_outlived_its_partition(
    engine: Any, queue: Stream, main: Group, log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of however many spans: a thousand dead letters that are given back are as many."""
    first = first_pos(log)
    fill(engine, log, 1, 600)
    bury(engine, main, range(first, first + 600, 2))
    tell(
        engine,
        "WITH gone AS (DELETE FROM respool.record WHERE pos = ANY (%s) RETURNING *) "
        "INSERT INTO respool.kept SELECT * FROM gone",
        ([first + 300, first + 598],),
    )
    looked, asked = engine._sql["rows_kept"], 0

    def counted(real: Any) -> Any:
        def execute(self: Any, statement: Any, *rest: Any, **named: Any) -> Any:
            nonlocal asked
            asked += statement == looked
            return real(self, statement, *rest, **named)

        return execute

    for holder, name in ((Batch, "run"), (Batch, "execute"), (Bounded, "execute")):
        monkeypatch.setattr(holder, name, counted(getattr(holder, name)))
    spans = [Span(pos, pos + 1) for pos in range(first + 598, first - 1, -2)]
    rows = engine.rows(spans)
    assert [row[0] for row in rows] == [span.lo for span in spans]
    assert asked == 1


def test_who_has_slots_is_found_by_an_index(engine: Any, main: Group, log: int) -> None:
    """However many leases there are: they were all looked at, where a limit was claimed from."""
    tell(
        engine,
        "INSERT INTO respool.lease (id, grp, owner, child, spans, since, admitted) "
        "SELECT n, %s, CASE WHEN n %% 1000 <> 7 THEN 1 END, 0, '', 0, "
        "CASE WHEN n %% 1000 < 8 THEN ''::bytea END "
        "FROM generate_series(1, 20000) AS n",
        (main.id,),
    )
    tell(engine, "ANALYZE respool.lease")
    pages, kinds = buffers(engine, "holders", ())
    assert pages < 100, (pages, kinds)
    assert not any(kind.startswith("Seq Scan") for kind in kinds), kinds


def test_a_fresh_record_is_appended_without_a_look(engine: Any, queue: Stream, log: int) -> None:
    """By a statement of its own; where that cannot do it, as any other."""
    now = time.time()
    fresh = [NewCall(log, "add", b"%d" % n, None, new_head(now), now) for n in range(3)]
    places = [engine.append_row(each) for each in fresh]
    assert places == [first_pos(log) + n for n in range(3)]
    assert engine.append_row(fresh[1]) == places[1], "sent again, as where nobody knows whether it was stored"
    taken = NewCall(log, "add", b"other", None, fresh[1].id, now)
    assert engine.append_row(taken) == Conflict(0, places[1], same=False)
    assert [each.body for each in engine.records(first_pos(log), first_pos(log) + SIZE, 10)] == [
        b"0",
        b"1",
        b"2",
    ]
    tell(engine, f"SELECT setval('respool.log_{log}', %s)", (first_pos(log) + SIZE - 1,))
    crossing = NewCall(log, "add", b"x", None, new_head(now), now)
    assert engine.append_row(crossing) >= first_pos(log) + SIZE, "the next partition was made"
    with pytest.raises(EngineError, match="does not exist"):
        engine.append_row(NewCall(log + 1000, "add", b"x", None, new_head(now), now))


def test_a_fresh_record_is_stored_as_any_other(engine: Any, log: int) -> None:
    """Its values are encoded here, the others' by the driver."""
    now = time.time()
    meta = Meta(headers={"é": "ü"}, due=now + 5)
    places = {}
    for task, body, packed, key in (
        ("add", b"", None, None),
        ("größe 😀 'x' %s \\", b"\0\xff%", meta.packed(), 0),
        ("a" * 200, b"x" * 9000, meta.packed(), 0x7FFF_FFFF),
        ("add", b"b", None, -0x8000_0000),
    ):
        fresh = NewCall(log, task, body, packed, new_head(now), now, key)
        known = NewCall(log, task, body, packed, new_head(OLD), now, key)
        places[engine.append_row(fresh)] = engine.append_row(known)
    stored = {
        row[0]: row[1:]
        for row in tell(engine, "SELECT pos, task, body, meta, seq, time, key FROM respool.record")
    }
    assert len(stored) == 8
    assert all(stored[one] == stored[other] for one, other in places.items())


@pytest.mark.parametrize("name", ["Shop", "user", "a b.c-1", "größe"])
def test_a_schema_may_be_called_like_that(session_database: str, name: str) -> None:
    """A word of SQL's, or what is none without quotes."""
    called = name if name == "user" else f"{name}{uuid.uuid4().hex[:8]}"
    url = f"{session_database}?schema={quote(called)}"
    engine: Any = open_engine(parse_url(url), "full", 5.0)
    try:
        (log,) = engine.create_stream("queue", "shop", "default", 1, {}).logs
        main = next(group for group in engine.groups() if group.name == "main")
        sleeper = engine.sleeper([log], 1)
        sleeper.prepare()
        now = time.time()
        rows = [NewCall(log, "add", b"%d" % n, None, new_head(now), now) for n in range(6)]
        engine.append_row(rows[0])
        assert sleeper.sleep(5.0)
        sleeper.close()
        engine.append_row(row(log))
        engine.append_rows(rows[1:3])
        engine.append_many(rows[3:])
        engine.append_run(log, "add", [b"x", b"y"], None, new_head(now), now)
        assert engine.append_row(rows[4]) == first_pos(log) + 5
        assert Reader(engine, main).exchange() == [first_pos(log) + n for n in range(9)]
        sound(engine)
    finally:
        engine._writer.append(lambda db: db.execute(f"DROP SCHEMA {quoted(called)} CASCADE".encode()))
        engine.close()


def test_many_records_cross_into_partitions_that_are_missing(engine: Any) -> None:
    wide = engine.create_stream("queue", "shop", "wide", 3, {"ordered": True})
    now = time.time()
    for log in wide.logs[:2]:
        tell(engine, f"SELECT setval('respool.log_{log}', %s)", (first_pos(log) + SIZE - 5,))
    rows = [NewCall(wide.logs[n % 3], "add", b"%d" % n, None, new_head(now), now) for n in range(60)]
    engine.append_many(rows)
    for log, lo, hi in engine.bounds(wide):
        assert [each.body for each in engine.records(lo, hi, 100)] == [r.body for r in rows if r.log == log]
    assert engine.append_rows([r for r in rows if r.log == wide.logs[0]]) == [], "they are known"


def test_old_versions_of_cursors_and_beats_go(engine: Any, main: Group, log: int) -> None:
    fill(engine, log, size=50)
    worker = engine.register(Registration("shop", "w", "h", "b", 1, OLD, {}))
    reader = Reader(engine, main, 1)
    for _ in range(30):
        reader.exchange()
        assert engine.beat(worker, False, {}, synced=False)
    ((cursors, beats),) = tell(
        engine, "SELECT (SELECT count(*) FROM respool.cursor), (SELECT count(*) FROM respool.beat)"
    )
    assert (cursors, beats) == (31, 31)
    engine.tidy()
    assert tell(engine, "SELECT log, cursor FROM respool.cursor") == [(log, first_pos(log) + 30)]
    assert tell(engine, "SELECT beat FROM respool.beat") == [(30,)]
    assert engine.positions(main)[0].cursor == first_pos(log) + 30
    assert engine.beat(worker, False, {}, synced=False) == 31
    assert len(reader.exchange()) == 1


# Partitions: G6


def leap(engine: Any, log: int, offset: int) -> int:
    """Let a log's next number be at this offset, as if all before had been given out; return the position."""
    tell(engine, "SELECT setval(%s, %s, false)", (engine._sequence(log), first_pos(log) + offset))
    return first_pos(log) + offset


def tables(engine: Any, log: int) -> list[str]:
    return [
        name
        for (name,) in tell(
            engine,
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' "
            "AND relname ~ %s ORDER BY relname",
            (engine.options.schema, f"^[a-z]+_{log}_[0-9]+$"),
        )
    ]


def appended_by(engine: Any, main: Group, log: int) -> dict[str, Callable[[], object]]:
    def settled_with_calls() -> None:
        engine.transact(Reads(main.id), lambda view, change: change.calls.extend(row(log) for _ in range(5)))

    return {
        "row": lambda: engine.append_row(row(log)),
        "rows": lambda: engine.append_rows([row(log) for _ in range(5)]),
        "run": lambda: fill(engine, log, size=5),
        "settlement": settled_with_calls,
    }


@pytest.mark.parametrize("how", ["row", "rows", "run", "settlement"])
@pytest.mark.parametrize("away", [0, 7])
def test_a_partition_that_is_missing_is_made_and_nobody_waits(
    engine: Any, main: Group, log: int, writers: Any, how: str, away: int
) -> None:
    """While a transaction that has appended, and settled something, is open."""
    slow = writers().begin()
    (mine,) = slow.append(log)
    end = leap(engine, log, SIZE + away * SIZE - (0 if how == "row" else 2))
    for _ in range(2 if how == "row" else 1):
        promptly(appended_by(engine, main, log)[how])
    (_, _, last) = engine.bounds(engine.streams()[0])[0]
    assert last > end
    assert engine.counts(main).pending == (2 if how == "row" else 5)
    slow.append(log)
    slow.commit()
    reader = Reader(engine, main)
    assert len(reader.drain()) == (4 if how == "row" else 7)
    assert mine in reader.handed
    sound(engine)


def test_many_write_across_a_boundary_while_others_drop_what_is_old(
    kit: PostgresKit, engine: Any, queue: Stream, main: Group, log: int
) -> None:
    """G6: six who write, in every way and in transactions of their own, two who claim, two who drop."""
    fill(engine, log, 2, 50)
    first = Reader(engine, main)
    first.drain()
    leap(engine, log, SIZE - 300)
    stop, readers = threading.Event(), [Reader(kit.open(), main, 40) for _ in range(2)]

    def write(n: int) -> None:
        own, writer = kit.open(), Writer(engine)
        for turn in range(20):
            if n % 3 == 0:
                appended_by(own, main, log)[("row", "rows", "run", "settlement")[turn % 4]]()
                continue
            for again in (False, True):  # the partition of its numbers may be missing: then it is made
                writer.begin()
                try:
                    writer.append(log, 5, HOWS[(n + turn) % 3])
                except psycopg.errors.CheckViolation:
                    assert not again
                    writer.rollback()
                    own.append_row(row(log))
                else:
                    writer.commit() if turn % 4 else writer.rollback()
                    break
        writer.close()

    def read(reader: Reader) -> None:
        while not stop.is_set():
            reader.exchange()
        reader.exchange()

    def cut(own: Engine) -> None:
        while not stop.is_set():
            own.trim(queue, CUT, 500)
            own.tidy()

    with ThreadPoolExecutor(10) as pool:
        others = [pool.submit(read, reader) for reader in readers]
        others += [pool.submit(cut, kit.open()) for _ in range(2)]
        writing = [pool.submit(write, n) for n in range(6)]
        try:
            for each in writing:
                each.result()
        finally:
            stop.set()
        for each in others:
            each.result()
    for reader in readers:
        reader.drain()
    readers[0].leave_no_gap()
    handed = Counter(readers[0].handed + readers[1].handed)
    assert max(handed.values()) == 1
    boundary = first_pos(log) + SIZE
    assert any(pos >= boundary for pos in handed)
    assert any(pos < boundary for pos in handed)
    for reader in readers:
        reader.exchange()
    trim_all(engine, queue)
    assert tell(engine, "SELECT count(*) FROM respool.record WHERE pos < %s", (boundary,)) == [(0,)]
    assert f"record_{log}_0" not in tables(engine, log)
    assert f"record_{log}_1" in tables(engine, log)
    sound(engine)


def test_the_next_partition_is_there_before_it_is_needed(engine: Any, log: int, writers: Any) -> None:
    """Else a caller's own transaction would fail: it cannot make one, and need not be told."""
    slow, other = writers().begin(), writers()
    leap(engine, log, SIZE // 2 - 1)
    slow.append(log)
    engine.tidy()
    assert f"record_{log}_1" not in tables(engine, log)
    other.append(log, 2)
    promptly(engine.tidy)
    assert f"record_{log}_1" in tables(engine, log)
    leap(engine, log, SIZE)
    slow.append(log)
    slow.commit()


@pytest.fixture
def caller(engine: Any) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody's own, which begins a transaction when it is used."""
    with psycopg.connect(engine.options.conninfo) as db:
        yield db
        db.rollback()


ENLISTED: dict[str, Callable[[Any, Any, int], object]] = {
    "row": lambda engine, db, log: engine.append_enlisted(engine.enlist(db), [row(log)]),
    "rows": lambda engine, db, log: engine.append_enlisted(engine.enlist(db), [row(log) for _ in range(300)]),
    "run": lambda engine, db, log: engine.append_run_enlisted(
        engine.enlist(db), log, "add", [b"x"] * 300, None, new_head(OLD), OLD
    ),
    "unique": lambda engine, db, log: engine.append_unique(
        row(log), uuid.uuid4().hex, None, None, None, engine.enlist(db)
    ),
}


@pytest.mark.parametrize("how", ENLISTED)
@pytest.mark.parametrize("at", [SIZE // 2, SIZE - 1, SIZE, SIZE + SIZE // 2 - 1, 7 * SIZE - 2])
def test_a_callers_transaction_finds_room(
    engine: Any, log: int, caller: psycopg.Connection[Any], how: str, at: int
) -> None:
    """Before what it sends, and for what comes after: with no worker, and nobody who sends otherwise."""
    first = leap(engine, log, at)
    promptly(lambda: ENLISTED[how](engine, caller, log))
    sent = 300 if how in ("rows", "run") else 1
    upper = bool(at & SIZE // 2)
    assert not upper or f"record_{log}_{at // SIZE + 1}" in tables(engine, log)
    leap(engine, log, at // SIZE * SIZE + (SIZE if upper else SIZE // 2) + 1000)
    for _ in range(2):
        promptly(lambda: ENLISTED[how](engine, caller, log))
    caller.commit()
    assert len(engine.records(first, first_pos(log + 1), 2000)) == 3 * sent


def test_rolled_back_calls_of_a_caller_leave_room_for_others(
    engine: Any, log: int, caller: psycopg.Connection[Any], writers: Any
) -> None:
    """Their numbers are used up, and no record tells of them; workers see to it, and who sends."""
    other, past = writers(), writers()
    leap(engine, log, SIZE // 2)
    other.begin().append(log)
    engine.tidy()
    assert f"record_{log}_1" in tables(engine, log), "though nobody sees the record"
    other.rollback()
    leap(engine, log, 3 * SIZE + 5)
    past.begin()
    with pytest.raises(psycopg.errors.CheckViolation):
        past.append(log)
    past.rollback()
    engine.tidy()
    past.begin().append(log)
    past.commit()
    # And where they jump at a stroke, as those of a million calls of others do.
    ENLISTED["row"](engine, caller, log)
    leap(engine, log, 9 * SIZE)
    with pytest.raises(EngineUnavailable, match=r"no partition .*nothing was sent: roll back"):
        ENLISTED["row"](engine, caller, log)
    caller.rollback()
    ENLISTED["row"](engine, caller, log)
    caller.commit()
    assert len(engine.records(first_pos(log), first_pos(log + 1), 10)) == 2


def test_those_appended_together_with_what_is_held_up_are_stored(
    engine: Any, log: int, caller: psycopg.Connection[Any]
) -> None:
    engine.append_enlisted(engine.enlist(caller), [row(log, id="shop\0order-1")])
    rows = [row(log), row(log, id="shop\0order-1"), row(log), row(log, id="shop\0order-2")]
    with pytest.raises(PartlyAppended, match="open transaction has sent a call of the same id") as caught:
        promptly(lambda: engine.append_rows(rows))
    assert caught.value.places == {0, 2}
    caller.commit()
    assert engine.append_rows(rows) == [], "each is there, and is the same"
    assert len(engine.records(first_pos(log), first_pos(log + 1), 9)) == 4


@pytest.mark.parametrize("own", [False, True], ids=["settlement", "own transaction"])
def test_a_settlement_that_an_open_transaction_holds_up_holds_up_no_other(
    kit: PostgresKit,
    engine: Any,
    main: Group,
    log: int,
    caller: psycopg.Connection[Any],
    monkeypatch: Any,
    own: bool,
) -> None:
    """P10: a run sends a call by an id that somebody else has sent: who waits for it lets go of the lock."""
    sent, patience, tries, again = row(log, id="shop\0order-1"), [], itertools.count(1), threading.Event()
    fill(engine, log, size=10)
    tell(engine, f"CREATE TABLE {kit.own_table} (n int)")
    lease = engine.transact(
        Reads(main.id, positions=True, due=5), lambda v, c: claim(v, c, Request(5, 2, 0, 2 << 40, OLD))
    )
    said = Settlement(lease.id, 2, [(span.lo, span.hi) for span in lease.spans])
    engine.append_enlisted(engine.enlist(caller), [sent])

    def decide(view: View, change: Change) -> bool:
        if next(tries) > 1:
            again.set()
        change.calls += sent, row(log)
        return bool(settle(view, change, said))

    def write(db: Any, *given: Any) -> None:
        patience.extend(db.execute(b"SHOW lock_timeout").fetchone())
        write_change(db, *given)

    monkeypatch.setattr(works if own else state, "write_change", write)
    reads = Reads(main.id, (lease.id,))
    if own:
        work = engine.begin_work((lease.id, 2))
        work.connection.execute(f"INSERT INTO {kit.own_table} VALUES (1)")
        settled = started(lambda: work.settle(reads, decide))
        assert again.wait(PATIENCE), "the lock was let go"
        caller.commit()
        assert settled.result(PATIENCE)
        assert tell(engine, f"SELECT n FROM {kit.own_table}") == [(1,)], "what it did was kept meanwhile"
    else:
        with pytest.raises(EngineUnavailable, match="sent a call of the same id as a run has: nothing"):
            promptly(lambda: engine.transact(reads, decide))
        assert engine.leases(main) == [lease]
        caller.commit()
        assert engine.transact(reads, decide)
    assert patience == ["10s"], "others are waited for as ever"
    assert engine.leases(main) == []
    assert len(Reader(engine, main).drain()) == 5 + 2
    tell(engine, f"DROP TABLE {kit.own_table}")
    sound(engine)


def test_streams_and_groups_are_made_beside_open_transactions(
    kit: PostgresKit, engine: Any, queue: Stream, log: int, writers: Any
) -> None:
    """G7: in transactions of our own, which neither wait for the caller's nor go with them."""
    slow = writers().begin()
    slow.append(log)
    made = promptly(lambda: engine.create_stream("queue", "shop", "other", 2, {}))
    group = promptly(
        lambda: engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first_pos(log), None)])
    )
    fill(engine, made.logs[1])
    slow.rollback()
    again = kit.open()
    assert made in again.streams()
    assert group in again.groups()


def bury(engine: Engine, group: Group, dead: Iterable[int]) -> None:
    """Run all there is; some of it ends as dead letters."""
    lease: Lease | None = engine.transact(
        Reads(group.id, positions=True, due=4096),
        lambda v, c: claim(v, c, Request(4096, 1, 0, 1 << 40 | next(numbers), OLD)),
    )
    assert lease is not None
    verdicts = [
        Verdict(pos, "failure", b"e", reason="dead", task="add", error=b"e", note="failed") for pos in dead
    ]
    done = Settlement(lease.id, 1, [(s.lo, s.hi) for s in lease.spans], verdicts, started=OLD, ended=OLD)
    assert engine.transact(Reads(group.id, (lease.id,)), lambda v, c: settle(v, c, done))


def trim_all(engine: Engine, queue: Stream) -> int:
    return sum(iter(lambda: engine.trim(queue, CUT, 5000), 0))


def test_partitions_go_as_a_whole_and_what_is_parked_stays(
    engine: Any, queue: Stream, main: Group, log: int
) -> None:
    first = first_pos(log)
    fill(engine, log, 2, 10)
    head = engine.records(first, first + 1, 1)[0].id
    others = [each.id for each in engine.records(first + 10, first + 20, 10)]
    bury(engine, main, [first + 3, first + 5])
    leap(engine, log, SIZE)
    fill(engine, log, 1, 10)
    Reader(engine, main).drain()
    assert trim_all(engine, queue) > 30
    assert [name for name in tables(engine, log) if name.endswith(f"_{log}_0")] == []
    assert [each.pos - first for each in engine.records(first, first + SIZE, 100)] == [3, 5]
    assert engine.rows([Span(first, first + 10)]) == [(first + n, "add", b"x", None) for n in (3, 5)]
    found = {n: engine.find("shop", id_of(head, n)) for n in range(10)}
    assert {n: pos - first for n, pos in found.items() if pos} == {3: 3, 5: 5}
    assert [engine.find("shop", id) for id in others] == [None] * 10
    assert engine.status(main, first + 3).outcome is not None
    assert [entry.how for entry in engine.journal(main.id, first + 3)] == ["failed"]
    assert sound(engine).groups[0].parked == {"dead": 2}
    assert redrive(engine, DeadFilter(ids=(_text(id_of(head, 3)),)), app="shop") == 1
    reader = Reader(engine, main)
    reader._turn = 1
    request = Request(8, 1, 0, 1 << 40 | next(numbers), OLD)
    lease = engine.transact(
        Reads(main.id, (), True, 8, 8, time.time() + 1), lambda v, c: claim(v, c, request)
    )
    assert engine.rows(lease.spans) == [(first + 3, "add", b"x", None)]
    assert trim_all(engine, queue) == 0, "it is being run"
    done = Settlement(lease.id, 1, [(first + 3, first + 4)], started=OLD, ended=OLD)
    assert engine.transact(Reads(main.id, (lease.id,)), lambda v, c: settle(v, c, done))
    sound(engine)
    assert trim_all(engine, queue) == 1
    assert engine.find("shop", id_of(head, 3)) is None
    assert engine.find("shop", id_of(head, 5)) == first + 5
    tell(engine, "DELETE FROM respool.parked")
    assert trim_all(engine, queue) == 1
    rest = "SELECT (SELECT count(*) FROM respool.kept), (SELECT count(*) FROM respool.ids WHERE pos < %s), "
    rest += "(SELECT count(*) FROM respool.outcome), (SELECT count(*) FROM respool.journal_rest)"
    assert tell(engine, rest, (first + SIZE,)) == [(0, 0, 0, 0)]
    fill(engine, log)
    (again,) = Reader(engine, main).drain()
    assert again >= first + SIZE + 10
    sound(engine)


def _text(id: bytes) -> str:
    return str(uuid.UUID(bytes=id))


def test_two_that_drop_one_partition_at_once(
    kit: PostgresKit, engine: Any, queue: Stream, main: Group, log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, real = kit.open(), retention.drop
    leap(engine, log, SIZE)
    fill(engine, log)
    Reader(engine, main).drain()

    def faster(*arguments: Any) -> None:
        monkeypatch.setattr(retention, "drop", real)
        while f"record_{log}_0" in tables(engine, log):
            other.trim(queue, CUT, 500)
        real(*arguments)

    monkeypatch.setattr(retention, "drop", faster)
    while engine.trim(queue, CUT, 500):
        continue
    assert retention.drop is real, "it was not tried"
    assert f"record_{log}_0" not in tables(engine, log)
    sound(engine)


def test_who_comes_late_to_detach_a_partition_leaves_it(
    kit: PostgresKit, engine: Any, queue: Stream, main: Group, log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, timer = kit.open(), threading.Timer
    leap(engine, log, SIZE)
    fill(engine, log)
    Reader(engine, main).drain()

    def late(*arguments: Any) -> Any:  # right before the statement
        monkeypatch.setattr(partitions.threading, "Timer", timer)
        while f"record_{log}_0" in tables(engine, log):
            other.trim(queue, CUT, 500)
        return timer(*arguments)

    monkeypatch.setattr(partitions.threading, "Timer", late)
    while engine.trim(queue, CUT, 500):
        continue
    assert threading.Timer is timer, "it was not tried"
    sound(engine)


def test_what_is_parked_is_seen_once_while_its_partition_is_to_be_dropped(
    engine: Any, queue: Stream, main: Group, log: int, writers: Any
) -> None:
    """Which may take as long as somebody reads it."""
    first = first_pos(log)
    fill(engine, log, 1, 10)
    fill(engine, log)  # its id goes in a step of its own, before the partition
    bury(engine, main, [first + 3])
    leap(engine, log, SIZE)
    fill(engine, log)
    Reader(engine, main).drain()
    reads = writers().begin("REPEATABLE READ")
    reads.execute(f"SELECT count(*) FROM {engine.options.schema}.record_{log}_0")
    while promptly(lambda: engine.trim(queue, CUT, 5000)):
        assert [each.pos - first for each in engine.records(first + 3, first + 4, 100)] == [3]
    assert f"record_{log}_0" in tables(engine, log)
    assert [each.pos - first for each in engine.records(first, first + 10, 100) if each.pos == first + 3] == [
        3
    ]
    assert len(engine.rows([Span(first + 3, first + 4)])) == 1
    sound(engine)
    reads.commit()
    trim_all(engine, queue)
    assert f"record_{log}_0" not in tables(engine, log)
    assert [each.pos - first for each in engine.records(first, first + 11, 100)] == [3]
    sound(engine)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_nobody_waits_for_a_partition_to_go(
    kit: PostgresKit,
    engine: Any,
    queue: Stream,
    main: Group,
    log: int,
    writers: Any,
    monkeypatch: pytest.MonkeyPatch,
    isolation: str,
) -> None:
    """A transaction that has appended is open; what retention began is finished later, by whomever."""
    monkeypatch.setattr(partitions, "PATIENCE", 2.0)
    fill(engine, log, 1, 10)
    Reader(engine, main).drain()
    leap(engine, log, SIZE)
    fill(engine, log)
    Reader(engine, main).drain()
    slow, other = writers().begin(isolation), kit.open()
    slow.append(log)
    fill(engine, log)
    reader = Reader(other, main)
    reader.drain()
    trimming = started(lambda: trim_all(engine, queue))
    with psycopg.connect(engine.options.conninfo, autocommit=True) as db:  # type: ignore[arg-type]
        asked = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'respool retention' "
        asked += "AND wait_event_type = 'Lock' AND datname = current_database()"
        eventually(lambda: trimming.done() or db.execute(asked.encode()).fetchone())
        assert not trimming.done(), trimming.result()
        for how in HOWS:
            promptly(appended_by(other, main, log)[how])
        assert len(promptly(reader.drain)) == 11
        assert db.execute(asked.encode()).fetchone(), "it waits all the while"
        monkeypatch.setattr(partitions, "PATIENCE", 0.05)
        slow_ones = slow.append(log)
        assert trimming.result(2 * PATIENCE) >= 0
    slow.commit()
    assert set(slow_ones) <= set(reader.drain())
    trim_all(other, queue)
    assert [name for name in tables(engine, log) if name.endswith(f"_{log}_0")] == []
    sound(engine)


def test_a_partition_with_thousands_of_dead_letters_goes(
    kit: PostgresKit, engine: Any, queue: Stream, main: Group, log: int
) -> None:
    """Whatever the planner takes it for: to compare each entry of the journal with each takes too long."""
    first, size = first_pos(log), 5000
    fill(engine, log, 1, size)
    engine.transact(
        Reads(main.id, positions=True), lambda view, change: change.cursors.append((log, first + size))
    )
    bound = {"grp": main.id, "first": first, "last": first + size - 1}
    tell(
        engine,
        "INSERT INTO respool.parked (grp, pos, reason, task, retries, deliveries, redrives, alone, at) "
        "SELECT %(grp)s, pos, 'dead', 'add', 2, 0, 0, false, 0 "
        "FROM generate_series(%(first)s, %(last)s) AS pos",
        bound,
    )
    tell(
        engine,
        "INSERT INTO respool.journal (grp, lo, n, hi, child, started, ended, how, retries) "
        "SELECT %(grp)s, pos, n, pos + 1, 0, 0, n, 'dead', n "
        "FROM generate_series(%(first)s, %(last)s) AS pos, generate_series(0, 2) AS n",
        bound,
    )
    leap(engine, log, SIZE)
    fill(engine, log)
    Reader(engine, main).drain()
    plans = " ".join(f"-c enable_{way}=off" for way in ("indexscan", "indexonlyscan", "bitmapscan"))
    hasty: Any = open_engine(parse_url(f"{kit.url}&options={quote(plans)}"), "full", 0.25)
    trim_all(hasty, queue)
    hasty.close()
    assert f"record_{log}_0" not in tables(engine, log)
    assert tell(engine, "SELECT count(*) FROM respool.kept") == [(size,)]
    assert tell(engine, "SELECT count(*) FROM respool.journal_rest") == [(3 * size,)]
    tell(engine, "DELETE FROM respool.parked WHERE pos < %s", (first + size - 1,))
    trim_all(engine, queue)
    assert tell(engine, "SELECT count(*) FROM respool.journal_rest") == [(3,)]
    sound(engine)


def test_a_backup_holds_up_nobody(engine: Any, queue: Stream, main: Group, log: int, writers: Any) -> None:
    """What it reads is locked for as long as it takes, and partitions are needed meanwhile."""
    fill(engine, log)
    backup, schema = writers().begin(), engine.options.schema
    for table in ("record", "outcome", "journal"):
        backup.execute(f"LOCK TABLE {schema}.{table} IN ACCESS SHARE MODE")
    leap(engine, log, SIZE // 2)
    assert promptly(lambda: engine.append_row(row(log))) == first_pos(log) + SIZE // 2
    assert f"record_{log}_1" in tables(engine, log)
    leap(engine, log, 3 * SIZE)
    at = promptly(lambda: engine.append_row(row(log)))
    assert isinstance(at, int)
    assert at >= first_pos(log) + 3 * SIZE
    promptly(lambda: bury(engine, main, [at]))
    promptly(lambda: engine.create_stream("queue", "shop", "other", 1, {}))
    promptly(engine.tidy)
    backup.commit()
    assert tell(engine, "SELECT pos, ending FROM respool.outcome") == [(at, 1)]
    leap(engine, log, 5 * SIZE)
    engine.append_row(row(log))
    Reader(engine, main).drain()
    trim_all(engine, queue)
    assert {name for name in tables(engine, log) if name.startswith("record")} == {
        f"record_{log}_5",
        f"record_{log}_6",
    }
    assert tell(engine, "SELECT pos FROM respool.outcome_rest") == [(at,)], "what is parked stays"
    sound(engine)


def test_what_a_partition_ahead_meets_is_not_the_senders(engine: Any, log: int, writers: Any) -> None:
    """His record is stored (P1)."""
    other = writers().begin()
    other.execute("SELECT pg_advisory_xact_lock(%s, %s)", (partitions._LOCK, log))
    leap(engine, log, SIZE // 2)
    for _ in range(20):
        assert isinstance(promptly(lambda: engine.append_row(row(log))), int)
    assert f"record_{log}_1" not in tables(engine, log)
    other.commit()
    engine._ahead_at = 0.0  # a while later
    engine.append_row(row(log))
    assert f"record_{log}_1" in tables(engine, log)


def test_the_server_ends_what_was_given_up(engine: Any) -> None:
    db = connect(engine.options, "reader")
    db.patience, pid = 0.2, db.info.backend_pid
    with pytest.raises(psycopg.OperationalError, match="no answer"):
        db.execute("SELECT pg_sleep(60)")
    gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
    eventually(lambda: tell(engine, gone, (pid,)) == [(True,)], timeout=PATIENCE)


def test_a_journal_entry_goes_with_the_last_of_its_partitions(
    engine: Any, queue: Stream, main: Group, log: int
) -> None:
    """H9: a purge is one entry, however many partitions it goes through."""
    fill(engine, log, 1, 10)
    leap(engine, log, SIZE)
    fill(engine, log, 1, 10)
    engine.transact(Reads(main.id, positions=True), lambda v, c: purge(v, c, [], b"", OLD))
    Reader(engine, main).leave_no_gap()
    trim_all(engine, queue)
    assert f"journal_{log}_0" not in tables(engine, log)
    assert engine.status(main, first_pos(log) + SIZE + 5).how == "purged"
    leap(engine, log, 2 * SIZE)
    fill(engine, log, 1, 10)
    Reader(engine, main).drain()
    trim_all(engine, queue)
    assert f"journal_{log}_1" not in tables(engine, log)
    assert tell(engine, "SELECT count(*) FROM respool.journal WHERE how = 'purged'") == [(0,)]


def test_a_lease_over_two_partitions_is_told_of_until_both_are_gone(
    engine: Any, queue: Stream, main: Group, log: int
) -> None:
    """Also where no record is kept for which the journal would be looked through."""
    edge = first_pos(log) + SIZE
    engine.reserve([edge])
    leap(engine, log, SIZE - 5)
    fill(engine, log, 1, 10)
    Reader(engine, main).drain()
    told = "SELECT lo, hi FROM respool.journal"
    assert tell(engine, told) == [(edge - 5, edge + 5)]
    trim_all(engine, queue)
    assert f"journal_{log}_0" not in tables(engine, log)
    assert tell(engine, told) == [(edge - 5, edge + 5)]


def test_flags_are_of_their_own_schema(kit: PostgresKit, session_database: str, log: int) -> None:
    """Who sleeps in another schema of the database is not rung for: a call would begin 5 ms later."""
    sleepers = []
    other = PostgresKit(session_database, "full")
    for each in (kit, other):
        engine: Any = each.open()
        sleepers += [engine.sleeper([log], 7) for _ in range(4)]
    for sleeper in sleepers:
        sleeper.prepare()
    assert [sleeper._flag for sleeper in sleepers] == [0, 1, 2, 3] * 2
    for sleeper in sleepers:
        sleeper.close()
    other.remove()


def test_records_come_along_with_a_claim_unless_they_are_elsewhere(
    engine: Any, main: Group, log: int
) -> None:
    fill(engine, log, 1, 10)
    for bare in (False, True):
        request = Request(2, 1, 0, 100 + bare, OLD)
        reads = Reads(main.id, (), True, 2, now=OLD, bare=bare)
        lease = engine.transact(reads, lambda view, change, request=request: claim(view, change, request))
        assert (engine._ahead is None) == bare
        assert len(engine.rows(lease.spans)) == 2


def test_room_for_a_lent_logs_records_is_made_before_they_come(
    kit: PostgresKit, engine: Any, log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who tidies, once half of a partition is used: who is to run something makes what it needs now."""
    first = first_pos(log)
    engine.reserve([first + 5, first + SIZE // 2 - 1])
    engine.reserve([first + SIZE // 2 - 1], ahead=True)
    assert f"outcome_{log}_1" not in tables(engine, log)
    engine.reserve([first + SIZE // 2], ahead=True)
    assert f"outcome_{log}_1" in tables(engine, log)
    other: Any = kit.open()
    made: list[int] = []
    monkeypatch.setattr(other, "_maker", made.append)
    other.reserve([first, first + SIZE])
    assert made == [], "who finds it there waits for nobody who makes some"


def test_what_is_known_of_a_lent_logs_records_goes_with_their_partition(engine: Any, log: int) -> None:
    """The records are elsewhere. Steps that were done (H14) go, but for those of what is parked."""
    first, queue = first_pos(log), engine.streams()[0]
    main = engine.groups()[0]
    places = [first + 3, first + 4, first + SIZE + 1]
    engine.reserve(places)
    for pos in places:
        engine.keep_step(pos, "charge", b"done", OLD)

    def park(view: View, change: Change) -> None:
        change.parked.append(Parked(first + 4, "dead", None, "add"))
        change.kept = [Row(first + 4, "add", b"body", b"header")]

    engine.transact(Reads(main.id), park)
    for _ in range(20):
        engine.forget_below(queue, log, first + SIZE + 1)
    assert [engine.step_done(pos, "charge") for pos in places] == [None, b"done", b"done"]
    assert engine.drop_kept(queue, 100) == 0, "it is parked"
    engine.transact(Reads(main.id), lambda view, change: change.unparked.append(first + 4))
    assert engine.drop_kept(queue, 100) == 1
    assert [engine.step_done(pos, "charge") for pos in places] == [None, None, b"done"]


def test_what_a_setting_holds_is_set_by_name_by_several_at_once(kit: PostgresKit, engine: Any) -> None:
    """One does not undo what others set: ids of topics (K3), and how long records stay."""
    stream = engine.create_stream("queue", "shop", "wide", 1, {"kafka": {"topic": "t"}})
    engines = [engine, kit.open()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: engines[n % 2].set_within(stream, "kafka", f"id {n}", f"{n}"), range(10)))
    engine.set_retention(stream, "1d")
    (found,) = [each for each in engine.streams() if each.id == stream.id]
    ids = {f"id {n}": f"{n}" for n in range(10)}
    assert found.settings == {"kafka": {"topic": "t", **ids}, "retention": "1d"}


# Locks and bells: G7


def test_a_claimant_that_stops_is_stopped(kit: PostgresKit, engine: Any, main: Group, log: int) -> None:
    """It holds the group's lock, and says no more: the server ends it, and others go on."""
    fill(engine, log, size=10)
    frozen = open_engine(parse_url(kit.url or ""), "full", 1.0)
    kit.engines.append(frozen)
    holds, thaw = threading.Event(), threading.Event()

    def decide(view: View, change: Change) -> Lease | None:
        lease = claim(view, change, Request(10, 2, 0, 2 << 40, OLD))
        holds.set()
        assert thaw.wait(60)
        return lease

    stopped = started(lambda: frozen.transact(Reads(main.id, positions=True, due=10), decide))
    assert holds.wait(PATIENCE)
    reader = Reader(engine, main)
    assert len(promptly(reader.exchange)) == 10
    thaw.set()
    with pytest.raises((EngineUnavailable, AppendUnknown)):
        stopped.result(PATIENCE)
    assert [lease.owner for lease in engine.leases(main)] == [1]
    sound(engine)
    assert frozen.counts(main).leased == 10


def test_a_run_that_stops_in_the_settlement_of_its_own_transaction_is_stopped(
    kit: PostgresKit, engine: Any, main: Group, log: int
) -> None:
    """Until then nobody waits for it, however long it takes; with the group's lock the server ends it."""
    fill(engine, log, size=10)
    tell(engine, f"CREATE TABLE {kit.own_table} (n int)")
    frozen = open_engine(parse_url(kit.url or ""), "full", 1.0)
    kit.engines.append(frozen)
    lease = frozen.transact(
        Reads(main.id, positions=True, due=5), lambda v, c: claim(v, c, Request(5, 2, 0, 2 << 40, OLD))
    )
    work = frozen.begin_work((lease.id, 2))
    work.connection.execute(f"INSERT INTO {kit.own_table} VALUES (1)")
    holds, thaw = threading.Event(), threading.Event()
    said = Settlement(lease.id, 2, [(span.lo, span.hi) for span in lease.spans])

    def decide(view: View, change: Change) -> bool:
        holds.set()
        assert thaw.wait(60)
        return bool(settle(view, change, said))

    reader = Reader(engine, main)
    assert promptly(lambda: engine.has_work(main.id, OLD, ())), "it is open, and in nobody's way"
    stopped = started(lambda: work.settle(Reads(main.id, (lease.id,)), decide))
    assert holds.wait(PATIENCE)
    assert len(promptly(reader.exchange)) == 5
    thaw.set()
    with pytest.raises((EngineUnavailable, AppendUnknown)):
        stopped.result(PATIENCE)
    assert tell(engine, f"SELECT * FROM {kit.own_table}") == [], (
        "neither the work nor the settlement is there"
    )
    assert sorted(lease.owner or 0 for lease in engine.leases(main)) == [1, 2]
    again = frozen.begin_work((lease.id, 2))
    again.connection.execute(f"INSERT INTO {kit.own_table} VALUES (2)")
    assert again.settle(Reads(main.id, (lease.id,)), lambda view, change: bool(settle(view, change, said)))
    assert tell(engine, f"SELECT * FROM {kit.own_table}") == [(2,)]
    tell(engine, f"DROP TABLE {kit.own_table}")


def test_nobody_is_notified_where_nobody_sleeps(engine: Any, main: Group, log: int) -> None:
    with psycopg.connect(engine.options.conninfo, autocommit=True) as db:  # type: ignore[arg-type]
        db.execute(f'LISTEN "{engine.channel}"'.encode())

        def said() -> list[str]:
            db.execute("SELECT 1")  # all that was committed before has come by then
            return [notify.payload for notify in db.notifies(timeout=0)]

        for run in appended_by(engine, main, log).values():
            run()
        Reader(engine, main).drain()
        engine.ring_waiters([first_pos(log)])
        assert said() == []
        sleeper = engine.sleeper([log], 1)
        sleeper.prepare()
        engine.append_row(row(log))
        assert said() == [f"log {log} for 0"]
        pid = sleeper._db.info.backend_pid
        sleeper.close()
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
        eventually(lambda: db.execute(gone, (pid,)).fetchone()[0], "its flag is down once its backend ends")  # type: ignore[index]
        engine.append_row(row(log))
        assert said() == []


def test_a_call_in_an_open_transaction_delays_no_other_call(kit: PostgresKit, engine: Any, log: int) -> None:
    """Who lies down meanwhile is rung for, also by its commit."""
    sleeper = kit.open().sleeper([log], 1)  # type: ignore[attr-defined]
    with psycopg.connect(engine.options.conninfo) as db:  # type: ignore[arg-type]
        enlisted = engine.enlist(db)
        assert engine.append_enlisted(enlisted, [row(log)]) == []
        assert engine.append_unique(row(log), "key", None, None, None, enlisted) is not None
        engine.append_run_enlisted(enlisted, log, "add", [b"x"] * 3, None, new_head(OLD), OLD)
        sleeper.prepare()
        assert sleeper.hears
        engine.append_row(row(log))
        assert sleeper.sleep(PATIENCE)
        sleeper.prepare()
        assert not sleeper.sleep(0)
        db.commit()
        assert sleeper.sleep(PATIENCE), "its commit rings"


def test_a_worker_hears_while_anybody_has_a_flag_up(kit: PostgresKit, engine: Any, log: int) -> None:
    other: Any = kit.open()
    for way, hears in (("", True), ("_shared", False)):
        with psycopg.connect(engine.options.conninfo) as db:  # type: ignore[arg-type]
            for flag in range(bells.FLAGS):
                taken = f"SELECT pg_advisory_xact_lock{way}(%s, %s)".encode()
                db.execute(taken, (engine.flags(bells._WORKERS), flag))
            sleeper = other.sleeper([log], 1)
            sleeper.prepare()
            assert sleeper.hears is hears, "else it has to look by itself"
            db.rollback()
            sleeper.prepare()
            assert sleeper.hears
            sleeper.close()


def test_who_waits_without_a_flag_looks_soon(engine: Any, log: int) -> None:
    """Who looks for flags holds those that are down, for as long as its transaction lasts."""
    with psycopg.connect(engine.options.conninfo) as db:  # type: ignore[arg-type]
        for flag in range(bells.FLAGS):
            db.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", (engine.flags(bells._WAITERS), flag))
        with engine.waiter(first_pos(log)) as waiter:
            waiter.prepare()
            began = time.monotonic()
            assert not waiter.sleep(30)
            assert time.monotonic() - began < 10


def test_who_waits_hears_again_after_its_connection_broke(engine: Any, log: int) -> None:
    """Coroutines share a connection: once it is lost all look, and its descriptor is another from then on."""
    places = [first_pos(log), first_pos(log) + 1]

    async def main() -> list[bool]:
        with engine.async_waiter(places[0]) as one, engine.async_waiter(places[1]) as other:
            waiters = (one, other)
            for waiter in waiters:
                waiter.prepare()
            (sleeper,) = [each for each in engine._sleepers if each.kind == bells._WAITERS]
            tell(engine, f"SELECT pg_terminate_backend({sleeper._db.info.backend_pid})")
            assert await asyncio.gather(*(waiter.sleep(30) for waiter in waiters)) == [True, True]
            rung = []
            for _ in range(2):  # the first may be found by the look that is due where nobody listened
                for waiter in waiters:
                    waiter.prepare()
                engine.ring_waiters(places)
                rung += await asyncio.gather(*(waiter.sleep(10) for waiter in waiters))
            return rung

    assert asyncio.run(main()) == [True] * 4


def test_nothing_is_read_while_flags_are_held(engine: Any, main: Group, log: int, monkeypatch: Any) -> None:
    """A waiter that found none free would look only later: the rows of a lease are read before."""
    order: list[str] = []
    for name in ("read_ahead", "ring_written"):
        inner = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *a, n=name, f=inner: (order.append(n), f(*a))[1])
    engine.append_row(row(log))
    Reader(engine, main).drain()
    assert order[:2] == ["read_ahead", "ring_written"]


def test_what_is_prepared_is_prepared_again_after_a_rollback(engine: Any) -> None:
    """The driver has the server forget all that is prepared then, of the batches as well."""
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    main = next(group for group in engine.groups() if group.stream == queue.id)

    def fail(view: View, change: Change) -> None:
        raise ZeroDivisionError

    for _ in range(10):  # so often that the driver prepares it
        engine.journal(main.id, 0)
        assert engine.has_work(main.id, 0.0, ()) is False
    with pytest.raises(ZeroDivisionError):
        engine.look(Reads(main.id, positions=True), fail)
    engine.journal(main.id, 0)
    assert engine.has_work(main.id, 0.0, ()) is False


@pytest.mark.parametrize("known", [False, True])
def test_what_fails_behind_a_commit_undoes_nothing(
    engine: Any, main: Group, log: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bell that cannot be rung, say: the claim, or the settlement, stands and is not made a second time."""
    fill(engine, log, size=4)

    def fails(db: Any, *args: Any, **more: Any) -> Any:
        return db.execute(b"SELECT 1 / 0")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "ring_done", fails)
        patch.setattr(engine, "read_ahead", fails)
        patch.setattr(engine, "ring_log", fails)
        engine.append_rows([row(log), row(log)])
        request = Request(3, 1, 0, next(numbers), OLD)
        claimed = Reads(main.id, (), True, 3, 8, OLD)
        lease = engine.transact(claimed, lambda view, change: claim(view, change, request))
        first = lease.spans[0].lo
        said = Settlement(lease.id, lease.owner or 0, [(first, first + 2)], ended=OLD)
        reads = Reads(main.id, (lease.id,), known=lease if known else None)
        assert engine.transact(reads, lambda view, change: settle(view, change, said))
    assert engine.bounds(next(s for s in engine.streams() if log in s.logs))[0][2] == first_pos(log) + 6
    ((id, span),) = [(each.id, each.spans) for each in engine.leases(main)]
    assert (id, [s[:2] for s in span]) == (lease.id, [(first + 2, first + 3)])
    assert [each.how for each in engine.journal(main.id, first)] == ["done"]
    assert engine.counters(main.id) == {}
    assert [pos for pos, *_ in engine.rows(lease.spans)] == [first, first + 1, first + 2]


def test_a_settlement_that_broke_after_its_commit_is_no_lost_lease(
    engine: Any, main: Group, log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not known whether it was written: so it is looked for, before it is said again and refused."""
    fill(engine, log, size=4)
    request = Request(4, 1, 0, next(numbers), OLD)
    claimed = Reads(main.id, (), True, 4, 8, OLD)
    lease = engine.transact(claimed, lambda view, change: claim(view, change, request))
    first, real, tries = lease.spans[0].lo, engine._commit, itertools.count()

    def breaks(batch: Batch, group: int, change: Change) -> Reply:
        reply = real(batch, group, change)
        if next(tries) > 0:
            return reply  # type: ignore[no-any-return]
        batch.sync()
        tell(engine, "SELECT pg_terminate_backend(%s, 5000)", (batch._db.info.backend_pid,))
        return Reply(batch)  # that never came

    monkeypatch.setattr(engine, "_commit", breaks)
    said = Settlement(lease.id, lease.owner, [(first, first + 4)], started=OLD, ended=OLD + 1)
    known = Reads(main.id, (lease.id,), known=lease)
    for _ in range(2):  # nor where its worker says it once more
        assert engine.transact(known, lambda view, change: settle(view, change, said))
    assert engine.counters(main.id) == {}
    assert [each.how for each in engine.journal(main.id, first)] == ["done"]
    assert engine.leases(main) == []
    other = Settlement(lease.id, 2, [(first, first + 4)], started=OLD, ended=OLD + 1)
    assert not engine.transact(known, lambda view, change: settle(view, change, other))
    assert engine.counters(main.id) == {"refused settlements": 1}
    sound(engine)


def test_databases_that_one_url_leads_to_are_stores_of_their_own(
    postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the workers of one would take those of the other for their own, and for dead."""
    names = [f"t{uuid.uuid4().hex[:12]}" for _ in range(2)]
    location = parse_url(postgres.url("").removesuffix("/"))
    targets, folders = set(), set()
    for name in names:
        postgres.create_database(name)
        monkeypatch.setenv("PGDATABASE", name)
        engine = open_engine(location, "full", TIMEOUT)
        targets.add(engine.target)
        folders.add(engine.run_folder)
        engine.close()
        postgres.drop_database(name)
    assert (len(targets), len(folders)) == (2, 2)
