"""K3: a log that has lost its end, under groups that had read it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KafkaKit, SQLiteKit
from tests.engines.test_conformance import finish, grant, granted
from tests.engines.test_kafka_order import grant as in_order
from tests.services.kafka import KafkaServer

from respool import AppendUnknown
from respool.delivery.lapse import LOST
from respool.delivery.model import NewCall
from respool.engines.base import Group, Stream
from respool.engines.kafka.ends import LOOK
from respool.engines.kafka.epochs import LogTruncated
from respool.record import first_pos, new_head
from respool.replay import check, seek


@pytest.fixture
def server() -> Iterator[KafkaServer]:
    with KafkaServer() as started:
        yield started


@pytest.fixture
def kit(server: KafkaServer, tmp_path: Path) -> Iterator[KafkaKit]:
    made = KafkaKit(server.url(), SQLiteKit(tmp_path, "full"), "full")
    yield made
    made.remove()


def append(engine: Any, log: int, *bodies: bytes) -> None:
    """Append records one by one: each is a batch in the broker's file."""
    for body in bodies:
        now = time.time()
        call = NewCall(log, "add", body, None, new_head(now), now)
        try:
            engine.append_row(call)
        except AppendUnknown:  # its producer's numbers are ahead of the log's; another one is made
            engine.append_row(call)


def lose_the_end(server: KafkaServer, topic: str, share: float) -> None:
    """Kill the broker, and take so much of a log as a disk may that was not synced; start it again."""
    server.kill()
    (file,) = (server.folder / "data" / f"{topic}-0").glob("*.log")
    os.truncate(file, int(file.stat().st_size * share))
    server.start()


def group_of(engine: Any, stream: Stream, name: str) -> Group:
    return next(group for group in engine.groups() if (group.stream, group.name) == (stream.id, name))


def read(engine: Any, group: Group, want: int = 20) -> list[bytes]:
    lease = grant(engine, group, want)
    if lease is None:
        return []
    bodies = [row[2] for row in engine.rows(lease.spans)]
    finish(engine, group, lease)
    return bodies


def test_what_a_log_lost_is_not_taken_for_what_comes_in_its_place(kit: KafkaKit, server: KafkaServer) -> None:
    engine: Any = kit.open()
    queue = engine.create_stream("queue", "shop", "default", 2, {})
    log, other_log = queue.logs
    first = first_pos(log)
    bounds = [(each, first_pos(each), None) for each in queue.logs]
    engine.create_group(queue, "shop", "slow", "group", {}, bounds)
    main, slow = group_of(engine, queue, "main"), group_of(engine, queue, "slow")
    append(engine, log, *(b"old %d" % n for n in range(10)))
    append(engine, other_log, b"other")
    assert len(read(engine, main, 9)) == 9
    assert len(read(engine, main, 1)) == 1
    leased = grant(engine, slow, 3)
    assert granted(leased) == [first, first + 1, first + 2]
    finish(engine, slow, leased)
    late = engine.create_group(queue, "shop", "late", "group", {}, bounds)
    held = grant(engine, late, 10)
    assert held is not None
    assert held.spans[-1].hi > first + 5

    lose_the_end(server, engine.place(log).topic, 0.55)
    left = engine.ends([log])[log] - first
    assert 3 <= left < 10

    with pytest.raises(LogTruncated):  # who waits is told
        engine.has_work(main.id, time.time(), ())
    with pytest.raises(LogTruncated, match=f"group main had read.*respool seek main --to 0:{left}"):
        grant(engine, main, 5)
    there = [row[2] for row in engine.rows(held.spans)]
    assert there[:left] == [b"old %d" % n for n in range(left)], "what was granted and is gone ends"
    finish(engine, late, held)
    assert engine.counters(late.id)[LOST] == 10 - left

    append(engine, log, *(b"new %d" % n for n in range(left, 14)))  # past where `main` had been
    fresh = kit.open()
    for each in (engine, fresh):
        with pytest.raises(LogTruncated, match=f"--to 0:{left}"):
            grant(each, main, 5)
    new = [b"new %d" % n for n in range(left, 14)]
    expected = [b"old %d" % n for n in range(3, left)] + new
    assert sorted(read(fresh, slow)) == sorted([*expected, b"other"]), "who had not read so far goes on"
    seek(fresh, main, {log: first + left, other_log: first_pos(other_log) + 1})
    assert read(fresh, main) == new, "each of them is run"
    assert read(engine, main) == []
    append(engine, log, b"last")
    assert read(engine, main) == read(engine, slow) == [b"last"]
    seek(fresh, late, {log: first + left, other_log: first_pos(other_log) + 1})
    assert read(engine, late) == [*new, b"last"]
    assert check(engine).ok


@pytest.mark.parametrize("ordered", [False, True])
def test_what_was_read_ahead_of_the_end_that_is_lost_is_not_run(
    kit: KafkaKit, server: KafkaServer, ordered: bool
) -> None:
    """A worker has read further than it has claimed: what is there by now is another's."""
    engine: Any = kit.open()
    queue = engine.create_stream("queue", "shop", "default", 1, {"ordered": True} if ordered else {})
    (log,) = queue.logs
    main = group_of(engine, queue, "main")

    def claimed(want: int) -> list[bytes]:
        lease = in_order(engine, main, want) if ordered else grant(engine, main, want)
        assert lease is not None
        bodies = [row[2] for row in engine.rows(lease.spans)]
        finish(engine, main, lease)
        return bodies

    append(engine, log, *(b"old %d" % n for n in range(10)))
    assert claimed(5) == [b"old %d" % n for n in range(5)]  # and one more came along
    lose_the_end(server, engine.place(log).topic, 0.55)
    left = engine.ends([log])[log] - first_pos(log)
    assert left == 5
    append(engine, log, *(b"new %d" % n for n in range(5, 12)))
    time.sleep(LOOK)  # an end that was asked for is known for so long
    assert claimed(3) + claimed(20) == [b"new %d" % n for n in range(5, 12)]


def test_another_leader_that_has_it_all_is_no_loss(kit: KafkaKit, server: KafkaServer) -> None:
    engine: Any = kit.open()
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    log, main = queue.logs[0], group_of(engine, queue, "main")
    append(engine, log, b"1", b"2")
    assert read(engine, main) == [b"1", b"2"]
    epoch = engine._epochs_seen[log]
    server.restart()
    append(engine, log, b"3")
    assert read(engine, main) == [b"3"]
    assert engine._epochs_seen[log] > epoch
    append(engine, log, b"4")
    assert read(kit.open(), main) == [b"4"]
    assert check(engine).ok
