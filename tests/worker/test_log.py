"""What a worker's log tells whoever reads it: which call, what became of it, one line a message."""

from __future__ import annotations

import io
import logging
import os
import select
import signal
import subprocess
import sys
from typing import Any

import pytest
from tests.worker.support import SOURCES, Place, eventually, on_each_engine

from respool import App
from respool.delivery.model import Verdict
from respool.errors import EngineUnavailable
from respool.replay import Selection, create_replay
from respool.testing import work
from respool.worker import telling
from respool.worker.options import WorkerOptions, encode
from respool.worker.telling import MOST_RETRIES, Retries, one_line

CODE = """
@app.task(max_deliveries=2)
def dies():
    die()


@app.task
def plain(n):
    return n


@app.task(time_limit=0.2)
def hangs():
    time.sleep(60)


@app.task(batch=10, batch_wait=0.2, max_deliveries=2, time_limit=0.3)
def hangs_together(items):
    if len(items) > 1:
        time.sleep(60)


@app.task(batch=10, batch_wait=0.2)
def positive(numbers):
    for number in numbers:
        if number < 0:
            raise ValueError(number)


@app.task(batch=10, batch_wait=0.2)
def all_fail(numbers):
    return [OSError(1) for number in numbers]


@app.task(autoretry_for=(OSError,), default_retry_delay=0.01, max_retries=2)
def flaky():
    raise OSError("the bank\\n\\tdoes not answer\\x1b[2J")


@app.task
def waits():
    with noted("waits"):
        wait_for("go")


events = app.stream("visits")


@events.subscribe(group="audit", start="earliest")
def audit(event):
    with noted("audit"):
        wait_for("go")
"""


def _lines(log: str, *words: str) -> list[str]:
    return [line for line in log.splitlines() if all(word in line for word in words)]


@on_each_engine
def test_death_of_a_process_names_the_call_that_it_ran(place: Place) -> None:
    module = place.module(CODE)
    call = module.dies.delay()
    log = place.burst().log
    deaths = _lines(log, f", running call {call.id} of task dies: its process was killed by SIGKILL")
    assert len(deaths) == 2, log
    seen = f"; see: respool show {call.id}"
    assert _lines(log, f"call {call.id} of task dies is a dead letter", "SIGKILL", seen), log


@on_each_engine
def test_what_is_killed_at_its_time_limit_is_named(place: Place) -> None:
    module = place.module(CODE)
    call = module.hangs.delay()
    log = place.burst().log
    assert _lines(log, f"call {call.id} of task hangs ran longer than 0.2 s, its time_limit"), log
    told = f"call {call.id} of task hangs is a dead letter: killed after 0.2 s, its time_limit"
    assert _lines(log, f"{told}; see: respool show {call.id}"), log


def test_batch_that_is_killed_is_named_by_its_first_call(place: Place) -> None:
    module = place.module(CODE)
    calls = list(module.hangs_together.delay_many(range(3)))
    log = place.burst().log
    what = f"a batch of 3 calls of task hangs_together, the first of them {calls[0].id}"
    assert len(_lines(log, f"{what} ran longer than 0.3 s")) == 1, log
    assert "dead letter" not in log
    assert [call.state for call in calls] == ["SUCCESS"] * 3, "they ran singly"


def test_call_that_fails_its_batch_is_named(place: Place) -> None:
    module = place.module(CODE)
    calls = list(module.positive.delay_many([1, -2, 3]))
    log = place.burst().log
    told = f"call {calls[1].id} of task positive is a dead letter: failed: ValueError: -2"
    assert len(_lines(log, f"{told}; see: respool show {calls[1].id}")) == 1, log
    calls = list(module.positive.delay_many([-1, -2, -2]))
    log = place.burst().log
    assert log.count("is a dead letter") == 3
    module.all_fail.delay_many([1, 2])
    assert (
        "task all_fail: 2 of 2 calls of a batch are dead letters: failed: OSError: 1; see"
        in place.burst().log
    )


def test_events_are_named_by_their_stream_and_group(place: Place) -> None:
    """As the lists of dead letters name them, whatever their type is and the function is called."""
    module = place.module(
        """
events = app.stream("visits")


@events.subscribe(group="singly", start="earliest", autoretry_for=(OSError,), default_retry_delay=0.01)
def one(event):
    raise OSError if event == 1 else ValueError


@events.subscribe(group="together", start="earliest", batch=10, batch_wait=0.2)
def some(events):
    return [ValueError(event) for event in events]
"""
    )
    ids = [module.events.publish(n, type="click") for n in (1, 2)]
    log = place.burst().log
    assert _lines(log, "stream visits, group singly: retry 1 of 3 in 0.01 s: OSError; see: respool show"), log
    told = "an event of stream visits, group singly, is a dead letter: failed: ValueError; see: respool show"
    assert _lines(log, f"{told} {ids[1]}"), log
    told = "stream visits, group together: 2 of 2 events of a batch are dead letters: failed: ValueError: 1;"
    assert _lines(log, told), log
    assert not _lines(log, "child:", "task"), log


def test_what_a_process_had_worked_through_counts_though_it_was_killed(place: Place) -> None:
    """And what was only put by does not: it is worked through when it has run."""
    module = place.module(CODE)
    for _ in range(2):
        module.plain.delay_many(range(8))
        module.hangs.delay()
    module.plain.apply_async((1,), countdown=3600)
    module.app.send_task("nobody", (1,))
    log = place.burst().log
    assert "worked through 18 records; left: 1 scheduled, 1 unknown, 2 dead" in log, log


@pytest.mark.parametrize(("task", "pool"), [("plain", "processes"), ("positive", "solo")])
def test_what_a_replay_leaves_out_is_not_worked_through(place: Place, task: str, pool: str) -> None:
    module = place.module(CODE)
    for each in (module.plain, module.positive):
        each.delay_many(range(1, 4))
    assert "worked through 6 records; left: nothing" in place.burst(pool=pool).log
    create_replay(place.app, "default", "v2", [task], selection=Selection(where="args[0] > 1"))
    assert "worked through 2 calls; left: nothing" in place.burst(pool=pool, group="v2").log


@on_each_engine
def test_retries_are_told_each_on_one_line(place: Place) -> None:
    module = place.module(CODE)
    call = module.flaky.delay()
    log = place.burst().log
    error = r"OSError: the bank\n\tdoes not answer\x1b[2J"
    for number in (1, 2):
        told = f"task flaky: retry {number} of 2 in 0.01 s: {error}; see: respool show {call.id}"
        assert len(_lines(log, told)) == 1, log
    assert len(_lines(log, "task flaky is a dead letter: failed: " + error)) == 1, log
    assert "\x1b" not in log


@on_each_engine
def test_successor_of_a_dead_worker_says_what_it_was_running(place: Place) -> None:
    module = place.module(CODE)
    call = module.waits.delay()
    module.events.publish({"n": 1}, record_id="visit-1")
    first = place.worker(2)
    place.await_start("waits")
    place.await_start("audit")
    first.kill_group()
    place.touch("go")
    log = place.burst().log
    (line,) = _lines(log, "is dead: took over 2 leases; it was running ")
    assert f"call {call.id} of task waits" in line
    assert "event visit-1 of stream visits" in line


LOGS = """
import logging

{setup}

log = logging.getLogger("some.module")


@app.task
def fails():
    log.info("%s began", "it")
    log.debug("in detail")
    raise ValueError("no\\n such place")
"""
OWN = """
if IN_WORKER:
    logging.basicConfig(level=logging.DEBUG, format="MINE %(name)s %(levelname)s %(message)s")
"""
BY_DICT = """
import logging.config

CONFIG = {
    "version": 1,  # whoever forgets disable_existing_loggers disables ours
    "formatters": {"mine": {"format": "MINE %(name)s %(levelname)s %(message)s"}},
    "handlers": {"mine": {"class": "logging.StreamHandler", "formatter": "mine"}},
    "root": {"level": "DEBUG", "handlers": ["mine"]},
}
if IN_WORKER:
    logging.config.dictConfig(CONFIG)
"""


@pytest.mark.parametrize("pool", ["processes", "solo"])
@pytest.mark.parametrize("setup", [OWN, BY_DICT], ids=["basicConfig", "dictConfig"])
def test_logging_is_as_the_app_sets_it_up(place: Place, setup: str, pool: str) -> None:
    module = place.module(LOGS.replace("{setup}", setup))
    module.fails.delay()
    log = place.burst(pool=pool).log
    dead = (
        r"respool.worker ERROR task fails is a dead letter: failed: ValueError: no\n such place; see: respool"
    )
    for told in ("some.module INFO it began\n", "some.module DEBUG in detail\n", dead):
        assert log.count(f"MINE {told}") == 1, log
    assert log.count("is a dead letter") == 1, log


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_an_app_without_logging_of_its_own_is_heard(place: Place, pool: str) -> None:
    module = place.module(LOGS.replace("{setup}", ""))
    module.fails.delay()
    log = place.burst(pool=pool).log
    who = "child" if pool == "processes" else "worker"
    assert log.count(f" {who}: it began\n") == 1, log
    assert log.count(f" {who}: task fails is a dead letter: failed: ValueError: no") == 1, log
    assert "in detail" not in log


@on_each_engine
def test_unknown_task_is_told_once(place: Place) -> None:
    place.module(CODE)
    for _ in range(3):
        place.app.send_task("mails.send", ("ada",))
    log = place.burst().log
    assert log.count("app t has no task mails.send: its calls are kept for a worker that has it\n") == 1, log


def test_what_is_to_be_said_does_not_fail_where_an_id_cannot_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else a call that fails while the engine is away would take its process with it."""

    class Away:
        def records(self, *_: int) -> list[Any]:
            raise EngineUnavailable("no server")

    class Empty:
        def records(self, *_: int) -> list[Any]:
            return []

    away: Any = Away()
    dead = Verdict(7, "failure", reason="dead", task="rank", note="failed: OSError: away")
    with caplog.at_level(logging.INFO, "respool.worker"):
        telling.tell_of_batch(away, Retries(), "task rank", [dead], 1)
    told = "call (of an id that cannot be read now: no server) of task rank is a dead letter: failed: OSError"
    assert told in caplog.text
    assert telling.id_at(Empty(), 7) == "(of a record that is gone)"  # type: ignore[arg-type]


def test_messages_of_the_apps_own_are_left_as_they_are() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(telling._OneLine("%(message)s"))
    for name in ("respool.worker", "shop"):
        handler.handle(logging.LogRecord(name, logging.INFO, "", 1, "%s", ("a\nb",), None))
    assert out.getvalue() == "a\\nb\na\nb\n"


def test_one_line_keeps_what_can_be_shown() -> None:
    assert one_line("größer als 3 €") == "größer als 3 €"
    assert one_line("a\r\nb\u2028c") == r"a\r\nb\u2028c"


def test_a_storm_of_retries_is_told_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    reads: list[int] = []

    def read() -> str:
        reads.append(1)
        return "some-id"

    retries = Retries(lambda: now[0])
    with caplog.at_level(logging.INFO, "respool.worker"):
        for _ in range(5_000):
            retries.tell("task fetch", 1, None, 0.5, "OSError: away", read)
        retries.tell("task mail", 1, 3, 0.5, "OSError: away", read)
        assert len(caplog.records) == len(reads) == MOST_RETRIES
        retries.look()
        assert len(caplog.records) == MOST_RETRIES, "the second is not over"
        now[0] = 1.5
        retries.look()
        assert caplog.messages[-1] == "and 4,991 more retries within 1.5 s: fetch (4,990), mail (1)"
        retries.tell("task mail", 2, 3, 0.5, "OSError: away", read)
        assert caplog.messages[-1].startswith("task mail: retry 2 of 3 in 0.5 s: OSError: away; see:")
        retries.end()
        assert len(caplog.records) == MOST_RETRIES + 2, "there was nothing more to say"
        for _ in range(20):
            retries.may_tell("task rank", 100)
        retries.end()
        assert caplog.messages[-1] == "and 1,100 more retries within 0.0 s: rank (1,100)", (
            "nor those of batches"
        )


def test_a_task_that_asks_to_run_again_is_told_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    with App("t", url="sqlite:///:memory:") as app:

        @app.task(bind=True, max_retries=None)
        def poll(self: Any, error: bool) -> int:
            if self.request.retries < 3:
                self.retry(countdown=0, exc=OSError("away") if error else None)
            return int(self.request.retries)

        def lines(level: int, *, error: bool) -> list[str]:
            caplog.clear()
            with caplog.at_level(level, "respool.worker"):
                result = poll.delay(error)
                eventually(lambda: (work(app), result.ready())[1])
            return [message for message in caplog.messages if message.startswith("task poll")]

        assert lines(logging.INFO, error=False) == []
        (told, *_), of_errors = lines(logging.DEBUG, error=False), lines(logging.INFO, error=True)
    assert told.startswith("task poll: asks to run again in 0 s; see: respool show 0")
    assert [each.partition(" in ")[0] for each in of_errors] == [f"task poll: retry {n}" for n in (1, 2, 3)]


PRINTS = """
@app.task
def prints():
    print("on its way")
    wait_for("go")
"""


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_what_a_task_prints_is_seen_at_once_through_a_pipe(place: Place, pool: str) -> None:
    module = place.module(PRINTS)
    module.prints.delay()
    options = encode(WorkerOptions(app=str(place.path), concurrency=1, burst=True, pool=pool)).decode()
    code = (
        "import sys, msgspec; from respool.worker.options import WorkerOptions as O;"
        "from respool.worker.start import start;"
        "sys.exit(start(msgspec.json.decode(sys.argv[1], type=O)))"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    env["PYTHONPATH"] = os.pathsep.join([SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", code, options], cwd=place.folder, env=env, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        readable: Any = select.select([process.stdout], [], [], 15.0)[0]
        assert readable, "nothing was seen while the task went on"
        assert process.stdout.readline() == "on its way\n"
        place.touch("go")
        assert process.wait(20.0) == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
