"""How SQLite appends: without a temporary table, and yet upon the latest snapshot only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.engines.kits import SQLiteKit
from tests.engines.test_conformance import FIRST, NOW, head, ids

from respool.delivery.model import NewCall
from respool.engines.sqlite.engine import SQLiteEngine
from respool.engines.sqlite.sql import SQL
from respool.engines.turns import limited
from respool.errors import EngineError, EngineUnavailable
from respool.record import first_pos, id_of


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SQLiteKit]:
    kit = SQLiteKit(tmp_path, "full")
    yield kit
    kit.remove()


def opened(kit: SQLiteKit) -> tuple[Any, int]:
    engine = kit.open()
    return engine, engine.create_stream("queue", "shop", "default", 1, {}).logs[0]


NAMES = {SQL[name]: name for name in ("place_of_run", "append_run_at", "append_run")}


def statements_of(engine: SQLiteEngine, before: dict[str, Callable[[], object]] | None = None) -> list[str]:
    """Return by which statements runs are appended from now on; call functions before those with a name."""
    seen: list[str] = []

    def trace(cursor: Any, statement: str, bound: Any) -> bool:
        if statement in NAMES:
            seen.append(NAMES[statement])
            (before or {}).get(seen[-1], lambda: None)()
        return True

    engine._writer.db.exec_trace = trace
    return seen


@pytest.mark.parametrize("name", ["append_run_at", "append_row"])
def test_no_temporary_table_is_filled_first(kit: SQLiteKit, name: str) -> None:
    engine, _ = opened(kit)
    db = engine._reader.db
    bound = (1, 1, apsw.carray((b"x",)), *[None] * 7) if name == "append_run_at" else (None,) * 10
    names = {row[1] for row in db.execute("EXPLAIN " + SQL[name], bound[: 7 if "run" in name else 10])}
    assert "Insert" in names
    assert "OpenEphemeral" not in names


def test_a_run_alone_is_written_at_its_place(kit: SQLiteKit) -> None:
    engine, log = opened(kit)
    seen = statements_of(engine)
    engine.append_run(log, "add", [b"a", b"b"], None, FIRST, NOW)
    assert seen == ["place_of_run", "append_run_at"]
    engine.append_run(log, "add", [b"a", b"b"], None, FIRST, NOW)
    assert seen[2:] == ["place_of_run"], "it is there already"
    assert ids(engine, log) == [FIRST, id_of(FIRST, 1)]


def test_a_commit_in_between_is_seen(kit: SQLiteKit) -> None:
    engine, log = opened(kit)
    other = kit.open()
    theirs = head()
    meanwhile = lambda: other.append_run(log, "add", [b"x"] * 3, None, theirs, NOW)  # noqa: E731
    seen = statements_of(engine, {"append_run_at": meanwhile})
    engine.append_run(log, "add", [b"a", b"b"], None, FIRST, NOW)
    assert seen == ["place_of_run", "append_run_at", "append_run"]
    found = engine.records(first_pos(log), first_pos(log + 1), 10)
    assert [record.pos for record in found] == [first_pos(log) + n for n in range(5)]
    assert [record.body for record in found] == [b"x"] * 3 + [b"a", b"b"]


def test_the_same_run_in_between_is_appended_once(kit: SQLiteKit) -> None:
    engine, log = opened(kit)
    other = kit.open()
    meanwhile = lambda: other.append_run(log, "add", [b"a", b"b"], None, FIRST, NOW)  # noqa: E731
    statements_of(engine, {"append_run_at": meanwhile})
    engine.append_run(log, "add", [b"a", b"b"], None, FIRST, NOW)
    assert ids(engine, log) == [FIRST, id_of(FIRST, 1)]


def test_who_holds_the_lock_is_waited_for(kit: SQLiteKit) -> None:
    engine, log = opened(kit)
    other = apsw.Connection(engine.target)
    waits = threading.Event()
    seen = statements_of(engine, {"append_run": waits.set})
    other.execute("BEGIN IMMEDIATE")
    sent = threading.Thread(target=engine.append_run, args=(log, "add", [b"a", b"b"], None, FIRST, NOW))
    sent.start()
    assert waits.wait(10)
    other.execute("COMMIT")
    sent.join(10)
    assert not sent.is_alive()
    assert seen == ["place_of_run", "append_run_at", "append_run"]
    assert ids(engine, log) == [FIRST, id_of(FIRST, 1)]
    other.close()


def test_threads_behind_who_holds_the_lock_wait_once_and_not_one_after_the_other(kit: SQLiteKit) -> None:
    """P10: what one waits for other threads is of its time."""
    engine, log = opened(kit)
    engine._writer._timeout = 1.0
    other = apsw.Connection(engine.target)
    other.execute("BEGIN IMMEDIATE")

    def one(n: int) -> float:
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match="locked by somebody else for more than 1 s"):
            engine.append_unique(NewCall(log, "add", b"%d" % n, None, head(), NOW), f"k{n}", None, None)
        return time.monotonic() - began

    with ThreadPoolExecutor(6) as threads:
        took = list(threads.map(one, range(6)))
    assert max(took) < 2.5, took
    other.execute("ROLLBACK")
    assert ids(engine, log) == []
    other.close()


def test_a_run_leaves_no_snapshot_behind(kit: SQLiteKit) -> None:
    """One would keep the write-ahead log from being written over."""
    engine, log = opened(kit)
    for known in (False, True):
        engine.append_run(log, "add", [b"a"], None, FIRST, NOW)
        assert engine._state.checkpoint("RESTART") == 0, known
    with pytest.raises(EngineError, match="does not exist: its stream was dropped"):
        engine.append_run(log + 9, "add", [b"a"], None, head(), NOW)
    engine.append_run(log, "add", [b"a"], None, head(), NOW)
    assert engine._state.checkpoint("TRUNCATE") == 0


def test_who_has_little_time_left_waits_no_longer_for_the_file(kit: SQLiteKit) -> None:
    """P10: callers who have waited for others before have what is left of their time."""
    engine, log = opened(kit)
    holder = apsw.Connection(str(engine.options.path))
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with limited(began + 0.2), pytest.raises(EngineUnavailable, match="was locked by somebody else"):
        engine.append_rows([NewCall(log, "t", b"x", None, head(), NOW)])
    assert 0.2 <= time.monotonic() - began < engine.options.timeout / 2
    holder.close()
