"""Seeks and pauses through an app: work is done again, for real, and once."""

import time
from datetime import datetime
from unittest.mock import Mock

import pytest
from tests.cli.support import Worker

from respool import App, ConfigError
from respool.delivery.seek import came_past, generation_at, rewound
from respool.engines.base import Group, Reads
from respool.record import first_pos, new_head, offset_of
from respool.replay import check, pause, plan_seek, purge, resume, resume_seek, seek
from respool.replay import moving as steps
from respool.testing import work
from respool.transfer.mapping import OwnOffsets, moved_group
from respool.why import explain_waiting


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:", outbox_hold=0.0) as app:
        yield app


@pytest.fixture
def ran(app):
    """A task that notes its runs, and sends a call."""
    seen = []

    @app.task
    def count(n):
        seen.append(n)
        child.delay(n)
        return n

    @app.task(queue="sink")
    def child(n): ...

    return seen


def parts(app, queue="default", name="main"):
    stream = app.stream_of("queue", queue)
    return stream, next(g for g in app.groups() if g.stream == stream.id and g.name == name)


def move(app, to, **given):
    stream, group = parts(app)
    plan = plan_seek(app.engine, stream, group, to)
    seek(app.engine, group, plan, **given)
    return plan


def test_going_back_does_the_work_again_and_sends_its_calls_again(app, ran):
    handles = app.tasks["count"].delay_many(range(6))
    work(app, queues=["default"])
    plan = move(app, "2")
    assert (plan.again, plan.passed) == ({"count": 4}, {})
    assert [h.state for h in handles] == ["SUCCESS"] * 2 + ["PENDING"] * 4
    assert check(app).ok
    work(app, queues=["default"])
    assert ran == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert handles.get(timeout=0) == list(range(6))
    sink = app.stream_of("queue", "sink")
    ((_, first, end),) = app.engine.bounds(sink)
    assert end - first == 10, "the calls of the second time are others than those of the first (H8)"
    assert check(app).ok
    hows = [attempt.how for attempt in handles[3].history()]
    assert sorted(hows) == ["done", "rewound", "rewound"], "what was done before is kept as history"
    assert parts(app)[1].generation == 1


def test_each_of_many_knows_that_it_was_rewound(app):
    @app.task
    def many(n):
        return n

    handles = many.delay_many(range(8400))
    work(app)
    move(app, "earliest")
    for n in (0, 4095, 4096, 4500, 8191, 8192, 8399):
        assert [attempt.how for attempt in handles[n].history()] == ["rewound", "rewound"], n


def test_what_lies_below_and_runs_again_makes_the_calls_it_made_before(app, ran):
    """Only what was moved is of a new generation, or a crash below the target would send calls twice."""
    log = 5 << 40
    once = rewound((), {log | 7: log | 20}, 1)
    assert once == [[log | 7, 1, log | 20]]
    twice = rewound(once, {log | 9: log | 15}, 2)
    assert [generation_at(twice, 5 << 40 | n) for n in (6, 7, 8, 9, 10)] == [0, 1, 1, 2, 2]
    assert generation_at(twice, 6 << 40 | 9) == 0
    below = rewound(twice, {log | 3: log | 10}, 3)
    assert [generation_at(below, 5 << 40 | n) for n in (2, 3, 9)] == [0, 3, 3]
    for each in (once, twice, below):
        there = [n for n in (2, 3, 6, 7, 19, 20) if came_past(each, log | n)]
        assert there == ([3, 6, 7, 19] if each is below else [7, 19]), "as far as the group has ever been"
        assert not came_past(each, 6 << 40 | 8)


def test_going_forth_ends_what_lies_between(app, ran):
    handles = app.tasks["count"].delay_many(range(6))
    plan = move(app, "4")
    assert (plan.again, plan.passed) == ({}, {"count": 4})
    assert [h.state for h in handles] == ["REVOKED"] * 4 + ["PENDING"] * 2
    work(app)
    assert ran == [4, 5]
    assert parts(app)[1].generation == 0
    assert check(app).ok
    move(app, "earliest")
    work(app)
    assert ran == [4, 5, 0, 1, 2, 3, 4, 5]
    assert handles.get(timeout=0) == list(range(6))
    assert check(app).ok


@pytest.mark.parametrize("to", ["latest", "4", "2"])
def test_going_forth_runs_nothing_again_that_was_done_since_it_was_planned(app, ran, to, monkeypatch):
    """P3: workers go on for as long as a question stands there; also where the seek is left, and resumed."""
    count, (stream, group) = app.tasks["count"], parts(app)
    count.delay_many(range(2))
    if to == "2":  # it is there already
        work(app, queues=["default"])
    count.delay_many(range(2, 4))
    plan = plan_seek(app.engine, stream, group, to)
    assert plan.again == {}
    count.delay_many(range(4, 6))
    work(app, queues=["default"])
    count.delay(6)
    with monkeypatch.context() as killed:
        killed.setattr(steps, "end_leases", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            seek(app.engine, group, plan)
    assert seek(app.engine, group, plan) == {stream.logs[0]: first_pos(stream.logs[0]) + 6}
    work(app, queues=["default"])
    assert ran == list(range(7))
    assert parts(app)[1].generation == 0
    assert check(app).ok


def test_to_a_time(app, ran):
    log, now = parts(app)[0].logs[0], time.time()
    for n, ago in enumerate((7200, 3600)):
        body = app.tasks["count"].codec.encode(((n,), {}), "args")
        app.engine.append_run(log, "count", [body], None, new_head(now - ago), now - ago)
    work(app)
    assert move(app, now - 5000).again == {"count": 1}
    assert move(app, now - 9000).again == {"count": 1}, "the other was moved before"
    work(app)
    assert ran == [0, 1, 0, 1]


def test_what_is_leased_parked_and_dead_past_the_target_is_settled_or_removed_first(app):
    worker = Worker(app)

    @app.task
    def fails(n):
        raise ValueError(n)

    app.tasks["fails"].delay_many(range(10))
    group, lease = worker.take(want=4)
    worker.work(want=3)  # dead letters
    _, kept = worker.take(want=3)
    stream, group = parts(app)
    plan = plan_seek(app.engine, stream, group, "2")
    seek(app.engine, group, plan.to, grace=0.0)
    assert plan.again == {"fails": 8}
    assert check(app).ok
    assert app.dead_letters().count() == 0
    worker.settle(group, lease)  # below the target it counts, beyond it changes nothing
    with pytest.raises(AssertionError):
        worker.settle(group, kept)  # nothing of it is left: refused, and counted
    assert app.engine.counters(group.id) == {"refused settlements": 1}
    counts = app.engine.counts(group)
    assert (counts.pending, counts.leased, counts.returned, counts.parked) == (8, 0, 0, {})
    assert check(app).ok


def test_workers_get_time_to_finish_what_they_hold(app):
    worker = Worker(app)

    @app.task
    def task(n):
        return n

    handles = task.delay_many(range(4))
    group, lease = worker.take(want=4)
    stream, group = parts(app)
    to = plan_seek(app.engine, stream, group, "earliest").to
    assert app.engine.transact(Reads(group.id, settings=True), lambda v, c: steps.core.begin(v, c, to, 1.0))
    assert steps.end_leases(app.engine, group, to, take=False) == 4
    assert worker.take()[1] is None, "a group that is moved is granted nothing"
    assert not app.engine.has_work(group.id, time.time(), ["task"])
    worker.settle(group, lease)
    assert steps.end_leases(app.engine, group, to, take=False) == 0
    assert check(app).ok
    assert "being moved" in explain_waiting(app.engine, stream, group, first_pos(stream.logs[0]), app)
    with pytest.raises(ConfigError, match="is being moved; wait for that"):
        app.dead_letters().redrive() if app.dead_letters().count() else purge(app, "default")
    with pytest.raises(ConfigError, match="being moved elsewhere"):
        seek(app.engine, group, {log: pos + 1 for log, pos in to.items()})
    assert resume_seek(app.engine, group)
    assert not resume_seek(app.engine, group)
    assert [h.state for h in handles] == ["PENDING"] * 4
    assert check(app).ok


@pytest.mark.parametrize("stage", range(6))
def test_a_seek_that_is_left_at_any_step_can_be_brought_to_its_end(app, ran, stage, monkeypatch):
    """H14: the intent is persisted; each record is in one place all the time."""
    monkeypatch.setattr(steps, "SLICE", 3)
    app.tasks["count"].delay_many(range(10))
    work(app, queues=["default"])
    stream, group = parts(app)
    to = plan_seek(app.engine, stream, group, "1").to
    real, done = app.engine.transact, []

    class Killed(BaseException):
        pass

    def transact(*given, **more):
        if len(done) == stage:
            raise Killed
        done.append(1)
        return real(*given, **more)

    monkeypatch.setattr(app.engine, "transact", transact)
    with pytest.raises(Killed):
        seek(app.engine, group, to)
    monkeypatch.setattr(app.engine, "transact", real)
    assert check(app).ok
    work(app, queues=["default"])
    assert len(ran) == 10, "nothing is run in the middle of it"
    if stage:
        assert resume_seek(app.engine, group)
    else:
        seek(app.engine, group, to)
    work(app, queues=["default"])
    assert ran == [*range(10), *range(1, 10)]
    assert check(app).ok


def test_a_worker_that_keeps_house_finishes_what_was_left(app, ran, monkeypatch):
    app.tasks["count"].delay_many(range(4))
    work(app, queues=["default"])
    stream, group = parts(app)
    to = plan_seek(app.engine, stream, group, "1").to
    long_ago = time.time() - 1000
    app.engine.transact(Reads(group.id, settings=True), lambda v, c: steps.core.begin(v, c, to, long_ago))
    work(app, queues=["default"])  # it keeps house as it starts …
    work(app, queues=["default"])
    assert ran == [0, 1, 2, 3, 1, 2, 3]
    assert check(app).ok


def test_places_that_cannot_be(app, ran):
    app.tasks["count"].delay_many(range(4))
    work(app)
    stream, group = parts(app)

    def told(to):
        with pytest.raises(ConfigError) as error:
            plan_seek(app.engine, stream, group, to)
        return str(error.value)

    assert "offset 5 is beyond the end of queue default: the next one is 4" in told("5")
    assert "queue default has partitions 0 to 0, no 1" in told("1:2")
    assert "is no offset" in told("x")


def test_past_retention_says_what_is_the_earliest(app, ran):
    task = app.tasks["count"]
    for n in range(4):
        task.delay(n)
    work(app)
    stream, group = parts(app)
    third = app.engine.records(first_pos(stream.logs[0]) + 2, 1 << 62, 1)[0]
    while app.engine.trim(stream, third.time, 100):
        pass
    first = app.engine.bounds(stream)[0][1]
    assert offset_of(first) > 0
    day = f"{datetime.fromtimestamp(third.time).astimezone():%Y-%m-%d}"
    for to in ("0", third.time - 3600):
        with pytest.raises(ConfigError, match=f"earliest there is, is offset {offset_of(first)}.*, of {day}"):
            plan_seek(app.engine, stream, group, to)
    move(app, "earliest")
    work(app)
    assert check(app).ok


def test_a_subscription_can_be_moved_below_where_it_began(app):
    seen = []
    events = app.stream("visits")
    events.publish_many(range(3))

    @events.subscribe(group="late", start="latest")
    def late(event):
        seen.append(event)

    events.publish_many(range(3))
    app.opened.create_subscriptions(app.engine.groups())  # as it is when an app with it is opened first
    events.publish(7)
    work(app)
    stream = app.stream_of("stream", "visits")
    group = next(g for g in app.groups() if g.name == "late")
    seek(app.engine, group, plan_seek(app.engine, stream, group, "earliest").to)
    seen.clear()
    work(app)
    assert seen == [each.value for each in events.read()]
    assert check(app).ok


def test_a_replay_keeps_to_its_bounds(app, ran):
    from respool.replay import create_replay

    app.tasks["count"].delay_many(range(4))
    work(app)
    create_replay(app, "default", "v2", None)
    app.tasks["count"].delay(9)
    stream, group = parts(app, name="v2")
    with pytest.raises(ConfigError, match="outside the bounds of replay v2: it reads from 0 to 4"):
        plan_seek(app.engine, stream, group, "5")
    work(app, group="v2")
    seek(app.engine, group, plan_seek(app.engine, stream, group, "2").to)
    ran.clear()
    work(app, group="v2")
    assert ran == [2, 3]
    assert check(app).ok


def test_a_paused_group_runs_nothing_until_it_goes_on(app, ran):
    handle = app.tasks["count"].delay(1)
    _, group = parts(app)
    pause(app.engine, group)
    work(app)  # --burst ends: nothing can be run
    assert ran == []
    assert handle.state == "PENDING"
    with pytest.raises(
        TimeoutError, match="is paused; to have it go on: respool groups resume main --queue default"
    ):
        handle.get(timeout=0)
    resume(app.engine, group)
    work(app)
    assert ran == [1]


def test_a_transfer_takes_along_where_a_group_was_moved_back_to():
    first = 5 << 40
    places = OwnOffsets({5: 9}, {5: [(first + 10, (9 << 40) + 1, 5), (first + 20, (9 << 40) + 6, 5)]})
    settings = {
        "rewinds": [[first + 12, 1, first + 22], [first + 17, 2, first + 25]],
        "positions": [first + 3, first + 21],
        "rate": 1,
    }
    moved = moved_group(Group(1, 1, "shop", "v2", "replay", settings), places)
    there = 9 << 40
    assert moved.settings == {
        "rewinds": [[there + 3, 1, there + 8], [there + 6, 2, there + 11]],
        "positions": [there + 7],
        "rate": 1,
    }
