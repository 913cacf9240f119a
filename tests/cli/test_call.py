"""respool call: arguments, waiting, exit codes."""

import importlib
import json
import os
import pty
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from tests.cli.support import in_terminal, run, start, write_shop

from respool import GetTimeout, TimeLimitExceeded
from respool.cli import output
from respool.delivery.model import Verdict
from respool.encoding.remote import encode_error
from respool.replay import pause, resume
from respool.testing import work


def sent(cli):
    return cli.rows("-A", "shop", "calls")[0]


def test_prints_the_id_and_sends_the_call(cli):
    id = cli("-A", "shop", "call", "add", "2", "3").strip()
    assert (sent(cli)["id"], sent(cli)["input"]) == (id, {"args": [2, 3], "kwargs": {}})
    assert json.loads(cli("-A", "shop", "call", "add", "2", "3", "--json"))["id"] == sent(cli)["id"]


def test_through_the_real_entry_point(folder):
    result = run("-A", "shop", "call", "add", "2", "3", cwd=folder)
    assert result.returncode == 0, result.stderr
    shown = run("-A", "shop", "show", result.stdout.strip(), cwd=folder)
    assert "add(2, 3)" in shown.stdout
    assert "PENDING" in shown.stdout


def test_arguments_are_json_else_text(cli):
    cli("-A", "shop", "call", "fetch", "plain text", "--kw", "retries=7")
    assert sent(cli)["input"] == {"args": ["plain text"], "kwargs": {"retries": 7}}
    cli("-A", "shop", "call", "fetch", '"2"')
    assert sent(cli)["input"]["args"] == ["2"]


def test_what_a_task_declares_is_made_of_json(cli, folder):
    write_shop(folder, DECLARED, "declared")
    call = ("-A", "declared", "call", "ship")
    cli(*call, '{"id": 1, "tags": ["a"]}', "2026-01-31", "--kw", "color=red")
    (found,) = cli.rows("-A", "declared", "calls")
    assert found["input"]["args"][0] == {"id": 1, "tags": ["a"]}
    assert found["input"]["kwargs"] == {"color": "red"}
    work(importlib.import_module("declared").app)
    assert (
        cli.data("-A", "declared", "show", found["id"])["groups"][0]["result"]
        == "Order 1 2026-01-31 Color.RED"
    )
    assert "argument 'order'.id should be int, got 'x' (str)" in cli(
        *call, '{"id": "x", "tags": []}', "2026-01-31", code=2
    )
    assert "should be date, got '31.1.'" in cli(*call, '{"id": 1, "tags": []}', "31.1.", code=2)


DECLARED = """
from dataclasses import dataclass
from datetime import date
from enum import Enum
from respool import App

app = App("declared")

class Color(Enum):
    RED = "red"

@dataclass
class Order:
    id: int
    tags: set[str]

@app.task
def ship(order: Order, when: date, color: Color = Color.RED) -> str:
    return f"{type(order).__name__} {order.id} {when} {color}"
"""


def test_negative_numbers_are_arguments(cli):
    cli("-A", "shop", "call", "add", "-1", "-20")
    assert sent(cli)["input"]["args"] == [-1, -20]
    cli("-A", "shop", "call", "add", "--", "-3", "4")
    assert sent(cli)["input"]["args"] == [-3, 4]
    cli("-A", "shop", "call", "fetch", "x", "--kw", "retries=-1")
    assert sent(cli)["input"]["kwargs"] == {"retries": -1}


def test_options_of_the_call(cli):
    assert (
        cli(
            "-A", "shop", "call", "mail", "me", "--id", "mine", "--queue", "fast", "--countdown", "1h"
        ).strip()
        == "mine"
    )
    data = cli.data("-A", "shop", "show", "mine")
    assert data["queue"] == "fast"
    assert data["due"] > data["time"]
    cli("-A", "shop", "call", "mail", "me", "--id", "mine", "--queue", "fast", "--countdown", "1h")
    assert len(cli.rows("-A", "shop", "calls")) == 1


def test_more_options_of_the_call(cli):
    given = ("--header", "tenant=acme", "--header", "a=b=c", "--expires", "1h")
    data = cli.data("-A", "shop", "show", cli("-A", "shop", "call", "mail", "me", *given).strip())
    assert data["headers"] == {"tenant": "acme", "a": "b=c"}
    assert data["expires"] > data["time"]
    later = cli("-A", "shop", "call", "mail", "you", "--eta", "2031-01-31T14:00+02:00").strip()
    assert datetime.fromisoformat(cli.data("-A", "shop", "show", later)["due"]).timestamp() == 1927627200


def test_an_eta_that_is_over_is_told(folder):
    sent = run("-A", "shop", "call", "mail", "you", "--eta", "2026-01-31", cwd=folder, TZ="UTC")
    assert sent.stderr == "--eta: 2026-01-31 00:00:00 UTC is over, so it may start at once\n"
    assert run("-A", "shop", "show", sent.stdout.strip(), cwd=folder).returncode == 0
    for eta in ("1h", "now", "2999-01-31"):
        assert run("-A", "shop", "call", "mail", "you", "--eta", eta, cwd=folder).stderr == ""


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["mail", "me", "--key", "acme"], 2, "queue default is not ordered"),
        (["mail", "me", "--eta", "soon"], 2, "'soon' is no moment"),
        (["mail", "me", "--eta", "-5m"], 2, "'-5m' is no moment"),
        (["mail", "me", "--countdown", "-5m"], 2, "duration: '-5m' is no duration"),
        (["mail", "me", "--priority", "-1"], 2, "-1 is not in the range"),
        (["mail", "me", "--eta", "14:00", "--countdown", "1h"], 2, "countdown and eta: give one of them"),
        (["mail", "me", "--header", "tenant"], 2, "'tenant' is no header; one looks like tenant=acme"),
        (["ad", "1", "2"], 2, "unknown task 'ad'; did you mean 'add'?"),
        (["add", "1"], 2, "add"),
        (["add", "x", "2"], 2, "Error: "),
        (["add", "x=1", "y=2"], 2, "should be int, got 'x=1' (str); by name it is --kw x=1"),
        (["mail", "me", "--queue", "fats"], 2, "unknown queue 'fats'; did you mean 'fast'?"),
        (["add", "1", "2", "--kw", "x"], 2, "'x' is not NAME=VALUE"),
        (["add", "1", "2", "--countdown", "soon"], 2, "'soon' is no duration"),
        (["add", "1", "2", "--timeout", "1"], 2, "--timeout goes with --wait"),
        (["add", "1", "2", "--id", "x" * 201], 2, "an id is printable text of 1 to 200 bytes"),
        ([], 2, "Missing argument 'TASK'"),
    ],
)
def test_what_cannot_be_sent_is_refused(cli, args, code, told):
    text = cli("-A", "shop", "call", *args, code=code)
    assert told in text
    assert "Traceback" not in text


def test_same_id_with_other_arguments(cli):
    cli("-A", "shop", "call", "add", "1", "2", "--id", "a")
    assert "taken by a record with another body" in cli(
        "-A", "shop", "call", "add", "1", "3", "--id", "a", code=1
    )


def test_an_app_in_memory_is_of_no_use(cli, folder):
    (folder / "mem.py").write_text(
        "from respool import App\napp = App('mem', url='sqlite:///:memory:')\n@app.task\ndef t(): ...\n"
    )
    assert "keeps its log in memory" in cli("-A", "mem", "call", "t", code=2)


def test_timeout_has_an_exit_code_of_its_own_and_says_why(cli):
    text = cli("-A", "shop", "call", "add", "1", "2", "--wait", "--timeout", "0.05", code=3)
    assert "is PENDING after 0.05 s: no worker serves shop/default; start one: respool -A shop worker" in text


def test_wait_says_what_it_waits_for_though_it_waits_for_ever(folder, app):
    """Nobody serves it, then its group is paused: said once each, on stderr; then it is run."""
    command = ["-A", "shop", "call", "add", "1", "2", "--wait", "--id", "mine"]
    waits = start(*command, cwd=folder)
    assert waits.stdout.readline() == "mine\n"
    nobody = "waiting: no worker serves shop/default; start one: respool -A shop worker\n"
    assert waits.stderr.readline() == nobody
    pause(app.engine, app.main_of("default"))
    told = "waiting: shop/default is paused; to have it go on: respool groups resume main --queue default\n"
    assert waits.stderr.readline() == told
    resume(app.engine, app.main_of("default"))
    assert waits.stderr.readline() == nobody
    assert run("-A", "shop", "worker", "-c", "1", "--burst", cwd=folder).returncode == 0
    assert waits.communicate(timeout=20) == ("3\n", "")
    assert waits.returncode == 0


def test_who_interrupts_a_wait_is_told_that_the_call_goes_on(folder):
    code, told = in_terminal(
        "-A", "shop", "call", "add", "1", "2", "--wait", "--id", "mine", cwd=folder, interrupt="waiting: no"
    )
    assert code == 1
    assert "the call is not called off; see: respool show mine" in told
    assert run("-A", "shop", "show", "mine", cwd=folder).returncode == 0


def test_a_handle_that_waits_names_the_command_of_its_module(app):
    with pytest.raises(GetTimeout) as failed:
        app.tasks["add"].delay(1, 2).get(timeout=0.01)
    assert "no worker serves shop/default; start one: respool -A shop worker" in str(failed.value)


def test_the_command_suggested_has_the_url_that_was_given(cli, folder):
    url = f"sqlite:///{folder}/other.db"
    text = cli("-A", "shop.py", "--url", url, "call", "add", "1", "2", "--wait", "--timeout", "0.05", code=3)
    assert f"start one: respool -A shop.py --url {url} worker" in text


@pytest.fixture
def working(worker):
    """A worker that serves both queues for the length of a test, from an engine of its own."""
    from tests.cli.support import Worker

    from respool import App

    app = App("shop", url=worker.app.url)
    app.tasks.update(worker.app.tasks)
    app.queue("fast")
    mine, over = Worker(app, "busy"), threading.Event()

    def work():
        while not over.wait(0.01):
            mine.work("default")
            mine.work("fast")
        app.close()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.usefixtures("working")
def test_wait_prints_the_result(cli):
    assert cli("-A", "shop", "call", "add", "2", "3", "--wait", "--timeout", "20").splitlines()[1] == "5"
    data = cli.data("-A", "shop", "call", "add", "2", "3", "--wait", "--timeout", "20")
    assert (data["state"], data["result"]) == ("SUCCESS", 5)


@pytest.mark.usefixtures("working")
def test_wait_for_a_task_that_fails(cli):
    text = cli("-A", "shop", "call", "fetch", "bad://x", "--wait", "--timeout", "20", code=1)
    assert "Error: the task failed: ValueError: no such place: bad://x" in text
    assert "shop.py" in text, "the traceback in the worker"
    result = run(
        "-A", "shop", "call", "fetch", "bad://x", "--wait", "--timeout", "20", "--json", cwd=Path.cwd()
    )
    assert result.returncode == 1
    assert json.loads(result.stdout)["state"] == "FAILURE"


def test_wait_for_what_was_killed_says_so_once(cli, app, worker):
    """Where nothing was raised there is no traceback, whose only line would say the same again."""
    given = ("call", "add", "2", "3", "--id", "mine")
    cli("-A", "shop", *given)
    group, lease = worker.take()
    error = encode_error(TimeLimitExceeded("add was killed after 1 s, its time_limit"))
    dead = Verdict(lease.spans[0].lo, "failure", error, reason="dead", task="add", error=error, note="killed")
    worker.settle(group, lease, verdicts=[dead])
    text = cli("-A", "shop", *given, "--wait", code=1)
    told = "TimeLimitExceeded: add was killed after 1 s, its time_limit"
    assert text == f"mine\nError: the task failed: {told}\n"


def test_an_error_without_a_message_is_shown_without_a_colon():
    assert [output.raised(ValueError()), output.raised(ValueError("no"))] == ["ValueError", "ValueError: no"]


def test_a_question_on_a_terminal(folder):
    """In a process with a terminal, purge asks; no is no."""
    run("-A", "shop", "call", "add", "1", "2", cwd=folder)
    assert _answer(folder, b"n\n") == (1, 1)
    assert _answer(folder, b"y\n") == (0, 0)


def _answer(folder, answer):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        source = str(Path(sys.modules["respool"].__file__).parents[1])
        env = {**os.environ, "PYTHONPATH": source}
        os.execve(
            sys.executable,
            [sys.executable, "-m", "respool", "-A", "shop", "purge", "--queue", "default"],
            env,
        )
    seen = b""
    while b"?" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, answer)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if not os.read(terminal, 1000):
                break
        except OSError:  # its end of the terminal is closed
            break
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    left = json.loads(run("-A", "shop", "lag", "--json", "--queue", "default", cwd=folder).stdout)["pending"]
    return code, left


def test_text_that_reads_as_json_says_how_it_is_written(cli, app):
    told = cli("-A", "shop", "call", "mail", "7", code=2)
    assert "should be str, got 7 (int)" in told
    assert """as text it is written '"7"'""" in told
    assert cli("-A", "shop", "call", "mail", '"7"')
    assert """as text it is written '"true"'""" in cli(
        "-A", "shop", "call", "mail", "--kw", "to=true", code=2
    )
    assert "as text" not in cli("-A", "shop", "call", "add", "x", "2", code=2)
