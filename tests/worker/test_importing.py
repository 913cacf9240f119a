"""Processes that take long to import the app, or never come to its end."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tests.worker.support import Place, eventually

CODE = """
@app.task
def fine(n):
    note("start", "fine", n)
    return n


@app.task
def die_once():
    if once("may-die"):
        die()


if IN_WORKER and (HERE / "hang").exists():
    note("start", "import")
    wait_for("go", 60)
"""
SOON = """
import respool.worker.importing as importing
importing.LONG, importing.TIMEOUT = 0.3, {timeout}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_whose_first_import_hangs(place: Place, number: int) -> None:
    place.module(CODE)
    place.touch("hang")
    worker = place.worker(1)
    child = place.await_start("import").pid
    before = time.monotonic()
    os.killpg(worker.pid, number)  # to all its processes, as a terminal does it
    assert worker.wait() == 0
    assert time.monotonic() - before < 5
    assert "stopped before the app was imported" in worker.log
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not place.registered()


def test_a_first_import_that_takes_long_is_said_and_waited_for(place: Place) -> None:
    module = place.module(CODE)
    place.touch("hang")
    result = module.fine.delay(1)
    worker = place.worker(1, before=SOON.format(timeout=60))
    worker.said("has been importing the app for 0.3 s")
    place.touch("go")
    assert result.get(timeout=20) == 1
    assert worker.log.count("has been importing") == 1
    assert worker.stop() == 0


def test_a_first_import_that_never_ends(place: Place) -> None:
    place.module(CODE)
    place.touch("hang")
    worker = place.worker(1, before=SOON.format(timeout=1))
    assert worker.wait() == 1
    assert "the app could not be started: not imported within 1 s; connect to services when" in worker.log


def test_a_process_that_replaces_another_and_hangs_at_import_is_replaced(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker(1, before=SOON.format(timeout=4))
    assert module.fine.delay(1).get(timeout=20) == 1
    place.touch("hang")
    place.touch("may-die")
    died = module.die_once.delay()
    hung = place.await_start("import").pid
    waits = module.fine.delay(2)
    worker.said("did not import the app within 4 s and is killed: connect to services when")
    os.unlink(place.folder / "hang")
    assert waits.get(timeout=20) == 2
    assert died.get(timeout=20) is None
    assert f"(pid {hung}) has been importing the app for 0.3 s" in worker.log
    assert "ended before it had the app; the next starts in" in worker.log
    eventually(lambda: not os.path.exists(f"/proc/{hung}"))
    assert [attempt.how for attempt in waits.history()] == ["done"]  # nobody is charged for it
    assert worker.stop() == 0


def test_a_signal_ends_a_worker_of_which_a_replacement_hangs(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker(1, max_tasks_per_child=1)
    eventually(lambda: place.registered())
    place.touch("hang")
    assert module.fine.delay(1).get(timeout=20) == 1
    place.await_start("import")
    assert worker.stop(5) == 0
    assert not place.registered()
