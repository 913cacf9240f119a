"""All that is on one engine is on the other afterwards, and nobody can write to both."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engines.kits import KITS, EngineKit, KafkaKit
from tests.transfer.support import ALL, NOW, differing, end, furnish, group_of, stream_of, take, told

from respool.delivery import seek
from respool.delivery.model import Lease, NewCall
from respool.engines import open_engine
from respool.engines.base import Engine, Reads, Registration
from respool.engines.kafka import barring
from respool.engines.moving import INCOMING, Mark
from respool.engines.sqlite.engine import SQLiteEngine, SQLiteOptions
from respool.errors import ConfigError, EngineError, EngineUnavailable, LogMoved, RespoolError
from respool.location import parse_url
from respool.record import first_pos, id_of, new_head
from respool.replay import check
from respool.transfer import copying, plan, transfer, undo
from respool.transfer.draining import StillRunning

MOVED = [name for name in KITS if name != "kafka"]
KAFKA = [
    *(("sqlite-file", "kafka"), ("kafka", "sqlite-file"), ("postgres", "kafka-sqlite")),
    *(("kafka", "postgres"), ("kafka", "kafka")),
]
PAIRS = [*((a, b) for a in MOVED for b in MOVED), *KAFKA]
OTHERS = [
    ("sqlite-file", "postgres"),
    ("postgres", "sqlite-file"),
    ("sqlite-file", "sqlite-file"),
    *KAFKA[:2],
]
OF_OLD = "&id_window=9999d"
"""So that a topic's ids are known though the records are of long ago."""


def kit_of(request: pytest.FixtureRequest, name: str, folder: Path) -> EngineKit:
    if not name.startswith("kafka"):
        return KITS[name](request, folder, "full")
    inner = KITS["sqlite-file" if name == "kafka-sqlite" else "postgres"](request, folder, "full")
    return KafkaKit(request.getfixturevalue("kafka").url(), inner, "full", OF_OLD)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[EngineKit, EngineKit]]:
    """The stores of two engines, both empty."""
    kits = []
    for side, name in zip(("from", "to"), request.param, strict=True):
        (tmp_path / side).mkdir()
        kits.append(kit_of(request, name, tmp_path / side))
    yield kits[0], kits[1]
    for kit in kits:
        kit.remove()


each_pair = pytest.mark.parametrize("pair", PAIRS, indirect=True, ids="-to-".join)
both_ways = pytest.mark.parametrize("pair", OTHERS, indirect=True, ids="-to-".join)
one_pair = pytest.mark.parametrize("pair", OTHERS[2:3], indirect=True, ids="-to-".join)


@pytest.fixture
def source(pair: tuple[EngineKit, EngineKit]) -> Engine:
    return pair[0].open()


@pytest.fixture
def target(pair: tuple[EngineKit, EngineKit]) -> Engine:
    return pair[1].open()


def comparable(known: dict[str, Any], target: Engine) -> dict[str, Any]:
    """Return what `told` told, but for what another numbering changes: there nothing is below the floor."""
    if target.capabilities.keeps_positions:
        return known
    return {name: {k: v for k, v in each.items() if k != "floors"} for name, each in known.items()}


def call(log: int, id: Any = None, body: bytes = b"b") -> NewCall:
    return NewCall(log, "add", body, None, id or new_head(time.time()), time.time())


@each_pair
def test_all_of_it_is_there(source: Engine, target: Engine) -> None:
    furnish(source)
    before, places = told(source), [source.bounds(stream) for stream in source.streams()]
    numbers = [(g.id, g.stream, g.name) for g in source.groups()]
    done = transfer(source, target)
    assert differing(comparable(told(target), target), comparable(before, target)) == []
    assert told(source) == before
    if target.capabilities.keeps_positions:
        assert [target.bounds(stream) for stream in target.streams()] == places, (
            "an empty target keeps numbers"
        )
        assert [(g.id, g.stream, g.name) for g in target.groups()] == numbers
    assert check(source).ok
    assert check(target).ok
    assert done.records == done.plan.records == check(target).records
    assert target.mark() is None
    mark: Any = source.mark()
    assert (mark.phase, mark.other) == ("moved", target.shown)


@each_pair
def test_it_goes_on_there(source: Engine, target: Engine) -> None:
    """What is appended, claimed, registered afterwards has numbers that nothing had before (H10)."""
    furnish(source)
    transfer(source, target)
    jobs = stream_of(target, "default")
    log, end_there = target.bounds(jobs)[0][0], target.bounds(jobs)[0][2]
    assert target.append_row(call(log)) == end_there
    again: Any = target.append_row(call(log, "shop\0order-1", b"x"))
    assert getattr(again, "pos", again) < end_there, "its id is taken"
    worker = target.register(Registration("shop", "w", "here", "boot", 1, NOW, {}))
    journal = {
        entry.owner
        for g in target.groups()
        for p in range(first_pos(log), end_there)
        for entry in target.journal(g.id, p)
    }
    assert worker > max(owner for owner in journal if owner is not None)
    main = group_of(target, jobs)
    done = set()
    while target.has_work(main.id, NOW + 1e6, ()):
        lease = take(target, main, 7, worker, NOW + 1e6)
        done.update(row[0] for row in target.rows(lease.spans))
        end(target, main, lease)
    assert end_there in done
    new = target.create_stream("queue", "shop", "new", 2, {})
    assert not set(new.logs) & {
        each for stream in target.streams() if stream.id != new.id for each in stream.logs
    }
    assert check(target).ok


@both_ways
def test_nobody_writes_to_the_source_any_more(source: Engine, target: Engine) -> None:
    furnish(source)
    transfer(source, target)
    jobs = stream_of(source, "default")
    log, main = jobs.logs[0], group_of(source, jobs)
    before = told(source)

    def write(view: Any, change: Any) -> None:
        change.cursors.append((log, first_pos(log)))

    def claim(view: Any, change: Any) -> None:
        take(source, main, 5, 99)

    attempts: list[Callable[[], Any]] = [
        lambda: source.append_row(call(log)),
        lambda: source.append_rows([call(log), call(log)]),
        lambda: source.append_run(log, "add", [b"a"] * 3, None, new_head(NOW), NOW),
        lambda: source.transact(Reads(main.id), write, synced=True),
        lambda: take(source, main, 5, 99),
        lambda: source.set_progress(main.id, first_pos(log), b"x"),
        lambda: source.create_stream("queue", "shop", "another", 1, {}),
        lambda: source.create_group(jobs, "shop", "another", "group", {}, [(log, first_pos(log), None)]),
        lambda: source.drop_group(main),
    ]
    for attempt in attempts:
        with pytest.raises(LogMoved, match=re.escape(f"was moved to {target.shown}")) as raised:
            attempt()
        assert raised.value.final
    assert source.trim(jobs, NOW + 1e9, ALL) == 0
    assert source.expire_outcomes(NOW + 1e9, ALL) == 0
    source.tidy()
    worker = source.register(Registration("shop", "w", "here", "boot", 1, NOW, {}))  # until it hears of it
    assert source.beat(worker, False, {}, synced=True) == 1
    source.drop_worker(worker)
    assert told(source) == before
    assert check(source).ok


@both_ways
def test_undo_opens_the_source_again(source: Engine, target: Engine) -> None:
    furnish(source)
    before = told(source)
    transfer(source, target)
    assert undo(source, None) == [f"{source.shown}: open again, as it was"]
    assert source.mark() is None
    assert told(source) == before
    assert comparable(told(target), target) == comparable(before, target)
    log = stream_of(source, "default").logs[0]
    source.append_row(call(log))
    assert take(source, group_of(source, stream_of(source, "default")), 3, 99)
    with pytest.raises(ConfigError, match="nothing to undo"):
        undo(source, target)


@both_ways
def test_a_target_that_is_being_filled_is_nobodys(source: Engine, target: Engine) -> None:
    furnish(source)
    seen: list[Any] = []

    def tell(what: str, done: int, total: int) -> None:
        if what != "records":
            return
        seen.append(what)
        with pytest.raises(LogMoved, match="is being filled from"):
            target.create_stream("queue", "shop", "default", 1, {})
        assert all(stream.app.startswith(INCOMING) for stream in target.streams())

    transfer(source, target, tell=tell)
    assert seen
    assert target.create_stream("queue", "shop", "default", 1, {}) == stream_of(target, "default")


# Where it cannot be


@both_ways
def test_a_target_that_holds_something_is_refused(source: Engine, target: Engine) -> None:
    furnish(source)
    furnish(target)
    before = told(target)
    with pytest.raises(
        ConfigError, match="is not empty: it holds queue blog/default, queue shop/default, stream visits"
    ):
        transfer(source, target)
    with pytest.raises(ConfigError, match="two logs cannot become one"):
        transfer(source, target, into=True)
    assert source.mark() is None
    assert target.mark() is None
    assert differing(told(target), before) == []


@both_ways
def test_into_a_target_in_use(source: Engine, target: Engine) -> None:
    """Others go on there meanwhile; numbers that are taken become others."""
    furnish(source)
    mine = target.create_stream("queue", "mine", "default", 1, {})
    spare = target.create_stream("queue", "spare", "default", 1, {})
    for stream in (mine, spare):
        target.append_row(call(stream.logs[0]))
    worker = target.register(Registration("mine", "w", "here", "boot", 1, NOW, {"groups": []}))
    lease = take(target, group_of(target, mine), 1, worker)
    before, sent = told(source), []

    def tell(what: str, done: int, total: int) -> None:
        sent.append(call(mine.logs[0]))
        target.append_row(sent[-1])

    with pytest.raises(ConfigError, match="is not empty"):
        transfer(source, target)
    transfer(source, target, into=True, tell=tell)
    end(target, group_of(target, mine), lease)
    there = told(target)
    assert len(there.pop("queue mine/default")["records"]) == len(sent) + 1
    assert len(there.pop("queue spare/default")["records"]) == 1
    assert comparable(there, target) == comparable(before, target)
    assert check(target).ok


@both_ways
def test_what_an_app_declared_there_and_never_used_gives_way(source: Engine, target: Engine) -> None:
    furnish(source)
    target.create_stream("queue", "shop", "default", 1, {"retention": 1})
    unrelated = target.create_stream("queue", "shop", "unrelated", 1, {})
    made = plan(source, target, target.shown, False)
    assert [stream.name for stream in made.replaced] == ["default", "unrelated"]
    worker = target.register(
        Registration("shop", "w1", "elsewhere", "boot", 1, NOW, {"groups": [group_of(target, unrelated).id]})
    )
    with pytest.raises(ConfigError, match=re.escape(f"worker w1 serves {target.shown} already")):
        transfer(source, target)
    target.drop_worker(worker)
    before = told(source)
    transfer(source, target)
    assert differing(comparable(told(target), target), comparable(before, target)) == []
    assert not set(stream_of(target, "default").logs) & set(unrelated.logs), "no number comes back (H10)"


@one_pair
def test_other_refusals(source: Engine, target: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to move"):
        transfer(source, target)
    furnish(source)
    with pytest.raises(ConfigError, match="is the source and the target"):
        transfer(source, source)
    third = SQLiteEngine(SQLiteOptions(tmp_path / "third.db"))
    transfer(source, target)
    with pytest.raises(ConfigError, match=f"was moved to {target.shown} already"):
        transfer(source, third)
    furnish(third)
    with pytest.raises(ConfigError, match=r"was moved to .*; nothing can be moved into it"):
        transfer(third, source)
    assert transfer(source, target).plan.done
    third.close()


@both_ways
def test_a_seek_under_way_ends_first(source: Engine, target: Engine) -> None:
    furnish(source)
    jobs = stream_of(source, "default")
    main = group_of(source, jobs)
    to = {log: first for log, first, _ in source.bounds(jobs)}
    source.transact(Reads(main.id, positions=True), lambda v, c: seek.begin(v, c, to, NOW))
    with pytest.raises(ConfigError, match="a seek of group main is under way"):
        transfer(source, target)
    assert source.mark() is None
    assert target.mark() is None


# While somebody works


@both_ways
def test_what_runs_is_waited_for_and_may_send(source: Engine, target: Engine) -> None:
    furnish(source)
    jobs = stream_of(source, "default")
    main, log = group_of(source, jobs), jobs.logs[0]
    worker = source.register(
        Registration("shop", "w", "elsewhere", "boot", 1, time.time(), {"groups": [main.id]})
    )
    lease = take(source, main, 3, worker)
    drained = threading.Event()

    def tell(what: str, done: int, total: int) -> None:
        if what == "still running":
            drained.set()

    failed: list[BaseException] = []

    def move() -> None:
        try:
            transfer(source, target, tell=tell)
        except RespoolError as error:
            failed.append(error)

    moving = threading.Thread(target=move)
    moving.start()
    assert drained.wait(20)
    with pytest.raises(LogMoved, match="is being moved to") as raised:
        take(source, main, 3, worker)
    assert not raised.value.final
    sent = call(log)
    source.append_row(sent)  # producers go on until nothing runs any more
    source.beat(worker, False, {}, synced=False)
    end(source, main, lease)
    moving.join(30)
    assert not moving.is_alive()
    assert failed == []
    assert target.find("shop", sent.id) is not None
    assert comparable(told(target), target) == comparable(told(source), target)


@both_ways
def test_the_dead_are_taken_over(source: Engine, target: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respool.transfer.draining.SETTINGS", {"beat": 0.02, "worker_ttl": 0.2})
    furnish(source)
    main = group_of(source, stream_of(source, "default"))
    worker = source.register(Registration("shop", "gone", "elsewhere", "boot", 1, NOW, {"groups": [main.id]}))
    lease = take(source, main, 3, worker)
    transfer(source, target)
    there = group_of(target, stream_of(target, "default"))
    returned = {id for each in target.leases(there) for id in ids_of(target, each)}
    assert set(ids_of(source, lease)) <= returned
    assert all(each.owner is None for each in target.leases(there))
    assert check(target).ok


def ids_of(engine: Engine, lease: Lease) -> list[Any]:
    return [record.id for span in lease.spans for record in engine.records(span.lo, span.hi, ALL)]


@both_ways
def test_what_does_not_end_in_time_is_let_go_on(
    source: Engine, target: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(source)
    main = group_of(source, stream_of(source, "default"))
    worker = source.register(Registration("shop", "slow", "elsewhere", "boot", 1, NOW, {"groups": [main.id]}))
    lease = take(source, main, 3, worker)
    with pytest.raises(StillRunning, match="slow has 1"):
        transfer(source, target, wait=0.3)
    assert source.mark() is None
    assert target.mark() is None
    assert target.streams() == []
    end(source, main, lease)
    assert take(source, main, 3, worker)


@pytest.mark.parametrize("kit", MOVED)
def test_a_sealed_store_settles_and_takes_nothing_new(
    request: pytest.FixtureRequest, tmp_path: Path, kit: str
) -> None:
    """Of a log that is kept elsewhere: what waits in its outbox can be sent, and nothing is added."""
    made = KITS[kit](request, tmp_path, "full")
    engine = made.open()
    furnish(engine)
    jobs = stream_of(engine, "default")
    main, log = group_of(engine, jobs), jobs.logs[0]
    draining = Mark("t", "draining", "there", NOW)
    relayed = take(engine, main, 3, -1)
    engine.set_mark(draining)
    engine.append_row(call(log))
    engine.set_mark(msgspec.structs.replace(draining, sealed=True))
    for append in (lambda: engine.append_row(call(log)), lambda: engine.append_rows([call(log)] * 2)):
        with pytest.raises(LogMoved, match="is being moved to there"):
            append()
    end(engine, main, relayed)
    end(engine, main, take(engine, main, 3, -1))  # whoever sends goes on
    engine.set_mark(None)
    engine.append_row(call(log))
    assert check(engine).ok
    made.remove()


# Killed in the middle

WRITES_WITHIN = (
    "set_mark",
    "give_names",
    "take_stream",
    "take_group",
    "take_state",
    "transact",
    "append_rows",
)
WRITES = ("set_mark", "give_names", "take_stream", "take_records", "take_group", "take_state")


def killed_after(pair: tuple[EngineKit, EngineKit], steps: int, *, within: bool = False) -> int:
    """Run the transfer in a process that is killed after so many changes; return its status.

    Parameters:
        within: those within the steps of an engine count, too, and the last append is made by half.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        copying.ROWS = 30
        left = steps

        def killing(method: Any) -> Any:
            def once(*given: Any, **more: Any) -> Any:
                nonlocal left
                done = method(*given, **more)
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return once

        def halved(append: Any) -> Any:
            def once(place: Any, items: Any) -> Any:
                nonlocal left
                left -= 1
                items = list(items)
                done = append(place, items if left else items[: len(items) // 2])
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return once

        sides: list[Any] = [open_engine(parse_url(str(kit.url)), "full", 10.0) for kit in pair]
        for engine in sides:
            for name in WRITES:
                setattr(engine, name, killing(getattr(engine, name)))
        for engine in [engine for engine in sides if within and hasattr(engine, "inner")]:
            for name in WRITES_WITHIN:
                setattr(engine.inner, name, killing(getattr(engine.inner, name)))
            engine.sender.append = halved(engine.sender.append)
            barring._set = killing(barring._set)
        transfer(*sides)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the parent sees the status
        traceback.print_exc()
        os._exit(1)


@pytest.mark.long
@pytest.mark.parametrize("pair", OTHERS[:3], indirect=True, ids="-to-".join)
def test_killed_after_each_step_it_goes_on(pair: tuple[EngineKit, EngineKit]) -> None:
    """Each process makes one change, on either side, and is killed: the next goes on from there."""
    source = pair[0].open()
    furnish(source)
    before = told(source)
    kills = 0
    while True:
        status = killed_after(pair, 1)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        assert kills < 200
        assert told(source) == before
    assert kills > 20
    target = pair[1].open()
    assert differing(comparable(told(target), target), comparable(before, target)) == []
    assert check(target).ok
    assert target.mark() is None


@pytest.mark.parametrize("pair", KAFKA[:2], indirect=True, ids="-to-".join)
def test_killed_in_the_middle_of_a_step(pair: tuple[EngineKit, EngineKit]) -> None:
    """A log in Kafka and its state are two stores: killed between the two, or when half a page was sent."""
    source = pair[0].open()
    furnish(source)
    before = told(source)
    kills = 0
    for steps in itertools.cycle((2, 5, 3, 7, 4)):
        status = killed_after(pair, steps, within=True)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        assert kills < 100
    assert kills > 6
    assert told(source) == before
    target = pair[1].open()
    assert differing(comparable(told(target), target), comparable(before, target)) == []
    assert check(target).ok
    assert check(source).ok


@both_ways
@pytest.mark.parametrize("steps", [2, 4, 9, 25])
def test_given_up_in_the_middle(pair: tuple[EngineKit, EngineKit], steps: int) -> None:
    source = pair[0].open()
    furnish(source)
    before = told(source)
    assert killed_after(pair, steps) == -signal.SIGKILL
    target = pair[1].open()
    undo(source, None)
    source.append_row(call(stream_of(source, "default").logs[0], body=b"since"))
    if target.streams():
        with pytest.raises(ConfigError, match="was given up there: remove it first"):
            transfer(source, target)
    undo(None, target)
    assert target.streams() == []
    transfer(source, target)
    assert comparable(told(target), target) == comparable(told(source), target) != comparable(before, target)
    assert check(target).ok


# A target that numbers records itself


class OwnNumbers(SQLiteEngine):
    """As Kafka: records get the next offsets there are, and now and then one is left out."""

    def __init__(self, path: Path) -> None:
        super().__init__(SQLiteOptions(path))
        self.capabilities = self.capabilities._replace(keeps_positions=False)
        self.forgets = 0

    def take_records(self, mark: Mark, log: int, rows: Any) -> list[int]:
        _, _, following = next(b for s in self.streams() for b in self.bounds(s) if b[0] == log)
        base = following + (following % 3 == 0)
        stored: Any = self.mark()
        renumbered = [row._replace(pos=base + n) for n, row in enumerate(rows)]
        return super().take_records(stored, log, renumbered)  # the log is another store than the mark

    def set_mark(self, mark: Mark | None) -> None:
        if mark is not None and mark.pieces:
            self.forgets += 1
            if self.forgets % 3 == 0:
                raise EngineUnavailable("killed between the records and the mark")
        super().set_mark(mark)


@pytest.mark.parametrize("kit", MOVED)
def test_a_target_that_numbers_records_itself(
    request: pytest.FixtureRequest, tmp_path: Path, kit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("respool.transfer.copying.ROWS", 7)
    made = KITS[kit](request, tmp_path, "full")
    source, target = made.open(), OwnNumbers(tmp_path / "own.db")
    furnish(source)
    before, failures = told(source), 0
    while True:
        try:
            transfer(source, target)
            break
        except EngineUnavailable:
            failures += 1
            assert failures < 100
    assert failures > 3
    after = told(target)
    for each in (before, after):
        for stream in each.values():
            del stream["floors"]  # there nothing is below it
    assert differing(after, before) == []
    assert source.bounds(stream_of(source, "default")) != target.bounds(stream_of(target, "default"))
    assert check(target).ok
    target.close()
    made.remove()


# Runs whose records do not stand side by side


@pytest.mark.parametrize("kit", MOVED)
def test_a_run_in_parts_is_found_as_before(request: pytest.FixtureRequest, tmp_path: Path, kit: str) -> None:
    """On a server others append in between. What came so to another engine has all its ids."""
    from respool.engines.moving import LogPlace, RawRecord

    made = KITS[kit](request, tmp_path, "full")
    engine = made.open()
    elsewhere = SQLiteEngine(SQLiteOptions(None))
    stream = elsewhere.create_stream("queue", "shop", "default", 1, {})
    log, head, other = stream.logs[0], new_head(NOW), new_head(NOW + 1)
    mark = Mark("t", "filling", "x", NOW)
    engine.set_mark(mark)
    first = first_pos(log)
    place = LogPlace(log, None, 0, first, first + 9)
    mark = engine.take_stream(Mark("t", "filling", "x", NOW, at=(1,)), stream, [place])
    there = mark.names["logs"][log]
    runs = [
        (head, 0),
        (head, 1),
        (other, 0),
        (head, 2),
        (other, 1),
        (other, 2),
        (head, 3),
        (head, 4),
        (head, 5),
    ]
    rows = [
        RawRecord(first_pos(there) + n, "add", b"%d" % n, None, seq, run, int(NOW * 1e6))
        for n, (run, seq) in enumerate(runs)
    ]
    engine.take_records(Mark("t", "filling", "x", NOW, at=(2,)), there, rows)
    engine.give_names(mark)
    base = first_pos(there)
    for n, (run, seq) in enumerate(runs):
        assert engine.find("shop", id_of(run, seq)) == base + n
        assert engine.append_row(NewCall(there, "add", b"%d" % n, None, id_of(run, seq), NOW)) == base + n
    assert engine.run_spans(head, 6) == [(base, base + 2), (base + 3, base + 4), (base + 6, base + 9)]
    assert engine.run_spans(other, 3) == [(base + 2, base + 3), (base + 4, base + 6)]
    assert [r.id for r in engine.records(base, base + 9, ALL)] == [id_of(*run) for run in runs]
    assert check(engine).ok
    elsewhere.close()
    made.remove()


@one_pair
def test_an_id_that_is_taken_there(source: Engine, target: Engine) -> None:
    """Two apps of one name, with other queues: their ids are in one space."""
    furnish(source)
    mine = target.create_stream("queue", "shop", "mine", 1, {})
    target.append_row(NewCall(mine.logs[0], "mail", b"x", None, "shop\0order-1", NOW))
    with pytest.raises(ConfigError, match="an id of the source is taken"):
        transfer(source, target, into=True)
    undo(source, target)
    assert [stream.name for stream in target.streams()] == ["mine"]
    assert source.mark() is None


@one_pair
def test_what_differs_is_told_and_neither_is_open(
    source: Engine, target: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(source)

    def forget(mark: Mark, table: Any, group: int, rows: Any) -> None:
        take_state(mark, table, group, rows[1:] if table.name == "parked" else rows)

    take_state = target.take_state
    monkeypatch.setattr(target, "take_state", forget)
    with pytest.raises(EngineError, match=r"is not what .* is: .*dead"):
        transfer(source, target)
    with pytest.raises(LogMoved):
        source.append_row(call(stream_of(source, "default").logs[0]))
    assert all(stream.app.startswith(INCOMING) for stream in target.streams())
