"""The calls that runs make (P4, H8), replays that drop them, and groups that each go their own way."""

from __future__ import annotations

from typing import Any

import pytest
from tests.worker.support import Place, eventually, on_each_engine

from respool.errors import UnknownCall
from respool.replay import create_replay

pytestmark = on_each_engine

CODE = """
from respool.errors import IdConflict


@app.task
def made(n):
    note("start", "made", n)
    return n


@app.task
def many(n):
    with noted("many", n):
        if once("kill-in-batch"):
            made.delay_many(range(n))
            die()
        made.delay_many(range(n))


@app.task(autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0)
def fails(n):
    made.delay(n)
    raise ValueError(n)


@app.task
def early(n):
    note("start", "early", n)
    for each in range(3):
        made.delay(each)
        made.delay("twice")
        made.delay("twice")
    note("made", "early", n)
    if once("hold"):
        wait_for("go")
        die()
    made.delay("last")
    return n


@app.task
def asks(n):
    result = made.delay(n)
    note("state", "asks", result.state)
    return result.id


@app.task
def given(n):
    made.apply_async((n,), task_id=f"given-{n}")
    made.apply_async((n,), task_id=f"given-{n}")


@app.task
def conflicting(n):
    try:
        made.apply_async((n + 1,), task_id="taken")
        return "sent"
    except IdConflict:
        return "refused"


@app.task
def conflicting_with_itself(n):
    made.apply_async((n,), task_id=f"own-{n}")
    try:
        made.apply_async((n + 1,), task_id=f"own-{n}")
        return "sent"
    except IdConflict:
        return "refused"


@app.task
async def coroutine(n):
    await made.adelay(n)
    await asyncio.sleep(0)
    made.delay(n)


@app.task
def late(n):
    # A thread that a run leaves behind has no run of its own: what it sends is sent at once.
    thread = threading.Thread(target=lambda: made.delay(n))
    thread.start()
    thread.join()
    note("threaded", "late", n)
    wait_for("go")


@app.task
def kept(n):
    made.delay(n)
    note("made", "kept", n)
    wait_for("go")


visits = app.stream("visits")
keyed = app.stream("keyed", key="n")


@app.task
async def tells(n):
    visits.publish({"n": n})
    visits.publish({"n": n}, record_id=f"visit-{n}")
    await visits.apublish({"n": n})
    visits.publish_many({"n": each} for each in range(2))
    keyed.publish_many({"n": each} for each in range(2))
    made.delay(n)
"""


def test_calls_leave_with_the_settlement(place: Place) -> None:
    module = place.module(CODE, outbox_hold=None)
    module.kept.delay(7)
    worker = place.worker(2)
    eventually(lambda: place.marks("made", "kept"))
    before = place.registered()[0].beat
    eventually(lambda: place.registered()[0].beat > before + 6)
    assert not place.runs("made")
    place.touch("go")
    eventually(lambda: place.runs("made") == {"7": 1})
    assert worker.stop() == 0


def test_calls_leave_at_the_latest_after_the_hold(place: Place) -> None:
    module = place.module(CODE, outbox_hold=0.2)
    module.kept.delay(7)
    place.worker(2)
    eventually(lambda: place.runs("made") == {"7": 1})
    assert not (place.folder / "go").exists()


def test_every_settled_attempt_sends_its_calls(place: Place) -> None:
    module = place.module(CODE)
    result = module.fails.delay(5)
    place.burst(1)
    assert result.state == "FAILURE"
    assert place.runs("made") == {"5": 2}


def test_many_calls_leave_in_chunks_and_once(place: Place) -> None:
    """H8: past 10,000 they go before the end, with ids that a rerun gives them again."""
    module = place.module(CODE, outbox_hold=None)
    place.touch("kill-in-batch")
    result = module.many.delay(10_001)
    place.burst(2, timeout=60)
    assert place.runs("many") == {"10001": 2}
    runs = place.runs("made")
    assert len(runs) == 10_001
    assert set(runs.values()) == {1}
    assert result.state == "SUCCESS"
    place.check()


def test_rerun_repeats_none_of_the_calls_that_left_early(place: Place) -> None:
    module = place.module(CODE, outbox_hold=0.1)
    place.touch("hold")
    result = module.early.delay(1)
    worker = place.worker(2)
    eventually(lambda: place.runs("made") == {"0": 1, "1": 1, "2": 1, "twice": 6})
    place.touch("go")
    assert result.get(timeout=20) == 1
    eventually(lambda: place.runs("made")["last"])
    eventually(place.idle)
    assert place.runs("early") == {"1": 2}
    assert place.runs("made") == {"0": 1, "1": 1, "2": 1, "twice": 6, "last": 1}
    assert worker.stop() == 0
    place.check()


def test_looking_at_a_call_sends_it(place: Place) -> None:
    module = place.module(CODE, outbox_hold=None)
    result = module.asks.delay(3)
    place.burst(1)
    assert place.marks("state", "asks")[0].key == "PENDING"
    assert module.app.AsyncResult(result.get(timeout=1)).get(timeout=1) == 3
    assert place.runs("made") == {"3": 1}


def test_calls_of_a_coroutine_and_of_a_thread(place: Place) -> None:
    module = place.module(CODE, outbox_hold=None)
    module.coroutine.delay(4)
    module.late.delay(5)
    worker = place.worker(2)
    eventually(lambda: place.runs("made") == {"4": 2, "5": 1})
    place.touch("go")
    assert worker.stop() == 0
    assert place.runs("made") == {"4": 2, "5": 1}


def test_calls_with_ids_of_their_own(place: Place) -> None:
    module = place.module(CODE)
    module.given.delay(1)
    module.given.delay(1)
    place.burst(1)
    assert place.runs("made") == {"1": 1}
    assert module.app.AsyncResult("given-1").get(timeout=1) == 1


def test_same_id_with_another_body_is_an_error(place: Place) -> None:
    """H8: not silence."""
    module = place.module(CODE)
    module.made.apply_async((1,), task_id="taken")
    results = [module.conflicting.delay(1), module.conflicting_with_itself.delay(1)]
    place.burst(1)
    assert [r.get(timeout=1) for r in results] == ["refused", "refused"]


def test_replay_runs_chosen_tasks_and_drops_their_calls(place: Place) -> None:
    module = place.module(CODE)
    calls = [module.fails.delay(n) for n in range(3)]
    others = module.made.delay_many(range(100, 110))
    place.burst(2)
    assert len(place.runs("made")) == 13
    summary = create_replay(module.app, "default", "v2", ["fails"])
    assert (summary.total, sum(summary.left_out.values())) == (3, 16)
    place.burst(2, group="v2")
    assert place.runs("made")["100"] == 1
    assert sum(place.runs("made").values()) == 16, "nothing that the replay called was sent"
    assert place.counters("v2")["calls dropped"] == 6
    assert place.counters("v2")["skipped"] == 16
    for call in calls:
        assert call.of("v2").state == "FAILURE"
        assert call.state == "FAILURE"
        assert len(call.history()) == len(call.of("v2").history()) == 2
    assert others[0].of("v2").state == "UNKNOWN"
    with pytest.raises(UnknownCall, match="filter"):
        others[0].of("v2").get(timeout=1)
    assert others.get(timeout=1) == list(range(100, 110))
    place.check()


def test_replay_that_sends(place: Place) -> None:
    module = place.module(CODE)
    module.coroutine.delay(4)
    place.burst(1)
    create_replay(module.app, "default", "v2", ["coroutine"], outbox="send")
    place.burst(1, group="v2")
    place.burst(1)
    assert place.runs("made") == {"4": 4}
    assert "calls dropped" not in place.counters("v2")


def test_replay_drops_events_as_it_drops_calls(place: Place) -> None:
    module = place.module(CODE)
    told = module.tells.delay(7)
    place.burst(1)

    def events() -> list[int]:
        return [event.value["n"] for stream in (module.visits, module.keyed) for event in stream.read()]

    assert sorted(events()) == [0, 0, 1, 1, 7, 7, 7]
    create_replay(module.app, "default", "v2", ["tells"])
    place.burst(1, group="v2")
    assert told.of("v2").state == "SUCCESS"
    assert len(events()) == 7
    assert place.counters("v2")["calls dropped"] == 8
    create_replay(module.app, "default", "v3", ["tells"], outbox="send")
    place.burst(1, group="v3")
    assert len(events()) == 13, "one has an id of its own, which is known"
    assert "calls dropped" not in place.counters("v3")
    place.check()


STREAM = """
events = app.stream("events")
keyed = app.stream("keyed", key="user", partitions=4)


@app.task
def made(n):
    note("start", "made", n)


@events.subscribe(group="audit", start="earliest")
def audit(event):
    note("start", "audit", event["n"])
    return event["n"]


@events.subscribe(
    group="slow", start="earliest", max_retries=2, autoretry_for=(ValueError,), default_retry_delay=0
)
def slow(event):
    note("start", "slow", event["n"])
    made.delay(event["n"])
    if event["n"] == 3:
        raise ValueError("three")


@events.subscribe(group="latest")
def latest(event):
    note("start", "latest", event["n"])


@keyed.subscribe(group="users", start="earliest")
async def users(event):
    note("start", "users", f"{event['user']}-{event['n']}")
"""


def _publish(module: Any) -> None:
    module.events.publish_many({"n": n, "text": "x" * n} for n in range(20))
    module.keyed.publish_many({"user": n % 5, "n": n} for n in range(50))


def test_groups_of_a_stream_each_on_their_own(place: Place) -> None:
    module = place.module(STREAM)
    _publish(module)
    for n in range(20, 25):
        module.events.publish({"n": n})
    place.burst(2)
    twenty_five = {str(n): 1 for n in range(25)}
    assert place.runs("audit") == twenty_five
    assert place.runs("slow") == {**twenty_five, "3": 3}
    assert place.runs("made") == {**twenty_five, "3": 3}
    assert place.runs("latest") == twenty_five, "created before the first event"
    assert place.runs("users") == {f"{n % 5}-{n}": 1 for n in range(50)}
    place.check()


def test_subscription_made_later(place: Place) -> None:
    module = place.module("events = app.stream('events')\n")
    module.events.publish_many({"n": n} for n in range(20))
    module = place.module(STREAM)
    module.events.publish({"n": 20})
    place.burst(1)
    assert place.runs("audit") == {str(n): 1 for n in range(21)}
    assert place.runs("latest") == {"20": 1}


def test_worker_of_one_group(place: Place) -> None:
    module = place.module(STREAM)
    _publish(module)
    place.burst(1, group="audit")
    assert len(place.runs("audit")) == 20
    assert not place.runs("slow")
