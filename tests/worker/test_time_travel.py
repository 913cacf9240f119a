"""Dead letters, replays, seeks, comparisons and exports on each engine, with real workers."""

from __future__ import annotations

from typing import Any

import pytest
from tests.worker.support import ENGINES, Place, eventually

from respool.replay import (
    Selection,
    Tolerance,
    compare,
    create_group,
    create_replay,
    group_of,
    how_far,
    plan_seek,
    seek,
)
from respool.replay.export import exported
from respool.replay.rerun import rerun

CODE = """
VERSION = 2 if (HERE / "version2").exists() else 1


@app.task
def score(n, factor=1):
    made.delay(n)
    if n == 13:
        raise ValueError("unlucky")
    return {"score": n * factor + (0.01 if VERSION == 2 else 0)}


@app.task(queue="sink")
def made(n): ...
"""
CALLS = 30
everywhere = pytest.mark.parametrize("place", [*ENGINES, "kafka"], indirect=True)


def calls_in(app: Any, queue: str) -> int:
    """Return how many calls a queue has on record; a relayed one that is there twice has one id (K4)."""
    bounds = app.engine.bounds(app.stream_of("queue", queue))
    return len({record.id for _, lo, hi in bounds for record in app.engine.records(lo, hi, hi - lo)})


@pytest.fixture
def ran(place: Place) -> Place:
    """Thirty calls, one of them a dead letter; every third has a header."""
    module = place.module(CODE)
    for n in range(CALLS):
        headers = {"tenant": "acme"} if n % 3 == 0 else {}
        module.score.apply_async((n,), headers=headers, task_id=f"call-{n}")
    place.burst(queues=["default"])
    return place


@everywhere
def test_dead_letters(ran: Place) -> None:
    app = ran.app
    (letter,) = app.dead_letters(error="ValueError", message="unlucky")
    assert (letter.id, letter.error.type) == ("call-13", "ValueError")
    assert letter.error.worker
    (cause,) = app.dead_letters().by_error()
    assert (cause.count, cause.tasks) == (1, {"score": 1})
    assert app.dead_letters(headers={"tenant": "acme"}).count() == 0
    assert app.dead_letters().redrive(set={"n": 14}) == 1
    ran.burst(queues=["default"])
    assert app.AsyncResult("call-13").get(timeout=10) == {"score": 14}
    hows = [attempt.how for attempt in app.AsyncResult("call-13").history()]
    assert hows == ["failed", "redriven", "done"]
    ran.check()


@everywhere
def test_replays_choose(ran: Place) -> None:
    app = ran.app
    chosen = {
        "failed": (Selection(state="FAILURE"), 1),
        "acme": (Selection(headers={"tenant": "acme"}, where="args[0] < 15"), 5),
        "ids": (Selection(ids=["call-3", "call-7"]), 2),
        "share": (Selection(share="50%"), None),
    }
    for name, (selection, _) in chosen.items():
        create_replay(app, "default", name, ["score"], selection=selection)
        ran.burst(group=name)
    for name, (_, expected) in chosen.items():
        group = group_of(app, "default", name)[1]
        far = how_far(app.engine, group)
        assert far.over
        runs = far.total - far.skipped
        assert runs == expected if expected is not None else 3 < runs < 27
    ran.check()


@everywhere
def test_a_group_that_is_moved_does_its_work_again(ran: Place) -> None:
    app = ran.app
    stream, group = group_of(app, "default", "main")
    plan = plan_seek(app.engine, stream, group, "10")
    assert plan.again == {"score": 20}
    seek(app.engine, group, plan)
    assert app.AsyncResult("call-13").state == "PENDING"
    assert app.AsyncResult("call-9").state == "SUCCESS"
    ran.check()
    ran.burst(queues=["default"])
    assert app.AsyncResult("call-29").get(timeout=10) == {"score": 29}
    assert app.dead_letters().count() == 1
    eventually(lambda: calls_in(app, "sink") == CALLS + 20, "their calls are sent again (H8)")
    ran.check()


@everywhere
def test_two_versions_beside_each_other(ran: Place) -> None:
    app = ran.app
    create_group(app, "default", "v2", start="earliest", selection=Selection(tasks=["score"]))
    ran.touch("version2")
    ran.burst(group="v2")
    stream, main = group_of(app, "default", "main")
    v2 = group_of(app, "default", "v2")[1]
    found = compare(app, stream, main, v2)
    assert found.counts == {"different": CALLS - 1, "failed_both": 1}
    close = compare(app, stream, main, v2, tolerance=Tolerance(absolute=0.1))
    assert (close.counts, close.share) == ({"same": CALLS - 1, "failed_both": 1}, 0.0)
    assert app.engine.counters(v2.id)["calls dropped"] == CALLS
    ran.check()


@everywhere
def test_the_past_in_hand(ran: Place) -> None:
    app = ran.app
    stream, main = group_of(app, "default", "main")
    rows = list(exported(app, stream, main, load=app.payloads.load))
    assert [row["args"] for row in rows] == [[n] for n in range(CALLS)]
    assert [row["id"] for row in rows if row["state"] == "FAILURE"] == ["call-13"]
    assert rows[3]["headers"] == {"tenant": "acme"}
    assert rows[5]["result"] == {"score": 5}
    before = calls_in(app, "sink")
    assert rerun(app, "call-5").value == {"score": 5}
    assert str(rerun(app, "call-13").error) == "unlucky"
    assert calls_in(app, "sink") == before
