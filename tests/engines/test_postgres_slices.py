"""PostgreSQL: what is much is done in slices, each of which is short, and holds up nobody."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest
from tests.engines.kits import PostgresKit
from tests.engines.test_postgres import (
    CUT,
    OLD,
    PATIENCE,
    Reader,
    fill,
    leap,
    numbers,
    promptly,
    sound,
    started,
    tables,
    tell,
    trim_all,
)
from tests.engines.test_postgres import kit as kit
from tests.engines.test_postgres import writers as writers
from tests.worker.support import eventually

from respool.delivery.model import Lease, Parked
from respool.delivery.spans import Span
from respool.engines import open_engine
from respool.engines.base import Group, Reads, Stream
from respool.engines.postgres import aside
from respool.engines.postgres.migrate import bring_up_to_date
from respool.engines.postgres.partitions import SIZE
from respool.engines.postgres.sql import GROUP_LOCKS, indexes
from respool.location import parse_url
from respool.record import first_pos, id_of


def parked_away(engine: Any, queue: Stream, main: Group, log: int, size: int) -> tuple[int, bytes]:
    """Have scheduled calls lie in a partition below the floor; return where it begins, and their run's id."""
    first = first_pos(log)
    fill(engine, log, 1, size)
    head = engine.records(first, first + 1, 1)[0].id
    due = time.time() + 3600
    engine.transact(
        Reads(main.id, positions=True),
        lambda view, change: (
            change.cursors.append((log, first + size)),
            change.parked.extend(Parked(first + n, "scheduled", due, "add") for n in range(size)),
        ),
    )
    leap(engine, log, SIZE)
    fill(engine, log)
    reader = Reader(engine, main)
    reader.drain()
    reader.leave_no_gap()  # for which transactions of other tests may be waited: the floor stops there
    while engine.log_states()[0].first < first + size:
        engine.trim(queue, CUT, 5000)
    return first, head


def test_what_is_parked_is_moved_in_slices_and_no_group_waits(
    kit: PostgresKit,
    engine: Any,
    queue: Stream,
    main: Group,
    log: int,
    writers: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is read at its place all the while, and once; only the last slice waits for the groups."""
    monkeypatch.setattr(aside, "A_SLICE", 10)
    first, head = parked_away(engine, queue, main, log, 95)
    busy = writers().begin()
    busy.execute("SELECT pg_advisory_xact_lock(%s, %s)", (GROUP_LOCKS, main.id))
    hasty: Any = open_engine(parse_url(kit.url), "full", 0.25)
    for slice in range(10):
        moved = tell(engine, "SELECT count(*) FROM respool.kept")[0][0]
        assert moved == min(10 * slice, 95)
        assert [each.pos - first for each in engine.records(first, first + 200, 200)] == list(range(95))
        assert len(engine.rows([Span(first, first + 95)])) == 95
        assert [engine.find("shop", id_of(head, n)) for n in (0, 42, 94)] == [first, first + 42, first + 94]
        gone = [promptly(lambda: hasty.trim(queue, CUT, 5000))]
        while not gone[-1] and len(gone) < 20:  # some steps may be given up, for want of time
            gone.append(promptly(lambda: hasty.trim(queue, CUT, 5000)))
        assert gone[-1] == (10 if slice < 9 else 5)
    last = started(lambda: hasty.trim(queue, CUT, 5000))
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid::bigint = %s"
    eventually(lambda: tell(engine, waits, (GROUP_LOCKS,)))
    assert not last.done()
    busy.rollback()
    assert last.result(PATIENCE) >= 0
    trim_all(hasty, queue)
    hasty.close()
    assert f"record_{log}_0" not in tables(engine, log)
    assert [each.pos - first for each in engine.records(first, first + 200, 200)] == list(range(95))
    sound(engine)


@pytest.mark.parametrize("ends", ["parked", "leased"])
def test_what_is_parked_again_after_its_slice_is_moved_with_the_last(
    engine: Any, queue: Stream, main: Group, log: int, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(aside, "A_SLICE", 10)
    first, head = parked_away(engine, queue, main, log, 30)
    lease = Lease(1 << 40 | next(numbers), 1, 0, [Span(first + 4, first + 6)], {}, OLD)
    engine.transact(
        Reads(main.id), lambda v, c: (c.leases.append(lease), c.unparked.extend((first + 4, first + 5)))
    )
    assert engine.trim(queue, CUT, 5000) == 10
    if ends == "leased":
        while engine.trim(queue, CUT, 5000):
            pass
        assert f"record_{log}_0" in tables(engine, log), "it is being run"
        assert tell(engine, "SELECT count(*) FROM respool.kept") == [(28,)]
        assert engine.find("shop", id_of(head, 4)) == first + 4
        sound(engine)
    engine.transact(
        Reads(main.id, (lease.id,)),
        lambda v, c: (
            c.dropped_leases.append(lease.id),
            c.parked.extend(Parked(first + n, "retry", OLD + 1e9, "add") for n in (4, 5)),
        ),
    )
    trim_all(engine, queue)
    assert f"record_{log}_0" not in tables(engine, log)
    assert [each.pos - first for each in engine.records(first, first + 200, 200)] == list(range(30))
    assert engine.find("shop", id_of(head, 4)) == first + 4
    sound(engine)


def test_indexes_that_were_made_by_hand_are_left_alone(engine: Any, queue: Stream, log: int) -> None:
    """As `docs/operations.md` says, for tables that are large: partition by partition, and nobody waits."""
    options, names = engine.options, ("journal_purged", "parked_blocked")
    said = {name: indexes(options.schema)[name].rstrip(";") for name in names}
    with psycopg.connect(options.conninfo, autocommit=True) as db:
        db.execute(f"DROP INDEX {', '.join(f'{options.schema}.{name}' for name in names)}".encode())
        db.execute(said["parked_blocked"].replace("INDEX", "INDEX CONCURRENTLY").encode())
        db.execute(said["journal_purged"].replace(" ON ", " ON ONLY ").encode())
        for part in (f"journal_{log}_0", "journal_rest"):
            own = said["journal_purged"].replace(".journal ", f".{part} ")
            own = own.replace("INDEX journal_purged", f"INDEX CONCURRENTLY {part}_purged")
            db.execute(own.encode())
            attach = (
                f"ALTER INDEX {options.schema}.journal_purged ATTACH PARTITION {options.schema}.{part}_purged"
            )
            db.execute(attach.encode())
        made = (
            "SELECT oid, indisvalid FROM pg_class JOIN pg_index ON indexrelid = oid WHERE relname = ANY (%s) "
        )
        made += "AND relnamespace = %s::regnamespace ORDER BY oid"
        before = db.execute(made.encode(), (list(names), options.schema)).fetchall()
        assert [valid for _, valid in before] == [True, True]
        assert not bring_up_to_date(db, options)
        assert db.execute(made.encode(), (list(names), options.schema)).fetchall() == before
