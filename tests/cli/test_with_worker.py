"""The commands beside a real worker."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cli.support import run, start, write_shop
from tests.warm import WarmPopen

from respool.errors import DatabaseGone
from respool.worker.host import farewell

SLOW = """
import pathlib, time
from respool import App

app = App("shop")

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task
def wait(name: str) -> str:
    pathlib.Path(name + ".started").touch()
    while not pathlib.Path(name + ".go").exists():
        time.sleep(0.01)
    return name
"""


def lines(*args, cwd):
    result = run(*args, "--json", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("args", [("-A", "shop", "worker"), ("worker", "-A", "shop")])
def test_a_worker_started_either_way_does_the_work(folder, args):
    id = run("-A", "shop", "call", "add", "2", "3", cwd=folder).stdout.strip()
    result = run(*args, "-c", "1", "--burst", cwd=folder)
    assert result.returncode == 0, result.stderr
    shown = run("-A", "shop", "show", id, cwd=folder).stdout
    assert "SUCCESS" in shown
    assert "returned 5" in shown
    assert run("-A", "shop", "check", cwd=folder).returncode == 0


def test_lag_tells_of_what_a_dead_worker_has_left(folder):
    write_shop(folder, SLOW)
    run("-A", "shop", "call", "wait", "one", cwd=folder)
    worker = start("-A", "shop", "worker", "-c", "1", cwd=folder)
    deadline = time.monotonic() + 20
    while not (folder / "one.started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.kill()
    worker.communicate(timeout=20)
    told = run("-A", "shop", "lag", cwd=folder).stdout
    assert "shop/default: no worker serves it; start one: respool -A shop worker" in told
    (folder / "one.go").touch()
    said = run("-A", "shop", "worker", "-c", "1", "--burst", cwd=folder).stderr
    assert re.search(r"is dead: took over 1 lease; it was running call \S+ of task wait\n", said)


@pytest.mark.parametrize("pool", ["processes", "solo"])
@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-A", "shop", "worker", "--group", "nope"], "unknown group 'nope'; known: "),
        (["-A", "shop", "worker", "-Q", "fats"], "unknown queue 'fats'; did you mean 'fast'?"),
        (["-A", "shpo", "worker"], "there is no module 'shpo' here"),
        (["-A", "shop:ap", "worker"], "unknown App 'ap'; did you mean 'app'?"),
        (["-A", "shop", "--url", "sqlite://x", "worker"], "three slashes for a relative path"),
        (["worker"], "no app: name it with -A shop"),
        (["-A", "shop", "worker", "-Q", ""], "--queues names none"),
    ],
)
def test_a_worker_that_is_asked_for_wrongly_ends_with_2_like_any_command(folder, pool, args, told):
    run("-A", "shop", "call", "add", "2", "3", cwd=folder)
    result = run(*args, "-c", "1", "-P", pool, "--burst", cwd=folder)
    assert result.returncode == 2, result.stderr
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_a_worker_whose_app_fails_at_import_ends_with_1(folder, pool):
    write_shop(folder, "raise RuntimeError('no settings')\n", "broken")
    result = run("-A", "broken", "worker", "-c", "1", "-P", pool, cwd=folder)
    assert result.returncode == 1
    assert "RuntimeError: no settings" in result.stderr


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_a_worker_logs_in_one_form_and_ends_with_what_it_did(folder, pool):
    run("-A", "shop", "call", "add", "2", "3", cwd=folder)
    run("-A", "shop", "call", "fetch", "bad://x", cwd=folder)
    run("-A", "shop", "call", "mail", "me", "--countdown", "1h", cwd=folder)
    told = run(
        "-A", "shop", "worker", "-c", "1", "-Q", "default,fast", "-P", pool, "--burst", cwd=folder
    ).stderr
    logged = [line for line in told.splitlines() if re.match(r"\d\d:", line)]
    assert all(re.match(r"\d\d:\d\d:\d\d (worker|child): \w", line) for line in logged), told
    assert re.search(
        r"worker: stopped after \d+\.\d s; worked through 2 calls; left: 1 scheduled, 1 dead$", logged[-1]
    ), told


def test_the_last_line_of_a_worker_whose_log_is_gone_is_no_error():
    class Gone:
        def counts(self, group):
            raise DatabaseGone("the file is gone")

    said = farewell(Gone(), [SimpleNamespace(kind="main")], 1, 2.0)
    assert said == "stopped after 2.0 s; worked through 1 call; what is left cannot be seen: the file is gone"


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_a_worker_of_the_wrong_app_says_what_it_does_not_serve(folder, pool):
    run("-A", "shop", "call", "add", "2", "3", cwd=folder)
    write_shop(folder, "from respool import App\napp = App('blog')\n", "blog")
    told = run("-A", "blog", "worker", "-c", "1", "-P", pool, "--burst", cwd=folder).stderr
    assert "  serves  blog/default\n" in told
    assert "  note    of other apps, and served by no worker: shop/default (1 call waits)\n" in told
    run("-A", "shop", "worker", "-c", "1", "--burst", cwd=folder)
    assert "  note " not in run("-A", "blog", "worker", "-c", "1", "-P", pool, "--burst", cwd=folder).stderr


def test_a_worker_without_tasks_says_what_is_missing_and_one_whose_module_imports_them_has_them(folder):
    (folder / "proj").mkdir()
    (folder / "proj/__init__.py").write_text("from respool import App\napp = App('proj')\n")
    (folder / "proj/mails.py").write_text("from . import app\n@app.task\ndef mail(to): return to\n")
    (folder / "proj/worker.py").write_text("from . import app, mails\n")
    id = run("-A", "proj.mails", "call", "mail", "ada", cwd=folder).stdout.strip()
    told = run("-A", "proj", "worker", "-c", "1", "--burst", cwd=folder).stderr
    assert "  tasks   none: what -A names has to import the modules that have them\n" in told
    assert "has to import the modules that have them" in run("-A", "proj", "tasks", cwd=folder).stdout
    told = run("-A", "proj.worker", "worker", "-c", "1", "--burst", cwd=folder).stderr
    assert "  tasks   mail\n" in told
    assert "returned 'ada'" in run("-A", "proj", "show", id, cwd=folder).stdout


def test_the_banner_names_streams_and_groups(folder):
    told = run("-A", "shop", "worker", "-c", "1", "--burst", cwd=folder).stderr
    assert "  serves  shop/default, shop/fast, stream inference (group audit)\n" in told
    run("-A", "shop", "groups", "create", "v2", "--queue", "default", cwd=folder)
    told = run("-A", "shop", "worker", "-c", "1", "--burst", "--group", "v2", cwd=folder).stderr
    assert "  serves  shop/default (group v2)\n" in told


def test_a_worker_that_was_killed_is_seen_to_be_gone(folder):
    write_shop(folder, SLOW)
    id = run("-A", "shop", "call", "wait", "it", cwd=folder).stdout.strip()
    worker = _worker(folder)
    try:
        _until(lambda: (folder / "it.started").exists())
        _until(lambda: lines("-A", "shop", "workers", cwd=folder)[0]["running"])
    finally:
        worker.kill()
        worker.wait()
    (found,) = lines("-A", "shop", "workers", cwd=folder)
    assert re.fullmatch(r"gone, silent \d+(\.\d)?s", found["state"])
    assert found["silent"] >= 0
    shown = run("-A", "shop", "workers", cwd=folder).stdout
    assert re.search(r"gone, silent .* \(wait\)", shown)
    (lag,) = lines("-A", "shop", "lag", cwd=folder)
    assert (lag["workers"], lag["running"], lag["leased"]) == (0, 0, 1)
    (folder / "it.go").touch()
    run("-A", "shop", "worker", "-c", "1", "--burst", cwd=folder)
    assert "SUCCESS" in run("-A", "shop", "show", id, cwd=folder).stdout


def test_what_a_worker_runs_is_seen(folder):
    write_shop(folder, SLOW)
    id = run("-A", "shop", "call", "wait", "it", cwd=folder).stdout.strip()
    worker = _worker(folder)
    try:
        _until(lambda: (folder / "it.started").exists())
        _until(lambda: lines("-A", "shop", "lag", cwd=folder)[0]["running_task"] == "wait")
        (found,) = lines("-A", "shop", "workers", cwd=folder)
        assert (found["worker"], found["state"], found["serves"]) == ("bee", "alive", ["default"])
        assert [(each["id"], each["task"]) for each in found["running"]] == [(id, "wait")]
        assert "    now: running for " in run("-A", "shop", "show", id, cwd=folder).stdout
        assert lines("-A", "shop", "calls", cwd=folder)[0]["state"] == "STARTED"
        assert lines("-A", "shop", "calls", "--state", "STARTED", cwd=folder)[0]["id"] == id
        assert run("-A", "shop", "check", cwd=folder).returncode == 0
        (folder / "it.go").touch()
        _until(lambda: lines("-A", "shop", "calls", cwd=folder)[0]["state"] == "SUCCESS")
    finally:
        (folder / "it.go").touch()
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
    assert lines("-A", "shop", "workers", cwd=folder) == []


def test_a_replay_by_commands_alone(folder):
    for n in range(3):
        run("-A", "shop", "call", "add", str(n), "1", cwd=folder)
    run("-A", "shop", "call", "mail", "me", cwd=folder)
    assert run("-A", "shop", "worker", "-c", "1", "--burst", cwd=folder).returncode == 0
    shop = folder / "shop.py"
    shop.write_text(shop.read_text().replace("x + y", "x * 100"))
    made = run("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add", cwd=folder)
    assert "Replay v2 runs 3 calls" in made.stdout
    assert run("-A", "shop", "worker", "-c", "1", "--burst", "--group", "v2", cwd=folder).returncode == 0
    calls = lines("-A", "shop", "calls", "--oldest", "--group", "v2", cwd=folder)
    assert [call["state"] for call in calls] == ["SUCCESS"] * 3 + ["UNKNOWN"]
    shown = json.loads(run("-A", "shop", "show", calls[2]["id"], "--json", cwd=folder).stdout)
    assert [(each["group"], each["result"]) for each in shown["groups"]] == [("main", 3), ("v2", 200)]
    groups = {each["group"]: each for each in lines("-A", "shop", "groups", "list", cwd=folder)}
    assert groups["v2"]["skipped"] == 1
    assert run("-A", "shop", "check", cwd=folder).returncode == 0


def _worker(folder):
    source = str(Path(sys.modules["respool"].__file__).parents[1])
    return WarmPopen(
        [sys.executable, "-m", "respool", "-A", "shop", "worker", "-c", "1", "-n", "bee"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": source},
        stderr=subprocess.DEVNULL,
    )


def _until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("args", [[], ["--burst"]])
def test_a_worker_of_processes_refuses_a_log_in_memory_and_leaves_nothing(folder, args):
    temporary = folder / "tmp"
    temporary.mkdir()
    memory = {"RESPOOL_URL": "sqlite:///:memory:", "TMPDIR": str(temporary)}
    result = run("-A", "shop", "worker", "-c", "1", *args, cwd=folder, **memory)
    assert result.returncode == 2
    assert "app shop keeps its log in memory, where no other process sees it; give it a file" in result.stderr
    solo = run("-A", "shop", "worker", "-P", "solo", "--burst", cwd=folder, **memory)
    assert solo.returncode == 0, solo.stderr
    assert list(temporary.iterdir()) == []
