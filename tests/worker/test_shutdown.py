"""Ending a worker in an orderly way: nobody is charged, nothing is run twice without need."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tests.worker.support import Place, WorkerProcess, eventually, on_each_engine, tree

pytestmark = on_each_engine

CODE = """
@app.task
def slow(n):
    with noted("slow", n):
        wait_for(f"go-{n}")
        return n


@app.task
def fine(n):
    with noted("fine", n):
        return n


@app.task
def pid(n):
    note("start", "pid", n)
    return os.getpid()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_warm_shutdown(place: Place, number: int) -> None:
    module = place.module(CODE)
    slow = module.slow.delay(1)
    worker = place.worker(1)
    place.await_start("slow", "1")
    rest = module.slow.delay_many(range(2, 10))
    os.killpg(worker.pid, number)  # to all its processes, as a terminal does it
    worker.said("running tasks finish")
    beat = place.registered()[0].beat
    eventually(lambda: place.registered()[0].beat > beat + 1)  # nothing happens: the task goes on
    assert worker.process.poll() is None
    place.touch("go-1")
    assert worker.wait() == 0
    assert slow.get(timeout=1) == 1
    assert place.runs("slow") == {"1": 1}
    counts = place.counts()
    assert (counts.pending + counts.returned, counts.leased) == (8, 0)
    assert not place.registered()
    assert [a.how for r in rest for a in r.history()] == []
    assert not list(place.folder.glob("*/worker-*"))
    place.check()


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_a_terminal_that_is_closed_stops_it_warmly_however_often_it_says_so(place: Place, pool: str) -> None:
    module = place.module(CODE)
    slow = module.slow.delay(1)
    worker = place.worker(1, pool=pool)
    place.await_start("slow", "1")
    os.killpg(worker.pid, signal.SIGHUP)
    worker.said("once more to end")
    os.killpg(worker.pid, signal.SIGHUP)
    beat = place.registered()[0].beat
    eventually(lambda: place.registered()[0].beat > beat + 1)
    assert worker.process.poll() is None
    place.touch("go-1")
    assert worker.wait() == 0
    assert slow.get(timeout=1) == 1
    assert place.runs("slow") == {"1": 1}


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_under_nohup_it_goes_on(place: Place, pool: str) -> None:
    module = place.module(CODE)
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    slow = module.slow.delay(1)
    worker = place.worker(1, pool=pool, before=before)
    place.await_start("slow", "1")
    os.killpg(worker.pid, signal.SIGHUP)
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    assert module.fine.delay(2).get(timeout=20) == 2
    assert worker.stop() == 0


def test_rest_of_a_lease_goes_back(place: Place) -> None:
    module = place.module(
        CODE,
        """
        @app.task
        def gate(n):
            note("start", "gate", n)
            if n == 500:
                wait_for("go")
            return n
        """,
    )
    results = module.gate.delay_many(range(1000))
    worker = place.worker(1)
    place.await_start("gate", "500")
    worker.signal(signal.SIGTERM)
    worker.said("running tasks finish")
    place.touch("go")
    assert worker.wait() == 0
    assert len(place.runs("gate")) == 501
    counts = place.counts()
    assert counts.pending + counts.returned == 499
    place.burst(1)
    assert results.get(timeout=1) == list(range(1000))
    assert set(place.runs("gate").values()) == {1}
    place.check()


def _cold(place: Place, worker: WorkerProcess) -> None:
    worker.said("ending the running tasks")
    assert worker.wait() == 0
    assert place.counts().leased == 0
    assert not place.registered()


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_second_signal_ends_it_cold(place: Place, pool: str) -> None:
    module = place.module(CODE, max_deliveries=1 + 1)
    slow = module.slow.delay(1)
    for run in range(3):  # more often than max_deliveries: nobody is charged
        worker = place.worker(1, pool=pool)
        eventually(lambda: place.runs("slow")["1"] == run + 1)  # noqa: B023
        worker.signal(signal.SIGTERM)
        worker.said("running tasks finish" if pool == "processes" else "once more to end it now")
        worker.signal(signal.SIGTERM)
        _cold(place, worker)
    place.touch("go-1")
    place.burst(1)
    assert slow.get(timeout=1) == 1
    assert [a.how for a in slow.history()] == ["lost", "lost", "lost", "done"]


LATER = """
if IN_WORKER:
    from respool.worker import calling
    calling.wall_clock = lambda: time.time() + (3600 if (HERE / "later").exists() else 0)


@app.task(batch=2, batch_wait=30)
def many(ns):
    note("start", "many", len(ns))
    wait_for("go-1")
    return ns
"""


@pytest.mark.parametrize("how", ["child", "worker", "stopped", "stopped solo"])
@pytest.mark.parametrize("task", ["slow", "many"])
def test_call_that_was_begun_in_time_runs_again_after_a_death(place: Place, how: str, task: str) -> None:
    """P3: whatever it `expires`, also where we ended its process; what was not begun by then is REVOKED."""
    module = place.module(CODE, LATER)
    calls = [module.app.tasks[task].apply_async((1,), expires=600) for _ in range(2 if task == "many" else 1)]
    worker = place.worker(1, pool="solo" if how == "stopped solo" else "processes")
    place.await_start(task, str(len(calls)))
    late = module.fine.apply_async((1,), expires=600)
    place.touch("later")
    if how == "child":
        os.kill(place.children()[0], signal.SIGKILL)
        worker.said("its process was killed")
        place.touch("go-1")
    elif how == "worker":
        worker.kill_group()
    else:
        worker.signal(signal.SIGTERM)
        worker.said("running tasks finish" if how == "stopped" else "once more to end it now")
        worker.signal(signal.SIGTERM)
        _cold(place, worker)
    place.touch("go-1")
    if how != "child":
        place.burst(1)
    assert [call.get(timeout=20) for call in calls] == [1] * len(calls)
    assert [attempt.how for attempt in calls[0].history()] == ["lost", "done"]
    eventually(late.ready)
    assert (late.state, place.runs("fine")) == ("REVOKED", {})
    place.check()


def test_grace(place: Place) -> None:
    module = place.module(CODE)
    slow = module.slow.delay(1)
    worker = place.worker(1, grace=0.5)
    place.await_start("slow", "1")
    before = time.monotonic()
    worker.signal(signal.SIGTERM)
    _cold(place, worker)
    assert 0.5 <= time.monotonic() - before < 5
    assert slow.state == "PENDING"
    place.touch("go-1")
    place.burst(1)
    assert slow.get(timeout=1) == 1


def test_killed_while_it_drains_charges_nobody(place: Place) -> None:
    """H6: what an orchestrator does after its patience ends."""
    module = place.module(CODE, max_deliveries=2)
    slow = module.slow.delay(1)
    for run in range(3):
        worker = place.worker(1)
        eventually(lambda: place.runs("slow")["1"] == run + 1)  # noqa: B023
        worker.signal(signal.SIGTERM)
        eventually(lambda: any(w.draining for w in place.registered()))
        worker.kill_group()
    place.touch("go-1")
    place.burst(1)
    assert slow.get(timeout=1) == 1
    assert place.runs("slow") == {"1": 4}


def test_signal_while_the_app_is_imported(place: Place) -> None:
    place.module(CODE + "\nif IN_WORKER:\n    note('start', 'import')\n    wait_for('go')\n")
    worker = place.worker(1)
    place.await_start("import")
    worker.signal(signal.SIGTERM)
    place.touch("go")
    assert worker.wait() == 0


def test_idle_worker_stops_at_once(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker(2)
    assert module.fine.delay(1).get(timeout=20) == 1
    before = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - before < 2
    assert not tree(worker.pid)


def test_max_tasks_per_child(place: Place) -> None:
    module = place.module(CODE)
    results = module.pid.delay_many(range(25))
    worker = place.burst(1, max_tasks_per_child=10, timeout=30)
    pids = results.get(timeout=1)
    assert sorted(pids.count(pid) for pid in set(pids)) == [5, 10, 10]
    assert set(place.runs("pid").values()) == {1}
    assert "exited" not in worker.log
    place.check()


def test_burst_ends_when_nothing_is_due(place: Place) -> None:
    module = place.module(CODE)
    assert place.burst(2).process.returncode == 0
    results = module.fine.delay_many(range(100))
    place.burst(2)
    assert results.get(timeout=1) == list(range(100))


def test_no_head_of_line_blocking(place: Place) -> None:
    """P7: what stands behind a long task in one lease is started elsewhere."""
    module = place.module(
        CODE,
        """
        @app.task
        def mixed(n):
            note("start", "mixed", n)
            if n == "long":
                wait_for("go")
            return n
        """,
        poll_interval=5,
    )
    warm = module.mixed.delay_many(range(3000))
    worker = place.worker(2)
    warm.wait(timeout=20)
    module.mixed.delay_many(["long", *range(3000, 3100)])  # one lease: they were quick so far
    long = place.await_start("mixed", "long")
    eventually(lambda: len(place.runs("mixed")) == 3101, timeout=5)
    late = [mark.at - long.at for mark in place.marks("start", "mixed") if mark.at > long.at]
    assert max(late) < 2.5  # half of what a look would take that nobody asked for
    place.touch("go")
    assert worker.stop() == 0
    assert set(place.runs("mixed").values()) == {1}
    place.check()


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_a_last_word_that_may_have_been_written_ends_it_well(place: Place, pool: str) -> None:
    """Its commit broke as the server went away: the next worker finds whether we are gone."""
    module = place.module("@app.task\ndef add(n):\n    return n\n")
    unknown = """
        from respool.engines.postgres.engine import PostgresEngine
        from respool.engines.sqlite.engine import SQLiteEngine
        from respool.errors import AppendUnknown

        def drop_worker(self, worker):
            raise AppendUnknown("the connection broke at the COMMIT")

        SQLiteEngine.drop_worker = PostgresEngine.drop_worker = drop_worker
        """
    worker = place.worker(1, before=unknown, pool=pool)
    assert module.add.delay(1).get(timeout=20) == 1
    assert worker.stop() == 0, worker.log
    worker.said("broke at the COMMIT")


def test_a_worker_that_is_declared_dead_again_and_again_rests_and_hears_signals(place: Place) -> None:
    place.module(CODE)
    deposed = (
        "import respool.worker.supervisor as s\ndef loop(self): raise s.Deposed\ns.Supervisor._loop = loop"
    )
    worker = place.worker(1, before=deposed + "\n")
    worker.said("it starts again as another in 2 s")
    times = [line.rpartition("another")[2] for line in worker.log.splitlines() if "declared dead" in line]
    assert times == ["", " in 1 s", " in 2 s"]
    assert worker.stop() == 0
    assert "declared dead" not in worker.log.splitlines()[-1]
