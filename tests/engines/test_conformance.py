"""What every engine must do. One suite: an engine joins it with a kit in `kits.KITS`."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.kits import CUTS_ENDS, KITS, OTHER_SERVERS, SHARED, EngineKit

from respool.delivery.claim import Request, claim
from respool.delivery.death import Cause, Suspect, bury_lease
from respool.delivery.model import (
    MAX_LEASE,
    Change,
    JournalEntry,
    Lease,
    NewCall,
    Outcome,
    Parked,
    Position,
    Settlement,
    Verdict,
    View,
)
from respool.delivery.settle import give_back, settle
from respool.delivery.spans import Span
from respool.engines import stored_id
from respool.engines.base import (
    Conflict,
    Counts,
    Engine,
    Group,
    LeaseLost,
    ParkedFilter,
    Reads,
    Registration,
    Stream,
)
from respool.errors import ConfigError, EngineError, EngineUnavailable, PartlyAppended, RespoolError
from respool.record import Meta, first_pos, id_of, new_head

NOW = 1_700_000_000.0
FIRST = b"\x01" * 13 + b"\0\0\0"
ALL = 1_000_000
PATIENCE = 30
numbers = itertools.count(1)


@pytest.fixture(params=[*KITS, *OTHER_SERVERS])
def kits(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[EngineKit]]:
    """Two stores of one engine."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    made = [(KITS | OTHER_SERVERS)[request.param](request, folder, "full") for folder in folders]
    yield made
    for each in made:
        each.remove()


with_bells = pytest.mark.parametrize("kits", [*KITS, "postgres-newest"], indirect=True)
"""Marks what needs bells, which nobody hears through PgBouncer."""


@pytest.fixture
def kit(kits: list[EngineKit]) -> EngineKit:
    return kits[0]


@pytest.fixture
def queue(engine: Engine) -> Stream:
    return engine.create_stream("queue", "shop", "default", 1, {"retention": 60})


CUTS = [(kit, gone) for kit in KITS for gone in [(0, 5), (3, 5), (0, 3)] if kit in CUTS_ENDS or gone[0] == 0]


def head() -> bytes:
    """Return an id that can head a run, each greater than the one before."""
    return b"\x02" * 5 + next(numbers).to_bytes(8, "big") + b"\0\0\0"


def row(log: int, body: bytes = b"b", id: Any = None, time: float = NOW, **more: Any) -> NewCall:
    return NewCall(log, more.get("task", "add"), body, more.get("meta"), id or head(), time)


def fill(engine: Engine, log: int, amount: int) -> int:
    """Append so many records; return the position of the first."""
    _, _, end = next(
        bounds for stream in engine.streams() for bounds in engine.bounds(stream) if bounds[0] == log
    )
    engine.append_run(log, "add", [b"%d" % n for n in range(amount)], None, head(), NOW)
    return int(end)


def write(engine: Engine, group: Group, **fields: Any) -> None:
    """Write a change as it is, whatever a decision would have made of it."""

    def decide(view: View, change: Change) -> None:
        for name, value in fields.items():
            held = getattr(change, name)
            if isinstance(held, list):
                held.extend(value)
            elif isinstance(held, dict):
                held.update(value)
            else:
                setattr(change, name, value)

    engine.transact(Reads(group.id), decide)


def grant(engine: Engine, group: Group, want: int, owner: int = 1, now: float = NOW) -> Lease | None:
    request = Request(want, owner, 0, owner << 32 | next(numbers), now)
    reads = Reads(group.id, positions=True, due=want, returned=ALL, now=now)
    return engine.transact(reads, lambda view, change: claim(view, change, request))


def finish(engine: Engine, group: Group, lease: Lease, *verdicts: Verdict, ended: float = NOW) -> bool:
    """Settle a whole lease."""
    done = [(span.lo, span.hi) for span in lease.spans]
    settlement = Settlement(
        lease=lease.id, owner=lease.owner or 0, done=done, verdicts=list(verdicts), ended=ended
    )
    return bool(
        engine.transact(Reads(group.id, (lease.id,)), lambda view, change: settle(view, change, settlement))
    )


def granted(lease: Lease | None) -> list[int]:
    return [pos for span in lease.spans for pos in range(span.lo, span.hi)] if lease else []


def ids(engine: Engine, log: int) -> list[Any]:
    return [record.id for record in engine.records(first_pos(log), first_pos(log + 1), ALL)]


# Log: appending


def test_how_long_records_stay_can_be_changed(
    kit: EngineKit, engine: Engine, queue: Stream, log: int
) -> None:
    """Nothing else of its settings changes; whoever has the store open sees it."""
    other, before = kit.open(), queue.settings
    for retention in (None, {"age": 7.0, "count": 1000}, 90.0):
        engine.set_retention(queue, retention)
        for each in (engine, other):
            (stored,) = [stream for stream in each.streams() if stream.id == queue.id]
            assert stored.settings == before | {"retention": retention}
            assert stored.logs == queue.logs
    assert (
        engine.create_stream("queue", "shop", "default", 1, {"retention": 60}).settings["retention"] == 90.0
    )
    fill(engine, log, 2)
    other.close()


def test_a_run_is_appended_in_order(engine: Engine, log: int) -> None:
    meta = Meta(key="k", due=5.0).packed()
    engine.append_run(log, "add", [b"a", b"b", b"c"], meta, FIRST, NOW)
    records = engine.records(first_pos(log), first_pos(log + 1), ALL)
    assert [(r.pos, r.body) for r in records] == [
        (first_pos(log) + n, b) for n, b in enumerate((b"a", b"b", b"c"))
    ]
    assert [r.id for r in records] == [id_of(FIRST, seq) for seq in range(3)]
    assert {(r.task, r.time, r.meta.key, r.meta.due) for r in records} == {("add", NOW, "k", 5.0)}


def test_runs_follow_one_another(engine: Engine, log: int) -> None:
    assert [fill(engine, log, n) for n in (3, 1, 2)] == [first_pos(log) + n for n in (0, 3, 4)]
    found = engine.records(first_pos(log), first_pos(log + 1), ALL)
    assert [r.body for r in found] == [b"0", b"1", b"2", b"0", b"0", b"1"]


def test_where_a_run_is(engine: Engine, log: int) -> None:
    first = first_pos(log)
    engine.append_run(log, "add", [b"a"] * 3, None, FIRST, NOW)
    assert engine.run_spans(FIRST, 3) == [(first, first + 3)]
    assert engine.run_spans(head(), 3) is None


def test_a_run_again_appends_nothing(engine: Engine, log: int) -> None:
    for moment in (NOW, NOW, NOW + 1):
        engine.append_run(log, "add", [b"a", b"b"], None, FIRST, moment)
    assert ids(engine, log) == [FIRST, id_of(FIRST, 1)]


def test_rows_are_appended_in_order(engine: Engine, log: int) -> None:
    rows = [row(log, b"%d" % n, time=NOW - n, task=f"t{n}", meta=Meta(key=str(n)).packed()) for n in range(5)]
    assert engine.append_rows(rows) == []
    found = engine.records(first_pos(log), first_pos(log + 1), ALL)
    assert [(r.id, r.body, r.time, r.task, r.meta.key) for r in found] == [
        (sent.id, sent.body, sent.time, sent.task, str(n)) for n, sent in enumerate(rows)
    ]
    assert [r.pos for r in found] == [first_pos(log) + n for n in range(5)]


def test_a_single_row_and_where_it_is(engine: Engine, log: int) -> None:
    first = first_pos(log)
    engine.append_run(log, "add", [b"a", b"b"], None, FIRST, NOW)
    rows = [row(log, id=new_head(NOW)), row(log), row(log, id="shop\0order-1"), row(log, id=id_of(FIRST, 7))]
    for _ in range(2):
        assert [engine.append_row(each) for each in rows] == [first + 2 + n for n in range(4)]
        assert engine.append_row(row(log, b"b", id_of(FIRST, 1))) == first + 1, "a run's member"
    for known in rows:
        pos = first + 2 + rows.index(known)
        assert engine.append_row(row(log, known.body, known.id, NOW + 9)) == pos
        assert engine.append_row(row(log, b"other", known.id)) == Conflict(0, pos, same=False)
    assert ids(engine, log) == [FIRST, id_of(FIRST, 1), *(each.id for each in rows)]
    with pytest.raises(EngineError, match="does not exist"):
        engine.append_row(row(log + 99))


def test_rows_again_append_nothing_and_are_no_conflict(engine: Engine, log: int) -> None:
    """What is sent again after AppendUnknown is the same in all, its time too."""
    rows = [row(log, b"%d" % n) for n in range(3)]
    assert [engine.append_rows(rows) for _ in range(3)] == [[], [], []]
    assert ids(engine, log) == [sent.id for sent in rows]


def test_the_same_id_with_another_body_or_task_is_a_conflict(engine: Engine, log: int) -> None:
    taken, free = row(log, b"old"), row(log)
    engine.append_rows([taken])
    for other in (row(log, b"new", taken.id), row(log, b"old", taken.id, task="other")):
        assert engine.append_rows([other]) == [Conflict(0, first_pos(log), same=False)]
    assert engine.append_rows([row(log, b"old", taken.id, NOW + 1)]) == [
        Conflict(0, first_pos(log), same=True)
    ]
    assert engine.append_rows([free, row(log, b"new", taken.id)]) == [Conflict(1, first_pos(log), same=False)]
    assert ids(engine, log) == [taken.id, free.id]


def test_records_of_many_logs_are_appended_together(engine: Engine) -> None:
    """Of each log in their order; those that are known, as one is that sends them again, are passed over."""
    wide = engine.create_stream("queue", "shop", "wide", 5, {"ordered": True})
    now = time.time()
    rows = [
        NewCall(wide.logs[n % 5], "add", b"%d" % n, Meta(f"k{n % 7}").packed(), new_head(now), now, 1 + n % 7)
        for n in range(700)
    ]

    def there() -> dict[int, list[bytes]]:
        return {
            log: [record.body for record in engine.records(lo, hi, 1000)]
            for log, lo, hi in engine.bounds(wide)
        }

    engine.append_many(rows[:600])
    assert there() == {log: [row.body for row in rows[:600] if row.log == log] for log in wide.logs}
    for row in rows[:600:97]:
        pos = engine.find("shop", row.id)
        assert pos is not None
        (record,) = engine.records(pos, pos + 1, 1)
        assert (record.id, record.body, record.meta.key) == (row.id, row.body, f"k{row.key - 1}")
    engine.append_many(rows[:600])
    engine.append_many(rows)
    assert sorted(body for bodies in there().values() for body in bodies) == sorted(row.body for row in rows)
    engine.append_many([])
    with pytest.raises(EngineError):
        engine.append_many([NewCall(wide.logs[-1] + 1000, "add", b"x", None, new_head(now), now)])


def test_what_is_stored_of_many_logs_is_said(engine: Engine) -> None:
    """P1: not that nothing was sent, where logs before the one that fails have theirs."""
    wide = engine.create_stream("queue", "shop", "wide", 3, {"ordered": True})
    now = time.time()
    logs = [wide.logs[0], wide.logs[1], wide.logs[-1] + 1000, wide.logs[2]]
    rows = [NewCall(logs[n % 4], "add", b"%d" % n, None, new_head(now), now, 1 + n) for n in range(12)]
    with pytest.raises(
        PartlyAppended, match=r"does not exist.* 6 sent before, or with it, are stored"
    ) as raised:
        engine.append_many(rows)
    assert raised.value.stored == 6
    assert raised.value.places == {n for n in range(12) if n % 4 < 2}
    assert isinstance(raised.value.error, EngineError)
    stored = [record.body for _, lo, hi in engine.bounds(wide) for record in engine.records(lo, hi, 99)]
    assert sorted(stored) == sorted(rows[n].body for n in raised.value.places)


def test_an_id_twice_in_one_append(engine: Engine, log: int) -> None:
    first = row(log, b"a")
    assert engine.append_rows([first, first, row(log, b"b", first.id)]) == [
        Conflict(2, first_pos(log), same=False)
    ]
    assert ids(engine, log) == [first.id]


@pytest.mark.parametrize("amount", [255, 256, 257, 600])
def test_many_rows_at_once(engine: Engine, log: int, amount: int) -> None:
    """However many a statement takes: indexes count through, known ids leave out only themselves."""
    known = [row(log, b"k") for _ in range(3)]
    engine.append_rows(known)
    rows = [row(log, b"%d" % n) for n in range(amount)]
    places = (0, 100, amount - 1)
    for place, each in zip(places, known, strict=True):
        rows[place] = row(log, b"other", each.id)
    conflicts = engine.append_rows(rows)
    assert sorted(conflicts) == [
        Conflict(place, first_pos(log) + n, same=False) for n, place in enumerate(places)
    ]
    new = [each.id for n, each in enumerate(rows) if n not in places]
    assert ids(engine, log) == [each.id for each in known] + new


def test_the_id_of_a_runs_member_is_taken(engine: Engine, log: int) -> None:
    engine.append_run(log, "add", [b"a", b"b"], None, FIRST, NOW)
    assert engine.append_rows([row(log, b"b", id_of(FIRST, 1))]) == []
    assert ids(engine, log) == [FIRST, id_of(FIRST, 1)]


def test_appends_of_many_threads_lose_nothing(kit: EngineKit, engine: Engine, log: int) -> None:
    engines = [engine, kit.open()]
    sent = [[row(log, b"%d" % n) for _ in range(20)] for n in range(8)]

    def append(n: int) -> None:
        for each in sent[n]:
            assert engines[n % 2].append_rows([each]) == []
            engines[n % 2].append_run(log, "run", [b"%d" % n], None, head(), NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    found = engine.records(first_pos(log), first_pos(log + 1), ALL)
    assert [r.pos for r in found] == list(range(first_pos(log), first_pos(log) + 320))
    for n, rows in enumerate(sent):
        assert [r.id for r in found if r.task == "add" and r.body == b"%d" % n] == [each.id for each in rows]


# Log: the fence


@pytest.fixture
def lease(engine: Engine, log: int, main: Group) -> Lease:
    fill(engine, log, 4)
    lease = grant(engine, main, 4)
    assert lease is not None
    return lease


def test_a_fenced_append_of_the_owner(engine: Engine, log: int, lease: Lease) -> None:
    mine = row(log)
    assert engine.append_rows([mine], (lease.id, 1)) == []
    assert engine.append_rows([mine], (lease.id, 1)) == [], "known is not lost"
    assert ids(engine, log)[4:] == [mine.id]


def test_a_fenced_append_of_another_owner(engine: Engine, log: int, lease: Lease) -> None:
    for fence in ((lease.id, 2), (lease.id + 1, 1)):
        with pytest.raises(LeaseLost):
            engine.append_rows([row(log) for _ in range(300)], fence)
    assert len(ids(engine, log)) == 4


def test_a_fenced_append_after_the_lease_was_given_back(
    engine: Engine, log: int, main: Group, lease: Lease
) -> None:
    write(engine, main, leases=[Lease(lease.id, None, 0, lease.spans)])
    with pytest.raises(LeaseLost):
        engine.append_rows([row(log)], (lease.id, 1))
    write(engine, main, dropped_leases=[lease.id])
    with pytest.raises(LeaseLost):
        engine.append_rows([row(log)], (lease.id, 1))
    assert len(ids(engine, log)) == 4
    assert engine.append_rows([row(log)]) == [], "the engine is as it was"


# Log: reading and finding


def test_rows_come_in_the_order_of_the_spans(engine: Engine, queue: Stream, log: int) -> None:
    first = fill(engine, log, 10)
    spans = [Span(first + 7, first + 9), Span(first, first + 2), Span(first + 9, first + 20)]
    assert [(r[0] - first, r[1], r[2], r[3]) for r in engine.rows(spans)] == [
        (n, "add", b"%d" % n, None) for n in (7, 8, 0, 1, 9)
    ]
    assert engine.rows([]) == engine.rows([Span(first + 10, first + 99)]) == []


def test_records_stop_at_the_limit_and_within_their_log(engine: Engine, log: int) -> None:
    other = engine.create_stream("stream", "", "events", 1, {}).logs[0]
    first = fill(engine, log, 10)
    fill(engine, other, 5)
    assert [r.pos - first for r in engine.records(first + 2, first + 9, 3)] == [2, 3, 4]
    assert len(engine.records(first, first_pos(log + 1), ALL)) == 10


def test_members_of_runs_are_found(engine: Engine, log: int) -> None:
    heads = [head() for _ in range(3)]
    for each in heads:
        engine.append_run(log, "add", [b"x"] * 4, None, each, NOW)
    for n, each in enumerate(heads):
        places = [engine.find("shop", id_of(each, seq)) for seq in range(6)]
        assert places == [first_pos(log) + 4 * n + seq for seq in range(4)] + [None, None]


def test_ids_near_a_known_one_are_not_found(engine: Engine, log: int) -> None:
    derived = FIRST[:13] + b"\x05\x06\x07"
    engine.append_rows([row(log, id=derived)])
    fill(engine, log, 3)
    assert engine.find("shop", derived) == first_pos(log)
    near = [FIRST, FIRST[:13] + b"\x05\x06\x08", FIRST[:13] + b"\x05\x06\x06", new_head(NOW)]
    assert [engine.find("shop", id) for id in near] == [None] * 4


def test_text_ids_are_those_of_their_namespace(engine: Engine, log: int) -> None:
    for n, space in enumerate(("shop", "blog", "stream:shop")):
        engine.append_rows([row(log, b"%d" % n, stored_id(space, "order-1"))])
        assert engine.find(space, "order-1") == first_pos(log) + n
    assert engine.find("other", "order-1") is None
    assert engine.find("shop", "order-2") is None


def test_a_window_in_time_misses_nothing(engine: Engine) -> None:
    """Times are not monotone in offset (H19): a window holds all that is in it, and not much else."""
    near = st.tuples(st.integers(0, 9), st.sampled_from((0.4998, 0.5, 0.5002)))
    ends = st.none() | st.integers(-1, 10) | near.map(sum)
    runs = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3), st.booleans()), max_size=12)
    examples = 40 if engine.capabilities.one_transaction else 12  # where a stream is a topic that is made

    @settings(max_examples=examples)
    @given(runs=runs, since=ends, until=ends)
    def check(runs: list[tuple[int, int, bool]], since: float | None, until: float | None) -> None:
        _check_window(engine, runs, since, until)

    check()


def _check_window(
    engine: Engine, runs: list[tuple[int, int, bool]], since: float | None, until: float | None
) -> None:
    stream = engine.create_stream("stream", "", f"s{next(numbers)}", 2, {})
    times: dict[int, float] = {}
    for n, (moment, size, tells) in enumerate(runs):
        log = stream.logs[n % 2]
        first = max((pos + 1 for pos in times if pos >> 40 == log), default=first_pos(log))
        at = NOW + moment + 0.5
        id = new_head(at) if tells else head()
        if size == 1:
            engine.append_row(NewCall(log, "add", b"", None, id, at))
        else:
            engine.append_run(log, "add", [b""] * size, None, id, at)
        times |= {first + seq: at for seq in range(size)}
    low, high = (None if t is None else NOW + t for t in (since, until))
    windows = engine.window(stream, low, high)
    assert [log for log, _, _ in windows] == list(stream.logs)
    for log, lo, hi in windows:
        here = {pos: time for pos, time in times.items() if pos >> 40 == log}
        wanted = {
            pos
            for pos, time in here.items()
            if (low is None or time >= low) and (high is None or time < high)
        }
        assert wanted <= set(range(lo, hi))
        if wanted:
            assert (lo, hi - 1) == (min(wanted), max(wanted))
        spans = [Span(lo, hi)]
        assert set(here) & set(range(lo, hi)) - set(engine.outside(spans, low, high)) == wanted


# Log: bounds and what is gone


def test_bounds_of_an_empty_and_of_a_filled_log(engine: Engine) -> None:
    stream = engine.create_stream("stream", "", "events", 2, {})
    one, two = stream.logs
    assert engine.bounds(stream) == [(log, first_pos(log), first_pos(log)) for log in (one, two)]
    fill(engine, two, 3)
    assert engine.bounds(stream) == [
        (one, first_pos(one), first_pos(one)),
        (two, first_pos(two), first_pos(two) + 3),
    ]


@pytest.mark.parametrize("how", ["run", "rows"])
@pytest.mark.parametrize(("kits", "gone"), CUTS, indirect=["kits"])
def test_offsets_never_come_back(
    kit: EngineKit, engine: Engine, queue: Stream, log: int, how: str, gone: tuple[int, int]
) -> None:
    """H10, S5: also where the highest records, or all, were deleted."""
    first = fill(engine, log, 5)
    kit.cut(log, first + gone[0], first + gone[1])
    assert engine.bounds(queue)[0][2] == first + 5
    if how == "run":
        engine.append_run(log, "add", [b"new"], None, FIRST, NOW)
    else:
        engine.append_rows([row(log, b"new", FIRST)])
    assert engine.find("shop", FIRST) == first + 5


def test_groups_go_on_after_a_trim(kit: EngineKit, engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 5)
    lease = grant(engine, main, 5)
    assert lease is not None
    finish(engine, main, lease)
    kit.cut(log, first, first + 5)
    assert engine.counts(main).pending == 0
    assert grant(engine, main, 5) is None
    fill(engine, log, 2)
    assert granted(grant(engine, main, 9)) == [first + 5, first + 6]


def test_a_dropped_log_refuses_records(kit: EngineKit, engine: Engine, queue: Stream, log: int) -> None:
    fill(engine, log, 3)
    kit.drop_stream(queue)
    with pytest.raises(EngineError):
        engine.append_rows([row(log)])
    with pytest.raises(EngineError):
        engine.append_run(log, "add", [b"a", b"b"], None, head(), NOW)
    assert ids(engine, log) == []


def test_a_stream_made_again_is_another_one(
    kit: EngineKit, engine: Engine, queue: Stream, main: Group
) -> None:
    """State is keyed by the stream's id, not by its name (H10)."""
    kit.drop_stream(queue)
    again = engine.create_stream("queue", "shop", "default", 1, {})
    assert again.id != queue.id
    assert not set(again.logs) & set(queue.logs)
    assert [group.id for group in engine.groups() if group.stream == again.id] != [main.id]


# Registry


def test_a_stream_is_created_once(engine: Engine, queue: Stream) -> None:
    again = engine.create_stream("queue", "shop", "default", 7, {"retention": 5})
    assert again == queue
    assert again.settings == {"retention": 60}
    assert engine.streams() == [queue]


def test_streams_of_two_kinds_and_apps_are_apart(engine: Engine) -> None:
    made = [
        engine.create_stream(kind, app, "default", 2, {})
        for kind, app in (("queue", "shop"), ("queue", "blog"), ("stream", ""))
    ]
    assert len({stream.id for stream in made}) == 3
    assert len({log for stream in made for log in stream.logs}) == 6
    assert engine.streams() == made
    assert [(g.stream, g.app, g.name, g.kind) for g in engine.groups()] == [
        (made[0].id, "shop", "main", "main"),
        (made[1].id, "blog", "main", "main"),
    ]


def test_a_stream_is_created_once_by_many(kit: EngineKit, engine: Engine) -> None:
    engines, together = [engine, kit.open()], threading.Barrier(8)

    def create(n: int) -> Stream:
        together.wait(30)
        return engines[n % 2].create_stream("queue", "shop", "fast", 3, {})

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(8)))
    assert made == [made[0]] * 8
    assert len(made[0].logs) == 3
    assert len(engine.groups()) == 1


def test_main_begins_with_the_queue(engine: Engine, log: int, main: Group) -> None:
    """Also what was appended before a worker or a reader looked at it (H10)."""
    first = fill(engine, log, 3)
    assert engine.counts(main).pending == 3
    assert granted(grant(engine, main, 5)) == [first, first + 1, first + 2]


def test_a_lane_made_after_a_group_is_read_from_the_start(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue.logs[0], 2)
    latest = engine.create_group(
        queue, "shop", "late", "group", {}, [(queue.logs[0], first_pos(queue.logs[0]) + 2, None)]
    )
    (log,) = engine.add_lane(queue, 9).lanes[9]
    first = fill(engine, log, 3)
    assert granted(grant(engine, latest, 9)) == [first, first + 1, first + 2]
    assert engine.counts(main).pending == 5
    assert engine.status(latest, first).place == "leased"


def test_a_lane_is_made_once(kit: EngineKit, engine: Engine) -> None:
    """By however many at once, with a log for each partition; and the others' logs stay as they are."""
    queue = engine.create_stream("queue", "shop", "wide", 2, {})
    engines = [engine, kit.open()]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: engines[n % 2].add_lane(queue, 9), range(4)))
    assert all(each == made[0] for each in made)
    wide = engine.add_lane(made[0], 0)
    assert wide.partitions == 2
    assert (wide.logs[:2], wide.lane(None), wide.lane(4)) == (queue.logs,) * 3
    assert (wide.lane(9), wide.lane(0), wide.lane(7)) == (wide.logs[2:4], wide.logs[4:], None)
    assert [wide.place(log) for log in wide.logs] == [(0, 4), (1, 4), (0, 9), (1, 9), (0, 0), (1, 0)]
    assert wide in engine.streams()
    assert engine.create_stream("queue", "shop", "wide", 2, {}) == wide
    (main,) = [group for group in engine.groups() if group.stream == wide.id]
    assert {at.log: at.priority for at in engine.positions(main)} == {
        log: wide.place(log)[1] for log in wide.logs
    }


def test_a_group_reads_a_lane_made_while_it_was_made(engine: Engine, queue: Stream, log: int) -> None:
    """Its bounds were looked at before: a subscription reads the lane from 0, a replay not at all (H10)."""
    bounds = engine.bounds(queue)
    (lane,) = engine.add_lane(queue, 9).lanes[9]
    first = fill(engine, lane, 3)
    some = [(each, lo, hi) for each, lo, hi in bounds]
    live = engine.create_group(queue, "shop", "live", "group", {}, [(each, hi, None) for each, _, hi in some])
    again = engine.create_group(queue, "shop", "again", "replay", {}, some)
    assert live is not None
    assert again is not None
    assert granted(grant(engine, live, 9)) == [first, first + 1, first + 2]
    assert grant(engine, again, 9) is None
    (later,) = engine.add_lane(queue, 7).lanes[7]
    fill(engine, later, 2)
    assert engine.counts(live).pending == 2
    assert grant(engine, again, 9) is None
    assert engine.status(again, first_pos(later)).place == "outside"


def test_a_claim_is_of_the_first_lane_that_has_something(engine: Engine, queue: Stream, main: Group) -> None:
    """What is new, what is due and what was given back, each by the lane of its position (H11)."""
    (high,) = engine.add_lane(queue, 9).lanes[9]
    (low,) = engine.add_lane(queue, 0).lanes[0]
    common, urgent, late = (fill(engine, each, 2) for each in (queue.logs[0], high, low))
    write(
        engine,
        main,
        parked=[Parked(late + 9, "retry", NOW - 9, "add"), Parked(urgent + 9, "retry", NOW, "a")],
    )
    write(engine, main, leases=[Lease(5, None, 0, [Span(common + 9, common + 10)])])
    taken = [sorted(granted(grant(engine, main, 9))) for _ in range(4)]
    assert taken == [
        [urgent, urgent + 1, urgent + 9],
        [common, common + 1, common + 9],
        [late, late + 1, late + 9],
        [],
    ]


def test_what_waits_is_no_work_before_its_time_but_comes_along(engine: Engine, log: int, main: Group) -> None:
    """A batch forms: nobody's lease, that a claim of anything else takes along."""
    first = fill(engine, log, 3)
    held = grant(engine, main, 3)
    assert held is not None
    waits = Settlement(
        held.id, 1, [(first, first + 1)], waits=[Span(first + 1, first + 3, until=NOW + 5)], waits_as=77,
        release=True, ended=NOW,
    )  # fmt: skip
    assert engine.transact(Reads(main.id, (held.id,)), lambda view, change: settle(view, change, waits))
    assert (engine.counts(main).returned, engine.counts(main).leased) == (2, 0)
    assert engine.next_due(main.id) == NOW + 5
    assert engine.next_due(main.id, NOW + 5) is None
    write(engine, main, parked=[Parked(first, "retry", NOW + 8, "a")])
    assert [engine.next_due(main.id, after) for after in (NOW, NOW + 5, NOW + 8)] == [NOW + 5, NOW + 8, None]
    write(engine, main, unparked=[first])
    assert not engine.has_work(main.id, NOW, ())
    assert engine.has_work(main.id, NOW + 5, ())
    assert grant(engine, main, 9) is None
    fill(engine, log, 1)
    assert granted(grant(engine, main, 9)) == [first + 1, first + 2, first + 3]


def test_what_is_limited_waits_for_its_time_or_for_its_release(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 60)
    held = grant(engine, main, 60)
    assert held is not None
    for n in range(20):  # more leases than a claim looks at
        limits = Settlement(
            held.id, 1, [], limited=[Span(first + n, first + n + 1, until=NOW + 50 - n)], limited_as=100 + n
        )
        engine.transact(Reads(main.id, (held.id,)), lambda view, change: settle(view, change, limits))  # noqa: B023
    write(engine, main, leases=[Lease(900, None, 0, [Span(first + 50, first + 51)])])
    counts = engine.counts(main)
    assert (counts.parked["limited"], counts.returned) == (20, 1)
    assert engine.next_due(main.id) == NOW + 31
    request = Request(9, 2, 0, 1 << 40, NOW)
    reads = Reads(main.id, positions=True, due=9, returned=8, now=NOW)
    lease = engine.transact(reads, lambda view, change: claim(view, change, request))
    assert granted(lease) == [first + 50], "nothing else hides what was given back"
    assert grant(engine, main, 9) is None
    assert granted(grant(engine, main, 9, now=NOW + 32)) == [first + 19, first + 18]
    write(engine, main, released=True)
    assert engine.has_work(main.id, NOW, ())
    assert len(granted(grant(engine, main, 60))) == 18
    assert engine.counts(main).parked == {}


def test_batches_that_form_hide_nothing_that_was_given_back(engine: Engine, log: int, main: Group) -> None:
    """More of them than a claim looks at, and all of them older: a worker found nothing, again and again."""
    first = fill(engine, log, 20)
    held = grant(engine, main, 20)
    assert held is not None
    finish(engine, main, held)
    waiting = [Lease(n, 0, 0, [Span(first + n, first + n + 1)], since=NOW + n) for n in range(1, 12)]
    write(engine, main, leases=[*waiting, Lease(900, None, 0, [Span(first + 15, first + 16)])])
    assert engine.has_work(main.id, NOW, ())
    reads = Reads(main.id, positions=True, due=9, returned=8, now=NOW)
    request = Request(1, 2, 0, 1 << 40, NOW)
    lease = engine.transact(reads, lambda view, change: claim(view, change, request))
    assert granted(lease) == [first + 15]
    request = Request(1, 2, 0, 2 << 40, NOW)
    assert engine.transact(reads, lambda view, change: claim(view, change, request)) is None
    assert not engine.has_work(main.id, NOW, ()), "nothing to look at again and again"
    assert granted(grant(engine, main, 1, now=NOW + 1)) == [first + 1], "whose time has come"


def test_a_storm_of_one_lane_hides_no_other(engine: Engine, queue: Stream, main: Group) -> None:
    """More that is due, and more given back, than a claim looks at (H11)."""
    (high,) = engine.add_lane(queue, 9).lanes[9]
    low, first = first_pos(queue.logs[0]), first_pos(high)
    write(engine, main, parked=[Parked(low + n, "retry", NOW - 9, "add") for n in range(40)])
    write(
        engine, main, leases=[Lease(n, None, 0, [Span(low + 100 + n, low + 101 + n)]) for n in range(1, 30)]
    )
    write(engine, main, parked=[Parked(first, "retry", NOW, "add")])
    write(engine, main, leases=[Lease(99, None, 0, [Span(first + 1, first + 2)])])
    request = Request(4, 1, 0, 1 << 40, NOW)
    reads = Reads(main.id, positions=True, due=4, returned=8, now=NOW)
    lease = engine.transact(reads, lambda view, change: claim(view, change, request))
    assert sorted(granted(lease)) == [first, first + 1]


@with_bells
def test_a_sleeper_hears_a_lane_that_was_made_since(kit: EngineKit, engine: Engine, queue: Stream) -> None:
    sleeper = engine.sleeper(queue.logs, 1)
    try:
        sleeper.prepare()
        other = kit.open()
        (lane,) = other.add_lane(queue, 9).lanes[9]
        other.append_row(row(lane))
        assert sleeper.sleep(5.0)
    finally:
        sleeper.close()


def test_dead_letters_that_died_before_a_moment(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 20)
    lease = grant(engine, main, 20)
    assert lease is not None
    finish(engine, main, lease)
    died = [(5, "add"), (1, "add"), (3, "mail"), (2, "add"), (9, "add")]
    dead = [Parked(first + n, "dead", None, task, at=NOW + at) for n, (at, task) in enumerate(died)]
    unknown, retry = Parked(first + 10, "unknown", None, "add"), Parked(first + 11, "retry", NOW, "add")
    write(engine, main, parked=[*dead, unknown, retry])
    assert engine.dead_before(main.id, "add", NOW + 5, 9) == [first + 1, first + 3]
    assert engine.dead_before(main.id, "add", NOW + 5, 1) == [first + 1]
    assert engine.dead_before(main.id, "mail", NOW + 5, 9) == [first + 2]
    assert sorted(engine.dead_before(main.id, None, NOW + 9, 9)) == [first + n for n in range(4)]
    assert len(engine.dead_before(main.id, None, NOW + 9, 3)) == 3
    assert engine.dead_before(main.id, None, NOW, 9) == []
    assert engine.dead_before(main.id + 1, None, NOW + 9, 9) == []


def test_a_group_is_created_once(engine: Engine, queue: Stream, log: int) -> None:
    bounds = [(log, first_pos(log) + 2, first_pos(log) + 4)]
    made = engine.create_group(queue, "shop", "v2", "replay", {"outbox": False}, bounds)
    assert engine.create_group(queue, "shop", "v2", "replay", {}, bounds) is None
    assert engine.groups()[-1] == made
    assert (made.name, made.kind, made.settings, made.generation) == ("v2", "replay", {"outbox": False}, 0)
    assert engine.create_group(queue, "blog", "v2", "replay", {}, bounds).id != made.id


def test_a_group_reads_within_its_bounds(engine: Engine, queue: Stream, log: int) -> None:
    first = fill(engine, log, 10)
    group = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first + 2, first + 5)])
    assert engine.positions(group) == [Position(log, first + 2, first + 10, first + 5)]
    assert granted(grant(engine, group, 100)) == [first + 2, first + 3, first + 4]
    assert grant(engine, group, 100) is None
    places = [engine.status(group, first + n).place for n in (0, 1, 2, 4, 5, 9, 10)]
    assert places == ["outside", "outside", "leased", "leased", "outside", "outside", "outside"]
    assert engine.status(group, first_pos(log + 7)).place == "outside"


def test_dropping_a_group_forgets_what_it_knew(engine: Engine, queue: Stream, log: int, main: Group) -> None:
    first = fill(engine, log, 4)
    group = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first, None)])
    for each in (main, group):
        lease = grant(engine, each, 2)
        assert lease is not None
        grant(engine, each, 1)
        engine.set_progress(each.id, first + 2, b"half")
        finish(
            engine, each, lease, Verdict(first, "failure", b"e", reason="dead", note="failed: e", dropped=2)
        )
    engine.drop_group(group)
    assert engine.groups() == [main]
    assert (engine.leases(group), engine.outcomes(group.id, 0, 1 << 62), engine.counters(group.id)) == (
        [],
        [],
        {},
    )
    assert engine.parked(ParkedFilter((group.id,)), ALL) == engine.journal(group.id, first) == []
    assert engine.status(group, first).place == "outside"
    assert [engine.status(main, first + n).place for n in range(4)] == ["parked", "done", "leased", "pending"]
    again = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first, None)])
    assert again.id != group.id
    assert engine.counts(again) == Counts(4, 0, 0, {}, NOW, None)
    assert engine.status(again, first + 2).progress is None


def registration(name: str) -> Registration:
    return Registration("shop", name, "host", "boot", 42, NOW, {"groups": [1, 2]})


def test_workers_come_and_go(engine: Engine) -> None:
    one, two = engine.register(registration("one")), engine.register(registration("two"))
    assert one < two
    found = engine.workers()
    assert [(w.id, w.name, w.pid, w.beat, w.draining, w.info) for w in found] == [
        (one, "one", 42, 0, False, {"groups": [1, 2]}),
        (two, "two", 42, 0, False, {"groups": [1, 2]}),
    ]
    engine.drop_worker(two)
    assert [w.id for w in engine.workers()] == [one]
    assert engine.register(registration("three")) > two, "numbers of workers never come back"


@pytest.mark.parametrize("synced", [False, True])
def test_beats_count_up_until_the_worker_is_declared_dead(engine: Engine, synced: bool) -> None:
    worker = engine.register(registration("one"))
    assert [engine.beat(worker, False, {"running": [n]}, synced=synced) for n in range(3)] == [1, 2, 3]
    assert [(w.beat, w.draining, w.info) for w in engine.workers()] == [(3, False, {"running": [2]})]
    assert engine.beat(worker, True, {}, synced=synced) == 4
    assert engine.workers()[0].draining
    engine.drop_worker(worker)
    assert engine.beat(worker, False, {}, synced=synced) is None
    assert engine.workers() == []


# State: transactions


def test_a_transaction_answers_and_commits_as_a_whole(kit: EngineKit, engine: Engine, main: Group) -> None:
    def decide(view: View, change: Change) -> str:
        change.parked.append(Parked(5, "retry", NOW, "add"))
        change.outcomes.append(Outcome(6, "success", b"v", NOW))
        change.leases.append(Lease(7, 1, 0, [Span(7, 8)]))
        change.journal.append(JournalEntry(8, 9, 1, 0, NOW, NOW, "done"))
        change.count("skipped", 3)
        change.count("skipped", 0)
        return "decided"

    assert engine.transact(Reads(main.id), decide) == "decided"
    other = kit.open()
    assert other.parked(ParkedFilter((main.id,)), 10) == [(main.id, Parked(5, "retry", NOW, "add"))]
    assert other.outcomes(main.id, 0, 10) == [Outcome(6, "success", b"v", NOW)]
    assert other.leases(main) == [Lease(7, 1, 0, [Span(7, 8)])]
    assert [entry.how for entry in other.journal(main.id, 8)] == ["done"]
    assert other.counters(main.id) == {"skipped": 3}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("synced", [False, True])
def test_an_exception_in_a_decision_changes_nothing(
    engine: Engine, log: int, main: Group, error: type[BaseException], synced: bool
) -> None:
    fill(engine, log, 3)
    before = snapshot(engine, main)

    def decide(view: View, change: Change) -> None:
        claim(view, change, Request(3, 1, 0, 99, NOW))
        change.count("skipped")
        raise error

    with pytest.raises(error):
        engine.transact(Reads(main.id, positions=True), decide, synced=synced)
    assert snapshot(engine, main) == before
    assert len(granted(grant(engine, main, 5))) == 3, "the engine is as it was"


def test_a_write_that_fails_takes_everything_back(
    kit: EngineKit, engine: Engine, log: int, main: Group
) -> None:
    """The outbox goes last; where it cannot go, nothing of the settlement stays (P4)."""
    gone = engine.create_stream("queue", "shop", "gone", 1, {})
    kit.drop_stream(gone)
    first = fill(engine, log, 2)
    lease = grant(engine, main, 2)
    assert lease is not None
    before = snapshot(engine, main)
    calls = [row(log), row(gone.logs[0])]
    with pytest.raises(RespoolError):
        finish(engine, main, lease, Verdict(first, "success", b"v", calls=calls))
    assert snapshot(engine, main) == before
    assert len(ids(engine, log)) == 2
    assert finish(engine, main, lease), "the engine is as it was"


def snapshot(engine: Engine, group: Group) -> tuple[Any, ...]:
    return (
        engine.counts(group),
        engine.leases(group),
        engine.positions(group),
        engine.outcomes(group.id, 0, 1 << 62),
        engine.parked(ParkedFilter((group.id,)), ALL),
        engine.counters(group.id),
    )


def test_no_record_is_granted_twice(kit: EngineKit, engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 400)
    engines = [engine, kit.open()]

    def work(owner: int) -> list[int]:
        mine: list[int] = []
        while lease := grant(engines[owner % 2], main, 3, owner):
            mine += granted(lease)
            assert finish(engines[owner % 2], main, lease)
        return mine

    with ThreadPoolExecutor(4) as pool:
        found = [pos for mine in pool.map(work, range(1, 5)) for pos in mine]
    assert sorted(found) == list(range(first, first + 400))
    assert engine.unfinished(main, first, first + 400) == 0


def test_calls_of_a_settlement_leave_with_it(engine: Engine, log: int, main: Group) -> None:
    sink = engine.create_stream("queue", "shop", "sink", 1, {}).logs[0]
    first = fill(engine, log, 1)
    lease = grant(engine, main, 1)
    assert lease is not None
    calls = [row(sink, b"1"), row(log, b"2"), row(sink, b"3")]
    assert finish(engine, main, lease, Verdict(first, "success", calls=calls))
    assert ids(engine, sink) == [calls[0].id, calls[2].id]
    assert ids(engine, log)[1:] == [calls[1].id]
    assert not finish(engine, main, lease, Verdict(first, "success", calls=[row(sink)])), "its lease is gone"
    assert len(ids(engine, sink)) == 2


def test_a_call_whose_id_is_taken_is_not_dropped_in_silence(engine: Engine, log: int, main: Group) -> None:
    """H8: the same id with another body is an error; in a settlement it is at least counted (P10)."""
    taken = row(log, b"old")
    engine.append_rows([taken])
    lease = grant(engine, main, 1)
    assert lease is not None
    finish(engine, main, lease, Verdict(first_pos(log), "success", calls=[row(log, b"new", taken.id)]))
    assert sum(engine.counters(main.id).values()) == 1


# State: where records are


def test_every_place_has_its_status(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 8)
    lease = grant(engine, main, 5)
    assert lease is not None
    verdicts = [
        Verdict(first + 1, "failure", b"e", reason="dead", task="add", error=b"e", note="failed: e"),
        Verdict(first + 2, reason="retry", due=NOW + 9, task="add", retried=True, note="retry: e"),
        Verdict(first + 3, "success", b"v"),
    ]
    settlement = Settlement(lease=lease.id, owner=1, done=[(first, first + 4)], verdicts=verdicts, ended=NOW)
    engine.transact(Reads(main.id, (lease.id,)), lambda view, change: settle(view, change, settlement))
    engine.set_progress(main.id, first + 4, b"half")

    at = [engine.status(main, first + n) for n in range(8)]
    assert [status.place for status in at] == ["done", "parked", "parked", "done", "leased"] + ["pending"] * 3
    assert (at[0].how, at[0].outcome) == ("done", None)
    assert at[1].outcome == Outcome(first + 1, "failure", b"e", NOW)
    assert (at[1].parked.reason, at[1].parked.error, at[1].parked.due) == ("dead", b"e", None)
    assert (at[2].parked.reason, at[2].parked.retries, at[2].parked.due) == ("retry", 1, NOW + 9)
    assert at[3].outcome == Outcome(first + 3, "success", b"v", NOW)
    assert (at[4].lease.id, at[4].lease.owner, at[4].progress) == (lease.id, 1, b"half")


def test_where_a_run_began_that_ended_nothing(
    kit: EngineKit, engine: Engine, queue: Stream, log: int, main: Group
) -> None:
    """Where its process died, also where we ended it; and where it is to run again, counted or not."""
    first = fill(engine, log, 8)
    replay = engine.create_group(queue, "shop", "again", "replay", {}, engine.bounds(queue))
    for group, run, cause in (
        (main, [1], Cause.ORDERED), (main, [3, 4], Cause.ORDERED), (replay, [6], Cause.CHILD),
    ):  # fmt: skip
        lease = grant(engine, group, 8)
        assert lease is not None
        suspects = [Suspect(first + n, "add", 3, "killed", b"e") for n in run]
        assert engine.transact(
            Reads(group.id, (lease.id,)),
            lambda view, change: bury_lease(view, change, lease.id, 1, cause, None, suspects, NOW),  # noqa: B023
        )
    assert engine.began(main.id, [(first, first + 8)]) == {first + 1, first + 3, first + 4}
    assert engine.began(main.id, [(first, first + 1), (first + 2, first + 4), (first + 5, first + 8)]) == {
        first + 3
    }
    assert engine.began(replay.id, [(first, first + 8)]) == {first + 6}
    lease = grant(engine, main, 8)
    assert lease is not None
    verdicts = [
        Verdict(first, reason="retry", due=NOW + 9, task="add", note="retry: its batch was put off"),
        Verdict(first + 2, reason="retry", due=NOW + 9, task="add", note="waits: for its arguments"),
        Verdict(first + 5, "revoked", b"x", note="expired"),
    ]
    assert finish(engine, main, lease, *verdicts)
    assert engine.began(main.id, [(first, first + 8)]) == {first, first + 1, first + 3, first + 4}
    assert engine.began(main.id, []) == set()


def test_groups_know_nothing_of_one_another(engine: Engine, queue: Stream, log: int, main: Group) -> None:
    first = fill(engine, log, 3)
    other = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first, None)])
    lease = grant(engine, main, 3)
    assert lease is not None
    assert not finish(engine, other, lease, Verdict(first, "success", b"v")), "a lease of main's"
    assert finish(engine, main, lease, Verdict(first, "success", b"v"))
    assert [engine.status(other, first + n).place for n in range(3)] == ["pending"] * 3
    assert engine.outcomes(other.id, first, first + 3) == []
    assert engine.counters(other.id) == {"refused settlements": 1}
    assert engine.counters(main.id) == {}


def test_a_lease_that_is_given_back_waits_for_whoever_comes(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 3)
    mine = grant(engine, main, 3, owner=1)
    assert mine is not None
    settlement = Settlement(lease=mine.id, owner=1, done=[(first, first + 1)], release=True)
    engine.transact(Reads(main.id, (mine.id,)), lambda view, change: settle(view, change, settlement))
    assert engine.counts(main) == Counts(0, 0, 2, {}, None, None)
    assert engine.leases_of(1) == []
    assert engine.has_work(main.id, NOW, ())
    yours = grant(engine, main, 9, owner=2)
    assert granted(yours) == [first + 1, first + 2]
    assert engine.leases_of(2) == [(main.id, yours)]


def test_a_part_given_back_takes_its_edits_along(engine: Engine, main: Group) -> None:
    """P7: the rest of a lease, as a lease of its own, while the first record runs on."""
    edits = {pos: b"%d" % pos for pos in (10, 12, 13)}
    write(engine, main, leases=[Lease(7, 1, 2, [Span(10, 14, 1)], edits, NOW)])

    def decide(view: View, change: Change) -> int:
        return give_back(view, change, 7, 1, [(12, 14)], 8)

    assert engine.transact(Reads(main.id, (7,)), decide) == 2
    assert engine.leases(main) == [
        Lease(7, 1, 2, [Span(10, 12, 1)], {10: b"10"}, NOW),
        Lease(8, None, 2, [Span(12, 14, 1)], {12: b"12", 13: b"13"}, NOW),
    ]
    assert engine.transact(Reads(main.id, (7,)), decide) == 0, "once"
    assert len(engine.leases(main)) == 2


def test_what_is_due_comes_when_it_is_due(engine: Engine, log: int, main: Group) -> None:
    first = first_pos(log)
    dues = enumerate((3, 1, 2, 9))
    write(engine, main, parked=[Parked(first + n, "scheduled", NOW + due, "add") for n, due in dues])
    write(
        engine,
        main,
        parked=[Parked(first + 10, "dead", None, "add"), Parked(first + 11, "unknown", None, "g")],
    )
    assert engine.next_due(main.id) == NOW + 1
    due = [p.pos for p in view_of(engine, Reads(main.id, positions=True, due=2, now=NOW + 3)).due]
    assert due == [first + 1, first + 2], "the earliest first"
    assert not engine.has_work(main.id, NOW, ())
    assert not engine.has_work(main.id, NOW, ("other",))
    assert engine.has_work(main.id, NOW + 1, ())
    assert sorted(granted(grant(engine, main, 9, now=NOW + 3))) == [first, first + 1, first + 2]
    assert engine.next_due(main.id) == NOW + 9


def test_what_is_unknown_is_offered_to_who_knows_it(engine: Engine, main: Group) -> None:
    """H12."""
    write(engine, main, parked=[Parked(n, "unknown", None, task) for n, task in enumerate("aabbc")])
    assert engine.unknown_tasks(main.id) == {"a", "b", "c"}
    assert engine.has_work(main.id, NOW, ("b",))
    assert [p.pos for p in view_of(engine, Reads(main.id, due=9, now=NOW)).due] == []
    assert {p.pos for p in view_of(engine, Reads(main.id, due=9, now=NOW, tasks=("b", "c", "x"))).due} == {
        2,
        3,
        4,
    }
    assert len(view_of(engine, Reads(main.id, due=2, now=NOW, tasks=("a", "b"))).due) == 2


def view_of(engine: Engine, reads: Reads) -> View:
    return engine.transact(reads, lambda view, change: view)


def test_a_view_shows_what_was_asked_for(engine: Engine, log: int, main: Group) -> None:
    fill(engine, log, 3)
    write(engine, main, parked=[Parked(1, "dead", None, "add"), Parked(2, "retry", NOW + 9, "add")])
    write(
        engine,
        main,
        leases=[Lease(n, None if n > 1 else 5, 0, [Span(n, n + 1)], {n: b"edit"}) for n in (1, 2, 3)],
    )
    nothing = view_of(engine, Reads(main.id))
    assert (nothing.positions, nothing.due, nothing.returned, nothing.leases) == ([], [], [], {})
    view = view_of(engine, Reads(main.id, leases=(1, 8), positions=True, returned=1, parked=(1, 2, 3)))
    assert view.leases == {1: Lease(1, 5, 0, [Span(1, 2)], {1: b"edit"})}
    assert view.returned == [Lease(2, None, 0, [Span(2, 3)], {2: b"edit"})]
    assert [parked.pos for parked in view.due] == [1, 2]
    assert view.positions == engine.positions(main)
    assert view_of(engine, Reads(main.id + 99, leases=(1,))).leases == {}, "of another group"


# State: outcomes


def test_outcomes_expire_and_their_endings_stay(engine: Engine, main: Group) -> None:
    """H9: after `result_ttl` there is no value, and it does not read as "returned None"."""
    kept = [Outcome(n, "success", b"v", NOW, NOW + n) for n in (1, 2, 3)] + [Outcome(4, "failure", b"e", NOW)]
    write(engine, main, outcomes=kept)
    assert engine.expire_outcomes(NOW, ALL) == 0
    assert engine.expire_outcomes(NOW + 2, 1) == 1
    assert engine.expire_outcomes(NOW + 2, ALL) == 1
    assert engine.expire_outcomes(NOW + 2, ALL) == 0
    found = engine.outcomes(main.id, 0, 10)
    assert [(o.pos, o.ending, o.value) for o in found] == [
        (1, "success", None),
        (2, "success", None),
        (3, "success", b"v"),
        (4, "failure", b"e"),
    ]
    assert [o.expired(NOW + 2) for o in found] == [True, True, False, False]
    assert [o.expired(NOW + 3) for o in found] == [True, True, True, False]


def test_outcomes_of_a_range(engine: Engine, main: Group) -> None:
    write(engine, main, outcomes=[Outcome(n, "revoked", None, NOW) for n in range(10)])
    assert [o.pos for o in engine.outcomes(main.id, 3, 6)] == [3, 4, 5]
    write(engine, main, outcomes=[Outcome(4, "success", b"v", NOW)], forgotten=[5])
    assert [(o.pos, o.ending) for o in engine.outcomes(main.id, 4, 7)] == [(4, "success"), (6, "revoked")]


@pytest.mark.parametrize("positions", [range(4), (0, 2, 3), (3, 1, 2, 0), (2,)])
def test_what_runs_returned_is_kept(engine: Engine, log: int, main: Group, positions: Sequence[int]) -> None:
    first = fill(engine, log, 4)
    lease = grant(engine, main, 4)
    assert lease is not None
    results = [(first + n, b"r%d" % n) for n in sorted(positions)]
    settlement = Settlement(lease=lease.id, owner=1, done=[(first, first + 4)], results=results, ended=NOW)
    engine.transact(Reads(main.id, (lease.id,)), lambda view, change: settle(view, change, settlement))
    assert [(o.pos, o.value, o.at, o.until) for o in engine.outcomes(main.id, first, first + 4)] == [
        (pos, value, NOW, None) for pos, value in results
    ]


def test_what_was_settled_before_is_not_settled_again(engine: Engine, main: Group) -> None:
    """H2: the supervisor settled what had run; the child says it again, whatever the spans' order."""
    results = [(50, b"a"), (51, b"b"), (10, b"c"), (11, b"d")]
    write(engine, main, leases=[Lease(7, 1, 0, [Span(50, 52), Span(10, 12)])])
    for at, done in ((NOW, [(50, 52)]), (NOW + 1, [(10, 12), (50, 52)])):
        said = [result for result in results if any(lo <= result[0] < hi for lo, hi in done)]
        settlement = Settlement(lease=7, owner=1, done=done, results=said, ended=at)
        assert engine.transact(
            Reads(main.id, (7,)), lambda view, change, s=settlement: settle(view, change, s)
        )
    assert [(o.pos, o.value, o.at) for o in engine.outcomes(main.id, 0, 99)] == [
        (10, b"c", NOW + 1),
        (11, b"d", NOW + 1),
        (50, b"a", NOW),
        (51, b"b", NOW),
    ]


def test_a_verdict_that_was_settled_before_is_passed_over(engine: Engine, log: int, main: Group) -> None:
    """H2: the supervisor has parked or ended what a run came to; said again, it is not parked anew."""
    first = fill(engine, log, 4)
    lease = grant(engine, main, 4)
    assert lease is not None
    retry = Verdict(first, reason="retry", due=NOW + 9, task="add", retried=True, note="retry: e", ended=NOW)
    failed = Verdict(first + 1, "failure", b"e", note="failed: e", calls=[row(log, b"once")], ended=NOW)
    for done in ((first, first + 2), (first, first + 3)):
        said = Settlement(lease.id, 1, [done], [retry, failed], started=NOW, ended=NOW + 1)
        assert engine.transact(
            Reads(main.id, (lease.id,)), lambda view, change, s=said: settle(view, change, s)
        )
        write(engine, main, unparked=[first])  # it is due meanwhile, and is being run by somebody
    assert engine.status(main, first).parked is None
    assert engine.counts(main)[:3] == (1, 1, 0), "one more was sent, the fourth is left"
    assert [entry.how for entry in engine.journal(main.id, first)] == ["retry"]
    assert [entry.how for entry in engine.journal(main.id, first + 1)] == ["failed"]
    assert [record.body for record in engine.records(first + 4, first + 9, 9)] == [b"once"]


def test_what_a_run_said_of_itself_is_not_said_of_the_next(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 2)
    lease = grant(engine, main, 2)
    assert lease is not None
    for pos in (first, first + 1):
        engine.set_progress(main.id, pos, b"half", (lease.id, 1))
    retry = Verdict(
        first, reason="retry", due=NOW, task="add", retried=True, note="retry: e", progressed=True
    )
    assert finish(engine, main, lease, retry, Verdict(first + 1, "success", b"v", progressed=True))
    again = grant(engine, main, 1, owner=2, now=NOW + 1)
    assert granted(again) == [first]
    status = engine.status(main, first)
    assert (status.place, status.progress) == ("leased", None)
    assert engine.status(main, first + 1).progress is None


def test_who_gave_a_lease_back_settles_nothing_of_it_later(engine: Engine, log: int, main: Group) -> None:
    """P4: it keeps its number, and is nobody's, or another's: refused and counted, and nothing is written."""
    first = fill(engine, log, 2)
    lease = grant(engine, main, 2)
    assert lease is not None
    release = Settlement(lease.id, 1, [], release=True)
    assert engine.transact(Reads(main.id, (lease.id,)), lambda view, change: settle(view, change, release))
    sent = row(log, b"sent")
    for owner in (None, 2):
        write(engine, main, leases=[Lease(lease.id, owner, 0, lease.spans)])
        assert not finish(engine, main, lease, Verdict(first, "success", b"v", calls=[sent]))
        assert [each.owner for each in engine.leases(main)] == [owner]
    assert engine.outcomes(main.id, 0, 1 << 62) == []
    assert engine.find("shop", sent.id) is None
    assert engine.counters(main.id) == {"refused settlements": 2}


def test_who_lost_a_lease_says_nothing_of_its_run(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 2)
    lease = grant(engine, main, 2)
    assert lease is not None
    for n, fence in enumerate([(lease.id, 1), (lease.id, 2), (lease.id + 1, 1)]):
        engine.set_progress(main.id, first, b"%d" % n, fence)
        assert engine.status(main, first).progress == b"0"
    write(engine, main, dropped_leases=[lease.id])
    engine.set_progress(main.id, first + 1, b"late", (lease.id, 1))
    write(engine, main, leases=[lease])
    assert engine.status(main, first + 1).progress is None


# State: the journal


def test_the_journal_covers_what_was_done(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, MAX_LEASE + 10)
    lease = grant(engine, main, ALL)
    assert lease is not None
    assert len(granted(lease)) == MAX_LEASE
    finish(engine, main, lease)
    for pos in (first, first + 1, first + MAX_LEASE - 1):
        assert [(e.lo, e.hi, e.how, e.owner) for e in engine.journal(main.id, pos)] == [
            (first, first + MAX_LEASE, "done", 1)
        ]
        assert engine.status(main, pos).how == "done"
    assert engine.journal(main.id, first + MAX_LEASE) == []


def test_a_long_purge_is_found_from_its_end(engine: Engine, log: int, main: Group) -> None:
    first = first_pos(log)
    hi = first + 10 * MAX_LEASE
    write(engine, main, journal=[JournalEntry(first, hi, None, 0, NOW, NOW, "purged")])
    assert [len(engine.journal(main.id, pos)) for pos in (first, first + 9, hi - 1, hi)] == [1, 1, 1, 0]


def test_the_journal_tells_in_order(engine: Engine, main: Group) -> None:
    entries = [JournalEntry(5, 6, 1, 0, NOW + n, NOW + n, "retry", n, f"retry: {n}") for n in range(3)]
    write(engine, main, journal=entries)
    write(engine, main, journal=[JournalEntry(0, 9, 2, 1, NOW + 3, NOW + 4, "done", 3)])
    found = engine.journal(main.id, 5)
    assert [(e.how, e.retries, e.note, e.owner, e.child) for e in found] == [
        ("retry", 0, "retry: 0", 1, 0),
        ("retry", 1, "retry: 1", 1, 0),
        ("retry", 2, "retry: 2", 1, 0),
        ("done", 3, None, 2, 1),
    ]
    assert [e.how for e in engine.journal(main.id, 4)] == ["done"]


@pytest.mark.parametrize("later", [-60.0, 0.0])
def test_done_is_done_after_the_clock_was_set_back(
    engine: Engine, log: int, main: Group, later: float
) -> None:
    """H9, H19: a record whose last entry is "done" must not read as "its history is not kept"."""
    first = fill(engine, log, 3)
    lease = grant(engine, main, 3)
    assert lease is not None
    retries = [Verdict(first + n, reason="retry", due=NOW - 99, note="retry: e") for n in (0, 1)]
    finish(engine, main, lease, *retries, ended=NOW)
    again = grant(engine, main, 3, now=NOW + later)
    assert again is not None
    finish(engine, main, again, ended=NOW + later)
    assert engine.status(main, first + 1).how == "done"


# State: parked records, counts


def test_parked_records_are_listed_by_what_is_asked(
    engine: Engine, queue: Stream, log: int, main: Group
) -> None:
    other = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first_pos(log), None)])
    parked = [
        Parked(1, "dead", None, "a", 1, 2, 3, False, b"body", b"error", NOW + 5),
        Parked(2, "dead", None, "b", at=NOW + 4),
        Parked(3, "retry", NOW + 9, "a", at=NOW + 3),
        Parked(4, "unknown", None, "c", at=NOW + 3),
    ]
    write(engine, main, parked=parked)
    write(engine, other, parked=[Parked(1, "dead", None, "a", at=NOW)])

    def listed(*chosen: Any, limit: int = ALL) -> list[tuple[int, int]]:
        return [(group, each.pos) for group, each in engine.parked(ParkedFilter(*chosen), limit)]

    mine = [(main.id, pos) for pos in (3, 4, 2, 1)]
    assert listed((main.id,)) == mine, "the oldest first"
    assert listed((main.id, other.id)) == [(other.id, 1), *mine]
    assert listed((main.id,), ("dead",)) == [(main.id, 2), (main.id, 1)]
    assert listed((main.id,), ("dead", "unknown")) == [(main.id, 4), (main.id, 2), (main.id, 1)]
    assert listed((main.id,), (), ("a",)) == [(main.id, 3), (main.id, 1)]
    assert listed((main.id,), (), ("a", "c", "x")) == [(main.id, 3), (main.id, 4), (main.id, 1)]
    assert listed((main.id,), ("dead",), (), (1, 3, 9)) == [(main.id, 1)]
    assert listed((main.id,), limit=2) == mine[:2]
    assert listed(()) == listed((main.id + 99,)) == []
    assert engine.parked(ParkedFilter((main.id,), positions=(1,)), ALL) == [(main.id, parked[0])]


def test_what_is_parked_is_found_by_its_id_though_its_log_was_cut(
    kit: EngineKit, engine: Engine, queue: Stream, log: int, main: Group
) -> None:
    """H15: a call's handle, and the commands, find it by what they know of it."""
    first, single, given = new_head(NOW), new_head(NOW), f"shop\0{'mine' * 40}"
    engine.append_run(log, "add", [b"0", b"1", b"2"], None, first, NOW)
    for id in (single, given, new_head(NOW)):
        engine.append_row(row(log, id=id))
    lease = grant(engine, main, 6)
    assert lease is not None
    lo = granted(lease)[0]
    dead = [
        Verdict(pos, "failure", b"e", reason="dead", task="add", error=b"e")
        for pos in (lo + 1, lo + 3, lo + 4)
    ]
    engine.rows(lease.spans)
    assert finish(engine, main, lease, *dead)
    while engine.trim(queue, NOW + 1e9, ALL):
        pass
    assert engine.bounds(queue)[0][1] == lo + 6, "it is cut"
    other = kit.open()
    assert other.find("shop", id_of(first, 1)) == lo + 1
    assert other.find("shop", single) == lo + 3
    assert other.find("shop", "mine" * 40) == lo + 4
    assert other.find("shop", "mine" * 39) is None
    assert other.find("shop", new_head(NOW)) is None
    assert [each.id for each in other.records(lo + 1, lo + 2, 1)] == [id_of(first, 1)]


def test_parked_records_are_gone_through_page_by_page(engine: Engine, log: int, main: Group) -> None:
    parked = [
        Parked(n, "dead" if n % 3 else "retry", None if n % 3 else NOW, "ab"[n % 2], n, 1, 2, bool(n % 2),
               b"b%d" % n, b"e%d" % n, NOW + n)
        for n in range(1, 10)
    ]  # fmt: skip
    write(engine, main, parked=parked)

    def pages(chosen: ParkedFilter) -> list[Parked]:
        found: list[Parked] = []
        while page := engine.parked_page(chosen, main.id, found[-1].pos if found else 0, 2):
            assert len(page) <= 2
            found += page
        places = [(each.pos, each.task) for each in found]
        assert engine.parked_after(chosen, main.id, 0, ALL) == places
        return found

    assert pages(ParkedFilter(())) == parked
    assert pages(ParkedFilter((), ("dead",), ("a",))) == [parked[n - 1] for n in (2, 4, 8)]
    assert pages(ParkedFilter((), (), ("x", parked[0].task))) == [
        p for p in parked if p.task == parked[0].task
    ]
    assert pages(ParkedFilter((), (), (), (3, 5, 77))) == [parked[2], parked[4]]
    assert pages(ParkedFilter((), since=NOW + 4, until=NOW + 6)) == [parked[3], parked[4]]
    assert [p.pos for _, p in engine.parked(ParkedFilter((main.id,), since=NOW + 8), ALL)] == [8, 9]
    assert [p.pos for _, p in engine.parked(ParkedFilter((main.id,), until=NOW + 2), ALL)] == [1]


def test_a_record_is_parked_once(engine: Engine, main: Group) -> None:
    write(engine, main, parked=[Parked(1, "retry", NOW, "a")])
    write(engine, main, parked=[Parked(1, "dead", None, "a", 5)])
    assert engine.parked(ParkedFilter((main.id,)), ALL) == [(main.id, Parked(1, "dead", None, "a", 5))]
    write(engine, main, unparked=[1, 2])
    assert engine.parked(ParkedFilter((main.id,)), ALL) == []


def test_counts_say_how_many_are_where(engine: Engine, main: Group, log: int) -> None:
    assert engine.counts(main) == Counts(0, 0, 0, {}, None, None)
    engine.append_rows([row(log, time=NOW + n) for n in range(10)])
    assert engine.counts(main) == Counts(10, 0, 0, {}, NOW, None)
    lease = grant(engine, main, 4)
    assert lease is not None
    first = first_pos(log)
    verdicts = [
        Verdict(first, reason="retry", due=NOW + 7),
        Verdict(first + 1, reason="scheduled", due=NOW + 3),
    ]
    verdicts += [Verdict(first + 2, "failure", reason="dead")]
    finish(engine, main, lease, *verdicts)
    grant(engine, main, 2)
    parked = {"retry": 1, "scheduled": 1, "dead": 1}
    assert engine.counts(main) == Counts(4, 2, 0, parked, NOW + 6, NOW + 3)


def test_unfinished_counts_what_can_still_run(engine: Engine, main: Group, log: int) -> None:
    first = fill(engine, log, 10)
    assert engine.unfinished(main, first, first + 10) == 10
    lease = grant(engine, main, 6)
    assert lease is not None
    assert engine.unfinished(main, first, first + 10) == 10
    finish(
        engine,
        main,
        lease,
        Verdict(first, reason="retry", due=NOW),
        Verdict(first + 1, "failure", reason="dead"),
    )
    assert engine.unfinished(main, first, first + 10) == 5, "a dead letter is finished"
    assert engine.unfinished(main, first + 1, first + 7) == 1


def test_nothing_is_unfinished_outside_a_groups_bounds(engine: Engine, queue: Stream, log: int) -> None:
    """Else whoever waits for a replay's calls waits for ever."""
    first = fill(engine, log, 10)
    group = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first + 2, first + 5)])
    assert engine.unfinished(group, first, first + 10) == 3


def test_counters_add_up(engine: Engine, main: Group) -> None:
    for by in (1, 2):
        engine.transact(Reads(main.id), lambda view, change, by=by: change.count("calls dropped", by))
        engine.transact(Reads(main.id), lambda view, change: change.count("skipped"))
    assert engine.counters(main.id) == {"calls dropped": 3, "skipped": 2}


def test_other_engines_see_what_was_committed(kit: EngineKit, engine: Engine, main: Group, log: int) -> None:
    other = kit.open()
    assert other.streams() == engine.streams()
    fill(engine, log, 2)
    assert other.counts(main).pending == 2
    assert engine.damage() == []


ANOTHER = """
import sys
from respool.location import parse_url
from respool.engines import open_engine
engine = open_engine(parse_url(sys.argv[1]), "full", 10.0)
(queue,) = engine.streams()
first, end = engine.bounds(queue)[0][1:]
engine.append_run(queue.logs[0], "add", [b"from another process"], None, bytes.fromhex(sys.argv[2]), 5.0)
engine.ring(queue.logs[0])
print(end - first, engine.target)
engine.close()
"""


@pytest.mark.parametrize("kits", SHARED, indirect=True)
def test_other_processes_see_what_was_committed(kit: EngineKit, engine: Engine, log: int) -> None:
    assert kit.url is not None
    first = fill(engine, log, 2)
    command = [sys.executable, "-c", ANOTHER, kit.url, head().hex()]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert said.split(maxsplit=1) == ["2", f"{engine.target}\n"]
    assert [r.body for r in engine.records(first + 2, first + 9, ALL)] == [b"from another process"]


@pytest.mark.parametrize("kits", SHARED, indirect=True)
def test_what_is_stored_outlives_the_engine(kit: EngineKit, engine: Engine, log: int, main: Group) -> None:
    assert engine.capabilities.durable
    first = fill(engine, log, 3)
    worker = engine.register(registration("one"))
    lease = grant(engine, main, 2)
    write(engine, main, parked=[Parked(first, "dead", None, "add")])
    before = snapshot(engine, main), engine.streams(), engine.groups(), engine.workers()
    engine = kit.reopen()
    assert (snapshot(engine, main), engine.streams(), engine.groups(), engine.workers()) == before
    assert engine.leases(main) == [lease]
    assert engine.register(registration("two")) > worker
    assert fill(engine, log, 1) == first + 3


def test_a_closed_engine_says_so(engine: Engine, log: int) -> None:
    assert engine.usable()
    for _ in range(2):
        engine.close()
    with pytest.raises(EngineUnavailable):
        engine.append_rows([row(log)])
    with pytest.raises(EngineUnavailable):
        engine.streams()


def test_engines_of_one_store_have_one_target(kits: list[EngineKit], engine: Engine) -> None:
    again, other = kits[0].open(), kits[1].open()
    assert again.target == engine.target != other.target
    assert again.run_folder == engine.run_folder != other.run_folder
    assert engine.run_folder.parent.is_dir()


# Bells: a hint may be lost, but in quiet there is no reason to


@with_bells
def test_a_worker_is_woken_by_its_logs(kit: EngineKit, engine: Engine, log: int) -> None:
    sleeper = engine.sleeper([log], 7)
    other = kit.open()
    sleeper.prepare()
    other.ring(log + 1)
    assert not sleeper.sleep(0)
    for everyone in (False, True):
        sleeper.prepare()
        other.ring(log, everyone=everyone)
        assert sleeper.sleep(10), "rung before it slept"
        assert not sleeper.sleep(0), "a ring is taken once"
    sleeper.close()


@with_bells
def test_one_worker_of_a_service_is_woken_or_all(kit: EngineKit, engine: Engine, log: int) -> None:
    sleepers = [engine.sleeper([log], service) for service in (7, 7, 8)]
    for everyone, woken in ((False, {7: 1, 8: 1}), (True, {7: 2, 8: 1})):
        for sleeper in sleepers:
            sleeper.prepare()
        engine.ring(log, everyone=everyone)
        began = time.monotonic()
        rung = [sleeper.sleep(0.2 if kit.rings_one else 20) for sleeper in sleepers]
        if kit.rings_one or everyone:
            assert {7: rung[0] + rung[1], 8: rung[2]} == woken
        else:  # one at once; the others look for themselves, a moment later
            assert sum(rung) == 1
            assert time.monotonic() - began < 5
    for sleeper in sleepers:
        sleeper.close()


def test_a_sleep_ends_by_itself_and_by_a_descriptor(engine: Engine, log: int) -> None:
    reader, writer = os.pipe()
    sleeper = engine.sleeper([log], 7, (reader,))
    try:
        sleeper.prepare()
        assert not sleeper.sleep(0.01)
        os.write(writer, b"!")
        sleeper.prepare()
        began = time.monotonic()
        assert not sleeper.sleep(30)
        assert time.monotonic() - began < 10
    finally:
        sleeper.close()
        os.close(reader)
        os.close(writer)


@with_bells
@pytest.mark.parametrize("every", [False, True])
def test_waiters_are_woken_by_their_records(kit: EngineKit, engine: Engine, log: int, every: bool) -> None:
    pos, other = first_pos(log) + 5, kit.open()
    with engine.waiter(None if every else pos) as waiter:
        waiter.prepare()
        other.ring_waiters([pos + 1])
        assert waiter.sleep(10 if every else 0) == every
        for positions in ([pos], range(pos - 3, pos + 3), range(pos - 100, pos + (1 << 30))):
            waiter.prepare()
            other.ring_waiters(positions)
            assert waiter.sleep(10)
        waiter.prepare()
        waiter.cancel()
        waiter.cancel()


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


MANY = 300  # who wait at once
FEW = 80  # descriptors that they may take together
KEPT = 40  # that stay open for the next to wait, and for the next ring


@with_bells
def test_hundreds_of_coroutines_wait_with_a_few_descriptors(kit: EngineKit, engine: Engine, log: int) -> None:
    """One that is rung for leaves the others listening, and nothing stays open but for a few (P10)."""
    places, other = range(first_pos(log), first_pos(log) + MANY), kit.open()
    taken: list[int] = []

    async def one(pos: int, ready: asyncio.Semaphore) -> float:
        with engine.async_waiter(pos) as waiter:
            waiter.prepare()
            ready.release()
            began = time.monotonic()
            assert await waiter.sleep(30), "the ring came"
            return time.monotonic() - began

    async def main() -> None:
        ready = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(one(pos, ready)) for pos in places]
        for _ in places:
            await ready.acquire()
        taken.append(descriptors())
        await asyncio.to_thread(other.ring_waiters, [places[0]])
        await tasks[0]
        assert sum(not task.done() for task in tasks) > MANY // 2, "a ring is not for all"
        await asyncio.to_thread(other.ring_waiters, places)
        await asyncio.gather(*tasks)

    other.ring_waiters([places[0]])  # connects
    before = descriptors()
    asyncio.run(main())
    assert taken[0] - before < FEW
    after = descriptors()
    assert after - before < KEPT
    asyncio.run(main())
    assert descriptors() < after + 5, "those that were kept are used again"


@with_bells
def test_threads_that_wait_share_a_few_descriptors(kit: EngineKit, engine: Engine, log: int) -> None:
    """Who leads and leaves hands over: the rest hear as before."""
    size = MANY // 4
    places, other = range(first_pos(log), first_pos(log) + size), kit.open()
    ready = threading.Semaphore(0)

    def one(pos: int) -> bool:
        with engine.waiter(pos) as waiter:
            waiter.prepare()
            ready.release()
            return waiter.sleep(30)

    other.ring_waiters([places[0]])
    before = descriptors()
    with ThreadPoolExecutor(size) as pool:
        waiting = [pool.submit(one, pos) for pos in places]
        for _ in places:
            ready.acquire()
        assert descriptors() - before < FEW
        for pos, each in zip(places, waiting, strict=True):
            if not each.done():  # as one that shares its bell with one before
                other.ring_waiters([pos])
            assert each.result(PATIENCE)
    assert descriptors() - before < KEPT


@with_bells
def test_who_leads_and_gives_up_hands_over(kit: EngineKit, engine: Engine, log: int) -> None:
    pos, other = first_pos(log), kit.open()
    with engine.waiter(pos) as brief, engine.waiter(pos) as patient, ThreadPoolExecutor(2) as pool:
        brief.prepare()
        patient.prepare()
        leads = pool.submit(brief.sleep, 0.5)
        follows = pool.submit(patient.sleep, 2 * PATIENCE)
        assert not leads.result(PATIENCE)
        other.ring_waiters([pos])
        assert follows.result(PATIENCE)


def test_without_descriptors_who_waits_polls(engine: Engine, log: int, monkeypatch: Any) -> None:
    def none_left(*args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> bool:
        with engine.async_waiter(first_pos(log)) as waiter:
            waiter.prepare()
            return await waiter.sleep(0.01)

    store: Any = getattr(engine, "inner", engine)
    monkeypatch.setattr(store._waiters, "_make", none_left)
    with engine.waiter(first_pos(log)) as waiter:
        waiter.prepare()
        assert not waiter.sleep(0.01)
    assert not asyncio.run(main())


@pytest.mark.parametrize("kits", ["postgres-pooled"], indirect=True)
def test_without_bells_polling_is_the_floor(kit: EngineKit, engine: Any, log: int) -> None:
    """Behind a pooler: nothing is listened to that could not be heard, and no flag is left on its servers."""
    sleeper = engine.sleeper([log], 7)
    sleeper.prepare()
    kit.open().ring(log)
    assert not sleeper.sleep(0.05)
    assert not sleeper.hears
    held = engine._reader.read(
        lambda db: db.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
    )
    assert held == (0,)
    sleeper.close()


# Inspect: what commands and checks ask


def test_attributes_that_cannot_be_read_hide_no_other_record(engine: Engine, log: int) -> None:
    """They are read to be shown as far as they go, and say why no further; what runs them sees the bytes."""
    wrong = msgspec.msgpack.encode({"headers": {"tenant": 7}, "key": "ada", "due": 5, "other": 1})
    metas = [None, wrong, b"\x07", msgspec.msgpack.encode([1]), Meta(headers={"a": "b"}).packed()]
    engine.append_rows([row(log, meta=meta) for meta in metas])
    ((_, lo, hi),) = [each for stream in engine.streams() for each in engine.bounds(stream) if each[0] == log]
    for found in engine.records(lo, hi, 9), engine.briefs(lo, hi, None, None, None, 99):
        assert [each.meta.damaged is None for each in found] == [True, False, False, False, True]
        assert "Expected `str`, got `int`" in (found[1].meta.damaged or "")
        assert (found[1].meta.key, found[1].meta.due, found[1].meta.headers) == ("ada", 5.0, None)
        assert found[2].meta == Meta(damaged=found[2].meta.damaged)
        assert found[4].meta.headers == {"a": "b"}
    assert [meta for *_, meta in engine.rows([Span(lo, hi)])] == metas


def test_pages_of_records(engine: Engine, log: int) -> None:
    first = fill(engine, log, 3)
    engine.append_rows([row(log, b"long body", time=NOW + 5, task="other", meta=Meta(key="k").packed())])
    hi = first + 9
    briefs = engine.briefs(first, hi, None, None, None, 4)
    assert [(b.pos - first, b.task, b.size, b.body, b.meta.key) for b in briefs] == [
        *((n, "add", 1, b"%d" % n, None) for n in range(3)),
        (3, "other", 9, None, "k"),
    ]
    full = engine.records(first, hi, ALL)
    assert [(b.pos, b.id, b.time) for b in briefs] == [(r.pos, r.id, r.time) for r in full]
    assert [b.pos - first for b in engine.briefs(first, hi, "other", None, None, 0)] == [3]
    assert [b.pos - first for b in engine.briefs(first, hi, None, NOW, NOW + 5, 0)] == [0, 1, 2]
    assert engine.task_counts(first, hi, None, None) == {"add": 3, "other": 1}
    assert engine.task_counts(first + 1, hi, NOW, NOW + 5) == {"add": 2}
    assert (engine.record_count(first, hi), engine.record_count(first + 1, first + 3)) == (4, 2)
    assert (engine.first_record(0, first), engine.first_record(0, 1 << 62)) == (None, first)
    assert engine.broken_runs(first, hi, 10) == []


def test_a_page_says_all_that_a_group_knows(kit: EngineKit, engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 8)
    lease = grant(engine, main, 5)
    assert lease is not None
    verdicts = [
        Verdict(first, "failure", b"e", reason="dead", task="add", error=b"e"),
        Verdict(first + 1, "success", b"v"),
    ]
    finish(engine, main, lease, *verdicts)
    held = grant(engine, main, 1)
    if kit.cuts_inside:
        kit.cut(log, first + 6, first + 7)
    page = engine.group_page(main, first, first + 8)
    assert page.bounds == (log, first, first + 6, None)
    assert engine.group_bounds(main) == [page.bounds]
    assert page.leases == [held]
    assert [(p.pos, p.reason, p.error) for p in page.parked] == [(first, "dead", None)]
    assert [(o.pos, o.ending, o.value) for o in page.outcomes] == [
        (first, "failure", None),
        (first + 1, "success", None),
    ]
    assert {how for _, _, how in page.journal} >= {"done"}
    assert page.records == (
        [(first, first + 6), (first + 7, first + 8)] if kit.cuts_inside else [(first, first + 8)]
    )
    assert engine.group_page(main, first + 2, first + 4).parked == []

    state = engine.group_state(main, 10)
    assert (state.bounds, state.leases, state.workers) == ([page.bounds], [held], set())
    assert state.stray_parked == []
    write(engine, main, parked=[Parked(first + 7, "dead", None, "b"), Parked(5, "unknown", None, "c")])
    assert engine.group_state(main, 10).stray_parked == [5, first + 7]
    assert len(engine.group_state(main, 1).stray_parked) == 1
    wanted = ParkedFilter((), ("dead",))
    assert engine.parked_after(wanted, main.id, -1, 10) == [(first, "add"), (first + 7, "b")]
    assert engine.parked_after(wanted, main.id, first, 10) == [(first + 7, "b")]
    assert engine.parked_after(wanted, main.id, -1, 1) == [(first, "add")]


def test_logs_are_listed_with_their_ends(kit: EngineKit, engine: Engine, queue: Stream, log: int) -> None:
    first = fill(engine, log, 5)
    kit.cut(log, first, first + 2)
    (state,) = engine.log_states()
    assert (state.log, state.stream, state.first, state.end) == (log, queue.id, first + 2, first + 5)
    assert engine.orphans() == []


# State: a run's own work


def test_work_is_committed_with_its_settlement(kit: EngineKit, engine: Engine, main: Group, log: int) -> None:
    if not engine.capabilities.joins_work:
        with pytest.raises(ConfigError):
            engine.begin_work((1, 1))
        return
    first = fill(engine, log, 3)
    lease = grant(engine, main, 3)
    assert lease is not None
    reads = Reads(main.id, (lease.id,))
    settlement = Settlement(lease.id, 1, [(first, first + 1)], [Verdict(first, "success", b"v")], ended=NOW)

    def settled(view: View, change: Change) -> bool:
        change.calls.append(row(log, b"made"))
        return settle(view, change, settlement)

    for ending in ("refused", "rolled back", "committed"):
        work = engine.begin_work((lease.id, 1))
        work.connection.execute(f"CREATE TABLE {kit.own_table} (n integer)")
        work.append([row(log, b"early")])
        if ending == "rolled back":
            work.roll_back()
        else:
            assert work.settle(reads, lambda v, c, e=ending: e == "committed" and settled(v, c)) == (  # type: ignore[misc]
                ending == "committed"
            )
        assert len(engine.records(first, first + ALL, 10)) == (5 if ending == "committed" else 3)
    assert engine.status(main, first).outcome == Outcome(first, "success", b"v", NOW)
    assert [span[:2] for held in engine.leases(main) for span in held.spans] == [(first + 1, first + 3)]
    again = engine.begin_work((lease.id, 1))
    again.connection.execute(f"DROP TABLE {kit.own_table}")
    assert again.settle(reads, lambda view, change: True)
    for fence in ((lease.id, 2), (lease.id + 1, 1)):
        with pytest.raises(LeaseLost):
            engine.begin_work(fence)


# Groups that are moved, paused or paced


def test_a_groups_settings_are_changed_and_seen(engine: Engine, main: Group) -> None:
    write(engine, main, settings={"rate": 2.5, "seek": {"to": [[1, 2]]}})
    write(engine, main, settings={"pace": [1.0, 2.0], "rate": None})
    view = view_of(engine, Reads(main.id, settings=True))
    assert dict(view.settings) == {"seek": {"to": [[1, 2]]}, "pace": [1.0, 2.0]}
    assert dict(view_of(engine, Reads(main.id, positions=True)).settings) == dict(view.settings)
    write(engine, main, generation=7)
    assert view_of(engine, Reads(main.id, settings=True)).generation == 7
    (found,) = [group for group in engine.groups() if group.id == main.id]
    assert (found.generation, found.settings) == (7, dict(view.settings))


@pytest.mark.parametrize("name", ["paused", "seek"])
def test_a_group_that_is_held_has_no_work_and_is_granted_nothing(
    engine: Engine, log: int, main: Group, name: str
) -> None:
    fill(engine, log, 3)
    write(engine, main, parked=[Parked(1, "retry", NOW - 5, "a")])
    assert engine.has_work(main.id, NOW, ())
    write(engine, main, settings={name: {"to": []} | {"at": 1.0}})
    assert not engine.has_work(main.id, NOW, ())
    assert grant(engine, main, 5) is None
    write(engine, main, settings={name: None})
    assert engine.has_work(main.id, NOW, ())
    assert grant(engine, main, 5) is not None


def test_a_group_is_granted_no_more_than_its_rate(engine: Engine, log: int, main: Group) -> None:
    fill(engine, log, 100)
    write(engine, main, settings={"rate": 10.0})
    assert len(granted(grant(engine, main, 50, now=NOW))) == 10, "a second's worth"
    assert grant(engine, main, 50, owner=2, now=NOW) is None, "whoever asks"
    assert len(granted(grant(engine, main, 50, owner=2, now=NOW + 0.5))) == 5
    assert len(granted(grant(engine, main, 3, now=NOW + 1.0))) == 3
    assert len(granted(grant(engine, main, 50, now=NOW + 1.0))) == 2
    assert grant(engine, main, 50, now=NOW - 100) is None, "the clock was set back"
    assert len(granted(grant(engine, main, 50, now=NOW - 99.5))) == 5, "and time goes on from there"
    assert len(granted(grant(engine, main, 50, now=NOW + 500))) == 10


def test_what_a_filter_leaves_out_costs_no_tokens(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 100)
    write(engine, main, settings={"rate": 10.0})
    lease = grant(engine, main, 10)
    assert lease is not None
    settlement = Settlement(
        lease.id, 1, [(first, first + 10)], [Verdict(first + n, skipped=True) for n in range(9)]
    )
    assert engine.transact(
        Reads(main.id, (lease.id,), settings=True), lambda view, change: settle(view, change, settlement)
    )
    assert len(granted(grant(engine, main, 50))) == 9


def test_what_is_rewound_is_history(engine: Engine, log: int, main: Group) -> None:
    first = fill(engine, log, 10)
    lease = grant(engine, main, 10)
    assert lease is not None
    finish(engine, main, lease, Verdict(first + 8, "failure", b"e", "dead", task="a", note="failed: e"))
    write(engine, main, outcomes=[Outcome(first + n, "success", b"v", NOW) for n in (2, 6)])
    engine.set_progress(main.id, first + 6, b"p")
    write(engine, main, rewound=[(first + 4, first + 10)], cursors=[(log, first + 4)])
    assert engine.parked(ParkedFilter((main.id,)), ALL) == []
    assert [outcome.pos for outcome in engine.outcomes(main.id, 0, 1 << 62)] == [first + 2]
    hows = [[(e.how, e.note) for e in engine.journal(main.id, first + n)] for n in (3, 4, 8)]
    assert hows[0] == [("done", None)], "the entry is split"
    assert hows[1] == [("rewound", "done, before it was rewound")]
    assert ("rewound", "failed: e, before it was rewound") in hows[2]
    assert engine.status(main, first + 3).how == "done"
    assert engine.status(main, first + 5).place == "pending"


def test_a_long_purge_is_rewound_from_its_middle(engine: Engine, log: int, main: Group) -> None:
    first = first_pos(log)
    long = JournalEntry(first, first + 20_000, None, 0, NOW, NOW, "purged")
    write(engine, main, journal=[long], cursors=[(log, first + 20_000)])
    write(engine, main, rewound=[(first + 9_000, first + 20_000)])
    assert [e.how for e in engine.journal(main.id, first + 8_999)] == ["purged"]
    assert [e.how for e in engine.journal(main.id, first + 9_000)] == ["rewound"]
    assert engine.status(main, first + 9_000).how == "rewound"


def test_a_start_becomes_lower_and_never_higher(engine: Engine, queue: Stream, log: int) -> None:
    group = engine.create_group(queue, "shop", "late", "group", {}, [(log, first_pos(log) + 5, None)])
    assert group is not None
    write(engine, group, starts=[(log, first_pos(log) + 9)])
    assert engine.group_bounds(group)[0].start == first_pos(log) + 5
    write(engine, group, starts=[(log, first_pos(log) + 2)])
    assert engine.group_bounds(group)[0].start == first_pos(log) + 2
