"""Batches under real workers: how they form over time, and what becomes of them in bad times."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from tests.worker.support import Place, eventually, on_each_engine, on_every_engine
from tests.worker.test_hazards import FakeSlot, _executor, app

from respool import App
from respool.delivery.model import Lease
from respool.errors import TimeLimitExceeded, WorkerLost
from respool.replay import dead_letters
from respool.worker import batching
from respool.worker.attending import lower_bound

assert app  # a fixture

CODE = """
@app.task(batch=10, batch_wait=0.4)
def wait(items):
    note("batch", "wait", len(items))
    for item in items:
        note("start", "wait", item)
    return items


@app.task(batch=5, batch_wait=60)
def long_wait(items):
    note("batch", "long_wait", len(items))
    for item in items:
        note("start", "long_wait", item)
    return items


@app.task
def quick(n):
    note("start", "quick", n)
    return n


@app.task
def long(n):
    with noted("long", n):
        wait_for("go")
    return n


@app.task(queue="other")
def other(n):
    note("start", "other", n)


@app.task(batch=8, max_deliveries=2)
def deadly(items):
    for item in items:
        note("start", "deadly", item)
    note("batch", "deadly", len(items))
    if 3 in items:
        die()
    return items


@app.task(batch=8, time_limit=0.5)
def stuck(items):
    note("batch", "stuck", len(items))
    if 3 in items:
        time.sleep(60)
    return items


@app.task(batch=8, acks_late=False)
def once_only(items):
    note("batch", "once_only", len(items))
    die()


def dies_of(n):
    if n == 3 and IN_WORKER:
        die()
    return str(n % 2)


@app.task(batch=8, batch_key=dies_of, max_deliveries=2)
def keyed(items):
    return items


@app.task(max_concurrency=100, limit_key=dies_of, acks_late=False)
def limited(n):
    return n
"""


def batches(place: Place, name: str) -> list[int]:
    return [int(mark.key) for mark in place.marks("batch", name)]


@on_each_engine
def test_a_batch_forms_over_time(place: Place) -> None:
    """Calls that come one by one share a run, and none waits longer than `batch_wait` and a little."""
    module = place.module(CODE)
    place.worker(1).said("serves")
    sent = time.monotonic()
    results = [module.wait.delay(n) for n in range(4)]
    assert [r.get(timeout=20) for r in results] == list(range(4))
    (mark,) = place.marks("batch", "wait")
    assert mark.key == "4"
    assert mark.at - sent >= 0.4


def test_a_full_batch_waits_for_nothing(place: Place) -> None:
    module = place.module(CODE)
    place.worker(1).said("serves")
    results = [module.long_wait.delay(n) for n in range(5)]
    assert [r.get(timeout=20) for r in results] == list(range(5))
    assert batches(place, "long_wait") == [5]


def test_other_calls_of_the_queue_run_while_a_batch_waits(place: Place) -> None:
    module = place.module(CODE)
    place.worker(1).said("serves")
    waiting = [module.long_wait.delay(n) for n in range(4)]
    eventually(lambda: place.counts().returned == 4, "four wait")
    for n in range(5):
        assert module.quick.delay(n).get(timeout=20) == n
    assert {r.state for r in waiting} == {"PENDING"}
    waiting.append(module.long_wait.delay(4))
    assert [r.get(timeout=20) for r in waiting] == list(range(5))
    assert batches(place, "long_wait") == [5]


def test_a_batch_that_waits_holds_up_no_other_queue(place: Place) -> None:
    module = place.module(CODE)
    place.worker(1).said("serves")
    waiting = [module.long_wait.delay(n) for n in range(3)]
    eventually(lambda: place.counts().returned == 3, "three wait")
    module.other.delay(1)
    place.await_start("other", "1")
    waiting += [module.long_wait.delay(n) for n in (3, 4)]
    assert [r.get(timeout=20) for r in waiting] == list(range(5))
    assert batches(place, "long_wait") == [5]


@on_every_engine
def test_processes_and_workers_share_what_waits(place: Place) -> None:
    """Whoever takes a call takes along those that wait already: it is one batch, wherever they came in."""
    module = place.module(CODE)
    for _ in range(2):
        place.worker(2).said("serves")
    results = []
    for n in range(5):
        results.append(module.long_wait.delay(n))
        if n < 4:
            eventually(lambda: place.counts().returned == len(results), f"{n + 1} wait")
    assert [r.get(timeout=20) for r in results] == list(range(5))
    assert batches(place, "long_wait") == [5]


@on_each_engine
def test_what_waits_goes_back_when_the_worker_stops(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker(2)
    results = [module.long_wait.delay(n) for n in range(3)]
    eventually(lambda: place.counts().returned == 3, "three wait")
    assert worker.stop() == 0, worker.log
    counts = place.counts()
    assert (counts.leased, counts.returned + counts.pending) == (0, 3)
    assert not place.runs("long_wait")
    assert {r.state for r in results} == {"PENDING"}
    place.burst(1)
    assert [r.get(timeout=20) for r in results] == list(range(3))
    place.check()


def test_what_waits_outlives_its_worker(place: Place) -> None:
    """It is held by nobody: a dead worker leaves nothing to take over, and nobody to blame."""
    module = place.module(CODE)
    worker = place.worker(1)
    module.long_wait.delay_many(range(3))
    eventually(lambda: place.counts().returned == 3, "three wait")
    worker.kill_group()
    place.worker(1)
    module.long_wait.delay_many(range(3, 5))
    eventually(place.idle, "all done")
    assert place.runs("long_wait") == Counter({str(n): 1 for n in range(5)})
    assert batches(place, "long_wait") == [5]
    place.check()


def test_p7_a_long_call_gives_back_what_waits_behind_it(place: Place) -> None:
    """Whoever runs something long must not keep a batch that forms."""
    module = place.module(CODE)
    place.worker(2).said("serves")
    waiting = [module.long_wait.delay(n) for n in range(3)]
    eventually(lambda: place.counts().returned == 3, "three wait")
    for n in range(2):
        module.long.delay(n)
    place.await_start("long", "0")
    place.await_start("long", "1")
    eventually(lambda: place.counts().returned == 3, "held by nobody, while both run something long")
    place.touch("go")
    waiting += [module.long_wait.delay(n) for n in (3, 4)]
    assert [r.get(timeout=20) for r in waiting] == list(range(5))
    assert place.runs("long_wait") == Counter({str(n): 1 for n in range(5)})


@on_every_engine
def test_p6_a_batch_that_kills_its_process_is_run_singly_and_only_the_culprit_is_buried(place: Place) -> None:
    module = place.module(CODE)
    place.worker(1)
    results = module.deadly.delay_many(range(8))
    values = list(results.iterate(30, propagate=False))
    assert isinstance(values[3], WorkerLost)
    assert [v for n, v in enumerate(values) if n != 3] == [n for n in range(8) if n != 3]
    assert batches(place, "deadly")[0] == 8
    runs = place.runs("deadly")
    assert runs["3"] == 3, "once together, which charges nobody, then alone until max_deliveries"
    assert all(runs[str(n)] == 2 for n in range(8) if n != 3)
    (dead,) = dead_letters(place.app)
    assert dead.parked.deliveries == 2
    place.check()


def test_h6_a_worker_that_died_with_a_batch_charges_nobody(place: Place) -> None:
    code = """
@app.task(batch=8, max_deliveries=1000)
def takes_all(items):
    for item in items:
        note("start", "takes_all", item)
    if once("once"):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return items
"""
    module = place.module(code)
    place.touch("once")
    worker = place.worker(1)
    results = module.takes_all.delay_many(range(8))
    worker.process.wait(20)
    place.worker(1)
    assert results.get(timeout=20) == list(range(8))
    assert not dead_letters(place.app)
    assert all(n == 2 for n in place.runs("takes_all").values())


def test_a_time_limit_is_the_batchs_and_only_the_slow_call_fails(place: Place) -> None:
    module = place.module(CODE)
    place.worker(1)
    results = module.stuck.delay_many(range(8))
    values = list(results.iterate(30, propagate=False))
    assert isinstance(values[3], TimeLimitExceeded)
    assert [v for n, v in enumerate(values) if n != 3] == [n for n in range(8) if n != 3]
    assert batches(place, "stuck")[0] == 8
    place.check()


def test_h7_a_batch_that_may_run_once_is_buried_whole(place: Place) -> None:
    module = place.module(CODE)
    place.worker(1)
    results = module.once_only.delay_many(range(8))
    values = list(results.iterate(30, propagate=False))
    assert all(isinstance(value, WorkerLost) for value in values)
    assert batches(place, "once_only") == [8]


@pytest.mark.parametrize("name", ["keyed", "limited"])
def test_p6_a_process_that_dies_of_a_call_that_was_not_begun(place: Place, name: str) -> None:
    """Its batch, or its limit, was asked for: what was claimed is looked at singly, and one is buried."""
    module = place.module(CODE)
    results = getattr(module, name).delay_many(range(8))
    place.worker(1)
    values = list(results.iterate(30, propagate=False))
    assert isinstance(values[3], WorkerLost)
    assert [v for n, v in enumerate(values) if n != 3] == [n for n in range(8) if n != 3]
    place.check()


# Shared memory


def _batch_of(app: App, slot: Any, size: int, run: Any) -> tuple[Any, Any, Lease]:
    app.tasks.clear()
    app.task(name="task", batch=size)(run)
    executor, service = _executor(app, slot)
    executor.patient = False
    executor.sizers[service.group.id].want = 10
    lease = executor.exchange.next(service, None)
    assert lease is not None
    return executor, service, lease


def test_h2_the_slot_says_which_part_of_a_batch_runs_and_what_is_finished(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        batching, "UNSETTLED", 1 << 62
    )  # nothing is settled before, however slow this machine
    slot, seen = FakeSlot(), []

    def task(items: list[int]) -> list[int]:
        snapshot = slot.snapshot()
        assert snapshot is not None
        lo = snapshot.rows[0]
        running = [pos - lo for pos in snapshot.running]
        seen.append((len(snapshot.through), running, sorted(pos - lo for pos, _ in snapshot.results)))
        if 6 in items:
            raise ValueError("six")
        return items

    executor, service, lease = _batch_of(app, slot, 4, task)
    executor.batching.run(service, lease)
    all_ = list(range(10))
    assert seen == [
        (0, all_[:4], []),
        (4, all_[4:8], all_[:4]),
        (4, [4, 5], all_[:4]),
        (6, [6, 7], all_[:6]),
        (6, [6], all_[:6]),
        (7, [7], all_[:6]),
        (8, [8, 9], [*all_[:6], 7]),
    ]


def test_h3_a_batch_is_started_before_its_bound_is_looked_at(app: App) -> None:
    """Whatever moment between two of the child's steps the supervisor comes at, nothing runs twice."""
    given = 0
    for moment in range(150):
        slot: Any = FakeSlot()
        ran: list[int] = []

        def task(items: list[int]) -> None:
            ran.extend(row[0] for row, _ in executor.run.batch)  # noqa: B023

        executor, service, lease = _batch_of(app, slot, 4, task)
        words: Any = slot.words
        steps, returned = [0], []
        seen: list[Any] = []

        def supervisor_comes(word: int) -> None:
            """It looks while the first batch runs, and acts on that some moments later."""
            steps[0] += 1  # noqa: B023
            words.after_read = words.before_write = lambda word: None  # noqa: B023
            if not seen:  # noqa: B023
                now = slot.snapshot()  # noqa: B023
                seen.extend([now] if now is not None and now.running else [])  # noqa: B023
            elif steps[0] == moment:  # noqa: B023
                child: Any = SimpleNamespace(slot=slot)  # noqa: B023
                returned.extend(lower_bound(child, seen[0]))  # noqa: B023
                return
            words.after_read = words.before_write = supervisor_comes  # noqa: B023

        words.after_read = words.before_write = supervisor_comes
        executor.batching.run(service, lease)
        assert not set(returned) & set(ran), f"given back and run, at step {moment}"
        assert len(ran) == len(set(ran))
        given += len(returned)
    assert given, "it came while a batch ran"
