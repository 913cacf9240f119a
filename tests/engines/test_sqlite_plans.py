"""How SQLite goes about what is asked at every claim: by an index, however much is parked."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest
from tests.engines.kits import SQLiteKit

from respool.delivery.claim import Request, claim
from respool.delivery.model import NewCall, Settlement
from respool.delivery.settle import settle
from respool.engines.base import Reads
from respool.engines.sqlite.engine import SQLiteEngine
from respool.engines.sqlite.sql import SQL
from respool.record import new_head


@pytest.mark.parametrize(
    ("name", "bound", "uses"),
    [
        ("has_work", (1, 0.0, "[]"), "parked_due (grp=? AND <expr>=? AND due<?)"),
        ("next_due", (1, -1.0), "parked_due (grp=? AND <expr>=? AND due>?)"),
        ("due", (1, 1, 0.0, 10), "parked_due (grp=? AND <expr>=? AND due<?)"),
        ("parked_counts", (1,), "COVERING INDEX parked_dead (grp=?)"),
        ("dead_before", (1, "add", 0.0, 10), "parked_dead (grp=? AND task=? AND at<?)"),
        ("dead_tasks", (1,), "parked_dead (grp=? AND task>?)"),
        ("unknown", (1, "[]", 10), "parked_reason (grp=? AND reason=? AND task=?)"),
    ],
)
def test_what_is_due_is_found_by_an_index(
    tmp_path: Path, name: str, bound: tuple[object, ...], uses: str
) -> None:
    """A column's affinity is enough for an index on an expression not to be used: a claim took 11 ms."""
    kit = SQLiteKit(tmp_path, "full")
    engine = kit.open()
    engine.create_stream("queue", "shop", "default", 1, {})
    (path,) = tmp_path.rglob("*.db")
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    plan = [row[3] for row in db.execute("EXPLAIN QUERY PLAN " + SQL[name], bound)]  # type: ignore[arg-type]
    assert any(uses in step for step in plan), plan
    db.close()
    kit.remove()


def test_nothing_is_planned_anew_for_other_values(tmp_path: Path) -> None:
    """SQLite would do so where a bound value might make a partial index usable: 10 µs for each look."""
    kit = SQLiteKit(tmp_path, "full")
    engine = kit.open()
    assert isinstance(engine, SQLiteEngine)
    stream = engine.create_stream("queue", "shop", "default", 1, {})
    (group,) = engine.groups()
    planned: list[tuple[object, ...]] = []

    def plan(*what: object) -> int:
        planned.append(what)
        return apsw.SQLITE_OK

    for now in (1.0, 2.0, 3.0):
        pos = engine.append_row(NewCall(stream.logs[0], "add", b"", None, new_head(now), now))
        assert isinstance(pos, int)
        assert engine.status(group, pos).place == "pending"
        assert engine.has_work(group.id, now, ["add"])
        engine.next_due(group.id, now)
        lease = engine.transact(
            Reads(group.id, (), True, 1, 8, now, ("add",)),
            lambda view, change, now=now: claim(view, change, Request(1, 1, 0, int(now), now)),
        )
        settlement = Settlement(lease.id, 1, [(pos, pos + 1)], [], [(pos, b"1")], now, now, records=1)
        reads = Reads(group.id, (lease.id,))
        assert engine.transact(reads, lambda view, change, it=settlement: settle(view, change, it))
        assert engine.status(group, pos).place == "done"
        if now == 1.0:
            for connection in engine._connections.values():
                connection.db.authorizer = plan  # which is asked while a statement is prepared
        elif now == 2.0:
            assert planned, "all was prepared once more, to be looked at"
            planned.clear()
    assert planned == []
    kit.remove()
