"""One test a hazard (docs/hazards): which test fails without its rule.

| hazard | test |
|---|---|
| H1  write lock beside user code | `test_h1_*`, test_bad_days::test_task_that_holds_the_gil_… |
| H2  finished, not settled | crash/test_kills::test_kill_at_a_stage, `test_large_result_…`, `test_h2_*` |
| H3  give-back race | `test_h3_*`, test_shutdown::test_no_head_of_line_blocking |
| H4  mass theft after an outage | `test_h4_*`, unit/test_liveness, test_bad_days::test_log_locked_… |
| H5  orphans keep starting | `test_h5_*`, test_bad_days::test_children_die_with_their_supervisor |
| H6  innocents buried | crash/test_kills (three deaths, poison), test_shutdown::test_killed_while_… |
| H7  at most once | `test_h7_*` |
| H8  calls of a run | test_outbox, `test_h8_*`, engines/test_conformance (fenced appends) |
| H9  "no row means done" can lie | test_tasks::test_result_ttl, test_outbox::test_replay_… |
| H10 offsets never come back | engines/test_conformance::test_offsets_never_come_back |
| H11 starvation | `test_h11_*`, unit/test_claim; lanes: unit/test_lanes, test_priority |
| H12 rolling deploy | test_bad_days::test_unknown_task_* |
| H13 ordered keys | test_order, engines/test_model (ordered queues) |
| H14 seek | unit/test_moving, crash/test_commands, engines/test_model::seek |
| H16 unique, full queues | engines/test_unique, engines/test_unique_model, test_pressure::test_h16_* |
| H18 blobs | engines/test_blobs, crash/test_blobs, transfer/test_kafka |
| H15 bodies | engines/test_retention: what_is_parked_pins_only_itself, a_dead_letter_is_shown_redriven_… |
| H17 soft limits, leader of a group commit | test_limits, `test_h17_*`, unit/test_producer |
| H19 time is not monotone in offset | engines/test_conformance::test_a_window_…, unit/test_replay |
| H20 two kinds of error | `test_h20_*`, crash/test_io_faults |
| S1  apsw only | `test_s1_*` |
| S2  versions, fork, mmap | `test_s2_*`, test_bad_days::test_call_made_in_a_process_… |
| S3  failed sync | crash/test_faultfs, crash/test_io_faults |
| S4  synced beats | `test_s4_*` |
| S5  numbers that come back | `test_s5_*`, engines/test_conformance::test_offsets_never_come_back |
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from tests.worker.support import FINE_AND_SLOW, SOURCES, Place, eventually, on_each_engine

from respool import App
from respool import clock as clock_module
from respool.clock import boottime_ns
from respool.delivery.claim import Request, claim
from respool.delivery.model import Lease, NewCall, Settlement, Verdict
from respool.delivery.settle import settle
from respool.delivery.spans import Span
from respool.engines.base import Reads, Registration
from respool.engines.sqlite import preparing
from respool.errors import (
    AppendError,
    AppendUnknown,
    EngineTooOld,
    EngineUnavailable,
    Refused,
    SoftTimeLimitExceeded,
    WorkerLost,
)
from respool.record import NO_META, new_head
from respool.replay import DeadFilter, redrive
from respool.running import current_run
from respool.sending import new_row
from respool.worker import executor as executor_module
from respool.worker import page as p
from respool.worker import run as run_module
from respool.worker import supervisor as supervisor_module
from respool.worker.aftermath import Aftermath
from respool.worker.attending import Attendant, keep_limits, lower_bound
from respool.worker.calling import Caller
from respool.worker.executor import Executor
from respool.worker.host import Woken
from respool.worker.options import WorkerOptions
from respool.worker.page import Slot, Snapshot, WorkerFile
from respool.worker.services import services
from respool.worker.supervisor import Supervisor
from respool.worker.takeover import Watch

CODE = (
    FINE_AND_SLOW
    + """
@app.task(max_deliveries=1)
def once_only(n):
    note("start", "once_only", n)
    if (HERE / f"die-{n}").exists():
        os.killpg(os.getpgrp(), signal.SIGKILL) if (HERE / "group").exists() else die()
    return n


@app.task
def fails(n):
    fine.delay(n)
    raise ValueError(n)
"""
)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App("t", url=f"sqlite:///{tmp_path / 'log.db'}") as made:
        yield made


# H1


def _traced(engine: Any, act: Callable[[], Any]) -> list[str]:
    """Return the statements that a call of the engine executes."""
    seen: list[str] = []

    def trace(cursor: Any, statement: str, bindings: Any) -> bool:
        seen.append(statement)
        return True

    for each in (engine._writer, engine._state):
        each.db.exec_trace = trace
    try:
        act()
    finally:
        for each in (engine._writer, engine._state):
            each.db.exec_trace = None
    return [statement for statement in seen if not statement.startswith(("SELECT", "PRAGMA"))]


def test_h1_what_is_written_beside_user_code_is_one_statement(app: App) -> None:
    engine = app.engine
    worker = engine.register(Registration("t", "w", "h", "b", 1, 0.0, {}))
    log = app.stream_of("queue", "default").logs[0]
    main = app.groups()[0].id
    rows = [new_row("shop", log, "x", b"", NO_META, None) for _ in range(3)]
    once = [new_row("shop", log, "x", b"", NO_META, None) for _ in range(2)]
    for act in (
        lambda: engine.append_row(new_row("shop", log, "x", b"", NO_META, None)),  # delay()
        lambda: engine.append_rows(rows),
        lambda: engine.append_unique(once[0], "shop/x/", None, None, None, None),
        lambda: engine.beat(worker, False, {}, synced=True),
        lambda: engine.set_progress(main, 1, b""),
        lambda: engine.append_run(log, "x", (b"", b""), None, b"0123456789abcdef", 1.0),
    ):
        statements = _traced(engine, act)
        assert len(statements) == 1, statements
        assert "BEGIN" not in statements[0]


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_h1_a_child_takes_the_lock_between_runs_only(place: Place, pool: str) -> None:
    module = place.module(
        CODE,
        """
        running = False


        @app.task
        def watched(n):
            global running
            running = True
            fine.delay(n)
            time.sleep(0.015)
            running = False
            return n


        if IN_WORKER:
            from respool.engines.sqlite.engine import SQLiteEngine
            transact = SQLiteEngine.transact

            def watch(self, *args, **kwargs):
                note("transact", "beside" if running else "between", threading.current_thread().name[:4])
                return transact(self, *args, **kwargs)

            SQLiteEngine.transact = watch
        """,
    )
    module.watched.delay_many(range(20))
    place.burst(1, pool=pool)
    assert place.marks("transact", "between")
    assert not place.marks("transact", "beside")
    assert {mark.key for mark in place.marks("transact")} == {"Main"}


# H2


class Words(list[int]):
    """A slot's words, with a look at each access: where two processes would be in each other's way."""

    def __init__(self, values: list[int]) -> None:
        super().__init__(values)
        self.before_read: Callable[[int], None] = lambda word: None
        self.after_read: Callable[[int], None] = lambda word: None
        self.before_write: Callable[[int], None] = lambda word: None

    def __getitem__(self, word: Any) -> Any:
        self.before_read(word)
        value = super().__getitem__(word)
        self.after_read(word)
        return value

    def __setitem__(self, word: Any, value: Any) -> None:
        self.before_write(word)
        super().__setitem__(word, value)


class FakeSlot(Slot):
    """A slot in plain memory."""

    def __init__(self) -> None:
        super().__init__(memoryview(bytearray(p.SLOT_BYTES)))
        self.words = Words([0] * 32)  # type: ignore[assignment]
        self.words[p.DEADLINE] = 1 << 62


@pytest.fixture
def whole_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is settled before a lease's end, however slow this machine is."""
    monkeypatch.setattr(executor_module, "UNSETTLED", 1 << 62)


def _executor(app: App, slot: Slot) -> tuple[Executor, Any]:
    """Return an executor, and a service with ten records to run."""
    app.tasks["task"].delay_many(range(10))
    return _executor_of(app, slot)


def _executor_of(app: App, slot: Slot, hold: float | None = None) -> tuple[Executor, Any]:
    host = SimpleNamespace(
        limited=lambda: None,
        busy=lambda b: None,
        watch=lambda: None,
        pause=time.sleep,
        between_leases=lambda: None,
    )
    executor = Executor(app.engine, services(app, None, None), 1, 0, slot, host, hold)
    current_run.set(None)
    return executor, executor.services[0]


def _lease(executor: Executor, service: Any) -> Lease:
    ((_, lo, hi),) = executor.engine.bounds(service.stream)
    lease = Lease(1, 1, 0, [Span(lo, hi)])
    executor.exchange.read(service, lease, 0.0)
    return lease


def _claimed(executor: Executor, service: Any, want: int) -> Lease:
    """Claim for real, as `_lease` does not."""
    reads = Reads(service.group.id, (), positions=True, due=100, returned=100)
    request = Request(want, 1, 0, 1, 1.0)
    lease = executor.engine.transact(reads, lambda view, change: claim(view, change, request))
    assert isinstance(lease, Lease)
    return executor.exchange.read(service, lease, 0.0)


@pytest.mark.usefixtures("whole_leases")
def test_h2_each_outcome_is_in_shared_memory_before_the_next_run_starts(app: App) -> None:
    slot, seen = FakeSlot(), []

    @app.task
    def task(n: int) -> int:
        snapshot = slot.snapshot()
        assert snapshot is not None
        seen.append((snapshot.finished, len(snapshot.results) + len(snapshot.verdicts), snapshot.running))
        return n

    executor, service = _executor(app, slot)
    lease = _lease(executor, service)
    executor.run_lease(service, lease)
    lo = lease.spans[0].lo
    assert seen == [(n, n, [lo + n]) for n in range(10)]


def test_who_waits_for_each_result_is_told_before_more_is_looked_for(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settlement that woke somebody and found nothing more: the next one is settled alone."""

    @app.task
    def task(n: int) -> int:
        return n

    executor, _ = _executor_of(app, FakeSlot())
    settled: list[tuple[bool, bool]] = []
    transact = app.engine.transact

    def seen(reads: Reads, decide: Any, *, synced: bool = False) -> Any:
        if reads.leases:
            settled.append((reads.positions, reads.known is not None))
        return transact(reads, decide, synced=synced)

    monkeypatch.setattr(app.engine, "transact", seen)
    waiting = [1, 1, 1, 0, 0]
    monkeypatch.setattr(app.engine, "ring_waiters", lambda positions: waiting.pop(0))
    for n in range(3):
        task.delay(n)
        assert executor.work(Woken.BY_BELL)
    task.delay(3)
    assert executor.work(Woken.BY_WORK), "it was there already"
    task.delay(4)
    assert executor.work(Woken.BY_BELL)
    assert settled == [(True, False), (False, True), (False, True), (True, False), (True, False)]


# H3


@pytest.mark.usefixtures("whole_leases")
def test_h3_child_says_that_it_starts_before_it_looks_at_the_bound(app: App) -> None:
    """Whatever moment between two of the child's steps the supervisor comes at, nothing runs twice."""
    for moment in range(200):
        slot, ran = FakeSlot(), []
        app.tasks.clear()

        @app.task
        def task(n: int) -> None:
            ran.append(executor.run.row[0])  # noqa: B023

        executor, service = _executor(app, slot)
        lease = _lease(executor, service)
        words: Any = slot.words
        steps, returned = [0], []

        def supervisor_comes(word: int) -> None:
            steps[0] += 1  # noqa: B023
            if steps[0] == moment:  # noqa: B023
                words.after_read = words.before_write = lambda word: None  # noqa: B023
                seen = slot.snapshot()  # noqa: B023
                if seen is not None and seen.running:
                    child = SimpleNamespace(slot=slot)  # noqa: B023
                    returned.extend(lower_bound(child, seen))  # type: ignore[arg-type] # noqa: B023

        words.after_read = words.before_write = supervisor_comes
        executor.run_lease(service, lease)
        everything = [row[0] for row in executor.rows]
        assert sorted(returned + ran) == everything, f"given back and run, or neither, at step {moment}"


def test_h3_supervisor_lowers_the_bound_before_it_reads_how_far_the_child_is() -> None:
    for moment in range(20):
        slot = FakeSlot()
        slot.claimed(1, 1, range(100, 110), 0.0)
        slot.words[p.STARTED] = 3
        words: Any = slot.words
        steps, ran = [0], []

        def child_goes_on(word: int) -> None:
            steps[0] += 1  # noqa: B023
            if steps[0] == moment:  # noqa: B023
                words.before_read = words.before_write = lambda word: None  # noqa: B023
                for count in range(3, 6):
                    words[p.STARTED] = count + 1  # noqa: B023
                    if count >= words[p.BOUND]:  # noqa: B023
                        words[p.STARTED] = count  # noqa: B023
                        return
                    ran.append(100 + count)  # noqa: B023

        seen = slot.snapshot()
        assert seen is not None
        words.before_read = words.before_write = child_goes_on
        returned = lower_bound(SimpleNamespace(slot=slot), seen)  # type: ignore[arg-type]
        assert not set(returned) & set(ran), moment


def test_attendant_looks_at_a_few_words_where_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    slot, looks = FakeSlot(), []
    child: Any = SimpleNamespace(slot=slot, settled=(0, 0), given_back=0)
    attendant = Attendant(SimpleNamespace(), 1)  # type: ignore[arg-type]
    monkeypatch.setattr(slot, "snapshot", lambda: looks.append(1))

    def looked(lease: int, rows: int, started: int, **of_child: Any) -> bool:
        slot.claimed(lease, 1, range(100, 100 + rows), 0.0)
        slot.words[p.STARTED] = started
        slot.words[p.BEGAN] = boottime_ns() - 10**9
        vars(child).update(of_child)
        before = len(looks)
        attendant.settle(child)
        return len(looks) > before

    assert not looked(1, 1, 1), "nothing was finished, and nothing is left"
    assert not looked(2, 10, 3, settled=(2, 2), given_back=2), "that was done before"
    assert looked(2, 10, 4), "one more is finished"
    assert looked(3, 10, 1), "the rest goes back"
    assert looked(3, 3, 3), "two are finished, of another lease than that settled last"
    assert not looked(3, 3, 0)


class Torn:
    """A buffer that is emptied, and written anew, while somebody reads it."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot

    def __getitem__(self, key: Any) -> bytes:
        self.slot.forget_verdicts()
        return b"\xc1" * 100  # which is nothing that was ever packed


def test_h2_what_is_written_anew_while_it_is_read_is_nothing_that_was_said() -> None:
    """The supervisor reads while the child writes; it takes nothing in that is not of one moment."""
    slot = FakeSlot()
    slot.claimed(1, 1, [10, 11, 12], 0.0)
    slot.words[p.STARTED], slot.words[p.FINISHED] = 3, 2
    slot.add_result(10, b"x")
    seen = slot.snapshot()
    assert seen is not None
    assert seen.results == [(10, b"x")]
    slot._buffer = Torn(slot)  # type: ignore[assignment]
    assert slot.snapshot() is None


def test_attendant_that_comes_too_late_refuses_nothing(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is barred settles what it ran and gives the rest back itself: it has lost nothing (P4)."""
    slot = FakeSlot()

    @app.task
    def task(n: int) -> None:
        pass

    executor, service = _executor(app, slot)
    reads = Reads(service.group.id, (), positions=True, due=100, returned=100)
    lease = executor.engine.transact(
        reads, lambda view, change: claim(view, change, Request(10, 1, 0, 1, 1.0))
    )
    executor.exchange.read(service, lease, 0.0)
    rows = [row[0] for row in executor.rows]
    slot.words[p.STARTED], slot.words[p.BEGAN] = 3, boottime_ns() - 10**9  # the third runs long
    transact = executor.engine.transact

    def the_child_was_faster(reads: Any, decide: Any) -> Any:
        own = Settlement(lease.id, 1, [(rows[0], rows[3])], ended=2.0, release=True, records=3)
        assert transact(Reads(service.group.id, (lease.id,)), lambda v, c: settle(v, c, own))
        return transact(reads, decide)

    monkeypatch.setattr(executor.engine, "transact", the_child_was_faster)
    Attendant(executor.engine, 1).settle(SimpleNamespace(slot=slot, settled=(0, 0), given_back=0))  # type: ignore[arg-type]
    assert "refused settlements" not in executor.engine.counters(service.group.id)
    assert executor.engine.counts(service.group)[:3] == (0, 0, 7), "given back, once"


def test_who_settles_for_a_child_wakes_whom_its_calls_concern(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy child's calls, or those of one that was killed, are for workers that may be asleep."""
    app.queue("elsewhere")
    elsewhere = app.stream_of("queue", "elsewhere").logs[0]

    @app.task
    def task(n: int) -> None:
        pass

    for killed in (False, True):
        slot = FakeSlot()
        executor, service = _executor(app, slot)
        engine = executor.engine
        reads = Reads(service.group.id, (), positions=True, due=100, returned=100)
        number = 1 + killed
        lease = engine.transact(reads, lambda v, c: claim(v, c, Request(2, 1, 0, number, 1.0)))  # noqa: B023
        executor.exchange.read(service, lease, 0.0)
        first, second = (row[0] for row in executor.rows)
        call = NewCall(elsewhere, "kid", b"", None, new_head(time.time()), time.time())
        assert slot.add(Verdict(first, "success", calls=[call]))
        slot.words[p.FINISHED], slot.words[p.STARTED], slot.words[p.BEGAN] = 1, 2, boottime_ns() - 10**9
        rung: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(engine, "ring", lambda log, **how: rung.append(log))  # noqa: B023
            if killed:
                seen = slot.snapshot()
                assert seen is not None
                Aftermath(engine, 1, {}).time_limit(seen, [second], 1.0)
            else:
                child: Any = SimpleNamespace(slot=slot, settled=(0, 0), given_back=0)
                Attendant(engine, 1).settle(child)
        assert elsewhere in rung, killed
        assert engine.task_counts(*engine.bounds(app.stream_of("queue", "elsewhere"))[0][1:], None, None) == {
            "kid": number
        }


def test_tokens_that_come_back_are_read_with_the_settings(app: App) -> None:
    """What a group with a rate left out gives its tokens back: the settings are to be seen for that."""

    @app.task
    def task(n: int) -> None:
        pass

    executor, service = _executor(app, FakeSlot())
    lease = executor._known = Lease(1, 1, 0, [Span(5, 9)])
    settlement = Settlement(lease.id, 1, [(5, 6)])
    assert executor.known(service, settlement) is lease
    service.rate = 10.0
    assert executor.known(service, settlement) is None


def test_a_result_that_is_waited_for_does_not_wait_for_a_claim(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where calls come one by one, each waited for; what came meanwhile is looked for afterwards."""
    rung, claims = [1], []

    @app.task
    def task(n: int) -> int:
        return n

    executor, service = _executor_of(app, FakeSlot())
    engine = executor.engine
    monkeypatch.setattr(engine, "ring_waiters", lambda positions: rung[0])
    transact = engine.transact

    def noted(reads: Any, decide: Any, **how: Any) -> Any:
        claims.append(reads.positions)
        return transact(reads, decide, **how)

    monkeypatch.setattr(engine, "transact", noted)
    for n, expected in enumerate(([True, True], [True, False], [True, False])):
        task.delay(n)
        claims.clear()
        assert executor.work(Woken.BY_BELL)
        assert claims == expected, n
        assert executor.exhausted
    rung[0] = 0
    for n, expected in enumerate(([True, False], [True, True])):
        task.delay(n)
        claims.clear()
        assert executor.work(Woken.BY_BELL)
        assert claims == expected, "nobody waited for the call before" if n else "somebody did"
    assert app.engine.counts(service.group).pending == 0


def test_record_over_its_limit_fails_once_however_often_its_child_is_cleared_up_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine may go out of reach in the middle; then the supervisor comes again."""
    done: list[str] = []

    class FakeAftermath:
        def __init__(self, *args: Any) -> None: ...

        def time_limit(self, *args: Any) -> None:
            done.append("limit")

        def of_child(self, *args: Any) -> None:
            done.append("child")
            if len(done) < 4:
                raise EngineUnavailable("locked")

    monkeypatch.setattr(supervisor_module, "Aftermath", FakeAftermath)
    supervisor = _supervisor(lambda *a, **k: 1, [])
    supervisor.hello.deliveries = []
    slot = FakeSlot()
    slot.claimed(1, 1, [100], 0.0)
    slot.words[p.STARTED] = 1
    child = SimpleNamespace(
        slot=slot, index=0, pid=1, over_limit=([100], 1.0), limit_kept=False, noticed=False, ordered=False,
        process=SimpleNamespace(poll=lambda: -9), started=0.0, ready=True, close=lambda: None,
    )  # fmt: skip
    supervisor.children = {0: child}
    while supervisor.children:
        supervisor._bury_at = 0.0
        supervisor._bury_the_dead()
    assert done == ["limit", "child", "child", "child"]


# H4


def _foreign(app: App) -> int:
    return app.engine.register(Registration("t", "elsewhere", "other", "another boot", 1, 0.0, {}))  # type: ignore[no-any-return]


@on_each_engine
def test_h4_silent_worker_elsewhere_is_taken_over(place: Place) -> None:
    place.module(CODE, beat=0.1, worker_ttl=0.5)
    worker = place.worker(1)
    place.children()
    _foreign(place.app)
    worker.said("silent for too long")
    eventually(lambda: len(place.registered()) == 1)


@on_each_engine
def test_h4_worker_that_beats_elsewhere_is_left_alone_by_a_burst(place: Place) -> None:
    """A worker that only waits for a retry must not count its beats faster than others beat."""
    module = place.module(
        CODE,
        "\n@app.task(bind=True)\ndef late(self):\n"
        + "    if not self.request.retries: raise self.retry(countdown=2)\n",
        beat=0.5, worker_ttl=2,
    )  # fmt: skip
    module.late.delay()
    foreign = _foreign(place.app)
    worker = place.worker(1, burst=True)
    while worker.process.poll() is None:
        assert place.app.engine.beat(foreign, False, {}, synced=False) is not None
        try:
            worker.process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
    assert "silent" not in worker.log
    assert worker.wait() == 0


def test_h4_worker_that_just_starts_is_not_taken_for_dead(app: App) -> None:
    """Its file is held before anybody can see it, so that no look finds it without its lock."""
    engine = app.engine
    engine.bell  # noqa: B018 - makes the folder
    worker = engine.register(Registration("t", "new", "here", "boot", os.getpid(), 0.0, {}))
    path = Path(engine.run_folder) / f"worker-{worker}"
    watch = Watch(engine, "boot", {"beat": 1.0, "worker_ttl": 3.0}, {})
    stop = threading.Event()
    problems: list[object] = []

    def look() -> None:
        while not stop.is_set():
            try:
                problems.extend([1] * watch.look(0, beaten=False))
            except Exception as error:  # noqa: BLE001 - shown below
                problems.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        files = [WorkerFile(path, 1, create=True) for _ in range(200)]
    finally:
        stop.set()
        looking.join()
    for file in files:
        file.close(remove=True)
    assert not path.exists()
    assert not problems


@on_each_engine
def test_h4_deposed_worker_changes_nothing_and_starts_again(place: Place) -> None:
    """P4: a run that lost its lease is repeated, its own settlement is refused and counted."""
    module = place.module(CODE, beat=0.1, worker_ttl=0.5)
    result = module.slow.delay(1)
    elsewhere = "import respool.worker.supervisor as s\ns.boot_id = lambda: 'another boot'\n"
    first = place.worker(1, before=elsewhere)
    mark = place.await_start("slow", "1")
    os.killpg(first.pid, signal.SIGSTOP)
    second = place.worker(1)
    second.said("silent for too long")
    eventually(lambda: place.runs("slow")["1"] == 2)
    place.touch("go-1")
    assert result.get(timeout=20) == 1
    os.killpg(first.pid, signal.SIGCONT)
    first.said("declared dead")
    eventually(lambda: len(place.registered()) == 2)
    assert mark.pid not in place.children(2)
    assert module.fine.delay(2).get(timeout=20) == 2
    assert [a.how for a in result.history()] == ["done"]
    assert (first.stop(), second.stop()) == (0, 0)
    assert place.runs("slow") == {"1": 2}
    place.check()


# H5


@on_each_engine
def test_h5_children_of_a_supervisor_that_stands_still_start_nothing(place: Place) -> None:
    module = place.module(
        CODE, "\n@app.task\ndef short(n):\n    note('start', 'short', n)\n    time.sleep(0.02)\n",
        beat=0.1, worker_ttl=0.5,
    )  # fmt: skip
    module.short.delay_many(range(120))
    worker = place.worker(1)
    eventually(lambda: len(place.runs("short")) > 5)
    worker.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    eventually(lambda: time.monotonic() - stopped > 1.5)
    assert max(mark.at for mark in place.marks("start", "short")) - stopped < 0.6
    assert len(place.runs("short")) < 120
    worker.signal(signal.SIGCONT)
    eventually(place.idle)
    assert set(place.runs("short").values()) == {1}
    assert worker.stop() == 0


def _supervisor(beat: Callable[..., int], busy: list[bool]) -> Any:
    supervisor: Any = Supervisor(WorkerOptions(app="x", concurrency=1))
    supervisor.hello = SimpleNamespace(settings={"beat": 1.0, "worker_ttl": 10.0}, services=[])
    supervisor.engine = SimpleNamespace(beat=beat, records=lambda *_: [], streams=list)
    supervisor._attendant = SimpleNamespace(written=0)
    supervisor._watch = SimpleNamespace(look=lambda *a, **k: 0)
    supervisor._house = SimpleNamespace(tidy=lambda worked: False)
    slot = FakeSlot()
    supervisor.children = {0: SimpleNamespace(slot=slot, busy=False, pid=1, index=0)}
    supervisor.set_busy = lambda value: setattr(supervisor.children[0], "busy", value)
    return supervisor


def test_h5_deadline_counts_from_before_the_beat_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10**12]

    def slow_beat(*args: Any, **kwargs: Any) -> int:
        clock[0] += 200_000_000  # the engine is slow to answer
        return 1

    monkeypatch.setattr(supervisor_module, "boottime_ns", lambda: clock[0])
    supervisor = _supervisor(slow_beat, [])
    supervisor._beat()
    assert supervisor.children[0].slot.words[p.DEADLINE] == 10**12 + 8 * 10**9


SUPERVISOR = """
import os, subprocess, sys
life, held = os.pipe()
command = [sys.executable, "-c", sys.argv[1], str(life)]
child = subprocess.Popen(command, pass_fds=[life], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os.read(life, 1)
"""
ORPHAN = """
import os, sys, time
from respool.worker.child import die_with
life = int(sys.argv[1])
{so}
die_with(os.getppid(), life)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "so",
    [
        pytest.param("sys.platform = 'one without such a signal'", id="pipe"),
        pytest.param("life, held = os.pipe()", id="signal"),
    ],
)
def test_h5_either_the_pipe_or_the_signal_ends_an_orphan(so: str) -> None:
    """Each alone: a signal follows the thread that forked, and the pipe's end is read by a thread of ours."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCES, *sys.path])}
    command = [sys.executable, "-c", SUPERVISOR, ORPHAN.format(so=so)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        orphan = Path(f"/proc/{int(supervisor.stdout.readline())}")
        assert orphan.exists()
        supervisor.kill()
        eventually(lambda: not orphan.exists() or "\nState:\tZ" in (orphan / "status").read_text())


def test_h4_a_beat_that_was_not_committed_counts_for_nobody() -> None:
    """All counters stand still in an outage; an observer who cannot beat either must not count that."""
    away, looks = [True], []

    def beat(*args: Any, **kwargs: Any) -> int:
        if away[0]:
            raise EngineUnavailable("out of reach")
        return 1

    supervisor = _supervisor(beat, [])
    supervisor._watch = SimpleNamespace(look=lambda own, *, beaten: looks.append(beaten))
    for _ in range(20):
        supervisor._beat()
    assert looks == []
    away[0] = False
    supervisor._beat()
    assert looks == [True]


# H7


@on_each_engine
@pytest.mark.parametrize("group", [False, True], ids=["child", "group"])
def test_h7_at_most_once(place: Place, group: bool) -> None:
    module = place.module(CODE)
    place.touch("die-5")
    if group:
        place.touch("group")
    results = module.once_only.delay_many(range(10))
    worker = place.worker(1)
    if group:
        worker.wait()
        worker = place.worker(1)
    eventually(place.idle)
    assert results[5].state == "FAILURE"
    assert [results[n].get(timeout=1) for n in range(10) if n != 5] == [n for n in range(10) if n != 5]
    assert place.runs("once_only") == {str(n): 1 for n in range(10)}
    assert worker.stop() == 0
    place.check()


def test_h7_of_a_worker_elsewhere_it_is_only_known_that_it_may_have_run(place: Place) -> None:
    """Its memory is out of sight: what it had claimed comes back, charged, and is not run again."""
    module = place.module(CODE, beat=0.1, worker_ttl=0.5)
    place.touch("die-1")
    place.touch("group")
    result, after = module.once_only.delay(1), module.once_only.delay(2)
    place.worker(1, before="import respool.worker.supervisor as s\ns.boot_id = lambda: 'another'\n").wait()
    worker = place.worker(1)
    worker.said("silent for too long")
    with pytest.raises(WorkerLost, match="may have run"):
        result.get(timeout=20)
    assert after.get(timeout=20) == 2
    assert place.runs("once_only") == {"1": 1, "2": 1}
    assert worker.stop() == 0
    place.check()


def test_h7_claim_is_synced_before_the_run(place: Place) -> None:
    module = place.module(
        CODE,
        """
        if IN_WORKER:
            from respool.engines.sqlite.engine import SQLiteEngine
            transact = SQLiteEngine.transact

            def watch(self, *args, synced=False, **kwargs):
                answer = transact(self, *args, synced=synced, **kwargs)
                note("transact", "synced" if synced else "fast")
                return answer

            SQLiteEngine.transact = watch
        """,
    )
    module.once_only.delay_many(range(5))
    place.burst(1)
    marks = [mark for mark in place.marks() if mark.name in ("synced", "fast", "once_only")]
    before = [marks[at - 1].name for at, mark in enumerate(marks) if mark.name == "once_only"]
    assert before == ["synced"] * 5


# H8


@on_each_engine
def test_h8_redriven_call_makes_new_calls(place: Place) -> None:
    module = place.module(CODE)
    result = module.fails.delay(1)
    place.burst(1)
    assert place.runs("fine") == {"1": 1}
    assert redrive(module.app, DeadFilter(task="fails")) == 1
    place.burst(1)
    assert place.runs("fine") == {"1": 2}
    assert result.state == "FAILURE"
    assert [a.how for a in result.history()] == ["failed", "redriven", "failed"]


@pytest.mark.parametrize(("calls", "size"), [(10_000, 1), (17, 1_000_000)], ids=["calls", "bytes"])
def test_h8_past_ten_thousand_calls_or_16_mib_they_leave_early(tmp_path: Path, calls: int, size: int) -> None:
    """Though they are to be held for as long as the run takes."""
    seen = []
    with App("t", url=f"sqlite:///{tmp_path / 'log.db'}", offload_over=None) as app:

        @app.task
        def made(body: str) -> None: ...

        @app.task
        def task(n: int) -> None:
            for call in range(calls + 2):
                if call >= calls:
                    ((_, lo, hi),) = app.engine.bounds(service.stream)
                    seen.append(hi - lo)
                made.delay("x" * size)

        executor, service = _executor_of(app, FakeSlot())
        task.delay(1)
        lease = _claimed(executor, service, 1)
        current_run.set(executor.run)
        executor.run_lease(service, lease)
        executor.close()
        assert seen == [1, 1 + calls], "all at once, before the one that is too many"


def test_h8_a_run_that_lost_its_lease_sends_nothing_early(app: App) -> None:
    """Its calls would be others than those of the run that follows it: by their arguments, here."""

    @app.task
    def made(n: int) -> None: ...

    @app.task
    def task(n: int) -> None:
        if n == 1:  # its worker is declared dead
            app.engine.transact(Reads(group, (lease.id,)), lambda v, c: c.dropped_leases.append(lease.id))
        made.delay(n)

    executor, service = _executor_of(app, FakeSlot(), hold=0.0)
    group = service.group.id
    task.delay_many(range(2))
    lease = _claimed(executor, service, 2)
    current_run.set(executor.run)
    settlement = executor.run_lease(service, lease)
    assert not app.engine.transact(
        Reads(group, (lease.id,)), lambda view, change: settle(view, change, settlement)
    )
    ((_, lo, hi),) = app.engine.bounds(service.stream)
    sent = app.engine.task_counts(lo, hi, None, None)
    assert sent == {"task": 2, "made": 1}, "that of the first, and no other"
    executor.close()


# H11


@on_each_engine
def test_h11_a_storm_of_retries_does_not_stop_new_work(place: Place) -> None:
    module = place.module(
        CODE,
        """
        @app.task(bind=True, max_retries=None)
        def storm(self, n):
            time.sleep(0.002)
            if not (HERE / "calm").exists():
                raise self.retry(countdown=0)
        """,
    )
    module.storm.delay_many(range(300))
    worker = place.worker(1)
    eventually(lambda: place.counts().parked.get("retry", 0) > 100)
    results = module.fine.delay_many(range(50))
    assert results.get(timeout=20) == list(range(50))
    assert place.counts().parked["retry"] > 100
    place.touch("calm")
    eventually(place.idle)
    assert worker.stop() == 0


def test_h7_what_was_not_charged_is_not_given_back(app: App) -> None:
    """A call that is due later was never begun: else its one run would come free, and another be allowed."""

    @app.task(max_deliveries=1)
    def task(n: int) -> None: ...

    task.apply_async((1,), countdown=100)
    executor, service = _executor_of(app, FakeSlot())
    settlement = executor.run_lease(service, _lease(executor, service))
    (verdict,) = settlement.verdicts
    assert (verdict.reason, verdict.charge) == ("scheduled", 0)


# P4


@pytest.mark.parametrize("hold", [0.0, None])
def test_p4_a_call_that_cannot_leave_early_leaves_with_its_run(
    app: App, monkeypatch: pytest.MonkeyPatch, hold: float | None
) -> None:
    """It was taken over: `delay()` says nothing else, or the run would make it again."""
    ran: list[int] = []

    @app.task
    def made(n: int) -> None:
        ran.append(n)

    @app.task
    def task(n: int) -> None:
        made.delay(n)

    task.delay(1)
    executor, _ = _executor_of(app, FakeSlot(), hold)
    current_run.set(executor.run)

    def away(*_: Any) -> None:
        raise EngineUnavailable("out of reach; nothing was sent")

    with monkeypatch.context() as patch:
        patch.setattr(executor.engine, "append_rows", away)
        executor.work()
    executor.work()
    executor.close()
    assert ran == [1]


def test_p10_an_outbox_that_is_full_takes_no_more(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can be emptied nowhere, a call is refused, and only that one is not sent."""
    monkeypatch.setattr(run_module, "MANY_CALLS", 3)
    ran: list[int] = []
    refused: list[int] = []

    @app.task
    def made(n: int) -> None:
        ran.append(n)

    @app.task
    def task(n: int) -> None:
        for each in range(n):
            try:
                made.delay(each)
            except Refused:
                refused.append(each)

    task.delay(5)
    executor, _ = _executor_of(app, FakeSlot())
    current_run.set(executor.run)

    def away(*_: Any) -> None:
        raise AppendUnknown("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(executor.engine, "append_rows", away)
        executor.work()
    executor.work()
    executor.close()
    assert (ran, refused) == ([0, 1, 2], [3, 4])


# H17


def test_h17_cancelled_leader_takes_nobody_with_it(app: App) -> None:
    @app.task
    def task(n: int) -> None: ...

    async def main() -> list[Any]:
        sent = [asyncio.create_task(task.adelay(n)) for n in range(200)]
        for each in sent[::3]:
            await asyncio.sleep(0)
            each.cancel()
        return await asyncio.wait_for(asyncio.gather(*sent, return_exceptions=True), 20)

    results = asyncio.run(main())
    kept = [r for r in results if not isinstance(r, BaseException)]
    assert len(kept) >= 133
    assert {r.state for r in kept} == {"PENDING"}


def test_time_that_the_machine_was_suspended_counts_for_no_time_limit(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of a lease does count it (H5): others have gone on."""
    slept = gone = 0

    def told(which: int) -> int:
        return time.clock_gettime_ns(which) + gone + (slept if which == clock_module._BOOTTIME else 0)

    monkeypatch.setattr(clock_module, "time", SimpleNamespace(clock_gettime_ns=told, time=time.time))
    killed: list[bool] = []
    child: Any = SimpleNamespace(over_limit=None, suspended=(0, 0), kill=lambda: killed.append(True))
    child.process = SimpleNamespace(send_signal=lambda number: killed.append(False))

    @app.task(name="task", soft_time_limit=20, time_limit=30.25)
    def task(n: int) -> None:
        nonlocal slept, gone
        executor.caller.on_soft_limit()
        keep_limits(child)  # it sees the run at its beginning
        slept += 3600 * 10**9
        executor.caller.on_soft_limit()
        keep_limits(child)
        assert not killed
        assert boottime_ns() > slot.words[p.DEADLINE]
        gone += 20 * 10**9
        keep_limits(child)
        assert killed == [False]
        with pytest.raises(SoftTimeLimitExceeded):
            executor.caller.on_soft_limit()
        gone += 11 * 10**9
        keep_limits(child)

    slot = child.slot = FakeSlot()
    executor, service = _executor(app, slot)
    lease = _lease(executor, service)
    slot.words[p.DEADLINE] = boottime_ns() + 60 * 10**9
    executor.run_lease(service, lease, 1)
    assert killed == [False, True]
    assert child.over_limit[1] == 30.25


def test_h17_late_signal_is_passed_over(app: App) -> None:
    """The limit itself tells: the number of the record that it was sent for is that of another by now."""
    slot = FakeSlot()
    executor, _ = _executor_of(app, slot)
    words, now = slot.words, boottime_ns()
    words[p.STARTED] = words[p.SOFT_FOR] = 1
    words[p.SOFT_AT] = now - 1
    executor.caller.on_soft_limit()  # its code has ended
    words[p.USER], words[p.SOFT_AT] = 1, now + 10**12
    executor.caller.on_soft_limit()  # another lease's first record runs, and has time
    assert words[p.SOFT_FOR] == 0, "there is to be a signal for that one"
    words[p.SOFT_AT] = 0
    executor.caller.on_soft_limit()  # or has no limit
    words[p.SOFT_AT] = now - 1
    with pytest.raises(SoftTimeLimitExceeded):
        executor.caller.on_soft_limit()
    executor.caller.on_soft_limit()  # once: it may be cleaning up


def _limited(app: App, fn: Callable[..., Any], meanwhile: Callable[[Caller], None] | None = None) -> Any:
    """Run ten calls of a task with a soft limit that is over at once; return how each ended.

    `meanwhile` is done while the arguments of each are taken apart.
    """
    app.task(name="task", soft_time_limit=1e-9)(fn)
    slot = FakeSlot()
    executor, service = _executor(app, slot)
    lease = _lease(executor, service)
    runner = service.runners["task"]
    unpack = runner.unpack

    def slow_unpack(body: bytes) -> Any:
        if meanwhile is not None:
            meanwhile(executor.caller)
        return unpack(body)

    runner.unpack = slow_unpack
    settlement = executor.run_lease(service, lease)
    executor.close()
    return {verdict.pos: verdict.note for verdict in settlement.verdicts}


@pytest.mark.usefixtures("whole_leases")
def test_h17_limit_that_is_over_before_the_code_begins(app: App) -> None:
    """Its signal came while the arguments were taken apart, where nothing may be raised."""
    ran = []
    ended = _limited(app, lambda n: ran.append(n), Caller.on_soft_limit)
    assert len(ended) == 10
    assert all("SoftTimeLimitExceeded" in note for note in ended.values())
    assert not ran


@pytest.mark.usefixtures("whole_leases")
def test_h17_limits_end_with_the_run_that_they_are_for(app: App) -> None:
    """Whatever it came to: the next record of the lease, which has none, is neither told nor killed."""
    slot, seen = FakeSlot(), []

    @app.task(soft_time_limit=30, time_limit=60)
    def limited(n: int) -> None:
        seen.append(tuple(bool(slot.words[word]) for word in (p.USER, p.SOFT_AT, p.HARD_AT)))
        if n:
            raise ValueError(n)

    @app.task
    def plain(n: int) -> None:
        seen.append(tuple(bool(slot.words[word]) for word in (p.USER, p.SOFT_AT, p.HARD_AT)))

    executor, service = _executor_of(app, slot)
    for n in range(2):
        limited.delay(n)
        plain.delay(n)
    executor.run_lease(service, _lease(executor, service))
    executor.close()
    assert seen == [(True, True, True), (False, False, False)] * 2


@pytest.mark.usefixtures("whole_leases")
def test_h17_signal_before_a_coroutines_first_step(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised inside asyncio, whose loop runs the next one."""
    begun, ended_well = [], []

    async def task(n: int) -> None:
        begun.append(n)
        await asyncio.Event().wait()
        ended_well.append(n)

    run = Caller._run_coroutine

    def signalled(caller: Caller, coroutine: Any) -> Any:
        caller.on_soft_limit()
        return run(caller, coroutine)

    monkeypatch.setattr(Caller, "_run_coroutine", signalled)
    ended = _limited(app, task)
    assert begun == list(range(10))
    assert len(ended) == 10
    assert all("SoftTimeLimitExceeded" in note for note in ended.values())
    assert not ended_well


@pytest.mark.usefixtures("whole_leases")
def test_h17_signal_after_a_coroutines_last_step(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has ended, and that stands; what comes then disturbs neither asyncio nor the next one."""

    async def task(n: int) -> None: ...

    supervised = Caller._supervised

    async def signalled(caller: Caller, coroutine: Any) -> Any:
        value = await supervised(caller, coroutine)
        caller.on_soft_limit()
        return value

    monkeypatch.setattr(Caller, "_supervised", signalled)
    assert _limited(app, task) == {}


def test_h17_what_a_task_calls_of_ours_is_not_its_code(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit strikes between lock and commit; once we are back in the task's code it may."""
    slot = FakeSlot()
    seen: dict[str, list[int]] = {}
    executor, _ = _executor_of(app, slot)  # opens the engine
    executor.close()

    def watch(name: str, inner: Callable[..., Any]) -> None:
        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.setdefault(name, []).append(slot.words[p.USER])
            return inner(*args, **kwargs)

        monkeypatch.setattr(app.engine, name, noted)

    watched = ("set_progress", "step_done", "keep_step", "append_rows", "append_unique", "lock_of")
    for name in watched:
        watch(name, getattr(app.engine, name))
    users: list[int] = []

    @app.task(unique=True)
    def alone(n: int) -> None: ...

    @app.task(bind=True, soft_time_limit=60)
    def task(self: Any, n: int) -> None:
        self.update_state(meta=n)
        self.once("step", lambda: users.append(slot.words[p.USER]))
        assert fine.delay(n).state == "PENDING", "asked for, and so sent"
        alone.delay(n)
        users.append(slot.words[p.USER])

    @app.task
    def fine(n: int) -> None: ...

    executor, service = _executor_of(app, slot)
    task.delay(1)
    lease = _claimed(executor, service, 1)
    current_run.set(executor.run)
    settlement = executor.run_lease(service, lease)
    executor.close()
    assert [verdict.ending for verdict in settlement.verdicts] == ["success"]
    assert {name: {*at} for name, at in seen.items()} == {name: {0} for name in watched}
    assert users == [1, 1], "a step is the task's code, and so is what comes after"


@pytest.mark.usefixtures("whole_leases")
def test_a_coroutine_that_cancels_itself_is_not_over_any_limit(app: App) -> None:
    """Nor is one without a limit that comes after one that was."""

    async def limited(n: int) -> None:
        await asyncio.Event().wait()

    @app.task
    async def cancelled(n: int) -> None:
        raise asyncio.CancelledError

    assert len(_limited(app, limited)) == 10
    slot = FakeSlot()
    executor, service = _executor_of(app, slot)
    executor.caller._told = 1
    cancelled.delay(1)
    ((_, _, end),) = app.engine.bounds(service.stream)
    lease = Lease(2, 1, 0, [Span(end - 1, end)])
    executor.exchange.read(service, lease, 0.0)
    (verdict,) = executor.run_lease(service, lease).verdicts
    assert "CancelledError" in verdict.note
    executor.close()


# H20


def test_h20_refused_and_unknown_are_different_errors(app: App, tmp_path: Path) -> None:
    assert issubclass(EngineUnavailable, Refused)
    assert issubclass(AppendUnknown, AppendError)
    assert not issubclass(AppendUnknown, Refused)

    @app.task
    def task(n: int) -> None: ...

    app.settings["append_timeout"] = 0.1
    task.delay(0)
    foreign = apsw.Connection(str(tmp_path / "log.db"))
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(EngineUnavailable, match="nothing was sent"):
        task.delay(1)
    foreign.execute("ROLLBACK")
    foreign.close()
    assert app.engine.counts(app.groups()[0]).pending == 1


# SQLite


def test_s1_the_standard_librarys_sqlite_is_never_imported() -> None:
    code = (
        "import pkgutil, sys, importlib, respool\n"
        "for m in pkgutil.walk_packages(respool.__path__, 'respool.'):\n"
        "    m.name.endswith('__main__') or importlib.import_module(m.name)\n"
        "sys.exit('sqlite3' in sys.modules)\n"
    )
    path = os.pathsep.join([SOURCES, *sys.path])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode == 0


def test_s2_versions_that_can_corrupt_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(EngineTooOld, match="corrupt"):
        App("t", url=f"sqlite:///{tmp_path / 'log.db'}").engine  # noqa: B018


def test_s2_no_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "file_system", lambda path: "nfs4")
    with pytest.raises(Exception, match="network file system"):
        App("t", url=f"sqlite:///{tmp_path / 'log.db'}").engine  # noqa: B018


def test_s2_nothing_is_used_across_fork(app: App) -> None:
    @app.task
    def task(n: int) -> None: ...

    task.delay(1)
    inherited = app.engine
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            task.delay(2)
            status = 0 if app.engine is not inherited else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    task.delay(3)
    assert app.engine is inherited
    assert app.engine.counts(app.groups()[0]).pending == 3


OPENS = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)

from datetime import UTC, datetime
from respool import App
from respool.cli import main
from respool.replay import check, create_replay, purge
from respool.testing import work

app = App("shop", url=sys.argv[1])

@app.task
def add(x, y): return x + y

events = app.stream("visits")
events.subscribe(print, group="audit", name="audit")
add.delay(1, 2)
add.delay_many([]), add.apply_many([((n, n), {}) for n in range(3000)])
events.publish_many(range(10))
work(app)
list(events.read(since=datetime(2026, 1, 1, tzinfo=UTC)))
create_replay(app, "default", "v2", ["add"])
work(app, group="v2")
assert check(app).ok
purge(app, "default")
stream = app.stream_of("queue", "default")
app.engine.trim(stream, 1e12)
app.engine.tidy(0)
app.close()
for command in ("lag", "calls", "check", "workers", "groups list", "queues"):
    try:
        main(["--url", sys.argv[1], *command.split()], standalone_mode=False)
    except SystemExit as error:
        assert not error.code, command
names = [str(each) for each in opened]
assert any("-run" in name for name in names), "the hook sees what is opened"
path = sys.argv[1].removeprefix("sqlite:///")
print([name for name in names if name in (path, path + "-wal", path + "-shm")], file=sys.stderr)
"""


def test_s2_no_other_descriptor_of_the_file_is_opened(tmp_path: Path) -> None:
    """Closing it would drop the locks that SQLite has in this process. What SQLite opens is not seen here."""
    path = os.pathsep.join([SOURCES, *sys.path])
    command = [sys.executable, "-c", OPENS, f"sqlite:///{tmp_path / 'log.db'}"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_s2_the_file_is_not_mapped(app: App) -> None:
    for each in (app.engine._writer, app.engine._state, app.engine._reader):
        assert each.db.execute("PRAGMA mmap_size").get in (0, None)


def test_s4_beat_is_synced_when_anything_was_written_since() -> None:
    synced: list[bool] = []

    def beat(*args: Any, **kwargs: Any) -> int:
        synced.append(kwargs["synced"])
        return 1

    supervisor = _supervisor(beat, [])
    for busy in (True, False, False, True, False, False):
        supervisor.set_busy(busy)
        supervisor._beat()
    assert synced == [True, True, False, True, True, False]


def test_s5_numbers_of_workers_do_not_come_back_and_space_can(app: App) -> None:
    engine = app.engine
    first = _foreign(app)
    engine.drop_worker(first)
    assert _foreign(app) > first
    assert engine._reader.db.execute("PRAGMA auto_vacuum").get == 2


def test_snapshot_of_a_slot_in_the_middle_of_a_change_says_nothing() -> None:
    slot = FakeSlot()
    slot.claimed(1, 1, range(100, 110), 0.0)
    assert isinstance(slot.snapshot(), Snapshot)
    slot.words[p.SEQ] += 1
    assert slot.snapshot() is None
    assert slot.last_words() is None
