"""Retention: what is old and done goes, what anybody needs stays, and positions never come back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS, KafkaKit, SQLiteKit
from tests.services.fixtures import KafkaAddress
from tests.worker.support import Place
from tests.worker.support import place as place

from respool.delivery.admin import purge
from respool.delivery.claim import Request, claim
from respool.delivery.model import Lease, Parked, Settlement, Verdict
from respool.delivery.settle import settle
from respool.engines.base import Group, ParkedFilter, Reads, Stream
from respool.engines.postgres.sql import in_schema
from respool.engines.sqlite.engine import SQLiteEngine, SQLiteOptions
from respool.record import first_pos, id_text, new_head
from respool.replay import DeadFilter, check, dead_letters, redrive
from respool.replay.checking import Report
from respool.worker.housekeeping import keep_house
from respool.worker.retaining import Retainer

OLD = time.time() - 1000
CUT = OLD + 500


@pytest.fixture(params=["file", "memory"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param in ("postgres", "kafka"):
        kit = KITS[request.param](request, tmp_path, "full")
        yield kit.open()
        kit.remove()
        return
    made = SQLiteEngine(SQLiteOptions(tmp_path / "q.db" if request.param == "file" else None))
    yield made
    made.close()


every_engine = pytest.mark.parametrize("engine", ["file", "memory", "postgres", "kafka"], indirect=True)
"""For what does not depend on how space is given back; PostgreSQL's partitions: test_postgres.py."""


@pytest.fixture
def queue(engine: SQLiteEngine) -> Stream:
    return engine.create_stream("queue", "shop", "default", 1, {})


def main_of(engine: SQLiteEngine) -> Group:
    return engine.groups()[0]


def fill(engine: SQLiteEngine, queue: Stream, runs: int, size: int, at: float = OLD) -> None:
    for n in range(runs):
        engine.append_run(queue.logs[0], "add", [b"x"] * size, None, new_head(at + n), at + n)


def run_all(engine: SQLiteEngine, group: Group, want: int = 4096, finish: bool = True) -> Lease | None:
    lease: Lease | None = engine.transact(
        Reads(group.id, positions=True),
        lambda v, c: claim(v, c, Request(want, 1, 0, time.time_ns() >> 8, OLD)),
    )
    if lease is not None and finish:
        done = Settlement(lease.id, 1, [(s.lo, s.hi) for s in lease.spans])
        engine.transact(Reads(group.id, (lease.id,)), lambda v, c: settle(v, c, done))
    return lease


def kept(engine: SQLiteEngine, queue: Stream) -> tuple[int, int]:
    ((_, first, end),) = engine.bounds(queue)
    return first - first_pos(queue.logs[0]), end - first_pos(queue.logs[0])


@every_engine
def test_old_and_done_goes_and_numbers_do_not_come_back(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    run_all(engine, main_of(engine))
    assert engine.trim(queue, CUT, 5000) == 100
    assert kept(engine, queue) == (100, 100)
    fill(engine, queue, 1, 1)
    assert kept(engine, queue) == (100, 101)
    assert run_all(engine, main_of(engine)) is not None


@every_engine
def test_what_is_young_stays(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    run_all(engine, main_of(engine))
    engine.trim(queue, OLD + 4.5, 5000)
    assert kept(engine, queue) == (50, 100)


def test_what_is_pending_or_leased_or_parked_stays(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    main = main_of(engine)
    assert engine.trim(queue, CUT) == 0
    run_all(engine, main, 35)
    engine.trim(queue, CUT)
    assert kept(engine, queue) == (30, 100)  # 35 lies in the run that begins at 30
    run_all(engine, main, 20, finish=False)
    run_all(engine, main)
    engine.trim(queue, CUT)
    assert kept(engine, queue) == (30, 100)


def park(engine: SQLiteEngine, group: Group, *parked: Parked) -> None:
    engine.transact(Reads(group.id), lambda view, change: change.parked.extend(parked))


def bury(engine: SQLiteEngine, group: Group, want: int, dead: list[int]) -> None:
    """Claim and settle, so that some of the records are dead letters."""
    lease = run_all(engine, group, want, finish=False)
    assert lease is not None
    verdicts = [
        Verdict(p, "failure", b"e", reason="dead", task="add", error=b"e", note="failed") for p in dead
    ]
    done = Settlement(lease.id, 1, [(s.lo, s.hi) for s in lease.spans], verdicts, started=OLD, ended=OLD)
    engine.transact(Reads(group.id, (lease.id,)), lambda v, c: settle(v, c, done))


def finish(engine: SQLiteEngine, group: Group, lease: Lease) -> None:
    done = Settlement(lease.id, 1, [(s.lo, s.hi) for s in lease.spans])
    engine.transact(Reads(group.id, (lease.id,)), lambda v, c: settle(v, c, done))


def claim_due(engine: SQLiteEngine, group: Group) -> Lease:
    lease: Lease | None = engine.transact(
        Reads(group.id, positions=True, due=10, returned=10, now=time.time() + 1),
        lambda v, c: claim(v, c, Request(10, 1, 0, time.time_ns() >> 8, OLD)),
    )
    assert lease is not None
    return lease


def trim_all(engine: SQLiteEngine, queue: Stream, limit: int = 5000) -> int:
    return sum(iter(lambda: engine.trim(queue, CUT, limit), 0))


def there(engine: SQLiteEngine, queue: Stream) -> list[int]:
    first = first_pos(queue.logs[0])
    return [record.pos - first for record in engine.records(first, first_pos(queue.logs[0] + 1), 10_000)]


def rows_of(engine: SQLiteEngine, table: str) -> int:
    with engine._reader.reading() as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").get)


def sound(engine: SQLiteEngine) -> Report:
    report = check(engine)
    assert report.ok, [report.problems, [g.problems for g in report.groups]]
    return report


def test_what_is_parked_pins_only_itself(engine: SQLiteEngine, queue: Stream) -> None:
    """H15: the head of a run, a member in its middle and its last; by whatever reason."""
    fill(engine, queue, 10, 10)
    main, first = main_of(engine), first_pos(queue.logs[0])
    before = {r.pos - first: r for r in engine.records(first, first + 100, 100)}
    bury(engine, main, 100, [first + 40, first + 42])
    later = Parked(first + 59, "scheduled", OLD + 1e9, "add")
    park(engine, main, later, Parked(first + 77, "unknown", None, "other"))
    assert trim_all(engine, queue) == 100
    assert kept(engine, queue) == (100, 100)
    assert there(engine, queue) == [40, 42, 59, 77]
    assert {n: engine.records(first + n, first + n + 1, 1)[0] for n in (40, 42, 59, 77)} == {
        n: before[n] for n in (40, 42, 59, 77)
    }
    for n, record in before.items():
        found = engine.find("shop", record.id)
        assert found == (first + n if n in (40, 42, 59, 77) else None), n
    assert engine.broken_runs(first, first + 100, 100) == []
    assert engine.status(main, first + 42).outcome is not None
    assert [entry.how for entry in engine.journal(main.id, first + 42)] == ["failed"]
    report = sound(engine)
    assert (report.records, report.groups[0].parked) == (4, {"dead": 2, "scheduled": 1, "unknown": 1})


def test_ids_of_a_run_that_was_cut_are_told_apart(engine: SQLiteEngine, queue: Stream) -> None:
    """What lies between two that stayed behind is not taken for a member of either."""
    fill(engine, queue, 1, 10)
    first = first_pos(queue.logs[0])
    ids = [r.id for r in engine.records(first, first + 10, 10)]
    bury(engine, main_of(engine), 10, [first + 3, first + 5])
    trim_all(engine, queue)
    assert [engine.find("shop", id) for id in ids] == [first + n if n in (3, 5) else None for n in range(10)]
    fill(engine, queue, 1, 10, OLD + 50)
    again = [r.id for r in engine.records(first + 10, first + 20, 10)]
    assert [engine.find("shop", id) for id in again] == list(range(first + 10, first + 20))


@pytest.mark.parametrize("given", [True, False])
def test_what_stays_behind_is_found_in_time_no_more(engine: SQLiteEngine, queue: Stream, given: bool) -> None:
    """Groups made later, replays among them, begin at the floor."""
    log, first = queue.logs[0], first_pos(queue.logs[0])
    engine.append_run(log, "add", [b"x"] * 10, None, new_head(0.0 if given else OLD), OLD)
    bury(engine, main_of(engine), 10, [first, first + 3])
    fill(engine, queue, 1, 10, OLD + 600)
    trim_all(engine, queue)
    assert kept(engine, queue) == (10, 20)
    assert engine.window(queue, OLD - 1, None) == [(log, first + 10, first + 20)]
    (state,) = engine.log_states()
    assert (state.first, state.end) == (first + 10, first + 20)
    late = engine.create_group(queue, "shop", "late", "group", {}, [(log, first + 10, None)])
    assert late is not None
    assert engine.counts(late).pending == 10
    sound(engine)


def test_a_dead_letter_of_a_cut_log_goes_once_it_has_ended(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    main, first = main_of(engine), first_pos(queue.logs[0])
    bury(engine, main, 100, [first + 42, first + 63])
    assert trim_all(engine, queue) == 100
    assert trim_all(engine, queue) == 0
    assert (
        redrive(
            engine, DeadFilter(ids=(id_text(engine.records(first + 42, first + 43, 1)[0].id),)), app="shop"
        )
        == 1
    )
    assert trim_all(engine, queue) == 0
    lease = claim_due(engine, main)
    assert [row[0] for row in engine.rows(lease.spans)] == [first + 42]
    assert trim_all(engine, queue) == 0, "it is being run"
    back = Settlement(lease.id, 1, [], release=True)
    engine.transact(Reads(main.id, (lease.id,)), lambda v, c: settle(v, c, back))
    assert trim_all(engine, queue) == 0, "it was given back"
    sound(engine)
    finish(engine, main, claim_due(engine, main))
    assert engine.status(main, first + 42).how == "done"
    sound(engine)
    assert trim_all(engine, queue) == 1
    assert there(engine, queue) == [63]
    assert (rows_of(engine, "outcome"), rows_of(engine, "journal")) == (1, 1)
    sound(engine)
    engine.drop_group(main)
    assert trim_all(engine, queue) == 1
    assert (rows_of(engine, "record"), rows_of(engine, "outcome"), rows_of(engine, "journal")) == (0, 0, 0)
    fill(engine, queue, 1, 1)
    assert kept(engine, queue) == (100, 101)


def test_what_is_parked_in_one_group_is_done_in_another(engine: SQLiteEngine, queue: Stream) -> None:
    """P2 in all groups: what stays behind keeps what says how it ended elsewhere (H9)."""
    fill(engine, queue, 10, 10)
    log, main = queue.logs[0], main_of(engine)
    first = first_pos(log)
    bury(engine, main, 100, [first + 42])
    other = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first, first + 100)])
    assert other is not None
    assert trim_all(engine, queue) == 0, "another has yet to read it"
    run_all(engine, other, 30)
    run_all(engine, other)
    assert trim_all(engine, queue) == 100
    assert engine.status(other, first + 42).how == "done"
    report = sound(engine)
    assert [(g.records, g.done) for g in report.groups] == [(1, 0), (1, 1)]
    assert rows_of(engine, "journal") == 2, "those of main and of the other that cover it"
    redrive(engine, app="shop")
    finish(engine, main, claim_due(engine, main))
    park(engine, other, Parked(first + 42, "retry", OLD, "add"))
    assert trim_all(engine, queue) == 0, "it waits in the other group now"
    sound(engine)


def test_a_lease_below_the_floor_holds_up_nothing_above(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    main, first = main_of(engine), first_pos(queue.logs[0])
    bury(engine, main, 50, [first + 42])
    trim_all(engine, queue)
    redrive(engine, app="shop")
    engine.transact(  # no more than what is due
        Reads(main.id, due=1, now=time.time() + 1), lambda v, c: claim(v, c, Request(1, 1, 0, 77, OLD))
    )
    run_all(engine, main)
    assert trim_all(engine, queue) == 50
    assert (kept(engine, queue), there(engine, queue)) == ((100, 100), [42])
    sound(engine)


def test_what_a_group_has_yet_to_read_below_the_floor_stays(engine: SQLiteEngine, queue: Stream) -> None:
    """A group that somebody begins there, at a dead letter of another."""
    fill(engine, queue, 10, 10)
    log, main, first = queue.logs[0], main_of(engine), first_pos(queue.logs[0])
    bury(engine, main, 100, [first + 42])
    trim_all(engine, queue)
    other = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first + 42, first + 50)])
    assert other is not None
    redrive(engine, app="shop")
    finish(engine, main, claim_due(engine, main))
    assert trim_all(engine, queue) == 0
    run_all(engine, other)
    sound(engine)
    assert trim_all(engine, queue) == 1
    sound(engine)


def test_small_steps_through_many_that_stay_behind(engine: SQLiteEngine, queue: Stream) -> None:
    """Each step is short, each goes on where the last one ended, and none is for nothing."""
    fill(engine, queue, 20, 10)
    main, first = main_of(engine), first_pos(queue.logs[0])
    bury(engine, main, 200, list(range(first, first + 150)))
    steps = list(iter(lambda: engine.trim(queue, CUT, 20), 0))
    assert steps == [20] * 10
    assert there(engine, queue) == list(range(150))
    with engine._writer.writing() as db:  # the one at the end has ended
        db.execute("DELETE FROM parked WHERE pos = ?", (first + 149,))
    looks = [engine.trim(queue, CUT, 20) for _ in range(9)]
    assert sum(looks) == 1
    assert there(engine, queue) == list(range(149))
    sound(engine)


def test_a_long_purge_goes_with_the_last_of_its_records(engine: SQLiteEngine, queue: Stream) -> None:
    for n in range(3):
        fill(engine, queue, 1, 4000, OLD + n)
    main, first = main_of(engine), first_pos(queue.logs[0])
    engine.transact(Reads(main.id, positions=True), lambda v, c: purge(v, c, [], b"", OLD))
    park(engine, main, Parked(first + 2, "dead", None, "add"), Parked(first + 11_000, "dead", None, "add"))
    assert trim_all(engine, queue) == 12_000
    assert rows_of(engine, "journal") == 1
    for n in (2, 11_000):
        assert rows_of(engine, "journal") == 1
        with engine._writer.writing() as db:
            db.execute("DELETE FROM parked WHERE pos = ?", (first + n,))
        assert trim_all(engine, queue) == 1
    assert rows_of(engine, "journal") == 0


def test_check_passes_over_what_was_cut(
    engine: SQLiteEngine, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at what is there, however many positions lie before it."""
    first = first_pos(queue.logs[0])
    with engine._writer.writing() as db:
        db.execute("UPDATE log SET floor = floor + 1000000000")
        db.execute("UPDATE position SET cursor = cursor + 1000000000")
    fill(engine, queue, 1, 10)
    pages: list[int] = []
    look = engine.group_page
    monkeypatch.setattr(engine, "group_page", lambda g, lo, hi: pages.append(lo) or look(g, lo, hi))
    report = sound(engine)
    assert pages == [first + 1_000_000_000]
    assert (report.records, report.groups[0].pending) == (10, 10)
    park(engine, main_of(engine), Parked(first + 5, "dead", None, "add"))
    assert any("without a record" in text for text in check(engine).groups[0].problems)


def test_a_dead_letter_is_shown_redriven_and_run_after_its_log_was_cut(place: Place) -> None:
    module = place.module(
        """
        @app.task
        def picky(n):
            note("start", "picky", n)
            if n == 5 and not (HERE / "mended").exists():
                raise ValueError(n)
            return n * 2
        """
    )
    results = module.picky.delay_many(range(10))
    place.burst()
    engine, stream = module.app.engine, module.app.stream_of("queue", "default")
    assert engine.trim(stream, time.time() + 1, 5000) == 10
    place.check()
    (letter,) = dead_letters(module.app)
    assert letter.parked.pos == results[5].record().pos
    assert results[5].record().task == "picky"
    assert b"\x05" in results[5].record().body
    with pytest.raises(ValueError, match="5"):
        results[5].get(timeout=1)
    assert results[4].state == results[6].state == "UNKNOWN"
    place.touch("mended")
    assert redrive(module.app) == 1
    place.burst()
    assert results[5].get(timeout=1) == 10
    assert [attempt.how for attempt in results[5].history()] == ["failed", "redriven", "done"]
    assert place.runs("picky")["5"] == 2
    place.check()
    assert engine.trim(stream, time.time() + 1, 5000) == 1
    assert results[5].state == "UNKNOWN"
    place.check()


KNOWN = ("position", "lease", "parked", "outcome", "journal", "counter")


def known_of(engine: Any, table: str, group: Group) -> int:
    """Return how many rows of a table are a group's."""
    engine = getattr(engine, "inner", engine)
    if engine.capabilities.many_hosts:
        asked = in_schema(f"SELECT count(*) FROM respool.{table} WHERE grp = %s", engine.options.schema)
        return int(engine._reader.read(lambda db: db.execute(asked.encode(), (group.id,)).fetchone()[0]))
    with engine._reader.reading() as db:
        return int(db.execute(f"SELECT count(*) FROM {table} WHERE grp = ?", (group.id,)).get)


def settled(engine: SQLiteEngine, group: Group, first: int, size: int) -> None:
    """Have a group know much of its records: results, what is parked, and the journal."""
    lease = run_all(engine, group, size, finish=False)
    assert lease is not None
    done = [(pos, pos + 1) for pos in range(first, first + size - 5)]
    results = [(pos, b"r") for pos, _ in done]
    said = Settlement(lease.id, 1, [(first, first + size)], results=results, started=OLD, ended=OLD)
    said.verdicts = [
        Verdict(pos, reason="scheduled", due=OLD + 1e9, task="add")
        for pos in range(done[-1][1], first + size)
    ]
    engine.transact(Reads(group.id, (lease.id,)), lambda v, c: settle(v, c, said))


@every_engine
def test_a_group_goes_in_slices_and_what_was_left_of_it_goes_later(
    engine: SQLiteEngine, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is out of sight at once; who is killed in the midst leaves the rest to workers, not to `check`."""
    fill(engine, queue, 1, 60)
    log, main, first = queue.logs[0], main_of(engine), first_pos(queue.logs[0])
    bounds = [(log, first, first + 60)]
    other = engine.create_group(queue, "shop", "v2", "replay", {}, bounds)
    assert other is not None
    settled(engine, main, first, 60)
    settled(engine, other, first, 60)

    def killed(limit: int) -> int:
        raise KeyboardInterrupt

    def killed_while_it_drops(group: Group) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(getattr(engine, "inner", engine), "forget_dropped", killed)
            with pytest.raises(KeyboardInterrupt):
                engine.drop_group(group)

    def left() -> int:
        return known_of(engine, "outcome", other) + known_of(engine, "parked", other)

    killed_while_it_drops(other)
    assert [group.name for group in engine.groups()] == ["main"]
    sound(engine)
    again = engine.create_group(queue, "shop", "v2", "replay", {}, bounds)
    assert again is not None
    settled(engine, again, first, 60)
    assert left() == 60
    before = left()
    while engine.forget_dropped(10):
        assert 0 <= before - left() <= 11
        before = left()
    assert [known_of(engine, table, other) for table in KNOWN] == [0] * len(KNOWN)
    assert engine.forget_dropped(10) == 0
    for group in (main, again):
        assert engine.status(group, first).outcome is not None
        assert len(list(engine.parked(ParkedFilter((group.id,)), 100))) == 5
    sound(engine)
    killed_while_it_drops(again)
    for _ in range(100):  # each has so much time
        keep_house(engine, [main], {}, Retainer())
        if not any(known_of(engine, table, again) for table in KNOWN):
            break
    assert engine.forget_dropped(10) == 0
    assert [known_of(engine, table, again) for table in KNOWN] == [0] * len(KNOWN)
    assert known_of(engine, "outcome", main) == 55


@every_engine
def test_another_groups_records_stay(engine: SQLiteEngine, queue: Stream) -> None:
    fill(engine, queue, 10, 10)
    log = queue.logs[0]
    engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first_pos(log) + 70, None)])
    run_all(engine, main_of(engine))
    engine.trim(queue, CUT, 5000)
    assert kept(engine, queue) == (70, 100)


def test_the_file_shrinks(tmp_path: Path) -> None:
    engine: Any = SQLiteEngine(SQLiteOptions(tmp_path / "q.db"))
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    for _ in range(20):
        engine.append_run(queue.logs[0], "add", [b"x" * 1000] * 500, None, new_head(OLD), OLD)
    while run_all(engine, main_of(engine)):
        pass
    engine.tidy(0)
    before = (tmp_path / "q.db").stat().st_size
    while engine.trim(queue, CUT):
        pass
    engine.tidy(0)
    assert (tmp_path / "q.db").stat().st_size < before / 4
    engine.close()


def test_steps_done_go_with_their_records_on_kafka(kafka: KafkaAddress, tmp_path: Path) -> None:
    """Those of what is parked stay until it has ended: it may be run again (H14)."""
    kit = KafkaKit(kafka.url(), SQLiteKit(tmp_path, "full"), "full")
    engine: Any = kit.open()
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    main, first = main_of(engine), first_pos(queue.logs[0])
    fill(engine, queue, 10, 1)
    for n in (1, 2, 8):
        engine.keep_step(first + n, "charge", b"done", OLD)
    bury(engine, main, 6, [first + 2])
    trim_all(engine, queue)
    assert kept(engine, queue) == (6, 10)
    assert [engine.step_done(first + n, "charge") for n in (1, 2, 8)] == [None, b"done", b"done"]
    redrive(engine, app="shop")
    finish(engine, main, claim_due(engine, main))
    run_all(engine, main)
    trim_all(engine, queue)
    assert [engine.step_done(first + n, "charge") for n in (1, 2, 8)] == [None] * 3
    assert sound(engine).records == 0
    kit.remove()
