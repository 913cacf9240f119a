"""The commands beside a real worker."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.support import run, write_shop

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


def test_exit_code_of_a_worker_that_cannot_start(folder):
    run("-A", "shop", "call", "add", "2", "3", cwd=folder)
    result = run("-A", "shop", "worker", "-c", "1", "--burst", "--group", "nope", cwd=folder)
    assert result.returncode != 0
    assert "nope" in result.stderr
    assert run("worker", "--burst", cwd=folder).returncode == 1


def test_what_a_worker_runs_is_seen(folder):
    write_shop(folder, SLOW)
    id = run("-A", "shop", "call", "wait", "it", cwd=folder).stdout.strip()
    source = str(Path(sys.modules["respool"].__file__).parents[1])
    worker = subprocess.Popen(
        [sys.executable, "-m", "respool", "-A", "shop", "worker", "-c", "1", "-n", "bee"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": source},
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(lambda: (folder / "it.started").exists())
        _until(lambda: lines("-A", "shop", "lag", cwd=folder)[0]["running_task"] == "wait")
        (found,) = lines("-A", "shop", "workers", cwd=folder)
        assert (found["worker"], found["state"], found["serves"]) == ("bee", "alive", ["default"])
        assert [(each["id"], each["task"]) for each in found["running"]] == [(id, "wait")]
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


def _until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
