"""lag, queues, streams, tasks, workers, calls, show, check: what is shown is what is."""

import json
import re
import signal
import time
from datetime import UTC, datetime

import pytest
from tests.cli.support import run, start, write_shop

from respool import App, GetTimeout
from respool.clock import now as wall_clock
from respool.delivery.model import NewCall, Parked, Settlement, Verdict
from respool.delivery.settle import settle
from respool.encoding.remote import encode_error
from respool.engines.base import Reads
from respool.record import Meta, id_text, new_head
from respool.testing import work

OPTIONS = """
from respool import App

app = App("limits")

def by_host(url):
    return url

@app.task(breaker="20/1m", retry_budget=0.1)
def calm(): ...

@app.task(
    breaker={"failures": 3, "window": 90, "pause": "5m", "errors": (OSError, KeyError)},
    time_limit=90, rate_limit="10/m", limit_key=by_host,
)
def fussy(url): ...
"""


def row(rows, **wanted):
    found = [each for each in rows if all(each[key] == value for key, value in wanted.items())]
    assert len(found) == 1, rows
    return found[0]


def test_priorities_are_shown(cli, app):
    add, _ = app.tasks["add"], app.engine
    assert "priorit" not in cli("-A", "shop", "queues")
    assert "priorit" not in cli("-A", "shop", "lag")
    ids = {priority: add.apply_async((1, 2), priority=priority).id for priority in (None, 9, 0)}
    cli("-A", "shop", "call", "add", "1", "2", "--priority", "9")
    assert row(cli.rows("-A", "shop", "queues"), name="default")["priorities"] == [9, 4, 0]
    assert "9, 4, 0" in cli("-A", "shop", "queues")
    lag = row(cli.rows("-A", "shop", "lag"), name="default")
    assert (lag["pending"], lag["lanes"]) == (4, {"9": 2, "4": 1, "0": 1})
    assert "pending by priority: 9: 2, 4: 1, 0: 1" in cli("-A", "shop", "lag")
    assert sorted(each["priority"] for each in cli.rows("-A", "shop", "calls")) == [0, 4, 9, 9]
    assert "partition 0 of priority 9, offset 0" in cli("-A", "shop", "show", ids[9])
    assert "priority" not in cli("-A", "shop", "show", ids[None])
    assert "--priority" in cli("-A", "shop", "call", "add", "1", "2", "--priority", "12", code=2)


def test_empty_results_say_what_to_try(cli, app):
    _ = app.engine
    assert "respool calls --state FAILURE" in cli("-A", "shop", "dead", "list")
    assert "No calls match" in cli("-A", "shop", "calls", "--task", "add")
    assert "Start one: respool -A shop worker\n" in cli("-A", "shop", "workers")
    assert "Send one: respool -A shop call TASK ARGS\n" in cli("-A", "shop", "calls")
    assert "Nothing waits in queue default" in cli("-A", "shop", "purge", "--queue", "default")


def test_groups_tell_what_was_refused(cli, app, worker):
    """P10: what a lost lease, a taken id or a drop has cost is told, and only where there is any."""
    add = app.tasks["add"]
    for n in range(3):
        add.delay(n, n)
    assert "refused" not in cli("-A", "shop", "groups", "list")
    group, lease = worker.take(want=2)
    worker.settle(group, lease)
    late = Settlement(lease.id, worker.id, [(lease.spans[0].lo, lease.spans[0].hi)], ended=wall_clock())
    engine = worker.engine
    assert not engine.transact(Reads(group.id, (lease.id,)), lambda view, change: settle(view, change, late))
    group, lease = worker.take(want=1)
    taken = NewCall(lease.spans[0].lo >> 40, "add", b"other", None, _stored_id(app, engine), 1e9)
    pos = lease.spans[0].lo
    worker.settle(group, lease, verdicts=[Verdict(pos, "success", b"\xc0", calls=[taken, taken])])
    engine.transact(Reads(group.id), lambda view, change: change.count("dead letters dropped", 1200))
    text = cli("-A", "shop", "groups", "list", "--queue", "default")
    assert "shop/default: 1 settlement refused: the worker had lost its lease; what it ran is" in text
    assert "shop/default: 2 calls of runs not sent: the id is that of another call" in text
    assert "shop/default: 1,200 dead letters dropped, by hand or by dead_letter_ttl" in text
    data = row(cli.rows("-A", "shop", "groups", "list"), group="main", name="default")
    assert (data["refused"], data["counters"]["calls refused: id taken"]) == (1, 2)


def _stored_id(app, engine):
    ((_, first, _),) = engine.bounds(app.stream_of("queue", "default"))
    return engine.records(first, first + 1, 1)[0].id


def test_lag_counts_every_place(cli, app, worker):
    add, fetch = app.tasks["add"], app.tasks["fetch"]
    for x in range(5):
        add.delay(x, x)
    worker.work(want=2)
    _, lease = worker.take(want=1)
    group, other = worker.take(want=1)
    worker.settle(group, other, done=[], release=True)
    fetch.delay("bad://x")
    fetch.apply_async(("later",), countdown=300)
    app.send_task("nobody", (), queue="fast")
    worker.work("fast")
    pos = lease.spans[0].lo
    worker.say(groups=[group.id], running=[[pos, "add", time.time() - 5]], children=[], pool="processes")
    rows = cli.rows("-A", "shop", "lag")
    first = row(rows, name="default", group="main")
    assert (first["pending"], first["returned"], first["leased"], first["running"]) == (1, 1, 1, 1)
    assert first["running_task"] == "add"
    assert 5 <= first["oldest_running"] < 30
    assert 0 < first["oldest_waiting"] < 30
    assert first["workers"] == 1
    second = row(rows, name="fast")
    assert (second["dead"], second["scheduled"], second["unknown"], second["unknown_tasks"]) == (
        1,
        1,
        1,
        ["nobody"],
    )
    assert second["workers"] == 0
    table = cli("-A", "shop", "lag")
    assert re.search(r"default +main +1 +1 .*5\.\d+s add", table)
    told = "1 call of tasks that no worker has had so far, kept for the first that has them: nobody"
    assert f"shop/fast: {told}" in table
    head, *lines = table.splitlines()
    at = head.index("unknown") + len("unknown") - 1
    shown = {line.split()[0]: line[at] for line in lines if line[at : at + 1] in ("·", "1")}
    assert shown == {"default": "·", "fast": "1", "inference": "·"}
    assert "shop/fast: no worker serves it; start one: respool -A shop worker" in table


def test_lag_shows_what_waits_for_limits(cli, app):
    first, second = app.tasks["add"].delay(1, 1), app.tasks["add"].delay(2, 2)
    table = cli("-A", "shop", "lag")
    assert "limited" not in table
    assert "unknown" not in table
    queue = app.stream_of("queue", "default")
    group = next(each for each in app.groups() if each.stream == queue.id)
    ((log, lo, _),) = app.engine.bounds(queue)

    def park(view, change):
        change.cursors.append((log, lo + 1))
        change.parked.append(Parked(lo, "limited", None, "add", at=wall_clock(), waits=7))

    app.engine.transact(Reads(group.id), park)
    lag = row(cli.rows("-A", "shop", "lag"), name="default")
    assert (lag["limited"], lag["pending"]) == (1, 1)
    assert "limited" in cli("-A", "shop", "lag")
    assert (first.state, second.state) == ("PENDING", "PENDING")


def test_lag_and_check_count_alike(cli, app, worker):
    for x in range(6):
        app.tasks["add"].delay(x, x)
    worker.work(want=1)
    worker.take(want=2)
    worker.settle(*worker.take(want=1), done=[], release=True)
    (lag,) = cli.rows("-A", "shop", "lag", "--queue", "default")
    check = next(g for g in cli.data("-A", "shop", "check")["groups"] if g.get("queue") == "default")
    places = ("pending", "returned", "leased")
    assert [lag[name] for name in places] == [check[name] for name in places] == [2, 1, 2]
    table = cli("-A", "shop", "check")
    assert re.search(r"records +pending +returned +leased +parked +done", table)
    assert re.search(r"default +main +6 +2 +1 +2 +· +1 +ok", table)


def test_lag_counts_what_is_due_as_far_as_it_looks_and_says_so(cli, app, worker, monkeypatch):
    for n in range(3):
        app.tasks["fetch"].delay(f"bad://{n}")
    worker.work("fast")
    cli("-A", "shop", "dead", "redrive", "--yes")
    monkeypatch.setattr("respool.cli.lag.LOOK", 2)
    text = cli("-A", "shop", "lag", "--queue", "fast")
    assert "shop/fast: due was counted among the first 2 that are parked" in text


def test_the_columns_of_lag_are_explained(cli):
    text = cli("lag", "--help")
    for word in (
        "pending ",
        "due ",
        "sched ",
        "retry ",
        "leased ",
        "dead ",
        "waiting ",
        "running ",
        "workers ",
    ):
        assert f"\n  {word}" in text
    assert "A · stands for none, a – for nothing to tell." in text
    assert "of a replay, also what it will leave out" in text


def test_the_columns_of_workers_are_explained(cli):
    text = cli("workers", "--help")
    for word in ("worker ", "state ", "pid ", "since ", "done ", "serves ", "runs "):
        assert f"\n  {word}" in text


def test_lag_of_one_queue_and_group(cli, app):
    _ = app.engine
    assert [r["name"] for r in cli.rows("-A", "shop", "lag", "--queue", "fast")] == ["fast"]
    assert [r["group"] for r in cli.rows("-A", "shop", "lag", "--group", "audit")] == ["audit"]
    assert "unknown queue or stream 'fats'; did you mean 'fast'?" in cli(
        "-A", "shop", "lag", "--queue", "fats", code=2
    )
    assert "did you mean 'main'?" in cli("-A", "shop", "lag", "--group", "mian", code=2)


def test_queues_and_streams(cli, app):
    app.tasks["mail"].delay_many(["a", "b", "c"])
    app.stream_handles["inference"].publish({"user_id": 7})
    queue = row(cli.rows("-A", "shop", "queues"), name="default")
    assert (queue["records"], queue["partitions"], queue["groups"], queue["app"]) == (3, 1, ["main"], "shop")
    assert queue["oldest"] <= queue["newest"]
    stream = row(cli.rows("-A", "shop", "streams"), name="inference")
    assert (stream["records"], stream["partitions"], stream["key"], stream["groups"]) == (
        1,
        64,
        "user_id",
        ["audit"],
    )
    assert "inference" in cli("-A", "shop", "streams")


def test_a_stream_shows_the_readers_of_all_apps(cli, app):
    app.stream_handles["inference"].publish({"user_id": 7})
    with App("shipping", url=app.url) as other:
        events = other.stream("inference", key="user_id")
        other.add_subscription(events, lambda event: None, "labels", "earliest", {"name": "labels"})
        _ = other.engine
    assert re.search(r"audit, shipping/labels\n", cli("-A", "shop", "streams"))
    assert re.search(r"shop/audit, shipping/labels\n", cli("--url", app.url, "streams"))
    stream = row(cli.rows("-A", "shop", "streams"), name="inference")
    assert stream["groups"] == ["audit", "labels"]
    assert stream["readers"] == [{"app": "shop", "group": "audit"}, {"app": "shipping", "group": "labels"}]
    assert row(cli.rows("-A", "shop", "queues"), name="default")["groups"] == ["main"]


def test_how_full_a_queue_may_become_is_shown(cli, app):
    app.tasks["mail"].delay("a")
    assert row(cli.rows("-A", "shop", "queues"), name="default")["max_pending"] is None
    assert "max_pending" not in cli("-A", "shop", "queues")
    with App("shop", url=app.url) as other:
        other.queue("default", max_pending=54321)
        _ = other.engine
    assert row(cli.rows("-A", "shop", "queues"), name="default")["max_pending"] == 54321
    assert "54,321" in cli("-A", "shop", "queues")


def test_tasks_show_the_options_that_differ(cli):
    tasks = cli.rows("-A", "shop", "tasks")
    assert row(tasks, task="fetch")["options"] == {"autoretry_for": "OSError", "max_retries": 5}
    assert row(tasks, task="add")["options"] == {}
    assert row(tasks, task="mail")["options"] == {"aliases": "mailto", "ignore_result": True}
    assert row(tasks, task="audit")["stream"] == "inference"


def test_tasks_show_options_as_they_may_be_declared(cli, folder):
    write_shop(folder, OPTIONS, "limits")
    text = cli("-A", "limits", "tasks")
    calm = "breaker=20/1m"
    fussy = "breaker=3/90s, of OSError, KeyError, pause 5m"
    for shown in (calm, fussy, "retry_budget=10%", "rate_limit=10/m", "time_limit=90s", "limit_key=by_host"):
        assert shown in text
    tasks = cli.rows("-A", "limits", "tasks")
    assert row(tasks, task="calm")["options"]["breaker"] == "20/1m"
    assert row(tasks, task="fussy")["options"]["time_limit"] == 90.0
    assert "max_retries=5" in cli("-A", "shop", "tasks")


def test_workers(cli, app, worker):
    app.tasks["add"].delay(1, 2)
    group, lease = worker.take(want=1)
    pos = lease.spans[0].lo
    children = [{"pid": 1, "index": 0, "done": 12345}]
    worker.say(
        groups=[group.id], running=[[pos, "add", time.time() - 3]], children=children, pool="processes"
    )
    found = row(cli.rows("-A", "shop", "workers"), worker="w1")
    assert (found["state"], found["serves"], found["pool"]) == ("alive", ["default"], "processes")
    assert found["running"][0]["task"] == "add"
    assert found["running"][0]["id"] == cli.rows("-A", "shop", "calls")[0]["id"]
    assert found["children"] == children
    text = cli("-A", "shop", "workers")
    assert "12,345" in text
    assert re.search(r"add 3\.\ds", text)


def test_a_worker_that_beats_no_more_is_silent(cli, app, worker, monkeypatch):
    app.tasks["add"].delay(1, 2)
    group, lease = worker.take(want=1)
    worker.say(groups=[group.id], running=[[lease.spans[0].lo, "add", time.time()]], children=[])
    monkeypatch.setattr("respool.clock.now", lambda: time.time() + 7)
    found = row(cli.rows("-A", "shop", "workers"), worker="w1")
    assert 7 <= found["silent"] < 30
    assert re.search(r"w1 +silent \d+(\.\d)?s .* \(add\)", cli("-A", "shop", "workers"))


def test_show_says_that_the_worker_fell_silent(cli, app, worker, monkeypatch):
    runs, waits = app.tasks["add"].delay(1, 2), app.tasks["add"].delay(3, 4)
    group, lease = worker.take(want=1)
    worker.say(groups=[group.id], running=[[lease.spans[0].lo, "add", time.time()]], children=[])
    assert "now: 0 calls are before it in shop/default" in cli("-A", "shop", "show", waits.id)
    monkeypatch.setattr("respool.why.wall_clock", lambda: time.time() + 5)
    text = cli("-A", "shop", "show", runs.id)
    assert re.search(r"now: running for \d+\.\d s in worker w1, which has been silent for \d+\.\d s", text)
    monkeypatch.setattr("respool.why.wall_clock", lambda: time.time() + 20)
    text = cli("-A", "shop", "show", waits.id)
    assert re.search(
        r"now: no worker serves shop/default \(worker w1 has been silent for \d+ s\); start", text
    )


def test_calls_newest_first_with_filters(cli, app, worker):
    for x in range(3):
        app.tasks["add"].delay(x, 1)
    worker.work()
    app.tasks["fetch"].delay("bad://y")
    worker.work("fast")
    app.tasks["fetch"].apply_async(("z",), countdown=99)
    app.tasks["mail"].delay("me")
    calls = cli.rows("-A", "shop", "calls")
    assert [(c["task"], c["state"]) for c in calls] == [
        ("mail", "PENDING"), ("fetch", "PENDING"), ("fetch", "FAILURE"), *[("add", "SUCCESS")] * 3
    ]  # fmt: skip
    assert calls[-1]["input"] == {"args": [0, 1], "kwargs": {}}
    assert [c["id"] for c in cli.rows("-A", "shop", "calls", "--oldest")] == [
        c["id"] for c in reversed(calls)
    ]
    assert len(cli.rows("-A", "shop", "calls", "--limit", "2")) == 2
    assert [c["task"] for c in cli.rows("-A", "shop", "calls", "--state", "failure")] == ["fetch"]
    assert len(cli.rows("-A", "shop", "calls", "--task", "add")) == 3
    assert len(cli.rows("-A", "shop", "calls", "--queue", "fast")) == 2
    assert len(cli.rows("-A", "shop", "calls", "--since", "1h")) == 6
    assert cli.rows("-A", "shop", "calls", "--until", "1h") == []
    table = cli("-A", "shop", "calls")
    assert "add(2, 1)" in table
    assert calls[0]["id"] in table
    assert "did you mean 'main'?" in cli("-A", "shop", "calls", "--group", "maim", code=2)


def test_a_misspelt_task_of_calls_is_suggested(cli, app, worker):
    app.tasks["add"].delay(1, 1)
    for form in ((), ("--json",)):
        assert "unknown task 'ad'; did you mean 'add'?" in cli(
            "-A", "shop", "calls", "--task", "ad", *form, code=2
        )
    assert "No calls match" in cli("-A", "shop", "calls", "--task", "mail")


def test_calls_show_which_runs_have_said_how_far_they_are(cli, app, worker):
    handles = [app.tasks["add"].delay(x, 1) for x in range(3)]
    group, lease = worker.take(want=2)
    first, second = (pos for span in lease.spans for pos in range(span.lo, span.hi))
    now = time.time()
    worker.say(groups=[group.id], running=[[first, "add", now], [second, "add", now]], pool="processes")
    worker.engine.set_progress(group.id, second, b"\xcc\x80")
    states = {call["id"]: call["state"] for call in cli.rows("-A", "shop", "calls")}
    assert [states[handle.id] for handle in handles] == ["STARTED", "PROGRESS", "PENDING"]
    assert [c["id"] for c in cli.rows("-A", "shop", "calls", "--state", "PROGRESS")] == [handles[1].id]
    assert [c["id"] for c in cli.rows("-A", "shop", "calls", "--state", "STARTED")] == [handles[0].id]


def test_one_is_not_many(cli, app, worker):
    app.tasks["add"].delay(1, 1)
    last = app.tasks["add"].delay(2, 2)
    group = next(group for group in app.groups() if group.name == "main")
    worker.say(groups=[group.id], running=[], pool="processes")
    told = "now: 1 call is before it in shop/default, 1 worker serves it"
    assert told in cli("-A", "shop", "show", last.id)
    worker.work(want=1)
    cli("-A", "shop", "purge", "--queue", "default", "--yes")
    app.tasks["add"].delay(3, 3)
    assert "Ended 1 call of queue default" in cli("-A", "shop", "purge", "--queue", "default", "--yes")


def test_a_log_of_one_record(cli, app):
    app.tasks["add"].delay(1, 1)
    assert re.search(r"^1 record in .*: each is in one place", cli("-A", "shop", "check"), re.M)


def test_calls_over_many_pages(cli, app, worker, monkeypatch):
    monkeypatch.setattr("respool.cli.records.PAGE", 7)
    app.tasks["mail"].delay_many([str(n) for n in range(40)])
    worker.work(want=25)
    calls = cli.rows("-A", "shop", "calls", "--limit", "100")
    assert [c["input"]["args"] for c in calls] == [[str(n)] for n in reversed(range(40))]
    assert [c["state"] for c in calls] == ["PENDING"] * 15 + ["SUCCESS"] * 25
    assert len(cli.rows("-A", "shop", "calls", "--limit", "100", "--state", "SUCCESS", "--oldest")) == 25


def test_every_state_of_calls_is_that_of_the_handle(cli, app, worker):
    handles = [app.tasks["add"].delay(x, 1) for x in range(4)]
    worker.work(want=1)
    worker.take(want=1)
    handles.append(app.tasks["fetch"].delay("bad://y"))
    handles.append(app.tasks["fetch"].apply_async(("z",), countdown=99))
    worker.work("fast")
    shown = {c["id"]: c["state"] for c in cli.rows("-A", "shop", "calls")}
    assert shown == {handle.id: handle.state for handle in handles}


def test_show_has_input_attempts_and_outcomes(cli, app, worker):
    done = app.tasks["add"].apply_async((2, 3), task_id="two-and-three", headers={"who": "me"})
    failed = app.tasks["fetch"].delay("bad://q", retries=2)
    worker.work()
    worker.work("fast")
    data = cli.data("-A", "shop", "show", done.id)
    assert (data["id"], data["queue"], data["task"], data["offset"]) == ("two-and-three", "default", "add", 0)
    assert data["input"] == {"args": [2, 3], "kwargs": {}}
    assert data["headers"] == {"who": "me"}
    assert [(g["group"], g["state"], g["result"]) for g in data["groups"]] == [("main", "SUCCESS", 5)]
    assert [a["how"] for a in data["groups"][0]["attempts"]] == ["done"]
    text = cli("-A", "shop", "show", failed.id)
    assert "fetch('bad://q', retries=2)" in text
    assert "FAILURE" in text
    assert "ValueError: no such place: bad://q" in text
    assert "in _run" in text or "in fetch" in text
    assert "in group main: FAILURE (dead letter)" in text
    assert "now: " not in text
    how = re.search(r"\d\d:\d\d:\d\d  worker \d+, child 0: failed: ValueError: no such place", text)
    assert how, "when, who, and last what became of it"
    assert "SUCCESS\n" in cli("-A", "shop", "show", done.id)
    assert "returned 5" in cli("-A", "shop", "show", "two-and-three")


def test_show_all_groups_of_a_replayed_call(cli, app, worker):
    call = app.tasks["add"].delay(2, 3)
    worker.work()
    cli("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add")
    app.tasks["add"].fn = lambda x, y: x * y
    worker.work(group="v2")
    groups = cli.data("-A", "shop", "show", call.id)["groups"]
    assert [(g["group"], g["result"]) for g in groups] == [("main", 5), ("v2", 6)]
    assert [g["group"] for g in cli.data("-A", "shop", "show", call.id, "--group", "v2")["groups"]] == ["v2"]
    assert "unknown group 'v3'; known: main, v2" in cli(
        "-A", "shop", "show", call.id, "--group", "v3", code=2
    )


def test_show_an_event(cli, app):
    app.stream_handles["inference"].publish({"user_id": 7, "prompt": "hi"}, record_id="ev-1")
    data = cli.data("-A", "shop", "show", "ev-1")
    assert (data["stream"], data["key"], data["input"]) == (
        "inference",
        "7",
        {"value": {"user_id": 7, "prompt": "hi"}},
    )
    assert "'prompt': 'hi'" in cli("-A", "shop", "show", "ev-1")


def test_show_what_is_not_there(cli, app):
    _ = app.engine
    assert "no call nope: never appended" in cli("-A", "shop", "show", "nope", code=1)
    assert "an id is printable text of 1 to 200 bytes" in cli("-A", "shop", "show", "x" * 300, code=1)


def test_show_a_body_that_cannot_be_decoded(cli, app):
    log = app.stream_of("queue", "default").logs[0]
    app.engine.append_run(log, "add", [b"\xc1"], None, new_head(1e9), 1e9)
    assert "cannot be decoded" in cli("-A", "shop", "calls")
    id = cli.rows("-A", "shop", "calls")[0]["id"]
    assert "cannot be decoded" in cli.data("-A", "shop", "show", id)["input"]["error"]


def test_attributes_that_cannot_be_read_are_one_line_of_each_listing(cli, app):
    """What others stored, or an earlier version let through, hides nothing beside it."""
    app.tasks["add"].apply_async((1, 2), task_id="first")
    app.stream_handles["inference"].publish({"user_id": 7}, record_id="ev-1")
    for kind, name, task, body in (
        ("queue", "default", "add", b"\x92\x92\x01\x02\x80"),
        ("stream", "inference", "", b"{}"),
    ):
        log, id = app.stream_of(kind, name).logs[0], new_head(wall_clock())
        wrong = b"\x81\xa7headers\x81\xa6tenant\x07"
        app.engine.append_rows([NewCall(log, task, body, wrong, id, wall_clock())])
    told = "its attributes cannot be read: Expected `str`, got `int`"
    assert told in cli("-A", "shop", "calls")
    assert cli("-A", "shop", "tail", "--timeout", "0.05").count(told) == 2
    id = next(each["id"] for each in cli.rows("-A", "shop", "calls") if each["id"] != "first")
    assert told in cli.data("-A", "shop", "show", id)["input"]["error"]
    work(app, queues=["default"])
    assert app.AsyncResult(id).state == "FAILURE"
    assert "add" in cli("-A", "shop", "dead", "list")
    assert cli.rows("-A", "shop", "dead", "list", "--key", "x") == []
    assert [each["id"] for each in cli.rows("-A", "shop", "dead", "list", "--queue", "default")] == [id]
    assert "CorruptBody" in cli("-A", "shop", "dead", "show", id)
    assert told in cli("-A", "shop", "rerun", id, code=1)
    assert "attributes of this dead letter cannot be read" in cli(
        "-A", "shop", "dead", "redrive", "--id", id, "--set", "x=5", "--yes", code=1
    )
    for kind in ("--queue", "default"), ("--stream", "inference"):
        rows = [json.loads(line) for line in cli("-A", "shop", "export", *kind).splitlines()]
        assert [told in (each["input_error"] or "") for each in rows] == [False, True]


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def zone(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_moments_that_have_no_date_are_shown_as_the_last_that_has(cli, app, zone):
    """Of a call that an earlier version let through, or that another program stored."""
    log, id = app.stream_of("queue", "default").logs[0], new_head(wall_clock())
    meta = Meta(due=1e300, expires=2e300).packed()
    app.engine.append_rows([NewCall(log, "add", b"\x92\x92\x01\x02\x80", meta, id, wall_clock())])
    app.tasks["add"].apply_async((1, 2), eta=datetime.min.replace(tzinfo=UTC), task_id="long ago")
    assert app.AsyncResult("long ago").record().meta.due == 0
    work(app, queues=["default"])
    assert app.AsyncResult("long ago").get(timeout=0) == 3
    call = app.AsyncResult(id_text(id))
    assert call.state == "SCHEDULED"
    with pytest.raises(GetTimeout, match=r"parked \(scheduled\) until 999[89]-"):
        call.get(timeout=0)
    assert "9998-12-31" in cli.data("-A", "shop", "show", call.id)["due"]
    for command in ("show", call.id), ("calls",), ("lag",), ("tail", "--timeout", "0.05"), ("queues",):
        assert cli("-A", "shop", *command)


def test_check_of_a_log_in_use(cli, app, worker):
    for x in range(6):
        app.tasks["add"].delay(x, 1)
    worker.work(want=3)
    worker.take(want=1)
    app.tasks["fetch"].delay("bad://y")
    worker.work("fast")
    data = cli.data("-A", "shop", "check")
    assert data["ok"]
    main = next(g for g in data["groups"] if g.get("queue") == "default")
    assert (main["records"], main["done"], main["leased"], main["pending"]) == (6, 3, 1, 2)
    fast = next(g for g in data["groups"] if g.get("queue") == "fast")
    assert (fast["records"], fast["parked"]) == (1, {"dead": 1})
    assert "each is in one place in every group" in cli("-A", "shop", "check")


def test_check_finds_a_lost_record_and_says_so_by_its_exit_code(cli, app, worker):
    for x in range(6):
        app.tasks["mail"].delay(str(x))
    group, lease = worker.take(want=4)
    app.engine.transact(Reads(group.id), lambda view, change: change.dropped_leases.append(lease.id))
    text = cli("-A", "shop", "check", code=1)
    assert "WRONG" in text
    assert "4 done, but no entry and no outcome says so: 1:0–3" in text
    assert not cli.data("-A", "shop", "check", code=1)["ok"]


def test_retrying_and_revoked_states(cli, app, worker):
    app.tasks["mail"].delay("a")
    app.tasks["mail"].delay("b")
    group, lease = worker.take(want=2)
    lo, now = lease.spans[0].lo, wall_clock()
    told = encode_error(OSError("flaky"))
    retry = Verdict(
        lo, reason="retry", due=now + 99, task="mail", error=told, retried=True, note="retry: OSError: flaky"
    )
    worker.settle(
        group, lease, verdicts=[retry, Verdict(lo + 1, "revoked", encode_error(ValueError("too late")))]
    )
    states = {c["input"]["args"][0]: c for c in cli.rows("-A", "shop", "calls")}
    assert (states["a"]["state"], states["b"]["state"]) == ("RETRY", "REVOKED")
    text = cli("-A", "shop", "show", states["a"]["id"])
    assert "in group main: RETRY, due 20" in text
    assert "retry: OSError: flaky" in text
    assert "too late" in cli("-A", "shop", "show", states["b"]["id"])


@pytest.mark.parametrize(
    "command", ["lag", "queues", "streams", "tasks", "workers", "calls", "groups list", "dead list"]
)
def test_json_has_one_object_a_line_and_nothing_else(cli, app, worker, command):
    app.tasks["add"].delay(1, 2)
    worker.work()
    app.tasks["fetch"].delay("bad://y")
    worker.work("fast")
    assert cli.rows("-A", "shop", *command.split())


def test_check_of_a_damaged_file_reports_what_it_can(cli, app, folder):
    app.tasks["mail"].delay_many(str(n) for n in range(5000))
    app.close()
    file = folder / "respool.db"
    (folder / "respool.db-wal").unlink(missing_ok=True)  # it has been copied to the file
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 2)
        opened.write(b"x" * 8192)
    report = cli.data("--url", f"sqlite:///{file}", "check", code=1)
    assert not report["ok"]
    assert any(problem.startswith("the file: ") for problem in report["problems"])


def test_calls_between_two_moments(cli, app, worker):
    app.tasks["add"].delay(1, 2)
    calls = ("-A", "shop", "calls", "--between")
    assert len(cli.rows(*calls, "1h", "now")) == 1
    assert cli.rows(*calls, "2h", "1h") == []
    assert "--between, or --since and --until, not both" in cli(*calls, "2h", "1h", "--since", "3h", code=2)
    assert "must be before the second" in cli(*calls, "1h", "2h", code=2)


def test_export(cli, app, worker, folder):
    app.tasks["add"].delay(1, 2)
    app.tasks["fetch"].delay("bad://1")
    worker.work()
    worker.work("fast")
    (row,) = map(json.loads, cli("-A", "shop", "export", "--queue", "default").splitlines())
    assert (row["args"], row["result"], row["state"]) == ([1, 2], 3, "SUCCESS")
    text = cli("-A", "shop", "export", "--queue", "fast", "--between", "1h", "now", "-o", "out.csv")
    assert "Wrote 1 call to out.csv." in text
    assert "ValueError" in (folder / "out.csv").read_text()
    assert sorted(path.name for path in folder.iterdir() if "out" in path.name) == ["out.csv"]
    assert cli("-A", "shop", "export", "--queue", "fast", "--state", "success") == ""
    assert "unknown task 'ad'; did you mean 'add'?" in cli(
        "-A", "shop", "export", "--queue", "default", "--task", "ad", code=2
    )
    assert "cannot be written" in cli("-A", "shop", "export", "--queue", "fast", "-o", "no/out.csv", code=1)
    assert "unknown group 'v2'" in cli("-A", "shop", "export", "--queue", "fast", "--group", "v2", code=2)


KEPT = """
import os
from respool import App

app = App("kept", url="sqlite:///kept.db")
queue = app.queue("mails", retention=os.environ.get("KEPT", "7d"))
parts = int(os.environ.get("PARTS", "1"))
events = app.stream("visits", partitions=parts, retention={"age": "1d", "count": 5})

@app.task(queue=queue)
def mail(): ...
"""


def test_how_long_records_stay_is_changed_by_a_command(folder):
    write_shop(folder, KEPT, "kept")

    def said(*args, code=0, **env):
        done = run("-A", "kept", *args, cwd=folder, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    said("call", "mail")
    told = said("call", "mail", code=2, KEPT="30d")
    assert "retention=7d, now with retention=30d; declare it as it was, or change that: " in told
    command = told.rstrip().partition("change that: respool ")[2].split()
    assert command == ["queues", "alter", "mails", "--age", "30d"]
    asked = said(*command, code=1, KEPT="30d")
    assert "Keep 30d of queue mails, and no more 7d? What is beyond it will be removed. Nobody" in asked
    assert said(*command, "--yes", KEPT="30d") == "Queue mails keeps 30d.\n", "the code has it already"
    assert said(*command, KEPT="30d") == "Queue mails keeps 30d.\n", "there is nothing to ask"
    said("call", "mail", KEPT="30d")
    assert "30d" in said("queues", KEPT="30d")
    url = ("--url", "sqlite:///kept.db")
    done = json.loads(said(*url, "streams", "alter", "visits", "--forever", "--yes", "--json"))
    assert done == {"stream": "visits", "retention": None, "before": {"age": 86400.0, "count": 5}}
    told = said("call", "mail", code=2, KEPT="30d")
    assert "change that: respool streams alter visits --age 1d --count 5" in told
    said("streams", "alter", "visits", "--age", "1d", "--count", "5", "--yes")
    assert "alter" not in said("call", "mail", code=2, KEPT="30d", PARTS="2"), "that cannot be changed"
    assert "--age, --size, --count, any of them; or --forever" in said("queues", "alter", "mails", code=2)
    assert "unknown queue 'mail'; did you mean 'mails'?" in said(
        "queues", "alter", "mail", "--age", "1d", code=2
    )
    assert "'soon' is no duration" in said("queues", "alter", "mails", "--age", "soon", code=2)


def test_tail(cli, app):
    app.tasks["add"].delay(1, 2)
    app.tasks["mail"].delay("ada")
    app.stream_handles["inference"].publish({"user_id": "7", "prompt": "x"})
    tail = ("-A", "shop", "tail", "--timeout", "0.05")
    add, mail, event = cli(*tail).splitlines()
    assert re.search(r"^\d\d:\d\d:\d\d  [0-9a-f-]{36}  default  add\(1, 2\)$", add)
    assert mail.endswith("  default  mail('ada')")
    assert event.endswith("  inference  {'user_id': '7', 'prompt': 'x'}")
    assert cli(*tail, "-n", "1").splitlines() == [event]
    assert cli(*tail, "--queue", "default", "--task", "mail").splitlines() == [mail]
    assert cli(*tail, "-n", "0") == ""
    (told,) = cli.rows(*tail, "--stream", "inference")
    assert (told["stream"], told["key"], told["input"]) == (
        "inference", "7", {"value": {"user_id": "7", "prompt": "x"}}
    )  # fmt: skip
    assert "unknown queue 'defualt'; did you mean 'default'?" in cli(*tail, "--queue", "defualt", code=2)
    assert "unknown task 'ad'; did you mean 'add'?" in cli(*tail, "--task", "ad", code=2)


def test_tail_shows_what_comes_until_it_is_interrupted(folder, app):
    app.tasks["add"].delay(1, 2)
    tail = start("-A", "shop", "tail", "--json", cwd=folder)
    assert json.loads(tail.stdout.readline())["input"]["args"] == [1, 2]
    app.tasks["add"].delay(3, 4)
    assert json.loads(tail.stdout.readline())["input"]["args"] == [3, 4]
    tail.send_signal(signal.SIGINT)
    assert tail.communicate(timeout=20) == ("", "")
    assert tail.returncode == 0


def test_export_of_a_stream(cli, app, worker, folder):
    """Its events alone, or with what came of them in a group."""
    for n in range(2):
        app.stream_handles["inference"].publish({"user_id": str(n), "prompt": "x"})
    export = ("-A", "shop", "export")
    alone = [json.loads(line) for line in cli(*export, "--stream", "inference").splitlines()]
    assert [row["value"]["user_id"] for row in alone] == ["0", "1"]
    assert {(row["group"], row["state"]) for row in alone} == {(None, None)}
    assert "Wrote 2 events to e.csv." in cli(*export, "--queue", "inference", "-o", "e.csv")
    audit = [
        json.loads(line) for line in cli(*export, "--stream", "inference", "--group", "audit").splitlines()
    ]
    assert {(row["group"], row["state"]) for row in audit} == {("audit", "PENDING")}
    told = cli(*export, "--stream", "inference", "--state", "failure", code=2)
    assert "--state is that in a group: say which, with --group NAME" in told
    assert "--queue NAME or --stream NAME" in cli(*export, code=2)
    assert "unknown stream 'fast'" in cli(*export, "--stream", "fast", code=2)


@pytest.mark.parametrize("command", [("calls",), ("replay", "--group", "v2", "--all-tasks")])
def test_a_stream_where_a_queue_is_meant_says_that_it_is_one(cli, app, command):
    app.stream_handles["inference"].publish({"user_id": 1})
    told = " ".join(cli("-A", "shop", *command, "--queue", "inference", code=2).split())
    assert "inference is a stream of events, not a queue" in told
