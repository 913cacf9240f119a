"""Workers that die, and who clears up after them: those of other queues, apps and settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.worker.support import Place, eventually, on_each_engine

from respool import App
from respool.delivery.claim import Request, claim
from respool.engines.base import Group, Reads, Registration, Worker
from respool.errors import EngineUnavailable, StreamBroken, StreamUnavailable, WorkerLost
from respool.worker import page as p
from respool.worker.page import SLOT_BYTES, WorkerFile
from respool.worker.rules import deliveries_of, patience, told
from respool.worker.takeover import Watch, file_of

SETTINGS = {"beat": 1.0, "worker_ttl": 10.0}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App("t", url=f"sqlite:///{tmp_path / 'log.db'}") as made:
        yield made


# What its tasks allow

ORDERED = """
app.queue("ord", ordered=True)
app.queue("mail")


@app.task(queue="ord", key=lambda n: "k", max_deliveries=1, on_dead="block")
def once(n):
    note("start", "once", n)
    os.killpg(os.getpgrp(), signal.SIGKILL)


@app.task(queue="mail")
def mail(n):
    return n
"""


@on_each_engine
@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_dead_worker_is_cleared_up_after_by_its_own_rules(place: Place, pool: str) -> None:
    """P6, P8: by one that serves other queues, and knows nothing of these tasks."""
    module = place.module(ORDERED)
    first, second = module.once.delay(1), module.once.delay(2)
    other = place.worker(1, queues=["mail"])
    place.children()
    place.worker(1, queues=["ord"], pool=pool).wait()
    other.said("is dead: took over")
    with pytest.raises(WorkerLost, match="its worker was killed while it ran once"):
        first.get(timeout=5)
    assert place.counts(queue="ord").parked["dead"] == 1
    place.worker(1, queues=["ord"], burst=True).wait()
    assert second.state == "PENDING", "the dead letter holds its key"
    assert place.runs("once") == {"1": 1}
    assert module.mail.delay(1).get(timeout=20) == 1
    assert other.stop() == 0
    place.check()


def _as_stored(app: App, info: dict[str, Any]) -> Worker:
    """Return a worker as its row says it."""
    id = app.engine.register(Registration("t", "w", "here", "boot", os.getpid(), 0.0, info))
    return next(worker for worker in app.engine.workers() if worker.id == id)


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {1: {}},
        {1: {"a": (3, False)}, 2: {"a": (3, False), "b": (1, False)}},
        {1: {"a": (10, True), "b": (10, True), "c": (3, False)}},
        {1: {"": (5, True)}, 7: {"": (3, False)}},
    ],
)
def test_rules_of_a_row_are_those_of_the_worker(app: App, rules: Any) -> None:
    said = deliveries_of(_as_stored(app, told(SETTINGS, rules)))
    assert said is not None
    for group, tasks in rules.items():
        for task, rule in tasks.items():
            known = said.get(group, {})
            assert known.get(task, known.get("", (3, False))) == rule
    assert deliveries_of(_as_stored(app, {})) is None


def test_a_row_that_says_what_is_usual_is_short() -> None:
    """It goes with each beat."""
    tasks = {f"task{n}": (3, False) for n in range(1000)}
    assert told(SETTINGS, dict.fromkeys(range(10), tasks))["deliveries"] == []
    tasks = dict.fromkeys(tasks, (10, True))
    assert told(SETTINGS, {1: {**tasks, "x": (1, False)}})["deliveries"] == [
        [1, {"": (10, True), "x": (1, False)}]
    ]


# How long it may be silent


def test_worker_may_be_silent_for_as_long_as_it_said(app: App) -> None:
    """One of another app that beats more seldom than ours is not taken for dead too soon."""
    slow = _as_stored(app, told({"beat": 20.0, "worker_ttl": 60.0}, {}))
    quick = _as_stored(app, told({"beat": 1.0, "worker_ttl": 10.0}, {}))
    assert [patience(worker, SETTINGS) for worker in (slow, quick)] == [60, 10]
    assert patience(slow, {"beat": 30.0, "worker_ttl": 90.0}) == 3
    assert patience(_as_stored(app, {}), {"beat": 2.0, "worker_ttl": 9.0}) == 5, "as long as we may be"
    watch = Watch(app.engine, "another boot", {"beat": 4.0, "worker_ttl": 40.0}, {})
    left: list[set[int]] = []
    for _ in range(16):
        watch.look(0, beaten=True)
        left.append({worker.id for worker in app.engine.workers()} & {slow.id, quick.id})
    assert left == [{slow.id, quick.id}] * 3 + [{slow.id}] * 12 + [set()]


# What it leaves


def _claimed(app: App) -> tuple[Group, WorkerFile]:
    """Make a worker that has finished a call and runs another; return its group and its file."""

    @app.task
    def task(n: int) -> int:
        return n

    task.delay_many(range(3))
    engine = app.engine
    engine.bell  # noqa: B018 - makes the folder
    worker = _as_stored(app, told(SETTINGS, {}))
    (group,) = engine.groups()
    number = p.lease_number(worker.id, 0) + 1
    reads = Reads(group.id, (), positions=True)
    lease = engine.transact(reads, lambda v, c: claim(v, c, Request(2, worker.id, 0, number, 1.0)))
    file = WorkerFile(file_of(engine, worker.id), 1, create=True)
    slot = file.slot(0)
    slot.claimed(lease.id, group.id, list(range(lease.spans[0].lo, lease.spans[0].hi)), 0.0)
    slot.words[p.STARTED], slot.words[p.FINISHED] = 2, 1
    return group, file


def test_takeover_that_fails_half_way_is_tried_again_with_what_the_file_says(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H2: else a run that had finished is granted again."""
    group, file = _claimed(app)
    file.close()
    watch = Watch(app.engine, "boot", SETTINGS, {})
    for what in ("transact", "drop_worker"):
        with monkeypatch.context() as patched:
            patched.setattr(app.engine, what, _unavailable)
            with pytest.raises(EngineUnavailable):
                watch.look(0, beaten=False)
        assert file.path.exists(), what
    assert watch.look(0, beaten=False) == 1
    assert not file.path.exists()
    counts = app.engine.counts(group)
    assert (counts.pending, counts.leased, counts.returned) == (1, 0, 1), "what had finished is done"


def test_takeover_of_a_call_whose_log_is_gone(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """K3: nobody can tell its task any more; what the worker held goes back all the same."""
    group, file = _claimed(app)
    file.close()
    monkeypatch.setattr(app.engine, "rows", _raise(StreamBroken("its log is gone")))
    assert Watch(app.engine, "boot", SETTINGS, {}).look(0, beaten=False) == 1
    counts = app.engine.counts(group)
    assert (counts.leased, counts.returned) == (0, 1)


def test_worker_whose_log_is_out_of_reach_holds_up_no_other(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """P3: it is taken over once its call can be judged by its own rules; others, and the rest, at once."""
    group, file = _claimed(app)
    worker = int(file.path.name.rpartition("-")[2])
    number = p.lease_number(worker, 0) + 2
    reads = Reads(group.id, (), positions=True)
    app.engine.transact(reads, lambda v, c: claim(v, c, Request(1, worker, 0, number, 1.0)))
    file.close()
    second = _as_stored(app, {})
    WorkerFile(file_of(app.engine, second.id), 1, create=True).close()
    watch, rows = Watch(app.engine, "boot", SETTINGS, {}), app.engine.rows
    monkeypatch.setattr(app.engine, "rows", _raise(StreamUnavailable("nobody leads it")))
    assert watch.look(0, beaten=False) == 1
    assert [each.id for each in app.engine.workers()] == [worker]
    counts = app.engine.counts(group)
    assert (counts.leased, counts.returned) == (2, 1), "what it ran waits, with all of that lease"
    assert file.path.exists()
    assert watch.look(0, beaten=False) == 0
    assert caplog.text.count("cannot be taken over: nobody leads it") == 1
    monkeypatch.setattr(app.engine, "rows", rows)
    eventually(lambda: watch.look(0, beaten=False))
    counts = app.engine.counts(group)
    assert (counts.leased, counts.returned) == (0, 2)


def _raise(error: Exception) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error

    return refuse


def _unavailable(*args: Any, **kwargs: Any) -> Any:
    raise EngineUnavailable("out of reach")


def test_file_of_a_worker_has_no_holes(tmp_path: Path) -> None:
    """Touching one on a disk that has become full kills the process: SIGBUS."""
    file = WorkerFile(tmp_path / "bells" / "worker-1", 5, create=True)
    file.hold()
    found = os.fstat(file.fd)
    assert found.st_size == len(file.map) == 5 * SLOT_BYTES
    os.fsync(file.fd)  # some file systems count blocks late
    assert os.fstat(file.fd).st_blocks * 512 >= found.st_size
    file.close(remove=True)


def test_file_of_a_worker_from_before_a_reboot_goes_with_it(app: App) -> None:
    group, file = _claimed(app)
    file.close()
    watch = Watch(app.engine, "booted again", {"beat": 1.0, "worker_ttl": 3.0}, {})
    looks = [watch.look(0, beaten=True) for _ in range(11)]
    assert looks == [0] * 10 + [1]
    assert not file.path.exists()
    counts = app.engine.counts(group)
    assert (counts.pending, counts.leased, counts.returned) == (1, 0, 2), "its last words are not trusted"


def test_file_of_a_silent_worker_that_has_processes_still_stays(app: App) -> None:
    _, file = _claimed(app)
    held = WorkerFile(file.path, 0)  # as a child that stands still has it
    held.hold()
    file.close()
    watch = Watch(app.engine, "seen from a container", {"beat": 5.0, "worker_ttl": 15.0}, {})
    assert sum(watch.look(0, beaten=True) for _ in range(4)) == 1
    assert file.path.exists()
    held.close(remove=True)
