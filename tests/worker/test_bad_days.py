"""Tasks that misbehave, apps that fail, a log that is locked, gone or damaged: an error, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.worker.support import SOURCES, Place, cpu_seconds, eventually, tree

from respool.errors import CorruptBody, RespoolError, SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLost
from respool.record import Meta, Row
from respool.replay import dead_letters
from respool.sending import new_row

CODE = """
import ctypes, multiprocessing, re, subprocess

@app.task
def fine(n):
    with noted("fine", n):
        return n


@app.task(bind=True)
def bad(self, how, times=99):
    note("start", how)
    if self.request.deliveries >= times:
        return "survived"
    HOW[how]()
    return how


def prints():
    for _ in range(300):
        print("x" * 100_000)
        sys.stderr.write("y" * 1000 + "\\n")


def leaks():
    for _ in range(20):
        threading.Thread(target=time.sleep, args=(3600,)).start()


def forks():
    if os.fork() == 0:
        return  # into the worker's loop
    os.wait()


def forks_and_raises():
    if os.fork() == 0:
        raise RuntimeError("in the fork")
    os.wait()


def forks_and_stays():
    if os.fork() == 0:
        time.sleep(3600)


def multiprocesses():
    context = multiprocessing.get_context("fork")
    with context.Pool(2, initializer=ends_when_told) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]


def ends_when_told():  # a pool hangs where another task of its process has blocked what ends its processes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def blocks_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.Signals)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def calls_from_a_fork():
    process = multiprocessing.get_context("fork").Process(target=fine.delay, args=(1000,))
    process.start()
    process.join()


HOW = {
    "prints": prints,
    "exits": lambda: os._exit(3),
    "exits_with_0": lambda: os._exit(0),
    "exits_as_we_do": lambda: os._exit(66),
    "segfaults": lambda: ctypes.string_at(0),
    "aborts": os.abort,
    "is_killed": die,
    "forks": forks,
    "forks_and_raises": forks_and_raises,
    "forks_and_stays": forks_and_stays,
    "multiprocesses": multiprocesses,
    "blocks_signals": blocks_signals,
    "calls_from_a_fork": calls_from_a_fork,
    "changes_directory": lambda: os.chdir("/"),
    "leaks": leaks,
    "closes_output": lambda: [os.close(n) for n in (0, 1, 2)],
    "holds_the_gil": lambda: re.match(r"(a*)*b", "a" * int(os.environ.get("REGEX", "25"))),
    "terminates_itself": lambda: os.kill(os.getpid(), signal.SIGTERM),
}
"""

HARMLESS = [
    "prints",
    "forks",
    "forks_and_raises",
    "forks_and_stays",
    "multiprocesses",
    "blocks_signals",
    "changes_directory",
    "leaks",
    "closes_output",
    "terminates_itself",
]
DEADLY = {
    "exits": "exited with status 3",
    "exits_with_0": "exited with status 0",
    "exits_as_we_do": "exited with status 66",
    "segfaults": "SIGSEGV",
    "aborts": "SIGABRT",
    "is_killed": r"SIGKILL \(signal 9\); if nobody sent it, the system was out of memory",
}


def test_tasks_that_misbehave_harm_nobody(place: Place) -> None:
    module = place.module(CODE)
    neighbours = [module.fine.delay_many(range(at * 10, at * 10 + 10)) for at in range(3)]
    bad = {how: module.bad.delay(how) for how in HARMLESS}
    neighbours += [module.fine.delay_many(range(at * 10, at * 10 + 10)) for at in range(3, 6)]
    worker = place.worker(2)
    assert {how: r.get(timeout=20) for how, r in bad.items()} == {how: how for how in HARMLESS}
    assert [n for many in neighbours for n in many.get(timeout=20)] == list(range(60))
    assert set(place.runs("fine").values()) == {1}
    assert [place.runs(how)[""] for how in HARMLESS] == [1] * len(HARMLESS)
    assert worker.stop() == 0
    place.check()


def test_tasks_that_kill_their_process_are_buried_alone(place: Place) -> None:
    module = place.module(CODE)
    before = module.fine.delay_many(range(50))
    bad = {how: module.bad.delay(how) for how in DEADLY}
    after = module.fine.delay_many(range(50, 100))
    worker = place.worker(2)
    for how, said in DEADLY.items():
        with pytest.raises(WorkerLost, match=said):
            bad[how].get(timeout=30)
        assert place.runs(how)[""] == 3
    assert before.get(timeout=20) + after.get(timeout=20) == list(range(100))
    assert set(place.runs("fine").values()) == {1}
    assert len(dead_letters(module.app)) == len(DEADLY)
    assert worker.stop() == 0
    place.check()


def test_run_that_died_knows_it_and_may_succeed(place: Place) -> None:
    module = place.module(CODE)
    result = module.bad.delay("segfaults", 1)
    place.burst()
    assert result.get(timeout=1) == "survived"
    assert [attempt.how for attempt in result.history()] == ["lost", "done"]


def test_call_made_in_a_process_that_a_task_forks_is_sent(place: Place) -> None:
    module = place.module(CODE)
    module.bad.delay("calls_from_a_fork")
    place.burst()
    assert place.runs("fine") == {"1000": 1}


def test_coroutine_that_forks(place: Place) -> None:
    module = place.module(
        """
        @app.task
        async def forking(n):
            with noted("forking", n):
                if os.fork() == 0:
                    return "in the fork"
                os.wait()
                return n
        """
    )
    results = module.forking.delay_many(range(5))
    place.burst()
    assert results.get(timeout=1) == list(range(5))
    place.check()


def test_what_a_fork_returns_is_not_taken_for_the_run(place: Place) -> None:
    """A process that a task forks shares the worker's memory file, and must not write into it."""
    module = place.module(
        """
        @app.task
        def forking(n):
            note("start", "forking", n)
            if os.fork() == 0:
                return "in the fork"
            os.wait()
            if once("die"):
                die()
            return n
        """
    )
    place.touch("die")
    results = module.forking.delay_many(range(3))
    place.burst(1)
    assert results.get(timeout=1) == [0, 1, 2]
    assert sum(place.runs("forking").values()) == 4


def test_task_that_holds_the_gil_holds_up_nobody_else(place: Place) -> None:
    module = place.module(CODE, beat=0.2, worker_ttl=0.8)
    module.bad.delay("holds_the_gil")
    module.fine.delay_many(range(20))
    worker = place.worker(2, env={"REGEX": "24"})
    place.await_start("holds_the_gil")
    first = place.registered()[0].beat
    waits = []
    results = []
    while place.registered()[0].beat < first + 5:
        before = time.monotonic()
        results.append(module.fine.delay(len(results) + 100))
        waits.append(time.monotonic() - before)
        results[-1].get(timeout=20)
    assert max(waits) < 0.5
    assert worker.process.poll() is None
    assert len(place.registered()) == 1
    worker.signal(signal.SIGTERM)
    worker.wait(60)
    assert set(place.runs().values()) == {1}


# The app


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no such shop')", "RuntimeError: no such shop"),
        ("import nothing_like_it", "nothing_like_it"),
        ("x = (", "SyntaxError"),
        ("sys.exit(7)", "sys.exit(7)"),
        ("os._exit(8)", "status 8"),
        ("app.task(len, colour='red')", "colour"),  # a usage error, as for any command
    ],
)
def test_app_that_fails_on_import(place: Place, code: str, said: str) -> None:
    place.module("")
    place.path.write_text(place.path.read_text() + f"note('start', 'import')\n{code}\n")
    worker = place.worker(2)
    assert worker.wait() == (2 if said == "colour" else 1)
    assert said in worker.log
    assert len(place.marks("start", "import")) <= 1


def test_app_that_fails_on_a_later_import_starts_no_storm(place: Place) -> None:
    module = place.module(
        CODE + "\nnote('start', 'import')\nif (HERE / 'broken').exists(): raise RuntimeError('broken')\n"
    )
    worker = place.worker(1)
    (child,) = place.children()
    imports = len(place.marks("start", "import"))
    place.touch("broken")
    os.kill(child, signal.SIGKILL)
    worker.said("the next starts in 1 s")
    worker.said("the next starts in 2 s")
    assert len(place.marks("start", "import")) - imports == 2
    (place.folder / "broken").unlink()
    assert module.fine.delay(1).get(timeout=20) == 1


NO_FORK = """
import errno, os, subprocess

class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        if os.path.exists("no-fork"):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        super().__init__(*args, **kwargs)

subprocess.Popen = Popen
"""


def test_process_that_cannot_be_started_ends_no_other(place: Place) -> None:
    """The system may be short of processes, files or memory for a while."""
    module = place.module(CODE + "\n@app.task\ndef slow():\n    note('start', 'slow')\n    wait_for('go')\n")
    slow = module.slow.delay()
    worker = place.worker(2, before=NO_FORK)
    busy = place.await_start("slow").pid
    (idle,) = set(place.children(2)) - {busy}
    place.touch("no-fork")
    os.kill(idle, signal.SIGKILL)
    worker.said("cannot be started: [Errno 11] Resource temporarily unavailable; the next try is in 1 s")
    worker.said("the next try is in 2 s")
    (place.folder / "no-fork").unlink()
    assert module.fine.delay(1).get(timeout=20) == 1
    place.touch("go")
    assert slow.get(timeout=20) is None
    assert place.runs("slow") == {"": 1}
    assert worker.stop() == 0


def test_worker_that_can_start_no_process_says_so(place: Place) -> None:
    place.module(CODE)
    place.touch("no-fork")
    worker = place.worker(2, before=NO_FORK)
    assert worker.wait() == 1
    assert "Error: no process can be started: [Errno 11]" in worker.log
    assert "Traceback" not in worker.log


# Records that cannot be read


def _append(place: Place, task: str, body: bytes, meta: Meta | bytes | None = None) -> Any:
    """Append a call as no producer of ours would; return its handle."""
    app = place.app
    log = app.stream_of("queue", "default").logs[0]
    row = new_row("shop", log, task, body, Meta(), None)
    row.meta = meta.packed() if isinstance(meta, Meta) else meta
    app.opened.producer.append(row)
    return app.AsyncResult(str(Row and _text(row.id)))


def _text(id: bytes) -> str:
    import uuid

    return str(uuid.UUID(bytes=id))


def test_records_that_cannot_be_read_are_dead_letters_with_the_reason(place: Place) -> None:
    module = place.module(
        """
        @app.task(autoretry_for=(Exception,), max_retries=None)
        def fine(n):
            with noted("fine", n):
                return n
        """
    )
    good = module.fine.delay_many(range(5))
    body = good[0].record().body
    results = {
        "malformed": _append(place, "fine", b"\xc1"),
        "not a call": _append(place, "fine", b"\x07"),
        "content": _append(place, "fine", body, Meta(content_type="application/x-unheard")),
        "version 9": _append(place, "fine", body, Meta(version=9)),
        "attributes": _append(place, "fine", body, b"\xc1\xc1"),
        "pickle": _append(place, "fine", body, Meta(content_type="pickle")),
    }
    empty = _append(place, "fine", b"")
    last = module.fine.delay(99)
    place.burst()
    for said, result in results.items():
        with pytest.raises(CorruptBody, match=said):
            result.get(timeout=1)
    with pytest.raises(CorruptBody):
        empty.get(timeout=1)
    assert len(dead_letters(place.app)) == len(results) + 1
    assert good.get(timeout=1) == list(range(5))
    assert last.get(timeout=1) == 99
    place.check()


def test_arguments_that_do_not_fit_the_code_any_more(place: Place) -> None:
    module = place.module("@app.task\ndef one(n: int): return n\n")
    result = module.app.send_task("other", ())
    many = _append(place, "one", b"\x92\x93\x01\x02\x03\x80")  # one(1, 2, 3)
    place.burst()
    with pytest.raises(TypeError, match="positional"):
        many.get(timeout=1)
    assert result.state == "PENDING"


def test_unknown_task_waits_for_a_worker_that_knows_it(place: Place) -> None:
    module = place.module("")
    results = [module.app.send_task("later", (n,)) for n in range(300)]
    old = place.worker(1)
    eventually(lambda: place.counts().parked.get("unknown") == 300)
    assert {r.state for r in results} == {"PENDING"}
    assert old.stop() == 0
    place.module("@app.task\ndef later(n):\n    with noted('later', n): return n\n")
    before = time.monotonic()
    new = place.worker(1)
    assert [place.app.AsyncResult(r.id).get(timeout=20) for r in results] == list(range(300))
    assert time.monotonic() - before < 5
    assert new.stop() == 0
    assert set(place.runs("later").values()) == {1}
    place.check()


def test_unknown_task_is_offered_while_an_old_worker_runs_beside(place: Place) -> None:
    module = place.module("@app.task\ndef known(n): return n\n")
    place.worker(1)
    results = [module.app.send_task("later", (n,)) for n in range(10)]
    eventually(lambda: place.counts().parked.get("unknown") == 10)
    place.module("@app.task\ndef later(n):\n    with noted('later', n): return n\n")
    place.worker(1)
    assert [place.app.AsyncResult(r.id).get(timeout=20) for r in results] == list(range(10))


# The engine


def _lock(place: Place) -> apsw.Connection:
    foreign = apsw.Connection(str(place.folder / "log.db"))
    eventually(lambda: _begun(foreign))
    return foreign


def _begun(foreign: apsw.Connection) -> bool:
    try:
        foreign.execute("BEGIN IMMEDIATE")
    except apsw.BusyError:
        return False
    return True


def test_log_locked_for_longer_than_anything_allows(place: Place) -> None:
    """H4: nothing is stolen, nobody dies, and all goes on when the lock is gone."""
    module = place.module(
        CODE,
        """
        @app.task
        def slow(n):
            with noted("slow", n):
                wait_for(f"go-{n}")
                return n
        """,
        beat=0.1, worker_ttl=0.5, append_timeout=0.3,
    )  # fmt: skip
    slow = module.slow.delay(1)
    rest = module.fine.delay_many(range(300))
    first, second = place.worker(1, name="first"), place.worker(1, name="second")
    place.await_start("slow", "1")
    rest.wait(timeout=20)
    more = module.fine.delay_many(range(300, 310))
    queued = module.slow.delay_many([2, 3, 4])
    eventually(lambda: len(place.marks("start", "slow")) == 2)
    foreign = _lock(place)
    began = time.monotonic()
    first.said("cannot ")
    second.said("cannot ")
    place.touch("go-1")
    with pytest.raises(RespoolError):
        module.fine.delay(1000)
    eventually(lambda: time.monotonic() - began > 2.0)
    foreign.execute("ROLLBACK")
    foreign.close()
    for n in (2, 3, 4):
        place.touch(f"go-{n}")
    assert slow.get(timeout=20) == 1
    assert queued.get(timeout=20) == [2, 3, 4]
    assert more.get(timeout=20) == list(range(300, 310))
    first.said("is back")
    assert {w.name for w in place.registered()} == {"first", "second"}
    assert "declared dead" not in first.log + second.log
    assert (first.stop(), second.stop()) == (0, 0)
    assert set(place.runs("fine").values()) == set(place.runs("slow").values()) == {1}
    place.check()


def test_time_limits_are_kept_while_the_log_is_locked(place: Place) -> None:
    """However long appends may wait: no write of the supervisor's holds it up. All is settled later."""
    module = place.module(
        CODE,
        """
        @app.task(time_limit=1.0)
        def endless(n):
            note("start", "endless", n)
            wait_for("never", 60)


        @app.task(soft_time_limit=1.0)
        def soft(n):
            note("start", "soft", n)
            wait_for("never", 60)
        """,
        beat=0.1, worker_ttl=0.5, append_timeout=30,
    )  # fmt: skip
    fine = module.fine.delay_many(range(20))
    endless = [module.endless.delay(n) for n in range(2)]
    soft = module.soft.delay(1)
    worker = place.worker(3)
    begun = [place.await_start("endless", str(n)) for n in range(2)]
    place.await_start("soft", "1")
    foreign = _lock(place)
    for mark in begun:
        eventually(lambda: not Path(f"/proc/{mark.pid}").exists(), timeout=5)  # noqa: B023
    assert time.monotonic() - max(mark.at for mark in begun) < 1.0 + 2.0
    worker.said("cannot ")
    eventually(lambda: time.monotonic() - begun[0].at > 4.0)
    assert worker.process.poll() is None, worker.log
    foreign.execute("ROLLBACK")
    foreign.close()
    for each in endless:
        with pytest.raises(TimeLimitExceeded):
            each.get(timeout=20)
    with pytest.raises(SoftTimeLimitExceeded):
        soft.get(timeout=20)
    assert fine.get(timeout=20) == list(range(20))
    worker.said("is back")
    assert worker.stop() == 0
    said = worker.log.count("its time_limit: its process was killed")
    assert said == 2, "once each, however often it was tried"
    assert place.runs("endless") == {"0": 1, "1": 1}
    assert place.counters().get("refused settlements", 0) == 0
    place.check()


def test_child_dies_while_the_log_is_locked(place: Place) -> None:
    module = place.module(
        CODE + "\n@app.task\ndef slow(n):\n    note('start', 'slow', n)\n    wait_for('go')\n    return n\n",
        beat=0.1, worker_ttl=0.5, append_timeout=0.3,
    )  # fmt: skip
    slow = module.slow.delay(1)
    worker = place.worker(1)
    mark = place.await_start("slow", "1")
    foreign = _lock(place)
    os.kill(mark.pid, signal.SIGKILL)
    worker.said("cannot ")
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 1.0)
    assert worker.process.poll() is None, worker.log
    foreign.execute("ROLLBACK")
    foreign.close()
    place.touch("go")
    assert slow.get(timeout=20) == 1
    assert [a.how for a in slow.history()] == ["lost", "done"]
    assert worker.stop() == 0


def test_stop_while_the_log_is_locked(place: Place) -> None:
    module = place.module(CODE, beat=0.1, worker_ttl=0.5, append_timeout=0.3)
    module.fine.delay(1).id  # noqa: B018 - opens the log
    worker = place.worker(1)
    place.children()
    foreign = _lock(place)
    worker.said("cannot ")
    worker.signal(signal.SIGTERM)
    status = worker.wait()
    foreign.close()
    assert "Traceback" not in worker.log
    assert status == 0


def _files(place: Place) -> list[Path]:
    return [place.folder / f"log.db{end}" for end in ("", "-wal", "-shm")]


def _delete_log(place: Place) -> None:
    for path in _files(place):
        path.unlink(missing_ok=True)


def test_log_deleted_under_an_idle_worker(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker(1)
    assert module.fine.delay(1).get(timeout=20) == 1
    _delete_log(place)
    worker.said("deleted or replaced")
    used = cpu_seconds(worker.pid)
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 1.0)
    assert worker.process.poll() is None
    assert cpu_seconds(worker.pid) - used < 0.3
    assert worker.log.count("deleted or replaced") <= 3
    assert not (place.folder / "log.db").exists()
    module.app.close()
    assert module.fine.delay(2).get(timeout=20) == 2
    assert worker.stop() == 0


@pytest.mark.parametrize("how", ["deleted", "replaced", "deleted at import", "opened at import"])
def test_child_that_is_replaced_after_the_log_was_deleted_makes_no_new_one(place: Place, how: str) -> None:
    """The supervisor finds out by its next beat, which is far off."""
    module = place.module(
        CODE,
        """
        if (HERE / "opens").exists():
            app.engine
        if IN_WORKER and once("unlink"):
            for end in ("", "-wal", "-shm"):
                (HERE / f"log.db{end}").unlink(missing_ok=True)
        """,
        beat=20, worker_ttl=60,
    )  # fmt: skip
    worker = place.worker(1)
    assert module.fine.delay(1).get(timeout=20) == 1
    (child,) = tree(worker.pid)
    if how == "deleted at import":
        place.touch("unlink")
    else:
        _delete_log(place)
    if how == "opened at import":
        place.touch("opens")
    if how == "replaced":
        (place.folder / "log.db").touch()
    os.kill(child, signal.SIGKILL)
    worker.said("no new one is made")
    worker.said("the next starts in 2 s")
    assert [path.name for path in _files(place) if path.exists()] == ["log.db"] * (how == "replaced")
    if how == "replaced":
        assert (place.folder / "log.db").stat().st_size == 0
    worker.signal(signal.SIGTERM)
    worker.wait()
    assert "Traceback" not in worker.log


def test_log_deleted_while_a_task_runs(place: Place) -> None:
    module = place.module(
        CODE
        + "\n@app.task\ndef slow(n):\n    note('start', 'slow', n)\n    wait_for('go', 1.0)\n    return n\n"
    )
    worker = place.worker(1)
    module.slow.delay(1)
    place.await_start("slow", "1")
    _delete_log(place)
    worker.said("deleted or replaced")
    worker.signal(signal.SIGTERM)
    worker.wait()
    assert "Traceback" not in worker.log


def test_child_whose_log_was_deleted_says_so_in_a_line(place: Place) -> None:
    """It finds out before its supervisor, whose next beat is far off."""
    code = CODE + "\n@app.task\ndef slow(n):\n    note('start', 'slow', n)\n    wait_for('go')\n"
    module = place.module(code, beat=20, worker_ttl=60)
    worker = place.worker(1)
    module.slow.delay(1)
    place.await_start("slow", "1")
    _delete_log(place)
    place.touch("go")
    worker.said("child: the process ends: ")
    worker.signal(signal.SIGTERM)
    worker.wait()
    assert "Traceback" not in worker.log


def test_worker_that_starts_without_a_place_for_its_log(place: Place) -> None:
    place.module(CODE)
    text = place.path.read_text().replace("HERE / 'log.db'", "HERE / 'no' / 'such' / 'log.db'")
    place.path.write_text(text)
    worker = place.worker(1)
    assert worker.wait() == 1
    assert "no/such/log.db" in worker.log


def test_file_that_is_something_else(place: Place) -> None:
    place.module(CODE)
    (place.folder / "log.db").write_bytes(b"these are not the pages you are looking for" * 100)
    worker = place.worker(1)
    assert worker.wait() == 1
    assert "not a database" in worker.log


# Clocks

SHIFTED = """
import time as _time
_real = _time.time
def _shifted():
    try:
        return _real() + float(open({path!r}).read() or 0)
    except FileNotFoundError:
        return _real()
_time.time = _shifted
"""


@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_jumps(place: Place, hours: int) -> None:
    """Nothing is lost, no lease is stolen; what is due later comes sooner or later, and once."""
    shift = place.folder / "shift"
    shifted = SHIFTED.format(path=str(shift))
    module = place.module(
        "if IN_WORKER:\n"
        + "".join(f"    {line}\n" for line in shifted.splitlines())
        + CODE
        + "\n@app.task\ndef slow(n):\n    with noted('slow', n):\n        wait_for('go')\n        return n\n",
        beat=0.1, worker_ttl=0.5,
    )  # fmt: skip
    slow = module.slow.delay(1)
    workers = [place.worker(1, before=shifted, name=f"w{n}") for n in range(2)]
    place.await_start("slow", "1")
    eventually(lambda: len(place.registered()) == 2)
    fine = [module.fine.delay(n) for n in range(10)]
    later = module.fine.apply_async((50,), countdown=3000)
    eventually(lambda: later.state == "SCHEDULED")
    shift.write_text(str(hours * 3600))
    beats = [w.beat for w in place.registered()]
    eventually(lambda: all(w.beat > b + 10 for w, b in zip(place.registered(), beats, strict=True)))
    fine += [module.fine.delay(n) for n in range(10, 20)]
    assert [r.get(timeout=20) for r in fine] == list(range(20))
    assert len(place.registered()) == 2
    if hours > 0:
        assert later.get(timeout=20) == 50
    else:
        assert later.state == "SCHEDULED"
    place.touch("go")
    assert slow.get(timeout=20) == 1
    assert [w.stop() for w in workers] == [0, 0]
    assert set(place.runs("fine").values()) == {1}
    assert place.runs("slow") == {"1": 1}
    assert "dead" not in "".join(w.log for w in workers)


def test_children_die_with_their_supervisor(place: Place) -> None:
    module = place.module(CODE + "\n@app.task\ndef slow():\n    note('start', 'slow')\n    wait_for('go')\n")
    module.slow.delay()
    worker = place.worker(2)
    place.await_start("slow")
    children = place.children(2)
    assert set(children) == set(tree(worker.pid))
    worker.kill()
    eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_worker_needs_no_terminal_and_says_where_it_works(place: Place) -> None:
    place.module(CODE)
    worker = place.worker(1)
    worker.said("serves  t/default")
    assert str(place.folder / "log.db") in worker.log
    assert worker.stop() == 0
    assert worker.log.count("Traceback") == 0
    assert subprocess.run([sys.executable, "-c", "import respool"], env={"PYTHONPATH": SOURCES}, check=True)
