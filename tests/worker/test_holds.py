"""Groups that are paused, moved or dropped while a worker serves them: who reads its log is told."""

from __future__ import annotations

import logging

import pytest
from tests.worker.support import Place, on_each_engine

from respool import App
from respool.replay import create_replay, pause, resume
from respool.worker.holds import Holds

CODE = """
app.queue("other")


@app.task
def waits(n):
    with noted("waits", n):
        wait_for(f"go-{n}")


@app.task(queue="other")
def fine():
    note("start", "fine")
"""


@on_each_engine
def test_banner_and_burst_tell_of_a_paused_group(place: Place) -> None:
    module = place.module(CODE)
    module.waits.delay(1)
    pause(place.app.engine, place.group())
    burst = place.burst()
    told = "t/default is paused; to have it go on: respool groups resume main --queue default"
    assert f"  note    {told}\n" in burst.log
    assert f"worked through 0 calls; left: 1 pending; {told}\n" in burst.log
    resume(place.app.engine, place.group())
    place.touch("go-1")
    assert "paused" not in place.burst().log


def test_burst_in_one_process_tells_of_it_too(place: Place) -> None:
    module = place.module(CODE)
    module.waits.delay(1)
    pause(place.app.engine, place.group())
    log = place.burst(pool="solo").log
    assert log.count("t/default is paused; to have it go on: respool groups resume main --queue default") == 2


@on_each_engine
def test_worker_tells_when_its_group_is_paused_and_goes_on(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker(2)
    module.waits.delay(1)
    place.await_start("waits", "1")  # while there is work, it looks once a beat
    pause(place.app.engine, place.group())
    worker.said("worker: t/default is paused; to have it go on: respool groups resume main --queue default\n")
    resume(place.app.engine, place.group())
    worker.said("worker: t/default goes on\n")
    place.touch("go-1")
    assert worker.stop() == 0
    assert worker.log.count("is paused") == 1, "once"


@on_each_engine
def test_dropped_group_is_told_as_such_and_nothing_is_said_to_be_repeated(place: Place) -> None:
    module = place.module(CODE)
    module.waits.delay(1)
    create_replay(place.app, "default", "v2", ["waits"])
    worker = place.worker(1, group="v2")
    place.await_start("waits", "1")
    place.app.engine.drop_group(place.group("v2"))
    worker.said("worker: t/default (group v2) was dropped; to serve one made anew, start this worker again\n")
    place.touch("go-1")
    worker.said("child: group v2 was dropped: 1 run(s) of it are not counted\n")
    assert worker.stop() == 0
    assert "repeated" not in worker.log


def test_a_look_says_what_has_changed_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    app = App("t", url="sqlite:///:memory:")

    @app.task
    def task() -> None: ...

    task.delay()
    (group,) = app.groups()
    pause(app.engine, group)
    holds = Holds(app.engine, app.groups())
    with caplog.at_level(logging.INFO, "respool.worker"):
        holds.look()
        assert not caplog.records, "its banner said so"
        resume(app.engine, group)
        for _ in range(2):
            holds.look()
        assert caplog.messages == ["t/default goes on"]
    app.close()
