"""What is kept of queues and streams: by age, size and count; never less than `main` needs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS, EngineKit

from respool import App
from respool.delivery.claim import Request, claim
from respool.delivery.lapse import LOST
from respool.delivery.model import Lease, Settlement, Verdict
from respool.delivery.seek import begin
from respool.delivery.settle import give_back, settle
from respool.engines.base import Engine, Group, Reads, Stream
from respool.errors import ConfigError, DeclarationConflict, UnknownName
from respool.record import first_pos, new_head
from respool.replay import check
from respool.retention import UNSET, shown_retention, stored_retention
from respool.worker.housekeeping import keep_house
from respool.worker.retaining import Retainer

NOW = 1_700_000_000.0
DAY = 86400.0
SOON = time.monotonic() + 1e9


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    made = KITS[request.param](request, tmp_path, "full")
    yield made
    made.remove()


@pytest.fixture
def engine(kit: EngineKit) -> Engine:
    return kit.open()


def queue_of(engine: Engine, retention: Any, name: str = "default") -> Stream:
    return engine.create_stream("queue", "shop", name, 1, {"retention": stored_retention(retention)})


def group_of(engine: Engine, stream: Stream, name: str = "main") -> Group:
    return next(g for g in engine.groups() if (g.stream, g.name) == (stream.id, name))


def fill(engine: Engine, log: int, runs: int, size: int, at: float = NOW, body: bytes = b"x" * 100) -> None:
    for n in range(runs):
        engine.append_run(log, "add", [body] * size, None, new_head(at + n), at + n)


def take(engine: Engine, group: Group, want: int, owner: int = 1) -> Lease | None:
    number = time.monotonic_ns() >> 4
    return engine.transact(
        Reads(group.id, positions=True, returned=10),
        lambda v, c: claim(v, c, Request(want, owner, 0, number, NOW)),
    )


def run(engine: Engine, group: Group, want: int, *verdicts: Verdict) -> None:
    while want > 0 and (lease := take(engine, group, min(want, 4096))) is not None:
        done = [(span.lo, span.hi) for span in lease.spans]
        want -= sum(hi - lo for lo, hi in done)
        said = Settlement(lease.id, 1, done, list(verdicts))
        engine.transact(Reads(group.id, (lease.id,)), lambda v, c, said=said: settle(v, c, said))


def keep(engine: Engine, stream: Stream, now: float, retainer: Retainer | None = None) -> None:
    kept = retainer or Retainer()
    kept._look_at.clear()
    while kept.keep(engine, {stream.id}, now, SOON):
        pass


def held(engine: Engine, stream: Stream) -> int:
    """Return how many records are to be read: on a server the space of others comes back by partitions."""
    return sum(engine.record_count(first, end) for _, first, end in engine.bounds(stream))


def weight(engine: Engine, stream: Stream) -> int:
    return sum(engine.byte_count(first, end) for _, first, end in engine.bounds(stream))


def test_by_age(engine: Engine) -> None:
    queue = queue_of(engine, "30d")
    fill(engine, queue.logs[0], 10, 10, at=NOW - 31 * DAY)
    fill(engine, queue.logs[0], 5, 10)
    run(engine, group_of(engine, queue), 150)
    keep(engine, queue, NOW)
    assert held(engine, queue) == 50


def test_a_clock_that_was_ahead_holds_up_nothing(engine: Engine) -> None:
    """What it has stamped goes with what comes after it, though its time is yet to come (H19)."""
    queue, now = queue_of(engine, "30d"), time.time()
    main, log = group_of(engine, queue), queue.logs[0]
    fill(engine, log, 2, 10, at=now + 365 * DAY)
    fill(engine, log, 8, 10, at=now - 9)
    run(engine, main, 100)
    keep(engine, queue, now)
    assert held(engine, queue) == 100
    keep(engine, queue, now + 32 * DAY)
    assert held(engine, queue) == 0
    assert check(engine).ok


def test_more_than_a_step_from_a_clock_that_was_ahead(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("respool.worker.retaining.STEP", 10)
    queue, now = queue_of(engine, "30d"), time.time()
    log = queue.logs[0]
    fill(engine, log, 8, 10, at=now + 365 * DAY)
    fill(engine, log, 2, 10, at=now - 9)
    run(engine, group_of(engine, queue), 100)
    keep(engine, queue, now)
    assert held(engine, queue) == 100
    keep(engine, queue, now + 32 * DAY)
    assert held(engine, queue) == 0


def test_a_worker_whose_clock_is_behind_cuts_nothing_that_is_young(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For it all that is new is yet to come."""
    queue, now = queue_of(engine, "30d"), time.time()
    fill(engine, queue.logs[0], 3, 10, at=now - 50 * DAY)
    fill(engine, queue.logs[0], 7, 10, at=now)
    run(engine, group_of(engine, queue), 100)
    for name in ("sqlite", "postgres", "kafka"):
        monkeypatch.setattr(f"respool.engines.{name}.retention.wall_clock", lambda: now - 10 * DAY)
    keep(engine, queue, now - 10 * DAY)
    assert held(engine, queue) == 70


def test_by_count(engine: Engine) -> None:
    """About: whole runs go. What `main` has yet to do stays, however much it is."""
    queue = queue_of(engine, {"count": 60})
    main = group_of(engine, queue)
    fill(engine, queue.logs[0], 20, 10)
    keep(engine, queue, NOW)
    assert held(engine, queue) == 200
    run(engine, main, 90)
    keep(engine, queue, NOW)
    assert held(engine, queue) == 110
    run(engine, main, 200)
    keep(engine, queue, NOW)
    assert 60 <= held(engine, queue) < 70
    assert engine.bounds(queue)[0][2] == first_pos(queue.logs[0]) + 200, "no number comes back (H10)"
    assert check(engine).ok


def test_a_run_larger_than_the_count_is_not_cut_away(engine: Engine) -> None:
    queue = queue_of(engine, {"count": 5})
    fill(engine, queue.logs[0], 1, 100)
    run(engine, group_of(engine, queue), 100)
    keep(engine, queue, NOW)
    assert held(engine, queue) >= 5


def test_by_size(engine: Engine) -> None:
    """Each record's bytes are counted once; what came since is counted in the next round."""
    queue = queue_of(engine, {"size": "50KiB"})
    main, retainer = group_of(engine, queue), Retainer()
    fill(engine, queue.logs[0], 50, 20, body=b"x" * 1000)
    run(engine, main, 1000)
    keep(engine, queue, NOW, retainer)
    assert 50 * 1024 - 21_000 <= weight(engine, queue) <= 50 * 1024 + 20_000
    fill(engine, queue.logs[0], 100, 10, body=b"y" * 100)
    run(engine, main, 1000)
    keep(engine, queue, NOW, retainer)
    assert weight(engine, queue) <= 50 * 1024 + 20_000
    assert check(engine).ok


def test_partitions_share_a_count_by_what_they_hold(engine: Engine) -> None:
    stream = engine.create_stream("stream", "", "visits", 2, {"retention": {"count": 100}})
    fill(engine, stream.logs[0], 90, 2)
    fill(engine, stream.logs[1], 10, 2)
    keep(engine, stream, NOW)
    counts = [end - first for _, first, end in engine.bounds(stream)]
    assert 88 <= counts[0] <= 92
    assert 8 <= counts[1] <= 12


def test_dead_letters_stay(engine: Engine) -> None:
    queue = queue_of(engine, {"count": 10})
    first = first_pos(queue.logs[0])
    fill(engine, queue.logs[0], 10, 10)
    run(engine, group_of(engine, queue), 100, Verdict(first + 3, "failure", b"e", "dead", task="add"))
    keep(engine, queue, NOW)
    assert engine.bounds(queue)[0][1] >= first + 90
    assert [row[0] for row in engine.rows([_span(first + 3, first + 4)])] == [first + 3]
    assert check(engine).ok


def test_much_to_do_for_one_duty_holds_up_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """More results and dead letters to forget than a round has time for: logs are cut, seeks are ended."""
    monkeypatch.setattr("respool.worker.housekeeping.HOUSEKEEPING_SHARE", 0.0)
    monkeypatch.setattr("respool.worker.housekeeping.STEP", 2)
    monkeypatch.setattr("respool.dead.acting.SLICE", 2)
    stream = queue_of(engine, {"count": 10})
    main, first = group_of(engine, stream), first_pos(stream.logs[0])
    fill(engine, stream.logs[0], 10, 10)
    dead = [Verdict(first + n, "failure", b"e", "dead", task="add") for n in range(10)]
    kept = [Verdict(first + n, "success", b"v", ttl=1.0) for n in range(10, 20)]
    run(engine, main, 100, *dead, *kept)
    moved = engine.create_group(stream, "shop", "v2", "group", {}, [(stream.logs[0], first + 90, None)])
    assert moved is not None
    to = {stream.logs[0]: first + 80}
    reads = Reads(moved.id, positions=True, settings=True)
    assert engine.transact(reads, lambda view, change: begin(view, change, to, NOW))
    retainer, groups, ttls = Retainer(), [main, moved], {main.id: {"add": 1.0}}
    for _ in range(3):
        assert keep_house(engine, groups, ttls, retainer), "there is more to do"
    assert engine.counts(main).parked["dead"] == 4
    assert engine.positions(moved)[0].cursor == first + 80
    assert all("seek" not in group.settings for group in engine.groups())
    assert held(engine, stream) < 100
    for _ in range(50):
        if not keep_house(engine, groups, ttls, retainer):
            break
    else:
        raise AssertionError("there is always more to do")
    assert engine.counts(main).parked == {}
    assert held(engine, stream) <= 20


def _span(lo: int, hi: int) -> Any:
    from respool.delivery.spans import Span

    return Span(lo, hi)


# Groups that are not `main`


def test_a_subscription_holds_up_to_twice_the_limits_and_then_loses_what_is_counted(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    stream = engine.create_stream("stream", "", "visits", 1, {"retention": {"count": 100}})
    log, retainer = stream.logs[0], Retainer()
    audit = engine.create_group(stream, "shop", "audit", "subscription", {}, [(log, first_pos(log), None)])
    assert audit is not None
    with caplog.at_level(logging.WARNING, "respool.worker"):
        fill(engine, log, 14, 10)
        keep(engine, stream, NOW, retainer)
        assert held(engine, stream) == 140, "held for the group"
        assert not caplog.records
        fill(engine, log, 5, 10)
        keep(engine, stream, NOW, retainer)
        assert held(engine, stream) == 190
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        assert "stream visits (group audit) holds records longer than they are kept" in caplog.text
        keep(engine, stream, NOW, retainer)
        assert len(caplog.records) == 1, "once"
        fill(engine, log, 11, 10)
        keep(engine, stream, NOW, retainer)
        assert "has lost 100 record(s)" in caplog.text
    assert engine.counters(audit.id) == {LOST: 100}
    assert held(engine, stream) == 200
    counts = engine.counts(audit)
    assert counts.pending == 200
    run(engine, audit, 1000)
    keep(engine, stream, NOW, retainer)
    assert held(engine, stream) == 100
    assert check(engine).ok


def test_by_age_it_is_twice_the_age(engine: Engine) -> None:
    stream = engine.create_stream("stream", "", "visits", 1, {"retention": 30 * DAY})
    log = stream.logs[0]
    audit = engine.create_group(stream, "shop", "audit", "subscription", {}, [(log, first_pos(log), None)])
    assert audit is not None
    for days in (61, 59, 31, 1):
        fill(engine, log, 1, 10, at=NOW - days * DAY)
    keep(engine, stream, NOW)
    assert held(engine, stream) == 30
    assert engine.counters(audit.id) == {LOST: 10}
    run(engine, audit, 100)
    keep(engine, stream, NOW)
    assert held(engine, stream) == 10


def test_what_was_given_back_is_lost_and_what_is_run_is_held(engine: Engine) -> None:
    stream = engine.create_stream("stream", "", "visits", 1, {"retention": {"count": 10}})
    log = stream.logs[0]
    audit = engine.create_group(stream, "shop", "audit", "subscription", {}, [(log, first_pos(log), None)])
    assert audit is not None
    fill(engine, log, 10, 10)
    lease = take(engine, audit, 20)
    assert lease is not None
    back = [(lease.spans[0].lo + 10, lease.spans[0].hi)]
    engine.transact(
        Reads(audit.id, (lease.id,)),
        lambda v, c: give_back(v, c, lease.id, 1, back, lease.id + 1),
    )
    keep(engine, stream, NOW)
    assert held(engine, stream) == 100, "a worker has the first ten"
    assert engine.counters(audit.id) == {LOST: 70}
    assert check(engine).ok
    said = Settlement(lease.id, 1, [(lease.spans[0].lo, lease.spans[0].lo + 10)])
    assert engine.transact(Reads(audit.id, (lease.id,)), lambda v, c: settle(v, c, said))
    keep(engine, stream, NOW)
    assert held(engine, stream) == 20
    assert check(engine).ok


def test_main_loses_nothing_for_a_replay_that_nobody_runs(engine: Engine) -> None:
    queue = queue_of(engine, {"count": 10})
    log = queue.logs[0]
    fill(engine, log, 10, 10)
    main = group_of(engine, queue)
    v2 = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first_pos(log), first_pos(log) + 100)])
    assert v2 is not None
    run(engine, main, 50)
    keep(engine, queue, NOW)
    assert engine.counters(v2.id) == {LOST: 80}
    assert engine.counters(main.id) == {}
    assert engine.counts(main).pending == 50
    assert held(engine, queue) == 50
    assert check(engine).ok


# Disk


def test_the_disk_gets_its_space_back(tmp_path: Path) -> None:
    from respool.engines.sqlite.engine import SQLiteEngine, SQLiteOptions

    engine = SQLiteEngine(SQLiteOptions(tmp_path / "q.db"))
    queue = queue_of(engine, {"count": 1000})
    fill(engine, queue.logs[0], 100, 200, body=b"x" * 500)
    run(engine, group_of(engine, queue), 20_000)
    engine.tidy(0)
    before = (tmp_path / "q.db").stat().st_size
    keep(engine, queue, NOW)
    engine.tidy(0)
    assert (tmp_path / "q.db").stat().st_size < before / 4
    engine.close()


# What is declared


@pytest.mark.parametrize(
    ("given", "stored", "shown"),
    [
        (None, None, "for ever"),
        ("30d", 30 * DAY, "30d"),
        (61, 61.0, "61s"),
        ({"age": "7d"}, 7 * DAY, "7d"),
        ({"age": "7d", "count": 1000}, {"age": 7 * DAY, "count": 1000}, "7d, 1,000 records"),
        ({"size": "10GiB"}, {"size": 10 << 30}, "10GiB"),
        ({"age": None}, None, "for ever"),
    ],
)
def test_what_a_retention_may_be(given: Any, stored: Any, shown: str) -> None:
    assert stored_retention(given) == stored
    assert shown_retention(stored) == shown


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("soon", ConfigError, "is no duration"),
        ({"ages": "7d"}, UnknownName, "unknown limit 'ages'; did you mean 'age'?"),
        ({"count": 0}, ConfigError, "is no number of records"),
        ({"size": "big"}, ConfigError, "is no size"),
        ([1], ConfigError, "is no retention"),
        (-1, ConfigError, "negative"),
    ],
)
def test_what_it_may_not_be(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("?", r"\?")):
        App("shop", url="sqlite:///:memory:").queue("mails", retention=given)


def test_thirty_days_unless_it_is_said() -> None:
    with App("shop", url="sqlite:///:memory:") as app:
        app.queue("fast")
        app.queue("kept", retention=None)
        app.queue("few", retention={"count": 10, "age": "1d"})
        app.stream("visits")
        app.stream("audit", retention=None)
        stored = {stream.name: stream.settings["retention"] for stream in app.engine.streams()}
    assert stored == {
        "default": 30 * DAY,
        "fast": 30 * DAY,
        "kept": None,
        "few": {"age": DAY, "count": 10},
        "visits": 30 * DAY,
        "audit": None,
    }


def test_who_says_nothing_takes_what_is_stored(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'q.db'}"
    with App("shop", url=url) as app:
        app.queue("mails", retention="7d")
        assert app.engine
    with App("shop", url=url) as app:
        assert app.queue("mails").retention is UNSET
        assert app.engine
    with App("shop", url=url) as app:
        app.queue("mails", retention={"count": 5})
        with pytest.raises(DeclarationConflict, match=r"retention=7d, now with retention=\{'count': 5\}"):
            assert app.engine


def test_a_worker_keeps_to_it(tmp_path: Path) -> None:
    from respool.testing import work

    with App("shop", url=f"sqlite:///{tmp_path / 'q.db'}", beat=0.05, worker_ttl=1.0) as app:
        app.queue("default", retention={"count": 10})

        @app.task
        def add(x: int) -> int:
            return x

        for n in range(40):
            add.delay(n)
        work(app)
        add.delay(1)
        work(app)
        (queue,) = app.engine.streams()
        assert held(app.engine, queue) <= 41
