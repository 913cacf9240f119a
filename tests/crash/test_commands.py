"""SIGKILL to commands that change many records: each record is in one place, and the rest can go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from tests.warm import WarmPopen
from tests.worker.support import SOURCES, Place, eventually, on_every_engine

from respool.replay import seek

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
    process = WarmPopen(
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


@on_every_engine
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


@on_every_engine
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


@on_every_engine
def test_a_replay_that_is_killed_was_made_or_not(place: Place) -> None:
    module = place.module(CODE)
    place.touch("mended")
    module.task.delay_many(range(CALLS))
    place.burst()
    for name in ("a", "b", "c"):
        command = ("replay", "--queue", "default", "--group", name, "--all-tasks", "--where", "args[0] >= 0")
        killed(place, *command, when=lambda: True, slices="")
        place.check()
    kinds = {group.name: group.kind for group in place.app.engine.groups()}
    assert set(kinds.values()) <= {"main", "replay"}
    killed(
        place, "replay", "--queue", "default", "--group", "d", "--all-tasks", "--wait",
        when=lambda: any(group.name == "d" for group in place.app.engine.groups()), slices="",
    )  # fmt: skip
    place.burst(group="d")
    assert place.idle("d")
    place.check()


@on_every_engine
@pytest.mark.parametrize("turn", range(2))
def test_a_seek_that_is_killed_can_be_brought_to_its_end(place: Place, turn: int) -> None:
    """H14: at whatever step the command is killed."""
    module = place.module(CODE)
    place.touch("mended")
    handles = module.task.delay_many(range(CALLS))
    place.burst()
    seek = ("seek", "main", "--queue", "default")
    slices = "import respool.replay.moving as m; m.SLICE = 3"

    def begun() -> bool:
        through = (place.group().settings.get("seek") or {}).get("through")
        return bool(through) or (turn == 0 and "seek" in place.group().settings) or place.counts().pending > 0

    killed(place, *seek, "--to", "10", "--yes", when=begun, slices=slices)
    place.check()
    if "seek" in place.group().settings:
        place.burst()
        assert place.counts().pending == 0, "nothing is run in the middle of it"
        place.check()
    killed(place, *seek, "--resume", when=lambda: place.counts().pending > 0, slices=slices)
    assert place.counts().pending == CALLS - 10
    place.check()
    place.burst()
    assert handles.get(timeout=20) == list(range(CALLS))
    place.check()


@on_every_engine
def test_a_worker_finishes_what_it_holds_when_its_group_is_moved(place: Place) -> None:
    """A run that is under way is settled before the group moves, and done again after that."""
    module = place.module(
        """
        @app.task
        def waits(n):
            with noted("waits", n):
                made.delay(n)
                if once("first"):
                    wait_for("go")
            return n

        @app.task
        def made(n):
            note("start", "made", n)
        """
    )
    place.touch("first")
    handle = module.waits.delay(7)
    worker = place.worker()
    place.await_start("waits", "7")
    to = {place.app.stream_of("queue", "default").logs[0]: _first(place)}
    mover = threading.Thread(target=lambda: seek(place.app.engine, place.group(), to, 20.0))
    mover.start()
    eventually(lambda: "seek" in place.group().settings)
    place.touch("go")
    mover.join(20)
    eventually(place.idle)
    assert handle.get(timeout=20) == 7
    assert place.runs("waits") == {"7": 2}
    eventually(lambda: place.runs("made") == {"7": 2}, "its calls are sent each time (H8)")
    assert "refused settlements" not in place.counters()
    assert worker.stop() == 0, worker.log
    place.check()
