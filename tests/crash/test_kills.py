"""SIGKILL to real processes at every stage of a task, held against a record that is kept outside."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tests.crash.kills import Rampage
from tests.crash.producers import Producers
from tests.worker.support import (
    FINE_AND_SLOW,
    Place,
    WorkerProcess,
    eventually,
    on_each_engine,
    tree,
)

from respool.errors import WorkerLost
from respool.replay import dead_letters

KILLS = int(os.environ.get("RESPOOL_KILLS", "30"))

STAGED = """
@app.task
def task(n):
    with noted("task", n):
        made.delay(n)
        if n == 50 and once("run"):
            kill()
        return [n, "v"]


@app.task
def made(n):
    note("start", "made", n)


@app.task
def large(n):
    with noted("large", n):
        return b"x" * 600_000


VICTIM = os.environ.get("VICTIM", "child")


def kill():
    if VICTIM == "child":
        die()
    elif VICTIM == "supervisor":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    else:
        os.killpg(os.getpgrp(), signal.SIGKILL)


if IN_WORKER:
    if app.url.startswith("sqlite"):
        from respool.engines.sqlite import state
        from respool.engines.sqlite.engine import SQLiteEngine as Engine
    else:
        from respool.engines.postgres import state
        from respool.engines.postgres.engine import PostgresEngine as Engine
    from respool.worker import page
    from respool.worker.executor import Executor

    def before(owner, name, stage, when=lambda *a: True):
        inner = getattr(owner, name)
        def wrapped(*args, **kwargs):
            if when(*args) and once(stage):
                kill()
            return inner(*args, **kwargs)
        setattr(owner, name, wrapped)

    def after(owner, name, stage, when=lambda *a: True):
        inner = getattr(owner, name)
        def wrapped(*args, **kwargs):
            answer = inner(*args, **kwargs)
            if when(*args) and once(stage):
                kill()
            return answer
        setattr(owner, name, wrapped)

    settles = lambda self, reads, *a: bool(reads.leases)
    before(page.Slot, "claimed", "granted")
    after(page.Slot, "claimed", "claimed")
    before(page.Slot, "add_result", "returned")
    after(page.Slot, "add_result", "kept")
    before(Executor, "settle_part", "settling-part")
    after(Executor, "settle_part", "settled-part")
    before(Engine, "transact", "settling", settles)
    after(state, "write_change", "writing")
    after(Engine, "transact", "settled", settles)
    before(page.Slot, "forget_verdicts", "forgetting")

    claimed = page.Slot.claimed
    def torn(self, lease, group, rows, began):
        if once("half-claimed"):
            self.words[page.SEQ] += 1
            self.words[page.LEASE] = lease
            self.words[page.STARTED] = 1
            kill()
        claimed(self, lease, group, rows, began)
    page.Slot.claimed = torn
"""
STAGES = {  # how many runs may be repeated where one process was killed
    "granted": 0,
    "half-claimed": 0,
    "claimed": 0,
    "run": 1,
    "returned": 1,
    "kept": 1,
    "settling-part": 0,
    "settled-part": 0,
    "settling": 0,
    "writing": 0,
    "settled": 0,
    "forgetting": 0,
}


VICTIMS = [
    *((stage, "child") for stage in STAGES),
    *((stage, "supervisor") for stage in ("claimed", "run", "kept", "settled")),
    *((stage, "group") for stage in ("half-claimed", "run", "returned", "writing")),
]


@on_each_engine
@pytest.mark.parametrize(("stage", "victim"), VICTIMS)
def test_kill_at_a_stage(place: Place, stage: str, victim: str) -> None:
    module = place.module(STAGED)
    results = module.task.delay_many(range(100))
    if "part" in stage or stage == "forgetting":
        results_large = module.large.delay_many(range(8))  # have no room in shared memory: settled at once
    place.touch(stage)
    worker = place.worker(1, env={"VICTIM": victim})
    eventually(lambda: not (place.folder / stage).exists(), stage)
    if victim != "child":
        worker.wait()
        worker = place.worker(1)
    assert results.get(timeout=20) == [[n, "v"] for n in range(100)]
    eventually(place.idle)
    runs = place.runs("task")
    assert set(runs) == {str(n) for n in range(100)}
    assert sum(runs.values()) - 100 <= STAGES[stage]
    assert place.runs("made") == {str(n): 1 for n in range(100)}
    if "part" in stage or stage == "forgetting":
        assert {len(value) for value in results_large.get(timeout=20)} == {600_000}
        assert sum(place.runs("large").values()) <= 9
    assert not dead_letters(place.app)
    assert worker.stop() == 0
    place.check()


BATCHED = """
@app.task(batch=8)
def task(numbers):
    for n in numbers:
        note("start", "task", n)
    for n in numbers:
        made.delay(n)
    if 50 in numbers and once("run"):
        kill()
    if len(numbers) > 1 and 20 in numbers:
        raise ValueError("not with others")
    if len(numbers) == 2 and once("part"):
        kill()
    return [[n, "v"] for n in numbers]


if IN_WORKER:
    before(page.Slot, "add_results", "returned")
    after(page.Slot, "add_results", "kept")
"""
SPLIT = 2 * 14 + 8  # 4, 2, 1, 1, 2 and 4 calls run again until 20 stands alone; twice where the kill was amid
BATCH_STAGES = {  # how many runs may be repeated: those of the batch, or of the part of it, that was running
    "claimed": 0,
    "run": 8,
    "part": 2,
    "returned": 8,
    "kept": 8,
    "settling": 0,
    "writing": 0,
    "settled": 0,
}


@on_each_engine
@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        *((stage, "child") for stage in BATCH_STAGES),
        ("run", "group"),
        ("kept", "group"),
        ("part", "supervisor"),
    ],
)
def test_kill_at_a_stage_of_a_batch(place: Place, stage: str, victim: str) -> None:
    """Nothing is lost, and nothing of what was finished runs again; nobody is buried for its neighbours."""
    hooks = STAGED[STAGED.index("VICTIM =") :]
    module = place.module(hooks, BATCHED, "@app.task\ndef made(n):\n    note('start', 'made', n)\n")
    place.touch(stage)
    results = module.task.delay_many(range(100))
    worker = place.worker(1, env={"VICTIM": victim})
    eventually(lambda: not (place.folder / stage).exists(), stage)
    if victim != "child":
        worker.wait()
        worker = place.worker(1)
    assert results.get(timeout=30) == [[n, "v"] for n in range(100)]
    eventually(place.idle)
    runs = place.runs("task")
    assert set(runs) == {str(n) for n in range(100)}
    assert sum(runs.values()) - 100 <= BATCH_STAGES[stage] + SPLIT
    assert place.runs("made") == {str(n): 1 for n in range(100)}, (
        "what a run that was split sent, its parts send"
    )
    assert not dead_letters(place.app)
    assert worker.stop() == 0
    place.check()


def test_large_result_is_not_lost_between_run_and_settlement(place: Place) -> None:
    """H2: what finds no room in shared memory is not finished until it is settled."""
    module = place.module(STAGED)
    result = module.large.delay(1)
    place.touch("settling")
    place.burst()
    assert len(result.get(timeout=1)) == 600_000


def test_replaced_child_does_not_overwrite_what_its_predecessor_left(place: Place) -> None:
    """Leases given back keep their numbers; no child may use one of them again."""
    module = place.module(
        """
        @app.task
        def task(n):
            note("start", "task", n)
            if n % 10 == 5 and once(f"kill-{n}"):
                die()
            time.sleep(0.001)
        """
    )
    for n in range(5, 100, 10):
        place.touch(f"kill-{n}")
    module.task.delay_many(range(100))
    place.burst(1, timeout=60)
    runs = place.runs("task")
    assert set(runs) == {str(n) for n in range(100)}
    assert sum(runs.values()) <= 110
    place.check()


# Blame

BLAMED = (
    FINE_AND_SLOW
    + """
@app.task
def fatal(n):
    note("start", "fatal", n)
    die()
"""
)


def test_poison_among_innocents(place: Place) -> None:
    module = place.module(BLAMED)
    fine = [module.fine.delay_many(range(100))]
    fatal = module.fatal.delay(1)
    fine.append(module.fine.delay_many(range(100, 200)))
    place.burst(2)
    with pytest.raises(WorkerLost, match=r"SIGKILL \(signal 9\)"):
        fatal.get(timeout=1)
    assert [a.how for a in fatal.history()] == ["lost", "lost", "lost"]
    assert all(time.time() - 60 < a.started <= a.ended for a in fatal.history())
    assert place.runs("fatal") == {"1": 3}
    assert fine[0].get(timeout=1) + fine[1].get(timeout=1) == list(range(200))
    assert set(place.runs("fine").values()) == {1}
    place.check()


@on_each_engine
def test_three_deaths_of_a_whole_worker_bury_no_innocents(place: Place) -> None:
    """H6: the first charges nobody; what ran is granted singly from then on, and only that is charged."""
    module = place.module(BLAMED)
    slow = module.slow.delay(1)
    fine = module.fine.delay_many(range(200))
    for death in range(3):
        worker = place.worker(1)
        eventually(lambda: place.runs("slow")["1"] == death + 1)  # noqa: B023
        worker.kill_group()
    place.worker(2)
    assert fine.get(timeout=20) == list(range(200))
    eventually(lambda: place.runs("slow")["1"] == 4)
    assert slow.find().state != "FAILURE"
    assert not dead_letters(place.app)
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    assert [a.how for a in slow.history()] == ["lost", "lost", "lost", "done"]
    assert set(place.runs("fine").values()) == {1}


def test_call_that_takes_whole_workers_with_it_is_buried_at_last(place: Place) -> None:
    module = place.module(BLAMED)
    slow = module.slow.delay(1)
    for death in range(4):
        worker = place.worker(1)
        eventually(lambda: place.runs("slow")["1"] == death + 1)  # noqa: B023
        worker.kill_group()
    place.burst(1)
    with pytest.raises(WorkerLost, match="worker was killed"):
        slow.get(timeout=1)
    assert place.runs("slow") == {"1": 4}
    place.check()


@on_each_engine
def test_successor_waits_for_nothing(place: Place) -> None:
    """H4: on one host a lock says at once that a worker is dead."""
    module = place.module(BLAMED, worker_ttl=60)
    module.slow.delay(1)
    worker = place.worker(1)
    place.await_start("slow", "1")
    worker.kill_group()
    before = time.monotonic()
    place.touch("go-1")
    place.burst(1)
    assert time.monotonic() - before < 5
    assert place.runs("slow") == {"1": 2}


# Producers


@on_each_engine
def test_producers_killed_in_mid_append(place: Place) -> None:
    """P1: what was acknowledged is there, once; what was not is there at most once."""
    assert Producers(place, 1).go(lambda kills: kills >= 6) >= 6


# At random


@pytest.mark.timeout(100 + 6 * KILLS)
@pytest.mark.parametrize(
    ("place", "part"), [("sqlite", 0), ("sqlite", 1), ("postgres", 2)], indirect=["place"]
)
def test_random_kills(place: Place, part: int) -> None:
    rampage = Rampage(place, seed=int(os.environ.get("RESPOOL_SEED", "7")) + part)
    rampage.go(lambda tally: tally.kills >= KILLS // 2)
    rampage.verify()


@on_each_engine
def test_worker_that_starts_while_others_die(place: Place) -> None:
    """P3 holds when those who clear up after a dead worker are killed over it."""
    module = place.module(BLAMED)
    module.slow.delay_many(range(4))
    first, second = place.worker(2), place.worker(2)
    eventually(lambda: len(place.runs("slow")) == 4)
    fine = module.fine.delay_many(range(500))
    successors = _kill_and_start(place, [first, second])
    for n in range(4):
        place.touch(f"go-{n}")
    assert fine.get(timeout=30) == list(range(500))
    eventually(place.idle)
    assert place.runs("slow") == {str(n): 2 for n in range(4)}
    assert set(place.runs("fine").values()) == {1}
    assert [worker.stop() for worker in successors] == [0, 0]
    place.check()


def test_ten_workers_of_which_two_are_killed(place: Place) -> None:
    """P3: each call runs once, but for those that the two ran as they died; nobody else is disturbed."""
    module = place.module(BLAMED)
    held = module.slow.delay_many(range(10))
    workers = [place.worker(1) for _ in range(10)]
    eventually(lambda: len(place.runs("slow")) == 10, "each of them runs one", 60)
    fine = [module.fine.delay_many(range(1000))]
    for worker in workers[:2]:
        worker.kill_group()
    fine.append(module.fine.delay_many(range(1000, 2000)))
    for n in range(10):
        place.touch(f"go-{n}")
    assert held.get(timeout=60) == list(range(10))
    assert fine[0].get(timeout=60) + fine[1].get(timeout=60) == list(range(2000))
    eventually(place.idle)
    assert sorted(place.runs("slow").values()) == [1] * 8 + [2] * 2
    assert set(place.runs("fine").values()) == {1}
    assert len({mark.pid for mark in place.marks("start")}) >= 8
    eventually(lambda: len(place.registered()) == 8)
    for worker in workers[2:]:
        worker.signal(signal.SIGTERM)
    assert [worker.wait(60) for worker in workers[2:]] == [0] * 8
    place.check()


def _kill_and_start(place: Place, workers: list[WorkerProcess]) -> list[WorkerProcess]:
    new = [place.worker(1) for _ in workers]
    for worker in workers:
        for child in tree(worker.pid):
            os.kill(child, signal.SIGSTOP)
        worker.kill_group()
    return new
