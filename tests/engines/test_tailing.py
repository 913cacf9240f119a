"""Reading on where a queue or stream ends: what comes, what comes late, and in partitions made later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.engines.kits import KITS, EngineKit, PostgresKit

from respool import App
from respool import stream as stream_module
from respool.engines.base import Engine, Record, Stream
from respool.record import new_head
from respool.replay import tailing
from respool.replay.tailing import Tail

NOW = 1_700_000_000.0


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    made = KITS[request.param](request, tmp_path, "full")
    yield made
    made.remove()


def append(engine: Engine, log: int, bodies: list[bytes], at: float = NOW) -> None:
    engine.append_run(log, "add", bodies, None, new_head(at), at)


def bodies(found: list[Record]) -> list[bytes]:
    return [record.body for record in found]


def test_what_comes_is_seen_once_and_in_its_order(engine: Engine, queue: Stream, log: int) -> None:
    append(engine, log, [b"%d" % n for n in range(5)])
    tail = Tail(engine, queue)
    assert bodies(tail.last(2)) == [b"3", b"4"]
    assert tail.look() == []
    append(engine, log, [b"5", b"6"], NOW + 1)
    assert bodies(tail.look()) == [b"5", b"6"]
    assert tail.look() == []


def test_what_is_committed_while_a_stream_is_read_is_read_too(
    session_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G4: behind what was read; what was rolled back leaves nothing, and each comes once."""
    monkeypatch.setattr(stream_module, "PAGE", 4)
    kit = PostgresKit(session_database, "full")
    with App("shop", url=kit.url) as app:
        events = app.stream("seen")
        events.publish({"n": 0})
        others = [psycopg.connect(session_database) for _ in range(2)]
        for n, other in enumerate(others):
            with app.transaction(other):
                events.publish_many({"n": f"late {n}-{m}"} for m in range(3))
            events.publish_many({"n": n * 10 + m} for m in range(1, 8))
        seen = []
        for event in events.read():
            seen.append(event.value["n"])
            if len(seen) == 9:
                others[0].commit()
                others[1].rollback()
        early = [0, *range(1, 8), *range(11, 18)]
        assert seen == [*early, "late 0-0", "late 0-1", "late 0-2"]
        assert len(list(events.read())) == len(seen)
        for other in others:
            other.close()
    kit.remove()


def test_many_that_came_since_are_read_in_pages(
    engine: Engine, queue: Stream, log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailing, "PAGE", 4)
    tail = Tail(engine, queue)
    assert tail.last(0) == []
    append(engine, log, [b"%d" % n for n in range(10)])
    assert bodies(tail.look()) == [b"%d" % n for n in range(10)]


def test_a_partition_made_later_is_read_from_its_beginning(engine: Engine, queue: Stream, log: int) -> None:
    append(engine, log, [b"0"])
    tail = Tail(engine, queue)
    (lane,) = engine.add_lane(queue, 9).lanes[9]
    append(engine, lane, [b"first"], NOW + 1)
    append(engine, log, [b"1"], NOW + 2)
    assert bodies(tail.look()) == [b"first", b"1"], "by time"


@pytest.fixture
def on_postgres(session_database: str) -> Iterator[App]:
    kit = PostgresKit(session_database, "full")
    with App("shop", url=kit.url) as app:
        app.task(name="add")(lambda x: x)
        yield app
    kit.remove()


def _shown(found: list[Record], app: App) -> list[Any]:
    return [app.tasks["add"].codec.decode(record.body)[0][0] for record in found]


def test_g4_what_is_committed_late_is_seen_once_it_is(on_postgres: App, session_database: str) -> None:
    """Its number was given before that of another that could be read; one that is rolled back never comes."""
    app, add = on_postgres, on_postgres.tasks["add"]
    add.delay(0)
    with psycopg.connect(session_database) as before, psycopg.connect(session_database) as gone:
        add.apply_async((1,), connection=before)
        add.delay(2)
        tail = Tail(app.engine, app.stream_of("queue", "default"))
        assert _shown(tail.last(10), app) == [0, 2]
        add.apply_async((3,), connection=gone)
        with psycopg.connect(session_database) as late:
            add.apply_async((4,), connection=late)
            add.delay(5)
            assert _shown(tail.look(), app) == [5]
            assert _shown(tail.look(), app) == []
            late.commit()
        assert _shown(tail.look(), app) == [4]
        gone.rollback()
        before.commit()
        assert _shown(tail.look(), app) == [1], "also one from before the beginning"
        add.delay(6)
        assert _shown(tail.look(), app) == [6]
