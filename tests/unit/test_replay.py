"""Replays, dead letters, purging and `check`, as a library."""

import random
import re
import time

import pytest
from tests.cli.support import Worker

from respool import App, ConfigError, UnknownCall, UnknownName
from respool.delivery.model import JournalEntry, Lease, NewCall, Outcome, Parked, Verdict
from respool.delivery.spans import Span
from respool.engines.base import Reads
from respool.record import first_pos, new_head
from respool.replay import (
    DeadFilter,
    Selection,
    check,
    count_dead,
    create_replay,
    dead_letters,
    plan_replay,
    purge,
    purgeable,
    redrive,
)
from respool.replay.intervals import common, minus, overlaps, size
from respool.testing import work


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:") as app:

        @app.task
        def add(x: int, y: int) -> int:
            return x + y

        @app.task(aliases=("mailto",), ignore_result=True)
        def mail(to: str) -> None: ...

        @app.task(queue="fast")
        def boom(n: int) -> None:
            raise RuntimeError(f"no {n}")

        yield app


@pytest.fixture
def worker(app):
    return Worker(app)


def log_of(app, queue="default"):
    return app.stream_of("queue", queue).logs[0]


def append_at(app, task, moment, number=1, queue="default"):
    """Append a run of calls as if it were another time."""
    bodies = [b"\x92\x90\x80"] * number
    app.engine.append_run(log_of(app, queue), task, bodies, None, new_head(moment), moment)


# Replays


def test_a_call_outside_of_a_replays_bounds_is_not_done_there(app, worker):
    """H9: whatever it came to in main, nothing is known of it in a group that does not read it."""
    before, *chosen, after = [app.tasks["add"].delay(n, 1) for n in range(4)]
    worker.work()
    lo = chosen[0].record().pos & ((1 << 40) - 1)
    create_replay(app, "default", "v2", ["add"], selection=Selection(from_offset=lo, to_offset=lo + 2))
    worker.work(group="v2")
    assert [each.of("v2").state for each in (before, *chosen, after)] == [
        "UNKNOWN", "SUCCESS", "SUCCESS", "UNKNOWN",
    ]  # fmt: skip
    for each in (before, after):
        assert each.state == "SUCCESS"
        with pytest.raises(UnknownCall, match="outside the bounds of group v2"):
            each.of("v2").get(timeout=0)


def test_a_replay_reads_what_was_there_and_has_an_end(app, worker):
    for n in range(3):
        app.tasks["add"].delay(n, 1)
    worker.work()
    made = create_replay(app, "default", "v2", ["add"])
    assert (made.created, made.total, made.skipped) == (True, 3, 0)
    app.tasks["add"].delay(9, 9)
    assert worker.work(group="v2") == 3
    assert worker.work(group="v2") == 0
    group = next(g for g in app.engine.groups() if g.name == "v2")
    assert (group.kind, group.app, group.id) == ("replay", "shop", made.id)
    assert group.settings == {"tasks": ["add"], "since": None, "until": None, "outbox": "drop"}


def test_tasks_not_named_are_left_out_and_counted(app, worker):
    for n in range(3):
        app.tasks["add"].delay(n, 1)
        app.tasks["mail"].delay("me")
    made = create_replay(app, "default", "v2", ["mail"])
    assert (made.run, made.left_out) == ({"mail": 3}, {"add": 3})
    worker.work(group="v2")
    assert app.engine.counters(made.id)["skipped"] == made.skipped == 3


def test_former_names_of_a_task_are_its_calls(app):
    append_at(app, "mailto", 1.0)
    app.tasks["mail"].delay("y")
    assert plan_replay(app, "default", "v2", ["mail"]).total == 2
    assert plan_replay(app, "default", "v3", ["mailto"]).run == {"mailto": 1}


def test_a_task_without_code_can_be_named_where_the_window_has_it(app):
    app.send_task("long_gone", (), queue="default")
    assert plan_replay(app, "default", "v2", ["long_gone"]).total == 1
    with pytest.raises(UnknownName, match="did you mean 'long_gone'"):
        plan_replay(app, "default", "v2", ["long_gon"])


def test_time_is_not_monotone_in_offset(app):
    """H19: the range of positions holds all of the window, and what else it holds is counted."""
    for moment in (1000.0, 3000.0, 2000.0, 500.0, 2500.0, 4000.0):
        append_at(app, "add", moment, number=2)
    made = plan_replay(app, "default", "v2", None, since=2000.0, until=3500.0)
    assert made.total == 6
    assert made.outside == 2
    ((_, lo, hi),) = made.bounds
    assert (lo - first_pos(log_of(app)), hi - first_pos(log_of(app))) == (2, 10)


@pytest.mark.parametrize("seed", range(20))
def test_counts_equal_those_of_a_naive_scan(app, monkeypatch, seed):
    monkeypatch.setattr("respool.replay.create.SCAN", 3)
    dice = random.Random(seed)
    for _ in range(30):
        append_at(app, dice.choice(["add", "mail", "boom"]), dice.randrange(100), dice.choice([1, 1, 2, 5]))
    since, until = sorted(dice.sample(range(100), 2))
    ((_, lo, hi),) = app.engine.bounds(app.stream_of("queue", "default"))
    inside = [r.task for r in app.engine.records(lo, hi, 10_000) if since <= r.time < until]
    if not {"add", "boom"} & set(inside):
        with pytest.raises(ConfigError):
            plan_replay(app, "default", "v2", ["add", "boom"], since, until)
        return
    made = plan_replay(app, "default", "v2", ["add", "boom"], since, until)
    assert made.run == {task: inside.count(task) for task in {"add", "boom"} & set(inside)}
    assert made.left_out.get("mail", 0) == inside.count("mail")
    ((_, first, end),) = made.bounds
    assert made.outside == end - first - len(inside)


def test_progress_ends_at_the_total(app, monkeypatch):
    monkeypatch.setattr("respool.replay.create.SCAN", 4)
    append_at(app, "add", 1.0, number=10)
    told = []
    plan_replay(app, "default", "v2", None, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_what_is_sent_to_another_log_is_dropped_as_well(tmp_path):
    with (
        App("shop", url="sqlite:///:memory:") as shop,
        App("blog", url="sqlite:///:memory:", blobs=(tmp_path / "blobs").as_uri()) as blog,
    ):
        blog.queue("full", max_pending=2, when_full="raise")
        post = blog.task(name="post", offload_over=1000)(lambda text: text)
        pending = blog.task(name="pending", queue="full")(lambda text: text)
        once = blog.task(name="once", unique=True)(lambda text: text)
        news = blog.stream("news", offload_over=1000)

        @shop.task
        async def order(n):
            post.delay("a")
            await post.adelay("b")
            post.delay_many(["c", "x" * 2000])
            once.delay(f"{n}")
            pending.delay("d")
            await pending.adelay("e")
            news.publish({"n": n})
            news.publish({"text": "x" * 2000})
            await news.apublish({"n": n})
            news.publish_many([{"n": 1}, {"n": 2}])

        def there():
            return [
                blog.engine.record_count(lo, hi)
                for stream in blog.engine.streams()
                for _, lo, hi in blog.engine.bounds(stream)
            ], len(list((tmp_path / "blobs").rglob("*")))

        order.delay(1)
        work(shop)
        before = there()
        assert sum(before[0]) == 12
        create_replay(shop, "default", "v2", ["order"])
        work(shop, group="v2")
        assert there() == before
        (group,) = [each for each in shop.groups() if each.name == "v2"]
        assert shop.engine.counters(group.id) == {"calls dropped": 12}


def test_the_same_replay_again_is_the_same_group(app):
    app.tasks["add"].delay(1, 1)
    made = create_replay(app, "default", "v2", ["add"], since=1.0)
    app.tasks["add"].delay(2, 2)
    again = create_replay(app, "default", "v2", ["add"], since=1.0)
    assert (again.created, again.id, again.total) == (False, made.id, 1)
    for other in ({"tasks": None}, {"since": 2.0}, {"until": 5e9}, {"outbox": "send"}):
        given = {"tasks": ["add"], "since": 1.0} | other
        with pytest.raises(ConfigError, match=f"exists with other bounds: {next(iter(other))} "):
            create_replay(app, "default", "v2", **given)


def test_replays_that_cannot_be(app):
    app.tasks["add"].delay(1, 1)
    _ = app.stream("events")
    with pytest.raises(ConfigError, match="main is the group"):
        create_replay(app, "default", "main", None)
    with pytest.raises(UnknownName, match="did you mean 'default'"):
        create_replay(app, "defalt", "v2", None)
    with pytest.raises(UnknownName, match="did you mean 'add'"):
        create_replay(app, "default", "v2", ["ad"])
    with pytest.raises(ConfigError, match="has no calls since 2001"):
        create_replay(app, "default", "v2", None, since=1e9, until=1e9 + 5)
    with pytest.raises(ConfigError, match=r"no such calls; it has add \(1\)"):
        create_replay(app, "default", "v2", ["mail"])
    with pytest.raises(ConfigError, match="it holds none at all"):
        create_replay(app, "fast", "v2", None)
    with pytest.raises(ConfigError, match="must be before until"):
        create_replay(app, "default", "v2", None, since=2.0, until=1.0)
    with pytest.raises(ConfigError, match="cannot name a group"):
        create_replay(app, "default", " v2", None)
    app.engine.create_group(app.stream_of("queue", "default"), "shop", "mine", "group", {}, [])
    with pytest.raises(ConfigError, match="is a group, not a replay"):
        create_replay(app, "default", "mine", None)
    assert [g.name for g in app.engine.groups() if g.kind == "replay"] == []


# Dead letters


def test_redrive_gives_back_in_slices_and_once(app, worker, monkeypatch):
    monkeypatch.setattr("respool.replay.find.SLICE", 3)
    app.tasks["boom"].delay_many(range(10))
    worker.work("fast")
    assert count_dead(app) == {"boom": 10}
    assert len(dead_letters(app, limit=4)) == 4
    assert redrive(app) == 10
    assert redrive(app) == 0
    worker.work("fast")
    assert count_dead(app) == {"boom": 10}
    assert all(letter.parked.redrives == 1 for letter in dead_letters(app))
    assert check(app).ok


def test_redrive_ends_where_letters_die_again_at_once(app, worker, monkeypatch):
    monkeypatch.setattr("respool.replay.find.SLICE", 2)
    app.tasks["boom"].delay_many(range(6))
    worker.work("fast")
    ring, rung = app.engine.ring, []

    def run_at_once(log, *, everyone=False):
        rung.append(log)
        worker.work("fast")
        ring(log, everyone=everyone)

    monkeypatch.setattr(app.engine, "ring", run_at_once)
    assert redrive(app) == 6
    assert set(rung) == {log_of(app, "fast")}
    assert count_dead(app) == {"boom": 6}


def test_filters_of_dead_letters(app, worker):
    first, second = app.tasks["boom"].delay(1), app.tasks["boom"].delay(2)
    worker.work("fast")
    assert [
        d.stream.name for d in dead_letters(app, DeadFilter(queue="fast", group="main", task="boom"))
    ] == ["fast"] * 2
    assert dead_letters(app, DeadFilter(task="other")) == []
    assert redrive(app, DeadFilter(ids=[second.id])) == 1
    assert [first.state, second.state] == ["FAILURE", "SCHEDULED"]
    with pytest.raises(UnknownCall, match="no call nope"):
        redrive(app, DeadFilter(ids=["nope"]))
    with pytest.raises(UnknownName, match="did you mean 'fast'"):
        count_dead(app, DeadFilter(queue="fats"))
    with pytest.raises(UnknownName, match="did you mean 'main'"):
        dead_letters(app, DeadFilter(group="mian"))


def test_an_engine_alone_shows_all_apps(app, worker):
    app.tasks["boom"].delay(1)
    worker.work("fast")
    assert count_dead(app.engine) == {"boom": 1}
    assert count_dead(app.engine, app="other") == {}


# Purging


def test_purge_ends_what_is_not_started(app, worker, monkeypatch):
    monkeypatch.setattr("respool.replay.find.SLICE", 3)
    monkeypatch.setattr("respool.replay.purging.RETURNED", 2)
    mail = app.tasks["mail"]
    scheduled = [mail.apply_async(("x",), countdown=99) for _ in range(7)]
    worker.work()
    done = mail.delay("a")
    worker.work()
    held = mail.delay("b")
    group, lease = worker.take()
    returned = [mail.delay("c") for _ in range(5)]
    leases = [worker.take(want=1)[1] for _ in returned]
    for each in leases:
        worker.settle(group, each, done=[], release=True)
    pending = [mail.delay("d") for _ in range(4)]
    assert purgeable(app, "default") == 16
    assert purge(app, "default") == 16
    assert {call.state for call in (*scheduled, *returned, *pending)} == {"REVOKED"}
    assert (done.state, held.state) == ("SUCCESS", "PENDING")
    assert purge(app, "default") == purgeable(app, "default") == 0
    worker.settle(group, lease)
    assert held.state == "SUCCESS"
    assert check(app).ok
    assert plan_replay(app, "default", "v2", None).total == 18, "the records stay"


# Check


@pytest.fixture
def busy(app, worker, monkeypatch):
    """A log with something in every place, seen in small pages."""
    monkeypatch.setattr("respool.replay.checking.PAGE", 3)
    for n in range(5):
        app.tasks["add"].delay(n, 1)
    app.tasks["mail"].apply_async(("x",), countdown=99)
    app.tasks["boom"].delay_many(range(4))
    worker.work(want=3)
    worker.take(want=1)
    group, lease = worker.take(want=2)
    verdict = Verdict(
        lease.spans[-1].lo + 1, reason="scheduled", due=time.time() + 99, task="mail", note="scheduled"
    )
    worker.settle(group, lease, done=[(verdict.pos, verdict.pos + 1)], verdicts=[verdict], release=True)
    app.tasks["add"].delay(7, 7)
    worker.work("fast", want=3)
    create_replay(app, "default", "v2", ["add"])
    return group


def change(app, group, *, lease=None, **lists):
    def decide(view, change):
        for name, values in lists.items():
            getattr(change, name).extend(values)

    app.engine.transact(Reads(group.id), decide)


def test_check_counts_every_place(app, busy):
    told = []
    report = check(app, lambda done, total: told.append((done, total)))
    assert report.ok, report
    assert report.records == 11
    found = {(g.stream.name, g.group.name): g for g in report.groups}
    main = found["default", "main"]
    assert (main.records, main.done, main.leased, main.parked, main.pending) == (7, 3, 2, {"scheduled": 1}, 1)
    fast = found["fast", "main"]
    assert (fast.records, fast.done, fast.parked, fast.pending) == (4, 0, {"dead": 3}, 1)
    v2 = found["default", "v2"]
    assert (v2.records, v2.pending) == (7, 7)
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def problem(app, group):
    report = check(app)
    assert not report.ok
    return next(g.problems for g in report.groups if g.group.id == group.id)


def test_a_record_in_no_place(app, busy):
    lease = app.engine.leases(busy)[0]
    change(app, busy, dropped_leases=[lease.id])
    assert problem(app, busy) == ["1 done, but no entry and no outcome says so: 1:3"]


def test_a_retry_that_was_lost(app, busy):
    """An entry that the record is to be run again proves nothing."""
    lo = first_pos(log_of(app))
    change(app, busy, unparked=[lo + 5])
    assert problem(app, busy) == ["1 done, but no entry and no outcome says so: 1:5"]
    change(app, busy, journal=[JournalEntry(lo + 5, lo + 6, 1, 0, 1.0, 2.0, "retry")])
    assert problem(app, busy) == ["1 done, but no entry and no outcome says so: 1:5"]
    change(app, busy, journal=[JournalEntry(lo + 5, lo + 6, 1, 0, 1.0, 2.0, "done")])
    assert check(app).ok


def test_leased_and_parked(app, busy):
    span = app.engine.leases(busy)[0].spans[0]
    change(app, busy, parked=[Parked(span.lo, "retry", 1.0, "add")])
    assert problem(app, busy)[0] == "1 leased and parked at once: 1:3"
    assert "records counted in their places, but 7 within bounds" in problem(app, busy)[1]


def test_leased_twice(app, busy):
    span = app.engine.leases(busy)[0].spans[0]
    change(app, busy, leases=[Lease(77, 1, 0, [Span(span.lo - 1, span.hi)])])
    assert "1 leased twice: 1:3" in problem(app, busy)


def test_places_where_the_group_has_not_been(app, busy):
    cursor = app.engine.positions(busy)[0].cursor
    change(app, busy, leases=[Lease(77, 1, 0, [Span(cursor, cursor + 1)])])
    assert "1 leased where the group has not been: 1:6" in problem(app, busy)
    change(app, busy, dropped_leases=[77], parked=[Parked(cursor, "dead", None, "add")])
    assert "1 parked where the group has not been: 1:6" in problem(app, busy)


def test_a_cursor_past_the_end(app, busy):
    at = app.engine.positions(busy)[0]
    change(app, busy, cursors=[(at.log, at.end + 5)])
    assert "1 cursors past the last record: 1:12 > 1:7" in problem(app, busy)


def test_an_outcome_of_what_is_not_done(app, busy):
    span = app.engine.leases(busy)[0].spans[0]
    change(app, busy, outcomes=[Outcome(span.lo, "success", None, 1.0)])
    assert problem(app, busy) == ["1 not done, but with an outcome: 1:3"]


def test_a_lease_of_nobody_known_is_a_warning(app, busy):
    span = app.engine.leases(busy)[0]
    change(app, busy, leases=[Lease(span.id, 99, 0, span.spans)])
    report = check(app)
    assert report.ok
    assert [w for g in report.groups for w in g.warnings] == [
        "1 leases of workers that are not registered: worker 99"
    ]


def test_positions_left_empty_are_no_records(app, worker):
    log = log_of(app)
    rows = [NewCall(log, "mail", b"\x92\x91\xa1x\x80", None, f"shop\0{n}", 1.0) for n in (1, 2, 1, 3)]
    app.engine.append_rows(rows)
    assert check(app).records == 3
    worker.work()
    report = check(app)
    assert report.ok, report
    main = next(g for g in report.groups if g.group.name == "main" and g.stream.name == "default")
    assert (main.records, main.done) == (3, 3)


def test_a_run_without_its_head(app):
    append_at(app, "add", 1.0, number=5)
    with app.engine._writer.lock, app.engine._writer.writing() as db:
        db.execute("DELETE FROM record WHERE seq IS NULL")
    report = check(app)
    assert report.problems == ["4 records without id or time: their run has no head: 1:1, 1:2, 1:3, 1:4"]


def test_what_belongs_to_nothing(app):
    append_at(app, "add", 1.0)
    with app.engine._writer.lock, app.engine._writer.writing() as db:
        db.execute("INSERT INTO record (pos, task, body, id, time) VALUES (99 << 40, 't', x'', x'01', 1)")
        db.execute("INSERT INTO lease (id, grp, child, spans, since) VALUES (5, 55, 0, x'90', 0)")
    text = "\n".join(check(app).problems)
    assert "1 records in a log that does not exist: 99:0" in text
    assert "leases of a group that is gone (number 55)" in text


def test_an_empty_log_is_whole(app):
    _ = app.engine
    report = check(app.engine)
    assert report.ok
    assert report.records == 0


def test_examples_are_few_and_numbers_exact(app, worker):
    app.tasks["mail"].delay_many(str(n) for n in range(50))
    group, lease = worker.take(want=50)
    odd = [(span.lo + n, span.lo + n + 1) for span in lease.spans for n in range(0, 50, 2)]
    worker.settle(group, lease, done=odd)
    change(app, group, dropped_leases=[lease.id])
    (text,) = problem(app, group)
    assert re.fullmatch(r"25 done, but no entry and no outcome says so: (1:\d+, ){5}…", text)


@pytest.mark.parametrize("seed", range(50))
def test_arithmetic_of_ranges_is_that_of_sets(seed):
    dice = random.Random(seed)

    def ranges():
        cuts = sorted(dice.sample(range(30), 2 * dice.randrange(6)))
        return list(zip(cuts[::2], cuts[1::2], strict=True))

    def positions(found):
        return {pos for lo, hi in found for pos in range(lo, hi)}

    left, right = ranges(), ranges()
    assert positions(common(left, right)) == positions(left) & positions(right)
    assert positions(minus(left, right)) == positions(left) - positions(right)
    assert positions(overlaps([*left, *right])) == positions(left) & positions(right)
    assert size(minus(left, right)) == len(positions(left) - positions(right))
