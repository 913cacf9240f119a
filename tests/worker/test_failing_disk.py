"""A disk that is full, or that fails, under running workers: an error, no loop at full speed, and recovery.

The faults are SQLite's own errors, raised by a VFS in the worker's processes while a file says so; whoever
sends is not under it. What an engine makes of each error, and of power cuts, is in crash/test_io_faults.
"""

from __future__ import annotations

import os
import signal
import textwrap
import time

import pytest
from tests.worker.support import Place, WorkerProcess, cpu_seconds, eventually, tree

FAILING = """
import apsw as _apsw
from pathlib import Path as _Path

_marks = _Path({folder!r})
_usual = _apsw.vfs_names()[0]  # not "", the default: that will be ours


class _File(_apsw.VFSFile):
    def __init__(self, name, flags):
        super().__init__(_usual, name, flags)

    def xWrite(self, data, offset):
        if (_marks / "full").exists():
            raise _apsw.FullError("disk full")
        if (_marks / "fails").exists():
            raise _error(_apsw.SQLITE_IOERR_WRITE)
        super().xWrite(data, offset)

    def xSync(self, flags):
        if (_marks / "fails").exists():
            raise _error(_apsw.SQLITE_IOERR_FSYNC)
        super().xSync(flags)


def _error(code):
    error = _apsw.IOError("input/output error")
    error.extendedresult = code
    return error


class _Disk(_apsw.VFS):
    def __init__(self):
        super().__init__("failing", _usual, makedefault=True)

    def xOpen(self, name, flags):
        if (_marks / "shut").exists() and flags[0] & _apsw.SQLITE_OPEN_MAIN_DB:
            raise _apsw.CantOpenError("unable to open database file")
        return _File(name, flags)


_disk = _Disk()
"""
CODE = """
@app.task
def fine(n):
    with noted("fine", n):
        return n


@app.task
def slow(n):
    with noted("slow", n):
        wait_for(f"go-{n}")
        return n
"""


@pytest.fixture
def failing(place: Place) -> str:
    """Code after which the processes of a worker have a disk that fails when it is told to."""
    return FAILING.format(folder=str(place.folder))


def _busy(worker: WorkerProcess) -> float:
    return sum(cpu_seconds(pid) for pid in [worker.pid, *tree(worker.pid)])


@pytest.mark.parametrize(("fault", "said"), [("full", "no space left"), ("fails", "cannot be synced")])
def test_workers_wait_for_a_disk_and_go_on(place: Place, failing: str, fault: str, said: str) -> None:
    in_children = "if IN_WORKER:\n" + textwrap.indent(failing, "    ")
    module = place.module(in_children, CODE, beat=0.1, worker_ttl=0.5, append_timeout=0.3)
    workers = [place.worker(1, before=failing, name=name) for name in ("first", "second")]
    before = module.fine.delay_many(range(20))
    slow = module.slow.delay(1)
    assert before.get(timeout=20) == list(range(20))
    place.await_start("slow", "1")
    eventually(lambda: len(place.registered()) == 2)

    place.touch(fault)
    more = module.fine.delay_many(range(20, 320))
    place.touch("go-1")  # it ends, and cannot be settled
    for worker in workers:
        worker.said("cannot ")
    eventually(lambda: said in workers[0].log + workers[1].log, said)
    used, since = [_busy(worker) for worker in workers], time.monotonic()
    eventually(lambda: time.monotonic() - since > 2.0)
    spent = [_busy(worker) - was for worker, was in zip(workers, used, strict=True)]
    assert max(spent) < 1.0, "no loop at full speed"
    assert all(worker.process.poll() is None for worker in workers)
    assert all(worker.log.count("\n") < 60 for worker in workers), "and no flood in its log"
    assert "Traceback" not in workers[0].log + workers[1].log

    (place.folder / fault).unlink()
    assert slow.get(timeout=20) == 1
    assert more.get(timeout=20) == list(range(20, 320))
    for worker in workers:
        worker.said("is back")
    assert {worker.name for worker in place.registered()} == {"first", "second"}
    assert "declared dead" not in workers[0].log + workers[1].log
    assert [worker.stop() for worker in workers] == [0, 0]
    assert place.runs("slow") == {"1": 1}
    repeats = sum(place.runs("fine").values()) - len(place.runs("fine"))
    assert set(place.runs("fine")) == {str(n) for n in range(320)}
    assert repeats == 0
    place.check()


@pytest.mark.parametrize(("fault", "said"), [("full", "no space left"), ("shut", "cannot open")])
def test_a_process_that_dies_while_the_log_cannot_be_written_or_opened(
    place: Place, failing: str, fault: str, said: str
) -> None:
    """What it held is settled and given back when that has passed; its successor comes up then."""
    in_children = "if IN_WORKER:\n" + textwrap.indent(failing, "    ")
    module = place.module(in_children, CODE, beat=0.1, worker_ttl=0.5, append_timeout=0.3)
    worker = place.worker(1, before=failing)
    slow = module.slow.delay(1)
    mark = place.await_start("slow", "1")
    place.touch(fault)
    os.kill(mark.pid, signal.SIGKILL)
    worker.said(said)
    since = time.monotonic()
    eventually(lambda: time.monotonic() - since > 1.0)
    assert worker.process.poll() is None, worker.log
    assert worker.log.count("cannot start") <= 3, "no restart storm"
    (place.folder / fault).unlink()
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    assert [attempt.how for attempt in slow.history()] == ["lost", "done"]
    assert worker.stop() == 0
    place.check()
