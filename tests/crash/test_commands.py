"""SIGKILL to commands that change many records: each record is in one place, and the rest can go on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.worker.support import SOURCES, Place, eventually, on_each_engine

CALLS = 400
CODE = """
@app.task
def task(n):
    if once_failing and n >= 0:
        raise ValueError(n)
    return n

once_failing = not (HERE / "mended").exists()
"""


def killed(place: Place, *command: str, when: Callable[[], bool], slices: str) -> None:
    """Run a command that works in small slices, and kill it once it has done some of it."""
    code = (
        "import sys\n"
        f"{slices}\n"
        "from respool.cli import main\n"
        "main(sys.argv[1:])\n"
    )  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCES, str(place.folder)])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-A", str(place.path), *command],
        cwd=place.folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        eventually(lambda: when() or process.poll() is not None, "some of it")
    finally:
        process.kill()
        _, told = process.communicate()
    assert when(), told.decode()


def dead(place: Place) -> int:
    return place.counts().parked.get("dead", 0)


@on_each_engine
@pytest.mark.parametrize("turn", range(2))
def test_a_redrive_that_is_killed_has_given_back_some(place: Place, turn: int) -> None:
    module = place.module(CODE)
    module.task.delay_many(range(CALLS))
    place.burst()
    assert dead(place) == CALLS
    killed(
        place, "dead", "redrive", "--yes",
        when=lambda: dead(place) < CALLS, slices="import respool.dead.find as f; f.SLICE = 7",
    )  # fmt: skip
    counts = place.counts().parked
    assert counts.get("dead", 0) + counts.get("scheduled", 0) == CALLS
    place.check()
    module.app.dead_letters().redrive()
    place.touch("mended")
    place.burst()
    assert dead(place) == 0
    place.check()
    redriven = [entry.how for entry in place.app.engine.journal(place.group().id, _first(place))]
    assert redriven.count("redriven") == 1, "none is given back twice"


@on_each_engine
def test_a_drop_that_is_killed_has_dropped_some(place: Place) -> None:
    module = place.module(CODE)
    handles = module.task.delay_many(range(CALLS))
    place.burst()
    killed(
        place, "dead", "drop", "--yes",
        when=lambda: dead(place) < CALLS, slices="import respool.dead.find as f; f.SLICE = 7",
    )  # fmt: skip
    place.check()
    assert {handle.state for handle in handles} == {"FAILURE"}
    dropped = place.counters()["dead letters dropped"]
    assert dropped + dead(place) == CALLS
    module.app.dead_letters().drop()
    assert place.counters()["dead letters dropped"] == CALLS
    place.check()


def _first(place: Place) -> int:
    return place.app.engine.bounds(place.app.stream_of("queue", "default"))[0][1]
