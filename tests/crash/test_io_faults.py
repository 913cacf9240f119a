"""The SQLite engine on a disk that fails: power cuts (P1, P2, S4, H10), errors (S3, H20), files not ours."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.crash.faultfs import Cut, FaultFS, for_each_cut

from respool import App
from respool.delivery.claim import Request, claim
from respool.delivery.model import Lease, NewCall, Settlement, Verdict
from respool.delivery.settle import settle
from respool.engines.base import Group, Reads, Registration
from respool.engines.sqlite import engine as engine_module
from respool.engines.sqlite import preparing
from respool.engines.sqlite.engine import SQLiteEngine, SQLiteOptions
from respool.errors import (
    AppendUnknown,
    ConfigError,
    DatabaseGone,
    EngineError,
    EngineTooOld,
    EngineUnavailable,
    SchemaTooNew,
)
from respool.producer import Producer
from respool.record import id_of, id_text
from respool.replay import check

NOBODY = 65534
QUEUE = ("queue", "shop", "default", 1, {})
MAKE_ROOM = "UPDATE log SET floor = (SELECT max(pos) + 1 FROM record); DELETE FROM record"
"""What retention does when it removes every record of the only log (S5)."""

numbers = itertools.count(1)


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[FaultFS]:
    with FaultFS(tmp_path / "disk") as fs:
        yield fs


def opened(fs: FaultFS, durability: Any = "full") -> SQLiteEngine:
    return SQLiteEngine(SQLiteOptions(fs.path("q.db"), durability, timeout=1.0, vfs=fs.name))


@pytest.fixture
def shop(fs: FaultFS) -> Iterator[Shop]:
    shop = Shop(opened(fs))
    yield shop
    fs.on_event = None
    fs.clear()
    shop.engine.close()


class Shop:
    """An engine with one queue, and what a producer and a worker do there."""

    def __init__(self, engine: SQLiteEngine) -> None:
        self.engine = engine
        self.log = engine.create_stream(*QUEUE).logs[0]
        self.main: Group = engine.groups()[0]
        self.worker = engine.register(Registration("shop", "w", "host", "boot", 1, 0.0, {}))
        self.producer = Producer(engine, 1 << 24)

    def call(self, size: int = 100) -> NewCall:
        n = next(numbers)
        return NewCall(
            self.log, "add", str(n).encode().rjust(size, b"."), None, (n << 24).to_bytes(16, "big"), 1e6 + n
        )

    def append(self, *rows: NewCall) -> None:
        """Append rows together; one alone as `delay()` does, by a statement of its own."""
        if len(rows) == 1:
            assert isinstance(self.engine.append_row(rows[0]), int)
        else:
            assert self.engine.append_rows(rows) == []

    def run(self, length: int, size: int = 100) -> list[bytes]:
        """Append a run; return its ids."""
        head = (next(numbers) << 24).to_bytes(16, "big")
        self.engine.append_run(self.log, "add", [b"." * size] * length, None, head, 1e6)
        return [id_of(head, seq) for seq in range(length)]  # type: ignore[misc]

    def claim(self, want: int) -> Lease:
        request = Request(want, self.worker, 0, self.worker << 32 | next(numbers), 2e6)
        reads = Reads(self.main.id, positions=True, due=want, returned=want, now=2e6)
        lease = self.engine.transact(reads, lambda view, change: claim(view, change, request))
        assert lease is not None
        return lease

    def settle(self, lease: Lease, done: int | None = None, **more: Any) -> None:
        """Settle the first `done` records of a lease's first span, or all of the lease."""
        lo, hi = lease.spans[0].lo, lease.spans[0].hi
        ranges = [(s.lo, s.hi) for s in lease.spans] if done is None else [(lo, min(lo + done, hi))]
        settlement = Settlement(lease.id, self.worker, ranges, started=2e6, ended=2e6, **more)
        reads = Reads(self.main.id, leases=(lease.id,))
        assert self.engine.transact(reads, lambda view, change: settle(view, change, settlement))

    def beat(self, *, synced: bool = True) -> None:
        assert self.engine.beat(self.worker, False, {}, synced=synced) is not None

    def ids(self) -> list[Any]:
        return [record.id for record in self.engine.records(0, 1 << 62, 1 << 30)]

    def positions(self) -> list[int]:
        return [record.pos for record in self.engine.records(0, 1 << 62, 1 << 30)]


def dump(engine: SQLiteEngine) -> str:
    """All there is in all tables: two equal ones are the same state."""
    with engine._reader.waiting() as db:
        db.execute("BEGIN")
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1")
        ]
        found = {name: sorted(map(repr, db.execute(f'SELECT * FROM "{name}"'))) for name in tables}
        db.execute("COMMIT")
    return repr(found)


def sound(engine: SQLiteEngine) -> None:
    """P2, and SQLite's own check."""
    report = check(engine)
    assert report.ok, [report.problems, *(group.problems for group in report.groups)]


def reopened(fs: FaultFS, folder: Path, keep: Any = "none") -> Iterator[Shop]:
    """Give what a power cut now would leave."""
    with FaultFS(fs.cut(folder, keep)) as after:
        shop = Shop(opened(after))
        try:
            yield shop
        finally:
            shop.engine.close()


def after_cut(fs: FaultFS, folder: Path, look: Callable[[Shop], Any], keep: Any = "none") -> Any:
    """Return what `look` sees after a power cut now; what is left is sound, whatever it is."""
    for shop in reopened(fs, folder, keep):
        sound(shop.engine)
        return look(shop)


# -- Power cuts


class Story:
    """A run of everything that writes, and the states of the database between the steps."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.rows: list[NewCall] = []
        self.trimmed: set[Any] = set()

    def __call__(self, fs: FaultFS) -> None:
        engine = opened(fs)

        def step(*, synced: bool) -> None:
            """Note the state; what was synced is promised from now on, and all that went before it."""
            self.states.append(dump(engine))
            if synced:
                fs.ack(("state", len(self.states) - 1))

        def append(*rows: NewCall) -> None:
            self.rows += rows
            shop.append(*rows)
            step(synced=True)
            places = {record.id: record.pos for record in engine.records(0, 1 << 62, 1000)}
            fs.ack(*(("record", row.id, places[row.id]) for row in rows))

        step(synced=True)
        engine.create_stream(*QUEUE)
        step(synced=True)
        shop = Shop(engine)
        step(synced=True)
        fs.ack(("worker", shop.worker))
        append(shop.call(), shop.call(700), shop.call(5000))
        run = shop.run(6, 300)
        step(synced=True)
        fs.ack(*(("record", id, None) for id in run))
        first = shop.claim(4)
        step(synced=False)
        append(shop.call())
        pos = first.spans[0].lo
        again = Verdict(pos + 1, reason="retry", due=1e6, task="add", error=b"e", retried=True, note="retry")
        sends = Verdict(pos, ending="success", value=b"v" * 500, calls=[shop.call(), shop.call(400)])
        shop.settle(first, 3, verdicts=[sends, again], results=[(pos + 2, b"r")])
        step(synced=False)
        shop.beat(synced=False)
        step(synced=False)
        second = shop.claim(5)
        step(synced=False)
        shop.beat()
        step(synced=True)
        buried = Verdict(
            second.spans[-1].lo, ending="failure", value=b"x", reason="dead", task="add", error=b"x"
        )
        shop.settle(second, verdicts=[buried])
        step(synced=False)
        assert engine._state.checkpoint("RESTART") == 0  # the next commit writes the log from its start
        append(shop.call(1000))
        shop.settle(first, release=True)
        step(synced=False)
        rest = shop.claim(50)
        step(synced=False)
        shop.settle(rest)
        step(synced=False)
        assert engine._state.checkpoint("PASSIVE") == 0
        shop.beat()
        step(synced=True)
        self.trimmed.update(shop.ids())
        with engine._state.lock, engine._state.writing() as db:
            db.execute(f"BEGIN IMMEDIATE; {MAKE_ROOM}; DELETE FROM parked; COMMIT")
        step(synced=False)
        engine.drop_worker(shop.worker)
        step(synced=False)
        append(shop.call())
        engine.close()

    def check(self, cut: Cut) -> None:
        promised = max((value for what, value, *_ in cut.acked if what == "state"), default=0)
        with FaultFS(cut.folder) as fs:
            engine = opened(fs)
            try:
                sound(engine)
                state = dump(engine)
                assert state in self.states, (
                    "a state that never was: half a transaction, or one without another"
                )
                # P1 and S4: a commit that was not synced may be gone, but none from before one that was.
                assert self.states.index(state) >= promised, (
                    f"back to {self.states.index(state)} from {promised}"
                )
                if promised >= 1:
                    self.go_on(Shop(engine), cut)
            finally:
                engine.close()

    def go_on(self, shop: Shop, cut: Cut) -> None:
        records = Counter(shop.ids())
        promised = {id for what, id, *_ in cut.acked if what == "record"}
        assert max(records.values(), default=1) == 1
        assert promised - self.trimmed <= records.keys()
        assert shop.worker > max((number for what, number, *_ in cut.acked if what == "worker"), default=0)
        new = shop.call()
        shop.append(new)
        pos = shop.engine.find("shop", new.id)
        assert pos is not None
        assert pos > max((each[2] or 0 for each in cut.acked if each[0] == "record"), default=0), "H10"
        # H20: whoever never heard sends again with the same id; that makes no second one
        unheard = [row for row in self.rows if row.id not in promised]
        for row in unheard:
            shop.engine.append_rows([row])
        again = Counter(shop.ids())
        assert again == records | Counter([new.id, *(row.id for row in unheard)])


@pytest.mark.long
def test_a_power_cut_at_any_write_loses_nothing_promised(tmp_path: Path) -> None:
    checked = 0
    for torn, keep in ((False, ("none", "all", "random")), (True, ("prefix", "random"))):
        story = Story()
        checked += for_each_cut(
            story,
            story.check,
            tmp_path / str(torn),
            keep=keep,
            torn=(torn,),
            start=lambda disk: at(disk / "q.db").close(),
        )
        assert len(set(story.states)) == len(story.states)
    assert checked > 400


@pytest.mark.parametrize("synced", [True, False])
def test_s4_a_synced_beat_keeps_what_was_settled_before_it(
    fs: FaultFS, shop: Shop, tmp_path: Path, synced: bool
) -> None:
    """Without the beat the claim and the settlement are done again; with it they are not."""
    shop.run(10)
    shop.settle(shop.claim(6), 4)
    shop.beat(synced=synced)

    def progress(found: Shop) -> tuple[int, int, int]:
        counts = found.engine.counts(found.main)
        return counts.pending, counts.leased, len(found.engine.journal(found.main.id, shop.log << 40))

    assert progress(shop) == (4, 2, 1)
    assert after_cut(fs, tmp_path / "cut", progress) == ((4, 2, 1) if synced else (10, 0, 0))


def test_s4_a_beat_with_nothing_new_still_covers_another_workers_writes(
    fs: FaultFS, shop: Shop, tmp_path: Path
) -> None:
    shop.run(3)
    other = opened(fs)
    shop.settle(shop.claim(3))
    other.beat(shop.worker, False, {}, synced=True)
    assert after_cut(fs, tmp_path / "cut", lambda found: found.engine.counts(found.main).pending) == 0
    other.close()


def test_s4_a_worker_that_ends_keeps_what_it_settled_after_its_last_beat(
    fs: FaultFS, shop: Shop, tmp_path: Path
) -> None:
    """Others may have the file open, so that closing it writes nothing."""
    other = opened(fs)
    assert other.workers()
    shop.run(3)
    shop.settle(shop.claim(3))
    shop.engine.drop_worker(shop.worker)
    shop.engine.close()
    assert after_cut(fs, tmp_path / "cut", lambda found: found.engine.counts(found.main).pending) == 0
    other.close()


@pytest.mark.parametrize("how", ["rows", "run"])
def test_h10_positions_do_not_come_back_after_the_highest_were_removed(
    fs: FaultFS, shop: Shop, tmp_path: Path, how: str
) -> None:
    shop.run(5)
    highest = max(shop.positions())
    with shop.engine._writer.lock, shop.engine._writer.writing() as db:
        db.execute(f"BEGIN IMMEDIATE; {MAKE_ROOM}; COMMIT")

    def next_position(found: Shop) -> int:
        found.append(found.call()) if how == "rows" else found.run(1)
        return max(found.positions())

    assert after_cut(fs, tmp_path / "cut", next_position) == highest + 1
    assert next_position(shop) == highest + 1


def test_h10_numbers_of_streams_groups_and_workers_do_not_come_back(shop: Shop) -> None:
    engine = shop.engine
    other = engine.create_stream("queue", "shop", "other", 1, {})
    group = next(g for g in engine.groups() if g.stream == other.id)
    engine.drop_worker(shop.worker)
    engine.drop_group(group)
    with engine._writer.lock, engine._writer.writing() as db:
        db.execute(f"DELETE FROM log WHERE stream = {other.id}")
        db.execute(f"DELETE FROM stream WHERE id = {other.id}")
    again = engine.create_stream("queue", "shop", "other", 1, {})
    assert again.id > other.id
    assert again.logs[0] > other.logs[0]
    assert next(g for g in engine.groups() if g.stream == again.id).id > group.id
    assert engine.register(Registration("shop", "w", "host", "boot", 1, 0.0, {})) > shop.worker


def test_s5_space_can_be_given_back_even_after_a_cut_at_creation(tmp_path: Path) -> None:
    modes = set()

    def look(cut: Cut) -> None:
        with FaultFS(cut.folder) as fs:
            engine = opened(fs)
            with engine._reader.waiting() as db:
                modes.add((db.execute("PRAGMA auto_vacuum").get, db.execute("PRAGMA journal_mode").get))
            assert engine.damage() == []
            Shop(engine).run(1)
            engine.close()

    assert for_each_cut(lambda fs: opened(fs).close(), look, tmp_path, keep=("none", "prefix")) > 50
    assert modes == {(2, "wal")}


# -- Errors


def test_eio_at_the_sync_of_an_append_is_unknown_and_may_be_sent_again(
    fs: FaultFS, shop: Shop, tmp_path: Path
) -> None:
    row = shop.call()
    fault = fs.fail("EIO", op="sync", kind="wal")
    with pytest.raises(AppendUnknown) as info:
        shop.producer.append(row)
    assert fault.hits == 1
    assert info.value.ids == (id_text(row.id),)
    assert id_text(row.id) in str(info.value)
    shop.producer.append(row)
    assert shop.ids() == [row.id]
    assert after_cut(fs, tmp_path / "cut", Shop.ids) == [row.id]


def test_eio_at_the_sync_of_a_run_is_unknown(fs: FaultFS, shop: Shop) -> None:
    fs.fail("EIO", op="sync", kind="wal")
    with pytest.raises(AppendUnknown) as info:
        shop.producer.append_run(shop.log, "add", [b"a", b"b"], None, 1e6)
    head = bytes.fromhex(info.value.ids[0].replace("-", ""))
    for _ in range(2):
        shop.engine.append_run(shop.log, "add", [b"a", b"b"], None, head, 1e6)
    assert shop.ids() == [head, id_of(head, 1)]


def test_what_was_unknown_and_did_arrive_is_not_doubled(fs: FaultFS, shop: Shop, tmp_path: Path) -> None:
    row, other = shop.call(), shop.call()
    fs.fail("EIO", op="sync", kind="wal", forget=False)
    with pytest.raises(AppendUnknown):
        shop.producer.append(row)

    def again(found: Shop) -> list[Any]:
        assert found.ids() == [row.id]
        found.producer.append(row)
        found.producer.append(other)
        return found.ids()

    assert after_cut(fs, tmp_path / "cut", again, keep="all") == [row.id, other.id]


LATER: dict[str, Callable[[Shop], Any]] = {
    "append": lambda shop: shop.append(shop.call()),
    "run": lambda shop: shop.run(3),
    "beat": lambda shop: shop.beat(),
    "claim": lambda shop: shop.claim(1),
}


@pytest.mark.parametrize("what", LATER)
def test_s3_nothing_is_acknowledged_before_the_full_checkpoint(
    fs: FaultFS, shop: Shop, tmp_path: Path, what: str
) -> None:
    shop.run(4)
    shop.claim(2)  # its frames are what the failed sync leaves out
    fs.fail("EIO", op="sync", kind="wal")
    with pytest.raises(AppendUnknown):
        shop.append(shop.call())
    fault = fs.fail("EIO", op="sync", kind="db", once=False)
    before = dump(shop.engine)
    for _ in range(3):
        with pytest.raises(EngineUnavailable, match="cannot be synced"):
            LATER[what](shop)
    assert fault.hits == 3
    assert dump(shop.engine) == before
    fault.clear()
    LATER[what](shop)
    shop.beat()
    assert after_cut(fs, tmp_path / "cut", lambda found: dump(found.engine)) == with_worker(
        dump(shop.engine), shop
    )


def with_worker(state: str, shop: Shop) -> str:
    """Opening a cut as a shop registers one more worker; so do the same here."""
    shop.engine.register(Registration("shop", "w", "host", "boot", 1, 0.0, {}))
    return dump(shop.engine)


def test_s3_others_in_the_way_of_the_full_checkpoint(fs: FaultFS, shop: Shop) -> None:
    shop.run(2)
    reader = fs.connect("q.db")
    reader.execute("BEGIN; SELECT * FROM record")
    fs.fail("EIO", op="sync", kind="wal")
    with pytest.raises(AppendUnknown):
        shop.append(shop.call())
    with pytest.raises(EngineUnavailable, match="others use it"):
        shop.append(shop.call())
    reader.execute("COMMIT")
    reader.close()
    shop.append(shop.call())
    assert len(shop.ids()) == 3


def test_s3_a_checkpoint_whose_sync_failed_puts_appends_in_doubt_too(
    fs: FaultFS, shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One connection hears of the error, another one appends; the worker goes on."""
    shop.run(4)
    shop.claim(2)
    fault = fs.fail("EIO", op="sync", kind="wal")
    shop.engine.tidy(0)
    assert fault.hits == 1
    assert "could not be copied" in caplog.text
    row = shop.call()
    shop.append(row)
    assert row.id in after_cut(fs, tmp_path / "cut", Shop.ids)


def test_s3_a_sync_that_fails_elsewhere_while_an_append_is_under_way(fs: FaultFS, shop: Shop) -> None:
    shop.run(1)

    def meanwhile(op: str, file: str, n: int) -> None:
        fs.on_event = None
        shop.engine._doubt.rise()

    fs.on_event = meanwhile
    fault = fs.fail("EIO", op="sync", kind="db")
    row = shop.call()
    with pytest.raises(AppendUnknown):
        shop.append(row)
    assert fault.hits == 1
    shop.producer.append(row)
    assert shop.ids().count(row.id) == 1


def test_eio_at_a_write_stores_nothing(fs: FaultFS, shop: Shop, tmp_path: Path) -> None:
    shop.run(2)
    before = dump(shop.engine)
    row = shop.call()
    fs.fail("EIO", op="write", kind="wal", once=False, partial=True)
    with pytest.raises(AppendUnknown):
        shop.producer.append(row)
    assert dump(shop.engine) == before
    fs.clear()
    shop.producer.append(row)
    assert len(shop.ids()) == 3
    assert row.id in after_cut(fs, tmp_path / "cut", Shop.ids)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("what", ["single", "rows", "run"])
def test_no_space_for_an_append(fs: FaultFS, shop: Shop, tmp_path: Path, what: str, partial: bool) -> None:
    shop.run(2)
    before = dump(shop.engine)
    rows = [shop.call(3000) for _ in range(5)]
    send: Callable[[], Any] = {
        "single": lambda: shop.producer.append(rows[0]),
        "rows": lambda: shop.producer.append_rows(rows),
        "run": lambda: shop.producer.append_run(shop.log, "add", [b"." * 3000] * 5, None, 1e6),
    }[what]
    fault = fs.fail("ENOSPC", op="write", once=False, partial=partial, at=2)
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match=r"no space left .* nothing was sent"):
            send()
    assert fault.hits >= 2
    assert dump(shop.engine) == before
    for keep in ("none", "all"):
        assert len(after_cut(fs, tmp_path / keep, Shop.ids, keep)) == 2
    fs.clear()
    send()
    assert len(shop.ids()) == 2 + (1 if what == "single" else 5)
    sound(shop.engine)


def test_no_space_for_a_settlement_changes_nothing(fs: FaultFS, shop: Shop, tmp_path: Path) -> None:
    shop.run(4)
    lease = shop.claim(3)
    calls = Verdict(lease.spans[0].lo, ending="success", calls=[shop.call()])
    before = dump(shop.engine)
    fs.fail("ENOSPC", op="write", once=False)
    for attempt in (lambda: shop.settle(lease, verdicts=[calls]), lambda: shop.claim(1), shop.beat):
        with pytest.raises(EngineUnavailable, match="no space left"):
            attempt()
    assert dump(shop.engine) == before
    fs.clear()
    shop.settle(lease, verdicts=[calls])
    shop.beat()
    sound(shop.engine)
    assert len(shop.ids()) == 5
    assert after_cut(fs, tmp_path / "cut", lambda found: len(found.engine.leases(found.main))) == 0


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("op", ["write", "sync"])
def test_a_checkpoint_that_fails_harms_nothing(
    fs: FaultFS, shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Any, op: Any
) -> None:
    ids = shop.run(50, 500)
    lease = shop.claim(20)
    fault = fs.fail(error, op=op, kind="db", once=False, partial=True, at=2 if op == "write" else 1)
    for _ in range(2):
        shop.engine.tidy(0)  # a worker does it after each beat
        if (error, op) == ("ENOSPC", "write"):  # else S3 holds everything up until the disk works again
            shop.settle(lease, 1)
    assert fault.hits >= 1
    assert [record.levelno for record in caplog.records if "could not be copied" in record.message]
    sound(shop.engine)
    for keep in ("none", "all"):
        assert after_cut(fs, tmp_path / keep, Shop.ids, keep) == ids
    fs.clear()
    more = shop.run(1)
    shop.engine.tidy(0)
    assert shop.engine._state.checkpoint() == 0
    assert after_cut(fs, tmp_path / "after", Shop.ids) == ids + more


def test_h20_an_append_does_not_fail_for_the_checkpoint_after_it(
    fs: FaultFS, shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "WAL_SIZE", 0)
    fault = fs.fail("ENOSPC", op="write", kind="db", once=False)
    row = shop.call()
    shop.producer.append(row)
    shop.run(2)
    assert fault.hits >= 2
    assert "could not be copied" in caplog.text
    assert len(shop.ids()) == 3


def test_the_lock_held_by_another_is_refused_after_the_time_out(fs: FaultFS, shop: Shop) -> None:
    other = fs.connect("q.db")
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=r"locked .* nothing was sent"):
        shop.append(shop.call())
    assert 0.9 < time.monotonic() - began < 3
    other.execute("ROLLBACK")
    other.close()
    shop.append(shop.call())


# -- Files that cannot be used


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user can reach, unlike `tmp_path`."""
    folder = Path(tempfile.mkdtemp(prefix="respool-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def at(path: Path) -> SQLiteEngine:
    return SQLiteEngine(SQLiteOptions(path, timeout=0.3))


def made(path: Path) -> Path:
    """Make a database with one record."""
    engine = at(path)
    Shop(engine).run(1)
    engine.close()
    return path


def make_read_only(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.chmod(0o444)


def test_a_file_that_is_read_only(folder: Path, request: pytest.FixtureRequest) -> None:
    path = made(folder / "q.db")
    make_read_only(path)
    folder.chmod(0o777)
    before = path.read_bytes()
    request.getfixturevalue("nobody")
    engine = at(path)
    log = engine.streams()[0].logs[0]
    for write in (
        lambda: engine.append_run(log, "add", [b""], None, bytes(16), 1.0),
        lambda: engine.create_stream("queue", "shop", "other", 1, {}),
        lambda: engine.beat(1, False, {}, synced=False),
    ):
        with pytest.raises(EngineUnavailable, match=r"q\.db cannot be written to: .* nothing was sent"):
            write()
    assert len(engine.records(0, 1 << 62, 10)) == 1, "reading is allowed"
    engine.close()
    assert path.read_bytes() == before


def test_a_file_that_becomes_read_only_stays_usable_by_who_has_it_open_and_says_so_to_others(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    made(folder / "q.db")  # by us: the other user may not reach the package's own files
    if os.geteuid() == 0:
        for each in (folder, *folder.iterdir()):
            os.chown(each, NOBODY, -1)
    request.getfixturevalue("nobody")
    shop = Shop(at(folder / "q.db"))
    shop.run(1)
    make_read_only(folder / "q.db")
    shop.run(1)
    with pytest.raises(EngineUnavailable, match=r"q\.db cannot be written to"):
        Shop(at(folder / "q.db"))
    shop.run(1)
    assert len(shop.ids()) == 4
    shop.engine.close()


def test_a_folder_that_is_not_writable(folder: Path, request: pytest.FixtureRequest) -> None:
    path = made(folder / "old.db")
    path.chmod(0o666)
    for each in folder.glob("old.db-*"):
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    folder.chmod(0o555)
    request.getfixturevalue("nobody")
    for name in ("new.db", "old.db"):
        with pytest.raises(EngineUnavailable, match=name):
            at(folder / name)
    assert [each.name for each in folder.iterdir()] == ["old.db"]


def test_a_path_that_is_a_folder_or_leads_nowhere(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "q.db", made(tmp_path / "q.db") / "q.db"):
        with pytest.raises(EngineUnavailable, match="cannot open"):
            at(path)


def not_a_database(path: Path) -> None:
    path.write_bytes(b"to do: buy milk\n" * 500)


def damaged_header(path: Path) -> None:
    with made(path).open("r+b") as file:
        file.write(os.urandom(100))


def damaged_schema(path: Path) -> None:
    with made(path).open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 200)


@pytest.mark.parametrize("make", [not_a_database, damaged_header, damaged_schema])
def test_a_file_that_is_damaged_or_no_database(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "q.db"
    make(path)
    for name in ("q.db-wal", "q.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    before = path.read_bytes()
    with pytest.raises(EngineError, match=r"q\.db.* is damaged or not a") as info:
        at(path)
    assert type(info.value) is EngineError
    assert path.read_bytes() == before


def test_a_database_of_another_application_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    theirs = apsw.Connection(str(path))
    theirs.execute("CREATE TABLE customer (id); INSERT INTO customer VALUES (1); PRAGMA user_version = 1")
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(ConfigError, match="something else"):
            at(path)
    assert path.read_bytes() == before, "not even its journal mode is changed"
    assert theirs.execute("PRAGMA journal_mode").get == "delete"
    theirs.close()


def test_a_newer_schema_is_left_as_it_is(tmp_path: Path) -> None:
    path = made(tmp_path / "q.db")
    db = apsw.Connection(str(path))
    db.execute(f"PRAGMA user_version = {preparing.SCHEMA_VERSION + 1}")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew, match="pip install -U"):
        at(path)
    assert path.read_bytes() == before


def test_many_may_create_a_database_at_once(tmp_path: Path) -> None:
    for attempt in range(3):
        path = tmp_path / f"{attempt}.db"
        start, failed = threading.Barrier(6), []

        def create(path: Path = path, start: threading.Barrier = start, failed: list[Any] = failed) -> None:
            start.wait()
            try:
                Shop(SQLiteEngine(SQLiteOptions(path, timeout=20.0))).engine.close()
            except Exception as error:  # noqa: BLE001  (shown below)
                failed.append(error)

        threads = [threading.Thread(target=create) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


@pytest.mark.parametrize(
    ("version", "safe"), [("3.51.2", False), ("3.7.17", False), ("3.51.3", True), ("4.0.0", True)]
)
def test_a_sqlite_that_can_corrupt_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, safe: bool
) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    if safe:
        at(tmp_path / "q.db").close()
        return
    with pytest.raises(EngineTooOld, match=version):
        at(tmp_path / "q.db")
    assert not (tmp_path / "q.db").exists()


def mounts(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    text = "\n".join(("22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw", *lines)) + "\n"
    read, exists = Path.read_text, Path.exists

    def mocked(self: Path, *args: Any) -> str:
        return text if str(self) == "/proc/self/mountinfo" else read(self, *args)

    monkeypatch.setattr(Path, "read_text", mocked)
    monkeypatch.setattr(  # only Linux has it
        Path, "exists", lambda self, **how: str(self) == "/proc/self/mountinfo" or exists(self, **how)
    )


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
@pytest.mark.parametrize("name", ["plain", "with blank", "büro", "back\\slash"])
def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shown = str(folder).replace("\\", "\\134").replace(" ", "\\040")
    broken = b"/mnt/\xff".decode("utf-8", "surrogateescape")
    mounts(
        monkeypatch,
        f"30 22 0:40 / {shown} rw,relatime shared:2 master:1 - {kind} server:/x rw",
        f"31 22 0:41 / {broken} rw - tmpfs tmpfs rw",
    )
    with pytest.raises(ConfigError, match="network file system"):
        at(folder / "q.db")
    assert list(folder.iterdir()) == []
    at(tmp_path / "q.db").close()
    beside = tmp_path / f"{name}-beside"
    beside.mkdir()
    at(beside / "q.db").close()


def test_the_last_mount_on_a_point_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = os.path.realpath(tmp_path)
    below, above = f"30 22 0:40 / {point} rw - nfs s:/x rw", f"31 22 0:41 / {point} rw - ext4 /dev/b rw"
    mounts(monkeypatch, below, above)
    assert preparing.file_system(tmp_path / "q.db") == "ext4"
    mounts(monkeypatch, above, below)
    assert preparing.file_system(tmp_path / "q.db") == "nfs"


def remove(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


@pytest.mark.parametrize("how", ["deleted", "replaced", "folder deleted", "put back"])
def test_a_file_that_is_deleted_or_replaced_under_an_app(tmp_path: Path, how: str) -> None:
    """None is made in its place, or who puts it back would lose what was acknowledged meanwhile."""
    path = tmp_path / "data" / "q.db"
    path.parent.mkdir()
    app, other = App("shop", f"sqlite:///{path}"), App("shop", f"sqlite:///{tmp_path / 'other.db'}")

    @app.task
    def add(x: int) -> None: ...

    events = app.stream("events")
    add.delay(1)
    if how == "replaced":
        other.send_task("add", (2,))
        other.close()
        remove(path)
        (tmp_path / "other.db").rename(path)
    elif how == "put back":
        path.parent.rename(tmp_path / "away")
    else:
        remove(path)
        if how == "folder deleted":
            shutil.rmtree(path.parent)
    with pytest.raises(DatabaseGone, match="deleted or replaced"):
        add.delay(3)
    if how != "replaced":
        for send in (lambda: add.delay(3), lambda: add.delay_many([3]), lambda: events.publish({"a": 1})):
            with pytest.raises(DatabaseGone, match="put it back, or restart"):
                send()
        assert not path.exists()
    if how == "put back":
        (tmp_path / "away").rename(path.parent)
    elif how != "replaced":
        path.parent.mkdir(exist_ok=True)
        app.close()  # as with a restart
    add.delay(3)
    events.publish({"a": 1})
    there = 1 if how in ("replaced", "put back") else 0
    tasks = [record.task for record in app.engine.records(0, 1 << 62, 10)]
    assert tasks.count("add") == there + 1
    assert len(tasks) == there + 2
    app.close()


@pytest.mark.parametrize("how", ["sent", "published"])
def test_what_is_sent_to_a_file_that_was_replaced_goes_to_the_new_one_from_the_next_on(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "q.db"
    app, other = App("shop", f"sqlite:///{path}"), App("shop", f"sqlite:///{tmp_path / 'other.db'}")
    events, add = app.stream("events"), app.task(lambda x: None, name="add")
    send = (lambda: add.delay(3)) if how == "sent" else (lambda: events.publish({"a": 1}))
    send()
    other.send_task("add", (2,))
    other.close()
    remove(path)
    (tmp_path / "other.db").rename(path)
    with pytest.raises(DatabaseGone, match="deleted or replaced"):
        send()
    send()
    assert len(list(app.engine.records(0, 1 << 62, 10))) == 2
    app.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_connection_opened_late_does_not_end_up_in_another_file(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "q.db"
    engine = at(path)
    engine.create_stream(*QUEUE)  # by the writer; the one for the state is not open yet
    remove(path)
    if replaced:
        made(path)
    for attempt in (
        lambda: engine.beat(1, False, {}, synced=False),
        lambda: engine.append_run(1, "add", [b""], None, bytes(16), 1.0),
    ):
        with pytest.raises(DatabaseGone):
            attempt()
    assert path.exists() == replaced
    engine.close()
    if replaced:
        again = Shop(at(path))
        assert len(again.ids()) == 1
        sound(again.engine)
        again.engine.close()


def test_an_engine_that_is_closed_opens_nothing(tmp_path: Path) -> None:
    engine = at(tmp_path / "q.db")
    log = engine.create_stream(*QUEUE).logs[0]
    engine.close()
    remove(tmp_path / "q.db")
    with pytest.raises(EngineUnavailable, match="closed"):
        engine.append_run(log, "add", [b""], None, bytes(16), 1.0)
    assert not (tmp_path / "q.db").exists()


# -- How often it syncs


class Syncs:
    """Counts syncs of the write-ahead log."""

    def __init__(self, fs: FaultFS) -> None:
        self.count = 0
        fs.on_event = self

    def __call__(self, op: str, file: str, n: int) -> None:
        self.count += op == "sync"

    def of(self, do: Callable[[], Any]) -> int:
        before = self.count
        do()
        return self.count - before


def writes(shop: Shop) -> dict[str, Callable[[], Any]]:
    return {
        "append": lambda: shop.producer.append(shop.call()),
        "rows": lambda: shop.append(*(shop.call(2000) for _ in range(100))),
        "run": lambda: shop.run(1000),
        "synced beat": shop.beat,
        "beat": lambda: shop.beat(synced=False),
        "claim and settle": lambda: shop.settle(shop.claim(10)),
    }


def test_full_syncs_each_append_once_and_claims_never(fs: FaultFS, shop: Shop) -> None:
    shop.run(1)
    syncs = Syncs(fs)
    for _ in range(3):
        assert {name: syncs.of(do) for name, do in writes(shop).items()} == {
            "append": 1, "rows": 1, "run": 1, "synced beat": 1, "beat": 0, "claim and settle": 0,
        }  # fmt: skip


def test_os_syncs_no_append(fs: FaultFS) -> None:
    shop = Shop(opened(fs, "os"))
    syncs = Syncs(fs)
    for _ in range(3):
        assert not any(syncs.of(do) for do in writes(shop).values())
    assert shop.engine._state.checkpoint() == 0
    assert syncs.count == 2, "a checkpoint syncs the log, then the file"
    fs.on_event = None
    shop.engine.close()


class Waiting(deque[Any]):
    """A producer's queue that tells when so many wait in it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self.full = size, threading.Event()

    def append(self, item: Any) -> None:
        super().append(item)
        if len(self) == self._size:
            self.full.set()


def test_group_commit_shares_syncs(fs: FaultFS, shop: Shop) -> None:
    """While one commit is being synced seven more calls come; they share the next."""
    shop.run(1)
    syncing, go_on = threading.Event(), threading.Event()
    syncs = Syncs(fs)

    def slow(op: str, file: str, n: int) -> None:
        syncs(op, file, n)
        if op == "sync" and not syncing.is_set():
            syncing.set()
            assert go_on.wait(20)

    fs.on_event = slow
    rows = [shop.call() for _ in range(8)]
    done: list[bytes] = []

    def send(row: NewCall) -> None:
        shop.producer.append(row)
        done.append(row.id)

    threads = [threading.Thread(target=send, args=(row,)) for row in rows]
    shop.producer._waiting = Waiting(7)
    threads[0].start()
    assert syncing.wait(20)
    for thread in threads[1:]:
        thread.start()
    assert shop.producer._waiting.full.wait(20)
    assert done == []
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert syncs.count == 2
    assert sorted(done) == sorted(row.id for row in rows)
    assert sorted(shop.ids()[1:]) == sorted(done)


def test_eio_in_a_shared_commit_is_told_to_each_with_its_own_id(fs: FaultFS, shop: Shop) -> None:
    shop.run(1)
    rows = [shop.call() for _ in range(5)]
    failed: dict[bytes, tuple[str, ...]] = {}
    fs.fail("EIO", op="sync", kind="wal", once=False)

    def send(row: NewCall) -> None:
        try:
            shop.producer.append(row)
        except (AppendUnknown, EngineUnavailable) as error:
            failed[row.id] = getattr(error, "ids", ())

    shop.producer._waiting = Waiting(5)
    shop.producer._lead.acquire()
    threads = [threading.Thread(target=send, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    assert shop.producer._waiting.full.wait(20)
    shop.producer._lead.release()
    shop.producer._wake_next()
    for thread in threads:
        thread.join(20)
    assert failed == {row.id: (id_text(row.id),) for row in rows}


# -- The write-ahead log's size


def wal_size(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def test_the_log_of_a_producer_alone_does_not_grow_without_bound(tmp_path: Path) -> None:
    shop = Shop(SQLiteEngine(SQLiteOptions(tmp_path / "q.db", "os")))
    limit = 2 * engine_module.WAL_SIZE
    sizes = []
    for _ in range(60):  # about 90 MB
        shop.run(1000, 1500)
        sizes.append(wal_size(tmp_path / "q.db"))
    assert limit < max(sizes) < limit + 4_000_000
    assert sizes == sorted(sizes), "it is written over, not cut"
    assert len(shop.ids()) == 60_000
    shop.engine.close()


@pytest.mark.parametrize(("asked", "size"), [({}, 2048), ({"page_size": "8192"}, 8192)])
def test_pages_are_small_unless_the_url_says_otherwise(
    tmp_path: Path, asked: dict[str, str], size: int
) -> None:
    shop = Shop(SQLiteEngine(SQLiteOptions(tmp_path / "q.db", "os", pragmas=asked)))
    shop.run(1)
    assert shop.engine._reader.db.execute("PRAGMA page_size").get == size
    assert shop.engine._writer.log_size() == wal_size(tmp_path / "q.db") - 32, (
        "what is counted is what is written"
    )
    shop.engine.close()


def test_the_log_beside_a_worker_stays_smaller(
    fs: FaultFS, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "WAL_SIZE", 400_000)
    sizes = []
    for _ in range(40):
        shop.run(20, 2000)
        shop.settle(shop.claim(20))
        shop.engine.tidy(engine_module.WAL_SIZE)
        sizes.append(wal_size(fs.path("q.db")))
    assert 400_000 < max(sizes) < 600_000
    assert sizes == sorted(sizes)
    sound(shop.engine)


def test_a_reader_in_the_way_lets_the_log_grow_and_is_not_waited_for(
    fs: FaultFS, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        engine_module, "WAL_SIZE", 400_000
    )  # after a try in vain, so much more before the next
    reader = fs.connect("q.db")
    shop.run(200, 2000)
    reader.execute("BEGIN; SELECT * FROM record")
    before = wal_size(fs.path("q.db"))
    for _ in range(3):
        shop.run(200, 2000)
        began = time.monotonic()
        shop.engine.tidy(0)
        assert time.monotonic() - began < 2
    assert wal_size(fs.path("q.db")) > before + 3 * 200 * 2000
    reader.execute("COMMIT")
    reader.close()
    shop.run(200, 2000)
    shop.engine.tidy(0)
    size = wal_size(fs.path("q.db"))
    shop.run(200, 2000)
    assert wal_size(fs.path("q.db")) == size


def test_the_log_of_single_calls_is_looked_at_in_time(
    fs: FaultFS, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "WAL_SIZE", 400_000)
    for _ in range(300):
        shop.producer.append(shop.call())
    assert 800_000 < wal_size(fs.path("q.db")) < 900_000
